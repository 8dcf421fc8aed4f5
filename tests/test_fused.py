"""Dropout fused with ReLU, a bias and a residual equals the separate operations.

Forward results are compared bit for bit with NumPy's operations around the reference's dropout; for
float16 and bfloat16 these are in float32, as in the contract. Sums are compared with exact sums,
and between instruction sets and numbers of threads.
"""

import itertools
import math
import threading

import ml_dtypes
import numpy as np
import pytest
import reference
from pairwise import pairs_of
from reference import assert_same_bits
from test_values import DTYPES, LAYOUTS, THREADS, Placed, each_dtype, values

import fastdrop

RATES = [0, 0.3, 1]
SHAPES = [
    (),
    (0,),
    (3, 0),
    (1,),
    (31,),
    (33, 1),
    (4099,),
    (70, 69),
    (5, 3),
    (300, 64),
    (2, 3, 5, 7),
]
NOISE_SHAPES = [(None, 1, None), (None, None, 1), (1, None, None), (1, 1, 1), (None, 1, 1)]


def keep(shape, rate, seed, noise_shape=None):
    noise = reference.resolve_noise_shape(shape, noise_shape)
    kept = reference.keep_mask(seed, 0, rate, math.prod(noise)).reshape(noise)
    return np.broadcast_to(kept, shape)


def finite(dtype, shape, seed=0):
    """Numbers without NaN: a sum of two NaNs may have either's bits."""
    return np.random.default_rng(seed).normal(0, 2, shape).astype(dtype)


def relu_dropout(x, rate, seed, noise_shape=None, scale=None):
    """The expected y, and a bool array of the kept elements."""
    scale = reference.default_scale(rate) if scale is None else scale
    left = keep(x.shape, rate, seed, noise_shape) & reference.positive(x)
    return reference.dropout(x, left, scale), left


# ReLU.


@each_dtype
@pytest.mark.parametrize("rate", RATES)
def test_relu(isa, dtype, rate):
    for i, shape in enumerate(SHAPES):
        x = values(dtype, shape, seed=i)
        expected, left = relu_dropout(x, rate, 7)
        y, mask = fastdrop.relu_dropout(x, rate, seed=7)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(mask.bits, reference.pack_bits(left))
        assert (mask.shape, mask.noise_shape, mask.rate) == (shape, shape, rate)
        assert (mask.seed, mask.step) == (None, None)
        dy = values(dtype, shape, seed=i + 100)
        assert_same_bits(
            fastdrop.relu_dropout_grad(dy, mask),
            reference.dropout(dy, left, reference.default_scale(rate)),
        )


@each_dtype
def test_relu_is_the_dropout_of_maximum(isa, dtype):
    x = values(dtype, (5000,), seed=3)
    with np.errstate(invalid="ignore"):
        # NumPy does not define the maximum of 0.0 and -0.0.
        positive_part = np.maximum(x, dtype.type(0)) + dtype.type(0)
    expected, _ = fastdrop.dropout(positive_part, 0.3, seed=5)
    assert_same_bits(fastdrop.relu_dropout(x, 0.3, seed=5)[0], expected)


@each_dtype
@pytest.mark.parametrize("noise_shape", NOISE_SHAPES, ids=str)
def test_relu_with_a_noise_shape(isa, dtype, noise_shape):
    for shape in [(3, 70, 33), (64, 2, 16), (5, 1, 9)]:
        x = values(dtype, shape, seed=4)
        expected, left = relu_dropout(x, 0.4, 9, noise_shape)
        y, mask = fastdrop.relu_dropout(x, 0.4, seed=9, noise_shape=noise_shape)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(mask.unpack(), left)
        assert mask.noise_shape == shape


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.0])
def test_relu_scale(isa, scale):
    x = finite(np.float32, (3000,))
    y, mask = fastdrop.relu_dropout(x, 0.4, seed=9, scale=scale)
    assert_same_bits(y, relu_dropout(x, 0.4, 9, scale=scale)[0])
    assert mask.scale == scale


