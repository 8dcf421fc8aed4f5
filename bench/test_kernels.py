"""Compares the kernels with NumPy's own operations on the same arrays, on one thread.

Each figure is a ratio of minima over rounds in turns: the minimum is the time that the machine
needs when nothing disturbs it, and both sides of a ratio come from the same seconds.
"""

import ml_dtypes
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


def usual_recipe(x, generator, rate=RATE):
    """What one writes in NumPy: a uniform number for each element, compared, and two products."""
    keep = generator.random(x.shape, dtype=np.float32) >= np.float32(rate)
    return x * keep * np.float32(1 / (1 - rate))


class Buffered:
    """The same with memory for each step, so that none is taken from the system at each call."""

    def __init__(self, shape):
        self.uniform, self.result = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.keep = np.empty(shape, bool)

    def recipe(self, x, generator, rate=RATE):
        """The usual recipe into this memory."""
        generator.random(out=self.uniform, dtype=np.float32)
        np.greater_equal(self.uniform, np.float32(rate), out=self.keep)
        np.multiply(x, self.keep, out=self.result)
        return np.multiply(self.result, np.float32(1 / (1 - rate)), out=self.result)


def check(x, y):
    """That y is a dropout of the ones in x: within six sigma of the rate, and scaled exactly."""
    kept = y != 0
    sigma = np.sqrt(RATE * (1 - RATE) / x.size)
    assert abs(kept.mean() - (1 - RATE)) < 6 * sigma
    assert (y[kept] == y.dtype.type(1 / (1 - RATE))).all()


IN_PLACE = {  # of forward / multiply and backward / multiply, from which size on
    "avx512": ("≤ 1.0", 2**14, "≤ 1.0", 2**12),
    "avx2": ("≤ 1.4", 2**14, "≤ 1.0", 2**14),
    "portable": ("≤ 6", 2**14, None, None),
}


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
        x, y, out = (np.full(size, 0, np.float32) for _ in range(3))
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
    ratios = {
        "forward / multiply": seconds["forward"] / seconds["multiply"],
        "backward / multiply": seconds["backward"] / seconds["multiply"],
        "forward / copy": seconds["forward"] / seconds["copy"],
        "out of place / copy": seconds["out of place"] / seconds["copy"],
        "mask only / forward": seconds["mask only"] / seconds["forward"],
    }
    report.add(
        f"{isa}: time over NumPy's (float32, rate {RATE}, 1 thread)",
        label(size),
        **{name: f"{ratio:.2f}" for name, ratio in ratios.items()},
        **{
            "forward, ns an element": f"{seconds['forward'] / size * 1e9:.3f}",
            "multiply, ns": f"{seconds['multiply'] / size * 1e9:.3f}",
        },
    )
    asked = IN_PLACE.get(isa)
    if asked and size >= asked[1]:
        report.ask(
            f"{isa}: in place / multiply", asked[0], label(size), ratios["forward / multiply"]
        )
    if asked and asked[3] and size >= asked[3]:
        report.ask(
            f"{isa}: backward / multiply", asked[2], label(size), ratios["backward / multiply"]
        )
    if isa != "avx512":
        return
    if size == 2**12:
        report.ask(
            f"{isa}: in place / multiply at 2^12",
            "≤ 1.5",
            label(size),
            ratios["forward / multiply"],
        )
    if size >= 2**16:
        report.ask(f"{isa}: in place / copy", "≤ 0.7", label(size), ratios["forward / copy"])
    if size >= 2**18:
        report.ask(
            f"{isa}: out of place / copy", "≤ 1.0", label(size), ratios["out of place / copy"]
        )
    if size == 2**20:
        report.ask(
            f"{isa}: mask only / in place", "≤ 0.7", label(size), ratios["mask only / forward"]
        )


@pytest.mark.parametrize("size", SIZES, ids=label)
def test_usual_recipe(benchmark, report, size):
    """Dropout in place over NumPy's usual recipe, with NumPy's fastest generator."""
    x = np.ones(size, np.float32)
    generator = np.random.Generator(np.random.SFC64(42))
    buffered = Buffered(size)
    check(x, usual_recipe(x, generator))
    check(x, buffered.recipe(x, generator))
    stream = fastdrop.Stream(42)
    zeros = np.zeros(size, np.float32)
    seconds = minima(
        {
            "recipe": lambda: usual_recipe(x, generator),
            "buffered": lambda: buffered.recipe(x, generator),
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
            "than into buffers": f"{seconds['buffered'] / seconds['forward']:.1f}",
            "recipe, ns an element": f"{seconds['recipe'] / size * 1e9:.2f}",
        },
    )


