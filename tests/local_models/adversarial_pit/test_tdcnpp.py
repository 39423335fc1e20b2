"""TDCN++, band-split network and STFT masking against layer-by-layer references."""

import copy

import numpy as np
import pytest
import torch

from local_models.adversarial_pit.band_split import BandSplit, band_widths
from local_models.adversarial_pit.stft_masking import StftMasking
from local_models.adversarial_pit.tdcnpp import TDCNpp
from tests.bench.bench_tdcnpp import PlainTDCNpp

SMALL = {"bn_chan": 8, "hid_chan": 12, "n_blocks": 3, "n_repeats": 3}
NETWORKS = {
    "tdcnpp": lambda n_freq, n_src: TDCNpp(n_freq, n_src, **SMALL),
    "band_split": lambda n_freq, n_src: BandSplit(n_freq, n_src, 8, 6, 1),
}


def perturbed(module):
    """Parameters away from the values at which mistakes cancel: scales of one, offsets of zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = StftMasking(TDCNpp)
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_179_401
    assert sum(parameter.numel() for parameter in model.network.blocks[0].parameters()) == 264_200
    assert model.network.receptive_field == 2041
    scales = [
        block.dense2.scale for block in StftMasking(lambda f, n: TDCNpp(f, n, 2, 2)).network.blocks
    ]
    assert [scale.item() for scale in scales] == pytest.approx([0.9**k for k in range(32)])
    assert [block.dilation for block in model.network.blocks] == [1, 2, 4, 8, 16, 32, 64, 128] * 4
    assert set(model.network.long_skips) == {"0_8", "0_16", "0_24", "8_16", "8_24", "16_24"}


@pytest.mark.parametrize("frames", [1, 2, 40])
def test_outputs_and_gradients_are_those_of_the_straightforward_port(frames):
    torch.manual_seed(0)
    fast = perturbed(TDCNpp(9, 2, **SMALL)).double()
    plain = PlainTDCNpp(9, 2, **SMALL).double()
    plain.load_state_dict(copy.deepcopy(fast.state_dict()))
    spectrum = torch.randn(2, 9, frames, dtype=torch.complex128)
    results = []
    for network in (fast, plain):
        masks, summary = network(spectrum)
        (masks.square().sum() + summary.square().sum()).backward()
        results.append((masks, summary, [p.grad for p in network.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-9, rtol=1e-7)
    for (name, _), mine, reference in zip(
        fast.named_parameters(), results[0][2], results[1][2], strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-7, rtol=1e-6, msg=name)


def test_a_block_gradient_is_exact():
    torch.manual_seed(0)
    block = perturbed(TDCNpp(5, 2, 3, 4, 1, 1).blocks[0]).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *block.parameters()))


def test_mixed_precision_keeps_masks_and_signals_in_float32():
    torch.manual_seed(0)
    mixture = torch.randn(1, 4000)
    for network in NETWORKS.values():
        model = StftMasking(network)
        plain, _ = model(mixture)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, masks = model(mixture)
        assert mixed.dtype == torch.float32 and masks.dtype in (torch.float32, torch.complex64)
        torch.testing.assert_close(mixed, plain, atol=0.05, rtol=0.05)
        torch.testing.assert_close(mixed.sum(1), mixture, atol=1e-5, rtol=0)


def naive_stft(signal, size=512, hop=128):
    """Frames that start at the samples 0, hop, ...; the end is padded with zeros."""
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size))
    frames = -(-len(signal) // hop)
    padded = np.pad(signal, (0, size))
    return np.stack(
        [np.fft.rfft(window * np.pad(padded[k * hop :], (0, size))[:size]) for k in range(frames)],
        1,
    )


@pytest.mark.parametrize("length", [1, 100, 512, 5000])
def test_the_published_transform_starts_frames_at_the_first_sample(length):
    signal = np.random.default_rng(0).normal(size=length)
    model = StftMasking(NETWORKS["tdcnpp"]).double()
    spectrum = model.stft(torch.from_numpy(signal)[None])[0]
    np.testing.assert_allclose(spectrum.numpy(), naive_stft(signal), atol=1e-4)


def test_the_published_edges_fade_in_and_padded_ones_do_not():
    ones = torch.ones(1, 3000, dtype=torch.float64)
    gains = {}
    for edges in ("published", "padded"):
        model = StftMasking(NETWORKS["tdcnpp"], edges=edges).double()
        gains[edges] = model.istft(model.stft(ones)[:, None], 3000)[0, 0]
    expected = {0: 0.0, 64: 0.0732, 128: 0.25, 256: 0.75, 383: 1.0, 2999: 1.0}
    assert {k: round(gains["published"][k].item(), 4) for k in expected} == pytest.approx(
        expected, abs=1e-3
    )
    torch.testing.assert_close(gains["padded"], ones[0])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("length", [1, 3001])
def test_estimates_sum_to_the_mixture(network, length):
    torch.manual_seed(0)
    model = StftMasking(NETWORKS[network])
    for scale in (1.0, 32768.0, 1e-4):
        mixture = scale * torch.randn(2, length)
        estimates, masks = model(mixture)
        assert estimates.shape == (2, 4, length) and masks.shape[:3] == (2, 4, 257)
        torch.testing.assert_close(estimates.sum(1), mixture, atol=1e-5 * scale, rtol=1e-5)


def test_consistency_shares_the_error_as_the_network_predicts():
    torch.manual_seed(0)
    mixture = torch.randn(2, 2000)
    model = StftMasking(NETWORKS["tdcnpp"])
    spectrum = model.stft(mixture)
    masks, summary = model.network(spectrum)
    masked = model.istft(masks * spectrum[:, None], 2000)
    error = mixture - masked.sum(1)
    shares = model.weights(summary).softmax(-1)
    assert (shares - 0.25).abs().max() > 0.01
    expected = masked + shares[..., None] * error[:, None]
    torch.testing.assert_close(model(mixture)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_silence_stays_silence_with_finite_gradients(network):
    torch.manual_seed(0)
    model = StftMasking(NETWORKS[network])
    estimates, _ = model(torch.zeros(1, 2000))
    assert estimates.abs().max() == 0
    estimates.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_examples_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(0)
    for network in NETWORKS.values():
        model, mixture = StftMasking(network).eval(), torch.randn(3, 2500)
        together = model(mixture)[0]
        for k in range(3):
            torch.testing.assert_close(
                model(mixture[k : k + 1])[0][0], together[k], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("n_freq", [1, 5, 129, 257, 513])
def test_bands_cover_the_spectrum_once(n_freq):
    widths = band_widths(n_freq)
    assert sum(widths) == n_freq and min(widths) > 0


def test_band_split_masks_belong_to_their_band():
    torch.manual_seed(0)
    model = BandSplit(257, 2, 8, 6, 1)
    with torch.no_grad():
        model.heads[3][3].weight.zero_(), model.heads[3][3].bias.zero_()
        masks, _ = model(torch.randn(1, 257, 5, dtype=torch.complex64))
    dead = (masks.abs().amax((0, 1, 3)) == 0).nonzero()[:, 0].tolist()
    first = sum(model.widths[:3])
    assert dead == list(range(first, first + model.widths[3]))


@pytest.mark.parametrize("options", [{"bn_chan": 0}, {"kernel_size": 2}, {"n_repeats": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError):
        TDCNpp(257, 4, **options)
    with pytest.raises(ValueError):
        BandSplit(257, 0)
    with pytest.raises(ValueError):
        StftMasking(NETWORKS["tdcnpp"], hop=100)
