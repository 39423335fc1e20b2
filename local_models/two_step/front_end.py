"""Learnt front end of two-step separation: encoder, oracle masks in its latent space, decoder(s).

Source: Tzinis et al., "Two-step sound source separation: training on learned latent targets", ICASSP 2020
(arXiv 1910.09804), step 1, as published at github.com/etzinis/two_step_mask_learning; filterbanks of Pariente et al.,
"Filterbank design for end-to-end speech separation", ICASSP 2020 (arXiv 1910.10400).
"""

from typing import Any, Literal

import torch
from asteroid_filterbanks import AnalyticFreeFB, Decoder, Encoder, make_enc_dec, transforms
from asteroid_filterbanks.enc_dec import Filterbank
from asteroid_filterbanks.free_fb import FreeFB
from torch import Tensor, nn
from torch.nn import functional as F

FilterbankName = Literal["free", "analytic_free", "param_sinc", "stft"]
# Added to codes before they are divided by their sum, so that silence is shared equally.
SMALLEST_CODE = 1e-8
# Added to magnitudes before the logarithm; a mixture has a standard deviation of 1.
SMALLEST_MAGNITUDE = 1e-3


class HilbertPairs(AnalyticFreeFB):
    """Free filters, each with its Hilbert transform: a learnt analytic filterbank.

    asteroid_filterbanks 0.4.0 conjugates the spectrum of a filter where it should turn it by 90 degrees (its issue
    13), which gives the filter backwards in place of its Hilbert transform.
    """

    def filters(self) -> Tensor:
        """(n_filters, 1, kernel_size): the free ones, then their Hilbert transforms."""
        spectrum = torch.fft.rfft(self._filters)
        turned = torch.fft.irfft(-1j * spectrum, n=self.kernel_size)
        return torch.cat([self._filters, turned])


class FrontEnd(nn.Module):
    """Encoder, masks of its code, and decoders.

    Two kinds of code, by `filterbank`:

    - `free`, as published: E(s) = ReLU(W s + b), one mask value for each of the `n_basis` bases;
    - the others: linear, E(s) = W s, whose filters come in pairs (real and imaginary part). A pair shares one mask
      value, which is made from its magnitude. Then E(x) is the sum of all E(s_i), so that the code of a source is
      itself a target.

    With a softmax and biases the training of `free` is degenerate: see `instruments` and the recipe's results.

    Args:
        n_src: number of sources.
        n_basis: number of filters N; of pairs, both count.
        kernel_size: length of a filter in samples, at least 2.
        filterbank: of asteroid_filterbanks. `stft` has nothing to learn, and N and the length must be even.
        bias: whether encoder and decoders of `free` have biases, as published.
        decoder: `private` (one decoder a source, the paper), `shared`, or `tied`: the transposed encoder, without
            weights of its own.
        mask: how the encoded sources become oracle masks: `softmax` over the sources (the paper), `ratio` of the
            codes or magnitudes, or `power`, ratio of their squares.
        log_features: whether the mask network hears logarithms of the magnitudes in place of codes or magnitudes.
        sample_rate: in Hz, of `param_sinc`.

    Raises:
        ValueError: biases of a linear code; a kernel that is too short.
    """

    def __init__(
        self,
        n_src: int,
        n_basis: int = 256,
        kernel_size: int = 21,
        filterbank: FilterbankName = "free",
        bias: bool = True,
        decoder: Literal["private", "shared", "tied"] = "private",
        mask: Literal["softmax", "ratio", "power"] = "softmax",
        log_features: bool = False,
        sample_rate: int = 8000,
    ):
        super().__init__()
        if kernel_size < 2:
            raise ValueError(f"kernel_size {kernel_size} is too short: at least 2 samples")
        if bias and filterbank != "free":
            raise ValueError(
                f"filterbank {filterbank} is linear and has no biases: set bias to false"
            )
        self.n_src = n_src
        self.mask_kind = mask
        self.log_features = log_features
        self.is_linear = filterbank != "free"
        make = _maker_of(filterbank, n_basis, kernel_size, sample_rate)
        bank = make()
        self.hop = bank.stride
        # The filters that there are: param_sinc makes an even length odd, the STFT has two more than samples.
        self.n_channels = bank.n_feats_out
        self.n_masks = self.n_channels // 2 if self.is_linear else self.n_channels
        padding = bank.kernel_size // 2
        self.encoder = Encoder(bank, padding=padding)
        n_decoders = n_src if decoder == "private" else 1
        self.decoders = nn.ModuleList()
        for _ in range(n_decoders):
            filters = bank if decoder == "tied" else make()
            self.decoders.append(Decoder(filters, padding=padding))
        self.encoder_bias = None
        self.decoder_bias = None
        if bias:
            # As torch starts a convolution.
            bound = bank.kernel_size**-0.5
            self.encoder_bias = nn.Parameter(
                torch.empty(self.n_channels, 1).uniform_(-bound, bound)
            )
            bound = (self.n_channels * bank.kernel_size) ** -0.5
            self.decoder_bias = nn.Parameter(torch.empty(n_decoders).uniform_(-bound, bound))

    def encode(self, signal: Tensor) -> Tensor:
        """(..., time) to the code (..., n_channels, frames)."""
        *batch, time = signal.shape
        # To whole hops.
        padding = -time % self.hop
        padded = F.pad(signal, (0, padding)).reshape(-1, 1, time + padding)
        code = self.encoder(padded)
        if not self.is_linear:
            if self.encoder_bias is not None:
                code = code + self.encoder_bias
            code = F.relu(code)
        return code.reshape(*batch, *code.shape[1:])

    def magnitude(self, code: Tensor) -> Tensor:
        """Code (..., n_channels, frames) to what masks are made of, non-negative, (..., n_masks, frames)."""
        if self.is_linear:
            return transforms.mag(code)
        return code

    def features(self, code: Tensor) -> Tensor:
        """Code (batch, n_channels, frames) to what the mask network hears, (batch, n_masks, frames)."""
        magnitude = self.magnitude(code)
        if self.log_features:
            return torch.log(magnitude + SMALLEST_MAGNITUDE)
        return magnitude

    def oracle_masks(self, sources: Tensor) -> Tensor:
        """Clean sources (batch, n_src, time) to masks (batch, n_src, n_masks, frames) that add up to one."""
        weights = self.magnitude(self.encode(sources))
        if self.mask_kind == "softmax":
            return weights.softmax(dim=1)
        if self.mask_kind == "power":
            weights = weights.square()
        weights = weights + SMALLEST_CODE
        return weights / weights.sum(dim=1, keepdim=True)

    def masked(self, masks: Tensor, code: Tensor) -> Tensor:
        """Masks (batch, n_src, n_masks, frames) times a code (batch, n_channels, frames): latents of all sources."""
        if self.is_linear:
            # Both filters of a pair get the pair's mask.
            masks = torch.cat([masks, masks], dim=-2)
        return masks * code[:, None]

    def oracle_latents(self, mixture: Tensor, sources: Tensor) -> Tensor:
        """The mixture's code under the oracle masks, (batch, n_src, n_channels, frames): the targets of step 2.

        Args:
            mixture: (batch, time).
            sources: (batch, n_src, time).
        """
        return self.masked(self.oracle_masks(sources), self.encode(mixture))

    def decode(self, latents: Tensor, length: int) -> Tensor:
        """Latents (batch, n_src, n_channels, frames) to signals (batch, n_src, `length`)."""
        signals = []
        for source, latent in enumerate(latents.unbind(1)):
            index = source % len(self.decoders)
            signal = overlap_add(latent, self._filters_of(index), self.hop)
            if self.decoder_bias is not None:
                signal = signal + self.decoder_bias[index]
            signals.append(signal)
        return torch.stack(signals, dim=1)[..., :length]

    def heard(self, latents: Tensor) -> Tensor:
        """The part of latents (batch, n_src, n_channels, frames) that their decoders do not map to nothing.

        Of each frame the projection P v = D^T (D D^T)^-1 D v, where D (kernel_size, n_channels) holds the filters of
        the decoder, before frames overlap.
        """
        parts = []
        for source, latent in enumerate(latents.unbind(1)):
            # An orthonormal basis Q of the row space of D: then P = Q Q^T.
            filters = self._filters_of(source % len(self.decoders))
            basis = _orthonormal_columns(filters)
            parts.append(basis @ (basis.T @ latent))
        return torch.stack(parts, dim=1)

    def _filters_of(self, index: int) -> Tensor:
        """The filters of a decoder, (n_channels, kernel_size)."""
        decoder = self.decoders[index]
        assert isinstance(decoder, Decoder)
        return decoder.get_filters()[:, 0]


