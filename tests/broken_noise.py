"""Draws wrong noise in NumPy, as negative controls for the statistical tests.

Each has the lanes, blocks and keys of the random stream with one fault, which a simpler
implementation might have: ``draw(seed, step, size)`` returns normal numbers that are not.
"""

import numpy as np
import reference
from reference import BLOCK, GROUP, LANES

F4 = np.float32


def draw(
    seed,
    step,
    size,
    *,
    keys_of=reference.noise_key,
    lane_states=reference.lane_states,
    distances=reference.distances,
    coordinates=reference.coordinates,
):
    """The noise of the random stream with replaceable parts."""
    keys = keys_of(seed, step)
    pieces = []
    at_once = min(256, -(-size // BLOCK))
    for first in range(0, -(-size // BLOCK), at_once):
        lanes = np.arange(first * LANES, (first + at_once) * LANES, dtype=np.uint64)
        state = lane_states(keys, lanes).reshape(-1, at_once, LANES)
        groups = []
        for _ in range(BLOCK // GROUP):
            far, where = (reference.signed_words(reference.next_words(state)) for _ in range(2))
            groups.append(np.concatenate(coordinates(where, distances(far), far), axis=-1))
        pieces.append(np.stack(groups, axis=1).ravel())
    return np.concatenate(pieces)[:size]


def placed(words, distance, far):
    return reference.coordinates(words, distance)


def short_words(seed, step, size):
    """Distances come from 12 bits: none is above 4.25."""

    def distances(words):
        return reference.distances(words & -(1 << 20) | 1 << 19)

    return draw(seed, step, size, distances=distances, coordinates=placed)


def truncated_numbers(seed, step, size):
    """The numbers beyond 4 standard deviations are moved there."""
    return np.clip(draw(seed, step, size, coordinates=placed), F4(-4), F4(4))


def one_word_for_both(seed, step, size):
    """The word that gives the distance gives the direction too."""

    def coordinates(words, distance, far):
        return reference.coordinates(far, distance)

    return draw(seed, step, size, coordinates=coordinates)


def one_reflection(seed, step, size):
    """Points are reflected at the origin only: half of all directions are missing."""

    def coordinates(words, distance, far):
        return reference.coordinates(words & ~2, distance)

    return draw(seed, step, size, coordinates=coordinates)


def one_bit_for_both_reflections(seed, step, size):
    def coordinates(words, distance, far):
        return reference.coordinates(words & ~2 | (words & 1) << 1, distance)

    return draw(seed, step, size, coordinates=coordinates)


def rough_angles(seed, step, size):
    """Directions have three bits of an angle, with the reflections 32 directions."""

    def coordinates(words, distance, far):
        return reference.coordinates(words & ~0x1FFFFFFC | 1 << 28, distance)

    return draw(seed, step, size, coordinates=coordinates)


def rough_logarithm(seed, step, size):
    """The series of log(1 + g) ends after its first term, for distances up to 0.8."""

    def distances(words):
        exact = reference.distances(words).astype(float)
        return np.where(exact < 0.8, np.sqrt(-2 * np.expm1(-(exact**2) / 2)), exact).astype(F4)

    return draw(seed, step, size, distances=distances, coordinates=placed)


def twelve_uniform_numbers(seed, step, size):
    """The sum of twelve uniform numbers less 6, which has no tails."""
    generator = np.random.Generator(np.random.SFC64(seed))
    return generator.random((size, 12), F4).sum(axis=1) - F4(6)


def key_of_the_mask(seed, step, size):
    """The noise has the words that the mask has at the same position."""
    return draw(seed, step, size, keys_of=reference.key, coordinates=placed)


def unmixed_keys(seed, step, size):
    def keys_of(seed, step):
        lo, hi = seed & reference.WORD, seed >> 64
        words = (lo, hi, step, 0)
        return [(word + j * reference.G) & reference.WORD for j, word in enumerate(words)]

    def lane_states(keys, lanes):
        return np.stack([reference.weyl(k, lanes) for k in keys])

    return draw(seed, step, size, keys_of=keys_of, lane_states=lane_states, coordinates=placed)


def blocks_share_a_state(seed, step, size):
    def lane_states(keys, lanes):
        return reference.lane_states(keys, lanes % np.uint64(LANES))

    return draw(seed, step, size, lane_states=lane_states, coordinates=placed)
