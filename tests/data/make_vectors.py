"""Makes vectors.csv, the frozen masks of stream version 2, with the slow reference.

    python tests/data/make_vectors.py > tests/data/vectors.csv

The file changes only if the stream's version changes.
"""

import csv
import hashlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import reference

SEEDS = [
    0,
    1,
    42,
    2**63,
    2**64 - 1,
    2**64,
    0x0123456789ABCDEFFEDCBA9876543210,
    2**127 + 2**63,
    2**128 - 1,
]
STEPS = [0, 1, 2**32, 2**63, 2**64 - 1]
# Rates with no plane, with up to twelve, and with more: thresholds of 13 and 48 digits, and of as
# many as a double has.
RATES = [
    *[0.0, 1.0, 0.5, 0.25, 0.625, 2**-12, 1 - 2**-12],
    *[2**-13, 1 - 2**-13, 2**-48, 1 - 2**-48, 1e-15, 1e-5, 0.1, 0.2, 1 / 3, 0.7, 0.9, 0.999],
]
SIZES = [1, 7, 8, 9, 33, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 12289, 70001]
# In a vector, at the ends of vectors and blocks, and around 2^32 and 2^52.
OFFSETS = [
    *[0, 1, 8, 100, 0, 511, 512, 513, 1500, 4095, 4096, 4097],
    *[2**31 - 3, 2**32 + 17, 2**40, 2**52 + 4001, 5 * 4096 + 777],
]


def cases():
    """Every value of every column, in combinations that do not repeat."""
    for i in range(len(SEEDS) * len(SIZES)):
        yield (
            SEEDS[i % len(SEEDS)],
            STEPS[i // 3 % len(STEPS)],
            RATES[i // 2 % len(RATES)],
            SIZES[i // len(SEEDS)],
            OFFSETS[i % len(OFFSETS)],
        )


def row(seed, step, rate, size, offset):
    kept = reference.keep_mask(seed, step, rate, size, offset)
    digest = hashlib.sha256(reference.pack_bits(kept).tobytes()).hexdigest()
    return [hex(seed), step, repr(rate), size, offset, int(kept.sum()), digest]


if __name__ == "__main__":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["seed", "step", "rate", "size", "offset", "kept", "sha256"])
    writer.writerows(row(*case) for case in cases())