@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_on_every_layout(isa, layout):
    content = values(np.dtype(np.float32), (33, 70), seed=5)
    expected, left = relu_dropout(content, 0.3, 7)
    for out_layout in LAYOUTS.values():
        x = Placed(content, **LAYOUTS[layout](2))
        out = Placed(np.zeros_like(content), **out_layout(2))
        y, mask = fastdrop.relu_dropout(x.array, 0.3, seed=7, out=out.array)
        assert y is out.array
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(mask.unpack(), left)
        x.assert_untouched()
        out.assert_rest_untouched()
    x = Placed(content, **LAYOUTS[layout](2))
    y, _ = fastdrop.relu_dropout(x.array, 0.3, seed=7)
    assert_same_bits(y, expected)
    fastdrop.relu_dropout(x.array, 0.3, seed=7, out=x.array)
    assert_same_bits(x.array, expected)
    x.assert_rest_untouched()


def test_relu_gradient_is_the_derivative():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 40, 30))
    y, mask = fastdrop.relu_dropout(x, 0.3, seed=4)
    dx = fastdrop.relu_dropout_grad(dy, mask)
    step = 2.0**-20
    for i, j in [(0, 0), (3, 7), (39, 29), (20, 20), (1, 1), (2, 2)]:
        moved = x.copy()
        moved[i, j] += step
        difference = (fastdrop.relu_dropout(moved, 0.3, seed=4)[0] - y) * dy
        np.testing.assert_allclose(difference.sum() / step, dx[i, j], rtol=1e-6, atol=1e-9)


# Bias and residual.


@each_dtype
@pytest.mark.parametrize("rate", RATES)
def test_bias_dropout_add(isa, dtype, rate):
    scale = reference.default_scale(rate)
    for i, shape in enumerate(SHAPES):
        kept = keep(shape, rate, 11)
        x, residual = values(dtype, shape, seed=i), finite(dtype, shape, seed=i)
        bias = finite(dtype, shape[-1:], seed=i + 50) if shape else None
        for b, r in itertools.product([bias, None], [residual, None]):
            y, mask = fastdrop.bias_dropout_add(x, b, r, rate, seed=11)
            assert_same_bits(y, reference.bias_dropout_add(x, b, r, kept, scale))
            np.testing.assert_array_equal(mask.bits, reference.pack_bits(kept))
            assert (mask.seed, mask.step, mask.rate, mask.scale) == (11, 0, rate, scale)


@each_dtype
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 16, 31, 32, 33, 63, 64, 65, 100, 1000])
def test_every_width_of_a_bias(isa, dtype, columns):
    x, residual = finite(dtype, (2, 137, columns), 1), finite(dtype, (2, 137, columns), 2)
    bias = finite(dtype, (columns,), 3)
    y, _ = fastdrop.bias_dropout_add(x, bias, residual, 0.2, seed=1)
    assert_same_bits(y, reference.bias_dropout_add(x, bias, residual, keep(x.shape, 0.2, 1), 1.25))


@each_dtype
def test_special_values_in_a_residual_and_a_bias(isa, dtype):
    shape = (60, 81)
    x, bias, residual = values(dtype, shape, 1), values(dtype, (81,), 2), values(dtype, shape, 3)
    y, _ = fastdrop.bias_dropout_add(x, bias, residual, 0.5, seed=1)
    assert_same_bits(y, reference.bias_dropout_add(x, bias, residual, keep(shape, 0.5, 1), 2.0))


@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize("rate", [0, 0.3, 1])
@pytest.mark.parametrize("scale", [None, 1.0, -0.5])
def test_scale_and_rate_with_and_without_stored_bits(isa, rate, scale, store_mask):
    x, residual = finite(np.float32, (130, 70), 1), finite(np.float32, (130, 70), 2)
    bias = finite(np.float32, (70,), 3)
    y, mask = fastdrop.bias_dropout_add(
        x, bias, residual, rate, seed=4, scale=scale, store_mask=store_mask
    )
    used = reference.default_scale(rate) if scale is None else scale
    kept = keep(x.shape, rate, 4)
    assert_same_bits(y, reference.bias_dropout_add(x, bias, residual, kept, used))
    assert mask.scale == used
    dx, _, _ = fastdrop.bias_dropout_add_grad(x, mask)
    assert_same_bits(dx, reference.dropout(x, kept, used))


