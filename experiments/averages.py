"""Weight scaling and Monte Carlo dropout, compared with the average of all thinned networks."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from experiments.digits import split
from experiments.networks import Trainer, dense, network
from experiments.page import COLOURS, Section, Work, compared, line, log_scale, plot, spread
from fastdrop_keras import Dropout, exact_average, mc_predict, weight_scaling

UNITS = 12
RATE = 0.5
IMAGES = 200
EXACT, GEOMETRIC, SCALING = "the exact average", "the geometric mean", "weight scaling"


def build() -> keras.Model:
    """Return a network whose dropout layer has few units, with a hidden layer after it."""
    return network((UNITS, 64), lambda width: [dense(width), *([Dropout(RATE)] * (width == UNITS))])


def run(work: Work) -> Section:
    """Train with dropout, and predict with each average."""
    counts = work.some((1, 2, 5, 10, 20, 50, 100), (1, 10))
    images_of_a_seed = work.part(IMAGES)
    epochs = work.part(100)
    trainer = Trainer(build)
    results: dict[str, dict[str, list[float]]] = {}
    for seed in work.runs(range(work.seeds), "averages"):
        digits = split(seed)
        trainer.train(digits, seed, epochs)
        images = digits.test_images[:images_of_a_seed]
        labels = digits.test_labels[:images_of_a_seed]
        exact, _ = exact_average(trainer.model, images, batch_size=2**14)
        averages = {
            EXACT: exact,
            GEOMETRIC: exact_average(trainer.model, images, batch_size=2**14, geometric=True)[0],
            SCALING: weight_scaling(trainer.model, images),
        }
        for count in counts:
            averages[monte_carlo(count)], _ = mc_predict(
                trainer.model, images, count, seed=seed, batch_size=len(images), verbose=False
            )
        for name, average in averages.items():
            true = average[np.arange(len(labels)), labels]
            for measure, value in (
                ("accuracy", 100 * np.mean(np.argmax(average, axis=1) == labels)),
                ("loss", np.mean(-np.log(np.maximum(true, 1e-7)))),
                ("distance", np.abs(average - exact).sum(axis=1).mean() / 2),
            ):
                results.setdefault(name, {}).setdefault(measure, []).append(float(value))
    return section(results, counts, work.seeds, epochs, images_of_a_seed)


def section(
    results: dict[str, dict[str, list[float]]],
    counts: Sequence[int],
    seeds: int,
    epochs: int,
    images: int,
) -> Section:
    """Return the section of the page; `results` maps averages to measures to values."""
    figure, panels = plot(2)
    labels = {"loss": "cross-entropy of the test images", "distance": "distance from the average"}
    for axes, (measure, label) in zip(panels, labels.items(), strict=True):
        values = [results[monte_carlo(count)][measure] for count in counts]
        line(axes, counts, values, 0, "Monte Carlo")
        for number, name in enumerate((SCALING, GEOMETRIC, EXACT), start=1):
            if measure == "distance" and name == EXACT:
                continue
            mean = np.mean(results[name][measure])
            axes.axhline(mean, color=COLOURS[number], linestyle="--", label=name)
        log_scale(axes, counts)
        axes.set_yscale("log")
        axes.set(xlabel="passes n", ylabel=label)
        axes.legend()
    scaling = results[SCALING]
    nearer = [
        count
        for count in counts
        if np.mean(results[monte_carlo(count)]["distance"]) < np.mean(scaling["distance"])
    ]
    found = [
        f"Monte Carlo with n = {nearer[0]} is the first that is nearer to the exact average than "
        "weight scaling, in the mean of the seeds."
        if nearer
        else f"Up to n = {counts[-1]}, weight scaling is nearer to the exact average than Monte "
        "Carlo, in the mean of the seeds."
    ]
    for name in (EXACT, monte_carlo(counts[-1])):
        for what, measure, unit, decimals in (
            ("Accuracy", "accuracy", "points", 1),
            ("Cross-entropy", "loss", "nats", 3),
        ):
            of_name = results[name][measure]
            found.append(compared(what, SCALING, scaling[measure], name, of_name, unit, decimals))
    return Section(
        "Weight scaling, Monte Carlo and the exact average",
        "Weight scaling approximates the average of all thinned networks well; Monte Carlo needs "
        "about 50 passes to be as good "
        "([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html), section 7.5). "
        "For one softmax layer it is exactly the normalized geometric mean ([Baldi and Sadowski, "
        "2013](https://papers.nips.cc/paper/4878-understanding-dropout)); here another hidden "
        "layer follows.",
        f"64-{UNITS}-64-10 units, dropout {RATE:g} of the {UNITS} units, so {2**UNITS} thinned "
        f"networks; all labels correct, {epochs} epochs, {seeds} seeds, {images} test images. "
        "Distance: half of the sum of the absolute differences from the exact average's "
        "probabilities, mean of the images. Mean ± standard deviation of the seeds.",
        ["average", "accuracy, %", "cross-entropy", "distance"],
        [
            [
                name,
                spread(of_name["accuracy"]),
                spread(of_name["loss"], 3),
                spread(of_name["distance"], 4),
            ]
            for name, of_name in results.items()
        ],
        figure,
        found,
    )


def monte_carlo(count: int) -> str:
    """Return the name of the mean of `count` passes."""
    return f"Monte Carlo, n = {count}"
