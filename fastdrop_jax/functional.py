"""Defines `dropout`, two operations that contain it, and other random operations on arrays.

>>> import jax, jax.numpy as jnp, fastdrop_jax
>>> fastdrop_jax.dropout(jax.random.key(42), jnp.ones(8), 0.5)
Array([0., 2., 0., 0., 0., 0., 2., 0.], dtype=float32)
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastdrop_jax import operation
from fastdrop_jax.operation import NoiseShape

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "relu_dropout",
]

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def dropout(
    key: jax.Array,
    x: jax.Array,
    rate: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Zero elements of `x` with probability `rate`, and multiply the others by ``1 / (1 - rate)``.

    The result is a pure function of the arguments, also under `jax.jit`, `jax.vmap` and on arrays
    that are distributed over devices. A dropped element becomes ``+0.0`` even if it was NaN or
    infinite. The derivative of any order draws the mask again from the key, and nothing is kept for
    it. With respect to `rate` it is zero.

    On the CPU, `fastdrop.dropout` drops the same elements with the key's words as the seed:
    ``seed = words[0] + words[1] * 2**32``, and so on. On other devices JAX draws the mask.

    Args:
        key: Key of `jax.random` with 2 or 4 words (threefry, rbg and unsafe_rbg), typed or raw.
        x: Array of float16, bfloat16, float32 or float64, of any shape.
        rate: Fraction of the elements to drop, from 0 to 1. A traced rate has its own precision:
            float32 unless JAX's 64-bit types are enabled. Or an array of rates, which is broadcast
            to `x`, or to the shape that has 1 for each shared dimension. Each element is then
            dropped at its own rate, by other decisions than at one rate for all. They are those of
            `fastdrop.dropout`, and kept elements are equal to its results up to rounding.
        noise_shape: For each dimension of `x` its size, `None` for that, or 1 to share decisions
            along it. A shape with fewer entries and without `None` belongs to the last dimensions.
        broadcast_dims: The dimensions along which decisions are shared, as in Flax. Not together
            with `noise_shape`.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError: If `key` or `rate` is not one, or if `x` has another dtype.
        ValueError: If `rate` is not between 0 and 1, `key` is not one key, or `noise_shape` or
            `broadcast_dims` do not fit `x`. A traced rate is checked at run time, where
            `jax.errors.JaxRuntimeError` is raised.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> key = jax.random.key(42)
    >>> fastdrop_jax.dropout(key, jnp.ones((2, 4)), 0.5)
    Array([[0., 2., 0., 0.],
           [0., 0., 2., 0.]], dtype=float32)
    >>> jax.grad(lambda x: fastdrop_jax.dropout(key, x, 0.5).sum())(jnp.ones(8))
    Array([0., 2., 0., 0., 0., 0., 2., 0.], dtype=float32)
    """
    if isinstance(rate, (list, tuple)) or getattr(rate, "ndim", False):
        x, key = checked_input(x), checked_key(key)
        entries = _entries(x, noise_shape, broadcast_dims)
        return _drop_at_rates(key, x, _checked_rates(rate, x, entries))
    return _drawn("dropout", key, x, checked_rate(rate), noise_shape, broadcast_dims)


