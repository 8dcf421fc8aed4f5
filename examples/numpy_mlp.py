"""Trains a network written in NumPy, with fastdrop in its forward and backward pass. It first
compares the gradients with central differences."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import fastdrop

TOLERANCE = 1e-6

Parameters = list[np.ndarray]  # the weights and biases of each layer in turn
Digits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trace:
    """The values that the forward pass saves for the backward pass."""

    inputs: list[np.ndarray]  # one for each layer
    masks: list[fastdrop.Mask]  # one for each hidden layer; empty without dropout
    probabilities: np.ndarray


def initialize(sizes: Sequence[int], seed: int, dtype: type = np.float32) -> Parameters:
    """Return random weights for ReLU (He et al., 2015) and zero biases."""
    rng = np.random.default_rng(seed)
    parameters = []
    for fan_in, fan_out in pairwise(sizes):
        weights = rng.normal(scale=np.sqrt(2 / fan_in), size=(fan_in, fan_out))
        parameters += [weights.astype(dtype), np.zeros(fan_out, dtype)]
    return parameters


def forward(
    parameters: Parameters,
    images: np.ndarray,
    rate: float = 0.0,
    stream: fastdrop.Stream | None = None,
) -> Trace:
    """Run the network, with dropout after each hidden layer if there is a stream."""
    inputs, masks = [images], []
    for weights, biases in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        hidden = inputs[-1] @ weights + biases
        if stream is None:
            np.maximum(hidden, 0, out=hidden)
        else:
            masks.append(fastdrop.relu_dropout(hidden, rate, seed=stream, out=hidden)[1])
        inputs.append(hidden)
    logits = inputs[-1] @ parameters[-2] + parameters[-1]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Trace(inputs, masks, exponentials / exponentials.sum(axis=1, keepdims=True))


def loss(trace: Trace, labels: np.ndarray) -> float:
    """Return the mean cross-entropy."""
    return float(-np.log(trace.probabilities[np.arange(len(labels)), labels]).mean())


def backward(parameters: Parameters, trace: Trace, labels: np.ndarray) -> Parameters:
    """Return the gradient of the loss with respect to each of the parameters."""
    delta = trace.probabilities.copy()
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    gradients = []
    for layer in reversed(range(len(trace.inputs))):
        gradients = [trace.inputs[layer].T @ delta, delta.sum(axis=0), *gradients]
        if layer > 0:
            delta = delta @ parameters[2 * layer].T
            if trace.masks:  # ReLU has cleared the bits of the elements that it dropped
                fastdrop.relu_dropout_grad(delta, trace.masks[layer - 1], out=delta)
            else:
                delta *= trace.inputs[layer] > 0
    return gradients


def largest_gradient_error(rate: float = 0.3, difference: float = 1e-5) -> float:
    """Return the largest relative error of a tiny network's gradients, by central differences."""
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(5, 4)), rng.integers(3, size=5)
    parameters = initialize([4, 6, 5, 3], seed=0, dtype=np.float64)
    for biases in parameters[1::2]:
        biases += rng.normal(size=biases.shape)  # off ReLU's corner, even if a whole row is dropped
    stream = fastdrop.Stream(0)
    start = stream.state

    def run() -> Trace:
        stream.state = start  # drops the same elements each time
        return forward(parameters, images, rate, stream)

    gradients = backward(parameters, run(), labels)
    worst = 0.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in np.ndindex(parameter.shape):
            value = parameter[index]
            parameter[index] = value + difference
            above = loss(run(), labels)
            parameter[index] = value - difference
            below = loss(run(), labels)
            parameter[index] = value
            numeric = (above - below) / (2 * difference)
            size = max(abs(numeric), abs(gradient[index]), 1e-3)  # rounding dominates near zero
            worst = max(worst, abs(numeric - gradient[index]) / size)
    return worst


def load() -> Digits:
    """Return training images, test images, training labels and test labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return tuple(train_test_split(images, labels, train_size=384, stratify=labels, random_state=0))


def train(
    images: np.ndarray, labels: np.ndarray, rate: float, seed: int, epochs: int
) -> Parameters:
    """Train by stochastic gradient descent with momentum; rate 0 disables dropout."""
    parameters = initialize([64, 256, 256, 10], seed)
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    stream = fastdrop.Stream(seed) if rate > 0 else None
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(labels)), len(labels) // 64):
            trace = forward(parameters, images[batch], rate, stream)
            gradients = backward(parameters, trace, labels[batch])
            for parameter, velocity, gradient in zip(
                parameters, velocities, gradients, strict=True
            ):
                velocity *= 0.9
                velocity -= 0.05 * gradient
                parameter += velocity
    return parameters


def accuracy(parameters: Parameters, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of the images that the network recognizes, with dropout off."""
    return 100 * float(np.mean(forward(parameters, images).probabilities.argmax(axis=1) == labels))


def compare(seeds: int, epochs: int) -> Table:
    """Train with and without dropout, and return a table of the accuracies."""
    train_images, test_images, train_labels, test_labels = load()
    table = Table(
        title=f"{epochs} epochs on {len(train_labels)} digits, mean ± sd of {seeds} seeds"
    )
    table.add_column("dropout")
    table.add_column("test accuracy, %", justify="right")
    table.add_column("training accuracy, %", justify="right")
    for rate in (0.0, 0.2):
        networks = [train(train_images, train_labels, rate, seed, epochs) for seed in range(seeds)]
        test = [accuracy(network, test_images, test_labels) for network in networks]
        training = [accuracy(network, train_images, train_labels) for network in networks]
        table.add_row(
            f"rate {rate}" if rate > 0 else "none",
            f"{np.mean(test):.2f} ± {np.std(test, ddof=1):.2f}",
            f"{np.mean(training):.2f} ± {np.std(training, ddof=1):.2f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 epochs: only to try it")
    options = parser.parse_args(arguments)

    console = Console()
    error = largest_gradient_error()
    console.print(f"Largest relative error of a gradient: {error:.1e} (at most {TOLERANCE:.0e})")
    if not error <= TOLERANCE:
        raise SystemExit("The gradients are wrong.")
    seeds, epochs = (2, 3) if options.quick else (5, 100)
    with threadpool_limits(1):  # a second thread gains nothing on matrices this small
        console.print(compare(seeds, epochs))


if __name__ == "__main__":
    main()
