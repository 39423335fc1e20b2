"""Asteroid's own networks as systems: trained as Asteroid's recipes do, packed as Asteroid packs.

Source: asteroid 0.7.0, `asteroid.models` and egs/wham (Pariente et al., Interspeech 2020, arXiv 2005.04132).
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import asteroid
import asteroid.models
import asteroid_filterbanks
import pytorch_lightning as pl
import torch
from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
from asteroid.models.base_models import BaseEncoderMaskerDecoder
from asteroid.utils.torch_utils import pad_x_to_y
from asteroid_filterbanks import Filterbank
from torch import Tensor, nn

from local_models.fast_asteroid import accelerate
from local_models.scores import validation_scores
from local_models.system import System, only_channel


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

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model.masker]

    def separate_centred(self, mixture: Tensor) -> Tensor:
        """(batch, 1, time) to (batch, n_src, 1, time) as the plain Asteroid network, also for less than a window."""
        # Zeros fill the first window.
        shortest = self.model.encoder.filterbank.kernel_size
        missing = max(shortest - mixture.shape[-1], 0)
        padded = nn.functional.pad(mixture, (0, missing))
        # The mask network runs in the precision of the trainer, the filterbank around it in full.
        with self.full_precision():
            code = self.model.forward_encoder(padded)
        masks = self.model.forward_masker(code)
        with self.full_precision():
            masked = self.model.apply_masks(code, masks.to(code.dtype))
            estimates = self.model.forward_decoder(masked)
            return pad_x_to_y(estimates, mixture)[:, :, None]

    def losses(self, batch: dict) -> dict[str, Tensor]:
        # Asteroid's losses take signals without channels.
        mixture = only_channel(batch["mixture"])
        sources = only_channel(batch["sources"])
        estimates = only_channel(self.separate(batch["mixture"]))
        with self.full_precision():
            loss = self.pit_loss(estimates, sources)
            if self.training:
                return {"loss": loss}
            scores = validation_scores(-loss, mixture, sources)
            return {"loss": loss, **scores}

    def pack(self) -> dict:
        """The network in Asteroid's format, of plain types only, so that Asteroid's own `from_pretrained` loads it."""
        # The arguments that it was made of, then what it says of itself.
        model_args = {
            **self.model_args,
            **self.model.get_model_args(),
            "sample_rate": self.sample_rate,
        }
        state_dict = {}
        for name, value in self.model.state_dict().items():
            state_dict[name] = value.detach().cpu()
        # Versions are objects of classes of their own, which `torch.load` with `weights_only` does not take.
        versions = {
            "torch_version": str(torch.__version__),
            "pytorch_lightning_version": str(pl.__version__),
            "asteroid_version": str(asteroid.__version__),
        }
        return {
            "model_name": type(self.model).__name__,
            "model_args": model_args,
            "state_dict": state_dict,
            "infos": {"software_versions": versions},
        }

    @classmethod
    def from_packed(cls, packed: Mapping) -> "AsteroidSystem":
        """The system of a network packed by `pack`, by Asteroid's `serialize()` or by its `save_publishable`.

        Raises:
            ValueError: if it is none of Asteroid's separation networks, or its weights do not fit.
        """
        name = packed["model_name"]
        args = dict(packed["model_args"])
        # Names of functions and modules are looked up there, too.
        model: Any = getattr(asteroid.models, str(name), None)
        is_network = inspect.isclass(model) and issubclass(model, BaseEncoderMaskerDecoder)
        if not is_network or "n_src" not in args:
            raise ValueError(f"`{name}` is not a separation network of asteroid.models")
        if not args.get("sample_rate"):
            warnings.warn(
                "the packed model does not tell its sample rate; 8000 Hz is assumed, as Asteroid does",
                stacklevel=2,
            )
        n_src = args.pop("n_src")
        rate = int(args.pop("sample_rate", None) or 8000)
        # What the network would swallow without a use is left out.
        accepted = _accepted(model, args)
        used = {}
        for key, value in args.items():
            if key in accepted:
                used[key] = value
        system = cls(functools.partial(model, **used), n_src, rate)
        try:
            system.model.load_state_dict(packed["state_dict"])
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the arguments of {name}: {error}") from None
        return system


def _make(model: Callable, args: dict, n_src: int, sample_rate: int) -> BaseEncoderMaskerDecoder:
    """The network that `model` makes; its arguments `args` are checked, and lose their sample rate."""
    rate = args.pop("sample_rate", None)
    # 8000 is the networks' own default, which the resolved configuration contains.
    if rate not in (None, 8000, sample_rate):
        raise ValueError(
            f"the model's sample_rate is {rate}, the system's {sample_rate}: leave out the first"
        )
    try:
        network = model(n_src, sample_rate=sample_rate)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"the model cannot be made of these arguments: {error}") from error
    # `separate` takes the three parts one by one, so a network that puts them together otherwise will not do.
    kind = type(network)
    is_usual = isinstance(network, BaseEncoderMaskerDecoder)
    if not is_usual or kind.forward is not BaseEncoderMaskerDecoder.forward:
        raise ValueError(
            f"{kind.__name__} is not an encoder-masker-decoder network of asteroid.models"
        )
    unknown = args.keys() - _accepted(kind, args)
    if unknown:
        raise ValueError(f"{kind.__name__} has no argument {', '.join(sorted(unknown))}")
    return network


def _accepted(model: type, args: dict) -> set[str]:
    """Arguments that a network or its filter bank really has; both swallow any other without a word."""
    name = args.get("fb_name", "free")
    filterbank = asteroid_filterbanks.get(name)
    # Asteroid looks names up among everything in its module, functions and imports included
    if not inspect.isclass(filterbank) or not issubclass(filterbank, Filterbank):
        raise ValueError(f"fb_name: `{name}` is no filter bank of asteroid_filterbanks")
    accepted = set()
    for function in (model, filterbank, asteroid_filterbanks.make_enc_dec):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                accepted.add(name)
    return accepted
