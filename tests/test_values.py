"""Dropout equals the reference bit for bit, for all dtypes, shapes, layouts and ways of calling.

Every way of calling (new array, in place, ``out=``, replayed mask, gradient, ``Mask.apply``) must
give the reference's result, on every instruction set and number of threads and for every memory
layout. The bytes between and around the elements must not change.
"""

import functools
import itertools
import math
import mmap

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairs_of
from reference import assert_same_bits

import fastdrop

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


RATES = [0, 0.1, 0.5, 0.9, 1]
SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (33,),
    (4099,),
    (3, 0, 2),
    (3, 5),
    (70, 69),
    (2, 33, 9),
    (2, 3, 4, 5),
    (2, 1, 3, 2, 17),
]


# Values.


def special_values(dtype):
    info = ml_dtypes.finfo(dtype)
    tiny, subnormal, largest = info.tiny, info.smallest_subnormal, info.max
    with np.errstate(all="ignore"):
        half_normal = np.array(tiny, dtype) / np.array(2, dtype)
    magnitudes = [0.0, 1.0, 1.5, largest, tiny, half_normal, subnormal, np.inf, np.nan]
    return np.array([*magnitudes, *(np.negative(m) for m in magnitudes)], dtype=dtype)


@functools.cache
def values(dtype, shape, seed=0):
    """A random mixture of ordinary numbers, any bit patterns and special values; read-only."""
    rng = np.random.default_rng(seed)
    size = math.prod(shape)
    raw = rng.integers(0, 256, (size, dtype.itemsize), dtype=np.uint8).view(dtype).reshape(size)
    ordinary = rng.normal(0, 3, size).astype(dtype)
    special = rng.choice(special_values(dtype), size)
    kind = rng.integers(0, 4, size)
    mixed = np.select([kind == 0, kind == 1], [raw, special], ordinary).reshape(shape)
    mixed.flags.writeable = False
    return mixed


@functools.cache
def keep_mask(seed, step, rate, size):
    """The reference's mask, cached since many tests use the same masks."""
    return reference.keep_mask(seed, step, rate, size)


def expected_result(x, rate, seed, step=0, noise_shape=None, scale=None):
    noise = reference.resolve_noise_shape(x.shape, noise_shape)
    kept = keep_mask(seed, step, rate, math.prod(noise)).reshape(noise)
    return reference.dropout(x, kept, reference.default_scale(rate) if scale is None else scale)


# Memory layouts.


class Placed:
    """An array in a larger buffer, which must not change elsewhere."""

    def __init__(self, content, *, order=None, steps=None, byte_offset=0, record=False):
        ndim, dtype = content.ndim, content.dtype
        order = tuple(range(ndim)) if order is None else order
        steps = (1,) * ndim if steps is None else steps
        memory_shape = [content.shape[axis] * abs(steps[axis]) for axis in order]
        if record:
            # A field of packed records, whose strides are not multiples of the element's size.
            place = np.dtype({"names": ["x"], "formats": [dtype], "offsets": [1], "itemsize": 11})
        else:
            place = dtype
        size = byte_offset + math.prod(memory_shape) * place.itemsize
        self.buffer = np.full(size + 64, 0xA5, np.uint8)
        base = np.ndarray(memory_shape, place, self.buffer, offset=byte_offset)
        if record:
            base = base["x"]
        taken = base[(*(slice(None, None, steps[axis]) for axis in order), ...)]
        self.array = taken.transpose([order.index(axis) for axis in range(ndim)])
        self.array[...] = content
        self.content = content
        self.before = self.buffer.copy()

    def assert_rest_untouched(self):
        """Restore the first values, and compare the whole buffer."""
        result = self.array.copy()
        self.array[...] = self.content
        assert (self.buffer == self.before).all()
        self.array[...] = result

    def assert_untouched(self):
        assert (self.buffer == self.before).all()


