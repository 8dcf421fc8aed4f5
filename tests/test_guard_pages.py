"""No call accesses a byte outside of its arrays and masks.

Each array is directly before or after an inaccessible page, and results are compared with the
reference. Kernels are also called directly, since the library's own masks and sums have spare
memory at their ends.
"""

import ctypes
import faulthandler
import functools
import importlib
import itertools

import ml_dtypes
import numpy as np
import pytest
import reference
from guarded import Guarded, at, survives
from pairwise import pairs_of
from reference import assert_same_bits, bias_dropout_add, positive
from test_fused import finite
from test_values import DTYPES, each_dtype, values

import fastdrop

SIZES = range(601)
LARGEST = SIZES[-1]
PLACES = ["start", "end"]
RATE = 0.3
SCALE = reference.default_scale(RATE)
SEED = 7


@functools.cache
def kept(size):
    """Whether each element is kept; a smaller mask is the start of a larger."""
    mask = reference.keep_mask(SEED, 0, RATE, size)
    mask.flags.writeable = False
    return mask


def check(actual, expected):
    """As `assert_same_bits`, but fast if the arrays are equal."""
    same = actual.dtype == expected.dtype and actual.shape == expected.shape
    if not same or actual.tobytes() != expected.tobytes():
        assert_same_bits(actual, expected)


