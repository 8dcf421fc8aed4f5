"""Defines dropout and other random operations as a primitive of JAX, which is its own transpose.

    y = primitive(x, words)    noise_shape, kind

    x, y         arrays of one shape and dtype
    words        uint32: the seed's low word, the step, the high word if there, and the bits of the
                 rate or stddev as float64, each in two, the lower first. If it has more dimensions,
                 they are the first dimensions of x: each part of x has its own words
    noise_shape  for each other dimension of x 1, or `None` for its size
    kind         one of `KINDS`

Each call draws the mask or the noise from the words, so nothing is kept for the gradient. On the
CPU, XLA calls the handler of `fastdrop/xla_handler.c`. Elsewhere JAX draws other numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fastdrop import _xla
from fastdrop._config import STREAM_VERSION
from fastdrop_jax import partitions

NoiseShape = tuple[int | None, ...]

jax.ffi.register_ffi_target(_xla.NAME, jax.ffi.pycapsule(_xla.load().fastdrop_dropout_handler))

# In the order of the handler's numbers.
KINDS = (
    "dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "alpha_dropout",
    "alpha_dropout_gradient",
    # x has rates, and y is 1 where an element is kept, else 0. No elements share decisions.
    "bernoulli",
)

# The kinds of the derivatives, which are linear. That of noise is the identity, and that of
# decisions zero.
_DERIVATIVES = {
    "dropout": "dropout",
    "gaussian_dropout": "gaussian_dropout",
    "alpha_dropout": "alpha_dropout_gradient",
    "alpha_dropout_gradient": "alpha_dropout_gradient",
}

# The kinds that the handler computes for a block of a larger array.
_OF_BLOCKS = ("dropout", "alpha_dropout_gradient")

_primitive = Primitive("fastdrop_dropout")


def draw(x: jax.Array, words: jax.Array, noise_shape: NoiseShape, kind: str) -> jax.Array:
    """Call the primitive."""
    x, words = _equally_varying(x, words)
    y: jax.Array = _primitive.bind(x, words, noise_shape=noise_shape, kind=kind)
    return y


def _equally_varying(*arrays: jax.Array) -> list[jax.Array]:
    """Let the arrays vary along the same axes of the mesh of a `jax.shard_map`."""
    axes = frozenset[Any]().union(*map(_varying, arrays))
    return [
        lax.pcast(x, tuple(axes - _varying(x)), to="varying") if axes - _varying(x) else x
        for x in arrays
    ]


def _varying(x: Any) -> frozenset[Any]:
    aval = jax.typeof(x)
    # JAX 0.10 renamed it.
    axes: frozenset[Any] = aval.mat.varying if hasattr(aval, "mat") else aval.vma
    return axes


@_primitive.def_abstract_eval
def _type(x: Any, words: Any, **_: Any) -> Any:
    return x.strip_weak_type()


_compiled = jax.jit(_primitive.bind, static_argnames=("noise_shape", "kind"))


@_primitive.def_impl
def _run(x: jax.Array, words: jax.Array, **settings: Any) -> jax.Array:
    # Under `jax.disable_jit` too.
    with jax.disable_jit(False):
        return _compiled(x, words, **settings)


# Derivatives.


def _derivative(primals: Any, tangents: Any, *, noise_shape: NoiseShape, kind: str) -> Any:
    (x, words), (tangent, _) = primals, tangents
    y = draw(x, words, noise_shape, kind)
    if kind in _DERIVATIVES:
        return y, draw(tangent, words, noise_shape, _DERIVATIVES[kind])
    if kind == "bernoulli":
        return y, ad.Zero(jax.typeof(y).to_tangent_aval())
    return y, _equally_varying(tangent, words)[0]


def _transpose(dy: Any, x: Any, words: Any, *, noise_shape: NoiseShape, kind: str) -> Any:
    return dy if type(dy) is ad.Zero else draw(dy, words, noise_shape, kind), None


ad.primitive_jvps[_primitive] = _derivative
ad.primitive_transposes[_primitive] = _transpose

# `jax.vmap`.


def _batch(
    arrays: Sequence[Any], dims: Sequence[Any], *, noise_shape: NoiseShape, kind: str
) -> Any:
    (x, words), (x_dim, words_dim) = arrays, dims
    if words_dim is None and kind == "bernoulli":
        # Their decisions are equal only where their rates are.
        words, words_dim = jnp.broadcast_to(words, (x.shape[x_dim], *words.shape)), 0
    if words_dim is None:
        # All share their decisions. The dimensions of the words come first.
        first = words.ndim - 1
        return draw(jnp.moveaxis(x, x_dim, first), words, (1, *noise_shape), kind), first
    words = jnp.moveaxis(words, words_dim, 0)
    x = (
        jnp.broadcast_to(x, (words.shape[0], *x.shape))
        if x_dim is None
        else jnp.moveaxis(x, x_dim, 0)
    )
    return draw(x, words, noise_shape, kind), 0


batching.primitive_batchers[_primitive] = _batch

# Programs for the CPU.


def _call(x: jax.Array, words: jax.Array, settings: jax.Array, *block: jax.Array, kind: str) -> Any:
    """Call the handler for `x`, or for a block of a larger array: see `xla_handler.c`."""
    call = jax.ffi.ffi_call(_xla.NAME, jax.ShapeDtypeStruct(x.shape, x.dtype))
    attributes = {"stream": np.int64(STREAM_VERSION), "kind": np.int64(KINDS.index(kind))}
    with jax.enable_x64(True):
        low, high = (words[..., half::2].astype(jnp.uint64) for half in (0, 1))
        wide = (low | high << 32).astype(jnp.int64)
        return call(x, wide, settings[1:], *block, **attributes)


def _lower(ctx: Any, x: Any, words: Any, *, noise_shape: NoiseShape, kind: str) -> Any:
    call: partitions.Call = functools.partial(_call, kind=kind)
    if partitions.are_needed(ctx):
        call = partitions.distributed(call, by_blocks=kind in _OF_BLOCKS)

    def compute(x: jax.Array, words: jax.Array) -> jax.Array:
        with jax.enable_x64(True):
            entries = [-1 if entry is None else entry for entry in noise_shape]
            return call(x, words, jnp.array([KINDS.index(kind), *entries], jnp.int64))

    return mlir.lower_fun(compute, multiple_results=False)(ctx, x, words)


mlir.register_lowering(_primitive, _lower, platform="cpu")
partitions.allow(_primitive)

# Programs for other devices.

_ALPHA = 1.7580993408473766  # SELU's scale times its alpha


def _draw_by_jax(
    x: jax.Array, words: jax.Array, *, noise_shape: NoiseShape, kind: str
) -> jax.Array:
    if words.ndim > 1:
        draw_part = functools.partial(_draw_by_jax, noise_shape=noise_shape, kind=kind)
        return jax.vmap(draw_part)(x, words)
    low, step, high = words[:2], words[2:4], words[4:-2]
    parameter = _float32(words[-2], words[-1])
    key = jax.random.wrap_key_data(
        jnp.concatenate([low, high]), impl="rbg" if high.size else "threefry2x32"
    )
    key = jax.random.fold_in(key, step[0])
    shape = [1 if entry == 1 else size for entry, size in zip(noise_shape, x.shape, strict=True)]
    if kind.startswith("gaussian"):
        numbers = jax.random.normal(key, shape, jnp.promote_types(x.dtype, jnp.float32))
        if kind == "gaussian_noise":
            return (x + parameter.astype(numbers.dtype) * numbers).astype(x.dtype)
        stddev = jnp.sqrt(parameter / (1 - parameter)).astype(numbers.dtype)
        return (x * (1 + stddev * numbers)).astype(x.dtype)
    if kind == "bernoulli":
        return jax.random.bernoulli(key, 1 - x.astype(jnp.float32), x.shape).astype(x.dtype)
    keep = 1 - parameter
    kept = jax.random.bernoulli(key, keep, shape)
    if kind == "dropout":
        return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))
    scale = jnp.where(keep > 0, lax.rsqrt(keep * (1 + parameter * _ALPHA**2)), 0)
    if kind == "alpha_dropout_gradient":
        return jnp.where(kept, x * scale.astype(x.dtype), jnp.zeros_like(x))
    y = jnp.where(kept, x, jnp.full_like(x, -_ALPHA))
    return (y * scale + _ALPHA * scale * parameter).astype(x.dtype)


def _float32(low: jax.Array, high: jax.Array) -> jax.Array:
    """Return a number from 0 to 2**128 by its bits as float64. TPUs cannot convert them."""
    exponent, fraction = high >> 20, high << 12 >> 9 | low >> 29
    bits = jnp.where(exponent > 1023 - 127, exponent - (1023 - 127) << 23 | fraction, 0)
    return lax.bitcast_convert_type(bits, jnp.float32)


mlir.register_lowering(_primitive, mlir.lower_fun(_draw_by_jax, multiple_results=False))
