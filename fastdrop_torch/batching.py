"""Tells `torch.func.vmap` how to run the operations on a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdrop_torch import library  # noqa: F401  (it loads the operations)

OPERATIONS = torch.ops.fastdrop


def _sample(value: Any, dim: int | None, index: int) -> Any:
    return value.select(dim, index) if isinstance(value, Tensor) and dim is not None else value


def _one_by_one(operation: Callable[..., Any], info: Any, in_dims: Any, *args: Any) -> Any:
    """Call the operation for each sample: their masks differ, and each begins at a whole byte."""
    # PyTorch leaves out the dimensions of arguments with default values.
    dims = [*in_dims, *(None for _ in args[len(in_dims) :])]
    results = [
        operation(*(_sample(value, dim, i) for value, dim in zip(args, dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0, 0)


def _shared(x: Tensor, noise_shape: list[int] | None) -> list[int]:
    """Return the noise shape of a batch whose samples share a mask; its first axis is the batch."""
    return [1, *(x.shape[1:] if noise_shape is None else noise_shape)]


def _forward(
    info: Any,
    in_dims: Any,
    x: Tensor,
    seed: Tensor,
    p: float,
    noise_shape: list[int] | None = None,
    relu: bool = False,
) -> Any:
    operation = OPERATIONS.forward.default
    if in_dims[1] is not None or relu:
        return _one_by_one(operation, info, in_dims, x, seed, p, noise_shape, relu)
    x = x.movedim(in_dims[0], 0)
    return operation(x, seed, p, _shared(x, noise_shape), relu), (0, None)


def _bias_forward(info: Any, in_dims: Any, *args: Any) -> Any:
    return _one_by_one(OPERATIONS.bias_forward.default, info, in_dims, *args)


def _backward(
    info: Any,
    in_dims: Any,
    dy: Tensor,
    bits: Tensor,
    scale: float,
    noise_shape: list[int] | None = None,
) -> Any:
    operation = OPERATIONS.backward.default
    if in_dims[1] is not None:
        return _one_by_one(operation, info, in_dims, dy, bits, scale, noise_shape)
    dy = dy.movedim(in_dims[0], 0)
    return operation(dy, bits, scale, _shared(dy, noise_shape)), 0


_BERNOULLI = 5  # a kind of `draw` whose elements share no decisions


def _draw(
    info: Any,
    in_dims: Any,
    x: Tensor,
    seed: Tensor,
    kind: int,
    parameter: float,
    noise_shape: list[int] | None = None,
) -> Any:
    operation = OPERATIONS.draw.default
    if in_dims[1] is not None or kind == _BERNOULLI:
        return _one_by_one(operation, info, in_dims, x, seed, kind, parameter, noise_shape)
    x = x.movedim(in_dims[0], 0)
    return operation(x, seed, kind, parameter, _shared(x, noise_shape)), 0


for _name, _rule in (
    ("forward", _forward),
    ("bias_forward", _bias_forward),
    ("backward", _backward),
    ("draw", _draw),
):
    torch.library.register_vmap(f"fastdrop::{_name}", _rule)
