"""Dropout in a network that is too small for its data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from experiments.digits import split
from experiments.networks import Trainer, dropout_network, set_rates
from experiments.page import Section, Work, best, compared, line, plot, spread

WIDTH = 6


def run(work: Work) -> Section:
    """Train a network of one small hidden layer with each rate."""
    rates = work.some((0.0, 0.1, 0.2, 0.3, 0.5), (0.0, 0.5))
    epochs = work.part(100)
    trainer = Trainer(lambda: dropout_network(WIDTH))
    results: dict[tuple[str, float], list[float]] = {}
    for rate, seed in work.runs(itertools.product(rates, range(work.seeds)), "underfitting"):
        digits = split(seed)
        set_rates(trainer.model, 0.0, rate)
        trainer.train(digits, seed, epochs)
        for name, images, labels in (
            ("training", digits.images, digits.labels),
            ("test", digits.test_images, digits.test_labels),
        ):
            results.setdefault((name, rate), []).append(trainer.accuracy(images, labels))
    return section(results, rates, work.seeds, epochs)


def section(
    results: dict[tuple[str, float], list[float]], rates: Sequence[float], seeds: int, epochs: int
) -> Section:
    """Return the section of the page; `results` maps (images, rate) to accuracies."""
    figure, (axes,) = plot()
    for number, name in enumerate(("training", "test")):
        line(axes, rates, [results[name, rate] for rate in rates], number, f"{name} images")
    axes.set(xlabel="rate", ylabel="accuracy without dropout (%)")
    axes.legend()
    test = {rate: results["test", rate] for rate in rates}
    found = [
        f"Without dropout the network recognizes {spread(results['training', 0.0])} % of its "
        "training images.",
        compared("Test accuracy", "rate 0.5", test[0.5], "no dropout", test[0.0]),
        f"The highest mean, {spread(test[best(test)])} %, has rate {best(test):g}.",
    ]
    return Section(
        "A network that underfits",
        "A network that does not overfit gains nothing: dropout lowers its capacity further "
        "([Goodfellow, Bengio and Courville, 2016]"
        "(https://www.deeplearningbook.org/contents/regularization.html), section 7.12).",
        f"The digits of the first experiment, all labels correct. One hidden layer of {WIDTH} "
        f"units with ReLU, Adam, {epochs} epochs, {seeds} seeds. Accuracy in %, mean ± standard "
        "deviation.",
        ["rate", "training accuracy", "test accuracy"],
        [[f"{r:g}", spread(results["training", r]), spread(results["test", r])] for r in rates],
        figure,
        found,
    )
