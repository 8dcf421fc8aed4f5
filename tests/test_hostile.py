"""Arguments that misreport themselves, change during checks, or try to exhaust memory or time."""

import copy
import ctypes
import ctypes.util
import numbers
import pickle
import platform
import re
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
import reference
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from test_values import each_dtype

import fastdrop


def test_a_dtype_without_a_number_is_not_bfloat16(run_python):
    """User dtypes of NumPy's newer API have the number -1, like bfloat16 before its import."""
    done = run_python(
        "import numpy as np, fastdrop\n"
        "odd = np._core._multiarray_umath._get_sfloat_dtype()\n"
        "x = np.ones(8).view(odd(1.0))\n"
        "try: fastdrop.dropout_(x, 0.5)\n"
        "except TypeError as error: print(error)\n"
    )
    assert "`x`" in done.stdout, done.stderr


def test_a_blocked_ml_dtypes_is_not_imported(run_python):
    done = run_python(
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import fastdrop\n"
        "try: fastdrop.dropout([1, 2], 0.5)\n"
        "except TypeError as error: print(error)\n"
    )
    assert "int64" in done.stdout, done.stderr


class Shapeless(np.ndarray):
    """Reports that it has one element."""

    shape = property(lambda self: ())
    size = property(lambda self: 1)


def test_a_subclass_cannot_lie_about_its_shape():
    x = np.ones(100_000).view(Shapeless)
    mask = fastdrop.dropout_(x, 0.5, seed=1)
    assert mask.shape == (100_000,)
    np.testing.assert_array_equal(np.asarray(x), fastdrop.dropout(np.ones(100_000), 0.5, seed=1)[0])
    packed = fastdrop.Mask.pack(np.ones(100_000, bool).view(Shapeless))
    assert packed.size == packed.count() == 100_000


