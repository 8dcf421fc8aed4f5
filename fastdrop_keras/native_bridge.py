"""The native bridge: dropout as an operation of TensorFlow, without Python at the run."""

from __future__ import annotations

import contextlib
import struct

import tensorflow as tf

from fastdrop._config import STREAM_VERSION
from fastdrop_keras import eager_tape
from fastdrop_keras.dial import Dial
from fastdrop_keras.native_library import OPERATIONS
from fastdrop_keras.noise_shape import NoiseShape


def drop(
    x: tf.Tensor, seed: tf.Tensor, dial: Dial, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    with eager_tape.unseen() if tf.executing_eagerly() else contextlib.nullcontext():
        y, residual = OPERATIONS.fastdrop_forward(
            x=x,
            seed=tf.cast(seed, tf.int64),
            **_attributes(noise_shape),
            stream=STREAM_VERSION,
            rate_bits=_rate_bits(dial),
            dial=dial.number,
        )
    if tf.executing_eagerly():
        eager_tape.linear(x, y, lambda dy: drop_again(dy, residual, noise_shape))
    return y, residual


def drop_again(x: tf.Tensor, residual: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    """Drop what was dropped: see `fastdrop_keras.bridge.dropout_again`."""
    # The gradient of `tf.gather` is sparse, and a kernel wants a tensor.
    x = tf.convert_to_tensor(x)
    with eager_tape.unseen() if tf.executing_eagerly() else contextlib.nullcontext():
        y = OPERATIONS.fastdrop_backward(dy=x, residual=residual, **_attributes(noise_shape))
    if tf.executing_eagerly():
        eager_tape.linear(x, y, lambda dy: drop_again(dy, residual, noise_shape))
    return y


def _rate_bits(dial: Dial) -> int:
    """Return the rate for a graph that is loaded where there is no such dial."""
    # Eagerly there always is one; and TensorFlow keeps a kernel for each value of an attribute.
    if tf.executing_eagerly():
        return 0
    return int(struct.unpack("<q", struct.pack("<d", dial.rate))[0])


def _attributes(noise_shape: NoiseShape | None) -> dict[str, object]:
    if noise_shape is None:
        return {}
    entries = [-1 if entry is None else entry for entry in noise_shape]
    return {"noise_shape": entries, "noise_rank": len(entries)}


def _gradient(op: tf.Operation, dy: tf.Tensor, residual: tf.Tensor) -> tuple[tf.Tensor, None]:
    """Return the gradient with respect to the first input, linear in `dy`; the other has none."""
    dx = OPERATIONS.fastdrop_backward(
        # The gradient of `tf.gather` is sparse, and a kernel wants a tensor.
        dy=tf.convert_to_tensor(dy),
        residual=residual,
        noise_shape=op.get_attr("noise_shape"),
        noise_rank=op.get_attr("noise_rank"),
    )
    return dx, None


if OPERATIONS is not None:
    # Registered already where this module is loaded a second time.
    with contextlib.suppress(KeyError):

        @tf.RegisterGradient("FastdropForward")
        def _gradient_of_forward(
            op: tf.Operation, dy: tf.Tensor, _: tf.Tensor
        ) -> tuple[tf.Tensor, None]:
            return _gradient(op, dy, op.outputs[1])

        @tf.RegisterGradient("FastdropBackward")
        def _gradient_of_backward(op: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, None]:
            return _gradient(op, dy, op.inputs[1])
