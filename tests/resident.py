"""Measures the memory, descriptors and threads that calls leak in a process."""

import json
import math
from typing import NamedTuple

SAMPLES = 60

# The start of a program that calls `sample(step, calls)` once.
SAMPLER = f"""
import gc, json, os, resource

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()

def kept():
    return [len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]

def sample(step, calls):
    for _ in range(calls // 4):
        step()
    gc.collect()
    gc.disable()  # cyclic garbage is a leak too
    before, rows, each = kept(), [], calls // {SAMPLES}
    for n in range({SAMPLES}):
        for _ in range(each):
            step()
        rows.append([(n + 1) * each, resident()])
    print(json.dumps({{"rows": rows, "before": before, "after": kept()}}))
"""


class Slope(NamedTuple):
    """The bytes that a call leaks, with a 95 % confidence interval."""

    value: float
    low: float
    high: float


def slope(rows: list[list[int]]) -> Slope:
    """The least-squares slope through (calls, resident bytes)."""
    n = len(rows)
    x_mean, y_mean = (sum(row[i] for row in rows) / n for i in (0, 1))
    spread = sum((x - x_mean) ** 2 for x, _ in rows)
    value = sum((x - x_mean) * (y - y_mean) for x, y in rows) / spread
    rest = sum((y - y_mean - value * (x - x_mean)) ** 2 for x, y in rows)
    half = 2.0 * math.sqrt(rest / (n - 2) / spread)  # Student's t for 58 degrees of freedom
    return Slope(value, value - half, value + half)


def assert_flat(printed: str, most: float) -> None:
    """Fail unless the slope is below `most` bytes per call, and nothing else leaked."""
    told = json.loads(printed.strip().splitlines()[-1])
    found = slope(told["rows"])
    print(f"{found.value:.4f} bytes a call, 95 % interval [{found.low:.4f}, {found.high:.4f}]")
    assert found.high < most, found
    assert told["after"] == told["before"], "descriptors, threads"