LAYOUTS = {
    "C": lambda ndim: {},
    "Fortran": lambda ndim: {"order": tuple(reversed(range(ndim)))},
    "rotated axes": lambda ndim: {"order": (*range(1, ndim), 0)[:ndim]},
    "every other": lambda ndim: {"steps": (2,) * ndim},
    "every third of the rows": lambda ndim: {"steps": (3, *(1,) * (ndim - 1))[:ndim]},
    "reversed": lambda ndim: {"steps": (-1,) * ndim},
    "reversed, Fortran": lambda ndim: {"order": tuple(range(ndim))[::-1], "steps": (-2,) * ndim},
    "one element on": lambda ndim: {"byte_offset": 8},
    "unaligned": lambda ndim: {"byte_offset": 1},
    "unaligned, every other": lambda ndim: {"byte_offset": 3, "steps": (2,) * ndim},
    "field of records": lambda ndim: {"record": True},
}


# Ways of calling. Each returns the array of the result: the input if called in place, `out` if
# called with `out=`, else a new array.


def new(x, out, *args, **options):
    return fastdrop.dropout(x, *args, **options)[0]


def new_replayed(x, out, *args, **options):
    return fastdrop.dropout(x, *args, store_mask=False, **options)[0]


def into_out(x, out, *args, **options):
    y, _ = fastdrop.dropout(x, *args, out=out, **options)
    assert y is out
    return y


def into_out_replayed(x, out, *args, **options):
    return fastdrop.dropout(x, *args, out=out, store_mask=False, **options)[0]


def into_itself(x, out, *args, **options):
    y, _ = fastdrop.dropout(x, *args, out=x, **options)
    assert y is x
    return y


def in_place(x, out, *args, **options):
    fastdrop.dropout_(x, *args, **options)
    return x


def in_place_replayed(x, out, *args, **options):
    fastdrop.dropout_(x, *args, store_mask=False, **options)
    return x


def drawn(x, args, options, **more):
    return fastdrop.draw_mask(x.shape, *args, **options, **more)


def gradient(x, out, *args, **options):
    return fastdrop.dropout_grad(x, drawn(x, args, options))


def gradient_replayed(x, out, *args, **options):
    return fastdrop.dropout_grad(x, drawn(x, args, options, store_mask=False))


def gradient_into_out(x, out, *args, **options):
    dx = fastdrop.dropout_grad(x, drawn(x, args, options), out=out)
    assert dx is out
    return dx


def gradient_in_place(x, out, *args, **options):
    dx = fastdrop.dropout_grad_(x, drawn(x, args, options))
    assert dx is x
    return dx


def gradient_in_place_replayed(x, out, *args, **options):
    return fastdrop.dropout_grad_(x, drawn(x, args, options, store_mask=False))


def applied(x, out, *args, **options):
    return drawn(x, args, options).apply(x)


def applied_into_out(x, out, *args, **options):
    return drawn(x, args, options, store_mask=False).apply(x, out=out)


def applied_in_place(x, out, *args, **options):
    drawn(x, args, options).apply_(x)
    return x


def forward_mask_applied(x, out, *args, **options):
    """Apply the mask that a forward call returned."""
    _, mask = fastdrop.dropout(x, *args, **options)
    return fastdrop.dropout_grad(x, mask)


def forward_mask_replayed(x, out, *args, **options):
    mask = fastdrop.dropout_(x.copy(), *args, store_mask=False, **options)
    return fastdrop.dropout_grad(x, mask)


WAYS = [
    new,
    new_replayed,
    into_out,
    into_out_replayed,
    into_itself,
    in_place,
    in_place_replayed,
    gradient,
    gradient_replayed,
    gradient_into_out,
    gradient_in_place,
    gradient_in_place_replayed,
    applied,
    applied_into_out,
    applied_in_place,
    forward_mask_applied,
    forward_mask_replayed,
]


