"""Times several candidates in turns, so that a drifting machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A figure is the mean of as many calls as take this long: the clock's own cost vanishes in it.
FIGURE_SECONDS = 1e-3
MOST_CALLS = 2000


@dataclass(frozen=True)
class Candidate:
    """What is timed, and what has to be done before each of its turns, off the clock.

    `call` may return the seconds that it took as a float, where only a part of it is to count.
    """

    call: Callable[[], object]
    before: Callable[[], object] | None = None


class Turns:
    """The candidates of one benchmark, warmed up, with the seconds of each call in each turn."""

    def __init__(self, candidates: Mapping[str, Callable[[], object] | Candidate]) -> None:
        self.candidates = {
            name: candidate if isinstance(candidate, Candidate) else Candidate(candidate)
            for name, candidate in candidates.items()
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in self.candidates}
        self.calls = dict.fromkeys(self.candidates, 1)
        self.round_seconds = 0.0
        for name in self.candidates:
            # The first call traces, compiles and fills pools; the second is what is to come.
            self.turn(name)
            start = time.perf_counter()
            self.turn(name)
            took = time.perf_counter() - start
            self.calls[name] = min(MOST_CALLS, math.ceil(FIGURE_SECONDS / took))
            self.round_seconds += took * self.calls[name]

    def rounds(self, seconds: float, fewest: int, most: int) -> int:
        """How many rounds fit into this time, within bounds."""
        return max(fewest, min(most, int(seconds / self.round_seconds)))

    def turn(self, name: str) -> float:
        """Return the mean seconds of the calls of one turn."""
        candidate, calls = self.candidates[name], self.calls[name]
        if candidate.before is not None:
            candidate.before()
        call, figures = candidate.call, 0.0
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
            if isinstance(result, float):
                figures += result
        took = time.perf_counter() - start
        return (figures or took) / calls

    def round(self) -> None:
        """One turn for each. Where the round begins moves on by one each time, so that none always
        runs after the same neighbour and finds the caches as that one left them."""
        names = list(self.candidates)
        first = len(self.seconds[names[0]]) % len(names)
        for name in names[first:] + names[:first]:
            self.seconds[name].append(self.turn(name))


def part(call: Callable[[], object], parts: int) -> Callable[[], float]:
    """A call of several equal parts, whose time is that of one of them."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) / parts

    return timed


def difference(
    long: Callable[[], object], short: Callable[[], object], parts: int
) -> Callable[[], float]:
    """What each of the parts costs that one call has more than the other."""
    of_long, of_short = part(long, 1), part(short, 1)
    return lambda: (of_long() - of_short()) / parts
