"""Checks what a dropout layer is called with, for each backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

NoiseShape = tuple[int | None, ...]


def fitted(noise_shape: NoiseShape | None, shape: Sequence[int | None] | None) -> NoiseShape | None:
    """Return `noise_shape` with the input's rank, or raise a ValueError if it cannot broadcast.

    `shape` is `None` if the rank is not known, and an entry is `None` if that size is not known.
    """
    if noise_shape is None or shape is None:
        return noise_shape
    entries = noise_shape
    if None not in noise_shape:
        # A shape of fewer dimensions is aligned at the last axis, as NumPy does. With `None` in it,
        # that would be ambiguous: Keras aligns such a shape at the first axis.
        entries = (1,) * (len(shape) - len(noise_shape)) + noise_shape
    if len(entries) != len(shape) or not all(
        entry in (None, 1) or size in (None, entry)
        for entry, size in zip(entries, shape, strict=True)
    ):
        raise ValueError(
            "Invalid value received for argument `noise_shape`. Expected as many entries as the "
            "input has dimensions, each None, 1 or the input's size there. "
            f"Received: noise_shape={noise_shape} for an input of shape {tuple(shape)}"
        )
    return entries


def check_floats(inputs: Any) -> None:
    """Raise a TypeError if a tensor has a dtype without dropout."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise wrong_input(inputs, dtype)


def wrong_input(x: Any, dtype: str | None, detail: str = "") -> TypeError:
    """Return the error for an input that the kernels do not take."""
    of_dtype = "" if dtype is None else f" of dtype {dtype}"
    return TypeError(
        "Dropout expects a dense tensor of dtype float16, bfloat16, float32 or float64. "
        f"Received: {type(x).__name__}{of_dtype}{detail}"
    )
