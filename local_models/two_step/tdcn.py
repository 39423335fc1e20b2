"""Mask networks of two-step separation: TDCN and RTDCN.

A mask network maps the latent mixture (batch, in_chan, frames) to masks (batch, n_src, in_chan, frames), as those of
`asteroid.masknn` do, so that one takes the place of another in a YAML.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local_models.fast_asteroid import BasisConv2d, FastConv1DBlock, FastFeatsGlobLN
from local_models.fast_block import wide


class TDCN(nn.Module):
    """Temporal dilated convolutional network of Tzinis et al. 2020 (arXiv 1910.09804), "simplified" Conv-TasNet.

    Norm and 1x1 bottleneck; `n_repeats` times `n_blocks` residual blocks, dilated 1, 2, 4, ... anew in each repeat; a
    mask head. The defaults are the paper's.

    Args:
        in_chan: number of bases of the front end, N.
        n_src: number of masks, S.
        bn_chan: channels of the residual path, B.
        hid_chan: channels inside a block, H.
        skip_chan: channels of the skip path that the masks are made from; 0 makes them from the residual path.
        kernel_size: taps of the depthwise convolutions, odd, P.
        n_blocks: blocks in a repeat, X; the last one is dilated by 2 ** (X - 1).
        n_repeats: repeats, R.
        mask_act: softmax over the sources, or a sigmoid or relu for each.

    Raises:
        ValueError: for a size below one, an even kernel, or a softmax over one source.
    """

    def __init__(
        self,
        in_chan: int,
        n_src: int,
        bn_chan: int = 256,
        hid_chan: int = 512,
        skip_chan: int = 0,
        kernel_size: int = 3,
        n_blocks: int = 8,
        n_repeats: int = 4,
        mask_act: Literal["softmax", "sigmoid", "relu"] = "softmax",
    ) -> None:
        super().__init__()
        sizes = {
            "in_chan": in_chan,
            "n_src": n_src,
            "bn_chan": bn_chan,
            "hid_chan": hid_chan,
            "kernel_size": kernel_size,
            "n_blocks": n_blocks,
            "n_repeats": n_repeats,
        }
        _check_options(sizes, skip_chan, mask_act)
        self.in_chan = in_chan
        self.n_src = n_src
        self.mask_act = mask_act
        self.n_blocks = n_blocks
        self.n_repeats = n_repeats
        # In frames: a repeat reaches (kernel_size - 1) (1 + 2 + 4 + ...) of them.
        reach_of_repeat = (kernel_size - 1) * (2**n_blocks - 1)
        self.receptive_field = 1 + n_repeats * reach_of_repeat
        self.bottleneck = nn.Sequential(
            nn.BatchNorm1d(in_chan),
            nn.Conv1d(in_chan, bn_chan, 1),
        )
        self.TCN = nn.ModuleList()
        for index in range(n_repeats * n_blocks):
            dilation = 2 ** (index % n_blocks)
            padding = dilation * (kernel_size // 2)
            block = FastConv1DBlock(
                bn_chan, hid_chan, skip_chan, kernel_size, padding, dilation, "gLN"
            )
            self.TCN.append(block)
        if skip_chan:
            # Nothing reads the last residual: without weights, DDP waits for no gradient.
            last: Any = self.TCN[-1]
            last.res_conv = None
        # Masks come from the sum of the skips, or from the last residual.
        self.mask_net = BasisHead(skip_chan or bn_chan, in_chan, n_src)

    def forward(self, latent: Tensor) -> Tensor:
        """Latent mixture (batch, in_chan, frames) to masks (batch, n_src, in_chan, frames), float32 at least."""
        x = self.bottleneck(latent)
        # Sum of the skip outputs, if the blocks have one, and what long skips start from.
        skips = None
        sources: dict[int, Tensor] = {}
        for index, block in enumerate(self.TCN):
            x = self._with_long_skips(index, x, sources)
            update = block(x)
            if block.skip_out_chan:
                update, skip = update
                skips = skip if skips is None else skips + skip
            if update is not None:
                x = x + update
        if skips is not None:
            x = skips
        scores = wide(self.mask_net(x))
        scores = scores.unflatten(1, (self.n_src, self.in_chan))
        if self.mask_act == "softmax":
            return scores.softmax(1)
        return getattr(torch, self.mask_act)(scores)

    def _with_long_skips(self, index: int, x: Tensor, sources: dict[int, Tensor]) -> Tensor:
        """Input of block `index`, given the output `x` of the block before; `sources` lives as long as one forward."""
        return x


class RTDCN(TDCN):
    """TDCN with long residual connections between repeats (Tzinis et al. 2020; TDCN++ of Kavalerov et al. 2019).

    Before the blocks that `long_skip_table` lists, earlier tensors are normalised over the frames, stacked, mapped by
    a 1x1 convolution and added. Normalising belongs to the source, the convolution to the destination.

    Args:
        in_chan: number of bases of the front end, N.
        n_src: number of masks, S.
        bn_chan: channels of the residual path, B.
        **options: as of `TDCN`.
    """

    def __init__(self, in_chan: int, n_src: int, bn_chan: int = 256, **options: Any) -> None:
        super().__init__(in_chan, n_src, bn_chan=bn_chan, **options)
        self.table = long_skip_table(self.n_blocks, self.n_repeats)
        # A norm for each tensor that skips start from.
        sources: set[int] = set()
        for row in self.table.values():
            sources.update(row)
        self.skip_norms = nn.ModuleDict()
        for source in sorted(sources):
            self.skip_norms[str(source)] = FastFeatsGlobLN(bn_chan)
        # A convolution for each block that they reach, of all that reach it one above the other.
        self.skip_convs = nn.ModuleDict()
        for block, row in self.table.items():
            in_chan = len(row) * bn_chan
            self.skip_convs[str(block)] = nn.Conv1d(in_chan, bn_chan, 1)

    def _with_long_skips(self, index: int, x: Tensor, sources: dict[int, Tensor]) -> Tensor:
        # Normalised once, however many blocks it is added to.
        before = index - 1
        if str(before) in self.skip_norms:
            norm = self.skip_norms[str(before)]
            sources[before] = norm(x)
        if index not in self.table:
            return x
        earlier = [sources[source] for source in self.table[index]]
        stacked = torch.cat(earlier, dim=1)
        return x + self.skip_convs[str(index)](stacked)


class BasisHead(nn.Module):
    """Mask scores from one filter for each source along the basis axis (Tzinis et al. 2020).

    1x1 convolution to `in_chan` channels if there are not so many, batch norm, ReLU, then a convolution of N + 1 taps
    along the basis axis, zero padded to keep the N rows: N/2 at both ends for even N as in the paper, one row more
    before than after for odd N.

    Args:
        chan: number of input channels.
        in_chan: number of bases, N.
        n_src: number of sources, S.
    """

    def __init__(self, chan: int, in_chan: int, n_src: int) -> None:
        super().__init__()
        self.expand = nn.Conv1d(chan, in_chan, 1) if chan != in_chan else nn.Identity()
        self.norm = nn.BatchNorm1d(in_chan)
        # N + 1 taps along the basis axis, one along time.
        padding = in_chan - in_chan // 2
        kernel = (in_chan + 1, 1)
        self.conv = BasisConv2d(1, n_src, kernel, padding=(padding, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, chan, frames) to scores (batch, n_src * in_chan, frames)."""
        # The bases are the rows of an image of one channel.
        x = F.relu(self.norm(self.expand(x)))
        scores = self.conv(x.unsqueeze(1))
        rows = x.shape[1]  # odd N gives a row too many
        return scores[:, :, :rows].flatten(1, 2)


