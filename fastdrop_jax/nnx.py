"""Defines the dropout layer for Flax NNX, with the arguments of Flax's own.

>>> from fastdrop_jax.nnx import Dropout  # instead of: from flax.nnx import Dropout
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from fastdrop_jax.functional import dropout

__all__ = ["Dropout"]


class Dropout(nnx.Dropout):
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

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Drop elements of the inputs, unless `deterministic`.

        Args:
            inputs: Array of float16, bfloat16, float32 or float64, of any shape.
            deterministic: Whether to return the inputs; the layer's own setting if `None`.
            rngs: Keys in place of the layer's: a key, a stream or `flax.nnx.Rngs`.

        Returns:
            Array of the shape and dtype of the inputs.
        """
        flags = (deterministic, self.deterministic)
        chosen = next((flag for flag in flags if flag is not None), None)
        keys: Any = self.rngs if rngs is None else rngs
        if isinstance(keys, nnx.Rngs):
            keys = keys[self.rng_collection]
        traced = isinstance(self.rate, jax.core.Tracer)
        drops = chosen is not None and not chosen and (traced or self.rate not in (0, 1))
        if not drops or not isinstance(keys, (nnx.RngStream, jax.Array)):
            # Flax raises an error, or uses no key.
            result: jax.Array = super().__call__(inputs, deterministic=deterministic, rngs=rngs)
            return result
        key = keys if isinstance(keys, jax.Array) else keys()
        return dropout(key, inputs, self.rate, broadcast_dims=self.broadcast_dims)
