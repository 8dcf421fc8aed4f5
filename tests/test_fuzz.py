"""The public interface with random arguments, valid and invalid.

A call with valid arguments must give the results of tests/reference.py and NumPy. A call with an
invalid argument must raise a TypeError or a ValueError that names it, and change no array, stream
or number of threads.
"""

import contextlib
import io
import math
import os
import pickle

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given
from reference import assert_same_bits, bias_dropout_add, positive
from test_fused import finite
from test_values import LAYOUTS, Placed, values

import fastdrop
from fastdrop import _pickle

DTYPES = [np.dtype(d) for d in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)]
WRONG_DTYPES = [np.dtype(d) for d in ("i4", "?", ">f4", "F", "O", "u1", "S3")]
NAN, INF = float("nan"), float("inf")

# Valid values that look invalid, and invalid values that look valid.
RATES = [0, 1, 0.0, -0.0, 0.5, 1.0, 2**-49, 1 - 2**-53, np.float16(0.25), np.int8(1), np.uint64(0)]
RATES += [np.array(0.5), np.array(0.25, np.float16), np.array(1, np.int8)]
WRONG_RATES = [-1, 2, 1 + 2**-52, -5e-324, NAN, INF, 10**400, True, None, "0.5", b"1", 0.5j]
WRONG_RATES += [
    [0.5],
    np.array([0.5j]),
    np.array(1.5),
    np.array(False),
    np.float64(1.5),
    object,
    {},
]
STDDEVS = [0, -0.0, 1, 0.5, 1e300, 5e-324, np.float16(0.25), np.int8(3), np.array(0.5)]
WRONG_STDDEVS = [-1, -5e-324, NAN, INF, 10**400, True, None, "0.5", b"1", 0.5j, [0.5]]
WRONG_STDDEVS += [np.array([0.5]), np.array(False), np.float64(-1.5), object, {}]
SCALES = [None, 1, 0.0, -2.5, 1e300, 5e-324, np.float32(3), np.int64(7)]
WRONG_SCALES = [NAN, INF, -INF, 10**400, True, "2", b"2", 2j, [1.0], np.ones(1), object]
WRONG_SEEDS = [-1, 2**128, 10**5000, 1.0, NAN, "1", b"1", True, [1], np.ones(1, int), object]
WRONG_INTS = [1.0, NAN, "1", b"1", None, [1], np.ones(1, int), object, True]
WRONG_MASKS = [None, 1, "mask", np.ones(3, bool), b"\xff", object, {}]
WRONG_ARRAYS = [None, "x", b"x", object, [1], 3, {1.0}, [[1.0], [1.0, 2.0]]]
RANDOM_GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


