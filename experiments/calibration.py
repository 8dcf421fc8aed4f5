"""The uncertainty that Monte Carlo dropout reports, on digits and on images that are none."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from experiments.digits import no_digits, split
from experiments.networks import Trainer, dropout_network, set_rates
from experiments.page import COLOURS, Section, Work, bars, compared, plot, spread
from fastdrop_keras import mc_predict, weight_scaling

RATE = 0.5
BINS = 10
DIGITS = "digits"
METHODS = ("weight scaling", "Monte Carlo")


def run(work: Work) -> Section:
    """Train with dropout, and predict digits and other images in both ways."""
    epochs, passes = work.part(100), work.part(100)
    trainer = Trainer(lambda: dropout_network(128, 128))
    set_rates(trainer.model, 0.1, RATE)
    measures: dict[tuple[str, str], list[float]] = {}
    reliability: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {m: [] for m in METHODS}
    for seed in work.runs(range(work.seeds), "calibration"):
        digits = split(seed)
        trainer.train(digits, seed, epochs)
        inputs = {DIGITS: digits.test_images, **no_digits(digits.test_images, seed)}
        for method in METHODS:
            entropies = {}
            for name, images in inputs.items():
                probabilities = (
                    weight_scaling(trainer.model, images, batch_size=1000)
                    if method == METHODS[0]
                    else mc_predict(
                        trainer.model, images, passes, seed=seed, batch_size=1000, verbose=False
                    )[0]
                )
                entropies[name] = entropy(probabilities)
                measures.setdefault((method, f"entropy, {name}"), []).append(
                    float(entropies[name].mean())
                )
                if name == DIGITS:
                    confidence = probabilities.max(axis=1)
                    right = np.argmax(probabilities, axis=1) == digits.test_labels
                    reliability[method].append((confidence, right))
                    error = calibration_error(confidence, right)
                    measures.setdefault((method, "calibration error"), []).append(error)
                    measures.setdefault((method, "accuracy"), []).append(100 * right.mean())
                else:
                    area = separation(entropies[DIGITS], entropies[name])
                    measures.setdefault((method, f"separation, {name}"), []).append(area)
    return section(measures, reliability, work.seeds, epochs, passes)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of each row, in nats."""
    return -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-12)), axis=1)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error in points, from bins of equal width."""
    _, counts, confidences, accuracies = binned(confidence, right)
    return float(100 * np.sum(counts * np.abs(confidences - accuracies)) / counts.sum())


def binned(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the numbers of the bins that are not empty, their counts and both means."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    used = np.flatnonzero(counts)
    counts = counts[used]
    means = [np.bincount(bins, v, minlength=BINS)[used] / counts for v in (confidence, right)]
    return used, counts, *means


def separation(of_digits: np.ndarray, of_others: np.ndarray) -> float:
    """Return the probability that another image has more entropy than a digit (AUROC)."""
    others = np.repeat([0, 1], [len(of_digits), len(of_others)])
    return float(roc_auc_score(others, np.concatenate([of_digits, of_others])))


def section(
    measures: dict[tuple[str, str], list[float]],
    reliability: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    seeds: int,
    epochs: int,
    passes: int,
) -> Section:
    """Return the section; `measures` maps (method, measure) to values by seed."""
    names = [measure for method, measure in measures if method == METHODS[0]]
    figure, (diagram, separations) = plot(2)
    for number, method in enumerate(METHODS):
        confidence, right = map(np.concatenate, zip(*reliability[method], strict=True))
        _, _, confidences, accuracies = binned(confidence, right)
        diagram.plot(confidences, accuracies, marker="o", color=COLOURS[number], label=method)
    diagram.plot([0, 1], [0, 1], ":", color="grey", label="calibrated")
    diagram.set(xlabel="confidence", ylabel="accuracy", title="Test digits of all seeds")
    diagram.legend()
    of_kinds = {
        f"{measure.removeprefix('separation, ')}\n{method}": values
        for (method, measure), values in measures.items()
        if measure.startswith("separation")
    }
    bars(separations, of_kinds)
    separations.set(xlabel="separation from digits", xlim=(0, 1.02))
    scaling, monte_carlo = (
        {measure: values for (m, measure), values in measures.items() if m == method}
        for method in METHODS
    )
    found = []
    for measure in names:
        if measure.startswith("entropy"):
            continue
        unit, decimals = ("", 3) if measure.startswith("separation") else ("points", 1)
        found.append(
            compared(
                measure.capitalize(),
                METHODS[1],
                monte_carlo[measure],
                METHODS[0],
                scaling[measure],
                unit,
                decimals,
            )
        )
    return Section(
        "Calibration of Monte Carlo dropout",
        "The predictions of many passes show how unsure a network is, more so on inputs unlike "
        "those of the training ([Gal and Ghahramani, 2016]"
        "(https://proceedings.mlr.press/v48/gal16.html)). A network is calibrated if it is right "
        "as often as its confidence says ([Guo et al., 2017](https://arxiv.org/abs/1706.04599)).",
        "The digits and the network of the first experiment, all labels correct, rate 0.1 in the "
        f"input and {RATE:g} inside, {epochs} epochs, {seeds} seeds, {passes} passes. The "
        f"calibration error (in points) has {BINS} bins of the highest probability. Entropy in "
        "nats, of the predicted probabilities. Separation: the probability that an image that is "
        "no digit has a higher entropy than a digit has (area under the ROC curve; 0.5 is chance, "
        "1 perfect). Mean ± standard deviation of the seeds.",
        ["measure", *METHODS],
        [
            [
                name,
                *(
                    spread(of_method[name], decimals_of(name))
                    for of_method in (scaling, monte_carlo)
                ),
            ]
            for name in names
        ],
        figure,
        found,
    )


def decimals_of(measure: str) -> int:
    """Return how many decimals the table shows."""
    return 1 if measure == "accuracy" else 2 if measure == "calibration error" else 3
