"""Statistical tests of the normal numbers at fixed seeds, each with noise that it rejects.

A test is a function of ``draw(seed, step, size) -> float32 array``, and returns normal scores or
statistics with known limits. With fixed seeds the results never change. ``broken_noise.py`` has the
noise that the tests must reject.
"""

import math

import broken_noise
import numpy as np
import pytest
import reference
from scipy.special import ndtr
from test_statistics import chi_square_score

import fastdrop

BLOCK, GROUP = reference.BLOCK, reference.GROUP
PIECE = 2**22
SMALL = 2**22
# A perfect generator exceeds these limits once in 10,000 or 100,000 runs.
LIMIT, KOLMOGOROV_SMIRNOV, ANDERSON_DARLING = 5, 2.3, 11
THRESHOLDS = (1, 2, 3, 4, 4.5, 5, 5.5, 6)


def library(seed, step, size):
    stream = fastdrop.Stream(seed)
    stream.state = {"seed": seed, "step": step}
    numbers = np.full(size, -0.0, np.float32)
    fastdrop.gaussian_noise_(numbers, 1, seed=stream)
    return numbers


def pieces(draw, seed, size):
    """Numbers in pieces that fit the memory, each at a step of its own."""
    for step in range(-(-size // PIECE)):
        yield draw(seed, step, min(size, PIECE))


# The distribution.


def moment(power):
    """E z^power: the product of the odd numbers below the power."""
    return math.prod(range(1, power, 2)) if power % 2 == 0 else 0


class Distribution:
    """What the numbers' distribution is judged by, accumulated over pieces."""

    BINS = 2**16

    def __init__(self, draw, size, seed=1):
        self.size = size
        self.counts = np.zeros(self.BINS, np.int64)
        self.sums = np.zeros(9)
        self.beyond = np.zeros(len(THRESHOLDS), np.int64)
        for numbers in pieces(draw, seed, size):
            z = numbers.astype(np.float64)
            bins = np.minimum((ndtr(z) * self.BINS).astype(np.int64), self.BINS - 1)
            self.counts += np.bincount(bins, minlength=self.BINS)
            power = np.ones_like(z)
            for k in range(1, 9):
                power *= z
                self.sums[k] += power.sum()
            np.abs(z, out=z)
            self.beyond += [np.count_nonzero(z > t) for t in THRESHOLDS]

    def empirical(self):
        """The uniform distribution's and the numbers' distribution function between bins."""
        expected = np.arange(1, self.BINS) / self.BINS
        return expected, np.cumsum(self.counts)[:-1] / self.size

    def kolmogorov_smirnov(self):
        expected, found = self.empirical()
        return math.sqrt(self.size) * np.abs(found - expected).max()

    def anderson_darling(self):
        """A^2, whose expectation is 1, as a sum over the limits of the bins."""
        expected, found = self.empirical()
        terms = (found - expected) ** 2 / (expected * (1 - expected))
        return self.size * terms.mean()

    def chi_square(self):
        expected = self.size / self.BINS
        return chi_square_score(np.sum((self.counts - expected) ** 2) / expected, self.BINS - 1)

    def moments(self):
        return [
            (self.sums[k] / self.size - moment(k))
            / math.sqrt((moment(2 * k) - moment(k) ** 2) / self.size)
            for k in range(1, 9)
        ]

    def tails(self):
        """Scores of the numbers beyond thresholds. A rare event's score is not normal, but above
        the normal one."""
        expected = np.array([math.erfc(t / math.sqrt(2)) * self.size for t in THRESHOLDS])
        variance = expected * (1 - expected / self.size) + 1
        return (self.beyond - expected) / np.sqrt(variance)

    def faults(self):
        """The names of the statistics beyond their limits."""
        found = {
            "Kolmogorov-Smirnov": self.kolmogorov_smirnov() > KOLMOGOROV_SMIRNOV,
            "Anderson-Darling": self.anderson_darling() > ANDERSON_DARLING,
            "chi-square": abs(self.chi_square()) > LIMIT,
            "moments": np.abs(self.moments()).max() > LIMIT,
            "tails": np.abs(self.tails()).max() > LIMIT,
        }
        return {name for name, is_fault in found.items() if is_fault}


def test_distribution():
    assert not Distribution(library, 2**24).faults()


@pytest.mark.slow
def test_distribution_of_2_to_28_numbers():
    assert not Distribution(library, 2**28).faults()


@pytest.mark.parametrize(
    ("draw", "faults"),
    [
        (broken_noise.twelve_uniform_numbers, {"Kolmogorov-Smirnov", "Anderson-Darling"}),
        (broken_noise.twelve_uniform_numbers, {"moments", "tails"}),
        (broken_noise.rough_logarithm, {"Kolmogorov-Smirnov", "Anderson-Darling"}),
        (broken_noise.rough_angles, {"chi-square"}),
        (broken_noise.one_word_for_both, {"moments"}),
        (broken_noise.short_words, {"tails"}),
        (broken_noise.truncated_numbers, {"tails"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_distribution_catches(draw, faults):
    assert faults <= Distribution(draw, SMALL).faults()


# Points: two numbers of a group, 16 elements apart, come from one distance and one direction.


def point_scores(draw, size):
    """Scores of the points' squared distances by directions, and of both coordinates' means."""
    points = np.concatenate([n.reshape(-1, 2, GROUP // 2) for n in pieces(draw, 2, size)])
    x, y = points.astype(np.float64).swapaxes(0, 1)
    far = np.exp(-(x**2 + y**2) / 2)
    where = np.arctan2(y, x) / (2 * np.pi) % 1
    bins = (far * 64).astype(np.int64) * 64 + (where * 64).astype(np.int64)
    counts = np.bincount(bins.ravel(), minlength=64**2)
    expected = x.size / 64**2
    score = chi_square_score(np.sum((counts - expected) ** 2) / expected, 64**2 - 1)
    means = [c.mean() * math.sqrt(c.size) for c in (x, y, x * y)]
    return np.abs([score, *means])


def test_points():
    assert point_scores(library, 2**24).max() < LIMIT


@pytest.mark.parametrize(
    "draw",
    [
        broken_noise.one_word_for_both,
        broken_noise.one_reflection,
        broken_noise.one_bit_for_both_reflections,
        broken_noise.rough_angles,
        broken_noise.rough_logarithm,
    ],
    ids=lambda d: d.__name__,
)
def test_points_catch(draw):
    assert point_scores(draw, SMALL).max() > LIMIT


# Neighbours and positions.

LAGS = [*range(1, 65), 128, 256, 512, BLOCK - GROUP, BLOCK, BLOCK + GROUP, 2 * BLOCK]
NEIGHBOURS = 5.5  # a limit for the largest of many scores


def neighbour_scores(draw, size):
    """Scores of the correlation of numbers, and of their squares, at each lag."""
    z = draw(3, 0, size).astype(np.float64)
    scores = []
    for f in (z, (z * z - 1) / math.sqrt(2)):
        scores += [f[:-lag] @ f[lag:] / math.sqrt(size - lag) for lag in LAGS]
    return np.abs(scores)


def test_neighbours_are_uncorrelated():
    assert neighbour_scores(library, 2**24).max() < NEIGHBOURS


@pytest.mark.parametrize(
    "draw",
    [broken_noise.one_word_for_both, broken_noise.blocks_share_a_state],
    ids=lambda d: d.__name__,
)
def test_neighbours_catch(draw):
    assert neighbour_scores(draw, 2**18).max() > NEIGHBOURS


def position_scores(draw, blocks):
    """Chi-squares of the means and of the mean squares at each position in a block."""
    z = draw(4, 0, blocks * BLOCK).reshape(blocks, BLOCK).astype(np.float64)
    scores = []
    for f in (z, (z * z - 1) / math.sqrt(2)):
        scores.append(chi_square_score(np.sum(f.sum(axis=0) ** 2) / blocks, BLOCK))
    return np.abs(scores)


def test_positions_in_a_block_are_alike():
    assert position_scores(library, 2**12).max() < LIMIT


def test_positions_catch_repeated_blocks():
    assert position_scores(broken_noise.blocks_share_a_state, 2**6).max() > LIMIT


# Related streams, and the mask of the same position.

RELATIONS = {
    "next seeds": lambda i: ((i, 0), (i + 1, 0)),
    "next high words": lambda i: ((i << 64, 0), (i + 1 << 64, 0)),
    "next steps": lambda i: ((7, i), (7, i + 1)),
    "seed and step exchanged": lambda i: ((i, i + 1), (i + 1, i)),
}


def related_scores(draw, relation, pairs):
    """Scores of the correlation at each position of a block, and of all of them."""
    total = np.zeros(BLOCK)
    for i in range(pairs):
        a, b = (draw(*position, BLOCK).astype(np.float64) for position in relation(i))
        total += a * b
    return np.abs([*total, total.sum() / math.sqrt(BLOCK)]) / math.sqrt(pairs)


@pytest.mark.parametrize("relation", RELATIONS)
def test_related_noise_is_uncorrelated(relation):
    assert related_scores(library, RELATIONS[relation], 2**12).max() < 6


@pytest.mark.parametrize("relation", RELATIONS)
def test_related_noise_catches_unmixed_keys(relation):
    assert related_scores(broken_noise.unmixed_keys, RELATIONS[relation], 2**6).max() > 6


def mask_scores(draw, blocks=2**14):
    """The largest score of a bit of a mask and a number, or its square, of the same block."""
    z = draw(5, 0, blocks * BLOCK).reshape(blocks, BLOCK)[:, :GROUP].astype(np.float64)
    kept = fastdrop.draw_mask((blocks, BLOCK), 0.5, seed=5).unpack()[:, :1024]
    signs = np.where(kept, 1.0, -1.0)
    both = np.concatenate([z, (z * z - 1) / math.sqrt(2)], axis=1)
    return np.abs(signs.T @ both / math.sqrt(blocks)).max()


def test_noise_is_independent_of_the_mask():
    assert mask_scores(library) < 6


def test_the_comparison_with_the_mask_catches_noise_of_the_same_words():
    assert mask_scores(broken_noise.key_of_the_mask, 2**10) > 6


# The page's formulas, compared with exact arithmetic.

WORDS = np.concatenate(
    [
        np.arange(-(2**16), 2**16),
        np.random.default_rng(0).integers(-(2**31), 2**31, 2**20),
        np.array([-(2**31), 2**31 - 1]),
    ]
).astype(np.int32)


def exact_distances(words):
    h = (words.astype(np.float64) + 0.5) / 2**32
    return np.sqrt(-2 * np.where(h < 0, np.log1p(h), np.log(np.abs(h))))


def test_distances_are_those_of_exact_arithmetic():
    found, exact = reference.distances(WORDS), exact_distances(WORDS)
    assert np.abs(found / exact - 1).max() < 2.5e-7
    assert found.max() > 6.76
    assert 0 < found.min() < 2e-5


def test_coordinates_are_those_of_exact_arithmetic():
    angles = np.pi / 4 * ((WORDS >> 2).astype(np.float64) + 0.5) / 2**29
    # A reflection at the diagonal turns an angle into pi / 2 - angle.
    angles = np.where(WORDS & 2, np.pi / 2 - angles, angles) + np.where(WORDS & 1, np.pi, 0)
    x, y = reference.coordinates(WORDS, np.ones(WORDS.size, np.float32))
    assert np.abs(x - np.cos(angles)).max() < 1.5e-7
    assert np.abs(y - np.sin(angles)).max() < 1.5e-7


def tail_errors(bits):
    """The relative error of the probability beyond each threshold, with words of this many bits."""
    # The words next to 0, of which the numbers next to 0 come.
    h = (np.arange(2**21) + 0.5) / 2**bits
    distances = np.sqrt(-2 * np.log(h[h < 0.5]))
    for threshold in (4, 5, 6):
        far = distances[distances > threshold]
        share = np.sum(2 * np.arccos(threshold / far) / np.pi) / 2**bits
        yield abs(share / math.erfc(threshold / math.sqrt(2)) - 1)


def test_the_tails_have_the_probabilities_of_a_normal_distribution():
    """The shares of all directions beyond a threshold, summed over all distances beyond it."""
    assert max(tail_errors(32)) < 2e-3


def test_the_tails_catch_shorter_words():
    assert max(tail_errors(24)) > 2e-3
