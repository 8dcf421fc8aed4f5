"""Keras's and TensorFlow's settings for these tests, and what undoes a test's own."""

import math
import os
import sys

# Before TensorFlow is imported: its greetings would be the better part of a failure's output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import fastdrop_keras

# Two replicas need two devices, which can be made only before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


# Where the native operations should be there, it is a failure that they are not.
BRIDGES = ["native", "numpy_function"] if sys.platform == "linux" else ["numpy_function"]


@pytest.fixture(params=BRIDGES)
def bridge(request):
    """The bridge in use. A test that takes this runs once with each; all others, with the default.

    Those take it that look at values, gradients or errors of a layer, or at what a graph has.
    """
    before = fastdrop_keras.get_bridge()
    fastdrop_keras.set_bridge(request.param)
    yield request.param
    fastdrop_keras.set_bridge(before)


@pytest.fixture(autouse=True)
def own_settings():
    """Every test starts from one seed, and its settings end with it."""
    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all tests: TensorFlow numbers the collective operations of each strategy
    from the same number on, and remembers for good what shape each number had.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(params=["eager", "graph"])
def run(request):
    """How a function on tensors is run: as it is, or as a graph."""
    return tf.function if request.param == "graph" else lambda function: function


class Expected:
    """What a layer should do, from the slow reference."""

    @staticmethod
    def mask(shape, rate, seed, step=0, noise_shape=None):
        """Whether each element is kept, as a bool array of `shape`."""
        noise = reference.resolve_noise_shape(shape, noise_shape)
        kept = reference.keep_mask(seed, step, rate, math.prod(noise)).reshape(noise)
        return np.broadcast_to(kept, shape)

    @classmethod
    def output(cls, x, rate, seed, step=0, noise_shape=None):
        """The output for the array `x`."""
        kept = cls.mask(x.shape, rate, seed, step, noise_shape)
        return reference.dropout(x, kept, reference.default_scale(rate))

    @classmethod
    def factors(cls, shape, rate, seed, step=0, noise_shape=None):
        """What each element is multiplied by: the scale where it is kept and 0 elsewhere."""
        return cls.output(np.ones(shape, np.float32), rate, seed, step, noise_shape)


@pytest.fixture(scope="session")
def expected():
    return Expected
