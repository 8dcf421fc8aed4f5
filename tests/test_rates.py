"""Dropout by an array of rates equals the reference, for all dtypes, layouts and shapes.

``reference.keep_by_rates`` decides as docs/stream.md defines it.
"""

import copy
import hashlib
import math
import pathlib
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
import reference
from pairwise import pairs_of
from reference import assert_same_bits
from test_fused import finite
from test_values import DTYPES, LAYOUTS, Placed, values

import fastdrop

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "stream.md"
F4 = np.float32
RATE_DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int8, np.uint64]
POSITIONS = [(0, 0), (1, 0), (0, 1), (2**64, 7), (2**128 - 1, 2**64 - 1)]
# The shapes of x, the rates and the mask.
CASES = [
    ((1,), (1,), None),
    ((31,), (31,), None),
    ((33,), (1,), None),
    ((0, 4), (4,), None),
    ((70_001,), (70_001,), None),
    ((50, 210), (50, 210), None),
    ((50, 210), (50, 1), None),
    ((50, 210), (210,), None),
    ((50, 210), (50, 1), (50, 1)),
    ((50, 210), (1, 1), (50, 1)),
    ((50, 210), (210,), (210,)),
    ((7, 3, 5, 40), (3, 1, 40), None),
    ((7, 3, 5, 40), (7, 1, 1, 40), (None, 1, 1, None)),
]


def rates_like(shape, dtype=F4, seed=0):
    """Rates in every part of [0, 1], with its ends and small ones."""
    rates = np.random.default_rng(seed).random(shape)
    some = rates.reshape(-1)[:5]
    some[...] = [0, 1, 2.0**-20, 1e-30, 1 - 2.0**-24][: some.size]
    return (rates.round() if np.dtype(dtype).kind in "iu" else rates).astype(dtype)


def expected(x, rates, seed, step=0, noise_shape=None):
    """The result and the decisions, in the noise shape."""
    kept = reference.keep_by_rates(
        seed, step, rates, reference.resolve_noise_shape(x.shape, noise_shape)
    )
    return reference.dropout_by_scales(x, kept, reference.scales_of_rates(rates)), kept


@pytest.mark.parametrize(("seed", "step"), POSITIONS)
def test_both_references_agree(seed, step):
    numbers = reference.rated_numbers(seed, step, 2 * reference.BLOCK + 9)
    for index in (0, 1, 7, 8, 4095, 4096, 8199):
        assert reference.rated_number(seed, step, index) == numbers[index]


@pytest.mark.parametrize(("seed", "step"), POSITIONS)
def test_the_library_decides_as_the_reference(isa, stream_at, seed, step):
    for size in (1, 31, 32, 33, 4095, 4096, 4097, 8200, 70_001):
        rates = np.random.default_rng(size).random(size)
        mask = fastdrop.draw_mask(size, rates, seed=stream_at(seed, step))
        kept = reference.keep_by_rates(seed, step, rates, (size,))
        np.testing.assert_array_equal(mask.bits, reference.pack_bits(kept))


@pairs_of("dtype rate_dtype case store_mask", DTYPES, RATE_DTYPES, CASES, [True, False])
def test_every_shape(isa, dtype, rate_dtype, case, store_mask):
    shape, rate_shape, noise_shape = case
    rates = rates_like(rate_shape, rate_dtype)
    x = values(dtype, shape)
    options = {"seed": 7, "noise_shape": noise_shape, "store_mask": store_mask}
    y, mask = fastdrop.dropout(x, rates, **options)
    want, kept = expected(x, rates, 7, noise_shape=noise_shape)
    assert_same_bits(y, want)
    np.testing.assert_array_equal(mask.unpack(), np.broadcast_to(kept, shape))
    assert_same_bits(fastdrop.dropout_grad(x, mask), want)
    z = x.copy()
    assert fastdrop.dropout_(z, rates, **options) == mask
    assert_same_bits(z, want)
    y, _ = fastdrop.dropout(x, rates, scale=-2.5, **options)
    assert_same_bits(y, reference.dropout(x, kept, -2.5))


