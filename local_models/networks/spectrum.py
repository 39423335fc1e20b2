"""Networks on the short-time Fourier transform: complex mapping, and complex masks."""

from typing import Literal

import torch
from torch import Tensor, nn

from local_models.networks.form import Form, stacked
from local_models.stft import Stft


class SpectrumNetwork(Form):
    """A network from the spectrum of a mixture to those of its sources, or to masks for them.

    Args:
        network: by class_path, with its arguments, among them its own number of sources.
        n_fft: window of the transform, in samples.
        hop: in samples, at most half of n_fft.
        call: how it is called: `real`, (batch, 2 * channel, frame, frequency), all real parts before all imaginary
            ones, to (batch, 2 * source, frame, frequency), in pairs; `complex`, (batch, channel, frequency, frame) to
            (batch, source, frequency, frame); `lengths`, as ESPnet's separators: complex (batch, frame, frequency) or
            (batch, frame, channel, frequency) with the numbers of frames (batch,), to a list of sources (batch, frame,
            frequency) at the beginning of a tuple.
        output: whether it gives the `spectrum` of each source, or a `mask` for that of the first channel.
        n_mics: channels that it hears together.
    """

    def __init__(
        self,
        network: nn.Module,
        n_fft: int = 256,
        hop: int = 128,
        call: Literal["real", "complex", "lengths"] = "real",
        output: Literal["spectrum", "mask"] = "spectrum",
        n_mics: int = 1,
    ):
        super().__init__(network, n_mics, images=False)
        self.stft = Stft(n_fft, hop)
        self.call = call
        self.output = output

    def estimate(self, mixture: Tensor, n_src: int) -> Tensor:
        with self.in_full_precision(mixture):
            spectrum = self.stft(mixture)
        result = self._call(spectrum, n_src)
        with self.in_full_precision(mixture):
            if self.output == "mask":
                result = result * spectrum[:, :1]
            return self.stft.inverse(result, mixture.shape[-1])[:, :, None]

    def _call(self, spectrum: Tensor, n_src: int) -> Tensor:
        """Complex (batch, channel, frequency, frame) to complex (batch, n_src, frequency, frame)."""
        if self.call == "complex":
            result = stacked(self.network(spectrum))
        elif self.call == "lengths":
            by_frame = spectrum.permute(0, 3, 1, 2)
            if self.n_mics == 1:
                by_frame = by_frame[:, :, 0]
            n_frames = spectrum.shape[-1]
            lengths = torch.full((len(spectrum),), n_frames, device=spectrum.device)
            result = stacked(self.network(by_frame, lengths)).transpose(2, 3)
        else:
            parts = torch.cat([spectrum.real, spectrum.imag], dim=1)
            output = stacked(self.network(parts.transpose(2, 3)))
            if output.shape[1] != 2 * n_src:
                raise ValueError(self.wrong_number(output.shape[1], n_src))
            pairs = output.unflatten(1, (n_src, 2))
            return torch.complex(pairs[:, :, 0].float(), pairs[:, :, 1].float()).transpose(2, 3)
        if result.shape[1] != n_src:
            raise ValueError(self.wrong_number(result.shape[1], n_src))
        return result
