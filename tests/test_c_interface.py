"""The public C interface, in C and C++: results against the reference, errors and versions."""

import array
import concurrent.futures
import ctypes
import importlib.machinery
import importlib.util
import itertools
import math
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import frozen_inputs
import guarded
import ml_dtypes
import numpy as np
import pytest
import reference
from pairwise import pairs_of

import fastdrop
from fastdrop._config import STREAM_VERSION

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
COMPILERS = {"c": ["gcc", "-std=c11"], "c++": ["g++", "-std=c++11", "-x", "c++"]}
DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]

# The statuses of fastdrop.h, in its order.
(
    OK,
    BAD_KIND,
    BAD_SHAPE,
    BAD_NOISE_SHAPE,
    BAD_RATE,
    BAD_SCALE,
    BAD_COUNT,
    NO_MEMORY,
    BAD_BIAS,
    NO_BITS,
    BAD_STDDEV,
) = range(11)


def compiled(language, source, folder):
    """The shared library of a source file. Without a compiler the test is skipped."""
    command = COMPILERS[language]
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} here")
    library = folder / pathlib.Path(source).with_suffix(".so").name
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-shared", "-fPIC"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    include = [fastdrop.get_include(), sysconfig.get_path("include")]
    subprocess.run(
        [*command, *flags, *(f"-I{i}" for i in include), str(ROOT / source), "-o", str(library)],
        env=os.environ | {"LD_PRELOAD": ""},
        check=True,
    )
    return library


def address_of(capsule):
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return pointer(capsule, b"fastdrop._C_API")


def numbers(values, of=ctypes.c_int64):
    return None if values is None else (of * len(values))(*values)


