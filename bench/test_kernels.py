"""Compares the kernels with NumPy's own operations on the same arrays, on one thread.

Each figure is a ratio of minima over rounds in turns: the minimum is the time that the machine
needs when nothing disturbs it, and both sides of a ratio come from the same seconds.
"""

import numpy as np
import pytest
from interleave import interleaved

import fastdrop

RATE = 0.2
SIZES = tuple(2**exponent for exponent in range(12, 25, 2))
ROUNDS = 15
SCALE = np.float32(1 / (1 - RATE))

pytestmark = pytest.mark.usefixtures("one_thread")


def minima(candidates, size):
    """The least seconds per call of each, over rounds of at least a million elements."""
    figures = interleaved(candidates, rounds=ROUNDS, calls=max(1, 2**20 // size))
    return {name: min(seconds) for name, seconds in figures.items()}


def label(size):
    return f"2^{size.bit_length() - 1}"


def usual_recipe(x, generator):
    """What one writes in NumPy: a uniform number for each element, compared, and two products."""
    return x * (generator.random(x.shape, dtype=np.float32) >= np.float32(RATE)) * SCALE


def check(x, y):
    """That y is a dropout of the ones in x: within six sigma of the rate, and scaled exactly."""
    kept = y != 0
    sigma = np.sqrt(RATE * (1 - RATE) / x.size)
    assert abs(kept.mean() - (1 - RATE)) < 6 * sigma
    assert (y[kept] == SCALE).all()


@pytest.mark.parametrize("size", SIZES, ids=label)
@pytest.mark.parametrize("isa", fastdrop.available_isas())
def test_in_place(benchmark, report, isa, size):
    """Dropout and its gradient in place, over NumPy's in-place multiplication and its copy."""
    with fastdrop._isa.using(isa):
        ones = np.ones(size, np.float32)
        mask = fastdrop.dropout_(ones, RATE, seed=42)
        check(np.ones(size), ones)
        assert mask.nbytes * 32 == ones.nbytes

        # Zeros stay what they are however often they are scaled, and take as long as any number.
        x, y = np.zeros(size, np.float32), np.empty(size, np.float32)
        out = np.empty(size, np.float32)
        stream = fastdrop.Stream(42)
        seconds = minima(
            {
                "multiply": lambda: np.multiply(x, SCALE, out=x),
                "copy": lambda: np.copyto(y, x),
                "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream),
                "backward": lambda: fastdrop.dropout_grad_(x, mask),
                "out of place": lambda: fastdrop.dropout(x, RATE, seed=stream, out=out),
                "mask only": lambda: fastdrop.draw_mask(size, RATE, seed=stream),
            },
            size,
        )
        benchmark.extra_info.update(seconds)
        benchmark.pedantic(fastdrop.dropout_, (x, RATE), {"seed": stream}, rounds=ROUNDS)
    report.add(
        f"{isa}: time over NumPy's (float32, rate {RATE}, 1 thread)",
        label(size),
        **{
            "forward / multiply": f"{seconds['forward'] / seconds['multiply']:.2f}",
            "backward / multiply": f"{seconds['backward'] / seconds['multiply']:.2f}",
            "forward / copy": f"{seconds['forward'] / seconds['copy']:.2f}",
            "out of place / copy": f"{seconds['out of place'] / seconds['copy']:.2f}",
            "mask only / forward": f"{seconds['mask only'] / seconds['forward']:.2f}",
            "forward, ns an element": f"{seconds['forward'] / size * 1e9:.3f}",
            "multiply, ns": f"{seconds['multiply'] / size * 1e9:.3f}",
        },
    )


@pytest.mark.parametrize("size", SIZES, ids=label)
def test_usual_recipe(benchmark, report, size):
    """Dropout in place over NumPy's usual recipe, with NumPy's fastest generator."""
    x = np.ones(size, np.float32)
    generator = np.random.Generator(np.random.SFC64(42))
    check(x, usual_recipe(x, generator))
    stream = fastdrop.Stream(42)
    zeros = np.zeros(size, np.float32)
    seconds = minima(
        {
            "recipe": lambda: usual_recipe(x, generator),
            "forward": lambda: fastdrop.dropout_(zeros, RATE, seed=stream),
        },
        size,
    )
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(fastdrop.dropout_, (zeros, RATE), {"seed": stream}, rounds=ROUNDS)
    report.add(
        "NumPy's usual recipe over dropout_ (float32, 1 thread)",
        label(size),
        **{
            "times as fast": f"{seconds['recipe'] / seconds['forward']:.1f}",
            "recipe, ns an element": f"{seconds['recipe'] / size * 1e9:.2f}",
        },
    )


@pytest.mark.parametrize("size", SIZES, ids=label)
def test_threads(benchmark, report, size):
    """All threads over one."""
    x = np.zeros(size, np.float32)
    stream = fastdrop.Stream(42)
    threads = fastdrop._threads.allowed_cpus()

    def on(count):
        with fastdrop.num_threads(count):
            fastdrop.dropout_(x, RATE, seed=stream)

    seconds = minima({"one": lambda: on(1), "all": lambda: on(threads)}, size)
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(on, (threads,), rounds=ROUNDS)
    report.add(
        "more threads (dropout_, float32)",
        label(size),
        **{f"{threads} threads, times as fast": f"{seconds['one'] / seconds['all']:.2f}"},
    )


def test_small_call(benchmark, report):
    """One call on 16 elements: what the way to the kernel costs."""
    x = np.zeros(16, np.float32)
    stream = fastdrop.Stream(42)
    seconds = minima(
        {
            "multiply": lambda: np.multiply(x, SCALE, out=x),
            "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream),
        },
        64,
    )
    benchmark.extra_info.update(seconds)
    benchmark(fastdrop.dropout_, x, RATE, seed=stream)
    report.add(
        "a call on 16 elements over numpy.multiply",
        "dropout_",
        ratio=f"{seconds['forward'] / seconds['multiply']:.2f}",
    )
