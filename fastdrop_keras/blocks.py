"""Keeps the masks of a function under gradient checkpointing for its recomputations.

Gradient checkpointing calls a function in the forward pass, discards the results, and calls it
again in the backward pass. Each backend makes a `Block` of each call of a checkpointed function. In
the first run of a block, each dropout layer saves its masks. In later runs it reads them.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any


class Setting:
    """A context variable that `torch.compile` need not read while no thread has set it.

    A function that it compiled checks the list, and is compiled again if that is not empty.
    """

    def __init__(self, name: str, default: Any) -> None:
        self._variable: contextvars.ContextVar[Any] = contextvars.ContextVar(name, default=default)
        self._default = default
        # An entry for each value that is set; changing it is atomic.
        self._set: list[None] = []

    def get(self) -> Any:
        """Return the value of this context."""
        return self._variable.get() if self._set else self._default

    def set(self, value: Any) -> contextvars.Token[Any]:
        """Set the value of this context, until `reset`."""
        self._set.append(None)
        return self._variable.set(value)

    def reset(self, token: contextvars.Token[Any]) -> None:
        """Restore the value before `set`."""
        self._variable.reset(token)
        self._set.pop()


class Run:
    """One run of a block: its layers write their masks in the first run, and read them in others.

    `saved` has the masks of each layer's calls, with `None` for calls in inference.
    """

    def __init__(self, first: bool, saved: dict[Any, list[Any]]) -> None:
        self.first = first
        self._saved = saved
        self._calls: dict[Any, int] = {}

    def write(self, layer: Any, saved: Any) -> None:
        """Store what a call of `layer` saved."""
        self._saved.setdefault(layer, []).append(saved)

    def read(self, layer: Any, training: bool) -> Any:
        """Return what this call of `layer` saved in the first run."""
        number = self._calls.get(layer, 0)
        self._calls[layer] = number + 1
        saved = self._saved.get(layer, [])
        if number < len(saved):
            return saved[number]
        if training:
            raise _other_calls(len(saved), number + 1)
        return None

    def check_complete(self) -> None:
        """Raise an error if this run skipped a call of a layer that dropped in the first run."""
        for layer, saved in self._saved.items():
            number = self._calls.get(layer, 0)
            if any(one is not None for one in saved[number:]):
                raise _other_calls(len(saved), number)

    def has_dropped(self, layer: Any) -> bool:
        """Return whether `layer` dropped in the first run."""
        return any(saved is not None for saved in self._saved.get(layer, ()))


class Block:
    """One call of a checkpointed function, with the masks that layers save in its first run."""

    run_type = Run

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._saved: dict[Any, list[Any]] | None = None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, which reuses the masks of an earlier run."""
        first = self._saved is None
        saved = {} if self._saved is None else self._saved
        run = self.run_type(first, saved)
        token = runs.set((*runs.get(), run))
        try:
            results = self._function(*args, **kwargs)
        finally:
            runs.reset(token)
        if first:
            self._saved = saved
        else:
            run.check_complete()
        return results


# The runs around the current call, the innermost last. `None` is a recomputation by a function
# that makes no blocks.
runs = Setting("runs", ())


def split_runs(foreign: str) -> tuple[Any, list[Any]]:
    """Return the run from which a layer reads its mask, if any, and the runs that it writes to.

    In a recomputation by a function that makes no blocks, raise an error that tells of `foreign`.
    """
    writing: list[Any] = []
    for run in reversed(runs.get()):
        if run is None:
            raise refusal(foreign)
        if not run.first:
            return run, writing
        writing.append(run)
    return None, writing


def _other_calls(before: int, now: int) -> RuntimeError:
    return RuntimeError(
        "A function under gradient checkpointing (keras.remat, keras.RematScope, "
        "tf.recompute_grad, torch.utils.checkpoint) called a dropout layer "
        f"{before} times in the forward pass, and "
        f"{now} times in the recomputation: it would use wrong masks. The function must do the "
        "same each time that it is called, with the same layers."
    )


def refusal(where: str) -> NotImplementedError:
    """Return the error for a recomputation in which a layer cannot use its mask."""
    return NotImplementedError(
        "The recomputation cannot be given the mask of the forward pass: a dropout layer was "
        f"called in {where}, or leave the dropout layer out of the checkpointed function: for its "
        "own gradient it keeps only one bit an element."
    )
