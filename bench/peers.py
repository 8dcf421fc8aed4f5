"""Owns the peers on NumPy's side of the benchmarks: each a small class, in its best configuration.

All of them are used alike: `prepare` ones, call `forward` or `forward_backward` as often as wanted,
and look at `result`. Nothing here takes a time, and `validity.py` judges what comes out.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any, ClassVar

import numpy as np

import fastdrop


class Peer:
    """A way to drop elements of an array: what the benchmarks ask of it."""

    name: ClassVar[str]
    in_place: ClassVar[bool] = False
    has_backward: ClassVar[bool] = True
    # In units in the last place: how far off the rounded 1 / (1 - rate) a kept one may be.
    ulps: ClassVar[int] = 1

    def __init__(self, rate: float = 0.2, seed: int = 42):
        self.rate, self.seed = rate, seed

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot run here, in one sentence; None where it can."""
        return None

    def prepare(self, n: int, dtype: Any) -> Any:
        """Make the array of n ones that the calls drop from, all memory they use, and return it.

        An in-place peer finds there at its next call what the last one left: `result` is the
        dropout of ones after the first call only, and after a hundred calls all are zeros.
        """
        raise NotImplementedError

    def forward(self) -> None:
        """Drop once, with another mask than in the last call, and wait until it is done."""
        raise NotImplementedError

    def forward_backward(self) -> None:
        """Drop once, and bring a gradient of ones back through it."""
        raise NotImplementedError

    def result(self) -> np.ndarray:
        """A copy of the last output, as float64."""
        raise NotImplementedError

    def gradient(self) -> np.ndarray:
        """A copy of the last gradient, as float64."""
        raise NotImplementedError

    def set_threads(self, n: int) -> None:
        """Use n threads. A peer that has only one stays with it."""


# ---- NumPy ----


class _NumPy(Peer):
    """SFC64 is the fastest of NumPy's generators. Uniform numbers are float32 for all dtypes: they
    decide as well, take half of the time of float64, and there are none of half precision."""

    def prepare(self, n, dtype):
        self._generator = np.random.Generator(np.random.SFC64(self.seed))
        self._x, self._dy = np.ones(n, dtype), np.ones(n, dtype)
        # In x's dtype, so that nothing is computed in a wider one.
        self._scale = self._x.dtype.type(1 / (1 - self.rate))
        return self._x

    def result(self):
        return self._y.astype(np.float64)

    def gradient(self):
        return self._dx.astype(np.float64)


class NumPyRecipe(_NumPy):
    """What one writes in NumPy: a uniform number for each element, compared, and two products."""

    name = "NumPy, usual recipe"

    def forward(self):
        uniform = self._generator.random(self._x.shape, dtype=np.float32)
        self._keep = uniform >= np.float32(self.rate)
        self._y = self._x * self._keep * self._scale

    def forward_backward(self):
        self.forward()
        self._dx = self._dy * self._keep * self._scale


class NumPyBuffered(_NumPy):
    """The same recipe into memory that is there, so that none is taken from the system at each
    call: NumPy's documented `out` arguments, and the fastest that NumPy alone is known to be."""

    name = "NumPy, into buffers"

    def prepare(self, n, dtype):
        x = super().prepare(n, dtype)
        self._uniform, self._keep = np.empty(n, np.float32), np.empty(n, bool)
        self._y, self._dx = np.empty_like(x), np.empty_like(x)
        return x

    def forward(self):
        self._generator.random(out=self._uniform, dtype=np.float32)
        np.greater_equal(self._uniform, np.float32(self.rate), out=self._keep)
        np.multiply(self._x, self._keep, out=self._y)
        np.multiply(self._y, self._scale, out=self._y)

    def forward_backward(self):
        self.forward()
        np.multiply(self._dy, self._keep, out=self._dx)
        np.multiply(self._dx, self._scale, out=self._dx)


# ---- PyTorch ----


