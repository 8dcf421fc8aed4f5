"""Defines modules that drop weights, blocks of images, and whole samples; PyTorch has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdrop_torch import functional
from fastdrop_torch.modules import RandomModule


class StochasticDepth(RandomModule):
    """Drops whole samples in training, at the end of a residual branch (stochastic depth).

    It takes the arguments of `torchvision.ops.StochasticDepth`, and is also known as DropPath. The
    other samples are multiplied by ``1 / (1 - p)``. Otherwise the module is like `Dropout`.

    Args:
        p: Probability of dropping a sample, from 0 to 1.
        mode: ``"row"`` drops each sample on its own, ``"batch"`` all samples at once or none.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1, or `mode` is another value.

    Reference:

    - [Huang et al., 2016](https://arxiv.org/abs/1603.09382)

    Example:

    >>> import torch
    >>> from fastdrop_torch import StochasticDepth
    >>> drop = StochasticDepth(0.5, mode="row")
    >>> drop
    StochasticDepth(p=0.5, mode=row)
    >>> bool((drop(torch.ones(4, 3, 5, 5)).flatten(1).unique(dim=1) % 2 == 0).all())
    True
    """

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        functional._check_probability(p)
        functional._check_mode(mode)
        self.p = p
        self.mode = mode

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"p={self.p}, mode={self.mode}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped samples, or the input itself in evaluation."""
        return functional.stochastic_depth(input, self.p, self.mode, self.training)


class DropBlock2d(RandomModule):
    """Drops blocks of images or feature maps in training (DropBlock).

    It takes the arguments of `torchvision.ops.DropBlock2d` but for its `eps`. See
    `functional.drop_block2d`. Otherwise the module is like `Dropout`.

    Args:
        p: Fraction of the elements to drop, from 0 to 1.
        block_size: Positive integer, or two for the height and the width of the blocks.
        inplace: Whether to change the input itself.

    Raises:
        ValueError: If `p` is not between 0 and 1, or `block_size` is not positive.
        TypeError: If `p` is not a number, or `block_size` is neither an integer nor two.

    Reference:

    - [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890)

    Example:

    >>> import torch
    >>> from fastdrop_torch import DropBlock2d
    >>> DropBlock2d(0.1, block_size=7)(torch.ones(2, 3, 28, 28)).shape
    torch.Size([2, 3, 28, 28])
    """

    def __init__(self, p: float, block_size: int | Sequence[int], inplace: bool = False) -> None:
        super().__init__()
        functional._check_probability(p)
        functional._block_sizes(block_size)
        self.p = p
        self.block_size = block_size
        self.inplace = inplace

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"

    def forward(self, input: Tensor) -> Tensor:
        """Return the input without some blocks, or the input itself in evaluation."""
        return functional.drop_block2d(input, self.p, self.block_size, self.training, self.inplace)


class DropConnectModule(RandomModule):
    """Drops the weights of a module of PyTorch, the last among the bases, in training."""

    weight: Tensor

    def __init__(self, *args: Any, p: float = 0.5, **kwargs: Any) -> None:
        functional._check_probability(p)  # before PyTorch draws weights
        super().__init__(*args, **kwargs)
        self.p = p

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        return f"{super().extra_repr()}, p={self.p}"

    def _thinned_weight(self) -> Tensor:
        weight: Tensor = torch.ops.fastdrop.dropout(self.weight, self.p, self.training)
        return weight


class DropConnectLinear(DropConnectModule, nn.Linear):
    """Is a `torch.nn.Linear` whose weights are dropped in training (DropConnect).

    Each weight is dropped with probability `p`, and the others are multiplied by ``1 / (1 - p)``.
    All samples of a batch have one mask; the paper draws a mask for each sample. The bias is not
    dropped. In evaluation the module is PyTorch's; the paper instead draws the sums from a normal
    distribution. `mc_predict` averages over masks. The `state_dict` is that of `torch.nn.Linear`,
    and the mask's seed comes from PyTorch's default generator.

    Args:
        *args, **kwargs: The arguments of `torch.nn.Linear`.
        p: Probability of dropping a weight, from 0 to 1.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)

    Example:

    >>> import torch
    >>> from fastdrop_torch import DropConnectLinear
    >>> layer = DropConnectLinear(3, 4, p=0.2)
    >>> layer
    DropConnectLinear(in_features=3, out_features=4, bias=True, p=0.2)
    >>> layer(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, with thinned weights in training."""
        return nn.functional.linear(input, self._thinned_weight(), self.bias)


class DropConnectConv2d(DropConnectModule, nn.Conv2d):
    """Is a `torch.nn.Conv2d` whose weights are dropped in training (DropConnect).

    All samples and all positions have one mask. Otherwise the module is like `DropConnectLinear`.

    Args:
        *args, **kwargs: The arguments of `torch.nn.Conv2d`.
        p: Probability of dropping a weight, from 0 to 1.

    Raises:
        TypeError: If `p` is not a number.
        ValueError: If `p` is not between 0 and 1.

    Reference:

    - [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)

    Example:

    >>> import torch
    >>> from fastdrop_torch import DropConnectConv2d
    >>> DropConnectConv2d(3, 8, 5, padding=2, p=0.2)(torch.ones(2, 3, 28, 28)).shape
    torch.Size([2, 8, 28, 28])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, with thinned weights in training."""
        return self._conv_forward(input, self._thinned_weight(), self.bias)
