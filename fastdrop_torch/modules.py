"""Defines the modules: subclasses of PyTorch's of the same names, and two that PyTorch lacks."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from fastdrop_torch import functional


class RandomModule(nn.Module):
    """Marks the modules that PyTorch lacks, besides Gaussian ones; `mc_predict` lets them draw."""


class Dropout(nn.Dropout):
    """Zeroes elements of the input in training, as `torch.nn.Dropout` does.

    The mask's seed comes from PyTorch's default generator: `torch.manual_seed` repeats it. `p` may
    be set at any time. A module has no parameters and an empty `state_dict`.

    Args:
        p: Probability of dropping an element, from 0 to 1.
        inplace: Whether to change the input itself.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Dropout
    >>> drop = Dropout(0.2)
    >>> drop
    Dropout(p=0.2, inplace=False)
    >>> kept = drop(torch.ones(100_000)) != 0
    >>> bool(abs(kept.float().mean() - 0.8) < 0.01)
    True
    >>> drop.eval()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        functional._check_probability(p)
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped elements, or the input itself in evaluation."""
        # TorchScript takes operations, but no functions with keyword-only arguments.
        if self.inplace:
            return torch.ops.fastdrop.dropout_(input, self.p, self.training)
        return torch.ops.fastdrop.dropout(input, self.p, self.training)


class Dropout1d(nn.Dropout1d):
    """Zeroes whole channels in training, as `torch.nn.Dropout1d` does.

    Inputs are of shape `(N, C, L)` or `(C, L)`. Otherwise the module is like `Dropout`.

    Args:
        p: Probability of dropping a channel, from 0 to 1.
        inplace: Whether to change the input itself.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Tompson et al., 2015](https://arxiv.org/abs/1411.4280)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Dropout1d
    >>> Dropout1d(0.2)(torch.ones(2, 3, 5)).shape
    torch.Size([2, 3, 5])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        functional._check_probability(p)
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped channels, or the input itself in evaluation."""
        lacks_batch = functional._lacks_batch("dropout1d", 1, input)
        return functional._drop_channels(input, self.p, self.training, self.inplace, lacks_batch)


class Dropout2d(nn.Dropout2d):
    """Zeroes whole channels in training, as `torch.nn.Dropout2d` does.

    Inputs are of shape `(N, C, H, W)`. Otherwise the module is like `Dropout`.

    Args:
        p: Probability of dropping a channel, from 0 to 1.
        inplace: Whether to change the input itself.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Tompson et al., 2015](https://arxiv.org/abs/1411.4280)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Dropout2d
    >>> Dropout2d(0.2)(torch.ones(2, 3, 5, 5)).shape
    torch.Size([2, 3, 5, 5])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        functional._check_probability(p)
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped channels, or the input itself in evaluation."""
        lacks_batch = functional._lacks_batch("dropout2d", 2, input)
        return functional._drop_channels(input, self.p, self.training, self.inplace, lacks_batch)


class Dropout3d(nn.Dropout3d):
    """Zeroes whole channels in training, as `torch.nn.Dropout3d` does.

    Inputs are of shape `(N, C, D, H, W)` or `(C, D, H, W)`. Otherwise the module is like `Dropout`.

    Args:
        p: Probability of dropping a channel, from 0 to 1.
        inplace: Whether to change the input itself.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Tompson et al., 2015](https://arxiv.org/abs/1411.4280)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Dropout3d
    >>> Dropout3d(0.2)(torch.ones(2, 3, 5, 5, 5)).shape
    torch.Size([2, 3, 5, 5, 5])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        functional._check_probability(p)
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped channels, or the input itself in evaluation."""
        lacks_batch = functional._lacks_batch("dropout3d", 3, input)
        return functional._drop_channels(input, self.p, self.training, self.inplace, lacks_batch)


class AlphaDropout(nn.AlphaDropout):
    """Drops elements and keeps SELU's mean and variance, as `torch.nn.AlphaDropout` does.

    Inputs may have any shape. Otherwise the module is like `Dropout`.

    Args:
        p: Probability of dropping an element, from 0 to 1.
        inplace: Without effect, as in PyTorch. `functional` has functions in place.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import torch
    >>> from fastdrop_torch import AlphaDropout
    >>> AlphaDropout(0.2)(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        functional._check_probability(p)
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped elements, or the input itself in evaluation."""
        return torch.ops.fastdrop.alpha_dropout(input, self.p, self.training)


class FeatureAlphaDropout(nn.FeatureAlphaDropout):
    """Drops channels and keeps SELU's mean and variance, as `torch.nn.FeatureAlphaDropout` does.

    Inputs are of shape `(N, C, ...)`. Otherwise the module is like `Dropout`.

    Args:
        p: Probability of dropping a channel, from 0 to 1.
        inplace: Without effect, as in PyTorch. `functional` has functions in place.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import torch
    >>> from fastdrop_torch import FeatureAlphaDropout
    >>> FeatureAlphaDropout(0.2)(torch.ones(2, 3, 5)).shape
    torch.Size([2, 3, 5])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        functional._check_probability(p)
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped channels, or the input itself in evaluation."""
        return torch.ops.fastdrop.feature_alpha_dropout(input, self.p, self.training)


class GaussianDropout(nn.modules.dropout._DropoutNd):
    """Multiplies elements by normal numbers of mean 1 and variance ``p / (1 - p)`` in training.

    PyTorch has no such module. Inputs may have any shape. Otherwise the module is like `Dropout`.

    Args:
        p: The probability of the dropout that the variance is that of, at least 0 and below 1.
        inplace: Whether to change the input itself.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is negative, or 1 or more.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10

    Example:

    >>> import torch
    >>> from fastdrop_torch import GaussianDropout
    >>> drop = GaussianDropout(0.2)
    >>> bool(abs(drop(torch.ones(100_000)).std() - 0.5) < 0.01)
    True
    >>> drop.eval()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not functional._is_between(0, p, 1, "p") or p == 1:
            raise ValueError(
                "dropout probability has to be at least 0 and, for Gaussian dropout, below 1, but "
                f"got {p}"
            )
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times noise, or the input itself in evaluation."""
        if self.inplace:
            return torch.ops.fastdrop.gaussian_dropout_(input, self.p, self.training)
        return torch.ops.fastdrop.gaussian_dropout(input, self.p, self.training)


class GaussianNoise(nn.Module):
    """Adds normal numbers of mean 0 and a standard deviation in training.

    PyTorch has no such module. Inputs may have any shape, and `stddev` may be set at any time.
    Otherwise the module is like `Dropout`.

    Args:
        stddev: The standard deviation, finite and at least 0.
        inplace: Whether to change the input itself.

    Raises:
        TypeError: If `stddev` is not a number.
        ValueError: If `stddev` is negative, infinite or NaN.

    Example:

    >>> import torch
    >>> from fastdrop_torch import GaussianNoise
    >>> noise = GaussianNoise(0.5)
    >>> noise
    GaussianNoise(stddev=0.5, inplace=False)
    >>> bool(abs(noise(torch.zeros(100_000)).std() - 0.5) < 0.01)
    True
    """

    __constants__ = ("stddev", "inplace")
    stddev: float
    inplace: bool

    def __init__(self, stddev: float, inplace: bool = False) -> None:
        super().__init__()
        if not functional._is_between(0, stddev, sys.float_info.max, "stddev"):
            raise ValueError(
                f"standard deviation has to be finite and at least 0, but got {stddev}"
            )
        self.stddev = stddev
        self.inplace = inplace

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"stddev={self.stddev}, inplace={self.inplace}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the input plus noise, or the input itself in evaluation."""
        if self.inplace:
            return torch.ops.fastdrop.gaussian_noise_(input, self.stddev, self.training)
        return torch.ops.fastdrop.gaussian_noise(input, self.stddev, self.training)


# PyTorch's classes, and the class that takes the place of each.
CLASSES: dict[type[nn.Module], type[Any]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: Dropout1d,
    nn.Dropout2d: Dropout2d,
    nn.Dropout3d: Dropout3d,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: FeatureAlphaDropout,
}
