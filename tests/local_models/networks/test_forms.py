"""Networks as others write them, in the form that systems need."""

import pytest
import torch
from torch import nn

from local_models.networks import (
    FilterbankNetwork,
    NamedSeparator,
    Separator,
    SpectrumNetwork,
    UniversalSeparator,
    WaveformNetwork,
)


class Halves(nn.Module):
    """Two equal shares of the waveform, however it is called."""

    def __init__(self, call: str, n_src: int = 2, drop: int = 0):
        super().__init__()
        self.call = call
        self.n_src = n_src
        self.drop = drop
        self.seen: tuple = ()

    def forward(self, mixture, lengths=None):
        self.seen = (tuple(mixture.shape), None if lengths is None else lengths.tolist())
        first = mixture if self.call != "lengths" or mixture.shape[-1] > 4 else mixture[..., 0]
        share = first[..., : first.shape[-1] - self.drop] / self.n_src
        sources = [share] * self.n_src
        if self.call == "lengths":
            return sources, lengths, {}
        return torch.stack(sources, 1)


def noise(batch=2, channels=1, time=1000):
    return torch.randn(batch, channels, time, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "n_mics", "images", "seen"),
    [
        ("time", 1, False, ((2, 1000), None)),
        ("channels", 1, False, ((2, 1, 1000), None)),
        ("channels", 2, True, ((2, 2, 1000), None)),
        ("lengths", 1, False, ((2, 1000), [1000, 1000])),
        ("lengths", 2, False, ((2, 1000, 2), [1000, 1000])),
    ],
)
def test_a_waveform_network_is_called_as_it_says(call, n_mics, images, seen):
    network = Halves(call)
    form = WaveformNetwork(network, call, n_mics, images)
    mixture = noise(channels=n_mics)
    estimates = form(mixture, 2)
    assert network.seen == seen
    heard = mixture if images else mixture[:, :1]
    torch.testing.assert_close(estimates, torch.stack([heard / 2] * 2, 1))


def test_a_network_hears_the_same_at_any_level_and_gives_the_level_back():
    form = WaveformNetwork(nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Tanh()), "time")
    loud = form(noise(), 1)
    torch.testing.assert_close(form(0.001 * noise(), 1), 0.001 * loud)


def test_samples_that_a_network_swallows_come_back():
    network = Halves("time", drop=22)
    form = WaveformNetwork(network, multiple=512, shortest=2048)
    estimates = form(noise(time=3000), 2)
    assert network.seen[0] == (2, 3072)
    torch.testing.assert_close(estimates.sum(1), noise(time=3000))
    assert form(noise(time=5), 2).shape == (2, 2, 1, 5) and network.seen[0] == (2, 2048)


def test_a_mono_song_is_two_equal_channels_to_a_network_for_stereo():
    form = WaveformNetwork(Halves("channels"), "channels", n_mics=2, images=True)
    torch.testing.assert_close(form(noise(), 2).sum(1), noise())


def test_silence_stays_silence_though_a_network_divides_by_its_level():
    class Divides(Halves):
        def forward(self, mixture):
            return super().forward(mixture / mixture.std())

    mixture = noise()
    mixture[1] = 0
    estimates = WaveformNetwork(Divides("time"))(
        mixture * torch.tensor([0.0, 1.0])[:, None, None], 2
    )
    assert not estimates.any()


def test_another_number_of_sources_is_told_with_the_remedy():
    for form in (
        WaveformNetwork(Halves("time", n_src=3)),
        SpectrumNetwork(Pairs(3), call="real"),
        FilterbankNetwork(Masks(3), 16),
    ):
        with pytest.raises(
            ValueError, match=r"gives [36] signals, which are not those of 2 sources"
        ):
            form(noise(), 2)


class Pairs(nn.Module):
    """The spectrum of the first channel for each source, in one of the three calls."""

    def __init__(self, n_src: int = 2, call: str = "real"):
        super().__init__()
        self.n_src = n_src
        self.call = call
        self.seen: tuple = ()

    def forward(self, spectrum, lengths=None):
        self.seen = tuple(spectrum.shape)
        if self.call == "real":
            n_mics = spectrum.shape[1] // 2
            return torch.stack([spectrum[:, 0], spectrum[:, n_mics]] * self.n_src, 1)
        if self.call == "complex":
            return torch.cat([spectrum[:, :1]] * self.n_src, 1)
        first = spectrum if self.call == "one" else spectrum[:, :, 0]
        return [first] * self.n_src, lengths, None


