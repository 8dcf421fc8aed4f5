"""The shape of a mask, as far as it is known, and what it means for an input."""

from __future__ import annotations

import math

import tensorflow as tf

NoiseShape = tuple[int | None, ...]

_SCALE_BYTES = 8


def fitted(
    noise_shape: NoiseShape | None, shape: tf.TensorShape | tuple[int, ...]
) -> NoiseShape | None:
    """Extend `noise_shape` to the rank of the input, and refuse what cannot broadcast."""
    shape = tf.TensorShape(shape)
    if noise_shape is None or shape.rank is None:
        return noise_shape
    entries = noise_shape
    if None not in noise_shape:
        # As in any broadcast, a shape of fewer dimensions counts from the last one. A `None` in
        # it would be a guess: Keras counts those from the first.
        entries = (1,) * (shape.rank - len(noise_shape)) + noise_shape
    if len(entries) != shape.rank or not all(
        entry in (None, 1) or size in (None, entry)
        for entry, size in zip(entries, shape, strict=True)
    ):
        raise ValueError(
            "Invalid value received for argument `noise_shape`. Expected as many entries as the "
            "input has dimensions, each None, 1 or the input's size there. "
            f"Received: noise_shape={noise_shape} for an input of shape {tuple(shape)}"
        )
    return entries


def residual_shape(noise_shape: NoiseShape | None, shape: tf.TensorShape) -> list[int | None]:
    """Return the residual's static shape."""
    if not shape.is_fully_defined():
        return [None]
    sizes = shape.as_list()
    if noise_shape is not None:
        sizes = [
            size if entry is None else entry for entry, size in zip(noise_shape, sizes, strict=True)
        ]
    return [math.ceil(math.prod(sizes) / 8) + _SCALE_BYTES]
