"""Times several candidates in turns, so that a drifting machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Return the seconds per call of each candidate, one figure a round, `calls` calls a figure.

    Every candidate runs once before the clock starts. The order turns by one each round, so
    that none always runs after the same neighbour and finds the caches as that one left them.
    """
    for function in candidates.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for _ in range(rounds):
        for name, function in order:
            start = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - start) / calls)
        order.append(order.pop(0))
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each candidate's figures, the value that a stray pause cannot move."""
    return {name: statistics.median(figures) for name, figures in seconds.items()}
