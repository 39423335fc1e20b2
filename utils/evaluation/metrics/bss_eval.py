"""BSS Eval v3, `sources`: SDR, SIR and SAR, which forgive an estimate any filter of up to `filter_length` samples.

The energy of an estimate is split by projecting it on all delays of its reference, and on those of all references. The
inner products are correlations, so the filters solve Toeplitz systems. These square the condition number; so each
solution comes with a bound of its error, and where that exceeds 1e-6 dB (references with empty bands, scores above some
80 dB) the signals themselves are orthogonalised. A reference's component below 1e-16 of its amplitude counts as
silence; a reference that differs from another one by less than some 1e-8 counts as a copy of it.

Rules, as in si_sdr.py: a reference that is silent (zeros) or not finite has no score: nan; an estimate
that is silent or not finite scores -LIMIT; scores are limited to +-LIMIT dB. Means are not removed.

Sources: Vincent, Gribonval and Févotte, "Performance measurement in blind audio source separation", IEEE TASLP 14(4),
2006; the correlations: Scheibler, "SDR - medium rare with fast computations", ICASSP 2022.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from utils.evaluation.metrics.projection import unexplained_by_one, unexplained_by_one_and_all
from utils.evaluation.metrics.si_sdr import as_signals, check_not_transposed, to_decibels
from utils.evaluation.signals import Samples, Signals, blocks, broadcast, computed

# dB of SDR for one of SIR where several orders have the best mean SIR.
_TIE_BREAK = 1e-9


def sdr(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    filter_length: int = 512,
    permute: bool = False,
) -> np.ndarray:
    """Signal-to-distortion ratio.

    Args:
        estimates, references: (..., source, time); leading dimensions broadcast.
        filter_length: in samples, of the filter that is forgiven.
        permute: take the order of the estimates with the best mean SDR instead of the given one.

    Returns:
        (..., source), float64, in dB.

    Raises:
        ValueError: different lengths, no samples, no filter, or more than MAX_SOURCES sources.
    """
    estimates, references = _checked(estimates, references, filter_length)
    estimates, usable = _with_unit_energy(estimates)
    references, scored = _with_unit_energy(references)
    shape = np.broadcast_shapes(usable.shape, scored.shape)
    estimates = broadcast(estimates, shape)
    usable = np.broadcast_to(usable, shape)
    references = broadcast(references, shape)
    scored = np.broadcast_to(scored, shape)
    if permute:
        return _best_sdr(estimates, usable, references, scored, filter_length)
    # SDR = 10 log10 |s_target|^2 / |estimate - s_target|^2, with s_target the projection on the reference: of an energy
    # of 1, the share that filters of the reference explain over the share that they do not.
    unexplained = np.ones(usable.shape)
    for index in np.argwhere(usable & scored):
        pair = tuple(index)
        estimate = estimates[pair][None]
        reference = references[pair][None]
        unexplained[pair] = unexplained_by_one(estimate, reference, filter_length).item()
    ratio = _ratio(1 - unexplained, unexplained)
    return to_decibels(ratio, ~usable, ~scored)


def _best_sdr(
    estimates: Samples,
    usable: np.ndarray,
    references: Samples,
    scored: np.ndarray,
    filter_length: int,
) -> np.ndarray:
    """SDR (..., source) in the best order of each example; the rest is as in `sdr`."""
    scores = np.full(usable.shape, np.nan)
    for example in np.ndindex(usable.shape[:-1]):
        # References without a score take no part.
        columns = np.flatnonzero(scored[example])
        if not len(columns):
            continue
        unexplained = unexplained_by_one(
            estimates[example],
            references[example][columns],
            filter_length,
        )
        ratio = _ratio(1 - unexplained, unexplained)
        failed = ~usable[example][:, None]
        of_pairs = to_decibels(ratio, failed, np.zeros_like(failed))
        # of_pairs: (estimate, reference). The assignment with the best sum is the best order.
        order = _best_order(of_pairs)
        scores[example][columns] = of_pairs[order, range(len(columns))]
    return scores


def _best_order(of_pairs: np.ndarray) -> np.ndarray:
    """The estimate of each reference, (reference,), with the best sum of scores (estimate, reference)."""
    _, estimate_numbers = linear_sum_assignment(of_pairs.T, maximize=True)
    return estimate_numbers


def bss_eval(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    filter_length: int = 512,
    permute: bool = True,
) -> tuple[np.ndarray, ...]:
    """Signal to distortion, to interference (of the other references), to artefacts (what no reference explains).

    Sources without a score take no part: the others are scored with the references that remain.

    Args:
        estimates, references: (source, time).
        filter_length: in samples, of the filter that is forgiven.
        permute: find the order with the best mean SIR (where several have it: SDR) instead of keeping the given one.

    Returns:
        sdr, sir, sar: (source,), float64, in dB, in the order of the references. Where there is a single reference,
            nothing interferes: its SIR is LIMIT, in mir_eval infinite, in `bss_eval_v4.frame_scores` nan. Leave it out
            of means.
        order: (source,) integers: `estimates[order]` belongs to `references`.

    Raises:
        ValueError: not (source, time), different shapes, no samples, no filter, or more than MAX_SOURCES sources.
    """
    estimates, references = _checked(estimates, references, filter_length)
    if len(estimates.shape) != 2 or estimates.shape != references.shape:
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must both be (source, time)"
        )
    estimates, usable = _with_unit_energy(estimates)
    references, scored = _with_unit_energy(references)
    n_src = len(references)
    order = np.arange(n_src)
    scores = np.full((3, n_src), np.nan)
    # References without a score take no part.
    columns = np.flatnonzero(scored)
    if not len(columns):
        return *scores, order
    # All pairs are compared to find the order, else those of equal numbers only.
    pairs = permute | (order[:, None] == columns)
    failed = ~usable[:, None]
    of_pairs = []  # SDR, SIR and SAR in dB, (estimate, reference)
    for ratio in _energy_ratios(estimates, references[columns], pairs, filter_length):
        of_pairs.append(to_decibels(ratio, failed, ~pairs))
    if permute:
        sdr_of_pairs, sir_of_pairs, _ = of_pairs
        best = _best_order(sir_of_pairs + _TIE_BREAK * sdr_of_pairs)
        order[columns] = best
        # References without a score take the estimates that are left.
        order[~scored] = np.setdiff1d(range(n_src), best)
    # Of each reference the scores of its estimate.
    for row, values in zip(scores, of_pairs, strict=True):
        row[columns] = values[order[columns], range(len(columns))]
    return *scores, order


def _energy_ratios(
    estimates: Signals,
    references: Signals,
    pairs: np.ndarray,
    filter_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SDR, SIR and SAR as ratios of energies, three of (estimate, reference) or (estimate, 1).

    An estimate of energy 1 is s_target + e_interf + e_artif: its projection on its reference, what the projection on
    all references adds to that, and the rest (Vincent et al. 2006, with no sensor noise).
    """
    by_one, by_all = unexplained_by_one_and_all(estimates, references, pairs, filter_length)
    # |s_target|^2 = 1 - by_one, |e_interf|^2 = by_one - by_all, |e_artif|^2 = by_all, since all are orthogonal.
    sdr_ratio = _ratio(1 - by_one, by_one)
    sir_ratio = _ratio(1 - by_one, by_one - by_all)
    sar_ratio = _ratio(1 - by_all, by_all)
    return sdr_ratio, sir_ratio, sar_ratio


