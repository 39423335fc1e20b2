"""Word error rate of the estimates, by a recogniser of your own.

`--recogniser` is whisper:NAME (package openai-whisper), transformers:NAME (a speech recognition model of the package
transformers), or MODULE:FUNCTION, called as function(signal, sample_rate) -> text with a float32 (time,) signal. The
packages are not among the requirements: install the one you use. The test set needs transcripts, the columns text_<k>,
which come from the column text of train.csv and test.csv.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import soxr
import torch

from local_models.system import System
from utils import files
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluation.apply import apply
from utils.evaluation.metrics.si_sdr import match
from utils.evaluation.metrics.wer import word_errors
from utils.evaluation.scoring import read_example
from utils.training.model_files import load_system

WHISPER_RATE = 16000  # Hz


def recogniser(name):
    """A function of (signal, sample_rate) that returns the text."""
    # Imported only when asked for: each is large, and none is a requirement.
    kind, _, model = name.partition(":")
    if not model:
        raise UserError(
            f"--recogniser {name}: give whisper:NAME, transformers:NAME or MODULE:FUNCTION"
        )
    try:
        if kind == "whisper":
            whisper = importlib.import_module("whisper").load_model(model)

            def transcribed(signal, rate):
                # It knows no other rate.
                resampled = soxr.resample(signal, rate, WHISPER_RATE)
                return whisper.transcribe(resampled, language="en")["text"]

            return transcribed
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


def transcribe(
    row: dict, source_paths: list[str], system: System, recognise: Callable
) -> dict[str, int]:
    """Errors and words of one test mixture: of the mixture itself (by each text), the estimates, and the sources."""
    rate = system.sample_rate
    mixture, sources = read_example(row["mixture_path"], source_paths, rate)
    # The first channel is the reference, at which the sources are.
    estimates = apply(system, torch.from_numpy(mixture)).numpy()[:, 0]
    sources = sources[:, 0]
    estimates = estimates[match(estimates, sources)]
    # Once: it is the same for all speakers.
    of_mixture = recognise(mixture[0], rate)
    # Errors and words apart, for the rate of a set is not the mean of rates.
    totals: dict[str, int] = {}
    for k, (estimate, source) in enumerate(zip(estimates, sources, strict=True), 1):
        texts = {
            "mixture": of_mixture,
            "estimates": recognise(estimate, rate),
            "sources": recognise(source, rate),
        }
        for name, text in texts.items():
            errors, words = word_errors(text, row[f"text_{k}"])
            totals[f"{name}_errors"] = totals.get(f"{name}_errors", 0) + errors
            totals[f"{name}_words"] = totals.get(f"{name}_words", 0) + words
    return totals


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
    # What was said, by source.
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
    # In one process, for a recogniser is large.
    system = load_system(args.exp)
    recognise = recogniser(args.recogniser)
    rows = []
    for row in frame.to_dict("records"):
        totals = transcribe(row, [row[column] for column in columns], system, recognise)
        rows.append({"mixture_ID": row["mixture_ID"], **totals})
    # By mixture, so that one can look for what went wrong.
    table = pd.DataFrame(rows)
    files.write_text(args.out, table.to_csv(index=False))
    for name in ("mixture", "estimates", "sources"):
        rate = 100 * table[f"{name}_errors"].sum() / max(table[f"{name}_words"].sum(), 1)
        print(f"{name:9} {rate:6.1f} % of {table[f'{name}_words'].sum()} words")


if __name__ == "__main__":
    main()