class Fickle:
    """Returns another truth value each time."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __bool__(self):
        return self.answers.pop(0)


@pytest.mark.parametrize("first", [False, True])
def test_store_mask_is_evaluated_once(first):
    mask = fastdrop.draw_mask(100_000, 0.5, seed=1, store_mask=Fickle(first, not first))
    assert mask == fastdrop.draw_mask(100_000, 0.5, seed=1)
    assert (mask.bits is not None) == first


class Changing:
    """Changes an array while another value is read."""

    def __init__(self, change):
        self.change = change

    def __index__(self):
        self.change()
        return 8


def test_an_array_resized_while_arguments_are_read():
    x = np.ones(8, np.float32)
    change = Changing(lambda: x.resize(4096, refcheck=False))
    with pytest.raises(ValueError, match="noise_shape"):
        fastdrop.dropout_(x, 0.5, noise_shape=(change,))
    assert x.size == 4096


class NoIndex:
    def __index__(self):
        return 2.5


@pytest.mark.parametrize("shape", [(int,), (NoIndex(),), NoIndex()], ids=["type", "in", "alone"])
def test_objects_that_look_like_ints(shape):
    with pytest.raises(TypeError):
        fastdrop.draw_mask(shape, 0.5)


HUGE = 10**400  # more digits than Python prints


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("rate", lambda: fastdrop.draw_mask(3, HUGE)),
        ("seed", lambda: fastdrop.draw_mask(3, 0.5, seed=HUGE)),
        ("scale", lambda: fastdrop.draw_mask(3, 0.5, scale=HUGE)),
        ("shape", lambda: fastdrop.draw_mask(HUGE, 0.5)),
        ("offset", lambda: fastdrop.draw_mask(3, 0.5, offset=HUGE)),
        ("noise_shape", lambda: fastdrop.draw_mask(3, 0.5, noise_shape=(HUGE,))),
        ("n", lambda: fastdrop.set_num_threads(HUGE)),
        ("n", lambda: fastdrop.Stream(1).spawn(HUGE)),
        ("seed", lambda: setattr(fastdrop.Stream(1), "state", {"seed": HUGE, "step": 0})),
    ],
)
def test_huge_ints_are_refused_by_name(name, call):
    with pytest.raises(ValueError, match=re.escape(name)):
        call()


def test_out_over_the_same_memory_with_another_stride_of_one_element():
    b = np.ones(5)
    x, out = b.reshape(5, 1), b[:, None]
    assert x.strides != out.strides
    y, mask = fastdrop.dropout(x, 0.5, seed=1, out=out)
    assert y is out
    np.testing.assert_array_equal(y, 2.0 * mask.unpack())


ODD_VIEWS = {
    "windows": lambda: sliding_window_view(np.ones(200_000, np.float32), 200, writeable=True),
    "terabytes": lambda: as_strided(np.ones(4, np.float32), (2**40, 2**10), (4, 8)),
    # No elements overlap, and there are too many to visit each.
    "interleaved": lambda: as_strided(np.ones(130_000, np.float32), (2, 60_000), (12, 8)),
}


# Created in the test: pytest visits each element of a parameter for its id.
@pytest.mark.parametrize("view", ODD_VIEWS)
def test_an_overlapping_view_is_refused_without_visiting_each_element(view):
    with pytest.raises(ValueError, match="overlap"):
        fastdrop.dropout_(ODD_VIEWS[view](), 0.5)


def test_an_odd_view_without_overlap_is_accepted():
    places = np.zeros(20, np.float32)
    x = as_strided(places, (2, 3), (12, 8))  # places 0 2 4 and 3 5 7
    x[...] = 1
    mask = fastdrop.dropout_(x, 0.5, seed=3)
    np.testing.assert_array_equal(x, 2.0 * mask.unpack())
    assert places.sum() == x.sum()


def test_masks_of_many_dimensions_are_pickled():
    mask = fastdrop.dropout(np.ones((1,) * 32), 0.5, seed=1)[1]
    assert pickle.loads(pickle.dumps(mask)) == mask


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the modes' numbers are for x86"
)
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00], ids=["down", "up", "to zero"])
def test_the_callers_rounding_mode_does_not_matter(isa, mode):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    x = np.random.default_rng(0).standard_normal(1000)
    rates = [n / 100 for n in range(1, 100)]
    expected = [fastdrop.dropout(x, rate, seed=1)[0] for rate in rates]
    assert libm.fesetround(mode) == 0
    try:
        results = [fastdrop.dropout(x, rate, seed=1)[0] for rate in rates]
    finally:
        libm.fesetround(0)
    np.testing.assert_array_equal(results, expected)


class FloatingPointEnvironment(ctypes.Structure):
    """glibc's `fenv_t` on x86-64."""

    _fields_ = (("x87", ctypes.c_uint32 * 7), ("mxcsr", ctypes.c_uint32))


FLUSH = 0x8040  # subnormal results and operands become zero
MODES = 0xFFC0  # all bits of the register but the exception flags


