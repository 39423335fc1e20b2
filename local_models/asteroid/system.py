"""Asteroid's own networks as systems: trained as Asteroid's recipes do, packed as Asteroid packs.

Source: asteroid 0.7.0, `asteroid.models` and egs/wham (Pariente et al., Interspeech 2020, arXiv 2005.04132).
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import asteroid
import asteroid.models
import asteroid_filterbanks
import pytorch_lightning as pl
import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from asteroid.models.base_models import BaseEncoderMaskerDecoder
from asteroid.utils.torch_utils import pad_x_to_y
from asteroid_filterbanks import Filterbank
from torch import nn

from local_models.fast_asteroid import accelerate
from local_models.system import System


class AsteroidSystem(System):
    """A network of `asteroid.models`, trained from waveforms with Asteroid's loss: SI-SDR, permutation invariant.

    As in Asteroid, SI-SDR leaves sign and level of the estimates free, and `separate` gives what the network gives.

    Args:
        model: an encoder-masker-decoder network of asteroid.models (ConvTasNet, DPRNNTasNet, DPTNet, LSTMTasNet,
            SuDORMRFNet, SuDORMRFImprovedNet) with its arguments, except for those below.
        n_src: number of sources; goes to the network.
        sample_rate: in Hz; goes to the network.

    Raises:
        ValueError: if the network has no such argument, or cannot be made of these.
    """

    baseline = True

    def __init__(self, model: Callable[[int], nn.Module], n_src: int = 2, sample_rate: int = 8000):
        super().__init__(n_src, sample_rate)
        self.model_args = dict(getattr(model, "keywords", {}))
        self.model = accelerate(_make(model, self.model_args, n_src, sample_rate))
        self.pit_loss = PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx")

    def compiled_parts(self):
        return [self.model.masker]

    def separate(self, mixture):
        """(batch, time) to (batch, n_src, time), as the plain Asteroid network, but also for less than a window."""
        shortest = self.model.encoder.filterbank.kernel_size
        padded = nn.functional.pad(mixture, (0, max(shortest - mixture.shape[-1], 0)))[:, None]
        with self.full_precision():
            code = self.model.forward_encoder(padded)
        masks = self.model.forward_masker(code)
        with self.full_precision():
            decoded = self.model.forward_decoder(self.model.apply_masks(code, masks.to(code.dtype)))
            return pad_x_to_y(decoded, mixture)

    def losses(self, batch):
        mixture, sources = batch["mixture"], batch["sources"]
        estimates = self.separate(mixture)
        with self.full_precision():
            loss = self.pit_loss(estimates, sources)
            if self.training:
                return {"loss": loss}
            unprocessed = -pairwise_neg_sisdr(mixture[:, None].expand_as(sources), sources)[
                :, 0
            ].mean()
            return {"loss": loss, "si_sdr": -loss, "si_sdri": -loss - unprocessed}

    def pack(self) -> dict:
        """The network in Asteroid's format, of plain types only, so that Asteroid's own `from_pretrained` loads it."""
        versions = {"torch_version": torch.__version__, "pytorch_lightning_version": pl.__version__}
        versions["asteroid_version"] = asteroid.__version__
        return {
            "model_name": type(self.model).__name__,
            "model_args": self.model_args
            | self.model.get_model_args()
            | {"sample_rate": self.sample_rate},
            "state_dict": {
                name: value.detach().cpu() for name, value in self.model.state_dict().items()
            },
            "infos": {
                "software_versions": {name: str(version) for name, version in versions.items()}
            },
        }

    @classmethod
    def from_packed(cls, packed: Mapping) -> "AsteroidSystem":
        """The system of a network packed by `pack`, by Asteroid's `serialize()` or by its `save_publishable`.

        Raises:
            ValueError: if it is none of Asteroid's separation networks, or its weights do not fit.
        """
        name, args = packed["model_name"], dict(packed["model_args"])
        model: Any = getattr(asteroid.models, str(name), None)
        if (
            not (inspect.isclass(model) and issubclass(model, BaseEncoderMaskerDecoder))
            or "n_src" not in args
        ):
            raise ValueError(f"`{name}` is not a separation network of asteroid.models")
        if not args.get("sample_rate"):
            warnings.warn(
                "the packed model does not tell its sample rate; 8000 Hz is assumed, as Asteroid does",
                stacklevel=2,
            )
        n_src, rate = args.pop("n_src"), int(args.pop("sample_rate", None) or 8000)
        known = _accepted(model, args)
        options = {key: value for key, value in args.items() if key in known}
        system = cls(functools.partial(cast(Any, model), **options), n_src, rate)
        try:
            system.model.load_state_dict(packed["state_dict"])
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the arguments of {name}: {error}") from None
        return system


def _make(model: Callable, args: dict, n_src: int, sample_rate: int) -> BaseEncoderMaskerDecoder:
    rate = args.pop("sample_rate", None)
    # 8000 is the networks' own default, which the resolved configuration contains
    if rate not in (None, 8000, sample_rate):
        raise ValueError(
            f"the model's sample_rate is {rate}, the system's {sample_rate}: leave out the first"
        )
    try:
        made = model(n_src, sample_rate=sample_rate)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"the model cannot be made of these arguments: {error}") from error
    if (
        not isinstance(made, BaseEncoderMaskerDecoder)
        or type(made).forward is not BaseEncoderMaskerDecoder.forward
    ):
        raise ValueError(
            f"{type(made).__name__} is not an encoder-masker-decoder network of asteroid.models"
        )
    unknown = args.keys() - _accepted(type(made), args)
    if unknown:
        raise ValueError(f"{type(made).__name__} has no argument {', '.join(sorted(unknown))}")
    return made


def _accepted(model: type, args: dict) -> set[str]:
    """Arguments that a network or its filter bank really has; both swallow any other without a word."""
    name = args.get("fb_name", "free")
    filterbank = asteroid_filterbanks.get(name)
    # Asteroid looks names up among everything in its module, functions and imports included
    if not inspect.isclass(filterbank) or not issubclass(filterbank, Filterbank):
        raise ValueError(f"fb_name: `{name}` is no filter bank of asteroid_filterbanks")
    parameters = [
        inspect.signature(f).parameters
        for f in (model, filterbank, asteroid_filterbanks.make_enc_dec)
    ]
    return {
        name for group in parameters for name, p in group.items() if p.kind is not p.VAR_KEYWORD
    }