def test_out_may_be_x_and_residual_and_contain_the_bias(isa):
    x, other = finite(np.float32, (130, 70), 1), finite(np.float32, (70,), 3)
    kept = keep(x.shape, 0.3, 4)
    expected = reference.bias_dropout_add(x, other, x, kept, 1 / 0.7)
    y = x.copy()
    fastdrop.bias_dropout_add(y, other, y, 0.3, seed=4, out=y)
    assert_same_bits(y, expected)
    y = x.copy()
    fastdrop.bias_dropout_add(y, y[3], None, 0.3, seed=4, out=y)
    assert_same_bits(y, reference.bias_dropout_add(x, x[3], None, kept, 1 / 0.7))


@pytest.mark.parametrize("noise_shape", NOISE_SHAPES, ids=str)
def test_large_noise_shapes_on_any_number_of_threads(isa, noise_shape):
    for shape, threads in itertools.product([(65, 66, 129), (70_000, 2, 3)], (1, 3)):
        x, residual = finite(np.float32, shape, 1), finite(np.float32, shape, 2)
        kept = keep(shape, 0.4, 9, noise_shape)
        expected = reference.bias_dropout_add(x, None, residual, kept, 1 / 0.6)
        with fastdrop.num_threads(threads):
            y, mask = fastdrop.bias_dropout_add(
                x, None, residual, 0.4, seed=9, noise_shape=noise_shape
            )
            assert_same_bits(y, expected)
            dx, _, _ = fastdrop.bias_dropout_add_grad(x, mask)
            assert_same_bits(dx, reference.dropout(x, kept, 1 / 0.6))
            y, _ = fastdrop.relu_dropout(x, 0.4, seed=9, noise_shape=noise_shape)
            assert_same_bits(y, relu_dropout(x, 0.4, 9, noise_shape)[0])


def test_without_bias_and_residual_it_is_dropout(isa):
    x = values(np.dtype(np.float32), (50, 41), seed=2)
    y, mask = fastdrop.bias_dropout_add(x, None, None, 0.3, seed=2)
    expected, expected_mask = fastdrop.dropout(x, 0.3, seed=2)
    assert_same_bits(y, expected)
    assert mask == expected_mask