@pytest.mark.skipif(
    (platform.machine(), sys.platform) != ("x86_64", "linux"), reason="a structure of glibc's"
)
@each_dtype
@pytest.mark.parametrize("modes", [FLUSH, 0x2000, 0x4000, 0x6000], ids=hex)
def test_the_callers_modes_do_not_matter_and_are_restored(isa, dtype, modes):
    """The caller flushes subnormals, as TensorFlow's threads do, or rounds down, up or to zero."""
    # Subnormal numbers, and numbers just above them.
    x = np.arange(2**12, dtype=f"u{dtype.itemsize}").view(dtype).reshape(64, 64)
    kept = reference.keep_mask(1, 0, 0.3, x.size).reshape(x.shape)
    mask = fastdrop.Mask.pack(kept, scale=reference.default_scale(0.3))
    calls = [
        lambda: fastdrop.dropout(x, 0.3, seed=1)[:1],
        lambda: fastdrop.dropout(x.T, 0.3, seed=1)[:1],
        lambda: fastdrop.relu_dropout(x, 0.3, seed=1)[:1],
        lambda: fastdrop.bias_dropout_add(x, x[0], x, 0.3, seed=1)[:1],
        lambda: fastdrop.bias_dropout_add_grad(x, mask)[:2],
        lambda: fastdrop.alpha_dropout(x, 0.3, seed=1)[:1],
        lambda: fastdrop.gaussian_dropout(x, 0.3, seed=1)[:1],
        lambda: fastdrop.gaussian_noise(x.T, 0.1, seed=1, noise_shape=(64, 1))[:1],
    ]
    expected = [array.tobytes() for call in calls for array in call()]
    assert expected[0] == reference.dropout(x, kept, mask.scale).tobytes()
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    before, after, before_call, after_call = (FloatingPointEnvironment() for _ in range(4))
    assert libm.fegetenv(ctypes.byref(before)) == 0
    odd = FloatingPointEnvironment.from_buffer_copy(before)
    odd.mxcsr |= modes
    libm.fesetenv(ctypes.byref(odd))
    try:
        flushed = float(np.float64(5e-324) * 1.0)
        libm.fegetenv(ctypes.byref(before_call))
        fastdrop.dropout_(x.copy(), 0.3, seed=1)
        libm.fegetenv(ctypes.byref(after_call))
        found = [array.tobytes() for call in calls for array in call()]
        libm.fegetenv(ctypes.byref(after))
    finally:
        libm.fesetenv(ctypes.byref(before))
    assert (flushed == 0) == (modes == FLUSH)
    assert found == expected
    assert after.mxcsr & MODES == odd.mxcsr & MODES
    # A kernel sets no exception flag either.
    assert after_call.mxcsr == before_call.mxcsr


class Meddler:
    """An array with a side effect when it is converted."""

    def __init__(self, array, action):
        self.array, self.action = array, action

    def __array__(self, dtype=None, copy=None):
        self.action()
        return self.array


@pytest.mark.parametrize("name", ["bias", "residual"])
@pytest.mark.parametrize("noise_shape", [None, (None, 1)])
def test_an_array_reshaped_while_its_companions_are_read(name, noise_shape):
    x = np.ones((64, 64), np.float32)
    companion = np.zeros(64 if name == "bias" else (64, 64), np.float32)
    arguments = {
        "bias": None,
        "residual": None,
        name: Meddler(companion, lambda: x.resize(4096, refcheck=False)),
    }
    with pytest.raises(ValueError, match=f"`{name}`|`noise_shape`"):
        fastdrop.bias_dropout_add(x, **arguments, rate=0.5, noise_shape=noise_shape)


def test_a_bias_whose_dtype_changes_while_the_residual_is_read():
    x = np.ones((64, 64), np.float32)
    bias = np.zeros(64, np.float32)

    def other_dtype():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer NumPy deprecates it
            bias.dtype = np.int8

    with pytest.raises(ValueError, match="`bias`"):
        fastdrop.bias_dropout_add(x, bias, Meddler(x, other_dtype), 0.5)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the modes' numbers are x86's")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00], ids=["down", "up", "to zero"])
def test_the_callers_rounding_mode_does_not_matter_to_sums(isa, mode):
    dy = np.random.default_rng(0).normal(size=(5000, 33)).astype(np.float32)
    mask = fastdrop.draw_mask(dy.shape, 0.2, seed=1)
    expected = fastdrop.bias_dropout_add_grad(dy, mask)
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    assert libm.fesetround(mode) == 0
    try:
        found = fastdrop.bias_dropout_add_grad(dy, mask)
    finally:
        libm.fesetround(0)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("how", ["raise", "warn"])
def test_the_callers_error_state_does_not_matter_to_sums(how):
    mask = fastdrop.draw_mask((1, 8), 0.3, seed=1)
    for value in (6e-8, 65504, -65504):
        dy = np.full((1, 8), value, np.float16)
        with np.errstate(all=how):
            fastdrop.bias_dropout_add_grad(dy, mask)


# Crafted pickles.


