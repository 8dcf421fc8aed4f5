"""Predicts with all units of a model, or averages the predictions of all its thinned networks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from operator import itemgetter, methodcaller
from typing import Any

import keras
import numpy as np

from fastdrop_keras.arguments import checked_count, checked_length, wrong_type, wrong_value
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.inputs import NoiseShape, fitted
from fastdrop_keras.layers import BaseDropout
from fastdrop_keras.models import check_model, dropout_layers
from fastdrop_keras.random_layer import RandomLayer, sampler

_MOST_UNITS = 20


def weight_scaling(model: keras.Model, x: Any, *, batch_size: int | None = None) -> Any:
    """Predicts with all units: the usual approximation to the average of all thinned networks.

    Training multiplies the kept units by `1 / (1 - rate)`, so inference needs no other weights, and
    the result is `model.predict(x)` in float64. `exact_average` computes what it approximates, and
    `mc_predict` estimates it.

    Args:
        model: A Keras model.
        x: The inputs, as for `model.predict`.
        batch_size: Positive integer, or `None` for 32. Must be `None` for a dataset.

    Returns:
        The predictions, with the structure and shapes of `model.predict(x)` and dtype float64.

    Raises:
        TypeError: If `model` is not a Keras model, or `batch_size` not an integer.
        ValueError: If `batch_size` is not positive.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)

    Example:

    >>> import keras, numpy as np
    >>> from fastdrop_keras import Dropout, weight_scaling
    >>> model = keras.Sequential([keras.Input((3,)), Dropout(0.5), keras.layers.Dense(
    ...     1, kernel_initializer="ones")])
    >>> weight_scaling(model, np.array([[1.0, 2.0, 3.0]]))
    array([[6.]])
    """
    check_model(model, "weight_scaling")
    if batch_size is not None:
        batch_size = checked_count(batch_size, "batch_size")
    return keras.tree.map_structure(_in_float64, model.predict(x, batch_size, verbose=0))


def exact_average(
    model: keras.Model,
    x: Any,
    layer: RandomLayer | str | None = None,
    *,
    batch_size: int | None = None,
    geometric: bool = False,
) -> tuple[Any, Any]:
    """Averages the predictions of all thinned networks, and returns the standard deviation too.

    A dropout layer of `n` units can keep them in `2**n` ways. The model predicts with each, and the
    average has the weights `rate**dropped * (1 - rate)**kept`. So it is the limit of `mc_predict`
    for many passes, if this is the only layer that drops. All other layers are in inference.

    Nothing is random, and the model does not change. Several threads may call it at once.

    Args:
        model: A Keras model.
        x: Array or tensor; or list, tuple or dict of them.
        layer: The layer that drops, or its name: a `Dropout` or `SpatialDropout` layer of this
            package in `model`, of at most 20 units for one input. Elements that share a decision,
            by the layer's noise shape, are one unit. `None` stands for the only layer.
        batch_size: Positive integer: how many pairs of an input and a mask the model predicts at
            once. `None` for 1024.
        geometric: Boolean, whether to return the normalized geometric mean in place of the mean.
            The predictions must be probabilities, which sum to 1 along the last axis. For one
            softmax layer after the dropout layer, it equals `weight_scaling`.

    Returns:
        A tuple `(mean, standard deviation)`, each with the structure and shapes of
        `model.predict(x)` and dtype float64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model has no such layer, or several and `layer` is `None`; if the layer
            has more than 20 units, is not called exactly once in inference, or is called in a
            function that is traced; if `x` is empty or its arrays differ in length; if
            `batch_size` is not positive; if `geometric` is true and the predictions are not
            probabilities.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)
    - [Baldi and Sadowski, 2013](https://papers.nips.cc/paper/4878-understanding-dropout)

    Example:

    >>> import keras, numpy as np
    >>> from fastdrop_keras import Dropout, exact_average
    >>> model = keras.Sequential([keras.Input((2,)), Dropout(0.5), keras.layers.Dense(
    ...     1, activation="relu", kernel_initializer="ones")])
    >>> mean, deviation = exact_average(model, np.array([[1.0, -1.0]]))
    >>> mean  # of relu(0), relu(2), relu(-2) and relu(2 - 2)
    array([[0.5]])
    >>> deviation.round(3)
    array([[0.866]])
    """
    target = _layer_of(model, layer)
    rows = 1024 if batch_size is None else checked_count(batch_size, "batch_size")
    if not isinstance(geometric, bool):
        raise wrong_type("geometric", "a boolean", geometric)
    x = keras.tree.map_structure(_as_array, x)
    length = checked_length(keras.tree.flatten(x), "exact_average")
    network = _ThinnedNetwork(model, target)
    # One input tells the number of units.
    network.predict(keras.tree.map_structure(itemgetter(slice(1)), x), 1)
    masks = network.masks()
    moments = [
        _moments(network, keras.tree.map_structure(itemgetter(part), x), masks, rows, geometric)
        for part in _slices(length, max(1, rows // len(masks)))
    ]
    means, deviations = zip(*moments, strict=True)
    concatenate = functools.partial(keras.tree.map_structure, lambda *parts: np.concatenate(parts))
    return concatenate(*means), concatenate(*deviations)


def _layer_of(model: Any, layer: Any) -> BaseDropout:
    """Return the layer that the argument `layer` of `exact_average` selects in `model`."""
    if not (layer is None or isinstance(layer, (str, keras.layers.Layer))):
        raise wrong_type("layer", "a layer, its name or None", layer)
    layers = dropout_layers(model, "exact_average", RandomLayer)
    found = [one for one in layers if layer is None or layer is one or layer == one.name]
    names = [one.name for one in layers]
    if len(found) != 1:
        expected = f"one of the layers {names}" if layer is None else f"one layer among {names}"
        raise wrong_value("layer", expected, repr(layer))
    if not isinstance(found[0], BaseDropout):
        raise wrong_value("layer", "a layer Dropout or SpatialDropout", repr(found[0]))
    return found[0]


class _ThinnedNetwork:
    """Predicts with given masks in one dropout layer; the layers call it in place of drawing."""

    def __init__(self, model: keras.Model, layer: BaseDropout) -> None:
        self._model = model
        self._layer = layer
        self._rate = layer.rate
        self._mask_shape: tuple[int, ...] = ()
        self._kept: np.ndarray | None = None
        self._rows = 0
        self._calls = 0

    def predict(self, x: Any, rows: int, kept: np.ndarray | None = None) -> Any:
        """Return the predictions for `rows` inputs, with a row of `kept` for each, or all kept."""
        self._kept, self._rows, self._calls = kept, rows, 0
        token = sampler.set(self)
        try:
            outputs = self._model(x, training=False)
        finally:
            sampler.reset(token)
        if self._calls != 1:
            raise ValueError(
                f"`exact_average` expects a model that calls the layer {self._layer.name!r} once "
                f"in inference. The model {self._model.name!r} calls it {self._calls} times"
            )
        return keras.tree.map_structure(_in_float64, outputs)

    def masks(self) -> np.ndarray:
        """Return the numbers of all masks of positive weight; a bit is set for each kept unit."""
        units = int(np.prod(self._mask_shape))
        if units > _MOST_UNITS:
            raise ValueError(
                f"`exact_average` expects a dropout layer of at most {_MOST_UNITS} units for each "
                f"input. The layer {self._layer.name!r} has {units}, so 2**{units} masks. "
                "`mc_predict` approximates their average"
            )
        masks = np.arange(2**units)
        positive: np.ndarray = masks[self.weights(self.kept(masks)) > 0]
        return positive

    def kept(self, masks: np.ndarray) -> Any:
        """Return which units the masks keep, as booleans, with one row for each mask."""
        return masks[:, None] >> np.arange(int(np.prod(self._mask_shape))) & 1 == 1

    def weights(self, kept: np.ndarray) -> Any:
        """Return the probability of each mask."""
        kept_units = kept.sum(axis=1)
        return self._rate ** (kept.shape[1] - kept_units) * (1 - self._rate) ** kept_units

    def apply(
        self,
        layer: RandomLayer,
        inputs: Any,
        mask_shape: NoiseShape | None,
        of_samples: bool,
    ) -> Any:
        """Return `inputs` without the units that the masks drop; called by each layer."""
        if layer is not self._layer:
            return inputs
        self._calls += 1
        try:
            # A tensor of a traced function has no value.
            float(keras.ops.stop_gradient(keras.ops.sum(inputs[:0])))
        except TypeError as error:
            raise ValueError(
                f"The layer {layer.name!r} is called in a function that is traced, which would "
                "keep the masks of `exact_average`. Remove the decorator: Keras compiles the model"
            ) from error
        rows, *shape = inputs.shape
        if rows != self._rows:
            raise ValueError(
                f"`exact_average` expects a layer whose inputs have a row for each input of the "
                f"model. The layer {layer.name!r} has {rows} for {self._rows}"
            )
        entries = fitted(mask_shape, (None, *shape)) or (None,) * len(inputs.shape)
        self._mask_shape = tuple(
            size if entry is None else entry for entry, size in zip(entries[1:], shape, strict=True)
        )
        if self._kept is None:
            return inputs
        scale = 1 / (1 - self._rate) if self._rate < 1 else 1.0
        # The kernels round once, at the end.
        wide = keras.backend.result_type(inputs.dtype, "float32")
        kept = keras.ops.convert_to_tensor(self._kept.reshape(rows, *self._mask_shape))
        outputs = keras.ops.where(kept, keras.ops.cast(inputs, wide) * scale, 0.0)
        return keras.ops.cast(outputs, inputs.dtype)


def _moments(
    network: _ThinnedNetwork, x: Any, masks: np.ndarray, rows: int, geometric: bool
) -> tuple[Any, Any]:
    """Return the mean and the deviation of the predictions for `x` with all masks."""
    count = len(keras.tree.flatten(x)[0])
    origin: list[np.ndarray] = []
    for part in _slices(len(masks), rows):
        kept = network.kept(masks[part])
        size, weights = len(kept), network.weights(kept)
        repeated = keras.tree.map_structure(methodcaller("repeat", size, axis=0), x)
        structure = network.predict(repeated, count * size, np.tile(kept, (count, 1)))
        outputs = [y.reshape(count, size, *y.shape[1:]) for y in keras.tree.flatten(structure)]
        if not origin:
            # Differences from one of the outputs lose no digits of the deviation.
            origin = [y[:, 0] for y in outputs]
            sums, squares, logarithms = ([np.zeros_like(y) for y in origin] for _ in range(3))
        for index, y in enumerate(outputs):
            difference = y - origin[index][:, None]
            sums[index] += _weighted(weights, difference)
            squares[index] += _weighted(weights, difference**2)
            if geometric:
                logarithms[index] += _weighted(weights, _logarithms(y))
    means = [y + s for y, s in zip(origin, sums, strict=True)]
    if geometric:
        means = [_normalized(logarithm) for logarithm in logarithms]
    variances = [square - s**2 for square, s in zip(squares, sums, strict=True)]
    deviations = [np.sqrt(np.maximum(variance, 0)) for variance in variances]
    pack = keras.tree.pack_sequence_as
    return pack(structure, means), pack(structure, deviations)


def _weighted(weights: np.ndarray, values: np.ndarray) -> Any:
    """Return the weighted sum along the second axis, that of the masks."""
    return np.einsum("m,sm...->s...", weights, values)


def _logarithms(probabilities: np.ndarray) -> Any:
    # In half precision they sum to 1 within a few thousandths.
    if (probabilities < 0).any() or (np.abs(probabilities.sum(axis=-1) - 1) > 0.01).any():
        raise ValueError(
            "`exact_average` with geometric=True expects predictions that are probabilities and "
            "sum to 1 along the last axis. The model's do not"
        )
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def _normalized(logarithms: np.ndarray) -> Any:
    """Return the exponentials of `logarithms`, divided by their sum along the last axis."""
    exponentials = np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _as_array(a: Any) -> Any:
    if not BACKEND.is_tensor(a):
        return np.asarray(a)
    if keras.backend.standardize_dtype(a.dtype) == "bfloat16":
        a = keras.ops.cast(a, "float32")
    return keras.ops.convert_to_numpy(a)


def _in_float64(y: Any) -> Any:
    return _as_array(y).astype(np.float64)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))