@pytest.mark.parametrize(
    ("call", "kind", "n_mics", "seen"),
    [
        ("real", "real", 2, (2, 4, 9, 129)),
        ("complex", "complex", 2, (2, 2, 129, 9)),
        ("lengths", "one", 1, (2, 9, 129)),
        ("lengths", "several", 2, (2, 9, 2, 129)),
    ],
)
def test_a_spectrum_network_is_called_as_it_says(call, kind, n_mics, seen):
    network = Pairs(call=kind)
    form = SpectrumNetwork(network, 256, 128, call, n_mics=n_mics)
    mixture = noise(channels=n_mics, time=1024)
    estimates = form(mixture, 2)
    assert network.seen == seen
    torch.testing.assert_close(
        estimates, torch.stack([mixture[:, :1]] * 2, 1), atol=1e-5, rtol=1e-4
    )


def test_a_mask_is_multiplied_with_the_first_channel():
    class Half(nn.Module):
        def forward(self, spectrum):
            return torch.full_like(spectrum, 0.5)

    form = SpectrumNetwork(Half(), call="complex", output="mask", n_mics=2)
    mixture = noise(channels=2)
    expected = torch.stack([mixture[:, :1] / 2] * 2, 1)
    torch.testing.assert_close(form(mixture, 2), expected, atol=1e-5, rtol=1e-4)


class Masks(nn.Module):
    def __init__(self, n_src: int, sources_first: bool = False):
        super().__init__()
        self.n_src = n_src
        self.sources_first = sources_first

    def forward(self, code):
        masks = [code * 0 + k + 1 for k in range(self.n_src)]
        return torch.stack(masks, 0 if self.sources_first else 1)


def test_masks_may_have_their_sources_first():
    torch.manual_seed(0)
    form = FilterbankNetwork(Masks(2), 16)
    expected = form(noise(), 2)
    form.network = Masks(2, sources_first=True)
    form.masks = "sources_first"
    estimates = form(noise(), 2)
    assert torch.equal(estimates, expected)
    torch.testing.assert_close(estimates[:, 1], 2 * estimates[:, 0])
    form.activation = torch.sigmoid
    assert form(noise(), 2)[:, 1].abs().max() < estimates[:, 1].abs().max()


def batch(channels=1, n_src=2):
    sources = torch.randn(3, n_src, channels, 2000, generator=torch.Generator().manual_seed(0))
    return {"mixture": sources.sum(1), "sources": sources, "id": ["a", "b", "c"]}


def test_speakers_are_matched_to_the_best_order():
    class Swapped(nn.Module):
        def forward(self, mixture):
            sources = batch()["sources"][:, :, 0]
            return sources.flip(1)[: len(mixture)]

    system = Separator(WaveformNetwork(Swapped())).eval()
    values = system.losses(batch())
    assert values["loss"] < -60 and values["si_sdri"] > 60


def test_named_sources_keep_their_order_and_level_and_both_channels():
    class Kept(nn.Module):
        def forward(self, mixture):
            return 0.9 * batch(2)["sources"]

    form = WaveformNetwork(Kept(), "channels", n_mics=2, images=True)
    system = NamedSeparator(form).eval()
    # Without the level of the mixture, which the form takes off and puts on again.
    system.form.forward = lambda mixture, n_src: Kept()(mixture)
    values = system.losses(batch(2))
    assert values["sdr"] == pytest.approx(20.0, abs=1e-3)
    assert values["loss"] == pytest.approx(-20.0, abs=1e-3)


def test_a_network_of_one_channel_takes_the_channels_of_a_song_as_examples():
    system = NamedSeparator(WaveformNetwork(Halves("time"))).eval()
    loss = system.losses(batch(2))["loss"]
    assert loss.isfinite() and system.form.network.seen[0] == (6, 2000)


def test_silent_slots_have_a_loss_of_their_own():
    system = UniversalSeparator(WaveformNetwork(Halves("time", n_src=4)))
    example = batch(n_src=4)
    example["sources"][:, 2:] = 0
    assert system.losses(example)["loss"].isfinite()
    assert system.n_src == 4 and system.n_mics == 1
