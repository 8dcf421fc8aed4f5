"""Dropout as a differentiable TensorFlow operation around fastdrop's kernels.

    x, seed ──> forward ──> y
                   │
               residual           the packed mask bits and the rate: all that lives in between
                   │
        dy ──> backward ──> dx    linear in dy, so its own gradient is the same backward again

Two bridges lead from TensorFlow to the kernels, which do the same: native operations, and Python
functions where those cannot be had. Where TensorFlow computes the forward pass again for a
gradient, it is `backward` that does it, from the same residual.
"""

from __future__ import annotations

import os

import tensorflow as tf

import fastdrop
from fastdrop_keras import native_bridge, native_library, python_bridge
from fastdrop_keras.dial import Dial
from fastdrop_keras.noise_shape import NoiseShape, fitted, residual_shape

SUPPORTED_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

VARIABLE = "FASTDROP_KERAS_BRIDGE"
BRIDGES = {"native": native_bridge, "numpy_function": python_bridge}


def _checked_bridge(name: str, argument: str) -> str:
    """Return the name of a bridge that can be used."""
    if name not in BRIDGES:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected 'native' or "
            f"'numpy_function'. Received: {argument}={name!r}"
        )
    if name == "native" and native_library.OPERATIONS is None:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. The native bridge cannot be used: "
            f"{native_library.WHY_NOT}. Received: {argument}={name!r}"
        )
    return name


def _first_bridge() -> str:
    name = os.environ.get(VARIABLE)
    if name:
        try:
            return _checked_bridge(name, VARIABLE)
        except ValueError as error:
            raise ImportError(str(error)) from error
    return "numpy_function" if native_library.OPERATIONS is None else "native"


_name = _first_bridge()


def get_bridge() -> str:
    """Returns which way the layers take from TensorFlow to the kernels.

    Returns:
        `"native"` or `"numpy_function"`: what `set_bridge` was given; at first what the
        environment variable `FASTDROP_KERAS_BRIDGE` says; without it, `"native"` where the native
        operations could be built and loaded, which `fastdrop_keras.show_config` tells.

    Example:

    >>> from fastdrop_keras import get_bridge
    >>> get_bridge() in ("native", "numpy_function")
    True
    """
    return _name


def set_bridge(name: str) -> None:
    """Sets which way the layers take from TensorFlow to the kernels.

    Both give the same bits. Functions that are traced already stay as they are.

    Args:
        name: `"native"` for operations in C, or `"numpy_function"` for Python functions in
            `tf.numpy_function`, which every TensorFlow can run and which cost more.

    Raises:
        ValueError: If `name` is neither, or if the native operations could not be loaded here.

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

    What `fastdrop.show_config` prints, and the bridge, with the reason if it is not the native one.

    Example:

    >>> import fastdrop_keras
    >>> fastdrop_keras.show_config()  # doctest: +ELLIPSIS
    fastdrop ...
      bridge to TensorFlow ...
    """
    fastdrop.show_config()
    why = f" (native not loaded: {native_library.WHY_NOT})" if native_library.WHY_NOT else ""
    print(f"  bridge to TensorFlow {tf.__version__}: {_name}{why}")


def dropout(
    x: tf.Tensor | tf.Variable,
    seed: tf.Tensor,
    dial: Dial,
    noise_shape: NoiseShape | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`, with gradients of every order.

    Args:
        x: Tensor or variable of float16, bfloat16, float32 or float64, of any shape.
        seed: Integer tensor of shape `(2,)`, the seed's low word and the step; or `(3,)`, with
            the seed's high word after them.
        dial: Where the rate is read, at each run.
        noise_shape: The mask's shape, broadcast against that of `x`: each entry 1, the size of
            `x` there, or `None` for that size. `None` draws for each element of `x`.

    Returns:
        A tensor of the dtype and shape of `x`, and the residual, with which `dropout_again` drops
        the same elements of another tensor.

    Raises:
        TypeError: If `x` is sparse, ragged or of another dtype.
        ValueError: If `noise_shape` does not fit the static shape of `x`. What only the run can
            know is an `InvalidArgumentError` there.
    """
    x = _checked(x)
    noise_shape = fitted(noise_shape, x.shape)
    y, residual = BRIDGES[_name].drop(x, seed, dial, noise_shape)
    if not tf.executing_eagerly():
        residual.set_shape(residual_shape(noise_shape, x.shape))
    return y, residual


def dropout_again(
    x: tf.Tensor | tf.Variable, residual: tf.Tensor, noise_shape: NoiseShape | None = None
) -> tf.Tensor:
    """Drop from `x` what an earlier `dropout` has dropped, with gradients of every order.

    Args:
        x: Tensor or variable, of the shape and dtype that `dropout` was given.
        residual: What it returned.
        noise_shape: What it was given.

    Returns:
        A tensor of the dtype and shape of `x`.

    Raises:
        TypeError: If `x` is sparse, ragged or of another dtype.
        ValueError: If `noise_shape` does not fit the static shape of `x`. What only the run can
            know is an `InvalidArgumentError` there.
    """
    x = _checked(x)
    return BRIDGES[_name].drop_again(x, residual, fitted(noise_shape, x.shape))


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