class Scene:
    """Draws the arguments of one call, and records the invalid ones and a copy of all arrays."""

    def __init__(self, data):
        self.data = data
        self.wrong = {}
        # Mostly one, since another invalid argument could hide it.
        self.most_wrong = data.draw(st.sampled_from([1, 1, 9]), "wrong arguments at most")
        self.placed = []
        self.threads = fastdrop.get_num_threads()
        self.seed = data.draw(st.sampled_from([0, 1, 2**64, 2**128 - 1]) | st.integers(0, 2**70))
        self.step = data.draw(st.sampled_from([0, 1, 2**63, 2**64 - 1]))
        self.stream = fastdrop.Stream(self.seed)
        self.stream.state = self.before = {"seed": self.seed, "step": self.step}

    def enough_wrong(self):
        return len(self.wrong) >= self.most_wrong

    def choose(self, name, right, wrong):
        """A value of a strategy, or sometimes an invalid value from a list."""
        if self.enough_wrong() or self.data.draw(st.integers(0, 5), f"{name} is wrong if 5") < 5:
            return self.data.draw(right, name)
        value = self.data.draw(st.sampled_from(wrong), f"wrong {name}")
        self.wrong[name] = value
        return value

    def shape(self):
        small = st.lists(st.integers(0, 6), max_size=4)
        # Sizes above 1, so that each entry of a noise shape matters.
        solid = st.lists(st.integers(2, 6), min_size=3, max_size=4)
        large = st.lists(st.sampled_from([1, 3, 64, 70, 97]), min_size=2, max_size=2)
        return tuple(self.data.draw(small | solid | large | st.sampled_from([[4096], [8195]])))

    def dtype(self, name):
        return self.choose(f"{name}, dtype", st.sampled_from(DTYPES), WRONG_DTYPES)

    def place(self, content):
        """The content in memory of any layout, which is checked after the call."""
        layout = LAYOUTS[self.data.draw(st.sampled_from(sorted(LAYOUTS)))]
        placed = Placed(content, **layout(content.ndim))
        self.placed.append(placed)
        return placed.array

    def array(self, name, shape, dtype, numbers=values):
        """An array to read, with a dtype that may be invalid."""
        if dtype not in DTYPES:
            self.wrong[name] = dtype
            return np.zeros(shape, dtype)
        return self.place(numbers(dtype, shape))

    def changeable(self, name, array):
        """The array to change in place, which is sometimes invalid."""
        how = self.data.draw(st.sampled_from(["", "", "", "", "read-only", "list", "overlap"]))
        if self.enough_wrong():
            return array
        if how == "read-only":
            array.flags.writeable = False
        elif how == "list":
            array = array.tolist()
        elif how == "overlap" and array.size > 1 and array.dtype in DTYPES:
            array = np.lib.stride_tricks.as_strided(array, array.shape, (0,) * array.ndim)
        else:
            return array
        self.wrong[name] = array
        return array

    def out(self, x, itself=True):
        """None, x itself, or another array, which may be invalid."""
        how = self.data.draw(st.sampled_from(["none", "none", "x", "other", "other", "unfit"]))
        if how == "none" or not isinstance(x, np.ndarray) or x.dtype not in DTYPES:
            return None
        if how == "x" and (itself or not x.size):
            return x
        if how == "x" and not self.enough_wrong():
            self.wrong["out"] = x
            return x
        if how == "unfit" and not self.enough_wrong():
            unfit = [x.tolist(), np.ones((*x.shape, 2), x.dtype), np.ones(x.shape, np.int8)]
            if x.size > 2 and x.ndim == 1:
                unfit.append(x[::-1])  # the same memory in another order
            self.wrong["out"] = self.data.draw(st.sampled_from(unfit))
            return self.wrong["out"]
        out = self.place(np.ones(x.shape, x.dtype))
        return self.changeable("out", out)

    def noise_shape(self, shape):
        wrong = [(*shape, 1), "1", 3, (0.5,) * max(1, len(shape)), (-1,) * max(1, len(shape))]
        wrong += [(2**70,) * max(1, len(shape))]
        if shape:
            wrong += [tuple(n + 2 for n in shape), tuple(n + 2 for n in shape[-1:])]
        if len(shape) > 1:
            wrong.append((1,) * (len(shape) - 2) + (None,))
        entries = st.tuples(*(st.sampled_from([None, 1, n]) for n in shape))
        last = shape[self.data.draw(st.integers(0, len(shape)), "left out") :]
        fewer = st.tuples(*(st.sampled_from([1, n]) for n in last))
        return self.choose("noise_shape", st.none() | entries | fewer, wrong)

    def rate(self):
        return self.choose("rate", st.sampled_from(RATES) | st.floats(0, 1), WRONG_RATES)

    def rates_instead(self, arguments, shape):
        """Sometimes replace the rate by an array of rates, one for each decision."""
        if not shape or self.wrong or self.data.draw(st.booleans(), "one rate"):
            return
        dtype = self.data.draw(st.sampled_from(DTYPES), "dtype of the rates")
        noise = reference.resolve_noise_shape(shape, arguments["noise_shape"])
        arguments["rate"] = self.place(np.random.default_rng(4).random(noise).astype(dtype))

    def placing(self, shape):
        """The arguments of all functions that draw, whatever they draw."""
        return {
            "seed": self.choose("seed", st.just(self.stream), WRONG_SEEDS),
            "noise_shape": self.noise_shape(shape),
        }

    def drawing(self, shape, store_mask=True):
        """The arguments of all functions that draw a mask with a scale."""
        arguments = {
            "rate": self.rate(),
            **self.placing(shape),
            "scale": self.choose("scale", st.sampled_from(SCALES), WRONG_SCALES),
        }
        if store_mask:
            arguments["store_mask"] = self.data.draw(st.sampled_from([True, False, 1, "", None]))
        return arguments

    def mask(self, shape):
        """A mask of the shape (drawn, not stored, or packed), and the elements that it keeps."""
        if self.choose("mask", st.just(None), WRONG_MASKS) is not None or "mask" in self.wrong:
            return self.wrong["mask"], None
        if self.data.draw(st.booleans(), "packed"):
            kept = np.random.default_rng(3).random(shape) < 0.7
            return fastdrop.Mask.pack(kept, rate=0.3, scale=2.0), kept
        noise = self.data.draw(st.tuples(*(st.sampled_from([1, n]) for n in shape)))
        offset = self.data.draw(st.sampled_from([0, 1, 4097, 2**40 + 5]))
        stored = self.data.draw(st.booleans(), "stored")
        mask = fastdrop.draw_mask(
            shape, 0.4, seed=9, noise_shape=noise, offset=offset, store_mask=stored
        )
        kept = reference.keep_mask(9, 0, 0.4, math.prod(noise), offset).reshape(noise)
        return mask, np.broadcast_to(kept, shape)

    def kept(self, shape, arguments):
        """The reference's kept elements and scale; checks that the stream has taken one step."""
        rate, scale = arguments["rate"], arguments.get("scale")
        noise = reference.resolve_noise_shape(shape, arguments["noise_shape"])
        if np.ndim(rate):
            kept = reference.keep_by_rates(self.seed, self.step, rate, noise)
            inverted = reference.scales_of_rates(rate)
        else:
            kept = reference.keep_mask(self.seed, self.step, float(rate), math.prod(noise))
            kept, inverted = kept.reshape(noise), reference.default_scale(float(rate))
        scale = inverted if scale is None else float(scale)
        self.assert_one_step()
        return np.broadcast_to(kept, shape), scale

    def numbers(self, shape, arguments):
        """The reference's normal numbers; checks that the stream has taken one step."""
        noise = reference.resolve_noise_shape(shape, arguments["noise_shape"])
        numbers = reference.normals(self.seed, self.step, math.prod(noise)).reshape(noise)
        self.assert_one_step()
        return np.broadcast_to(numbers, shape)

    def assert_one_step(self):
        assert self.stream.step == self.step + 1
        self.before = self.stream.state

    def call(self, function, *arguments, **options):
        """The result, or None if an invalid argument was refused correctly."""
        if not self.wrong:
            return function(*arguments, **options)
        with pytest.raises((TypeError, ValueError)) as refused:
            function(*arguments, **options)
        message = str(refused.value)
        named = {name.split(",")[0] for name in self.wrong}
        assert any(f"`{name}" in message for name in named), (message, self.wrong)
        self.assert_unchanged()
        return None

    def assert_unchanged(self):
        for placed in self.placed:
            placed.assert_untouched()
        assert self.stream.state == self.before
        assert fastdrop.get_num_threads() == self.threads

    def assert_only_changed(self, *arrays):
        """Assert that no memory outside of the arrays has changed."""
        for placed in self.placed:
            if any(placed.array is array for array in arrays):
                placed.assert_rest_untouched()
            else:
                placed.assert_untouched()


