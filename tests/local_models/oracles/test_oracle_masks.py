import numpy as np
import pytest
import scipy.signal
import torch

from local_models.oracles.masks import MASKS, WINDOWS, StftOracle, masks
from utils.evaluation.metrics.si_sdr import si_sdr


def mixture_of(n_src, length, batch=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sources = torch.randn(batch, n_src, 1, length, dtype=torch.float64, generator=draw)
    return sources.sum(1), sources


def speech_like(length=16000):
    """Sources that overlap little in time and frequency: harmonic tones with envelopes."""
    time = np.arange(length) / 8000
    tones = [
        sum(np.sin(2 * np.pi * f * k * time) / k for k in range(1, 20)) for f in (113.0, 191.0)
    ]
    envelopes = [1 + np.sin(2 * np.pi * f * time) for f in (2.3, 3.7)]
    sources = np.stack(tones) * np.stack(envelopes)
    signals = torch.from_numpy(sources)[None, :, None]
    return signals.sum(1), signals


@pytest.mark.parametrize(("window", "size", "hop"), [(32, 256, 64), (64, 512, 128)])
def test_windows_are_given_in_ms_and_scale_with_the_rate(window, size, hop):
    for factor in (1, 2):
        oracle = StftOracle("irm", window, 8000 * factor)
        assert (oracle.stft.n_fft, oracle.stft.hop) == (size * factor, hop * factor)


@pytest.mark.parametrize("length", [1, 2, 63, 255, 256, 257, 1000, 8001])
@pytest.mark.parametrize("window", WINDOWS)
def test_any_length_is_restored_exactly(length, window):
    oracle = StftOracle("wiener", window, 8000)
    signal = mixture_of(2, length)[1]
    torch.testing.assert_close(
        oracle.stft.inverse(oracle.stft(signal), length), signal, atol=1e-12, rtol=0
    )
    for kind in MASKS:
        mixture, sources = mixture_of(3, length)
        assert StftOracle(kind, window, 8000)(mixture, sources).shape == sources.shape


@pytest.mark.parametrize("kind", ["ibm", "irm", "wiener"])
@pytest.mark.parametrize("n_src", [1, 2, 4])
def test_masks_share_the_mixture_out_and_estimates_sum_to_it(kind, n_src):
    mixture, sources = mixture_of(n_src, 3001, batch=2)
    sources[..., 1000:2000] = 0  # silent stretch: 0/0 in ratio masks
    mixture = sources.sum(1)
    estimates = StftOracle(kind, 32, 8000)(mixture, sources)
    torch.testing.assert_close(estimates.sum(1), mixture, atol=1e-10, rtol=0)


def test_masks_have_the_values_of_their_definitions():
    sources = torch.tensor([[3.0 + 0j, 4j, 0], [1.0, -3.0, 0]])[
        None, :, None
    ]  # one frequency, three frames
    mixture = sources.sum(1, keepdim=True)

    def values(kind):
        return masks(kind, mixture, sources)[0, :, 0].tolist()

    assert values("ibm") == [[1, 1, 1], [0, 0, 0]]
    np.testing.assert_allclose(values("irm"), [[3 / 4, 4 / 7, 1 / 2], [1 / 4, 3 / 7, 1 / 2]])
    np.testing.assert_allclose(
        values("wiener"), [[9 / 10, 16 / 25, 1 / 2], [1 / 10, 9 / 25, 1 / 2]]
    )
    np.testing.assert_allclose(values("psm"), [[3 / 4, 16 / 25, 0], [1 / 4, 9 / 25, 0]])


def test_the_phase_sensitive_mask_is_cut_to_zero_and_one():
    sources = torch.tensor([[3.0 + 0j], [-1.0]])[
        None, :, None
    ]  # opposite phases: ratios 1.5 and -0.5
    np.testing.assert_array_equal(
        masks("psm", sources.sum(1, keepdim=True), sources).flatten(), [1, 0]
    )


def test_estimates_are_those_of_scipys_stft():
    mixture, sources = speech_like(8000)
    options = {"fs": 8000, "window": "hann", "nperseg": 256, "noverlap": 192}
    x, s = (scipy.signal.stft(signal, **options)[2] for signal in (mixture[0], sources[0, :, 0]))
    expected = scipy.signal.istft(np.abs(s) / np.abs(s).sum(0) * x, **options)[1][..., :8000]
    np.testing.assert_allclose(
        StftOracle("irm", 32, 8000)(mixture, sources)[0, :, 0], expected, atol=1e-9
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_every_oracle_separates_and_the_phase_sensitive_mask_is_best(window):
    mixture, sources = speech_like()
    truth = sources[0, :, 0]
    scores = {}
    for kind in MASKS:
        estimates = StftOracle(kind, window, 8000)(mixture, sources)
        scores[kind] = si_sdr(estimates[0, :, 0], truth).mean()
    assert min(scores.values()) > si_sdr(mixture[0], truth).mean() + 8
    assert max(scores, key=scores.get) == "psm"


@pytest.mark.parametrize("kind", MASKS)
def test_silence_gives_silence(kind):
    nothing = torch.zeros(1, 2, 1, 500)
    assert not StftOracle(kind, 32, 8000)(nothing[:, 0], nothing).any()


def test_an_unknown_mask_is_refused():
    mixture, sources = mixture_of(2, 100)
    with pytest.raises(ValueError, match="ibm, irm, wiener, psm"):
        StftOracle("best", 32, 8000)(mixture, sources)
