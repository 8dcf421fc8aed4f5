"""Dropout as a differentiable TensorFlow function around fastdrop's kernels.

    x, seed, rate ──> forward ──> y
                         │
                       saved       the packed mask and the rate
                         │
              dy ──> backward ──> dx    linear in dy: its gradient is backward again

Two bridges do the same: native operations, and `tf.numpy_function` where those are not available.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

import fastdrop
from fastdrop_keras import native_bridge, numpy_bridge
from fastdrop_keras.native_bridge import NoiseShape

# The bridge of a forward pass, and the tensor that its backward pass needs.
Saved = tuple[Any, tf.Tensor]

SUPPORTED_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

VARIABLE = "FASTDROP_KERAS_BRIDGE"
BRIDGES = {"native": native_bridge, "numpy_function": numpy_bridge}


def _checked_bridge(name: str, argument: str) -> str:
    """Return the name of a bridge that is available."""
    if name not in BRIDGES:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected 'native' or "
            f"'numpy_function'. Received: {argument}={name!r}"
        )
    if name == "native" and native_bridge.OPERATIONS is None:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. The native bridge cannot be used: "
            f"{native_bridge.WHY_NOT}. Received: {argument}={name!r}"
        )
    return name


def _default_bridge() -> str:
    name = os.environ.get(VARIABLE)
    if name:
        try:
            return _checked_bridge(name, VARIABLE)
        except ValueError as error:
            raise ImportError(str(error)) from error
    return "numpy_function" if native_bridge.OPERATIONS is None else "native"


_name = _default_bridge()


def get_bridge() -> str:
    """Returns the name of the bridge from TensorFlow to the kernels.

    Returns:
        `"native"` or `"numpy_function"`: the argument of the last `set_bridge`. Before, the value
        of the environment variable `FASTDROP_KERAS_BRIDGE`. Without either, `"native"` if the
        native operations could be built and loaded; `fastdrop_keras.show_config` says why not.

    Example:

    >>> from fastdrop_keras import get_bridge
    >>> get_bridge() in ("native", "numpy_function")
    True
    """
    return _name


def set_bridge(name: str) -> None:
    """Sets the bridge from TensorFlow to the kernels.

    Both bridges give the same bits. Functions that are already traced keep their bridge.

    Args:
        name: `"native"` for operations in C; `"numpy_function"` for `tf.numpy_function`, which
            works with any TensorFlow and costs more: it calls Python, copies tensors when
            eager, and draws the mask again for the gradient.

    Raises:
        ValueError: If `name` is neither, or if the native operations are not available.

    Example:

    >>> from fastdrop_keras import get_bridge, set_bridge
    >>> before = get_bridge()
    >>> set_bridge("numpy_function")
    >>> get_bridge()
    'numpy_function'
    >>> set_bridge(before)
    """
    global _name
    _name = _checked_bridge(name, "name")


def show_config() -> None:
    """Prints what is installed and in use, for bug reports.

    Prints the output of `fastdrop.show_config`, the bridge, and why it is not the native one.

    Example:

    >>> import fastdrop_keras
    >>> fastdrop_keras.show_config()  # doctest: +ELLIPSIS
    fastdrop ...
      bridge to TensorFlow ...
    """
    fastdrop.show_config()
    why = f" (native not loaded: {native_bridge.WHY_NOT})" if native_bridge.WHY_NOT else ""
    print(f"  bridge to TensorFlow {tf.__version__}: {_name}{why}")


def dropout(
    x: tf.Tensor | tf.Variable,
    seed: tf.Tensor,
    rate: tf.Tensor,
    noise_shape: NoiseShape | None = None,
) -> tuple[tf.Tensor, Saved]:
    """Drop elements of `x`, with gradients of every order.

    Args:
        x: Tensor or variable of float16, bfloat16, float32 or float64, of any shape.
        seed: Integer tensor of shape `(2,)`: the seed's low word and the step; or `(3,)`, with
            the seed's high word after them.
        rate: Scalar float64 tensor, from 0 to 1.
        noise_shape: The mask's shape, broadcast against that of `x`: each entry 1, the size of
            `x` there, or `None` for that size. `None` draws for each element of `x`.

    Returns:
        A tensor of the dtype and shape of `x`; and a `Saved`, with which `dropout_again` drops
        the same elements of another tensor.

    Raises:
        TypeError: If `x` is sparse, ragged or of another dtype.
        ValueError: If `noise_shape` does not fit the static shape of `x`. If only the run can
            know, it raises `tf.errors.InvalidArgumentError`.
    """
    x = _checked(x)
    noise_shape = fitted(noise_shape, x.shape)
    bridge = BRIDGES[_name]
    y, saved = bridge.forward(x, seed, rate, noise_shape)
    return y, (bridge, saved)


def dropout_again(
    x: tf.Tensor | tf.Variable, saved: Saved, noise_shape: NoiseShape | None = None
) -> tf.Tensor:
    """Drop the elements of `x` that an earlier `dropout` dropped, with gradients of every order.

    Args:
        x: Tensor or variable, of the shape and dtype that `dropout` was given.
        saved: The second result of `dropout`.
        noise_shape: The same as for `dropout`.

    Returns:
        A tensor of the dtype and shape of `x`.

    Raises:
        TypeError, ValueError: As `dropout` does.
    """
    x = _checked(x)
    bridge, tensor = saved
    return bridge.backward(x, tensor, fitted(noise_shape, x.shape))


def fitted(
    noise_shape: NoiseShape | None, shape: tf.TensorShape | tuple[int, ...]
) -> NoiseShape | None:
    """Extend `noise_shape` to the rank of the input, and refuse one that cannot broadcast."""
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


def _checked(x: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Return `x` as a tensor that the kernels can read."""
    dense = not isinstance(x, (tf.SparseTensor, tf.RaggedTensor))
    dtype = getattr(x, "dtype", None)
    if not dense or dtype not in SUPPORTED_DTYPES:
        of_dtype = "" if dtype is None else f" of dtype {tf.as_dtype(dtype).name}"
        raise TypeError(
            "Dropout expects a dense tensor of dtype float16, bfloat16, float32 or float64. "
            f"Received: {type(x).__name__}{of_dtype}"
        )
    return tf.convert_to_tensor(x)
