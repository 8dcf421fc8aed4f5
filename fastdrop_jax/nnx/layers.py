"""Defines the dropout layers for Flax NNX, and the layer of Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from fastdrop_jax.functional import (
    alpha_dropout,
    checked_input,
    checked_key,
    dropout,
    gaussian_dropout,
    gaussian_noise,
)

Rngs = nnx.Rngs | nnx.RngStream


def checked_rngs(rngs: Any) -> nnx.Rngs:
    """Return `rngs`, for a layer with weights."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"`rngs` must be flax.nnx.Rngs, got {rngs!r}")
    return rngs


def stream_of(rngs: nnx.Rngs, name: str) -> nnx.RngStream:
    """Return the stream of this name or, without it, the default one."""
    try:
        return rngs[name]
    except KeyError:
        # Flax raises it too, without the remedy.
        raise KeyError(
            f"`rngs` must have a stream {name!r}, as nnx.Rngs(params=0, {name}=1) has, or a "
            f"default one, as nnx.Rngs(0) has, got the streams {list(rngs)}"
        ) from None


class RandomLayer(nnx.Module):
    """Calls a random function with keys, unless `deterministic`, as `flax.nnx.Dropout` does."""

    def __init__(
        self,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        if not isinstance(rngs, (nnx.Rngs, nnx.RngStream, type(None))):
            raise TypeError(f"`rngs` must be flax.nnx.Rngs, a stream of it or None, got {rngs!r}")
        stream: Any = stream_of(rngs, rng_collection) if isinstance(rngs, nnx.Rngs) else rngs
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = nnx.data(None) if stream is None else stream.fork()

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Call the function, unless `deterministic`.

        Args:
            inputs: Array of float16, bfloat16, float32 or float64, of any shape.
            deterministic: Whether to return the inputs; the layer's own setting if `None`.
            rngs: Keys in place of the layer's: a key, a stream or `flax.nnx.Rngs`.

        Returns:
            Array of the shape and dtype of the inputs.
        """
        chosen = self.deterministic if deterministic is None else deterministic
        name = type(self).__name__
        if chosen is None:
            raise ValueError(f"No `deterministic` was given to {name} or to its call")
        if chosen:
            return self._infer(inputs)
        keys: Any = self.rngs if rngs is None else rngs
        if isinstance(keys, nnx.Rngs):
            keys = stream_of(keys, self.rng_collection)
        if keys is None:
            raise ValueError(f"{name} draws, but no `rngs` were given to it or to its call")
        if not isinstance(keys, (nnx.RngStream, jax.Array)):
            raise TypeError(f"`rngs` must be a key, a stream or flax.nnx.Rngs, got {keys!r}")
        inputs = self._checked(inputs)
        key = checked_key(keys, "rngs") if isinstance(keys, jax.Array) else keys()
        return self._draw(key, inputs)

    def _checked(self, inputs: Any) -> jax.Array:
        return checked_input(inputs, "inputs")

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _infer(self, inputs: jax.Array) -> jax.Array:
        return inputs

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the attributes that `flax.nnx.view` changes.

        Args:
            deterministic: Whether to return the inputs; `None` to change nothing.
        """
        if deterministic is not None:
            self.deterministic = deterministic


class Dropout(RandomLayer, nnx.Dropout):
    """Drops elements in training, as `flax.nnx.Dropout` does, by `fastdrop_jax.dropout`.

    The layer splits the same keys from `rngs`, and so replaces Flax's in a model and in its saved
    state. Its masks are others. The rate may be traced, and is checked: Flax takes any number.

    Args:
        rate: Fraction of the elements to drop, from 0 to 1.
        broadcast_dims: The dimensions along which decisions are shared.
        deterministic: Whether to return the inputs, as in inference.
        rng_collection: The name of the stream of keys in `rngs`.
        rngs: `flax.nnx.Rngs` or a stream of it, or `None` if each call gets one.

    Raises:
        TypeError, ValueError: As for `fastdrop_jax.dropout`, when the layer is called.

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import Dropout  # instead of: from flax.nnx import Dropout
    >>> layer = Dropout(0.5, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones(8))
    Array([0., 2., 2., 0., 0., 0., 2., 0.], dtype=float32)
    >>> layer.eval()
    >>> layer(jnp.ones(4))
    Array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(self, rate: float, *, broadcast_dims: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.broadcast_dims = rate, broadcast_dims

    def __call__(self, inputs: jax.Array, **kwargs: Any) -> jax.Array:
        """Drop elements of the inputs, unless `deterministic`.

        Args:
            inputs: Array of float16, bfloat16, float32 or float64, of any shape.
            deterministic: Whether to return the inputs; the layer's own setting if `None`.
            rngs: Keys in place of the layer's: a key, a stream or `flax.nnx.Rngs`.

        Returns:
            Array of the shape and dtype of the inputs.
        """
        rate: Any = self.rate
        # `True` is no rate, though it is 1.
        boolean = isinstance(rate, bool) or getattr(rate, "dtype", None) == "bool"
        array = isinstance(rate, jax.core.Tracer) or getattr(rate, "ndim", False)
        if not boolean and not array and rate in (0, 1):
            result: jax.Array = nnx.Dropout.__call__(self, inputs, **kwargs)  # uses no key
            return result
        return super().__call__(inputs, **kwargs)

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return dropout(key, inputs, self.rate, broadcast_dims=self.broadcast_dims)


class GaussianDropout(RandomLayer):
    """Multiplies its inputs by Gaussian noise in training, by `fastdrop_jax.gaussian_dropout`.

    The noise has the mean 1 and the variance ``rate / (1 - rate)``. The keys are split as those of
    `flax.nnx.Dropout`.

    Args:
        rate: The rate of the dropout that the variance is that of, at least 0 and below 1.
        broadcast_dims, deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If `rngs` is of another type.
        TypeError, ValueError: As for `fastdrop_jax.gaussian_dropout`, when the layer is called,
            and if it draws without keys.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import GaussianDropout
    >>> layer = GaussianDropout(0.5, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones(4))
    Array([ 0.9067269 , -0.15856564,  1.265085  ,  0.35249817], dtype=float32)
    >>> layer.eval()
    >>> layer(jnp.ones(4))
    Array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(
        self, rate: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.broadcast_dims = rate, broadcast_dims

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return gaussian_dropout(key, inputs, self.rate, broadcast_dims=self.broadcast_dims)


class GaussianNoise(RandomLayer):
    """Adds Gaussian noise of mean 0 in training, by `fastdrop_jax.gaussian_noise`.

    The keys are split as those of `flax.nnx.Dropout`.

    Args:
        stddev: The standard deviation, finite and at least 0.
        broadcast_dims, deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If `rngs` is of another type.
        TypeError, ValueError: As for `fastdrop_jax.gaussian_noise`, when the layer is called,
            and if it draws without keys.

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import GaussianNoise
    >>> GaussianNoise(0.5, rngs=nnx.Rngs(0))(jnp.zeros(4))
    Array([-0.04663655, -0.5792828 ,  0.13254249, -0.3237509 ], dtype=float32)
    """

    def __init__(
        self, stddev: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.stddev, self.broadcast_dims = stddev, broadcast_dims

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return gaussian_noise(key, inputs, self.stddev, broadcast_dims=self.broadcast_dims)


class AlphaDropout(RandomLayer):
    """Drops elements in training, and keeps the mean and the variance of SELU's results.

    The layer calls `fastdrop_jax.alpha_dropout`. The keys are split as those of `flax.nnx.Dropout`.

    Args:
        rate: Fraction of the elements to drop, from 0 to 1.
        broadcast_dims, deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If `rngs` is of another type.
        TypeError, ValueError: As for `fastdrop_jax.alpha_dropout`, when the layer is called,
            and if it draws without keys.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import AlphaDropout
    >>> AlphaDropout(0.5, rngs=nnx.Rngs(0))(jnp.ones(4))
    Array([-0.77919394,  1.6655989 ,  1.6655989 , -0.77919394], dtype=float32)
    """

    def __init__(
        self, rate: float | jax.Array, *, broadcast_dims: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.broadcast_dims = rate, broadcast_dims

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return alpha_dropout(key, inputs, self.rate, broadcast_dims=self.broadcast_dims)
