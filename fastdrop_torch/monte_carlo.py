"""Estimates a model's uncertainty by predictions with dropout (Monte Carlo dropout)."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.hub import tqdm  # type: ignore[attr-defined]
from torch.nn.modules.dropout import _DropoutNd

from fastdrop_torch.modules import RandomModule

# Modules that drop in training and do nothing else then. In inference, transformer layers may run
# one fused operation, which does not drop.
_DROPPING = (
    _DropoutNd,
    RandomModule,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def mc_predict(
    module: nn.Module,
    x: Any,
    n: int = 100,
    *,
    seed: int | None = None,
    batch_size: int | None = None,
    verbose: bool = True,
) -> tuple[Any, Any]:
    """Predict with dropout `n` times, and return the mean and the standard deviation.

    Dropout modules, those of PyTorch too, drop as in training, and so do attention, recurrent and
    transformer modules of `torch.nn`, and all random modules of this package but `GaussianNoise`,
    as in `fastdrop_keras`. All other modules are in evaluation mode: batch normalization
    uses its running averages. The deviation measures the model's uncertainty.

    The passes run without gradients, and both moments are updated in float64, so memory does not
    grow with `n`. The modes of the modules are restored; during the call no other thread may use
    the model.

    Args:
        module: A `torch.nn.Module` with dropout modules.
        x: Tensor; or a tuple or list of positional arguments, or a dict of keyword arguments, for
            `module`. With `batch_size`, tensors are split along their first axis, and the outputs
            are joined along theirs: it must have the samples, as the last states of a recurrent
            module do not.
        n: Positive integer, the number of passes.
        seed: Integer for `torch.manual_seed`, from -2**63 to 2**64 - 1, that fixes the masks, or
            `None`. With a seed, the state of PyTorch's generator does not change.
        batch_size: Positive integer, or `None` to predict all at once.
        verbose: Boolean, whether to show a progress bar on the standard error stream: tqdm's if
            tqdm is installed, else a percentage.

    Returns:
        A tuple `(mean, standard deviation)`, each with the structure of the module's output and
        float64 tensors. The deviation is the population's: for `n=1` it is 0.

    Raises:
        TypeError: If an argument or an output has the wrong type.
        ValueError: If `n` or `batch_size` is not positive, `seed` is out of range, the module has
            no dropout module, or the length of an output is no multiple of its batch's.

    Reference:

    - [Gal and Ghahramani, 2016](https://proceedings.mlr.press/v48/gal16.html)

    Example:

    >>> import torch
    >>> from fastdrop_torch import Dropout, mc_predict
    >>> model = torch.nn.Sequential(Dropout(0.5), torch.nn.Linear(1000, 1, bias=False))
    >>> _ = torch.nn.init.ones_(model[1].weight)
    >>> mean, deviation = mc_predict(model, torch.ones(2, 1000), n=200, seed=1, verbose=False)
    >>> mean.shape, deviation.shape
    (torch.Size([2, 1]), torch.Size([2, 1]))
    >>> bool((mean - 1000).abs().max() < 10), bool((deviation - 1000**0.5).abs().max() < 5)
    (True, True)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {module!r}")
    n = _positive(n, "n")
    if seed is not None:
        wanted = "an integer from -2**63 to 2**64 - 1"
        seed = _integer(seed, "seed", wanted, -(2**63), 2**64 - 1)
    if not any(isinstance(one, _DROPPING) for one in module.modules()):
        raise ValueError(f"`module` must have a dropout module, got {type(module).__name__}")
    batches = _batches(x, None if batch_size is None else _positive(batch_size, "batch_size"))
    progress = tqdm(total=len(batches) * n, disable=not verbose, unit="pass")
    with _dropping(module), torch.no_grad(), _seeded(seed), progress:
        moments = [
            _moments(module, args, kwargs, size, n, lambda: progress.update(1))
            for args, kwargs, size in batches
        ]
    means, deviations = zip(*moments, strict=True)
    return _map(_joined, *means), _map(_joined, *deviations)


def _positive(value: Any, name: str) -> int:
    return _integer(value, name, "a positive integer", 1)


def _integer(value: Any, name: str, wanted: str, least: int, most: float = math.inf) -> int:
    """Return an argument as an integer, or raise an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be {wanted}, got {value!r}") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}")
    return number


@contextlib.contextmanager
def _dropping(module: nn.Module) -> Iterator[None]:
    """Set the modes of all modules, and restore them."""
    modes = [(one, one.training) for one in module.modules()]
    try:
        for one, _ in modes:
            one.training = isinstance(one, _DROPPING)
        yield
    finally:
        for one, training in modes:
            one.training = training


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


Call = tuple[list[Any], dict[str, Any], "int | None"]


def _batches(x: Any, batch_size: int | None) -> list[Call]:
    """Return the arguments of each batch, and its size if there are several."""
    args = [] if isinstance(x, Mapping) else list(x) if isinstance(x, (tuple, list)) else [x]
    kwargs = dict(x) if isinstance(x, Mapping) else {}
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise TypeError(f"`x` must be a tensor, or a tuple, list or dict with tensors, got {x!r}")
    if batch_size is None:
        return [(args, kwargs, None)]
    sizes = {value.shape[0] if value.dim() else None for value in tensors}
    size = sizes.pop()
    if sizes or not size:
        raise ValueError("`x` must have tensors of one length, above 0, along their first axis")

    def part(value: Any, begin: int) -> Any:
        return value[begin : begin + batch_size] if isinstance(value, Tensor) else value

    return [
        (
            [part(one, i) for one in args],
            {name: part(one, i) for name, one in kwargs.items()},
            min(batch_size, size - i) if size > batch_size else None,
        )
        for i in range(0, size, batch_size)
    ]


def _moments(
    module: nn.Module,
    args: list[Any],
    kwargs: dict[str, Any],
    size: int | None,
    n: int,
    after_pass: Callable[[], Any],
) -> tuple[Any, Any]:
    """Return the mean and the deviation of `n` outputs, by Welford's algorithm."""
    mean = squares = None
    for count in range(1, n + 1):
        # A module may drop in place.
        own, named = map(_copied, args), {name: _copied(value) for name, value in kwargs.items()}
        output = _map(lambda y: _checked_output(y, size).double(), module(*own, **named))
        after_pass()
        if mean is None:
            mean, squares = output, _map(torch.zeros_like, output)
            continue
        change = _map(torch.sub, output, mean)
        mean = _map(lambda m, d, count=count: m + d / count, mean, change)
        squares = _map(lambda s, d, y, m: s + d * (y - m), squares, change, output, mean)
    return mean, _map(lambda s: (s / n).sqrt(), squares)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _checked_output(y: Tensor, size: int | None) -> Tensor:
    """Refuse an output whose first axis cannot be the samples of one of several batches."""
    if size is not None and (y.dim() == 0 or y.shape[0] % size):
        raise ValueError(
            "With `batch_size`, outputs must have the batch as their first axis, here of a "
            f"multiple of {size} entries, got shape {list(y.shape)}"
        )
    return y


def _joined(*parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _map(function: Callable[..., Tensor], *outputs: Any) -> Any:
    """Call the function on the tensors of tuples, lists and dicts that have one structure."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(*outputs)
    if isinstance(first, Mapping):
        return {key: _map(function, *(one[key] for one in outputs)) for key in first}
    if isinstance(first, (tuple, list)):
        values = [_map(function, *parts) for parts in zip(*outputs, strict=True)]
        kind: Any = type(first)
        return kind(*values) if hasattr(first, "_fields") else kind(values)  # a namedtuple's
    raise TypeError(
        f"The module's output must be a tensor, or a tuple, list or dict of tensors, got {first!r}"
    )