def relu_dropout(
    key: jax.Array,
    x: jax.Array,
    rate: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Return ``dropout(key, jax.nn.relu(x), rate)``; XLA computes ReLU with what comes before.

    The arguments, the result and the errors are those of `dropout`.

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> x = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0])
    >>> fastdrop_jax.relu_dropout(jax.random.key(42), x, 0.5)
    Array([0., 2., 0., 0., 0., 0., 0., 0.], dtype=float32)
    """
    return dropout(
        key,
        jax.nn.relu(checked_input(x)),
        rate,
        noise_shape=noise_shape,
        broadcast_dims=broadcast_dims,
    )


def bias_dropout_add(
    key: jax.Array,
    x: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
    rate: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Return ``residual + dropout(key, x + bias, rate)``, the end of a transformer's block.

    XLA computes the sums with what comes before and after.

    Args:
        key, x, rate, noise_shape, broadcast_dims: As for `dropout`.
        bias: Array with one element or as many as the last dimension of `x`, or `None`.
        residual: Array of the shape of `x`, or `None`.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError: As for `dropout`, or if `bias` or `residual` has another dtype than `x`.
        ValueError: As for `dropout`, or if the shape of `bias` or `residual` does not fit.

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> x, bias, residual = jnp.ones(4), jnp.ones(4), jnp.full(4, 10.0)
    >>> fastdrop_jax.bias_dropout_add(jax.random.key(42), x, bias, residual, 0.5)
    Array([10., 14., 10., 10.], dtype=float32)
    """
    x = checked_input(x)
    shapes = {"bias": [(), (1,), x.shape[-1:]], "residual": [x.shape]}
    for name, array in (("bias", bias), ("residual", residual)):
        if array is None:
            continue
        dtype = getattr(array, "dtype", None)
        if dtype != x.dtype:
            got = f"{array!r}" if dtype is None else dtype
            raise TypeError(f"`{name}` must be an array of the dtype of `x`, {x.dtype}, got {got}")
        if array.shape not in shapes[name]:
            raise ValueError(f"`{name}` does not fit `x` of shape {x.shape}, got {array.shape}")
    if bias is not None:
        x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,) * (x.ndim > 0))
    y = dropout(key, x, rate, noise_shape=noise_shape, broadcast_dims=broadcast_dims)
    return y if residual is None else residual + y


