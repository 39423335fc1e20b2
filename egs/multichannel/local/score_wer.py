"""Word error rate of the estimates, by a recogniser of your own.

`--recogniser` is whisper:NAME (package openai-whisper), transformers:NAME (a speech recognition model of the package
transformers), or MODULE:FUNCTION, called as function(signal, sample_rate) -> text with a float32 (time,) signal. The
packages are not among the requirements: install the one you use. The test set needs transcripts, the columns text_<k>,
which come from the column text of train.csv and test.csv.
"""

import argparse
import importlib
from pathlib import Path

import pandas as pd
import soxr
import torch

from utils import files
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluation.metrics.si_sdr import match
from utils.evaluation.metrics.wer import word_errors
from utils.evaluation.scoring import read_example
from utils.training.model_files import load_system

WHISPER_RATE = 16000  # Hz


def recogniser(name):
    """A function of (signal, sample_rate) that returns the text."""
    kind, _, model = name.partition(":")
    if not model:
        raise UserError(
            f"--recogniser {name}: give whisper:NAME, transformers:NAME or MODULE:FUNCTION"
        )
    try:
        if kind == "whisper":
            heard = importlib.import_module("whisper").load_model(model)
            return lambda signal, rate: heard.transcribe(
                soxr.resample(signal, rate, WHISPER_RATE), language="en"
            )["text"]
        if kind == "transformers":
            pipe = importlib.import_module("transformers").pipeline(
                "automatic-speech-recognition", model=model
            )
            return lambda signal, rate: pipe({"raw": signal, "sampling_rate": rate})["text"]
        return getattr(importlib.import_module(kind), model)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--recogniser {name}: {error}. Is the package installed, and the name right?"
        ) from None


def transcribe(row, sources, system, recognise):
    """Errors and words of the mixture (by each text), the estimates, and the sources, of one test mixture."""
    rate = system.sample_rate
    mixture, sources = read_example(row["mixture_path"], sources, rate)
    with torch.inference_mode():
        estimates = system.separate(torch.from_numpy(mixture)[None])[0].numpy()
    estimates = estimates[match(estimates, sources)]
    heard = recognise(mixture[0], rate)
    totals = {}
    for k, (estimate, source) in enumerate(zip(estimates, sources, strict=True), 1):
        texts = {
            "mixture": heard,
            "estimates": recognise(estimate, rate),
            "sources": recognise(source, rate),
        }
        for name, text in texts.items():
            errors, spoken = word_errors(text, row[f"text_{k}"])
            old = totals.get(name, (0, 0))
            totals[name] = old[0] + errors, old[1] + spoken
    return {
        f"{name}_{kind}": n
        for name, pair in totals.items()
        for kind, n in zip(("errors", "words"), pair, strict=True)
    }


@command
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--exp", type=Path, required=True, help="folder of the experiment, or a model file"
    )
    parser.add_argument(
        "--manifest", type=Path, required=True, help="CSV of the test set, with columns text_<k>"
    )
    parser.add_argument("--recogniser", required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="CSV of the errors, a row a mixture"
    )
    args = parser.parse_args(argv)
    frame = read_manifest(args.manifest)
    columns = source_columns(frame)
    texts = [f"text_{k}" for k in range(1, len(columns) + 1)]
    absent = [text for text in texts if text not in frame]
    if absent:
        raise UserError(
            f"{args.manifest}: lacks {', '.join(absent)}: give stage 0 a train.csv and test.csv with texts"
        )
    if (empty := (frame[texts] == "").any(axis=1)).any():
        example = frame["mixture_ID"][empty.idxmax()]
        raise UserError(
            f"{args.manifest}: {empty.sum()} mixtures lack a text, e.g. {example}: leave them out"
        )
    system, recognise = load_system(args.exp), recogniser(args.recogniser)
    rows = [
        {
            "mixture_ID": row["mixture_ID"],
            **transcribe(row, [row[c] for c in columns], system, recognise),
        }
        for row in frame.to_dict("records")
    ]
    table = pd.DataFrame(rows)
    files.write_text(args.out, table.to_csv(index=False))
    for name in ("mixture", "estimates", "sources"):
        rate = 100 * table[f"{name}_errors"].sum() / max(table[f"{name}_words"].sum(), 1)
        print(f"{name:9} {rate:6.1f} % of {table[f'{name}_words'].sum()} words")


if __name__ == "__main__":
    main()
