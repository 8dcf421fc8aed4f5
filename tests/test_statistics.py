"""Statistical tests of the stream at fixed seeds, each with a broken stream that it rejects.

A test is a function of ``draw(seed, step, rate, size, offset=0) -> packed bits``. It returns normal
scores (z) or a rank. ``LIBRARY`` and the streams of ``broken_streams.py`` are such functions. With
fixed seeds the results never change. A perfect stream would pass all tests for more than 99.9 % of
all choices of seeds.
"""

import functools

import broken_streams
import numpy as np
import pytest

import fastdrop

BLOCK = 4096
BLOCK_BYTES = BLOCK // 8
VECTOR = 512
VECTORS = BLOCK // VECTOR
LANES = 8
LANE_BYTES = 8


def library(seed, step, rate, size, offset=0):
    stream = fastdrop.Stream(seed)
    stream.state = {"seed": seed, "step": step}
    return fastdrop.draw_mask(size, rate, seed=stream, offset=offset).bits


def ones(bits, axis=None):
    return np.bitwise_count(bits).sum(axis=axis, dtype=np.int64)


def unpacked(bits):
    return np.unpackbits(bits, bitorder="little")


def chi_square_score(chi_square, degrees):
    """Wilson and Hilferty's cube root, a normal score that is accurate in the low tail too."""
    spread = 2 / (9 * degrees)
    return (np.cbrt(chi_square / degrees) - (1 - spread)) / np.sqrt(spread)


# The keep rate.

KEEPS = [0.1, 0.5, 0.8, 0.9, 0.95, 0.99]
# A keep rate for which a threshold of 16 bits is off by half. Others would need 2**36 elements.
FINE_KEEPS = [1e-5, 1 - 1e-5, 2**-17, 1 - 2**-17]


def keep_rate_score(draw, keep, size=2**26):
    kept = ones(draw(11, 0, 1 - keep, size).view(np.uint64))
    return (kept - size * keep) / np.sqrt(size * keep * (1 - keep))


@pytest.mark.parametrize("keep", KEEPS + FINE_KEEPS)
def test_keep_rate(keep):
    assert abs(keep_rate_score(library, keep)) < 5


@pytest.mark.parametrize("keep", FINE_KEEPS)
@pytest.mark.parametrize(
    "draw",
    [
        broken_streams.short_threshold,
        broken_streams.missing_plane,
        broken_streams.plane_used_twice,
    ],
    ids=lambda d: d.__name__,
)
def test_keep_rate_catches_digits_that_are_not_their_own(draw, keep):
    assert abs(keep_rate_score(draw, keep)) > 5


@pytest.mark.parametrize("keep", KEEPS)
def test_keep_rate_catches_digits_from_the_wrong_end(keep):
    assert abs(keep_rate_score(broken_streams.digits_from_the_wrong_end, keep, 2**20)) > 5


@pytest.mark.parametrize("keep", KEEPS)
def test_keep_rate_catches_repeated_blocks(keep):
    assert abs(keep_rate_score(broken_streams.blocks_share_a_state, keep)) > 5


