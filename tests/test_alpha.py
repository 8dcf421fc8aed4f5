"""Alpha dropout equals the reference, and keeps the mean and the variance of SELU's results."""

import math

import ml_dtypes
import numpy as np
import pytest
import reference
from pairwise import pairs_of
from reference import assert_same_bits
from test_fused import finite, keep
from test_values import DTYPES, LAYOUTS, SHAPES, Placed, each_dtype

import fastdrop

RATES = [0, 1e-9, 0.3, 0.9, 1 - 2**-50, 1]


def expected(x, rate, seed, noise_shape=None):
    return reference.alpha_dropout(x, keep(x.shape, rate, seed, noise_shape), rate)


@each_dtype
@pytest.mark.parametrize("rate", RATES)
def test_alpha_dropout(isa, dtype, rate):
    for i, shape in enumerate([*SHAPES, (300, 1000)]):
        x = finite(dtype, shape, seed=i)
        y, mask = fastdrop.alpha_dropout(x, rate, seed=7)
        assert_same_bits(y, expected(x, rate, 7))
        assert (mask.rate, mask.scale) == (rate, reference.alpha_scale(rate))
        assert mask == fastdrop.draw_mask(shape, rate, seed=7, scale=mask.scale)
        dy = finite(dtype, shape, seed=i + 100)
        kept = keep(shape, rate, 7)
        assert_same_bits(
            fastdrop.dropout_grad(dy, mask),
            reference.dropout(dy, kept, reference.alpha_scale(rate)),
        )


@each_dtype
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_formula_of_the_paper(dtype, rate):
    """Dropped elements become SELU's least value; then all are a * x + b."""
    x = finite(dtype, (5000,), 1)
    least = -1.0507009873554805 * 1.6732632423543772
    a = ((1 - rate) * (1 + rate * least**2)) ** -0.5
    dropped = np.where(keep(x.shape, rate, 7), x.astype(np.float64), least)
    y, _ = fastdrop.alpha_dropout(x, rate, seed=7)
    close = 8 * float(ml_dtypes.finfo(dtype).eps)
    exact = a * dropped - a * rate * least
    np.testing.assert_allclose(y.astype(np.float64), exact, rtol=close, atol=close)


@pairs_of("layout out_layout dtype", LAYOUTS, LAYOUTS, DTYPES)
def test_alpha_dropout_on_every_layout(isa, layout, out_layout, dtype):
    for shape, noise_shape in [((33, 70), None), ((5, 30, 33), (None, 1, None))]:
        content, ndim = finite(dtype, shape, 1), len(shape)
        result = expected(content, 0.3, 7, noise_shape)
        x = Placed(content, **LAYOUTS[layout](ndim))
        out = Placed(np.zeros_like(content), **LAYOUTS[out_layout](ndim))
        y, _ = fastdrop.alpha_dropout(x.array, 0.3, seed=7, noise_shape=noise_shape, out=out.array)
        assert y is out.array
        assert_same_bits(y, result)
        x.assert_untouched()
        out.assert_rest_untouched()
        fastdrop.alpha_dropout_(x.array, 0.3, seed=7, noise_shape=noise_shape)
        assert_same_bits(x.array, result)
        x.assert_rest_untouched()


@pytest.mark.parametrize("threads", [1, 3])
def test_large_alpha_dropout_on_any_number_of_threads(isa, threads):
    x = finite(np.dtype(np.float32), (601, 1023), 1)
    with fastdrop.num_threads(threads):
        assert_same_bits(fastdrop.alpha_dropout(x, 0.4, seed=9)[0], expected(x, 0.4, 9))


def test_the_mean_and_the_variance_stay_the_same():
    x = np.random.default_rng(0).normal(size=2**22)
    for rate in (0.05, 0.5, 0.95):
        y, _ = fastdrop.alpha_dropout(x, rate, seed=3)
        assert abs(y.mean()) < 5 / math.sqrt(x.size)
        fourth = np.mean((y - y.mean()) ** 4)
        assert abs(y.var() - 1) < 5 * math.sqrt(fourth / x.size)


def test_infinities_of_dropped_elements_do_not_pass():
    x = np.array([np.nan, np.inf, -np.inf] * 100, np.float32)
    y, mask = fastdrop.alpha_dropout(x, 0.5, seed=3)
    assert np.isfinite(y[~mask.unpack()]).all()
    assert_same_bits(y, expected(x, 0.5, 3))


def test_the_gradient_is_the_derivative():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 40, 30))
    y, mask = fastdrop.alpha_dropout(x, 0.3, seed=4)
    dx = fastdrop.dropout_grad(dy, mask)
    step = 2.0**-20
    for i, j in [(0, 0), (3, 7), (39, 29), (20, 20)]:
        moved = x.copy()
        moved[i, j] += step
        difference = (fastdrop.alpha_dropout(moved, 0.3, seed=4)[0] - y) * dy
        np.testing.assert_allclose(difference.sum() / step, dx[i, j], rtol=1e-6, atol=1e-9)
