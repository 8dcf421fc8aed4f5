"""Runs dropout in `tf.numpy_function`, which works with any TensorFlow and is slower.

The forward and the backward pass are one function, which draws the mask from the seed each time.
The forward pass saves only the seed and the rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

import fastdrop
from fastdrop_keras.inputs import NoiseShape


def forward(
    x: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    saved = tf.concat([tf.cast(seed, tf.int64), [tf.bitcast(rate, tf.int64)]], axis=0)
    return backward(x, saved, noise_shape), saved


def backward(dy: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    """Drop the same elements of `dy`: see `fastdrop_keras.bridge.dropout_again`."""
    # The gradient of `tf.gather` is sparse, and NumPy needs a tensor.
    return _product(tf.convert_to_tensor(dy), saved, noise_shape)


def _product(x: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    if tf.executing_eagerly():
        # Without a copy, unless the tensor is a scalar.
        array = np.asarray(x) if x.shape.rank else x.numpy()
        y = tf.convert_to_tensor(_drop(array, saved.numpy(), noise_shape))
    else:
        override = {"PyFuncStateless": _gradient_name(noise_shape)}
        graph = tf.compat.v1.get_default_graph()
        with record.stop_recording(), graph.gradient_override_map(override):
            # TensorFlow runs stateful functions one after the other.
            y = tf.numpy_function(
                lambda x, saved: _drop(x, saved, noise_shape),
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
        return backward(dy, saved, noise_shape)

    @tf.custom_gradient
    def product(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return y, gradient

    if not tf.executing_eagerly():
        # In a graph, `tf.custom_gradient` does not define forward mode: the tangent would be that
        # of the Python function, which is zero.
        record.record_operation_forwardprop_only(
            "fastdrop", [y], [x], lambda dy: [gradient(dy)], None
        )
    return product(x)


def _drop(x: np.ndarray, saved: np.ndarray, noise_shape: NoiseShape | None) -> np.ndarray:
    """Return `x` with elements dropped; called by TensorFlow with arrays."""
    *words, rate_bits = (int(word) for word in saved)
    low, step, high = (word & 0xFFFFFFFFFFFFFFFF for word in (*words, 0)[:3])
    stream = fastdrop.Stream(0)
    stream.state = {"seed": high << 64 | low, "step": step}
    rate = float(np.int64(rate_bits).view(np.float64))
    # In a graph, TensorFlow passes arrays without dimensions as NumPy scalars.
    x = np.asarray(x)
    try:
        return fastdrop.dropout(x, rate, seed=stream, noise_shape=noise_shape, store_mask=False)[0]
    except MemoryError as error:
        # Keras adds to the message, which is not possible with NumPy's subclass of MemoryError.
        raise MemoryError(str(error)) from error


@functools.cache
def _gradient_name(noise_shape: NoiseShape | None) -> str:
    """Return the name of the gradient of the Python function in TensorFlow's registry.

    `tf.vectorized_map` copies operations without their `tf.custom_gradient`; copies use the name.
    """
    name = f"fastdrop.numpy_function{noise_shape}"

    @tf.RegisterGradient(name)
    def gradient(op: tf.Operation | None, dy: tf.Tensor, *_: object) -> tuple[tf.Tensor, None]:
        if op is None:
            # `tf.saved_model.save` asks for a gradient without an operation.
            problem = "The gradient of tf.vectorized_map over dropout is not in a SavedModel."
            with tf.control_dependencies([tf.debugging.Assert(False, [problem])]):
                return tf.identity(dy), None
        return backward(dy, op.inputs[1], noise_shape), None

    return name
