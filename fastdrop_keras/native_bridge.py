"""Runs dropout as an operation of TensorFlow in C, without Python at run time."""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

import fastdrop
from fastdrop import _compiled
from fastdrop._config import STREAM_VERSION
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.kinds import DERIVATIVES, KINDS

LIBRARY = Path(__file__).parent / "libfastdrop_native_op.so"


def _load() -> tuple[Any, str]:
    """Return the operations and an empty string, or `None` and the reason why not."""
    if not LIBRARY.exists():
        where = f", which is for Linux, not {sys.platform}" if sys.platform != "linux" else ""
        return None, f"it was not built{where}"
    if _compiled.is_cut_short(LIBRARY):
        return None, f"{LIBRARY} is cut short"
    try:
        operations = tf.load_op_library(str(LIBRARY))
        use = ctypes.CDLL(str(LIBRARY)).fastdrop_use
    except (tf.errors.OpError, OSError) as error:
        return None, f"TensorFlow {tf.__version__} cannot load it: {error}"
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer_of.restype = ctypes.c_void_p
    interface = pointer_of(fastdrop._C_API, b"fastdrop._C_API")
    needed = use(ctypes.c_void_p(interface))
    if needed:
        version = ctypes.c_uint32.from_address(interface).value
        why = f"it needs version {needed} of fastdrop's C interface, and {version} is installed"
        return None, why
    return operations, ""


# The functions that create the operations, or `None`; then `WHY_NOT` is the reason.
OPERATIONS, WHY_NOT = _load()


def forward(
    x: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    with _hidden_from_eager_tapes():
        y, saved = OPERATIONS.fastdrop_forward(
            x=x,
            seed=tf.cast(seed, tf.int64),
            rate=rate,
            stream=STREAM_VERSION,
            **_attributes(noise_shape),
        )
    if not tf.executing_eagerly():
        saved.set_shape(_saved_shape(noise_shape, x.shape))
    return _differentiable(x, y, lambda dy: backward(dy, saved, noise_shape)), saved


def backward(dy: tf.Tensor, saved: tf.Tensor, noise_shape: NoiseShape | None) -> tf.Tensor:
    """Drop the same elements of `dy`: see `fastdrop_keras.bridge.dropout_again`."""
    # The gradient of `tf.gather` is sparse, and a kernel needs a tensor.
    dy = tf.convert_to_tensor(dy)
    with _hidden_from_eager_tapes():
        dx = OPERATIONS.fastdrop_backward(dy=dy, saved=saved, **_attributes(noise_shape))
    return _differentiable(dy, dx, lambda ddx: backward(ddx, saved, noise_shape))


def draw(
    kind: str, x: tf.Tensor, seed: tf.Tensor, parameter: tf.Tensor, noise_shape: NoiseShape | None
) -> tf.Tensor:
    """Apply a random operation to `x`: see `fastdrop_keras.bridge.draw`."""
    return _drawn(kind, x, tf.cast(seed, tf.int64), parameter, _attributes(noise_shape))


def _drawn(
    kind: str, x: tf.Tensor, seed: tf.Tensor, parameter: tf.Tensor, attributes: dict[str, object]
) -> tf.Tensor:
    with _hidden_from_eager_tapes():
        y = OPERATIONS.fastdrop_draw(
            x=x,
            seed=seed,
            parameter=parameter,
            kind=KINDS[kind],
            stream=STREAM_VERSION,
            **attributes,
        )
    return _differentiable(x, y, lambda dy: _derivative(kind, dy, seed, parameter, attributes))


def _derivative(
    kind: str, dy: tf.Tensor, seed: tf.Tensor, parameter: tf.Tensor, attributes: dict[str, object]
) -> tf.Tensor:
    """Return the product of `dy` and the derivative of a random operation."""
    dy = tf.convert_to_tensor(dy)
    if kind == "gaussian_noise":
        return dy
    return _drawn(DERIVATIVES[kind], dy, seed, parameter, attributes)


def _hidden_from_eager_tapes() -> contextlib.AbstractContextManager[None]:
    """Stop eager tapes, which would store the inputs and outputs of an operation.

    The gradient needs one bit for each element, and float32 inputs have 32.
    """
    return record.stop_recording() if tf.executing_eagerly() else contextlib.nullcontext()


def _differentiable(
    x: tf.Tensor, y: tf.Tensor, gradient: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Return `y`, and record it on eager tapes as a linear function of `x` with `gradient`."""
    if tf.executing_eagerly():
        record.record_operation("fastdrop", [y], [x], lambda dy: [gradient(dy)])
    return y


def _saved_shape(noise_shape: NoiseShape | None, shape: tf.TensorShape) -> list[int | None]:
    """Return the static shape of `saved`: a bit for each entry of the mask, and the rate."""
    if not shape.is_fully_defined():
        return [None]
    mask_shape = [entry or size for entry, size in zip(noise_shape or shape, shape, strict=True)]
    return [math.ceil(math.prod(mask_shape) / 8) + 8]


def _attributes(noise_shape: NoiseShape | None) -> dict[str, object]:
    if noise_shape is None:
        return {}
    entries = [-1 if entry is None else entry for entry in noise_shape]
    return {"noise_shape": entries, "noise_rank": len(entries)}


def _gradient(op: tf.Operation, dy: tf.Tensor, saved: tf.Tensor) -> tf.Tensor:
    return OPERATIONS.fastdrop_backward(
        dy=tf.convert_to_tensor(dy), saved=saved, **_attributes_of(op)
    )


def _attributes_of(op: tf.Operation) -> dict[str, object]:
    return {name: op.get_attr(name) for name in ("noise_shape", "noise_rank")}


if OPERATIONS is not None:
    # TensorFlow refuses a second registration if this module is reloaded.
    with contextlib.suppress(KeyError):

        @tf.RegisterGradient("FastdropForward")
        def _gradient_of_forward(
            op: tf.Operation, dy: tf.Tensor, _: tf.Tensor
        ) -> tuple[tf.Tensor, None, None]:
            return _gradient(op, dy, op.outputs[1]), None, None

        @tf.RegisterGradient("FastdropBackward")
        def _gradient_of_backward(op: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, None]:
            return _gradient(op, dy, op.inputs[1]), None

        @tf.RegisterGradient("FastdropDraw")
        def _gradient_of_draw(op: tf.Operation, dy: tf.Tensor) -> tuple[tf.Tensor, None, None]:
            kind = next(kind for kind, number in KINDS.items() if number == op.get_attr("kind"))
            _, seed, parameter = op.inputs
            return _derivative(kind, dy, seed, parameter, _attributes_of(op)), None, None
