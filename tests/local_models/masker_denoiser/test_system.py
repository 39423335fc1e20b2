import numpy as np
import pytest
import torch

from local_models.masker_denoiser import sequences
from local_models.masker_denoiser.network import Spectra
from local_models.masker_denoiser.wiener import wiener
from tests.local_models.masker_denoiser.small import RATE, SMALL, system, variant
from utils.evaluation import scoring


class Copy(torch.nn.Module):
    """A network that gives the mixture back."""

    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, magnitudes):
        middle = slice(self.options.context, magnitudes.shape[1] - self.options.context)
        return Spectra(None, magnitudes[:, middle], None, None)


@pytest.mark.parametrize("length", [1, 7, 65, 1000, 21000 + 16 * 41])
def test_every_sample_is_there_once_up_to_the_last(length):
    made = system()
    made.network = Copy(SMALL)
    mixture = torch.randn(1, 1, length)
    estimates = made.separate_centred(mixture)
    assert estimates.shape == (1, 2, 1, length)
    torch.testing.assert_close(estimates[:, 0], mixture, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "network", [SMALL, variant(iterations=10, tolerance=1e-2)], ids=["plain", "recurrent"]
)
def test_output_does_not_depend_on_the_rest_of_the_batch(network):
    made, mixtures = system(network), 0.3 * torch.randn(6, 1, 3000) * torch.rand(6, 1, 1)
    together = made.separate(mixtures)
    assert together[:, 0].std() > 1e-3
    for k in range(6):
        torch.testing.assert_close(
            made.separate(mixtures[k : k + 1])[0], together[k], atol=1e-5, rtol=0
        )


def moving_image(length):
    """Stereo, (1, 2, time): a tone that turns from the left to the right in mid-signal, before noise of low level."""
    time = torch.arange(length) / RATE
    tone = torch.sin(2 * torch.pi * 1100 * time) * (1 + torch.sin(2 * torch.pi * 3 * time))
    left = (time < time[length // 2]).float()
    gains = torch.stack([0.2 + 0.8 * left, 1.0 - 0.8 * left])
    torch.manual_seed(2)
    return (gains * tone + 0.1 * torch.randn(2, length))[None]


@pytest.mark.fast_every(3)
@pytest.mark.parametrize("wiener", [0, 1, 2])
@pytest.mark.parametrize("n_sequences", [1, 2, 7])
def test_output_does_not_depend_on_how_sequences_are_put_into_blocks(
    wiener, n_sequences, monkeypatch
):
    mad = system(n_mics=2, wiener=wiener)
    mixture = moving_image(9000)
    assert len(mad.sequences.blocks(9000)) == 1
    whole = mad.separate(mixture)
    monkeypatch.setattr(sequences, "BLOCK", n_sequences)
    assert len(mad.sequences.blocks(9000)) > 1
    torch.testing.assert_close(mad.separate(mixture), whole, atol=2e-5, rtol=0)


def test_wiener_filter_is_that_of_all_frames_at_once(monkeypatch):
    mad = system(n_mics=2, wiener=1)
    mixture = moving_image(9000)
    # By the definition: one call for every frame and bin of the padded signal.
    timeline = mad.sequences
    spectra = mad.transform.spectra(timeline.pad(mixture))
    denoised = timeline.join(mad.network(timeline.cut(spectra.abs())).denoised, (1, 2))
    spectra = spectra[:, :, timeline.context : -timeline.context]
    voice = spectra * denoised / spectra.abs().clamp(min=1e-12)
    filtered = wiener(torch.stack([voice, spectra - voice], 1), spectra, 1)[:, 0]
    weight = mad.transform.weight(filtered.shape[2])
    expected = (mad.transform.overlap_add(filtered) / weight)[..., timeline.lead :][..., :9000]
    plain = (mad.transform.overlap_add(voice) / weight)[..., timeline.lead :][..., :9000]
    assert (expected - plain).abs().max() > 0.01
    monkeypatch.setattr(sequences, "BLOCK", 3)
    monkeypatch.setattr("local_models.masker_denoiser.system.FILTERED", 5000)  # some bins at a time
    torch.testing.assert_close(mad.separate_centred(mixture)[:, 0], expected, atol=2e-5, rtol=0)


def test_accompaniment_is_the_rest_and_silence_stays_silent():
    made, mixture = system(), torch.randn(2, 1, 3000)
    torch.testing.assert_close(made.separate_centred(mixture).sum(1), mixture)
    assert not made.separate(torch.zeros(1, 1, 3000)).any()


@pytest.mark.parametrize("scale", [1e-6, 32768.0, 1e6])
def test_extreme_levels_give_finite_estimates(scale):
    mixture = scale * torch.randn(1, 1, 2000)
    assert system(variant(iterations=2)).separate(mixture).isfinite().all()


def test_bfloat16_changes_little():
    mixture = torch.randn(1, 1, 4000)
    exact, low = (system(bfloat16=b).separate(mixture)[:, 0] for b in (False, True))
    assert (exact - low).square().sum() < 1e-3 * exact.square().sum()


def test_stereo_channels_are_separated_alike_and_wiener_filter_keeps_the_sum():
    mixture = torch.randn(2, 2, 3000)
    mono, stereo, filtered = system(), system(n_mics=2), system(n_mics=2, wiener=1)
    by_channel = mono.separate(mixture.flatten(0, 1)[:, None])[:, :, 0]
    expected = by_channel.unflatten(0, (2, 2)).transpose(1, 2)
    torch.testing.assert_close(stereo.separate(mixture), expected, atol=1e-6, rtol=0)
    estimates = filtered.separate_centred(mixture)
    torch.testing.assert_close(estimates.sum(1), mixture, atol=1e-5, rtol=0)
    for odd in (
        mixture[:, :1].expand(-1, 2, -1),
        mixture[:, :1],
        mixture[..., :9],
        0 * mixture,
        32768 * mixture,
    ):
        assert filtered.separate(odd).isfinite().all()
    assert (estimates - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "shapes", [((2, 900), (2, 2, 900)), ((1, 900), (2, 1, 900))], ids=["stereo", "mono"]
)
@pytest.mark.parametrize("n_mics", [1, 2])
def test_evaluation_takes_stereo_and_mono_songs(shapes, n_mics, monkeypatch):
    monkeypatch.setattr(scoring.Method, "load", lambda *_: system(n_mics=n_mics))
    mixture, sources = (np.ones(shape, np.float32) for shape in shapes)
    estimates, _ = scoring.estimate(
        scoring.Method(None), scoring.How(suite="music"), mixture, sources, RATE
    )
    assert estimates.shape == sources.shape