def overlap_add(code: Tensor, filters: Tensor, hop: int) -> Tensor:
    """Every filter times its value in a frame, frames `hop` samples apart added up: a transposed convolution.

    As a matrix product it takes less than half of the processor time of `conv_transpose1d`, forward and back.

    Args:
        code: (batch, n_channels, frames).
        filters: (n_channels, kernel_size), centred on their frames.

    Returns:
        (batch, time): all samples from the centre of the first frame on to `hop - 1` after the end of the last one.
    """
    kernel_size = filters.shape[1]
    # A frame is so many hops long, the last one filled with zeros.
    n_hops = -(-kernel_size // hop)
    whole = F.pad(filters, (0, n_hops * hop - kernel_size))
    # A product for each example, which rounds the same with gradients and without.
    matrices = whole.T.expand(len(code), -1, -1)
    samples = torch.bmm(matrices, code)
    # Hop k of frame t lies at hop t + k of the signal.
    hops = F.pad(samples[:, :hop], (0, n_hops - 1))
    for index in range(1, n_hops):
        part = samples[:, index * hop : (index + 1) * hop]
        hops = hops + F.pad(part, (index, n_hops - 1 - index))
    signal = hops.transpose(1, 2).flatten(1)
    return signal[:, kernel_size // 2 :]


def _orthonormal_columns(filters: Tensor) -> Tensor:
    """Filters (n_channels, kernel_size) to an orthonormal basis (n_channels, rank) of the space of their columns."""
    left, values, _ = torch.linalg.svd(filters.detach(), full_matrices=False)
    return left[:, values > 1e-5 * values[0]]


def _maker_of(name: FilterbankName, n_basis: int, kernel_size: int, sample_rate: int) -> Any:
    """A function that makes a filterbank with weights of its own."""
    options: dict[str, Any] = {"stride": kernel_size // 2, "sample_rate": sample_rate}

    def make() -> Filterbank:
        if name == "free":
            bank = FreeFB(n_basis, kernel_size, **options)
            # As the published code starts, and as torch does a convolution of one channel.
            bound = kernel_size**-0.5
            nn.init.uniform_(bank._filters, -bound, bound)
            return bank
        if name == "analytic_free":
            return HilbertPairs(n_basis, kernel_size, **options)
        encoder, _ = make_enc_dec(name, n_basis, kernel_size, **options)
        return encoder.filterbank

    return make