def check(way, content, rate, *, x_layout, out_layout, seed=21, step=0, stream=None, **options):
    """Call in this way on these layouts, and compare all memory with the expected result."""
    expected = expected_result(content, rate, seed, step, **options)
    x = Placed(content, **x_layout)
    out = Placed(np.zeros_like(content), **out_layout)
    y = way(x.array, out.array, rate, seed=seed if stream is None else stream, **options)
    assert_same_bits(y, expected)
    if y is x.array:
        x.assert_rest_untouched()
    else:
        x.assert_untouched()
        assert not np.shares_memory(y, x.array)
    if y is out.array:
        out.assert_rest_untouched()
    else:
        out.assert_untouched()
        assert not np.shares_memory(y, out.array)


@pairs_of("way layout dtype", WAYS, LAYOUTS, DTYPES)
def test_every_way_of_calling(isa, way, layout, dtype):
    out_layouts = itertools.cycle(LAYOUTS.values())
    for i, (shape, rate) in enumerate(itertools.product(SHAPES, RATES)):
        ndim = len(shape)
        content = values(dtype, shape, seed=i)
        x_layout, out_layout = LAYOUTS[layout](ndim), next(out_layouts)(ndim)
        check(way, content, rate, x_layout=x_layout, out_layout=out_layout)


NOISY_SHAPES = [
    (70,),
    (3, 70),
    (70, 3),
    (33, 65),
    (5, 7, 9),
    (2, 64, 33),
    (1, 70, 2),
    (4, 1, 16, 3),
    (3, 5, 2, 7, 6),
    (2, 3, 4, 5, 70),
]


@pairs_of("shape dtype", NOISY_SHAPES, DTYPES)
def test_every_pattern_of_noise_shape(isa, shape, dtype):
    content = values(dtype, shape, seed=3)
    ways = itertools.cycle(WAYS)
    containers = itertools.cycle([tuple, list])
    for pattern in itertools.product([1, None, "own"], repeat=len(shape)):
        noise_shape = next(containers)(
            size if entry == "own" else entry for size, entry in zip(shape, pattern, strict=True)
        )
        for way in (new, in_place, next(ways)):
            check(way, content, 0.4, x_layout={}, out_layout={}, noise_shape=noise_shape)


# Many pieces, of rows that are shorter and longer than a word of bits.
SHORT_ROWS = [
    (9000, 2, 2),
    (2100, 3, 3),
    (17_000, 2),
    (16, 1025),
    (190, 100),
    (700, 2, 3, 4),
    (257, 5, 7, 2),
    (33, 9, 70),
    (700, 1, 5, 5, 1),
    (2, 2, 4100),
]


@pairs_of("shape layout", SHORT_ROWS, LAYOUTS)
def test_noise_shapes_on_short_rows(isa, shape, layout):
    dtypes = itertools.cycle(DTYPES)
    ways = itertools.cycle(WAYS)
    swapped = {"order": (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)}
    for pattern in itertools.product([1, None], repeat=len(shape)):
        content = values(next(dtypes), shape, seed=5)
        for x_layout in (LAYOUTS[layout](len(shape)), swapped):
            check(next(ways), content, 0.4, x_layout=x_layout, out_layout={}, noise_shape=pattern)


@pairs_of("way layout", WAYS, LAYOUTS)
def test_noise_shapes_on_every_layout(isa, way, layout):
    dtypes = itertools.cycle(DTYPES)
    shape = (3, 34, 5, 40)
    for pattern in itertools.product([1, None], repeat=4):
        content = values(next(dtypes), shape, seed=4)
        x_layout = LAYOUTS[layout](4)
        check(way, content, 0.4, x_layout=x_layout, out_layout={}, noise_shape=pattern)


