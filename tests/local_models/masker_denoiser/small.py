"""A Masker and Denoiser of 65 bins and a batch of noise, for the tests of this room."""

import dataclasses

import torch

from local_models.masker_denoiser import MaD
from local_models.masker_denoiser.network import Network

RATE = 8000
TINY = {"sample_rate": RATE, "window": 65, "n_fft": 128, "hop": 16, "bfloat16": False}
SMALL = Network(n_heard=20, denoiser_size=9)


def system(network=SMALL, objective=None, **options):
    """A system whose estimates are neither nothing nor the mixture, in evaluation mode."""
    torch.manual_seed(0)
    mad = MaD(network=network, objective=objective, **{**TINY, **options})
    with torch.no_grad():
        mad.network.mask.bias.add_(0.3)
        mad.network.denoiser[2].bias.add_(0.5)
    return mad.eval()


def variant(**options):
    """`SMALL` with other options."""
    return dataclasses.replace(SMALL, **options)


def batch(channels=1, seconds=0.2):
    torch.manual_seed(1)
    sources = 0.1 * torch.randn(3, 2, channels, round(seconds * RATE))
    return {"mixture": sources.sum(1), "sources": sources}