def crafted(**changes):
    """A mask of (5, 7) from a pickle with other fields."""
    restored, (state,) = fastdrop.draw_mask((5, 7), 0.5, seed=1).__reduce__()
    return pickle.loads(pickle.dumps(Crafted(restored, state | changes)))


class Crafted:
    def __init__(self, function, state):
        self.parts = function, (state,)

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bits": b""}, "bits"),
        ({"bits": b"\xff" * 4}, "bits"),
        ({"bits": b"\xff" * 6}, "bits"),
        ({"bits": b"\xff" * 5}, "bits"),  # elements beyond the last
        ({"bits": bytearray(5)}, "bits"),
        ({"bits": "12345"}, "bits"),
        ({"shape": (5, 8)}, "noise_shape"),
        ({"shape": (2**40, 2**40), "noise_shape": (1, 1)}, "shape"),
        ({"shape": (2**62, 4), "noise_shape": (None, None)}, "shape"),
        ({"shape": (-5, -7), "noise_shape": (-5, -7)}, "shape"),
        ({"shape": (2**62,), "noise_shape": (2**62,)}, "bits"),
        ({"shape": (1,) * 65, "noise_shape": (1,) * 65}, "shape"),
        ({"offset": -1}, "offset"),
        ({"offset": 2**63 - 34}, "offset"),
        ({"offset": 2**64}, "offset"),
        ({"step": 2**64}, "state"),
        ({"step": -1}, "step"),
        ({"seed": 2**128}, "seed"),
        ({"seed": None, "bits": None}, "state"),
        ({"rate": None}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"scale": float("inf")}, "scale"),
        ({"scale": None}, "scale"),
        ({"more": 1}, "state"),
        ({"stream": 1, "bits": None}, "stream"),
        ({"stream": None}, "stream"),
        ({"stream": -1}, "stream"),
        ({"stream": 2**64}, "stream"),
        ({"stream": 10**400}, "stream"),
        ({"stream": 1, "step": -1}, "step"),
    ],
    ids=str,
)
def test_a_crafted_pickle_is_refused(changes, named):
    with pytest.raises((TypeError, ValueError), match=named):
        crafted(**changes)


def test_a_crafted_pickle_of_a_huge_mask_takes_no_memory_until_it_is_used():
    mask = crafted(shape=(2**60,), noise_shape=(2**60,), bits=None, offset=2**62)
    assert (mask.size, mask.nbytes) == (2**60, 0)
    with pytest.raises(MemoryError):
        mask.unpack()
    # The comparison stops at the first window that differs.
    assert mask != crafted(shape=(2**60,), noise_shape=(2**60,), bits=None)


# Sizes, strides and offsets at the limits of 64 bits.


@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize(
    "shape", [(2**40, 2**40), (2**62, 2), (2**63,), (0, 2**40, 2**40), (2**32, 2**31), (2**31,) * 3]
)
def test_shapes_whose_product_does_not_fit(shape, store_mask):
    with pytest.raises(ValueError, match="`shape`"):
        fastdrop.draw_mask(shape, 0.5, store_mask=store_mask)


def test_a_noise_shape_far_smaller_than_its_shape():
    mask = fastdrop.draw_mask((2**31, 2**31), 0.5, seed=1, noise_shape=(1, 1))
    assert (mask.size, mask.nbytes) == (1, 1)
    with pytest.raises(MemoryError):
        mask.unpack()


@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize("size", [1, 8, 4096, 5000])
def test_offsets_at_the_end(isa, size, store_mask):
    last = 2**63 - size
    for offset in (last, last - 1):
        mask = fastdrop.draw_mask(size, 0.3, seed=4, offset=offset, store_mask=store_mask)
        np.testing.assert_array_equal(
            mask.unpack(), reference.keep_mask(4, 0, 0.3, size, offset=offset)
        )
    with pytest.raises(ValueError, match="`offset`"):
        fastdrop.draw_mask(size, 0.3, seed=4, offset=last + 1, store_mask=store_mask)


