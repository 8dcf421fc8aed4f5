"""Predicts with dropout many times, and returns the mean and the standard deviation."""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fastdrop_keras.arguments import checked_count, checked_length, checked_seed
from fastdrop_keras.bridge import get_bridge
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.models import dropout_layers, layers_with_paths
from fastdrop_keras.random_layer import SampledLayer, sampler

# The distance of the first steps of two batches: a pass can call a layer so often.
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

    The dropout layers of this package drop as in training. The rest of the model is in inference:
    batch normalization uses its moving averages, and noise layers add no noise. The deviation of
    the predictions measures the model's uncertainty (Monte Carlo dropout).

    Each pass updates both moments in float64, so memory does not grow with `n`.

    The same `seed`, `x`, batches and model give the same masks on every machine, whatever was
    computed before. With `shared_masks=True` the masks do not depend on the batches either.

    The model's weights, the states of its seeds and its compiled functions do not change. The first
    call traces a function, which the model keeps for later calls. Several threads may predict with
    one model at once, with or without dropout. If another thread trains it meanwhile, the passes
    use different weights.

    Args:
        model: A Keras model with dropout layers of this package, such as `fastdrop_keras.convert`
            returns.
        x: Array or tensor; list, tuple or dict of them; or a finite `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches, which may include targets and weights. A dataset
            is iterated once.
        n: Positive integer, the number of passes.
        seed: Integer from 0 to 2**63 - 1, or `None` for a seed from Keras's global generator,
            which `keras.utils.set_random_seed` sets.
        batch_size: Positive integer, or `None` for 32. Must be `None` for a dataset.
        shared_masks: Boolean, whether all inputs of a pass share one mask, drawn without the first
            axis of each dropout layer's inputs. One thinned network then predicts all inputs of a
            pass, so differences between inputs do not come from different masks.
        verbose: Boolean, whether to show a progress bar.

    Returns:
        A tuple `(mean, standard deviation)`, each with the structure and shapes of
        `model.predict(x)` and dtype float64. The deviation is the population's: the sum of squares
        is divided by `n`, and for `n=1` the deviation is 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `n`, `seed` or `batch_size` is not a valid value; if `x` is empty or its
            arrays differ in length; if the model has no dropout layer of this package, calls none
            in inference, or calls one in its own `tf.function`.
        RuntimeError: If it is called in a `tf.function`.

    Warns:
        UserWarning: If the model calls only some of its dropout layers in inference.

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
    if not tf.executing_eagerly():
        raise RuntimeError(
            "`mc_predict` returns arrays, which a `tf.function` does not have while it is traced. "
            "Call `mc_predict` outside of the function"
        )
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
    means, deviations = [r.mean for r in results], [r.deviation() for r in results]
    concatenate = functools.partial(keras.tree.map_structure, lambda *parts: np.concatenate(parts))
    return concatenate(*means), concatenate(*deviations)


def _passes_of(model: keras.Model, shared_masks: bool) -> _Passes:
    """Return the passes that `model` keeps, or new ones if it or the bridge has changed."""
    layers = dropout_layers(model, "mc_predict", SampledLayer)
    # The traced function depends on these objects: `compile`, new layers and new variables replace
    # some of them. Python may reuse the id of a deleted object, so the list has the objects.
    made_for = [getattr(model, "_compile_config", None), *model._flatten_layers(), *model.variables]
    for layer in layers:
        made_for += [layer._rate, layer._mask_shape()]
    made_for += [model.run_eagerly, get_bridge()]
    # Keras and TensorFlow would track a value that `setattr` sets.
    kept: dict[bool, _Passes] = vars(model).setdefault("_fastdrop_passes", {})
    if shared_masks not in kept or not kept[shared_masks].is_made_for(made_for):
        kept[shared_masks] = _Passes(model, layers, shared_masks, made_for)
    return kept[shared_masks]


class _Passes:
    """Runs a model in inference, and gives its dropout layers their seeds.

    `made_for` identifies the model's settings that the traced function depends on.
    """

    def __init__(
        self, model: keras.Model, layers: list[SampledLayer], shared: bool, made_for: list[Any]
    ) -> None:
        self._made_for = made_for
        # The variables and attributes are for one pass at a time.
        self._lock = threading.Lock()
        self._model = model
        self._layers = layers
        self._shared_masks = shared
        self._called: set[int] = set()
        # The seed's low word, the step, and the seed's high word, which differs between passes and
        # between layers.
        self._positions = {
            id(layer): tf.Variable([0, 0, 0], dtype=tf.int64, trainable=False) for layer in layers
        }
        self._graph: tf.Graph | None = None
        self._pass = self._run
        if not model.run_eagerly:
            self._pass = tf.function(self._run, reduce_retracing=True, autograph=False)

    def is_made_for(self, made_for: list[Any]) -> bool:
        """Return whether the traced function depends on these objects and values."""
        pairs = zip(self._made_for, made_for, strict=False)
        return len(self._made_for) == len(made_for) and all(
            a is b or (isinstance(a, (bool, str, tuple)) and a == b) for a, b in pairs
        )

    def predict(self, batch: Any, seed: int, number: int, batch_number: int) -> Any:
        """Return the outputs of one pass over one batch."""
        batch = keras.tree.map_structure(tf.convert_to_tensor, batch)
        numbers = (tf.constant(n, tf.int64) for n in (seed, number, batch_number))
        with self._lock:
            return self._pass(batch, *numbers)

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

    def apply(
        self,
        layer: SampledLayer,
        inputs: tf.Tensor,
        mask_shape: NoiseShape | None,
        of_samples: bool,
    ) -> tf.Tensor:
        """Return the result of the layer's random operation; called by the layer."""
        seed, mask_shape = self._draw(layer, inputs, mask_shape, of_samples)
        return layer._operation(inputs, seed, mask_shape)[0]

    def _draw(
        self,
        layer: SampledLayer,
        inputs: tf.Tensor,
        mask_shape: NoiseShape | None,
        of_samples: bool,
    ) -> tuple[tf.Tensor, NoiseShape | None]:
        """Return the next seed for `layer`, and the mask's shape."""
        if id(layer) not in self._positions:
            raise ValueError(
                f"Keras does not find the layer {layer.name!r} in the model. Make it an attribute "
                "of a layer, or an element of a list or dict that is an attribute"
            )
        self._refuse_other_functions(layer)
        self._called.add(id(layer))
        position = self._positions[id(layer)]
        seed = position.read_value()
        position.assign(seed + tf.constant([0, 1, 0], tf.int64))
        if not (self._shared_masks and of_samples):
            return seed, mask_shape
        rank = inputs.shape.rank
        if rank is None:
            raise ValueError(
                f"The layer {layer.name!r} cannot share a mask: its inputs are of unknown rank. "
                "Set their shape with `tf.ensure_shape`, or use shared_masks=False"
            )
        if mask_shape is None:
            mask_shape = (None,) * rank
        # A mask of fewer dimensions is shared along the first axis already.
        return seed, (1, *mask_shape[1:]) if len(mask_shape) == rank and rank else mask_shape

    def _refuse_other_functions(self, layer: SampledLayer) -> None:
        """Raise an error in the model's own `tf.function`: its trace would always drop."""
        graph = tf.compat.v1.get_default_graph()
        # The graphs of branches and loops have subclasses of `FuncGraph`.
        while graph is not self._graph and type(graph) is not tf.__internal__.FuncGraph:
            graph = graph.outer_graph
        if graph is not self._graph:
            raise ValueError(
                f"The layer {layer.name!r} is called in a `tf.function` in the model, which keeps "
                "its trace: it would drop in every later inference. Remove the decorator: Keras "
                "compiles the whole model."
            )

    def check_called(self) -> None:
        """Raise an error if the model called no dropout layer; warn if it called only some."""
        missed = [
            path
            for path, line in layers_with_paths(self._model)
            # At rate 0 a call changes nothing.
            if line[-1] in self._layers
            and line[-1]._rate.value > 0
            and id(line[-1]) not in self._called
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
    """Computes the mean and the deviation of arrays by Welford's recurrence."""

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


def _batches(x: Any, batch_size: int | None) -> tuple[Iterator[Any], int | None]:
    """Return the batches of inputs, and their number if it is known."""
    if not isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        return _batches_of_arrays(x, batch_size or 32)
    if batch_size is not None:
        raise ValueError(
            "A dataset has its own batches: expected batch_size=None with a `tf.data.Dataset` "
            f"or `keras.utils.PyDataset`. Received: batch_size={batch_size}"
        )
    elements: Iterator[Any]
    if isinstance(x, tf.data.Dataset):
        number, elements = int(x.cardinality()), iter(x)
    else:
        number = tf.data.INFINITE_CARDINALITY if x.num_batches is None else x.num_batches
        elements = (x[index] for index in range(number))
    if number == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`mc_predict` expects a finite dataset. Received an infinite one")
    inputs = (keras.utils.unpack_x_y_sample_weight(element)[0] for element in elements)
    return inputs, number if number >= 0 else None


def _batches_of_arrays(x: Any, batch_size: int) -> tuple[Iterator[Any], int]:
    x = keras.tree.map_structure(lambda a: a if tf.is_tensor(a) else np.asarray(a), x)
    arrays = keras.tree.flatten(x)
    if any(isinstance(array, (tf.SparseTensor, tf.RaggedTensor)) for array in arrays):
        raise TypeError(
            "`mc_predict` expects dense arrays for argument `x`. "
            f"Received: {[type(array).__name__ for array in arrays]}. Convert them with "
            "`tf.sparse.to_dense` or `to_tensor`"
        )
    starts = range(0, checked_length(arrays, "mc_predict"), batch_size)
    slices = (
        keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], x) for start in starts
    )
    return slices, len(starts)
