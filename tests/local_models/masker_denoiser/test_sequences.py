import itertools

import pytest
import torch

from local_models.masker_denoiser import sequences
from local_models.masker_denoiser.sequences import Sequences


@pytest.mark.parametrize("length", [1, 65, 1000, 5000])
@pytest.mark.parametrize("at_most", [1, 3, 48])
def test_blocks_cover_the_padded_signal_and_estimate_each_frame_once(length, at_most, monkeypatch):
    monkeypatch.setattr(sequences, "BLOCK", at_most)
    timeline = Sequences(frames=12, context=2, window=65, hop=16)
    blocks = timeline.blocks(length)
    assert sum(block.n_frames for block in blocks) == timeline.count(length) * timeline.step
    assert max(block.n_frames for block in blocks) <= at_most * timeline.step
    assert blocks[0].seen.start == 0 and blocks[0].estimated.start == 0
    assert blocks[-1].seen.stop == timeline.pad(torch.zeros(length)).shape[-1]
    assert blocks[-1].estimated.stop == timeline.estimated(length)
    for block, later in itertools.pairwise(blocks):
        # The next block's first frame comes one hop after this one's last.
        assert later.estimated.start == block.estimated.start + block.n_frames * timeline.hop


@pytest.mark.parametrize("length", [1, 64, 65, 1000])
def test_the_signal_lies_whole_within_what_is_estimated(length):
    timeline = Sequences(frames=12, context=2, window=65, hop=16)
    padded = timeline.pad(torch.ones(length))
    estimated = padded[timeline.context * timeline.hop :][: timeline.estimated(length)]
    assert estimated[timeline.lead :][:length].sum() == padded.sum() == length
    # Frames that touch the first or the last sample are all there.
    assert timeline.lead + timeline.hop >= timeline.window
    assert timeline.estimated(length) - timeline.window + timeline.hop >= timeline.lead + length


@pytest.mark.parametrize("sequences_of_signal", [1, 2, 5])
def test_no_sequence_is_made_for_frames_behind_the_signal(sequences_of_signal):
    timeline = Sequences(frames=12, context=2, window=65, hop=16)
    # The last frame that can hold a sample begins at the last sample.
    n_frames = sequences_of_signal * timeline.step
    longest = n_frames * timeline.hop - timeline.lead
    assert timeline.count(longest) == sequences_of_signal
    assert timeline.count(longest + 1) == sequences_of_signal + 1


def test_cut_and_join_are_inverse_but_for_the_context():
    timeline = Sequences(frames=12, context=2, window=65, hop=16)
    spectra = torch.randn(2, 2, 3 * timeline.step + 2 * timeline.context, 5)
    cut = timeline.cut(spectra)
    assert cut.shape == (2 * 2 * 3, 12, 5)
    torch.testing.assert_close(timeline.join(cut[:, 2:-2], (2, 2)), spectra[:, :, 2:-2])


def test_what_fills_no_sequence_is_left_out_in_training():
    timeline = Sequences(frames=12, context=2, window=65, hop=16)
    assert len(timeline.cut(torch.randn(1, 1, 19, 5))) == 1
    assert len(timeline.cut(torch.randn(1, 1, 20, 5))) == 2