HUGE_STRIDE = 2**62


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((0,), (HUGE_STRIDE,)),
        ((3, 0), (HUGE_STRIDE, -HUGE_STRIDE)),
        ((0, 2**40), (HUGE_STRIDE, 4)),
        ((1, 5), (HUGE_STRIDE, 4)),
        ((5, 1), (4, -HUGE_STRIDE)),
        ((1, 1, 5, 1), (HUGE_STRIDE, -HUGE_STRIDE, -4, HUGE_STRIDE)),
    ],
    ids=str,
)
def test_huge_strides_that_lead_nowhere(isa, shape, strides):
    """A dimension with at most one element may have any stride."""
    memory = np.arange(1, 12, dtype=np.float32)
    x = as_strided(memory[5:], shape, strides)
    content = x.copy()
    noise = tuple(min(n, 1) for n in shape)
    for noise_shape in (None, noise):
        size = x.size if noise_shape is None else int(np.prod(noise))
        kept = reference.keep_mask(3, 0, 0.5, size)
        kept = np.broadcast_to(kept.reshape(noise_shape or shape), shape)
        y, mask = fastdrop.dropout(x, 0.5, seed=3, noise_shape=noise_shape)
        reference.assert_same_bits(y, reference.dropout(content, kept, 2.0))
        reference.assert_same_bits(mask.apply(x), reference.dropout(content, kept, 2.0))
        fastdrop.dropout_(x, 0.5, seed=3, noise_shape=noise_shape)
        reference.assert_same_bits(x.copy(), reference.dropout(content, kept, 2.0))
        x[...] = content
        relu, _ = fastdrop.relu_dropout(x, 0.5, seed=3, noise_shape=noise_shape)
        reference.assert_same_bits(relu, reference.dropout(content, kept, 2.0))
    np.testing.assert_array_equal(memory, np.arange(1, 12, dtype=np.float32))


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no name")


@pytest.mark.parametrize("argument", ["rate", "seed", "scale", "noise_shape"])
@pytest.mark.parametrize(
    "value",
    [Unprintable(), [Unprintable()], np.array([Unprintable()], object), type("array", (), {})()],
    ids=["alone", "in a list", "in an array", "of a name that Python's reprlib knows"],
)
def test_a_wrong_value_without_a_repr_is_refused_by_name(argument, value):
    arguments = {"rate": 0.5} | {argument: value}
    with pytest.raises(TypeError, match=f"`{argument}`"):
        fastdrop.draw_mask(3, **arguments)


# Objects that look like valid arguments.


@pytest.mark.parametrize(
    "function", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__
)
def test_the_memory_of_bits_cannot_be_copied_as_an_object(function):
    memory = fastdrop.draw_mask(100, 0.5).bits.base
    for of in (memory, type(memory)()):
        with pytest.raises(TypeError, match="pickle"):
            function(of)


def test_pickles_restore_only_masks_and_streams():
    """Cython creates unpickling functions for classes, which would set pointers from a pickle."""
    modules = [module for name, module in sys.modules.items() if name.startswith("fastdrop")]
    names = [name for module in modules for name in vars(module)]
    assert len(names) > 100
    assert not [name for name in names if "unpickle" in name]


class Long(bytes):
    """Reports a length that is too large."""

    def __len__(self):
        return 300_000_000

    def __getitem__(self, index):
        return 0


def test_bits_that_report_a_wrong_length():
    shape = (2_400_000_000,)
    with pytest.raises(ValueError, match="`bits`"):
        crafted(shape=shape, noise_shape=shape, bits=Long(b"abc"))


class Endless(tuple):
    def __iter__(self):
        while True:
            yield 1


@pytest.mark.parametrize("argument", ["shape", "noise_shape"])
def test_an_endless_shape(argument):
    arguments = {"shape": 3, argument: Endless((1,))}
    with pytest.raises(ValueError, match=f"`{argument}`.*64"):
        fastdrop.draw_mask(arguments.pop("shape"), 0.5, **arguments)