def dropped(x, kept, scale):
    operation = reference.dropout_by_scales if np.ndim(scale) else reference.dropout
    return operation(x, kept, scale)


def check_mask(mask, kept):
    np.testing.assert_array_equal(mask.unpack(), kept)
    assert pickle.loads(pickle.dumps(mask)) == mask


def fuzz_dropout(scene):
    shape = scene.shape()
    x = scene.array("x", shape, scene.dtype("x"))
    content = x.copy()
    out = scene.out(x)
    arguments = scene.drawing(shape)
    scene.rates_instead(arguments, shape)
    result = scene.call(fastdrop.dropout, x, out=out, **arguments)
    if result is not None:
        y, mask = result
        kept, scale = scene.kept(shape, arguments)
        assert_same_bits(y, dropped(content, kept, scale))
        assert out is None or y is out
        check_mask(mask, kept)
        assert (mask.bits is not None) == bool(arguments["store_mask"])
        scene.assert_only_changed(y)


def fuzz_dropout_(scene):
    shape = scene.shape()
    x = scene.array("x", shape, scene.dtype("x"))
    content = x.copy()
    x = scene.changeable("x", x)
    arguments = scene.drawing(shape)
    scene.rates_instead(arguments, shape)
    mask = scene.call(fastdrop.dropout_, x, **arguments)
    if mask is not None:
        kept, scale = scene.kept(shape, arguments)
        assert_same_bits(x, dropped(content, kept, scale))
        check_mask(mask, kept)
        scene.assert_only_changed(x)


