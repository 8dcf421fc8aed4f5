"""What shows only at sizes that take minutes or gigabytes; `make test-slow` runs it."""

import math

import numpy as np
import pytest
import reference

import fastdrop

pytestmark = pytest.mark.slow

PIECE = 2**30


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.01, 0.99])
def test_keep_rate_of_2_to_36_elements(rate):
    """Here a threshold of 16 bits, rounded as well as can be, would be ten sigma off or more."""
    size, keep = 2**36, 1 - rate
    sigma = math.sqrt(size * keep * rate)
    short = abs(round(keep * 2**16) / 2**16 - keep) * size / sigma
    assert short > 10, "the size is enough to see what is looked for"
    kept = 0
    for offset in range(0, size, PIECE):
        mask = fastdrop.draw_mask(PIECE, rate, seed=2024, offset=offset)
        kept += mask.count()
    assert abs(kept - size * keep) / sigma < 5


def test_more_than_2_to_31_elements():
    """In place and from the mask: an index of 32 bits would wrap where this looks."""
    size, rate, seed = 2**31 + 4099, 0.25, 77
    x = np.ones(size, np.float16)
    mask = fastdrop.dropout_(x, rate, seed=seed)
    gradient = fastdrop.dropout_grad_(np.ones(size, np.float16), mask)
    scale = reference.default_scale(rate)
    for first in (0, 2**31 - 4096, 2**31, size - 5000):
        piece = slice(first, min(first + 5000, size))
        kept = reference.keep_mask(seed, 0, rate, piece.stop - first, offset=first)
        expected = reference.dropout(np.ones(kept.size, np.float16), kept, scale)
        reference.assert_same_bits(x[piece], expected)
        reference.assert_same_bits(gradient[piece], expected)
    assert mask.count() == np.count_nonzero(x)
