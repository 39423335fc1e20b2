"""Word error rate: jiwer counts the errors, after a normalisation of our own."""

import re

import jiwer


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes within a word stay.

    jiwer's own transformations remove apostrophes too, or keep those that are quotation marks.
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def word_errors(hypothesis: str, reference: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions, and the number of words spoken.

    Args:
        hypothesis: what was recognised.
        reference: what was said.
    """
    said = words(reference)
    recognised = words(hypothesis)
    # The alignment with the fewest errors (Levenshtein's distance of words).
    alignment = jiwer.process_words(" ".join(said), " ".join(recognised))
    n_errors = alignment.substitutions
    n_errors += alignment.deletions
    n_errors += alignment.insertions
    return n_errors, len(said)
