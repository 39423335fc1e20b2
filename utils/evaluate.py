"""Evaluate an experiment on a test set, with the unprocessed mixture and oracle masks beside it:
`python -m utils.evaluate --exp exp/NAME --manifest DIR/test.csv`.

Writes exp/NAME/eval/<set>/{all_metrics.csv, final_metrics.json, examples/}, and for what needs no training the same in
exp/reference-<corpus>/<method>/. A killed evaluation continues where it was; other models, manifests or metrics start
anew.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import statistics
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from local_models.oracles.masks import MASKS, WINDOWS
from utils.data import audio
from utils.data.manifest import read_manifest, source_columns
from utils.errors import UserError, command
from utils.evaluation.scoring import How, Method, dumps, example_name, numbered_score
from utils.evaluation.suites import SUITES
from utils.files import sha256, write_text
from utils.training.model_files import load_system
from utils.training.trust import add_trust

VERSION = 2  # of the rows: raise it when they mean something else, and old ones are not continued
GPU_JOBS = 4  # processes that share a GPU at most


# ---- what is evaluated


def trained_system(exp: Path, trust: tuple[str, ...] = ()) -> Method:
    """The system of an experiment: model.pth, else the best model of its last step; `trust` as of `load_system`."""
    config = (
        yaml.safe_load((exp / "config.yml").read_text()) if (exp / "config.yml").is_file() else {}
    )
    candidates = [
        exp / "model.pth",
        *(exp / step / "best.ckpt" for step in list(config.get("steps") or {})[-1:]),
    ]
    for model in candidates:
        if model.is_file():
            description = config.get("description") or ""
            return Method(exp, description, model=model, model_sha256=sha256(model), trust=trust)
    raise UserError(
        f"{exp} has no trained model ({' or '.join(map(str, candidates))}): train it first (stages 2 and 3)"
    )


def references(folder: Path, path: Path | None = None) -> list[Method]:
    """What needs no training, as experiments below `folder`.

    Args:
        path: YAML file with a list of {name, kind (mixture, oracle or classic), description, class_path, init_args};
            None: the unprocessed mixture and the oracle masks.
    """
    listed = yaml.safe_load(path.read_text()) if path else oracle_masks()
    methods = []
    for number, entry in enumerate(listed, 1):
        unknown = {*entry} - {"name", "kind", "description", "class_path", "init_args"}
        kind = entry.get("kind", "classic")
        if unknown or "name" not in entry or kind not in ("mixture", "oracle", "classic"):
            raise UserError(
                f"{path}, entry {number}: needs name, kind (mixture, oracle or classic), class_path, and may have "
                f"description and init_args; it has {', '.join(f'{k}: {v}' for k, v in entry.items())}"
            )
        recipe = (
            None
            if kind == "mixture"
            else json.dumps({k: entry.get(k) for k in ("class_path", "init_args")})
        )
        methods.append(
            Method(folder / entry["name"], entry.get("description", ""), kind, recipe=recipe)
        )
    return methods


def oracle_masks() -> list[dict]:
    """The unprocessed mixture and every oracle mask, as entries of a list of references."""
    listed = [{"name": "mixture", "kind": "mixture", "description": "unprocessed mixture"}]
    for window in WINDOWS:
        for mask, text in MASKS.items():
            entry = {"name": f"stft_{mask}_{window}ms", "kind": "oracle"}
            entry |= {"description": f"oracle: {text}, STFT, Hann {window} ms"}
            entry |= {"class_path": "local_models.oracles.StftOracle"}
            listed.append(entry | {"init_args": {"kind": mask, "window": window}})
    return listed


def corpus_name(manifest: Path) -> str:
    """`NAME-SETTING` of .../NAME/manifests/SETTING/test.csv; else the name of the manifest's folder."""
    folders = manifest.resolve().parent.parts
    if "manifests" not in folders[1:]:
        return folders[-1]
    last = len(folders) - 1 - folders[::-1].index("manifests")
    return "-".join((folders[last - 1], *folders[last + 1 :]))


# ---- rows, kept as they come


def finished_rows(folder: Path, stamp: dict) -> dict[int, dict]:
    """Rows by number from an earlier run with the same stamp; what another one left is removed.

    rows.jsonl holds the stamp, then a line a row. A line that a kill cut short is dropped.
    """
    path, header = folder / "rows.jsonl", json.dumps(stamp)
    text = path.read_text() if path.exists() else ""
    lines = text.split("\n")[:-1]
    if lines[:1] != [header]:
        if folder.exists():
            shutil.rmtree(folder)
        lines = [header]
    whole = [line for line in lines[1:] if line.endswith("]") and line.startswith("[")]
    mended = "\n".join([header, *whole]) + "\n"
    if mended != text:
        write_text(path, mended)
    return dict(json.loads(line) for line in whole)


