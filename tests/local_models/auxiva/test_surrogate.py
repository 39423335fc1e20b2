import numpy as np
import pytest
import torch

from local_models.auxiva.auxiva import AuxIVA, compiled_sums, projection_back
from local_models.auxiva.source_models import Laplace
from local_models.auxiva.surrogate import Surrogate, SurrogateIVA, coherence
from local_models.system import without_offset
from utils.evaluation.metrics.si_sdr import match, si_sdr

UPDATES = ("iss", "ip", "ip2", "iss2")
SMALL = {
    "n_fft": 32,
    "hop": 8,
    "n_bottleneck": 4,
    "n_sublayers": 1,
    "dropout": 0.0,
    "n_iter": 3,
    "train_iter": (3, 3),
}


def mixtures(n_src, bins=9, frames=30, dtype=torch.complex128):
    draw = torch.Generator().manual_seed(n_src)
    sources = torch.randn(2, n_src, bins, frames, dtype=dtype, generator=draw)
    sources = sources * torch.rand(2, n_src, 1, frames, generator=draw, dtype=sources.real.dtype)
    return torch.einsum(
        "fij,bjfn->bifn", torch.randn(bins, n_src, n_src, dtype=dtype, generator=draw), sources
    )


def network(dropout=0.0, **options):
    torch.manual_seed(0)
    return Surrogate(9, 4, 1, dropout, **options).double()


def gradients(value, module):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(module.parameters()))])


def plain(separation, mixture):
    """As `separation`, by ordinary back-propagation through all iterations."""
    level = mixture.abs().square().mean((1, 2, 3), keepdim=True).sqrt()
    observations = separation.observations(mixture / level)
    demixing = torch.eye(mixture.shape[1], observations.shape[2], dtype=mixture.dtype).expand(
        2, 9, -1, -1
    )
    for _ in range(separation.n_iter):
        demixing, _ = separation.iterate(demixing, observations)
    scaled = projection_back(demixing, separation.reference)
    return (scaled @ separation.observations(mixture)).transpose(1, 2)


@pytest.mark.fast_every(3)
@pytest.mark.parametrize("taps", [0, 2])
@pytest.mark.parametrize("n_src", [2, 3])
@pytest.mark.parametrize("update", UPDATES)
def test_gradients_are_those_of_plain_back_propagation(update, n_src, taps):
    net, mixture = network(), mixtures(n_src)
    separation = AuxIVA(net, update, 3, taps=taps)
    assert torch.allclose(separation(mixture), plain(separation, mixture), rtol=1e-6)
    ours, theirs = (
        gradients(f(mixture).abs().square().sum(), net)
        for f in (separation, lambda x: plain(separation, x))
    )
    assert (ours - theirs).norm() < 1e-6 * theirs.norm() and theirs.norm() > 0


@pytest.mark.parametrize("taken", ["compiled", "torch"])
@pytest.mark.parametrize("update", UPDATES)
def test_gradients_are_exact(monkeypatch, update, taken):
    if taken == "torch":
        monkeypatch.setattr(compiled_sums, "supports", lambda signals: False)
    net, mixture = network(prior="student"), mixtures(2)
    separation = AuxIVA(net, update, 2)
    last = net.layers[-1].bias

    def separated(bias):
        with torch.no_grad():
            last.copy_(bias)
        last.grad = None
        return separation(mixture)

    target = torch.randn(
        2, 2, 9, 30, dtype=torch.complex128, generator=torch.Generator().manual_seed(9)
    )
    start = last.detach().clone()
    value = (separated(start) * target).real.sum()
    (gradient,) = torch.autograd.grad(value, [last])
    for k in range(0, 9, 3):
        step = torch.zeros_like(start)
        step[k] = 1e-5
        with torch.no_grad():
            ends = [(separated(start + sign * step) * target).real.sum() for sign in (1, -1)]
        assert gradient[k].item() == pytest.approx(
            (ends[0] - ends[1]).item() / 2e-5, rel=1e-4, abs=1e-6
        )


def test_dropout_and_running_statistics_are_those_of_one_pass():
    mixture = mixtures(2)
    results = []
    for function in (
        lambda separation: separation(mixture),
        lambda separation: plain(separation, mixture),
    ):
        net = network(dropout=0.5)
        separation = AuxIVA(net, "iss", 3)
        torch.manual_seed(1)
        gradient = gradients(function(separation).abs().square().sum(), net)
        results.append((gradient, torch.rand(1), [buffer.clone() for buffer in net.buffers()]))
    (ours, next_ours, buffers), (theirs, next_theirs, expected) = results
    assert (ours - theirs).norm() < 1e-6 * theirs.norm() and next_ours == next_theirs
    assert all(torch.allclose(a, b) for a, b in zip(buffers, expected, strict=True))


