"""Dropout beside a penalty on the weights, early stopping, and both."""

from __future__ import annotations

import itertools

import numpy as np

from experiments.digits import WRONG, split
from experiments.networks import Trainer, dropout_network, set_rates
from experiments.page import Section, Work, bars, best, compared, plot, spread

RATES = (0.0, 0.5)
PENALTIES = (0.0, 1e-4, 1e-3, 1e-2)

Curves = dict[tuple[float, float], list[tuple[float, float]]]


def run(work: Work) -> Section:
    """Train with each rate and penalty, with the accuracies after each epoch."""
    epochs = work.part(100)
    trainer = Trainer(lambda: dropout_network(128, 128))
    curves: dict[int, Curves] = {}
    grid = itertools.product(range(work.seeds), RATES, PENALTIES)
    for seed, rate, penalty in work.runs(grid, "regularizers"):
        digits = split(seed, training=800, validation=200, wrong=WRONG)
        set_rates(trainer.model, 0.0, rate)
        curves.setdefault(seed, {})[rate, penalty] = trainer.train(
            digits, seed, epochs, penalty=penalty, after_epoch=trainer.validation_and_test
        )
    results: dict[str, list[float]] = {}
    for of_seed in curves.values():
        for name, accuracy in chosen(of_seed).items():
            results.setdefault(name, []).append(accuracy)
    return section(results, work.seeds, epochs)


def chosen(curves: Curves) -> dict[str, float]:
    """Return each method's test accuracy, with what the validation images choose.

    `curves` maps (rate, penalty) to pairs of a validation and a test accuracy, by epoch.
    """
    results = {}
    for rate, with_penalty, stopping in itertools.product(RATES, (False, True), (False, True)):
        penalties = [p for p in PENALTIES if (p > 0) == with_penalty]
        pairs = [pair for p in penalties for pair in curves[rate, p][0 if stopping else -1 :]]
        parts = [
            *(["dropout"] if rate else []),
            *(["L2"] if with_penalty else []),
            *(["early stopping"] if stopping else []),
        ]
        validation, test = np.array(pairs).T
        results[" + ".join(parts) or "none"] = float(test[np.argmax(validation)])
    return results


def section(results: dict[str, list[float]], seeds: int, epochs: int) -> Section:
    """Return the section of the page; `results` maps methods to test accuracies."""
    figure, (axes,) = plot()
    bars(axes, results)
    axes.set_xlabel("test accuracy (%)")
    without = {name: values for name, values in results.items() if "dropout" not in name}
    other = best(without)
    found = [
        compared("Test accuracy", "dropout alone", results["dropout"], "none", results["none"]),
        compared(
            "Test accuracy",
            "dropout alone",
            results["dropout"],
            f"the best without dropout ({other})",
            without[other],
        ),
        compared(
            "Test accuracy",
            "all three",
            results[list(results)[-1]],
            "dropout alone",
            results["dropout"],
        ),
        f"The highest mean, {spread(results[best(results)])} %, has: {best(results)}.",
    ]
    return Section(
        "Dropout beside L2 and early stopping",
        "Dropout acts as an adaptive L2 penalty ([Wager, Wang and Liang, 2013]"
        "(https://arxiv.org/abs/1307.1493)), is better than L2 alone, and combines with other "
        "regularizers ([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), "
        "table 9).",
        "The network and the digits of the first experiment: 800 training and 200 validation "
        f"images with {100 * WRONG:.0f} % wrong labels, the other 797 for the test. Dropout: rate "
        "0.5 inside, not tuned. L2: a factor of "
        f"{', '.join(f'{p:g}' for p in PENALTIES[1:])} for the sum of the squared weights, the "
        "best on the validation images. Early stopping: the epoch that is best on the validation "
        f"images. At most {epochs} epochs, {seeds} seeds. Accuracy in %, mean ± standard "
        "deviation.",
        ["regularizers", "test accuracy"],
        [[name, spread(values)] for name, values in results.items()],
        figure,
        found,
    )
