"""The checksum of weights: the same for the same tensors, and another for whatever else arrives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from actors.engine.weights import Checksum

Weights = list[tuple[str, Tensor]]


def weights(dtype: torch.dtype = torch.float32) -> Weights:
    torch.manual_seed(0)
    shapes = {"embed": (6, 4), "norm": (4,), "scale": (), "none": (0, 4), "experts": (2, 3, 4)}
    return [(name, torch.randn(shape).to(dtype)) for name, shape in shapes.items()]


def checksum(tensors: Weights) -> int:
    total = Checksum()
    for name, tensor in tensors:
        total.add(name, tensor)
    return total.value()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_copies_of_the_same_weights_have_the_same_checksum(dtype: torch.dtype) -> None:
    assert checksum(weights(dtype)) == checksum([(name, tensor.clone()) for name, tensor in weights(dtype)])


def test_a_transposed_view_counts_as_what_it_shows() -> None:
    tensor = torch.randn(3, 5)
    assert checksum([("a", tensor.t())]) == checksum([("a", tensor.t().contiguous())])


def one_bit(tensors: Weights) -> None:
    tensors[0][1].view(torch.int32)[5, 3] ^= 1


def two_rows_swapped(tensors: Weights) -> None:
    tensors[0][1][[0, 1]] = tensors[0][1][[1, 0]]


def another_order(tensors: Weights) -> None:
    tensors.reverse()


def another_name(tensors: Weights) -> None:
    tensors[1] = ("norm2", tensors[1][1])


def another_shape(tensors: Weights) -> None:
    tensors[0] = ("embed", tensors[0][1].reshape(3, 2, 4))


def one_missing(tensors: Weights) -> None:
    tensors.pop()


def another_dtype(tensors: Weights) -> None:
    tensors[1] = ("norm", tensors[1][1].view(torch.int32))


@pytest.mark.parametrize(
    "change",
    [one_bit, two_rows_swapped, another_order, another_name, another_shape, one_missing, another_dtype],
)
def test_any_other_weights_have_another_checksum(change: Callable[[Weights], None]) -> None:
    changed = weights()
    change(changed)
    assert checksum(changed) != checksum(weights())