def address(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


class Interface:
    """The functions of the struct, for NumPy arrays."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.library.mask_bytes.restype = ctypes.c_int64
        self.library.inverted.restype = ctypes.c_double
        self.api = ctypes.c_void_p(address_of(fastdrop._C_API))

    def call(self, to, from_, bits=None, *, back=False, seed=7, step=0, rate=0.5, **other):
        """The status of forward or backward; `other` replaces fields that come from the arrays."""
        fields = self.fields(to, from_, seed=seed, step=step, rate=rate, **other)
        return self.library.call(self.api, back, *fields, address(bits))

    def relu(self, to, from_, bits, **other):
        """The status of relu_forward, as for `call`."""
        fields = self.fields(to, from_, **other)
        return self.library.fused(self.api, True, *fields, None, 0, None, None, address(bits))

    def add(self, to, from_, bias=None, residual=None, bits=None, **other):
        """The status of bias_forward, as for `call`."""
        bias_size = 0 if bias is None else bias.size
        strides = None if residual is None else residual.strides
        return self.library.fused(
            self.api,
            False,
            *self.fields(to, from_, **other),
            address(bias),
            ctypes.c_int64(other.get("bias_size", bias_size)),
            address(residual),
            numbers(other.get("residual_strides", strides)),
            address(bits),
        )

    def noise(self, to, from_, stddev, additive, **other):
        """The status of noise, as for `call`."""
        fields = self.fields(to, from_, rate=math.nan, **other)
        return self.library.noise(self.api, ctypes.c_double(stddev), additive, *fields)

    def bernoulli(self, to, rates, bits=None, **other):
        """The status of bernoulli, as for `call`."""
        fields = self.fields(to, rates, rate=math.nan, **other)
        return self.library.bernoulli(self.api, *fields, address(bits))

    def fields(self, to, from_, *, seed=7, step=0, rate=0.5, **other):
        """The arguments for the fields of a dropout and two arrays."""
        shape = other.get("shape", from_.shape)
        return [
            other.get("kind", DTYPES.index(from_.dtype)),
            other.get("ndim", len(shape)),
            numbers(shape),
            numbers(other.get("noise_shape")),
            numbers([seed & 2**64 - 1, seed >> 64, step], ctypes.c_uint64),
            ctypes.c_double(rate),
            ctypes.c_double(other.get("scale", self.library.inverted())),
            address(to),
            numbers(other.get("to_strides", to.strides)),
            address(from_),
            numbers(other.get("from_strides", from_.strides)),
        ]

    def draw(self, bits, *, seed=7, step=0, rate=0.5, first=0, size=0):
        return self.library.draw(
            self.api,
            numbers([seed & 2**64 - 1, seed >> 64, step], ctypes.c_uint64),
            ctypes.c_double(rate),
            ctypes.c_uint64(first),
            ctypes.c_uint64(size),
            ctypes.c_void_p(bits.ctypes.data),
        )


@pytest.fixture(scope="module", params=["c"])
def interface(request, tmp_path_factory):
    """The functions in C, or in the language of the test's parameter."""
    folder = tmp_path_factory.mktemp("interface")
    return Interface(compiled(request.param, "tests/native/c_interface.c", folder))


in_each_language = pytest.mark.parametrize("interface", COMPILERS, indirect=True)

# Against the reference.

SEED, STEP = (9 << 64) | 5, 3
SHAPE = (6, 5, 34)
NOISE_SHAPES = [None, (6, 1, 34), (1, 5, 1), (1, 1, 1), (6, 5, 34)]


def in_c_order(content):
    return content.copy()


def fortran(content):
    return np.asfortranarray(content)


def with_gaps(content):
    view = np.zeros((*content.shape[:-1], 2 * content.shape[-1]), content.dtype)[..., ::2]
    view[...] = content
    return view


def backwards(content):
    view = np.zeros(content.shape, content.dtype)[::-1, :, ::-1]
    view[...] = content
    return view


def at_an_odd_address(content):
    view = np.zeros(content.nbytes + 1, np.uint8)[1:].view(content.dtype).reshape(content.shape)
    view[...] = content
    return view


def in_rows_between_elements(content):
    """A view whose strides are not multiples of the element size."""
    rows = np.zeros((math.prod(content.shape[:-1]), content[0, 0].nbytes + 1), np.uint8)
    view = np.ndarray(
        content.shape,
        content.dtype,
        rows,
        strides=(content.shape[1] * rows.shape[1], rows.shape[1], content.itemsize),
    )
    view[...] = content
    return view


LAYOUTS = [in_c_order, fortran, with_gaps, backwards, at_an_odd_address, in_rows_between_elements]


def expected(x, noise_shape, rate, scale=None):
    noise_shape = x.shape if noise_shape is None else noise_shape
    kept = reference.keep_mask(SEED, STEP, rate, math.prod(noise_shape)).reshape(noise_shape)
    scale = reference.default_scale(rate) if scale is None else scale
    return reference.dropout(x, kept, scale), reference.pack_bits(kept)


def given(dtype, shape=SHAPE, salt=1):
    return frozen_inputs.numbers(dtype, math.prod(shape), salt).reshape(shape)


@pairs_of("dtype noise_shape", DTYPES, NOISE_SHAPES)
def test_every_layout(interface, isa, dtype, noise_shape):
    x = given(dtype)
    for rate, (to_layout, from_layout) in itertools.product(
        [0.2, 0.5], itertools.product(LAYOUTS, LAYOUTS)
    ):
        want, want_bits = expected(x, noise_shape, rate)
        with_all = {"seed": SEED, "step": STEP, "rate": rate, "noise_shape": noise_shape}
        from_, to = from_layout(x), to_layout(np.ones_like(x))
        bits = np.full(want_bits.size, 0xA5, np.uint8)
        assert interface.call(to, from_, bits, **with_all) == OK
        reference.assert_same_bits(to, want)
        np.testing.assert_array_equal(bits, want_bits)
        reference.assert_same_bits(from_, x, nan_payloads=True)
        # Without bits, which the gradient draws again, and with given bits.
        for back, mask in [(False, None), (True, None), (True, bits)]:
            to[...] = 1
            assert interface.call(to, from_, mask, back=back, **with_all) == OK
            reference.assert_same_bits(to, want)
        np.testing.assert_array_equal(bits, want_bits)


@in_each_language
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stored", [True, False])
def test_in_place(interface, layout, stored):
    for dtype, noise_shape in itertools.product(DTYPES, NOISE_SHAPES):
        x = layout(given(dtype))
        want, want_bits = expected(x, noise_shape, 0.3)
        bits = np.empty_like(want_bits) if stored else None
        options = {"seed": SEED, "step": STEP, "rate": 0.3, "noise_shape": noise_shape}
        assert interface.call(x, x, bits, **options) == OK
        reference.assert_same_bits(x, want)
        assert not stored or np.array_equal(bits, want_bits)


def test_without_strides_arrays_are_in_c_order(interface):
    x = given(np.dtype(np.float32))
    for noise_shape in NOISE_SHAPES:
        want, bits = expected(x, noise_shape, 0.2)
        options = {"seed": SEED, "step": STEP, "rate": 0.2, "noise_shape": noise_shape}
        for strides in [{"to_strides": None}, {"from_strides": None}]:
            y = np.empty_like(x)
            assert interface.call(y, x, np.empty_like(bits), **options, **strides) == OK
            reference.assert_same_bits(y, want)


def test_an_input_may_have_a_stride_of_zero(interface):
    x = np.broadcast_to(given(np.dtype(np.float64), (6, 1, 34)), SHAPE)
    y = np.empty(SHAPE)
    assert interface.call(y, x, seed=SEED, step=STEP, rate=0.2) == OK
    reference.assert_same_bits(y, expected(x, None, 0.2)[0])


@pytest.mark.parametrize("scale", [1.0, 0.0, -3.0, 1.7, 1e300])
def test_a_scale(interface, scale):
    x = given(np.dtype(np.float64))
    want, bits = expected(x, None, 0.2, scale)
    y = np.empty_like(x)
    options = {"seed": SEED, "step": STEP, "rate": 0.2, "scale": scale}
    assert interface.call(y, x, np.empty_like(bits), **options) == OK
    reference.assert_same_bits(y, want)
    # A gradient with bits ignores the seed and the rate.
    y[...] = 1
    assert interface.call(y, x, bits, back=True, rate=math.nan, scale=scale) == OK
    reference.assert_same_bits(y, want)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_zero_and_one(interface, rate):
    x = given(np.dtype(np.float16))
    want, want_bits = expected(x, None, rate)
    y, bits = np.empty_like(x), np.empty_like(want_bits)
    assert interface.call(y, x, bits, seed=SEED, step=STEP, rate=rate) == OK
    reference.assert_same_bits(y, want)
    np.testing.assert_array_equal(bits, want_bits)


@pytest.mark.parametrize("shape", [(), (1,), (1,) * 64, (2, *(1,) * 62, 3)], ids=len)
def test_dimensions(interface, shape):
    x = given(np.dtype(np.float32), shape)
    want, want_bits = expected(x, None, 0.5)
    y, bits = np.ones_like(x), np.empty_like(want_bits)
    for strides in [{}, {"to_strides": None, "from_strides": None}]:
        assert interface.call(y, x, bits, seed=SEED, step=STEP, **strides) == OK
        reference.assert_same_bits(y, want)
        np.testing.assert_array_equal(bits, want_bits)


@pytest.mark.parametrize(
    ("shape", "noise_shape"),
    [((0,), None), ((0,), (1,)), ((3, 0, 2), (3, 1, 1)), ((0, 2**40, 2**40), (0, 2**40, 2**40))],
    ids=str,
)
def test_arrays_without_elements_may_have_masks(interface, shape, noise_shape):
    x = np.empty(0, np.float32)
    size = math.prod(shape if noise_shape is None else noise_shape)
    want = reference.pack_bits(reference.keep_mask(SEED, STEP, 0.5, size))
    options = {"shape": shape, "noise_shape": noise_shape, "seed": SEED, "step": STEP}
    options |= {"to_strides": None, "from_strides": None}
    bits = np.full(want.size + 1, 0xA5, np.uint8)
    for back, mask in [(False, bits), (False, None), (True, bits), (True, None)]:
        assert interface.call(x, x, mask, back=back, **options) == OK
    np.testing.assert_array_equal(bits, [*want, 0xA5])


@pairs_of("first size", [0, 1, 511, 4096, 2**40 + 77], [0, 1, 13, 600, 5000])
def test_the_mask_alone(interface, isa, first, size):
    want = reference.pack_bits(reference.keep_mask(SEED, STEP, 0.2, size, first))
    bits = np.full(want.size + 1, 0xA5, np.uint8)
    assert interface.draw(bits, seed=SEED, step=STEP, rate=0.2, first=first, size=size) == OK
    np.testing.assert_array_equal(bits, [*want, 0xA5])


@pytest.mark.parametrize("noise_shape", [None, (2**18 + 77, 1)], ids=str)
def test_threads_of_a_large_array(interface, noise_shape):
    x = np.ones((2**18 + 77, 2), np.float32)
    want, want_bits = expected(x, noise_shape, 0.2)
    options = {"seed": SEED, "step": STEP, "rate": 0.2, "noise_shape": noise_shape}
    with fastdrop.num_threads(3):
        y, bits = np.empty_like(x), np.empty_like(want_bits)
        assert interface.call(y, x, bits, **options) == OK
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(bits, want_bits)


def test_calls_from_many_threads(interface):
    x = np.ones(5000, np.float32)
    want, _ = expected(x, None, 0.2)

    def often(_):
        for _ in range(100):
            y = np.empty_like(x)
            assert interface.call(y, x, seed=SEED, step=STEP, rate=0.2) == OK
            np.testing.assert_array_equal(y, want)

    # ctypes calls functions without the GIL.
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(often, range(4))) == [None] * 4


