"""How fast is dropout on NumPy arrays, compared with the peers and with memory? On one thread."""

import ml_dtypes
import numpy as np
import pytest

import fastdrop
from bench.peers import OURS, PEERS, check_dropout, check_peer
from bench.turns import Prepared

# Version 2 of the random stream draws rates such as 0.5 from fewer bits than others.
RATES = (0.5, 0.2)
RATE = 0.2
# A check takes ten passes, so it uses at most this many elements.
CHECKED = 2**20


@pytest.fixture(autouse=True)
def one_thread():
    with fastdrop.num_threads(1):
        yield


def zeros(shape, dtype=np.float32):
    """An array of zeros, which scaling does not change.

    `np.full` writes them. Memory that was never written is one page of zeros, whatever its size.
    """
    return np.full(shape, 0, dtype)


def multiply(x):
    """NumPy's multiplication in place: the limit for a call that changes each element of x."""
    scale = x.dtype.type(1.25)
    return lambda: np.multiply(x, scale, out=x)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.exponents(range(4, 25, 2), quick=(10, 16, 20))
def test_forward(measure, exponent, rate):
    """fastdrop, every installed peer, and the limits."""
    measure_peers(measure, exponent, rate, "forward")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.exponents(range(8, 25, 4), quick=(16,))
def test_training(measure, exponent, rate):
    """The same, forward and backward."""
    measure_peers(measure, exponent, rate, "forward and backward")


def measure_peers(measure, exponent, rate, direction):
    size = 2**exponent

    def calls(makers):
        made = {}
        for name, make in makers.items():
            try:
                check_peer(name, make, min(size, CHECKED), rate)
            except ImportError:
                continue  # the report's list of versions shows what is not installed
            peer = make(size, rate)
            made[name] = peer.forward if direction == "forward" else peer.training
        return {name: call for name, call in made.items() if call is not None}

    x, y = zeros(size), zeros(size)
    measure(
        "arrays",
        f"2^{exponent}",
        group=f"{direction}, rate {rate}",
        ours=calls(OURS),
        peers=calls(PEERS),
        limits={"numpy.multiply": multiply(x), "numpy.copyto": lambda: np.copyto(y, x)},
        each=size,
    )


KERNELS = {
    f"in place, rate {RATES[0]}": lambda a: fastdrop.dropout_(a.x, RATES[0], seed=a.stream),
    f"in place, rate {RATES[1]}": lambda a: fastdrop.dropout_(a.x, RATES[1], seed=a.stream),
    "out of place": lambda a: fastdrop.dropout(a.x, RATE, seed=a.stream, out=a.y),
    "backward": lambda a: fastdrop.dropout_grad_(a.x, a.mask),
    "mask only": lambda a: fastdrop.draw_mask(a.x.shape, RATE, seed=a.stream),
    "both, mask drawn twice": lambda a: fastdrop.dropout_grad_(
        a.x, fastdrop.dropout_(a.x, RATE, seed=a.stream, store_mask=False)
    ),
}


class Arrays:
    """The arguments of the kernels."""

    def __init__(self, size, dtype):
        self.x, self.y = zeros(size, dtype), zeros(size, dtype)
        self.stream = fastdrop.Stream(42)
        self.mask = fastdrop.draw_mask(size, RATE, seed=42)


