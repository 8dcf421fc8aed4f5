"""Estimates uncertainty by predictions with dropout (Monte Carlo dropout)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdrop_jax.functional import checked_key


def mc_predict(
    function: Callable[[jax.Array, Any], Any], x: Any, n: int = 100, *, key: jax.Array
) -> tuple[Any, Any]:
    """Call a random function `n` times, and return the mean and the standard deviation.

    The function gets another key in each pass, ``jax.random.split(key, n)``. The passes are a
    `jax.lax.scan` that updates both moments by Welford's algorithm, in float32 or, for outputs of
    float64, in that: memory does not grow with `n`. Call it in a `jax.jit` to compile once for many
    `x`; derivatives keep what each pass keeps. `fastdrop_jax.nnx.mc_predict` is for models of Flax.

    Args:
        function: ``function(key, x)``, which returns an array or a pytree of arrays.
        x: The function's argument, any pytree.
        n: Positive integer, the number of passes.
        key: Key of `jax.random`.

    Returns:
        A tuple ``(mean, standard deviation)``, each with the structure of the function's result.
        The deviation is the population's: for ``n=1`` it is 0.

    Raises:
        TypeError: If `n` is not an integer, `key` is not a key, or a result is not of floats.
        ValueError: If `n` is not positive, or `key` is not one key.

    Reference:

    - [Gal and Ghahramani, 2016](https://proceedings.mlr.press/v48/gal16.html)

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from fastdrop_jax import dropout, mc_predict
    >>> def predict(key, x):
    ...     return dropout(key, x, 0.5).sum(axis=1)
    >>> mean, deviation = mc_predict(predict, jnp.ones((2, 1000)), 200, key=jax.random.key(1))
    >>> bool(abs(mean - 1000).max() < 10), bool(abs(deviation - 1000**0.5).max() < 5)
    (True, True)
    """
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"`n` must be a positive integer, got {n!r}") from None
    if isinstance(n, bool) or count < 1:
        raise ValueError(f"`n` must be a positive integer, got {n!r}")
    key = checked_key(key)

    def output_of(key: jax.Array) -> Any:
        return jax.tree.map(_wide, function(key, x))

    def add(moments: Any, numbered: Any) -> Any:
        (mean, squares), (number, key) = moments, numbered
        output = output_of(key)
        change = jax.tree.map(jnp.subtract, output, mean)
        mean = jax.tree.map(lambda m, d: m + d / number.astype(m.dtype), mean, change)
        squares = jax.tree.map(lambda s, d, y, m: s + d * (y - m), squares, change, output, mean)
        return (mean, squares), None

    keys = jax.random.split(key, count)
    zeros = jax.tree.map(
        lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(output_of, key)
    )
    (mean, squares), _ = lax.scan(add, (zeros, zeros), (jnp.arange(1, count + 1), keys))
    return mean, jax.tree.map(lambda s: _root(s / count), squares)


def _root(variance: jax.Array) -> jax.Array:
    """Return the square root, with the derivative 0 at 0, where it is infinite."""
    varies = variance != 0
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0)


def _wide(output: Any) -> jax.Array:
    """Return an output of float32 or float64."""
    dtype = jnp.result_type(output)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"The results must be arrays of floats, got {dtype}")
    return jnp.asarray(output, jnp.promote_types(dtype, jnp.float32))
