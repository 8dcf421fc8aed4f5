"""Runs dropout layers on TensorFlow: see `backend.Backend` for what each part does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import in_stateless_scope

from fastdrop_keras import layer_state, tensorflow_state
from fastdrop_keras.bridge import check, config_lines, draw, dropout, dropout_again
from fastdrop_keras.checkpointing import runs_around
from fastdrop_keras.tensorflow_state import Rate
from fastdrop_keras.xla_bridge import supports_jit

__all__ = [
    "Rate",
    "check",
    "config_lines",
    "draw",
    "dropout",
    "dropout_again",
    "runs_around",
    "supports_jit",
]

TRACED_FUNCTIONS: tuple[Any, ...] = (tf.types.experimental.PolymorphicFunction,)
GENERATORS: tuple[Any, ...] = (tf.random.Generator,)

new_seed_generator = keras.random.SeedGenerator
tracked = tensorflow_state.Tracked
is_tensor = tf.is_tensor


def scaled(rate: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Return the product."""
    return rate * factor


def cond(
    training: tf.Tensor, drop: Callable[[], tf.Tensor], keep: Callable[[], tf.Tensor]
) -> tf.Tensor:
    """Call one of the functions, perhaps in a graph that has both."""
    return tf.cond(tf.cast(training, tf.bool), drop, keep)


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return the scope of the model's distribution strategy."""
    scope: contextlib.AbstractContextManager[Any] = model.distribute_strategy.scope()
    return scope


def random_module(layer: keras.Layer) -> str:
    """Return nothing: TensorFlow has no modules that drop."""
    return ""


def forget_traces(model: keras.Model) -> None:
    """Do nothing: Keras holds all functions that it traces."""


def update_variables(model: keras.Model) -> None:
    """Do nothing: each step assigns the variables."""


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """Return the seed and advance the state, with a high word if several calls share both."""
    # The seed generator's `next` does the same with five operations. These are two.
    state = generator.state
    distributed = tf.distribute.has_strategy()
    # Under a distribution strategy no lock: replicas wait for each other here. Graphs run without
    # Python's locks.
    alone = tf.executing_eagerly() and not distributed
    with layer_state.taking_a_seed if alone else contextlib.nullcontext():
        seed = tf.convert_to_tensor(state)
        step = tf.constant([0, 1], seed.dtype)
        if in_stateless_scope():
            state.assign(seed + step)  # the scope stores it for its caller
        else:
            state.value.assign_add(step, read_value=False)
    # Replicas and the iterations of a vectorized loop read the same state. Their numbers make
    # their masks differ.
    numbers = [] if tf.executing_eagerly() else tensorflow_state.vectorized_loops()[::-1]
    if distributed:
        replica = tf.distribute.get_replica_context()
        if replica is not None:
            numbers.append(replica.replica_id_in_sync_group)
    if not numbers:
        return seed
    high, *rest = (tf.cast(number, seed.dtype) for number in reversed(numbers))
    for number in rest:
        high = high * 2**24 + number
    return tf.concat([seed, tf.reshape(high, [1])], axis=0)
