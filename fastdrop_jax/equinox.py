"""Defines the dropout layers for Equinox, with the arguments of Equinox's own.

>>> from fastdrop_jax.equinox import Dropout  # instead of: from equinox.nn import Dropout
"""

from __future__ import annotations

from typing import Any

import equinox
import jax

from fastdrop_jax.functional import (
    alpha_dropout,
    checked_rate,
    dropout,
    gaussian_dropout,
    gaussian_noise,
)

__all__ = ["AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"]


class Dropout(equinox.nn.Dropout):
    """Drops elements in training, as `equinox.nn.Dropout` does, by `fastdrop_jax.dropout`.

    Args:
        p: Fraction of the elements to drop, from 0 to 1.
        inference: Whether to return the inputs. `equinox.nn.inference_mode` sets it.

    Raises:
        RuntimeError: If a call drops elements and has no key.
        TypeError, ValueError: As for `fastdrop_jax.dropout`, when the layer is called.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from fastdrop_jax.equinox import Dropout  # instead of: from equinox.nn import Dropout
    >>> Dropout(0.5)(jnp.ones(8), key=jax.random.key(42))
    Array([0., 2., 0., 0., 0., 0., 2., 0.], dtype=float32)
    """

    def __call__(
        self,
        x: jax.Array,
        *,
        key: jax.Array | None = None,
        inference: bool | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array:
        """Drop elements of `x`, unless in inference.

        Args:
            x: Array of float16, bfloat16, float32 or float64, of any shape.
            key: Key of `jax.random`.
            inference: Whether to return `x`; the layer's own setting if `None`.
            deterministic: Equinox's former name of `inference`.

        Returns:
            Array of the shape and dtype of `x`.
        """
        chosen: Any = self.inference if inference is None else inference
        if key is None or chosen or deterministic is not None:
            # Equinox returns the inputs, raises an error or warns.
            result: jax.Array = super().__call__(
                x, key=key, inference=inference, deterministic=deterministic
            )
            return result
        rates = getattr(self.p, "ndim", False)
        return dropout(key, x, self.p if rates else checked_rate(self.p, "p"))


class RandomLayer(equinox.Module):
    """Calls a random function with a key, unless in inference."""

    inference: bool

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None, inference: bool | None = None
    ) -> jax.Array:
        """Call the function, unless in inference.

        Args:
            x: Array of float16, bfloat16, float32 or float64, of any shape.
            key: Key of `jax.random`.
            inference: Whether to return `x`; the layer's own setting if `None`.

        Returns:
            Array of the shape and dtype of `x`.
        """
        if self.inference if inference is None else inference:
            return x
        if key is None:
            raise RuntimeError(f"{type(self).__name__} requires a key, unless in inference")
        return self._draw(key, x)

    def _draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        raise NotImplementedError


class GaussianDropout(RandomLayer):
    """Multiplies its inputs by Gaussian noise in training, by `fastdrop_jax.gaussian_dropout`.

    Args:
        p: The rate of the dropout that the variance is that of, at least 0 and below 1.
        inference: Whether to return the inputs. `equinox.nn.inference_mode` sets it.

    Raises:
        RuntimeError: If a call draws and has no key.
        TypeError, ValueError: As for `fastdrop_jax.gaussian_dropout`, when the layer is called.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from fastdrop_jax.equinox import GaussianDropout
    >>> GaussianDropout(0.5)(jnp.ones(4), key=jax.random.key(42))
    Array([ 0.2087375 , -0.42876494,  1.6558168 ,  1.3577797 ], dtype=float32)
    """

    p: float

    def __init__(self, p: float, inference: bool = False) -> None:
        self.p, self.inference = p, inference

    def _draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return gaussian_dropout(key, x, checked_rate(self.p, "p", gaussian=True))


class GaussianNoise(RandomLayer):
    """Adds Gaussian noise of mean 0 in training, by `fastdrop_jax.gaussian_noise`.

    Args:
        stddev: The standard deviation, finite and at least 0.
        inference: Whether to return the inputs. `equinox.nn.inference_mode` sets it.

    Raises:
        RuntimeError: If a call draws and has no key.
        TypeError, ValueError: As for `fastdrop_jax.gaussian_noise`, when the layer is called.

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from fastdrop_jax.equinox import GaussianNoise
    >>> GaussianNoise(0.5)(jnp.zeros(4), key=jax.random.key(42))
    Array([-0.39563125, -0.71438247,  0.3279084 ,  0.17888984], dtype=float32)
    """

    stddev: float

    def __init__(self, stddev: float, inference: bool = False) -> None:
        self.stddev, self.inference = stddev, inference

    def _draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return gaussian_noise(key, x, self.stddev)


class AlphaDropout(RandomLayer):
    """Drops elements in training, and keeps the mean and the variance of SELU's results.

    The layer calls `fastdrop_jax.alpha_dropout`.

    Args:
        p: Fraction of the elements to drop, from 0 to 1.
        inference: Whether to return the inputs. `equinox.nn.inference_mode` sets it.

    Raises:
        RuntimeError: If a call drops elements and has no key.
        TypeError, ValueError: As for `fastdrop_jax.alpha_dropout`, when the layer is called.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from fastdrop_jax.equinox import AlphaDropout
    >>> AlphaDropout(0.5)(jnp.ones(4), key=jax.random.key(42))
    Array([-0.77919394,  1.6655989 , -0.77919394, -0.77919394], dtype=float32)
    """

    p: float

    def __init__(self, p: float, inference: bool = False) -> None:
        self.p, self.inference = p, inference

    def _draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return alpha_dropout(key, x, checked_rate(self.p, "p"))
