"""Makes results.csv, the frozen results of every operation, with the slow reference.

    python tests/data/make_results.py > tests/data/results.csv

A row has all arguments of an operation, and the SHA-256 of the mask's bits and of each operation's
result, with all NaNs replaced by one. Gaussian dropout has half of the rate, and the rate is the
standard deviation of Gaussian noise. The inputs are from frozen_inputs.py, with salts 0 (x), 1
(dy), 2 (residual), 3 (bias) and 4 (an array of rates, for `mask_by_rates` and `by_rates`).

The file changes only if the stream's version or the contract changes.
"""

import csv
import hashlib
import math
import pathlib
import sys

import ml_dtypes
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import reference
from frozen_inputs import numbers

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
SHAPES = [
    ((), None),
    ((0, 3), None),
    ((7,), None),
    ((4099,), None),
    ((70, 69), None),
    ((2, 33, 9), None),
    ((5, 1, 40, 7), None),
    ((20, 300), (None, 1)),
    ((3, 50, 40), (None, 1, None)),
    ((64, 2, 16), (None, None, 1)),
    ((8, 6, 50), (1, None, None)),
    ((2, 300, 40), (1, 1, 1)),
    # Large enough for several threads.
    ((601, 1023), None),
    ((601, 1023), (None, 1)),
]
SEEDS = [0, 1, 42, 2**64 - 1, 2**64, 0x0123456789ABCDEFFEDCBA9876543210, 2**128 - 1]
STEPS = [0, 1, 7, 2**32, 2**64 - 1]
RATES = [0.2, 0.5, 0.1, 1 / 3, 0.0, 0.9, 0.75, 1e-5, 0.999, 1.0, 2**-17]
SCALES = [None, None, 1.0, -1.5, None, 0.0]
TURNS = 3

QUIET_NAN = {
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float32": 0x7FC00000,
    "float64": 0x7FF8000000000000,
}

COLUMNS = ["seed", "step", "rate", "dtype", "shape", "noise_shape", "scale"]
RESULTS = ["mask", "dropout", "gradient", "relu", "bias_residual"]
RESULTS += ["alpha", "gaussian_dropout", "gaussian_noise", "mask_by_rates", "by_rates"]


def cases():
    """Every dtype with every shape, a few times, and the other values in turns."""
    i = 0
    for _ in range(TURNS):
        for shape, noise_shape in SHAPES:
            for dtype in DTYPES:
                seed, step = SEEDS[i % len(SEEDS)], STEPS[i % len(STEPS)]
                yield (
                    seed,
                    step,
                    RATES[i % len(RATES)],
                    dtype,
                    shape,
                    noise_shape,
                    SCALES[i // 4 % 6],
                )
                i += 1


def gaussian_rate(rate):
    """The rate of Gaussian dropout in a row, which is below 1."""
    return rate / 2


def rates_like(shape):
    """Rates from 0 to 1; every other one fits into float32."""
    words = numbers(np.dtype(np.uint64), math.prod(shape), 4)
    rates = (words >> np.uint64(11)) * 2.0**-53
    rates[::2] = (words[::2] >> np.uint64(40)) * 2.0**-24
    rates[words % np.uint64(13) == 0] = 0
    rates[words % np.uint64(17) == 0] = 1
    return rates.reshape(shape)


def digest(array):
    """SHA-256 of the elements in C order, little-endian, with all NaNs replaced by one NaN."""
    if array.dtype.kind == "u":
        return hashlib.sha256(array.tobytes()).hexdigest()
    patterns = reference.bit_patterns(array).copy()
    patterns[reference.is_nan(array)] = QUIET_NAN[array.dtype.name]
    return hashlib.sha256(patterns.tobytes()).hexdigest()


def inputs(dtype, shape):
    """x, dy, the residual and the bias, which is None for a 0-d array."""
    size = math.prod(shape)
    x, dy, residual = (numbers(dtype, size, salt).reshape(shape) for salt in range(3))
    return x, dy, residual, numbers(dtype, shape[-1], 3) if shape else None


def results(seed, step, rate, dtype, shape, noise_shape, scale):
    x, dy, residual, bias = inputs(dtype, shape)
    scale = reference.default_scale(rate) if scale is None else scale
    noise = reference.resolve_noise_shape(shape, noise_shape)
    kept = reference.keep_mask(seed, step, rate, math.prod(noise)).reshape(noise)
    everywhere = np.broadcast_to(kept, shape)
    numbers = reference.normals(seed, step, math.prod(noise)).reshape(noise)
    stddev = reference.gaussian_stddev(gaussian_rate(rate))
    rates = rates_like(noise)
    if noise:
        kept_by_rates = reference.keep_by_rates(seed, step, rates, noise)
    else:  # an array without dimensions is one rate
        kept_by_rates = reference.keep_mask(seed, step, float(rates), 1).reshape(())
    scales = reference.scales_of_rates(rates)
    return {
        "mask": reference.pack_bits(kept),
        "dropout": reference.dropout(x, kept, scale),
        "gradient": reference.dropout(dy, kept, scale),
        "relu": reference.dropout(x, everywhere & reference.positive(x), scale),
        "bias_residual": reference.bias_dropout_add(x, bias, residual, everywhere, scale),
        "alpha": reference.alpha_dropout(x, everywhere, rate),
        "gaussian_dropout": reference.noised(x, numbers, stddev, additive=False),
        "gaussian_noise": reference.noised(x, numbers, rate, additive=True),
        "mask_by_rates": reference.pack_bits(kept_by_rates),
        "by_rates": reference.dropout_by_scales(x, kept_by_rates, scales),
    }


def row(case):
    seed, step, rate, dtype, shape, noise_shape, scale = case
    made = results(*case)
    told = [hex(seed), step, repr(rate), dtype.name, shape, noise_shape, scale]
    return [*map(str, told), *(digest(made[name]) for name in RESULTS)]


if __name__ == "__main__":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS + RESULTS)
    writer.writerows(map(row, cases()))