def test_memory_kept_for_the_backward_pass_does_not_grow_with_the_iterations():
    net, mixture = network(), mixtures(2, frames=400)
    kept = {}
    for n_iter in (2, 20):
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            AuxIVA(net, "iss", n_iter)(mixture)
        kept[n_iter] = sum(sizes.values())
    matrices = 18 * mixture[0, 0, :, 0].numel() * 2 * 4 * 16
    assert kept[20] <= kept[2] + 2 * matrices


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("loss", ["si_sdr", "coherence"])
def test_gradients_are_finite_in_degenerate_cases(update, loss):
    torch.manual_seed(0)
    system = SurrogateIVA(2, 8000, update=update, loss=loss, prior="student", **SMALL)
    healthy = torch.randn(2, 2, 400)
    low = torch.nn.functional.avg_pool1d(healthy, 15, 1, 7)
    cases = [
        0 * healthy,
        healthy * torch.tensor([1.0, 0.0])[:, None],
        healthy[:, :1].repeat(1, 2, 1),
        low,
        1e5 * healthy,
    ]
    for mixture in cases:
        system.zero_grad()
        value = system.losses({"mixture": mixture, "sources": torch.randn(2, 2, 1, 400)})["loss"]
        value.backward()
        assert value.isfinite()
        assert all(p.grad.isfinite().all() for p in system.parameters())


@pytest.mark.parametrize("n_sublayers", [1, 3])
def test_the_network_is_the_published_one(torchiva, n_sublayers):
    theirs = torchiva.models.GLUMask(9, 4, dropout_p=0.5, n_sublayers=n_sublayers)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    ours = Surrogate(9, 4, n_sublayers)
    gated = [layer for layer in ours.layers if hasattr(layer, "convolution")]
    published = [
        (group, k)
        for group in theirs.layers
        if hasattr(group, "lin_layers")
        for k in range(len(group.lin_layers))
    ]
    for layer, (group, k) in zip(gated, published, strict=True):
        half = layer.convolution.out_channels // 2
        for kind, part in (("lin", slice(None, half)), ("gate", slice(half, None))):
            source, norm = (
                getattr(group, f"{kind}_layers")[k],
                getattr(group, f"{kind}_bn_layers")[k],
            )
            layer.convolution.weight.data[part], layer.convolution.bias.data[part] = (
                source.weight,
                source.bias,
            )
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(layer.normalisation, name).data[part] = getattr(norm, name)
    ours.layers[-1].weight.data = theirs.layers[-1].weight.data.transpose(0, 1).flip(-1).clone()
    ours.layers[-1].bias.data = theirs.layers[-1].bias.data
    mixture = mixtures(3, dtype=torch.complex64)
    power = mixture.abs().square()
    ours.eval(), theirs.eval()
    with torch.no_grad():
        expected = theirs(mixture)
        assert torch.allclose(ours(power)[0], expected, atol=1e-5)  # folded
    assert torch.allclose(ours(power)[0], expected, atol=1e-5)


def test_folded_layers_follow_their_weights():
    net = network().eval()
    power = mixtures(2).abs().square()
    with torch.no_grad():
        before = net(power)[0]
        net.layers[0].convolution.weight.mul_(1.5)
        after = net(power)[0]
    assert not torch.allclose(before, after) and torch.allclose(after, net(power)[0])
    with torch.inference_mode():
        assert torch.allclose(network().eval()(power)[0], before)


def test_an_untrained_student_prior_is_a_heavy_tailed_spherical_model():
    power = mixtures(2).abs().square()
    with torch.no_grad():
        weights = network(prior="student").eval()(power)[0]
    frames = power.mean(-2, keepdim=True)
    expected = 1 / (1 + 100 * frames / frames.mean(-1, keepdim=True))
    assert torch.allclose(weights, expected.expand_as(weights), rtol=0.01, atol=1e-4)


def test_coherence_is_blind_to_factors_of_frequencies_only():
    sources = mixtures(3)
    factors = torch.randn(2, 3, 9, 1, dtype=torch.complex128)
    assert torch.allclose(
        coherence(factors * sources, sources).diagonal(dim1=1, dim2=2), torch.ones(2, 3).double()
    )
    noise = torch.randn_like(sources)
    between = coherence(sources + noise * sources.abs().mean(), sources).diagonal(dim1=1, dim2=2)
    assert (between < 1).all() and (between > 0.05).all()
    sources[:, 0] = 0
    assert (coherence(sources, sources)[:, 0] == 0).all()