def long_skip_table(n_blocks: int, n_repeats: int) -> dict[int, list[int]]:
    """Which tensors RTDCN adds to the input of which block.

    The first block of a repeat takes the network's input (-1) and the outputs of the first blocks of all repeats
    between; the block half way, of index n_blocks / 2 - 1, takes the outputs of its counterparts in all repeats before.
    For 8 blocks and 4 repeats this is the hard-coded table of the authors' repository: {8: [-1], 16: [-1, 8],
    24: [-1, 8, 16], 11: [3], 19: [3, 11], 27: [3, 11, 19]}. Below 4 blocks a repeat has no block half way.

    Returns:
        Destination block to its source blocks, both counted from 0.
    """
    table = {}
    for repeat in range(1, n_repeats):
        # The first block of the repeat, from the input and the first blocks of those between.
        first = repeat * n_blocks
        table[first] = [-1, *range(n_blocks, first, n_blocks)]
        # The block half way, from its counterparts in all repeats before.
        middle = n_blocks // 2 - 1
        if middle > 0:
            table[first + middle] = list(range(middle, first, n_blocks))
    return table


def _check_options(sizes: dict[str, int], skip_chan: int, mask_act: str) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if skip_chan < 0:
        raise ValueError(f"skip_chan is {skip_chan}; it must be 0 (no skip path) or more")
    if sizes["kernel_size"] % 2 == 0:
        raise ValueError(
            f"kernel_size is {sizes['kernel_size']}; it must be odd to keep the number of frames"
        )
    if mask_act == "softmax" and sizes["n_src"] == 1:
        raise ValueError(
            "a softmax over one source is 1 everywhere; set n_src to 2 (source and rest) or change mask_act"
        )
