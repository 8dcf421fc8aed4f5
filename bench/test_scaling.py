"""What do more threads gain, and what does an element cost as arrays grow?"""

import numpy as np
import pytest

import fastdrop
from bench.tables import power
from bench.turns import Candidate

RATE = 0.2
SIZES = tuple(2**exponent for exponent in range(6, 27, 2))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("isa", fastdrop.available_isas())
@pytest.mark.sizes(SIZES, (2**16, 2**20))
def test_threads(measure, isa, direction, size):
    """All threads over one."""
    x = np.full(size, 0, np.float32)
    mask = fastdrop.draw_mask(size, RATE, seed=42)
    stream = fastdrop.Stream(42)
    scale = np.float32(1.25)
    threads = fastdrop._threads.allowed_cpus()

    call = {
        "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream),
        "backward": lambda: fastdrop.dropout_grad_(x, mask),
    }[direction]

    def on(count):
        return Candidate(call, before=lambda: fastdrop.set_num_threads(count))

    # Both are as they were again afterwards.
    with fastdrop._isa.using(isa), fastdrop.num_threads(threads):
        measure(
            "threads",
            power(size),
            # With a single CPU these are one and the same.
            {
                f"{threads} threads": on(threads),
                "1 thread": on(1),
                "numpy.multiply": lambda: np.multiply(x, scale, out=x),
            },
            group=f"{isa}, {direction}",
            elements=size,
            ratios={
                f"{threads} threads faster than 1": ("1 thread", f"{threads} threads"),
                "1 thread x multiply": ("1 thread", "numpy.multiply"),
            },
        )
