"""The gain by dropout in networks of many widths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np

from experiments.digits import WRONG, split
from experiments.networks import Trainer, dropout_network, set_rates
from experiments.page import Section, Work, compared, line, log_scale, plot, spread

RATES = (0.0, 0.5)


def run(work: Work) -> Section:
    """Train networks of one hidden layer with and without dropout."""
    widths = work.some((64, 128, 256, 512, 1024, 2048), (64, 512))
    epochs = work.part(100)
    results: dict[tuple[int, float], list[float]] = {}
    runs = work.runs(itertools.product(widths, range(work.seeds), RATES), "width")
    for width, of_width in itertools.groupby(runs, key=lambda run: run[0]):
        trainer = Trainer(partial(dropout_network, width))
        for _, seed, rate in of_width:
            digits = split(seed, wrong=WRONG)
            set_rates(trainer.model, 0.0, rate)
            trainer.train(digits, seed, epochs)
            accuracy = trainer.test_accuracy(digits)
            results.setdefault((width, rate), []).append(accuracy)
    return section(results, widths, work.seeds, epochs)


def section(
    results: dict[tuple[int, float], list[float]], widths: Sequence[int], seeds: int, epochs: int
) -> Section:
    """Return the section of the page; `results` maps (width, rate) to accuracies."""
    gains = {w: np.subtract(results[w, 0.5], results[w, 0.0]) for w in widths}
    figure, (accuracies, differences) = plot(2)
    for number, rate in enumerate(RATES):
        values = [results[width, rate] for width in widths]
        line(accuracies, widths, values, number, f"rate {rate:g}")
    line(differences, widths, list(gains.values()), 2, "gain")
    for axes, label in ((accuracies, "test accuracy (%)"), (differences, "gain (points)")):
        log_scale(axes, widths)
        axes.set(xlabel="hidden units", ylabel=label)
        axes.legend()
    small, large = widths[0], widths[-1]
    found = [
        compared(
            f"Accuracy with {w} units", "rate 0.5", results[w, 0.5], "no dropout", results[w, 0.0]
        )
        for w in (small, large)
    ]
    found.append(
        compared("The gain", f"{large} units", gains[large], f"{small} units", gains[small])
    )
    return Section(
        "Width",
        "Dropout reduces a network's capacity, so a larger network gains more: where n units are "
        "best without dropout, n / (1 - rate) are a good number with it "
        "([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), appendix A).",
        f"The digits of the first experiment with {100 * WRONG:.0f} % wrong labels. One hidden "
        f"layer with ReLU, no dropout of the input, Adam, {epochs} epochs, {seeds} seeds. "
        "Accuracy in %; the gain in points is a difference of two runs with equal seeds. "
        "Mean ± standard deviation.",
        ["hidden units", "no dropout", "rate 0.5", "gain"],
        [
            [str(w), spread(results[w, 0.0]), spread(results[w, 0.5]), spread(gains[w])]
            for w in widths
        ],
        figure,
        found,
    )