def aways(dtype):
    """Numbers of bytes between an array and its guard, for all possible alignments."""
    return {0, 1, dtype.itemsize // 2, dtype.itemsize - 1}


# Arrays in C order.


@each_dtype
@pytest.mark.parametrize(("from_", "to"), [("start", "end"), ("end", "start")])
@survives
def test_every_size(isa, dtype, from_, to):
    source = Guarded(LARGEST * dtype.itemsize)
    target = Guarded(LARGEST * dtype.itemsize)
    content = values(dtype, (LARGEST,), seed=1)
    expected = reference.dropout(content, kept(LARGEST), SCALE)
    for size in SIZES:
        x = source.copy(from_, content[:size])
        y = target.array(to, size, dtype)
        for store_mask in (True, False):
            at("dropout", size, store_mask)
            mask = fastdrop.dropout(x, RATE, seed=SEED, out=y, store_mask=store_mask)[1]
            check(y, expected[:size])
            y[...] = 1
            at("dropout_grad", size, store_mask)
            fastdrop.dropout_grad(x, mask, out=y)
            check(y, expected[:size])
            y[...] = content[:size]
            at("apply_", size, store_mask)
            mask.apply_(y)
            check(y, expected[:size])
            y[...] = content[:size]
            at("dropout_", size, store_mask)
            fastdrop.dropout_(y, RATE, seed=SEED, store_mask=store_mask)
            check(y, expected[:size])


@each_dtype
@pytest.mark.parametrize("rate", [0, 1])
@survives
def test_every_size_at_rates_zero_and_one(isa, dtype, rate):
    memory = Guarded(LARGEST * dtype.itemsize)
    content = values(dtype, (LARGEST,), seed=1)
    for size, place, scale in itertools.product(SIZES, PLACES, (None, 2.0)):
        x = memory.copy(place, content[:size])
        at(size, place, scale)
        fastdrop.dropout_(x, rate, seed=SEED, scale=scale)
        factor = reference.default_scale(rate) if scale is None else scale
        check(x, reference.dropout(content[:size], np.full(size, rate == 0), factor))


@each_dtype
@survives
def test_every_alignment(isa, dtype):
    memory = Guarded(LARGEST * dtype.itemsize + 64)
    content = values(dtype, (LARGEST,), seed=2)
    expected = reference.dropout(content, kept(LARGEST), SCALE)
    for size, place in itertools.product([*range(70), 511, 512, 513, 577, 600], PLACES):
        for away in {*range(0, 64, dtype.itemsize), *aways(dtype)}:
            x = memory.copy(place, content[:size], away=away)
            at(size, place, away)
            mask = fastdrop.dropout_(x, RATE, seed=SEED)
            check(x, expected[:size])
            x[...] = content[:size]
            mask.apply_(x)
            check(x, expected[:size])


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_relu(isa, dtype, place):
    source, target = (Guarded(LARGEST * dtype.itemsize) for _ in range(2))
    content = values(dtype, (LARGEST,), seed=3)
    left = kept(LARGEST) & positive(content)
    expected = reference.dropout(content, left, SCALE)
    for size in SIZES:
        x, y = source.copy(place, content[:size]), target.array("end", size, dtype)
        at(size)
        mask = fastdrop.relu_dropout(x, RATE, seed=SEED, out=y)[1]
        check(y, expected[:size])
        check(mask.bits, reference.pack_bits(left[:size]))
        fastdrop.relu_dropout_grad(x, mask, out=y)
        check(y, reference.dropout(content[:size], left[:size], SCALE))


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_bias_and_residual(isa, dtype, place):
    memories = [Guarded(LARGEST * dtype.itemsize) for _ in range(4)]
    x_all, residual_all = finite(dtype, (LARGEST,), 1), finite(dtype, (LARGEST,), 2)
    bias_all = finite(dtype, (LARGEST,), 3)
    expected_all = bias_dropout_add(x_all, bias_all, residual_all, kept(LARGEST), SCALE)
    dx_all = reference.dropout(x_all, kept(LARGEST), SCALE)
    for size in SIZES:
        x, bias, residual = (
            memory.copy(place, content[:size])
            for memory, content in zip(memories, (x_all, bias_all, residual_all), strict=False)
        )
        y = memories[3].array("end", size, dtype)
        at("forward", size)
        mask = fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=SEED, out=y)[1]
        check(y, expected_all[:size])
        at("gradient", size)
        dbias = fastdrop.bias_dropout_add_grad(x, mask, out=y)[1]
        check(y, dx_all[:size])
        check(dbias + dtype.type(0), dx_all[:size] + dtype.type(0))


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_noise(isa, dtype, place):
    memories = [Guarded(LARGEST * dtype.itemsize) for _ in range(2)]
    content = finite(dtype, (LARGEST,), 1)
    numbers = reference.normals(SEED, 0, LARGEST)
    expected = reference.noised(content, numbers, 0.5, additive=True)
    for size in SIZES:
        x, y = memories[0].copy(place, content[:size]), memories[1].array("end", size, dtype)
        at(size)
        noise = fastdrop.gaussian_noise(x, 0.5, seed=SEED, out=y)[1]
        check(y, expected[:size])
        noise.apply_(x)
        check(x, expected[:size])
        # One number for all elements, and elements that are gathered.
        x[...] = content[:size]
        fastdrop.gaussian_noise_(x[::-1], 0.5, seed=SEED, noise_shape=(1,))
        check(x, reference.noised(content[:size], numbers[:1], 0.5, additive=True))


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_rates(isa, dtype, place):
    x_memory, y_memory = (Guarded(LARGEST * dtype.itemsize) for _ in range(2))
    rates_memory = Guarded(LARGEST * 8)
    content = values(dtype, (LARGEST,), 1)
    for rate_dtype in (np.float32, np.float64):
        all_rates = np.random.default_rng(0).random(LARGEST).astype(rate_dtype)
        left = reference.keep_by_rates(SEED, 0, all_rates, (LARGEST,))
        expected = reference.dropout_by_scales(content, left, reference.scales_of_rates(all_rates))
        for size in SIZES:
            x, y = x_memory.copy(place, content[:size]), y_memory.array("end", size, dtype)
            rates = rates_memory.copy(place, all_rates[:size])
            at(rate_dtype.__name__, size)
            mask = fastdrop.dropout(x, rates, seed=SEED, out=y)[1]
            check(y, expected[:size])
            mask.apply_(x)
            check(x, expected[:size])


