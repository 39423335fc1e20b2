import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from asteroid import models
from asteroid.masknn.convolutional import Conv1DBlock
from asteroid.masknn.norms import FeatsGlobLN, GlobLN
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from local_models import fast_asteroid
from local_models.fast_asteroid import EPS, FastConv1DBlock, accelerate
from local_models.fast_block import BlockFunction, PReLUFunction

CONVTASNET = dict(n_filters=16, bn_chan=8, hid_chan=12, skip_chan=8, n_blocks=3, n_repeats=2)
MODELS = {
    "ConvTasNet": lambda: models.ConvTasNet(2, **CONVTASNET),
    "ConvTasNet without skips": lambda: models.ConvTasNet(2, **{**CONVTASNET, "skip_chan": 0}),
    "DPRNNTasNet": lambda: models.DPRNNTasNet(
        2, n_filters=16, bn_chan=8, hid_size=8, chunk_size=20, n_repeats=2
    ),
    "DPTNet": lambda: models.DPTNet(
        2, n_heads=2, ff_hid=8, n_filters=16, chunk_size=20, n_repeats=2
    ),
    "SuDORMRFNet": lambda: models.SuDORMRFNet(2, bn_chan=8, num_blocks=2, n_filters=34),
    "SuDORMRFImprovedNet": lambda: models.SuDORMRFImprovedNet(
        2, bn_chan=8, num_blocks=2, n_filters=16
    ),
}


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=MODELS)
def pair(request):
    """A plain model and its accelerated copy, with weights that leave no norm or slope at its neutral value."""
    torch.manual_seed(0)
    plain = randomise(MODELS[request.param]()).eval()
    return plain, accelerate(copy.deepcopy(plain))


def gradients(model, mixture, targets):
    estimates = model(mixture)
    ((estimates - targets) ** 2).mean().backward()
    return estimates, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_accelerated_models_compute_the_same_outputs_and_gradients(pair):
    mixture, targets = torch.randn(3, 1600), torch.randn(3, 2, 1600)
    expected, expected_grads = gradients(pair[0], mixture, targets)
    estimates, grads = gradients(pair[1], mixture, targets)
    torch.testing.assert_close(estimates, expected, atol=1e-5, rtol=0)
    for name, grad in grads.items():
        if expected_grads[name] is None:
            assert grad is None
        else:
            scale = expected_grads[name].abs().max()
            torch.testing.assert_close(grad, expected_grads[name], atol=1e-5 + 1e-4 * scale, rtol=0)


def test_plain_asteroid_loads_what_an_accelerated_model_saves(pair):
    plain, fast = pair
    assert any(type(module).__module__ == fast_asteroid.__name__ for module in fast.modules())
    assert list(fast.state_dict()) == list(plain.state_dict())
    saved = pickle.loads(pickle.dumps(fast.serialize()))
    loaded = type(plain).from_pretrained(saved).eval()
    assert not any(type(module).__module__ == fast_asteroid.__name__ for module in loaded.modules())
    mixture = torch.randn(1, 1600)
    torch.testing.assert_close(loaded(mixture), fast(mixture), atol=1e-5, rtol=0)


def test_accelerating_twice_copying_and_pickling_change_nothing():
    fast = accelerate(MODELS["ConvTasNet"]())
    mixture = torch.randn(1, 800)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), accelerate(fast)):
        torch.testing.assert_close(again(mixture), fast(mixture))


def test_causal_and_channelwise_blocks_are_left_alone():
    for options in (dict(norm_type="cLN"), dict(norm_type="cgLN", causal=True)):
        plain = models.ConvTasNet(2, **CONVTASNET, **options)
        fast = accelerate(copy.deepcopy(plain))
        assert not any(isinstance(module, FastConv1DBlock) for module in fast.modules())
        mixture = torch.randn(2, 800)
        torch.testing.assert_close(fast(mixture), plain(mixture))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 4, 2)])
def test_norms_follow_their_definition(shape):
    x = torch.randn(shape) * 3 + 2
    for plain, per_channel in ((GlobLN(shape[1]), False), (FeatsGlobLN(shape[1]), True)):
        expected = torch.empty(shape)
        for b in range(shape[0]):
            for c in range(shape[1]):
                seen = x[b, c] if per_channel else x[b]
                variance = ((seen - seen.mean()) ** 2).mean()
                expected[b, c] = (x[b, c] - seen.mean()) / (variance + 1e-8) ** 0.5 * (c + 1) + c
        with torch.no_grad():
            plain.gamma.copy_(torch.arange(shape[1]) + 1.0)
            plain.beta.copy_(torch.arange(shape[1]))
        torch.testing.assert_close(accelerate(plain)(x), expected, atol=1e-4, rtol=1e-4)


