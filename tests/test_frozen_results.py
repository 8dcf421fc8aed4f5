"""Every operation against its frozen results, on each instruction set and number of threads.

The digests in ``data/results.csv`` come from the slow reference, by ``data/make_results.py``. No
version of the library may change a bit of them.
"""

import ast
import csv
import functools
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
from pairwise import pairs_of

import fastdrop

DATA = pathlib.Path(__file__).parent / "data"
sys.path.append(str(DATA))

from make_results import (  # noqa: E402
    COLUMNS,
    RESULTS,
    cases,
    digest,
    gaussian_rate,
    inputs,
    rates_like,
)

inputs = functools.cache(inputs)

with (DATA / "results.csv").open(newline="") as lines:
    ROWS = list(csv.DictReader(lines))


def case_of(row):
    dtype = np.dtype(getattr(ml_dtypes, row["dtype"], row["dtype"]))
    shape, noise_shape, scale = (
        ast.literal_eval(row[n]) for n in ("shape", "noise_shape", "scale")
    )
    return (
        int(row["seed"], 16),
        int(row["step"]),
        float(row["rate"]),
        dtype,
        shape,
        noise_shape,
        scale,
    )


def test_the_program_reproduces_the_results():
    program = subprocess.run(
        [sys.executable, DATA / "make_results.py"], capture_output=True, text=True, check=True
    )
    assert program.stdout == (DATA / "results.csv").read_text()


def test_the_results_cover_every_argument():
    assert [case_of(row) for row in ROWS] == list(cases())
    for name in COLUMNS:
        assert len({row[name] for row in ROWS}) >= 4, name
    # Detects an operation that does nothing, or the same for every row.
    for name in RESULTS:
        assert len({row[name] for row in ROWS}) > len(ROWS) // 2, name


def computed(row, stream_at, *, in_place, store_mask):
    """Digests of the library's results for one way of calling."""
    seed, step, rate, dtype, shape, noise_shape, scale = case_of(row)
    x, dy, residual, bias = inputs(dtype, shape)
    options = {"noise_shape": noise_shape, "scale": scale}

    def stream():
        return stream_at(seed, step)

    if in_place:
        y, gradient = x.copy(), dy.copy()
        mask = fastdrop.dropout_(y, rate, seed=stream(), store_mask=store_mask, **options)
        fastdrop.dropout_grad_(gradient, mask)
        relu, fused = x.copy(), x.copy()
        fastdrop.relu_dropout(relu, rate, seed=stream(), out=relu, **options)
        out = {"out": fused}
    else:
        y, mask = fastdrop.dropout(x, rate, seed=stream(), store_mask=store_mask, **options)
        gradient = fastdrop.dropout_grad(dy, mask)
        relu, _ = fastdrop.relu_dropout(x, rate, seed=stream(), **options)
        fused, out = x, {}
    fused, fused_mask = fastdrop.bias_dropout_add(
        fused, bias, residual, rate, seed=stream(), store_mask=store_mask, **options, **out
    )
    assert mask == fused_mask
    others = more_results(x, rate, stream, noise_shape, in_place=in_place)
    drawn = np.packbits(mask.unpack(), bitorder="little")
    if store_mask:
        drawn = mask.bits
    elif mask.noise_shape != mask.shape:
        drawn = None
    made = [None if drawn is None else digest(drawn)]
    made += map(digest, (y, gradient, relu, fused, *others))
    return dict(zip(RESULTS, made, strict=True))


def more_results(x, rate, stream, noise_shape, *, in_place):
    """The results of alpha dropout, Gaussian noise and dropout, and dropout at many rates."""
    calls = [
        (fastdrop.alpha_dropout, fastdrop.alpha_dropout_, rate),
        (fastdrop.gaussian_dropout, fastdrop.gaussian_dropout_, gaussian_rate(rate)),
        (fastdrop.gaussian_noise, fastdrop.gaussian_noise_, rate),
    ]
    for new, changing, amount in calls:
        if in_place:
            y = x.copy()
            changing(y, amount, seed=stream(), noise_shape=noise_shape)
        else:
            y, _ = new(x, amount, seed=stream(), noise_shape=noise_shape)
        yield y
    rates = rates_like(fastdrop.draw_mask(x.shape, 0, noise_shape=noise_shape).noise_shape)
    options = {"seed": stream(), "noise_shape": noise_shape}
    if in_place:
        y = x.copy()
        mask = fastdrop.dropout_(y, rates, **options)
    else:
        y, mask = fastdrop.dropout(x, rates, **options)
    yield mask.bits
    yield y


@pairs_of("threads store_mask in_place", [1, 2, 3], [True, False], [False, True])
def test_every_operation(isa, stream_at, threads, store_mask, in_place):
    wrong = []
    with fastdrop.num_threads(threads):
        for row in ROWS:
            made = computed(row, stream_at, in_place=in_place, store_mask=store_mask)
            differing = [n for n in RESULTS if made[n] is not None and made[n] != row[n]]
            if differing:
                wrong.append((*case_of(row), *differing))
    assert not wrong
