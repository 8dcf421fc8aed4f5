"""The bridge of Python functions: `tf.numpy_function` around the kernels, with gradients.

While a graph is traced, forward and backward become one `tf.numpy_function` each; eager calls reach
the kernels directly.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from fastdrop import _bridge
from fastdrop_keras import eager_tape
from fastdrop_keras.dial import Dial
from fastdrop_keras.eager_tape import LinearFunction
from fastdrop_keras.noise_shape import NoiseShape
from fastdrop_keras.noise_shape import fitted as fitted_to


def drop(
    x: tf.Tensor, seed: tf.Tensor, dial: Dial, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    # Not to be had from x later: the gradient functions would keep it alive.
    shape = x.shape

    # In a graph, TensorFlow gives arrays without dimensions as NumPy's scalars.
    def forward(x: np.ndarray | np.generic, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(x)
        fitted = noise_shape if shape.rank is not None else fitted_to(noise_shape, x.shape)
        return _bridge.forward(x, seed, dial.rate, fitted)

    (y, residual), _ = _run(
        forward, [x, seed], [x.dtype, tf.uint8], "fastdrop_forward", noise_shape
    )
    y.set_shape(shape)
    return _linear(x, y, _product(residual, noise_shape, shape)), residual


def drop_again(x: tf.Tensor, residual: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    """Drop what was dropped: see `fastdrop_keras.bridge.dropout_again`."""
    return _product(residual, noise_shape, x.shape, "fastdrop_again")(x)


def _product(
    residual: tf.Tensor,
    noise_shape: NoiseShape | None,
    shape: tf.TensorShape,
    name: str = "fastdrop_backward",
) -> LinearFunction:
    """Return the multiplication with what `residual` holds, as a differentiable function."""

    def multiply(x: np.ndarray | np.generic, residual: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        fitted = noise_shape if shape.rank is not None else fitted_to(noise_shape, x.shape)
        return _bridge.backward(x, residual, fitted)

    def product(x: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
        # The gradient of `tf.gather` is sparse, and a kernel wants an array.
        x = tf.convert_to_tensor(x)
        (y,), (_, residual_here) = _run(multiply, [x, residual], [x.dtype], name, noise_shape)
        y.set_shape(shape)
        # The gradient of this may be built where the forward pass's residual is out of reach,
        # but not what has come of it into this graph.
        return _linear(x, y, _product(residual_here, noise_shape, shape))

    return product


@functools.cache
def _gradient_name(noise_shape: NoiseShape | None) -> str:
    """Return the name under which TensorFlow finds an operation's gradient.

    `tf.vectorized_map` copies the operations of a graph without what `tf.custom_gradient` has
    said about them. Their copies have this gradient.
    """
    name = f"fastdrop-{uuid.uuid4()}"

    @tf.RegisterGradient(name)
    def gradient(
        op: tf.Operation | None, dy: tf.Tensor, *_: object
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        if op is None:
            # `tf.saved_model.save` asks for a gradient without an operation.
            problem = "The gradient of tf.vectorized_map over dropout is not in a SavedModel."
            with tf.control_dependencies([tf.debugging.Assert(False, [problem])]):
                return tf.identity(dy), None
        residual = op.outputs[1] if len(op.outputs) == 2 else op.inputs[1]
        return _product(residual, noise_shape, op.inputs[0].shape)(dy), None

    return name


def _linear(x: tf.Tensor, y: tf.Tensor, transposed: LinearFunction) -> tf.Tensor:
    """Return `y` as a linear function of `x`, differentiable in reverse and forward mode."""
    if tf.executing_eagerly():
        return eager_tape.linear(x, y, transposed)

    @tf.custom_gradient
    def function(x: tf.Tensor) -> tuple[tf.Tensor, LinearFunction]:
        return y, transposed

    # In a graph, `tf.custom_gradient` leaves forward mode to the operations that made y, and a
    # Python function has no derivative: the tangent would be zero, without a word.
    record.record_operation_forwardprop_only(
        "fastdrop", [y], [x], lambda dy: [transposed(dy)], None
    )
    return function(x)


def _run(
    function: Callable[..., object],
    inputs: list[tf.Tensor],
    dtypes: list[tf.DType],
    name: str,
    noise_shape: NoiseShape | None,
) -> tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]:
    """Call `function` on arrays: now if TensorFlow is eager, else at each run of the graph.

    Returns:
        The outputs, and the inputs as the graph of the outputs knows them.
    """
    if not tf.executing_eagerly():
        # Stateless: the result depends on the inputs and the dial alone. Stateful functions run
        # one after the other, even in branches that could run at once.
        def callback(*arrays: np.ndarray | np.generic) -> object:
            _bridge.keep_thread_state()
            return function(*arrays)

        graph = tf.compat.v1.get_default_graph()
        # What tapes and accumulators have to know, `_linear` tells them.
        with (
            record.stop_recording(),
            graph.gradient_override_map({"PyFuncStateless": _gradient_name(noise_shape)}),
        ):
            results = tf.numpy_function(callback, inputs, dtypes, stateful=False, name=name)
        return results, results[0].op.inputs
    # Eager numpy_function copies what goes in, and what comes out into pages that are new.
    outputs = function(*[_as_array(tensor) for tensor in inputs])
    if not isinstance(outputs, tuple):
        outputs = (outputs,)
    results = [_as_tensor(array, dtype) for array, dtype in zip(outputs, dtypes, strict=True)]
    return results, inputs


def _as_array(tensor: tf.Tensor) -> np.ndarray | np.generic:
    """Look at a tensor as an array, without a copy."""
    return np.asarray(tensor) if tensor.shape.rank else tensor.numpy()


def _as_tensor(array: np.ndarray, dtype: tf.DType) -> tf.Tensor:
    """Hand an aligned array over to TensorFlow without a copy."""
    if dtype == tf.bfloat16:
        # NumPy exports its own dtypes only.
        return tf.bitcast(_as_tensor(array.view(np.uint16), tf.uint16), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