@pairs_of("layout out_layout dtype", LAYOUTS, LAYOUTS, DTYPES)
def test_every_layout(isa, layout, out_layout, dtype):
    shape = (5, 7, 130)
    rates = rates_like((7, 130))
    x = Placed(values(dtype, shape), **LAYOUTS[layout](3))
    out = Placed(values(dtype, shape, 1), **LAYOUTS[out_layout](3))
    given = Placed(rates, **LAYOUTS[out_layout](2)).array
    want, _ = expected(values(dtype, shape), rates, 3)
    y, _ = fastdrop.dropout(x.array, given, seed=3, out=out.array)
    assert_same_bits(y, want)
    x.assert_untouched()
    out.assert_rest_untouched()
    mask = fastdrop.dropout_(x.array, given, seed=3)
    assert_same_bits(x.array, want)
    x.assert_rest_untouched()
    assert_same_bits(mask.apply(values(dtype, shape), out=out.array), want)


def test_known_decisions(isa, stream_at):
    rows = re.findall(
        r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| `([0-9a-f]+)` \|$", PAGE.read_text(), re.M
    )
    assert len(rows) == 6
    for seed, step, size, kept, answer in rows:
        n = int(size)
        mask = fastdrop.draw_mask(n, np.arange(n) / n, seed=stream_at(int(seed, 0), int(step)))
        content = mask.bits.tobytes()
        assert answer in (content.hex(), hashlib.sha256(content).hexdigest())
        assert mask.count() == int(kept)


def test_a_rate_decides_about_its_own_element_alone():
    rates = np.full(9000, 0.5)
    before = fastdrop.draw_mask(9000, rates, seed=5).unpack()
    for index in (0, 100, 4095, 4096, 8999):
        other = rates.copy()
        other[index] = before[index]  # 1 drops what is kept, and 0 keeps what is dropped
        changed = np.flatnonzero(fastdrop.draw_mask(9000, other, seed=5).unpack() != before)
        assert changed.tolist() == [index]


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 31, 32, 33, 4095, 4096, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_at_offsets_are_slices(isa, offset, dtype):
    rates = rates_like((9001,), dtype)
    kept = reference.keep_by_rates(7, 0, rates, (9001,), offset)
    for store_mask in (True, False):
        mask = fastdrop.draw_mask(9001, rates, seed=7, offset=offset, store_mask=store_mask)
        np.testing.assert_array_equal(mask.unpack(), kept)
        np.testing.assert_array_equal(mask[100:5000], kept[100:5000])
        assert mask.count() == kept.sum()
        x = values(DTYPES[2], (9001,))
        want = reference.dropout_by_scales(x, kept, reference.scales_of_rates(rates))
        assert_same_bits(mask.apply(x), want)


def test_threads_do_not_change_the_result():
    x, rates = values(DTYPES[2], (300, 1000)), rates_like((300, 1000))
    want, _ = expected(x, rates, 1)
    for threads in (1, 2, 3):
        with fastdrop.num_threads(threads):
            assert_same_bits(fastdrop.dropout(x, rates, seed=1)[0], want)


