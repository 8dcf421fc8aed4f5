"""Runs dropout and noise in functions that XLA compiles for the CPU.

TensorFlow's operation for programs in StableHLO, `XlaCallModule`, calls the handler of
`fastdrop/xla_handler.c`. The forward and the backward pass of dropout are one function, which draws
the mask from the seed each time. The forward pass saves only the seed and the rate.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from fastdrop import _xla
from fastdrop._config import STREAM_VERSION
from fastdrop_keras import _requirements
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.kinds import DERIVATIVES, KINDS
from fastdrop_keras.tensorflow_state import count_of_loops

# The function that returns the address of XLA's functions, in one of TensorFlow's libraries.
_GETTERS = (
    ("libtensorflow_framework.so.2", "XLA_FFI_GetApi"),
    ("libtensorflow_cc.so.2", "_ZN3xla3ffi12GetXlaFfiApiEv"),  # xla::ffi::GetXlaFfiApi()
)
# The versions of `XlaCallModule` and of StableHLO, both old enough for TensorFlow 2.18.
_CALL_VERSION = 9
_STABLEHLO_VERSION = "1.4.0"

_ELEMENTS = {tf.float16: "f16", tf.bfloat16: "bf16", tf.float32: "f32", tf.float64: "f64"}


def _functions_of_xla() -> int | None:
    """Return the address of the functions of TensorFlow's XLA, or `None`."""
    for library, name in _GETTERS:
        path = Path(tf.sysconfig.get_lib(), library)
        try:
            # Only if TensorFlow has loaded it.
            get = getattr(ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY), name)
        except (OSError, AttributeError):
            continue
        get.restype = ctypes.c_void_p
        address: int | None = get()
        return address
    return None


def _register() -> str:
    """Register the handler, and return an empty string or the reason why not."""
    missing = _requirements.missing_for_xla()
    if missing:
        return f"TensorFlow {tf.__version__} has no {missing}"
    functions = _functions_of_xla()
    if functions is None:
        return f"TensorFlow {tf.__version__} has no typed foreign functions of XLA"
    return _xla.register(functions) or _define_operation()


