"""Dropout by an array of rates equals the reference, for all dtypes, layouts and shapes.

``reference.keep_by_rates`` decides as docs/stream.md defines it.
"""

import ml_dtypes
import numpy as np
import pytest
import reference
from pairwise import pairs_of
from reference import assert_same_bits
from test_values import DTYPES, values

import fastdrop

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