@pytest.mark.exponents((10, 16, 20, 24), quick=(16,))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "dtype",
    [np.float32]
    + [
        pytest.param(dtype, marks=pytest.mark.full)
        for dtype in (np.float64, np.float16, ml_dtypes.bfloat16)
    ],
    ids=lambda dtype: np.dtype(dtype).name,
)
@pytest.mark.parametrize("isa", fastdrop.available_isas())
def test_kernels(measure, isa, dtype, kernel, exponent):
    """Each way of calling, instruction set and dtype, relative to NumPy on as many bytes."""
    size = 2**exponent
    with fastdrop._isa.using(isa):
        y, mask = fastdrop.dropout(np.ones(CHECKED, dtype), RATE, seed=42)
        check_dropout(y, RATE, f"dropout of {isa}")
        gradient = fastdrop.dropout_grad(np.ones(CHECKED, dtype), mask)
        check_dropout(gradient, RATE, f"dropout_grad of {isa}")

        arrays, call = Arrays(size, dtype), KERNELS[kernel]
        # NumPy computes float16 in software, so its float32 on as many bytes is the faster limit.
        wide = np.float64 if dtype is np.float64 else np.float32
        numbers, copied = (zeros(arrays.x.nbytes // np.dtype(wide).itemsize, wide) for _ in "12")
        measure(
            "kernels",
            f"{kernel}, 2^{exponent}",
            group=f"{isa}, {np.dtype(dtype)}",
            ours={"fastdrop": lambda: call(arrays)},
            limits={
                "numpy.multiply": multiply(numbers),
                "numpy.copyto": lambda: np.copyto(copied, numbers),
            },
            each=size,
            seconds=0.2,
        )


# An array of 2^20 to 2^22 elements, and a noise shape for it.
LAYOUTS = {
    "Fortran, (2048, 2048)": lambda: (zeros((2048, 2048)).T, None),
    "Fortran, (128, 128, 128)": lambda: (zeros((128, 128, 128)).T, None),
    "transpose(0, 2, 1) of (64, 128, 512)": lambda: (
        zeros((64, 128, 512)).transpose(0, 2, 1),
        None,
    ),
    "[::2] of 2^21": lambda: (zeros(2**21)[::2], None),
    "[:, ::2] of (2048, 1024)": lambda: (zeros((2048, 1024))[:, ::2], None),
    "[:, :1000] of (2048, 1024)": lambda: (zeros((2048, 1024))[:, :1000], None),
    "[:, :3] of (2^17, 16)": lambda: (zeros((2**17, 16))[:, :3], None),
    "[::-1] of 2^20": lambda: (zeros(2**20)[::-1], None),
    "(256, 128, 128), noise (None, 1, None)": lambda: (zeros((256, 128, 128)), (None, 1, None)),
    "(64, 4096, 16), noise (None, 1, None)": lambda: (zeros((64, 4096, 16)), (None, 1, None)),
    "(256, 128, 128), noise (None, None, 1)": lambda: (zeros((256, 128, 128)), (None, None, 1)),
    "(64, 4096, 16), noise (None, None, 1)": lambda: (zeros((64, 4096, 16)), (None, None, 1)),
    "(256, 128, 128), noise (1, None, None)": lambda: (zeros((256, 128, 128)), (1, None, None)),
    "(64, 128, 512), noise (None, 1, 1)": lambda: (zeros((64, 128, 512)), (None, 1, 1)),
}


@pytest.mark.full
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(measure, layout, direction):
    """Strides, orders and noise shapes, relative to NumPy's multiplication of the same view."""
    x, noise_shape = LAYOUTS[layout]()
    mask = fastdrop.draw_mask(x.shape, RATE, seed=42, noise_shape=noise_shape)
    stream = fastdrop.Stream(42)
    calls = {
        "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream, noise_shape=noise_shape),
        "backward": lambda: fastdrop.dropout_grad_(x, mask),
    }
    measure(
        "layouts",
        layout,
        group=direction,
        ours={"fastdrop": calls[direction]},
        limits={"numpy.multiply": multiply(x)},
        each=x.size,
    )


WIDTH = 1024


@pytest.mark.exponents((20, 22, 24), quick=(20,))
@pytest.mark.parametrize(
    "operation", ["relu_dropout", "bias_dropout_add", "its gradient", "alpha_dropout"]
)
def test_fused(measure, operation, exponent):
    """ReLU, bias and residual with dropout, compared with NumPy and with the same traffic."""
    size = 2**exponent
    shape = (size // WIDTH, WIDTH)
    generator = np.random.Generator(np.random.SFC64(42))
    x, residual, y, uniform = (generator.random(shape, np.float32) - 0.5 for _ in range(4))
    bias, sums = np.ones(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    rate, scale = np.float32(RATE), np.float32(1 / (1 - RATE))
    stream = fastdrop.Stream(42)
    dropped, _ = fastdrop.relu_dropout(np.ones(shape, np.float32), RATE, seed=42)
    check_dropout(dropped, RATE, "relu_dropout")
    _, mask = fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=42)
    kept = mask.unpack()

    def drop_in_numpy():
        generator.random(out=uniform, dtype=np.float32)
        np.multiply(y, uniform >= rate, out=y)
        np.multiply(y, scale, out=y)

    def relu_in_numpy():
        np.maximum(x, 0, out=y)
        drop_in_numpy()

    def bias_in_numpy():
        np.add(x, bias, out=y)
        drop_in_numpy()
        np.add(residual, y, out=y)

    def gradient_in_numpy():
        np.multiply(x, kept, out=y)
        np.multiply(y, scale, out=y)
        np.sum(y, axis=0, out=sums)

    def alpha_in_numpy():
        generator.random(out=uniform, dtype=np.float32)
        np.copyto(y, x)
        np.copyto(y, np.float32(-1.7580993), where=uniform < rate)
        np.multiply(y, scale, out=y)
        np.add(y, rate, out=y)

    ours, in_numpy, traffic = {
        "relu_dropout": (
            lambda: fastdrop.relu_dropout(x, RATE, seed=stream, out=y),
            relu_in_numpy,
            lambda: np.copyto(y, x),
        ),
        "bias_dropout_add": (
            lambda: fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=stream, out=y),
            bias_in_numpy,
            lambda: np.add(x, residual, out=y),
        ),
        "its gradient": (
            lambda: fastdrop.bias_dropout_add_grad(x, mask, out=y),
            gradient_in_numpy,
            lambda: np.copyto(y, x),
        ),
        "alpha_dropout": (
            lambda: fastdrop.alpha_dropout(x, RATE, seed=stream, out=y),
            alpha_in_numpy,
            lambda: np.copyto(y, x),
        ),
    }[operation]
    measure(
        "fused",
        f"{operation}, 2^{exponent}",
        ours={"fastdrop": ours},
        peers={"NumPy's operations": in_numpy},
        limits={"the same traffic": traffic},
        each=size,
    )


@pytest.mark.exponents((10, 16, 20, 24), quick=(20,))
@pytest.mark.parametrize("isa", fastdrop.available_isas())
def test_noise(measure, isa, exponent):
    """Gaussian dropout, compared with NumPy's normal numbers alone, and with its dropout."""
    size = 2**exponent
    generator = np.random.Generator(np.random.SFC64(42))
    x, y, numbers = zeros(size), zeros(size), zeros(size)
    stddev, stream = np.float32((RATE / (1 - RATE)) ** 0.5), fastdrop.Stream(42)

    def draw_in_numpy():
        generator.standard_normal(out=numbers, dtype=np.float32)

    def drop_in_numpy():
        draw_in_numpy()
        np.multiply(numbers, stddev, out=numbers)
        np.add(numbers, np.float32(1), out=numbers)
        np.multiply(y, numbers, out=y)

    with fastdrop._isa.using(isa):
        dropped, noise = fastdrop.gaussian_dropout(np.ones(CHECKED, np.float32), RATE, seed=42)
        assert abs(dropped.mean() - 1) < 0.01, "gaussian_dropout"
        assert abs(dropped.std() - stddev) < 0.01, "gaussian_dropout"
        assert np.array_equal(noise.draw(), dropped), "its gradient"
        measure(
            "noise",
            f"2^{exponent}",
            group=isa,
            ours={"fastdrop": lambda: fastdrop.gaussian_dropout_(x, RATE, seed=stream)},
            peers={"standard_normal alone": draw_in_numpy, "NumPy's operations": drop_in_numpy},
            limits={"numpy.multiply": multiply(zeros(size))},
            each=size,
        )


@pytest.mark.exponents((10, 16, 20, 24), quick=(20,))
@pytest.mark.parametrize("isa", fastdrop.available_isas())
def test_rates(measure, isa, exponent):
    """An array of rates, one for each element, compared with NumPy's operations."""
    size = 2**exponent
    generator = np.random.Generator(np.random.SFC64(42))
    x, y, stream = zeros(size), zeros(size), fastdrop.Stream(42)
    rates = generator.random(size, np.float32)

    def drop_in_numpy():
        return x * (generator.random(size, np.float32) >= rates) / (1 - rates)

    with fastdrop._isa.using(isa):
        equal = np.full(CHECKED, RATE, np.float32)
        dropped, _ = fastdrop.dropout(np.ones(CHECKED, np.float32), equal, seed=42)
        check_dropout(dropped, RATE, "dropout with an array of rates")
        measure(
            "rates",
            f"2^{exponent}",
            group=isa,
            ours={"fastdrop": lambda: fastdrop.dropout(x, rates, seed=stream, out=y)},
            peers={"NumPy's operations": drop_in_numpy},
            limits={"numpy.multiply": multiply(zeros(size))},
            each=size,
        )


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.exponents(range(12, 27, 2), quick=(16, 20))
def test_threads(measure, exponent, direction):
    """All threads, and one thread."""
    size = 2**exponent
    arrays, threads = Arrays(size, np.float32), fastdrop._threads.allowed_cpus()
    call = KERNELS["backward" if direction == "backward" else f"in place, rate {RATE}"]

    def on(count):
        return Prepared(lambda: call(arrays), before=lambda: fastdrop.set_num_threads(count))

    # On a single CPU, the two have the same name.
    ours = {f"{threads} threads": on(threads), "1 thread": on(1)}
    limits = {"numpy.multiply": multiply(zeros(size))}
    measure("threads", f"2^{exponent}", group=direction, ours=ours, limits=limits, each=size)