@pytest.mark.parametrize("wrong", [-5e-324, -0.25, 1 + 2**-52, np.nan, np.inf])
def test_a_wrong_rate_is_refused_by_its_index(wrong):
    stream = fastdrop.Stream(1)
    x = np.ones((3, 5000))
    rates = np.full((3, 5000), 0.5)
    rates[2, 4321] = wrong
    message = rf"`rate`.*{re.escape(repr(np.float64(wrong)))} at index \(2, 4321\)"
    for call in (
        lambda: fastdrop.dropout_(x, rates, seed=stream),
        lambda: fastdrop.dropout(x, rates, seed=stream, out=x),
        lambda: fastdrop.draw_mask(x.shape, rates, seed=stream),
        lambda: fastdrop.Mask.pack(x > 0, rate=rates),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert (x == 1).all()
    assert stream.step == 0


@pytest.mark.parametrize(
    ("rates", "error"),
    [
        (np.array([True, False, True]), TypeError),
        (np.array([0.5, 0.5, 0.5], object), TypeError),
        (np.array(["0.5"]), TypeError),
        (np.array([0.5j]), TypeError),
        (np.array([0, 2, 1]), ValueError),
        (np.full(4, 0.5), ValueError),
        (np.full((1, 3), 0.5), ValueError),
        (np.full(0, 0.5), ValueError),
    ],
    ids=repr,
)
def test_other_arrays_are_refused(rates, error):
    stream, x = fastdrop.Stream(1), np.ones(3)
    for call in (
        lambda: fastdrop.dropout_(x, rates, seed=stream),
        lambda: fastdrop.draw_mask(3, rates, seed=stream),
        lambda: fastdrop.Mask.pack(x > 0, rate=rates),
    ):
        with pytest.raises(error, match="`rate`"):
            call()
    assert (x == 1).all()
    assert stream.step == 0


@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_mask_of_an_array(store_mask, scale):
    rates = rates_like((4, 1))
    options = {"seed": 2, "store_mask": store_mask, "scale": scale}
    _, mask = fastdrop.dropout(np.ones((4, 300)), rates, **options)
    before = rates.copy()
    rates[...] = 0.25  # the mask has a copy
    assert_same_bits(mask.rate, before)
    with pytest.raises(ValueError, match="WRITEABLE"):
        mask.rate.flags.writeable = True
    want = reference.scales_of_rates(before) if scale is None else scale
    np.testing.assert_array_equal(mask.scale, want)
    again = pickle.loads(pickle.dumps(mask))
    assert again == mask
    assert again.nbytes == mask.nbytes
    np.testing.assert_array_equal(again.scale, want)
    assert copy.deepcopy(mask) is mask
    x = values(DTYPES[2], (4, 300))
    assert_same_bits(again.apply(x), mask.apply(x))
    assert fastdrop.draw_mask((4, 300), rates, **options) != mask
    assert fastdrop.draw_mask((4, 300), 0.5, **options) != mask
    assert fastdrop.draw_mask((4, 300), before.astype(np.float64), **options) == mask
    assert "rate=array of shape (4, 1)" in repr(mask)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate", np.array([0.5, 1.5])),
        ("rate", np.array([0.5, 0.5, 0.5])),
        ("rate", None),
        ("scale", np.array([1.0, np.inf])),
        ("scale", np.array([1, 2])),
        ("scale", np.ones(3)),
        ("scale", math.nan),
    ],
    ids=str,
)
def test_a_crafted_pickle_is_refused(field, value):
    mask = fastdrop.draw_mask(2, np.array([0.25, 0.5]), seed=1)
    restore, (state,) = mask.__reduce__()
    assert restore(state) == mask
    with pytest.raises((TypeError, ValueError), match=r"`(rate|scale|state)`"):
        restore(state | {field: value})


def test_a_packed_mask_may_have_rates():
    mask = fastdrop.Mask.pack(np.ones((2, 3), bool), rate=np.array([0.5, 0.25, 0]), scale=2)
    np.testing.assert_array_equal(mask.rate, [0.5, 0.25, 0])
    assert (mask.scale, mask.seed) == (2, None)
    assert_same_bits(mask.apply(np.ones((2, 3))), np.full((2, 3), 2.0))


# The other functions.


def some_rates(shape, dtype=F4, largest=1.0):
    """A few rates, each many times, with 0 and the largest."""
    few = np.array([0, 1e-30, 0.25, 0.6, 1 - 2**-8, largest])
    return np.random.default_rng(5).choice(few, shape).astype(dtype)


def by_each_rate(operation, x, rates):
    """Choose each element from the result of an operation at the element's rate."""
    y, everywhere = np.zeros_like(x), np.broadcast_to(rates, x.shape)
    for rate in np.unique(rates):
        y[everywhere == rate] = operation(float(rate))[everywhere == rate]
    return y


def kept_elements(x, rates, seed, noise_shape=None):
    return np.broadcast_to(expected(x, rates, seed, noise_shape=noise_shape)[1], x.shape)


