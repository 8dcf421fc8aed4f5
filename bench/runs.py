"""Reads runs that pytest-benchmark stored as JSON, and compares two runs."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, list[float]]

# Two runs are compared relative to the first of these in a case: they are on every machine.
REFERENCES = (
    *("numpy.multiply", "NumPy's operations", "keras.layers.Dropout"),
    *("torch dropout", "torch.nn.Dropout"),
    *("Flax's dropout", "flax.nnx.Dropout"),
)


@dataclass(frozen=True)
class Case:
    """One benchmark: the figures of fastdrop, its peers and its limits, one for each round."""

    table: str
    group: str
    row: str
    each: int
    ours: Figures
    peers: Figures
    limits: Figures

    @property
    def label(self) -> str:
        """The case's place in the report."""
        return " · ".join(part for part in (self.table, self.group, self.row) if part)

    @property
    def first(self) -> str:
        """The candidate of `ours` that the ratios are relative to."""
        return next(iter(self.ours))

    @property
    def figures(self) -> Figures:
        """The figures of all candidates."""
        return self.ours | self.peers | self.limits

    def ratio(self, over: str, under: str) -> list[float]:
        """The ratio of two candidates in each round, in which the machine had the same load."""
        figures = self.figures
        return [a / b for a, b in zip(figures[over], figures[under], strict=True)]


@dataclass(frozen=True)
class Run:
    """A stored run: its cases in their order, the date, the commit and the machine."""

    cases: list[Case]
    date: str
    commit: str
    machine: dict[str, str]

    def of(self, table: str) -> dict[str, list[Case]]:
        """Return the cases of a table by their groups."""
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            if case.table == table:
                groups.setdefault(case.group, []).append(case)
        return groups


class NotARunError(ValueError):
    """A file was not written by `python -m bench run`."""


def load(path: Path) -> Run:
    """Read a run, or raise NotARunError."""
    try:
        stored = json.loads(path.read_text())
        commit = stored["commit_info"]
        return Run(
            cases=[Case(**benchmark["extra_info"]) for benchmark in stored["benchmarks"]],
            date=stored["datetime"][:10],
            commit=(commit.get("id") or "unknown")[:10]
            + (", with changes" if commit.get("dirty") else ""),
            machine=stored["machine_info"]["fastdrop"],
        )
    except OSError as error:
        raise NotARunError(f"{path} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotARunError(
            f"{path} was not written by `python -m bench run`: {type(error).__name__}: {error}"
        ) from error


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


@dataclass(frozen=True)
class Change:
    """Compares a case in two runs. A `factor` above 1 means slower, or more memory."""

    case: str
    reference: str
    factor: float
    beyond_noise: bool

    def verdict(self, threshold: float) -> str:
        """Return `slower`, `faster` or an empty string."""
        if self.beyond_noise and self.factor > 1 + threshold:
            return "slower"
        if self.beyond_noise and self.factor < 1 / (1 + threshold):
            return "faster"
        return ""


def change(old: Case, new: Case) -> Change:
    """Compare two runs of a case, each relative to a reference that ran in the same rounds.

    Times themselves also depend on the machine's other load.
    """
    # Where none of them ran, a peer or a limit of the case.
    names = [*REFERENCES, *new.peers, *new.limits]
    reference = next(name for name in names if name in new.figures)
    before, after = (quartiles(case.ratio(case.first, reference)) for case in (old, new))
    return Change(
        case=new.label,
        reference=reference,
        factor=after[1] / before[1],
        beyond_noise=after[0] > before[2] or after[2] < before[0],
    )


def changes(old: Run, new: Run) -> list[Change]:
    """Return the changes of the cases in both runs, the worst first."""
    before = {case.label: case for case in old.cases}
    both = [change(before[case.label], case) for case in new.cases if case.label in before]
    return sorted(both, key=lambda change: -change.factor)
