"""What Python's stack tells about a layer's call: whether and when TensorFlow will repeat it.

TensorFlow has no interface for this. But the functions that call a layer again are on the stack,
known by their code, and what they hold in their variables tells one call of them from another.
All that is asked of TensorFlow and Keras here beyond their interfaces is checked when this module
is imported; where it is not there, checkpointing is refused.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import tensorflow as tf


class Surroundings:
    """The calls around a layer's call, as far as they matter to it.

    Attributes:
        forward: For each checkpointed function whose forward pass this is, from the innermost
            on, its `kwargs`: a dict that this call of it has for itself, and that the
            recomputation of this call will have again.
        repeated: The `kwargs` of the checkpointed function that is computed again, and the tape
            of this recomputation; or `None`. What is around it does not matter to the layer.
        apart: Whether one of these functions was called outside of the graph in which the layer
            is called, or outside of a loop that is vectorized.
        iterations: In each loop that is vectorized, the number of the iteration.
    """

    def __init__(self) -> None:
        self.forward: list[dict[str, Any]] = []
        self.repeated: tuple[dict[str, Any], tf.GradientTape] | None = None
        self.apart = False
        self.iterations: list[tf.Tensor] = []
        self._boundaries = 0

    def add(self, frame: FrameType) -> None:
        """Take the next call into account, which is that of one of the functions known here."""
        code = frame.f_code
        if code is _FORWARD:
            self.forward.append(frame.f_locals["kwargs"])
            self.apart = self._boundaries > 0
        elif code is _AGAIN:
            self.repeated = frame.f_locals["kwargs"], frame.f_locals["t"]
            self.apart = self._boundaries > 0
        else:
            # A graph between the loop and the layer can be used elsewhere, where the loop's
            # variable is out of reach.
            if code is _VECTORIZED and len(self.iterations) == self._boundaries:
                self.iterations.append(frame.f_locals["loop_var"])
            self._boundaries += 1


def find() -> Surroundings | None:
    """Return what surrounds the caller's call, or `None` if nothing does that matters.

    Raises:
        NotImplementedError: If the call is under a checkpointing that is not known here.
    """
    found = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # Not `in`: that would compare the contents of codes, and this is what takes the time.
        if code is _FORWARD or code is _AGAIN or code is _GRAPH or code is _VECTORIZED:
            found = found or Surroundings()
            found.add(frame)
            if found.repeated:
                break
        elif code is _SYMBOLIC:
            # Keras wants to know a shape. What is computed here is thrown away.
            return None
        elif _UNKNOWN and id(code) in _UNKNOWN:
            raise NotImplementedError(
                "fastdrop_keras does not know how gradient checkpointing (keras.remat, "
                "keras.RematScope, tf.recompute_grad) works in this version of TensorFlow, "
                f"{tf.__version__}. Leave the dropout layer out of the checkpointed function: for "
                "its own gradient it keeps only one bit an element."
            )
        frame = frame.f_back
    return found


def at_each_call(hook: Callable[[], None]) -> None:
    """Have `hook` called whenever the `tf.function` that is now traced is called."""
    graph = tf.compat.v1.get_default_graph()
    while getattr(graph, "is_control_flow_graph", False):
        graph = graph.outer_graph
    captures = _captures(graph)
    if captures is None or hook in captures.by_ref_external:
        return

    def value() -> tuple[()]:
        hook()
        return ()

    # What a function captures by reference is a Python function, which TensorFlow calls for its
    # value each time. Without tensors in it, nothing is added to the inputs.
    captures.by_ref_tracetype[hook] = _nothing
    captures.by_ref_external[hook] = value


class _Nothing(tf.types.experimental.TraceType):
    """The type of what has no tensors in it."""

    def is_subtype_of(self, other: Any) -> bool:
        return other is self

    def most_specific_common_supertype(self, others: Sequence[Any]) -> Any:
        return self if all(other is self for other in others) else None

    def placeholder_value(self, placeholder_context: Any) -> tuple[()]:
        return ()

    def __eq__(self, other: object) -> bool:
        return other is self

    def __hash__(self) -> int:
        return id(self)


_nothing = _Nothing()


def _captures(graph: tf.Graph) -> Any:
    """Return what a function captures, if it can be asked about."""
    captures = getattr(graph, "_function_captures", None)
    known = all(hasattr(captures, name) for name in ("by_ref_external", "by_ref_tracetype"))
    return captures if known else None


def _code(module: str, name: str, variable: str | None = None) -> CodeType | None:
    """Return the code of a function, if it is there and has this variable."""
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    code = inspect.unwrap(function).__code__
    return code if variable is None or variable in code.co_varnames + code.co_cellvars else None


def _codes_of_checkpointing(recompute_grad: Any) -> tuple[CodeType | None, CodeType | None]:
    """Return the code of the forward pass and that of the recomputation, if as expected."""
    codes = list(_nested(inspect.unwrap(recompute_grad).__code__))
    forward = [code for code in codes if "kwargs" in code.co_cellvars]
    again = [
        code
        for code in codes
        if "kwargs" in code.co_freevars and "t" in code.co_varnames + code.co_cellvars
    ]
    if len(forward) != 1 or len(again) != 1 or again[0] not in _nested(forward[0]):
        return None, None
    return forward[0], again[0]


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Yield the code and those of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


_FORWARD, _AGAIN = _codes_of_checkpointing(tf.recompute_grad)
_GRAPH = _code("tensorflow.python.framework.func_graph", "func_graph_from_py_func")
_VECTORIZED = _code(
    "tensorflow.python.ops.parallel_for.control_flow_ops", "_pfor_impl", variable="loop_var"
)
_SYMBOLIC = _code("keras.src.backend.tensorflow.core", "compute_output_spec")
_UNKNOWN: frozenset[int] = frozenset()
if (
    None in (_FORWARD, _GRAPH, _VECTORIZED, _SYMBOLIC)
    or _captures(tf.__internal__.FuncGraph("any")) is None
):
    _UNKNOWN = frozenset(id(code) for code in _nested(inspect.unwrap(tf.recompute_grad).__code__))
    _FORWARD = _AGAIN = None