def first_vectors(bits):
    """The first vector of each block, which depends on no other vector's number of planes."""
    return bits.reshape(-1, VECTORS, VECTOR // 8)[:, 0]


def late_digit_scores(draw, high, size=2**25):
    """Scores of the fraction that later digits keep, of elements undecided after sixteen digits."""
    below, above = (first_vectors(draw(17, 0, 1 - h / 2**16, size)) for h in (high, high + 1))
    undecided = above & ~below
    expected = size / VECTORS / 2**16
    scores = [(ones(undecided) - expected) / np.sqrt(expected)]
    for rest in (0.1, 0.4, 0.5, 0.9):
        between = first_vectors(draw(17, 0, 1 - (high + rest) / 2**16, size))
        # In these vectors, a mask at a higher keep rate contains a mask at a lower rate.
        assert not np.any(below & ~between)
        assert not np.any(between & ~above)
        count = ones(undecided)
        kept = ones(between & undecided)
        scores.append((kept - count * rest) / np.sqrt(count * rest * (1 - rest)))
    return np.abs(scores)


@pytest.mark.parametrize("high", [6553, 32768, 52428, 65535])
def test_late_digits(high):
    assert late_digit_scores(library, high).max() < 5


@pytest.mark.parametrize("high", [6553, 32768, 52428, 65535])
def test_late_digits_catches_a_short_threshold(high):
    assert late_digit_scores(broken_streams.short_threshold, high).max() > 5


# The position in the block.


def position_scores(draw, keep, blocks=2**14, at_once=2**10):
    """Scores of all positions, of the worst position, and of the worst vector of positions."""
    counts = np.zeros(BLOCK, np.int64)
    for first in range(0, blocks, at_once):
        bits = draw(12, 0, 1 - keep, at_once * BLOCK, first * BLOCK)
        rows = unpacked(bits).reshape(at_once, BLOCK)
        counts += rows.sum(axis=0, dtype=np.int64)
    z = (counts - blocks * keep) / np.sqrt(blocks * keep * (1 - keep))
    together = chi_square_score(np.sum(z**2), BLOCK)
    # Badly seeded lanes are too uniform in their first steps, before the engine mixes them.
    by_vector = chi_square_score(np.sum(z.reshape(VECTORS, -1) ** 2, axis=1), VECTOR)
    return abs(together), np.abs(z).max(), np.abs(by_vector).max()


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_position_in_the_block(keep):
    together, worst, worst_vector = position_scores(library, keep)
    assert together < 5
    assert worst < 6
    assert worst_vector < 5.5


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_position_in_the_block_catches_unmixed_lane_keys(keep):
    assert position_scores(broken_streams.unmixed_lane_keys, keep)[2] > 5.5


def test_position_in_the_block_catches_repeated_blocks():
    together, worst, _ = position_scores(broken_streams.blocks_share_a_state, 0.5)
    assert together > 5
    assert worst > 6


# Autocorrelation.

# Neighbours; the same bit in later lanes (64k) and vectors (512k); the same position in later
# blocks, and a group, a lane and a vector next to it.
LAGS = sorted(
    {*range(1, 65)}
    | {32 * k for k in range(1, BLOCK // 32 + 1)}
    | {BLOCK * k + d for k in range(1, 17) for d in (0, -32, 32, -64, 64, -512, 512)}
)


def autocorrelation_scores(draw, keep, size=2**24):
    bits = draw(13, 0, 1 - keep, size)
    words = bits.view("<u8")
    kept_before = np.concatenate([[0], np.cumsum(unpacked(bits), dtype=np.int64)])
    scores = []
    for lag in LAGS:
        skip, shift = divmod(lag, 64)
        later = words[skip:]
        if shift:
            shifted = later >> np.uint64(shift)
            shifted[:-1] |= later[1:] << np.uint64(64 - shift)
            later = shifted
        pairs = size - lag
        both = ones(later & words[: later.size])
        either = kept_before[pairs] + kept_before[size] - kept_before[lag]
        covariance = both - keep * either + pairs * keep**2
        scores.append(covariance / (keep * (1 - keep) * np.sqrt(pairs)))
    return np.abs(scores)


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.9])
def test_autocorrelation(keep):
    assert autocorrelation_scores(library, keep).max() < 5.5


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.9])
def test_autocorrelation_catches_unmixed_lane_keys(keep):
    assert autocorrelation_scores(broken_streams.unmixed_lane_keys, keep).max() > 5.5


def test_autocorrelation_catches_a_dead_vector_half():
    scores = autocorrelation_scores(broken_streams.lanes_share_a_state, 0.5)
    assert LAGS[scores.argmax()] == 4 * 64


def test_autocorrelation_catches_a_plane_of_two_vectors():
    scores = autocorrelation_scores(broken_streams.plane_of_two_vectors, 0.5)
    assert LAGS[scores.argmax()] % VECTOR == 0


# Related streams: each pair of masks should agree on half of the bits.


DISTANCE_BOUNDS = (5, 5, 6, 6)


