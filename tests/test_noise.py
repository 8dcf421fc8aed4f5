"""Gaussian dropout and Gaussian noise equal the reference, for all dtypes, layouts and shapes.

``reference.normals`` computes the numbers from docs/stream.md. test_noise_statistics.py shows that
they are normal.
"""

import copy
import hashlib
import itertools
import math
import pathlib
import pickle
import re
import threading

import numpy as np
import pytest
import reference
from pairwise import pairs_of
from reference import assert_same_bits
from test_values import DTYPES, LAYOUTS, NOISY_SHAPES, SHAPES, Placed, each_dtype, values

import fastdrop
from fastdrop import _pickle

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "stream.md"
F4 = np.float32
RATE = 0.3
BLOCK = reference.BLOCK
POSITIONS = [(0, 0), (1, 0), (0, 1), (2**64, 7), (2**128 - 1, 2**64 - 1)]
# Around a group of 32 elements and a block of 4096, and several pieces of a thread.
SIZES = [0, 1, 31, 32, 33, 4095, 4096, 4097, 8200, 70_001]

FACTORS, ADDENDS = False, True
each_kind = pytest.mark.parametrize("additive", [FACTORS, ADDENDS], ids=["times", "plus"])


def noise_like(x, additive, seed, noise_shape=None, out=None):
    """Gaussian dropout, or noise of the same standard deviation."""
    if additive:
        stddev = reference.gaussian_stddev(RATE)
        return fastdrop.gaussian_noise(x, stddev, seed=seed, noise_shape=noise_shape, out=out)
    return fastdrop.gaussian_dropout(x, RATE, seed=seed, noise_shape=noise_shape, out=out)


def noise_like_(x, additive, seed, noise_shape=None):
    if additive:
        stddev = reference.gaussian_stddev(RATE)
        return fastdrop.gaussian_noise_(x, stddev, seed=seed, noise_shape=noise_shape)
    return fastdrop.gaussian_dropout_(x, RATE, seed=seed, noise_shape=noise_shape)


def expected(x, additive, seed, step=0, noise_shape=None, stddev=None):
    shape = reference.resolve_noise_shape(x.shape, noise_shape)
    numbers = reference.normals(seed, step, math.prod(shape)).reshape(shape)
    stddev = reference.gaussian_stddev(RATE) if stddev is None else stddev
    return reference.noised(x, np.broadcast_to(numbers, x.shape), stddev, additive)


# The numbers.


@pytest.mark.parametrize(("seed", "step"), POSITIONS)
def test_the_library_draws_the_reference(isa, stream_at, seed, step):
    for size in SIZES:
        numbers = np.full(size, -0.0, F4)
        fastdrop.gaussian_noise_(numbers, 1, seed=stream_at(seed, step))
        assert_same_bits(numbers, reference.normals(seed, step, size))


def test_a_piece_of_the_reference_is_a_slice_of_the_whole():
    whole = reference.normals(3, 1, 3 * BLOCK)
    for first, size in ((5, 10), (BLOCK - 1, 2), (BLOCK, BLOCK), (2 * BLOCK + 33, 700)):
        assert_same_bits(reference.normals(3, 1, size, first), whole[first : first + size])