def gaussian_dropout(
    key: jax.Array,
    x: jax.Array,
    rate: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Multiply elements of `x` by normal numbers of mean 1 and variance ``rate / (1 - rate)``.

    The Gaussian form of dropout: no element is dropped, and the products have the mean and the
    variance of the results of `dropout`. As there, the result is a pure function of the arguments,
    and nothing is kept for derivatives, which draw the numbers again. With respect to `rate` they
    are zero. An array that is distributed over devices is gathered.

    On the CPU, `fastdrop.gaussian_dropout` gives the same bits with the key's words as the seed.

    Args:
        key, x, noise_shape, broadcast_dims: As for `dropout`; elements that would share decisions
            share a number.
        rate: The rate of the dropout that the variance is that of, at least 0 and below 1. A traced
            rate is taken as for `dropout`.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError, ValueError: As for `dropout`, also for rate 1, where the variance is infinite.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> fastdrop_jax.gaussian_dropout(jax.random.key(42), jnp.ones(4), 0.5)
    Array([ 0.2087375 , -0.42876494,  1.6558168 ,  1.3577797 ], dtype=float32)
    """
    rate = checked_rate(rate, gaussian=True)
    return _drawn("gaussian_dropout", key, x, rate, noise_shape, broadcast_dims)


def gaussian_noise(
    key: jax.Array,
    x: jax.Array,
    stddev: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Add normal numbers of mean 0 and standard deviation `stddev` to elements of `x`.

    The result is a pure function of the arguments, as for `dropout`. The derivative with respect to
    `x` is the identity, and with respect to `stddev` it is zero: multiply the noise of zeros to
    learn a standard deviation. An array that is distributed over devices is gathered.

    On the CPU, `fastdrop.gaussian_noise` gives the same bits with the key's words as the seed.

    Args:
        key, x, noise_shape, broadcast_dims: As for `gaussian_dropout`.
        stddev: The standard deviation, finite and at least 0. A traced number is taken as the rate
            of `dropout` is.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError, ValueError: As for `dropout`, with `stddev` in place of the rate.

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> fastdrop_jax.gaussian_noise(jax.random.key(42), jnp.zeros(4), 0.5)
    Array([-0.39563125, -0.71438247,  0.3279084 ,  0.17888984], dtype=float32)
    """
    stddev = _checked_number(stddev, "stddev")
    if isinstance(stddev, float) and not 0 <= stddev < math.inf:
        raise ValueError(f"`stddev` must be finite and at least 0, got {stddev!r}")
    return _drawn("gaussian_noise", key, x, stddev, noise_shape, broadcast_dims)


def alpha_dropout(
    key: jax.Array,
    x: jax.Array,
    rate: float | jax.Array,
    *,
    noise_shape: Sequence[int | None] | None = None,
    broadcast_dims: Sequence[int] = (),
) -> jax.Array:
    """Drop elements of `x` so that the mean and the variance of SELU's results stay the same.

    The dropout of self-normalizing networks. It drops the elements that `dropout` drops, and the
    derivatives are as there. An array that is distributed over devices is gathered, its gradient
    is not.

    On the CPU, `fastdrop.alpha_dropout` gives the same bits with the key's words as the seed.

    Args:
        key, x, rate, noise_shape, broadcast_dims: As for `dropout`.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError, ValueError: As for `dropout`.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> fastdrop_jax.alpha_dropout(jax.random.key(42), jnp.ones(4), 0.5)
    Array([-0.77919394,  1.6655989 , -0.77919394, -0.77919394], dtype=float32)
    """
    return _drawn("alpha_dropout", key, x, checked_rate(rate), noise_shape, broadcast_dims)


def _drawn(
    kind: str,
    key: jax.Array,
    x: jax.Array,
    parameter: float | jax.Array,
    noise_shape: Sequence[int | None] | None,
    broadcast_dims: Sequence[int],
) -> jax.Array:
    """Check the arguments that are left, and compute the random operation."""
    x, key = checked_input(x), checked_key(key)
    entries = _entries(x, noise_shape, broadcast_dims)
    if not isinstance(parameter, float):
        return _draw(key, x, parameter, noise_shape=entries, kind=kind)
    if parameter == 0:
        return x
    return _draw(key, x, np.array([parameter]).view(np.uint32), noise_shape=entries, kind=kind)


# Compiled for calls outside of `jax.jit`, for all rates.
@functools.partial(jax.jit, static_argnames=("noise_shape", "kind"), inline=True)
def _draw(
    key: jax.Array,
    x: jax.Array,
    parameter: jax.Array | np.ndarray,
    noise_shape: NoiseShape,
    kind: str,
) -> jax.Array:
    return operation.draw(x, words_of(key, parameter), noise_shape, kind)


@functools.partial(jax.jit, inline=True)
def _drop_at_rates(key: jax.Array, x: jax.Array, rates: jax.Array) -> jax.Array:
    """Drop elements by rates of the mask's shape."""
    unused = np.zeros(2, np.uint32)
    kept = operation.draw(rates, words_of(key, unused), (None,) * x.ndim, "bernoulli") != 0
    # Not infinite at rate 1, since the gradient would be NaN.
    scale = jnp.where(kept, 1 / (1 - lax.stop_gradient(rates)), 0)
    return jnp.where(kept, x * scale, 0).astype(x.dtype)


def words_of(key: jax.Array, parameter: jax.Array | np.ndarray) -> jax.Array:
    """Return the words of the operation for a key, and a number as a scalar or its bits."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if key.size not in (2, 4):
        raise ValueError(f"`key` must have 2 or 4 words, got {key.size}")
    if jnp.issubdtype(parameter.dtype, jnp.floating):
        parameter = _bits_of_float64(lax.stop_gradient(jnp.asarray(parameter)))
    # Under `jax.vmap`, JAX cannot concatenate keys that an explicit mesh distributes.
    seed = jnp.pad(key[:2], (0, key.size + 2)) | jnp.pad(key[2:], (4, 2))
    return seed | jnp.pad(parameter, (key.size + 2, 0))


def _bits_of_float64(x: jax.Array) -> jax.Array:
    """Return the bits of a number as float64. TPUs have no 64-bit types to convert to."""
    if x.dtype == jnp.float64:
        return lax.bitcast_convert_type(x, jnp.uint32)
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    sign, exponent, fraction = bits >> 31 << 31, bits >> 23 & 0xFF, bits & 0x7FFFFF
    wide = jnp.where(exponent == 0xFF, 0x7FF, exponent + (1023 - 127))
    high = sign | wide << 20 | fraction >> 3
    # A subnormal number counts as zero.
    return jnp.where(exponent == 0, 0, jnp.stack([fraction << 29, high]))


def checked_key(key: Any, name: str = "key") -> jax.Array:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and getattr(key, "dtype", None) != np.uint32:
        raise TypeError(f"`{name}` must be a key of jax.random, got {key!r}")
    if key.ndim != (0 if typed else 1):
        raise ValueError(
            f"`{name}` must be one key of jax.random, got {'keys' if typed else 'words'} of shape "
            f"{key.shape}"
        )
    return key


def checked_input(x: Any, name: str = "x") -> jax.Array:
    if not isinstance(x, jax.Array):
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError) as error:
            raise TypeError(f"`{name}` must be an array, got {x!r}") from error
    if x.dtype.name not in _DTYPES:
        dtypes = ", ".join(_DTYPES)
        raise TypeError(f"`{name}` must have one of the dtypes {dtypes}, got {x.dtype}")
    return x


def checked_rate(rate: Any, name: str = "rate", *, gaussian: bool = False) -> float | jax.Array:
    number = _checked_number(rate, name)
    if isinstance(number, float) and not (0 <= number < 1 or (number == 1 and not gaussian)):
        interval = "[0, 1) for Gaussian dropout" if gaussian else "[0, 1]"
        raise ValueError(f"`{name}` must be in {interval}, got {rate!r}")
    return number


def _checked_rates(given: Any, x: jax.Array, entries: NoiseShape) -> jax.Array:
    """Return an array of rates with the mask's shape and a dtype that the handler takes."""
    dtype = getattr(given, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`rate` must be a number or an array of floats, got {given!r}")
    shape = [1 if entry == 1 else size for entry, size in zip(entries, x.shape, strict=True)]
    try:
        rates = jnp.broadcast_to(given, shape)
    except ValueError as error:
        raise ValueError(
            f"`rate` must have a shape that can be broadcast to {tuple(shape)}, got {given.shape}"
        ) from error
    if not isinstance(given, jax.core.Tracer):
        numbers = np.asarray(given)
        wrong = numbers[~((numbers >= 0) & (numbers <= 1))]
        if wrong.size:
            raise ValueError(f"`rate` must be in [0, 1] for each element, got {wrong[0]}")
    return rates.astype(jnp.result_type(rates.dtype, x.dtype, np.float32))


def _checked_number(number: Any, name: str) -> float | jax.Array:
    """Return a float, or a traced number, whose value the handler checks."""
    dtype = getattr(number, "dtype", type(number))
    real = dtype in (float, int) or any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)
    )
    if not real or np.shape(number) != ():
        raise TypeError(f"`{name}` must be a number, got {number!r}")
    if isinstance(number, jax.core.Tracer):
        wide = number.dtype in (jnp.float32, jnp.float64)
        return number if wide else number.astype(jnp.float32)
    return float(number)


