import json

import pytest
import yaml

from utils.evaluation.scores import Measure
from utils.evaluation.suites import SUITES, Suite
from utils.report.__main__ import main
from utils.report.experiments import baseline, read_experiments
from utils.report.labels import LABELS, Label, SuiteLabels


def add(
    exp, name, mean, kind="system", config=None, done=(), run=None, manifest="a" * 64, data_set="test", **more
):  # fmt: skip
    folder = exp / name
    (folder / "eval/mini" / data_set).mkdir(parents=True)
    final = {
        "kind": kind,
        "set": data_set,
        "corpus": "mini",
        "manifest": "data/mini/test.csv",
        "n": 40,
    }
    final |= {
        "si_sdri": {"mean": mean, "median": mean + 1, "standard_error": 0.25},
        "manifest_sha256": manifest,
    }
    final |= {
        "si_sdr": {"mean": mean - 0.5, "median": 0.0, "standard_error": 0.1},
        "description": f"about {name}",
    }
    final |= {"share_below_0_db": 0.125, "inverted_share": 0.0}
    (folder / "eval/mini" / data_set / "final_metrics.json").write_text(json.dumps(final | more))
    if config:
        (folder / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    if run:
        (folder / "run.json").write_text(json.dumps(run))
    for step, values in dict(done).items():
        (folder / step).mkdir()
        (folder / step / "done.json").write_text(json.dumps(values))


def report(exp, *options):
    main(["--exp", str(exp), "--out", str(exp.parent / "RESULTS.md"), *options])
    return (exp.parent / "RESULTS.md").read_text()


def rows_of(text):
    """Lists of rows (dicts), one list a table."""
    tables = []
    for line in text.splitlines():
        if line.startswith("| system"):
            tables.append([])
            names = [cell.strip() for cell in line.strip("|").split(" | ")]
        elif line.startswith("| ") and "---" not in line:
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            tables[-1].append(dict(zip(names, cells, strict=True)))
    return tables


@pytest.fixture
def exp(tmp_path):
    return tmp_path / "exp"


def test_a_row_holds_what_evaluation_and_training_wrote(exp):
    config = {"steps": {"frontend": {}, "separator": {}}, "seed": 3, "description": "two-step"}
    device = {"device": "2 CPU threads"}
    done = {
        "frontend": {"hours": 0.5, "updates": 100} | device,
        "separator": {"hours": 1.25, "updates": 200} | device,
    }
    cost = {
        "parameters": 8_630_000,
        "macs_per_second": 7_030_000_000,
        "oracle_si_sdri": {"mean": 31.26},
    }
    add(exp, "mine", 12.345, config=config, done=done, run={"commit": "abc1234"}, **cost)
    [[row]] = rows_of(report(exp))
    assert row == {
        "system": "mine", "description": "two-step", "SI-SDRi (dB)": "12.35 +- 0.25", "median": "13.35",
        "SI-SDR (dB)": "11.85", "< 0 dB": "12.5 %", "inverted": "0.0 %", "oracle SI-SDRi": "31.26",
        "parameters (M)": "8.630", "GMAC/s": "7.030", "training (h)": "1.75", "updates": "300",
        "device": "2 CPU threads", "seed": "3", "commit": "abc1234",
    }  # fmt: skip


def test_what_is_not_known_is_a_dash_and_never_a_number(exp):
    nothing = {"mean": None, "median": None, "standard_error": None}
    shares = {"share_below_0_db": None, "inverted_share": None}
    add(exp, "bare", 1.0, si_sdri=nothing, si_sdr=nothing, description="", **shares)
    [[row]] = rows_of(report(exp))
    assert row.pop("system") == "bare" and set(row.values()) == {"-"}


def test_a_score_that_no_experiment_has_gets_no_column(exp):
    add(exp, "one", 3.0)
    [[row]] = rows_of(report(exp))
    assert "oracle SI-SDRi" not in row
    add(exp, "two", 4.0, oracle_si_sdri={"mean": 31.26})
    assert [row["oracle SI-SDRi"] for row in rows_of(report(exp))[0]] == ["31.26", "-"]


def test_the_mixture_oracles_and_untrained_methods_come_first_then_the_best_system(exp):
    add(exp, "a_weak", 3.0)
    add(exp, "b_strong", 15.0)
    add(exp / "reference-mini", "stft_ibm", 12.0, kind="oracle")
    add(exp / "reference-mini", "stft_irm", 13.0, kind="oracle")
    add(exp / "reference-mini", "mixture", 0.0, kind="mixture")
    add(exp / "reference-mini", "untrained", 20.0, kind="classic")
    [rows] = rows_of(report(exp))
    assert [row["system"] for row in rows] == [
        "mixture",
        "stft_irm",
        "stft_ibm",
        "untrained",
        "b_strong",
        "a_weak",
    ]


def test_scores_on_different_data_are_never_in_one_table(exp):
    add(exp, "one", 3.0)
    add(exp, "two", 15.0, manifest="b" * 64)
    add(exp, "three", 4.0, data_set="other")
    text = report(exp)
    assert [[row["system"] for row in rows] for rows in rows_of(text)] == [["one"], ["two"]]
    assert "aaaaaaaaaaaa" in text and "bbbbbbbbbbbb" in text
    assert [
        [row["system"] for row in rows] for rows in rows_of(report(exp, "--data-set", "other"))
    ] == [["three"]]


def test_experiments_that_differ_in_their_seed_only_get_a_row_of_mean_and_deviation(exp):
    for seed, score in ((0, 10.0), (1, 11.0), (2, 15.0)):
        add(
            exp,
            f"twin{seed}",
            score,
            config={"seed": seed, "data": {"segment": 4.0}, "runtime": {"workers": seed}},
        )
    add(exp, "else", 20.0, config={"seed": 0, "data": {"segment": 2.0}})
    add(exp, "twice", 1.0, config={"seed": 5, "data": {"segment": 1.0}})
    add(exp, "twice_again", 1.0, config={"seed": 5, "data": {"segment": 1.0}})
    [rows] = rows_of(report(exp))
    names = [row["system"] for row in rows]
    assert names == [
        "else",
        "twin0",
        "twin1",
        "twin2",
        "**3 seeds of twin0**",
        "twice",
        "twice_again",
    ]
    assert rows[4]["SI-SDRi (dB)"] == "12.00 +- 2.65" and rows[4]["seed"] == "0, 1, 2"
    assert rows[4]["SI-SDR (dB)"] == "11.50" and rows[4]["< 0 dB"] == "12.5 %"


def test_the_table_is_printed_and_a_pipe_in_a_text_keeps_its_columns(exp, capsys):
    add(exp, "odd", 3.0, description="a|b")
    text = report(exp)
    assert r"a\|b" in text and text in capsys.readouterr().out


def test_nothing_to_report_and_a_damaged_file_end_with_a_message(exp, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit, match="2"):
            main(["--exp", str(exp), "--out", str(exp.parent / "RESULTS.md")])
        add(exp, "x", 1.0) if not exp.exists() else None
        (exp / "x/eval/mini/test/final_metrics.json").write_text("{")
    message = capsys.readouterr().err
    assert "evaluate an experiment first (stage 4)" in message and "is damaged" in message
    assert not (exp.parent / "RESULTS.md").exists() and not (exp.parent / "report.html").exists()


def test_an_unknown_baseline_or_suite_ends_with_a_message(exp, capsys):
    add(exp, "one", 3.0)
    with pytest.raises(SystemExit, match="2"):
        report(exp, "--baseline", "two")
    assert "no such experiment on 'test'. There are one" in capsys.readouterr().err
    add(exp, "strange", 3.0, suite="strange")
    with pytest.raises(SystemExit, match="2"):
        report(exp)
    assert "scored with the suite 'strange'" in capsys.readouterr().err


def test_the_baseline_is_the_best_one_in_whatever_order_they_come(exp):
    for name, mean in (("early", 9.0), ("middle", 11.0), ("late", 10.0)):
        add(exp, name, mean, baseline=True)
    add(exp, "ours", 12.0)
    entries, _ = read_experiments(exp, "test")
    for order in (entries, entries[::-1]):
        assert baseline(order).name == "middle"
        assert baseline(order, "late").name == "late"


def test_a_suite_says_what_the_columns_are_and_what_ranks(exp, monkeypatch):
    columns = (
        Label("sir", "SIR (dB)"),
        Label("sir", "mean SIR", statistic="mean"),
        Label("empty_share", "empty", "%", 0),
    )
    suite = Suite("songs", score=None, summary=None, primary=Measure("sdr"), statistic="median")
    labels = SuiteLabels("SDR of vocals (dB)", "SDR", "SDR (dB)", columns, "Of songs.")
    monkeypatch.setitem(SUITES, "songs", suite)
    monkeypatch.setitem(LABELS, "songs", labels)
    for name, mean, median in (("a", 9.0, 4.0), ("b", 1.0, 5.0)):
        sir = {"mean": 0.0, "median": 10 + median, "standard_error": 0.1}
        sdr = {"mean": mean, "median": median, "standard_error": 0.1}
        add(exp, name, 0.0, suite="songs", sdr=sdr, sir=sir, empty_share=0.25)
    text = report(exp)
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert head.startswith(
        "| system | description | SDR of vocals (dB) | mean | < 0 dB | SIR (dB) | mean SIR | empty | param"
    )
    assert [line[:57] for line in lines] == [
        "| b | about b | 5.00 | 1.00 | 12.5 % | 15.00 | 0.00 | 25 ",
        "| a | about a | 4.00 | 9.00 | 12.5 % | 14.00 | 0.00 | 25 ",
    ]
    assert "median over the mixtures" in text and "Of songs." in text


@pytest.mark.parametrize(
    "text, written",
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y>"),
        ("<!-- x", "&lt;!-- x"),
        ("&lt;b&#62;", "&amp;lt;b&amp;#62;"),
        ("a < 3 & b > 2", "a < 3 & b > 2"),
        ("two\nlines|bars", "two lines\\|bars"),
    ],
)
def test_a_text_is_never_markup(exp, text, written):
    add(exp, "odd", 3.0, description=text, corpus=text)
    report_text = report(exp)
    assert f"| odd | {written} |" in report_text and f"## {written}: 40" in report_text


