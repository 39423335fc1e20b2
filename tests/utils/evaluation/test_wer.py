import numpy as np
import pytest

from utils.evaluation.metrics.wer import word_errors


def distance(hypothesis, reference):
    """Levenshtein's, of lists."""
    row = np.arange(len(hypothesis) + 1)
    for k, word in enumerate(reference, 1):
        previous, row = row, np.full(len(hypothesis) + 1, k)
        for j, other in enumerate(hypothesis, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other))
    return row[-1]


def test_word_errors_are_the_least_number_of_edits():
    rng = np.random.default_rng(0)
    for _ in range(50):
        reference = rng.choice(list("abcd"), rng.integers(1, 9)).tolist()
        hypothesis = rng.choice(list("abcd"), rng.integers(1, 9)).tolist()
        expected = distance(hypothesis, reference), len(reference)
        assert word_errors(" ".join(hypothesis), " ".join(reference)) == expected


@pytest.mark.parametrize(
    ("hypothesis", "errors"),
    [("hello IT'S me.", 0), ("'hello' -- its me", 1), ("", 3), ("hello it's really me", 1)],
)
def test_case_and_punctuation_do_not_count_but_apostrophes_do(hypothesis, errors):
    assert word_errors(hypothesis, "Hello, it's me!") == (errors, 3)


def test_every_word_is_an_error_where_nothing_was_said():
    assert word_errors("anything at all", "...") == (3, 0)
    assert word_errors("", "") == (0, 0)
