"""TDCN++, the mask network of the official FUSS baseline (Kavalerov et al. 2019, arXiv 1905.03330; Wisdom et al. 2021).

Facts of the architecture: github.com/google-research/sound-separation, models/dcase2020_fuss_baseline/train.
"""

import torch
from torch import Tensor, nn

from local_models.fast_block import BlockFunction, BlockParameters, wide

EPS = 1e-3  # of all norms: the default of Keras, which the baseline leaves alone


class TDCNpp(nn.Module):
    """Magnitude spectrum to a sigmoid mask for each source.

    Norm and 256 channels; `n_repeats` times `n_blocks` residual blocks, dilated 1, 2, 4, ... anew in each repeat; long
    skips, a dense layer each, from the first block of each repeat to that of every later one; masks from the last
    residual. The defaults are the published baseline's: 9,179,401 parameters with the 1,024 weights of predicted
    mixture consistency (`stft_masking.StftMasking`), and a receptive field of 2,041 frames.

    Args:
        n_freq: bins of the spectrum.
        n_src: number of masks.
        bn_chan: channels of the residual path.
        hid_chan: channels inside a block.
        n_blocks: blocks in a repeat.
        n_repeats: repeats.
        kernel_size: taps of the depthwise convolutions, odd.
        exponent: of the magnitudes on their way in; 1 as published, 0.3 lets weak sounds be seen too.
    """

    def __init__(
        self,
        n_freq: int,
        n_src: int,
        bn_chan: int = 256,
        hid_chan: int = 512,
        n_blocks: int = 8,
        n_repeats: int = 4,
        kernel_size: int = 3,
        exponent: float = 1.0,
    ):
        super().__init__()
        smallest = min(n_freq, n_src, bn_chan, hid_chan, n_blocks, n_repeats)
        is_even = kernel_size % 2 == 0
        if smallest < 1 or is_even:
            raise ValueError(
                "sizes of a TDCNpp must be 1 at least, and kernel_size odd to keep the number of frames"
            )
        self.n_src = n_src
        self.summary_chan = bn_chan
        self.exponent = exponent
        # In frames: a repeat reaches (kernel_size - 1) (1 + 2 + 4 + ...) of them.
        reach_of_repeat = (kernel_size - 1) * (2**n_blocks - 1)
        self.receptive_field = 1 + n_repeats * reach_of_repeat
        self.norm = ScalarNorm()
        self.bottleneck = ScaledDense(n_freq, bn_chan)
        self.blocks = nn.ModuleList()
        for index in range(n_blocks * n_repeats):
            dilation = 2 ** (index % n_blocks)
            # Later blocks begin with weaker residuals.
            scale = 0.9**index
            self.blocks.append(TDCNppBlock(bn_chan, hid_chan, kernel_size, dilation, scale))
        # Long skips between the first blocks of the repeats, from each to all later ones.
        self.starts = range(0, n_blocks * n_repeats, n_blocks)
        self.long_skips = nn.ModuleDict()
        for target in self.starts:
            for source in self.starts:
                if source < target:
                    self.long_skips[f"{source}_{target}"] = ScaledDense(bn_chan, bn_chan)
        self.masks = nn.Conv1d(bn_chan, n_src * n_freq, 1, bias=False)
        nn.init.xavier_uniform_(self.masks.weight)

    def forward(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Complex (batch, freq, frames) to masks (batch, n_src, freq, frames) and a summary (batch, summary_chan)."""
        magnitudes = spectrum.abs() ** self.exponent
        x = self.bottleneck(self.norm(magnitudes))
        # Inputs of the repeats so far, by their first block.
        inputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            # The first block of a repeat also takes what all repeats before it began with.
            if index in self.starts:
                for source, earlier in inputs.items():
                    skip = self.long_skips[f"{source}_{index}"]
                    x = x + skip(earlier)
                inputs[index] = x
            x = x + block(x)
        scores = wide(self.masks(x))
        masks = scores.unflatten(1, (self.n_src, -1)).sigmoid()
        # The summary of the whole example: mean over the frames.
        summary = wide(x).mean(-1)
        return masks, summary


class TDCNppBlock(nn.Module):
    """Dense, PReLU, norm of each channel over time, dilated depthwise convolution, PReLU, norm, scaled dense.

    Args:
        chan: channels of input and output.
        hid_chan: channels inside.
        kernel_size: taps, odd.
        dilation: of the taps, in frames.
        scale: initial scale of the second dense layer.
    """

    def __init__(self, chan: int, hid_chan: int, kernel_size: int, dilation: int, scale: float):
        super().__init__()
        self.dilation = dilation
        self.dense1 = ScaledDense(chan, hid_chan, bias=False)
        self.act1 = nn.PReLU(init=0.1)
        self.norm1 = ScalarNorm()
        self.depthwise = nn.Conv1d(hid_chan, hid_chan, kernel_size, groups=hid_chan)
        self.act2 = nn.PReLU(init=0.1)
        self.norm2 = ScalarNorm()
        self.dense2 = ScaledDense(hid_chan, chan, bias=False, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, chan, frames) to the residual, of the same shape."""
        hid_chan = self.depthwise.in_channels
        # One gain and offset for all channels, as the function wants one for each.
        gamma1, beta1 = self.norm1.expand(hid_chan)
        gamma2, beta2 = self.norm2.expand(hid_chan)
        # The block of Conv-TasNet, without biases in its dense layers.
        parameters = BlockParameters(
            in_weight=self.dense1.matrix(),
            in_bias=None,
            slope1=self.act1.weight,
            gamma1=gamma1,
            beta1=beta1,
            weight=self.depthwise.weight,
            bias=self.depthwise.bias,
            slope2=self.act2.weight,
            gamma2=gamma2,
            beta2=beta2,
        )
        head = (self.dense2.matrix(), None)
        # As many groups as channels: a norm of each channel over its frames.
        outputs = BlockFunction.apply(x, self.dilation, hid_chan, EPS, *parameters, *head)
        return outputs[0]


class ScaledDense(nn.Module):
    """The same linear map for each frame, with a learnt scale: (batch, in, frames) to (batch, out, frames)."""

    def __init__(self, in_chan: int, out_chan: int, bias: bool = True, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_chan, in_chan, 1))
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_chan)) if bias else None
        self.scale = nn.Parameter(torch.tensor([scale]))

    def matrix(self) -> Tensor:
        """The map with its scale, (out, in, 1)."""
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        # The scale is that of the whole map, offset included.
        bias = None
        if self.bias is not None:
            bias = self.bias * self.scale
        return nn.functional.conv1d(x, self.matrix(), bias)


class ScalarNorm(nn.Module):
    """Layer norm with one gain and one offset for all channels; called, it takes the statistics of a whole example."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def expand(self, chan: int) -> tuple[Tensor, Tensor]:
        """Gain and offset for each channel."""
        gamma = self.gamma.expand(chan)
        beta = self.beta.expand(chan)
        return gamma.contiguous(), beta.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, chan, frames) to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            gamma, beta = self.expand(x.shape[1])
            return nn.functional.group_norm(x, 1, gamma, beta, EPS)