def test_the_count_of_threads(interface):
    api, library = interface.api, interface.library
    with fastdrop.num_threads(3):
        assert library.get_num_threads(api) == 3
        assert library.set_num_threads(api, 2) == OK
        assert fastdrop.get_num_threads() == library.get_num_threads(api) == 2
        for count in (0, -1, -(2**31)):
            assert library.set_num_threads(api, count) == BAD_COUNT
        assert fastdrop.get_num_threads() == 2


# The fused forward passes.


def expected_relu(x, noise_shape, rate, scale=None):
    noise_shape = x.shape if noise_shape is None else noise_shape
    kept = reference.keep_mask(SEED, STEP, rate, math.prod(noise_shape)).reshape(noise_shape)
    left = kept & reference.positive(x)
    scale = reference.default_scale(rate) if scale is None else scale
    return reference.dropout(x, left, scale), left


def expected_sum(x, bias, residual, noise_shape, rate, scale=None):
    noise_shape = x.shape if noise_shape is None else noise_shape
    kept = reference.keep_mask(SEED, STEP, rate, math.prod(noise_shape)).reshape(noise_shape)
    scale = reference.default_scale(rate) if scale is None else scale
    return reference.bias_dropout_add(x, bias, residual, kept, scale), reference.pack_bits(kept)


def at_the_step():
    stream = fastdrop.Stream()
    stream.state = {"seed": SEED, "step": STEP}
    return stream


def no_residual(_content):
    return None


def of_one_row(content):
    return np.broadcast_to(content[:, :1], content.shape)


def of_one_number(content):
    return np.broadcast_to(content[:1, :1, :1], content.shape)


@pairs_of("dtype noise_shape", DTYPES, NOISE_SHAPES)
def test_relu_of_every_layout(interface, isa, dtype, noise_shape):
    """The gradient uses the bits that ReLU stored, without a noise shape."""
    dy = given(dtype, salt=2)
    layouts = itertools.product(LAYOUTS, [*LAYOUTS, of_one_row])
    for (to_layout, from_layout), rate in itertools.product(layouts, [0.2, 0.5]):
        options = {"seed": SEED, "step": STEP, "rate": rate, "noise_shape": noise_shape}
        x, y = from_layout(given(dtype)), to_layout(np.ones(SHAPE, dtype))
        want, left = expected_relu(x.copy(), noise_shape, rate)
        want_bits = reference.pack_bits(left)
        bits = np.full(want_bits.size + 1, 0xA5, np.uint8)
        assert interface.relu(y, x, bits, **options) == OK
        reference.assert_same_bits(y, want)
        np.testing.assert_array_equal(bits, [*want_bits, 0xA5])
        assert interface.call(y, dy, bits, back=True, rate=rate) == OK
        gradient = reference.dropout(dy, left, reference.default_scale(rate))
        reference.assert_same_bits(y, gradient)


