"""Reads stored runs, pytest-benchmark's JSON with our figures in it, and compares two."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, list[float]]

# What two runs are compared by: it is there on every machine, and none of it is ours.
REFERENCES = ("numpy.multiply", "NumPy's operations", "keras.layers.Dropout")


@dataclass(frozen=True)
class Case:
    """One benchmark: the figures of ours, of its peers and of its limits, one a round."""

    table: str
    group: str
    row: str
    each: int
    ours: Figures
    peers: Figures
    limits: Figures

    @property
    def label(self) -> str:
        """Where it stands in the report."""
        return " · ".join(part for part in (self.table, self.group, self.row) if part)

    @property
    def first(self) -> str:
        """The name of ours that all others are compared with."""
        return next(iter(self.ours))

    @property
    def figures(self) -> Figures:
        """The figures of all."""
        return self.ours | self.peers | self.limits

    def ratio(self, over: str, under: str) -> list[float]:
        """One candidate over another in each round, where both saw the same machine."""
        figures = self.figures
        return [a / b for a, b in zip(figures[over], figures[under], strict=True)]


@dataclass(frozen=True)
class Run:
    """A stored run: its cases in the order in which they ran, and what they ran on."""

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
    """A file that `python -m bench run` has not written."""


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
            f"{path} is no run of `python -m bench run`: {type(error).__name__}: {error}"
        ) from error


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


@dataclass(frozen=True)
class Change:
    """How a case of a new run stands to the same of an old run: over 1 is slower, or more."""

    case: str
    reference: str
    factor: float
    beyond_noise: bool

    def verdict(self, threshold: float) -> str:
        """`slower`, `faster` or nothing."""
        if self.beyond_noise and self.factor > 1 + threshold:
            return "slower"
        if self.beyond_noise and self.factor < 1 / (1 + threshold):
            return "faster"
        return ""


def change(old: Case, new: Case) -> Change:
    """Compare ours over a reference that ran in the same rounds.

    Times of two runs also differ by what else the machine did.
    """
    reference = next(name for name in REFERENCES if name in new.figures)
    before, after = (quartiles(case.ratio(case.first, reference)) for case in (old, new))
    return Change(
        case=new.label,
        reference=reference,
        factor=after[1] / before[1],
        beyond_noise=after[0] > before[2] or after[2] < before[0],
    )


def changes(old: Run, new: Run) -> list[Change]:
    """Return the changes of the cases that both runs have, the worst first."""
    before = {case.label: case for case in old.cases}
    both = [change(before[case.label], case) for case in new.cases if case.label in before]
    return sorted(both, key=lambda change: -change.factor)
