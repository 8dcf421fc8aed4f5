"""Defines `drop_block`, which drops blocks of images."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdrop_jax.functional import checked_input, checked_rate, dropout


def drop_block(
    key: jax.Array,
    x: jax.Array,
    rate: float | jax.Array,
    block_size: int | Sequence[int],
    *,
    per_channel: bool = True,
) -> jax.Array:
    """Drop blocks of images or feature maps (DropBlock).

    Blocks of `block_size` are placed at random, and may overlap. All elements in a block become
    ``+0.0``, even those that were NaN or infinite. Each position at which a block lies within the
    image has a block with probability::

        rate / (block_height * block_width) * (height * width)
            / ((height - block_height + 1) * (width - block_width + 1))

    so about `rate` of the elements are dropped, and fewer if blocks overlap. The other elements are
    multiplied by the number of all elements of `x` over the number of kept ones. As in the authors'
    code, a block that is larger than the image becomes as large as the image.

    The positions are those that `dropout` drops with the key in an array of shape ``(...,
    height - block_height + 1, width - block_width + 1, channels)``.

    Args:
        key: As for `dropout`.
        x: Array of shape ``(..., height, width, channels)``, of a dtype as for `dropout`. Under
            `jax.vmap`, each array is scaled by its own kept elements.
        rate: Fraction of the elements to drop, from 0 to 1. It may be traced, as for `dropout`.
        block_size: Positive integer, or two for the height and the width of the blocks.
        per_channel: Whether each channel has blocks of its own, as in the paper. `False` drops the
            same blocks in all channels, which is faster.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError: As for `dropout`, or if `block_size` is of another type.
        ValueError: As for `dropout`, or if `block_size` is not one or two positive integers, or `x`
            has less than three dimensions.

    Reference:

    - [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890)

    Example:

    >>> import jax, jax.numpy as jnp, fastdrop_jax
    >>> y = fastdrop_jax.drop_block(jax.random.key(1), jnp.ones((4, 5, 1)), 0.2, block_size=2)
    >>> y[:, :, 0]
    Array([[1.25, 0.  , 0.  , 1.25, 1.25],
           [1.25, 0.  , 0.  , 1.25, 1.25],
           [1.25, 1.25, 1.25, 1.25, 1.25],
           [1.25, 1.25, 1.25, 1.25, 1.25]], dtype=float32)
    """
    x, rate, sizes = checked_images(x), checked_rate(rate), _checked_sizes(block_size)
    window, positions = [], []
    scaled: Any = rate
    for size, block in zip(x.shape[-3:-1], sizes, strict=True):
        window.append(min(block, max(size, 1)))
        positions.append(max(size, 1) - window[-1] + 1)
        scaled = scaled * (size / (window[-1] * positions[-1]))
    shape = (*x.shape[:-3], *positions, x.shape[-1] if per_channel else 1)
    if not isinstance(rate, float):
        # A wrong traced rate is refused at run time, also where the scaled one would be right.
        scaled = jnp.where((rate >= 0) & (rate <= 1), scaled, rate)
    starts = dropout(key, jnp.ones(shape), scaled) == 0
    return _without_blocks(x, starts, (window[0], window[1]))


# Compiled for calls outside of `jax.jit`.
@functools.partial(jax.jit, static_argnames=("window",), inline=True)
def _without_blocks(x: jax.Array, starts: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Drop the blocks that begin at `starts`, and scale the rest."""
    sizes = (*(1,) * (x.ndim - 3), *window, 1)
    around = [(size - 1, size - 1) for size in sizes]
    blocks = lax.reduce_window(starts, False, lax.bitwise_or, sizes, (1,) * x.ndim, around)
    kept = ~blocks[..., : x.shape[-3], : x.shape[-2], :]
    # Integers, since their sum does not depend on the order.
    count = jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scale = jnp.asarray(kept.size, wide) / count.astype(wide)
    return jnp.where(kept, (x.astype(wide) * scale).astype(x.dtype), 0)


def checked_images(x: Any, name: str = "x") -> jax.Array:
    x = checked_input(x, name)
    if x.ndim < 3:
        raise ValueError(
            f"`{name}` must have the shape (..., height, width, channels), got shape {x.shape}"
        )
    return x


def _checked_sizes(block_size: Any) -> tuple[int, ...]:
    given = block_size if isinstance(block_size, (tuple, list)) else (block_size,) * 2
    try:
        if bool in map(type, given):
            raise TypeError
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        raise TypeError(
            f"`block_size` must be a positive integer or two, got {block_size!r}"
        ) from None
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"`block_size` must be a positive integer or two, got {block_size!r}")
    return sizes
