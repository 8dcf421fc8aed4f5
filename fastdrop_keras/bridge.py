"""Dropout as a differentiable TensorFlow operation around fastdrop's kernels.

    x, seed ──> forward ──> y
                   │
               residual           the packed mask bits and the scale: all that lives in between
                   │
        dy ──> backward ──> dx    linear in dy, so its own gradient is the same backward again

While a graph is traced, `forward` and `backward` become one `tf.numpy_function` each; eager calls
reach the kernels directly. Where TensorFlow computes the forward pass again for a gradient, it is
`backward` that does it, from the same residual.
"""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from fastdrop import _bridge

SUPPORTED_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

_SCALE_BYTES = 8

NoiseShape = tuple[int | None, ...]
LinearFunction = Callable[[tf.Tensor], tf.Tensor]


class Dial:
    """A drop rate that can be turned while graphs use it: they read it each time they run.

    TensorFlow keeps the Python functions of every graph for good, and with them all that they
    refer to. So they refer to this and not to the layer.

    Args:
        rate: Float between 0 and 1.
    """

    __slots__ = ("rate",)

    def __init__(self, rate: float) -> None:
        self.rate = rate


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
    # Not to be had from x later: the gradient functions would keep it alive.
    shape = x.shape
    noise_shape = _fitted(noise_shape, shape)

    # In a graph, TensorFlow gives arrays without dimensions as NumPy's scalars.
    def forward(x: np.ndarray | np.generic, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(x)
        fitted = noise_shape if shape.rank is not None else _fitted(noise_shape, x.shape)
        return _bridge.forward(x, seed, dial.rate, fitted)

    (y, residual), _ = _run(
        forward, [x, seed], [x.dtype, tf.uint8], "fastdrop_forward", noise_shape
    )
    y.set_shape(shape)
    residual.set_shape(_residual_shape(noise_shape, shape))
    return _linear(x, y, _product(residual, noise_shape, shape)), residual


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
    return _product(residual, _fitted(noise_shape, x.shape), x.shape, "fastdrop_again")(x)


def _checked(x: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Return `x` as a tensor that the kernels can read."""
    dense = not isinstance(x, (tf.SparseTensor, tf.RaggedTensor))
    if not dense or x.dtype not in SUPPORTED_DTYPES:
        raise TypeError(
            "Dropout expects a dense tensor of dtype float16, bfloat16, float32 or float64. "
            f"Received: {type(x).__name__} of dtype {tf.as_dtype(x.dtype).name}"
        )
    return tf.convert_to_tensor(x)


def _product(
    residual: tf.Tensor,
    noise_shape: NoiseShape | None,
    shape: tf.TensorShape,
    name: str = "fastdrop_backward",
) -> LinearFunction:
    """Return the multiplication with what `residual` holds, as a differentiable function."""

    def multiply(x: np.ndarray | np.generic, residual: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        fitted = noise_shape if shape.rank is not None else _fitted(noise_shape, x.shape)
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

    @tf.custom_gradient
    def function(x: tf.Tensor) -> tuple[tf.Tensor, LinearFunction]:
        return y, transposed

    if not tf.executing_eagerly():
        # In a graph, `tf.custom_gradient` leaves forward mode to the operations that made y, and
        # a Python function has no derivative: the tangent would be zero, without a word.
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


def _fitted(
    noise_shape: NoiseShape | None, shape: tf.TensorShape | tuple[int, ...]
) -> NoiseShape | None:
    """Extend `noise_shape` to the rank of the input, and refuse what cannot broadcast."""
    shape = tf.TensorShape(shape)
    if noise_shape is None or shape.rank is None:
        return noise_shape
    fitted = noise_shape
    if None not in noise_shape:
        # As in any broadcast, a shape of fewer dimensions counts from the last one. A `None` in
        # it would be a guess: Keras counts those from the first.
        fitted = (1,) * (shape.rank - len(noise_shape)) + noise_shape
    if len(fitted) != shape.rank or not all(
        entry in (None, 1) or size in (None, entry)
        for entry, size in zip(fitted, shape, strict=True)
    ):
        raise ValueError(
            "Invalid value received for argument `noise_shape`. Expected as many entries as the "
            "input has dimensions, each None, 1 or the input's size there. "
            f"Received: noise_shape={noise_shape} for an input of shape {tuple(shape)}"
        )
    return fitted


def _residual_shape(noise_shape: NoiseShape | None, shape: tf.TensorShape) -> list[int | None]:
    """Return the residual's static shape."""
    if not shape.is_fully_defined():
        return [None]
    sizes = shape.as_list()
    if noise_shape is not None:
        sizes = [
            size if entry is None else entry for entry, size in zip(noise_shape, sizes, strict=True)
        ]
    return [math.ceil(math.prod(sizes) / 8) + _SCALE_BYTES]
