"""Checks the arguments of this package's layers and functions."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from fastdrop_keras.backend import BACKEND
from fastdrop_keras.inputs import NoiseShape


def checked_rate(rate: Any, argument: str = "rate") -> float:
    """Return `rate`, the value of `argument`, as a Python float."""
    return _checked_float(rate, argument, "a float value between 0 and 1", 1)


def checked_stddev(stddev: Any) -> float:
    """Return the standard deviation `stddev` as a Python float."""
    return _checked_float(stddev, "stddev", "a finite float value of at least 0", math.inf)


def _checked_float(value: Any, argument: str, expected: str, most: float) -> float:
    if hasattr(value, "numpy") or BACKEND.is_tensor(value):
        value = _number_of(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise wrong_type(argument, expected, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # Both, since a subclass may compare as another number.
    if not (0 <= value <= most and 0 <= number <= most and math.isfinite(number)):
        raise wrong_value(argument, expected, value)
    return number


def _number_of(tensor: Any) -> Any:
    """Return the number in a tensor or variable, for example from a Keras schedule.

    A tensor with dimensions, or without a value as in a traced function, is returned as it is.
    """
    value = tensor.value if isinstance(tensor, keras.Variable) else tensor
    of_tensorflow = hasattr(value, "numpy") and not hasattr(value, "detach")
    try:
        return tensor if np.ndim(value) else value.numpy() if of_tensorflow else value.item()
    except (AttributeError, NotImplementedError, TypeError):
        return tensor


def checked_number(value: Any, argument: str) -> float:
    """Return `value`, the value of `argument`, as a finite Python float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong_type(argument, "a finite number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise wrong_value(argument, "a finite number", value)
    return number


def checked_seed(seed: Any) -> int | None:
    """Return `seed` as a Python integer that fits Keras's seed generators."""
    if seed is None:
        return None
    if not _is_integer(seed):
        raise wrong_type("seed", "an integer or None", seed)
    number = operator.index(seed)
    if not 0 <= number < 2**63:
        raise wrong_value("seed", "an integer from 0 to 2**63 - 1 or None", number)
    return number


def checked_count(value: Any, argument: str) -> int:
    """Return `value`, the value of `argument`, as a positive Python integer."""
    if not _is_integer(value):
        raise wrong_type(argument, "a positive integer", value)
    if value < 1:
        raise wrong_value(argument, "a positive integer", value)
    return int(value)


def checked_data_format(data_format: Any) -> str:
    """Return `data_format`, or Keras's setting for `None`."""
    if data_format not in ("channels_first", "channels_last", None):
        formats = "'channels_first', 'channels_last' or None"
        raise wrong_value("data_format", formats, repr(data_format))
    return str(data_format or keras.config.image_data_format())


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def checked_length(arrays: list[Any], needed_by: str) -> int:
    """Return the length of the inputs `arrays` of the public function `needed_by`."""
    shapes = [tuple(array.shape) for array in arrays]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1 or shapes[0][0] == 0:
        raise ValueError(
            f"`{needed_by}` expects an array or arrays of one length, at least 1, for argument "
            f"`x`. Received arrays of shapes {shapes}"
        )
    return int(shapes[0][0])


def checked_noise_shape(noise_shape: Any) -> NoiseShape | None:
    """Return `noise_shape` as a tuple of positive integers and `None`s."""
    if noise_shape is None:
        return None
    if isinstance(noise_shape, str) or not isinstance(noise_shape, Iterable):
        raise wrong_value("noise_shape", "a tuple or list of integers", repr(noise_shape))
    noise_shape = tuple(noise_shape)
    for index, entry in enumerate(noise_shape):
        integer = _is_integer(entry)
        if entry is not None and not (integer and entry > 0):
            kind = "dimensions to be positive integers" if integer else "elements to be integers"
            found = f"{noise_shape}, with {entry!r} at index {index}"
            raise wrong_value("noise_shape", f"all {kind} or None", found)
    return tuple(None if entry is None else operator.index(entry) for entry in noise_shape)


def wrong_type(argument: str, expected: str, value: Any) -> TypeError:
    """Return the error for a value of the wrong type."""
    return TypeError(_message(argument, expected, f"{value!r} (of type {type(value).__name__})"))


def wrong_value(argument: str, expected: str, value: Any) -> ValueError:
    """Return the error for an invalid value."""
    try:
        return ValueError(_message(argument, expected, str(value)))
    except ValueError:
        # Python refuses to print integers of more than about 4,000 digits.
        return ValueError(_message(argument, expected, f"an integer of {value.bit_length()} bits"))


def _message(argument: str, expected: str, received: str) -> str:
    return (
        f"Invalid value received for argument `{argument}`. Expected {expected}. "
        f"Received: {argument}={received}"
    )
