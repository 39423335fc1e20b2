import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import soundfile as sf
import yaml
from PIL import Image

from tests.support import write_scores
from utils.evaluation.scores import Measure
from utils.evaluation.suites import SUITES, Suite
from utils.report.__main__ import main
from utils.report.examples import BASE64, FLAC, LOW_RATE, loudest, make_plan, spectrogram
from utils.report.experiments import read_experiments
from utils.report.figures import binned
from utils.report.labels import LABELS, SuiteLabels

RATE = 8000
VOID = {"meta", "img", "br", "wbr", "hr", "input", "link"}
rng = np.random.default_rng(0)
EASE = rng.normal(0, 3, 30)


class Page(HTMLParser):
    """Elements, and the tables as lists of rows of texts; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.elements, self.tables = text, [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self.open  # nothing of HTML ends itself
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f"|{data}" if "small" in self.open else data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def scores(self, number=0):
        """Rows of a table as {column: text}, the text after | being the small one."""
        tables = [table for table in self.tables if table[0][0] == "system"]
        head, *rows = tables[number]
        return [dict(zip(head, row, strict=True)) for row in rows]


def tone(frequency, seconds=0.5, level=0.1):
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def experiment(
    folder,
    scores,
    kind="system",
    system="x",
    manifest="a" * 64,
    examples=3,
    curves=True,
    seed=0,
    **final,
):
    """An evaluated experiment; `scores` are of the utterances m0, m1, ..."""
    evaluation, scores = folder / "eval/mini/test", np.asarray(scores, float)
    evaluation.mkdir(parents=True)
    columns = {
        "si_sdri": scores,
        "si_sdr": scores,
        "input_si_sdr": np.zeros(len(scores)),
        ("input_si_sdr", 1): EASE[: len(scores)],
        ("input_si_sdr", 2): -EASE[: len(scores)],
        ("si_sdri", 1): scores + 1,
        ("si_sdri", 2): scores - 1,
    }
    write_scores(evaluation, [f"m{k}" for k in range(len(scores))], columns)
    known = scores[~np.isnan(scores)]
    values = dict.fromkeys(("mean", "median", "standard_error"))
    if len(known) > 1:
        values = {
            "mean": known.mean(),
            "median": np.median(known),
            "standard_error": scipy.stats.sem(known),
        }
    summary = {
        "kind": kind,
        "set": "test",
        "corpus": "mini",
        "manifest": "data/test.csv",
        "n": len(scores),
    }
    summary |= {
        "manifest_sha256": manifest,
        "description": f"about {folder.name}",
        "command": "evaluate <it>",
    }
    summary |= {
        "si_sdri": values,
        "si_sdr": values,
        "share_below_0_db": 0.125,
        "inverted_share": 0.0,
    } | final
    (evaluation / "final_metrics.json").write_text(json.dumps(summary))
    for k in range(0, 10 * examples, 10):
        of_mixture = {"si_sdri": scores[k], "si_sdr": scores[k]}
        of_sources = {"1": {"si_sdri": scores[k] + 1}, "2": {"si_sdri": scores[k] - 1}}
        row = {"mixture_ID": f"m{k}", "mixture": of_mixture, "sources": of_sources}
        example(evaluation / "examples" / f"ex_m{k}", row)
    if kind == "system":
        train(folder, system, curves, seed)


def example(folder, row):
    folder.mkdir(parents=True)
    sources = [tone(440), tone(2000)]
    signals = {"mixture": sum(sources), "s1": sources[0], "s2": sources[1]}
    signals |= {"s1_estimate": 50 * sources[0], "s2_estimate": -sources[1]}
    for name, signal in signals.items():
        sf.write(folder / f"{name}.wav", signal, RATE, subtype="FLOAT")
    (folder / "metrics.json").write_text(json.dumps(row))


def train(folder, system="x", curves=True, seed=0):
    config = {
        "steps": {"joint": {}},
        "seed": seed,
        "system": {"class_path": system},
        "data": folder.name.split("-")[0],
    }
    (folder / "joint").mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"commit": "abc1234", "command": "train <it>"}))
    (folder / "joint/done.json").write_text(
        json.dumps({"hours": 0.5, "updates": 1200, "device": "CPU"})
    )
    if curves:
        rows = {
            "epoch": [0, 1],
            "updates": [600, 1200],
            "train_loss": [1, 0.5],
            "val_loss": [1, 0.7],
            "val_x": [1, 2],
        }
        pd.DataFrame(rows).to_csv(folder / "joint/metrics.csv", index=False)


def write(exp, *options):
    main(["--exp", str(exp), "--out", str(exp.parent / "RESULTS.md"), *options])
    return Page((exp.parent / "report.html").read_text())


ODD = "odd <b>&\"'$x_ {{ 1 }}"
MINE, THEIRS = 8 + EASE + rng.normal(0, 1, 30), 7 + EASE + rng.normal(0, 1, 30)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    exp = tmp_path_factory.mktemp("report") / "exp"
    experiment(exp / "reference-mini/mixture", np.zeros(30), "mixture")
    experiment(exp / "reference-mini/stft_irm", 13 + EASE, "oracle")
    experiment(exp / "mine", MINE, parameters=8_630_000, macs_per_second=7_030_000_000)
    experiment(exp / "theirs", THEIRS, baseline=True)
    experiment(exp / "weaker", THEIRS - 1, baseline=True)
    experiment(exp / ODD, MINE - 3)
    experiment(exp / "elsewhere", MINE, manifest="b" * 64, examples=0)
    train(exp / "unfinished")
    return exp


@pytest.fixture(scope="module")
def page(recipe):
    return write(recipe)


# ---- the page as a file


@pytest.mark.slow
def test_the_page_needs_nothing_from_outside(page):
    assert not re.search(r"https?:|@import|url\((?!#)", page.text)
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#"))
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}


def test_the_page_can_be_read_aloud_and_its_names_are_unique(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in page.elements:
        for key in ("xlink:href", "href", "aria-labelledby"):
            if not attributes.get(key, "data:").startswith("data:"):
                assert attributes[key].removeprefix("#") in names
        assert attributes.get("clip-path", "url(#").startswith("url(#")
    for name in re.findall(r"url\(#([^)]+)\)", page.text):
        assert name in names
    assert all(image.get("alt") for image in page.of("img")) and page.of("html")[0]["lang"] == "en"
    assert all(plot["aria-label"] for plot in page.of("div") if plot.get("role") == "img")


def test_names_are_text_and_never_markup(page):
    assert [row for row in page.scores() if row["system"].strip() == f"{ODD}|about {ODD}"]
    assert "<b>" not in page.text and "evaluate &lt;it&gt;" in page.text


@pytest.mark.slow
def test_the_page_stands_beside_the_table_or_where_it_is_told(recipe, page, tmp_path):
    assert page.text and (recipe.parent / "RESULTS.md").exists()
    write(recipe, "--html", str(tmp_path / "there/x.html"), "--baseline", "mixture")
    assert "baseline, <strong>mixture</strong>" in (tmp_path / "there/x.html").read_text()


# ---- tables


def test_every_system_is_in_the_table_of_its_data_the_systems_first(page):
    names = [row["system"].split("|")[0].strip() for row in page.scores()]
    assert names == ["mine", "theirs", "weaker", ODD, "mixture", "stft_irm"]
    assert [row["system"].split("|")[0].strip() for row in page.scores(1)] == ["elsewhere"]
    [row] = [row for row in page.scores() if row["system"].startswith(" mine")]
    assert (row["parameters (M)"], row["GMAC/s"], row["training (h)"]) == (
        "8.630",
        "7.030",
        "0.50|1,200 updates",
    )
    assert (
        row["device|commit"] == "CPU|abc1234" and row["seed"] == "0" and row["< 0 dB"] == "12.5 %"
    )


def numbers(text):
    return [float(x) for x in re.findall(r"[-+]?\d+\.\d+", text.replace("\N{MINUS SIGN}", "-"))]


def test_scores_have_intervals_and_are_compared_with_the_best_network_of_asteroid(page):
    rows = {row["system"].split("|")[0].strip(): row for row in page.scores()}
    mean, low, high = numbers(rows["mine"]["SI-SDRi (dB)"])
    assert mean == round(MINE.mean(), 2)
    assert (low, high) == pytest.approx(
        scipy.stats.t.interval(0.95, 29, MINE.mean(), scipy.stats.sem(MINE)), abs=0.25
    )
    difference, low, high = numbers(rows["mine"]["difference"])
    assert (
        difference == pytest.approx((MINE - THEIRS).mean(), abs=0.006) and low < difference < high
    )
    assert rows["mine"]["p"] == f"{scipy.stats.wilcoxon(MINE - THEIRS).pvalue:.3f}".replace(
        "0.000", "< 0.001"
    )
    assert rows["theirs"]["difference"] == "baseline" and rows["stft_irm"]["p"] == "< 0.001"


def test_seeds_have_a_row_of_their_own(tmp_path):
    for seed in (0, 1):
        experiment(tmp_path / f"exp/twin-{seed}", MINE + seed, seed=seed, examples=0, curves=False)
    rows = write(tmp_path / "exp").scores()
    assert rows[2]["system"].startswith(" 2 seeds of twin-0") and rows[2]["seed"] == "0, 1"
    assert rows[2]["SI-SDRi (dB)"] == f"{MINE.mean() + 0.5:.2f}| ± 0.71"


def test_a_suite_says_what_is_averaged_how(tmp_path, monkeypatch):
    suite = Suite("songs", score=None, summary=None, primary=Measure("si_sdri"), statistic="median")
    labels = SuiteLabels("SDR (dB)", "SDR", "SDR (dB)", (), "Of `songs`.")
    monkeypatch.setitem(SUITES, "songs", suite)
    monkeypatch.setitem(LABELS, "songs", labels)
    experiment(tmp_path / "exp/mixture", np.zeros(30), "mixture", suite="songs")
    experiment(tmp_path / "exp/mine", MINE, suite="songs")
    page = write(tmp_path / "exp")
    row = page.scores()[0]
    value, low, high = numbers(row["SDR (dB)"])
    assert value == round(np.median(MINE), 2) and low < value < high
    assert numbers(row["difference"])[0] == value and "<code>songs</code>" in page.text
    assert "Score against input" not in page.text


# ---- examples


def audio_of(source):
    return sf.read(io.BytesIO(base64.b64decode(source.split(",")[1])))


def clips(page, rank):
    titles = [
        attributes["data-title"] for attributes in page.of("div") if "data-title" in attributes
    ]
    sources = [attributes["src"] for attributes in page.of("audio")]
    return {
        title: source
        for title, source in zip(titles, sources, strict=True)
        if title.startswith(rank)
    }


def test_the_best_the_median_and_the_worst_example_of_the_best_system_can_be_heard(page):
    ranked = sorted((0, 10, 20), key=lambda k: -MINE[k])
    for rank, k in zip(("best", "median", "worst"), ranked, strict=True):
        found = clips(page, rank)
        assert f"<h4>{rank.capitalize()}: m{k}</h4>" in page.text
        assert len(found) == 3 + 2 * 5 and f"{rank} example, source 2 by {ODD}" in found
    table = next(table for table in page.tables if table[0][1] == "reference")
    assert table[0][3].strip() == f"mine|{MINE[ranked[0]]:.1f} dB"
    assert table[2][3].strip() == f"|{MINE[ranked[0]] + 1:.1f} dB".replace("-", "\N{MINUS SIGN}")


def test_an_estimate_is_played_at_the_level_of_its_reference_with_its_own_sign(page):
    found = clips(page, "best")
    mixture, rate = audio_of(found["best example, mixture"])
    low, _ = audio_of(found["best example, source 1"])
    assert rate == RATE and np.abs(mixture).max() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(low / np.abs(low).max(), tone(440, level=1), atol=1e-3)
    np.testing.assert_allclose(audio_of(found["best example, source 1 by mine"])[0], low, atol=1e-4)
    high, inverted = (audio_of(found[f"best example, source 2{by}"])[0] for by in ("", " by mine"))
    np.testing.assert_allclose(inverted, -high, atol=1e-4)


@pytest.mark.slow
def test_long_stereo_is_cut_to_the_stretch_with_the_most_energy(tmp_path):
    experiment(tmp_path / "exp/mine", MINE[:3], examples=1, curves=False)
    rate, noise = 44100, rng.normal(0, 0.01, (30 * 44100, 2))
    noise[15 * rate : 27 * rate] *= 10
    for path in (tmp_path / "exp/mine/eval/mini/test/examples/ex_m0").glob("*.wav"):
        sf.write(path, noise[:, :1] if "estimate" in path.name else noise, rate, subtype="FLOAT")
    page = write(tmp_path / "exp")
    found = clips(page, "only")
    signal, played_rate = audio_of(found["only example, source 1"])
    start, seconds = (
        float(x)
        for x in re.search(
            r"The ([\d.]+) s with .* from ([\d.]+) s, of 30.0 s", page.text
        ).groups()[::-1]
    )
    assert (
        seconds in (12, 10, 8, 6)
        and len(signal) == seconds * played_rate
        and 14.9 <= start <= 27.1 - seconds
    )
    assert len(page.text) < 13e6
    assert signal.std() == pytest.approx(signal[:played_rate].std(), rel=0.1)


def test_of_many_microphones_the_first_is_played(tmp_path):
    experiment(tmp_path / "exp/mine", MINE, examples=1, curves=False)
    mixture = np.stack([tone(440) + tone(2000), *rng.normal(0, 0.1, (3, RATE // 2))], axis=1)
    sf.write(
        tmp_path / "exp/mine/eval/mini/test/examples/ex_m0/mixture.wav",
        mixture,
        RATE,
        subtype="FLOAT",
    )
    signal, _ = audio_of(clips(write(tmp_path / "exp"), "only")["only example, mixture"])
    np.testing.assert_allclose(signal, 0.9 * mixture[:, 0] / np.abs(mixture[:, 0]).max(), atol=1e-3)


def test_a_spectrogram_shows_a_tone_at_its_frequency():
    shown = spectrogram(tone(1000)[:, None], RATE, 1.0)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1]))).convert("L"))
    assert image.shape == (96, 256) and image[:, 128].argmax() == pytest.approx(96 * 3 / 4, abs=2)
    silent = spectrogram(np.zeros((10, 1)), RATE, 0.0)
    assert len(silent) < len(shown)


def test_the_loudest_stretch_is_that_of_all_signals_together():
    signals = [np.zeros((2, 100)), np.zeros((1, 100))]
    signals[0][:, 20:30], signals[1][:, 60:70] = 1, 2
    assert 55 <= loudest(signals, 15) <= 60 and loudest(signals, 100) == 0


@pytest.mark.parametrize(
    "rate, channels, n_src, seconds", [(8000, 1, 2, 5), (16000, 1, 4, 10), (44100, 2, 2, 250)]
)
@pytest.mark.parametrize("systems", [1, 12, 60])
def test_the_audio_keeps_to_its_budget(rate, channels, n_src, seconds, systems):
    plan = make_plan([seconds] * 3, n_src, rate, channels, systems, 9e6)
    played = 3 * min(seconds, plan.seconds) * (1 + n_src * (1 + plan.systems))
    assert played * plan.rate * plan.channels * 2 * FLAC * BASE64 <= 9e6
    assert (
        plan.seconds >= 3 and plan.systems >= min(systems, 5) and plan.rate >= min(rate, LOW_RATE)
    )


# ---- figures


def test_the_figures_show_every_system_and_say_what_they_show(page):
    labels = " ".join(plot["aria-label"] for plot in page.of("div") if plot.get("role") == "img")
    assert (
        f"mine {np.median(MINE):.1f}, theirs {np.median(THEIRS):.1f}" in labels
        and f"{ODD} " in labels
    )
    assert "a point a source, lines through the means of 8 bins" in labels
    assert (
        labels.count("Training curves of the step joint: loss, x over the updates.") == 3
    )  # two sets and the rest
    assert "Not evaluated on test" in page.text and "unfinished" in page.text


def test_lines_go_through_the_means_of_equally_many_points():
    x = rng.permutation(np.arange(80.0))
    places, values = binned(x, x**2)
    np.testing.assert_allclose(places, np.arange(4.5, 80, 10))
    np.testing.assert_allclose(
        values, [np.mean(np.arange(k, k + 10.0) ** 2) for k in range(0, 80, 10)]
    )
    assert len(binned(x[:3], x[:3])[0]) == 1


def test_an_experiment_has_one_colour_in_all_figures(page):
    swatches = re.findall(r'stroke="(#\w+)"[^>]*/></svg> (\w+)', page.text)
    colours = {name: {c for c, n in swatches if n == name} for _, name in swatches}
    assert all(len(colours[name]) == 1 for name in ("mine", "theirs", "weaker"))
    assert len({*colours["mine"], *colours["theirs"], *colours["weaker"]}) == 3


# ---- what is missing or damaged


def other_rows(path):
    table = pd.read_csv(path)
    table.assign(value=table.value + 1).to_csv(path, index=False)


DAMAGE = {
    "no examples": ("eval/mini/test/examples", shutil.rmtree),
    "no curves": ("joint/metrics.csv", lambda path: path.unlink()),
    "damaged curves": ("joint/metrics.csv", lambda path: path.write_text("")),
    "no rows": ("eval/mini/test/scores.csv", lambda path: path.unlink()),
    "rows of another manifest": ("eval/mini/test/scores.csv", other_rows),
    "damaged rows": ("eval/mini/test/scores.csv", lambda path: path.write_bytes(b"\xff\x00")),
    "damaged example": (
        "eval/mini/test/examples/ex_m0/metrics.json",
        lambda path: path.write_text("{"),
    ),
    "no estimate": ("eval/mini/test/examples/ex_m10/s1_estimate.wav", lambda path: path.unlink()),
    "no reference": ("eval/mini/test/examples/ex_m10/s2.wav", lambda path: path.write_bytes(b"x")),
}


@pytest.mark.fast_every(3)
@pytest.mark.parametrize(
    "what, said",
    [
        ("no examples", "Examples to listen to"),
        ("no curves", "mine"),
        ("damaged curves", "mine: joint/metrics.csv cannot be read"),
        ("no rows", "scores.csv cannot be used"),
        ("rows of another manifest", "mine: the rows of scores.csv are not those"),
        ("damaged rows", "scores.csv cannot be used"),
        ("damaged example", "mine: example ex_m0 cannot be used"),
        ("no estimate", "mine: example ex_m10 cannot be used"),
        ("no reference", "No audio was kept, or it cannot be used."),
    ],
)
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_shown(tmp_path, what, said):
    experiment(tmp_path / "exp/mine", MINE)
    experiment(tmp_path / "exp/theirs", THEIRS)
    path, damage = DAMAGE[what]
    damage(tmp_path / "exp/mine" / path)
    page = write(tmp_path / "exp")
    assert said in page.text
    assert [numbers(row["SI-SDRi (dB)"])[0] for row in page.scores()] == [
        round(MINE.mean(), 2),
        round(THEIRS.mean(), 2),
    ]
    wanted = {
        "no examples": 3 * 5,
        "damaged example": 2 * 7 + 0,
        "no estimate": 3 * 7 - 2,
        "no reference": 0,
    }
    assert len(page.of("audio")) == wanted.get(what, 3 * 7)


def test_rows_are_those_of_the_summary_and_names_of_utterances_are_texts(tmp_path):
    experiment(tmp_path / "exp/fewer", MINE, n=31)
    experiment(tmp_path / "exp/mine", MINE)
    path = tmp_path / "exp/mine/eval/mini/test/scores.csv"
    path.write_text(path.read_text().replace("m0,", "NA,").replace("m1,", "007,"))
    (fewer, mine), _ = read_experiments(tmp_path / "exp", "test")
    assert (
        fewer.all_scores is None
        and "fewer: the rows of scores.csv are not those" in fewer.problems[0]
    )
    assert list(mine.scores.index[:3]) == ["NA", "007", "m2"]


def test_systems_without_a_score_are_rows_of_dashes(tmp_path):
    experiment(tmp_path / "exp/mine", [np.nan] * 3, examples=0)
    page = write(tmp_path / "exp")
    [row] = page.scores()
    assert row["SI-SDRi (dB)"] == "-" and row["median"] == "-" and row["difference"] == "-"
    assert "No score of a single mixture is known." in page.text


def test_utterances_that_one_system_has_no_score_for_are_left_out_of_the_difference(tmp_path):
    experiment(tmp_path / "exp/mixture", np.zeros(30), "mixture")
    experiment(tmp_path / "exp/mine", np.where(np.arange(30) < 5, np.nan, MINE))
    row = write(tmp_path / "exp").scores()[0]
    assert "(n = 25)" in row["difference"] and numbers(row["difference"])[0] == round(
        MINE[5:].mean(), 2
    )
