"""Reads what a run has saved: pytest-benchmark's JSON, with our figures in it."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One benchmark: the figures of each candidate, one a turn, seconds unless they are values."""

    name: str
    table: str
    group: str
    row: str
    elements: int | None
    figures: dict[str, list[float]]
    ratios: dict[str, tuple[str, str]]
    timed: bool

    @property
    def ours(self) -> str:
        """The candidate that is ours: the first."""
        return next(iter(self.figures))

    @property
    def reference(self) -> str:
        """What ran beside it and is not ours: the last."""
        return list(self.figures)[-1]

    @property
    def label(self) -> str:
        """Where it stands in the report."""
        return " · ".join(part for part in (self.table, self.group, self.row) if part)

    def ratio(self, heading: str) -> list[float]:
        """Return the ratio of that heading in each turn: both sides come from the same second."""
        over, under = self.ratios[heading]
        return [
            a / b for a, b in zip(self.figures[over], self.figures[under], strict=True) if b != 0
        ]

    def faster_than_ours(self) -> dict[str, list[float]]:
        """The time of ours over that of each peer that takes less, by the peer's name.

        Peers are what a ratio "faster than ..." names: limits are not, nor is ours in another way.
        """
        peers = [
            over for heading, (over, _) in self.ratios.items() if heading.startswith("faster than")
        ]
        ours = self.figures[self.ours]
        ratios = {
            name: [a / b for a, b in zip(ours, self.figures[name], strict=True) if b > 0]
            for name in peers
            if not name.startswith("fastdrop")
        }
        return {
            name: ratio for name, ratio in ratios.items() if ratio and statistics.median(ratio) > 1
        }


@dataclass(frozen=True)
class Run:
    """A saved run: its cases, in the order in which they ran, its date and its machine."""

    cases: list[Case]
    date: str
    machine: dict[str, str]
    commit: str

    def of(self, table: str) -> dict[str, list[Case]]:
        """Return the cases of a table by their groups."""
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            if case.table == table:
                groups.setdefault(case.group, []).append(case)
        return groups


class NotARunError(ValueError):
    """A file that no benchmark run of ours has written."""


def load(path: Path) -> Run:
    """Read a run.

    Raises
    ------
    NotARunError
        If the file is not the JSON that ``python -m bench run`` writes.
    """
    try:
        saved = json.loads(path.read_text())
        cases = [_case(benchmark) for benchmark in saved["benchmarks"]]
        return Run(
            cases=cases,
            date=saved["datetime"][:10],
            machine=saved["machine_info"]["fastdrop"],
            commit=_commit(saved.get("commit_info") or {}),
        )
    except OSError as error:
        raise NotARunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotARunError(
            f"{path} is no run of `python -m bench run`: {type(error).__name__}: {error}"
        ) from error


def _case(benchmark: dict[str, Any]) -> Case:
    info = benchmark["extra_info"]
    return Case(
        name=benchmark["fullname"],
        table=info["table"],
        group=info["group"],
        row=info["row"],
        elements=info["elements"],
        figures=info["seconds"] if "seconds" in info else info["values"],
        ratios={heading: (over, under) for heading, (over, under) in info["ratios"].items()},
        timed="seconds" in info,
    )


def _commit(info: dict[str, Any]) -> str:
    name = (info.get("id") or "unknown")[:10]
    return f"{name}, with changes" if info.get("dirty") else name
