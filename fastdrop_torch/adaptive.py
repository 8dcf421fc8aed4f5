"""Defines modules that learn how much to drop, or compute it from their inputs."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdrop_torch import functional
from fastdrop_torch.batching import _BERNOULLI
from fastdrop_torch.modules import RandomModule
from fastdrop_torch.monte_carlo import _positive


class Standout(RandomModule):
    """Applies an activation function, and drops each unit with a probability of its own.

    Adaptive dropout keeps a unit with a probability that a second network computes from the inputs
    of the unit. Ba and Frey find that this network learns weights that are close to
    ``alpha * w + beta``, where `w` are the unit's own weights, and so use these. This module comes
    after the module with the weights, which may be any: ``Linear(64, 256), Standout(torch.relu)``.

    From the weighted sum `z` of a unit, its input, the module computes ``activation(z)`` and the
    probability ``sigmoid(alpha * z + beta)`` of keeping it: units with large sums are kept. (`beta`
    is added to the sum, as the published programs do. The paper adds it to each weight.) In
    training a dropped unit becomes ``+0.0``, and a kept one is not scaled. In evaluation each unit
    is multiplied by its probability. In training the gradient takes the mask for a constant, as the
    authors do.

    The seed comes from PyTorch's default generator. `fastdrop.dropout` with the same seed drops the
    same units at the rates ``1 - sigmoid(alpha * z + beta)``, in the input's dtype.

    Args:
        activation: Callable of a tensor, such as `torch.relu` or a module; `None` for the identity.
        alpha: Finite number, the factor of the sums. With 0, all units are kept with the
            probability ``sigmoid(beta)``.
        beta: Finite number, added to the scaled sums. With -5, few units are kept.

    Raises:
        TypeError: If an argument has the wrong type; or in `forward`, if the input is not a dense
            CPU tensor of dtype float16, bfloat16, float32 or float64.
        ValueError: If `alpha` or `beta` is not finite.

    Reference:

    - [Ba and Frey, 2013](https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Standout
    >>> drop = Standout(torch.relu)
    >>> z = torch.tensor([-4.0, -2, 0, 2, 4])
    >>> kept = drop(z.repeat(10_000, 1)) > 0
    >>> [round(one, 1) for one in kept.float().mean(0).tolist()]
    [0.0, 0.0, 0.0, 0.9, 1.0]
    >>> drop.eval()(z)
    tensor([0.0000, 0.0000, 0.0000, 1.7616, 3.9281])
    """

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor] | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        if activation is not None and not callable(activation):
            raise TypeError(f"`activation` must be callable or None, got {activation!r}")
        self.activation = activation
        self.alpha = _checked("alpha", alpha, "a finite number")
        self.beta = _checked("beta", beta, "a finite number")

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"alpha={self.alpha}, beta={self.beta}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations with dropped units, or times their probabilities in evaluation."""
        _check_floating(input)
        # Not a product with infinities: at 0 the sums do not count.
        sums = self.alpha * input if self.alpha else torch.zeros_like(input)
        keep = torch.sigmoid(sums + self.beta)
        output = input if self.activation is None else self.activation(input)
        if not self.training:
            return torch.where(keep == 0, 0, output * keep)
        # A compiler would replace `torch.randint`, and draw other decisions for the same seed.
        seed = torch.ops.aten.randint.generator(
            torch.iinfo(torch.int64).max, (2,), generator=None, dtype=torch.int64, device="cpu"
        )
        # A NaN is kept: it has no probability.
        rates = torch.nan_to_num(1 - keep.detach(), nan=0.0)
        kept = torch.ops.fastdrop.draw(rates, seed, _BERNOULLI, 0.0)
        return torch.where(kept == 0, 0, output)


class VariationalGaussianDropout(RandomModule):
    """Multiplies its inputs by Gaussian noise, and learns the variance of the noise.

    In training, the module multiplies each element by a number from the normal distribution of mean
    1 and variance ``alpha = p / (1 - p)``, as `GaussianDropout` does. It learns `alpha`, one for
    all inputs or one for each feature (the last dimension). In evaluation it returns its inputs.

    The noise of an input feature is noise of all weights of that feature in the next module. The
    prior of Kingma, Salimans and Welling for it, uniform in the logarithm, gives the module a term
    of the loss, `regularization`: `kl_weight` times the sum over the features of the
    Kullback-Leibler divergence, which the authors approximate, but for a constant, by a polynomial
    of `alpha`. The term asks for more noise, and the data ask for less. As in the paper, `alpha` is
    at most 1, a `p` of 0.5: `forward` sets larger ones to 1, in place, in training with gradients.

    The noise is that of `functional.gaussian_noise` with a seed from PyTorch's default generator.

    Args:
        num_features: Positive integer, the size of the input's last dimension.
        kl_weight: Finite number, 0 or larger: the weight of the divergence in the loss. For a loss
            that is the mean over samples of the negative log-likelihood, ``1 / N`` with N training
            samples.
        per: `"layer"` or `"feature"`: what has an `alpha` of its own.
        p: The first probability, above 0 and at most 0.5.
        device, dtype: Of the parameter `log_alpha`.

    Attributes:
        p: Tensor of the learned probabilities, ``alpha / (1 + alpha)``, one for each `alpha`.

    Raises:
        TypeError: If an argument has the wrong type; or in `forward`, as for
            `functional.gaussian_noise`.
        ValueError: If an argument has another value; or in `forward`, if the input's last dimension
            has another size.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import torch
    >>> from fastdrop_torch import VariationalGaussianDropout
    >>> drop = VariationalGaussianDropout(3, kl_weight=1 / 60000, per="feature", p=0.2)
    >>> drop(torch.ones(10, 3)).shape
    torch.Size([10, 3])
    >>> drop.p
    tensor([0.2000, 0.2000, 0.2000])
    >>> round(drop.regularization().item(), 7)
    2.44e-05
    """

    def __init__(
        self,
        num_features: int,
        kl_weight: float,
        per: str = "layer",
        p: float = 0.5,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if per not in ("layer", "feature"):
            raise ValueError(f"`per` must be 'layer' or 'feature', got {per!r}")
        self.num_features = _positive(num_features, "num_features")
        self.kl_weight = _checked("kl_weight", kl_weight, "a finite number of at least 0", 0)
        self.per = per
        shape = () if per == "layer" else (self.num_features,)
        log_alpha = torch.full(shape, _logit(p, 0.5), device=device, dtype=dtype)
        self.log_alpha = nn.Parameter(log_alpha)

    @property
    def p(self) -> Tensor:
        """Tensor of the learned probabilities."""
        return _probability(self.log_alpha)

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"{self.num_features}, kl_weight={self.kl_weight}, per={self.per!r}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times noise, or the input itself in evaluation."""
        if input.dim() == 0 or input.shape[-1] != self.num_features:
            raise ValueError(
                f"`input` must have a last dimension of size {self.num_features}, got shape "
                f"{list(input.shape)}"
            )
        if not self.training:
            return input
        deviation = torch.exp(_limited(self.log_alpha) / 2).to(input.dtype)
        return input * (1 + deviation * _normal(input.shape, input.dtype, input.device))

    def regularization(self) -> Tensor:
        """Return the module's term of the loss, in float32 or the parameter's wider dtype."""
        units = self.num_features if self.per == "layer" else 1
        return self.kl_weight * units * _divergence(self.log_alpha)


class VariationalLinear(RandomModule, nn.Linear):
    """Is a `torch.nn.Linear` that learns how noisy each of its weights is.

    In training, each weight `w` is normal with the mean `w` and the variance ``alpha * w**2``,
    where the module learns an `alpha` for each weight. By the local reparameterization of Kingma,
    Salimans and Welling, the module does not draw the weights: for each sample it draws the sums
    ``input @ weight.T`` from their normal distribution, of the variance
    ``input**2 @ (alpha * weight**2).T``. The bias has no noise. In evaluation the weights are their
    means.

    `regularization` is `kl_weight` times the sum over the weights of the divergence, as for
    `VariationalGaussianDropout`, and `alpha` is at most 1 in the same way.

    Args:
        in_features: Size of the input's last dimension.
        out_features: Size of the output's last dimension.
        bias: Whether there is a bias.
        device, dtype: Of the parameters.
        kl_weight: Finite number, 0 or larger, as for `VariationalGaussianDropout`.
        p: The first ``alpha / (1 + alpha)``, above 0 and at most 0.5.

    Attributes:
        p: Tensor of the learned ``alpha / (1 + alpha)`` of each weight.

    Raises:
        TypeError, ValueError: If an argument is not valid, as for `torch.nn.Linear` and
            `VariationalGaussianDropout`.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import torch
    >>> from fastdrop_torch import VariationalLinear
    >>> linear = VariationalLinear(3, 4, kl_weight=1 / 60000)
    >>> linear(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    >>> linear.p.shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        kl_weight: float,
        p: float = 0.5,
    ) -> None:
        # Before PyTorch draws weights.
        kl_weight = _checked("kl_weight", kl_weight, "a finite number of at least 0", 0)
        logit = _logit(p, 0.5)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.kl_weight = kl_weight
        self.log_alpha = nn.Parameter(torch.full_like(self.weight, logit))
        self._first_log_alpha = logit

    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the variances to their first value."""
        super().reset_parameters()
        if hasattr(self, "log_alpha"):  # PyTorch's constructor calls this too
            nn.init.constant_(self.log_alpha, self._first_log_alpha)

    @property
    def p(self) -> Tensor:
        """Tensor of the learned ``alpha / (1 + alpha)`` of each weight."""
        return _probability(self.log_alpha)

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"{super().extra_repr()}, kl_weight={self.kl_weight}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, with noise in training."""
        output = super().forward(input)
        if not self.training:
            return output
        of_weights = torch.exp(_limited(self.log_alpha)) * _wide(self.weight).square()
        # In half precision, squares of usual inputs overflow or become zero.
        with torch.autocast(input.device.type, enabled=False):
            variance = nn.functional.linear(input.to(of_weights.dtype).square(), of_weights)
        # The derivative of the square root is infinite at 0.
        positive = variance > 0
        deviation = torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)
        numbers = _normal(output.shape, output.dtype, output.device)
        return output + deviation.to(output.dtype) * numbers

    def regularization(self) -> Tensor:
        """Return the module's term of the loss, in float32 or the parameter's wider dtype."""
        return self.kl_weight * _divergence(self.log_alpha)


class ConcreteDropout(RandomModule):
    """Drops the inputs of a module, and learns the probability.

    Concrete dropout makes the mask differentiable. In training, each element of the input is
    multiplied by ``1 - drop``, where

        drop = sigmoid((logit(p) + logit(u)) / temperature)

    with a uniform number `u`. At low temperatures, `drop` is close to 0 or to 1. The result is
    multiplied by ``1 / (1 - p)`` and goes to the wrapped module. In evaluation the input goes to
    it. No element is dropped completely: a NaN stays NaN.

    `p` is learned. The term of the loss that trains it, `regularization`, is the divergence of the
    paper, for a wrapped module with the weights `weight` and inputs of `units` features or
    channels:

        weight_regularizer * sum(weight ** 2) / (1 - p)
        + dropout_regularizer * units * (p * log(p) + (1 - p) * log(1 - p))

    It takes the place of weight decay for the wrapped module and for the parameter `logit`. The
    learned `p` falls with more data.

    `u` is the normal distribution function of the numbers of `functional.gaussian_noise` with a
    seed from PyTorch's default generator. The mask is computed in float32, or in the parameter's
    wider dtype.

    Args:
        layer: Module with a parameter `weight` and `in_features` or `in_channels`, such as
            `torch.nn.Linear` or `torch.nn.Conv2d`.
        weight_regularizer: Finite number, 0 or larger: ``l**2 / (tau * N)`` for weights with a
            prior length-scale `l`, N training samples and the precision `tau`, the inverse of the
            variance of the observations' noise.
        dropout_regularizer: Finite number, 0 or larger: ``2 / (tau * N)`` for the mean squared
            error, and half of it for a cross-entropy.
        p: The first probability, between 0 and 1, without both.
        temperature: Finite number above 0.
        channels: Whether to drop whole channels of inputs of shape `(N, C, ...)`.

    Attributes:
        p: Tensor of the learned probability.

    Raises:
        TypeError: If an argument has the wrong type; or in `forward`, if the input is not a dense
            CPU tensor of dtype float16, bfloat16, float32 or float64.
        ValueError: If an argument has another value, or `layer` lacks an attribute.

    Reference:

    - [Gal, Hron and Kendall, 2017](https://arxiv.org/abs/1705.07832), whose program has the same
      defaults

    Example:

    >>> import torch
    >>> from fastdrop_torch import ConcreteDropout
    >>> drop = ConcreteDropout(torch.nn.Linear(3, 4))
    >>> drop(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    >>> drop.p
    tensor(0.1000)
    """

    def __init__(
        self,
        layer: nn.Module,
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
        p: float = 0.1,
        temperature: float = 0.1,
        channels: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(layer, nn.Module):
            raise TypeError(f"`layer` must be a torch.nn.Module, got {layer!r}")
        units = getattr(layer, "in_features", None) or getattr(layer, "in_channels", None)
        if units is None or not isinstance(getattr(layer, "weight", None), Tensor):
            raise ValueError(
                "`layer` must have a parameter `weight` and `in_features` or `in_channels`, "
                f"got {layer!r}"
            )
        at_least_0 = "a finite number of at least 0"
        self.weight_regularizer = _checked("weight_regularizer", weight_regularizer, at_least_0, 0)
        self.dropout_regularizer = _checked(
            "dropout_regularizer", dropout_regularizer, at_least_0, 0
        )
        self.temperature = _checked(
            "temperature", temperature, "a finite number above 0", sys.float_info.min
        )
        self.channels = channels
        self._units = units
        self.layer = layer
        weight: Any = layer.weight
        self.logit = nn.Parameter(weight.new_full((), _logit(p, 1 - sys.float_info.epsilon)))

    @property
    def p(self) -> Tensor:
        """Tensor of the learned probability."""
        return torch.sigmoid(self.logit.detach())

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return (
            f"weight_regularizer={self.weight_regularizer}, "
            f"dropout_regularizer={self.dropout_regularizer}, temperature={self.temperature}, "
            f"channels={self.channels}"
        )

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, and call the wrapped module."""
        if not self.training:
            output: Tensor = self.layer(input)
            return output
        _check_floating(input)
        shape = list(input.shape)
        if self.channels:
            weight: Any = self.layer.weight
            if weight.dim() > 2 and input.dim() != weight.dim():
                raise ValueError(
                    f"`input` must have {weight.dim()} dimensions with channels=True, got shape "
                    f"{shape}"
                )
            shape[2:] = [1] * len(shape[2:])
        logit = _wide(self.logit)
        uniform = torch.special.ndtr(_normal(shape, logit.dtype, input.device))
        # Finite, as in the authors' program.
        noise = torch.logit(uniform, eps=1e-7)
        # A part of `1 / (1 - p)` that might overflow is in the exponent of the mask, which is small
        # then.
        log_scale = -nn.functional.logsigmoid(-logit)
        factor = log_scale.clamp(max=60)
        kept = torch.sigmoid(log_scale - factor - (logit + noise) / self.temperature)
        output = self.layer(input * (kept * torch.exp(factor)).to(input.dtype))
        return output

    def regularization(self) -> Tensor:
        """Return the module's term of the loss, in float32 or the parameter's wider dtype."""
        logit, weight = _wide(self.logit), self.layer.weight
        assert isinstance(weight, Tensor)
        squares = _wide(weight).square().sum()
        p, softplus = torch.sigmoid(logit), nn.functional.softplus
        entropy = p * softplus(-logit) + (1 - p) * softplus(logit)
        # `1 / (1 - p)` may be too large for float32 where its small multiple is not.
        scale = 1 + torch.exp(logit.double())
        of_weights = (self.weight_regularizer * squares.double() * scale).to(logit.dtype)
        return of_weights - self.dropout_regularizer * self._units * entropy


def regularization(module: nn.Module) -> Tensor:
    """Return the sum of the terms that the modules in `module` add to the loss.

    These are the results of the method `regularization` of each `VariationalGaussianDropout`,
    `VariationalLinear` and `ConcreteDropout`. Without them, the sum is 0. A module that is used
    several times counts once.

    Args:
        module: A `torch.nn.Module`.

    Returns:
        Tensor without dimensions, with a gradient for the parameters.

    Raises:
        TypeError: If `module` is not a `torch.nn.Module`.

    Example:

    >>> import torch
    >>> from fastdrop_torch import ConcreteDropout, regularization
    >>> model = torch.nn.Sequential(
    ...     ConcreteDropout(torch.nn.Linear(8, 32)), torch.nn.ReLU(),
    ...     ConcreteDropout(torch.nn.Linear(32, 1)),
    ... )
    >>> x, y = torch.randn(10, 8), torch.randn(10, 1)
    >>> loss = torch.nn.functional.mse_loss(model(x), y) + regularization(model)
    >>> loss.backward()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {module!r}")
    learning = (VariationalGaussianDropout, VariationalLinear, ConcreteDropout)
    terms = (one.regularization() for one in module.modules() if isinstance(one, learning))
    return sum(terms, torch.zeros(()))


def _checked(
    name: str, value: Any, wanted: str, least: float = -math.inf, most: float = math.inf
) -> float:
    """Return an argument as a finite float, or raise an error that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be {wanted}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (least <= number <= most and math.isfinite(number)):
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}")
    return number


def _check_floating(input: Tensor) -> None:
    if not input.is_floating_point():
        raise TypeError(
            "`input` must be a dense CPU tensor of dtype float16, bfloat16, float32 or float64, "
            f"got {input.type()}"
        )


def _logit(p: Any, most: float) -> float:
    """Return ``log(p / (1 - p))`` of the argument `p`."""
    wanted = "a probability above 0 and " + ("at most 0.5" if most == 0.5 else "below 1")
    p = _checked("p", p, wanted, sys.float_info.min, most)
    return math.log(p / (1 - p))


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in its own wider dtype."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _normal(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return standard normal numbers with a seed from PyTorch's generator."""
    zeros = torch.zeros(shape, dtype=dtype, device=device)
    return functional.gaussian_noise(zeros, 1.0)


def _limited(log_alpha: Tensor) -> Tensor:
    """Return the parameter, up to 0, in float32 or its own wider dtype.

    In training it is set to 0 where a step of the optimizer has left it above: a bound would have
    no gradient there.
    """
    if torch.is_grad_enabled():
        log_alpha.data.clamp_(max=0)  # not a change that the gradient of another use would refuse
    return _wide(log_alpha).clamp(max=0)


def _probability(log_alpha: Tensor) -> Tensor:
    return torch.sigmoid(log_alpha.detach().clamp(max=0))


def _divergence(log_alpha: Tensor) -> Tensor:
    """Return the sum of divergences, but for constants, as Kingma et al. approximate them."""
    log_alpha = _wide(log_alpha)
    alpha = torch.exp(log_alpha)
    polynomial = alpha * (1.16145124 + alpha * (-1.50204118 + alpha * 0.58629921))
    return (-log_alpha / 2 - polynomial).sum()
