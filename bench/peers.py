"""Calls the libraries that are compared on arrays, and checks that each computes a dropout.

Each peer is a function in `PEERS`, in `TORCH_PEERS` for PyTorch's tensors, or in `JAX_PEERS` for
JAX's arrays. It creates arrays of ones and returns calls that drop their elements. Each peer runs
in its fastest configuration, in float32 and on one thread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import fastdrop

SEED = 42
SIGMAS = 6


class Calls(NamedTuple):
    """The calls of a peer, which draw a new mask each time."""

    forward: Callable[[], Any]  # returns the output
    training: Callable[[], tuple[Any, Any]] | None  # returns the output and the gradient


def numpy_recipe(size: int, rate: float) -> Calls:
    """The usual dropout in NumPy: a uniform number for each element, a comparison, two products.

    SFC64 is NumPy's fastest generator.
    """
    x, dy = np.ones(size, np.float32), np.ones(size, np.float32)
    generator = np.random.Generator(np.random.SFC64(SEED))
    scale = np.float32(1 / (1 - rate))

    def training():
        keep = generator.random(size, np.float32) >= np.float32(rate)
        return x * keep * scale, dy * keep * scale

    def forward():
        keep = generator.random(size, np.float32) >= np.float32(rate)
        return x * keep * scale

    return Calls(forward, training)


def numpy_buffered(size: int, rate: float) -> Calls:
    """The same recipe with NumPy's `out` arguments, into allocated arrays."""
    x, dy, y, dx, uniform = (np.ones(size, np.float32) for _ in range(5))
    keep = np.empty(size, bool)
    generator = np.random.Generator(np.random.SFC64(SEED))
    scale = np.float32(1 / (1 - rate))

    def forward():
        generator.random(out=uniform, dtype=np.float32)
        np.greater_equal(uniform, np.float32(rate), out=keep)
        np.multiply(x, keep, out=y)
        return np.multiply(y, scale, out=y)

    def training():
        forward()
        np.multiply(dy, keep, out=dx)
        return y, np.multiply(dx, scale, out=dx)

    return Calls(forward, training)


def torch_on_one_thread() -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    return torch


def torch_calls(drop: Callable[..., Any], size: int, rate: float, compiled: bool = False) -> Calls:
    """Calls of a function with the arguments of `torch.nn.functional.dropout`."""
    torch = torch_on_one_thread()
    x, dy = torch.ones(size), torch.ones(size)
    leaf = torch.ones(size, requires_grad=True)

    def forward_of(x):
        return drop(x, rate, training=True)

    if compiled:
        # An error, instead of eager calls, where it cannot be compiled.
        forward_of = torch.compile(forward_of, fullgraph=True, dynamic=False)

    def training():
        y = forward_of(leaf)
        return y, *torch.autograd.grad(y, leaf, dy)

    return Calls(lambda: forward_of(x), training)


def torch_dropout(size: int, rate: float, compiled: bool = False) -> Calls:
    """`torch.nn.functional.dropout`, which `torch.nn.Dropout` calls."""
    torch = torch_on_one_thread()
    return torch_calls(torch.nn.functional.dropout, size, rate, compiled)


def fastdrop_torch_dropout(size: int, rate: float, compiled: bool = False) -> Calls:
    """`fastdrop_torch.functional.dropout`."""
    from fastdrop_torch import functional

    return torch_calls(functional.dropout, size, rate, compiled)


def torch_inplace(size: int, rate: float) -> Calls:
    """The same with `inplace=True`, forward only: autograd refuses it for a leaf."""
    torch = torch_on_one_thread()
    x = torch.ones(size)
    return Calls(
        lambda: torch.nn.functional.dropout(x, rate, training=True, inplace=True), training=None
    )


def torch_native(size: int, rate: float) -> Calls:
    """`torch.native_dropout`, which returns its mask with one byte for each element."""
    torch = torch_on_one_thread()
    x, dy = torch.ones(size), torch.ones(size)

    def training():
        y, mask = torch.native_dropout(x, rate, True)
        return y, torch.ops.aten.native_dropout_backward(dy, mask, 1 / (1 - rate))

    return Calls(lambda: torch.native_dropout(x, rate, True)[0], training)


def jax_on_one_thread() -> Any:
    import jax

    # JAX reads its number of threads from this variable when it starts.
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = "1"
    jax.devices()
    if before is None:
        del os.environ["NPROC"]
    else:
        os.environ["NPROC"] = before
    return jax


def jax_calls(drop: Callable[..., Any], size: int, rate: float, generator: str) -> Calls:
    """Calls of `drop(key, x, rate)` in one `jit` that also splits the key."""
    jax = jax_on_one_thread()
    key = jax.random.key(SEED, impl=generator)
    x, dy = jax.numpy.ones(size), jax.numpy.ones(size)

    @jax.jit
    def forward_of(key, x):
        key, now = jax.random.split(key)
        return key, drop(now, x, rate)

    @jax.jit
    def training_of(key, x, dy):
        key, now = jax.random.split(key)
        y, pull_back = jax.vjp(lambda x: drop(now, x, rate), x)
        return key, y, *pull_back(dy)

    def forward():
        nonlocal key
        key, y = forward_of(key, x)
        return y.block_until_ready()

    def training():
        nonlocal key
        key, y, dx = training_of(key, x, dy)
        return y, dx.block_until_ready()

    return Calls(forward, training)


