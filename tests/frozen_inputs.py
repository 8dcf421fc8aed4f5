"""Computes the inputs of the frozen results from the dtype, the size and a salt.

They come from the reference's mixing function only, so they are the same with every NumPy and on
every machine.
"""

import numpy as np
import reference

# dtype name: exponent bits, fraction bits
FORMATS = {"float16": (5, 10), "bfloat16": (8, 7), "float32": (8, 23), "float64": (11, 52)}


def numbers(dtype, size, salt):
    """Numbers: an eighth have random bits, an eighth are special, the others are of ordinary size.

    Numbers of an integer dtype have random bits.
    """
    words = reference.mix64_array(reference.weyl(salt + 1, np.arange(1, size + 1, dtype=np.uint64)))
    if dtype.kind == "u":
        return words.astype(dtype)
    exponent_bits, fraction_bits = FORMATS[dtype.name]
    width = np.dtype(f"u{dtype.itemsize}")
    sign = 1 << (exponent_bits + fraction_bits)
    infinity = sign - (1 << fraction_bits)
    largest = infinity - 1
    one = (2 ** (exponent_bits - 1) - 1) << fraction_bits
    smallest_normal, quiet = 1 << fraction_bits, infinity + (1 << (fraction_bits - 1))
    magnitudes = [0, 1, smallest_normal - 1, smallest_normal, one, largest, infinity, quiet]
    special = np.array([s + m for s in (0, sign) for m in magnitudes], width)

    patterns = words.astype(width)
    kind = words >> np.uint64(61)
    # Random sign and fraction, with an exponent for absolute values from 1/4 to 4.
    exponents = (words >> np.uint64(56) & np.uint64(3)).astype(width) << width.type(fraction_bits)
    fractions = patterns & width.type(sign | (smallest_normal - 1))
    ordinary = fractions | (exponents + width.type(one - 2 * smallest_normal))
    chosen = special[(words >> np.uint64(52) & np.uint64(15)).astype(np.intp)]
    return np.select([kind == 0, kind == 1], [patterns, chosen], ordinary).view(dtype)
