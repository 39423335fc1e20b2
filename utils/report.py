"""Compare all experiments of a recipe: `python -m utils.report --exp exp --data-set test --out RESULTS.md`.

Reads what training and evaluation wrote (config.yml, run.json, <step>/done.json, eval/<set>/final_metrics.json).
"""

import argparse
import json
import shlex
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

from utils.audio import write_text
from utils.errors import UserError, command

COLUMNS = (
    "system", "description", "SI-SDRi (dB)", "median", "SI-SDR (dB)", "< 0 dB", "inverted", "oracle SI-SDRi",
    "parameters (M)", "GMAC/s", "training (h)", "updates", "device", "seed", "commit",
)  # fmt: skip
LEGEND = """\
SI-SDRi: mean over the mixtures +- standard error (rows of several seeds: mean over the seeds +- standard deviation); \
`median` is of SI-SDRi. `< 0 dB`: share of mixtures with an SI-SDR below 0 dB. `inverted`: share of estimates of the \
wrong sign. `oracle SI-SDRi`: of the system's own front end with oracle masks. GMAC/s: multiply-adds for a second of \
audio, in 10^9. "-": does not apply, or not known."""
NOT_LEARNT = ("seed", "runtime", "description")  # keys of a configuration in which repetitions may differ
ORDER = {"mixture": 0, "oracle": 1, "system": 2}


def read_experiments(exp: Path, data_set: str) -> list[dict]:
    """One dict an evaluated experiment below `exp`: final_metrics.json and, beside it, `training`, `config`."""
    found = []
    for path in sorted(exp.rglob(f"eval/{data_set}/final_metrics.json")):
        folder = path.parents[2]
        config = yaml.safe_load((folder / "config.yml").read_text()) if (folder / "config.yml").is_file() else None
        run = _json(folder / "run.json")
        names = list((config or {}).get("steps") or {})
        done = sorted(
            folder.glob("*/done.json"), key=lambda p: names.index(p.parent.name) if p.parent.name in names else 99
        )
        found.append(
            _json(path) | {"name": folder.name, "config": config, "training": _training(run, [_json(p) for p in done])}
        )
        found[-1]["description"] = (
            (config or {}).get("description") or run.get("description") or found[-1].get("description")
        )
    return found


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and repeat the stage that writes it") from None


def _training(run: dict, steps: list[dict]) -> dict:
    """Sums and names over the training steps; absent where no step says."""
    result = {}
    for key in ("hours", "updates"):
        values = [step[key] for step in steps if key in step]
        result |= {key: sum(values)} if values else {}
    for key in ("device", "seed", "commit"):
        values = dict.fromkeys(str(note[key]) for note in (*steps, run) if note.get(key) is not None)
        result |= {key: ", ".join(values)} if values else {}
    return result


# ---- rows


def row(experiment: dict) -> tuple[str, ...]:
    """Cells of one experiment, in the order of COLUMNS."""
    training, config = experiment["training"], experiment["config"] or {}
    si_sdri = experiment["si_sdri"]
    return (
        experiment["name"],
        _text(experiment["description"]),
        _plus_minus(si_sdri["mean"], si_sdri["standard_error"]),
        *_measures(experiment),
        _number(experiment.get("parameters"), 1e-6, 3),
        _number(experiment.get("macs_per_second"), 1e-9, 3),
        _number(training.get("hours"), 1, 2),
        _text(training.get("updates")),
        _text(training.get("device")),
        _text(config.get("seed", training.get("seed"))),
        _text(training.get("commit")),
    )


def _measures(experiment: dict) -> tuple[str, ...]:
    return (
        _number(experiment["si_sdri"]["median"], 1, 2),
        _number(experiment["si_sdr"]["mean"], 1, 2),
        _number(experiment["share_below_0_db"], 100, 1, " %"),
        _number(experiment["inverted_share"], 100, 1, " %"),
        _number(experiment.get("oracle_si_sdri", {}).get("mean"), 1, 2),
    )


