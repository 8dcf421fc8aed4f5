"""A network learns as well with our layer as with Keras's.

The network of examples/digits.py is trained from RUNS starts with each layer. Two layers are
equivalent if the means of the final test accuracies are (two one-sided t tests, ALPHA each, within
MARGIN), and if neither these accuracies nor the final losses on the training images differ
(two-sample Kolmogorov-Smirnov tests, ALPHA for both together). Both are measured without dropout.

The test detects a rate that is wrong by a quarter. It does not detect masks that repeat at each
step, since batches are shuffled and the network has redundant units; test_layer_state.py does. It
may not detect a layer that drops nothing, since the mean accuracy changes little.
"""

import importlib.util
import pathlib
import sys

import keras
import numpy as np
import pytest
from scipy import stats

import fastdrop_keras

pytestmark = [pytest.mark.slow, pytest.mark.long]

RUNS = 30
EPOCHS = 25
RATE = 0.5
ALPHA = 0.01
# Of the accuracy. The accuracies of these starts have a standard deviation of about .008, so the
# standard error of a difference of means is .002, and equal layers pass for most seeds.
MARGIN = 0.01

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "digits.py"


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
def example():
    spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses need the module of the example in `sys.modules`.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "digits", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcomes(example):
    """The final (test accuracy, training loss) of each run, with the same starts and batches."""
    digits = example.load()
    known = {}

    def outcomes(layer):
        if layer not in known:
            known[layer] = np.array(list(train(layer)))
        return known[layer]

    def train(layer):
        keras.utils.set_random_seed(2024)
        model = example.build(lambda _: layer(RATE))
        model.optimizer.build(model.trainable_variables)
        at_rest = [v.numpy() for v in model.optimizer.variables]
        for run in range(RUNS):
            for i, weight in enumerate(model.trainable_variables):
                kernel = keras.initializers.GlorotUniform(seed=100 * run + i)
                weight.assign(kernel(weight.shape) if len(weight.shape) > 1 else 0 * weight)
            for variable, value in zip(model.optimizer.variables, at_rest, strict=True):
                variable.assign(value)
            rng = np.random.default_rng(run)
            order = np.concatenate(
                [rng.permutation(len(digits.train_labels)) for _ in range(EPOCHS)]
            )
            model.fit(
                digits.train_images[order],
                digits.train_labels[order],
                batch_size=example.BATCH,
                shuffle=False,
                verbose=0,
            )
            found = np.argmax(model(digits.test_images), axis=1)
            probabilities = np.asarray(model(digits.train_images), np.float64)
            right = np.take_along_axis(probabilities, digits.train_labels[:, None], axis=1)
            yield np.mean(found == digits.test_labels), -np.mean(np.log(right))

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
