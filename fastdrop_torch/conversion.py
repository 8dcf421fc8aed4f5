"""Replaces PyTorch's dropout modules in a model by the modules of this package, and back."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from fastdrop_torch.modules import CLASSES, GaussianDropout, GaussianNoise, RandomModule
from fastdrop_torch.structured import StochasticDepth

Module = TypeVar("Module", bound=nn.Module)

# Functions that drop. A module whose code names one of them may drop without a dropout module.
_DROPPING = frozenset(
    {
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        *("feature_alpha_dropout", "scaled_dot_product_attention"),
    }
)


@dataclasses.dataclass(frozen=True)
class ModuleReport:
    """Reports on one module: its path, its classes before and after, and a note.

    `after` is `None` if the module was not changed; then the note says why.

    Example:

    >>> from torch import nn
    >>> from fastdrop_torch import Dropout, ModuleReport
    >>> print(ModuleReport("block.drop", nn.Dropout, Dropout))
    block.drop: torch.nn Dropout -> fastdrop_torch Dropout
    """

    path: str
    before: type
    after: type | None
    note: str = ""

    def __str__(self) -> str:
        after = "" if self.after is None else f" -> {_name(self.after)}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.path or 'the module itself'}: {_name(self.before)}{after}{note}"


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """Lists the modules that were changed, and others that drop and were not; `print` it.

    Example:

    >>> from torch import nn
    >>> from fastdrop_torch import convert
    >>> _, report = convert(nn.Sequential(nn.Dropout()), verbose=False, return_report=True)
    >>> [one.path for one in report.changed]
    ['0']
    """

    changed: tuple[ModuleReport, ...]
    unchanged: tuple[ModuleReport, ...]

    def __str__(self) -> str:
        lines = [f"{_counted(self.changed)} changed", *(f"  {one}" for one in self.changed)]
        if self.unchanged:
            lines.append(f"{_counted(self.unchanged)} not changed")
            lines += [f"  {one}" for one in self.unchanged]
        return "\n".join(lines)


def convert(module: Module, *, verbose: bool = True, return_report: bool = False) -> Any:
    """Replace PyTorch's dropout modules in `module` by those of this package, in place.

    Each dropout module stays the same object, with its `p`, `inplace`, hooks and attributes, and
    gets another class. So all references to it stay valid, and `state_dict` does not change. The
    same holds for `torchvision.ops.StochasticDepth` and `timm.layers.DropPath`, if it scales the
    samples that it keeps: they become `StochasticDepth`.

    The report lists what stays PyTorch's: subclasses of its dropout modules, whose `forward` may
    differ; compiled TorchScript modules; and modules that drop without a dropout module, such as
    `nn.MultiheadAttention`, recurrent networks, and modules whose own code names a dropout
    function. `fastdrop_torch.enabled` reaches the last two kinds.

    Args:
        module: A `torch.nn.Module`.
        verbose: Boolean, whether to print the report.
        return_report: Boolean, whether to return the report, too.

    Returns:
        `module`, or with `return_report=True` a tuple of it and a `ConversionReport`.

    Raises:
        TypeError: If `module` is not a `torch.nn.Module`.

    Example:

    >>> from torch import nn
    >>> from fastdrop_torch import convert
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.LSTM(4, 4, 2, dropout=0.1))
    >>> model = convert(model)
    1 module changed
      1: torch.nn Dropout -> fastdrop_torch Dropout
    1 module not changed
      2: torch.nn LSTM (drops without a dropout module: use fastdrop_torch.enabled())
    """
    return _converted(module, CLASSES, verbose, return_report)


def to_torch(module: Module, *, verbose: bool = True, return_report: bool = False) -> Any:
    """Replace the modules of this package in `module` by PyTorch's: the inverse of `convert`.

    Arguments, results and errors are as for `convert`. Modules that PyTorch lacks stay, and the
    report lists them.

    Example:

    >>> from torch import nn
    >>> from fastdrop_torch import Dropout, to_torch
    >>> model = to_torch(nn.Sequential(Dropout(0.2)))
    1 module changed
      0: fastdrop_torch Dropout -> torch.nn Dropout
    """
    back = {ours: theirs for theirs, ours in CLASSES.items()}
    return _converted(module, back, verbose, return_report)


def _converted(
    module: Any, classes: Mapping[type, type], verbose: bool, return_report: bool
) -> Any:
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {module!r}")
    changed, unchanged = [], []
    for path, one in module.named_modules():
        before = type(one)
        after = classes.get(before)
        if classes is CLASSES and _has_become_stochastic_depth(one):
            after = StochasticDepth
        if after is not None:
            one.__class__ = after
            changed.append(ModuleReport(path, before, after))
        elif note := _reason_to_stay(one) if classes is CLASSES else _reason_to_stay_ours(one):
            unchanged.append(ModuleReport(path, before, None, note))
    report = ConversionReport(tuple(changed), tuple(unchanged))
    if verbose:
        print(report)
    return (module, report) if return_report else module


def _loaded(package: str, name: str) -> Any:
    return getattr(sys.modules.get(package), name, None)


def _has_become_stochastic_depth(module: Any) -> bool:
    """Give a module of torchvision or timm the attributes of `StochasticDepth`, if it does that."""
    if type(module) is _loaded("torchvision.ops", "StochasticDepth"):
        return True  # it has them
    if type(module) is not _loaded("timm.layers", "DropPath") or not module.scale_by_keep:
        return False
    module.p, module.mode = module.drop_prob or 0.0, "row"
    del module.drop_prob, module.scale_by_keep
    return True


def _reason_to_stay_ours(module: nn.Module) -> str:
    if isinstance(module, RandomModule) and isinstance(module, nn.RNNBase):
        return "drops otherwise than PyTorch's module"
    ours = (RandomModule, GaussianDropout, GaussianNoise)
    return "PyTorch has no such module" if isinstance(module, ours) else ""


def _reason_to_stay(module: nn.Module) -> str:
    """Return why a module that may drop stays, or an empty string if it does not drop."""
    if isinstance(module, (*CLASSES.values(), RandomModule)):
        return ""
    if type(module) is _loaded("timm.layers", "DropPath"):
        return "does not scale the samples that it keeps"
    if isinstance(module, tuple(CLASSES)):
        return "a subclass, whose `forward` may do something else"
    original = getattr(module, "original_name", None)
    if original in {one.__name__ for one in CLASSES}:
        return "compiled by TorchScript"
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        if not module.dropout:
            return ""
        return "drops without a dropout module: use fastdrop_torch.enabled()"
    if type(module).__module__.startswith("torch.nn."):
        return ""
    for name in _names_in(type(module)):
        if name in _DROPPING:
            return f"may drop in its own code, which names {name!r}: use fastdrop_torch.enabled()"
    return ""


def _names_in(cls: type) -> Iterator[str]:
    """Yield the names in the code of a class's methods, except for those that PyTorch defines."""
    waiting = [
        getattr(function, "__func__", function).__code__
        for base in cls.__mro__
        if not base.__module__.startswith("torch.nn.")
        for function in vars(base).values()
        if isinstance(getattr(function, "__func__", function), types.FunctionType)
        and getattr(function, "__func__", function).__name__ != "__init__"
    ]
    while waiting:
        code = waiting.pop()
        yield from code.co_names
        waiting += [one for one in code.co_consts if isinstance(one, types.CodeType)]


def _name(cls: type) -> str:
    package = cls.__module__
    package = "torch.nn" if package.startswith("torch.nn.") else package.partition(".")[0]
    return f"{package} {cls.__name__}"


def _counted(reports: tuple[ModuleReport, ...]) -> str:
    return f"{len(reports)} module" + ("" if len(reports) == 1 else "s")