def test_noise_where_the_source_is_weak_hardly_counts_in_the_coherence():
    """As in recordings: the upper frequencies of the source are 50 dB down, the noise 30 dB."""
    draw = torch.Generator().manual_seed(0)
    source, noise = torch.randn(2, 1, 1, 100, 200, dtype=torch.complex128, generator=draw)
    source[:, :, 50:] *= 10 ** (-50 / 20)
    estimate = (source + 10 ** (-30 / 20) * noise).requires_grad_()
    value = coherence(estimate, source)
    assert value.item() > 0.99
    (gradient,) = torch.autograd.grad(value.sum(), estimate)
    assert gradient[:, :, 50:].norm() < gradient.norm() / 2


def test_a_system_trained_on_two_separates_any_number_and_any_length():
    system = SurrogateIVA(None, 8000, **SMALL).eval()
    for n_mics, frames in ((2, 1), (3, 7), (4, 1000)):
        mixture = torch.randn(1, n_mics, frames)
        with torch.no_grad():
            estimates = system.separate(mixture)
        assert estimates.shape == (1, n_mics, 1, frames)
        assert torch.allclose(estimates.sum(1), without_offset(mixture)[:, :1], atol=1e-4)
    with pytest.raises(ValueError, match="2 channels"):
        system.separate(torch.randn(1, 1, 100))
    assert system.n_mics is None and SurrogateIVA(2, 8000, **SMALL).n_mics == 2


def test_validation_scores_are_those_of_an_evaluation():
    """With the best order, and against what the reference microphone hears."""
    torch.manual_seed(0)
    system = SurrogateIVA(None, 8000, prior="student", reference=1, **SMALL).eval()
    sources = torch.randn(1, 2, 2000) * (torch.rand(1, 2, 2000) > 0.9)
    mixing = torch.tensor([[0.2, 1.0], [1.0, 0.3]])
    mixture = torch.einsum("ms,bst->bmt", mixing, sources) + 0.5
    images = mixing[1][:, None] * sources
    batch = {"mixture": mixture, "sources": images[:, :, None]}
    batch = system.on_after_batch_transfer(batch, 0)
    with torch.no_grad():
        values = system.losses(batch)
        estimates = system.separate(mixture)[0, :, 0].numpy()
    references = images[0].numpy()
    unprocessed = mixture[0, [1, 1]].numpy()
    expected = si_sdr(estimates[match(estimates, references)], references).mean()
    improvement = expected - si_sdr(unprocessed, references).mean()
    assert values["si_sdr"].item() == pytest.approx(expected, abs=1e-3)
    assert values["si_sdri"].item() == pytest.approx(improvement, abs=1e-3)


def test_each_batch_of_training_draws_its_number_of_iterations(monkeypatch):
    system = SurrogateIVA(None, 8000, prior="student", **SMALL | {"train_iter": (2, 4)})
    batch = {"mixture": torch.randn(1, 2, 400), "sources": torch.randn(1, 2, 1, 400)}
    numbers = []
    separate = system.separation.forward

    def forward(spectrum, n_iter):
        numbers.append(n_iter)
        return separate(spectrum, 1)

    monkeypatch.setattr(system.separation, "forward", forward)
    for _ in range(40):
        system.losses(batch)
    assert set(numbers) == {2, 3, 4}
    system.eval().losses(batch)
    assert numbers[-1] is None  # those of `separate`


@pytest.mark.slow
def test_training_makes_separation_better():
    """Sources that differ in spectrum and time, mixed at random: a few steps of the network lower the loss."""
    torch.manual_seed(0)
    system = SurrogateIVA(2, 8000, update="iss", prior="student", **SMALL | {"train_iter": (2, 4)})
    time = torch.arange(2000) / 8000
    sources = torch.stack(
        [
            torch.sin(2 * torch.pi * f * time) * (torch.sin(2 * torch.pi * g * time) > 0)
            for f, g in ((400, 5), (1500, 8))
        ]
    )
    sources = sources + 0.01 * torch.randn(4, 2, 2000)
    mixture = torch.einsum("ms,bst->bmt", torch.tensor([[1.0, 0.6], [0.5, 1.0]]), sources)
    batch = {"mixture": mixture, "sources": sources[:, :, None]}
    optimizer = torch.optim.Adam(system.parameters(), 0.01)
    first = system.eval().losses(batch)["loss"].item()
    for _ in range(15):
        optimizer.zero_grad()
        system.train().losses(batch)["loss"].backward()
        optimizer.step()
    assert system.eval().losses(batch)["loss"].item() < first - 1


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="2 microphones and 3 sources: there must be as many"):
        SurrogateIVA(None, 8000, **SMALL).losses(
            {"mixture": torch.randn(1, 2, 400), "sources": torch.randn(1, 3, 1, 400)}
        )
    with pytest.raises(ValueError, match="train_iter"):
        SurrogateIVA(train_iter=(5, 2))
    with pytest.raises(ValueError, match="hop"):
        SurrogateIVA(n_fft=64, hop=64)
    assert np.isclose(Laplace()(torch.ones(1, 1, 4, 1))[0].item(), 0.25)
