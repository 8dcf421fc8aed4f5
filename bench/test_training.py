"""What does dropout add to a step of `model.fit`?"""

import statistics
import time

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import fastdrop_keras

RATE = 0.2
STEPS = 8


def digits_network(dropout):
    """The tutorials' network on scikit-learn's digits: two dropouts on 128 x 512."""
    images, labels = load_digits(return_X_y=True)
    layers = [keras.Input((64,))]
    for _ in range(2):
        layers += [keras.layers.Dense(512, activation="relu"), *dropout(RATE)]
    layers.append(keras.layers.Dense(10, activation="softmax"))
    return keras.Sequential(layers), (images / 16).astype(np.float32), labels, 128


def convolutional_network(dropout):
    """A small one on made-up pictures of 32 x 32: dropout behind each block."""
    generator = np.random.default_rng(0)
    images = generator.random((64 * STEPS, 32, 32, 3), np.float32)
    labels = generator.integers(0, 10, len(images))
    layers = [keras.Input((32, 32, 3))]
    for filters in (16, 32):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            *dropout(RATE),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"), *dropout(RATE)]
    layers.append(keras.layers.Dense(10, activation="softmax"))
    return keras.Sequential(layers), images, labels, 64


def transformer_encoder(dropout):
    """Two blocks on made-up sequences: dropout on the attention's weights, behind the attention and
    behind the feed-forward layers."""
    generator = np.random.default_rng(0)
    batch, length, width, heads = 16, 64, 128, 4
    sequences = generator.random((batch * STEPS, length, width), np.float32)
    labels = generator.integers(0, 10, len(sequences))

    def drop(x):
        for layer in dropout(RATE):
            x = layer(x)
        return x

    x = inputs = keras.Input((length, width))
    for _ in range(2):
        attention = keras.layers.MultiHeadAttention(
            heads, width // heads, dropout=RATE if dropout(RATE) else 0.0
        )
        x = keras.layers.LayerNormalization()(x + drop(attention(x, x)))
        hidden = keras.layers.Dense(4 * width, activation="relu")(x)
        hidden = keras.layers.Dense(width)(drop(hidden))
        x = keras.layers.LayerNormalization()(x + drop(hidden))
    outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, outputs), sequences, labels, batch


NETWORKS = {
    "digits, 64-512-512-10, batch 128": digits_network,
    "convolutional, 32 x 32 x 3, batch 64": convolutional_network,
    "transformer encoder, 64 x 128, batch 16": transformer_encoder,
}


class StepTimes(keras.callbacks.Callback):
    """The seconds of each step, from just before to just after Keras runs the graph for it."""

    def on_epoch_begin(self, epoch, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        # Keras has read the step's loss by now: the step is over and not merely on its way.
        self.seconds.append(time.perf_counter() - self.start)


def epoch(network, dropout, converted=False):
    """A call of `fit` on a few steps, which gives the median time of a step."""
    model, x, y, batch = network(dropout)
    if converted:
        model = fastdrop_keras.convert(model, verbose=False)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    x, y = x[: batch * STEPS], y[: batch * STEPS]
    times = StepTimes()

    def fit():
        model.fit(x, y, batch_size=batch, shuffle=False, callbacks=[times], verbose=0)
        # The first waits for the data.
        return statistics.median(times.seconds[1:])

    return fit


@pytest.mark.parametrize("network", NETWORKS)
def test_step(measure, quick, network):
    """Without dropout, with Keras's, and with ours in the place of Keras's."""
    if quick and not network.startswith("digits"):
        pytest.skip("not in a quick run")
    build = NETWORKS[network]

    def keras_dropout(rate):
        return [keras.layers.Dropout(rate, seed=1)]

    measure(
        "training",
        network,
        {
            "fastdrop_keras.Dropout": epoch(build, keras_dropout, converted=True),
            "keras.layers.Dropout": epoch(build, keras_dropout),
            "no dropout": epoch(build, lambda rate: []),
        },
        ratios={
            "ours over no dropout": ("fastdrop_keras.Dropout", "no dropout"),
            "Keras's over no dropout": ("keras.layers.Dropout", "no dropout"),
        },
        seconds=12.0,
    )
