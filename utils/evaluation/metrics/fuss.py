"""The score of FUSS: separation of a mixture whose number of sources is not known.

Separation is measured on pairs of an active reference and an active estimate only, so that a system that leaves slots
silent can win: print `msi` with the rates of under- and over-separation and with `msi_all`, which excludes nothing, and
never the score of single sources (1S) without its rate of over-separation: copies of the mixture score +80 dB there.

Source: Wisdom et al., "What's all the FUSS about free universal sound separation data?", ICASSP 2021, and the program
that made its numbers: google-research/sound-separation, models/dcase2020_fuss_baseline, as of 2021.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from local_models.silence import QUIET, SILENT_RMS
from utils.evaluation.metrics.si_sdr import as_signals, silenced, sum_over_time
from utils.evaluation.signals import Samples, Signals, all_finite, as_samples, computed

_RATIO_FLOOR = 1e-8  # bounds scores to +-80 dB
_ENERGY_FLOOR = 1e-16


def si_snr(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> np.ndarray:
    """Scale-invariant signal-to-noise ratio in which a constant offset counts, unlike in `si_sdr`.

    Args:
        estimates, references: (..., source, time); leading dimensions broadcast.

    Returns:
        (..., source), float64, in dB from -80 (either signal is silent, or the estimate holds NaN or infinity) to +80.

    Raises:
        ValueError: different lengths, or no samples.
    """
    estimates, references = as_signals(estimates, references)
    # Both without level.
    estimates = _with_unit_energy(_finite(estimates))
    references = _with_unit_energy(references)
    # Of energy 1, a signal is explained by its reference to the share rho^2, rho = <e, s>:
    # SI-SNR = 10 log10 (rho^2 + floor) / (1 - rho^2 + floor).
    correlation = sum_over_time(lambda e, r: e * r, estimates, references)
    explained = correlation**2
    unexplained = 1 - explained
    return 10 * np.log10((explained + _RATIO_FLOOR) / (unexplained + _RATIO_FLOOR))


def _energy(signals: Samples) -> np.ndarray:
    """Sum of squares over time."""
    with np.errstate(over="ignore", invalid="ignore"):
        return sum_over_time(lambda x: x**2, signals)


def _finite(signals: Samples) -> Samples:
    """Signals with silence for those whose energy is no number."""
    energy = _energy(signals)
    return silenced(signals, ~np.isfinite(energy))


def _with_unit_energy(signals: Samples) -> Signals:
    """Signals scaled to an energy of 1; silence stays silence."""
    norm = np.sqrt(np.maximum(_energy(signals), _ENERGY_FLOOR))

    def change(index: tuple[int, ...], samples: np.ndarray) -> np.ndarray:
        return samples.astype(np.float64) / norm[index]

    return computed(signals, change)


@dataclass(frozen=True, eq=False)
class Clip:
    """Scores of one clip; arrays (slot,) in the order of the references, in dB."""

    order: np.ndarray
    """The estimate of each reference; numbers from len(estimates) on are slots of silence that were added."""
    active_references: np.ndarray
    active_estimates: np.ndarray
    si_snr: np.ndarray
    input_si_snr: np.ndarray
    """That of the mixture."""

    @property
    def improvement(self) -> np.ndarray:
        return self.si_snr - self.input_si_snr

    @property
    def pairs(self) -> np.ndarray:
        """Where both the reference and its estimate are active: what the official numbers are means over."""
        return self.active_references & self.active_estimates

    @property
    def n_references(self) -> int:
        return int(self.active_references.sum())

    @property
    def n_estimates(self) -> int:
        """Number of active estimates; 0 if no reference is active, since there is nothing to compare them with."""
        return int(self.active_estimates.sum())

    @property
    def count(self) -> str:
        """Whether there are fewer active estimates than references: "under", "equal" or "over"."""
        if self.n_estimates < self.n_references:
            return "under"
        if self.n_estimates > self.n_references:
            return "over"
        return "equal"


def clip_score(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    mixture: Samples | ArrayLike,
) -> Clip:
    """Score one clip. Estimates must have the level of the references, or their activity means nothing.

    The fewer of estimates and references are filled up with silent slots. A missing estimate thus counts as a silent
    one; silent references change neither the order nor the scores of the others.

    Args:
        estimates: (slot, time). One that holds NaN or infinity is silent.
        references: (slot, time).
        mixture: (time,); officially the sum of the references and not the file that comes with them.

    Raises:
        ValueError: different lengths, no samples, or NaN or infinity in the references or the mixture.
    """
    estimates, references = as_signals(estimates, references)
    mixture = as_samples(mixture)
    if not (all_finite(references).all() and all_finite(mixture)):
        raise ValueError("references and mixture must be finite")
    n_slots = max(len(estimates), len(references))
    estimates = with_silence(_finite(estimates), n_slots)
    references = with_silence(references, n_slots)
    # The order with the best sum of scores (reference, estimate).
    scores = si_snr(estimates, references[:, None])
    slots, order = linear_sum_assignment(scores, maximize=True)
    # An estimate is active that is at most 20 dB below the quietest active reference.
    length = references.shape[-1]
    power = _energy(references) / length
    active = np.sqrt(power) > SILENT_RMS
    quietest = np.min(power[active], initial=np.inf)
    power_of_estimates = _energy(estimates[order]) / length
    return Clip(
        order=order,
        active_references=active,
        active_estimates=power_of_estimates > QUIET * quietest,
        si_snr=scores[slots, order],
        input_si_snr=si_snr(mixture[None], references),
    )


def with_silence(signals: Samples, n_slots: int) -> Signals:
    """Signals (slot, time) with slots of silence after them."""
    n_signals = len(signals)

    def read(number: int, start: int, stop: int) -> np.ndarray:
        if number >= n_signals:
            return np.zeros(stop - start, np.float32)
        return signals[number][..., start:stop]

    return Signals(np.arange(n_slots), signals.shape[-1], read)


def row(clip: Clip) -> dict:
    """What `summary` needs of a clip, as scalars; scores in dB, nan where there is none.

    Returns:
        n_references, n_estimates: active ones. input_si_snr: mean over active references.
        msi, msi_std, pairs: of a clip of 2 sources or more, the mean improvement over its pairs, the standard deviation
        over them (divided by their number) and their number. si_snr_1s: of a single source, the score of its pair.
        msi_all, msi_all_std, pairs_all, si_snr_1s_all: the same over all active references.
    """
    active = clip.active_references
    # The score of a single source is no improvement: there is nothing to remove.
    several = clip.n_references > 1
    single = clip.n_references == 1
    result: dict[str, float] = {
        "n_references": clip.n_references,
        "n_estimates": clip.n_estimates,
    }
    result["input_si_snr"], _ = _mean_std(clip.input_si_snr[active])
    # As officially, over pairs; then over all active references.
    for suffix, counted in (("", clip.pairs), ("_all", active)):
        improvement = clip.improvement[counted & several]
        mean, std = _mean_std(improvement)
        result[f"msi{suffix}"] = mean
        result[f"msi{suffix}_std"] = std
        result[f"pairs{suffix}"] = len(improvement)
        alone = clip.si_snr[counted & single]
        result[f"si_snr_1s{suffix}"], _ = _mean_std(alone)
    return result


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, divided by the number; nan of nothing."""
    if not len(values):
        return np.nan, np.nan
    return float(values.mean()), float(values.std())


