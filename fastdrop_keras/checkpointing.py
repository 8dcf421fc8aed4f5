"""Makes a `Block` of each call of a function that TensorFlow checkpoints.

`keras.remat` and `keras.RematScope` use `tf.recompute_grad`. Importing this module replaces it.
`restore()` restores TensorFlow's function.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras.src.backend import in_symbolic_scope
from tensorflow.python.ops import custom_gradient

from fastdrop_keras import blocks
from fastdrop_keras.tensorflow_state import vectorized_loops


class Run(blocks.Run):
    """A run that knows its graph and loop, whose tensors the masks are."""

    def __init__(self, first: bool, saved: dict[Any, list[Any]]) -> None:
        super().__init__(first, saved)
        self._place = _place()

    def is_near(self) -> bool:
        """Return whether the run is in the current graph and loop, which can use its tensors."""
        return self._place == _place()


class Block(blocks.Block):
    """One call of a checkpointed function, with the masks that layers save in its first run."""

    run_type = Run


def runs_around(layer: Any, training: bool) -> tuple[Run | None, list[Run]]:
    """Return the run from which this call of `layer` reads its mask, and the runs it writes to.

    In a recomputation `training` may be wrong, since Keras does not keep it.

    Raises:
        NotImplementedError: If the call is in a recomputation that cannot use the mask.
    """
    # Keras discards this graph, in which it computes shapes.
    if in_symbolic_scope():
        return None, []
    reading, writing = blocks.split_runs(
        "a function that was checkpointed before fastdrop_keras was imported, or not by "
        "`tf.recompute_grad`. Import fastdrop_keras before the function is checkpointed"
    )
    if reading is not None:
        training = training or reading.has_dropped(layer)
    near = all(run.is_near() for run in writing) and (reading is None or reading.is_near())
    if training and not near:
        raise _out_of_reach()
    if training and reading is None and not tf.executing_eagerly():
        _watch_calls_of_function()
    return reading, writing


def _place() -> tuple[int | None, tuple[int, ...]]:
    """Return an id of the current graph and the ids of the vectorized loops around."""
    if tf.executing_eagerly():
        return None, ()
    graph = tf.compat.v1.get_default_graph()
    return id(graph), tuple(id(variable) for variable in vectorized_loops())


def _watch_calls_of_function() -> None:
    """Check each call of the `tf.function` that is being traced: its calls run no layer."""
    graph = tf.compat.v1.get_default_graph()
    while getattr(graph, "is_control_flow_graph", False):
        graph = graph.outer_graph
    captures = getattr(graph, "_function_captures", None)
    if captures is not None and _check_call_of_function not in captures.by_ref_external:
        # At each call TensorFlow calls the functions that are captured by reference, for their
        # values. This value has no tensors.
        graph.capture_call_time_value(_check_call_of_function, (), key=_check_call_of_function)
        captures.by_ref_external[_check_call_of_function] = _check_call_of_function
        del captures.by_ref_internal[_check_call_of_function]


def _check_call_of_function() -> tuple[()]:
    """Refuse to call a `tf.function` that drops inside a checkpointed function."""
    if blocks.runs.get():
        raise _out_of_reach()
    if not tf.executing_eagerly():
        _watch_calls_of_function()
    return ()


def _out_of_reach() -> NotImplementedError:
    return blocks.refusal(
        "a tf.function, a branch or loop of a graph, or tf.vectorized_map inside a function under "
        "gradient checkpointing. Checkpoint a function inside of the tf.function, branch or loop "
        "instead"
    )


_original = custom_gradient.recompute_grad


class recompute_grad:  # noqa: N801 - it replaces a function
    """Works as `tf.recompute_grad`, and reuses the masks of the forward pass."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function, updated=())

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # TensorFlow takes no keyword arguments in a graph. Those without a tensor have no gradient.
        tensors = {name: value for name, value in kwargs.items() if _has_tensor(value)}
        others = {name: value for name, value in kwargs.items() if name not in tensors}
        function = functools.partial(self._function, **others)
        return _original(Block(function).run)(*args, **tensors)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method to its object."""
        return self if instance is None else recompute_grad(self._function.__get__(instance, owner))


def _has_tensor(value: Any) -> bool:
    return any(tf.is_tensor(one) or isinstance(one, tf.Variable) for one in tf.nest.flatten(value))


class _Recomputation(tf.GradientTape):
    """The tape that TensorFlow's own `recompute_grad` opens to compute a function again."""

    def __enter__(self) -> _Recomputation:
        self._token = blocks.runs.set((*blocks.runs.get(), None))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        blocks.runs.reset(self._token)
        super().__exit__(*error)


def replace() -> None:
    """Replace TensorFlow's `tf.recompute_grad`, as importing this module does."""
    tf.recompute_grad = recompute_grad


def restore() -> None:
    """Restore TensorFlow's `tf.recompute_grad`; dropout layers then refuse recomputations."""
    tf.recompute_grad = _original


_backprop = vars(custom_gradient.backprop)
custom_gradient.backprop = types.SimpleNamespace(**{**_backprop, "GradientTape": _Recomputation})
replace()