@pytest.mark.parametrize("store_mask", [True, False])
@pytest.mark.parametrize("noise_shape", NOISE_SHAPES, ids=str)
def test_bias_dropout_add_with_a_noise_shape(isa, noise_shape, store_mask):
    for shape in [(3, 70, 33), (64, 2, 16), (5, 1, 9)]:
        x, residual = finite(np.float32, shape, 1), finite(np.float32, shape, 2)
        bias, dy = finite(np.float32, shape[-1:], 3), finite(np.float32, shape, 4)
        kept = keep(shape, 0.4, 9, noise_shape)
        y, mask = fastdrop.bias_dropout_add(
            x, bias, residual, 0.4, seed=9, noise_shape=noise_shape, store_mask=store_mask
        )
        assert_same_bits(y, reference.bias_dropout_add(x, bias, residual, kept, 1 / 0.6))
        noise = reference.resolve_noise_shape(shape, noise_shape)
        assert mask.noise_shape == noise
        assert mask.nbytes == (math.ceil(math.prod(noise) / 8) if store_mask else 0)
        dx, dbias, _ = fastdrop.bias_dropout_add_grad(dy, mask)
        expected = reference.dropout(dy, kept, 1 / 0.6)
        assert_same_bits(dx, expected)
        np.testing.assert_allclose(dbias, expected.sum((0, 1), np.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_dropout_add_on_every_layout(isa, layout):
    dtype = np.dtype(np.float32)
    shape = (33, 70)
    content, residual_content = finite(dtype, shape, 1), finite(dtype, shape, 2)
    bias = finite(dtype, (140,), 3)[::2]
    kept = keep(shape, 0.3, 7)
    expected = reference.bias_dropout_add(content, bias, residual_content, kept, 1 / 0.7)
    for out_layout in LAYOUTS.values():
        x = Placed(content, **LAYOUTS[layout](2))
        residual = Placed(residual_content, **out_layout(2))
        out = Placed(np.zeros_like(content), **out_layout(2))
        y, mask = fastdrop.bias_dropout_add(
            x.array, bias, residual.array, 0.3, seed=7, out=out.array
        )
        assert y is out.array
        assert_same_bits(y, expected)
        out.assert_rest_untouched()
        residual.assert_untouched()
        fastdrop.bias_dropout_add(x.array, bias, residual.array, 0.3, seed=7, out=residual.array)
        assert_same_bits(residual.array, expected)
        x.assert_untouched()
        dx, _, dresidual = fastdrop.bias_dropout_add_grad(x.array, mask, out=out.array)
        assert dx is out.array
        assert dresidual is x.array
        assert_same_bits(dx, reference.dropout(content, kept, 1 / 0.7))
        out.assert_rest_untouched()
        fastdrop.bias_dropout_add(x.array, bias, residual_content, 0.3, seed=7, out=x.array)
        assert_same_bits(x.array, expected)
        x.assert_rest_untouched()


def exact_sums(dx):
    columns = dx.reshape(-1, dx.shape[-1]).T.astype(np.float64)
    return np.array([math.fsum(column) for column in columns])


@each_dtype
@pytest.mark.parametrize("columns", [1, 3, 31, 64, 65, 768, 1500])
def test_bias_gradient(isa, dtype, columns):
    dy = finite(dtype, (40_000 // columns, columns), 1)
    mask = fastdrop.draw_mask(dy.shape, 0.2, seed=3)
    dx, dbias, dresidual = fastdrop.bias_dropout_add_grad(dy, mask)
    assert dresidual is dy
    kept = keep(dy.shape, 0.2, 3)
    assert_same_bits(dx, reference.dropout(dy, kept, 1.25))
    assert dbias.dtype == dtype
    assert dbias.shape == (columns,)
    # The terms of the sums, before they are rounded to half precision.
    wide = reference.computed_in(dtype)
    summands = np.where(kept, dy.astype(wide) * wide.type(1.25), 0)
    precision = 1e-15 if dtype == np.float64 else 2.0**-24
    bound = 130 * precision * np.abs(summands).sum(0, dtype=np.float64)
    bound += float(ml_dtypes.finfo(dtype).eps) * np.abs(exact_sums(summands))
    assert (np.abs(dbias.astype(np.float64) - exact_sums(summands)) <= bound + 1e-300).all()


@pytest.mark.parametrize(
    ("dtype", "large"), [(DTYPES[0], 1024), (DTYPES[1], 256)], ids=["float16", "bfloat16"]
)
def test_sums_are_rounded_once(isa, dtype, large):
    """A sum slightly above the middle of two numbers, which float32 rounds to the middle."""
    dy = np.zeros((100_000, 1), dtype)
    dy[0], dy[1], dy[-1] = large, ml_dtypes.finfo(dtype).eps * large / 2, 2.0**-24
    for sign in (1, -1):
        signed = (sign * dy).astype(dtype)
        mask = fastdrop.draw_mask(dy.shape, 0.0)
        _, dbias, _ = fastdrop.bias_dropout_add_grad(signed, mask)
        assert float(dbias[0]) == sign * (large + float(ml_dtypes.finfo(dtype).eps) * large)


@pytest.mark.parametrize("shape", [(300_000, 1), (9000, 33), (1000, 1025), (3, 100_003)], ids=str)
def test_sums_of_many_groups_of_rows(isa, shape):
    """The numbers are integers below 2^24, so every sum is exact."""
    dy = np.random.default_rng(0).integers(-40, 40, shape).astype(np.float32)
    mask = fastdrop.draw_mask(shape, 0.5, seed=3)
    for threads in (1, 2):
        with fastdrop.num_threads(threads):
            dx, dbias, _ = fastdrop.bias_dropout_add_grad(dy, mask)
        expected = np.where(keep(shape, 0.5, 3), 2 * dy, 0).astype(np.int64)
        np.testing.assert_array_equal(dx, expected)
        np.testing.assert_array_equal(dbias, expected.sum(0))


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sums_of_non_finite_values(isa, dtype, value):
    dy = finite(dtype, (300, 40), 1)
    dy[7, 3] = dy[8, 5] = value
    mask = fastdrop.draw_mask(dy.shape, 0.0, seed=3)
    _, dbias, _ = fastdrop.bias_dropout_add_grad(dy, mask)
    for column in range(40):
        found = float(dbias[column])
        if column in (3, 5):
            np.testing.assert_equal(found, value)
        else:
            assert math.isfinite(found)


@each_dtype
@pytest.mark.parametrize("shape", [(9000, 33), (3, 200_001), (300_000, 1)], ids=str)
def test_sums_are_the_same_everywhere(dtype, shape):
    dy = finite(dtype, shape, 1)
    mask = fastdrop.draw_mask(shape, 0.2, seed=3)
    results = []
    for name in fastdrop.available_isas():
        for threads in (1, 2, 5):
            with fastdrop._isa.using(name), fastdrop.num_threads(threads):
                results.append(fastdrop.bias_dropout_add_grad(dy, mask))
    for dx, dbias, _ in results[1:]:
        assert_same_bits(dx, results[0][0])
        assert_same_bits(dbias, results[0][1])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4)], ids=str)
def test_gradient_without_elements(shape):
    mask = fastdrop.draw_mask(shape, 0.5, seed=1)
    dx, dbias, _ = fastdrop.bias_dropout_add_grad(np.ones(shape), mask)
    assert dx.shape == shape
    np.testing.assert_array_equal(dbias, np.zeros(shape[-1:]))


def test_gradients_are_the_derivatives():
    rng = np.random.default_rng(0)
    x, residual, dy = rng.normal(size=(3, 40, 30))
    bias = rng.normal(size=30)
    arguments = {"x": x, "bias": bias, "residual": residual}
    y, mask = fastdrop.bias_dropout_add(**arguments, rate=0.3, seed=4)
    gradients = fastdrop.bias_dropout_add_grad(dy, mask)
    step = 2.0**-20
    for (name, value), gradient in zip(arguments.items(), gradients, strict=True):
        for place in [(0,) * value.ndim, (7,) * value.ndim, (29,) * value.ndim]:
            moved = value.copy()
            moved[place] += step
            there, _ = fastdrop.bias_dropout_add(**arguments | {name: moved}, rate=0.3, seed=4)
            np.testing.assert_allclose(
                ((there - y) * dy).sum() / step, gradient[place], rtol=1e-6, atol=1e-7
            )


# Both.


@pairs_of("threads dtype", THREADS, DTYPES)
def test_large_arrays_on_any_number_of_threads(isa, threads, dtype):
    shape = (1031, 513)
    x, residual = finite(dtype, shape, 1), finite(dtype, shape, 2)
    bias = finite(dtype, shape[-1:], 3)
    with fastdrop.num_threads(threads):
        y, mask = fastdrop.relu_dropout(x, 0.2, seed=6)
        expected, left = relu_dropout(x, 0.2, 6)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(mask.bits, reference.pack_bits(left))
        kept = keep(shape, 0.2, 6)
        for store_mask in (True, False):
            y, mask = fastdrop.bias_dropout_add(
                x, bias, residual, 0.2, seed=6, store_mask=store_mask
            )
            assert_same_bits(y, reference.bias_dropout_add(x, bias, residual, kept, 1.25))
            assert_same_bits(
                fastdrop.bias_dropout_add_grad(x, mask)[0], reference.dropout(x, kept, 1.25)
            )


def test_each_call_takes_a_step_of_a_stream():
    stream = fastdrop.Stream(5)
    x = np.ones((4, 33))
    fastdrop.relu_dropout(x, 0.5, seed=stream)
    _, mask = fastdrop.bias_dropout_add(x, None, x, 0.5, seed=stream)
    assert (mask.seed, mask.step) == (5, 1)
    assert stream.step == 2


def test_a_mask_of_relu_is_pickled_with_its_bits():
    import pickle

    _, mask = fastdrop.relu_dropout(np.array([1.0, -1.0, 2.0, np.nan]), 0, seed=1)
    assert mask.unpack().tolist() == [True, False, True, True]
    assert pickle.loads(pickle.dumps(mask)) == mask


def test_inputs_are_only_read(isa):
    for dtype in DTYPES:
        x, bias = finite(dtype, (70, 69), 1), finite(dtype, (69,), 2)
        before = [a.copy() for a in (x, bias)]
        for a in (x, bias):
            a.flags.writeable = False
        _, mask = fastdrop.relu_dropout(x, 0.3)
        fastdrop.relu_dropout_grad(x, mask)
        y, mask = fastdrop.bias_dropout_add(x, bias, x, 0.3)
        fastdrop.bias_dropout_add_grad(x, mask)
        assert_same_bits(x, before[0])
        assert_same_bits(bias, before[1])
        assert y.flags.writeable
        assert not np.shares_memory(y, x)


# Errors.


def unchanged(call, argument, *arrays, error=ValueError):
    before = [a.copy() for a in arrays]
    stream = fastdrop.Stream(1)
    with pytest.raises(error, match=f"`{argument}`"):
        call(stream)
    assert stream.step == 0
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)