@pairs_of(
    "dtype noise_shape columns residual_layout",
    DTYPES,
    NOISE_SHAPES,
    [None, 1, SHAPE[-1]],
    [no_residual, *LAYOUTS, of_one_row, of_one_number],
)
def test_bias_and_residual_of_every_layout(
    interface, isa, dtype, noise_shape, columns, residual_layout
):
    options = {"seed": SEED, "step": STEP, "rate": 0.2, "noise_shape": noise_shape}
    # A bias at an odd address: only its elements' contiguity is required.
    bias = None if columns is None else at_an_odd_address(given(dtype, (columns,), 2))
    residual = residual_layout(given(dtype, salt=3))
    for to_layout, from_layout in itertools.product(LAYOUTS, [*LAYOUTS, of_one_row]):
        from_, to = from_layout(given(dtype)), to_layout(np.ones(SHAPE, dtype))
        want, want_bits = expected_sum(from_, bias, residual, noise_shape, 0.2)
        bits = np.full(want_bits.size, 0xA5, np.uint8)
        for stored in (bits, None):
            to[...] = 1
            assert interface.add(to, from_, bias, residual, stored, **options) == OK
            reference.assert_same_bits(to, want)
        np.testing.assert_array_equal(bits, want_bits)


@pairs_of("dtype noise_shape scale", DTYPES, NOISE_SHAPES, [None, 1.7, 1.0, -0.5, 0.0])
def test_fused_passes_equal_those_of_numpy(interface, isa, dtype, noise_shape, scale):
    """Bit for bit, NaN payloads too. Only one of the numbers that are added may be NaN."""
    x, bias = given(dtype), np.linspace(-3, 3, SHAPE[-1]).astype(dtype)
    residual = np.linspace(-9, 9, x.size).astype(dtype).reshape(SHAPE)
    options = {"seed": SEED, "step": STEP, "rate": 0.3, "noise_shape": noise_shape}
    if scale is not None:
        options["scale"] = scale
    same = {"rate": 0.3, "noise_shape": noise_shape, "scale": scale}
    for layout in LAYOUTS:
        from_, y = layout(x), np.ones_like(x)
        bits = np.zeros(-(-x.size // 8), np.uint8)
        assert interface.relu(y, from_, bits, **options) == OK
        want, mask = fastdrop.relu_dropout(from_, seed=at_the_step(), **same)
        reference.assert_same_bits(y, want, nan_payloads=True)
        np.testing.assert_array_equal(bits, mask.bits)
        for b, r in itertools.product([bias, None], [layout(residual), None]):
            assert interface.add(y, from_, b, r, bits, **options) == OK
            want, mask = fastdrop.bias_dropout_add(from_, b, r, seed=at_the_step(), **same)
            reference.assert_same_bits(y, want, nan_payloads=True)
            np.testing.assert_array_equal(bits[: mask.nbytes], mask.bits)


@in_each_language
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_in_place(interface, layout):
    for dtype, noise_shape in itertools.product(DTYPES, NOISE_SHAPES):
        options = {"seed": SEED, "step": STEP, "rate": 0.3, "noise_shape": noise_shape}
        y, bits = layout(given(dtype)), np.zeros(-(-math.prod(SHAPE) // 8), np.uint8)
        want, left = expected_relu(y, noise_shape, 0.3)
        assert interface.relu(y, y, bits, **options) == OK
        reference.assert_same_bits(y, want)
        np.testing.assert_array_equal(bits, reference.pack_bits(left))
        bias = given(dtype, SHAPE[-1:], 2)
        for in_x, in_residual in [(True, False), (False, True), (True, True)]:
            y, other = layout(given(dtype)), layout(given(dtype, salt=3))
            x, residual = y if in_x else other, y if in_residual else other
            want, _ = expected_sum(x.copy(), bias, residual.copy(), noise_shape, 0.3)
            assert interface.add(y, x, bias, residual, **options) == OK
            reference.assert_same_bits(y, want)


def test_the_result_may_overwrite_the_bias(interface):
    x = given(np.dtype(np.float32))
    y = given(np.dtype(np.float32), salt=2)
    bias = y[3, 2]
    want, _ = expected_sum(x, bias.copy(), None, None, 0.2)
    assert interface.add(y, x, bias, seed=SEED, step=STEP, rate=0.2) == OK
    reference.assert_same_bits(y, want)


@pytest.mark.parametrize("shape", [(), (1,), (1,) * 64, (2, *(1,) * 62, 3), (70, 1)], ids=len)
def test_fused_dimensions(interface, shape):
    """Also without strides: then arrays are in C order."""
    x, residual = given(np.dtype(np.float32), shape), given(np.dtype(np.float32), shape, 3)
    bias = given(np.dtype(np.float32), shape[-1:] or (1,), 2)
    want, want_bits = expected_sum(x, bias.reshape(shape[-1:]), residual, None, 0.5)
    relu, left = expected_relu(x, None, 0.5)
    y, bits = np.ones_like(x), np.empty_like(want_bits)
    none = {"to_strides": None, "from_strides": None, "residual_strides": None}
    for strides in [{}, none]:
        assert interface.add(y, x, bias, residual, bits, seed=SEED, step=STEP, **strides) == OK
        reference.assert_same_bits(y, want)
        np.testing.assert_array_equal(bits, want_bits)
        assert interface.relu(y, x, bits, seed=SEED, step=STEP, **strides) == OK
        reference.assert_same_bits(y, relu)
        np.testing.assert_array_equal(bits, reference.pack_bits(left))


@pytest.mark.parametrize("columns", [1, 2, 5, 31, 32, 33, 64, 65, 1000, 1500])
@pytest.mark.parametrize("layout", [in_c_order, fortran])
def test_every_size_of_a_bias(interface, layout, columns):
    x, bias = given(np.dtype(np.float16), (99, columns)), given(np.dtype(np.float16), (columns,), 2)
    options = {"seed": SEED, "step": STEP, "rate": 0.2}
    for some in (bias, bias[:1]):
        y = np.ones_like(x)
        want, _ = expected_sum(x, some, None, None, 0.2)
        assert interface.add(y, layout(x), some, **options) == OK
        reference.assert_same_bits(y, want)


@pytest.mark.parametrize(
    ("shape", "noise_shape"),
    [((0,), None), ((0,), (1,)), ((3, 0, 2), (3, 1, 1)), ((0, 2**40, 2**40), (0, 2**40, 2**40))],
    ids=str,
)
def test_fused_without_elements(interface, shape, noise_shape):
    """The bits of ReLU are those of the elements: there are none."""
    x = np.empty(0, np.float32)
    size = math.prod(shape if noise_shape is None else noise_shape)
    want = reference.pack_bits(reference.keep_mask(SEED, STEP, 0.5, size))
    options = {"shape": shape, "noise_shape": noise_shape, "seed": SEED, "step": STEP}
    options |= {"to_strides": None, "from_strides": None}
    bits = np.full(want.size + 1, 0xA5, np.uint8)
    assert interface.relu(x, x, bits, **options) == OK
    assert (bits == 0xA5).all()
    # Not even a bias is read.
    for bias_size in (1, shape[-1]):
        for stored in (None, bits):
            assert interface.add(x, x, x, x, stored, bias_size=bias_size, **options) == OK
    np.testing.assert_array_equal(bits, [*want, 0xA5])


# Noise.


@in_each_language
@pairs_of("dtype noise_shape additive", DTYPES, NOISE_SHAPES, [0, 1])
def test_noise_of_every_layout(interface, isa, dtype, noise_shape, additive):
    x = given(dtype)
    shape = x.shape if noise_shape is None else noise_shape
    drawn = reference.normals(SEED, STEP, math.prod(shape)).reshape(shape)
    want = reference.noised(x, np.broadcast_to(drawn, x.shape), 0.7, additive)
    options = {"seed": SEED, "step": STEP, "noise_shape": noise_shape}
    for to_layout, from_layout in itertools.product(LAYOUTS, LAYOUTS):
        from_, to = from_layout(x), to_layout(np.ones_like(x))
        assert interface.noise(to, from_, 0.7, additive, **options) == OK
        reference.assert_same_bits(to, want)
        reference.assert_same_bits(from_, x, nan_payloads=True)
        assert interface.noise(from_, from_, 0.7, additive, **options) == OK
        reference.assert_same_bits(from_, want)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1,) * 64, (2, *(1,) * 62, 3)], ids=len)
def test_noise_dimensions(interface, shape):
    x = given(np.dtype(np.float32), shape)
    want = reference.noised(x, reference.normals(SEED, STEP, x.size).reshape(shape), 2, True)
    for strides in [{}, {"to_strides": None, "from_strides": None}]:
        y = np.ones_like(x)
        assert interface.noise(y, x, 2, True, seed=SEED, step=STEP, **strides) == OK
        reference.assert_same_bits(y, want)


@pytest.mark.parametrize(
    ("status", "wrong"),
    [
        (BAD_KIND, {"kind": 4}),
        (BAD_SHAPE, {"ndim": 65}),
        (BAD_SHAPE, {"shape": (6, -5, 34)}),
        (BAD_NOISE_SHAPE, {"noise_shape": (6, 2, 34)}),
        (BAD_STDDEV, {"stddev": -1.0}),
        (BAD_STDDEV, {"stddev": math.inf}),
        (BAD_STDDEV, {"stddev": math.nan}),
    ],
)
def test_an_error_of_noise_changes_nothing(interface, status, wrong):
    x, y = given(np.dtype(np.float32)), np.ones(SHAPE, np.float32)
    options = {"stddev": 1.0, "additive": False, **wrong}
    assert interface.noise(y, x, **options) == status
    assert (y == 1).all()


def given_rates(dtype, shape=SHAPE):
    """Rates in every part of [0, 1], with its ends."""
    rates = np.random.default_rng(4).random(shape).astype(dtype)
    rates.reshape(-1)[:3] = 0, 1, 2.0**-20
    return rates


@in_each_language
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bernoulli_of_every_layout(interface, isa, dtype):
    """It ignores the noise shape, the rate and the scale."""
    rates = given_rates(dtype)
    kept = reference.keep_by_rates(SEED, STEP, rates, SHAPE)
    want_bits = reference.pack_bits(kept)
    ignored = {"seed": SEED, "step": STEP, "noise_shape": (2, 3, 4), "scale": math.nan}
    for to_layout, rates_layout in itertools.product(LAYOUTS, LAYOUTS):
        given, y = rates_layout(rates), to_layout(np.full_like(rates, 9))
        bits = np.empty_like(want_bits)
        assert interface.bernoulli(y, given, bits, **ignored) == OK
        reference.assert_same_bits(y, kept.astype(dtype))
        reference.assert_same_bits(given, rates)
        np.testing.assert_array_equal(bits, want_bits)
        assert interface.bernoulli(given, given, **ignored) == OK
        reference.assert_same_bits(given, kept.astype(dtype))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1,) * 64, (4095,), (4099,), (70_001,)], ids=str)
