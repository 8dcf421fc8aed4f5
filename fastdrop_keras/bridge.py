"""Dropout as a differentiable TensorFlow operation around fastdrop's kernels.

    x, seed ──> forward ──> y
                   │
               residual           the packed mask bits and the scale: all that lives in between
                   │
        dy ──> backward ──> dx    linear in dy, so its own gradient is the same backward again

While a graph is traced, `forward` and `backward` become one `tf.numpy_function` each; eager calls
reach the kernels directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from fastdrop import _bridge

SUPPORTED_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

_SCALE_BYTES = 8

NoiseShape = tuple[int | None, ...]


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
) -> tf.Tensor:
    """Drop elements of `x`, with gradients of every order.

    Args:
        x: Tensor or variable of float16, bfloat16, float32 or float64, of any shape.
        seed: Integer tensor of shape `(2,)`, the seed's low word and the step; or `(3,)`, with
            the seed's high word after them.
        dial: Where the rate is read, at each run.
        noise_shape: The mask's shape, broadcast against that of `x`: each entry 1, the size of
            `x` there, or `None` for that size. `None` draws for each element of `x`.

    Returns:
        A tensor of the dtype and shape of `x`.

    Raises:
        TypeError: If `x` is sparse, ragged or of another dtype.
        ValueError: If `noise_shape` does not fit the static shape of `x`. What only the run can
            know is an `InvalidArgumentError` there.
    """
    dense = not isinstance(x, (tf.SparseTensor, tf.RaggedTensor))
    if not dense or x.dtype not in SUPPORTED_DTYPES:
        raise TypeError(
            "Dropout expects a dense tensor of dtype float16, bfloat16, float32 or float64. "
            f"Received: {type(x).__name__} of dtype {tf.as_dtype(x.dtype).name}"
        )
    x = tf.convert_to_tensor(x)
    # Not to be had from x later: the gradient functions would keep it alive.
    shape = x.shape
    noise_shape = _fitted(noise_shape, shape)

    def fitted(x: np.ndarray) -> NoiseShape | None:
        return noise_shape if shape.rank is not None else _fitted(noise_shape, x.shape)

    # In a graph, TensorFlow gives arrays without dimensions as NumPy's scalars.
    def forward(x: np.ndarray | np.generic, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(x)
        return _bridge.forward(x, seed, dial.rate, fitted(x))

    def backward(dy: np.ndarray | np.generic, residual: np.ndarray) -> np.ndarray:
        dy = np.asarray(dy)
        return _bridge.backward(dy, residual, fitted(dy))

    @tf.custom_gradient
    def drop(x: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
        y, residual = _run(forward, [x, seed], [x.dtype, tf.uint8], "fastdrop_forward")
        y.set_shape(shape)
        residual.set_shape(_residual_shape(noise_shape, shape))

        @tf.custom_gradient
        def undo_dense(dy: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tf.Tensor]]:
            (dx,) = _run(backward, [dy, residual], [dy.dtype], "fastdrop_backward")
            dx.set_shape(shape)
            return dx, undo

        def undo(dy: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
            # The gradient of `tf.gather` is sparse, and a kernel wants an array.
            return undo_dense(tf.convert_to_tensor(dy))

        return y, undo

    return drop(x)


def _run(
    function: Callable[..., object],
    inputs: list[tf.Tensor],
    dtypes: list[tf.DType],
    name: str,
) -> Sequence[tf.Tensor]:
    """Call `function` on arrays: now if TensorFlow is eager, else at each run of the graph."""
    if not tf.executing_eagerly():
        # Stateless: the result depends on the inputs and the dial alone. Stateful functions run
        # one after the other, even in branches that could run at once.
        def callback(*arrays: np.ndarray | np.generic) -> object:
            _bridge.keep_thread_state()
            return function(*arrays)

        return tf.numpy_function(callback, inputs, dtypes, stateful=False, name=name)
    # Eager numpy_function copies what goes in, and what comes out into pages that are new.
    outputs = function(*[_as_array(tensor) for tensor in inputs])
    if not isinstance(outputs, tuple):
        outputs = (outputs,)
    return [_as_tensor(array, dtype) for array, dtype in zip(outputs, dtypes, strict=True)]


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
