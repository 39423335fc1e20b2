"""The long table of scores: written, read again, and asked by metric and source."""

import numpy as np
import pandas as pd
import pytest

from tests.support import write_scores
from utils.errors import UserError
from utils.evaluation.results import (
    Row,
    read_example_scores,
    read_scores,
    scores_of,
    table_texts,
    write_example,
)
from utils.evaluation.scores import Measure, Scores, of_mixture, of_sources
from utils.report.examples import StoredExample


@pytest.fixture
def rows():
    """Of two mixtures; metrics end like numbers of sources, and values need all digits."""
    first = of_mixture({"si_sdr": 1 / 3, "hole_rate_20": 0.5, "sources": 2})
    first += of_sources({"si_sdr": np.array([1.0, np.nan]), "sdr_1s": np.array([7.0, 8.0])})
    second = of_mixture({"si_sdr": -np.inf, "hole_rate_20": np.nan, "sources": 1})
    return {1: Row("NA", second), 0: Row("007", first)}


def written(folder, rows):
    for name, text in table_texts(scores_of(rows)).items():
        (folder / name).write_text(text)
    return read_scores(folder)


def test_scores_are_read_to_the_last_bit_in_the_order_of_the_manifest(tmp_path, rows):
    scores = written(tmp_path, rows)
    assert list(scores.mixtures) == ["007", "NA"] and len(scores) == 2
    assert scores.mixture("si_sdr").tolist() == [1 / 3, -np.inf]
    np.testing.assert_array_equal(scores.mixture("hole_rate_20"), [0.5, np.nan])
    np.testing.assert_array_equal(scores[Measure("sdr_1s", 2)], [8.0, np.nan])


def test_a_metric_that_ends_in_a_number_is_no_score_of_a_source(tmp_path, rows):
    scores = written(tmp_path, rows)
    assert scores.sources("si_sdr") == scores.sources("sdr_1s") == [1, 2]
    assert scores.sources("hole_rate_20") == scores.sources("hole_rate") == []
    assert Measure("hole_rate", 20) not in scores and Measure("si_sdr", 1) in scores
    with pytest.raises(KeyError, match="sdr_7"):
        scores[Measure("sdr", 7)]
    assert list(scores.of_mixtures()) == ["si_sdr", "hole_rate_20", "sources"]


def test_the_long_table_has_a_line_for_each_score_and_the_wide_one_a_column(tmp_path, rows):
    written(tmp_path, rows)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "mixture_ID,source,metric,value"
    assert lines[3:6] == ["007,,sources,2", "007,1,si_sdr,1.0", "007,2,si_sdr,"]
    assert len(lines) == 1 + 7 + 3
    wide = pd.read_csv(tmp_path / "all_metrics.csv", keep_default_na=False)
    assert list(wide) == [
        "mixture_ID",
        *("si_sdr", "hole_rate_20", "sources"),
        *("si_sdr_1", "si_sdr_2", "sdr_1s_1", "sdr_1s_2"),
    ]
    assert wide.loc[0, "si_sdr"] == "0.333333" or wide.loc[0, "si_sdr"] == 0.333333


def test_a_mixture_that_is_there_twice_counts_once(tmp_path):
    write_scores(tmp_path, ["a", "b", "a"], {"si_sdr": [1.0, 2.0, 3.0]})
    assert read_scores(tmp_path).mixture("si_sdr").to_dict() == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mixture_ID,si_sdr\nm0,1\n",
        "mixture_ID,source,metric,value\nm0,,si_sdr,loud\n",
        "mixture_ID,source,metric,value\nm0,left,si_sdr,1\n",
    ],
)
def test_a_table_that_is_no_table_of_scores_is_explained(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UserError, match=r"scores.csv cannot be used .*: run stage 4 again"):
        read_scores(tmp_path)


def test_an_example_tells_its_scores_again(tmp_path, rows):
    silence = np.zeros((2, 1, 8), np.float32)
    write_example(tmp_path, 8000, silence[0], silence, silence, rows[0])
    example = StoredExample(*read_example_scores(tmp_path))
    assert example.mixture_id == "007" and example.value(Measure("si_sdr")) == 1 / 3
    values = [example.value(Measure("si_sdr", source)) for source in (1, 2, 3)]
    assert values == [1.0, None, None]
    (tmp_path / "metrics.json").write_text('{"mixture_ID": "007", "si_sdr": 1.0}')
    with pytest.raises(UserError, match="stage 4 writes it again"):
        read_example_scores(tmp_path)


def test_no_scores_are_an_empty_table():
    assert len(Scores(scores_of({}))) == 0
