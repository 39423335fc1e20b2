"""BSS Eval v4, the scores of SiSEC 2018 and of MUSDB18 tables, and uSDR, the score of the MDX and SDX challenges.

`frame_scores` gives the numbers of museval (its mode "v4") in bounded memory and a fraction of its time:

- Frames of one second without overlap; what is left at the end is dropped; a track shorter than a frame is one frame.
- One set of filters a track, of 512 taps, projects each estimate on the delayed channels of all references, another on
  those of its own reference. In a frame they filter that frame by itself, with the tail that this has.
- SDR needs no filter: it is the ratio of the energies of reference and error in the frame, so `frame_sdr` is cheap.

Rules, for `frame_scores` and `frame_sdr` alike:

- A frame in which a reference or an estimate is silent is nan for every source. As in museval, silent means that the
  sum over channels is exactly 0 in every sample, so left = -right is silent too. A signal that is silent throughout
  leaves no score at all (museval raises an error).
- Scores are limited to +-LIMIT dB, as in SI-SDR. museval gives infinity there, or 150 to 300 dB made of rounding.
- An estimate that holds NaN or infinity scores -LIMIT in every other frame; the other sources keep their scores.
- A single source has no interference: its SIR is nan.
- Where delayed channels of the references depend on each other (one signal on both channels, a few samples only), the
  dependent ones get no filter; the projection is the same.
- References in float with nothing above some frequency, not even the noise of 16 bits, leave the filters undefined
  there: SIR and SAR are then mostly rounding, in museval as well. Round such stems to 16 bits first.

Sources: Vincent et al., "Performance measurement in blind audio source separation", TASLP 2006, and "The signal
separation evaluation campaign (2007-2010)", Signal Processing 2012 (images, ISR); Stöter, Liutkus and Ito, "The 2018
signal separation evaluation campaign", LVA/ICA 2018 (v4).
"""

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import next_fast_len, rfft

from utils.evaluation.metrics.image_filters import image_filters
from utils.evaluation.metrics.si_sdr import LIMIT, check_not_transposed
from utils.evaluation.signals import Samples, all_finite, as_samples, blocks

_BLOCK = 2**16  # samples of a track that are looked at together where frames do not matter


def frame_scores(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    sample_rate: float,
    window: float = 1.0,
    hop: float = 1.0,
    filter_length: int = 512,
) -> dict[str, np.ndarray]:
    """SDR, ISR, SIR and SAR of every frame, estimate k against reference k.

    Args:
        estimates, references: (source, channel, time). At most a frame at a time is converted to float64, so
            memory-mapped and integer arrays will do.
        sample_rate: in Hz.
        window, hop: of the frames, in seconds.
        filter_length: taps of the filters.

    Returns:
        {"sdr", "isr", "sir", "sar": (source, frame)}, float64, in dB. The rules at the top of this file hold.

    Raises:
        ValueError: different shapes, no samples, a reference with NaN or infinity, a window, hop or filter below one
            sample.
    """
    estimates, references, broken = _stems(estimates, references)
    length = references.shape[-1]
    frames = _frames(length, sample_rate, window, hop)
    # Filters of no taps explain nothing.
    if filter_length < 1:
        raise ValueError(f"filter_length {filter_length} must be at least 1")
    sdr = _frame_sdr(estimates, references, broken, frames)
    isr = np.full(sdr.shape, np.nan)
    sir = np.full(sdr.shape, np.nan)
    sar = np.full(sdr.shape, np.nan)
    scores = {
        "sdr": sdr,
        "isr": isr,
        "sir": sir,
        "sar": sar,
    }
    # A frame without a score has none for any source.
    silent = np.isnan(sdr[0])
    scored = np.flatnonzero(~silent)
    if not len(scored):
        return scores
    # A frame is filtered by itself, with its tail; the size of the transforms is even.
    frame_with_tail = frames[0].stop + filter_length - 1
    half_size = math.ceil(frame_with_tail / 2)
    n_fft = 2 * next_fast_len(half_size, real=True)
    of_all, of_own = image_filters(estimates, references, filter_length)
    responses_of_all = rfft(of_all, n_fft)
    responses_of_own = rfft(of_own, n_fft)
    for index in scored:
        frame = frames[index]
        ratios = _filtered_ratios(
            _spectra(estimates[..., frame], n_fft),
            _spectra(references[..., frame], n_fft),
            responses_of_all,
            responses_of_own,
        )
        isr[:, index] = ratios[0]
        sir[:, index] = ratios[1]
        sar[:, index] = ratios[2]
    # A single source has no interference.
    if len(references) == 1:
        sir[:] = np.nan
    return scores


