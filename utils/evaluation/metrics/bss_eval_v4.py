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

import warnings

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft
from scipy.linalg import lapack

from utils.evaluation.metrics.si_sdr import LIMIT, check_not_transposed

_EPS = np.finfo(np.float64).eps
_FFT_SIZE = 8192  # of the correlations of a track: blocks that stay in the cache
_BLOCK = 2**16  # samples of a track that are looked at together where frames do not matter
_DEPENDENT = (
    1e-14  # of the largest energy: what rounding leaves of a delayed channel that depends on others
)


def frame_scores(estimates, references, sample_rate, window=1.0, hop=1.0, filter_length=512):
    """SDR, ISR, SIR and SAR of every frame, estimate k against reference k.

    Args:
        estimates, references: (source, channel, time) or, for mono, (source, time). At most a frame at a time is
            converted to float64, so memory-mapped and integer arrays will do.
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
    frames = _frames(references.shape[-1], sample_rate, window, hop)
    if filter_length < 1:
        raise ValueError(f"filter_length {filter_length} must be at least 1")
    sdr = _frame_sdr(estimates, references, broken, frames)
    isr, sir, sar = np.full((3, *sdr.shape), np.nan)
    scored = np.flatnonzero(~np.isnan(sdr[0]))
    if len(scored):
        n_fft = 2 * fft.next_fast_len(-(-(frames[0].stop + filter_length - 1) // 2), real=True)
        filters = [fft.rfft(taps, n_fft) for taps in _filters(estimates, references, filter_length)]
    for index in scored:
        spectra = [
            _spectra(signals[..., frames[index]], n_fft) for signals in (estimates, references)
        ]
        isr[:, index], sir[:, index], sar[:, index] = _filtered_ratios(*spectra, *filters)
    if len(references) == 1:
        sir[:] = np.nan
    return {"sdr": sdr, "isr": isr, "sir": sir, "sar": sar}


def frame_sdr(estimates, references, sample_rate, window=1.0, hop=1.0):
    """The SDR of `frame_scores` alone, (source, frame), without its filters: cheap enough for every validation."""
    estimates, references, broken = _stems(estimates, references)
    return _frame_sdr(
        estimates, references, broken, _frames(references.shape[-1], sample_rate, window, hop)
    )


def usdr(estimates, references, delta=1e-7):
    """10 log10 of the energies of reference and error, each plus `delta`, over all channels and the whole track.

    Args:
        estimates, references: (source, channel, time) or (source, time).

    Returns:
        (source,), float64, in dB, without limits: `delta` keeps silence and identity finite. An estimate that holds
        NaN or infinity scores -LIMIT.

    Raises:
        ValueError: as `frame_scores`.

    Source: Mitsufuji et al., "Music demixing challenge 2021", Frontiers in Signal Processing 2022.
    """
    estimates, references, broken = _stems(estimates, references)
    signal, error = np.sum(
        [_energies(estimates[..., part], references[..., part]) for part in _blocks(references)], 0
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # an estimate that is not finite
        return np.where(broken, -LIMIT, 10 * np.log10((signal + delta) / (error + delta)))


def track_medians(scores):
    """Medians over the frames that have a score, and the share of those that have none.

    Args:
        scores: what `frame_scores` returned.

    Returns:
        {"sdr", "isr", "sir", "sar", "nan_share": (source,)}, float64. A source without any score is nan. The usual
        number of a test set is the median of these over its tracks, tracks that are nan left out.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        medians = {name: np.nanmedian(values, axis=-1) for name, values in scores.items()}
    return medians | {"nan_share": np.isnan(scores["sdr"]).mean(axis=-1)}


def museval_json(scores, names, window=1.0, hop=1.0):
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
        rows = {key: scores[key.lower()][source].tolist() for key in ("SDR", "SIR", "SAR", "ISR")}
        frames = [
            {
                "time": k * hop,
                "duration": window,
                "metrics": {key: round(row[k], 5) for key, row in rows.items()},
            }
            for k in range(len(rows["SDR"]))
        ]
        targets.append({"name": name, "frames": frames})
    return {"targets": targets}


