"""Runs dropout and noise in `tf.numpy_function`, which works with any TensorFlow and is slower.

The forward and the backward pass of dropout are one function, which draws the mask from the seed
each time. The forward pass saves only the seed and the rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

import fastdrop
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.kinds import DERIVATIVES


def forward(
    x: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    saved = _saved(seed, rate)
    return _drawn("dropout", x, saved, noise_shape), saved


def backward(dy: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    """Drop the same elements of `dy`: see `fastdrop_keras.bridge.dropout_again`."""
    return _drawn("dropout", dy, saved, noise_shape)


def draw(
    kind: str, x: tf.Tensor, seed: tf.Tensor, parameter: tf.Tensor, noise_shape: NoiseShape | None
) -> tf.Tensor:
    """Apply a random operation to `x`: see `fastdrop_keras.bridge.draw`."""
    return _drawn(kind, x, _saved(seed, parameter), noise_shape)


def _saved(seed: tf.Tensor, parameter: tf.Tensor) -> tf.Tensor:
    return tf.concat([tf.cast(seed, tf.int64), [tf.bitcast(parameter, tf.int64)]], axis=0)


def _drawn(kind: str, x: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    # The gradient of `tf.gather` is sparse, and NumPy needs a tensor.
    x = tf.convert_to_tensor(x)
    if tf.executing_eagerly():
        # Without a copy, unless the tensor is a scalar.
        array = np.asarray(x) if x.shape.rank else x.numpy()
        y = tf.convert_to_tensor(_draw(kind, array, saved.numpy(), noise_shape))
    else:
        override = {"PyFuncStateless": _gradient_name(kind, noise_shape)}
        graph = tf.compat.v1.get_default_graph()
        with record.stop_recording(), graph.gradient_override_map(override):
            # TensorFlow runs stateful functions one after the other.
            y = tf.numpy_function(
                lambda x, saved: _draw(kind, x, saved, noise_shape),
                [x, saved],
                x.dtype,
                stateful=False,
                name="fastdrop",
            )
        # The graph of the gradient can use this graph's tensors, but not always those of the
        # graph in which `saved` was made.
        saved = y.op.inputs[1]
    y.set_shape(x.shape)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        return _derivative(kind, dy, saved, noise_shape)

    @tf.custom_gradient
    def drawn(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return y, gradient

    if not tf.executing_eagerly():
        # In a graph, `tf.custom_gradient` does not define forward mode: the tangent would be that
        # of the Python function, which is zero.
        record.record_operation_forwardprop_only(
            "fastdrop", [y], [x], lambda dy: [gradient(dy)], None
        )
    return drawn(x)


def _derivative(
    kind: str, dy: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None
) -> tf.Tensor:
    """Return the product of `dy` and the derivative of a random operation."""
    if kind == "gaussian_noise":
        return tf.convert_to_tensor(dy)
    return _drawn(DERIVATIVES[kind], dy, saved, noise_shape)


def _draw(
    kind: str, x: np.ndarray, saved: np.ndarray, noise_shape: NoiseShape | None
) -> np.ndarray:
    """Return the result of a random operation; called by TensorFlow with arrays."""
    *words, parameter_bits = (int(word) for word in saved)
    low, step, high = (word & 0xFFFFFFFFFFFFFFFF for word in (*words, 0)[:3])
    stream = fastdrop.Stream(0)
    stream.state = {"seed": high << 64 | low, "step": step}
    parameter = float(np.int64(parameter_bits).view(np.float64))
    # In a graph, TensorFlow passes arrays without dimensions as NumPy scalars.
    x = np.asarray(x)
    try:
        return _FUNCTIONS[kind](x, parameter, seed=stream, noise_shape=noise_shape)[0]
    except MemoryError as error:
        # Keras adds to the message, which is not possible with NumPy's subclass of MemoryError.
        raise MemoryError(str(error)) from error


def _alpha_dropout_gradient(dy: np.ndarray, rate: float, **how: Any) -> tuple[np.ndarray, Any]:
    scale = float(fastdrop.alpha_dropout(np.empty(0), rate, seed=0)[1].scale)
    return fastdrop.dropout(dy, rate, scale=scale, store_mask=False, **how)


def _bernoulli(rates: np.ndarray, _: float, **how: Any) -> tuple[np.ndarray, Any]:
    # An array without dimensions would be one rate, which draws from another stream.
    mask = fastdrop.draw_mask((rates.size,), rates.reshape(-1), seed=how["seed"])
    return np.asarray(mask).astype(rates.dtype).reshape(rates.shape), mask


_FUNCTIONS: dict[str, Callable[..., tuple[np.ndarray, Any]]] = {
    "dropout": functools.partial(fastdrop.dropout, store_mask=False),
    "gaussian_dropout": fastdrop.gaussian_dropout,
    "gaussian_noise": fastdrop.gaussian_noise,
    "alpha_dropout": fastdrop.alpha_dropout,
    "alpha_dropout_gradient": _alpha_dropout_gradient,
    "bernoulli": _bernoulli,
}


@functools.cache
def _gradient_name(kind: str, noise_shape: NoiseShape | None) -> str:
    """Return the name of the gradient of the Python function in TensorFlow's registry.

    `tf.vectorized_map` copies operations without their `tf.custom_gradient`; copies use the name.
    """
    name = f"fastdrop.numpy_function.{kind}{noise_shape}"

    @tf.RegisterGradient(name)
    def gradient(op: tf.Operation | None, dy: tf.Tensor, *_: object) -> tuple[tf.Tensor, None]:
        if op is None:
            # `tf.saved_model.save` asks for a gradient without an operation.
            problem = "The gradient of tf.vectorized_map over dropout is not in a SavedModel."
            with tf.control_dependencies([tf.debugging.Assert(False, [problem])]):
                return tf.identity(dy), None
        return _derivative(kind, dy, op.inputs[1], noise_shape), None

    return name
