"""Audio of validation examples on the board is what `apply` gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support import RATE, Bands, Beams
from utils.evaluation.apply import apply
from utils.training.callbacks import Examples


class Board:
    def __init__(self):
        self.audio = {}

    def add_audio(self, name, signal, step, rate):
        self.audio[name] = signal

    def add_image(self, *_):
        pass


@pytest.mark.parametrize(
    "system, channels",
    [(Bands(), 1), (Bands(), 2), (Beams(RATE), 2)],
    ids=["mono", "stereo", "array"],
)
def test_examples_are_the_first_channel_of_what_evaluation_hears(system, channels):
    signal = np.random.default_rng(0).normal(0, 0.1, (channels, RATE)).astype(np.float32)
    example = {"mixture": signal, "sources": np.stack([signal, 0.5 * signal])}

    class Validation:
        def __len__(self):
            return 1

        def __getitem__(self, key):
            return example

    board = Board()
    trainer = SimpleNamespace(
        current_epoch=0,
        sanity_checking=False,
        is_global_zero=True,
        logger=SimpleNamespace(experiment=board),
        val_dataloaders=SimpleNamespace(dataset=Validation()),
        global_step=3,
    )
    Examples(1, 1).on_validation_end(trainer, system)
    heard = signal[:1] if system.n_mics == 1 else signal
    expected = apply(system, torch.from_numpy(heard))[:, 0]
    for k, estimate in enumerate(expected, 1):
        audible = estimate / estimate.abs().max()
        assert torch.equal(board.audio[f"example0/estimate{k}"], audible)
    loudest = np.abs(signal[0]).max()
    for name in ("mixture", "source1", "source2"):
        assert np.allclose(board.audio[f"example0/{name}"], signal[0] / loudest)