def block_inputs(frames, heads, taps=3):
    chan, hidden = 3, 4
    shapes = [
        (2, chan, frames),
        (hidden, chan, 1),
        hidden,
        1,
        hidden,
        hidden,
        (hidden, 1, taps),
        hidden,
        1,
        hidden,
    ]
    shapes += [hidden] + [(chan, hidden, 1), chan] * heads
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    "frames, dilation, heads, taps", [(6, 2, 2, 3), (6, 1, 1, 5), (3, 4, 2, 3), (1, 1, 1, 3)]
)
def test_block_gradients_are_exact(frames, dilation, heads, taps):
    torch.manual_seed(0)
    x, *params = block_inputs(frames, heads, taps)
    assert torch.autograd.gradcheck(
        lambda x, *params: BlockFunction.apply(x, dilation, 1, EPS, *params), (x, *params)
    )


def test_prelu_gradient_is_exact_and_that_of_zero_is_torchs():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PReLUFunction.apply, (x, slope))
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad(PReLUFunction.apply(zero, slope).sum(), zero)
    torch.testing.assert_close(ours, torch.autograd.grad(F.prelu(zero, slope).sum(), zero))


def test_block_without_a_residual_trains_the_skip_path():
    torch.manual_seed(0)
    plain = randomise(Conv1DBlock(4, 6, 5, 3, padding=2, dilation=2))
    fast = accelerate(copy.deepcopy(plain))
    fast.res_conv = None
    x = torch.randn(2, 4, 9)
    residual, skip = fast(x)
    assert residual is None
    torch.testing.assert_close(skip, plain(x)[1])
    skip.square().sum().backward()
    plain(x)[1].square().sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-3, rtol=1e-4)


def test_a_block_keeps_less_than_a_third_of_asteroids_activations():
    def kept(model):
        own = {parameter.data_ptr() for parameter in model.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage

        with saved_tensors_hooks(pack, lambda _: None):
            model(torch.randn(2, 8, 200))
        return sum(storage.nbytes() for storage in storages.values())

    plain = Conv1DBlock(8, 32, 8, 3, padding=1, dilation=1)
    assert kept(accelerate(copy.deepcopy(plain))) < kept(plain) / 3


def test_bfloat16_autocast_keeps_norms_and_parameter_gradients_in_float32():
    torch.manual_seed(0)
    plain = models.ConvTasNet(2, **CONVTASNET).masker
    fast = accelerate(copy.deepcopy(plain))
    latent = torch.rand(2, 16, 60)
    with torch.autocast("cpu", torch.bfloat16):
        masks = fast(latent)
    torch.testing.assert_close(masks.float(), plain(latent), atol=0.05, rtol=0.05)
    masks.float().square().sum().backward()
    assert {p.grad.dtype for p in fast.parameters() if p.requires_grad} == {torch.float32}
    low = (torch.randn(1, 16, 60) + 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        normed = fast.bottleneck[0](low)
    torch.testing.assert_close(normed, plain.bottleneck[0](low.float()), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_torch_compile_traces_a_block_whole_and_gives_the_same_gradients():
    torch.manual_seed(0)
    block = accelerate(Conv1DBlock(4, 6, 5, 3, padding=2, dilation=2))
    compiled = torch.compile(copy.deepcopy(block), backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 9)
    for module in (block, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            residual, skip = module(x)
        (residual.float().square().sum() + skip.float().sum()).backward()
    for parameter, other in zip(block.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(model, steps=3):
    ddp = nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    for _ in range(steps):
        loss = ddp(torch.randn(2, 800)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_convtasnet_trains_under_ddp_as_plain_asteroid_does_not(one_process_group):
    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        train(MODELS["ConvTasNet"]())
    train(accelerate(MODELS["ConvTasNet"]()))


def test_small_convolutions_are_not_taken_for_mask_filters():
    assert type(accelerate(nn.Conv2d(1, 4, (3, 1)))) is nn.Conv2d
    assert type(accelerate(nn.Conv2d(1, 4, (65, 1), stride=(2, 1)))) is nn.Conv2d
    for padding in (0, 16, 32, 40):
        plain = nn.Conv2d(1, 3, (33, 1), padding=(padding, 0))
        x = torch.randn(2, 1, 40, 5)
        torch.testing.assert_close(
            accelerate(copy.deepcopy(plain))(x), plain(x), atol=1e-5, rtol=1e-5
        )