def fuzz_draw_mask(scene):
    right = scene.shape()
    wrong = [-1, (3, -1), 1.5, "3", None, ("3",), 2**63, (2**40, 2**40), (2**63, 0), (1,) * 65]
    shape = scene.choose("shape", st.just(right), wrong)
    arguments = scene.drawing(right)
    if "shape" in scene.wrong:
        arguments["noise_shape"] = None
        scene.wrong.pop("noise_shape", None)
    offsets = [0, 1, 4095, 2**32 + 1, 2**62, 2**63 - 2**20]
    bad = [*WRONG_INTS, -1, 2**63 + 1, 2**64, 10**5000]
    offset = scene.choose("offset", st.sampled_from(offsets), bad)
    mask = scene.call(fastdrop.draw_mask, shape, offset=offset, **arguments)
    if mask is not None:
        noise = reference.resolve_noise_shape(shape, arguments["noise_shape"])
        rate = float(arguments["rate"])
        kept = reference.keep_mask(scene.seed, scene.step, rate, math.prod(noise), offset)
        assert (mask.shape, mask.noise_shape, mask.rate) == (shape, noise, rate)
        assert (mask.seed, mask.step, mask.size) == (scene.seed, scene.step, kept.size)
        assert mask.count() == kept.sum()
        if mask.bits is not None:
            np.testing.assert_array_equal(mask.bits, reference.pack_bits(kept))
        check_mask(mask, np.broadcast_to(kept.reshape(noise), shape))


def fuzz_mask_use(scene, function, name, in_place):
    """Functions that apply a mask: gradients and Mask's methods."""
    shape = scene.shape()
    x = scene.array(name, shape, scene.dtype(name))
    content = x.copy()
    mask, kept = scene.mask(shape)
    if function is None and kept is None:
        return  # no mask, so no method
    if scene.data.draw(st.integers(0, 9)) == 0 and kept is not None:
        mask = fastdrop.draw_mask((*shape, 2), 0.5, seed=1)
        scene.wrong["mask"] = mask
    if in_place:
        x = scene.changeable(name, x)
        call = function if function is not None else lambda x, mask: mask.apply_(x)
        result = scene.call(call, x, mask)
    else:
        out = scene.out(x)
        call = function if function is not None else lambda x, mask, out: mask.apply(x, out)
        result = scene.call(call, x, mask, out=out)
    if result is not None:
        assert_same_bits(result, reference.dropout(content, kept, mask.scale))
        assert result is x if in_place else out is None or result is out
        scene.assert_only_changed(result)
        check_mask(mask, kept)


