import numpy as np
import pytest
import torch

from local_models.masker_denoiser.overlapping_frames import OverlappingFrames
from local_models.masker_denoiser.wiener import wiener


def by_the_equations(estimates, mixture, passes):
    """One bin and frame at a time: (source, mic, frame, bin) and (mic, frame, bin), numpy."""
    y = estimates.copy()
    n_src, _, n_frames, n_bins = y.shape
    for _ in range(passes):
        power = np.mean(np.abs(y) ** 2, axis=1)
        out = np.empty_like(y)
        for f in range(n_bins):
            spatial = [
                sum(np.outer(y[j, :, t, f], y[j, :, t, f].conj()) for t in range(n_frames))
                / power[j, :, f].sum()
                for j in range(n_src)
            ]
            for t in range(n_frames):
                parts = [power[j, t, f] * spatial[j] for j in range(n_src)]
                inverse = np.linalg.inv(sum(parts))
                for j in range(n_src):
                    out[j, :, t, f] = parts[j] @ inverse @ mixture[:, t, f]
        y = out
    return y


def spectra(n_src, seed=0, shape=(7, 3)):
    rng = np.random.default_rng(seed)
    steering = rng.normal(size=(n_src, 2, 1, shape[1])) + 1j * rng.normal(
        size=(n_src, 2, 1, shape[1])
    )
    dry = rng.normal(size=(n_src, 1, *shape)) + 1j * rng.normal(size=(n_src, 1, *shape))
    sources = steering * dry + 0.1 * rng.normal(size=(n_src, 2, *shape))
    return sources, sources.sum(0)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("n_src", [2, 3])
def test_it_is_expectation_maximisation_bin_by_bin(n_src, passes):
    sources, mixture = spectra(n_src)
    blurred = sources + 0.3 * mixture
    found = wiener(torch.from_numpy(blurred)[None], torch.from_numpy(mixture)[None], passes)[0]
    np.testing.assert_allclose(found.numpy(), by_the_equations(blurred, mixture, passes), atol=1e-6)
    np.testing.assert_allclose(found.sum(0).numpy(), mixture, atol=1e-6)


def test_sources_from_different_places_come_closer_to_the_truth():
    sources, mixture = spectra(2, shape=(200, 3))
    blurred = np.abs(sources) * np.exp(
        1j * np.angle(mixture)
    )  # right magnitudes, the mixture's phase
    found = wiener(torch.from_numpy(blurred), torch.from_numpy(mixture)).numpy()
    assert np.mean(np.abs(found - sources) ** 2) < 0.5 * np.mean(np.abs(blurred - sources) ** 2)


def test_silence_and_extreme_levels_stay_finite():
    sources, mixture = spectra(2)
    for scale in (0.0, 1e-9, 32768.0, 1e9):
        estimates = torch.from_numpy(scale * sources).to(torch.complex64)
        found = wiener(estimates, torch.from_numpy(scale * mixture).to(torch.complex64))
        assert found.isfinite().all()
        if not scale:
            assert not found.abs().any()
        elif scale > 1:
            expected = by_the_equations(sources, mixture, 1)
            np.testing.assert_allclose(
                found.numpy() / scale, expected, atol=2e-3 * np.abs(expected).max()
            )


@pytest.mark.parametrize(
    "kind", ["same channels", "one channel silent", "one frame", "one microphone"]
)
def test_covariances_without_full_rank_keep_the_mixture(kind):
    sources, _ = spectra(2, shape=(1, 3) if kind == "one frame" else (7, 3))
    if kind == "same channels":
        sources[:, 1] = sources[:, 0]
    elif kind == "one channel silent":
        sources[:, 1] = 0
    elif kind == "one microphone":
        sources = sources[:, :1]
    estimates = torch.from_numpy(sources).to(torch.complex64)
    found = wiener(estimates, estimates.sum(0))
    assert found.isfinite().all()
    np.testing.assert_allclose(found.sum(0).numpy(), sources.sum(0), atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("gain", [1.0, -0.3, 0.5 + 0.8j])
def test_the_sources_of_coherent_channels_add_up_to_the_mixture(gain, passes, dtype):
    """The right channel is the left one but for a factor, as of a mono song; some bins and frames are silent."""
    left = torch.from_numpy(spectra(3, shape=(40, 30))[0][:, :1])
    estimates = torch.cat([left, gain * left], dim=1)
    estimates[..., 3, :] = 0
    estimates[..., 5] = 0
    mixture = estimates.sum(0)
    found = wiener(estimates.to(dtype), mixture.to(dtype), passes).sum(0)
    rest = (found - mixture).abs().square().sum() / mixture.abs().square().sum()
    assert 10 * rest.log10() < (-130 if dtype == torch.complex64 else -300)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("mics", [1, 2])
def test_one_source_alone_is_the_mixture(mics, dtype):
    mixture = torch.from_numpy(spectra(1)[1][:mics]).to(dtype)
    found = wiener(0.3 * mixture[None], mixture)
    torch.testing.assert_close(found[0], mixture, rtol=1e-5, atol=1e-6)


def test_three_microphones_are_refused():
    with pytest.raises(ValueError, match="3 microphones"):
        wiener(
            torch.zeros(2, 3, 4, 5, dtype=torch.complex64),
            torch.zeros(3, 4, 5, dtype=torch.complex64),
        )


@pytest.mark.parametrize(("window", "n_fft", "hop"), [(65, 128, 16), (64, 64, 24), (31, 40, 31)])
def test_spectra_are_those_of_numpy_and_overlap_add_inverts_them(window, n_fft, hop):
    frames = OverlappingFrames(window, n_fft, hop)
    signal = torch.randn(2, 3, 5 * hop + window)
    found = frames.spectra(signal)
    part = signal[1, 2, 2 * hop : 2 * hop + window].numpy() * np.hamming(window)
    np.testing.assert_allclose(
        found[1, 2, 2].numpy(), np.fft.rfft(part, n_fft) / np.sqrt(n_fft), atol=1e-5
    )
    torch.testing.assert_close(
        frames.overlap_add(found) / frames.weight(6), signal, atol=1e-4, rtol=0
    )