class _Torch(Peer):
    """Tensors that need no gradient, so that `forward` records nothing for a backward pass. The
    calls are functions, as a module's Python would only add to them."""

    @classmethod
    def unavailable(cls):
        return _reason("PyTorch", "torch")

    def prepare(self, n, dtype):
        import torch

        torch.manual_seed(self.seed)
        self._torch = torch
        kind = getattr(torch, np.dtype(dtype).name)
        self._x, self._dy = torch.ones(n, dtype=kind), torch.ones(n, dtype=kind)
        self._leaf = torch.ones(n, dtype=kind, requires_grad=True)
        return self._x

    def set_threads(self, n):
        import torch

        torch.set_num_threads(n)

    def result(self):
        return self._copied(self._y)

    def gradient(self):
        return self._copied(self._dx)

    def _copied(self, tensor):
        """Not through `tensor.numpy()`, which a PyTorch built for NumPy 1 does not have."""
        tensor = tensor.detach().to(self._torch.float64).contiguous()
        numbers = (ctypes.c_double * tensor.numel()).from_address(tensor.data_ptr())
        return np.array(numbers)


class TorchDropout(_Torch):
    """`torch.nn.functional.dropout`, what `torch.nn.Dropout` calls."""

    name = "torch dropout"

    def forward(self):
        self._y = self._torch.nn.functional.dropout(self._x, self.rate, training=True)

    def forward_backward(self):
        self._y = self._torch.nn.functional.dropout(self._leaf, self.rate, training=True)
        (self._dx,) = self._torch.autograd.grad(self._y, self._leaf, self._dy)


class TorchDropoutInPlace(_Torch):
    """The same with `inplace=True`: no new memory for the output, as in our `dropout_`. Autograd
    refuses to change in place what a gradient is asked for, so there is no backward pass."""

    name = "torch dropout, inplace"
    in_place = True
    has_backward = False

    def forward(self):
        self._y = self._torch.nn.functional.dropout(self._x, self.rate, training=True, inplace=True)


class TorchNativeDropout(_Torch):
    """`torch.native_dropout`: the operation that also hands out its mask, of one byte an element,
    with `native_dropout_backward` for the gradient."""

    name = "torch native_dropout"

    def forward(self):
        self._y, self._mask = self._torch.native_dropout(self._x, self.rate, True)

    def forward_backward(self):
        self.forward()
        backward = self._torch.ops.aten.native_dropout_backward
        self._dx = backward(self._dy, self._mask, 1 / (1 - self.rate))


# ---- JAX ----


class _Jax(Peer):
    """What Flax's Dropout does (`bernoulli`, then `where` of x / keep and 0), under one `jit` that
    makes the next key too. Uniform numbers are float32 for all dtypes, as `bernoulli` draws them
    for a float32 probability; a new output at each call is the only way that JAX has."""

    implementation: ClassVar[str]
    started_with: ClassVar[int | None] = None  # threads, of all of JAX in this process

    @classmethod
    def unavailable(cls):
        return _reason("JAX", "jax")

    def set_threads(self, n):
        """JAX takes its number of threads once, when it starts, from the environment (of its flags
        none limits them): ask before the first `prepare`, in a process for each number."""
        if _Jax.started_with is None:
            import jax

            before = os.environ.get("NPROC")
            os.environ["NPROC"] = str(n)
            jax.devices()
            # Only JAX is to see it.
            if before is None:
                del os.environ["NPROC"]
            else:
                os.environ["NPROC"] = before
            _Jax.started_with = n
        elif _Jax.started_with != n:
            raise RuntimeError(
                f"JAX runs with {_Jax.started_with} threads in this process and cannot change to "
                f"{n}: ask for them in a new one."
            )

    def prepare(self, n, dtype):
        import jax

        if _Jax.started_with is None:
            self.set_threads(len(os.sched_getaffinity(0)))
        # Otherwise JAX makes float32 of float64.
        jax.config.update("jax_enable_x64", np.dtype(dtype) == np.float64)
        self._key = jax.random.key(self.seed, impl=self.implementation)
        self._x, self._dy = (jax.numpy.ones(n, np.dtype(dtype)) for _ in range(2))
        keep = 1 - self.rate

        def drop(key, x):
            kept = jax.random.bernoulli(key, np.float32(keep), x.shape)
            return jax.numpy.where(kept, x / np.asarray(keep, x.dtype), np.zeros((), x.dtype))

        def forward(key, x):
            key, now = jax.random.split(key)
            return key, drop(now, x)

        def forward_backward(key, x, dy):
            key, now = jax.random.split(key)
            y, pull_back = jax.vjp(lambda x: drop(now, x), x)
            return key, y, *pull_back(dy)

        self._forward, self._forward_backward = jax.jit(forward), jax.jit(forward_backward)
        return self._x

    def forward(self):
        self._key, self._y = self._forward(self._key, self._x)
        self._y.block_until_ready()

    def forward_backward(self):
        self._key, self._y, self._dx = self._forward_backward(self._key, self._x, self._dy)
        self._dx.block_until_ready()

    def result(self):
        return np.asarray(self._y).astype(np.float64)

    def gradient(self):
        return np.asarray(self._dx).astype(np.float64)


