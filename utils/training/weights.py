"""Named tensors of a file: their hash, and whether a system holds numbers of the same kind."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def sha256_of_weights(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, types and values, whatever else is in the file that they come from."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu()
        digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        # Bytes, since numpy has no bfloat16; flat, since a single number has no bytes to look at.
        flat = value.reshape(-1).contiguous()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def kind_of(value: Tensor) -> str:
    """What sort of numbers a tensor holds: a conversion into another sort loses some of them."""
    if value.is_complex():
        return "complex numbers"
    if value.is_floating_point():
        return "floats"
    return "whole numbers"


def other_kinds(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors of both whose kind of numbers differs, by name, with what is wrong.

    Args:
        weights: of a file.
        own: of the system that they are for, into which torch would convert them without a word.
    """
    problems = {}
    # Names that only one side has are told elsewhere.
    for name in sorted(weights.keys() & own.keys()):
        there = kind_of(weights[name])
        here = kind_of(own[name])
        if there != here:
            problems[name] = f"{name} holds {there} there and {here} here"
    return problems