def test_bernoulli_dimensions(interface, shape):
    rates = np.random.default_rng(4).random(shape, np.float32)
    want = reference.keep_by_rates(SEED, STEP, rates, shape).astype(np.float32)
    for strides in [{}, {"to_strides": None, "from_strides": None}]:
        y = np.full(shape, 9, np.float32)
        with fastdrop.num_threads(3):
            assert interface.bernoulli(y, rates, seed=SEED, step=STEP, **strides) == OK
        reference.assert_same_bits(y, want)


@pytest.mark.parametrize(
    ("status", "wrong"),
    [
        (BAD_KIND, {"kind": 4}),
        (BAD_SHAPE, {"ndim": 65}),
        (BAD_SHAPE, {"shape": (6, -5, 34)}),
        (BAD_RATE, {"rate": -5e-324}),
        (BAD_RATE, {"rate": 1 + 2**-52}),
        (BAD_RATE, {"rate": math.nan}),
    ],
)
def test_an_error_of_bernoulli_changes_nothing(interface, status, wrong):
    rates, y = given_rates(np.dtype(np.float64)), np.full(SHAPE, 9.0)
    bits = np.full(1000, 9, np.uint8)
    rates[5, 4, 33] = wrong.get("rate", 0.5)
    options = {name: value for name, value in wrong.items() if name != "rate"}
    before = rates.copy()
    assert interface.bernoulli(y, rates, bits, **options) == status
    assert (y == 9).all()
    assert (bits == 9).all()
    assert interface.bernoulli(rates, rates, **options) == status
    reference.assert_same_bits(rates, before)