def forward(
    x: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor, noise_shape: NoiseShape | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drop elements of `x`: see `fastdrop_keras.bridge.dropout`."""
    saved = _saved(seed, rate)
    return backward(x, saved, noise_shape), saved


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
    # The gradient of `tf.gather` is sparse, and XLA needs a tensor.
    x = tf.convert_to_tensor(x)
    reshaped, entries = _with_known_rank(x, noise_shape)
    y = _called(kind, reshaped, saved, tf.constant(entries, tf.int64))
    y = tf.reshape(y, _sizes(x))
    y.set_shape(x.shape)
    return y


def _with_known_rank(x: tf.Tensor, noise_shape: NoiseShape | None) -> tuple[tf.Tensor, list[int]]:
    """Return `x` with a known rank, and an entry of the noise shape for each dimension.

    An entry of -1 stands for the size.
    """
    if noise_shape is None or (x.shape.rank is not None and set(noise_shape) <= {None}):
        return tf.reshape(x, [-1]), [-1]
    entries = [-1 if entry is None else entry for entry in noise_shape]
    if x.shape.rank is not None:
        return x, entries
    if None in noise_shape:
        # Not `tf.ensure_shape(x)`, which has no forward-mode derivative in a graph.
        return tf.reshape(x, tf.ensure_shape(_sizes(x), [len(entries)])), entries
    # The entries belong to the last dimensions, and the others share their decisions.
    first = tf.rank(x) - len(entries)
    sizes = _sizes(x)
    others = tf.reduce_prod(sizes[:first], keepdims=True)
    sizes = tf.ensure_shape(tf.concat([others, sizes[first:]], 0), [1 + len(entries)])
    return tf.reshape(x, sizes), [1, *entries]


def _sizes(x: tf.Tensor) -> tf.Tensor | tf.TensorShape:
    return x.shape if x.shape.is_fully_defined() else tf.shape(x, out_type=tf.int64)


def _called(kind: str, x: tf.Tensor, saved: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
    """Call the handler with `x`, the seeds and parameters in `saved`, and the noise shape."""
    # With an older TensorFlow this is missing.
    from tensorflow.compiler.tf2xla.python import xla

    with record.stop_recording():
        (y,) = xla.call_module(
            [x, saved, entries],
            version=_CALL_VERSION,
            module=_module(kind, x.dtype, _shape_in_module(x), saved.shape.rank),
            Sout=[x.shape],
            Tout=[x.dtype],
            platforms=["CPU"],
        )
    # Forward mode cannot use the registered gradient, since it needs attributes to be hashable.
    # The graph of the gradient can use this graph's tensors, but not always those of the graph in
    # which `saved` was made.
    record.record_operation("fastdrop", [y], [x], lambda dy: [_gradient(y.op, dy)])
    return y


def _gradient(op: tf.Operation, dy: tf.Tensor) -> tf.Tensor:
    kind, dy = _kind_of(op), tf.convert_to_tensor(dy)
    return dy if kind == "gaussian_noise" else _called(DERIVATIVES[kind], dy, *op.inputs[1:])


def _kind_of(op: tf.Operation) -> str:
    """Return the kind that the name of the operation's program tells."""
    program = op.get_attr("module")
    # Programs of older versions have no name.
    return next((kind for kind in KINDS if _name_of_program(kind).encode() in program), "dropout")


def _name_of_program(kind: str) -> str:
    return f"fastdrop_kind_{KINDS[kind]}"


@functools.cache
def _module(kind: str, dtype: tf.DType, shape: NoiseShape, rank_of_words: int) -> bytes:
    """Return a program in StableHLO that calls the handler: see `fastdrop/xla_handler.c`.

    If sizes are unknown, XLA computes those of the result from a vector, which the handler does not
    receive.
    """
    from tensorflow.compiler.mlir.stablehlo import stablehlo

    rank = len(shape)
    dimensions = "".join(f"{'?' if size is None else size}x" for size in shape)
    array = f"tensor<{dimensions}{_ELEMENTS[dtype]}>"
    words = f"tensor<{'?x' * rank_of_words}i64>"
    entries = f"tensor<{rank - rank_of_words + 1}xi64>"
    config = f"stream = {STREAM_VERSION} : i64, kind = {KINDS[kind]} : i64"
    attributes = f"api_version = 4 : i32, backend_config = {{{config}}}"
    operands, types, lines = "%x, %words, %noise_shape", f"{array}, {words}, {entries}", []
    if None in shape:
        size, sizes, each = "tensor<1xi32>", f"tensor<{rank}xi32>", range(rank)
        lines = [
            *(
                f"%n{i} = stablehlo.get_dimension_size %x, dim = {i} : ({array}) -> tensor<i32>\n"
                f"%v{i} = stablehlo.reshape %n{i} : (tensor<i32>) -> {size}"
                for i in each
            ),
            f"%sizes = stablehlo.concatenate {', '.join(f'%v{i}' for i in each)}, dim = 0 : "
            f"({', '.join(size for _ in each)}) -> {sizes}",
        ]
        operands, types = f"{operands}, %sizes", f"{types}, {sizes}"
        attributes += ", indices_of_shape_operands = dense<[3]> : tensor<1xi64>"
    text = "\n".join(
        [
            f"module @{_name_of_program(kind)} attributes "
            "{jax.uses_shape_polymorphism = true} {",
            f"func.func public @main(%x: {array}, %words: {words}, %noise_shape: {entries}) -> "
            f"{array} {{",
            *lines,
            f"%y = stablehlo.custom_call @{_xla.NAME}({operands}) {{{attributes}}} : ({types}) -> "
            f"{array}",
            f"return %y : {array}",
            "}}",
        ]
    )
    program: bytes = stablehlo.serialize_portable_artifact_str(text, _STABLEHLO_VERSION)
    return program


def _shape_in_module(x: tf.Tensor) -> NoiseShape:
    """Return sizes for the module of `x`: unknown, so that few modules serve all shapes.

    XLA computes unknown sizes in 32 bits.
    """
    sizes = tuple(x.shape)
    large = None not in sizes and max(sizes) >= 2**31
    return sizes if large else (None,) * len(sizes)


def _is_own(op: tf.Operation) -> bool:
    # A program of fastdrop_jax calls the handler among other functions, and has other inputs.
    types = [tensor.dtype for tensor in op.inputs][1:]
    return types == [tf.int64, tf.int64] and _xla.NAME.encode() in op.get_attr("module")


def _gradient_of_call(op: tf.Operation, *dys: tf.Tensor) -> tuple[tf.Tensor, None, None]:
    """Return the gradient of an operation that XLA or TensorFlow copied."""
    if not _is_own(op):
        # As if none were registered.
        raise LookupError(f"gradient registry has no entry for: {op.type}")
    return _gradient(op, *dys), None, None


def _vectorized(call: Any) -> Any:
    """Convert the operation in the body of a `tf.vectorized_map` to all iterations at once."""
    from tensorflow.python.ops.parallel_for import pfor

    if not _is_own(call.op):
        return pfor._fallback_converter(call)
    (x, x_is_stacked, _), (saved, saved_is_stacked, _), (entries, _, _) = call.inputs
    if x.shape.rank is None or saved.shape.rank is None:
        return pfor._fallback_converter(call)
    kind = _kind_of(call.op)
    shared = x_is_stacked and not saved_is_stacked and saved.shape.rank == 1
    if shared and kind != "bernoulli":
        # The iterations share their masks.
        entries = tf.concat([[1], entries], axis=0)
    elif x_is_stacked or saved_is_stacked:
        # The seeds have the first dimensions of `x`.
        x, saved = (
            tensor if stacked else _repeated(tensor, call.pfor.loop_len_vector)
            for tensor, stacked in ((x, x_is_stacked), (saved, saved_is_stacked))
        )
    return pfor.wrap(_called(kind, x, saved, entries), x_is_stacked or saved_is_stacked)


def _repeated(tensor: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(tensor, tf.concat([times, tf.shape(tensor)], 0))


def _define_operation() -> str:
    """Define the operation's gradient and its conversion in `tf.vectorized_map`.

    Returns an empty string, or the reason why not.
    """
    from tensorflow.python.framework.ops import gradient_registry
    from tensorflow.python.ops.parallel_for import pfor

    conversions = pfor._pfor_converter_registry
    if "XlaCallModule" not in gradient_registry.list():
        tf.RegisterGradient("XlaCallModule")(_gradient_of_call)
        conversions.setdefault("XlaCallModule", _vectorized)
    if any(
        function.__module__ != __name__  # also if this module is reloaded
        for function in (gradient_registry.lookup("XlaCallModule"), conversions["XlaCallModule"])
    ):
        return "another package has defined the gradient of TensorFlow's operation XlaCallModule"
    return ""


def supports_jit() -> bool:
    """Return whether Keras may compile models with these layers by XLA.

    Keras compiles them for a GPU if there is one, and the kernels are for the CPU.
    """
    return not WHY_NOT and not tf.config.list_physical_devices("GPU")


def is_compiled() -> bool:
    """Return whether the function that is being traced will be compiled by XLA.

    Raises:
        NotImplementedError: If it will, and it cannot be compiled.
    """
    if tf.executing_eagerly() or tf.__internal__.get_enclosing_xla_context() is None:
        return False
    if WHY_NOT:
        raise NotImplementedError(
            "XLA cannot compile a dropout layer of fastdrop_keras here, in a function with "
            f"`jit_compile=True`: {WHY_NOT}"
        )
    if count_of_loops() > 1:
        # TensorFlow fails later, with another message, to vectorize the advance of the seed.
        raise NotImplementedError(
            "XLA cannot compile a dropout layer of fastdrop_keras in nested tf.vectorized_map. Use "
            "one tf.vectorized_map, over both dimensions, or a function without `jit_compile=True`"
        )
    return True


class _Compiled:
    """Stands for all contexts of XLA: a `tf.function` has one trace for them, and one without."""

    def RequiresUniqueFunctionRetracing(self) -> bool:  # noqa: N802 - called by TensorFlow
        return True


_COMPILED = _Compiled()


def _trace_for_xla_too() -> None:
    """Make each `tf.function` trace its Python function again when XLA is to compile it.

    TensorFlow would use the trace of an earlier call without XLA, which has operations that XLA
    cannot compile, or the other way round.
    """
    from tensorflow.python.eager.polymorphic_function import function_context

    context_of_tensorflow = inspect.unwrap(function_context._enclosing_xla_context)

    @functools.wraps(context_of_tensorflow)
    def enclosing_xla_context() -> Any:
        found = context_of_tensorflow()
        # The contexts of TPUs ask for a trace each.
        own = found is None or found.RequiresUniqueFunctionRetracing()
        return found if own else _COMPILED

    function_context._enclosing_xla_context = enclosing_xla_context


# Empty, or the reason why XLA cannot call the kernels.
WHY_NOT = _register()
if not WHY_NOT:
    _trace_for_xla_too()
