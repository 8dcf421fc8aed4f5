"""Digits with wrong labels, and with correct ones: rates inside and in the input."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from experiments.digits import WRONG, split, title
from experiments.networks import Trainer, dropout_network, set_rates
from experiments.page import Section, Work, best, compared, line, plot, spread

INPUT_RATES = (0.0, 0.1)


def run(work: Work) -> Section:
    """Train with each rate inside, with and without dropout of the input, on both labels."""
    rates = work.some((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.0, 0.5, 0.8))
    epochs = work.part(100)
    trainer = Trainer(lambda: dropout_network(128, 128))
    results: dict[tuple[float, float, float], list[float]] = {}
    grid = itertools.product((WRONG, 0.0), INPUT_RATES, rates, range(work.seeds))
    for wrong, of_input, rate, seed in work.runs(grid, "noise"):
        digits = split(seed, wrong=wrong)
        set_rates(trainer.model, of_input, rate)
        trainer.train(digits, seed, epochs)
        accuracy = trainer.test_accuracy(digits)
        results.setdefault((wrong, of_input, rate), []).append(accuracy)
    return section(results, rates, work.seeds, epochs)


def section(
    results: dict[tuple[float, float, float], list[float]],
    rates: Sequence[float],
    seeds: int,
    epochs: int,
) -> Section:
    """Return the section of the page; `results` maps (wrong, input rate, rate) to accuracies."""
    columns = list(itertools.product((WRONG, 0.0), INPUT_RATES))
    figure, panels = plot(2)
    for axes, wrong in zip(panels, (WRONG, 0.0), strict=True):
        for number, of_input in enumerate(INPUT_RATES):
            values = [results[wrong, of_input, rate] for rate in rates]
            line(axes, rates, values, number, f"input rate {of_input:g}")
        axes.set(xlabel="rate inside", ylabel="test accuracy (%)", title=title(wrong))
        axes.legend()
    none, inside, both = (results[WRONG, i, r] for i, r in ((0.0, 0.0), (0.0, 0.5), (0.1, 0.5)))
    found = [
        compared(accuracy_with(WRONG), "rate 0.5 inside", inside, "no dropout", none),
        compared(
            accuracy_with(WRONG),
            "0.1 in the input and 0.5 inside",
            both,
            "0.5 inside alone",
            inside,
        ),
        compared(
            accuracy_with(0.0),
            "rate 0.5 inside",
            results[0.0, 0.0, 0.5],
            "no dropout",
            results[0.0, 0.0, 0.0],
        ),
    ]
    for wrong in (WRONG, 0.0):
        of_labels = {key[1:]: values for key, values in results.items() if key[0] == wrong}
        of_input, rate = best(of_labels)
        found.append(
            f"{title(wrong)}: the highest mean, {spread(of_labels[of_input, rate])} %, has rate "
            f"{of_input:g} in the input and {rate:g} inside."
        )
    return Section(
        "Wrong labels",
        "Dropout hinders a network from memorizing wrong labels, at little cost on correct ones "
        "([Arpit et al., 2017](https://arxiv.org/abs/1706.05394)). Rates of 0.5 inside and less in "
        "the input are typical "
        "([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)).",
        "scikit-learn's digits: 900 random images for training, of which "
        f"{100 * WRONG:.0f} % have another digit's label or none has, and the other 897 "
        "with correct labels for the test. "
        f"64-128-128-10 units, ReLU, Adam, {epochs} epochs in batches of 100, and {seeds} seeds, "
        "each with its own split, weights and masks. Test accuracy in %, mean ± standard deviation "
        "of the seeds.",
        ["rate inside", *(f"{title(w).lower()}, input rate {i:g}" for w, i in columns)],
        [[f"{r:g}", *(spread(results[w, i, r]) for w, i in columns)] for r in rates],
        figure,
        found,
    )


def accuracy_with(wrong: float) -> str:
    """Return what the sentences compare."""
    return f"Accuracy with {title(wrong).lower()}"