def _missing(table: pd.DataFrame, rows: dict, examples: set[int], folder: Path) -> list[int]:
    kept = {
        k
        for k in examples
        if (folder / example_name(table.mixture_ID[k]) / "metrics.json").exists()
    }
    return [k for k in range(len(table)) if k not in rows or (k in examples and k not in kept)]


@contextlib.contextmanager
def workers(cluster: str | None):
    """Where the processes run: on this machine, or on the Dask cluster of this address, which sees the same files."""
    if cluster is None:
        yield
        return
    from dask.distributed import Client  # takes a second to import

    try:
        client = Client(cluster, timeout=5)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--cluster {cluster}: no Dask scheduler answers there ({error}); see `dask scheduler`"
        ) from None
    with client, joblib.parallel_config("dask"):
        yield


def _score_all(method, how, nj, table, todo, examples, rows, folder):
    """Score the utterances `todo` in parallel, adding to `rows` and to the file as they come."""
    records, sources = table.to_dict("records"), table[source_columns(table)].to_numpy().tolist()
    jobs = (
        joblib.delayed(numbered_score)(
            k, method, how, records[k], sources[k], folder, k in examples
        )
        for k in todo
    )
    nj = min(nj, len(todo), GPU_JOBS if how.device == "cuda" else nj)
    results = joblib.Parallel(n_jobs=nj, return_as="generator_unordered")(jobs)
    bar = tqdm(
        results,
        method.folder.name,
        initial=len(table) - len(todo),
        total=len(table),
        unit="utt",
        disable=None,
    )
    try:
        with open(folder / "rows.jsonl", "a") as file:
            for k, row in bar:
                rows[k] = row
                file.write(json.dumps([k, row]) + "\n")
                file.flush()
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        raise UserError(
            f"a process evaluating {method.folder} was ended, probably for lack of memory: "
            "repeat the command with a smaller --nj; finished utterances are kept"
        ) from None


# ---- one method on one set


def evaluate(
    method: Method, manifest: Path, nj: int = 1, how: How | None = None, n_examples: int = 5
) -> dict:
    """Score a method on all utterances of a manifest, one at a time.

    Args:
        method: what to evaluate.
        manifest: CSV.
        nj: parallel processes.
        how: device and metrics.
        n_examples: utterances, spread evenly over the set, whose audio is kept.

    Returns:
        What final_metrics.json holds.
    """
    how = how or How()
    folder = method.folder / "eval" / manifest.stem
    stamp = {
        "rows": VERSION,
        "suite": how.suite,
        "extra": " ".join(how.extra),
        "segment": how.segment,
    }
    stamp |= {"model_sha256": method.model_sha256, "manifest_sha256": sha256(manifest)}
    stamp |= {"recipe": method.recipe} if method.recipe else {}
    system = load_system(method.model, method.trust) if method.model else None
    table = read_manifest(manifest, absent=True)
    n_src = len(source_columns(table))
    if system and system.n_src not in (None, n_src):
        raise UserError(
            f"{method.folder} separates {system.n_src} sources, but {manifest} has {n_src}"
        )
    rows = finished_rows(folder, stamp)
    chosen = np.linspace(0, len(table) - 1, min(n_examples, len(table))).round().astype(int)
    examples = set(chosen.tolist())
    todo = _missing(table, rows, examples, folder)
    final = folder / "final_metrics.json"
    if not todo and final.exists():
        print(f"{folder}: already evaluated")
        return json.loads(final.read_text())
    cost = measure(system, how.device, audio.info(table.mixture_path[0])[2]) if system else {}
    if todo:
        _score_all(method, how, nj, table, todo, examples, rows, folder)
    scores = pd.DataFrame([rows[k] for k in range(len(table))])
    write_text(folder / "all_metrics.csv", scores.to_csv(index=False, float_format="%.6f"))
    origin = {"name": method.folder.name, "kind": method.kind, "description": method.description}
    origin |= {
        "set": manifest.stem,
        "corpus": corpus_name(manifest),
        "manifest": str(manifest),
        **stamp,
    }
    origin |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
    }
    result = origin | {"n": len(scores)} | SUITES[how.suite].summary(scores) | cost
    write_text(final, dumps(result, indent=1) + "\n")
    print(in_words(folder, json.loads(dumps(result))))
    return result


