"""Defines layers that learn how much to drop, or compute it from their inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from fastdrop_keras.arguments import (
    checked_noise_shape,
    checked_number,
    checked_rate,
    checked_seed,
    wrong_type,
    wrong_value,
)
from fastdrop_keras.inputs import NoiseShape, check_floats
from fastdrop_keras.noise_layers import DrawLayer
from fastdrop_keras.random_layer import SampledLayer, check_keras_3
from fastdrop_keras.structured import RandomKernel


@keras.saving.register_keras_serializable(package="fastdrop")
class Standout(DrawLayer, SampledLayer):
    """Applies an activation function, and drops each unit with a probability of its own.

    Adaptive dropout (Ba and Frey, 2013) keeps a unit with a probability that a second network
    computes from the inputs of the unit. The authors find that this network learns weights that are
    close to `alpha * w + beta`, where `w` are the unit's own weights, and so use these. This layer
    comes after the layer with the weights, which may be any, without an activation function:

        Dense(256), Standout("relu")

    From the weighted sum `z` of a unit, its input, the layer computes `activation(z)` and the keep
    probability `sigmoid(alpha * z + beta)`: units with large sums are kept. (`beta` is added to the
    sum, as the published programs do. The paper adds it to each weight.) In training a dropped unit
    is `+0.0` and a kept one is not scaled. In inference each unit is multiplied by its keep
    probability.

    In training the gradient takes the mask for a constant, as the authors do: it does not pass
    through the keep probability. In inference it does.

    The decisions are a pure function of the seed, the number of the call, the position and the keep
    probability in the layer's compute dtype, the same as those of `fastdrop.dropout` at the rates
    `1 - keep`, on each backend. State, checkpointing and compilation are as for
    `fastdrop_keras.Dropout`. In `mc_predict` each input has its own mask, also with
    `shared_masks=True`. `fastdrop_keras.RateSchedule` leaves the layer alone.

    Args:
        activation: Activation function, or its name, as for `keras.layers.Dense`. `None` for the
            identity.
        alpha: Finite number, the factor of the sums. With 0, all units are kept with probability
            `sigmoid(beta)`.
        beta: Finite number, added to the scaled sums. With -5, few units are kept.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If `alpha`, `beta` or `seed` has the wrong type, or if the inputs have another
            dtype.
        ValueError: If `activation`, `alpha`, `beta` or `seed` is not a valid value.
        RuntimeError: On JAX, if the layer drops in a traced function without its state.

    Reference:

    - [Ba and Frey, 2013](https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks)

    Example:

    >>> import keras, numpy as np
    >>> layer = Standout("relu", seed=42)
    >>> z = np.array([[-4, -2, 0, 2, 4]], "float32")
    >>> keras.ops.convert_to_numpy(layer(z)).round(3)
    array([[0.   , 0.   , 0.   , 1.762, 3.928]], dtype=float32)
    >>> kept = keras.ops.convert_to_numpy(layer(np.repeat(z, 1000, 0), training=True)) > 0
    >>> kept.mean(0).round(1)
    array([0. , 0. , 0. , 0.9, 1. ])
    """

    _kind = "bernoulli"

    def __init__(
        self,
        activation: Any = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        alpha, beta = checked_number(alpha, "alpha"), checked_number(beta, "beta")
        activation = keras.activations.get(activation)
        # The kernel ignores the number. Above 0, `mc_predict` expects that the layer is called.
        SampledLayer.__init__(self, 1.0, seed, **kwargs)
        self.activation, self.alpha, self.beta = activation, alpha, beta

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Drop units in training, and multiply them by their keep probabilities in inference."""
        check_keras_3(inputs)
        check_floats(inputs)
        # Not a product with infinities: at 0 the sums do not count.
        sums = self.alpha * inputs if self.alpha else ops.zeros_like(inputs)
        keep = ops.sigmoid(sums + self.beta)
        # In inference the keep probabilities themselves.
        mask = self._draw(keep, training, None, of_samples=False)
        return ops.where(mask == 0, 0, self.activation(inputs) * mask)

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        # A NaN is kept: it has no probability.
        rates = ops.where(ops.isnan(inputs), 0, 1 - inputs)
        return DrawLayer._operation_again(self, rates, saved, mask_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one."""
        config = SampledLayer.get_config(self)
        activation = keras.activations.serialize(self.activation)
        return {**config, "activation": activation, "alpha": self.alpha, "beta": self.beta}


class LearnedDropout(DrawLayer, SampledLayer):
    """Multiplies its inputs by a differentiable function of a learned rate and normal numbers."""

    _kind = "gaussian_noise"
    # It saves more for the gradient than a mask.
    rematerialized_call = keras.layers.Layer.rematerialized_call

    def __init__(self, initial_rate: float, seed: int | None, **kwargs: Any) -> None:
        # The standard deviation of the numbers.
        SampledLayer.__init__(self, 1.0, seed, **kwargs)
        self.initial_rate = initial_rate

    def _numbers(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None, dtype: str) -> Any:
        """Return standard normal numbers for the elements of `inputs`."""
        zeros = ops.zeros_like(inputs, dtype=dtype)
        return DrawLayer._operation_again(self, zeros, saved, mask_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one."""
        return {**SampledLayer.get_config(self), "initial_rate": self.initial_rate}


@keras.saving.register_keras_serializable(package="fastdrop")
class VariationalGaussianDropout(LearnedDropout):
    """Multiplies its inputs by Gaussian noise, and learns the variance of the noise.

    In training, the layer multiplies each element by a number from the normal distribution of mean
    1 and variance `alpha = rate / (1 - rate)`, as Gaussian dropout does. It learns `alpha`, one for
    all inputs or one for each unit (the last axis). In inference it returns its inputs.

    The noise of an input unit is noise of all weights of that unit in the next layer. The prior of
    Kingma, Salimans and Welling (2015) for it, uniform in the logarithm, gives the layer a loss:
    `kl_weight` times the sum over the units of the Kullback-Leibler divergence, which the authors
    approximate, but for a constant, by a polynomial of `alpha`. The loss asks for more noise, and
    the data ask for less. As in the paper, `alpha` is at most 1, a rate of 0.5.

    The noise is that of `fastdrop.gaussian_noise` with the seed and the number of the call, on each
    backend. State, checkpointing, compilation and `mc_predict` are as for `fastdrop_keras.Dropout`.
    `fastdrop_keras.RateSchedule` does not change the layer's rate.

    Args:
        kl_weight: Finite number, 0 or larger: the weight of the divergence in the loss. For a loss
            that is the mean over samples of the negative log-likelihood, `1 / N` with N training
            samples.
        per: `"layer"` or `"unit"`: what has an `alpha` of its own.
        initial_rate: Float above 0, at most 0.5: the first rate.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, at least 1, of dtype float16, bfloat16, float32 or
            float64. The size of its last axis must be known.
        training: Boolean, or a boolean tensor: whether to add noise. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `kl_weight`, `per`, `initial_rate` or `seed` is not a valid value.
        RuntimeError: On JAX, if the layer draws in a traced function without its state.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import keras
    >>> layer = VariationalGaussianDropout(1 / 60000, per="unit", initial_rate=0.2, seed=1)
    >>> y = layer(keras.ops.ones((10, 3)), training=True)
    >>> layer.rate.round(3)
    array([0.2, 0.2, 0.2], dtype=float32)
    >>> [loss.shape for loss in layer.losses]
    [TensorShape([])]
    """

    def __init__(
        self,
        kl_weight: float,
        per: str = "layer",
        initial_rate: float = 0.5,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        rate = checked_initial_rate(initial_rate, "up to 0.5")
        kl_weight = checked_weight(kl_weight, "kl_weight")
        if per not in ("layer", "unit"):
            raise wrong_value("per", "'layer' or 'unit'", repr(per))
        LearnedDropout.__init__(self, rate, seed, **kwargs)
        self.kl_weight, self.per = kl_weight, per

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weight; called by Keras."""
        self._units = known_units(self, input_shape, -1)
        shape = () if self.per == "layer" else (self._units,)
        self.log_alpha = add_log_alpha(self, shape, self.initial_rate, self._divergence)

    @property
    def rate(self) -> Any:
        """NumPy array of the learned rates, `alpha / (1 + alpha)`, with one for each `alpha`."""
        return ops.convert_to_numpy(ops.sigmoid(self.log_alpha))

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        numbers = self._numbers(inputs, saved, mask_shape, inputs.dtype)
        deviation = ops.cast(ops.exp(self.log_alpha / 2), inputs.dtype)
        return inputs * (1 + deviation * numbers)

    def _divergence(self, log_alpha: Any) -> Any:
        """Return the layer's loss."""
        units = self._units if self.per == "layer" else 1
        return self.kl_weight * units * ops.sum(divergence(log_alpha))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one."""
        config = LearnedDropout.get_config(self)
        return {**config, "kl_weight": self.kl_weight, "per": self.per}


@keras.saving.register_keras_serializable(package="fastdrop")
class VariationalDense(DrawLayer, RandomKernel, SampledLayer, keras.layers.Dense):
    """Is a `keras.layers.Dense` that learns how noisy each of its weights is.

    In training, each weight `w` is normal with the mean `w` and the variance `alpha * w**2`, where
    the layer learns an `alpha` for each weight. By the local reparameterization of Kingma, Salimans
    and Welling (2015), the layer does not draw the weights: for each sample it draws the sums
    `inputs @ kernel` from their normal distribution, of variance `inputs**2 @ (alpha * kernel**2)`.
    The bias has no noise. In inference the weights are their means.

    The loss is `kl_weight` times the sum over the weights of the divergence, as for
    `fastdrop_keras.VariationalGaussianDropout`, and `alpha` is at most 1. The layer cannot be
    quantized.

    Args:
        units: Positive integer, the size of the output.
        kl_weight: Finite number, 0 or larger, as for `VariationalGaussianDropout`.
        activation: The activation function, as for `keras.layers.Dense`.
        initial_rate: Float above 0, at most 0.5: the first `alpha / (1 + alpha)`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The other arguments of `keras.layers.Dense`, such as `use_bias`.

    Call arguments:
        inputs: Tensor of shape `(batch_size, ..., input_dim)`.
        training: Boolean, or a boolean tensor: whether to add noise. `fit` sets it.

    Output shape:
        `(batch_size, ..., units)`.

    Raises:
        TypeError, ValueError: If an argument is not valid, as for `keras.layers.Dense` and
            `fastdrop_keras.VariationalGaussianDropout`.
        NotImplementedError: If the layer is quantized.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import keras
    >>> layer = VariationalDense(4, kl_weight=1 / 60000, seed=1)
    >>> layer(keras.ops.ones((2, 3)), training=True).shape
    TensorShape([2, 4])
    >>> layer.rate.shape
    (3, 4)
    """

    _kind = "gaussian_noise"
    # Keras's are for the kernel and the bias alone.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def __init__(
        self,
        units: int,
        kl_weight: float,
        activation: Any = None,
        initial_rate: float = 0.5,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Before Keras draws seeds for the initializers.
        rate, seed = checked_initial_rate(initial_rate, "up to 0.5"), checked_seed(seed)
        kl_weight = checked_weight(kl_weight, "kl_weight")
        keras.layers.Dense.__init__(self, units, activation, **kwargs)
        self._add_value_and_seed(1.0, seed)
        self.kl_weight, self.initial_rate = kl_weight, rate

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights; called by Keras."""
        RandomKernel.build(self, input_shape)
        shape = self.kernel.shape
        self.log_alpha = add_log_alpha(self, shape, self.initial_rate, self._divergence)

    @property
    def rate(self) -> Any:
        """NumPy array of the learned `alpha / (1 + alpha)` of each weight."""
        return ops.convert_to_numpy(ops.sigmoid(self.log_alpha))

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Return the outputs, with noise in training."""
        outputs = ops.matmul(inputs, self.kernel)
        zeros = ops.zeros_like(outputs)
        numbers = self._draw(zeros, training, self._mask_shape())
        # In inference the numbers are the zeros.
        if numbers is not zeros:
            outputs += ops.cast(self._deviation(inputs), outputs.dtype) * numbers
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def _deviation(self, inputs: Any) -> Any:
        """Return the standard deviation of the sums, in the dtype of the weights."""
        squares, of_kernel = (
            ops.square(ops.cast(one, self.variable_dtype)) for one in (inputs, self.kernel)
        )
        variance = ops.matmul(squares, ops.exp(self.log_alpha) * of_kernel)
        # The derivative of the square root is infinite at 0.
        positive = variance > 0
        return ops.where(positive, ops.sqrt(ops.where(positive, variance, 1)), 0)

    def _divergence(self, log_alpha: Any) -> Any:
        """Return the layer's loss."""
        return self.kl_weight * ops.sum(divergence(log_alpha))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return the output's shape."""
        shape: tuple[int | None, ...] = keras.layers.Dense.compute_output_shape(self, input_shape)
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one."""
        own = {"kl_weight": self.kl_weight, "initial_rate": self.initial_rate, "seed": self.seed}
        return {**keras.layers.Dense.get_config(self), **own}


def add_log_alpha(
    layer: keras.Layer, shape: Sequence[int], rate: float, regularizer: Any
) -> keras.Variable:
    """Add the weight of variational dropout to a layer: logarithms of variances up to 1."""
    return layer.add_weight(
        name="log_alpha",
        shape=shape,
        initializer=keras.initializers.Constant(math.log(rate / (1 - rate))),
        regularizer=regularizer,
        constraint=lambda log_alpha: ops.minimum(log_alpha, 0),
        autocast=False,
    )


def divergence(log_alpha: Any) -> Any:
    """Return each divergence, but for a constant, as Kingma et al. approximate it up to alpha 1."""
    alpha = ops.exp(log_alpha)
    polynomial = alpha * (1.16145124 + alpha * (-1.50204118 + alpha * 0.58629921))
    return -log_alpha / 2 - polynomial


def known_units(layer: keras.Layer, input_shape: Sequence[int | None], axis: int) -> int:
    """Return the size of an axis, or raise a ValueError if it is not known."""
    units = input_shape[axis] if input_shape else None
    if units is None:
        raise ValueError(
            f"{type(layer).__name__} needs the size of axis {axis} of its inputs. "
            f"Received: inputs of shape {tuple(input_shape)}"
        )
    return units


@keras.saving.register_keras_serializable(package="fastdrop")
class ConcreteDropout(LearnedDropout, keras.layers.Wrapper):
    """Drops the inputs of a layer, and learns the rate.

    Concrete dropout (Gal, Hron and Kendall, 2017) makes the mask differentiable: in training, the
    layer multiplies each element of its inputs by `1 - drop`, where

        drop = sigmoid((logit(rate) + logit(u)) / temperature)

    with a uniform number `u`. At low temperatures, `drop` is close to 0 or to 1. The layer
    multiplies the result by `1 / (1 - rate)`, and calls the wrapped layer. In inference it calls
    the wrapped layer with the inputs. No element is dropped completely: a NaN stays NaN.

    The rate is a weight. The loss that trains it is the divergence of the paper, for a wrapped
    layer with the weights `kernel` and inputs of `units` units:

        weight_regularizer * sum(kernel ** 2) / (1 - rate)
        + dropout_regularizer * units * (rate * log(rate) + (1 - rate) * log(1 - rate))

    It takes the place of a regularizer of the kernel. The learned rate falls with more data.

    `u` is the normal distribution function of the numbers that `fastdrop.gaussian_noise` draws with
    the seed and the number of the call, on each backend. The mask is computed in the dtype of the
    weights. State, checkpointing, compilation and `mc_predict` are as for `fastdrop_keras.Dropout`.
    `fastdrop_keras.RateSchedule` does not change the layer's rate.

    Args:
        layer: Keras layer with a weight `kernel`, such as `keras.layers.Dense` or `Conv2D`.
        weight_regularizer: Finite number, 0 or larger: `l**2 / (tau * N)` for weights with a prior
            length-scale `l`, N training samples and the precision `tau`, the inverse of the
            variance of the observations' noise.
        dropout_regularizer: Finite number, 0 or larger: `2 / (tau * N)` for the mean squared
            error, and half of it for a cross-entropy.
        initial_rate: Float between 0 and 1, without both: the first rate.
        temperature: Finite number above 0.
        noise_shape: Tuple or list of integers or `None`, as for `fastdrop_keras.Dropout`:
            `(None, 1, 1, None)` drops entire feature maps before a `Conv2D`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor for the wrapped layer, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The wrapped layer's.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is not a valid value, or when the layer is built, if the wrapped
            layer has no `kernel`; in training, if `noise_shape` does not fit the inputs.
        RuntimeError: On JAX, if the layer drops in a traced function without its state.

    Reference:

    - [Gal, Hron and Kendall, 2017](https://arxiv.org/abs/1705.07832), whose program has the same
      defaults

    Example:

    >>> import keras
    >>> layer = ConcreteDropout(keras.layers.Dense(4), seed=1)
    >>> layer(keras.ops.ones((2, 3)), training=True).shape
    TensorShape([2, 4])
    >>> round(layer.rate, 3)
    0.1
    """

    def __init__(
        self,
        layer: keras.Layer,
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
        initial_rate: float = 0.1,
        temperature: float = 0.1,
        noise_shape: Iterable[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.Layer):
            raise wrong_type("layer", "a Keras layer", layer)
        rate = checked_initial_rate(initial_rate, "below 1")
        weight_regularizer = checked_weight(weight_regularizer, "weight_regularizer")
        dropout_regularizer = checked_weight(dropout_regularizer, "dropout_regularizer")
        temperature = checked_number(temperature, "temperature")
        if temperature <= 0:
            raise wrong_value("temperature", "a finite number above 0", temperature)
        noise_shape = checked_noise_shape(noise_shape)
        LearnedDropout.__init__(self, rate, seed, **kwargs)
        self.layer = layer
        self.weight_regularizer = weight_regularizer
        self.dropout_regularizer = dropout_regularizer
        self.temperature = temperature
        self.noise_shape = noise_shape

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the wrapped layer, and make the weight; called by Keras."""
        keras.layers.Wrapper.build(self, input_shape)
        if not hasattr(self.layer, "kernel"):
            raise ValueError(
                "ConcreteDropout needs a layer with a weight `kernel`. "
                f"Received: layer={self.layer!r} (of type {type(self.layer).__name__})"
            )
        channels_first = getattr(self.layer, "data_format", None) == "channels_first"
        self._units = known_units(self, input_shape, 1 if channels_first else -1)
        self.rate_logit = self.add_weight(
            name="rate_logit",
            shape=(),
            initializer=keras.initializers.Constant(
                math.log(self.initial_rate / (1 - self.initial_rate))
            ),
            regularizer=self._divergence,
            autocast=False,
        )

    @property
    def rate(self) -> float:
        """Float between 0 and 1. The learned rate."""
        return float(ops.convert_to_numpy(ops.sigmoid(self.rate_logit)))

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Drop elements in training, and call the wrapped layer."""
        check_keras_3(inputs)
        check_floats(inputs)
        return self.layer(self._draw(inputs, training, self._mask_shape()))

    def _mask_shape(self) -> NoiseShape | None:
        return self.noise_shape

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        numbers = self._numbers(inputs, saved, mask_shape, self.variable_dtype)
        uniform = (1 + ops.erf(numbers / math.sqrt(2))) / 2
        # Finite, as in the authors' program.
        epsilon = keras.config.epsilon()
        noise = ops.log(uniform + epsilon) - ops.log(1 - uniform + epsilon)
        # A part of `1 / (1 - rate)` that might overflow is in the exponent of the mask, which is
        # small then.
        log_scale = self._log_scale(self.rate_logit)
        factor = ops.minimum(log_scale, 11 if self.variable_dtype == "float16" else 60)
        exponent = log_scale - factor - (self.rate_logit + noise) / self.temperature
        return inputs * ops.cast(ops.sigmoid(exponent) * ops.exp(factor), inputs.dtype)

    @staticmethod
    def _log_scale(logit: Any) -> Any:
        """Return the logarithm of `1 / (1 - rate)`, which itself may overflow."""
        # PyTorch's softplus is exact to 2e-9 alone.
        return -ops.log_sigmoid(-logit)

    def _divergence(self, logit: Any) -> Any:
        """Return the layer's loss."""
        # The wrapped layer may have another dtype.
        squares = ops.cast(ops.sum(ops.square(self.layer.kernel)), logit.dtype)
        rate = ops.sigmoid(logit)
        weight = math.log(self.weight_regularizer) if self.weight_regularizer else -math.inf
        entropy = rate * ops.softplus(-logit) + (1 - rate) * ops.softplus(logit)
        return (
            squares * ops.exp(weight + self._log_scale(logit))
            - self.dropout_regularizer * self._units * entropy
        )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return the wrapped layer's output shape."""
        shape: Sequence[int | None] = self.layer.compute_output_shape(input_shape)
        return shape

    def compute_output_spec(self, inputs: Any, training: Any = False) -> Any:
        """Return the wrapped layer's output shape and dtype."""
        return self.layer.compute_output_spec(inputs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one."""
        return {
            **LearnedDropout.get_config(self),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "weight_regularizer": self.weight_regularizer,
            "dropout_regularizer": self.dropout_regularizer,
            "temperature": self.temperature,
            "noise_shape": self.noise_shape,
        }


def checked_initial_rate(value: Any, bound: str) -> float:
    """Return `initial_rate` as a Python float above 0 and "up to 0.5" or "below 1"."""
    rate = checked_rate(value, "initial_rate")
    if rate in (0, 1) or (rate > 0.5 and bound == "up to 0.5"):
        raise wrong_value("initial_rate", f"a float above 0 and {bound}", value)
    return rate


def checked_weight(value: Any, argument: str) -> float:
    """Return `value`, the weight of a loss, as a Python float."""
    number = checked_number(value, argument)
    if number < 0:
        raise wrong_value(argument, "a finite number, 0 or larger", value)
    return number
