"""Segments of a stream keep the order of their sources, and fade into each other."""

import pytest
import torch

from utils.evaluation.options import Blocks
from utils.evaluation.overlap_add import Stitcher


class Rotating:
    """Takes the true sources for channels, and gives them in an order that moves on by one from signal to signal."""

    sample_rate = 1000
    ordered = False
    device = torch.device("cpu")
    count = 0

    def separate_centred(self, mixture):
        estimates = []
        for sources in mixture:
            estimates.append(sources.roll(self.count, dims=0))
            self.count += 1
        # One channel of each source.
        return torch.stack(estimates)[:, :, None]


def joined(stitcher, signal):
    """(stream, source, time): a stream that comes in pieces of 0.7 s."""
    parts = []
    for piece in signal.split(700, dim=-1):
        parts += stitcher.push(piece)
    parts += stitcher.finish()
    return torch.cat(parts, dim=-1)[:, :, 0]


# With three sources an order and its inverse differ, as with two they never do.
@pytest.mark.parametrize("n_src", [2, 3, 4])
def test_all_segments_keep_the_order_of_the_first(n_src):
    sources = torch.randn(1, n_src, 6500, generator=torch.Generator().manual_seed(0))
    blocks = Blocks(segment=1.0, overlap=0.25, batch=2)
    estimates = joined(Stitcher(Rotating(), blocks, related=False), sources)
    torch.testing.assert_close(estimates, sources)


@pytest.mark.parametrize("n_src", [2, 3, 4])
def test_all_channels_of_a_recording_take_the_order_of_the_first(n_src):
    generator = torch.Generator().manual_seed(0)
    # What distant microphones share is when a source is loud.
    levels = torch.rand(n_src, 20, generator=generator).repeat_interleave(256, dim=-1)
    sources = levels * torch.randn(3, *levels.shape, generator=generator)
    estimates = joined(Stitcher(Rotating(), Blocks(), related=True), sources)
    torch.testing.assert_close(estimates, sources)


def test_the_earlier_segment_fades_out_as_the_later_one_fades_in():
    class Counting:
        """Says which segment it is."""

        sample_rate = 1000
        ordered = True
        device = torch.device("cpu")
        count = 0

        def separate_centred(self, mixture):
            self.count += 1
            return torch.full_like(mixture, self.count)[:, :, None]

    blocks = Blocks(segment=1.0, overlap=0.25, batch=1)
    estimate = joined(Stitcher(Counting(), blocks, related=False), torch.zeros(1, 1, 1750))[0, 0]
    # Both segments know the samples from 750 to 1000; the middle half of these is the fade.
    assert (estimate[:812] == 1).all()
    assert (estimate[938:] == 2).all()
    assert (estimate.diff() >= 0).all()
    assert estimate[874:876].mean() == pytest.approx(1.5, abs=0.01)
