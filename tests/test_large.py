"""Sizes that take minutes or gigabytes; `make test-slow` runs these tests."""

import math
import sys

import numpy as np
import pytest
import reference

import fastdrop

pytestmark = [pytest.mark.slow, pytest.mark.long]

PIECE = 2**30


SIZE = 2**36


def keep_rate_score(drawn_at, rate):
    """The deviation of drawn masks from the keep rate of `rate`, in standard deviations."""
    kept = 0
    for offset in range(0, SIZE, PIECE):
        kept += fastdrop.draw_mask(PIECE, drawn_at, seed=2024, offset=offset).count()
    return abs(kept - SIZE * (1 - rate)) / math.sqrt(SIZE * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_keep_rate_of_2_to_36_elements(rate):
    assert keep_rate_score(rate, rate) < 5


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.01, 0.99])
def test_a_threshold_of_16_bits_would_be_detected(rate):
    """A threshold rounded to 16 bits keeps as many as a rate that has 16 bits."""
    short = 1 - round((1 - rate) * 2**16) / 2**16
    assert keep_rate_score(short, rate) > 5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_rate_off_by_two_in_100_000_would_be_detected(rate):
    assert keep_rate_score(rate + 2e-5, rate) > 5


# The elements in the order of the bits, in reverse, or transposed: neighbours in memory are then
# one row of bits apart.
ORDERS = {
    "C": lambda x: x.reshape(2, -1),
    "backwards": lambda x: x.reshape(2, -1)[::-1, ::-1],
    "Fortran": lambda x: x.reshape(-1, 2).T,
}


@pytest.mark.parametrize("order", ORDERS)
def test_more_than_2_to_31_elements(order):
    """In place and with the mask, at elements whose index would overflow 32 bits."""
    size, rate, seed = 2**31 + 2**24 + 8198, 0.25, 77
    x = ORDERS[order](np.ones(size, np.float16))
    # Enough dimensions that one starts after the first 2**31 elements.
    with fastdrop.num_threads(64):
        mask = fastdrop.dropout_(x, rate, seed=seed)
        gradient = fastdrop.dropout_grad_(ORDERS[order](np.ones(size, np.float16)), mask)
    scale = reference.default_scale(rate)
    for first in (0, 2**31 - 4096, 2**31, size - 5000):
        row, column = divmod(first, size // 2)
        piece = row, slice(column, min(column + 5000, size // 2))
        kept = reference.keep_mask(seed, 0, rate, x[piece].size, offset=first)
        expected = reference.dropout(np.ones(kept.size, np.float16), kept, scale)
        reference.assert_same_bits(x[piece], expected)
        reference.assert_same_bits(gradient[piece], expected)
    assert mask.count() == np.count_nonzero(x)


def test_2_to_33_bits():
    """The mask, its pieces drawn separately, and the reference where 32 bits would overflow."""
    size, rate, seed = 2**33, 0.3, 78
    whole = fastdrop.draw_mask(size, rate, seed=seed).bits
    places = [0, 2**31 - 5000, 2**31 + 1, 2**32 - 4099, 2**32 + 4093, 3 * 2**31 - 3, size - 10007]
    for offset in places:
        count = 10007
        inside = whole[offset // 8 : (offset + count + 7) // 8]
        bits = np.unpackbits(inside, bitorder="little")[offset % 8 :][:count].astype(bool)
        np.testing.assert_array_equal(bits, reference.keep_mask(seed, 0, rate, count, offset))
        piece = fastdrop.draw_mask(count, rate, seed=seed, offset=offset)
        np.testing.assert_array_equal(piece.unpack(), bits)
    for offset in range(0, size, PIECE):
        piece = fastdrop.draw_mask(PIECE, rate, seed=seed, offset=offset).bits
        assert np.array_equal(piece, whole[offset // 8 : (offset + PIECE) // 8])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_memory_is_the_array_and_its_mask(run_python):
    """The growth of the peak of resident memory in a fresh process."""
    done = run_python(
        """
import numpy as np, fastdrop

def most():
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before = most()
x = np.ones(2**31 + 4099, np.float16)
mask = fastdrop.dropout_(x, 0.25, seed=77)
fastdrop.dropout_grad_(x, mask)
print(most() - before - x.nbytes - mask.nbytes)
""",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    # A second mask would take 256 MiB. Stacks of threads and NumPy take far less.
    assert int(done.stdout) < 32 * 2**20