def summary(frame: pd.DataFrame) -> dict:
    """The numbers of a set from a table of `row`s; columns besides these are left alone.

    Returns:
        n: clips with an active reference; skipped: those without, which enter nothing else.
        msi: improvement over the pairs of clips of 2 sources or more, all pairs weighted alike; msi_2, msi_3, msi_4: of
        clips with so many; si_snr_1s: SI-SNR, not improvement, of single sources. Each is mean and std in dB, sources
        (their number) and clips. The same with `_all` at the end: over all active references; silent estimates of
        theirs, which the official numbers leave out, count with -80 dB.
        under, equal, over: share of clips with fewer, as many, more active estimates than references; under_1, ...: of
        clips with so many references.
    """
    scored = frame[frame.n_references > 0]
    result: dict[str, Any] = {
        "n": len(scored),
        "skipped": len(frame) - len(scored),
    }
    # Clips with 1 to 4 active references, and more where there are such.
    by_count = {}
    for count in sorted({1, 2, 3, 4, *scored.n_references}):
        by_count[count] = scored[scored.n_references == count]
    for suffix in ("", "_all"):
        result[f"msi{suffix}"] = _pool(scored, suffix)
        for count, rows in by_count.items():
            if count > 1:
                result[f"msi_{count}{suffix}"] = _pool(rows, suffix)
        result[f"si_snr_1s{suffix}"] = _single_sources(scored, suffix)
    # Whether the number of active estimates was right.
    groups = {"": scored}
    for count, rows in by_count.items():
        groups[f"_{count}"] = rows
    for name, sign in (("under", -1), ("equal", 0), ("over", 1)):
        for end, rows in groups.items():
            excess = np.sign(rows.n_estimates - rows.n_references)
            share = (excess == sign).mean()
            result[name + end] = float(share)
    return result


def _single_sources(rows: pd.DataFrame, suffix: str) -> dict:
    """Mean and standard deviation of the SI-SNR of single sources."""
    column = rows[f"si_snr_1s{suffix}"]
    scores = column.to_numpy(dtype=float)
    scores = scores[~np.isnan(scores)]
    mean, std = _mean_std(scores)
    return {
        "mean": mean,
        "std": std,
        "sources": len(scores),
        "clips": len(scores),
    }


def _pool(rows: pd.DataFrame, suffix: str) -> dict:
    """Mean and standard deviation over all sources, from those of the clips."""
    counted = rows[rows[f"pairs{suffix}"] > 0]
    means = counted[f"msi{suffix}"].to_numpy(dtype=float)
    stds = counted[f"msi{suffix}_std"].to_numpy(dtype=float)
    weights = counted[f"pairs{suffix}"].to_numpy(dtype=float)
    if not len(weights):
        return {
            "mean": np.nan,
            "std": np.nan,
            "sources": 0,
            "clips": 0,
        }
    # Variance of all = mean of the variances within clips + variance of the means of the clips.
    mean = np.average(means, weights=weights)
    within = stds**2
    between = (means - mean) ** 2
    variance = np.average(within + between, weights=weights)
    return {
        "mean": float(mean),
        "std": float(np.sqrt(variance)),
        "sources": int(weights.sum()),
        "clips": len(weights),
    }
