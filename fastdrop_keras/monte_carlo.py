"""Predicts with dropout many times, and returns the mean and the standard deviation."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fastdrop_keras import layer_search
from fastdrop_keras.bridge import get_bridge
from fastdrop_keras.layers import BaseDropout, checked_count, checked_seed, sampler
from fastdrop_keras.native_bridge import NoiseShape

_DEFAULT_BATCH_SIZE = 32

# Batches are so many steps apart, which is how often a layer can be called in one.
_STEPS_OF_A_BATCH = 2**32


def mc_predict(
    model: keras.Model,
    x: Any,
    n: int,
    *,
    seed: int | None = None,
    batch_size: int | None = None,
    shared_masks: bool = False,
    verbose: bool = True,
) -> tuple[Any, Any]:
    """Predicts with dropout `n` times, and returns the mean and the standard deviation.

    The dropout layers of this package drop as in training, and nothing else in the model is in
    training: batch normalization uses its moving averages, noise layers add none. The spread of
    the predictions is a measure of how unsure the model is (Monte Carlo dropout).

    The moments are updated with each pass, in float64, so `n` costs time and no memory.

    The same `seed`, `x`, batches and model give the same masks, whatever happened before, on every
    machine. With `shared_masks=True` they do not depend on the batches either.

    The model is left as it is: its weights, the states of its seeds and what Keras has compiled.
    The first call traces a function, which the model keeps for later calls. Threads may predict,
    with dropout or without, with one model at once; in one that trains meanwhile, the passes see
    different weights.

    Args:
        model: A Keras model with dropout layers of this package. `fastdrop_keras.convert` puts
            them in the place of Keras's.
        x: Array or tensor; list, tuple or dict of them; or a finite `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches, which may hold targets and weights too. A dataset
            is iterated once.
        n: Positive integer: the number of passes.
        seed: Integer from 0 to 2**63 - 1, or `None` for one that `keras.utils.set_random_seed`
            determines.
        batch_size: Positive integer, or `None` for 32. Not with a dataset, which has batches.
        shared_masks: Boolean: whether all inputs of a pass are predicted with the same mask, drawn
            without the first axis of each dropout layer's inputs: with the same thinned network,
            so that differences between inputs are not those between masks.
        verbose: Boolean: whether to show a progress bar.

    Returns:
        A tuple `(mean, standard deviation)`, each of the structure and shapes of
        `model.predict(x)`, of dtype float64. The deviation is that of the population: the squares
        are divided by `n`, and it is 0 where `n` is 1.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If `n`, `seed` or `batch_size` is not a valid value; if `x` is empty, or its
            arrays are not of one length; if the model has no dropout layer of this package, or
            calls none in inference, or calls one in a `tf.function` of its own.

    Warns:
        UserWarning: If the model calls some of its dropout layers but not all in inference.

    Reference:

    - [Gal and Ghahramani, 2016](https://proceedings.mlr.press/v48/gal16.html)

    Example:

    >>> import keras, numpy as np
    >>> from fastdrop_keras import Dropout, mc_predict
    >>> model = keras.Sequential([keras.Input((1000,)), Dropout(0.5), keras.layers.Dense(
    ...     1, kernel_initializer="ones")])
    >>> mean, deviation = mc_predict(model, np.ones((2, 1000)), n=200, seed=1, verbose=False)
    >>> mean.shape, deviation.shape
    ((2, 1), (2, 1))
    >>> bool(abs(mean - 1000).max() < 10), bool(abs(deviation - 1000**0.5).max() < 5)
    (True, True)
    """
    n = checked_count(n, "n")
    if batch_size is not None:
        batch_size = checked_count(batch_size, "batch_size")
    seed = checked_seed(seed)
    if seed is None:
        seed = int(keras.random.SeedGenerator().state.numpy()[0])
    batches, number_of_batches = _batches(x, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError("`mc_predict` expects inputs for argument `x`. Received an empty dataset")
    if isinstance(model, keras.Model) and not model.built:
        model(first)
    passes = _passes_of(model, shared_masks)
    progress = None
    if verbose:
        target = None if number_of_batches is None else number_of_batches * n
        progress = keras.utils.Progbar(target, unit_name="pass")
    results = []
    for batch_number, batch in enumerate(itertools.chain([first], batches)):
        moments = _Moments()
        for number in range(n):
            moments.add(passes.predict(batch, seed, number, batch_number))
            if batch_number == number == 0:
                passes.check_called()
            if progress is not None:
                progress.add(1)
        results.append(moments)
    if progress is not None and progress.target is None:
        progress.update(len(results) * n, finalize=True)
    return _joined([r.mean for r in results]), _joined([r.deviation() for r in results])


def _passes_of(model: keras.Model, shared_masks: bool) -> _Passes:
    """Return the passes that the model keeps, or new ones if it has other layers now."""
    layers = layer_search.dropout_layers(model, "mc_predict")
    made_for = (shared_masks, model.run_eagerly, get_bridge(), *map(id, layers))
    # Not by `setattr`: Keras and TensorFlow would look at the value.
    kept: dict[bool, _Passes] = vars(model).setdefault("_fastdrop_passes", {})
    if shared_masks not in kept or kept[shared_masks].made_for != made_for:
        kept[shared_masks] = _Passes(model, layers, shared_masks, made_for)
    return kept[shared_masks]


class _Passes:
    """Runs a model in inference and draws the masks of its dropout layers.

    Args:
        model: The model.
        layers: Its dropout layers.
        shared_masks: Whether all elements along the first axis, in all batches, share one mask.
        made_for: What identifies all that the traced function depends on.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: list[BaseDropout],
        shared_masks: bool,
        made_for: tuple[Any, ...],
    ) -> None:
        self.made_for = made_for
        self._model = model
        self._layers = layers
        self._shared_masks = shared_masks
        self._called: set[int] = set()
        # Low word of the seed, step and high word: passes and layers differ in the last one.
        self._positions = {
            id(layer): tf.Variable([0, 0, 0], dtype=tf.int64, trainable=False) for layer in layers
        }
        self._graph: tf.Graph | None = None
        self._pass = self._run
        if not model.run_eagerly:
            self._pass = tf.function(self._run, reduce_retracing=True, autograph=False)

    def predict(self, batch: Any, seed: int, number: int, batch_number: int) -> Any:
        """Return the outputs of one pass over one batch."""
        batch = keras.tree.map_structure(tf.convert_to_tensor, batch)
        return self._pass(batch, *(tf.constant(n, tf.int64) for n in (seed, number, batch_number)))

    def _run(self, batch: Any, seed: tf.Tensor, number: tf.Tensor, batch_number: tf.Tensor) -> Any:
        step = tf.zeros_like(seed) if self._shared_masks else batch_number * _STEPS_OF_A_BATCH
        for index, position in enumerate(self._positions.values()):
            position.assign(tf.stack([seed, step, number * len(self._positions) + index]))
        self._graph = tf.compat.v1.get_default_graph()
        token = sampler.set(self)
        try:
            return self._model(batch, training=False)
        finally:
            sampler.reset(token)

    def draw(
        self, layer: BaseDropout, inputs: tf.Tensor, mask_shape: NoiseShape | None
    ) -> tuple[tf.Tensor, NoiseShape | None]:
        """Return the next seed for `layer`, and the shape of the mask; called by the layer."""
        if id(layer) not in self._positions:
            raise ValueError(
                f"The layer {layer.name!r} is not among those that Keras finds in the model: it "
                "has to be an attribute of a layer, or in a list or dict that is one"
            )
        self._refuse_other_functions(layer)
        self._called.add(id(layer))
        position = self._positions[id(layer)]
        seed = position.read_value()
        position.assign(seed + tf.constant([0, 1, 0], tf.int64))
        if not self._shared_masks:
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

    def _refuse_other_functions(self, layer: BaseDropout) -> None:
        """Raise an error in a `tf.function` of the model's own.

        It would keep the trace with dropout, and drop in every later inference.
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

    def check_called(self) -> None:
        """Raise an error if the model called no dropout layer, warn if it did not call all."""
        missed = [
            path
            for path, line in layer_search.with_paths(self._model)
            # At rate 0 there is nothing to miss.
            if line[-1] in self._layers and line[-1].rate > 0 and id(line[-1]) not in self._called
        ]
        if not self._called:
            raise ValueError(
                f"The model {self._model.name!r} calls none of its dropout layers in inference: "
                f"{missed or [layer.name for layer in self._layers]}"
            )
        if missed:
            warnings.warn(
                f"The model {self._model.name!r} does not call these dropout layers in inference, "
                f"so they do not drop: {missed}",
                stacklevel=3,
            )


class _Moments:
    """Mean and deviation of the arrays that are added, by Welford's recurrence."""

    def __init__(self) -> None:
        self.mean: Any = None
        self._squares: Any = None
        self._count = 0

    def add(self, outputs: Any) -> None:
        outputs = keras.tree.map_structure(lambda y: np.asarray(y).astype(np.float64), outputs)
        self._count += 1
        if self._count == 1:
            self.mean = outputs
            self._squares = keras.tree.map_structure(np.zeros_like, outputs)
            return
        keras.tree.map_structure(self._add, outputs, self.mean, self._squares)

    def _add(self, y: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> None:
        difference = y - mean
        mean += difference / self._count
        squares += difference * (y - mean)

    def deviation(self) -> Any:
        return keras.tree.map_structure(lambda s: np.sqrt(s / self._count), self._squares)


def _joined(parts: list[Any]) -> Any:
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def _batches(x: Any, batch_size: int | None) -> tuple[Iterator[Any], int | None]:
    """Return the batches of inputs, and their number if it is known."""
    if not isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        return _batches_of_arrays(x, batch_size or _DEFAULT_BATCH_SIZE)
    if batch_size is not None:
        raise ValueError(
            "A dataset has batches of its own: expected batch_size=None with a `tf.data.Dataset` "
            f"or `keras.utils.PyDataset`. Received: batch_size={batch_size}"
        )
    elements: Iterator[Any]
    if isinstance(x, tf.data.Dataset):
        number = int(x.cardinality())
        infinite = number == tf.data.INFINITE_CARDINALITY
        elements = iter(x)
    else:
        number = -1 if x.num_batches is None else x.num_batches
        infinite = number < 0
        elements = (x[index] for index in range(number))
    if infinite:
        raise ValueError("`mc_predict` expects a finite dataset. Received an infinite one")
    inputs = (keras.utils.unpack_x_y_sample_weight(element)[0] for element in elements)
    return inputs, number if number >= 0 else None


def _batches_of_arrays(x: Any, batch_size: int) -> tuple[Iterator[Any], int]:
    x = keras.tree.map_structure(lambda a: a if tf.is_tensor(a) else np.asarray(a), x)
    arrays = keras.tree.flatten(x)
    if any(isinstance(array, (tf.SparseTensor, tf.RaggedTensor)) for array in arrays):
        raise TypeError(
            "`mc_predict` expects dense arrays for argument `x`. "
            f"Received: {[type(array).__name__ for array in arrays]}"
        )
    shapes = [tuple(array.shape) for array in arrays]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1 or shapes[0][0] == 0:
        raise ValueError(
            "`mc_predict` expects an array or arrays of one length, not empty, for argument `x`. "
            f"Received arrays of shapes {shapes}"
        )
    starts = range(0, shapes[0][0], batch_size)
    slices = (
        keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], x) for start in starts
    )
    return slices, len(starts)