class Faceless(np.ndarray):
    """Raises an error instead of returning its shape."""

    @property
    def shape(self):
        raise RuntimeError("boom")


@pytest.mark.parametrize("argument", ["seed", "scale", "noise_shape"])
def test_an_array_without_a_shape_is_refused_by_name(argument):
    arguments = {"rate": 0.5} | {argument: np.ones(3).view(Faceless)}
    with pytest.raises(TypeError, match=f"`{argument}` .*an array of shape"):
        fastdrop.draw_mask(3, **arguments)


class Proxy:
    """Pretends to be another class, as wrapt's proxies and mocks do."""

    def __init__(self, array):
        self._array = array

    __class__ = property(lambda self: np.ndarray)

    def __array__(self, dtype=None, copy=None):
        return self._array


def test_a_proxy_of_an_array_is_read_and_not_changed_in_place():
    x = np.ones(100)
    y, mask = fastdrop.dropout(Proxy(x), 0.5, seed=1)
    reference.assert_same_bits(y, fastdrop.dropout(x, 0.5, seed=1)[0])
    reference.assert_same_bits(mask.apply(Proxy(x)), y)
    with pytest.raises(TypeError, match="`x`"):
        fastdrop.dropout_(Proxy(x), 0.5)
    with pytest.raises(TypeError, match="`out`"):
        fastdrop.dropout(x, 0.5, out=Proxy(x))


class OtherWords(np.random.SeedSequence):
    words = ()

    def generate_state(self, n_words, dtype=np.uint32):
        return self.words


@pytest.mark.parametrize(
    "words", [(), (1,), (1, 2, 3), (-1, 2), (1.5, 2), (2**64, 0), (1, None), 7]
)
@pytest.mark.parametrize(
    "use", [fastdrop.Stream, lambda seed: fastdrop.draw_mask(3, 0.5, seed=seed)]
)
def test_a_seed_sequence_of_other_words(words, use):
    sequence = OtherWords(1)
    sequence.words = words
    with pytest.raises((TypeError, ValueError), match="`seed`"):
        use(sequence)


class NoAnswer:
    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


@numbers.Real.register
class NoNumber:
    def __float__(self):
        raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("store_mask", NoAnswer()), ("rate", NoNumber()), ("scale", NoNumber())],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_cannot_be_converted_are_refused_by_name(argument, value):
    with pytest.raises(TypeError, match=f"`{argument}`"):
        fastdrop.draw_mask(3, **{"rate": 0.5, argument: value})


@pytest.mark.parametrize(
    "rate",
    [Fraction(2**60 + 1, 2**60), Fraction(-1, 10**400), np.nextafter(np.longdouble(1), 2)],
    ids=["above", "below", "long double"],
)
def test_a_rate_that_would_be_rounded_into_the_interval(rate):
    with pytest.raises(ValueError, match="`rate`"):
        fastdrop.draw_mask(3, rate)


def test_another_module_named_ml_dtypes(import_in):
    stand_ins = ["MagicMock()", "types.SimpleNamespace(bfloat16=object)", "types.ModuleType('m')"]
    printed = import_in(
        [{"STAND_IN": stand_in} for stand_in in stand_ins],
        "import os, sys, types\nfrom unittest.mock import MagicMock\n"
        "sys.modules['ml_dtypes'] = eval(os.environ['STAND_IN'])\n"
        "import numpy as np, fastdrop\n"
        "for x in (np.ones(3, int), np.array([None, 2.5])):\n"
        "    try: fastdrop.dropout(x, 0.5)\n"
        "    except TypeError as error: print('`x` must have the dtype' in str(error))\n",
    )
    assert printed == ["True\nTrue\n"] * 3


def test_a_gradient_with_too_many_columns_for_memory():
    mask = fastdrop.draw_mask((0, 2**60), 0.5)
    with pytest.raises(MemoryError):
        fastdrop.bias_dropout_add_grad(np.empty((0, 2**60), np.float32), mask)
