"""The instruments tell a front end that masks from one that writes waveforms onto a constant."""

import pytest
import torch

from local_models.scores import si_snr
from local_models.two_step import instruments
from local_models.two_step.front_end import FrontEnd


def mixture_and_sources():
    generator = torch.Generator().manual_seed(0)
    # Noise that changes slowly, as speech is louder at low frequencies.
    sources = torch.randn(3, 2, 8000, generator=generator).cumsum(-1)
    sources = sources - torch.nn.functional.avg_pool1d(
        sources, 201, stride=1, padding=100, count_include_pad=False
    )
    mixture = sources.sum(1)
    level = mixture.std(-1, keepdim=True)
    return mixture / level, sources / level[:, None]


def degenerate_front_end(gain):
    """An untrained front end that masks nothing: a tight frame of pairs of either sign, with a bias of 2."""
    torch.manual_seed(0)
    frontend = FrontEnd(2, n_basis=128, kernel_size=41)
    rotation = torch.linalg.qr(torch.randn(64, 41))[0]
    frame = torch.cat([rotation, -rotation])[:, None]
    with torch.no_grad():
        frontend.encoder.filterbank._filters.copy_(gain * frame)
        frontend.encoder_bias.fill_(2.0)
        frontend.decoder_bias.zero_()
        for decoder in frontend.decoders:
            decoder.filterbank._filters.copy_(frame / gain)
    return frontend


def oracle_si_sdr(frontend, mixture, sources):
    estimates = frontend.decode(frontend.oracle_latents(mixture, sources), mixture.shape[-1])
    return si_snr(estimates, sources).mean().item()


@pytest.mark.parametrize("gain", [0.1, 0.03])
def test_a_front_end_that_masks_nothing_has_a_high_oracle_and_is_caught(gain):
    mixture, sources = mixture_and_sources()
    frontend = degenerate_front_end(gain)
    with torch.no_grad():
        masks = frontend.oracle_masks(sources)
        assert (masks - 0.5).abs().max() < 2 * gain
        assert oracle_si_sdr(frontend, mixture, sources) > 15
    values = instruments.measure(frontend, mixture, sources)
    assert values["silence_share"] > 9 * instruments.LARGEST_SILENCE_SHARE
    assert values["masks_alone_si_sdr"] > 15
    assert values["constant_mask_latent_si_sdr"] > 20
    assert values["latent_cosine"] > 0.99


@pytest.mark.parametrize("filterbank", ["free", "analytic_free"])
def test_a_front_end_without_biases_has_no_code_of_silence(filterbank):
    torch.manual_seed(0)
    mixture, sources = mixture_and_sources()
    frontend = FrontEnd(2, 64, 40, filterbank, bias=False, decoder="tied", mask="ratio")
    values = instruments.measure(frontend, mixture, sources)
    assert values["silence_share"] == 0
    assert values["masks_alone_si_sdr"] == pytest.approx(-80, abs=0.01)
    assert values["latent_cosine"] < 0.9
    assert 0 < values["heard_share"] < 1


def test_the_share_of_silence_is_that_of_the_energies():
    torch.manual_seed(0)
    mixture, sources = mixture_and_sources()
    frontend = FrontEnd(2, 16, 20)
    with torch.no_grad():
        silence = frontend.encode(torch.zeros(3, 8000)).square().sum()
        expected = silence / frontend.encode(mixture).square().sum()
    assert instruments.measure(frontend, mixture, sources)["silence_share"] == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("n_src", [2, 3])
def test_the_cosine_is_that_of_the_latents_of_different_sources(n_src):
    torch.manual_seed(0)
    sources = torch.randn(2, n_src, 900)
    mixture = sources.sum(1)
    frontend = FrontEnd(n_src, 16, 20, bias=False, mask="power")
    latents = frontend.oracle_latents(mixture, sources).detach().flatten(2)
    cosines = []
    for first in range(n_src):
        for second in range(first):
            pair = latents[:, first], latents[:, second]
            cosines.append(torch.nn.functional.cosine_similarity(*pair, dim=-1))
    expected = torch.stack(cosines).mean()
    measured = instruments.measure(frontend, mixture, sources)["latent_cosine"]
    assert measured.item() == pytest.approx(expected.item(), abs=1e-5)


def test_three_sources_and_silence_are_measured_without_nan():
    torch.manual_seed(0)
    for mixture, sources in (
        (torch.randn(2, 900), torch.randn(2, 3, 900)),
        (torch.zeros(2, 900), torch.zeros(2, 3, 900)),
    ):
        values = instruments.measure(FrontEnd(3, 16, 20), mixture, sources)
        assert all(torch.isfinite(value) for value in values.values())
