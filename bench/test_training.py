"""How much time does dropout add to a step of `model.fit`?"""

import statistics
import time

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import fastdrop_keras

RATE = 0.2
STEPS = 8


def made_up(batch, *shape):
    """Random inputs for the steps of one epoch, and random labels of ten classes."""
    generator = np.random.default_rng(0)
    inputs = generator.random((batch * STEPS, *shape), np.float32)
    return inputs, generator.integers(0, 10, len(inputs))


def digits_network(drop):
    """A network of tutorials on scikit-learn's digits: two dropouts on 128 x 512."""
    batch = 128
    images, labels = load_digits(return_X_y=True)
    inputs = keras.Input((64,))
    x = drop(keras.layers.Dense(512, activation="relu")(inputs))
    x = drop(keras.layers.Dense(512, activation="relu")(x))
    data = (images / 16).astype(np.float32)[: batch * STEPS], labels[: batch * STEPS]
    return inputs, x, data, batch


def convolutional_network(drop):
    """A small convolutional network with dropout after each block."""
    inputs = x = keras.Input((32, 32, 3))
    for filters in (16, 32):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = drop(keras.layers.MaxPooling2D()(x))
    x = drop(keras.layers.Dense(128, activation="relu")(keras.layers.Flatten()(x)))
    return inputs, x, made_up(64, 32, 32, 3), 64


def transformer_encoder(drop):
    """Two encoder blocks, with dropout on attention weights and after each of the other layers."""
    length, width, heads = 64, 128, 4
    inputs = x = keras.Input((length, width))
    for _ in range(2):
        attention = keras.layers.MultiHeadAttention(
            heads, width // heads, dropout=0.0 if drop is no_dropout else RATE
        )
        x = keras.layers.LayerNormalization()(x + drop(attention(x, x)))
        hidden = drop(keras.layers.Dense(4 * width, activation="relu")(x))
        x = keras.layers.LayerNormalization()(x + drop(keras.layers.Dense(width)(hidden)))
    return inputs, keras.layers.GlobalAveragePooling1D()(x), made_up(16, length, width), 16


def recurrent_network(drop):
    """An LSTM with both of its dropouts, which `convert` replaces."""
    length, width = 50, 64
    rate = 0.0 if drop is no_dropout else RATE
    inputs = keras.Input((length, width))
    x = keras.layers.LSTM(128, dropout=rate, recurrent_dropout=rate, seed=1)(inputs)
    return inputs, x, made_up(32, length, width), 32


NETWORKS = {
    "digits, 64-512-512-10, batch 128": digits_network,
    "convolutional, 32 x 32 x 3, batch 64": convolutional_network,
    "transformer encoder, 64 x 128, batch 16": transformer_encoder,
    "LSTM, 50 x 64, 128 units, batch 32": recurrent_network,
}


def no_dropout(x):
    return x


def keras_dropout(x):
    return keras.layers.Dropout(RATE, seed=1)(x)


class StepTimes(keras.callbacks.Callback):
    """Measures the seconds of each step, around the call of Keras's graph."""

    def on_epoch_begin(self, epoch, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        # Keras has read the step's loss, so the step has ended.
        self.seconds.append(time.perf_counter() - self.start)


def epoch(network, drop, convert=False):
    """A call that fits for a few steps and returns the median seconds of a step."""
    inputs, features, (x, y), batch = network(drop)
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(features))
    if convert:
        model = fastdrop_keras.convert(model, verbose=False)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    times = StepTimes()

    def fit():
        model.fit(x, y, batch_size=batch, shuffle=False, callbacks=[times], verbose=0)
        # The first step waits for the data.
        return statistics.median(times.seconds[1:])

    return fit


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=() if name.startswith("digits") else pytest.mark.full)
        for name in NETWORKS
    ],
)
def test_step(measure, network):
    """With our dropout, with Keras's, and without dropout."""
    build = NETWORKS[network]
    measure(
        "training",
        network,
        ours={"fastdrop_keras.Dropout": epoch(build, keras_dropout, convert=True)},
        peers={"keras.layers.Dropout": epoch(build, keras_dropout)},
        limits={"no dropout": epoch(build, no_dropout)},
        seconds=12.0,
    )
