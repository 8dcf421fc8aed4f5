"""Trains a network with DropConnect (Wan et al., ICML 2013): each step drops elements of a weight
matrix, instead of a layer's output."""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy_mlp import Parameters, accuracy, forward, initialize, load
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import fastdrop


def step(
    parameters: Parameters,
    images: np.ndarray,
    labels: np.ndarray,
    rate: float,
    stream: fastdrop.Stream,
) -> Parameters:
    """Return the gradients of the mean cross-entropy, with connections of the first layer dropped.

    The forward pass uses the dropped weights; the mask applies to their gradient alone. The batch
    shares one mask: a mask for each image would need a weight matrix for each image.
    """
    weights, *others = parameters
    dropped, mask = fastdrop.dropout(weights, rate, seed=stream)
    trace = forward([dropped, *others], images)
    hidden = trace.inputs[1]
    delta = trace.probabilities.copy()
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    inner = (delta @ parameters[2].T) * (hidden > 0)
    first = images.T @ inner
    return [
        fastdrop.dropout_grad_(first, mask),
        inner.sum(axis=0),
        hidden.T @ delta,
        delta.sum(axis=0),
    ]


def train(
    images: np.ndarray, labels: np.ndarray, rate: float, seed: int, epochs: int
) -> Parameters:
    """Train one hidden layer by stochastic gradient descent; rate 0 disables DropConnect."""
    parameters = initialize([64, 256, 10], seed)
    stream = fastdrop.Stream(seed)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(labels)), len(labels) // 64):
            gradients = step(parameters, images[batch], labels[batch], rate, stream)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.2 * gradient
    return parameters


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 epochs: only to try it")
    options = parser.parse_args(arguments)
    seeds, epochs = (2, 3) if options.quick else (5, 100)
    train_images, test_images, train_labels, test_labels = load()
    table = Table(title=f"DropConnect, {epochs} epochs, mean ± sd of {seeds} seeds")
    table.add_column("connections dropped")
    table.add_column("test accuracy, %", justify="right")
    with threadpool_limits(1):  # a second thread gains nothing on matrices this small
        for rate in (0.0, 0.3, 0.5):
            test = [
                accuracy(
                    train(train_images, train_labels, rate, seed, epochs), test_images, test_labels
                )
                for seed in range(seeds)
            ]
            table.add_row(f"{rate:.0%}", f"{np.mean(test):.2f} ± {np.std(test, ddof=1):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
