"""What of a mixture tells its sources apart, and which powers count as nothing."""

from typing import NamedTuple

import torch

ROUNDING = 1e-12  # of the mean power of a frame or recording: 24 bits hold less, single precision hides less
SILENT = 1e-4  # of the usual share of a microphone in the power of a frame


class Small(NamedTuple):
    """Powers that count as nothing, relative to those that they are beside."""

    noise: float
    """Of noise that is added to each channel, frame and frequency, so that no channel mixes the others exactly."""
    rounding: float
    """Differences of powers that are smaller than this are taken for rounding."""


def small_powers(signals: torch.Tensor) -> Small:
    """Those of the precision of `signals`.

    In single precision the noise is far below its rounding, -69 dB: noise at that level costs up to 2 dB on recordings
    without any of their own.
    """
    if signals.dtype == torch.complex128:
        return Small(noise=1e-13, rounding=1e-13)
    return Small(noise=1e-10, rounding=torch.finfo(signals.dtype).eps)


def audible(mixture: torch.Tensor) -> torch.Tensor:
    """The frames and frequencies of a mixture that tell its sources apart, at the mean power 1; the others are zero.

    Left out are, of a mixture (batch, mic, frequency, frame):

    - frames in which a microphone is silent that hears something elsewhere: they say nothing of where a source is.
      Models whose weights are reciprocals of powers would count what fades there, or rounds, like a signal;
    - frequencies that hold no more than rounding in most frames, as those above 4 kHz in telephone speech. The
      transform of a frame has a rounding error about as large at all frequencies, and all frequencies count alike: the
      error would be separated in place of a signal.

    The mean is over what remains: silence before or behind a recording does not change its level.
    """
    power = torch.view_as_real(mixture).square().sum(-1)
    of_frame = power.mean(2, keepdim=True)  # (batch, mic, 1, frame)
    of_mic = of_frame.mean(3, keepdim=True)  # (batch, mic, 1, 1)
    # A microphone that is silent throughout says nothing against a frame.
    dead = of_mic == 0

    # A microphone that is cut off fades within a frame, and resampled silence rings: so zeros alone do not tell.
    is_faded = _shares(of_frame) <= SILENT * _shares(of_mic)
    is_rounding = of_frame <= ROUNDING * of_mic
    is_signal = ~(is_faded | is_rounding) | dead
    frames = is_signal.all(1, keepdim=True)

    # A frequency counts if it is above the rounding in at least half of these frames.
    is_above = (power > ROUNDING * of_frame) | dead
    clear = is_above.all(1, keepdim=True) & frames
    n_clear = clear.sum(3, keepdim=True)
    n_frames = frames.sum(3, keepdim=True)
    bins = 2 * n_clear >= n_frames

    # The level of what is left, by its mean power over the microphones.
    any_signal = ~dead.all(1, keepdim=True)
    chosen = frames & bins & any_signal
    of_mics = power.mean(1, keepdim=True)
    total = (of_mics * chosen).sum((2, 3), keepdim=True)
    n_points = chosen.sum((2, 3), keepdim=True)
    level = (total / n_points.clamp(min=1)).sqrt()
    safe = torch.where(level > 0, level, 1.0)
    return mixture * (chosen / safe)


def _shares(power: torch.Tensor) -> torch.Tensor:
    """Of each microphone in the power of all, (batch, mic, ...)."""
    total = power.sum(1, keepdim=True)
    safe = torch.where(total > 0, total, 1.0)
    return power / safe