def known_answers():
    """The rows of the page's table: seed, step, size, and numbers or a digest."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| `([0-9a-f]+)` \|$", PAGE.read_text(), re.M)
    return [(int(seed, 0), int(step), int(size), answer) for seed, step, size, answer in rows]


def test_known_normal_numbers(isa, stream_at):
    answers = known_answers()
    assert len(answers) == 9
    for seed, step, size, answer in answers:
        numbers = np.full(size, -0.0, F4)
        fastdrop.gaussian_noise_(numbers, 1, seed=stream_at(seed, step))
        content = numbers.astype("<f4").tobytes()
        assert answer in (content.hex(), hashlib.sha256(content).hexdigest())


# Results.


@each_kind
@each_dtype
def test_every_shape(isa, dtype, additive):
    for i, shape in enumerate([*SHAPES, (300, 1000)]):
        x = values(dtype, shape, seed=i)
        y, noise = noise_like(x, additive, i)
        assert_same_bits(y, expected(x, additive, i))
        assert (noise.shape, noise.noise_shape, noise.additive) == (shape, shape, additive)
        assert (noise.seed, noise.step) == (i, 0)
        assert noise.stddev == reference.gaussian_stddev(RATE)


@each_kind
@pairs_of("layout out_layout dtype", LAYOUTS, LAYOUTS, DTYPES)
def test_every_way_of_calling_on_every_layout(isa, layout, out_layout, dtype, additive):
    for shape, noise_shape in [
        ((1,), None),
        ((1, 1), (1, None)),
        ((70, 69), None),
        ((3, 5000), None),
        ((5, 30, 33), None),
        ((70, 69), (None, 1)),
        ((5, 30, 33), (None, 1, None)),
    ]:
        content, ndim = values(dtype, shape, seed=1), len(shape)
        result = expected(content, additive, 9, noise_shape=noise_shape)
        x = Placed(content, **LAYOUTS[layout](ndim))
        out = Placed(np.zeros_like(content), **LAYOUTS[out_layout](ndim))
        y, noise = noise_like(x.array, additive, 9, noise_shape)
        assert_same_bits(y, result)
        assert noise_like(x.array, additive, 9, noise_shape, out=out.array)[0] is out.array
        assert_same_bits(out.array, result)
        out.assert_rest_untouched()
        assert noise.apply(x.array, out=out.array) is out.array
        assert_same_bits(out.array, result)
        assert_same_bits(noise.apply(x.array), result)
        x.assert_untouched()
        for change in (
            lambda a, noise=noise: noise.apply_(a),
            lambda a, noise=noise: noise.apply(a, out=a),
            lambda a, shape=noise_shape: noise_like_(a, additive, 9, shape),
            lambda a, shape=noise_shape: noise_like(a, additive, 9, shape, out=a),
        ):
            x = Placed(content, **LAYOUTS[layout](ndim))
            change(x.array)
            assert_same_bits(x.array, result)
            x.assert_rest_untouched()


@each_kind
@pytest.mark.parametrize("shape", [*NOISY_SHAPES, (0, 70, 33), (70, 33, 0)], ids=str)
def test_every_pattern_of_noise_shape(isa, shape, additive):
    dtypes = itertools.cycle(DTYPES)
    for pattern in itertools.product([1, None], repeat=len(shape)):
        x = values(next(dtypes), shape, seed=3)
        y, noise = noise_like(x, additive, 4, pattern)
        assert_same_bits(y, expected(x, additive, 4, noise_shape=pattern))
        assert noise.noise_shape == reference.resolve_noise_shape(shape, pattern)
        assert_same_bits(noise.apply(np.asfortranarray(x)), y)


@each_kind
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("noise_shape", [None, (None, 1), (1, None)], ids=str)
def test_large_noise_on_any_number_of_threads(isa, threads, noise_shape, additive):
    x = values(np.dtype(F4), (601, 1023), seed=1)
    with fastdrop.num_threads(threads):
        for view in (x, x.T.copy().T):
            y, noise = noise_like(view, additive, 5, noise_shape)
            assert_same_bits(y, expected(x, additive, 5, noise_shape=noise_shape))
            assert_same_bits(noise.apply(view), y)


@each_dtype
@pytest.mark.parametrize("stddev", [1e-30, 0.5, 3, 1e30, 1e300])
def test_every_standard_deviation(isa, dtype, stddev):
    x = values(dtype, (5000,), seed=2)
    y, noise = fastdrop.gaussian_noise(x, stddev, seed=1)
    assert_same_bits(y, expected(x, ADDENDS, 1, stddev=stddev))
    assert noise.stddev == stddev


@pytest.mark.parametrize("rate", [0.5, 1e-300, 1 - 2**-53, np.float16(0.25), np.array(0.125)])
def test_the_variance_of_a_rate(rate):
    x = values(np.dtype(np.float64), (500,), seed=2)
    y, noise = fastdrop.gaussian_dropout(x, rate, seed=1)
    assert noise.stddev == reference.gaussian_stddev(float(rate))
    assert_same_bits(y, expected(x, FACTORS, 1, stddev=noise.stddev))


@each_dtype
def test_without_noise_the_result_is_the_input_bit_for_bit(isa, dtype):
    for layout in LAYOUTS.values():
        content = values(dtype, (70, 69), seed=2)
        x = Placed(content, **layout(2)).array
        for call in (
            lambda x, **more: fastdrop.gaussian_dropout(x, 0, **more),
            lambda x, **more: fastdrop.gaussian_noise(x, 0.0, **more),
        ):
            for noise_shape in (None, (1, None)):
                y, noise = call(x, seed=1, noise_shape=noise_shape)
                assert_same_bits(y, content, nan_payloads=True)
                assert_same_bits(noise.apply_(x.copy()), content, nan_payloads=True)
        assert noise.stddev == 0


def test_rate_one_is_refused_by_name():
    for rate in (1, 1.0, np.float32(1), np.array(1)):
        for call in (fastdrop.gaussian_dropout, fastdrop.gaussian_dropout_):
            x = np.ones(3)
            with pytest.raises(ValueError, match=r"`rate` must be below 1 .* got .*1"):
                call(x, rate, seed=1)
            assert (x == 1).all()


@each_dtype
def test_nan_infinities_and_zeros_are_multiplied(isa, dtype):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0] * 50, dtype)
    numbers = reference.normals(3, 0, special.size).astype(np.float64)
    y, _ = fastdrop.gaussian_dropout(special, RATE, seed=3)
    signs = np.sign(1 + reference.gaussian_stddev(RATE) * numbers)
    with np.errstate(invalid="ignore"):
        assert_same_bits(y, (special.astype(np.float64) * signs).astype(dtype))


def test_the_gradient_is_the_derivative():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 40, 30))
    y, noise = fastdrop.gaussian_dropout(x, 0.3, seed=4, noise_shape=(40, 1))
    dx = noise.apply(dy)
    step = 2.0**-20
    for i, j in [(0, 0), (3, 7), (39, 29), (20, 20)]:
        moved = x.copy()
        moved[i, j] += step
        again = fastdrop.gaussian_dropout(moved, 0.3, seed=4, noise_shape=(40, 1))[0]
        np.testing.assert_allclose(((again - y) * dy).sum() / step, dx[i, j], rtol=1e-6, atol=1e-9)


def test_gaussian_dropout_has_the_mean_and_the_variance_of_dropout():
    x = np.ones(2**22)
    for rate in (0.1, 0.5, 0.8):
        y, _ = fastdrop.gaussian_dropout(x, rate, seed=8)
        variance = rate / (1 - rate)
        assert abs(y.mean() - 1) < 5 * math.sqrt(variance / x.size)
        assert abs(y.var() / variance - 1) < 5 * math.sqrt(2 / x.size)


def test_float64_has_the_same_numbers_and_an_arithmetic_of_its_own(isa):
    y, noise = fastdrop.gaussian_dropout(np.ones(999), RATE, seed=3)
    numbers = reference.normals(3, 0, 999).astype(np.float64)
    assert_same_bits(y, 1 + noise.stddev * numbers)
    assert_same_bits(noise.draw(), expected(np.ones(999, F4), FACTORS, 3))


# Steps, and the object.


@each_kind
def test_each_call_takes_one_step(additive, stream_at):
    stream = stream_at(11, 4)
    for step in (4, 5, 6):
        x = values(np.dtype(F4), (100 * (step - 4),), seed=1)
        y, noise = noise_like(x, additive, stream)
        assert (noise.seed, noise.step) == (11, step)
        assert_same_bits(y, expected(x, additive, 11, step))
    assert stream.step == 7
    assert noise_like(x, additive, None)[1] != noise_like(x, additive, None)[1]


@each_kind
@pytest.mark.parametrize("noise_shape", [None, (1, 5)], ids=str)
def test_noise_is_drawn_copied_compared_and_pickled(additive, noise_shape, stream_at):
    stream = stream_at(2**100 + 3, 2**64 - 1)
    noise = noise_like_(np.ones((4, 5), F4), additive, stream, noise_shape)
    drawn = noise.draw()
    assert drawn.dtype == F4
    identity = np.full((4, 5), -0.0 if additive else 1.0, F4)
    assert_same_bits(drawn, noise.apply(identity))
    for same in (pickle.loads(pickle.dumps(noise)), copy.copy(noise), copy.deepcopy(noise)):
        assert same == noise
        assert_same_bits(same.draw(), drawn)
    assert noise != 1
    assert noise != noise_like(np.ones((4, 5), F4), additive, 1, noise_shape)[1]
    assert noise != noise_like(np.ones((4, 5), F4), not additive, stream_at(5, 0))[1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(noise)
    assert re.fullmatch(
        r"<fastdrop\.Noise shape=\(4, 5\)(, noise_shape=\(1, 5\))?, .*>", repr(noise)
    )
    with pytest.raises(TypeError, match="gaussian_dropout"):
        fastdrop.Noise()


def test_pickled_noise_replays_in_another_process(run_python, stream_at):
    y, noise = fastdrop.gaussian_dropout(np.ones(5000, F4), 0.5, seed=stream_at(7, 3))
    done = run_python(
        f"import pickle, hashlib; noise = pickle.loads({pickle.dumps(noise)!r});"
        "print(hashlib.sha256(noise.draw().tobytes()).hexdigest())",
        FASTDROP_ISA="portable",
    )
    assert done.stdout.strip() == hashlib.sha256(y.tobytes()).hexdigest(), done.stderr


def pickled_state():
    noise = fastdrop.gaussian_dropout(np.ones((2, 3)), 0.5, seed=7, noise_shape=(2, 1))[1]
    _, (state,) = noise.__reduce__()
    return state


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", (2, -3)),
        ("shape", None),
        ("shape", (2**62, 4)),
        ("noise_shape", (2, 2)),
        ("stddev", -1.0),
        ("stddev", math.nan),
        ("stddev", "1"),
        ("additive", np.ones(2)),
        ("seed", 2**128),
        ("seed", None),
        ("step", 2**64),
        ("step", 0.5),
        ("stream", 1),
        ("stream", "2"),
        ("more", 1),
    ],
)
def test_a_crafted_pickle_of_noise_is_refused(field, value):
    state = pickled_state()
    assert _pickle._noise(dict(state)).seed == 7
    with pytest.raises((TypeError, ValueError), match=r"`\w+"):
        _pickle._noise({**state, field: value})
    for wrong in (None, {}, [], {k: v for k, v in state.items() if k != "seed"}):
        with pytest.raises(ValueError, match="`state`"):
            _pickle._noise(wrong)


def test_pickled_noise_of_a_huge_shape_takes_no_memory_until_it_is_drawn():
    noise = _pickle._noise({**pickled_state(), "shape": (2**40, 2**20), "noise_shape": (1, 1)})
    assert noise.shape == (2**40, 2**20)
    with pytest.raises(MemoryError):
        noise.draw()


def test_noise_applies_to_its_own_shape_alone():
    _, noise = fastdrop.gaussian_dropout(np.ones((3, 4)), 0.5, seed=1, noise_shape=(1, 4))
    for shape in ((4, 3), (2, 4), (12,), ()):
        x = np.ones(shape)
        for call in (noise.apply, noise.apply_):
            with pytest.raises(ValueError, match="`x` must have the shape of the noise"):
                call(x)
        assert (x == 1).all()


def test_many_threads_may_use_one_noise():
    x = values(np.dtype(F4), (50_000,), seed=1)
    _, noise = fastdrop.gaussian_dropout(x, RATE, seed=1)
    results = [None] * 8

    def apply(i):
        results[i] = noise.apply(x)

    threads = [threading.Thread(target=apply, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert_same_bits(result, expected(x, FACTORS, 1))
