import numpy as np
import pyroomacoustics as pra
import pytest
import ssspy.bss.iva as ssspy_iva
import torch
from ssspy.bss._update_spatial_model import update_by_ip2
from ssspy.bss.ilrma import GaussILRMA

from local_models.auxiva import auxiva
from local_models.auxiva.audible import Small
from local_models.auxiva.auxiva import AuxIVA, compiled_sums, covariances, projection_back
from local_models.auxiva.demixing_updates import pairs
from local_models.auxiva.source_models import NMF, Gauss, Laplace

UPDATES = ("iss", "ip", "ip2", "iss2")
MODELS = {"laplace": Laplace(), "gauss": Gauss()}
SSSPY = {"iss": "ISS1", "ip": "IP1", "ip2": "IP2", "iss2": "ISS2"}
ITERATIONS = (1, 2, 5, 12)


def spectrogram(n_src, bins=17, frames=50, seed=0):
    """Sources with common envelopes over frequency, mixed at random, and noise: complex128 (mic, frequency, frame)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, n_src, bins, frames))
    sources = (noise[0] + 1j * noise[1]) * (rng.gamma(0.5, 1, (n_src, 1, frames)) + 0.1)
    mixing = rng.normal(size=(bins, n_src, n_src)) + 1j * rng.normal(size=(bins, n_src, n_src))
    noise = rng.normal(size=(2, n_src, bins, frames))
    return np.einsum("fij,jfn->ifn", mixing, sources) + 0.3 * (noise[0] + 1j * noise[1])


def separate(mixture, model, update, n_iter, dtype=torch.complex128, taken="compiled", **options):
    separation = AuxIVA(model, update, n_iter, **options)
    mixture = torch.from_numpy(mixture)[None].to(dtype)
    if taken == "compiled":
        return separation(mixture)[0].numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_sums, "supports", lambda signals: False)
        return separation(mixture)[0].numpy()


def error(estimate, reference):
    return np.linalg.norm(estimate - reference) / np.linalg.norm(reference)


def projected(demixing, mixture):
    """Estimates of matrices (frequency, source, mic), with the scale of the first microphone."""
    scale = np.linalg.inv(demixing)[:, 0, :, None]
    return (scale * (demixing @ mixture.transpose(1, 0, 2))).transpose(1, 0, 2)


@pytest.fixture(scope="module")
def ssspy_results():
    results = {}
    for n_src, name, update in [(n, m, u) for n in (2, 3, 4) for m in MODELS for u in UPDATES]:
        if update == "ip2" and n_src > 2:
            continue  # it computes the weights anew for each pair, see the test below
        kind = {"laplace": ssspy_iva.AuxLaplaceIVA, "gauss": ssspy_iva.AuxGaussIVA}[name]
        options = {"pair_selector": pairs} if update in ("ip2", "iss2") else {}
        for n_iter in ITERATIONS:
            method = kind(spatial_algorithm=SSSPY[update], record_loss=False, **options)
            results[n_src, name, update, n_iter] = method(spectrogram(n_src), n_iter=n_iter)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("taken", ["compiled", "torch"])
def test_every_update_equals_ssspy_after_each_iteration(ssspy_results, taken):
    for (n_src, name, update, n_iter), reference in ssspy_results.items():
        estimates = separate(spectrogram(n_src), MODELS[name], update, n_iter, taken=taken)
        assert error(estimates, reference) < 1e-6, (n_src, name, update, n_iter)


@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.parametrize("model", [Laplace(), NMF()], ids=["laplace", "nmf"])
def test_one_run_gives_the_estimates_after_several_numbers_of_iterations(taken, model, monkeypatch):
    mixture, separation = torch.from_numpy(spectrogram(3))[None], AuxIVA(model, "ip2")
    if taken == "torch":
        monkeypatch.setattr(compiled_sums, "supports", lambda signals: False)
    found = separation.after(mixture, (5, 0, 2))
    assert sorted(found) == [0, 2, 5]
    for n_iter, estimates in found.items():
        assert error(estimates.numpy(), separation(mixture, n_iter).numpy()) < 1e-12


@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.fast_every(2)
def test_single_precision_stays_within_a_ten_thousandth(ssspy_results, taken):
    for (n_src, name, update, n_iter), reference in ssspy_results.items():
        if name == "gauss" and n_src > 2 and n_iter > 5:
            continue  # weights of nearly silent frames, in these few frames, make it chaotic
        estimates = separate(
            spectrogram(n_src), MODELS[name], update, n_iter, torch.complex64, taken
        )
        assert error(estimates, reference) < 3e-4, (n_src, name, update, n_iter)


@pytest.mark.parametrize("update", UPDATES)
def test_the_noise_of_the_kernel_is_that_of_torch(update, monkeypatch):
    """So little is added that no score tells; here it is a tenth of the channels' power."""
    much = Small(noise=0.1, rounding=1e-14)
    monkeypatch.setattr(auxiva, "small_powers", lambda mixture: much)
    mixture = spectrogram(3)
    compiled, by_torch = (
        separate(mixture, MODELS["laplace"], update, 3, taken=taken)
        for taken in ("compiled", "torch")
    )
    assert error(compiled, by_torch) < 1e-8