BAD_COMPANIONS = {
    "bias": [np.ones(4), np.ones((1, 5)), np.ones(5, np.float32), np.ones(()), 1.0, [1] * 5],
    "residual": [np.ones(5), np.ones((5, 3)), np.ones((3, 5), np.float16), 0.0, np.ones((1, 5))],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, v) for name, all_ in BAD_COMPANIONS.items() for v in all_], ids=str
)
def test_bias_and_residual_are_checked(name, value):
    x, out = np.ones((3, 5)), np.zeros((3, 5))
    arguments = {"bias": None, "residual": None} | {name: value}
    unchanged(
        lambda s: fastdrop.bias_dropout_add(x, **arguments, rate=0.5, seed=s, out=out),
        name,
        x,
        out,
    )


@pytest.mark.parametrize("value", ["text", object(), {1.0}])
@pytest.mark.parametrize("name", ["bias", "residual"])
def test_bias_and_residual_are_arrays(name, value):
    arguments = {"bias": None, "residual": None} | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        fastdrop.bias_dropout_add(np.ones((3, 5)), **arguments, rate=0.5)


def test_no_bias_without_an_axis():
    unchanged(
        lambda s: fastdrop.bias_dropout_add(np.array(1.0), np.ones(1), None, 0.5, seed=s), "bias"
    )
    mask = fastdrop.draw_mask((), 0.5)
    unchanged(lambda s: fastdrop.bias_dropout_add_grad(np.array(1.0), mask), "dy")


