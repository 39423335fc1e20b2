"""Networks from waveform to sources."""

from typing import Literal

import torch
from torch import Tensor, nn

from local_models.networks.form import Form, stacked


class WaveformNetwork(Form):
    """A network from the waveform of a mixture to those of its sources.

    Args:
        network: by class_path, with its arguments, among them its own number of sources.
        call: how it is called: `time`, (batch, time) to (batch, source, time); `channels`, (batch, channel, time) to
            (batch, source, channel, time), or (batch, source, time) without images; `lengths`, as ESPnet's separators:
            (batch, time) or (batch, time, channel) with the lengths (batch,), to a list of sources (batch, time) at the
            beginning of a tuple.
        n_mics, images, shortest, multiple: as of `Form`.

    Raises:
        ValueError: `time` with several microphones.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Literal["time", "channels", "lengths"] = "time",
        n_mics: int = 1,
        images: bool = False,
        shortest: int = 1,
        multiple: int = 1,
    ):
        super().__init__(network, n_mics, images, shortest, multiple)
        if call == "time" and n_mics != 1:
            raise ValueError("call: `time` is for one microphone; take `channels`, or n_mics 1")
        self.call = call

    def estimate(self, mixture: Tensor, n_src: int) -> Tensor:
        output = stacked(self._call(mixture))
        if output.shape[1] != n_src:
            raise ValueError(self.wrong_number(output.shape[1], n_src))
        # Channels of the output may be left out where there is one.
        n_outputs = self.n_mics if self.images else 1
        return output.reshape(len(mixture), n_src, n_outputs, output.shape[-1])

    def _call(self, mixture: Tensor) -> object:
        if self.call == "channels":
            return self.network(mixture)
        if self.call == "time":
            return self.network(mixture[:, 0])
        lengths = torch.full((len(mixture),), mixture.shape[-1], device=mixture.device)
        signals = mixture[:, 0] if self.n_mics == 1 else mixture.transpose(1, 2)
        return self.network(signals, lengths)