def _checked(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    filter_length: int,
) -> tuple[Samples, Samples]:
    """Both as what can be indexed; ValueError unless they have one length and the filter has a tap."""
    if filter_length < 1:
        raise ValueError(f"filter_length is {filter_length}, must be at least 1")
    estimates, references = as_signals(estimates, references)
    for name, signals in (("estimates", estimates), ("references", references)):
        check_not_transposed(name, signals.shape, axis=-2)
    return estimates, references


def _with_unit_energy(signals: Samples) -> tuple[Signals, np.ndarray]:
    """Signals scaled to an energy of 1, and which could be; silence and what is not finite become zeros."""
    *leading, length = signals.shape
    energy = np.zeros(leading)
    for block in blocks(length):
        samples = np.asarray(signals[..., block], np.float64)
        energy += np.einsum("...t,...t->...", samples, samples)
    norm = np.sqrt(energy)
    usable = np.isfinite(norm) & (norm > 0)

    def change(index: tuple[int, ...], samples: np.ndarray) -> np.ndarray:
        if not usable[index]:
            return np.zeros(len(samples))
        return samples.astype(np.float64) / norm[index]

    return computed(signals, change), usable


def _ratio(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Of two energies; rounding may have made them negative."""
    # Nothing over nothing, or something over nothing, is nan or infinity, as it should be.
    with np.errstate(all="ignore"):
        signal = np.maximum(signal, 0.0)
        noise = np.maximum(noise, 0.0)
        return signal / noise