def seeds_row(experiments: list[dict]) -> tuple[str, ...]:
    """Mean and standard deviation over experiments that differ in their seed only."""
    means = [e["si_sdri"]["mean"] for e in experiments if e["si_sdri"]["mean"] is not None]
    spread = statistics.stdev(means) if len(means) > 1 else None
    seeds = sorted({e["config"].get("seed") for e in experiments}, key=str)
    averages = _average(experiments)
    cells = dict.fromkeys(COLUMNS, "-") | {
        "system": f"**{len(seeds)} seeds of {experiments[0]['name']}**",
        "description": _text(experiments[0]["description"]),
        "SI-SDRi (dB)": _plus_minus(statistics.fmean(means) if means else None, spread),
        "seed": ", ".join(map(str, seeds)),
    }
    cells |= dict(zip(COLUMNS[3:8], _measures(averages), strict=True))
    return tuple(cells[column] for column in COLUMNS)


def _average(values: list):
    """Mean of equally built dicts of numbers, number by number; None where one has none."""
    if isinstance(values[0], dict):
        return {key: _average([value.get(key) for value in values]) for key in values[0]}
    numbers = all(isinstance(value, int | float) for value in values)
    return statistics.fmean(values) if numbers else None


def _text(value) -> str:
    return "-" if value in (None, "") else str(value).replace("|", "\\|").replace("\n", " ")


def _number(value, scale, digits, unit="") -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}{unit}"


def _plus_minus(mean, spread) -> str:
    return _number(mean, 1, 2) + ("" if spread is None else f" +- {spread:.2f}")


# ---- tables


def table(experiments: list[dict]) -> list[tuple[str, ...]]:
    """Rows: the unprocessed mixture, the oracles, the systems from best to worst with their seeds together."""
    groups: dict[str, list[dict]] = {}
    for experiment in experiments:
        groups.setdefault(_same_but_seed(experiment), []).append(experiment)

    def place(group):
        means = [e["si_sdri"]["mean"] for e in group if e["si_sdri"]["mean"] is not None]
        return ORDER[group[0]["kind"]], -statistics.fmean(means) if means else 0.0, group[0]["name"]

    rows = []
    for group in sorted(groups.values(), key=place):
        group.sort(key=lambda e: (str((e["config"] or {}).get("seed")), e["name"]))
        rows += map(row, group)
        if len({e["config"]["seed"] for e in group if e["config"] and "seed" in e["config"]}) > 1:
            rows.append(seeds_row(group))
    return rows


def _same_but_seed(experiment: dict) -> str:
    """Equal for experiments whose configurations differ in their seed only."""
    if not experiment["config"]:
        return experiment["name"]
    return json.dumps({k: v for k, v in experiment["config"].items() if k not in NOT_LEARNT}, sort_keys=True)


def markdown(experiments: list[dict], data_set: str) -> str:
    """The report: a table for each set of data, since scores on different data cannot be compared."""
    data: dict[str, list[dict]] = {}
    for experiment in experiments:
        data.setdefault(experiment["manifest_sha256"], []).append(experiment)
    parts = [f"# Results on {data_set}"]
    for digest, group in sorted(data.items(), key=lambda item: (item[1][0]["corpus"], item[0])):
        first = group[0]
        parts.append(f"## {first['corpus']}: {first['n']} mixtures")
        lines = [COLUMNS, tuple("---" for _ in COLUMNS), *table(group)]
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
        parts.append(f"Manifest {first['manifest']}, sha256 {digest[:12]}.{_silence(first)}")
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts += [LEGEND, f"Written by `{shlex.join(sys.orig_argv)}` on {now}; no number is typed by hand."]
    return "\n\n".join(parts) + "\n"


def _silence(metrics: dict) -> str:
    notes = [
        (metrics.get("silent_sources"), "silent sources have no score"),
        (metrics.get("silent_mixture"), "mixtures are silent"),
    ]
    return "".join(f" {number} {text}." for number, text in notes if number)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="utils.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--exp", type=Path, default=Path("exp"), help="folder of the experiments")
    parser.add_argument(
        "--data-set", default="test", help="name of the evaluated set: the manifest's file name without .csv"
    )
    parser.add_argument("--out", type=Path, default=Path("RESULTS.md"), help="Markdown file to write")
    args = parser.parse_args(arguments)
    experiments = read_experiments(args.exp, args.data_set)
    if not experiments:
        raise UserError(
            f"{args.exp} holds no evaluation of the set '{args.data_set}': evaluate an experiment first (stage 4)"
        )
    text = markdown(experiments, args.data_set)
    write_text(args.out, text)
    print(text)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
