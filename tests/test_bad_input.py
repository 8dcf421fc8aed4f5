"""Bad input raises a TypeError or ValueError that names the argument, and changes nothing.

Every call gets a Stream as its seed, which must not take a step. All memory that a call could
change is compared before and after.
"""

import re

import ml_dtypes
import numpy as np
import pytest

import fastdrop

F4 = np.float32


class Scene:
    """The arguments of calls, and a check that none of them has changed."""

    def __init__(self):
        self.buffer = np.arange(1, 97, dtype=F4)
        self.x = self.buffer[:12].reshape(3, 4)
        self.out = self.buffer[16:28].reshape(3, 4)
        self.square = self.buffer[32:41].reshape(3, 3)
        self.windows = np.lib.stride_tricks.as_strided(
            self.buffer[48:], (3, 4), (4, 4), writeable=True
        )
        self.repeated = np.lib.stride_tricks.as_strided(
            self.buffer[64:], (3, 4), (0, 4), writeable=True
        )
        self.read_only = self.buffer[80:92].reshape(3, 4)
        self.read_only.flags.writeable = False
        self.stream = fastdrop.Stream(5)
        self.stream.state = {"seed": 5, "step": 7}
        self.mask = fastdrop.draw_mask((3, 4), 0.5, seed=1)
        self.bits = self.mask.bits.copy()
        self.noise = fastdrop.gaussian_dropout(np.ones((3, 4), F4), 0.5, seed=1)[1]
        self.memory = self.buffer.copy()

    def assert_unchanged(self):
        np.testing.assert_array_equal(self.buffer, self.memory)
        assert self.stream.state == {"seed": 5, "step": 7}
        np.testing.assert_array_equal(self.mask.bits, self.bits)


def refuse(call, argument, *texts, error=(TypeError, ValueError)):
    """Assert that the call raises an error with the argument's name and one of the texts."""
    scene = Scene()
    with pytest.raises(error) as refused:
        call(scene)
    message = str(refused.value)
    words = message.replace("`", " ").replace("'", " ").replace("=", " ").replace(":", " ").split()
    assert argument in [word.strip(".,()") for word in words], message
    assert not texts or any(text in message for text in texts), message
    scene.assert_unchanged()


def short(value):
    """The part of a value that a message must contain: its repr, if that is one short line."""
    text = repr(value)
    return [text] if len(text) < 60 and " at 0x" not in text else []


