"""Defines layers for Flax NNX that learn how much to drop, or compute it from their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fastdrop_jax.functional import dropout, gaussian_noise
from fastdrop_jax.nnx.layers import RandomLayer, checked_rngs


class Standout(RandomLayer):
    """Applies an activation function, and drops each unit with a probability of its own.

    Adaptive dropout (Ba and Frey, 2013) keeps a unit with a probability that a second network
    computes from the inputs of the unit. The authors find that this network learns weights that are
    close to ``alpha * w + beta``, where ``w`` are the unit's own weights, and so use these. This
    layer comes after the layer with the weights, which may be any, without an activation function.

    From the weighted sum ``z`` of a unit, its input, the layer computes ``activation(z)`` and the
    keep probability ``sigmoid(alpha * z + beta)``: units with large sums are kept. (`beta` is added
    to the sum, as the published programs do. The paper adds it to each weight.) In training a
    dropped unit is ``+0.0`` and a kept one is not scaled. In inference each unit is multiplied by
    its keep probability.

    In training the gradient takes the mask for a constant, as the authors do. In inference it
    passes through the keep probability. The decisions are those of `fastdrop_jax.dropout` with the
    key of the call, at the rates ``1 - keep`` in the dtype of the inputs.

    Args:
        activation: Function of an array, such as `jax.nn.relu`. `None` for the identity.
        alpha: Finite number, the factor of the sums. With 0, all units are kept with probability
            ``sigmoid(beta)``.
        beta: Finite number, added to the scaled sums. With -5, few units are kept.
        deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If `activation`, `alpha`, `beta` or `rngs` has the wrong type, or when the layer
            draws for inputs of another dtype.
        ValueError: If `alpha` or `beta` is not finite, or if the layer draws without keys.

    Reference:

    - [Ba and Frey, 2013](https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks)

    Example:

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import Standout
    >>> layer = Standout(jax.nn.relu, rngs=nnx.Rngs(0))
    >>> z = jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    >>> kept = np.asarray(layer(jnp.tile(z, (1000, 1)))) > 0
    >>> kept.mean(0).round(1)
    array([0. , 0. , 0. , 0.9, 1. ])
    >>> layer.eval()
    >>> np.asarray(layer(z)).round(3)
    array([0.   , 0.   , 0.   , 1.762, 3.928], dtype=float32)
    """

    def __init__(
        self,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not (activation is None or callable(activation)):
            raise TypeError(f"`activation` must be a function or None, got {activation!r}")
        self.activation = activation
        self.alpha = checked_number(alpha, "alpha")
        self.beta = checked_number(beta, "beta")
        super().__init__(**kwargs)  # takes a key

    def _keep(self, inputs: jax.Array) -> jax.Array:
        # Not a product with infinities: at 0 the sums do not count.
        sums = self.alpha * inputs if self.alpha else jnp.zeros_like(inputs)
        return jax.nn.sigmoid(sums + self.beta)

    def _activate(self, inputs: jax.Array) -> jax.Array:
        return inputs if self.activation is None else self.activation(inputs)

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        # A NaN is kept: it has no probability.
        rates = 1 - self._keep(inputs)
        rates = jnp.where(jnp.isnan(rates), 0, rates)
        kept = dropout(key, jnp.ones_like(inputs), rates) != 0
        return jnp.where(kept, self._activate(inputs), 0)

    def _infer(self, inputs: jax.Array) -> jax.Array:
        keep = self._keep(inputs)
        return jnp.where(keep == 0, 0, self._activate(inputs) * keep)


class LearnedDropout(RandomLayer):
    """Has a learned rate, and a loss for it."""

    def __init__(
        self, shape: Sequence[int], rate: float, highest: float, dtype: Any, **kwargs: Any
    ) -> None:
        logit = checked_logit(rate, highest)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"`param_dtype` must be a dtype of floats, got {dtype!r}")
        super().__init__(**kwargs)
        self.highest_rate = highest
        self.rate_logit = nnx.Param(jnp.full(shape, logit, dtype))

    @property
    def rate(self) -> jax.Array:
        """Array of the learned rates."""
        return self.highest_rate * jax.nn.sigmoid(self.rate_logit[...])

    def regularization(self) -> jax.Array:
        """Return the loss that trains the rate, a number."""
        raise NotImplementedError


class VariationalDropout(LearnedDropout):
    """Learns the variances `alpha` of Gaussian noise, from 0 to 1, by the rates of dropout."""

    def __init__(
        self, kl_weight: float, shape: Sequence[int], rate: float, dtype: Any, **kwargs: Any
    ) -> None:
        self.kl_weight = checked_weight(kl_weight, "kl_weight")
        super().__init__(shape, rate, 0.5, dtype, **kwargs)

    def _log_alpha(self) -> jax.Array:
        """Return the logarithm of ``rate / (1 - rate)``, also where the rate underflows."""
        logit = self.rate_logit[...]
        return jax.nn.log_sigmoid(logit) - jnp.log(2 - jax.nn.sigmoid(logit))

    def regularization(self) -> jax.Array:
        """Return `kl_weight` times the sum of the divergences of all `alpha`."""
        # As Kingma et al. approximate it up to alpha 1, but for a constant.
        log_alpha = self._log_alpha()
        log_alpha = log_alpha.astype(jnp.promote_types(log_alpha.dtype, jnp.float32))
        alpha = jnp.exp(log_alpha)
        polynomial = alpha * (1.16145124 + alpha * (-1.50204118 + alpha * 0.58629921))
        return self.kl_weight * jnp.sum(-log_alpha / 2 - polynomial)


class VariationalGaussianDropout(VariationalDropout):
    """Multiplies its inputs by Gaussian noise, and learns the variance of the noise.

    In training, the layer multiplies each element by a number from the normal distribution of mean
    1 and variance ``alpha = rate / (1 - rate)``, as Gaussian dropout does. It learns the rate, one
    for all inputs or one for each unit (the last dimension). In inference it returns its inputs.

    The noise of an input unit is noise of all weights of that unit in the next layer. The prior of
    Kingma, Salimans and Welling (2015) for it, uniform in the logarithm, gives the layer a loss,
    `regularization`: `kl_weight` times the sum over the units of the Kullback-Leibler divergence.
    The authors approximate it, but for a constant, by a polynomial of ``alpha``. The loss asks for
    more noise, and the data ask for less. As in the paper, ``alpha`` is at most 1, a rate of 0.5.
    The paper clips it. Here the parameter `rate_logit` is the logit of ``2 * rate``.

    The noise is that of `fastdrop_jax.gaussian_noise` with the key of the call.

    Args:
        num_features: Positive integer, the size of the last dimension of the inputs.
        kl_weight: Finite number, 0 or larger: the weight of the divergence in the loss. For a loss
            that is the mean over samples of the negative log-likelihood, ``1 / N`` with N training
            samples.
        per: ``"layer"`` or ``"unit"``: what has a rate of its own.
        initial_rate: Float above 0 and below 0.5: the first rate.
        param_dtype: Dtype of the parameter.
        deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If an argument has the wrong type, or when the layer draws for inputs of another
            dtype than `fastdrop_jax.dropout` takes.
        ValueError: If an argument is not a valid value, or if the layer draws without keys or for
            inputs of another size.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import VariationalGaussianDropout
    >>> layer = VariationalGaussianDropout(3, 1 / 60000, "unit", 0.2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((10, 3))).shape
    (10, 3)
    >>> layer.rate
    Array([0.2, 0.2, 0.2], dtype=float32)
    >>> layer.regularization().shape
    ()
    """

    def __init__(
        self,
        num_features: int,
        kl_weight: float,
        per: str = "layer",
        initial_rate: float = 0.4,
        *,
        param_dtype: Any = jnp.float32,
        **kwargs: Any,
    ) -> None:
        if isinstance(num_features, bool) or not isinstance(num_features, Integral):
            raise TypeError(f"`num_features` must be an integer, got {num_features!r}")
        if num_features < 1:
            raise ValueError(f"`num_features` must be at least 1, got {num_features!r}")
        if per not in ("layer", "unit"):
            raise ValueError(f"`per` must be 'layer' or 'unit', got {per!r}")
        shape = () if per == "layer" else (num_features,)
        super().__init__(kl_weight, shape, initial_rate, param_dtype, **kwargs)
        self.num_features: int = num_features
        self.per: str = per

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        if inputs.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"`inputs` must have {self.num_features} features in the last dimension, got the "
                f"shape {inputs.shape}"
            )
        noise = gaussian_noise(key, jnp.zeros_like(inputs), 1.0)
        deviation = jnp.exp(self._log_alpha() / 2).astype(inputs.dtype)
        return inputs * (1 + deviation * noise)

    def regularization(self) -> jax.Array:
        """Return `kl_weight` times the sum of the divergences of all units."""
        return super().regularization() * (self.num_features if self.per == "layer" else 1)


# Its calls have no argument `out_sharding`.
class VariationalLinear(VariationalDropout, nnx.Linear):  # type: ignore[misc]
    """Is a `flax.nnx.Linear` that learns how noisy each of its weights is.

    In training, each weight ``w`` is normal with the mean ``w`` and the variance ``alpha * w**2``,
    where the layer learns a rate ``alpha / (1 + alpha)`` for each weight, with the parameter and
    the loss of `VariationalGaussianDropout`. By the local reparameterization of Kingma, Salimans
    and Welling (2015), the layer does not draw the weights: for each sample it draws the sums
    ``inputs @ kernel`` from their normal distribution, of variance
    ``inputs**2 @ (alpha * kernel**2)``. The bias has no noise. In inference the weights are their
    means.

    The numbers are those of `fastdrop_jax.gaussian_noise` with the key of the call.

    Args:
        in_features: The number of input features.
        out_features: The number of output features.
        kl_weight: Finite number, 0 or larger, as for `VariationalGaussianDropout`.
        initial_rate: Float above 0 and below 0.5: the first rate.
        deterministic, rng_collection: As for `Dropout`.
        rngs: `flax.nnx.Rngs`, for the weights and the noise.
        **kwargs: The other arguments of `flax.nnx.Linear`, such as `dtype`.

    Raises:
        TypeError, ValueError: If an argument is not valid, as for `VariationalGaussianDropout`.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import VariationalLinear
    >>> layer = VariationalLinear(3, 4, kl_weight=1 / 60000, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 3))).shape
    (2, 4)
    >>> layer.rate.shape
    (3, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kl_weight: float,
        initial_rate: float = 0.4,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        # Before Flax draws the weights.
        checked_weight(kl_weight, "kl_weight")
        checked_logit(initial_rate, 0.5)
        nnx.Linear.__init__(self, in_features, out_features, rngs=checked_rngs(rngs), **kwargs)
        super().__init__(
            kl_weight,
            self.kernel.shape,
            initial_rate,
            self.param_dtype,
            deterministic=deterministic,
            rng_collection=rng_collection,
            rngs=rngs,
        )

    def _checked(self, inputs: Any) -> jax.Array:
        # Flax's layer converts integers.
        of_integers = jnp.isdtype(getattr(inputs, "dtype", float), ("bool", "integral"))
        return inputs if of_integers else super()._checked(inputs)

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        sums = self._infer(inputs)
        noise = gaussian_noise(key, jnp.zeros_like(sums), 1.0)
        return sums + self._deviation(inputs).astype(sums.dtype) * noise

    def _infer(self, inputs: jax.Array) -> jax.Array:
        return nnx.Linear.__call__(self, inputs)

    def _deviation(self, inputs: jax.Array) -> jax.Array:
        """Return the standard deviation of the sums, in float32 or a wider dtype.

        In half precision, squares of usual inputs overflow.
        """
        kernel = self.kernel[...]
        dtype = jnp.result_type(inputs, kernel, jnp.float32)
        squares = jnp.square(inputs.astype(dtype))
        variances = jnp.exp(self._log_alpha().astype(dtype)) * jnp.square(kernel.astype(dtype))
        variance = jnp.matmul(squares, variances, precision=self.precision)
        # The derivative of the square root is infinite at 0.
        positive = variance > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


class ConcreteDropout(LearnedDropout):
    """Drops the inputs of a layer, and learns the rate.

    Concrete dropout (Gal, Hron and Kendall, 2017) makes the mask differentiable: in training, the
    layer multiplies each element of its inputs by ``1 - drop``, where

        drop = sigmoid((logit(rate) + logit(u)) / temperature)

    with a uniform number ``u``. At low temperatures, ``drop`` is close to 0 or to 1. The layer
    multiplies the result by ``1 / (1 - rate)``, and calls the wrapped layer. In inference it calls
    the wrapped layer with the inputs. No element is dropped but by underflow: a NaN stays NaN.

    The layer learns the parameter `rate_logit`. The loss that trains it, `regularization`, is the
    divergence of the paper, for a wrapped layer with the weights ``kernel`` and inputs of
    ``units`` units:

        weight_regularizer * sum(kernel ** 2) / (1 - rate)
        + dropout_regularizer * units * (rate * log(rate) + (1 - rate) * log(1 - rate))

    It takes the place of a regularizer of the kernel. The learned rate falls with more data. The
    defaults are those of the authors' program.

    ``u`` is the normal distribution function of the numbers that `fastdrop_jax.gaussian_noise`
    draws with the key of the call. The mask is computed in float32, or in float64 if the inputs or
    the parameter are.

    Args:
        layer: Layer of `flax.nnx` with a `kernel` and `in_features`, such as `Linear` or `Conv`.
        weight_regularizer: Finite number, 0 or larger: ``l**2 / (tau * N)`` for weights with a
            prior length-scale ``l``, N training samples and the precision ``tau``, the inverse of
            the variance of the observations' noise.
        dropout_regularizer: Finite number, 0 or larger: ``2 / (tau * N)`` for the mean squared
            error, and half of it for a cross-entropy.
        initial_rate: Float above 0 and below 1: the first rate.
        temperature: Finite number above 0.
        broadcast_dims: The dimensions along which numbers are shared: ``(1, 2)`` drops entire
            feature maps before a `Conv` of images.
        param_dtype: Dtype of the parameter.
        deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If an argument has the wrong type, or when the layer draws for inputs of another
            dtype than `fastdrop_jax.dropout` takes.
        ValueError: If an argument is not a valid value, or if the layer draws without keys.

    Reference:

    - [Gal, Hron and Kendall, 2017](https://arxiv.org/abs/1705.07832)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import ConcreteDropout
    >>> rngs = nnx.Rngs(0)
    >>> layer = ConcreteDropout(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
    >>> layer(jnp.ones((2, 3))).shape
    (2, 4)
    >>> layer.rate
    Array(0.1, dtype=float32)
    """

    def __init__(
        self,
        layer: nnx.Module,
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
        initial_rate: float = 0.1,
        temperature: float = 0.1,
        *,
        broadcast_dims: Sequence[int] = (),
        param_dtype: Any = jnp.float32,
        **kwargs: Any,
    ) -> None:
        if not (hasattr(layer, "kernel") and hasattr(layer, "in_features")):
            raise TypeError(
                f"`layer` must be a layer with a `kernel` and `in_features`, got {layer!r}"
            )
        self.layer = layer
        self.weight_regularizer = checked_weight(weight_regularizer, "weight_regularizer")
        self.dropout_regularizer = checked_weight(dropout_regularizer, "dropout_regularizer")
        self.temperature = checked_number(temperature, "temperature")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0, got {temperature!r}")
        self.broadcast_dims = broadcast_dims
        super().__init__((), initial_rate, 1, param_dtype, **kwargs)

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        logit = self.rate_logit[...]
        dtype = jnp.result_type(inputs, logit, jnp.float32)
        zeros = jnp.zeros_like(inputs, dtype)
        numbers = gaussian_noise(key, zeros, 1.0, broadcast_dims=self.broadcast_dims)
        uniform = (1 + lax.erf(numbers / math.sqrt(2))) / 2
        # Finite, as in the authors' program.
        noise = jnp.log(uniform + 1e-7) - jnp.log(1 - uniform + 1e-7)
        # A part of ``1 / (1 - rate)`` that might overflow is in the exponent of the mask, which is
        # small then.
        log_scale = self._log_scale(dtype)
        factor = jnp.minimum(log_scale, 60)
        kept = jax.nn.sigmoid(log_scale - factor - (logit + noise) / self.temperature)
        return self._infer(inputs * (kept * jnp.exp(factor)).astype(inputs.dtype))

    def _infer(self, inputs: jax.Array) -> jax.Array:
        layer: Any = self.layer
        outputs: jax.Array = layer(inputs)
        return outputs

    def _log_scale(self, dtype: Any) -> jax.Array:
        """Return the logarithm of ``1 / (1 - rate)``, which itself may overflow."""
        return jax.nn.softplus(self.rate_logit[...].astype(dtype))

    def regularization(self) -> jax.Array:
        """Return the divergence of the rate and of the wrapped layer's kernel, a number."""
        layer: Any = self.layer
        logit, rate = self.rate_logit[...], self.rate
        wide = jnp.promote_types(logit.dtype, jnp.float32)
        weight = math.log(self.weight_regularizer) if self.weight_regularizer else -math.inf
        kernel = layer.kernel[...].astype(wide)
        # Stacked layers have a rate each.
        squares = jnp.sum(jnp.square(kernel), axis=tuple(range(logit.ndim, kernel.ndim)))
        entropy = rate * jax.nn.softplus(-logit) + (1 - rate) * jax.nn.softplus(logit)
        units = int(np.prod(layer.in_features))
        return jnp.sum(
            squares * jnp.exp(weight + self._log_scale(wide))
            - self.dropout_regularizer * units * entropy
        )


def regularization(module: nnx.Module) -> jax.Array:
    """Return the sum of the losses of all layers in a module that learn their rates.

    These layers are `VariationalGaussianDropout`, `VariationalLinear` and `ConcreteDropout`. Add
    the sum to the loss of the data, in training.

    Args:
        module: `flax.nnx.Module`, such as a model. A layer that it has several times counts once.

    Returns:
        Array with one number, 0 if the module has none of these layers.

    Raises:
        TypeError: If `module` is not a module of `flax.nnx`.

    Example:

    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import ConcreteDropout, VariationalLinear, regularization
    >>> rngs = nnx.Rngs(0)
    >>> first = ConcreteDropout(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
    >>> last = VariationalLinear(4, 1, kl_weight=1 / 60000, rngs=rngs)
    >>> model = nnx.Sequential(first, last)
    >>> regularization(model) == first.regularization() + last.regularization()
    Array(True, dtype=bool)
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"`module` must be a module of flax.nnx, got {module!r}")
    layers = (layer for _, layer in nnx.iter_modules(module) if isinstance(layer, LearnedDropout))
    return sum((layer.regularization() for layer in layers), jnp.zeros(()))


def checked_number(value: Any, argument: str) -> float:
    """Return `value` as a finite Python float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{argument}` must be a finite number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"`{argument}` must be a finite number, got {value!r}")
    return number


def checked_logit(rate: Any, highest: float) -> float:
    """Return the parameter for `initial_rate`."""
    number = checked_number(rate, "initial_rate")
    if not 0 < number < highest:
        raise ValueError(f"`initial_rate` must be above 0 and below {highest}, got {rate!r}")
    return math.log(number / (highest - number))


def checked_weight(value: Any, argument: str) -> float:
    """Return `value`, the weight of a loss, as a Python float."""
    number = checked_number(value, argument)
    if number < 0:
        raise ValueError(f"`{argument}` must be 0 or larger, got {value!r}")
    return number