def _stems(estimates, references):
    """Both as (source, channel, time) without a copy, and which estimates are not finite: (source,)."""
    estimates, references = np.asarray(estimates), np.asarray(references)
    if estimates.shape != references.shape or references.ndim not in (2, 3) or not references.size:
        raise ValueError(
            f"estimates {estimates.shape} and references {references.shape} must have one shape, (source, channel, "
            "time) or (source, time), with at least one sample"
        )
    if references.ndim == 2:
        estimates, references = estimates[:, None], references[:, None]
    for axis in (-3, -2):
        check_not_transposed("references", references.shape, axis)
    if (broken := _not_finite(references)).any():
        raise ValueError(
            f"NaN or infinity in the references of sources {np.flatnonzero(broken).tolist()}"
        )
    return estimates, references, _not_finite(estimates)


def _blocks(signals):
    return [slice(start, start + _BLOCK) for start in range(0, signals.shape[-1], _BLOCK)]


def _not_finite(signals):
    return ~np.all(
        [np.isfinite(signals[..., part]).all(axis=(1, 2)) for part in _blocks(signals)], axis=0
    )


def _frames(length, sample_rate, window, hop):
    window, hop = (int(min(seconds * sample_rate, length)) for seconds in (window, hop))
    if window < 1 or hop < 1:
        raise ValueError(f"window and hop must be at least one sample at {sample_rate} Hz")
    return [slice(start, start + window) for start in range(0, length - window + 1, hop)]


def _energies(estimates, references):
    """Energies of reference and error over channels and time: (2, source)."""
    references = references.astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = estimates - references
        return np.array(
            [[np.vdot(signal, signal) for signal in signals] for signals in (references, errors)]
        )


def _frame_sdr(estimates, references, broken, frames):
    sdr = np.empty((len(references), len(frames)))
    for index, frame in enumerate(frames):
        both = estimates[..., frame], references[..., frame]
        silent = any((signals.sum(axis=1) == 0).all(axis=-1).any() for signals in both)
        sdr[:, index] = np.nan if silent else np.where(broken, -LIMIT, _decibels(*_energies(*both)))
    return sdr


def _decibels(energy, error):
    with np.errstate(
        all="ignore"
    ):  # an error of 0, or an estimate that is not finite: its filters are not either
        values = 10 * np.log10(energy / error)
    return np.clip(np.where(np.isnan(values), -LIMIT, values), -LIMIT, LIMIT)


def _spectra(signals, n_fft):
    """(source, channel, bin), the ends scaled so that the plain sum of squares is proportional to the energy."""
    with np.errstate(invalid="ignore"):
        spectra = fft.rfft(signals.astype(np.float64), n_fft)
    spectra[..., [0, -1]] *= np.sqrt(0.5)
    return spectra


def _filtered_ratios(estimates, references, every, own):
    """ISR, SIR and SAR of one frame from the spectra of its signals and of the filters: three of (source,)."""
    channels = references.reshape(-1, references.shape[-1])
    energies = np.empty((2, 3, len(references)))
    for k, (estimate, reference) in enumerate(zip(estimates, references, strict=True)):
        target, projection = _filtered(reference, own[k]), _filtered(channels, every[k])
        pairs = (
            (reference, target - reference),
            (target, projection - target),
            (projection, estimate - projection),
        )
        energies[:, :, k] = np.transpose(
            [[np.vdot(signal, signal).real for signal in pair] for pair in pairs]
        )
    return _decibels(*energies)


def _filtered(channels, filters):
    """(input, bin) through (input, output, bin) to (output, bin)."""
    output = channels[0] * filters[0]
    product = np.empty_like(output)
    for channel, response in zip(channels[1:], filters[1:], strict=True):
        output += np.multiply(channel, response, out=product)
    return output


