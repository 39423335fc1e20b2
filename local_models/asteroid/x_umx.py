"""Asteroid's CrossNet-Open-Unmix (X-UMX) as a system: Sawata et al., ICASSP 2021 (arXiv 2010.04228).

asteroid 0.7.0 refuses to make an `XUMX`, since its transforms do not run on torch 2. The network itself does, and is
still there under another name: here its spectra come from, and its masks go to, `local_models.stft`. The names of
its weights are Asteroid's.
"""

import itertools

import torch
from asteroid.models.x_umx import BrokenXUMX
from torch import Tensor

from local_models.scores import sdr_of_batch
from local_models.stft import Stft
from local_models.system import System

# Of the loss in time, as in Asteroid's recipe.
TIME_WEIGHT = 10.0


class XUMX(System):
    """Voice and accompaniment (or further stems) of a stereo song by bridged recurrent networks, one a source.

    Training as in Asteroid's recipe: mean square error of magnitudes and, weighted, a signal-to-distortion ratio in
    time, both for all combinations of sources up to one less than all.

    Args:
        n_src: number of sources.
        sample_rate: in Hz.
        n_fft: of the transform and its Hann window; the hop is a quarter of it.
        hidden_size: of the networks.
        bandwidth: highest frequency in Hz that they hear; masks cover all.
    """

    n_src: int
    n_mics = 2
    images = True
    ordered = True
    baseline = True

    def __init__(
        self,
        n_src: int = 2,
        sample_rate: int = 44100,
        n_fft: int = 4096,
        hidden_size: int = 512,
        bandwidth: float = 16000.0,
    ):
        super().__init__(n_src, sample_rate)
        if n_src < 2:
            raise ValueError(
                f"n_src {n_src}: the sources whose networks are bridged are 2 at least"
            )
        hop = n_fft // 4
        self.stft = Stft(n_fft, hop)
        highest_bin = min(round(bandwidth * n_fft / sample_rate), n_fft // 2)
        self.network = BrokenXUMX(
            [f"source_{k + 1}" for k in range(n_src)],
            window_length=n_fft,
            in_chan=n_fft,
            n_hop=hop,
            sample_rate=sample_rate,
            hidden_size=hidden_size,
            max_bin=highest_bin + 1,
        )
        # Their weights are windows, which `self.stft` has in their place.
        self.network.encoder.requires_grad_(False)
        self.network.decoder.requires_grad_(False)

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, 2, time) to (batch, source, 2, time); a single channel is heard on both, and comes back as one."""
        if mixture.shape[1] == 1:
            both = mixture.expand(-1, 2, -1)
            return self.separate_centred(both).mean(dim=2, keepdim=True)
        spectrum = self.stft(mixture.float())
        masked = self._masks(spectrum) * spectrum[:, None]
        return self.stft.inverse(masked, mixture.shape[-1])

    def losses(self, batch: dict) -> dict[str, Tensor]:
        mixture = batch["mixture"]
        sources = batch["sources"]
        with self.full_precision():
            spectrum = self.stft(mixture.float())
            targets = self.stft(sources.float())
        masks = self._masks(spectrum)
        with self.full_precision():
            masked = masks.float() * spectrum[:, None]
            estimates = self.stft.inverse(masked, mixture.shape[-1])
            in_frequency = torch.zeros((), device=mixture.device)
            in_time = torch.zeros((), device=mixture.device)
            # The combination loss of the paper: of each group of sources, the sum against the sum of the estimates.
            groups: list[tuple[int, ...]] = []
            for size in range(1, self.n_src):
                groups += itertools.combinations(range(self.n_src), size)
            for group in groups:
                # In frequency: the mean square error of magnitudes.
                magnitude = masked[:, group].sum(1).abs()
                target_magnitude = targets[:, group].sum(1).abs()
                error = magnitude - target_magnitude
                in_frequency = in_frequency + error.square().mean() / len(groups)
                # In time: a signal-to-distortion ratio.
                estimate = estimates[:, group].sum(1)
                source = sources[:, group].sum(1)
                in_time = in_time + _distortion(estimate, source) / len(groups)
            values = {
                "loss_magnitude": in_frequency,
                "loss_time": in_time,
                "loss": in_frequency + TIME_WEIGHT * in_time,
            }
            if not self.training:
                values["sdr"] = sdr_of_batch(estimates[:, 0], sources[:, 0])
        return values

    def _masks(self, spectrum: Tensor) -> Tensor:
        """Complex (batch, channel, bin, frame) to masks (batch, source, channel, bin, frame)."""
        # The network takes (frame, batch, channel, bin) and gives (source, frame, batch, channel, bin).
        magnitudes = spectrum.abs().permute(3, 0, 1, 2)
        masks = self.network.forward_masker(magnitudes)
        return masks.permute(2, 0, 3, 4, 1)


def _distortion(estimates: Tensor, sources: Tensor) -> Tensor:
    """-1 for an estimate like its source, 1 for its opposite, whatever its level; 0 where the source is silent."""
    # The negative cosine of the angle between them.
    dot = (estimates * sources).sum(dim=-1)
    norms = estimates.norm(dim=-1) * sources.norm(dim=-1)
    cosine = dot / norms.clamp(min=1e-8)
    return -cosine.mean()