class JaxThreefry(_Jax):
    """JAX's default generator, whose numbers are the same on every machine and in every version."""

    name = "JAX, threefry"
    implementation = "threefry2x32"


class JaxUnsafeRbg(_Jax):
    """XLA's own generator (Philox on CPUs) for the numbers and for the keys: of those that JAX
    documents, the one that does least; its promises on the numbers are weaker, hence its name."""

    name = "JAX, unsafe_rbg"
    implementation = "unsafe_rbg"


# ---- Ours ----


class _Fastdrop(Peer):
    """A Stream, so that each call has a mask of its own; the packed mask is stored, as by default.
    A kept element is exactly the rounded scale."""

    ulps = 0

    def prepare(self, n, dtype):
        self._stream = fastdrop.Stream(self.seed)
        self._x, self._dy = np.ones(n, dtype), np.ones(n, dtype)
        return self._x

    def set_threads(self, n):
        fastdrop.set_num_threads(n)

    def result(self):
        return self._y.astype(np.float64)

    def gradient(self):
        return self._dx.astype(np.float64)


class FastdropInPlace(_Fastdrop):
    """`fastdrop.dropout_` and `fastdrop.dropout_grad_`."""

    name = "fastdrop.dropout_"
    in_place = True

    def prepare(self, n, dtype):
        self._y, self._dx = super().prepare(n, dtype), self._dy
        return self._y

    def forward(self):
        self._mask = fastdrop.dropout_(self._x, self.rate, seed=self._stream)

    def forward_backward(self):
        self.forward()
        fastdrop.dropout_grad_(self._dx, self._mask)


class FastdropOutOfPlace(_Fastdrop):
    """`fastdrop.dropout` and `fastdrop.dropout_grad` into memory that is there."""

    name = "fastdrop.dropout"

    def prepare(self, n, dtype):
        x = super().prepare(n, dtype)
        self._y, self._dx = np.empty_like(x), np.empty_like(x)
        return x

    def forward(self):
        _, self._mask = fastdrop.dropout(self._x, self.rate, seed=self._stream, out=self._y)

    def forward_backward(self):
        self.forward()
        fastdrop.dropout_grad(self._dy, self._mask, out=self._dx)


def _reason(project: str, module: str, *extras: str) -> str | None:
    """Why a module cannot be imported, or None where it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return f"{project} is not installed: pip install {module}"
        return (
            f"{project} is installed without {error.name}, which it needs: pip install {error.name}"
        )
    except (ImportError, OSError) as error:  # a library that it is linked with is not there
        return f"{project} cannot be imported: {error}"
    return None


PEERS = (
    NumPyRecipe,
    NumPyBuffered,
    TorchDropout,
    TorchDropoutInPlace,
    TorchNativeDropout,
    JaxThreefry,
    JaxUnsafeRbg,
    FastdropInPlace,
    FastdropOutOfPlace,
)