@pytest.mark.parametrize("n_src", [3, 4])
def test_ip2_of_more_than_two_sources_equals_the_update_of_ssspy_with_weights_once_an_iteration(
    n_src,
):
    mixture = spectrogram(n_src)
    normal = (mixture / np.sqrt((np.abs(mixture) ** 2).mean())).transpose(1, 0, 2)
    demixing = np.tile(np.eye(n_src, dtype=complex), (len(normal), 1, 1))
    for n_iter in range(1, 6):
        power = np.abs(demixing @ normal).transpose(1, 0, 2) ** 2
        weights = MODELS["laplace"](torch.from_numpy(power)[None])[0][0, :, 0].numpy()
        weighted = np.einsum("kn,fin,fjn->fkij", weights, normal, normal.conj()) / normal.shape[-1]
        demixing = update_by_ip2(demixing, weighted, pair_selector=pairs)
        for taken in ("compiled", "torch"):
            estimates = separate(mixture, MODELS["laplace"], "ip2", n_iter, taken=taken)
            assert error(estimates, projected(demixing, mixture)) < 1e-6


@pytest.mark.parametrize("n_src", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_ip_equals_pyroomacoustics_after_each_iteration(n_src, name):
    mixture = spectrogram(n_src)
    for n_iter in ITERATIONS:
        options = {"n_iter": n_iter, "proj_back": False, "model": name, "return_filters": True}
        _, demixing = pra.bss.auxiva(mixture.transpose(2, 1, 0).copy(), **options)
        estimates = separate(mixture, MODELS[name], "ip", n_iter)
        assert error(estimates, projected(demixing, mixture)) < 1e-8


@pytest.mark.parametrize("n_src", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_iss_equals_torchiva_after_each_iteration(torchiva, n_src, name):
    mixture = spectrogram(n_src)
    model = {"laplace": torchiva.models.LaplaceModel, "gauss": torchiva.models.GaussModel}[name](
        eps=1e-12
    )
    for n_iter in ITERATIONS:
        theirs = torchiva.T_ISS(n_iter=n_iter, model=model, proj_back_mic=None, eps=1e-12)
        with torch.no_grad():
            theirs(torch.from_numpy(mixture)[None])
        demixing = theirs.W[0].transpose(0, 1).numpy()  # its projection back is not exact
        assert (
            error(separate(mixture, MODELS[name], "iss", n_iter), projected(demixing, mixture))
            < 1e-9
        )


@pytest.mark.slow
@pytest.mark.parametrize("n_src, taps, delay", [(2, 1, 1), (2, 5, 2), (3, 2, 3)])
def test_dereverberation_taps_equal_torchiva(torchiva, n_src, taps, delay):
    mixture = spectrogram(n_src)
    model = torchiva.models.LaplaceModel(eps=1e-12)
    for n_iter in (1, 3, 8):
        options = {"n_taps": taps, "n_delay": delay - 1, "proj_back_mic": None, "eps": 1e-12}
        theirs = torchiva.T_ISS(n_iter=n_iter, model=model, **options)
        with torch.no_grad():
            unscaled = theirs(torch.from_numpy(mixture)[None])[0].numpy()
        scale = np.linalg.inv(theirs.W[0].transpose(0, 1).numpy())[:, 0].T[..., None]
        estimates = separate(mixture, MODELS["laplace"], "iss", n_iter, taps=taps, delay=delay)
        assert error(estimates, scale * unscaled) < 1e-8
        single = separate(
            mixture, MODELS["laplace"], "iss", n_iter, torch.complex64, taps=taps, delay=delay
        )
        assert error(single, scale * unscaled) < 1e-3


@pytest.mark.parametrize("update", UPDATES)
def test_nmf_is_the_ilrma_of_ssspy(update):
    mixture = spectrogram(2)
    _, bins, frames = mixture.shape
    rng = np.random.default_rng(5)
    bases, activations = rng.uniform(0.1, 1, (2, bins, 3)), rng.uniform(0.1, 1, (2, 3, frames))
    level = (np.abs(mixture) ** 2).mean()
    start = [
        torch.from_numpy(factor)[None]
        for factor in (bases / level, activations.transpose(0, 2, 1).copy())
    ]
    options = {"pair_selector": pairs} if update in ("ip2", "iss2") else {}
    for n_iter in (1, 2, 5, 12):
        theirs = GaussILRMA(3, spatial_algorithm=SSSPY[update], record_loss=False, **options)
        reference = theirs(mixture, n_iter=n_iter, basis=bases, activation=activations)
        separation = AuxIVA(NMF(3), update)
        demixing = separation.demix(
            torch.from_numpy(mixture / np.sqrt(level))[None], n_iter, tuple(start)
        )
        assert error(projected(demixing[0].numpy(), mixture), reference) < 1e-6


def test_nmf_separates_and_does_not_depend_on_the_rest_of_the_batch():
    batch = torch.from_numpy(np.stack([spectrogram(2, seed=seed) for seed in (0, 1)]))
    separation = AuxIVA(NMF(2), "iss", 10)
    assert torch.allclose(separation(batch)[1], separation(batch[1:])[0])


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("n_src", [2, 3])
def test_the_surrogate_cost_never_grows(update, n_src):
    """Each rule minimises sum_k a_k U_k a_k^H - 2 log|det A| by coordinates, given the weights."""
    from local_models.auxiva.demixing_updates import UPDATES as RULES

    weights = torch.from_numpy(np.random.default_rng(1).gamma(1, 1, (1, 17, n_src, 50)))
    weighted = covariances(
        torch.from_numpy(spectrogram(n_src))[None].transpose(1, 2).contiguous(), weights
    )
    before = None
    for _ in range(4):
        demixing = RULES[update](weighted, 1e-14)
        cost = torch.einsum("bfki,bfkij,bfkj->bf", demixing, weighted, demixing.conj()).real
        cost = cost - 2 * torch.linalg.slogdet(demixing)[1]
        start = torch.einsum("bfkkk->bf", weighted).real
        assert (cost <= (start if before is None else before) + 1e-9).all()
        before = cost
        weighted = torch.einsum("bfim,bfkmn,bfjn->bfkij", demixing, weighted, demixing.conj())
        before = torch.einsum(
            "bfkkk->bf", weighted
        ).real  # the same cost but for the determinant, seen from the new basis


@pytest.mark.parametrize("update", UPDATES)
def test_level_of_the_input_does_not_matter(update):
    mixture = spectrogram(2)
    reference = separate(mixture, MODELS["gauss"], update, 5, torch.complex64)
    for gain in (1e-6, 1e-3, 32768.0, 1e6):
        assert (
            error(
                separate(gain * mixture, MODELS["gauss"], update, 5, torch.complex64) / gain,
                reference,
            )
            < 1e-4
        )


@pytest.mark.parametrize("update", UPDATES)
def test_swapped_and_inverted_channels_give_the_same_sources(update):
    mixture = spectrogram(3)
    reference = separate(mixture, MODELS["laplace"], update, 30)
    inverted = separate(
        mixture * np.array([1, -1, 1])[:, None, None], MODELS["laplace"], update, 30
    )
    swapped = separate(mixture[[1, 0, 2]], MODELS["laplace"], update, 30, reference=1)
    for estimates in (inverted, swapped):
        # The order of sources may differ: compare by the best match.
        match = np.abs(np.einsum("kfn,jfn->kj", estimates, reference.conj())).argmax(1)
        assert sorted(match) == [0, 1, 2] and error(estimates, reference[match]) < 0.05


@pytest.mark.fast_every(3)
@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("update", UPDATES)
def test_degenerate_mixtures_stay_finite(update, dtype, taken):
    healthy = spectrogram(3)
    silent_bins, dead = healthy.copy(), healthy.copy()
    silent_bins[:, :4], dead[1] = 0, 0
    cases = {
        "silence": 0 * healthy,
        "silent bins": silent_bins,
        "dead microphone": dead,
        "identical channels": np.repeat(healthy[:1], 3, 0),
        "two identical channels": healthy[[0, 1, 1]],
        "one frame": healthy[..., :1],
        "silent frames": healthy * (np.arange(healthy.shape[-1]) > 20),
    }
    for model in (*MODELS.values(), NMF(2)):
        for name, mixture in cases.items():
            estimates = separate(mixture, model, update, 6, dtype, taken)
            assert np.isfinite(estimates).all(), (name, model)
            assert np.abs(estimates).max() < 1e4 * max(np.abs(mixture).max(), 1e-9), (name, model)
    assert not separate(cases["silence"], Laplace(), update, 6, dtype, taken).any()
    assert not separate(silent_bins, Laplace(), update, 6, dtype, taken)[:, :4].any()


def test_estimates_add_up_to_the_reference_microphone():
    mixture = spectrogram(3)
    for reference in range(3):
        estimates = separate(mixture, MODELS["laplace"], "iss", 7, reference=reference)
        assert error(estimates.sum(0), mixture[reference]) < 1e-10


def test_projection_back_is_exact_for_nearly_coherent_microphones():
    rng = np.random.default_rng(0)
    mixing = np.ones((5, 2, 2)) + 1e-3 * rng.normal(size=(5, 2, 2)) + 0j
    demixing = np.array([[[1e-6], [1e5]]]) * np.linalg.inv(mixing)  # any scale of the rows
    scaled = projection_back(
        torch.from_numpy(demixing).to(torch.complex64).to(torch.complex128), 1
    ).numpy()
    images = np.einsum("fki,fij->fkj", scaled, mixing)
    assert np.abs(images - np.einsum("fk,kj->fkj", mixing[:, 1], np.eye(2))).max() < 1e-2
    assert np.abs(np.einsum("fki,fij->fkj", projection_back(torch.from_numpy(demixing), 1).numpy(), mixing)[:, 0, 0]
                  - mixing[:, 1, 0]).max() < 1e-9  # fmt: skip


def test_projection_back_has_exact_gradients():
    demixing = torch.randn(
        2, 3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)
    )
    assert torch.autograd.gradcheck(lambda w: projection_back(w, 1), demixing.requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.parametrize("size, n_src, bins", [(2, 2, 3), (4, 3, 3), (3, 3, 1)])
def test_covariances_and_their_gradients(monkeypatch, taken, size, n_src, bins):
    if taken == "torch":
        monkeypatch.setattr(compiled_sums, "supports", lambda signals: False)
    draw = torch.Generator().manual_seed(0)
    signals = torch.randn(2, 3, size, 7, dtype=torch.complex128, generator=draw).requires_grad_()
    weights = torch.rand(2, bins, n_src, 7, dtype=torch.float64, generator=draw).requires_grad_()
    expected = (
        torch.einsum(
            "bfkn,bfin,bfjn->bfkij", weights.expand(2, 3, -1, -1) + 0j, signals, signals.conj()
        )
        / 7
    )
    assert torch.allclose(covariances(signals, weights), expected)
    assert torch.autograd.gradcheck(covariances, (signals, weights))


def test_arguments_that_make_no_sense_are_told():
    with pytest.raises(
        ValueError, match="there is no update rule 'ipa'; choose one of iss, ip, ip2, iss2"
    ):
        AuxIVA(Laplace(), "ipa")
    with pytest.raises(ValueError, match="delay 0"):
        AuxIVA(Laplace(), taps=2, delay=0)
    with pytest.raises(ValueError, match="microphone 5 is not among 2 channels"):
        AuxIVA(Laplace(), reference=5)(torch.from_numpy(spectrogram(2))[None])
