"""Defines Keras's layers of Gaussian noise and alpha dropout, which save no masks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from fastdrop_keras.arguments import (
    checked_noise_shape,
    checked_rate,
    checked_stddev,
    wrong_value,
)
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.random_layer import RandomLayer, SeededLayer


class DrawLayer(SeededLayer):
    """Applies a kind of `BACKEND.draw`, and saves its seed and its parameter."""

    _kind: str

    def _operation(self, inputs: Any, seed: Any, mask_shape: NoiseShape | None) -> tuple[Any, Any]:
        saved = (seed, self._rate.read())
        return self._operation_again(inputs, saved, mask_shape), saved

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        seed, parameter = saved
        return BACKEND.draw(self._kind, inputs, seed, parameter, mask_shape)

    def _mask_shape(self) -> NoiseShape | None:
        return None


@keras.saving.register_keras_serializable(package="fastdrop")
class GaussianDropout(DrawLayer, RandomLayer, keras.layers.GaussianDropout):
    """Multiplies the input by Gaussian noise, as `keras.layers.GaussianDropout` does.

    In training, the layer multiplies each input unit by a normal number of mean 1 and standard
    deviation `sqrt(rate / (1 - rate))`, which is that of dropout at this rate. In inference it
    returns its inputs.

    `fastdrop.gaussian_dropout` draws the same numbers with this seed and step. The gradient draws
    them again, and the layer saves only its seed. Otherwise the layer is like
    `fastdrop_keras.Dropout`: the seeds, the settable rate, the dtypes, and where it runs.

    Args:
        rate: Float of at least 0 and below 1.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to multiply. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If `rate` or `seed` has the wrong type; in training, if the inputs have another
            dtype or are sparse or ragged.
        ValueError: If `rate` or `seed` is not a valid value. Rate 1, where the noise would be
            infinite, is none.
        RuntimeError: On JAX, if the layer draws in a traced function without its state.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10

    Example:

    >>> import keras
    >>> layer = GaussianDropout(0.2, seed=1)
    >>> keras.ops.convert_to_numpy(layer(keras.ops.ones(4), training=True))
    array([1.7704322 , 0.7134294 , 0.7632931 , 0.04189444], dtype=float32)
    """

    _kind = "gaussian_dropout"

    @staticmethod
    def _checked_rate(rate: Any) -> float:
        number = checked_rate(rate)
        if number == 1:
            raise wrong_value("rate", "a float value of at least 0 and below 1", rate)
        return number


@keras.saving.register_keras_serializable(package="fastdrop")
class GaussianNoise(DrawLayer, keras.layers.GaussianNoise):
    """Adds Gaussian noise to the input, as `keras.layers.GaussianNoise` does.

    In training, the layer adds to each input unit a normal number of mean 0 and standard deviation
    `stddev`. In inference, also in `mc_predict`, it returns its inputs.

    `fastdrop.gaussian_noise` draws the same numbers with this seed and step. The gradient passes
    unchanged. The attribute `stddev` can be set at any time, as the rate of
    `fastdrop_keras.Dropout`. Otherwise the layer is like that one: the seeds, the dtypes, and where
    it runs.

    Args:
        stddev: Finite float of at least 0: the standard deviation of the noise. Keras's layer
            accepts it up to 1.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to add noise. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If `stddev` or `seed` has the wrong type; in training, if the inputs have another
            dtype or are sparse or ragged.
        ValueError: If `stddev` or `seed` is not a valid value.
        RuntimeError: On JAX, if the layer draws in a traced function without its state.

    Example:

    >>> import keras
    >>> layer = GaussianNoise(0.5, seed=1)
    >>> keras.ops.convert_to_numpy(layer(keras.ops.zeros(4), training=True))
    array([ 0.7704323 , -0.2865706 , -0.23670691, -0.95810556], dtype=float32)
    """

    _kind = "gaussian_noise"

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any) -> None:
        SeededLayer.__init__(self, checked_stddev(stddev), seed, **kwargs)

    @property
    def stddev(self) -> float:
        """Float of at least 0. Standard deviation of the noise.

        A new value takes effect when a new rate of `fastdrop_keras.Dropout` does.

        Raises:
            TypeError: If the new value is not a number.
            ValueError: If the new value is negative, infinite or NaN.
            RuntimeError: On JAX, between the steps of `fit`, as for a rate.
        """
        value: float = self._rate.value
        return value

    @stddev.setter
    def stddev(self, value: float) -> None:
        self._rate.value = checked_stddev(value)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current deviation."""
        return {**SeededLayer.get_config(self), "stddev": self.stddev}


@keras.saving.register_keras_serializable(package="fastdrop")
class AlphaDropout(DrawLayer, RandomLayer, keras.layers.AlphaDropout):
    """Applies dropout that keeps the mean and the variance, as `keras.layers.AlphaDropout` does.

    In training, the layer sets each input unit independently, with probability `rate`, to the least
    result of SELU, even if the unit was NaN or infinite. It then scales and shifts all units, so
    that inputs of mean 0 and variance 1 keep them. At rate 1 all results are zero. In inference it
    returns its inputs.

    `fastdrop.alpha_dropout` returns the same results with this seed and step, and
    `fastdrop_keras.Dropout` drops the same units. The gradient draws the mask again, and the layer
    saves only its seed. Otherwise the layer is like `Dropout`: the seeds, the settable rate, the
    dtypes, and where it runs.

    Args:
        rate: Float between 0 and 1. Fraction of the input units to drop.
        noise_shape: Tuple or list of integers or `None`, as for `fastdrop_keras.Dropout`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError, ValueError, RuntimeError: As for `fastdrop_keras.Dropout`.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import keras
    >>> layer = AlphaDropout(0.5, seed=42)
    >>> keras.ops.convert_to_numpy(layer(keras.ops.ones(4), training=True))
    array([-0.77919394, -0.77919394,  1.6655989 ,  1.6655989 ], dtype=float32)
    """

    _kind = "alpha_dropout"

    def __init__(
        self,
        rate: float,
        noise_shape: Iterable[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        noise_shape = checked_noise_shape(noise_shape)
        RandomLayer.__init__(self, rate, seed=seed, **kwargs)
        self.noise_shape = noise_shape

    def _mask_shape(self) -> NoiseShape | None:
        return self.noise_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        return {**RandomLayer.get_config(self), "noise_shape": self.noise_shape}
