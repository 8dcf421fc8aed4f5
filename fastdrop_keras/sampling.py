"""Lets dropout layers drop in inference, from seeds that are not their own."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from fastdrop_keras.noise_shape import NoiseShape

# Of the thread that traces or runs the model: others are not concerned.
_CURRENT: contextvars.ContextVar[Sampler | None] = contextvars.ContextVar("sampler", default=None)

# Batches are so many steps apart, which is how often a layer can be called in one.
_STEPS_OF_A_BATCH = 2**32


def current() -> Sampler | None:
    """Return what decides on dropping in the layers that are called now, if not they do."""
    return _CURRENT.get()


class Sampler:
    """Draws the masks of a model's layers, for any pass over any batch.

    Args:
        layers: The dropout layers of the model.
        seed: Integer from 0 to 2**63 - 1.
        shared_masks: Whether all elements along the first axis, in all batches, share one mask.
    """

    def __init__(self, layers: Sequence[keras.Layer], seed: int, shared_masks: bool) -> None:
        self.shared_masks = shared_masks
        self.called: set[int] = set()
        # Low word of the seed, step and high word: passes and layers differ in the last one.
        self._first = [seed, 0, 0]
        self._positions = {
            id(layer): tf.Variable(self._first, dtype=tf.int64, trainable=False) for layer in layers
        }
        self._graph: tf.Graph | None = None

    @contextlib.contextmanager
    def drawing(self, number: tf.Tensor, batch: tf.Tensor) -> Iterator[None]:
        """Let the layers that are called in this context drop.

        Args:
            number: Integer tensor, the number of the pass.
            batch: Integer tensor, the number of the batch.
        """
        step = tf.zeros_like(batch) if self.shared_masks else batch * _STEPS_OF_A_BATCH
        for index, position in enumerate(self._positions.values()):
            position.assign([self._first[0], step, number * len(self._positions) + index])
        self._graph = tf.compat.v1.get_default_graph()
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def draw(
        self, layer: keras.Layer, inputs: tf.Tensor, mask_shape: NoiseShape | None
    ) -> tuple[tf.Tensor, NoiseShape | None]:
        """Return the next seed for `layer`, and the shape of the mask."""
        if id(layer) not in self._positions:
            raise ValueError(
                f"The layer {layer.name!r} is not among those that Keras finds in the model: it "
                "has to be an attribute of a layer, or in a list or dict that is one"
            )
        self._refuse_other_functions(layer)
        self.called.add(id(layer))
        position = self._positions[id(layer)]
        seed = position.read_value()
        position.assign(seed + tf.constant([0, 1, 0], tf.int64))
        if not self.shared_masks:
            return seed, mask_shape
        rank = inputs.shape.rank
        if rank is None:
            raise ValueError(
                f"The layer {layer.name!r} cannot share a mask: its inputs are of unknown rank"
            )
        if mask_shape is None:
            mask_shape = (None,) * rank
        # A shape of fewer dimensions has one mask for all already.
        return seed, (1, *mask_shape[1:]) if len(mask_shape) == rank and rank else mask_shape

    def _refuse_other_functions(self, layer: keras.Layer) -> None:
        """Raise an error in a `tf.function` of the model's own.

        It would keep what is traced now, and drop in every later inference.
        """
        graph = tf.compat.v1.get_default_graph()
        # The graphs of branches and loops are of subclasses.
        while graph is not self._graph and type(graph) is not tf.__internal__.FuncGraph:
            graph = graph.outer_graph
        if graph is not self._graph:
            raise ValueError(
                f"The layer {layer.name!r} is called in a `tf.function` within the model, where "
                "it cannot be made to drop in inference. Remove the decorator: Keras compiles "
                "the whole model."
            )
