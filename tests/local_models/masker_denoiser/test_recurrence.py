import pytest
import torch
from torch import nn

from local_models.masker_denoiser import recurrence
from local_models.masker_denoiser.recurrence import GRU


def states(cell, inputs, residual=None):
    """The recurrence step by step, in the layout of `GRU`."""
    state, found = inputs.new_zeros(inputs.shape[1], cell.hidden_size), []
    for t, x in enumerate(inputs):
        state = cell(x, state) if residual is None else cell(x, state) + residual[t]
        found.append(state)
    return torch.stack(found)


def types_of_products(call):
    """Types of the states that recurrent products get under bfloat16."""
    seen = []

    class Recorder(recurrence._Product):
        def __call__(self, x):
            seen.append(x.dtype)
            return super().__call__(x)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(recurrence, "_Product", Recorder)
        call()
    return seen


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def pair(request):
    torch.manual_seed(0)
    cell, layer = nn.GRUCell(5, 7).to(request.param), GRU(5, 7).to(request.param)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    return cell, layer, torch.randn(6, 3, 5, dtype=request.param, requires_grad=True)


@pytest.mark.parametrize("with_residual", [False, True])
def test_states_and_all_gradients_are_those_of_the_cell(pair, with_residual):
    cell, layer, inputs = pair
    residual = (
        torch.randn(6, 3, 7, dtype=inputs.dtype, requires_grad=True) if with_residual else None
    )
    weights = torch.randn(6, 3, 7, dtype=inputs.dtype)
    gradients, found = [], []
    for module, call in (
        (cell, lambda: states(cell, inputs, residual)),
        (layer, lambda: layer(inputs, residual)),
    ):
        found.append(call())
        wanted = [inputs, *module.parameters(), *([residual] if with_residual else [])]
        gradients.append(torch.autograd.grad((found[-1] * weights).square().sum(), wanted))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_without_residual_it_is_pytorchs_layer(pair):
    _, layer, inputs = pair
    torch.testing.assert_close(
        layer(inputs), nn.GRU.forward(layer, inputs)[0], atol=1e-6, rtol=1e-5
    )


def test_products_in_bfloat16_stay_near_and_states_stay_float32(pair):
    _, layer, inputs = pair
    exact = layer.float()(inputs.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs.float())
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)
    products = types_of_products(lambda: layer(inputs.float()))
    assert products and all(
        dtype == torch.bfloat16 for dtype in products
    )  # of all steps, not of the inputs alone
    found.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
