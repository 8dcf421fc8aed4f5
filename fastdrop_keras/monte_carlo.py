"""Predictions with their uncertainty: the moments of many passes with dropout."""

from __future__ import annotations

import itertools
import numbers
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fastdrop_keras import layer_search, sampling
from fastdrop_keras.layers import checked_seed

_DEFAULT_BATCH_SIZE = 32


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
    Each call traces a function of its own. Threads may predict, with dropout or without, with one
    model at once; in one that trains meanwhile, the passes see different weights.

    Args:
        model: A Keras model with dropout layers of this package. `fastdrop_keras.convert` puts
            them in the place of Keras's.
        x: Array or tensor; list, tuple or dict of them; or a `tf.data.Dataset` of batches, which
            is gone through once and may hold targets and weights too.
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
    n = _checked_count(n, "n")
    if batch_size is not None:
        batch_size = _checked_count(batch_size, "batch_size")
    seed = checked_seed(seed)
    if seed is None:
        seed = int(keras.random.SeedGenerator().state.numpy()[0])
    if isinstance(x, tf.data.Dataset):
        batches, number_of_batches = _of_dataset(x, batch_size)
    else:
        batches, number_of_batches = _of_arrays(x, batch_size or _DEFAULT_BATCH_SIZE)
    first = next(batches, None)
    if first is None:
        raise ValueError("`mc_predict` expects inputs for argument `x`. Received an empty dataset")
    if isinstance(model, keras.Model) and not model.built:
        model(first)
    layers = layer_search.dropout_layers(model, "mc_predict")
    sampler = sampling.Sampler(layers, seed, shared_masks)
    predict = _dropping(model, sampler)
    progress = None
    if verbose:
        target = None if number_of_batches is None else number_of_batches * n
        progress = keras.utils.Progbar(target, unit_name="pass")
    results = []
    for batch_number, batch in enumerate(itertools.chain([first], batches)):
        moments = _Moments()
        for number in range(n):
            moments.add(predict(batch, tf.constant(number, tf.int64), batch_number))
            if batch_number == number == 0:
                _check_called(model, layers, sampler)
            if progress is not None:
                progress.add(1)
        results.append(moments)
    if progress is not None and progress.target is None:
        progress.update(len(results) * n, finalize=True)
    return _joined([r.mean for r in results]), _joined([r.deviation() for r in results])


def _dropping(model: keras.Model, sampler: sampling.Sampler) -> Callable[..., Any]:
    """Return the model's inference with dropout, as a function of its own."""

    def predict(batch: Any, number: tf.Tensor, batch_number: tf.Tensor) -> Any:
        with sampler.drawing(number, batch_number):
            return model(batch, training=False)

    if not model.run_eagerly:
        predict = tf.function(predict, reduce_retracing=True, autograph=False)
    return lambda batch, number, batch_number: predict(
        keras.tree.map_structure(tf.convert_to_tensor, batch),
        number,
        tf.constant(batch_number, tf.int64),
    )


def _check_called(model: keras.Model, layers: list[Any], sampler: sampling.Sampler) -> None:
    # At rate 0 there is nothing to miss.
    missed = [layer.name for layer in layers if layer.rate > 0 and id(layer) not in sampler.called]
    if not sampler.called:
        raise ValueError(
            f"The model {model.name!r} calls none of its dropout layers in inference: {missed}"
        )
    if missed:
        warnings.warn(
            f"The model {model.name!r} does not call these dropout layers in inference, so they "
            f"do not drop: {missed}",
            stacklevel=3,
        )


class _Moments:
    """Mean and deviation of what is added, by Welford's recurrence."""

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


def _of_dataset(
    dataset: tf.data.Dataset, batch_size: int | None
) -> tuple[Iterator[Any], int | None]:
    """Return the batches of inputs in a dataset, and their number if it is known."""
    if batch_size is not None:
        raise ValueError(
            "A dataset has batches of its own: expected batch_size=None with a `tf.data.Dataset`. "
            f"Received: batch_size={batch_size}"
        )
    number = int(dataset.cardinality())
    if number == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`mc_predict` expects a finite dataset. Received an infinite one")
    inputs = (keras.utils.unpack_x_y_sample_weight(element)[0] for element in dataset)
    return inputs, None if number == tf.data.UNKNOWN_CARDINALITY else number


def _of_arrays(x: Any, batch_size: int) -> tuple[Iterator[Any], int]:
    """Return batches of arrays, and their number."""
    x = keras.tree.map_structure(lambda a: a if tf.is_tensor(a) else np.asarray(a), x)
    arrays = keras.tree.flatten(x)
    if any(isinstance(array, (tf.SparseTensor, tf.RaggedTensor)) for array in arrays):
        raise TypeError(
            "`mc_predict` expects dense arrays for argument `x`. "
            f"Received: {[type(array).__name__ for array in arrays]}"
        )
    shapes = [tuple(array.shape) for array in arrays]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            "`mc_predict` expects an array or arrays of one length for argument `x`. "
            f"Received arrays of shapes {shapes}"
        )
    length = shapes[0][0]
    if length == 0:
        raise ValueError(
            f"`mc_predict` expects inputs for argument `x`. Received arrays of shapes {shapes}"
        )
    starts = range(0, length, batch_size)
    slices = (
        keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], x) for start in starts
    )
    return slices, len(starts)


def _checked_count(value: Any, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"Invalid value received for argument `{argument}`. Expected a positive integer. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    if value < 1:
        raise ValueError(
            f"Invalid value received for argument `{argument}`. Expected a positive integer. "
            f"Received: {argument}={value}"
        )
    return int(value)