@pytest.mark.parametrize(
    "call",
    [
        lambda x, out, **seed: fastdrop.relu_dropout(x, 0.5, out=out, **seed),
        lambda x, out, **seed: fastdrop.bias_dropout_add(x, None, None, 0.5, out=out, **seed),
        lambda x, out, **_: fastdrop.relu_dropout_grad(x, fastdrop.draw_mask(12, 0.5), out=out),
        lambda x, out, **_: fastdrop.bias_dropout_add_grad(x, fastdrop.draw_mask(12, 0.5), out=out),
    ],
    ids=["relu_dropout", "bias_dropout_add", "relu_dropout_grad", "bias_dropout_add_grad"],
)
def test_out_overlaps_x_partly(call):
    memory, stream = np.arange(40.0), fastdrop.Stream(1)
    with pytest.raises(ValueError, match="`out`"):
        call(memory[:12], memory[1:13], seed=stream)
    assert stream.step == 0
    np.testing.assert_array_equal(memory, np.arange(40.0))


def test_out_apart_from_the_residual():
    base = np.ones(40)
    x, residual = np.ones((3, 5)), base[:15].reshape(3, 5)
    out = base[5:20].reshape(3, 5)
    unchanged(
        lambda s: fastdrop.bias_dropout_add(x, None, residual, 0.5, seed=s, out=out), "out", base, x
    )


def test_the_gradient_cannot_overwrite_dy():
    dy = np.ones((3, 5))
    mask = fastdrop.draw_mask((3, 5), 0.5)
    for out in (dy, dy[...]):
        unchanged(lambda s, out=out: fastdrop.bias_dropout_add_grad(dy, mask, out=out), "out", dy)


# Views of any strides.