def test_what_is_rounded_to_zero_has_no_sign(exp):
    add(exp, "none", -0.001, si_sdr={"mean": -0.004, "median": 0.0})
    [[row]] = rows_of(report(exp))
    assert row["SI-SDRi (dB)"] == "0.00 +- 0.25" and row["SI-SDR (dB)"] == "0.00"


def test_an_experiment_evaluated_on_two_corpora_stands_in_both_tables(exp):
    add(exp, "mine", 3.0)
    add(exp, "other", 4.0)
    final = json.loads((exp / "mine/eval/mini/test/final_metrics.json").read_text())
    other = exp / "mine/eval/large/test/final_metrics.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({**final, "corpus": "large", "manifest_sha256": "c" * 64}))
    tables = [[row["system"] for row in rows] for rows in rows_of(report(exp))]
    assert tables == [["mine"], ["other", "mine"]]


def test_the_same_manifest_with_other_audio_is_another_table(exp):
    add(exp, "clean", 3.0, audio_sha256="c")
    add(exp, "noisy", 4.0, audio_sha256="n")
    assert len(rows_of(report(exp))) == 2


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"{}", b'{"kind": "system"}'])
def test_a_summary_that_cannot_be_used_ends_with_one_line(exp, capsys, content):
    add(exp, "x", 1.0)
    (exp / "x/eval/mini/test/final_metrics.json").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        report(exp)
    error = capsys.readouterr().err
    assert "x/eval/mini/test/final_metrics.json" in error and error.count("\n") == 1