@pytest.mark.parametrize("size", SIZES[1:], ids=label)
def test_rates(benchmark, report, size):
    """Rates whose threshold has a low half of zero, which need no tie test."""
    x = np.zeros(size, np.float32)
    stream = fastdrop.Stream(42)
    calls = {
        rate: lambda rate=rate: fastdrop.dropout_(x, rate, seed=stream)
        for rate in (RATE, 0.25, 0.5, 0.75)
    }
    seconds = minima(calls, size)
    benchmark.pedantic(calls[0.5], rounds=ROUNDS)
    for rate in (0.25, 0.5, 0.75):
        ratio = seconds[rate] / seconds[RATE]
        report.add(f"time over that of rate {RATE}", label(size), **{f"{rate}": f"{ratio:.2f}"})
        report.ask(f"rates 0.25, 0.5, 0.75 over {RATE}", "≤ 1.0", label(size), ratio)


DTYPES = {np.float64: "≤ 1.3", np.float16: "≤ 2.5", ml_dtypes.bfloat16: "≤ 2.5"}


@pytest.mark.parametrize("size", SIZES[1:], ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_dtypes(benchmark, report, dtype, size):
    """Other dtypes in place, for each byte, over NumPy's multiplication of float32."""
    name = np.dtype(dtype).name
    ones = np.ones(size, dtype)
    mask = fastdrop.dropout_(ones, RATE, seed=42)
    check(np.ones(size), ones)
    numbers, x = np.zeros(size, np.float32), np.zeros(size, dtype)
    stream = fastdrop.Stream(42)
    seconds = minima(
        {
            "multiply": lambda: np.multiply(numbers, SCALE, out=numbers),
            "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream),
            "backward": lambda: fastdrop.dropout_grad_(x, mask),
        },
        size,
    )
    benchmark.pedantic(fastdrop.dropout_, (x, RATE), {"seed": stream}, rounds=ROUNDS)
    per_byte = {key: value / x.itemsize for key, value in seconds.items()}
    per_byte["multiply"] = seconds["multiply"] / 4
    forward = per_byte["forward"] / per_byte["multiply"]
    backward = per_byte["backward"] / per_byte["multiply"]
    report.add(
        "time a byte over that of NumPy's float32 multiply",
        label(size),
        **{name: f"{forward:.2f}", f"{name}, backward": f"{backward:.2f}"},
    )
    report.ask(
        f"{name} in place, a byte, over float32's multiply", DTYPES[dtype], label(size), forward
    )


NOISE_SHAPES = [
    ((256, 128, 128), (None, 1, None)),
    ((64, 4096, 16), (None, 1, None)),
    ((256, 128, 128), (None, None, 1)),
    ((64, 4096, 16), (None, None, 1)),
    ((256, 128, 128), (1, None, None)),
    ((16, 64, 64, 64), (None, 1, 1, None)),
    ((64, 128, 512), (None, 1, 1)),
]


@pytest.mark.parametrize(("shape", "noise_shape"), NOISE_SHAPES, ids=str)
def test_noise_shapes(benchmark, report, shape, noise_shape):
    """Shared decisions over those of each element's own, on 2^22 elements."""
    x = np.zeros(shape, np.float32)
    assert x.size == 2**22
    stream = fastdrop.Stream(42)
    seconds = minima(
        {
            "own": lambda: fastdrop.dropout_(x, RATE, seed=stream),
            "shared": lambda: fastdrop.dropout_(x, RATE, seed=stream, noise_shape=noise_shape),
        },
        x.size,
    )
    benchmark.pedantic(
        fastdrop.dropout_, (x, RATE), {"seed": stream, "noise_shape": noise_shape}, rounds=ROUNDS
    )
    ratio = seconds["shared"] / seconds["own"]
    report.add(
        "noise shapes over none, 2^22 elements", f"{noise_shape} of {shape}", ratio=f"{ratio:.2f}"
    )
    report.ask("noise shapes over none", "≤ 1.2", f"{noise_shape} of {shape}", ratio)


VIEWS = {
    "Fortran, (2048, 2048)": lambda: np.zeros((2048, 2048), np.float32, order="F"),
    "Fortran, (512, 512)": lambda: np.zeros((512, 512), np.float32, order="F"),
    "Fortran, (128, 128, 128)": lambda: np.zeros((128, 128, 128), np.float32, order="F"),
    "Fortran, (4096, 2048)": lambda: np.zeros((4096, 2048), np.float32, order="F"),
    "transpose(0, 2, 1)": lambda: np.zeros((64, 128, 512), np.float32).transpose(0, 2, 1),
    "[::2]": lambda: np.zeros(2**21, np.float32)[::2],
    "[::2], float64": lambda: np.zeros(2**21)[::2],
    "[:, ::2]": lambda: np.zeros((2048, 1024), np.float32)[:, ::2],
    "[:, :1000]": lambda: np.zeros((2048, 1024), np.float32)[:, :1000],
    "[:, :3]": lambda: np.zeros((2**17, 16), np.float32)[:, :3],
    "[:, 0]": lambda: np.zeros((2**17, 16), np.float32)[:, 0],
    "[::-1]": lambda: np.zeros(2**20, np.float32)[::-1],
    "Fortran [::2, ::2]": lambda: np.zeros((2048, 2048), np.float32, order="F")[::2, ::2],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(benchmark, report, view):
    """Strides and orders, over NumPy's multiplication of the same view."""
    x = VIEWS[view]()
    mask = fastdrop.draw_mask(x.shape, RATE, seed=42)
    stream = fastdrop.Stream(42)
    scale = x.dtype.type(SCALE)
    seconds = minima(
        {
            "multiply": lambda: np.multiply(x, scale, out=x),
            "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream),
            "backward": lambda: fastdrop.dropout_grad_(x, mask),
        },
        x.size,
    )
    benchmark.pedantic(fastdrop.dropout_, (x, RATE), {"seed": stream}, rounds=ROUNDS)
    forward = seconds["forward"] / seconds["multiply"]
    backward = seconds["backward"] / seconds["multiply"]
    report.add(
        "views over numpy.multiply on the same view",
        view,
        **{
            "forward": f"{forward:.2f}",
            "backward": f"{backward:.2f}",
            "multiply, ns": f"{seconds['multiply'] / x.size * 1e9:.3f}",
        },
    )
    report.ask("views over the same view's multiply", "≤ 2", view, forward)


WIDTH = 1024


@pytest.mark.parametrize("size", SIZES[4:], ids=label)
def test_fused(benchmark, report, size):
    """ReLU, bias and residual with dropout, over NumPy's time for the same traffic of memory, and
    NumPy's operations one by one; all of it into memory that is there."""
    shape = (size // WIDTH, WIDTH)
    generator = np.random.Generator(np.random.SFC64(42))
    # Written, since memory that never was is one page of zeros, however large.
    x, residual, y = (generator.random(shape, np.float32) - np.float32(0.5) for _ in range(3))
    bias = np.ones(WIDTH, np.float32)
    stream = fastdrop.Stream(42)
    ones, _ = fastdrop.relu_dropout(np.ones(shape, np.float32), RATE, seed=42)
    check(np.ones(size), ones.ravel())
    _, mask = fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=42)
    kept = mask.unpack()

    buffered = Buffered(shape)
    sums = np.empty(WIDTH, np.float32)

    def relu_in_numpy():
        np.maximum(x, 0, out=y)
        buffered.recipe(y, generator)

    def bias_in_numpy():
        np.add(x, bias, out=y)
        np.add(residual, buffered.recipe(y, generator), out=y)

    def gradient_in_numpy():
        np.multiply(x, kept, out=y)
        np.multiply(y, SCALE, out=y)
        np.sum(y, axis=0, out=sums)

    seconds = minima(
        {
            "copy": lambda: np.copyto(y, x),
            "add": lambda: np.add(x, residual, out=y),
            "relu": lambda: fastdrop.relu_dropout(x, RATE, seed=stream, out=y),
            "relu in NumPy": relu_in_numpy,
            "bias": lambda: fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=stream, out=y),
            "bias in NumPy": bias_in_numpy,
            "gradient": lambda: fastdrop.bias_dropout_add_grad(x, mask, out=y),
            "gradient in NumPy": gradient_in_numpy,
        },
        size,
    )
    benchmark.pedantic(
        fastdrop.bias_dropout_add, (x, bias, residual, RATE), {"seed": stream}, rounds=ROUNDS
    )
    traffic = {"relu": "copy", "bias": "add", "gradient": "copy"}
    names = {
        "relu": "relu_dropout",
        "bias": "bias_dropout_add",
        "gradient": "bias_dropout_add_grad",
    }
    for name, peer in traffic.items():
        over_traffic = seconds[name] / seconds[peer]
        times = seconds[f"{name} in NumPy"] / seconds[name]
        report.add(
            "fused (float32, out=): time over NumPy's traffic, and times as fast as its operations",
            label(size),
            **{f"{names[name]} / {peer}": f"{over_traffic:.2f}", f"{name}, times": f"{times:.1f}"},
        )
        if size >= 2**20:
            report.ask(f"{names[name]} over its traffic", "≤ 1.2", label(size), over_traffic)
            report.ask(f"{names[name]}, times as fast as NumPy's", "≥ 2.5", label(size), times)


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
    times = seconds["one"] / seconds["all"]
    report.add(
        "more threads (dropout_, float32)",
        label(size),
        **{f"{threads} threads, times as fast": f"{times:.2f}"},
    )
    if threads == 2 and 2**18 <= size <= 2**22:
        report.ask("2 threads, times as fast as 1", "≥ 1.6", label(size), times)


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
    ratio = seconds["forward"] / seconds["multiply"]
    report.add("a call on 16 elements over numpy.multiply", "dropout_", ratio=f"{ratio:.2f}")
    report.ask("a call on 16 elements over multiply", "≤ 4", "16", ratio)
