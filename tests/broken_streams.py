"""Draws wrong streams in NumPy, as negative controls for the statistical tests.

Each stream has the lanes, blocks, planes and keys of stream version 2 with one fault, which a
simpler implementation might have. Each is called like the library in ``test_statistics.py``:
``draw(seed, step, rate, size, offset=0)`` returns the packed bits.
"""

import numpy as np
import reference
from reference import BLOCK, DIGITS, LANES, VECTOR, G, weyl

AT_ONCE = 512


def draw(
    seed,
    step,
    rate,
    size,
    offset=0,
    *,
    keys_of=reference.key,
    lane_states=reference.lane_states,
    next_words=reference.next_words,
    threshold=reference.threshold,
    next_vectors=reference.next_vectors,
):
    """Stream version 2 with replaceable parts."""
    assert size % 8 == 0
    keys, t = keys_of(seed, step), threshold(rate)
    pieces = []
    end = -(-(offset + size) // BLOCK)
    for first in range(offset // BLOCK, end, AT_ONCE):
        blocks = min(AT_ONCE, end - first)
        lanes = np.uint64(first * LANES) + np.arange(blocks * LANES, dtype=np.uint64)
        state = lane_states(keys, lanes).reshape(-1, blocks, LANES)
        vectors = [next_vectors(state, t, next_words) for _ in range(BLOCK // VECTOR)]
        pieces.append(np.stack(vectors, axis=1).astype("<u8").ravel())
    packed = np.concatenate(pieces).view(np.uint8)
    skip = offset % BLOCK
    if skip:
        packed = reference.pack_bits(np.unpackbits(packed, bitorder="little")[skip : skip + size])
    return packed[: size // 8]


# Other engines.


def xorshift128(seed, step, rate, size, offset=0):
    """Marsaglia's generator of 2003: every bit is a linear function of 128 bits of state."""

    def next_words(state):
        x, y, z, w = state.astype(np.uint32)
        outputs = []
        for _ in range(2):
            t = x ^ (x << np.uint32(11))
            x, y, z, w = y, z, w, w ^ (w >> np.uint32(19)) ^ t ^ (t >> np.uint32(8))
            outputs.append(w.astype(np.uint64))
        state[...] = x, y, z, w
        return outputs[0] | outputs[1] << np.uint64(32)

    return draw(seed, step, rate, size, offset, next_words=next_words)


def xorshift128plus(seed, step, rate, size, offset=0):
    """Vigna's generator of 2014: exclusive ors nearly relate sums of three consecutive outputs."""

    def next_words(state):
        s0, s1 = state
        r = s0 + s1
        t = s0 ^ (s0 << np.uint64(23))
        state[...] = s1, t ^ s1 ^ (t >> np.uint64(17)) ^ (s1 >> np.uint64(26))
        return r

    def lane_states(keys, lanes):
        return reference.lane_states(keys[:2], lanes)

    return draw(seed, step, rate, size, offset, lane_states=lane_states, next_words=next_words)


def narrow_words(seed, step, rate, size, offset=0):
    """Each random bit decides for two neighbours, as if bytes were counted instead of words."""

    def next_words(state):
        word = reference.next_words(state) & np.uint64(0xFFFFFFFF)
        # Bit i goes to bit 2i, by halves of halves.
        for shift, mask in [
            (16, 0x0000FFFF0000FFFF),
            (8, 0x00FF00FF00FF00FF),
            (4, 0x0F0F0F0F0F0F0F0F),
            (2, 0x3333333333333333),
            (1, 0x5555555555555555),
        ]:
            word = (word | word << np.uint64(shift)) & np.uint64(mask)
        return word | word << np.uint64(1)

    return draw(seed, step, rate, size, offset, next_words=next_words)


# Other seeding.


def unmixed_states(keys, lanes):
    return np.stack([weyl(k, lanes) for k in keys])


def unmixed_lane_keys(seed, step, rate, size, offset=0):
    """The lanes' states are the keys plus a counter, without the last mix64."""
    return draw(seed, step, rate, size, offset, lane_states=unmixed_states)


def unmixed_keys(seed, step, rate, size, offset=0):
    """Neither the keys nor the lanes' states are mixed, which is the cheapest seeding."""

    def keys_of(seed, step):
        lo, hi = seed & reference.WORD, seed >> 64
        return [(word + j * G) & reference.WORD for j, word in enumerate((lo, hi, step, 0))]

    return draw(seed, step, rate, size, offset, keys_of=keys_of, lane_states=unmixed_states)


def lanes_share_a_state(seed, step, rate, size, offset=0):
    """Half of the lanes repeat the other half, as in a published SIMD generator."""

    def lane_states(keys, lanes):
        return reference.lane_states(keys, lanes & ~np.uint64(4))

    return draw(seed, step, rate, size, offset, lane_states=lane_states)


def blocks_share_a_state(seed, step, rate, size, offset=0):
    """Every block starts from the same state: the counter does not advance."""

    def lane_states(keys, lanes):
        return reference.lane_states(keys, lanes % np.uint64(LANES))

    return draw(seed, step, rate, size, offset, lane_states=lane_states)


# Other thresholds.


def short_threshold(seed, step, rate, size, offset=0):
    """The threshold has 16 digits, rounded to nearest, and no plane comes after them."""

    def threshold(rate):
        return round((1.0 - rate) * 2**16) << (DIGITS - 16)

    return draw(seed, step, rate, size, offset, threshold=threshold)


def missing_plane(seed, step, rate, size, offset=0):
    """Digit 14 follows the twelve planes: the two loops skip digit 13."""

    def threshold(rate):
        first, later = divmod(reference.threshold(rate), 2 ** (DIGITS - 12))
        return (first << (DIGITS - 12)) + 2 * later % 2 ** (DIGITS - 12)

    return draw(seed, step, rate, size, offset, threshold=threshold)


def digits_from_the_wrong_end(seed, step, rate, size, offset=0):
    """The first plane uses the threshold's last digit."""

    def threshold(rate):
        return int(f"{reference.threshold(rate):0{DIGITS}b}"[::-1], 2)

    return draw(seed, step, rate, size, offset, threshold=threshold)


# Other orders of the planes.


class Remembered:
    """An engine that keeps the state before its last step."""

    def __init__(self, next_words):
        self.next_words = next_words

    def __call__(self, state):
        self.before = state.copy()
        return self.next_words(state)


def plane_used_twice(seed, step, rate, size, offset=0):
    """The planes after the twelfth start from the state before it, which repeats the twelfth."""

    def next_vectors(state, t, next_words):
        engine = Remembered(next_words)
        kept, undecided = reference.first_planes(state, t, engine)
        rows = undecided.any(axis=1) & (reference.last_digit(t) > 12)
        state[:, rows] = engine.before[:, rows]
        reference.late_planes(state, t, kept, undecided, next_words)
        return kept

    return draw(seed, step, rate, size, offset, next_vectors=next_vectors)


def plane_of_two_vectors(seed, step, rate, size, offset=0):
    """The twelfth or last plane of a vector is the first plane of the next vector too."""

    def next_vectors(state, t, next_words):
        engine = Remembered(next_words)
        kept, undecided = reference.first_planes(state, t, engine)
        after, state[...] = state.copy(), engine.before
        reference.late_planes(after, t, kept, undecided, next_words)
        return kept

    return draw(seed, step, rate, size, offset, next_vectors=next_vectors)


def outside_is_not_counted(seed, step, rate, size, offset=0):
    """A vector ends when its elements in the piece are decided, even if others are undecided."""
    first, end = offset // BLOCK, -(-(offset + size) // BLOCK)
    assert end - first <= AT_ONCE
    places = np.arange(first * BLOCK, end * BLOCK)
    inside = reference.pack_bits((places >= offset) & (places < offset + size))
    by_vector = iter(inside.view("<u8").reshape(-1, BLOCK // VECTOR, LANES).swapaxes(0, 1))

    def next_vectors(state, t, next_words):
        kept, undecided = reference.first_planes(state, t, next_words)
        undecided &= next(by_vector)
        reference.late_planes(state, t, kept, undecided, next_words)
        return kept

    return draw(seed, step, rate, size, offset, next_vectors=next_vectors)
