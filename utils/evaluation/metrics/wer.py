"""Word error rate."""

import re

import numpy as np


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes within a word stay."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def word_errors(hypothesis: str, reference: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions (Levenshtein distance of words), and the number of words spoken."""
    said, heard = words(reference), words(hypothesis)
    row = np.arange(len(heard) + 1)
    for k, word in enumerate(said, 1):
        previous, row = row, np.full(len(heard) + 1, k)
        for j, other in enumerate(heard, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != other))
    return int(row[-1]), len(said)
