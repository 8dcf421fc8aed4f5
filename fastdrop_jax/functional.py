"""Defines `dropout` and the operations that contain it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastdrop_jax import operation
from fastdrop_jax.operation import NoiseShape

__all__ = ["dropout"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def dropout(
    key: jax.Array,
    x: jax.Array,
    rate: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Zero elements of `x` with probability `rate`, and scale the others by ``1 / (1 - rate)``.

    Returns:
        An array of the shape and dtype of `x`.
    """
    x = jnp.asarray(x)
    if x.dtype.name not in _DTYPES:
        raise TypeError(f"`x` must have one of the dtypes {', '.join(_DTYPES)}, got {x.dtype}")
    entries = _entries(x, noise_shape, broadcast_dims)
    key = _checked_key(key)
    rate = _checked_rate(rate)
    if isinstance(rate, float):
        if rate == 0:
            return x
        rate = np.array([rate]).view(np.uint32)
    return _dropout(key, x, rate, noise_shape=entries)


@functools.partial(jax.jit, static_argnames="noise_shape")
def _dropout(key: jax.Array, x: jax.Array, rate: Any, noise_shape: NoiseShape) -> jax.Array:
    return operation.drop(x, _words(key, rate), noise_shape)


def _words(key: jax.Array, rate: Any) -> jax.Array:
    """Return the operation's words for a key and a rate, or the bits of a rate."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if jnp.issubdtype(rate.dtype, jnp.floating):
        with jax.enable_x64(True):
            rate = lax.bitcast_convert_type(lax.stop_gradient(rate).astype(jnp.float64), jnp.uint32)
    step = np.zeros(2, np.uint32)
    return jnp.concatenate([key[:2], step, key[2:], rate])


def _checked_key(key: Any) -> jax.Array:
    if not isinstance(key, jax.Array):
        raise TypeError(f"`key` must be a key of jax.random, got {key!r}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(f"`key` must be a key of jax.random, got an array of dtype {key.dtype}")
    shape = key.shape if typed else key.shape[:-1]
    if shape or (not typed and key.ndim != 1):
        raise ValueError(f"`key` must be one key, got an array of shape {key.shape}")
    return key


def _checked_rate(rate: Any) -> float | jax.Array:
    if isinstance(rate, jax.core.Tracer):
        return rate
    number = float(rate)
    if not 0 <= number <= 1:
        raise ValueError(f"`rate` must be in [0, 1], got {rate!r}")
    return number


def _entries(
    x: jax.Array, noise_shape: Sequence[int | None] | None, broadcast_dims: Sequence[int]
) -> NoiseShape:
    entries: list[int | None] = [None] * x.ndim
    for dim in broadcast_dims:
        entries[operator.index(dim)] = 1
    return tuple(entries)