@st.composite
def calls(draw):
    """A way of calling with its values, layouts, noise shape, rate and scale."""
    # Sampled, since `integers()` prefers numbers near 0: a third of the arrays would be empty.
    ndim = draw(st.sampled_from(range(6)))
    shape, size = [], 1
    for _ in range(ndim):
        shape.append(draw(st.sampled_from(range(1, max(4, min(70, 12000 // size) + 1)))))
        size *= shape[-1]
    if shape and draw(st.sampled_from(range(20))) == 0:
        shape[draw(st.sampled_from(range(ndim)))] = 0

    def layout():
        steps = st.sampled_from([1, 1, 1, 2, 3, -1, -2])
        return {
            "order": tuple(draw(st.permutations(range(ndim)))),
            "steps": tuple(draw(steps) for _ in range(ndim)),
            "byte_offset": draw(st.sampled_from([0, 0, 1, 2, 4, 8, 32])),
            "record": draw(st.sampled_from([False, False, False, True])),
        }

    options = {}
    if draw(st.booleans()):
        options["noise_shape"] = tuple(draw(st.sampled_from([1, None, n])) for n in shape)
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([1.0, 0.0, -2.0, 1 / 3, 1e-3, 1000.1]))
    return {
        "way": draw(st.sampled_from(WAYS)),
        "content": values(draw(st.sampled_from(DTYPES)), tuple(shape), draw(st.integers(0, 999))),
        "rate": draw(st.one_of(st.sampled_from([0, 1, 0.2, 0.5]), st.floats(0, 1))),
        "x_layout": layout(),
        "out_layout": layout(),
        "seed": int.from_bytes(draw(st.binary(min_size=16, max_size=16)), "little"),
        **options,
    }


@settings(max_examples=1000)
@given(
    calls(),
    st.sampled_from(fastdrop.available_isas()),
    st.integers(1, 4),
    st.binary(max_size=8).map(lambda word: int.from_bytes(word, "little")),
)
def test_any_call(stream_at, call, isa, threads, step):
    stream = stream_at(call["seed"], step) if step else None
    with fastdrop._isa.using(isa), fastdrop.num_threads(threads):
        check(**call, step=step, stream=stream)


# Sizes at which the work is split between threads.

THREADS = [1, 2, 3, 7]
LARGE_NOISE_SHAPES = [
    (None, 1, None),
    (None, None, 1),
    (1, None, None),
    (None, 1, 1),
    (1, 1, None),
    (1, 1, 1),
]


@pairs_of("threads dtype", THREADS, DTYPES)
def test_large_arrays_on_any_number_of_threads(isa, threads, dtype):
    content = values(dtype, (2**20 + 4097,), seed=6)
    with fastdrop.num_threads(threads):
        for way in (new, in_place_replayed, gradient, into_out):
            check(way, content, 0.2, x_layout={}, out_layout={"byte_offset": 8})


@pairs_of("threads noise_shape", THREADS, LARGE_NOISE_SHAPES)
def test_large_noise_shapes_on_any_number_of_threads(isa, threads, noise_shape):
    content = values(np.dtype(np.float32), (61, 50, 701), seed=7)
    with fastdrop.num_threads(threads):
        for way in (new, in_place, gradient_replayed):
            check(way, content, 0.2, x_layout={}, out_layout={}, noise_shape=noise_shape)


@pairs_of("threads layout", THREADS, ["Fortran", "every other", "reversed", "unaligned"])
def test_large_layouts_on_any_number_of_threads(isa, threads, layout):
    content = values(np.dtype(np.float32), (61, 50, 701), seed=7)
    with fastdrop.num_threads(threads):
        for way in (in_place, gradient_replayed):
            check(way, content, 0.2, x_layout=LAYOUTS[layout](3), out_layout={})


@pairs_of(
    "layout shape",
    ["Fortran", "rotated axes", "reversed", "reversed, Fortran"],
    [(5000, 70), (70, 5000), (3, 20_000), (130, 9, 67)],
)
def test_bits_in_another_order_than_the_elements(isa, layout, shape):
    content = values(np.dtype(np.float32), shape, seed=9)
    layouts = LAYOUTS[layout](len(shape)), LAYOUTS[layout](len(shape))
    for way in (into_out, in_place, gradient_replayed):
        check(way, content, 0.3, x_layout=layouts[0], out_layout=layouts[1])


@pytest.mark.parametrize("step", [2**28, 2**30], ids=["offsets", "strides"])
def test_offsets_and_strides_longer_than_32_bits(isa, step):
    # Only the pages of the view take memory.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    base = np.frombuffer(mmap.mmap(-1, 2**33 + 4, flags=flags), dtype=np.float32)
    x = base[::step]
    content = values(x.dtype, x.shape, seed=8)
    x[...] = content
    fastdrop.dropout_(x, 0.5, seed=3)
    assert_same_bits(x.copy(), expected_result(content, 0.5, 3))


# Particular results.


@each_dtype
def test_rate_zero_returns_the_input_bit_for_bit(isa, dtype):
    content = values(dtype, (5000,), seed=1)
    for way in WAYS:
        y = way(content.copy(), np.zeros_like(content), 0, seed=1)
        assert_same_bits(y, content, nan_payloads=True)


@each_dtype
def test_rate_one_gives_positive_zeros(isa, dtype):
    content = values(dtype, (5000,), seed=1)
    for way, scale in itertools.product(WAYS, [None, 1.0, -2.0]):
        y = way(content.copy(), np.ones_like(content), 1, seed=1, scale=scale)
        assert not reference.bit_patterns(y).any()


@each_dtype
def test_every_dropped_value_becomes_positive_zero(isa, dtype):
    content = np.resize(np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, -1.0], dtype), 5000)
    for way in WAYS:
        y = way(content.copy(), content.copy(), 0.5, seed=1, scale=-3.0)
        dropped = ~keep_mask(1, 0, 0.5, 5000)
        assert not reference.bit_patterns(y)[dropped].any()


@each_dtype
def test_nan_and_inf_pass_through_where_kept(isa, dtype):
    kept = keep_mask(1, 0, 0.5, 5000)
    y, _ = fastdrop.dropout(np.full(5000, np.nan, dtype), 0.5, seed=1)
    np.testing.assert_array_equal(reference.is_nan(y), kept)
    y, _ = fastdrop.dropout(np.full(5000, -np.inf, dtype), 0.5, seed=1)
    np.testing.assert_array_equal(y == -np.inf, kept)


@each_dtype
def test_classic_dropout_does_not_scale_kept_elements(isa, dtype):
    content = values(dtype, (5000,), seed=2)
    for way in WAYS:
        y = way(content.copy(), content.copy(), 0.3, seed=5, scale=1.0)
        kept = keep_mask(5, 0, 0.3, 5000)
        assert_same_bits(y[kept], content[kept])


@each_dtype
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 1 / 3, 0.5, 0.7, 0.9, 0.999])
def test_every_half_precision_value_and_as_many_others(isa, dtype, rate):
    content = np.arange(2**16, dtype=np.uint16)
    if dtype.itemsize == 2:
        content = content.view(dtype)
    else:
        # All patterns in the high bits, for all exponents, and random low bits.
        word = np.dtype(f"u{dtype.itemsize}")
        low = np.random.default_rng(9).integers(0, 2**16, 2**16).astype(word)
        content = ((content.astype(word) << word.type(8 * dtype.itemsize - 16)) | low).view(dtype)
    assert_same_bits(
        fastdrop.dropout(content, rate, seed=12)[0], expected_result(content, rate, 12)
    )


# A signalling NaN, and the bit that makes it quiet.
SIGNALLING = {
    "float16": (0x7D23, 0x200),
    "bfloat16": (0x7FA3, 0x40),
    "float32": (0x7FA12345, 0x400000),
    "float64": (0x7FF4123456789ABC, 0x8000000000000),
}


@pairs_of("dtype layout noise_shape", DTYPES, LAYOUTS, [None, (None, 1), (1, None)])
def test_a_scale_of_one_copies_a_nan_and_other_scales_make_it_quiet(
    isa, dtype, layout, noise_shape
):
    nan, quiet = SIGNALLING[dtype.name]
    bits = np.full((70, 69), nan, f"u{dtype.itemsize}")
    noise = reference.resolve_noise_shape(bits.shape, noise_shape)
    kept = np.broadcast_to(keep_mask(3, 0, 0.5, math.prod(noise)).reshape(noise), bits.shape)
    x = Placed(bits, **LAYOUTS[layout](2)).array.view(dtype)
    options = {"seed": 3, "noise_shape": noise_shape}
    for y in (
        fastdrop.dropout(x, 0.5, scale=1.0, **options)[0],
        fastdrop.draw_mask(x.shape, 0.5, scale=1.0, store_mask=False, **options).apply(x),
    ):
        np.testing.assert_array_equal(y.view(bits.dtype), np.where(kept, bits, 0))
    for y in (
        fastdrop.dropout(x, 0.5, scale=3.0, **options)[0],
        fastdrop.relu_dropout(x, 0.5, scale=1.0, **options)[0],
        fastdrop.bias_dropout_add(x, None, None, 0.5, scale=1.0, **options)[0],
    ):
        np.testing.assert_array_equal(reference.is_nan(y).reshape(y.shape), kept)
        assert (y.view(bits.dtype)[kept] & quiet).all()


@each_dtype
def test_scale_is_rounded_to_the_dtype_first(isa, dtype):
    content = values(dtype, (5000,), seed=2)
    for scale in (1 / 3, 1 + 2**-24 + 2**-40, 65519.99999, 1e-7, -1.1):
        check(new, content, 0.5, x_layout={}, out_layout={}, scale=scale)


def test_default_scale_is_the_inverse_of_the_keep_rate():
    for rate in (0, 0.1, 0.2, 1 / 3, 0.5, 0.9, 1 - 2**-53):
        assert fastdrop.draw_mask(1, rate, seed=0).scale == 1.0 / (1.0 - rate)
    assert fastdrop.draw_mask(1, 1, seed=0).scale == 0.0


# Allowed inputs and outputs.


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_a_new_result_has_the_memory_order_of_its_input(axes):
    shape = (3, 4, 5)
    x = np.ones([shape[axis] for axis in axes], np.float32).transpose(np.argsort(axes))
    mask = fastdrop.draw_mask(shape, 0.5, seed=1)
    results = fastdrop.dropout(x, 0.5)[0], fastdrop.dropout_grad(x, mask), mask.apply(x)
    for y in (*results, fastdrop.relu_dropout_grad(x, mask)):
        assert y.shape == shape
        assert y.strides == x.strides


def test_lists_and_numbers_are_arrays():
    rows = [[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]
    x, bias = np.array(rows), [1.0, 2.0, 3.0]
    kept = reference.keep_mask(3, 0, 0.5, 6).reshape(2, 3)
    dropped = reference.dropout(x, kept, 2.0)
    y, mask = fastdrop.dropout(rows, 0.5, seed=3)
    for found in (y, fastdrop.dropout_grad(rows, mask), mask.apply(rows)):
        assert_same_bits(found, dropped)
    y, _ = fastdrop.relu_dropout(rows, 0.5, seed=3)
    assert_same_bits(y, reference.dropout(x, kept & (x > 0), 2.0))
    y, mask = fastdrop.bias_dropout_add(rows, bias, rows, 0.5, seed=3)
    assert_same_bits(y, reference.bias_dropout_add(x, np.array(bias), x, kept, 2.0))
    dx, dbias, dresidual = fastdrop.bias_dropout_add_grad(rows, mask)
    assert_same_bits(dx, dropped)
    assert_same_bits(dbias, dropped.sum(0))
    assert_same_bits(dresidual, x)
    assert_same_bits(fastdrop.dropout(2.0, 0.0)[0], np.array(2.0))
    packed = fastdrop.Mask.pack([[True, False], [False, True]])
    assert (packed.shape, packed.bits.tolist()) == ((2, 2), [9])


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="32 before NumPy 2")
@pytest.mark.parametrize("noise_shape", [None, (None, 1) * 32], ids=["none", "alternating"])
def test_arrays_of_64_dimensions(isa, noise_shape):
    shape = (2,) * 12 + (1,) * 52
    x = np.arange(1, 2**12 + 1, dtype=np.float32).reshape(shape)
    expected = expected_result(x, 0.5, 3, noise_shape=noise_shape)
    y, mask = fastdrop.dropout(x, 0.5, seed=3, noise_shape=noise_shape)
    assert_same_bits(y, expected)
    assert_same_bits(mask.apply_(np.asfortranarray(x)), expected)
    with pytest.raises(ValueError, match="64 dimensions"):
        fastdrop.draw_mask((1,) * 65, 0.5)


@each_dtype
def test_input_may_be_read_only(dtype):
    content = values(dtype, (5000,), seed=2)
    x = content.copy()
    x.flags.writeable = False
    y, mask = fastdrop.dropout(x, 0.5, seed=3)
    assert_same_bits(y, expected_result(content, 0.5, 3))
    assert_same_bits(fastdrop.dropout_grad(x, mask), expected_result(content, 0.5, 3))


@each_dtype
def test_input_may_overlap_itself(isa, dtype):
    content = values(dtype, (300,), seed=2)
    for x in (
        np.broadcast_to(content, (17, 300)),
        np.broadcast_to(content[:, None], (300, 17)),
        np.lib.stride_tricks.sliding_window_view(content, 40),
    ):
        expected = expected_result(x.copy(), 0.5, 3)
        assert_same_bits(fastdrop.dropout(x, 0.5, seed=3)[0], expected)
        mask = fastdrop.draw_mask(x.shape, 0.5, seed=3)
        assert_same_bits(fastdrop.dropout_grad(x, mask), expected)


def test_out_may_be_another_view_of_the_input(isa):
    content = values(np.dtype(np.float32), (70, 69), seed=2)
    for view in (lambda x: x[:], lambda x: x.T, lambda x: x[::-2, ::3]):
        x = view(content.copy())
        expected = expected_result(x.copy(), 0.5, 3)
        y, _ = fastdrop.dropout(x, 0.5, seed=3, out=x[...])
        assert_same_bits(y, expected)
        assert_same_bits(x, expected)


def test_out_may_lie_between_the_inputs_elements(isa):
    base = values(np.dtype(np.float32), (10000,), seed=2).copy()
    x, out = base[::2], base[1::2]
    content = x.copy()
    fastdrop.dropout(x, 0.5, seed=3, out=out)
    assert_same_bits(x, content)
    assert_same_bits(out, expected_result(content, 0.5, 3))


def test_new_results_are_writeable_and_own_their_memory():
    x = values(np.dtype(np.float32), (70, 69), seed=2)
    y, mask = fastdrop.dropout(x, 0.5, seed=3)
    results = [y, fastdrop.dropout_grad(x, mask), mask.apply(x)]
    for result, other in itertools.permutations([x, *results], 2):
        assert not np.shares_memory(result, other)
    assert all(result.flags.writeable for result in results)


def test_one_mask_serves_every_dtype(isa):
    mask = fastdrop.draw_mask((50, 41), 0.2, seed=3)
    for dtype in DTYPES:
        dy = values(dtype, (50, 41), seed=5)
        assert_same_bits(fastdrop.dropout_grad(dy, mask), expected_result(dy, 0.2, 3))


@pytest.mark.parametrize("rate", [np.float64(0.25), np.float32(0.25)])
def test_numpy_scalars_are_rates(rate):
    np.testing.assert_array_equal(
        fastdrop.draw_mask(5000, rate, seed=3).bits, fastdrop.draw_mask(5000, 0.25, seed=3).bits
    )


def test_gradient_is_the_derivative_of_the_forward():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 40, 30))
    y, mask = fastdrop.dropout(x, 0.3, seed=4)
    dx = fastdrop.dropout_grad(dy, mask)
    step = 2.0**-20
    for i, j in [(0, 0), (3, 7), (39, 29), (20, 20)]:
        moved = x.copy()
        moved[i, j] += step
        difference = (fastdrop.dropout(moved, 0.3, seed=4)[0] - y) * dy
        np.testing.assert_allclose(difference.sum() / step, dx[i, j], rtol=1e-6, atol=1e-9)
