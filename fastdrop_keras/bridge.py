"""Defines dropout and noise as differentiable TensorFlow functions that call fastdrop's kernels.

    x, seed, rate ──> forward ──> y
                         │
                       saved       the packed mask and the rate
                         │
              dy ──> backward ──> dx    linear in dy: its gradient is backward again

Other random operations save nothing, and draw again for the gradient.

There are two bridges to the kernels: native operations, and `tf.numpy_function` where TensorFlow
cannot load native operations. Both give the same bits.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from fastdrop_keras import inputs, native_bridge, numpy_bridge, xla_bridge
from fastdrop_keras.inputs import NoiseShape

# The bridge of a forward pass, and the tensor `saved` for its backward pass.
Saved = tuple[Any, tf.Tensor]

SUPPORTED_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

VARIABLE = "FASTDROP_KERAS_BRIDGE"
BRIDGES = {"native": native_bridge, "numpy_function": numpy_bridge}


def _checked_bridge(name: str, argument: str) -> str:
    """Return `name`, or raise a ValueError if there is no such bridge here."""
    if name not in BRIDGES:
        problem = "Expected 'native' or 'numpy_function'"
    elif name == "native" and native_bridge.OPERATIONS is None:
        problem = f"The native bridge cannot be used: {native_bridge.WHY_NOT}"
    else:
        return name
    raise ValueError(
        f"Invalid value received for argument `{argument}`. {problem}. "
        f"Received: {argument}={name!r}"
    )


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
        `"native"` or `"numpy_function"`: the argument of the last `set_bridge`, else the value of
        the environment variable `FASTDROP_KERAS_BRIDGE`. Without either, `"native"` if the native
        operations are built and loaded. If they are not, `fastdrop_keras.show_config` says why.

    Example:

    >>> from fastdrop_keras import get_bridge
    >>> get_bridge() in ("native", "numpy_function")
    True
    """
    return _name


def set_bridge(name: str) -> None:
    """Sets the bridge from TensorFlow to the kernels.

    Both bridges give the same bits. Traced functions keep the bridge that they were traced with.

    Args:
        name: `"native"` for operations in C; `"numpy_function"` for `tf.numpy_function`, which
            works with any TensorFlow and is slower: it calls Python, copies tensors in eager
            calls, and draws the mask again for the gradient.

    Raises:
        ValueError: If `name` is another value, or if the native operations are not available.

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


def config_lines() -> list[str]:
    """Return the lines about TensorFlow for `fastdrop_keras.show_config`."""
    why = f" (native not loaded: {native_bridge.WHY_NOT})" if native_bridge.WHY_NOT else ""
    return [
        f"bridge to TensorFlow {tf.__version__}: {_name}{why}",
        f"compiled by XLA: {f'no ({xla_bridge.WHY_NOT})' if xla_bridge.WHY_NOT else 'yes'}",
    ]


def check(x: tf.Tensor | tf.Variable, noise_shape: NoiseShape | None) -> None:
    """Raise the errors of `dropout` for its input."""
    _fitted(noise_shape, _checked(x))


def dropout(
    x: tf.Tensor | tf.Variable,
    seed: tf.Tensor,
    rate: tf.Tensor,
    noise_shape: NoiseShape | None = None,
) -> tuple[tf.Tensor, Saved]:
    """Drop elements of `x`, with gradients of every order.

    Args:
        x: Tensor or variable of float16, bfloat16, float32 or float64, of any shape.
        seed: Integer tensor of the seed's low word, the step and, optionally, the seed's high word.
        rate: Scalar float64 tensor, from 0 to 1.
        noise_shape: The mask's shape, broadcast against the shape of `x`. An entry is 1, the size
            of `x` there, or `None` for that size. `None` draws for each element of `x`.

    Returns:
        A tensor of the dtype and shape of `x`, and a `Saved` for `dropout_again`.

    Raises:
        TypeError: If `x` is sparse, ragged or of another dtype.
        ValueError: If `noise_shape` does not fit the static shape of `x`. If the shape is known
            only at run time, the run raises `tf.errors.InvalidArgumentError`.
    """
    x = _checked(x)
    noise_shape = _fitted(noise_shape, x)
    bridge = _current_bridge()
    y, saved = bridge.forward(x, seed, rate, noise_shape)
    return y, (bridge, saved)


def dropout_again(
    x: tf.Tensor | tf.Variable, saved: Saved, noise_shape: NoiseShape | None = None
) -> tf.Tensor:
    """Drop the elements of `x` that an earlier call of `dropout` dropped.

    The call had an input of the shape and dtype of `x`, returned `saved`, and had `noise_shape`.
    Results and errors are as for `dropout`.
    """
    x = _checked(x)
    bridge, tensor = saved
    return bridge.backward(x, tensor, _fitted(noise_shape, x))


def draw(
    kind: str,
    x: tf.Tensor | tf.Variable,
    seed: tf.Tensor,
    parameter: tf.Tensor,
    noise_shape: NoiseShape | None = None,
) -> tf.Tensor:
    """Apply a random operation to `x`: see `backend.Backend.draw`.

    Arguments and errors are as for `dropout`, with the float64 scalar `parameter` for the rate.
    """
    x = _checked(x)
    if kind == "bernoulli":
        x = tf.stop_gradient(x)
    return _current_bridge().draw(kind, x, seed, parameter, _fitted(noise_shape, x))


def _current_bridge() -> Any:
    return xla_bridge if xla_bridge.is_compiled() else BRIDGES[_name]


def _checked(x: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Return `x` as a dense tensor of a dtype that the kernels support."""
    dense = not isinstance(x, (tf.SparseTensor, tf.RaggedTensor))
    dtype = getattr(x, "dtype", None)
    if not dense or dtype not in SUPPORTED_DTYPES:
        raise inputs.wrong_input(x, None if dtype is None else tf.as_dtype(dtype).name)
    return tf.convert_to_tensor(x)


def _fitted(noise_shape: NoiseShape | None, x: tf.Tensor) -> NoiseShape | None:
    return inputs.fitted(noise_shape, None if x.shape.rank is None else tuple(x.shape))
