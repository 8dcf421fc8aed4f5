"""Checks what the layers need of TensorFlow and Keras, and says what to do if it is missing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

# From here on, Keras saves what is in a layer besides its variables: the state of the seeds.
_OLDEST_KERAS = (3, 11)

# All that this package uses of TensorFlow and Keras beyond their public interfaces, by module or
# class, and why. `make matrix` tests the oldest and the newest version.
_PRIVATE = {
    # Eager tapes keep one bit an element; forward mode through Python functions.
    "tensorflow.python.eager.record": (
        "stop_recording",
        "record_operation",
        "record_operation_forwardprop_only",
    ),
    # Recomputations are known by the tape that they open, in this module's `backprop`.
    "tensorflow.python.ops.custom_gradient": ("backprop", "recompute_grad"),
    # SavedModels track a variable that checkpoints do not.
    "tensorflow.train.Checkpoint": ("_trackable_children",),
    # Each call of a traced function is checked for a checkpointed function around it.
    "tensorflow.__internal__.FuncGraph": ("capture_call_time_value",),
    "keras.src.backend": ("in_symbolic_scope", "in_stateless_scope"),
    # Keras has no public walk through layers that are not models.
    "keras.layers.Layer": ("_flatten_layers",),
}
# Attributes of objects: a graph's captures; a layer's calls in functional models, and what Keras
# binds to each layer when it is made. Of a compiled model `_compile_config` is used, too.
_PRIVATE_OF_GRAPHS = ("_function_captures", "outer_graph", "is_control_flow_graph")
_PRIVATE_OF_LAYERS = ("_inbound_nodes", "_outbound_nodes", "_output_shape", "build", "quantize")
# The name scope in which `tf.vectorized_map` traces its body, and the function that says so.
_LOOP_SCOPE = "loop_body"
_LOOP_FUNCTION = "tensorflow.python.ops.parallel_for.control_flow_ops._pfor_impl"

_OTHER_BACKENDS = frozenset({"jax", "torch", "openvino"})


def check() -> None:
    """Raise an ImportError that says what to do, unless Keras runs on TensorFlow here."""
    try:
        import tensorflow
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise _missing("TensorFlow") from error
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name in _OTHER_BACKENDS:
            # Keras imports what its backend needs, and that is not even installed.
            raise _wrong_backend(os.environ.get("KERAS_BACKEND", error.name)) from error
        if error.name != "keras":
            raise
        raise _missing("Keras") from error
    if keras.config.backend() != "tensorflow":
        raise _wrong_backend(keras.config.backend())
    version = tuple(int(number) for number in keras.__version__.split(".")[:2])
    if version < _OLDEST_KERAS:
        raise ImportError(
            f"fastdrop_keras needs Keras {'.'.join(map(str, _OLDEST_KERAS))} or newer, and this is "
            f'Keras {keras.__version__}. Update it with: pip install --upgrade "fastdrop[keras]"'
        )
    missing = next(_missing_private_names(), None)
    if missing:
        raise ImportError(
            f"fastdrop_keras needs {missing}, which is missing here: with TensorFlow "
            f"{tensorflow.__version__} and Keras {keras.__version__}, use keras.layers.Dropout"
        )


def _missing_private_names() -> Iterator[str]:
    import keras
    import tensorflow as tf

    for owner, names in _PRIVATE.items():
        found = _found(owner)
        yield from (f"{owner}.{name}" for name in names if not hasattr(found, name))
    graph = tf.__internal__.FuncGraph("fastdrop")
    yield from (f"FuncGraph.{name}" for name in _PRIVATE_OF_GRAPHS if not hasattr(graph, name))
    layer = vars(keras.layers.Lambda(abs, name="fastdrop"))
    yield from (f"keras.layers.Layer.{name}" for name in _PRIVATE_OF_LAYERS if name not in layer)
    loop = getattr(_found(_LOOP_FUNCTION), "__code__", None)
    if loop is None or _LOOP_SCOPE not in loop.co_consts:
        yield f"the name scope {_LOOP_SCOPE!r} of tf.vectorized_map"


def _found(path: str) -> Any:
    """Return the module, or the class or function in one."""
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(_found(module), name, None) if module else None


def _missing(package: str) -> ImportError:
    return ImportError(
        f"fastdrop_keras needs TensorFlow and Keras, but {package} is not installed. "
        'Install both with: pip install "fastdrop[keras]"'
    )


def _wrong_backend(backend: str) -> ImportError:
    return ImportError(
        "fastdrop_keras supports only Keras's TensorFlow backend, but Keras is set to use "
        f"{backend!r}. Set the environment variable KERAS_BACKEND=tensorflow before Keras is "
        'imported, or "backend": "tensorflow" in ~/.keras/keras.json. '
        "With another backend, use keras.layers.Dropout."
    )
