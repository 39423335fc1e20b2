"""Measures of intelligibility and quality of speech, by pystoi and the package pesq, with silence and failure defined.

Rules, for `stoi` and `pesq` alike:

- a reference that is silent (constant) or not finite, is too short, or has too little speech, has no score: nan. This
  depends on the reference alone, so that all systems are compared over the same sources;
- an estimate that is silent or not finite, or that the package cannot score, gets the bottom of the scale;
- the level of either signal does not count: audio in 16-bit integers scores like audio up to 1.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pesq as pesq_package
import pystoi
from numpy.typing import ArrayLike

from utils.evaluation.metrics.si_sdr import as_signals, centred

_BANDS = {8000: "nb", 16000: "wb"}
_PESQ_SECONDS = 20  # the package overruns its memory beyond 50 utterances, which take 0.4 s each with their pauses


def stoi(
    estimates: ArrayLike,
    references: ArrayLike,
    sample_rate: int,
    extended: bool = False,
) -> np.ndarray:
    """Short-time objective intelligibility; too short is less than some 0.4 s of speech.

    Args:
        estimates, references: (..., source, time) in the order that is to be compared; leading dimensions broadcast.
        sample_rate: in Hz, any.
        extended: the measure of 2016 for fluctuating noise.

    Returns:
        (..., source), float64: up to 1; a failed estimate has 0.

    Raises:
        ValueError: different lengths, or no samples.

    Source: Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy speech", IEEE
    TASLP 2011; Jensen and Taal, "An algorithm for predicting the intelligibility of speech masked by modulated noise
    maskers", IEEE/ACM TASLP 2016.
    """

    def measure(reference, estimate):
        # The extended measure adds noise, which is what it compares where the estimate is zero.
        state = np.random.get_state()
        np.random.seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                score = pystoi.stoi(reference, estimate, sample_rate, extended)
        except np.exceptions.AxisError:  # not one frame
            return np.nan
        finally:
            np.random.set_state(state)
        return np.nan if score == 1e-5 else score  # what pystoi returns for too few frames

    return _scores(measure, 0.0, *as_signals(estimates, references))


def pesq(
    estimates: ArrayLike,
    references: ArrayLike,
    sample_rate: int,
) -> np.ndarray:
    """Perceptual evaluation of speech quality (MOS-LQO): narrow-band at 8 kHz, wide-band at 16 kHz.

    Too short is less than 0.25 s. Longer signals than 20 s, for which the measure is not meant and on which the package
    can end the process, are cut into equal parts; the score is the mean over the parts that have one.

    Args:
        estimates, references: (..., source, time) in the order that is to be compared; leading dimensions broadcast.
        sample_rate: 8000 or 16000.

    Returns:
        (..., source), float64: up to 4.5 (narrow-band 4.55, wide-band 4.64); a failed estimate has 1.

    Raises:
        ValueError: another sample rate, different lengths, or no samples.

    Source: ITU-T P.862, with the mappings of P.862.1 (narrow-band) and P.862.2 (wide-band).
    """
    if sample_rate not in _BANDS:
        raise ValueError(
            f"PESQ takes 8000 or 16000 Hz, not {sample_rate}: resample estimates and references first"
        )

    def measure(reference, estimate):
        score = pesq_package.pesq(
            sample_rate,
            reference,
            estimate,
            _BANDS[sample_rate],
            on_error=pesq_package.PesqError.RETURN_VALUES,
        )
        # Errors are numbers below 0.
        return score if score >= 0 else np.nan

    estimates, references = as_signals(estimates, references)
    # An estimate that is not finite in one part fails in all of them.
    finite = np.isfinite(estimates).all(axis=-1, keepdims=True)
    estimates = np.where(finite, estimates, 0.0)
    longest = _PESQ_SECONDS * sample_rate
    n_parts = math.ceil(references.shape[-1] / longest)
    parts_of_estimates = np.array_split(estimates, n_parts, axis=-1)
    parts_of_references = np.array_split(references, n_parts, axis=-1)
    scores = []
    for part in zip(parts_of_estimates, parts_of_references, strict=True):
        scores.append(_scores(measure, 1.0, *part))
    # The mean over the parts that have a score; nan, 0 / 0, if none has.
    scored = ~np.isnan(scores)
    total = np.where(scored, scores, 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return total / scored.sum(axis=0)


def _scores(
    measure: Callable,
    failed: float,
    estimates: np.ndarray,
    references: np.ndarray,
) -> np.ndarray:
    """`measure(reference, estimate)` of each pair by the rules above; it returns nan for what it cannot score."""

    def score(estimate, reference):
        estimate = _normalised(estimate)
        reference = _normalised(reference)
        if reference is None:
            return np.nan
        value = np.nan
        if estimate is not None:
            value = measure(reference, estimate)
        # A reference that the measure can score lays the blame on the estimate.
        if np.isnan(value) and not np.isnan(measure(reference, reference)):
            return failed
        return value

    score_all = np.vectorize(score, signature="(t),(t)->()", otypes=[float])
    return score_all(estimates, references)


def _normalised(signal):
    """The signal with a peak of 1; None if it is constant or not finite."""
    peak = np.abs(signal).max()
    if not 0 < peak < np.inf:
        return None
    signal = signal / peak
    return signal if centred(signal)[1] > 0 else None
