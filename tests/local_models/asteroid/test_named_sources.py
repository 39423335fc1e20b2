import functools

import numpy as np
import pytest
import torch
from asteroid.models import ConvTasNet

from local_models.asteroid.named_sources import NamedSources
from local_models.asteroid.x_umx import XUMX
from local_models.oracles.shares import Shares
from local_models.scores import sdr_of_batch
from utils.evaluation.metrics.bss_eval_v4 import frame_scores

RATE = 8000


def convtasnet():
    torch.manual_seed(0)
    size = dict(
        n_filters=16,
        kernel_size=16,
        stride=8,
        bn_chan=8,
        hid_chan=8,
        skip_chan=8,
        n_blocks=2,
        n_repeats=1,
    )
    return NamedSources(functools.partial(ConvTasNet, **size), 2, RATE)


def xumx():
    torch.manual_seed(0)
    return XUMX(2, RATE, n_fft=256, hidden_size=16, bandwidth=2000)


def batch():
    generator = torch.Generator().manual_seed(1)
    sources = 0.1 * torch.randn(2, 2, 2, 4000, generator=generator)
    return {"mixture": sources.sum(1), "sources": sources}


@pytest.mark.fast_every(2)
@pytest.mark.parametrize("make", [convtasnet, xumx])
@pytest.mark.fast_every(2)
def test_it_learns_which_source_is_which_and_how_loud(make):
    system = make().train()
    time = torch.arange(2000) / RATE
    tones = torch.stack([0.3 * torch.sin(2 * torch.pi * f * time) for f in (300, 1500)])
    sources = tones[None, :, None].expand(4, 2, 2, -1) * torch.rand(4, 2, 2, 1).add(0.5)
    example = {"mixture": sources.sum(1), "sources": sources}
    optimiser = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        system.losses(example)["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        assert system.eval().losses(example)["sdr"] > 6


def test_stereo_examples_are_two_mono_ones():
    system, stereo = convtasnet(), batch()
    mono = {
        "mixture": stereo["mixture"].flatten(0, 1)[:, None],
        "sources": stereo["sources"].transpose(1, 2).flatten(0, 1)[:, :, None],
    }
    torch.testing.assert_close(system.losses(stereo)["loss"], system.losses(mono)["loss"])


@pytest.mark.parametrize("length", [1, 100, 3001])
def test_xumx_separates_stereo_of_any_length(length):
    system = xumx().eval()
    with torch.no_grad():
        estimates = system.separate(torch.randn(2, 2, length))
        assert estimates.shape == (2, 2, 2, length) and estimates.isfinite().all()
        assert not system.separate(torch.zeros(1, 2, length)).any()
        song = torch.randn(1, 1, length)
        mono, stereo = system.separate(song), system.separate(song.expand(-1, 2, -1))
        torch.testing.assert_close(mono, stereo.mean(dim=2, keepdim=True))


def test_xumx_masks_are_those_of_asteroids_network():
    system, mixture = xumx().eval(), batch()["mixture"]
    spectrum = torch.stft(
        mixture.flatten(0, 1),
        256,
        64,
        window=torch.hann_window(256),
        pad_mode="constant",
        return_complex=True,
    )
    with torch.no_grad():
        magnitudes = (
            spectrum.unflatten(0, (2, 2)).abs().permute(3, 0, 1, 2)
        )  # frame, batch, channel, bin
        expected = system.network.apply_masks(
            magnitudes, system.network.forward_masker(magnitudes.clone())
        )
        estimates = system._masks(system.stft(mixture)) * system.stft(mixture)[:, None]
    torch.testing.assert_close(
        estimates.abs(), expected.permute(2, 0, 3, 4, 1), atol=1e-5, rtol=1e-4
    )


def test_gradient_reaches_all_of_xumx_and_silence_gives_no_nan():
    system = xumx().train()
    system.losses(batch())["loss"].backward()
    trained = [p for p in system.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    silent = {name: torch.zeros_like(value) for name, value in batch().items()}
    values = system.losses(silent)
    values["loss"].backward()
    assert values["loss"].isfinite() and all(p.grad.isfinite().all() for p in trained)


def test_one_source_is_refused():
    with pytest.raises(ValueError, match="n_src"):
        XUMX(1)


def test_shares_of_the_mixture_are_the_row_mix_of_sisec():
    """Its ISR, 2.49 and 12.01 dB, depends on the shares alone; of 5.2 dB less voice, its SDR is 1.12 and 6.32 dB."""
    sources = torch.randn(2, 1, RATE, generator=torch.Generator().manual_seed(0))
    sources[0] *= 10 ** (-5.2 / 20)
    estimates = Shares([0.25, 0.75], RATE).separate(sources.sum(0)[None])[0]
    scores = frame_scores(estimates.numpy(), sources.numpy(), RATE, filter_length=1)
    np.testing.assert_allclose(scores["isr"].ravel(), [2.493, 12.007], atol=0.2)
    np.testing.assert_allclose(scores["sdr"].ravel(), [1.124, 6.318], atol=0.2)


def test_sdr_of_a_batch():
    source = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    estimate = source + torch.tensor([[0.0, 0.0], [0.3, 0.4]])
    torch.testing.assert_close(
        sdr_of_batch(estimate, source), torch.tensor(20.0), atol=1e-4, rtol=0
    )