def named(value):
    """A test's id, which must be the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))[:50]


# Calls that draw a mask, with all arguments but the wrong one.
DRAWING = {
    "dropout": lambda s, rate=0.5, **kw: fastdrop.dropout(s.x, rate, **{"seed": s.stream} | kw),
    "dropout, out": lambda s, rate=0.5, **kw: fastdrop.dropout(
        s.x, rate, **{"seed": s.stream, "out": s.out} | kw
    ),
    "dropout_": lambda s, rate=0.5, **kw: fastdrop.dropout_(s.x, rate, **{"seed": s.stream} | kw),
    "dropout_, replayed": lambda s, rate=0.5, **kw: fastdrop.dropout_(
        s.x, rate, store_mask=False, **{"seed": s.stream} | kw
    ),
    "draw_mask": lambda s, rate=0.5, **kw: fastdrop.draw_mask(
        (3, 4), rate, **{"seed": s.stream} | kw
    ),
    "relu_dropout": lambda s, rate=0.5, **kw: fastdrop.relu_dropout(
        s.x, rate, **{"seed": s.stream, "out": s.out} | kw
    ),
    "bias_dropout_add": lambda s, rate=0.5, **kw: fastdrop.bias_dropout_add(
        s.x, s.x[0], s.x, rate, **{"seed": s.stream, "out": s.out} | kw
    ),
}
# The same without an argument `scale`.
UNSCALED = {
    "alpha_dropout": lambda s, rate=0.5, **kw: fastdrop.alpha_dropout(
        s.x, rate, **{"seed": s.stream, "out": s.out} | kw
    ),
    "alpha_dropout_": lambda s, rate=0.5, **kw: fastdrop.alpha_dropout_(
        s.x, rate, **{"seed": s.stream} | kw
    ),
    "gaussian_dropout": lambda s, rate=0.5, **kw: fastdrop.gaussian_dropout(
        s.x, rate, **{"seed": s.stream, "out": s.out} | kw
    ),
    "gaussian_dropout_": lambda s, rate=0.5, **kw: fastdrop.gaussian_dropout_(
        s.x, rate, **{"seed": s.stream} | kw
    ),
}
NOISE = {
    "gaussian_noise": lambda s, stddev=0.5, **kw: fastdrop.gaussian_noise(
        s.x, stddev, **{"seed": s.stream, "out": s.out} | kw
    ),
    "gaussian_noise_": lambda s, stddev=0.5, **kw: fastdrop.gaussian_noise_(
        s.x, stddev, **{"seed": s.stream} | kw
    ),
}
each_drawing = pytest.mark.parametrize("drawing", DRAWING | UNSCALED)
each_drawing_and_noise = pytest.mark.parametrize("drawing", DRAWING | UNSCALED | NOISE)

BAD_NUMBERS = [
    -0.1,
    -5e-324,
    -1,
    float("nan"),
    float("inf"),
    -float("inf"),
    np.float64("nan"),
    10**400,
    "0.5",
    b"0.5",
    True,
    False,
    np.True_,
    None,
    [0.5],
    (0.5,),
    {0.5: 1},
    np.array(-1),
    np.array(np.nan, dtype=F4),
    np.array(True),
    np.array("0.5"),
    np.array(0.5, dtype=object),
    np.array(0.5j),
    np.array(1, dtype="m8[s]"),
    np.str_("0.5"),
    0.5j,
    object(),
]
# Only a rate may be an array.
ARRAYS = [np.array([0.5]), np.array([[0.5]]), np.array([0.5, 0.5], dtype=F4), np.array([])]
BAD_RATES = [*BAD_NUMBERS, 1.1, 1 + 2**-52, 2, np.float32(1.5), np.array(1.5)]


@each_drawing
@pytest.mark.parametrize("rate", BAD_RATES, ids=named)
def test_rate(drawing, rate):
    refuse(lambda s: (DRAWING | UNSCALED)[drawing](s, rate), "rate", *short(rate))


@pytest.mark.parametrize("drawing", ["gaussian_dropout", "gaussian_dropout_"])
@pytest.mark.parametrize("rate", [1, 1.0, np.float32(1), np.array(1)], ids=named)
def test_rate_one_of_gaussian_dropout(drawing, rate):
    refuse(lambda s: UNSCALED[drawing](s, rate), "rate", *short(rate), error=ValueError)


@pytest.mark.parametrize("drawing", NOISE)
@pytest.mark.parametrize("stddev", [*BAD_NUMBERS, *ARRAYS], ids=named)
def test_stddev(drawing, stddev):
    refuse(lambda s: NOISE[drawing](s, stddev), "stddev", *short(stddev))


BAD_SEEDS = [
    -1,
    -(2**127),
    2**128,
    2**200,
    1.5,
    1.0,
    float("nan"),
    np.float64(3),
    "42",
    b"42",
    [1, 2],
    (1, 2),
    np.array([1, 2]),
    1j,
    np.random.default_rng(0),
    object(),
]


@each_drawing_and_noise
@pytest.mark.parametrize("seed", BAD_SEEDS, ids=named)
def test_seed(drawing, seed):
    call = (DRAWING | UNSCALED | NOISE)[drawing]
    refuse(lambda s: call(s, seed=seed), "seed", *short(seed))


@pytest.mark.parametrize("seed", BAD_SEEDS, ids=named)
def test_seed_of_a_stream(seed):
    refuse(lambda s: fastdrop.Stream(seed), "seed", *short(seed))


BAD_NOISE_SHAPES = [
    (2, 4),
    (3, 5),
    (3, 3),
    (4, 3),
    (0, 4),
    (-1, 4),
    (None, -1),
    (None, 2),
    [None, 3],
    (3,),
    (2,),
    (None,),
    (-1,),
    (1, 3, 4),
    (1, 1, 1),
    (None, None, None),
    (3.0, 4),
    (1.5, 4),
    ("3", 4),
    "34",
    ((3,), 4),
    5,
    2.5,
    (2**70, 4),
    (2**64 + 3, 4),
    (np.nan, 4),
]


@each_drawing_and_noise
@pytest.mark.parametrize("noise_shape", BAD_NOISE_SHAPES, ids=named)
def test_noise_shape(drawing, noise_shape):
    refuse(
        lambda s: (DRAWING | UNSCALED | NOISE)[drawing](s, noise_shape=noise_shape),
        "noise_shape",
        *short(noise_shape),
        # The message may contain a list as a tuple.
        *([repr(tuple(noise_shape))] if isinstance(noise_shape, list) else []),
    )


@pytest.mark.parametrize("drawing", DRAWING)
@pytest.mark.parametrize("scale", ["2", b"2", [2.0], np.array([2.0]), 2j, object()], ids=named)
def test_scale(drawing, scale):
    refuse(lambda s: DRAWING[drawing](s, scale=scale), "scale", *short(scale))


@pytest.mark.parametrize("drawing", ["dropout", "dropout_", "draw_mask", "bias_dropout_add"])
@pytest.mark.parametrize("store_mask", [np.ones(2), np.ones((2, 3)) > 0], ids=named)
def test_store_mask_must_be_a_bool(drawing, store_mask):
    refuse(lambda s: DRAWING[drawing](s, store_mask=store_mask), "store_mask", *short(store_mask))


@pytest.mark.parametrize("offset", [-1, -(2**70), 2**64, 2**70, 1.5, "1", [1], None], ids=named)
def test_offset(offset):
    refuse(
        lambda s: fastdrop.draw_mask((3, 4), 0.5, seed=s.stream, offset=offset),
        "offset",
        *short(offset),
    )


BAD_SHAPES = [
    -1,
    (3, -1),
    1.5,
    (3, 1.5),
    "34",
    ("3", 4),
    None,
    (None, 4),
    2**70,
    (2**70, 1),
    # 2**64 elements: the product overflows to 0.
    (2**32, 2**32),
    (2**40, 2**40),
]


@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize("shape", BAD_SHAPES, ids=named)
def test_shape(shape, store_mask):
    refuse(
        lambda s: fastdrop.draw_mask(shape, 0.5, seed=s.stream, store_mask=store_mask),
        "shape",
        *short(shape),
    )


# Calls on an array, by the name of the argument.
ON_AN_ARRAY = {
    "dropout": ("x", lambda s, x: fastdrop.dropout(x, 0.5, seed=s.stream)),
    "dropout, replayed": (
        "x",
        lambda s, x: fastdrop.dropout(x, 0.5, seed=s.stream, store_mask=False),
    ),
    "dropout_grad": ("dy", lambda s, x: fastdrop.dropout_grad(x, s.mask)),
    "relu_dropout": ("x", lambda s, x: fastdrop.relu_dropout(x, 0.5, seed=s.stream)),
    "relu_dropout_grad": ("dy", lambda s, x: fastdrop.relu_dropout_grad(x, s.mask)),
    "bias_dropout_add": (
        "x",
        lambda s, x: fastdrop.bias_dropout_add(x, None, None, 0.5, seed=s.stream),
    ),
    "bias_dropout_add_grad": ("dy", lambda s, x: fastdrop.bias_dropout_add_grad(x, s.mask)),
    "apply": ("x", lambda s, x: s.mask.apply(x)),
    "alpha_dropout": ("x", lambda s, x: fastdrop.alpha_dropout(x, 0.5, seed=s.stream)),
    "gaussian_dropout": ("x", lambda s, x: fastdrop.gaussian_dropout(x, 0.5, seed=s.stream)),
    "gaussian_noise": ("x", lambda s, x: fastdrop.gaussian_noise(x, 0.5, seed=s.stream)),
    "Noise.apply": ("x", lambda s, x: s.noise.apply(x)),
}
IN_PLACE = {
    "dropout_": ("x", lambda s, x: fastdrop.dropout_(x, 0.5, seed=s.stream)),
    "dropout_, replayed": (
        "x",
        lambda s, x: fastdrop.dropout_(x, 0.5, seed=s.stream, store_mask=False),
    ),
    "dropout_grad_": ("dy", lambda s, x: fastdrop.dropout_grad_(x, s.mask)),
    "apply_": ("x", lambda s, x: s.mask.apply_(x)),
    "alpha_dropout_": ("x", lambda s, x: fastdrop.alpha_dropout_(x, 0.5, seed=s.stream)),
    "gaussian_dropout_": ("x", lambda s, x: fastdrop.gaussian_dropout_(x, 0.5, seed=s.stream)),
    "gaussian_noise_": ("x", lambda s, x: fastdrop.gaussian_noise_(x, 0.5, seed=s.stream)),
    "Noise.apply_": ("x", lambda s, x: s.noise.apply_(x)),
}
INTO_OUT = {
    "dropout": lambda s, out, x=None: fastdrop.dropout(
        s.x if x is None else x, 0.5, seed=s.stream, out=out
    ),
    "dropout, replayed": lambda s, out, x=None: fastdrop.dropout(
        s.x if x is None else x, 0.5, seed=s.stream, out=out, store_mask=False
    ),
    "dropout_grad": lambda s, out, x=None: fastdrop.dropout_grad(
        s.x if x is None else x, s.mask, out=out
    ),
    "relu_dropout": lambda s, out, x=None: fastdrop.relu_dropout(
        s.x if x is None else x, 0.5, seed=s.stream, out=out
    ),
    "relu_dropout_grad": lambda s, out, x=None: fastdrop.relu_dropout_grad(
        s.x if x is None else x, s.mask, out=out
    ),
    "bias_dropout_add": lambda s, out, x=None: fastdrop.bias_dropout_add(
        s.x if x is None else x, None, None, 0.5, seed=s.stream, out=out
    ),
    "bias_dropout_add_grad": lambda s, out, x=None: fastdrop.bias_dropout_add_grad(
        s.x if x is None else x, s.mask, out=out
    ),
    "apply": lambda s, out, x=None: s.mask.apply(s.x if x is None else x, out=out),
    "alpha_dropout": lambda s, out, x=None: fastdrop.alpha_dropout(
        s.x if x is None else x, 0.5, seed=s.stream, out=out
    ),
    "gaussian_dropout": lambda s, out, x=None: fastdrop.gaussian_dropout(
        s.x if x is None else x, 0.5, seed=s.stream, out=out
    ),
    "gaussian_noise": lambda s, out, x=None: fastdrop.gaussian_noise(
        s.x if x is None else x, 0.5, seed=s.stream, out=out
    ),
    "Noise.apply": lambda s, out, x=None: s.noise.apply(s.x if x is None else x, out=out),
}

BAD_DTYPES = [
    "?",
    "i1",
    "u1",
    "i2",
    "u2",
    "i4",
    "i8",
    "u8",
    "F",
    "D",
    "O",
    ">f2",
    ">f4",
    ">f8",
    "S4",
    "U1",
    "M8[s]",
    [("a", "f4")],
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.int4,
]
if np.dtype(np.longdouble).itemsize > 8:
    BAD_DTYPES.append("g")


def names_of(dtype):
    # ">f4" and "<f4" have the same name: a message must distinguish them.
    return [dtype.str] if dtype.byteorder == ">" else [dtype.name, str(dtype), repr(dtype)]


@pytest.mark.parametrize("call", ON_AN_ARRAY | IN_PLACE)
@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
def test_dtype(call, dtype):
    dtype = np.dtype(dtype)
    array = np.zeros((3, 4), dtype)
    before = array.tobytes()
    argument, function = (ON_AN_ARRAY | IN_PLACE)[call]
    refuse(lambda s: function(s, array), argument, *names_of(dtype), error=TypeError)
    assert array.tobytes() == before


def test_the_error_of_a_dtype_says_what_converts_an_array():
    with pytest.raises(TypeError, match=r"got dtype\('int64'\); `astype` converts"):
        fastdrop.dropout(np.ones(3, np.int64), 0.5)


@pytest.mark.parametrize("call", ON_AN_ARRAY)
@pytest.mark.parametrize("x", ["text", None, [1, 2], object(), {1.0}], ids=named)
def test_inputs_that_are_not_arrays_of_floats(call, x):
    argument, function = ON_AN_ARRAY[call]
    refuse(lambda s: function(s, x), argument, error=TypeError)


NO_ARRAYS = [[1.0, 2.0], (1.0, 2.0), 1.0, F4(1.0), "text", None, memoryview(bytearray(8))]


@pytest.mark.parametrize("call", IN_PLACE)
@pytest.mark.parametrize("x", NO_ARRAYS, ids=named)
def test_only_arrays_are_changed_in_place(call, x):
    argument, function = IN_PLACE[call]
    refuse(lambda s: function(s, x), argument, type(x).__name__, repr(x), error=TypeError)
    assert not isinstance(x, list) or x == [1.0, 2.0]


@pytest.mark.parametrize("call", INTO_OUT)
@pytest.mark.parametrize("out", [o for o in NO_ARRAYS if o is not None], ids=named)
def test_only_arrays_are_written_to(call, out):
    refuse(lambda s: INTO_OUT[call](s, out), "out", type(out).__name__, repr(out), error=TypeError)


@pytest.mark.parametrize("call", IN_PLACE)
def test_read_only_in_place(call):
    argument, function = IN_PLACE[call]
    refuse(lambda s: function(s, s.read_only), argument)


@pytest.mark.parametrize("call", INTO_OUT)
def test_read_only_out(call):
    refuse(lambda s: INTO_OUT[call](s, s.read_only), "out")


def overlapping_itself(scene):
    return {
        "windows": scene.windows,
        "repeated": scene.repeated,
        "repeated, reversed": scene.repeated[::-1],
    }


@pytest.mark.parametrize("call", IN_PLACE)
@pytest.mark.parametrize("which", ["windows", "repeated", "repeated, reversed"])
def test_overlapping_itself_in_place(call, which):
    argument, function = IN_PLACE[call]
    refuse(lambda s: function(s, overlapping_itself(s)[which]), argument)


@pytest.mark.parametrize("call", INTO_OUT)
@pytest.mark.parametrize("which", ["windows", "repeated", "repeated, reversed"])
def test_overlapping_itself_out(call, which):
    refuse(lambda s: INTO_OUT[call](s, overlapping_itself(s)[which]), "out")


@pytest.mark.parametrize(
    "call", ["dropout", "dropout, replayed", "alpha_dropout", "gaussian_dropout", "gaussian_noise"]
)
@pytest.mark.parametrize(
    "pair",
    [
        lambda s: (s.buffer[:-1], s.buffer[1:]),
        lambda s: (s.buffer[1:], s.buffer[:-1]),
        lambda s: (s.buffer, s.buffer[::-1]),
        lambda s: (s.buffer[:40], s.buffer[39:79]),
        lambda s: (s.buffer[:20:2], s.buffer[:10]),
        lambda s: (s.square, s.square.T),
        lambda s: (s.x, s.buffer[4:16].reshape(3, 4)),
        lambda s: (s.repeated, s.buffer[64:76].reshape(3, 4)),
    ],
    ids=["on", "back", "reversed", "one element", "strides", "transposed", "rows", "repeated x"],
)
def test_out_overlaps_x_partly(call, pair):
    def run(scene):
        x, out = pair(scene)
        assert np.shares_memory(x, out)
        INTO_OUT[call](scene, out, x)

    refuse(run, "out")


def test_out_shares_part_of_an_element():
    memory = np.zeros(100, np.uint8)
    x, out = memory[0:40].view(F4), memory[38:78].view(F4)
    with pytest.raises(ValueError, match="`out`"):
        fastdrop.dropout(x, 0.5, out=out)
    # Places 0 7 14 and 10 17 24, of four bytes each: the last two of 14 are the first two of... 17.
    x = np.lib.stride_tricks.as_strided(memory.view(F4), (2, 3), (10, 7))
    with pytest.raises(ValueError, match="`x`"):
        fastdrop.dropout_(x, 0.5)
    assert not memory.any()


@pytest.mark.parametrize("call", ["dropout_grad", "apply", "Noise.apply"])
def test_out_overlaps_dy_partly(call):
    refuse(lambda s: INTO_OUT[call](s, s.buffer[4:16].reshape(3, 4)), "out")
    refuse(lambda s: INTO_OUT[call](s, s.buffer[11::-1].reshape(3, 4)), "out")


@pytest.mark.parametrize("call", INTO_OUT)
@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 4, 1), (1, 3, 4), (3, 5), (4,), ()], ids=str)
def test_shape_of_out(call, shape):
    out = np.ones(shape, F4)
    refuse(lambda s: INTO_OUT[call](s, out), "out", str(shape))
    assert (out == 1).all()


@pytest.mark.parametrize("call", INTO_OUT)
@pytest.mark.parametrize("dtype", ["f2", "f8", "i4", "u4", ">f4", "O", ml_dtypes.bfloat16], ids=str)
def test_dtype_of_out(call, dtype):
    dtype = np.dtype(dtype)
    out = np.ones((3, 4), dtype)
    refuse(lambda s: INTO_OUT[call](s, out), "out", *names_of(dtype))
    assert (out == 1).all()


MASK_USES = {
    "dropout_grad": lambda s, x, mask: fastdrop.dropout_grad(x, mask),
    "dropout_grad, out": lambda s, x, mask: fastdrop.dropout_grad(x, mask, out=s.out),
    "dropout_grad_": lambda s, x, mask: fastdrop.dropout_grad_(x, mask),
}


@pytest.mark.parametrize("call", MASK_USES)
@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 4, 1), (1, 4), (4,), (), (3, 5)], ids=str)
def test_mask_of_another_shape(call, store_mask, shape):
    mask = fastdrop.draw_mask(shape, 0.5, seed=3, store_mask=store_mask)
    refuse(lambda s: MASK_USES[call](s, s.x, mask), "mask", str(shape))


@pytest.mark.parametrize("method", ["apply", "apply_"])
@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 4, 1), (1, 4), (4,), (), (3, 5)], ids=str)
def test_mask_applied_to_another_shape(method, shape):
    x = np.ones(shape, F4)
    refuse(lambda s: getattr(s.mask, method)(x), "x", str(shape))
    assert (x == 1).all()


@pytest.mark.parametrize("call", MASK_USES)
@pytest.mark.parametrize(
    "mask",
    [None, 0.5, "mask", np.ones((3, 4), bool), np.ones(2, np.uint8), b"\xff\xff", object()],
    ids=named,
)
def test_arguments_that_are_not_masks(call, mask):
    refuse(lambda s: MASK_USES[call](s, s.x, mask), "mask", error=TypeError)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.5", True, [0.5]], ids=named)
def test_rate_of_a_packed_mask(rate):
    refuse(lambda s: fastdrop.Mask.pack(np.ones(5, bool), rate=rate), "rate", *short(rate))


@pytest.mark.parametrize("scale", ["2", None, [2.0], np.array([2.0]), 2j], ids=named)
def test_scale_of_a_packed_mask(scale):
    refuse(lambda s: fastdrop.Mask.pack(np.ones(5, bool), scale=scale), "scale", *short(scale))


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastdrop.draw_mask(5, 2.0),
        lambda: fastdrop.draw_mask(5, 0.5, noise_shape=(7,)),
        lambda: fastdrop.draw_mask(-5, 0.5),
        lambda: fastdrop.dropout(np.ones(5, int), 0.5),
        lambda: fastdrop.dropout(np.ones(5), 0.5, out=np.ones(6)),
        lambda: fastdrop.dropout_([1.0], 0.5),
        lambda: fastdrop.gaussian_dropout(np.ones(5), 1),
        lambda: fastdrop.gaussian_noise(np.ones(5), -1),
        lambda: fastdrop.gaussian_noise_(np.ones(5), 1, noise_shape=(4,)),
        lambda: fastdrop.alpha_dropout(np.ones(5), 0.5, out=np.ones(6)),
    ],
)
def test_a_call_without_a_seed_that_raises_takes_no_step(call):
    before = fastdrop.draw_mask(5, 0.5).step
    with pytest.raises((TypeError, ValueError)):
        call()
    assert fastdrop.draw_mask(5, 0.5).step == before + 1


@pytest.mark.parametrize(
    "call",
    [
        lambda s: fastdrop.dropout(s.x, 0.5, 42),
        lambda s: fastdrop.dropout_(s.x, 0.5, 42),
        lambda s: fastdrop.dropout_grad(s.x, s.mask, s.out),
        lambda s: fastdrop.draw_mask((3, 4), 0.5, 42),
        lambda s: fastdrop.Mask.pack(np.ones(5, bool), 0.5),
        lambda s: fastdrop.alpha_dropout(s.x, 0.5, 42),
        lambda s: fastdrop.gaussian_dropout(s.x, 0.5, 42),
        lambda s: fastdrop.gaussian_noise_(s.x, 0.5, 42),
    ],
)
def test_options_are_keyword_only(call):
    scene = Scene()
    with pytest.raises(TypeError):
        call(scene)
    scene.assert_unchanged()


# A wrong type is a TypeError, a wrong value of the right type a ValueError.

WRONG = {
    "rate": {
        ValueError: [-0.1, 1.5, float("nan"), float("inf"), 10**400],
        TypeError: ["0.5", None, True, [0.5], np.array([0.5j]), np.array(True)],
    },
    "seed": {ValueError: [-1, 2**128], TypeError: [1.5, "1", True, [1]]},
    "scale": {ValueError: [float("nan"), float("inf")], TypeError: ["2", True, [2.0]]},
    "noise_shape": {ValueError: [(2, 4), (3,), (-1, 4)], TypeError: [5, "34", (1.5, 4)]},
}


@pytest.mark.parametrize("argument", WRONG)
@pytest.mark.parametrize("error", [TypeError, ValueError], ids=lambda error: error.__name__)
def test_the_error_of_an_argument(argument, error):
    for value in WRONG[argument][error]:
        options = {"rate": 0.5, "seed": 1, argument: value}
        for call in (
            lambda x, **options: fastdrop.dropout(x, **options),
            lambda x, **options: fastdrop.dropout_(x, **options),
            lambda x, **options: fastdrop.draw_mask(x.shape, **options),
            lambda x, **options: fastdrop.relu_dropout(x, **options),
            lambda x, **options: fastdrop.bias_dropout_add(x, None, None, **options),
        ):
            with pytest.raises(error, match=f"`{argument}`") as raised:
                call(np.ones((3, 4), F4), **options)
            assert raised.type is error


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ValueError, lambda s: fastdrop.dropout(s.x, 0.5, out=s.buffer[:12].reshape(4, 3))),
        (ValueError, lambda s: fastdrop.dropout(s.x, 0.5, out=s.read_only)),
        (TypeError, lambda s: fastdrop.dropout(s.x, 0.5, out=s.x.tolist())),
        (ValueError, lambda s: fastdrop.dropout_(s.read_only, 0.5)),
        (ValueError, lambda s: fastdrop.dropout_(s.windows, 0.5)),
        (TypeError, lambda s: fastdrop.dropout_(s.x.astype(int), 0.5)),
        (ValueError, lambda s: fastdrop.dropout_grad(s.buffer, s.mask)),
        (TypeError, lambda s: fastdrop.dropout_grad(s.x, s.bits)),
        (ValueError, lambda s: fastdrop.set_num_threads(0)),
        (TypeError, lambda s: fastdrop.set_num_threads(1.5)),
        (ValueError, lambda s: fastdrop.num_threads(0)),
        (TypeError, lambda s: fastdrop.num_threads("2")),
        (ValueError, lambda s: fastdrop.Stream(-1)),
        (TypeError, lambda s: fastdrop.Stream(1.5)),
        (ValueError, lambda s: s.stream.spawn(-1)),
        (TypeError, lambda s: s.stream.spawn(1.5)),
        (TypeError, lambda s: fastdrop.Mask.pack(s.x)),
        (TypeError, lambda s: fastdrop.Mask.pack(s.x > 0, rate="1")),
        (ValueError, lambda s: fastdrop.Mask.pack(s.x > 0, rate=2.0)),
        (ValueError, lambda s: fastdrop.Mask.pack(s.x > 0, scale=float("inf"))),
        (TypeError, lambda s: fastdrop.Mask()),
        (TypeError, lambda s: fastdrop.Noise()),
        (ValueError, lambda s: fastdrop.gaussian_dropout(s.x, 1)),
        (TypeError, lambda s: fastdrop.gaussian_noise(s.x, "1")),
        (ValueError, lambda s: fastdrop.gaussian_noise(s.x, -1)),
        (ValueError, lambda s: s.noise.apply(s.buffer)),
    ],
)
def test_the_error_of_a_call(error, call):
    scene = Scene()
    with pytest.raises(error) as raised:
        call(scene)
    assert raised.type is error
    scene.assert_unchanged()