def frame_sdr(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    sample_rate: float,
    window: float = 1.0,
    hop: float = 1.0,
) -> np.ndarray:
    """The SDR of `frame_scores` alone, (source, frame), without its filters: cheap enough for every validation."""
    estimates, references, broken = _stems(estimates, references)
    length = references.shape[-1]
    frames = _frames(length, sample_rate, window, hop)
    return _frame_sdr(estimates, references, broken, frames)


def usdr(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
    delta: float = 1e-7,
) -> np.ndarray:
    """10 log10 of the energies of reference and error, each plus `delta`, over all channels and the whole track.

    Args:
        estimates, references: (source, channel, time).

    Returns:
        (source,), float64, in dB, without limits: `delta` keeps silence and identity finite. An estimate that holds
        NaN or infinity scores -LIMIT.

    Raises:
        ValueError: as `frame_scores`.

    Source: Mitsufuji et al., "Music demixing challenge 2021", Frontiers in Signal Processing 2022.
    """
    estimates, references, broken = _stems(estimates, references)
    # Energies are summed over blocks, so that no whole track is converted at once.
    parts = []
    for block in blocks(references.shape[-1], _BLOCK):
        estimated = estimates[..., block]
        true = references[..., block]
        parts.append(_energies(estimated, true))
    signal, error = np.sum(parts, axis=0)
    # uSDR = 10 log10 (sum |s|^2 + delta) / (sum |s - estimate|^2 + delta).
    with np.errstate(all="ignore"):  # an estimate that is not finite
        ratio = (signal + delta) / (error + delta)
        decibels = 10 * np.log10(ratio)
    return np.where(broken, -LIMIT, decibels)


