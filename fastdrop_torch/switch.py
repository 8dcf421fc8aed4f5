"""Switches PyTorch's own dropout functions to the kernels of this package, and back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.compiler.config

from fastdrop_torch.library import LIBRARY

# Marks what `torch.compile` stores on disk while the switch is on: PyTorch's key does not see it.
_TAG = ",fastdrop_torch"


@functools.cache
def _forget_kernels() -> None:
    """Let traces look up PyTorch's dropout functions again, after the switch was registered.

    PyTorch remembers in Python which kernel each operation has.
    """
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        for operation in (name, f"{name}_"):
            getattr(torch.ops.aten, operation).default._dispatch_cache.clear()


def _marked(tag: str, on: bool) -> str:
    return tag.replace(_TAG, "") + (_TAG if on else "")


def _mark_compiled(on: bool) -> None:
    config = torch.compiler.config
    config.cache_key_tag = _marked(config.cache_key_tag, on)


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
    _forget_kernels()
    _mark_compiled(True)


def disable() -> None:
    """End `enable`.

    Example:

    >>> import fastdrop_torch
    >>> fastdrop_torch.disable()
    """
    LIBRARY.fastdrop_switch_everywhere(0)
    _mark_compiled(False)


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
    config = torch.compiler.config
    before, tag = LIBRARY.fastdrop_switch_here(1 if value else -1), config.cache_key_tag
    _forget_kernels()
    _mark_compiled(value)
    try:
        yield
    finally:
        config.cache_key_tag = tag
        LIBRARY.fastdrop_switch_here(before)