def random_view(content, rng):
    """The same numbers with axes in another memory order, with gaps, and with negative strides."""
    order = rng.permutation(content.ndim)
    sizes = [content.shape[axis] * rng.integers(1, 3) + rng.integers(0, 2) for axis in order]
    memory = np.zeros(sizes, content.dtype)
    steps = [size // max(content.shape[axis], 1) for axis, size in zip(order, sizes, strict=True)]
    view = memory[tuple(slice(None, None, step) for step in steps)]
    view = view[tuple(slice(content.shape[axis]) for axis in order)].transpose(np.argsort(order))
    view = view[tuple(slice(None, None, rng.choice([-1, 1, 1])) for _ in range(content.ndim))]
    view[...] = content
    return view


@pairs_of(
    "shape threads",
    [
        (71, 33),
        (600, 700),
        (9, 128, 200),
        (70, 8, 9, 65),
        (5, 30_000),
        (40_000, 7),
        (9000, 2),
        (5000, 2, 3),
        (1500, 2, 2, 3),
    ],
    [1, 2],
)
def test_any_strides(isa, shape, threads):
    """The arrays are large enough for pieces, tiles and threads."""
    for seed in range(6):
        rng = np.random.default_rng([seed, *shape])
        dtype = DTYPES[seed % len(DTYPES)]
        content, other = finite(dtype, shape, seed), finite(dtype, shape, seed + 1)
        bias = finite(dtype, shape[-1:], seed + 2)
        noise_shape = tuple(None if rng.random() < 0.7 else 1 for _ in shape)
        x, residual, out = (random_view(a, rng) for a in (content, other, content))
        with fastdrop.num_threads(threads):
            y, mask = fastdrop.relu_dropout(x, 0.3, seed=7, noise_shape=noise_shape, out=out)
            expected, left = relu_dropout(content, 0.3, 7, noise_shape)
            assert_same_bits(y, expected)
            np.testing.assert_array_equal(mask.unpack(), left)
            y, mask = fastdrop.bias_dropout_add(
                x, bias, residual, 0.3, seed=7, noise_shape=noise_shape, out=out
            )
            kept = keep(shape, 0.3, 7, noise_shape)
            assert_same_bits(y, reference.bias_dropout_add(content, bias, other, kept, 1 / 0.7))
            dx, dbias, _ = fastdrop.bias_dropout_add_grad(x, mask, out=out)
            assert_same_bits(dx, reference.dropout(content, kept, 1 / 0.7))
            # Sums are in the order of the indices, for any memory order.
            assert_same_bits(dbias, fastdrop.bias_dropout_add_grad(content, mask)[1])


def test_a_reversed_bias_of_two_elements(isa):
    """With two columns, the column before is also the column after."""
    y = np.zeros((20_000, 2))[::-1, ::-1]
    fastdrop.bias_dropout_add(y, np.array([100.0, -1000.0]), None, 0.0, seed=1, out=y)
    np.testing.assert_array_equal(y, np.broadcast_to([100.0, -1000.0], y.shape))


@each_dtype
def test_gradient_into_an_array_at_an_odd_address(isa, dtype):
    dy = finite(dtype, (64, 64))
    mask = fastdrop.draw_mask(dy.shape, 0.2, seed=3)
    out = np.ndarray(dy.shape, dtype, np.zeros(dy.nbytes + 1, np.uint8).data, 1)
    _, dbias, _ = fastdrop.bias_dropout_add_grad(dy, mask, out=out)
    expected, expected_dbias, _ = fastdrop.bias_dropout_add_grad(dy, mask)
    assert_same_bits(out.copy(), expected)
    assert_same_bits(dbias, expected_dbias)


def test_threads_with_little_stack():
    """Every operation runs with its largest need of stack, on a small stack as in some systems."""
    wide, tall = finite(np.dtype(np.float64), (300, 700)), np.ones((400, 300)).T
    bias = np.ones(700)

    def call():
        fastdrop.dropout(tall, 0.2)
        fastdrop.relu_dropout(tall[::2], 0.2, out=np.asfortranarray(tall[::2]))
        y, mask = fastdrop.bias_dropout_add(wide[:, ::-2], bias[::2], wide[:, ::2], 0.2)
        fastdrop.bias_dropout_add_grad(np.asfortranarray(y), mask)
        finished.append(True)

    finished = []
    before = threading.stack_size(128 * 1024)
    try:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert finished