def fuzz_pack(scene):
    shape = scene.shape()
    kept = scene.place(np.random.default_rng(0).random(shape) < 0.5)
    wrong = [None, "kept", 3, [1, 0], np.ones(3, np.uint8), b"\x01", object]
    given_array = scene.choose("kept", st.just(kept), wrong)
    rate = scene.choose("rate", st.none() | st.floats(0, 1), [r for r in WRONG_RATES if r])
    scale = scene.choose("scale", st.sampled_from(SCALES[1:]), [*WRONG_SCALES, None])
    mask = scene.call(fastdrop.Mask.pack, given_array, rate=rate, scale=scale)
    if mask is not None:
        check_mask(mask, kept)
        assert (mask.rate, mask.scale, mask.seed, mask.step) == (rate, scale, None, None)
        np.testing.assert_array_equal(mask.bits, reference.pack_bits(kept))
        scene.assert_unchanged()


def fuzz_relu_dropout(scene):
    shape = scene.shape()
    x = scene.array("x", shape, scene.dtype("x"))
    content = x.copy()
    out = scene.out(x)
    arguments = scene.drawing(shape, store_mask=False)
    result = scene.call(fastdrop.relu_dropout, x, out=out, **arguments)
    if result is not None:
        y, mask = result
        kept, scale = scene.kept(shape, arguments)
        left = kept & positive(content)
        assert_same_bits(y, reference.dropout(content, left, scale))
        check_mask(mask, left)
        scene.assert_only_changed(y)


def fuzz_bias_dropout_add(scene):
    shape = scene.shape()
    dtype = scene.dtype("x")
    # The CPU chooses the bits of a NaN if both operands are NaN.
    x = scene.array("x", shape, dtype, finite)
    content = x.copy()
    companions = []
    for name, its_shape in (("bias", shape[-1:]), ("residual", shape)):
        right = finite(dtype if dtype in DTYPES else DTYPES[1], its_shape, seed=5)
        wrong = [right[..., None], right.astype(np.int8), "text", object]
        if not shape and name == "bias":
            wrong.append(right)
        fits = st.sampled_from([None, right]) if shape or name == "residual" else st.none()
        companions.append(scene.choose(name, fits, wrong))
    if dtype not in DTYPES:  # no bias is valid for it
        for name in ("bias", "residual"):
            scene.wrong.setdefault(name, None)
    bias, residual = companions
    out = scene.out(x)
    arguments = scene.drawing(shape)
    result = scene.call(fastdrop.bias_dropout_add, x, bias, residual, out=out, **arguments)
    if result is not None:
        y, mask = result
        kept, scale = scene.kept(shape, arguments)
        assert_same_bits(y, bias_dropout_add(content, bias, residual, kept, scale))
        check_mask(mask, kept)
        scene.assert_only_changed(y)


def fuzz_bias_dropout_add_grad(scene):
    shape = scene.shape()
    dy = scene.array("dy", shape, scene.dtype("dy"), finite)
    content = dy.copy()
    mask, kept = scene.mask(shape)
    if not shape:
        scene.wrong["dy"] = dy
    out = scene.out(dy, itself=False)
    result = scene.call(fastdrop.bias_dropout_add_grad, dy, mask, out=out)
    if result is not None:
        dx, dbias, dresidual = result
        expected = reference.dropout(content, kept, mask.scale)
        assert_same_bits(dx, expected)
        assert dresidual is dy
        rows = expected.astype(np.float64).reshape(-1, shape[-1]) if dy.size else np.zeros((1, 0))
        sums = rows.sum(0) if dy.size else np.zeros(shape[-1])
        error = 2.0 ** -{2: 7, 4: 20, 8: 48}[dy.dtype.itemsize]
        bound = error * (np.abs(rows).sum(0) if dy.size else 0) + 1e-6
        assert (np.abs(dbias.astype(np.float64) - sums) <= bound).all()
        scene.assert_only_changed(dx)


