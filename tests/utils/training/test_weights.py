"""A hash of weights, and the kinds of numbers that they hold."""

import pytest
import torch

from utils.training.weights import other_kinds, sha256_of_weights

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def test_the_same_weights_have_the_same_hash_in_any_order_and_layout():
    again = {"b": torch.tensor(3), "a": torch.arange(6.0).reshape(2, 3).t().contiguous().t()}
    assert sha256_of_weights(again) == sha256_of_weights(WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(6.0).reshape(3, 2)},
        {"a": torch.arange(6.0).reshape(2, 3).double()},
        {"a": torch.arange(6).reshape(2, 3)},
        {"a": torch.nextafter(WEIGHTS["a"], torch.tensor(9.0))},
        {"b": torch.tensor([3])},
        {"c": torch.zeros(0)},
    ],
    ids=["shape", "precision", "kind", "value", "axis", "name"],
)
def test_another_name_shape_type_or_value_is_another_hash(change):
    assert sha256_of_weights(WEIGHTS | change) != sha256_of_weights(WEIGHTS)


def test_all_types_of_numbers_have_a_hash():
    for dtype in (torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.uint8):
        assert sha256_of_weights(
            {"a": torch.ones(3, dtype=dtype), "b": torch.ones((), dtype=dtype)}
        )


def test_kinds_differ_where_a_conversion_would_lose_something():
    own = {"w": torch.zeros(2), "n": torch.tensor(0)}
    assert not other_kinds({"w": torch.zeros(2).half(), "n": torch.tensor(0).int()}, own)
    assert not other_kinds({"unknown": torch.zeros(2, dtype=torch.complex64)}, own)
    for dtype, words in ((torch.complex64, "complex numbers"), (torch.int64, "whole numbers")):
        problems = other_kinds({"w": torch.zeros(2, dtype=dtype)}, own)
        assert problems == {"w": f"w holds {words} there and floats here"}
    assert list(other_kinds({"n": torch.tensor(0.5)}, own)) == ["n"]
