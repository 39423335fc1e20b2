"""Stage 5 on MUSDB18: table and box plot beside the systems of SiSEC 2018, exp/sisec18.{md,png}.

Published values: medians over the 50 test songs of medians over frames, computed from the scores that the campaign
published (https://github.com/sigsep/sigsep-mus-2018); Stoeter, Liutkus and Ito, LVA/ICA 2018.
"""

import argparse
import io
import json
from pathlib import Path

import matplotlib
import pandas as pd

from utils import files
from utils.errors import command

PUBLISHED = Path(__file__).with_name("sisec18_medians.csv")
TEST_SONGS, KNOWN = 50, "PR - Happy Daze"
REMARKS = dict.fromkeys(("TAU1", "TAK2", "TAK3", "UHL3", "STL1"), "more training songs")
REMARKS |= dict.fromkeys(("IBM1", "IBM2", "IRM1", "IRM2", "MWF"), "oracle") | {"MIX": "mixture"}
COLUMNS = ("SDR", "SIR", "ISR", "SAR")


def scored(exp):
    """`{name: rows of the MUSDB18 test set}` of all experiments and references below a folder."""
    found = {}
    for path in sorted(exp.glob("**/eval/test/all_metrics.csv")):
        rows = pd.read_csv(path, dtype={"mixture_ID": str})
        if len(rows) == TEST_SONGS and KNOWN in set(rows.mixture_ID) and "sdr_1" in rows:
            name = json.loads((path.parent / "final_metrics.json").read_text())["name"]
            found[name] = rows
    return found


def labelled(name):
    return f"{name} ({REMARKS[name]})" if name in REMARKS else name


def table(found, target, number):
    published = pd.read_csv(PUBLISHED)
    published = published[published.target == target].set_index("method")
    origin = "SiSEC 2018"
    rows = {
        labelled(name): [*row[list(COLUMNS)], row.SDR_mean_over_tracks, origin]
        for name, row in published.iterrows()
    }
    for name, scores in found.items():
        medians = [scores[f"{column.lower()}_{number}"].median() for column in COLUMNS]
        rows[f"**{name}**"] = [*medians, scores[f"sdr_{number}"].mean(), "here"]
    lines = [
        f"## {target}",
        "",
        "| system | SDR | SIR | ISR | SAR | SDR, mean over songs | from |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: -item[1][0]):
        lines.append(f"| {name} | " + " | ".join(f"{x:.2f}" for x in row[:5]) + f" | {row[5]} |")
    return "\n".join(lines)


def box_plot(found):
    """PNG: vocals SDR of every song here, and the published medians as lines."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    published = pd.read_csv(PUBLISHED)
    published = published[published.target == "vocals"].set_index("method").SDR.rename(labelled)
    ours = {name: rows.sdr_1.dropna() for name, rows in found.items()}
    names = sorted(
        [*ours, *published.index], key=lambda n: ours[n].median() if n in ours else published[n]
    )
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(names) + 1.2), layout="constrained")
    for place, name in enumerate(names):
        if name in ours:
            axes.boxplot(
                ours[name],
                positions=[place],
                orientation="horizontal",
                widths=0.6,
                tick_labels=[name],
            )
        else:
            axes.plot(
                [published[name]] * 2, [place - 0.3, place + 0.3], color="tab:blue", linewidth=2
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("SDR of the vocals (dB): boxes are songs, blue lines medians of SiSEC 2018")
    axes.set_xlim(-10, 15)
    axes.grid(axis="x", alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    plt.close(figure)
    return image.getvalue()


@command
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp", type=Path, required=True, help="folder with the experiments")
    exp = parser.parse_args(argv).exp
    found = scored(exp)
    if not found:
        return
    note = "Medians over songs of medians over frames of 1 s (BSS Eval v4), in dB; oracles see the true sources.\n\n"
    text = "\n\n".join(
        table(found, target, k) for k, target in ((1, "vocals"), (2, "accompaniment"))
    )
    files.write_text(exp / "sisec18.md", f"# Beside SiSEC 2018\n\n{note}{text}\n")
    files.write_bytes(exp / "sisec18.png", box_plot(found))
    print(f"{exp / 'sisec18.md'}, {exp / 'sisec18.png'}: {len(found)} systems beside SiSEC 2018")


if __name__ == "__main__":
    main()