def jax_dropout(size: int, rate: float, generator: str) -> Calls:
    """The computation of Flax's Dropout."""
    jax = jax_on_one_thread()

    def drop(key, x, rate):
        keep = jax.random.bernoulli(key, np.float32(1 - rate), x.shape)
        return jax.numpy.where(keep, x / np.float32(1 - rate), np.float32(0))

    return jax_calls(drop, size, rate, generator)


def fastdrop_jax_dropout(size: int, rate: float, generator: str) -> Calls:
    """`fastdrop_jax.dropout`."""
    import fastdrop_jax

    return jax_calls(fastdrop_jax.dropout, size, rate, generator)


def jax_threefry(size: int, rate: float) -> Calls:
    """JAX's default generator, with the same numbers on every machine."""
    return jax_dropout(size, rate, "threefry2x32")


def jax_unsafe_rbg(size: int, rate: float) -> Calls:
    """XLA's generator, the fastest that JAX documents, with weaker guarantees."""
    return jax_dropout(size, rate, "unsafe_rbg")


def fastdrop_in_place(size: int, rate: float) -> Calls:
    x, dy = np.ones(size, np.float32), np.ones(size, np.float32)
    stream = fastdrop.Stream(SEED)

    def forward():
        fastdrop.dropout_(x, rate, seed=stream)
        return x

    def training():
        mask = fastdrop.dropout_(x, rate, seed=stream)
        fastdrop.dropout_grad_(dy, mask)
        return x, dy

    return Calls(forward, training)


def fastdrop_out_of_place(size: int, rate: float) -> Calls:
    x, dy, y, dx = (np.ones(size, np.float32) for _ in range(4))
    stream = fastdrop.Stream(SEED)

    def training():
        _, mask = fastdrop.dropout(x, rate, seed=stream, out=y)
        return y, fastdrop.dropout_grad(dy, mask, out=dx)

    return Calls(lambda: fastdrop.dropout(x, rate, seed=stream, out=y)[0], training)


OURS = {"fastdrop.dropout_": fastdrop_in_place, "fastdrop.dropout": fastdrop_out_of_place}
PEERS = {
    "NumPy, usual recipe": numpy_recipe,
    "NumPy, into buffers": numpy_buffered,
    "torch dropout": torch_dropout,
    "torch dropout, inplace": torch_inplace,
    "torch native_dropout": torch_native,
    "JAX, threefry": jax_threefry,
    "JAX, unsafe_rbg": jax_unsafe_rbg,
}
# For tensors of PyTorch; all take the argument `compiled`, too.
TORCH_OURS = {"fastdrop_torch dropout": fastdrop_torch_dropout}
TORCH_PEERS = {"torch dropout": torch_dropout}
# For arrays of JAX; all take the argument `generator`, too.
JAX_OURS = {"fastdrop_jax dropout": fastdrop_jax_dropout}
JAX_PEERS = {"Flax's dropout": jax_dropout}


class InvalidDropoutError(Exception):
    """A result is not a dropout of its input, so its time means nothing."""


def to_numpy(result: Any) -> np.ndarray:
    # PyTorch does not convert a tensor that requires a gradient.
    return np.asarray(result.detach() if hasattr(result, "detach") else result)


def check_dropout(result: Any, rate: float, name: str) -> None:
    """Raise InvalidDropoutError unless the result is a dropout of ones.

    The fraction of kept elements must be within six sigma of 1 - rate. A kept element must be the
    scale, up to one rounding, since a peer may divide by 1 - rate. The others must be zero.
    """
    result = to_numpy(result)
    kept = result != 0  # also NaN, which is not the scale
    sigma = math.sqrt(rate * (1 - rate) / result.size)
    if not abs(kept.mean() - (1 - rate)) <= SIGMAS * sigma:
        raise InvalidDropoutError(
            f"{name} keeps {kept.mean():.6f} of {result.size} elements, not {1 - rate:.6f} "
            f"(± {SIGMAS * sigma:.6f})"
        )
    scale = 1 / (1 - rate)
    off = np.abs(result[kept].astype(np.float64) - scale)
    wrong = ~(off <= scale * float(ml_dtypes.finfo(result.dtype).eps))
    if wrong.any():
        raise InvalidDropoutError(
            f"{name} returns {result[kept][wrong][0]} for a kept 1, not the scale {scale}"
        )


def check_peer(name: str, make: Callable[[int, float], Calls], size: int, rate: float) -> None:
    """Raise InvalidDropoutError unless each call draws a new mask, which its gradient uses too."""
    calls = make(size, rate)
    first = to_numpy(calls.forward()).copy()  # a copy: the next call may change it in place
    if first.shape != (size,):
        raise InvalidDropoutError(f"{name} returns the shape {first.shape}, not {(size,)}")
    check_dropout(first, rate, name)
    if np.array_equal(first != 0, to_numpy(calls.forward()) != 0):
        raise InvalidDropoutError(f"{name} has the same mask in two calls")
    if calls.training is not None:
        # New arrays of ones, since a peer may drop in place.
        y, dx = map(to_numpy, make(size, rate).training())
        check_dropout(y, rate, name)
        check_dropout(dx, rate, f"the gradient of {name}")
        if not np.array_equal(y != 0, dx != 0):
            raise InvalidDropoutError(f"the gradient of {name} has another mask than its output")