def called(scene, function, amount, numbers=values):
    """x before a call, the result, what else it returned, and the arguments of the draw.

    None if an invalid argument was refused. A name that ends with an underscore works in place.
    """
    shape = scene.shape()
    x = scene.array("x", shape, scene.dtype("x"), numbers)
    content = x.copy()
    placing = scene.placing(shape)
    if function.__name__.endswith("_"):
        x = scene.changeable("x", x)
        drawn = scene.call(function, x, amount, **placing)
        result = None if drawn is None else (x, drawn)
    else:
        out = scene.out(x)
        result = scene.call(function, x, amount, out=out, **placing)
        assert result is None or out is None or result[0] is out
    if result is None:
        return None
    scene.assert_only_changed(result[0])
    return content, *result, placing


def fuzz_alpha(scene, function):
    rate = scene.rate()
    # The CPU chooses the bits of a NaN if both operands are NaN.
    result = called(scene, function, rate, finite)
    if result is not None:
        content, y, mask, placing = result
        kept, _ = scene.kept(content.shape, {"rate": rate, **placing})
        assert_same_bits(y, reference.alpha_dropout(content, kept, float(rate)))
        assert mask.scale == reference.alpha_scale(float(rate))
        check_mask(mask, kept)


def fuzz_gaussian(scene, function, additive):
    if additive:
        amount = scene.choose("stddev", st.sampled_from(STDDEVS) | st.floats(0, 9), WRONG_STDDEVS)
    else:
        amount = scene.rate()
        if "rate" not in scene.wrong and amount == 1:
            scene.wrong["rate"] = amount
    result = called(scene, function, amount)
    if result is not None:
        content, y, noise, placing = result
        stddev = float(amount) if additive else reference.gaussian_stddev(float(amount))
        numbers = scene.numbers(content.shape, placing)
        assert_same_bits(y, reference.noised(content, numbers, stddev, additive))
        assert (noise.stddev, noise.additive, noise.shape) == (stddev, additive, content.shape)
        assert (noise.seed, noise.step) == (scene.seed, scene.step)
        assert pickle.loads(pickle.dumps(noise)) == noise


def fuzz_noise_use(scene, in_place):
    shape = scene.shape()
    x = scene.array("x", shape, scene.dtype("x"))
    content = x.copy()
    drawn_for = shape
    if not scene.enough_wrong() and scene.data.draw(st.integers(0, 9)) == 0:
        drawn_for = (*shape, 2)
        scene.wrong["x"] = x
    entries = scene.data.draw(st.tuples(*(st.sampled_from([1, None]) for _ in drawn_for)))
    _, noise = fastdrop.gaussian_dropout(
        np.broadcast_to(np.float32(1), drawn_for), 0.4, seed=9, noise_shape=entries
    )
    if in_place:
        x = scene.changeable("x", x)
        result = scene.call(noise.apply_, x)
    else:
        out = scene.out(x)
        result = scene.call(noise.apply, x, out)
    if result is not None:
        numbers = reference.normals(9, 0, math.prod(noise.noise_shape)).reshape(noise.noise_shape)
        stddev = reference.gaussian_stddev(0.4)
        expected = reference.noised(content, np.broadcast_to(numbers, shape), stddev, False)
        assert_same_bits(result, expected)
        assert result is x if in_place else out is None or result is out
        scene.assert_only_changed(result)


