"""A network learns as well with our layer as with Keras's.

A network with two dropout layers is trained on few digits, from RUNS starts with each layer. Two
layers are equivalent if the means of the final test accuracies are (two one-sided t tests, ALPHA
each, within MARGIN), and if neither these accuracies nor the final losses on the training images
differ (two-sample Kolmogorov-Smirnov tests, ALPHA for both together). Both are measured without
dropout.

The test detects a rate that is wrong by a quarter. It does not detect masks that repeat at each
step, since batches are shuffled and the network has redundant units; test_layer_state.py does. It
may not detect a layer that drops nothing, since the mean accuracy changes little.
"""

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastdrop_keras

pytestmark = [pytest.mark.slow, pytest.mark.long]

RUNS = 30
EPOCHS = 25
RATE = 0.5
ALPHA = 0.01
# Of the accuracy. The accuracies of these starts have a standard deviation of about .008, so the
# standard error of a difference of means is .002, and equal layers pass for most seeds.
MARGIN = 0.01

BATCH = 128


def load():
    """Training images and test images, then their labels: few, so that the network overfits."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return train_test_split(images, labels, train_size=3 * BATCH, stratify=labels, random_state=0)


def build(dropout):
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(2):
        model.add(keras.layers.Dense(512, activation="relu"))
        model.add(dropout(RATE))
    model.add(keras.layers.Dense(10, activation="softmax"))
    model.compile("rmsprop", loss="sparse_categorical_crossentropy", jit_compile=False)
    return model


class WrongRate(keras.layers.Layer):
    """Drops with a wrong rate, and scales for the right one."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, x, training=False):
        if not training:
            return x
        dropped = self.rate + 0.25
        kept = keras.random.dropout(x, dropped, seed=self.seed_generator)
        return kept * ((1 - dropped) / (1 - self.rate))


@pytest.fixture(scope="module")
def outcomes():
    """The final (test accuracy, training loss) of each run, with the same starts and batches."""
    train_images, test_images, train_labels, test_labels = load()
    known = {}

    def outcomes(layer):
        if layer not in known:
            known[layer] = np.array(list(train(layer)))
        return known[layer]

    def train(layer):
        keras.utils.set_random_seed(2024)
        model = build(layer)
        model.optimizer.build(model.trainable_variables)
        at_rest = [v.numpy() for v in model.optimizer.variables]
        for run in range(RUNS):
            for i, weight in enumerate(model.trainable_variables):
                kernel = keras.initializers.GlorotUniform(seed=100 * run + i)
                weight.assign(kernel(weight.shape) if len(weight.shape) > 1 else 0 * weight)
            for variable, value in zip(model.optimizer.variables, at_rest, strict=True):
                variable.assign(value)
            rng = np.random.default_rng(run)
            order = np.concatenate([rng.permutation(len(train_labels)) for _ in range(EPOCHS)])
            model.fit(
                train_images[order],
                train_labels[order],
                batch_size=BATCH,
                shuffle=False,
                verbose=0,
            )
            found = np.argmax(model(test_images), axis=1)
            probabilities = np.asarray(model(train_images), np.float64)
            right = np.take_along_axis(probabilities, train_labels[:, None], axis=1)
            yield np.mean(found == test_labels), -np.mean(np.log(right))

    return outcomes


def equivalent(first, second):
    """Whether both one-sided tests show that the means differ by less than the margin."""
    first, second = first[:, 0], second[:, 0]
    above = stats.ttest_ind(first + MARGIN, second, equal_var=False, alternative="greater")
    below = stats.ttest_ind(first - MARGIN, second, equal_var=False, alternative="less")
    return max(above.pvalue, below.pvalue) < ALPHA


def told_apart(first, second):
    each = [stats.ks_2samp(first[:, i], second[:, i]).pvalue for i in range(2)]
    return min(each) < ALPHA / 2


def test_our_layer_trains_as_well_as_keras(outcomes):
    ours, theirs = outcomes(fastdrop_keras.Dropout), outcomes(keras.layers.Dropout)
    assert equivalent(ours, theirs), (ours, theirs)
    assert not told_apart(ours, theirs), (ours, theirs)


def test_a_wrong_rate_is_detected(outcomes):
    wrong, theirs = outcomes(WrongRate), outcomes(keras.layers.Dropout)
    assert not equivalent(wrong, theirs), (wrong, theirs)
    assert told_apart(wrong, theirs), (wrong, theirs)
