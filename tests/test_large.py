"""What shows only at sizes that take minutes or gigabytes; `make test-slow` runs it."""

import math

import numpy as np
import pytest
import reference

import fastdrop

pytestmark = pytest.mark.slow

PIECE = 2**30


SIZE = 2**36


def keep_rate_score(drawn_at, rate):
    """How far masks drawn at one rate are from the keep rate of another, in standard deviations."""
    kept = 0
    for offset in range(0, SIZE, PIECE):
        kept += fastdrop.draw_mask(PIECE, drawn_at, seed=2024, offset=offset).count()
    return abs(kept - SIZE * (1 - rate)) / math.sqrt(SIZE * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_keep_rate_of_2_to_36_elements(rate):
    assert keep_rate_score(rate, rate) < 5


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.01, 0.99])
def test_a_threshold_of_16_bits_would_show(rate):
    """Rounded as well as can be: what it keeps is drawn here by a rate that needs no more bits."""
    short = 1 - round((1 - rate) * 2**16) / 2**16
    assert keep_rate_score(short, rate) > 5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_rate_off_by_two_in_100_000_would_show(rate):
    assert keep_rate_score(rate + 2e-5, rate) > 5


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
