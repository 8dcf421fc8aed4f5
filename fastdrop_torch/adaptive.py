"""Defines modules that learn how much to drop, or compute it from their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdrop_torch import functional
from fastdrop_torch.modules import RandomModule


def _finite(value: float, name: str, least: float = -math.inf) -> float:
    """Return a finite number, `least` or larger, or raise an error that names it."""
    if not (math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f", {least} or larger"
        raise ValueError(f"`{name}` must be a finite number{bound}, got {value}")
    return float(value)


def _initial_logit(p: float, most: float) -> float:
    """Return the logit of a first probability above 0, below 1, and at most `most`."""
    if not (0 < p < 1 and p <= most):
        bound = "below 1" if most == 1 else f"at most {most}"
        raise ValueError(f"dropout probability has to be above 0 and {bound}, but got {p}")
    return math.log(p / (1 - p))


def _normal_numbers(like: Tensor) -> Tensor:
    return functional.gaussian_noise(torch.zeros_like(like), 1.0)


class Standout(RandomModule):
    """Applies an activation function, and drops each unit with a probability of its own.

    Adaptive dropout (Ba and Frey, 2013) comes after a module with weights, without an activation:
    ``nn.Sequential(nn.Linear(64, 256), Standout(nn.ReLU()))``. From its input `z`, a weighted sum,
    it computes ``activation(z)`` and the keep probability ``sigmoid(alpha * z + beta)``: units with
    large sums are kept. In training, a dropped unit is ``+0.0``, and a kept one is not scaled. In
    evaluation, each unit is multiplied by its keep probability.

    In training the gradient takes the mask for a constant, as the authors do. The decisions are
    those of `functional.dropout` with the tensor of probabilities ``1 - keep``. The mask's seed
    comes from PyTorch's default generator.

    Args:
        activation: Function of a tensor, or module, or `None` for the identity.
        alpha: Finite number, the factor of the sums. With 0, all units are kept with probability
            ``sigmoid(beta)``.
        beta: Finite number, added to the scaled sums. With -5, few units are kept.

    Raises:
        TypeError: If `activation` cannot be called; in training, if the input is not a dense CPU
            tensor of float16, bfloat16, float32 or float64.
        ValueError: If `alpha` or `beta` is not finite.

    Reference:

    - [Ba and Frey, 2013](https://papers.nips.cc/paper/5032-adaptive-dropout-for-training-deep-neural-networks)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Standout
    >>> layer = Standout(torch.relu)
    >>> z = torch.tensor([[-4.0, -2, 0, 2, 4]])
    >>> layer.eval()(z)
    tensor([[0.0000, 0.0000, 0.0000, 1.7616, 3.9281]])
    >>> kept = layer.train()(z.expand(10_000, 5)) > 0
    >>> bool(abs(kept[:, 3].float().mean() - 0.8808) < 0.02)
    True
    """

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor] | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        if activation is not None and not callable(activation):
            raise TypeError(f"`activation` must be a function or None, got {activation!r}")
        self.activation = activation
        self.alpha = _finite(alpha, "alpha")
        self.beta = _finite(beta, "beta")

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"alpha={self.alpha}, beta={self.beta}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the units, dropped in training, and scaled in evaluation."""
        keep = torch.sigmoid(self.alpha * input + self.beta)
        output = input if self.activation is None else self.activation(input)
        if not self.training:
            return torch.where(keep == 0, 0, output * keep)
        # A NaN is kept: it has no probability.
        rates = (1 - keep.detach()).nan_to_num(0.0)
        mask = torch.ops.fastdrop.dropout_by_rates(torch.ones_like(rates), rates)
        return torch.where(mask == 0, 0, output)


class LearnedModule(RandomModule):
    """Marks the modules with a term of the loss, which `regularization` adds up."""

    def regularization(self) -> Tensor:
        """Return the module's term of the loss, a tensor of one number."""
        raise NotImplementedError


def regularization(module: nn.Module) -> Tensor:
    """Return the sum of the terms of the loss of all learned dropout in `module`.

    A training step adds it to the loss, once: ``loss = error + regularization(model)``. The modules
    with a term are `VariationalGaussianDropout`, `VariationalLinear` and `ConcreteDropout`, each
    with its own weights.

    Args:
        module: A `torch.nn.Module`.

    Returns:
        A tensor of one number; 0 without such modules.

    Raises:
        TypeError: If `module` is not a `torch.nn.Module`.

    Example:

    >>> import torch
    >>> from fastdrop_torch import ConcreteDropout, VariationalLinear, regularization
    >>> model = torch.nn.Sequential(
    ...     VariationalLinear(3, 4, kl_weight=1 / 60000), ConcreteDropout(torch.nn.Linear(4, 2))
    ... )
    >>> loss = model(torch.ones(5, 3)).square().mean() + regularization(model)
    >>> loss.backward()
    >>> model[1].p_logit.grad is None
    False
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {module!r}")
    terms = [one.regularization() for one in module.modules() if isinstance(one, LearnedModule)]
    return sum(terms, torch.zeros(()))


class VariationalModule(LearnedModule):
    """Has the parameter of variational dropout: logarithms of variances, which stay up to 0."""

    log_alpha: Tensor

    @property
    def p(self) -> Tensor:
        """Tensor of the learned probabilities, ``alpha / (1 + alpha)``, one for each `alpha`."""
        return torch.sigmoid(self.log_alpha.detach().clamp(max=0))

    def _add_log_alpha(self, shape: tuple[int, ...], logit: float, **factory: Any) -> None:
        self.log_alpha = nn.Parameter(torch.full(shape, logit, **factory))

    def _bounded(self) -> Tensor:
        """Return the parameter, after an optimizer's step may have made it too large."""
        with torch.no_grad():
            self.log_alpha.clamp_(max=0)
        return self.log_alpha

    def _divergence(self) -> Tensor:
        """Return the sum of the divergences, but for constants, as Kingma et al. approximate it."""
        log_alpha = self._bounded()
        alpha = log_alpha.exp()
        polynomial = alpha * (1.16145124 + alpha * (-1.50204118 + alpha * 0.58629921))
        return (-log_alpha / 2 - polynomial).sum()


class VariationalGaussianDropout(VariationalModule):
    """Multiplies its inputs by Gaussian noise in training, and learns the variance of the noise.

    The noise has mean 1 and variance ``alpha = p / (1 - p)``, as in `GaussianDropout`. The module
    learns `alpha`, one for all inputs or one for each feature (the last axis). In evaluation it
    returns its inputs. The numbers are those of `functional.gaussian_noise`, with a seed from
    PyTorch's default generator.

    The noise of a feature is noise of all its weights in the next module. The prior of Kingma,
    Salimans and Welling (2015), uniform in the logarithm, gives the term of the loss that
    `regularization` returns: `kl_weight` times the sum over the features of the Kullback-Leibler
    divergence, but for a constant. It asks for more noise, and the data ask for less. As in the
    paper, `alpha` is at most 1: a call in training and `regularization` set a larger one to 1.

    Args:
        num_features: Positive integer, the size of the last axis.
        kl_weight: Finite number, 0 or larger: ``1 / N`` with N training samples, for a loss that is
            the mean over samples of the negative log-likelihood.
        per: ``"layer"`` or ``"feature"``: what has an `alpha` of its own.
        p: The first probability, above 0, at most 0.5.
        device, dtype: Of the parameter, as for PyTorch's modules.

    Raises:
        ValueError: If an argument is not a valid value, or the last axis has another size.
        TypeError: In training, as for `functional.gaussian_noise`.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import torch
    >>> from fastdrop_torch import VariationalGaussianDropout
    >>> layer = VariationalGaussianDropout(3, 1 / 60000, per="feature", p=0.2)
    >>> y = layer(torch.ones(10, 3))
    >>> layer.p
    tensor([0.2000, 0.2000, 0.2000])
    """

    def __init__(
        self,
        num_features: int,
        kl_weight: float,
        per: str = "layer",
        p: float = 0.5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"`num_features` must be a positive integer, got {num_features}")
        if per not in ("layer", "feature"):
            raise ValueError(f"`per` must be 'layer' or 'feature', got {per!r}")
        self.num_features = num_features
        self.kl_weight = _finite(kl_weight, "kl_weight", 0)
        self.per = per
        shape = () if per == "layer" else (num_features,)
        self._add_log_alpha(shape, _initial_logit(p, 0.5), device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"{self.num_features}, kl_weight={self.kl_weight}, per={self.per}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times noise, or the input itself in evaluation."""
        if not input.dim() or input.shape[-1] != self.num_features:
            raise ValueError(
                f"`input` must have a last axis of size {self.num_features}, got shape "
                f"{tuple(input.shape)}"
            )
        if not self.training:
            return input
        deviation = (self._bounded() / 2).exp().to(input.dtype)
        return input * (1 + deviation * _normal_numbers(input))

    def regularization(self) -> Tensor:
        """Return the module's term of the loss."""
        features = self.num_features if self.per == "layer" else 1
        return self.kl_weight * features * self._divergence()


class VariationalLinear(VariationalModule, nn.Linear):
    """Is a `torch.nn.Linear` that learns how noisy each of its weights is.

    In training, each weight `w` is normal with the mean `w` and the variance ``alpha * w**2``, with
    an `alpha` for each weight. By the local reparameterization of Kingma, Salimans and Welling
    (2015), the module draws no weights, but for each sample the sums from their normal
    distribution, of variance ``input**2 @ (alpha * weight**2).T``. The bias has no noise. In
    evaluation the module is PyTorch's.

    The term of the loss is `kl_weight` times the sum of the divergences over the weights. `alpha`
    and the seed are as for `VariationalGaussianDropout`.

    Args:
        *args, **kwargs: The arguments of `torch.nn.Linear`.
        kl_weight: Finite number, 0 or larger, as for `VariationalGaussianDropout`.
        p: The first ``alpha / (1 + alpha)``, above 0, at most 0.5.

    Raises:
        ValueError: If an argument is not a valid value.
        TypeError: In training, as for `functional.gaussian_noise`.

    Reference:

    - [Kingma, Salimans and Welling, 2015](https://arxiv.org/abs/1506.02557)

    Example:

    >>> import torch
    >>> from fastdrop_torch import VariationalLinear
    >>> layer = VariationalLinear(3, 4, kl_weight=1 / 60000)
    >>> layer(torch.ones(2, 3)).shape, layer.p.shape
    (torch.Size([2, 4]), torch.Size([4, 3]))
    """

    def __init__(self, *args: Any, kl_weight: float, p: float = 0.5, **kwargs: Any) -> None:
        logit = _initial_logit(p, 0.5)
        weight = _finite(kl_weight, "kl_weight", 0)
        super().__init__(*args, **kwargs)
        self.kl_weight = weight
        factory = {"device": self.weight.device, "dtype": self.weight.dtype}
        self._add_log_alpha(tuple(self.weight.shape), logit, **factory)

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"{super().extra_repr()}, kl_weight={self.kl_weight}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, with noise in training."""
        output = nn.functional.linear(input, self.weight, self.bias)
        if not self.training:
            return output
        return output + self._deviation(input).to(output.dtype) * _normal_numbers(output)

    def _deviation(self, input: Tensor) -> Tensor:
        """Return the standard deviation of the sums, in the dtype of the weights."""
        with torch.autocast(input.device.type, enabled=False):
            squares = input.to(self.weight.dtype).square()
            variance = nn.functional.linear(squares, self._bounded().exp() * self.weight.square())
        # The derivative of the square root is infinite at 0.
        positive = variance > 0
        return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)

    def regularization(self) -> Tensor:
        """Return the module's term of the loss."""
        return self.kl_weight * self._divergence()


class ConcreteDropout(LearnedModule):
    """Drops the inputs of a module, and learns the probability.

    Concrete dropout (Gal, Hron and Kendall, 2017) makes the mask differentiable: in training, each
    element of the input is multiplied by ``(1 - drop) / (1 - p)``, where ::

        drop = sigmoid((logit(p) + logit(u)) / temperature)

    with a uniform number `u`, the normal distribution function of the numbers of
    `functional.gaussian_noise`. At low temperatures, `drop` is close to 0 or to 1; no element is
    dropped completely. In evaluation the module calls the wrapped one.

    The logit of `p` is a parameter. The term of the loss that trains it, the divergence of the
    paper, is, for the weights of the wrapped module and inputs of `features` features ::

        weight_regularizer * sum(weight**2) / (1 - p)
        + dropout_regularizer * features * (p * log(p) + (1 - p) * log(1 - p))

    It takes the place of weight decay. The learned probability falls with more data.

    Args:
        module: Module with a parameter `weight` and an attribute `in_features` or `in_channels`,
            such as `torch.nn.Linear` or `torch.nn.Conv2d`.
        weight_regularizer: Finite number, 0 or larger: ``l**2 / (tau * N)`` for weights with a
            prior length-scale `l`, N training samples and the precision `tau`, the inverse of the
            variance of the observations' noise.
        dropout_regularizer: Finite number, 0 or larger: ``2 / (tau * N)`` for the mean squared
            error, and half of it for a cross-entropy.
        p: The first probability, above 0 and below 1.
        temperature: Finite number above 0.
        channels: Whether whole channels of inputs `(N, C, ...)` share a number.

    Raises:
        TypeError: If `module` is not such a module; in training, as for
            `functional.gaussian_noise`.
        ValueError: If another argument is not a valid value.

    Reference:

    - [Gal, Hron and Kendall, 2017](https://arxiv.org/abs/1705.07832), whose program has the same
      defaults

    Example:

    >>> import torch
    >>> from fastdrop_torch import ConcreteDropout
    >>> layer = ConcreteDropout(torch.nn.Linear(3, 4))
    >>> layer(torch.ones(2, 3)).shape, round(float(layer.p), 3)
    (torch.Size([2, 4]), 0.1)
    """

    def __init__(
        self,
        module: nn.Module,
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
        p: float = 0.1,
        temperature: float = 0.1,
        channels: bool = False,
    ) -> None:
        super().__init__()
        features = getattr(module, "in_features", getattr(module, "in_channels", None))
        weight = getattr(module, "weight", None)
        if features is None or not isinstance(weight, Tensor):
            raise TypeError(
                "`module` must be a module with a weight and `in_features` or `in_channels`, got "
                f"{module!r}"
            )
        self.module = module
        self.features = features
        self.weight_regularizer = _finite(weight_regularizer, "weight_regularizer", 0)
        self.dropout_regularizer = _finite(dropout_regularizer, "dropout_regularizer", 0)
        self.temperature = _finite(temperature, "temperature", 0)
        if not temperature:
            raise ValueError(f"`temperature` must be above 0, got {temperature}")
        self.channels = channels
        self.p_logit = nn.Parameter(
            torch.tensor(_initial_logit(p, 1), device=weight.device, dtype=torch.float32)
        )

    @property
    def p(self) -> Tensor:
        """Tensor of the learned probability."""
        return torch.sigmoid(self.p_logit.detach())

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return (
            f"weight_regularizer={self.weight_regularizer}, "
            f"dropout_regularizer={self.dropout_regularizer}, temperature={self.temperature}, "
            f"channels={self.channels}"
        )

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, and call the wrapped module."""
        return self.module(input * self._factors(input) if self.training else input)

    def _factors(self, input: Tensor) -> Tensor:
        shape = input.shape[:2] + (1,) * (input.dim() - 2) if self.channels else input.shape
        numbers = _normal_numbers(input.new_empty(shape, dtype=self.p_logit.dtype))
        uniform = (1 + torch.erf(numbers / math.sqrt(2))) / 2
        epsilon = 1e-7  # as in the authors' program: the logarithms are finite
        noise = torch.log(uniform + epsilon) - torch.log(1 - uniform + epsilon)
        kept = torch.sigmoid(-(self.p_logit + noise) / self.temperature)
        return (kept * (1 + self.p_logit.exp())).to(input.dtype)

    def regularization(self) -> Tensor:
        """Return the module's term of the loss."""
        logit, p = self.p_logit, torch.sigmoid(self.p_logit)
        weight = self.module.get_parameter("weight")
        squares = weight.square().sum().to(logit.dtype)
        softplus = nn.functional.softplus
        entropy = p * softplus(-logit) + (1 - p) * softplus(logit)
        return (
            self.weight_regularizer * squares * (1 + logit.exp())
            - self.dropout_regularizer * self.features * entropy
        )
