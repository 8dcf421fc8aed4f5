"""Gradient checkpointing: what is computed again for its gradient drops what it dropped before.

`tf.recompute_grad`, and with it `keras.remat` and `keras.RematScope`, calls a function in the
forward pass, forgets what it computed, and calls it again when its gradient is asked for. What a
layer does in the first of these calls is written down here, and read in the second.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import tensorflow as tf

from fastdrop_keras import surroundings
from fastdrop_keras.dial import Dial
from fastdrop_keras.surroundings import Surroundings


class Block:
    """One call of a checkpointed function, and what the dropout layers did in it.

    Args:
        kwargs: The dict by which the recomputation of this call is known.
    """

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._residuals: dict[Dial, list[tf.Tensor | None]] = {}
        # A gradient can be asked for more than once: each recomputation has a tape of its own.
        self._positions: weakref.WeakKeyDictionary[tf.GradientTape, dict[Dial, int]] = (
            weakref.WeakKeyDictionary()
        )

    def is_over(self) -> bool:
        """Return whether nobody can ask for the gradient of this call any more."""
        # TensorFlow's gradient function would refer to the dict too. The two that always do are
        # this object and the call of `getrefcount`.
        return sys.getrefcount(self._kwargs) <= 2

    def has_dropped(self, dial: Dial) -> bool:
        """Return whether the layer has dropped in the forward pass."""
        return any(residual is not None for residual in self._residuals.get(dial, ()))

    def record(self, dial: Dial, residual: tf.Tensor | None) -> None:
        """Write down what a call of the layer did in the forward pass."""
        self._residuals.setdefault(dial, []).append(residual)

    def next_residual(self, dial: Dial, tape: tf.GradientTape, training: bool) -> tf.Tensor | None:
        """Return what the forward pass did where the recomputation with this tape is now."""
        positions = self._positions.setdefault(tape, {})
        position = positions.get(dial, 0)
        positions[dial] = position + 1
        residuals = self._residuals.get(dial, [])
        if position < len(residuals):
            return residuals[position]
        if training:
            raise RuntimeError(
                "A function under gradient checkpointing (keras.remat, keras.RematScope, "
                "tf.recompute_grad) has called a dropout layer "
                f"{len(residuals)} times in the forward pass, and now calls it once more in the "
                "recomputation. There is no mask for this call. The function must do the same "
                "each time that it is called, with the same layers."
            )
        return None


# By the identity of their dicts, which they keep alive.
_blocks: dict[int, Block] = {}
_blocks_to_clear_at = 16


def check(around: Surroundings, dial: Dial, training: bool) -> None:
    """Refuse a call whose recomputation could not be given what this call draws.

    Args:
        around: What surrounds the layer's call.
        dial: The layer's.
        training: Whether the layer is to drop.

    Raises:
        NotImplementedError: If there is a graph or a loop between the layer and a checkpointed
            function, out of which no mask can be taken, or into which none can be given.
    """
    if around.repeated:
        # In the recomputation, Keras no longer knows whether it is training.
        block = _blocks.get(id(around.repeated[0]))
        training = training or (block is not None and block.has_dropped(dial))
    if around.apart and training:
        raise _out_of_reach()


def repeat(
    repeated: tuple[dict[str, Any], tf.GradientTape], dial: Dial, training: bool
) -> tf.Tensor | None:
    """Return what was dropped by the call that is now repeated.

    Args:
        repeated: Which checkpointed function is computed again, and with which tape.
        dial: The layer's.
        training: Whether the layer is to drop, as far as it knows.

    Returns:
        The residual, or `None` if nothing was dropped.

    Raises:
        RuntimeError: If the forward pass has called the layer less often than the recomputation.
    """
    kwargs, tape = repeated
    # Without a block, no layer was called.
    block = _blocks.get(id(kwargs)) or Block(kwargs)
    return block.next_residual(dial, tape, training)


def record(around: Surroundings, dial: Dial, residual: tf.Tensor | None) -> None:
    """Write down what a layer's call has dropped, for all recomputations of this call.

    Args:
        around: What surrounds the layer's call.
        dial: The layer's.
        residual: The call's residual, or `None` if nothing was dropped.
    """
    for kwargs in around.forward:
        block = _blocks.get(id(kwargs))
        if block is None:
            _clear()
            block = _blocks[id(kwargs)] = Block(kwargs)
        block.record(dial, residual)


def check_calls_of_function() -> None:
    """Have each call of the `tf.function` that is now traced refused where `check` would.

    Once it is traced, its calls reach no layer any more.
    """
    if not tf.executing_eagerly():
        surroundings.at_each_call(_check_call_of_function)


def _check_call_of_function() -> None:
    around = surroundings.find()
    if around is not None and (around.forward or around.repeated):
        raise _out_of_reach()
    check_calls_of_function()


def _out_of_reach() -> NotImplementedError:
    return NotImplementedError(
        "A dropout layer was called in a tf.function, a branch or loop of a graph, or "
        "tf.vectorized_map inside a function under gradient checkpointing (keras.remat, "
        "keras.RematScope, tf.recompute_grad). The recomputation could not be given the mask of "
        "the forward pass. Checkpoint a function inside of the tf.function, branch or loop "
        "instead, or leave the dropout layer out of the checkpointed function: for its own "
        "gradient it keeps only one bit an element."
    )


def _clear() -> None:
    """Forget the calls that are over, before there are many."""
    global _blocks_to_clear_at
    if len(_blocks) < _blocks_to_clear_at:
        return
    for key, block in list(_blocks.items()):
        if block.is_over():
            _blocks.pop(key, None)
    # Those of graphs stay as long as TensorFlow keeps the gradient functions: for good.
    _blocks_to_clear_at = max(16, 2 * len(_blocks))
