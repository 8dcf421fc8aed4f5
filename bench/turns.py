"""Times several calls in turns, so that a change of the machine's load affects all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A figure is the mean over calls that take this long together, so the clock's cost is negligible.
FIGURE_SECONDS = 1e-3
MOST_CALLS = 2000


@dataclass(frozen=True)
class Prepared:
    """A call, and a call that runs before each of its turns and is not timed."""

    call: Callable[[], object]
    before: Callable[[], object]


Candidate = Callable[[], object] | Prepared


class Turns:
    """The candidates of one benchmark after a warm-up, and the figures of each round.

    A figure is the seconds of one call. If a call returns a float, the float is the figure, in
    seconds or any other unit.
    """

    def __init__(self, candidates: Mapping[str, Candidate]) -> None:
        self.candidates = {
            name: candidate
            if isinstance(candidate, Prepared)
            else Prepared(candidate, before=lambda: None)
            for name, candidate in candidates.items()
        }
        self.figures: dict[str, list[float]] = {name: [] for name in self.candidates}
        self.calls = dict.fromkeys(self.candidates, 1)
        self.round_seconds = 0.0
        for name in self.candidates:
            # The first call traces, compiles and fills pools. The second call is typical.
            self.turn(name)
            start = time.perf_counter()
            self.turn(name)
            took = time.perf_counter() - start
            self.calls[name] = min(MOST_CALLS, math.ceil(FIGURE_SECONDS / took))
            self.round_seconds += took * self.calls[name]

    def rounds(self, seconds: float, fewest: int, most: int) -> int:
        """Return the number of rounds that fit into this time, within bounds."""
        return max(fewest, min(most, int(seconds / self.round_seconds)))

    def turn(self, name: str) -> float:
        """Return the figure of one turn."""
        candidate, calls = self.candidates[name], self.calls[name]
        candidate.before()
        call = candidate.call
        figures, measured_itself = 0.0, False
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
            if isinstance(result, float):
                figures += result
                measured_itself = True
        took = time.perf_counter() - start
        return (figures if measured_itself else took) / calls

    def round(self) -> None:
        """Give each candidate a turn.

        Each round starts one candidate later than the round before, since the candidate before
        leaves its data in the caches.
        """
        names = list(self.candidates)
        first = len(self.figures[names[0]]) % len(names)
        for name in names[first:] + names[:first]:
            self.figures[name].append(self.turn(name))