def distance_scores(first, second):
    """Scores of pairs of rows at rate 1/2: (all, spread over pairs, worst pair, worst bit).

    The worst bit is the position that agrees too often or too rarely over all pairs. Only its score
    detects relations that the engine removes within a few steps.
    """
    size = first.shape[1] * 8
    different = first ^ second
    by_pair = (ones(different, axis=1) - size / 2) / np.sqrt(size / 4)
    pairs = by_pair.size
    together = by_pair.sum() / np.sqrt(pairs)
    spread = (np.sum(by_pair**2) - pairs) / np.sqrt(2 * pairs)
    by_bit = np.unpackbits(different, axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    worst_bit = np.abs((by_bit - pairs / 2) / np.sqrt(pairs / 4)).max()
    return abs(together), abs(spread), np.abs(by_pair).max(), worst_bit


def related(first, second):
    return bool(np.any(np.array(distance_scores(first, second)) >= DISTANCE_BOUNDS))


def masks(draw, starts):
    return np.stack([draw(seed, step, 0.5, BLOCK) for seed, step in starts])


def next_seeds(draw, pairs):
    seeds = range(1000, 1000 + pairs)
    return masks(draw, [(s, 0) for s in seeds]), masks(draw, [(s + 1, 0) for s in seeds])


def next_high_words(draw, pairs):
    seeds = [7 + (s << 64) for s in range(pairs)]
    return masks(draw, [(s, 0) for s in seeds]), masks(draw, [(s + 2**64, 0) for s in seeds])


def next_steps(draw, pairs):
    return masks(draw, [(5, t) for t in range(pairs)]), masks(
        draw, [(5, t + 1) for t in range(pairs)]
    )


def seed_and_step_exchanged(draw, pairs):
    starts = [(2 * i + 1, 2 * i) for i in range(pairs)]
    return masks(draw, starts), masks(draw, [(step, seed) for seed, step in starts])


def seed_words_exchanged(draw, pairs):
    words = [(2 * i + 1, 2 * i) for i in range(pairs)]
    return (
        masks(draw, [(high << 64 | low, 0) for high, low in words]),
        masks(draw, [(low << 64 | high, 0) for high, low in words]),
    )


def next_blocks(draw, pairs):
    rows = draw(6, 0, 0.5, (pairs + 1) * BLOCK).reshape(-1, BLOCK_BYTES)
    return rows[:-1], rows[1:]


def next_lanes(draw, pairs):
    """Pairs of a lane of a block and the next lane, with 512 bits of each."""
    lane_bits = lane_blocks(draw(8, 0, 0.5, (pairs // LANES + 1) * BLOCK))
    return lane_bits[:pairs], lane_bits[1 : pairs + 1]


def lane_words(bits):
    """The words of the mask by block, vector and lane."""
    return bits.view("<u8").reshape(-1, VECTORS, LANES)


def lane_blocks(bits):
    """Rows of packed bits, one for each lane of each block in turn."""
    by_lane = np.ascontiguousarray(lane_words(bits).swapaxes(1, 2))
    return by_lane.view(np.uint8).reshape(-1, VECTORS * LANE_BYTES)


def avalanche(draw, pairs):
    """Masks before and after a flip of each bit of the seed and the step."""
    starts, flipped = [], []
    for i in range(pairs):
        seed, step = i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, i * 0xD1B54A32D192ED03 % 2**64
        bit = i % 192
        starts.append((seed, step))
        flipped.append((seed ^ 1 << bit, step) if bit < 128 else (seed, step ^ 1 << bit - 128))
    return masks(draw, starts), masks(draw, flipped)


RELATIONS = [
    next_seeds,
    next_high_words,
    next_steps,
    seed_and_step_exchanged,
    seed_words_exchanged,
    next_blocks,
    next_lanes,
    avalanche,
]
INSIDE_A_MASK = [next_blocks, next_lanes]


@pytest.mark.parametrize("relation", RELATIONS)
def test_related_streams(relation):
    assert not related(*relation(library, 2**12))


@pytest.mark.parametrize("relation", RELATIONS)
def test_related_streams_catches_unmixed_keys(relation):
    # Fewer pairs, since each takes two draws, which are slow in NumPy.
    pairs = 2**12 if relation in INSIDE_A_MASK else 2**8
    assert related(*relation(broken_streams.unmixed_keys, pairs))


@pytest.mark.parametrize("relation", INSIDE_A_MASK)
def test_related_streams_catches_unmixed_lane_keys(relation):
    assert related(*relation(broken_streams.unmixed_lane_keys, 2**12))


# Walsh: products of elements in three vectors of a lane.

# A bit of a lane's words, and the bits that the engine's shift and rotations move to its position.
# At rate 1/2 three vectors are three consecutive steps. At other rates, consecutive steps are the
# planes of a vector, which all affect each of its elements.
DISTANCES = (0, 17, 23, 45)


def subset(*elements):
    """The number of a set of (vector, distance) pairs in the histogram of three vectors of four."""
    return sum(1 << (4 * vector + DISTANCES.index(distance)) for vector, distance in elements)


# The bits that xorshift128+ relates, with one plane for each vector, with two and with twelve.
TIED = {
    0.5: subset((0, 0), (0, 23), (1, 0), (2, 0)),
    0.75: subset((0, 0), (0, 23), (1, 0)),
    0.8: subset((0, 0), (0, 23)),
    0.9: subset((0, 0), (0, 23)),
}


def walsh_scores(draw, keep, size=2**24):
    """A score for each of 4096 subsets of 12 elements, by the quarter of the word that they end in.

    A score is the standardised mean of the products.
    """
    words = lane_words(draw(15, 0, 1 - keep, size))
    taken = np.zeros((*words.shape, 64), np.uint8)
    for i, distance in enumerate(DISTANCES):
        moved = words << np.uint64(distance) | words >> np.uint64(-distance % 64)
        taken |= unpacked(moved.view(np.uint8).ravel()).reshape(taken.shape) << np.uint8(i)
    taken = taken.astype(np.uint16)
    windows = taken[:, :-2] | taken[:, 1:-1] << 4 | taken[:, 2:] << 8
    # Standardised, so that products have mean 0 and variance 1 at any keep rate.
    values = [-np.sqrt(keep / (1 - keep)), np.sqrt((1 - keep) / keep)]
    transform = functools.reduce(np.kron, [np.array([[1.0, 1.0], values])] * 6)
    scores = []
    for quarter in np.split(windows, 4, axis=-1):
        histogram = np.bincount(quarter.ravel(), minlength=2**12).astype(np.float64)
        sums = transform @ histogram.reshape(64, 64) @ transform.T
        scores.append(np.abs(sums.ravel()) / np.sqrt(quarter.size))
    return np.array(scores)


def walsh_subsets(keep):
    """The subsets with nearly normal products: all at rate 1/2, and up to 4 elements at others."""
    weight = np.bitwise_count(np.arange(2**12))
    return (weight > 0) & (weight <= (12 if keep == 0.5 else 4))


@pytest.mark.parametrize("keep", TIED)
def test_walsh(keep):
    scores = walsh_scores(library, keep)
    assert scores[:, walsh_subsets(keep)].max() < 6


@pytest.mark.parametrize("keep", TIED)
def test_walsh_catches_xorshift128plus(keep):
    # In the last quarter, no right shift adds bits to the sum.
    assert walsh_scores(broken_streams.xorshift128plus, keep)[3, TIED[keep]] > 6


# Linear dependence.


def gf2_rank(draw, seed):
    """The rank over GF(2) of 512 lane-blocks by 512 bits."""
    rows = [
        int.from_bytes(row.tobytes(), "little") for row in lane_blocks(draw(seed, 0, 0.5, 2**18))
    ]
    assert len(rows) == 512
    rank = 0
    while rows:
        pivot = rows.pop()
        if pivot:
            rank += 1
            lowest = pivot & -pivot
            rows = [row ^ pivot if row & lowest else row for row in rows]
    return rank


@pytest.mark.parametrize("seed", range(8))
def test_gf2_rank(seed):
    assert gf2_rank(library, seed) >= 505


@pytest.mark.parametrize(
    "draw",
    [broken_streams.xorshift128, broken_streams.lanes_share_a_state],
    ids=lambda d: d.__name__,
)
def test_gf2_rank_catches(draw):
    assert gf2_rank(draw, 0) < 505


# Gaps.


def gap_score(draw, keep, symbol, size):
    """Chi-square of the gaps between elements equal to ``symbol``, which are geometric."""
    share = keep if symbol else 1 - keep
    places = np.flatnonzero(unpacked(draw(16, 0, 1 - keep, size)) == symbol)
    gaps = np.diff(places) - 1
    # A bin for each short length, and bins of about equal probability for long gaps, with expected
    # counts above ten.
    bins = min(200, gaps.size // 32)
    survival = 1 - np.arange(1, bins) / bins
    edges = np.unique(np.ceil(np.log(survival) / np.log1p(-share)).astype(np.int64))
    edges = edges[edges > 0]
    below = -np.expm1(edges * np.log1p(-share))
    probability = np.diff(np.concatenate([[0.0], below, [1.0]]))
    observed = np.bincount(np.searchsorted(edges, gaps, side="right"), minlength=edges.size + 1)
    expected = gaps.size * probability
    assert expected.min() > 10
    return abs(chi_square_score(np.sum((observed - expected) ** 2 / expected), edges.size))


COMMON_GAPS = [(k, s, 2**24) for k in (0.1, 0.5, 0.8, 0.9, 0.95, 0.99) for s in (0, 1)]
RARE_GAPS = [(1 - 1e-5, 0, 2**26), (1e-5, 1, 2**26)]


@pytest.mark.parametrize(("keep", "symbol", "size"), COMMON_GAPS + RARE_GAPS)
def test_gaps(keep, symbol, size):
    assert gap_score(library, keep, symbol, size) < 5


@pytest.mark.parametrize(("keep", "symbol", "size"), COMMON_GAPS)
def test_gaps_catches_narrow_words(keep, symbol, size):
    assert gap_score(broken_streams.narrow_words, keep, symbol, size) > 5


@pytest.mark.parametrize(("keep", "symbol", "size"), RARE_GAPS)
def test_gaps_catches_a_short_threshold(keep, symbol, size):
    assert gap_score(broken_streams.short_threshold, keep, symbol, size) > 5
