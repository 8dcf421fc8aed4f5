"""Defines the dropout functions, with the names, arguments and errors of `torch.nn.functional`.

All take two more keyword arguments:

- `generator`: a `torch.Generator` for the seed. Without it the seed comes from PyTorch's default
  generator, which `torch.manual_seed` sets.
- `seed`: an integer from 0 to 2**128 - 1 that fixes the mask. `fastdrop.dropout` with this seed
  drops the same elements, and so does every call, on every machine.

A tensor that is not dense, not on the CPU, or not of dtype float16, bfloat16, float32 or float64
goes to PyTorch's own function, which takes neither. PyTorch has no Gaussian dropout and noise.
`stochastic_depth` and `drop_block2d` have the arguments of `torchvision.ops`.

>>> import torch, fastdrop_torch.functional as F
>>> F.dropout(torch.ones(8), 0.5, seed=42)
tensor([0., 0., 2., 2., 2., 0., 2., 2.])
"""

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdrop_torch import batching, library  # noqa: F401  (they load the operations)

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "drop_block2d",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "relu_dropout",
    "stochastic_depth",
]


def _words(seed: int | None) -> Tensor | None:
    """Return the seed as the operations read it: its low word, the step 0, its high word."""
    if seed is None:
        return None
    if isinstance(seed, bool):
        raise TypeError(f"`seed` must be an integer, got {seed!r}")
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"`seed` must be an integer, got {seed!r}") from None
    if not 0 <= number < 2**128:
        raise ValueError(f"`seed` must be in [0, 2**128), got {seed!r}")
    words = [number % 2**64, 0, number // 2**64]
    words = [word - 2**64 if word >= 2**63 else word for word in words]
    return torch.tensor(words, device="cpu")


def _is_between(least: float, value: Any, most: float, name: str) -> bool:
    """Return whether an argument is a number in a range; a NaN is not."""
    try:
        return bool(least <= value <= most)
    except (TypeError, ValueError, RuntimeError):  # the last two for arrays and tensors
        raise TypeError(f"`{name}` must be a number, got {value!r}") from None


def _check_probability(p: Any) -> None:
    """Raise PyTorch's error, for a NaN too, which PyTorch's constructors let through."""
    if not _is_between(0, p, 1, "p"):
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Zero elements of the input with probability `p`, as `torch.nn.functional.dropout` does.

    The other elements are multiplied by ``1 / (1 - p)``. A dropped element becomes ``+0.0`` even if
    it was NaN or infinite. The gradient needs one bit for each element; with a tensor of
    probabilities, a byte.

    Args:
        input: Tensor of any shape and strides.
        p: Probability of dropping an element, from 0 to 1; or a CPU tensor of probabilities, which
            is broadcast to the input: of the input's shape for one for each element, of the shape
            `(N, 1, ...)` for one for each sample. It gets no gradient, and `fastdrop.dropout` with
            the same array drops the same elements.
        training: Whether to drop. Else the result is `input`.
        inplace: Whether to change `input` itself. A leaf that requires a gradient is refused.
        generator: `torch.Generator` for the seed, or `None` for PyTorch's default generator.
        seed: Integer from 0 to 2**128 - 1 that fixes the mask, or `None`.

    Returns:
        `input` if `inplace`, else a tensor of its shape, dtype and memory format.

    Raises:
        ValueError: If `p`, or an element of it, is not between 0 and 1, if it cannot be broadcast,
            or if `seed` is out of range.
        TypeError: If `seed` is not an integer; if `seed`, `generator` or a tensor `p` is given for
            a tensor that goes to PyTorch's own function.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.dropout(torch.ones(8), 0.5, seed=42)
    tensor([0., 0., 2., 2., 2., 0., 2., 2.])
    >>> _ = torch.manual_seed(0)
    >>> first = F.dropout(torch.ones(100))
    >>> _ = torch.manual_seed(0)
    >>> torch.equal(F.dropout(torch.ones(100)), first)
    True
    >>> F.dropout(torch.ones(2, 4), torch.tensor([[0.0], [0.75]]), seed=1)
    tensor([[1., 1., 1., 1.],
            [0., 0., 4., 0.]])
    """
    words = None if seed is None else _words(seed)
    if isinstance(p, Tensor) and not p.dim():
        p = p.item()
    if isinstance(p, Tensor):
        operations = torch.ops.fastdrop
        drop = operations.dropout_by_rates_ if inplace else operations.dropout_by_rates
        return drop(input, p, training, generator=generator, seed=words)
    if inplace:
        return torch.ops.fastdrop.dropout_(input, p, training, generator=generator, seed=words)
    return torch.ops.fastdrop.dropout(input, p, training, generator=generator, seed=words)


def _lacks_batch(function: str, spatial: int, input: Tensor) -> bool:
    """Return whether the input is one sample; refuse and warn about the ranks that PyTorch does."""
    rank = input.dim()
    if rank == spatial + 2:
        return False
    if function == "dropout1d" and rank != 2:
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {rank}D input. "
            "Note that dropout1d drops channels of inputs with one spatial dimension, a channel "
            "dimension, and an optional batch dimension."
        )
    if function == "dropout2d":
        warnings.warn(
            f"dropout2d: Received a {rank}-D input, which PyTorch deprecates. The first dimension "
            "is taken for samples, the second for channels. For inputs of shape (N, C, L) use "
            "dropout1d.",
            stacklevel=3,
        )
        return False
    if rank != spatial + 1:
        warnings.warn(
            f"dropout3d: Received a {rank}-D input, which PyTorch deprecates. Inputs of dropout3d "
            "have three spatial dimensions, a channel dimension, and an optional batch dimension.",
            stacklevel=3,
        )
    return True


def _drop_channels(
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    lacks_batch: bool,
    generator: torch.Generator | None = None,
    words: Tensor | None = None,
) -> Tensor:
    batch = input.unsqueeze(0) if lacks_batch else input
    if inplace:
        torch.ops.fastdrop.feature_dropout_(batch, p, training, generator=generator, seed=words)
        return input
    batch = torch.ops.fastdrop.feature_dropout(batch, p, training, generator=generator, seed=words)
    return batch.squeeze(0) if lacks_batch else batch


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Zero whole channels of the input, as `torch.nn.functional.dropout1d` does.

    Args:
        input: Tensor of shape `(N, C, L)` or `(C, L)`.
        p: Probability of dropping a channel, from 0 to 1.
        training, inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        RuntimeError: If the input has neither 2 nor 3 dimensions.
        ValueError, TypeError: As for `dropout`.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.dropout1d(torch.ones(4, 3), 0.5, seed=42)
    tensor([[0., 0., 0.],
            [0., 0., 0.],
            [2., 2., 2.],
            [2., 2., 2.]])
    """
    words = None if seed is None else _words(seed)
    lacks_batch = _lacks_batch("dropout1d", 1, input)
    return _drop_channels(input, p, training, inplace, lacks_batch, generator, words)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Zero whole channels of the input, as `torch.nn.functional.dropout2d` does.

    Args:
        input: Tensor of shape `(N, C, H, W)`. As in PyTorch, 3 dimensions are taken for
            `(N, C, L)`, with a warning.
        p: Probability of dropping a channel, from 0 to 1.
        training, inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        RuntimeError: If the input has fewer than 2 dimensions.
        ValueError, TypeError: As for `dropout`.

    Warns:
        UserWarning: If the input does not have 4 dimensions.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.dropout2d(torch.ones(1, 4, 5, 5), 0.5, seed=42)[0, :, 0, 0]
    tensor([0., 0., 2., 2.])
    """
    words = None if seed is None else _words(seed)
    lacks_batch = _lacks_batch("dropout2d", 2, input)
    return _drop_channels(input, p, training, inplace, lacks_batch, generator, words)


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Zero whole channels of the input, as `torch.nn.functional.dropout3d` does.

    Args:
        input: Tensor of shape `(N, C, D, H, W)` or `(C, D, H, W)`.
        p: Probability of dropping a channel, from 0 to 1.
        training, inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        RuntimeError: If the input has no dimension.
        ValueError, TypeError: As for `dropout`.

    Warns:
        UserWarning: If the input has neither 4 nor 5 dimensions.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.dropout3d(torch.ones(4, 2, 2, 2), 0.5, seed=42)[:, 0, 0, 0]
    tensor([0., 0., 2., 2.])
    """
    words = None if seed is None else _words(seed)
    lacks_batch = _lacks_batch("dropout3d", 3, input)
    return _drop_channels(input, p, training, inplace, lacks_batch, generator, words)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Drop elements so that the mean and the variance of SELU's outputs stay the same.

    It does what `torch.nn.functional.alpha_dropout` does, with half the passes over memory. At
    ``p=1`` the result is zero, as in PyTorch.

    Args:
        input: Tensor of any shape and strides.
        p: Probability of dropping an element, from 0 to 1.
        training: Whether to drop. The default is PyTorch's.
        inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        ValueError, TypeError: As for `dropout`.

    Reference:

    - [Klambauer et al., 2017](https://arxiv.org/abs/1706.02515)

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.alpha_dropout(torch.ones(4), 0.5, training=True, seed=42)
    tensor([-0.7792, -0.7792,  1.6656,  1.6656])
    """
    words = None if seed is None else _words(seed)
    if inplace:
        return torch.ops.fastdrop.alpha_dropout_(
            input, p, training, generator=generator, seed=words
        )
    return torch.ops.fastdrop.alpha_dropout(input, p, training, generator=generator, seed=words)


def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Drop whole channels as `alpha_dropout` drops elements.

    Args:
        input: Tensor of shape `(N, C, ...)`.
        p: Probability of dropping a channel, from 0 to 1.
        training: Whether to drop. The default is PyTorch's.
        inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        RuntimeError: If the input has fewer than 2 dimensions.
        ValueError, TypeError: As for `dropout`.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.feature_alpha_dropout(torch.ones(1, 4, 2), 0.5, training=True, seed=42)[0, :, 0]
    tensor([-0.7792, -0.7792,  1.6656,  1.6656])
    """
    words = None if seed is None else _words(seed)
    if inplace:
        return torch.ops.fastdrop.feature_alpha_dropout_(
            input, p, training, generator=generator, seed=words
        )
    return torch.ops.fastdrop.feature_alpha_dropout(
        input, p, training, generator=generator, seed=words
    )


def gaussian_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Multiply elements by normal numbers of mean 1 and variance ``p / (1 - p)``.

    The Gaussian form of dropout, which PyTorch lacks: no element is dropped, and the products have
    the mean and the variance of the results of `dropout`. The gradient draws the numbers again from
    the seed, and nothing else is stored. `fastdrop.gaussian_dropout` with the same seed gives the
    same bits.

    Args:
        input: Dense CPU tensor of float16, bfloat16, float32 or float64, of any shape and strides.
        p: The probability of the dropout that the variance is that of, at least 0 and below 1.
        training, inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        ValueError: If `p` is negative, or 1 or more, or `seed` is out of range.
        TypeError: If `seed` is not an integer, or the input is another tensor.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.gaussian_dropout(torch.ones(4), 0.2, seed=1)
    tensor([1.7704, 0.7134, 0.7633, 0.0419])
    """
    words = None if seed is None else _words(seed)
    if inplace:
        return torch.ops.fastdrop.gaussian_dropout_(
            input, p, training, generator=generator, seed=words
        )
    return torch.ops.fastdrop.gaussian_dropout(input, p, training, generator=generator, seed=words)


def gaussian_noise(
    input: Tensor,
    stddev: float,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Add normal numbers of mean 0 and a standard deviation, in one pass over memory.

    PyTorch has no such function. The gradient for the input is that of the output.
    `fastdrop.gaussian_noise` with the same seed gives the same bits.

    Args:
        input: As for `gaussian_dropout`.
        stddev: The standard deviation, finite and at least 0.
        training: Whether to add noise. Else the result is `input`.
        inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        ValueError: If `stddev` is negative, infinite or NaN, or `seed` is out of range.
        TypeError: As for `gaussian_dropout`.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.gaussian_noise(torch.zeros(4), 0.5, seed=1)
    tensor([ 0.7704, -0.2866, -0.2367, -0.9581])
    """
    words = None if seed is None else _words(seed)
    if inplace:
        return torch.ops.fastdrop.gaussian_noise_(
            input, stddev, training, generator=generator, seed=words
        )
    return torch.ops.fastdrop.gaussian_noise(
        input, stddev, training, generator=generator, seed=words
    )


def _check_mode(mode: Any) -> None:
    if mode not in ("row", "batch"):
        raise ValueError(f"`mode` must be 'row' or 'batch', got {mode!r}")


def stochastic_depth(
    input: Tensor,
    p: float,
    mode: str = "row",
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Zero whole samples with probability `p`, as `torchvision.ops.stochastic_depth` does.

    The other samples are multiplied by ``1 / (1 - p)``. `fastdrop.dropout` with the noise shape
    ``(None, 1, 1, ...)`` drops the same samples for a seed.

    Args:
        input: Tensor of shape `(N, ...)`.
        p: Probability of dropping a sample, from 0 to 1.
        mode: ``"row"`` drops each sample on its own, ``"batch"`` all samples at once or none.
        training: Whether to drop. Else the result is `input`.
        generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`.

    Raises:
        ValueError: If `p` is not between 0 and 1, `mode` is another value, the input has no
            dimension, or `seed` is out of range.
        TypeError: As for `dropout`.

    Reference:

    - [Huang et al., 2016](https://arxiv.org/abs/1603.09382)

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.stochastic_depth(torch.ones(4, 2), 0.5, seed=42)
    tensor([[0., 0.],
            [0., 0.],
            [2., 2.],
            [2., 2.]])
    """
    words = None if seed is None else _words(seed)
    _check_mode(mode)
    if not input.dim():
        raise ValueError("`input` must have a dimension of samples, got a tensor of shape ()")
    # The first two dimensions have decisions of their own.
    whole = input.unsqueeze(1) if mode == "row" else input[None, None]
    dropped: Tensor = torch.ops.fastdrop.feature_dropout(
        whole, p, training, generator=generator, seed=words
    )
    return dropped.view_as(input) if training else input


def _block_sizes(block_size: Any) -> tuple[int, int]:
    """Return the height and the width of a block."""
    sizes = block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)
    try:
        height, width = (operator.index(size) for size in sizes)
    except (TypeError, ValueError):
        raise TypeError(
            f"`block_size` must be a positive integer or two, got {block_size!r}"
        ) from None
    if height < 1 or width < 1:
        raise ValueError(f"`block_size` must be a positive integer or two, got {block_size!r}")
    return height, width


def drop_block2d(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Zero blocks of images or feature maps (DropBlock).

    It takes the arguments of `torchvision.ops.drop_block2d` but for its `eps`. Blocks are placed at
    random, in each channel on its own, and may overlap. Each position at which a block lies within
    the image has a block with probability ::

        p / (block_height * block_width) * (height * width)
            / ((height - block_height + 1) * (width - block_width + 1))

    so about `p` of the elements are dropped, and fewer if blocks overlap. The others are multiplied
    by the number of all elements over the number of kept ones. A block that is larger than the
    image becomes as large as the image. A dropped element becomes ``+0.0`` even if it was NaN.

    The positions are those that `fastdrop.dropout` drops for a seed in an array of shape `(N, C,
    H - block_height + 1, W - block_width + 1)`.

    Args:
        input: Floating-point tensor of shape `(N, C, H, W)`.
        p: Fraction of the elements to drop, from 0 to 1.
        block_size: Positive integer, or two for the height and the width of the blocks.
        training, inplace, generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`, as for `dropout`.

    Raises:
        ValueError: If `p` is not between 0 and 1, `block_size` is not positive, the input does not
            have 4 dimensions, or `seed` is out of range.
        TypeError: As for `dropout`, or if `p` is not a number, `block_size` is neither an integer
            nor two, or the input has no floats.

    Reference:

    - [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890)

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.drop_block2d(torch.ones(1, 1, 4, 5), 0.2, 2, seed=5)[0, 0]
    tensor([[1.2500, 1.2500, 1.2500, 1.2500, 1.2500],
            [1.2500, 1.2500, 1.2500, 1.2500, 1.2500],
            [1.2500, 0.0000, 0.0000, 1.2500, 1.2500],
            [1.2500, 0.0000, 0.0000, 1.2500, 1.2500]])
    """
    blocks = _block_sizes(block_size)
    _check_probability(p)
    if not input.is_floating_point():
        raise TypeError(f"`input` must be a tensor of floats, got {input.dtype}")
    if input.dim() != 4:
        raise ValueError(f"`input` must have 4 dimensions, got shape {tuple(input.shape)}")
    if not training or p == 0 or input.numel() == 0:
        return input
    if inplace and input.is_leaf and input.requires_grad and torch.is_grad_enabled():
        # PyTorch's error, before a seed is taken.
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation."
        )
    rate, counts, around = p, [], []
    for size, length in zip(input.shape[2:], blocks, strict=True):
        length = min(length, size)
        counts.append(size - length + 1)
        around.append(length - 1)
        rate *= size / (length * counts[-1])
    ones = torch.ones((*input.shape[:2], *counts), device=input.device)
    drawn = dropout(ones, min(rate, 1.0), generator=generator, seed=seed)
    rows, columns = around
    starts = nn.functional.pad((drawn == 0).float(), (columns, columns, rows, rows))
    # Two passes with less work than one with whole blocks.
    covered = nn.functional.max_pool2d(starts, (rows + 1, 1), 1)
    kept = nn.functional.max_pool2d(covered, (1, columns + 1), 1) == 0
    wide = torch.promote_types(input.dtype, torch.float32)
    # Exact integers, whose sum does not depend on the order.
    count = kept.sum().clamp(min=1).to(wide)
    scale = torch.full_like(count, kept.numel()) / count
    y = torch.where(kept, (input.to(wide) * scale).to(input.dtype), 0)
    return input.copy_(y) if inplace else y


def relu_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Compute ``dropout(relu(input))`` in one pass over memory; the gradient in another.

    PyTorch has no such function. The backward pass needs one bit for each element, instead of
    ReLU's output and a mask.

    Args:
        input: Tensor of any shape and strides.
        p: Probability of dropping an element, from 0 to 1.
        training: Whether to drop. Else the result is ``relu(input)``.
        generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`.

    Raises:
        ValueError, TypeError: As for `dropout`.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.relu_dropout(torch.tensor([1.0, -2, 3, -4, 5]), 0.5, seed=42)
    tensor([ 0.,  0.,  6.,  0., 10.])
    """
    words = None if seed is None else _words(seed)
    return torch.ops.fastdrop.relu_dropout(input, p, training, generator=generator, seed=words)


def bias_dropout_add(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Compute ``residual + dropout(input + bias)`` in one pass over memory, as in transformers.

    PyTorch has no such function.

    Args:
        input: Tensor of any shape and strides.
        bias: Tensor of the shape ``input.shape[-1:]``, or `None`.
        residual: Tensor of the input's shape, or `None`. Other tensors that PyTorch can broadcast
            are taken, too, by separate operations.
        p: Probability of dropping an element, from 0 to 1.
        training: Whether to drop. Else the result is ``residual + (input + bias)``.
        generator, seed: As for `dropout`.

    Returns:
        A tensor like `input`.

    Raises:
        ValueError, TypeError: As for `dropout`.

    Example:

    >>> import torch, fastdrop_torch.functional as F
    >>> F.bias_dropout_add(torch.ones(4), torch.arange(4.0), torch.full((4,), 10.0), 0.5, seed=42)
    tensor([10., 10., 16., 18.])
    """
    words = None if seed is None else _words(seed)
    return torch.ops.fastdrop.bias_dropout_add(
        input, bias, residual, p, training, generator=generator, seed=words
    )