@pytest.mark.parametrize("noise_shape", [None, (1000, 1)], ids=str)
@pytest.mark.parametrize("layout", [in_c_order, fortran])
def test_fused_threads_of_a_large_array(interface, noise_shape, layout):
    shape = (1000, 777)
    x, residual = given(np.dtype(np.float32), shape), given(np.dtype(np.float32), shape, 3)
    bias = given(np.dtype(np.float32), shape[-1:], 2)
    options = {"seed": SEED, "step": STEP, "rate": 0.2, "noise_shape": noise_shape}
    with fastdrop.num_threads(3):
        y, bits = layout(np.empty_like(x)), np.empty(-(-x.size // 8), np.uint8)
        assert interface.relu(y, layout(x), bits, **options) == OK
        want, left = expected_relu(x, noise_shape, 0.2)
        reference.assert_same_bits(y, want)
        np.testing.assert_array_equal(bits, reference.pack_bits(left))
        assert interface.add(y, layout(x), bias, layout(residual), **options) == OK
        want, _ = expected_sum(x, bias, residual, noise_shape, 0.2)
        reference.assert_same_bits(y, want)


@guarded.survives
def test_no_byte_outside_an_array_or_its_mask_is_accessed(interface):
    memory, masks = guarded.Guarded(8 * 600), guarded.Guarded(100)
    for size, dtype, place in itertools.product([0, 1, 7, 33, 513, 600], DTYPES, ["start", "end"]):
        guarded.at(size, dtype, place)
        for noise_shape in [(size,), (1,)]:
            x = memory.array(place, size, dtype)
            x[...] = 1
            want, want_bits = expected(x, noise_shape, 0.2)
            bits = masks.array(place, want_bits.size)
            options = {"seed": SEED, "step": STEP, "rate": 0.2, "noise_shape": noise_shape}
            for mask in (bits, None):
                x[...] = 1
                assert interface.call(x, x, mask, **options) == OK
                reference.assert_same_bits(x, want)
            assert interface.call(x, x, bits, back=True, **options) == OK
            np.testing.assert_array_equal(bits, want_bits)


@guarded.survives
def test_no_byte_outside_is_accessed_by_a_fused_pass(interface):
    """Also beside a bias and a residual. The mask of a noise shape is shorter than that of ReLU."""
    memories = [guarded.Guarded(8 * 600) for _ in range(4)]
    masks = guarded.Guarded(100)
    shapes = [(0, 3), (1, 1), (7, 1), (1, 33), (33, 1), (19, 27), (9, 64), (600, 1), (1, 600)]
    for shape, dtype, place in itertools.product(shapes, DTYPES, ["start", "end"]):
        guarded.at(shape, dtype, place)
        contents = [given(dtype, shape), given(dtype, shape[1:], 2), given(dtype, shape, 3)]
        x, bias, residual = (
            memory.copy(place, content) for memory, content in zip(memories, contents, strict=False)
        )
        y = memories[3].array(place, math.prod(shape), dtype).reshape(shape)
        options = {"seed": SEED, "step": STEP, "rate": 0.2}
        for noise_shape, order in itertools.product(
            [shape, (1, 1), (shape[0], 1), (1, shape[1])], [np.asarray, np.transpose]
        ):
            options["noise_shape"] = order(np.empty(noise_shape)).shape
            from_ = order(x)
            bits = masks.array(place, -(-from_.size // 8))
            want, left = expected_relu(from_, options["noise_shape"], 0.2)
            assert interface.relu(order(y), from_, bits, **options) == OK
            reference.assert_same_bits(order(y), want)
            np.testing.assert_array_equal(bits, reference.pack_bits(left))
            b = bias if from_.shape[-1:] == bias.shape else None
            want, want_bits = expected_sum(from_, b, order(residual), options["noise_shape"], 0.2)
            bits = masks.array(place, want_bits.size)
            for stored in (bits, None):
                y[...] = 1
                assert interface.add(order(y), from_, b, order(residual), stored, **options) == OK
                reference.assert_same_bits(order(y), want)
            np.testing.assert_array_equal(bits, want_bits)


# Errors.

BAD = {
    "kind below": ({"kind": -1}, BAD_KIND),
    "kind above": ({"kind": 4}, BAD_KIND),
    "negative number of dimensions": ({"ndim": -1}, BAD_SHAPE),
    "65 dimensions": ({"shape": (1,) * 65}, BAD_SHAPE),
    "negative size": ({"shape": (3, -1)}, BAD_SHAPE),
    "negative size and none": ({"shape": (0, -1)}, BAD_SHAPE),
    "2^63 bytes": ({"shape": (2**31, 2**30)}, BAD_SHAPE),
    "2^64 bytes and more": ({"shape": (2**40, 2**40, 2**40)}, BAD_SHAPE),
    "noise of another size": ({"noise_shape": (3, 2)}, BAD_NOISE_SHAPE),
    "noise of no size": ({"noise_shape": (3, 0)}, BAD_NOISE_SHAPE),
    "noise of negative size": ({"noise_shape": (3, -1)}, BAD_NOISE_SHAPE),
    "2^63 bits of none": (
        {"shape": (0, 2**31, 2**32), "noise_shape": (1, 2**31, 2**32)},
        BAD_NOISE_SHAPE,
    ),
    "rate below": ({"rate": -1e-9}, BAD_RATE),
    "rate above": ({"rate": 1.0000001}, BAD_RATE),
    "rate NaN": ({"rate": math.nan}, BAD_RATE),
    "rate infinite": ({"rate": math.inf}, BAD_RATE),
    "scale infinite": ({"scale": math.inf}, BAD_SCALE),
    "scale NaN": ({"scale": math.nan}, BAD_SCALE),
}


@in_each_language
@pytest.mark.parametrize("bad", BAD)
def test_an_error_changes_nothing(interface, bad):
    options, status = BAD[bad]
    if "shape" in options:
        options = {"to_strides": None, "from_strides": None, **options}
    x, y = np.ones((3, 5), np.float64), np.full((3, 5), 7.0)
    bits = np.full(2, 0xA5, np.uint8)
    for back, mask in [(False, bits), (False, None), (True, bits), (True, None)]:
        assert interface.call(y, x, mask, back=back, **options) == status
    assert (y == 7).all()
    assert (x == 1).all()
    assert (bits == 0xA5).all()


BAD_BIASES = {
    "bias of no size": ({"bias_size": 0}, BAD_BIAS),
    "bias of negative size": ({"bias_size": -1}, BAD_BIAS),
    "bias of another dimension": ({"bias_size": 3}, BAD_BIAS),
    "bias of the array's size": ({"bias_size": 15}, BAD_BIAS),
    "bias of an array without dimensions": ({"shape": (), "bias_size": 5}, BAD_BIAS),
}


@in_each_language
@pytest.mark.parametrize("bad", BAD | BAD_BIASES)
def test_an_error_of_a_fused_pass_changes_nothing(interface, bad):
    options, status = (BAD | BAD_BIASES)[bad]
    if "shape" in options:
        none = {"to_strides": None, "from_strides": None, "residual_strides": None}
        options = none | options
    x, y, bias = np.ones((3, 5)), np.full((3, 5), 7.0), np.ones(5)
    bits = np.full(2, 0xA5, np.uint8)
    for mask in (bits, None):
        assert interface.add(y, x, bias, x, mask, **options) == status
        if bad in BAD:
            assert interface.add(y, x, None, None, mask, **options) == status
            assert interface.relu(y, x, mask, **options) == status
    assert (y == 7).all()
    assert (x == 1).all()
    assert (bits == 0xA5).all()


def test_relu_without_bits_is_refused(interface):
    x, y = np.ones((3, 5)), np.full((3, 5), 7.0)
    for options in [{}, {"noise_shape": (3, 1)}, {"shape": (0,), "to_strides": None}]:
        assert interface.relu(y, x, None, **options) == NO_BITS
    assert (y == 7).all()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"rate": math.nan}, BAD_RATE),
        ({"rate": 2.0}, BAD_RATE),
        ({"first": 2**63 - 7, "size": 8}, BAD_SHAPE),
        ({"first": 2**63 + 1}, BAD_SHAPE),
        ({"first": 2**64 - 1, "size": 2}, BAD_SHAPE),
        ({"size": 2**63 + 1}, BAD_SHAPE),
    ],
    ids=str,
)
def test_a_refused_draw_changes_nothing(interface, options, status):
    bits = np.full(2, 0xA5, np.uint8)
    assert interface.draw(bits, **{"size": 8, **options}) == status
    assert (bits == 0xA5).all()


