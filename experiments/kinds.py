"""The kinds of dropout on one task: which units, weights or noise, and one mask for the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import keras

from experiments.digits import WRONG, split, title
from experiments.networks import Trainer, dense, network
from experiments.page import Section, Work, bars, best, compared, plot, spread
from fastdrop_keras import (
    DropConnectDense,
    Dropout,
    GaussianDropout,
    Standout,
    VariationalGaussianDropout,
)

RATE = 0.5
NONE, BERNOULLI = "no dropout", "Bernoulli"
WIDTHS = (128, 128)
IMAGES = 900

# The layers of a hidden layer of each network.
KINDS: dict[str, Callable[[int], list[keras.Layer]]] = {
    NONE: lambda width: [dense(width)],
    BERNOULLI: lambda width: [dense(width), Dropout(RATE)],
    "Bernoulli, one mask for the batch": lambda width: [dense(width), Dropout(RATE, (1, None))],
    "Gaussian": lambda width: [dense(width), GaussianDropout(RATE)],
    "variational Gaussian": lambda width: [
        dense(width),
        VariationalGaussianDropout(1 / IMAGES, per="unit"),
    ],
    "Standout": lambda width: [keras.layers.Dense(width), Standout("relu")],
    "DropConnect": lambda width: [DropConnectDense(width, RATE, "relu")],
}
CLAIM = (
    "Gaussian noise works as well as Bernoulli dropout or better "
    "([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 10). "
    "Variational dropout learns the variance of the noise ([Kingma, Salimans and Welling, 2015]"
    "(https://arxiv.org/abs/1506.02557)). "
    "Standout computes a keep probability for each unit from its input "
    "([Ba and Frey, 2013](https://papers.nips.cc/paper/"
    "5032-adaptive-dropout-for-training-deep-neural-networks)). "
    "DropConnect, which drops weights in place of units, is better "
    "([Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)); it has one mask for the "
    "batch here, as dropout can have too."
)
ABOUT = (
    f"Bernoulli, Gaussian and DropConnect: rate {RATE:g}; DropConnect drops the weights of the "
    "hidden layers. "
    "Variational: a rate for each unit, and the divergence in the loss, divided by the number of "
    "training images. Standout: alpha 1 and beta 0."
)


def run(work: Work) -> Section:
    """Train with each kind, on wrong and on correct labels."""
    epochs = work.part(100)
    results: dict[tuple[str, float], list[float]] = {}
    grid = itertools.product(KINDS, (WRONG, 0.0), range(work.seeds))
    runs = work.runs(grid, "kinds")
    for kind, of_kind in itertools.groupby(runs, key=lambda run: run[0]):
        trainer = Trainer(partial(network, WIDTHS, KINDS[kind]))
        for _, wrong, seed in of_kind:
            digits = split(seed, training=IMAGES, wrong=wrong)
            trainer.train(digits, seed, epochs)
            results.setdefault((kind, wrong), []).append(trainer.test_accuracy(digits))
    return section(results, work.seeds, epochs)


def section(results: dict[tuple[str, float], list[float]], seeds: int, epochs: int) -> Section:
    """Return the section of the page; `results` maps (kind, fraction wrong) to accuracies."""
    figure, panels = plot(2)
    of_labels = {w: {kind: results[kind, w] for kind in KINDS} for w in (WRONG, 0.0)}
    for axes, (wrong, values) in zip(panels, of_labels.items(), strict=True):
        bars(axes, values)
        axes.set(xlabel="test accuracy (%)", title=title(wrong))
    found = [
        compared(
            f"Accuracy with {title(WRONG).lower()}", kind, values, other, of_labels[WRONG][other]
        )
        for kind, values in of_labels[WRONG].items()
        for other in [NONE if kind == BERNOULLI else BERNOULLI]
        if kind != NONE
    ]
    for wrong, values in of_labels.items():
        kind = best(values)
        found.append(f"{title(wrong)}: the highest mean, {spread(values[kind])} %, has: {kind}.")
    return Section(
        "Kinds of dropout",
        CLAIM,
        "The network and the digits of the first experiment, no dropout of the input. "
        f"{ABOUT} {epochs} epochs, {seeds} seeds. Test accuracy in %, mean ± standard deviation.",
        ["kind", *(title(wrong).lower() for wrong in of_labels)],
        [[kind, *(spread(values[kind]) for values in of_labels.values())] for kind in KINDS],
        figure,
        found,
    )
