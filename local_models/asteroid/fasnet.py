"""FaSNet with transform-average-concatenate, Asteroid's network for arrays of any shape, as a system.

Source: Luo et al., ICASSP 2020 (arXiv 1910.14104); asteroid 0.7.0, `asteroid.models.FasNetTAC` and egs/TAC.
"""

from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from asteroid.models.fasnet import FasNetTAC
from torch import Tensor, nn

from local_models.scores import validation_scores
from local_models.silence import SMALLEST_LEVEL
from local_models.system import System, only_channel


class FasNet(System):
    """FasNetTAC with the loss of Asteroid's recipe: SI-SDR at the first microphone, permutation invariant.

    Args:
        n_src: number of sources.
        sample_rate: in Hz.
        enc_dim, feature_dim, hidden_dim, n_layers, chunk_size, hop_size: of the network, with Asteroid's defaults.
    """

    n_mics = None  # any number
    baseline = True

    def __init__(
        self,
        n_src: int = 2,
        sample_rate: int = 16000,
        enc_dim: int = 64,
        feature_dim: int = 64,
        hidden_dim: int = 128,
        n_layers: int = 4,
        chunk_size: int = 50,
        hop_size: int = 25,
    ):
        super().__init__(n_src, sample_rate)
        self.model = FasNetTAC(
            n_src,
            sample_rate=sample_rate,
            enc_dim=enc_dim,
            feature_dim=feature_dim,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            chunk_size=chunk_size,
            hop_size=hop_size,
        )

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, mic, time) to (batch, n_src, 1, time)."""
        # The network cannot take less than one window with its context.
        length = mixture.shape[-1]
        shortest = self.model.window + self.model.context
        missing = max(shortest - length, 0)
        padded = nn.functional.pad(mixture, (0, missing))
        # The level of recordings varies, and the network is not blind to it.
        power = padded.square().mean((1, 2), keepdim=True)
        level = power.sqrt()
        level = level.clamp(min=SMALLEST_LEVEL)
        estimates = self.model(padded / level)
        # At the level of the recording again, (batch, n_src, time), and without what was padded.
        estimates = estimates * level
        estimates = estimates[..., :length]
        return estimates[:, :, None]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        mixture = batch["mixture"]
        # Sources and estimates are those at the first microphone.
        sources = only_channel(batch["sources"])
        estimates = only_channel(self.separate(mixture))
        # SI-SDR in bfloat16 would be off by 0.1 dB.
        with self.full_precision():
            pairwise = pairwise_neg_sisdr(estimates.float(), sources)
            loss = PITLossWrapper.find_best_perm(pairwise)[0].mean()
            if self.training:
                return {"loss": loss}
            scores = validation_scores(-loss, mixture[:, 0], sources)
            return {"loss": loss, **scores}
