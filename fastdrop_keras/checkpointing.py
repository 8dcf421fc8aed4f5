"""Reuses the masks of the forward pass when gradient checkpointing computes a function again.

`tf.recompute_grad`, which `keras.remat` and `keras.RematScope` use, calls a function in the forward
pass, discards the results, and calls it again in the backward pass. Importing this module replaces
`tf.recompute_grad`: each call of a checkpointed function becomes a `Block`. In the first run of a
block, each dropout layer saves its masks. In later runs it reads them. `restore()` restores
TensorFlow's function.
"""

from __future__ import annotations

import contextvars
import functools
import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras.src.backend import in_symbolic_scope
from tensorflow.python.ops import custom_gradient

from fastdrop_keras.bridge import Saved
from fastdrop_keras.layer_state import vectorized_loops


class Block:
    """One call of a checkpointed function, with the masks that layers save in its first run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._saved: dict[Any, list[Saved | None]] | None = None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, which reuses the masks of an earlier run."""
        first = self._saved is None
        saved = {} if self._saved is None else self._saved
        run = Run(first, saved)
        token = _runs.set((*_runs.get(), run))
        try:
            results = self._function(*args, **kwargs)
        finally:
            _runs.reset(token)
        if first:
            self._saved = saved
        else:
            run.check_complete()
        return results


class Run:
    """One run of a block: its layers write their masks in the first run, and read them in others.

    `saved` has the masks of each layer's calls, with `None` for calls in inference.
    """

    def __init__(self, first: bool, saved: dict[Any, list[Saved | None]]) -> None:
        self.first = first
        self._saved = saved
        self._calls: dict[Any, int] = {}
        self._place = _place()

    def write(self, layer: Any, saved: Saved | None) -> None:
        """Store what a call of `layer` saved."""
        self._saved.setdefault(layer, []).append(saved)

    def read(self, layer: Any, training: bool) -> Saved | None:
        """Return what this call of `layer` saved in the first run."""
        number = self._calls.get(layer, 0)
        self._calls[layer] = number + 1
        saved = self._saved.get(layer, [])
        if number < len(saved):
            return saved[number]
        if training:
            raise _other_calls(len(saved), number + 1)
        return None

    def check_complete(self) -> None:
        """Raise an error if this run skipped a call of a layer that dropped in the first run."""
        for layer, saved in self._saved.items():
            number = self._calls.get(layer, 0)
            if any(one is not None for one in saved[number:]):
                raise _other_calls(len(saved), number)

    def has_dropped(self, layer: Any) -> bool:
        """Return whether `layer` dropped in the first run."""
        return any(saved is not None for saved in self._saved.get(layer, ()))

    def is_near(self) -> bool:
        """Return whether the run is in the current graph and loop, which can use its tensors."""
        return self._place == _place()


# The runs around the current call, the innermost last. `None` is a recomputation by TensorFlow's
# own `recompute_grad`, without masks.
_runs: contextvars.ContextVar[tuple[Run | None, ...]] = contextvars.ContextVar("runs", default=())


def runs_around(layer: Any, training: bool) -> tuple[Run | None, list[Run]]:
    """Return the run from which this call of `layer` reads its mask, and the runs it writes to.

    In a recomputation `training` may be wrong, since Keras does not keep it.

    Raises:
        NotImplementedError: If the call is in a recomputation that cannot use the mask.
    """
    reading: Run | None = None
    writing: list[Run] = []
    # Keras discards this graph, in which it computes shapes.
    if in_symbolic_scope():
        return None, []
    for run in reversed(_runs.get()):
        if run is None:
            raise _refusal(
                "a function that was checkpointed before fastdrop_keras was imported, or not by "
                "`tf.recompute_grad`. Import fastdrop_keras before the function is checkpointed"
            )
        if not run.first:
            reading = run
            training = training or run.has_dropped(layer)
            break
        writing.append(run)
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
    if _runs.get():
        raise _out_of_reach()
    if not tf.executing_eagerly():
        _watch_calls_of_function()
    return ()


def _other_calls(before: int, now: int) -> RuntimeError:
    return RuntimeError(
        "A function under gradient checkpointing (keras.remat, keras.RematScope, "
        f"tf.recompute_grad) called a dropout layer {before} times in the forward pass, and "
        f"{now} times in the recomputation: it would use wrong masks. The function must do the "
        "same each time that it is called, with the same layers."
    )


def _out_of_reach() -> NotImplementedError:
    return _refusal(
        "a tf.function, a branch or loop of a graph, or tf.vectorized_map inside a function under "
        "gradient checkpointing. Checkpoint a function inside of the tf.function, branch or loop "
        "instead"
    )


def _refusal(where: str) -> NotImplementedError:
    return NotImplementedError(
        "The recomputation cannot be given the mask of the forward pass: a dropout layer was "
        f"called in {where}, or leave the dropout layer out of the checkpointed function: for its "
        "own gradient it keeps only one bit an element."
    )


_original = custom_gradient.recompute_grad


class recompute_grad:  # noqa: N801 - it replaces a function
    """Works as `tf.recompute_grad`, and reuses the masks of the forward pass."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function, updated=())

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _original(Block(self._function).run)(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method to its object."""
        return self if instance is None else recompute_grad(self._function.__get__(instance, owner))


class _Recomputation(tf.GradientTape):
    """The tape that TensorFlow's own `recompute_grad` opens to compute a function again."""

    def __enter__(self) -> _Recomputation:
        self._token = _runs.set((*_runs.get(), None))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _runs.reset(self._token)
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