def fuzz_stream(scene):
    seed = scene.choose("seed", st.integers(0, 2**128 - 1), WRONG_SEEDS)
    scene.call(fastdrop.Stream, seed)
    scene.wrong.clear()
    state = {
        "seed": scene.choose('state["seed"]', st.integers(0, 2**128 - 1), [*WRONG_SEEDS, None]),
        "step": scene.choose('state["step"]', st.integers(0, 2**64), [*WRONG_INTS, -1, 2**64 + 1]),
    }
    whole = scene.choose(
        "state", st.just(state), [None, 3, [], {}, {"seed": 1}, {"seed": 1, "step": 1, "more": 1}]
    )
    if "state" in scene.wrong:
        scene.wrong = {"state": whole}
    scene.call(setattr, scene.stream, "state", whole)
    if not scene.wrong:
        assert scene.stream.state == state
        assert pickle.loads(pickle.dumps(scene.stream)).state == state
    n = scene.choose("n", st.integers(0, 3), [*WRONG_INTS, -1, 2**64 + 1])
    scene.before = before = scene.stream.state
    left = 2**64 - before["step"]
    if "n" not in scene.wrong and n > left:
        with pytest.raises(OverflowError, match="`n`"):
            scene.stream.spawn(n)
        assert scene.stream.state == before
        return
    scene.wrong = {name: value for name, value in scene.wrong.items() if name == "n"}
    children = scene.call(scene.stream.spawn, n)
    for i, child in enumerate(children or []):
        key = (before["step"] + i,)
        words = np.random.SeedSequence(before["seed"], spawn_key=key).generate_state(2, np.uint64)
        assert child.state == {"seed": int(words[1]) << 64 | int(words[0]), "step": 0}


def fuzz_threads(scene):
    n = scene.choose("n", st.integers(1, 5), [*WRONG_INTS, 0, -1, 2**31, 10**5000])
    with_block = scene.call(fastdrop.num_threads, n)
    if with_block is not None:
        with with_block:
            assert fastdrop.get_num_threads() == n
        assert fastdrop.get_num_threads() == scene.threads
    scene.call(fastdrop.set_num_threads, n)
    if not scene.wrong:
        assert fastdrop.get_num_threads() == n
        fastdrop.set_num_threads(scene.threads)


def fuzz_configuration(scene):
    assert fastdrop.available_isas()[-1] == "portable"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        fastdrop.show_config()
    assert fastdrop.__version__ in printed.getvalue()
    assert os.path.isfile(os.path.join(fastdrop.get_include(), "fastdrop.h"))
    takes_nothing = fastdrop.available_isas, fastdrop.get_include, fastdrop.show_config
    for function in (*takes_nothing, fastdrop.get_num_threads):
        with pytest.raises(TypeError):
            function(scene.data.draw(RANDOM_GARBAGE))


# The calls for each public name.
FUZZED = {
    "dropout": [fuzz_dropout],
    "dropout_": [fuzz_dropout_],
    "draw_mask": [fuzz_draw_mask],
    "dropout_grad": [lambda s: fuzz_mask_use(s, fastdrop.dropout_grad, "dy", False)],
    "dropout_grad_": [lambda s: fuzz_mask_use(s, fastdrop.dropout_grad_, "dy", True)],
    "Mask": [
        fuzz_pack,
        lambda s: fuzz_mask_use(s, None, "x", False),
        lambda s: fuzz_mask_use(s, None, "x", True),
    ],
    "relu_dropout": [fuzz_relu_dropout],
    "relu_dropout_grad": [lambda s: fuzz_mask_use(s, fastdrop.relu_dropout_grad, "dy", False)],
    "bias_dropout_add": [fuzz_bias_dropout_add],
    "bias_dropout_add_grad": [fuzz_bias_dropout_add_grad],
    "alpha_dropout": [lambda s: fuzz_alpha(s, fastdrop.alpha_dropout)],
    "alpha_dropout_": [lambda s: fuzz_alpha(s, fastdrop.alpha_dropout_)],
    "gaussian_dropout": [lambda s: fuzz_gaussian(s, fastdrop.gaussian_dropout, False)],
    "gaussian_dropout_": [lambda s: fuzz_gaussian(s, fastdrop.gaussian_dropout_, False)],
    "gaussian_noise": [lambda s: fuzz_gaussian(s, fastdrop.gaussian_noise, True)],
    "gaussian_noise_": [lambda s: fuzz_gaussian(s, fastdrop.gaussian_noise_, True)],
    "Noise": [lambda s: fuzz_noise_use(s, False), lambda s: fuzz_noise_use(s, True)],
    "Stream": [fuzz_stream],
    "set_num_threads": [fuzz_threads],
    "num_threads": [fuzz_threads],
    "get_num_threads": [fuzz_threads],
    "available_isas": [fuzz_configuration],
    "get_include": [fuzz_configuration],
    "show_config": [fuzz_configuration],
    "__version__": [fuzz_configuration],
}
CASES = [
    pytest.param(case, id=f"{name}-{i}")
    for name, cases in FUZZED.items()
    for i, case in enumerate(cases)
]


