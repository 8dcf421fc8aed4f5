"""Builds and trains small networks on digits, many times in one traced function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from experiments.digits import CLASSES, PIXELS, Digits
from fastdrop_keras import Dropout

BATCH = 100

T = TypeVar("T")


def network(
    widths: tuple[int, ...],
    hidden: Callable[[int], list[keras.Layer]],
    first: Sequence[keras.Layer] = (),
) -> keras.Model:
    """Return a network with the layers `hidden(width)` for each hidden layer, after `first`."""
    model = keras.Sequential([keras.Input((PIXELS,)), *first])
    for width in widths:
        for layer in hidden(width):
            model.add(layer)
    model.add(keras.layers.Dense(CLASSES, activation="softmax"))
    return model


def dense(width: int) -> keras.Layer:
    """Return the connections of a hidden layer."""
    return keras.layers.Dense(width, activation="relu")


def dropout_network(*widths: int) -> keras.Model:
    """Return a network with Bernoulli dropout of the input and of the hidden layers, at rate 0."""
    return network(widths, lambda width: [dense(width), Dropout(0.0)], [Dropout(0.0)])


def set_rates(model: keras.Model, of_input: float, of_hidden: float) -> None:
    """Set the rates of a `dropout_network`."""
    first, *others = [layer for layer in model.layers if isinstance(layer, Dropout)]
    first.rate = of_input
    for layer in others:
        layer.rate = of_hidden


class Trainer:
    """Trains one network from many seeds. Rates and penalties need no new trace."""

    def __init__(self, build: Callable[[], keras.Model], learning_rate: float = 1e-3) -> None:
        self._build = build
        self.model = build()
        self._optimizer = keras.optimizers.Adam(learning_rate)
        self._optimizer.build(self.model.trainable_variables)
        self._fresh = [variable.numpy() for variable in self._optimizer.variables]
        self._penalty = tf.Variable(0.0)
        self._epoch = tf.function(self._run_epoch)
        self._probabilities = tf.function(
            lambda images: self.model(images, training=False),
            input_signature=[tf.TensorSpec((None, PIXELS))],
        )

    def train(
        self,
        digits: Digits,
        seed: int,
        epochs: int,
        *,
        penalty: float = 0.0,
        after_epoch: Callable[[Digits], T] | None = None,
    ) -> list[T]:
        """Train from the initial weights and masks of `seed`; the rates are those of the layers.

        `penalty` times the sum of the squared weights is added to the loss. Return the results of
        `after_epoch`.
        """
        keras.utils.set_random_seed(seed)
        for variable, start in zip(self.model.variables, self._build().variables, strict=True):
            variable.assign(start)
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        self._penalty.assign(penalty)
        images, labels = tf.constant(digits.images), tf.constant(digits.labels)
        generator = np.random.default_rng(seed)
        batch = min(BATCH, len(labels))
        results = []
        for _ in range(epochs):
            order = generator.permutation(len(labels))
            self._epoch(images, labels, order[: len(order) // batch * batch].reshape(-1, batch))
            if after_epoch is not None:
                results.append(after_epoch(digits))
        return results

    def _run_epoch(self, images: tf.Tensor, labels: tf.Tensor, order: tf.Tensor) -> None:
        weights = self.model.trainable_variables
        for batch in tf.convert_to_tensor(order):
            with tf.GradientTape() as tape:
                outputs = self.model(tf.gather(images, batch), training=True)
                losses = keras.losses.sparse_categorical_crossentropy(
                    tf.gather(labels, batch), outputs
                )
                squares = [tf.reduce_sum(w.value**2) for w in weights if len(w.shape) > 1]
                loss = tf.reduce_mean(losses) + self._penalty * tf.add_n(squares)
                loss += sum(self.model.losses)
            gradients = tape.gradient(loss, [w.value for w in weights])
            self._optimizer.apply(gradients, weights)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Return the percentage of the images that the network recognizes, without dropout."""
        guesses = np.argmax(self._probabilities(tf.constant(images)), axis=1)
        return 100 * float(np.mean(guesses == labels))

    def test_accuracy(self, digits: Digits) -> float:
        """Return the percentage of the test images that the network recognizes."""
        return self.accuracy(digits.test_images, digits.test_labels)

    def validation_and_test(self, digits: Digits) -> tuple[float, float]:
        """Return the accuracies on the validation images and on the test images."""
        validation = self.accuracy(digits.validation_images, digits.validation_labels)
        return validation, self.test_accuracy(digits)