def relu_expected(x, rates, seed, noise_shape=None):
    left = kept_elements(x, rates, seed, noise_shape) & reference.positive(x)
    return reference.dropout_by_scales(x, left, reference.scales_of_rates(rates)), left


def sum_expected(x, bias, residual, rates, seed, noise_shape=None):
    kept = kept_elements(x, rates, seed, noise_shape)
    return by_each_rate(
        lambda rate: reference.bias_dropout_add(
            x, bias, residual, kept, reference.default_scale(rate)
        ),
        x,
        rates,
    )


def alpha_expected(x, rates, seed, noise_shape=None):
    kept = kept_elements(x, rates, seed, noise_shape)
    return by_each_rate(lambda rate: reference.alpha_dropout(x, kept, rate), x, rates)


def gaussian_expected(x, rates, seed, noise_shape=None):
    shape = reference.resolve_noise_shape(x.shape, noise_shape)
    numbers = reference.normals(seed, 0, math.prod(shape)).reshape(shape)
    numbers = np.broadcast_to(numbers, x.shape)
    return by_each_rate(
        lambda rate: reference.noised(x, numbers, reference.gaussian_stddev(rate), False), x, rates
    )


@pairs_of("dtype rate_dtype case", DTYPES, [np.float16, np.float32, np.float64], CASES)
def test_relu_dropout(isa, dtype, rate_dtype, case):
    shape, rate_shape, noise_shape = case
    x, rates = values(dtype, shape), some_rates(rate_shape, rate_dtype)
    y, mask = fastdrop.relu_dropout(x, rates, seed=7, noise_shape=noise_shape)
    want, left = relu_expected(x, rates, 7, noise_shape)
    assert_same_bits(y, want)
    np.testing.assert_array_equal(mask.bits, reference.pack_bits(left))
    assert (mask.shape, mask.noise_shape, mask.seed) == (shape, shape, None)
    assert pickle.loads(pickle.dumps(mask)) == mask
    dy = values(dtype, shape, 1)
    dx = reference.dropout_by_scales(dy, left, reference.scales_of_rates(rates))
    assert_same_bits(fastdrop.relu_dropout_grad(dy, mask), dx)
    y, mask = fastdrop.relu_dropout(x, rates, seed=7, noise_shape=noise_shape, scale=-2.5)
    assert_same_bits(y, reference.dropout(x, left, -2.5))
    assert_same_bits(fastdrop.relu_dropout_grad(dy, mask), reference.dropout(dy, left, -2.5))


@pairs_of(
    "dtype rate_dtype case store_mask",
    DTYPES,
    [np.float16, np.float32, np.float64],
    CASES,
    [True, False],
)
def test_bias_dropout_add(isa, dtype, rate_dtype, case, store_mask):
    shape, rate_shape, noise_shape = case
    x, rates = finite(dtype, shape), some_rates(rate_shape, rate_dtype)
    bias, residual = finite(dtype, shape[-1:], 1), finite(dtype, shape, 2)
    options = {"seed": 7, "noise_shape": noise_shape, "store_mask": store_mask}
    for some in ((bias, residual), (bias, None), (None, residual), (None, None)):
        y, mask = fastdrop.bias_dropout_add(x, *some, rates, **options)
        assert_same_bits(y, sum_expected(x, *some, rates, 7, noise_shape))
    kept = kept_elements(x, rates, 7, noise_shape)
    y, scaled_mask = fastdrop.bias_dropout_add(x, bias, residual, rates, scale=-2.5, **options)
    assert_same_bits(y, reference.bias_dropout_add(x, bias, residual, kept, -2.5))
    dy = finite(dtype, shape, 3)
    scales = reference.scales_of_rates(rates)
    for of_mask, of_kept in ((mask, scales), (scaled_mask, np.array(-2.5))):
        dx, dbias, dresidual = fastdrop.bias_dropout_add_grad(dy, of_mask)
        assert_same_bits(dx, reference.dropout_by_scales(dy, kept, of_kept))
        assert dresidual is dy
        wide = reference.computed_in(dtype)
        exact = np.where(kept, dy.astype(wide) * of_kept.astype(wide), 0).astype(np.float64)
        size = np.abs(exact).reshape(-1, shape[-1]).sum(0)
        close = float(ml_dtypes.finfo(dtype).eps) + 128 * np.finfo(wide).eps
        wrong = dbias.astype(np.float64) - exact.reshape(-1, shape[-1]).sum(0)
        assert (np.abs(wrong) <= close * size).all()


