"""Runs dropout in `tf.numpy_function`: it works with any TensorFlow, and costs more.

The forward and the backward pass are the same function: `fastdrop` redraws the mask from the seed,
so the two integers of the seed and the rate are all that is saved in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

import fastdrop

NoiseShape = tuple[int | None, ...]


def forward(
    x: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    saved = tf.concat([tf.cast(seed, tf.int64), [tf.bitcast(rate, tf.int64)]], axis=0)
    return backward(x, saved, noise_shape), saved


def backward(dy: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    """Drop the same elements again: see `fastdrop_keras.bridge.dropout_again`."""
    # The gradient of `tf.gather` is sparse, and NumPy needs a tensor.
    return _product(tf.convert_to_tensor(dy), saved, noise_shape)


def _product(x: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    if tf.executing_eagerly():
        # Looks at the tensor without a copy, which arrays without dimensions do not allow.
        array = np.asarray(x) if x.shape.rank else x.numpy()
        y = tf.convert_to_tensor(_drop(array, saved.numpy(), noise_shape))
    else:
        override = {"PyFuncStateless": _gradient_name(noise_shape)}
        graph = tf.compat.v1.get_default_graph()
        with record.stop_recording(), graph.gradient_override_map(override):
            # Stateful functions run one after the other, even in branches that could run at once.
            y = tf.numpy_function(
                lambda x, saved: _drop(x, saved, noise_shape),
                [x, saved],
                x.dtype,
                stateful=False,
                name="fastdrop",
            )
        # The gradient may be built in another graph, which can reach this one but not always
        # the one that `saved` comes from.
        saved = y.op.inputs[1]
    y.set_shape(x.shape)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        return backward(dy, saved, noise_shape)

    @tf.custom_gradient
    def product(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return y, gradient

    if not tf.executing_eagerly():
        # In a graph, `tf.custom_gradient` leaves forward mode to the operations that made y. A
        # Python function has no derivative, so the tangent would silently be zero.
        record.record_operation_forwardprop_only(
            "fastdrop", [y], [x], lambda dy: [gradient(dy)], None
        )
    return product(x)


def _drop(x: np.ndarray, saved: np.ndarray, noise_shape: NoiseShape | None) -> np.ndarray:
    """Return `x` with elements dropped: the callback on arrays."""
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
        # Keras cannot add to the message of NumPy's own kind, and makes it a RuntimeError.
        raise MemoryError(str(error)) from error


@functools.cache
def _gradient_name(noise_shape: NoiseShape | None) -> str:
    """Return the name under which TensorFlow finds the gradient of the Python function.

    `tf.vectorized_map` copies operations without their `tf.custom_gradient`. The copies use this.
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
