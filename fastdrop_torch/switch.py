"""Switches PyTorch's own dropout functions to the kernels of this package, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastdrop_torch.library import LIBRARY


def enable() -> None:
    """Give PyTorch's own dropout functions the kernels of this package, in the whole process.

    `torch.dropout`, `feature_dropout`, `alpha_dropout`, `feature_alpha_dropout` and their in-place
    versions then run these kernels on CPU tensors, and so does all that calls them:
    `torch.nn.functional.dropout`, the modules, `nn.TransformerEncoderLayer`,
    `nn.MultiheadAttention`, recurrent networks, `scaled_dot_product_attention`, and models of other
    packages. Masks differ from PyTorch's, and repeat after `torch.manual_seed`. A function that
    `torch.compile` has compiled, and a `torch.jit` or exported program that lists PyTorch's inner
    operations, stay as they are.

    The switch is registered with PyTorch's dispatcher, at the first use, for CPU tensors only.

    Example:

    >>> import torch, fastdrop_torch
    >>> x = torch.full((4,), float("nan"))
    >>> fastdrop_torch.enable()
    >>> torch.nn.functional.dropout(x, 1.0)
    tensor([0., 0., 0., 0.])
    >>> fastdrop_torch.disable()
    >>> torch.nn.functional.dropout(x, 1.0)
    tensor([nan, nan, nan, nan])
    """
    LIBRARY.fastdrop_switch_everywhere(1)


def disable() -> None:
    """End `enable`.

    Example:

    >>> import fastdrop_torch
    >>> fastdrop_torch.disable()
    """
    LIBRARY.fastdrop_switch_everywhere(0)


@contextlib.contextmanager
def enabled(value: bool = True) -> Iterator[None]:
    """Work as `enable`, but only in a `with` statement and in its thread.

    Args:
        value: Boolean. `False` runs PyTorch's own functions.

    Example:

    >>> import torch, fastdrop_torch
    >>> x = torch.full((4,), float("nan"))
    >>> with fastdrop_torch.enabled():
    ...     torch.nn.functional.dropout(x, 1.0)
    tensor([0., 0., 0., 0.])
    """
    before = LIBRARY.fastdrop_switch_here(1 if value else -1)
    try:
        yield
    finally:
        LIBRARY.fastdrop_switch_here(before)