def test_every_public_name_is_fuzzed():
    assert set(FUZZED) == set(fastdrop.__all__)


# Many examples, since each invalid value is only one of a dozen.
@pytest.mark.parametrize("case", CASES)
@hypothesis.settings(max_examples=200)
@given(st.data())
def test_any_arguments(case, data):
    case(Scene(data))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@hypothesis.settings(max_examples=1000)
@given(st.data())
def test_any_arguments_many_times(case, data):
    case(Scene(data))


GARBAGE_TAKERS = {
    "dropout": lambda a, b, c, d: fastdrop.dropout(a, b, seed=c, noise_shape=d),
    "dropout_": lambda a, b, c, d: fastdrop.dropout_(a, b, seed=c, scale=d),
    "draw_mask": lambda a, b, c, d: fastdrop.draw_mask(a, b, seed=c, offset=d, store_mask=False),
    "dropout_grad": lambda a, b, c, d: fastdrop.dropout_grad(a, b, out=c),
    "pack": lambda a, b, c, d: fastdrop.Mask.pack(a, rate=b, scale=c),
    "bias_dropout_add": lambda a, b, c, d: fastdrop.bias_dropout_add(a, b, c, d),
    "gaussian_dropout": lambda a, b, c, d: fastdrop.gaussian_dropout(a, b, seed=c, noise_shape=d),
    "gaussian_noise_": lambda a, b, c, d: fastdrop.gaussian_noise_(a, b, seed=c, noise_shape=d),
    "alpha_dropout": lambda a, b, c, d: fastdrop.alpha_dropout(a, b, seed=c, out=d),
    "Stream": lambda a, b, c, d: fastdrop.Stream(a),
    "state": lambda a, b, c, d: setattr(fastdrop.Stream(1), "state", {"seed": a, "step": b}),
    "set_num_threads": lambda a, b, c, d: fastdrop.num_threads(a),
    "unpickling a mask": lambda a, b, c, d: _pickle._mask(
        {"shape": a, "noise_shape": b, "rate": c, "scale": d, "seed": a, "step": b, "offset": c}
        | {"bits": d, "stream": 2}
    ),
    "unpickling noise": lambda a, b, c, d: _pickle._noise(
        {"shape": a, "noise_shape": b, "stddev": c, "additive": d, "seed": a, "step": b}
        | {"stream": 2}
    ),
    "unpickling a stream": lambda a, b, c, d: _pickle._stream({"seed": a, "step": b, "stream": c}),
}


@pytest.mark.parametrize("taker", GARBAGE_TAKERS)
@given(st.tuples(*[RANDOM_GARBAGE | st.floats(0, 1) | st.integers(0, 9)] * 4))
def test_random_bytes_are_accepted_or_refused(taker, garbage):
    with contextlib.suppress(TypeError, ValueError):
        GARBAGE_TAKERS[taker](*garbage)
