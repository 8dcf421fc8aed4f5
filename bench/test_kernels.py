"""How fast are the kernels on NumPy's arrays, beside the peers and the limits of memory?"""

import ml_dtypes
import numpy as np
import pytest

import fastdrop
from bench.peers import PEERS, FastdropInPlace
from bench.tables import power
from bench.validity import check_dropout, check_peer

RATE = 0.2
SCALE = 1 / (1 - RATE)
SIZES = tuple(2**exponent for exponent in range(6, 27, 2))
FEWER_SIZES = tuple(2**exponent for exponent in range(8, 25, 4))
QUICK_SIZES = (2**10, 2**16, 2**20)
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)

pytestmark = pytest.mark.usefixtures("one_thread")


def zeros(shape, dtype=np.float32):
    """Numbers that stay what they are however often they are scaled, and take as long as any.

    Written, since memory that never was is one page of zeros, however large.
    """
    return np.full(shape, 0, dtype)


def multiply(x):
    """NumPy's multiplication in place: the limit of what changes each element of x."""
    scale = x.dtype.type(SCALE)
    return lambda: np.multiply(x, scale, out=x)


# What the peers compute is looked at on at most as many elements: a look takes ten passes.
CHECKED = 2**20


@pytest.mark.sizes(SIZES, QUICK_SIZES)
def test_arrays(measure, size):
    """Forward: ours, every peer that is installed, and the limits."""
    measure_arrays(measure, size, backward=False)


@pytest.mark.sizes(FEWER_SIZES, ())
def test_arrays_in_training(measure, size):
    """The same, forward and backward."""
    measure_arrays(measure, size, backward=True)


def measure_arrays(measure, size, backward):
    """All of the peers, on one thread."""
    candidates = {}
    # Ours first: it is what the others are compared with.
    for peer_class in sorted(PEERS, key=lambda peer: peer is not FastdropInPlace):
        why = peer_class.unavailable()
        if why is not None:
            print(f"left out: {why}")
            continue
        peer = peer_class(RATE)
        if peer.has_backward or not backward:
            peer.set_threads(1)
            check_peer(peer, min(size, CHECKED), np.float32)
            peer.prepare(size, np.float32)
            candidates[peer.name] = peer.forward_backward if backward else peer.forward
    ours, *others = candidates
    x, y = zeros(size), zeros(size)
    candidates["numpy.multiply"] = multiply(x)
    candidates["numpy.copyto"] = lambda: np.copyto(y, x)
    measure(
        "arrays",
        power(size),
        candidates,
        group="forward and backward" if backward else "forward",
        elements=size,
        ratios={
            **{f"faster than {name}": (name, ours) for name in others},
            "x multiply": (ours, "numpy.multiply"),
            "x copy": (ours, "numpy.copyto"),
        },
    )


def case(dtype, size):
    """A dtype at a size: in a quick run, float32 at a few."""
    quick = dtype is np.float32 and size in QUICK_SIZES
    marks = () if quick else pytest.mark.full
    return pytest.param(dtype, size, marks=marks, id=f"{np.dtype(dtype)}-{power(size)}")


# float32 at every size, the others at fewer.
CASES = [
    case(dtype, size)
    for dtype in DTYPES
    for size in (SIZES if dtype is np.float32 else FEWER_SIZES)
]