def _entries(
    x: jax.Array, noise_shape: Sequence[int | None] | None, broadcast_dims: Sequence[int]
) -> NoiseShape:
    """Return 1 for each dimension along which decisions are shared, and else `None`."""
    if noise_shape is None:
        shared = _checked_dims(broadcast_dims, x.ndim)
        return tuple(1 if i in shared else None for i in range(x.ndim))
    if broadcast_dims != ():
        raise ValueError(
            f"`broadcast_dims` must be () with a `noise_shape`, got {broadcast_dims!r}"
        )
    entries = noise_shape if isinstance(noise_shape, (tuple, list)) else (noise_shape,)
    if None not in entries:
        entries = (*(1,) * (x.ndim - len(entries)), *entries)
    if len(entries) != x.ndim or not all(
        entry is None or (not isinstance(entry, (bool, float)) and (entry == 1 or entry == size))
        for entry, size in zip(entries, x.shape, strict=True)
    ):
        raise ValueError(
            "`noise_shape` must have an entry for each dimension of `x`: None, 1 or the size, got "
            f"{noise_shape!r} for shape {x.shape}"
        )
    # Not `entry == 1` alone: sizes of an exported program may be symbols.
    return tuple(None if entry is None or entry != 1 else 1 for entry in entries)


def _checked_dims(dims: Sequence[int], rank: int) -> set[int]:
    try:
        numbers = [operator.index(dim) for dim in dims]
    except TypeError as error:
        raise TypeError(f"`broadcast_dims` must be a sequence of integers, got {dims!r}") from error
    if not all(-rank <= number < rank for number in numbers):
        raise ValueError(
            f"`broadcast_dims` must be dimensions of the array, which has {rank}, got {dims!r}"
        )
    return {number % rank for number in numbers}
