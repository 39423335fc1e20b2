"""Measures of intelligibility and quality of speech, by pystoi and the package pesq, with silence and failure defined.

Rules, for `stoi` and `pesq` alike:

- a reference that is silent (constant) or not finite, is too short, or has too little speech, has no score: nan. This
  depends on the reference alone, so that all systems are compared over the same sources;
- an estimate that is silent or not finite, or that the package cannot score, gets the bottom of the scale;
- the level of either signal does not count: audio in 16-bit integers scores like audio up to 1.
"""

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pesq as pesq_package
import pystoi
from numpy.typing import ArrayLike

from utils.evaluation.metrics.si_sdr import as_signals, is_constant, silenced
from utils.evaluation.signals import Samples, all_finite, broadcast, whole

_BANDS = {8000: "nb", 16000: "wb"}
_PESQ_SECONDS = 20  # the package overruns its memory beyond 50 utterances, which take 0.4 s each with their pauses


def stoi(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    sample_rate: int,
    extended: bool = False,
) -> np.ndarray:
    """Short-time objective intelligibility; too short is less than some 0.4 s of speech.

    The package takes whole signals and some 100 MiB a minute of them, one pair at a time.

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

    def measure(reference: np.ndarray, estimate: np.ndarray) -> float:
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
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
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

    def measure(reference: np.ndarray, estimate: np.ndarray) -> float:
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
    estimates = silenced(estimates, ~all_finite(estimates))
    longest = _PESQ_SECONDS * sample_rate
    length = references.shape[-1]
    n_parts = math.ceil(length / longest)
    # Parts of one length, the first ones with a sample more.
    shortest, n_longer = divmod(length, n_parts)
    edges = [k * shortest + min(k, n_longer) for k in range(n_parts + 1)]
    scores = []
    for start, stop in itertools.pairwise(edges):
        part_of_estimates = estimates[..., start:stop]
        part_of_references = references[..., start:stop]
        scores.append(_scores(measure, 1.0, part_of_estimates, part_of_references))
    # The mean over the parts that have a score; nan, 0 / 0, if none has.
    scored = ~np.isnan(scores)
    total = np.where(scored, scores, 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return total / scored.sum(axis=0)


def _scores(
    measure: Callable[[np.ndarray, np.ndarray], float],
    failed: float,
    estimates: Samples,
    references: Samples,
) -> np.ndarray:
    """`measure(reference, estimate)` of each pair by the rules above; it returns nan for what it cannot score."""
    shape = np.broadcast_shapes(estimates.shape[:-1], references.shape[:-1])
    estimates = broadcast(estimates, shape)
    references = broadcast(references, shape)
    scores = np.empty(shape)
    # The packages take whole signals, so these are in memory pair by pair.
    for pair in np.ndindex(shape):
        estimate = _normalised(estimates[pair])
        reference = _normalised(references[pair])
        scores[pair] = np.nan
        if reference is None:
            continue
        if estimate is not None:
            scores[pair] = measure(reference, estimate)
        # A reference that the measure can score lays the blame on the estimate.
        if np.isnan(scores[pair]) and not np.isnan(measure(reference, reference)):
            scores[pair] = failed
    return scores


def _normalised(signal: Samples) -> np.ndarray | None:
    """The signal with a peak of 1; None if it is constant or not finite."""
    samples = whole(signal).astype(np.float64)
    peak = np.abs(samples).max()
    if not 0 < peak < np.inf:
        return None
    samples /= peak
    return None if is_constant(samples) else samples