@each_dtype
@survives
def test_rows_of_a_bias(isa, dtype):
    """Bias and sums start again in each row."""
    memories = [Guarded(LARGEST * dtype.itemsize) for _ in range(3)]
    for columns in [1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 63, 64, 65, 100, 200, 300]:
        shape = (LARGEST // columns, columns)
        size = shape[0] * columns
        content = [finite(dtype, shape, 1), finite(dtype, (columns,), 2), finite(dtype, shape, 3)]
        x, bias, residual = (
            memory.copy("end", array) for memory, array in zip(memories, content, strict=True)
        )
        at("forward", columns)
        mask = fastdrop.bias_dropout_add(x, bias, residual, RATE, seed=SEED, out=x)[1]
        check(x, bias_dropout_add(*content, kept(size).reshape(shape), SCALE))
        x[...] = 1
        at("gradient", columns)
        dbias = fastdrop.bias_dropout_add_grad(x, mask, out=residual)[1]
        assert dbias.shape == (columns,)
        ones = np.ones(shape, dtype)
        check(residual, reference.dropout(ones, kept(size).reshape(shape), SCALE))


# Views: the walk depends on an element's size, not on its type.

OF_EACH_SIZE = [dtype for dtype in DTYPES if dtype != ml_dtypes.bfloat16]

VIEWS = {
    "every other": lambda place: place[::2],
    "every third": lambda place: place[::3],
    "reversed": lambda place: place[::-1],
    "reversed, every other": lambda place: place[::-2],
}


@pairs_of("dtype view", OF_EACH_SIZE, VIEWS)
@survives
def test_strided_views(isa, dtype, view):
    memory = Guarded(LARGEST * dtype.itemsize)
    content = values(dtype, (LARGEST,), seed=4)
    for size, place in itertools.product(SIZES, PLACES):
        x = VIEWS[view](memory.copy(place, content[:size]))
        before = x.copy()
        expected = reference.dropout(before, kept(LARGEST)[: x.size], SCALE)
        for store_mask in (True, False):
            at(size, place, store_mask)
            mask = fastdrop.dropout_(x, RATE, seed=SEED, store_mask=store_mask)
            check(x, expected)
            x[...] = before
            mask.apply_(x)
            check(x, expected)
            x[...] = before


SHAPES = [(a, b) for a in (1, 2, 3, 4, 7, 9, 17, 33, 64, 65) for b in (1, 2, 5, 8, 31, 64, 67, 130)]
LARGEST_SHAPE = 65 * 130
ORDERS = {
    "Fortran": lambda x: x.T,
    "Fortran, upwards": lambda x: x.T[::-1],
    "columns": lambda x: x[:, : -(-x.shape[1] // 2)],
    "last columns": lambda x: x[:, x.shape[1] // 2 :],
    "downwards": lambda x: x[:, ::-1],
}
NOISE_SHAPES = [None, (None, 1), (1, None), (1, 1)]


@pairs_of("dtype noise_shape order", OF_EACH_SIZE, NOISE_SHAPES, ORDERS)
@survives
def test_matrices(isa, dtype, noise_shape, order):
    memory = Guarded(LARGEST_SHAPE * dtype.itemsize)
    content = values(dtype, (LARGEST_SHAPE,), seed=5)
    for shape, place in itertools.product(SHAPES, PLACES):
        x = ORDERS[order](memory.copy(place, content[: shape[0] * shape[1]].reshape(shape)))
        before = x.copy()
        noise = reference.resolve_noise_shape(x.shape, noise_shape)
        expected = reference.dropout(
            before, kept(LARGEST_SHAPE)[: noise[0] * noise[1]].reshape(noise), SCALE
        )
        at(shape, place)
        mask = fastdrop.dropout_(x, RATE, seed=SEED, noise_shape=noise_shape)
        check(x, expected)
        x[...] = before
        mask.apply_(x)
        check(x, expected)


class CDropout(ctypes.Structure):
    """`fastdrop_dropout` of fastdrop.h."""

    _fields_ = (
        *(("kind", ctypes.c_int), ("ndim", ctypes.c_int)),
        *(("shape", ctypes.c_void_p), ("noise_shape", ctypes.c_void_p)),
        *(("low", ctypes.c_uint64), ("high", ctypes.c_uint64), ("step", ctypes.c_uint64)),
        *(("rate", ctypes.c_double), ("scale", ctypes.c_double)),
    )


def c_backward(dx, dy, bits, noise_shape):
    """Call `backward` of fastdrop.h on float32 arrays."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # Before the functions are three numbers of 32 bits and padding.
    functions = ctypes.cast(
        pointer(fastdrop._C_API, b"fastdrop._C_API") + 16, ctypes.POINTER(ctypes.c_void_p)
    )
    numbers = [
        (ctypes.c_int64 * dy.ndim)(*n) for n in (dy.shape, noise_shape, dx.strides, dy.strides)
    ]
    shape, noise, dx_strides, dy_strides = map(ctypes.addressof, numbers)
    dropout = CDropout(2, dy.ndim, shape, noise, 0, 0, 0, RATE, SCALE)
    function = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 6)(functions[1])
    status = function(
        ctypes.addressof(dropout),
        dx.ctypes.data,
        dx_strides,
        dy.ctypes.data,
        dy_strides,
        bits.ctypes.data,
    )
    assert status == 0


@pairs_of("noise_shape order", NOISE_SHAPES, ["C", *ORDERS])
@survives
def test_bits_next_to_a_guard_page(isa, noise_shape, order):
    """The C interface takes bits from any address of a framework."""
    bits_memory = Guarded(LARGEST_SHAPE // 8 + 16)
    content = values(np.dtype(np.float32), (LARGEST_SHAPE,), seed=6)
    for shape, place in itertools.product(SHAPES, PLACES):
        x = content[: shape[0] * shape[1]].reshape(shape)
        x = x if order == "C" else ORDERS[order](x)
        noise = reference.resolve_noise_shape(x.shape, noise_shape)
        keep = kept(LARGEST_SHAPE)[: noise[0] * noise[1]]
        bits = bits_memory.copy(place, reference.pack_bits(keep))
        dx = np.empty_like(x)
        at(shape, place)
        c_backward(dx, x, bits, noise)
        check(dx, reference.dropout(x, keep.reshape(noise), SCALE))


# Kernels.

P, U64, INT, F64 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_double


class Key(ctypes.Structure):
    """`stream_key` of table.h."""

    _fields_ = (("k", U64 * 4), ("threshold", U64))


class Operands(ctypes.Structure):
    """`operands` of table.h."""

    _fields_ = (
        *(("kind", INT), ("use", INT), ("size", U64), ("to", P), ("from_", P), ("bits", P)),
        *(("bit", U64), ("scale", F64), ("bias", P), ("period", U64), ("column", U64)),
        *(("residual", P), ("advance", INT), ("sums", P), ("streaming", INT)),
        ("scale_f32", ctypes.c_float),
    )


class RateOperands(ctypes.Structure):
    """`rate_operands` of table.h."""

    _fields_ = (
        *(("kind", INT), ("double_rates", INT), ("size", U64), ("to", P), ("from_", P)),
        *(("rates", P), ("scales", P), ("bits", P)),
    )


class Table(ctypes.Structure):
    """`kernel_table` of table.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("draw", ctypes.CFUNCTYPE(None, P, U64, U64, P)),
        *((name, ctypes.CFUNCTYPE(None, P, U64, P)) for name in ("use", "noise", "rates")),
    )


# `enum element_kind` of table.h, those that scale and words of bits; and `enum element_use`.
KINDS = [*DTYPES, *(np.dtype(word) for word in (np.uint16, np.uint32, np.uint64))]
WORDS = KINDS[len(DTYPES) :]
RELU, ADD, SUM = 1, 2, 3
# Around the ends of blocks, and of eight blocks, the buffer's size for bits that are not stored.
DRAWN_SIZES = [*SIZES, *(n * 4096 + more for n in (1, 2, 8) for more in (-33, -1, 0, 1, 31, 65))]
MOST_DRAWN = max(DRAWN_SIZES)


def table_of(isa):
    """The functions of a module of kernels."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = P, [ctypes.py_object, ctypes.c_char_p]
    module = importlib.import_module(f"fastdrop._kernels.{isa}")
    table = Table.from_address(pointer(module.table, b"fastdrop.kernel_table"))
    assert table.name.decode() == isa
    return table


@pytest.fixture
def kernels(isa):
    return table_of(isa)


def key_of(rate):
    return Key((U64 * 4)(*reference.key(SEED, 0)), reference.threshold(rate))


@pytest.fixture
def key():
    return key_of(RATE)


def data(array):
    return None if array is None else array.ctypes.data


def use(kernels, key, x, y, bits, **more):
    """Run a kernel on x and y, with streaming stores for every other size."""
    on = Operands(KINDS.index(x.dtype), size=x.size, to=data(y), from_=data(x), bits=data(bits))
    on.scale, on.streaming = SCALE, x.size % 2
    for name, value in more.items():
        setattr(on, name, value)
    kernels.use(None if key is None else ctypes.addressof(key), 0, ctypes.addressof(on))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", [0, 1, 31, 32, 33, 4064, 4095, 4096, 12345])
@survives
def test_kernel_draw(kernels, key, place, first):
    memory = Guarded(MOST_DRAWN // 8 + 1)
    keep = reference.keep_mask(SEED, 0, RATE, MOST_DRAWN, offset=first)
    for size in DRAWN_SIZES:
        bits = memory.array(place, (size + 7) // 8)
        bits[...] = 0xFF
        at(size)
        kernels.draw(ctypes.addressof(key), first, size, data(bits))
        check(bits, reference.pack_bits(keep[:size]))


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_kernel_draw_and_use(kernels, key, dtype, place):
    source, target = (Guarded(MOST_DRAWN * dtype.itemsize) for _ in range(2))
    bits_memory = Guarded(MOST_DRAWN // 8 + 1)
    content = values(dtype, (MOST_DRAWN,), seed=1)
    expected = reference.dropout(content, kept(MOST_DRAWN), SCALE)
    for size, wanted in itertools.product(DRAWN_SIZES, (True, False)):
        x, y = source.copy(place, content[:size]), target.array(place, size, dtype)
        bits = bits_memory.array(place, (size + 7) // 8)
        at(size, wanted)
        use(kernels, key, x, y, bits if wanted else None)
        check(y, expected[:size])
        if wanted:
            check(bits, reference.pack_bits(kept(MOST_DRAWN)[:size]))


def bits_from(memory, place, keep, offset):
    """The bits of `keep` from bit `offset`; the bits before are set."""
    before = np.ones(offset, bool)
    return memory.copy(place, reference.pack_bits(np.concatenate([before, keep])))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("place", PLACES)
@survives
def test_kernel_use(kernels, dtype, place):
    source, target = (Guarded(LARGEST * dtype.itemsize) for _ in range(2))
    bits_memory = Guarded(LARGEST // 8 + 16)
    if dtype in WORDS:
        content = scaled = np.arange(1, LARGEST + 1).astype(dtype)
    else:
        content = values(dtype, (LARGEST,), seed=2)
        scaled = reference.dropout(content, np.ones(LARGEST, bool), SCALE)
    zero = np.zeros(LARGEST, dtype)
    expected = np.where(kept(LARGEST), scaled, zero)
    for size in SIZES:
        x = source.copy(place, content[:size])
        for offset in {0, 1 + size % 7, 64 + size % 8}:
            y = target.array(place, size, dtype)
            bits = bits_from(bits_memory, place, kept(LARGEST)[:size], offset)
            at(size, offset)
            use(kernels, None, x, y, bits, bit=offset)
            check(y, expected[:size])
        for rate, everywhere in ((0.0, scaled), (1.0, zero)):
            at("rate", rate, size)
            use(kernels, key_of(rate), x, y, None)
            check(y, everywhere[:size])


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_kernel_relu(kernels, key, dtype, place):
    memory, bits_memory = Guarded(LARGEST * dtype.itemsize), Guarded(LARGEST // 8 + 1)
    content = values(dtype, (LARGEST,), seed=3)
    left = kept(LARGEST) & positive(content)
    expected = reference.dropout(content, left, SCALE)
    for size, drawn in itertools.product(SIZES, (True, False)):
        x = memory.copy(place, content[:size])
        bits = bits_memory.copy(place, reference.pack_bits(kept(LARGEST)[:size]))
        if drawn:
            bits[...] = 0xFF
        at(size, drawn)
        use(kernels, key if drawn else None, x, x, bits, use=RELU)
        check(x, expected[:size])
        check(bits, reference.pack_bits(left[:size]))


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("advance", [0, 1])
@survives
def test_kernel_add(kernels, key, dtype, place, advance):
    """The bias has 31 elements after its period. A residual that does not advance has 32."""
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    memory, bits_memory = Guarded(MOST_DRAWN * dtype.itemsize), Guarded(MOST_DRAWN // 8 + 1)
    bias_memory, residual_memory = Guarded(1000 * 8), Guarded(MOST_DRAWN * dtype.itemsize)
    content = finite(dtype, (MOST_DRAWN,), 4)
    residual_content = finite(dtype, (MOST_DRAWN,), 5)
    if not advance:
        residual_content[:] = residual_content[0]
    bias_content = finite(dtype, (600,), 6).astype(wide)
    periods = (32, 33, 600)
    expected = {
        period: bias_dropout_add(
            content,
            np.resize(bias_content[:period], MOST_DRAWN),
            residual_content,
            kept(MOST_DRAWN),
            SCALE,
        )
        for period in periods
    }
    for size, ways in itertools.product(DRAWN_SIZES, range(3)):
        period = periods[(size + ways) % len(periods)]
        x = memory.copy(place, content[:size])
        bias = bias_memory.copy(place, np.resize(bias_content[:period], period + 31))
        residual = residual_memory.copy(place, residual_content[: size if advance else 32])
        keep = kept(MOST_DRAWN)[:size]
        bits = bits_memory.copy(place, reference.pack_bits(keep))
        drawn, wanted = [(True, True), (True, False), (False, True)][ways]
        at(size, period, drawn, wanted)
        use(
            kernels,
            key if drawn else None,
            x,
            x,
            bits if wanted else None,
            use=ADD,
            bias=data(bias),
            period=period,
            residual=data(residual),
            advance=advance,
        )
        check(x, expected[period][:size])
        check(bits, reference.pack_bits(keep))


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_kernel_sum(kernels, dtype, place):
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    source, target = (Guarded(LARGEST * dtype.itemsize) for _ in range(2))
    sums_memory, bits_memory = Guarded(LARGEST * 8), Guarded(LARGEST // 8 + 16)
    content, before = finite(dtype, (LARGEST,), 7), finite(wide, (LARGEST,), 8)
    factors = np.where(kept(LARGEST), wide.type(SCALE), wide.type(0))
    expected = reference.dropout(content, kept(LARGEST), SCALE)
    for size in SIZES:
        x, y = source.copy(place, content[:size]), target.array(place, size, dtype)
        for offset in {0, 1 + size % 7, 64 + size % 8}:
            sums = sums_memory.copy(place, before[:size])
            bits = bits_from(bits_memory, place, kept(LARGEST)[:size], offset)
            at(size, offset)
            use(kernels, None, x, y, bits, bit=offset, use=SUM, sums=data(sums))
            check(y, expected[:size])
            check(sums, before[:size] + content[:size] * factors[:size])


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@survives
def test_kernel_rates(kernels, dtype, place):
    source, target = (Guarded(MOST_DRAWN * dtype.itemsize) for _ in range(2))
    rates_memory, scales_memory = (Guarded(MOST_DRAWN * 8) for _ in range(2))
    bits_memory = Guarded(MOST_DRAWN // 8 + 1)
    content = values(dtype, (MOST_DRAWN,), seed=9)
    key = Key((U64 * 4)(*reference.rates_key(SEED, 0)))
    for rate_dtype in (np.float32, np.float64):
        all_rates = np.random.default_rng(0).random(MOST_DRAWN).astype(rate_dtype)
        left = reference.keep_by_rates(SEED, 0, all_rates, (MOST_DRAWN,))
        all_scales = reference.scales_of_rates(all_rates)
        expected = reference.dropout_by_scales(content, left, all_scales)
        for size, ways in itertools.product(DRAWN_SIZES, range(3)):
            x, y = source.copy(place, content[:size]), target.array(place, size, dtype)
            rates = rates_memory.copy(place, all_rates[:size])
            scales = scales_memory.copy(place, all_scales[:size])
            bits = bits_memory.copy(place, reference.pack_bits(left[:size]))
            drawn, wanted = [(True, True), (True, False), (False, True)][ways]
            if drawn:
                bits[...] = 0xFF
            at(rate_dtype.__name__, size, drawn, wanted)
            on = RateOperands(KINDS.index(dtype), rate_dtype == np.float64, size, data(y), data(x))
            on.rates, on.scales = data(rates), data(scales) if size % 2 else None
            on.bits = data(bits) if wanted else None
            kernels.rates(ctypes.addressof(key) if drawn else None, 0, ctypes.addressof(on))
            check(y, expected[:size])
            if wanted:
                check(bits, reference.pack_bits(left[:size]))


# The assumptions of these tests.


@pytest.mark.parametrize("place", PLACES)
def test_an_access_outside_the_memory_is_detected(place):
    memory = Guarded(100)
    beside = -1 if place == "start" else 1

    @survives
    def touch(offset):
        faulthandler.disable()  # it would print this intended fault
        at("byte", offset)
        ctypes.string_at(data(memory.array(place, 1)) + offset, 1)

    touch(0)
    with pytest.raises(AssertionError, match=r"\('byte', -?1\)"):
        touch(beside)


def test_a_failure_in_a_child_is_reported():
    @survives
    def fail():
        at("here")
        raise ValueError("no luck")

    with pytest.raises(AssertionError, match=r"(?s)failed at \('here',\).*ValueError: no luck"):
        fail()