def track_medians(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Medians over the frames that have a score, and the share of those that have none.

    Args:
        scores: what `frame_scores` returned.

    Returns:
        {"sdr", "isr", "sir", "sar", "nan_share": (source,)}, float64. A source without any score is nan. The usual
        number of a test set is the median of these over its tracks, tracks that are nan left out.
    """
    # Of each source over its frames.
    medians = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        for name, values in scores.items():
            medians[name] = np.nanmedian(values, axis=-1)
    without_score = np.isnan(scores["sdr"])
    medians["nan_share"] = without_score.mean(axis=-1)
    return medians


def museval_json(
    scores: dict[str, np.ndarray],
    names: list[str],
    window: float = 1.0,
    hop: float = 1.0,
) -> dict:
    """The dictionary that museval writes for a track, for `json.dump`; museval and its plots read the file.

    Args:
        scores: what `frame_scores` returned.
        names: of the sources, e.g. ["vocals", "accompaniment"].
        window, hop: of the frames, in seconds.

    Returns:
        {"targets": [{"name", "frames": [{"time", "duration", "metrics": {"SDR", "SIR", "SAR", "ISR"}}]}]}; scores
        rounded to 5 decimals, NaN where there is none, as museval does. The version of museval is left out.
    """
    targets = []
    for source, name in enumerate(names):
        # Frame by frame, in the words and the precision of museval.
        frames = []
        n_frames = scores["sdr"].shape[-1]
        for k in range(n_frames):
            metrics = {}
            for key in ("SDR", "SIR", "SAR", "ISR"):
                value = scores[key.lower()][source, k]
                metrics[key] = round(value.item(), 5)
            frame = {
                "time": k * hop,
                "duration": window,
                "metrics": metrics,
            }
            frames.append(frame)
        targets.append({"name": name, "frames": frames})
    return {"targets": targets}


def _stems(
    estimates: Samples | ArrayLike,
    references: Samples | ArrayLike,
) -> tuple[Samples, Samples, np.ndarray]:
    """Both as (source, channel, time) without a copy, and which estimates are not finite: (source,)."""
    estimates = as_samples(estimates)
    references = as_samples(references)
    for axis in (-3, -2):
        check_not_transposed("references", references.shape, axis)
    same_shape = estimates.shape == references.shape
    if not same_shape or len(references.shape) != 3 or not math.prod(references.shape):
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must have one shape, (source, channel, "
            "time), with at least one sample"
        )
    if not all_finite(references).all():
        numbers = np.flatnonzero(_not_finite(references)).tolist()
        raise ValueError(f"NaN or infinity in the references of sources {numbers}")
    return estimates, references, _not_finite(estimates)


def _not_finite(signals: Samples) -> np.ndarray:
    """Which sources hold NaN or infinity: (source,)."""
    of_channels = all_finite(signals)
    return ~np.all(of_channels, axis=-1)


def _frames(length: int, sample_rate: float, window: float, hop: float) -> list[slice]:
    """Slices of the time: whole frames only, or one of the whole track if that is shorter."""
    # In samples.
    size = int(min(window * sample_rate, length))
    step = int(min(hop * sample_rate, length))
    if size < 1 or step < 1:
        raise ValueError(f"window and hop must be at least one sample at {sample_rate} Hz")
    starts = range(0, length - size + 1, step)
    return [slice(start, start + size) for start in starts]


def _energies(estimates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Energies of reference and error over channels and time: (2, source)."""
    references = references.astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = estimates - references
        n_src = len(references)
        energies = np.empty((2, n_src))
        for k in range(len(references)):
            energies[0, k] = _energy(references[k])
            energies[1, k] = _energy(errors[k])
    return energies


def _energy(signal: np.ndarray) -> float:
    """Sum of |signal|^2."""
    return np.vdot(signal, signal).real


def _frame_sdr(
    estimates: Samples,
    references: Samples,
    broken: np.ndarray,
    frames: list[slice],
) -> np.ndarray:
    """SDR = 10 log10 |s|^2 / |s - estimate|^2 of each frame: (source, frame)."""
    shape = (len(references), len(frames))
    sdr = np.full(shape, np.nan)
    for index, frame in enumerate(frames):
        estimated = estimates[..., frame]
        true = references[..., frame]
        if _has_silence(estimated) or _has_silence(true):
            continue
        energy, error = _energies(estimated, true)
        decibels = _decibels(energy, error)
        sdr[:, index] = np.where(broken, -LIMIT, decibels)
    return sdr


def _has_silence(signals: np.ndarray) -> bool:
    """Whether any source is silent as museval sees it: the sum of its channels is 0 in every sample."""
    sums = signals.sum(axis=1)
    silent = (sums == 0).all(axis=-1)
    return bool(silent.any())


def _decibels(energy: np.ndarray, error: np.ndarray) -> np.ndarray:
    """10 log10 of the ratio, within +-LIMIT; -LIMIT for an estimate that is not finite."""
    # The error may be 0; where an estimate is not finite, its filters are not either.
    with np.errstate(all="ignore"):
        values = 10 * np.log10(energy / error)
    values[np.isnan(values)] = -LIMIT
    return np.clip(values, -LIMIT, LIMIT)


def _spectra(signals: np.ndarray, n_fft: int) -> np.ndarray:
    """(source, channel, bin), the ends scaled so that the plain sum of squares is proportional to the energy."""
    # An estimate that is not finite has such a spectrum.
    with np.errstate(invalid="ignore"):
        spectra = rfft(signals.astype(np.float64), n_fft)
    # Both ends stand for one bin, all others for two.
    spectra[..., [0, -1]] *= np.sqrt(0.5)
    return spectra


def _filtered_ratios(
    estimates: np.ndarray,
    references: np.ndarray,
    responses_of_all: np.ndarray,
    responses_of_own: np.ndarray,
) -> np.ndarray:
    """ISR, SIR and SAR of one frame, (3, source), from the spectra of its signals and of the filters.

    With the target P_j e, the projection of an estimate e on its own reference s_j, and P e, that on all references
    (Vincent et al. 2012): ISR = |s_j|^2 / |P_j e - s_j|^2, SIR = |P_j e|^2 / |P e - P_j e|^2 and
    SAR = |P e|^2 / |e - P e|^2.
    """
    n_src = len(references)
    channels = references.reshape(-1, references.shape[-1])
    signal_energy = np.empty((3, n_src))
    error_energy = np.empty((3, n_src))
    for k, reference in enumerate(references):
        target = _filtered(reference, responses_of_own[k])
        projection = _filtered(channels, responses_of_all[k])
        # ISR: spatial distortion.
        signal_energy[0, k] = _energy(reference)
        error_energy[0, k] = _energy(target - reference)
        # SIR: interference.
        signal_energy[1, k] = _energy(target)
        error_energy[1, k] = _energy(projection - target)
        # SAR: artefacts.
        signal_energy[2, k] = _energy(projection)
        error_energy[2, k] = _energy(estimates[k] - projection)
    return _decibels(signal_energy, error_energy)


def _filtered(channels: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """(input, bin) through (input, output, bin) to (output, bin)."""
    output = channels[0] * filters[0]
    product = np.empty_like(output)
    others = zip(channels[1:], filters[1:], strict=True)
    for channel, response in others:
        np.multiply(channel, response, out=product)
        output += product
    return output
