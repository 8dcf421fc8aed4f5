"""Holds two saved runs against each other: what became slower, beyond noise and a threshold.

Times of two runs differ by what else the machine did. So each case is measured by a peer or a limit
that ran in the same rounds, where it has one: what changed is ours over that peer.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.plots import quartiles
from bench.results import Case, Run


@dataclass(frozen=True)
class Change:
    """How one case of the new run stands to the old one: over 1 is slower, or more."""

    case: str
    over: str
    factor: float
    beyond_noise: bool

    def verdict(self, threshold: float) -> str:
        """`slower`, `faster` or nothing."""
        if not self.beyond_noise:
            return ""
        if self.factor > 1 + threshold:
            return "slower"
        return "faster" if self.factor < 1 / (1 + threshold) else ""


def relative(case: Case) -> list[float]:
    """Ours over the reference in each round; the figures themselves if they are no times."""
    ours = case.figures[case.ours]
    if not case.timed:
        return ours
    return [a / b for a, b in zip(ours, case.figures[case.reference], strict=True)]


def changes(old: Run, new: Run) -> tuple[list[Change], list[str]]:
    """Return the changes of the cases that both runs have, and what only one of them has."""
    before = {case.label: case for case in old.cases}
    after = {case.label: case for case in new.cases}
    found = []
    for label, case in after.items():
        if label not in before:
            continue
        earlier, later = relative(before[label]), relative(case)
        low_before, _, high_before = quartiles(earlier)
        low_after, _, high_after = quartiles(later)
        found.append(
            Change(
                case=label,
                over=case.reference if case.timed else "",
                factor=statistics.median(later) / statistics.median(earlier),
                beyond_noise=low_after > high_before or high_after < low_before,
            )
        )
    found.sort(key=lambda change: -change.factor)
    alone = [f"only in the old run: {case}" for case in before if case not in after]
    alone += [f"only in the new run: {case}" for case in after if case not in before]
    return found, alone