def _filters(estimates, references, taps):
    """Filters of least squares for the whole track, from all references and from the own one to each estimate.

    Returns:
        (source, source * channel, channel, taps) and (source, channel, channel, taps): source of the estimate,
        channels in, channel out.
    """
    n_src, n_channels, _ = references.shape
    total = n_src * n_channels
    lags = _correlations(estimates, references, taps)
    every = _solve(lags[:, :total], lags[:, total:])
    own = []
    for k in range(n_src):
        part = slice(k * n_channels, (k + 1) * n_channels)
        own.append(_solve(lags[part, part], lags[part, total:][:, part]))
    return every.reshape(total, n_src, n_channels, taps).transpose(1, 0, 2, 3), np.stack(own)


def _correlations(estimates, references, taps):
    """sum_t reference(t) signal(t + lag) over the whole track, in blocks.

    Returns:
        (channels of the references, channels of the references and of the estimates, taps), float64.
    """
    n_fft = max(_FFT_SIZE, 4 * 2 ** taps.bit_length())
    step = n_fft - taps + 1
    n_src, n_channels, length = references.shape
    total = n_src * n_channels
    late = np.zeros((2 * total, n_fft))
    early = np.zeros((total, n_fft))
    spectra = np.zeros((total, 2 * total, n_fft // 2 + 1), dtype=np.complex128)
    product = np.empty_like(spectra[0])
    with np.errstate(invalid="ignore"):  # an estimate that is not finite
        for start in range(0, length, step):
            size = min(n_fft, length - start)
            for half, signals in enumerate((references, estimates)):
                block = signals[..., start : start + size].reshape(total, size)
                late[half * total : (half + 1) * total, :size] = block
            late[:, size:] = 0
            early[:, :step] = late[:total, :step]
            late_spectra = fft.rfft(late)
            for row, spectrum in zip(spectra, fft.rfft(early).conj(), strict=True):
                row += np.multiply(spectrum, late_spectra, out=product)
    return fft.irfft(spectra, n_fft)[..., :taps]


def _solve(lags, cross):
    """Filters whose output is nearest to the targets.

    Args:
        lags: (input, input, lag), correlations of the inputs.
        cross: (input, target, lag), those of the inputs with the targets.

    Returns:
        (input, target, taps).
    """
    n_inputs, n_targets, taps = cross.shape
    right = cross.transpose(0, 2, 1).reshape(n_inputs * taps, n_targets)
    factor, failed = lapack.dpotrf(_gram(lags), overwrite_a=1, clean=0)
    if failed or np.diagonal(factor).min() ** 2 < _DEPENDENT * lags[:, :, 0].max():
        del factor
        factor, order, rank, _ = lapack.dpstrf(
            _gram(lags), overwrite_a=1
        )  # puts what depends on the rest last
        factor, kept = factor[:rank, :rank], order[:rank] - 1
    else:
        kept = slice(None)
    solution = np.zeros_like(right)
    solution[kept] = lapack.dpotrs(factor, right[kept])[0]
    return solution.reshape(n_inputs, taps, n_targets).transpose(0, 2, 1)


def _gram(lags):
    """Upper half of the correlations of all delayed inputs, blocks of Toeplitz form, in the order that LAPACK reads."""
    n_inputs, _, taps = lags.shape
    lower = np.empty((n_inputs * taps,) * 2)
    for i in range(n_inputs):
        for j in range(i + 1):
            both_signs = np.concatenate([lags[i, j, ::-1], lags[j, i, 1:]])
            rows, columns = (slice(k * taps, (k + 1) * taps) for k in (i, j))
            lower[rows, columns] = sliding_window_view(both_signs, taps)[::-1]
    lower.ravel()[:: len(lower) + 1] += _EPS  # as museval
    return lower.T
