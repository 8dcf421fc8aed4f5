"""Defines the dropout layer for Equinox, with the arguments of Equinox's own.

>>> from fastdrop_jax.equinox import Dropout  # instead of: from equinox.nn import Dropout
"""

from __future__ import annotations

from typing import Any

import equinox
import jax

from fastdrop_jax.functional import dropout

__all__ = ["Dropout"]


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
        return dropout(key, x, self.p)