@pairs_of("dtype rate_dtype case", DTYPES, [np.float16, np.float32, np.float64], CASES)
def test_alpha_dropout(isa, dtype, rate_dtype, case):
    shape, rate_shape, noise_shape = case
    x, rates = finite(dtype, shape), some_rates(rate_shape, rate_dtype)
    y, mask = fastdrop.alpha_dropout(x, rates, seed=7, noise_shape=noise_shape)
    want = alpha_expected(x, rates, 7, noise_shape)
    assert_same_bits(y, want)
    again = pickle.loads(pickle.dumps(mask))
    assert again == mask
    kept = kept_elements(x, rates, 7, noise_shape)
    scales = np.vectorize(reference.alpha_scale, otypes=[np.float64])(rates.astype(np.float64))
    np.testing.assert_array_equal(mask.scale, scales)
    dy = values(dtype, shape, 1)
    for one in (mask, again):
        assert_same_bits(
            fastdrop.dropout_grad(dy, one), reference.dropout_by_scales(dy, kept, scales)
        )
    assert fastdrop.alpha_dropout_(x, rates, seed=7, noise_shape=noise_shape) == mask
    assert_same_bits(x, want)


@pairs_of("dtype rate_dtype case", DTYPES, [np.float16, np.float32, np.float64], CASES)
def test_gaussian_dropout(isa, dtype, rate_dtype, case):
    shape, rate_shape, noise_shape = case
    x, rates = values(dtype, shape).copy(), some_rates(rate_shape, rate_dtype, 0.75)
    y, noise = fastdrop.gaussian_dropout(x, rates, seed=7, noise_shape=noise_shape)
    assert_same_bits(y, gaussian_expected(x, rates, 7, noise_shape))
    assert noise.shape == shape
    again = pickle.loads(pickle.dumps(noise))
    assert again == noise
    assert not noise.stddev.flags.writeable
    assert_same_bits(noise.stddev, again.stddev)
    dy = values(dtype, shape, 1)
    assert_same_bits(again.apply(dy), gaussian_expected(dy, rates, 7, noise_shape))
    drawn = noise.draw()
    assert_same_bits(drawn, gaussian_expected(np.ones(shape, F4), rates, 7, noise_shape))
    assert fastdrop.gaussian_dropout_(x, rates, seed=7, noise_shape=noise_shape) == noise
    assert_same_bits(x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_rates_of_gaussian_dropout_are_one_rate(dtype):
    x = values(dtype, (3, 5000))
    y, noise = fastdrop.gaussian_dropout(x, np.full((3, 1), 0.3), seed=3)
    want, other = fastdrop.gaussian_dropout(x, 0.3, seed=3)
    assert_same_bits(y, want)
    assert noise != other
    assert "variances of shape (3, 1)" in repr(noise)


@pairs_of("layout out_layout dtype", LAYOUTS, LAYOUTS, DTYPES)
def test_the_other_functions_on_every_layout(isa, layout, out_layout, dtype):
    shape = (5, 7, 130)
    content, bias, added = (finite(dtype, size, i) for i, size in enumerate((shape, 130, shape)))
    rates = some_rates((7, 130), largest=0.75)
    residual = Placed(added, **LAYOUTS[out_layout](3))
    given = Placed(rates, **LAYOUTS[layout](2)).array
    for call, want in (
        (fastdrop.relu_dropout, relu_expected(content, rates, 3)[0]),
        (fastdrop.alpha_dropout, alpha_expected(content, rates, 3)),
        (fastdrop.gaussian_dropout, gaussian_expected(content, rates, 3)),
        (
            lambda x, rates, **options: fastdrop.bias_dropout_add(
                x, bias, residual.array, rates, **options
            ),
            sum_expected(content, bias, added, rates, 3),
        ),
    ):
        x = Placed(content, **LAYOUTS[layout](3))
        out = Placed(np.zeros_like(content), **LAYOUTS[out_layout](3))
        assert call(x.array, given, seed=3, out=out.array)[0] is out.array
        assert_same_bits(out.array, want)
        x.assert_untouched()
        out.assert_rest_untouched()
        call(x.array, given, seed=3, out=x.array)
        assert_same_bits(x.array, want)
        x.assert_rest_untouched()
    residual.assert_untouched()
    y = residual.array
    fastdrop.bias_dropout_add(content, bias, y, given, seed=3, out=y)
    assert_same_bits(y, sum_expected(content, bias, added, rates, 3))
    residual.assert_rest_untouched()


def test_signs_and_infinities_by_an_array_of_rates():
    x = np.tile(np.array([np.nan, np.inf, -np.inf, -0.0], F4), 100)
    rates = some_rates(400)
    y, mask = fastdrop.alpha_dropout(x, rates, seed=3)
    assert np.isfinite(y[~mask.unpack()]).all()
    assert_same_bits(y[rates == 0], x[rates == 0])
    y, mask = fastdrop.bias_dropout_add(x, None, None, rates, seed=3)
    dropped = y[~mask.unpack()]
    assert_same_bits(dropped, np.zeros_like(dropped))
    mask = fastdrop.draw_mask((1, 400), rates, seed=3)
    dx, dbias, _ = fastdrop.bias_dropout_add_grad(x.reshape(1, -1), mask)
    assert_same_bits(dbias, dx[0] + F4(0))  # the sum of -0.0 and nothing is 0.0


def test_a_bad_array_of_rates_changes_nothing():
    full = fastdrop.Stream(1)
    full.state = {"seed": 1, "step": 2**64}
    good = np.full(3, 0.5)
    bad = [
        (np.array([0.5, np.nan, 0.5]), ValueError, r"`rate`.*nan.*\(1,\)"),
        (np.full(4, 0.5), ValueError, "`rate`"),
        (np.array([True]), TypeError, "`rate`"),
    ]
    for call in (
        lambda x, rates, seed: fastdrop.relu_dropout(x, rates, seed=seed, out=x),
        lambda x, rates, seed: fastdrop.bias_dropout_add(x, None, x, rates, seed=seed, out=x),
        lambda x, rates, seed: fastdrop.alpha_dropout(x, rates, seed=seed, out=x),
        lambda x, rates, seed: fastdrop.alpha_dropout_(x, rates, seed=seed),
        lambda x, rates, seed: fastdrop.gaussian_dropout(x, rates, seed=seed, out=x),
        lambda x, rates, seed: fastdrop.gaussian_dropout_(x, rates, seed=seed),
    ):
        x, stream = np.full(3, -2.0), fastdrop.Stream(1)
        for rates, error, message in bad:
            with pytest.raises(error, match=message):
                call(x, rates, stream)
        with pytest.raises(OverflowError, match="`seed`"):
            call(x, good, full)
        assert (x == -2).all()
        assert stream.step == 0
        call(x, good, stream)
        assert stream.step == 1
    one = np.array([[0.5, 1.0, 0.5]])
    with pytest.raises(ValueError, match=r"`rate` must be below 1.*got 1\.0 at index \(0, 1\)"):
        fastdrop.gaussian_dropout_(np.ones((1, 3)), one, seed=1)


@pytest.mark.parametrize(
    "stddev", [np.array([-1.0]), np.array([np.inf]), np.ones(3), np.ones(1, F4)]
)
def test_a_crafted_pickle_of_noise_is_refused(stddev):
    _, noise = fastdrop.gaussian_dropout(np.ones(2), np.array([0.5, 0.25]), seed=1)
    restore, (state,) = noise.__reduce__()
    assert restore(state) == noise
    with pytest.raises(ValueError, match="`stddev`"):
        restore(state | {"stddev": stddev})
    with pytest.raises(ValueError, match="`stddev`"):
        restore(state | {"additive": True})
