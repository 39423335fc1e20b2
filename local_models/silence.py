"""When a signal counts as silent, and how small a level signals are divided by."""

from torch import Tensor

# RMS, at full scale 1, up to which a source counts as silent, as in the official evaluation of FUSS.
SILENT_RMS = 1e-8
# Power, re the quietest active source, below which an estimate counts as silent there: -20 dB.
QUIET = 0.01
# Smallest level that signals are divided by, so that silence stays silence and a quotient stays finite.
SMALLEST_LEVEL = 1e-8


def active(signals: Tensor) -> Tensor:
    """(..., time) to whether the RMS is above `SILENT_RMS`, (...) of bool."""
    rms = signals.square().mean(-1).sqrt()
    return rms > SILENT_RMS
