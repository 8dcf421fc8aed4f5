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

# The kinds of fastdrop.h, in its order.
(
    OK,
    BAD_KIND,
    BAD_SHAPE,
    BAD_NOISE_SHAPE,
    BAD_RATE,
    BAD_SCALE,
    BAD_COUNT,
    NO_MEMORY,
) = range(8)


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


class Interface:
    """The functions of the struct, for NumPy arrays."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.library.mask_bytes.restype = ctypes.c_int64
        self.library.inverted.restype = ctypes.c_double
        self.api = ctypes.c_void_p(address_of(fastdrop._C_API))

    def call(self, to, from_, bits=None, *, back=False, seed=7, step=0, rate=0.5, **other):
        """The status of forward or backward; `other` replaces fields that come from the arrays."""
        kind = other.get("kind", DTYPES.index(from_.dtype))
        shape = other.get("shape", from_.shape)
        return self.library.call(
            self.api,
            back,
            kind,
            other.get("ndim", len(shape)),
            numbers(shape),
            numbers(other.get("noise_shape")),
            numbers([seed & 2**64 - 1, seed >> 64, step], ctypes.c_uint64),
            ctypes.c_double(rate),
            ctypes.c_double(other.get("scale", self.library.inverted())),
            ctypes.c_void_p(to.ctypes.data),
            numbers(other.get("to_strides", to.strides)),
            ctypes.c_void_p(from_.ctypes.data),
            numbers(other.get("from_strides", from_.strides)),
            None if bits is None else ctypes.c_void_p(bits.ctypes.data),
        )

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


def given(dtype, shape=SHAPE):
    return frozen_inputs.numbers(dtype, math.prod(shape), 1).reshape(shape)


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


@pytest.mark.parametrize("scale", [1.0, 0.0, -3.0, 1e300])
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