def test_without_memory_for_a_mask_that_is_not_stored(interface):
    x, y = np.ones(1, np.float16), np.full(1, 7, np.float16)
    options = {"shape": (2**61,), "to_strides": (0,), "from_strides": (0,)}
    assert interface.call(y, x, None, **options) == NO_MEMORY
    assert interface.call(y, x, None, back=True, **options) == NO_MEMORY
    assert y[0] == 7


def test_without_memory_in_a_fused_pass(interface):
    x, y, bits = np.ones(1, np.float16), np.full(1, 7, np.float16), np.full(1, 0xA5, np.uint8)
    for size in (2**61, 2**60, 2**58):
        options = {"shape": (size,), "to_strides": (0,), "from_strides": (0,)}
        assert interface.relu(y, x, bits, **options) == NO_MEMORY
        assert interface.add(y, x, None, None, None, **options) == NO_MEMORY
        assert interface.add(y, x, x, None, None, **options) == NO_MEMORY
        for mask in (bits, None):
            assert interface.add(y, x, x, None, mask, bias_size=size, **options) == NO_MEMORY
    assert y[0] == 7
    assert bits[0] == 0xA5


@in_each_language
def test_bytes_of_a_mask(interface):
    mask_bytes = interface.library.mask_bytes
    for shape in [(), (1,), (8,), (9,), (3, 5), (0,), (2**40, 0, 2**40), (2**31, 2**31)]:
        assert mask_bytes(len(shape), numbers(shape)) == -(-math.prod(shape) // 8)
    most = 2**63 - 8
    assert mask_bytes(1, numbers([most])) == most // 8
    for shape in [(most + 1,), (2**32, 2**31), (2**40,) * 9, (-1,), (0, -1), (-1, 0)]:
        assert mask_bytes(len(shape), numbers(shape)) == -1


# The capsule, and versions.


def test_the_first_fields_of_the_struct(interface):
    version, size, stream = (ctypes.c_uint32 * 3).from_address(interface.api.value)
    assert (version, size) == (interface.library.version(), interface.library.size())
    assert stream == STREAM_VERSION


@pytest.fixture(scope="module", params=COMPILERS)
def compiled_example(request, tmp_path_factory):
    return compiled(request.param, "examples/c/in_place.c", tmp_path_factory.mktemp("example"))


@pytest.fixture
def load_example(compiled_example, tmp_path):
    """A function that imports a new copy of the example, since Python imports a module once."""

    def load_example():
        path = shutil.copy(compiled_example, tmp_path)
        loader = importlib.machinery.ExtensionFileLoader("in_place", path)
        spec = importlib.util.spec_from_loader("in_place", loader)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module

    return load_example


def capsule_like_ours(*, version=0, size=0, room=0):
    """A capsule of a library with another version and a longer struct."""
    ours = address_of(fastdrop._C_API)
    content = ctypes.string_at(ours, (ctypes.c_uint32 * 3).from_address(ours)[1]) + bytes(room)
    memory = ctypes.create_string_buffer(content, len(content))
    head = (ctypes.c_uint32 * 2).from_buffer(memory)
    head[0] += version
    head[1] += size
    name = ctypes.c_char_p(b"fastdrop._C_API")
    new, address = ctypes.pythonapi.PyCapsule_New, ctypes.c_void_p
    new.restype, new.argtypes = ctypes.py_object, [address, ctypes.c_char_p, address]
    return new(ctypes.addressof(memory), name, None), (memory, name)


def use(module):
    floats = array.array("f", [1.0] * 100)
    mask = module.drop(floats, 0.2, 42)
    want, ours = fastdrop.dropout(np.ones(100, np.float32), 0.2, seed=42)
    assert floats.tolist() == want.tolist()
    assert mask == ours.bits.tobytes()
    gradient = array.array("f", [2.0] * 100)
    module.drop_again(gradient, 0.2, mask)
    assert gradient.tolist() == ours.apply(np.full(100, 2, np.float32)).tolist()
    with pytest.raises(ValueError, match="status 4"):
        module.drop(floats, 1.5, 42)
    with pytest.raises(ValueError, match="status 2"):
        module.drop_again(gradient, 0.2, mask + b"0")


def test_the_example(load_example):
    use(load_example())


def test_a_newer_library_serves_an_older_header(interface, load_example, monkeypatch):
    capsule, _alive = capsule_like_ours(version=1, size=16, room=16)
    monkeypatch.setattr(fastdrop, "_C_API", capsule)
    assert interface.library.serves(ctypes.c_void_p(address_of(capsule)))
    use(load_example())


@pytest.mark.parametrize("change", [{"version": -1}, {"size": -8}], ids=str)
def test_an_older_library_is_refused(interface, load_example, monkeypatch, change):
    capsule, _alive = capsule_like_ours(**change)
    monkeypatch.setattr(fastdrop, "_C_API", capsule)
    assert not interface.library.serves(ctypes.c_void_p(address_of(capsule)))
    version = interface.library.version()
    with pytest.raises(ImportError) as error:
        load_example()
    assert str(error.value) == (
        f"this extension was compiled for version {version} of fastdrop's C interface, and the "
        f"installed fastdrop has version {version + change.get('version', 0)}: install a newer "
        "fastdrop"
    )
