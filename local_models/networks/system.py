"""What networks of any package are trained towards: speakers in any order, sources with names, or silent slots too."""

from asteroid.losses import PITLossWrapper, multisrc_neg_snr, pairwise_neg_sisdr
from torch import Tensor, nn

from local_models.log_mse import LogMSE
from local_models.networks.form import Form
from local_models.scores import sdr_of_batch, validation_scores
from local_models.system import System, only_channel
from local_models.universal import Universal


class Separator(System):
    """A network for sources without names: SI-SDR, permutation invariant, at the first microphone.

    Args:
        form: the network, and how it is called: a `WaveformNetwork`, `SpectrumNetwork` or `FilterbankNetwork`.
        n_src: number of sources.
        sample_rate: in Hz.
    """

    n_src: int

    def __init__(self, form: Form, n_src: int = 2, sample_rate: int = 8000):
        super().__init__(n_src, sample_rate)
        self.form = form
        self.n_mics = form.n_mics
        self.images = form.images

    def compiled_parts(self) -> list[nn.Module]:
        return [self.form.network]

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, channel, time) to (batch, n_src, channel, time)."""
        return self.form(mixture, self.n_src)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        # Sources and estimates are those at the first microphone.
        mixture = batch["mixture"]
        sources = only_channel(batch["sources"])
        estimates = only_channel(self.separate(mixture))
        # SI-SDR in bfloat16 would be off by 0.1 dB.
        with self.full_precision():
            pairwise = pairwise_neg_sisdr(estimates, sources)
            loss = PITLossWrapper.find_best_perm(pairwise)[0].mean()
            if self.training:
                return {"loss": loss}
            scores = validation_scores(-loss, mixture[:, 0], sources)
            return {"loss": loss, **scores}


class NamedSeparator(Separator):
    """A network whose outputs keep the order and the level of the sources, such as voice and accompaniment: their SNR.

    Stereo examples are two mono ones to a network that hears one channel.

    Args:
        form, n_src, sample_rate: as of `Separator`.
    """

    ordered = True

    def __init__(self, form: Form, n_src: int = 2, sample_rate: int = 44100):
        super().__init__(form, n_src, sample_rate)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        mixture = batch["mixture"]
        # Each channel is an example: (batch, source, channel, time) to (batch * channel, source, time).
        sources = batch["sources"].transpose(1, 2).flatten(0, 1)
        if self.n_mics == 1:
            mixture = mixture.flatten(0, 1)[:, None]
        estimates = self.separate(mixture).transpose(1, 2).flatten(0, 1)
        with self.full_precision():
            values = {"loss": multisrc_neg_snr(estimates, sources).mean()}
            if not self.training:
                # Of the first source, the voice.
                values["sdr"] = sdr_of_batch(estimates[:, 0], sources[:, 0])
        return values


# `Universal` first: its hooks of the validation take the place of Lightning's empty ones.
class UniversalSeparator(Universal, Separator):
    """A network for mixtures with silent slots, by the thresholded log-MSE.

    Args:
        form: as of `Separator`.
        n_src: number of slots.
        sample_rate: in Hz.
        snr_max, silent_weight: of the loss, see `log_mse.LogMSE`.
    """

    def __init__(
        self,
        form: Form,
        n_src: int = 4,
        sample_rate: int = 16000,
        snr_max: float = 30.0,
        silent_weight: float = 1.0,
    ):
        super().__init__(form, n_src, sample_rate)
        self.loss_of = LogMSE(snr_max, silent_weight)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        return self.pit_losses(self.separate(batch["mixture"]), batch)
