"""Stage 5 on MUSDB18: table and box plot beside the systems of SiSEC 2018, exp/sisec18.{md,png}.

Published values: medians over the 50 test songs of medians over frames, computed from the scores that the campaign
published (https://github.com/sigsep/sigsep-mus-2018); Stoeter, Liutkus and Ito, LVA/ICA 2018.
"""

import argparse
import io
from pathlib import Path

import matplotlib
import pandas as pd

from utils import files
from utils.errors import command
from utils.evaluation.results import SUMMARY, read_scores, read_summary
from utils.evaluation.scores import Measure, Scores
from utils.report.table import escaped

PUBLISHED = Path(__file__).with_name("sisec18_medians.csv")
# What the MUSDB18 test set is known by.
TEST_SONGS = 50
KNOWN = "PR - Happy Daze"
REMARKS = {
    **dict.fromkeys(("TAU1", "TAK2", "TAK3", "UHL3", "STL1"), "more training songs"),
    **dict.fromkeys(("IBM1", "IBM2", "IRM1", "IRM2", "MWF"), "oracle"),
    "MIX": "mixture",
}
# Columns of the published table, and our metrics.
METRICS = {
    "SDR": "sdr",
    "SIR": "sir",
    "ISR": "isr",
    "SAR": "sar",
}
# By the number of the source.
STEMS = {1: "vocals", 2: "accompaniment"}
VOCALS_SDR = Measure("sdr", 1)


def scores_of(exp: Path) -> dict[str, Scores]:
    """Scores on the MUSDB18 test set of all experiments and references below a folder, by name."""
    # Other corpora have a set of that name too: it is known by its songs.
    tables = {}
    for path in sorted(exp.glob(f"**/eval/*/test/{SUMMARY}")):
        scores = read_scores(path.parent)
        is_test_set = len(scores) == TEST_SONGS and KNOWN in scores.mixtures
        if is_test_set and VOCALS_SDR in scores:
            name = read_summary(path.parent)["name"]
            tables[name] = scores
    return tables


def labelled(name: str) -> str:
    """The name, with what one must know to compare it."""
    if name not in REMARKS:
        return name
    return f"{name} ({REMARKS[name]})"


def published(target: str) -> pd.DataFrame:
    """Medians of SiSEC 2018, indexed by method."""
    # A method may be called NA.
    table = pd.read_csv(PUBLISHED, keep_default_na=False)
    return table[table.target == target].set_index("method")


def markdown(tables: dict[str, Scores], number: int) -> str:
    """A table of medians over songs, from best to worst."""
    target = STEMS[number]
    rows = {}
    for name, row in published(target).iterrows():
        medians = [row[column] for column in METRICS]
        rows[labelled(name)] = [*medians, row.SDR_mean_over_tracks, "SiSEC 2018"]
    # Ours stand out in bold.
    for name, scores in tables.items():
        medians = []
        for metric in METRICS.values():
            values = scores[Measure(metric, number)]
            medians.append(values.median())
        mean = scores[Measure("sdr", number)].mean()
        rows[f"**{escaped(name)}**"] = [*medians, mean, "here"]
    lines = [
        f"## {target}",
        "",
        "| system | SDR | SIR | ISR | SAR | SDR, mean over songs | from |",
        "|---|---|---|---|---|---|---|",
    ]
    # By the SDR, the first column.
    names = sorted(rows, key=lambda name: -rows[name][0])
    for name in names:
        *values, origin = rows[name]
        # Not -0.00.
        numbers = " | ".join(f"{value:z.2f}" for value in values)
        lines.append(f"| {name} | {numbers} | {origin} |")
    return "\n".join(lines)


def box_plot(tables: dict[str, Scores]) -> bytes:
    """PNG: vocals SDR of every song here, and the published medians as lines."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    medians = published("vocals").SDR.rename(labelled)
    ours = {name: scores[VOCALS_SDR].dropna() for name, scores in tables.items()}

    def place_of(name):
        return ours[name].median() if name in ours else medians[name]

    # From the lowest median, below, to the highest.
    names = sorted([*ours, *medians.index], key=place_of)
    # Names of experiments are text: a dollar sign in one begins no formula.
    with plt.rc_context({"text.parse_math": False}):
        height = 0.28 * len(names) + 1.2
        figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
        for place, name in enumerate(names):
            if name in ours:
                axes.boxplot(
                    ours[name],
                    positions=[place],
                    orientation="horizontal",
                    widths=0.6,
                    manage_ticks=False,
                )
            else:
                # Of these only the median is known.
                ends = [place - 0.3, place + 0.3]
                axes.plot([medians[name]] * 2, ends, color="tab:blue", linewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("SDR of the vocals (dB): boxes are songs, blue lines medians of SiSEC 2018")
        # The few songs beyond would make everything else small.
        axes.set_xlim(-10, 15)
        axes.set_ylim(-1, len(names))
        axes.grid(axis="x", alpha=0.3)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        plt.close(figure)
    return image.getvalue()


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp", type=Path, required=True, help="folder with the experiments")
    exp = parser.parse_args(argv).exp
    # Nothing to compare is no error: stage 5 runs on all corpora.
    tables = scores_of(exp)
    if not tables:
        return
    # What the numbers are stands above them.
    note = "Medians over songs of medians over frames of 1 s (BSS Eval v4), in dB; oracles see the true sources."
    parts = ["# Beside SiSEC 2018", note]
    for number in STEMS:
        parts.append(markdown(tables, number))
    files.write_text(exp / "sisec18.md", "\n\n".join(parts) + "\n")
    files.write_bytes(exp / "sisec18.png", box_plot(tables))
    print(f"{exp / 'sisec18.md'}, {exp / 'sisec18.png'}: {len(tables)} systems beside SiSEC 2018")


if __name__ == "__main__":
    main()
