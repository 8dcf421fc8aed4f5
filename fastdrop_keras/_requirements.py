"""Checks that Keras has a backend that this package supports, and all that this package uses."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

# The first version whose files hold the state of objects in a layer that are not variables.
_OLDEST_KERAS = (3, 11)

# The package of each of Keras's backends that this package supports, and how pip installs it.
_PACKAGES = {
    "tensorflow": ("TensorFlow", 'pip install "fastdrop[keras]"'),
    "torch": ("PyTorch", 'pip install "fastdrop[torch]" "keras>=3.11"'),
    "jax": ("JAX", 'pip install "fastdrop[jax]" "keras>=3.11"'),
}

# The private names that this package uses, by module or class, for every backend and for each.
# `make matrix` tests with the oldest and the newest version.
_PRIVATE: dict[str, tuple[str, ...]] = {
    "keras.src.backend": ("in_symbolic_scope", "in_stateless_scope"),
    "keras.src.applications.convnext": ("StochasticDepth",),
    # Keras has no public walk through layers that are not models.
    "keras.layers.Layer": ("_flatten_layers",),
}
_PRIVATE_OF_BACKENDS: dict[str, dict[str, tuple[str, ...]]] = {
    "tensorflow": {
        # Make eager tapes keep one bit an element, and give Python functions forward-mode
        # derivatives.
        "tensorflow.python.eager.record": (
            "stop_recording",
            "record_operation",
            "record_operation_forwardprop_only",
        ),
        # A recomputation opens a tape of this module's `backprop`.
        "tensorflow.python.ops.custom_gradient": ("backprop", "recompute_grad"),
        # Traces the body of a `tf.vectorized_map`.
        "tensorflow.python.ops.parallel_for.control_flow_ops": ("_pfor_impl",),
        # Adds the rate to SavedModels, and not to checkpoints.
        "tensorflow.train.Checkpoint": ("_trackable_children",),
        # Runs a check at each call of a traced function.
        "tensorflow.__internal__.FuncGraph": ("capture_call_time_value",),
    },
    "torch": {
        # Tells whether a layer is called in a backward pass.
        # And lets a layer advance its state in a function transform.
        "torch._C": ("_current_graph_task_id", "_DisableFuncTorch"),
        # Number the iterations of a `torch.vmap`.
        "torch._C._functorch": ("_add_batch_dim", "peek_interpreter_stack"),
        "torch._functorch.pyfunctorch": ("VmapInterpreter", "retrieve_all_functorch_interpreters"),
        # Collects a converted layer's parameters.
        "keras.layers.Layer": ("_track_variables",),
    },
    "jax": {
        "keras.src.backend": ("get_stateless_scope",),
        "keras.src.backend.jax.core": ("remat",),
        # Draws the seed of a layer without one.
        "keras.src.random.seed_generator": ("make_default_seed",),
        # Assigns the values of variables after a step.
        "keras.Model": ("jax_state_sync",),
        "keras.Variable": ("_direct_assign",),
    },
}
# Without one of these, XLA cannot compile the layers.
_PRIVATE_FOR_XLA = {
    "tensorflow.compiler.mlir.stablehlo.stablehlo": ("serialize_portable_artifact_str",),
    # Chooses the trace of a `tf.function`.
    "tensorflow.python.eager.polymorphic_function.function_context": ("_enclosing_xla_context",),
    "tensorflow.__internal__": ("get_enclosing_xla_context",),
    "tensorflow.compiler.tf2xla.python.xla": ("call_module",),
    "tensorflow.python.framework.ops.gradient_registry": ("list", "lookup"),
    # Vectorizes the operation.
    "tensorflow.python.ops.parallel_for.pfor": (
        "_pfor_converter_registry",
        "_fallback_converter",
        "wrap",
    ),
}
# Private attributes of instances. Of a compiled model the package also uses `_compile_config`.
_PRIVATE_OF_GRAPHS = ("_function_captures", "outer_graph", "is_control_flow_graph")
_PRIVATE_OF_LAYERS = (
    *("_inbound_nodes", "_layers", "_outbound_nodes", "_output_shape", "_tracker"),
    *("build", "quantize"),
)


def check() -> str:
    """Return Keras's backend, or raise an ImportError with instructions if it cannot be used."""
    try:
        import keras
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        backend = os.environ.get("KERAS_BACKEND", package)
        if package == "keras":
            raise _missing("Keras", _PACKAGES.get(backend, _PACKAGES["tensorflow"])[1]) from error
        if package in _PACKAGES:
            raise _missing(*_PACKAGES[package]) from error
        if package == "openvino":
            # Keras is set to this backend, which is not installed.
            raise _wrong_backend(backend) from error
        raise
    backend = keras.config.backend()
    if backend not in _PACKAGES:
        raise _wrong_backend(backend)
    version = tuple(int(number) for number in keras.__version__.split(".")[:2])
    if version < _OLDEST_KERAS:
        raise ImportError(
            f"fastdrop_keras needs Keras {'.'.join(map(str, _OLDEST_KERAS))} or newer, and this is "
            f'Keras {keras.__version__}. Update it with: pip install --upgrade "keras>=3.11"'
        )
    missing = next(_missing_private_names(backend), None)
    if missing:
        package = _PACKAGES[backend][0]
        raise ImportError(
            f"fastdrop_keras needs {missing}, which {package} "
            f"{importlib.import_module(backend).__version__} with Keras {keras.__version__} does "
            "not have. Use keras.layers.Dropout with these versions"
        )
    return str(backend)


def _missing_private_names(backend: str) -> Iterator[str]:
    import keras

    for owners in (_PRIVATE, _PRIVATE_OF_BACKENDS[backend]):
        for owner, names in owners.items():
            found = _found(owner)
            yield from (f"{owner}.{name}" for name in names if not hasattr(found, name))
    if backend == "tensorflow":
        import tensorflow as tf

        graph = tf.__internal__.FuncGraph("fastdrop")
        yield from (f"FuncGraph.{name}" for name in _PRIVATE_OF_GRAPHS if not hasattr(graph, name))
    layer = vars(keras.layers.Lambda(abs, name="fastdrop"))
    yield from (f"keras.layers.Layer.{name}" for name in _PRIVATE_OF_LAYERS if name not in layer)


def missing_for_xla() -> str | None:
    """Return the first name that XLA needs to compile the layers and that is missing."""
    for owner, names in _PRIVATE_FOR_XLA.items():
        found = _found(owner)
        for name in names:
            if not hasattr(found, name):
                return f"{owner}.{name}"
    return None


def _found(path: str) -> Any:
    """Return the module, class or function at `path`, or `None`."""
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(_found(module), name, None) if module else None


def _missing(package: str, command: str) -> ImportError:
    return ImportError(
        f"fastdrop_keras needs Keras with TensorFlow, PyTorch or JAX, but {package} is not "
        f"installed. Install what is missing with: {command}"
    )


def _wrong_backend(backend: str) -> ImportError:
    return ImportError(
        "fastdrop_keras supports only Keras's backends 'tensorflow', 'torch' and 'jax', but Keras "
        f"is set to use {backend!r}. Set the environment variable KERAS_BACKEND=tensorflow, "
        'KERAS_BACKEND=torch or KERAS_BACKEND=jax before Keras is imported, or "backend" in '
        "~/.keras/keras.json. With another backend, use keras.layers.Dropout."
    )
