"""Streams that are wrong on purpose: the statistical tests' negative controls, in NumPy.

Each has the lanes, blocks, fields and keys of stream version 1 and one thing worse, the kind of
thing that a faster or simpler version of the library might do. Each is called like the library
in ``test_statistics.py``: ``draw(seed, step, rate, size, offset=0)`` gives the packed bits.
"""

import numpy as np
import reference
from reference import BLOCK, LANES, STEPS, G, mix64_array, rotl_array, weyl

AT_ONCE = 512


def mixed_lane_states(keys, lanes):
    return [mix64_array(weyl(k, lanes)) for k in keys[:4]]


def xoshiro256plusplus(states):
    s0, s1, s2, s3 = states
    while True:
        yield rotl_array(s0 + s3, 23) + s0
        t = s1 << np.uint64(17)
        s2 = s2 ^ s0
        s3 = s3 ^ s1
        s1 = s1 ^ s2
        s0 = s0 ^ s3
        s2 = s2 ^ t
        s3 = rotl_array(s3, 45)


def xorshift128_words(states):
    """Marsaglia's xorshift128 of 2003, two 32-bit outputs to a word."""
    x, y, z, w = (s.astype(np.uint32) for s in states)

    def advance():
        nonlocal x, y, z, w
        t = x ^ (x << np.uint32(11))
        x, y, z = y, z, w
        w = w ^ (w >> np.uint32(19)) ^ t ^ (t >> np.uint32(8))
        return w.astype(np.uint64)

    while True:
        low = advance()
        yield low | (advance() << np.uint64(32))


def xorshift128plus_words(states):
    """xorshift128+ with a shift as wide as a field, which lays the top of one on another's."""
    s0, s1 = states[:2]
    while True:
        yield s0 + s1
        t = s0 ^ (s0 << np.uint64(16))
        s0, s1 = s1, t ^ s1 ^ (t >> np.uint64(9)) ^ (s1 >> np.uint64(5))


def draw(
    seed,
    step,
    rate,
    size,
    offset=0,
    *,
    keys_of=reference.key,
    lane_states=mixed_lane_states,
    words=xoshiro256plusplus,
    threshold=reference.kept_by_threshold,
):
    """Stream version 1 with its parts open to replacement; offsets at block boundaries only."""
    assert offset % BLOCK == 0
    keys = keys_of(seed, step)
    kept = np.empty(-(-size // BLOCK) * BLOCK, dtype=bool)
    for start in range(0, size, AT_ONCE * BLOCK):
        first = offset + start
        blocks = min(AT_ONCE, -(-(size - start) // BLOCK))
        lanes = np.uint64(first // BLOCK * LANES) + np.arange(blocks * LANES, dtype=np.uint64)
        outputs = np.empty((blocks, STEPS, LANES), dtype="<u8")
        source = words(lane_states(keys, lanes))
        for number in range(STEPS):
            outputs[:, number] = next(source).reshape(blocks, LANES)
        fields = outputs.reshape(-1).view("<u2")
        kept[start : start + fields.size] = threshold(fields, keys, rate, first)
    return reference.pack_bits(kept[:size])


def repeated_halves(states):
    """Each word's upper half repeats its lower: 32 random bits spent as if they were 64."""
    for word in xoshiro256plusplus(states):
        low = word & np.uint64(0xFFFFFFFF)
        yield low | low << np.uint64(32)


def xorshift128(seed, step, rate, size, offset=0):
    """128 bits of state and no nonlinear output: every bit a linear function of the state."""
    return draw(seed, step, rate, size, offset, words=xorshift128_words)


def xorshift128plus(seed, step, rate, size, offset=0):
    """Three outputs in a row are tied by one sum, which shows in the fields' top bits."""
    return draw(seed, step, rate, size, offset, words=xorshift128plus_words)


def unmixed_lane_keys(seed, step, rate, size, offset=0):
    """The lanes' states are the keys plus a counter, without the last mix64."""

    def states(keys, lanes):
        return [weyl(k, lanes) for k in keys[:4]]

    return draw(seed, step, rate, size, offset, lane_states=states)


def unmixed_keys(seed, step, rate, size, offset=0):
    """Neither the keys nor the lanes' states are mixed: the cheapest seeding there is."""

    def keys_of(seed, step):
        lo, hi = seed & reference.WORD, seed >> 64
        return [(word + j * G) & reference.WORD for j, word in enumerate((lo, hi, step, 0, 0))]

    def states(keys, lanes):
        return [weyl(k, lanes) for k in keys[:4]]

    return draw(seed, step, rate, size, offset, keys_of=keys_of, lane_states=states)


def short_threshold(seed, step, rate, size, offset=0):
    """A 16-bit threshold, rounded to nearest, with no tie-break."""

    def threshold(fields, keys, rate, first):
        return fields < np.uint32(round((1.0 - rate) * 2**16))

    return draw(seed, step, rate, size, offset, threshold=threshold)


def narrow_words(seed, step, rate, size, offset=0):
    """A 32-bit generator's outputs, cut as those of a 64-bit one."""
    return draw(seed, step, rate, size, offset, words=repeated_halves)


def lanes_share_a_state(seed, step, rate, size, offset=0):
    """Half of the lanes repeat the other half: a dead vector half, as has happened."""

    def states(keys, lanes):
        return [mix64_array(weyl(k, lanes & ~np.uint64(4))) for k in keys[:4]]

    return draw(seed, step, rate, size, offset, lane_states=states)


def blocks_share_a_state(seed, step, rate, size, offset=0):
    """Every block starts from the same state: the counter that is never advanced."""

    def states(keys, lanes):
        return [mix64_array(weyl(k, lanes % np.uint64(LANES))) for k in keys[:4]]

    return draw(seed, step, rate, size, offset, lane_states=states)
