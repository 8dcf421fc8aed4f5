"""Matrix factorization with dropped factors, in NumPy, by fastdrop's functions for arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import fastdrop
from experiments.page import Section, Work, best, compared, line, plot, spread

FACTORS = (5, 40)
SHOWN = 0.3
ROWS = 500


def factorize(
    matrix: np.ndarray, shown: np.ndarray, factors: int, rate: float, seed: int, steps: int
) -> np.ndarray:
    """Return the product of two factors that fit the entries of `matrix` that are `shown`.

    Each step drops the factors of each row with probability `rate`, like the units of a layer.
    """
    generator = np.random.default_rng(seed)
    stream = fastdrop.Stream(seed)
    rows, columns = (generator.normal(0, 0.1, (n, factors)) for n in matrix.shape)
    momentum = [np.zeros_like(factor) for factor in (rows, columns)]
    squares = [np.zeros_like(factor) for factor in (rows, columns)]
    for step in range(1, steps + 1):
        kept, mask = fastdrop.dropout(rows, rate, seed=stream)
        error = np.where(shown, kept @ columns.T - matrix, 0)
        gradients = fastdrop.dropout_grad(error @ columns, mask), error.T @ kept
        # Adam, with a learning rate of 0.02.
        for index, (factor, gradient) in enumerate(zip((rows, columns), gradients, strict=True)):
            momentum[index] += 0.1 * (gradient - momentum[index])
            squares[index] += 0.001 * (gradient**2 - squares[index])
            size = np.sqrt(squares[index] / (1 - 0.999**step)) + 1e-8
            factor -= 0.02 * momentum[index] / (1 - 0.9**step) / size
    return rows @ columns.T


def run(work: Work) -> Section:
    """Fit with each number of factors and each rate, and measure on the hidden entries."""
    rates = work.some((0.0, 0.1, 0.2, 0.3, 0.5, 0.7), (0.0, 0.5))
    steps = work.part(300)
    results: dict[tuple[int, float], list[float]] = {}
    runs = itertools.product(FACTORS, rates, range(work.seeds))
    for factors, rate, seed in work.runs(runs, "factorization"):
        generator = np.random.default_rng(seed)
        images = load_digits().data / 16
        images = images[generator.permutation(len(images))[:ROWS]]
        shown = generator.random(images.shape) < SHOWN
        mean = images[shown].mean()
        # The matrices are too small for several threads.
        with threadpool_limits(1):
            fitted = mean + factorize(images - mean, shown, factors, rate, seed, steps)
        error = 100 * np.sqrt(np.mean((fitted - images)[~shown] ** 2))
        results.setdefault((factors, rate), []).append(float(error))
    return section(results, rates, work.seeds, steps)


def section(
    results: dict[tuple[int, float], list[float]], rates: Sequence[float], seeds: int, steps: int
) -> Section:
    """Return the section of the page; `results` maps (factors, rate) to errors."""
    figure, (axes,) = plot()
    for number, factors in enumerate(FACTORS):
        line(axes, rates, [results[factors, r] for r in rates], number, f"{factors} factors")
    axes.set(xlabel="rate", ylabel="error on hidden entries (% of the range)", yscale="log")
    axes.legend()
    found = []
    for factors in FACTORS:
        errors = {rate: results[factors, rate] for rate in rates}
        found.append(
            compared(
                f"Error with {factors} factors", "rate 0.5", errors[0.5], "no dropout", errors[0.0]
            )
        )
        rate = best(errors, lowest=True)
        found.append(
            f"With {factors} factors the lowest mean, {spread(errors[rate])}, has rate {rate:g}."
        )
    return Section(
        "Matrix factorization",
        "Dropout of the factors acts as a penalty on their products, which lowers the rank "
        "([Cavazza et al., 2018](https://arxiv.org/abs/1710.05092)), so that more factors than "
        "needed do less harm.",
        f"{ROWS} random digits as the rows of a matrix of 64 columns, of which "
        f"{100 * SHOWN:.0f} % of the entries are shown. The matrix minus the mean of these "
        "is the product of two factors, "
        f"fitted by {steps} steps of Adam in NumPy, where `fastdrop.dropout` drops the rows' "
        f"factors. {seeds} seeds. Root mean square error on the hidden entries, in % of the range "
        "of a pixel, with all factors; mean ± standard deviation.",
        ["rate", *(f"{factors} factors" for factors in FACTORS)],
        [[f"{r:g}", *(spread(results[factors, r]) for factors in FACTORS)] for r in rates],
        figure,
        found,
    )
