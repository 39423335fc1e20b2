"""What all forms share: a network of any package between a mixture and its sources."""

import torch
from torch import Tensor, nn

from local_models.silence import SMALLEST_LEVEL


class Form(nn.Module):
    """A network in the form that systems need: (batch, channel, time) to (batch, source, channel, time).

    The mixture is divided by its level on the way in, and padded with zeros to a length that the network takes. What
    comes back is cut to the length of the mixture, and multiplied by the level. Silence stays silence, whatever the
    network makes of it.

    Args:
        network: any module.
        n_mics: channels that it hears together.
        images: whether it gives each source at every channel; then it also takes a single channel.
        shortest: samples that it needs at least.
        multiple: whose multiple the number of samples must be, for networks that give back less otherwise.
    """

    def __init__(
        self, network: nn.Module, n_mics: int, images: bool, shortest: int = 1, multiple: int = 1
    ):
        super().__init__()
        self.network = network
        self.n_mics = n_mics
        self.images = images
        self.shortest = shortest
        self.multiple = multiple

    def estimate(self, mixture: Tensor, n_src: int) -> Tensor:
        """What the network makes of (batch, channel, time): (batch, n_src, channel, time), of about that length."""
        raise NotImplementedError(f"{type(self).__name__}.estimate")

    def forward(self, mixture: Tensor, n_src: int) -> Tensor:
        """(batch, channel, time) to (batch, n_src, channel, time), with one channel unless it makes images.

        Raises:
            ValueError: the network gives another number of sources.
        """
        n_channels = mixture.shape[1]
        length = mixture.shape[-1]
        # A mono recording is two equal channels to a network for stereo.
        is_single = self.images and n_channels == 1 < self.n_mics
        heard = mixture.expand(-1, self.n_mics, -1) if is_single else mixture
        power = heard.square().mean((1, 2), keepdim=True)
        level = power.sqrt()
        normalised = heard / level.clamp(min=SMALLEST_LEVEL)
        padded = nn.functional.pad(normalised, (0, self._padded(length) - length))
        estimates = self.estimate(padded, n_src).float()
        missing = max(length - estimates.shape[-1], 0)
        estimates = nn.functional.pad(estimates, (0, missing))[..., :length]
        if is_single:
            estimates = estimates.mean(2, keepdim=True)
        # Networks that divide by a level of their own give NaN for silence.
        is_silent = level[:, None] <= SMALLEST_LEVEL
        return (estimates * level[:, None]).masked_fill(is_silent, 0.0)

    def _padded(self, length: int) -> int:
        n_pieces = max(length, self.shortest) + self.multiple - 1
        return n_pieces // self.multiple * self.multiple

    def wrong_number(self, n_outputs: int, n_src: int) -> str:
        """The message for a network of another number of sources."""
        return (
            f"{type(self.network).__name__} gives {n_outputs} signals, which are not those of {n_src} sources: "
            "set its own argument for their number, or n_src"
        )

    def in_full_precision(self, like: Tensor) -> torch.autocast:
        """Context for transforms under mixed precision."""
        return torch.autocast(like.device.type, enabled=False)


def stacked(output: object) -> Tensor:
    """What a network gives back as one tensor: of several results the first, of a list of sources a stack of them.

    Raises:
        ValueError: it is neither.
    """
    # The sources of ESPnet are a list at the beginning of a tuple.
    if isinstance(output, tuple):
        output = output[0]
    if isinstance(output, list):
        output = torch.stack(output, dim=1)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network gives {type(output).__name__}, which is no tensor of sources"
        )
    return output
