"""Stores a layer's rate in a variable, knows loops, and saves the seed's state in checkpoints."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops.parallel_for import control_flow_ops

from fastdrop._config import STREAM_VERSION
from fastdrop_keras.layer_state import check_stream


class Rate:
    """A rate from 0 to 1 that takes effect at the next step, also in traced functions.

    Graphs read the rate from a variable. Keras and checkpoints do not track the variable, since
    they do not track this class: the rate is a setting and not a weight.
    """

    variables = ()

    def __init__(self, value: float) -> None:
        self._value = value
        # Outside of all graphs, since a layer may be created while a function is traced.
        with tf.init_scope():
            self._tensor = tf.constant(value, tf.float64)
            self.variable = tf.Variable(
                value,
                dtype=tf.float64,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
        self._in_graphs: weakref.WeakKeyDictionary[tf.Graph, float] = weakref.WeakKeyDictionary()

    @property
    def value(self) -> float:
        """Float between 0 and 1."""
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        if not tf.executing_eagerly():
            # The later calls in this graph use this rate, as with any Python value.
            self._in_graphs[tf.compat.v1.get_default_graph()] = value
        with tf.init_scope():
            self._tensor = tf.constant(value, tf.float64)
            self.variable.assign(value)
        self._value = value

    def read(self) -> tf.Tensor:
        """Return the rate as a scalar float64 tensor, which a graph reads at each run."""
        if tf.executing_eagerly():
            return self._tensor
        for graph in _graphs_of_function():
            if graph in self._in_graphs:
                return tf.constant(self._in_graphs[graph], tf.float64)
        return self.variable.read_value()


# The loop variable of each `tf.vectorized_map` whose body is being traced, the innermost last.
_loops: contextvars.ContextVar[tuple[tf.Tensor, ...]] = contextvars.ContextVar("loops", default=())
_trace_loop = inspect.unwrap(control_flow_ops._pfor_impl)  # also if this module is reloaded


@contextlib.contextmanager
def _inside(loop_variable: tf.Tensor) -> Iterator[None]:
    token = _loops.set((*_loops.get(), loop_variable))
    try:
        yield
    finally:
        _loops.reset(token)


@functools.wraps(_trace_loop)
def _trace_loop_and_tell(body: Callable[[tf.Tensor], Any], *args: Any, **kwargs: Any) -> Any:
    """Trace the body of a vectorized loop, and give the layers in it the loop's variable."""

    def known_body(loop_variable: tf.Tensor) -> Any:
        with _inside(loop_variable):
            return body(loop_variable)

    # Only TensorFlow itself passes a body with an argument `pfor_config`.
    configured = kwargs.get("pfor_config") is not None
    return _trace_loop(body if configured else known_body, *args, **kwargs)


control_flow_ops._pfor_impl = _trace_loop_and_tell


def vectorized_loops() -> list[tf.Tensor]:
    """Return the loop variables of each `tf.vectorized_map` around, the outermost first.

    A function has no access to the loop variables of its caller, since it has other callers too.
    """
    graphs = set(_graphs_of_function())
    return [variable for variable in _loops.get() if variable.graph in graphs]


def count_of_loops() -> int:
    """Return the number of `tf.vectorized_map` around, those around a caller's function too."""
    return len(_loops.get())


def _graphs_of_function() -> Iterator[tf.Graph]:
    """Yield the current graph and the graphs around it, up to the function's graph."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        yield graph
        control_flow = getattr(graph, "is_control_flow_graph", False)
        graph = graph.outer_graph if control_flow else None


class StreamNumber(tf.train.experimental.PythonState):
    """Saves the number of the random stream in checkpoints, and refuses checkpoints of another.

    TensorFlow restores Python states before variables, so a refusal changes nothing.
    """

    def serialize(self) -> str:
        """Return the text for the checkpoint; called by TensorFlow."""
        return str(STREAM_VERSION)

    def deserialize(self, string_value: bytes) -> None:
        """Check the text from the checkpoint; called by TensorFlow."""
        number = string_value.decode(errors="replace")
        check_stream(int(number) if number.isdecimal() else number, "the checkpoint")


class Tracked(tf.train.Checkpoint):
    """Makes checkpoints track the seed's state, and SavedModels the rate too.

    As attributes of the layer, the variables would be among its weights.
    """

    def __init__(self, generator: keras.random.SeedGenerator, rate: Rate) -> None:
        super().__init__(state=generator.state, stream=StreamNumber())
        self._rate = rate

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        children: dict[str, Any] = super()._trackable_children(save_type, **kwargs)
        if save_type != "checkpoint":
            # In a graph, each operation has the number of its stream.
            children.pop("stream", None)
            children["rate"] = self._rate.variable
        return children
