"""Oracle masks on the short-time Fourier transform: what masking of a fixed front end can reach at best.

The masks see the true sources; they are bounds, not systems. Definitions: Erdogan et al., "Phase-sensitive and
recognition-boosted speech separation using deep recurrent neural networks", ICASSP 2015, with a sum over all sources
where they have speech and noise.
"""

from typing import Literal

import torch

from local_models.stft import Stft

MASKS = {
    "ibm": "ideal binary mask",
    "irm": "ideal ratio mask (magnitudes)",
    "wiener": "Wiener-like mask (powers)",
    "psm": "phase-sensitive mask, cut to [0, 1]",
}
WINDOWS = (32, 64)  # ms
Kind = Literal["ibm", "irm", "wiener", "psm"]


class StftOracle:
    """Separation of a mixture by masks made of its true sources.

    Args:
        kind: of the mask, see `MASKS`.
        window: length of the Hann window in ms; the hop is a quarter of it.
        sample_rate: in Hz.
    """

    n_mics = 1  # each channel by itself

    def __init__(self, kind: Kind, window: float, sample_rate: int):
        self.kind = kind
        hop = round(window * sample_rate / 4000)  # a quarter of the window, which is in ms
        self.stft = Stft(4 * hop, hop)

    def __call__(self, mixture: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """Estimates like the sources.

        Args:
            mixture: (batch, channel, time), of any length from one sample.
            sources: (batch, source, channel, time).
        """
        length = mixture.shape[-1]
        # The same mixture for each source.
        spectrum = self.stft(mixture)[:, None]
        truth = self.stft(sources)
        mask = masks(self.kind, spectrum, truth)
        return self.stft.inverse(mask * spectrum, length)


def masks(kind: Kind, mixture: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Masks in [0, 1] from spectra.

    Args:
        kind: see `MASKS`. All but `psm` sum to one over the sources. Where all of these are silent, they share the bin
            equally (`ibm`: the first of equals takes it).
        mixture: complex (batch, 1, channel, frequency, frame).
        sources: complex (batch, source, channel, frequency, frame).

    Returns:
        (batch, source, channel, frequency, frame), real.
    """
    if kind == "ibm":
        # One for the loudest source, zero for the others.
        magnitudes = sources.abs()
        loudest = magnitudes.argmax(dim=1, keepdim=True)
        nothing = torch.zeros_like(sources.real)
        return nothing.scatter_(1, loudest, 1.0)
    if kind == "psm":
        # |s| / |x| cos(phase of s less that of x) = Re(s x*) / |x|^2
        power = mixture.abs().square()
        product = sources * mixture.conj()
        ratio = product.real / power
        ratio = torch.where(power > 0, ratio, 0.0)
        return ratio.clamp(0, 1)
    if kind not in MASKS:
        names = ", ".join(MASKS)
        raise ValueError(f"there is no oracle mask '{kind}'; choose one of {names}")
    weights = sources.abs()
    if kind == "wiener":
        weights = weights.square()
    # |s| or |s|^2 over the sum of all of them.
    total = weights.sum(dim=1, keepdim=True)
    shares = weights / total
    n_src = sources.shape[1]
    return torch.where(total > 0, shares, 1 / n_src)