@pytest.mark.parametrize(("dtype", "size"), CASES)
@pytest.mark.parametrize("isa", fastdrop.available_isas())
def test_kernels(measure, isa, dtype, size):
    """Every way of calling, over NumPy's multiplication and copy of as many bytes."""
    with fastdrop._isa.using(isa):
        ones = np.ones(size, dtype)
        y, mask = fastdrop.dropout(ones, RATE, seed=42)
        for name, result in (("forward", y), ("backward", fastdrop.dropout_grad(ones, mask))):
            check_dropout(result, RATE, SCALE, name=name, dtype=dtype)
        assert mask.nbytes == -(-size // 8)

        x, y, out = (zeros(size, dtype) for _ in range(3))
        # NumPy's own float16 is in software: its float32 is the harder limit.
        wide = np.dtype(np.float64 if dtype is np.float64 else np.float32)
        numbers = zeros(-(-size * x.itemsize // wide.itemsize), wide)
        stream = fastdrop.Stream(42)

        def replay():
            redrawn = fastdrop.dropout_(x, RATE, seed=stream, store_mask=False)
            fastdrop.dropout_grad_(x, redrawn)

        measure(
            "kernels",
            power(size),
            {
                "in place": lambda: fastdrop.dropout_(x, RATE, seed=stream),
                "out of place": lambda: fastdrop.dropout(x, RATE, seed=stream, out=out),
                "backward": lambda: fastdrop.dropout_grad_(x, mask),
                "mask only": lambda: fastdrop.draw_mask(size, RATE, seed=stream),
                "replay": replay,
                "multiply": multiply(numbers),
                "copy": lambda: np.copyto(y, x),
            },
            group=f"{isa}, {np.dtype(dtype)}",
            elements=size,
            ratios={
                "in place x multiply": ("in place", "multiply"),
                "out of place x copy": ("out of place", "copy"),
                "backward x multiply": ("backward", "multiply"),
                "mask only x in place": ("mask only", "in place"),
            },
        )


@pytest.mark.sizes(SIZES[3::2], ())
def test_rates(measure, size):
    """Rates whose threshold has a low half of zero."""
    x = zeros(size)
    stream = fastdrop.Stream(42)
    measure(
        "rates",
        power(size),
        {
            f"rate {rate}": lambda rate=rate: fastdrop.dropout_(x, rate, seed=stream)
            for rate in (RATE, 0.25, 0.5, 0.75)
        }
        | {"multiply": multiply(x)},
        elements=size,
        ratios={
            f"{rate} over {RATE}": (f"rate {rate}", f"rate {RATE}") for rate in (0.25, 0.5, 0.75)
        },
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


@pytest.mark.full
@pytest.mark.parametrize(("shape", "noise_shape"), NOISE_SHAPES, ids=str)
def test_noise_shapes(measure, shape, noise_shape):
    """Shared decisions over those of each element's own."""
    x = zeros(shape)
    assert x.size == 2**22
    stream = fastdrop.Stream(42)
    measure(
        "noise shapes",
        f"{noise_shape} of {shape}",
        {
            "shared": lambda: fastdrop.dropout_(x, RATE, seed=stream, noise_shape=noise_shape),
            "own": lambda: fastdrop.dropout_(x, RATE, seed=stream),
            "multiply": multiply(x),
        },
        elements=x.size,
        ratios={"shared over own": ("shared", "own")},
    )


VIEWS = {
    "Fortran, (2048, 2048)": lambda: np.zeros((2048, 2048), np.float32, order="F"),
    "Fortran, (512, 512)": lambda: np.zeros((512, 512), np.float32, order="F"),
    "Fortran, (128, 128, 128)": lambda: np.zeros((128, 128, 128), np.float32, order="F"),
    "transpose(0, 2, 1) of (64, 128, 512)": lambda: np.zeros((64, 128, 512), np.float32).transpose(
        0, 2, 1
    ),
    "[::2] of 2^21": lambda: np.zeros(2**21, np.float32)[::2],
    "[:, ::2] of (2048, 1024)": lambda: np.zeros((2048, 1024), np.float32)[:, ::2],
    "[:, :1000] of (2048, 1024)": lambda: np.zeros((2048, 1024), np.float32)[:, :1000],
    "[:, :3] of (2^17, 16)": lambda: np.zeros((2**17, 16), np.float32)[:, :3],
    "[:, 0] of (2^17, 16)": lambda: np.zeros((2**17, 16), np.float32)[:, 0],
    "[::-1] of 2^20": lambda: np.zeros(2**20, np.float32)[::-1],
}


@pytest.mark.full
@pytest.mark.parametrize("view", VIEWS)
def test_views(measure, view):
    """Strides and orders, over NumPy's multiplication of the same view."""
    x = VIEWS[view]()
    x[...] = 0
    mask = fastdrop.draw_mask(x.shape, RATE, seed=42)
    stream = fastdrop.Stream(42)
    measure(
        "views",
        view,
        {
            "forward": lambda: fastdrop.dropout_(x, RATE, seed=stream),
            "backward": lambda: fastdrop.dropout_grad_(x, mask),
            "multiply": multiply(x),
        },
        elements=x.size,
        ratios={
            "forward x multiply": ("forward", "multiply"),
            "backward x multiply": ("backward", "multiply"),
        },
    )


WIDTH = 1024


@pytest.mark.sizes((2**20, 2**22, 2**24), (2**20,))
@pytest.mark.parametrize("operation", ["relu", "bias", "gradient of bias"])
def test_fused(measure, operation, size):
    """ReLU, bias and residual with dropout, beside the same traffic and NumPy's operations."""
    shape = (size // WIDTH, WIDTH)
    generator = np.random.Generator(np.random.SFC64(42))
    x, residual, y = (generator.random(shape, np.float32) - np.float32(0.5) for _ in range(3))
    bias = np.ones(WIDTH, np.float32)
    stream = fastdrop.Stream(42)
    ones, _ = fastdrop.relu_dropout(np.ones(shape, np.float32), RATE, seed=42)
    check_dropout(ones, RATE, SCALE, name="relu_dropout")
    _, mask = fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=42)
    kept = mask.unpack()
    uniform, chosen = np.empty(shape, np.float32), np.empty(shape, bool)
    sums = np.empty(WIDTH, np.float32)
    rate, scale = np.float32(RATE), np.float32(SCALE)

    def drop_in_numpy():
        generator.random(out=uniform, dtype=np.float32)
        np.greater_equal(uniform, rate, out=chosen)
        np.multiply(y, chosen, out=y)
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

    ours, in_numpy, traffic = {
        "relu": (
            lambda: fastdrop.relu_dropout(x, RATE, seed=stream, out=y),
            relu_in_numpy,
            lambda: np.copyto(y, x),
        ),
        "bias": (
            lambda: fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=stream, out=y),
            bias_in_numpy,
            lambda: np.add(x, residual, out=y),
        ),
        "gradient of bias": (
            lambda: fastdrop.bias_dropout_add_grad(x, mask, out=y),
            gradient_in_numpy,
            lambda: np.copyto(y, x),
        ),
    }[operation]
    measure(
        "fused",
        f"{operation}, {power(size)}",
        {"fused": ours, "NumPy's operations": in_numpy, "the same traffic": traffic},
        elements=size,
        ratios={
            "faster than NumPy's operations": ("NumPy's operations", "fused"),
            "time over the same traffic": ("fused", "the same traffic"),
        },
    )


def test_small_call(measure):
    """One call on 16 elements."""
    x = zeros(16)
    mask = fastdrop.draw_mask(16, RATE, seed=42)
    stream = fastdrop.Stream(42)
    measure(
        "small call",
        "16",
        {
            "dropout_": lambda: fastdrop.dropout_(x, RATE, seed=stream),
            "dropout_grad_": lambda: fastdrop.dropout_grad_(x, mask),
            "numpy.multiply": multiply(x),
        },
        ratios={
            "dropout_ x multiply": ("dropout_", "numpy.multiply"),
            "dropout_grad_ x multiply": ("dropout_grad_", "numpy.multiply"),
        },
    )