def in_words(folder: Path, result: dict) -> str:
    """One line for the terminal."""
    suite = SUITES[result["suite"]]
    numbers = [result[suite.primary].get(key) for key in ("mean", "standard_error", "median")]
    mean, error, median = ("-" if value is None else f"{value:.2f}" for value in numbers)
    text = f"{folder}: {suite.label} {mean} +- {error} (median {median}), {result['n']} mixtures"
    notes = {
        "silent_sources": "silent sources have no score",
        "silent_mixture": "silent mixtures have no improvement",
        "failed_estimates": "estimates are silent, not finite or without any trace of the source (-100 dB)",
    }
    return text + "".join(
        f"; {result[name]} {note}" for name, note in notes.items() if result.get(name)
    )


# ---- cost


def measure(system, device: str, n_mics: int = 1) -> dict:
    """Size and speed of a system on `n_mics` channels.

    Returns:
        parameters; macs_per_second: multiply-adds for a second of audio (half of what torch.utils.flop_counter counts
        for convolutions and matrix products in `separate`); seconds_per_second: median time to separate 4 s, over 4 s;
        device.
    """
    noise = system.noise(4.0, n_mics)
    counter = FlopCounterMode(display=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Intel GPUs
        # oneDNN runs recurrent layers as one operation, which the counter does not know.
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), counter:
            system.separate(noise[..., : system.sample_rate])
    system, noise = system.to(device), noise.to(device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.inference_mode():
            system.separate(noise).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return {
        "parameters": sum(parameter.numel() for parameter in system.parameters()),
        "macs_per_second": counter.get_total_flops() // 2,
        "seconds_per_second": statistics.median(seconds[1:]) / 4,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
    }


# ---- command


def _arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="utils.evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--exp",
        type=Path,
        required=True,
        help="folder of the experiment; references come beside it",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="CSV of the test set")
    parser.add_argument(
        "--nj", type=int, default=joblib.cpu_count(), help="processes, of one CPU thread each"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the system runs"
    )
    parser.add_argument("--n_examples", type=int, default=5, help="utterances whose audio is kept")
    parser.add_argument(
        "--references",
        default="yes",
        help="also evaluate what needs no training: yes (the mixture and oracle masks), FILE.yml (what it lists), no;\n"
        "with `only:` before it, nothing else",
    )
    parser.add_argument(
        "--suite", choices=SUITES, default="speech", help="metrics, see utils/evaluation/suites.py"
    )
    parser.add_argument(
        "--extra", nargs="*", default=[], help="further metrics of the suite, which take long"
    )
    parser.add_argument(
        "--segment", type=float, default=How.segment, help="seconds that are separated at once"
    )
    parser.add_argument("--cluster", help="address of a Dask scheduler whose workers do the job")
    add_trust(parser)
    args = parser.parse_args(arguments)
    known = SUITES[args.suite].extra
    if not {*args.extra} <= {*known}:
        raise UserError(
            f"--extra {' '.join(args.extra)}: the suite {args.suite} has {', '.join(known) or 'none'}"
        )
    if args.nj < 1 or args.n_examples < 0:
        raise UserError("--nj must be at least 1 and --n_examples at least 0")
    if not args.manifest.is_file():
        raise UserError(
            f"there is no manifest {args.manifest}: make it first (stage 1), or give --manifest DIR/test.csv"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


@command
def main(arguments: list[str] | None = None) -> None:
    args = _arguments(arguments)
    listed = args.references.removeprefix("only:")
    systems = []
    if not args.references.startswith("only"):
        systems = [trained_system(args.exp, tuple(args.trust))]
    for method in systems:  # a model that is refused is told before the references are scored
        load_system(method.model, method.trust)
    folder = args.exp.resolve().parent / f"reference-{corpus_name(args.manifest)}"
    if folder.is_relative_to(os.getcwd()):
        folder = folder.relative_to(os.getcwd())
    path = None if listed in ("yes", "no", "only") else Path(listed)
    if path and not path.is_file():
        raise UserError(
            f"--references {listed}: there is no such file; give yes, no, only or a YAML file"
        )
    how = How(args.device, args.suite, tuple(sorted(args.extra)), args.segment)
    with workers(args.cluster):
        for method in [] if listed == "no" else references(folder, path):
            evaluate(
                method,
                args.manifest,
                args.nj,
                dataclasses.replace(how, device="cpu"),
                args.n_examples,
            )
        for method in systems:
            evaluate(method, args.manifest, args.nj, how, args.n_examples)


if __name__ == "__main__":
    main()
