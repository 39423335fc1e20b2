import jsonargparse
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from local_models import fast_block
from local_models.two_step.tdcn import RTDCN, TDCN, BasisHead, long_skip_table

SMALL = dict(bn_chan=6, hid_chan=8, n_blocks=4, n_repeats=3)


def n_parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def perturb(net):
    """Move biases, norms and running statistics away from their neutral first values."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return net


def test_papers_receptive_field_is_2041_frames(monkeypatch):
    """An impulse spreads over as many output frames as the formula says, once no norm looks at the whole signal."""

    def affine(x, gamma, beta, groups, eps):
        return x * gamma[:, None] + beta[:, None], None, None

    monkeypatch.setattr(fast_block, "_norm", affine)
    net = TDCN(3, 2, bn_chan=2, hid_chan=2, mask_act="relu").double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.zero_() if name.endswith(("bias", "beta")) else parameter.abs_().clamp_(
                min=0.1
            )
        latent = torch.zeros(1, 3, 2300, dtype=torch.float64)
        latent[..., 1100] = 1
        touched = net(latent).sum((0, 1, 2)).nonzero().flatten()
    assert net.receptive_field == 2041
    assert touched.min() == 1100 - 1020 and touched.max() == 1100 + 1020 and len(touched) == 2041


def test_parameter_counts_are_those_of_the_authors_networks():
    with torch.device("meta"):
        sizes = {(cls, n): n_parameters(cls(n, 2)) for cls in (TDCN, RTDCN) for n in (128, 256)}
    front_end = {128: 8_194, 256: 16_386}  # encoder and private decoders with 21 taps and biases
    assert round(sizes[TDCN, 256] / 1e6, 3) == 8.612
    totals = {key: round((size + front_end[key[1]]) / 1e6, 3) for key, size in sizes.items()}
    assert totals == {
        (TDCN, 128): 8.619,
        (TDCN, 256): 8.628,
        (RTDCN, 128): 9.410,
        (RTDCN, 256): 9.419,
    }


@pytest.mark.parametrize("cls", [TDCN, RTDCN])
@pytest.mark.parametrize("in_chan", [6, 7])
@pytest.mark.parametrize("n_src", [2, 3])
@pytest.mark.parametrize("n_blocks, n_repeats", [(1, 1), (1, 3), (3, 1), (2, 2), (4, 3)])
def test_masks_sum_to_one_for_any_size(cls, in_chan, n_src, n_blocks, n_repeats):
    net = perturb(
        cls(in_chan, n_src, bn_chan=6, hid_chan=5, n_blocks=n_blocks, n_repeats=n_repeats)
    )
    masks = net(torch.rand(2, in_chan, 11))
    assert masks.shape == (2, n_src, in_chan, 11)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, in_chan, 11))
    assert masks.std() > 1e-3
    masks.square().sum().backward()
    assert all(
        parameter.grad is not None for parameter in net.parameters()
    )  # DDP waits for every one


@pytest.mark.parametrize("cls", [TDCN, RTDCN])
@pytest.mark.parametrize("options", [{}, {"skip_chan": 4}, {"skip_chan": 4, "mask_act": "sigmoid"}])
def test_evaluation_treats_each_example_alone_and_takes_one_frame(cls, options):
    net = perturb(cls(6, 2, **SMALL, **options)).eval()
    latent = torch.rand(3, 6, 20)
    with torch.no_grad():
        torch.testing.assert_close(net(latent)[1:2], net(latent[1:2]))
        assert net(latent[:1, :, :1]).isfinite().all()


@pytest.mark.parametrize("n_bases", [1, 2, 8, 9])
def test_basis_head_is_the_papers_convolution_along_the_bases(n_bases):
    head = perturb(BasisHead(n_bases, n_bases, 3)).eval()
    x = torch.randn(2, n_bases, 5)
    before = n_bases - n_bases // 2  # the paper's padding; an odd count would give a row too many
    padded = F.pad(F.relu(head.norm(x))[:, None], (0, 0, before, n_bases // 2))
    expected = F.conv2d(padded, head.conv.weight, head.conv.bias)
    torch.testing.assert_close(head(x).unflatten(1, (3, n_bases)), expected)


def test_long_skips_are_the_authors_for_8_blocks_and_4_repeats():
    papers = {8: [-1], 16: [-1, 8], 24: [-1, 8, 16], 11: [3], 19: [3, 11], 27: [3, 11, 19]}
    assert long_skip_table(8, 4) == papers
    assert long_skip_table(4, 3) == {4: [-1], 5: [1], 8: [-1, 4], 9: [1, 5]}
    assert long_skip_table(2, 3) == {2: [-1], 4: [-1, 2]}
    assert long_skip_table(5, 1) == {}


def test_rtdcn_adds_what_its_table_says():
    torch.manual_seed(0)
    net = perturb(RTDCN(6, 2, **SMALL)).eval()
    latent = torch.rand(2, 6, 15)
    outputs = {-1: net.bottleneck(latent)}
    x = outputs[-1]
    for index, block in enumerate(net.TCN):
        row = long_skip_table(4, 3).get(index)
        if row:
            stack = []
            for source in row:
                tensor, norm = outputs[source], net.skip_norms[str(source)]
                z = (tensor - tensor.mean(2, keepdim=True)) / tensor.std(
                    2, keepdim=True, unbiased=False
                )
                stack.append(z * norm.gamma[:, None] + norm.beta[:, None])
            x = x + net.skip_convs[str(index)](torch.cat(stack, 1))
        x = outputs[index] = x + block(x)
    expected = net.mask_net(x).unflatten(1, (2, 6)).softmax(1)
    torch.testing.assert_close(net(latent), expected)


def test_dilation_doubles_inside_a_repeat_and_starts_anew():
    net = TDCN(4, 2, bn_chan=4, hid_chan=4, n_blocks=3, n_repeats=2)
    depthwise = [m for m in net.TCN.modules() if isinstance(m, nn.Conv1d) and m.groups > 1]
    assert [conv.dilation[0] for conv in depthwise] == [1, 2, 4, 1, 2, 4]


@pytest.mark.parametrize(
    "wrong", [{"kernel_size": 4}, {"n_src": 1}, {"n_repeats": 0}, {"skip_chan": -1}]
)
def test_impossible_sizes_name_the_option(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TDCN(**{"in_chan": 4, "n_src": 2, **wrong})


@pytest.mark.parametrize("wrong", ["--net.n_blocks=four", "--net.mask_act=tanh", "--net.blocks=4"])
def test_configuration_refuses_a_wrong_type_or_key(wrong):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net")
    sizes = ["--net=local_models.two_step.tdcn.RTDCN", "--net.in_chan=4", "--net.n_src=2"]
    assert parser.parse_args([*sizes, "--net.n_blocks=4"]).net.init_args.n_blocks == 4
    with pytest.raises(Exception, match=wrong.split("=")[0].split(".")[1]):
        parser.parse_args([*sizes, wrong])
