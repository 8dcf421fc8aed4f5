"""Sets up Keras and TensorFlow for these tests, and resets the settings after each."""

import math
import os
import sys

# Before TensorFlow is imported, whose log would fill the output of failures.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import fastdrop_keras

# Two replicas need two devices, which must be configured before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


# On Linux, missing native operations are a failure.
BRIDGES = ["native", "numpy_function"] if sys.platform == "linux" else ["numpy_function"]


@pytest.fixture(params=BRIDGES)
def bridge(request):
    """The bridge in use: a test with this fixture runs once with each. Others use the default.

    It is for tests of a layer's values, gradients and errors, and of the operations in a graph.
    """
    before = fastdrop_keras.get_bridge()
    fastdrop_keras.set_bridge(request.param)
    yield request.param
    fastdrop_keras.set_bridge(before)


@pytest.fixture(autouse=True)
def own_settings():
    """Every test starts with the same seed and the default settings."""
    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all tests, since TensorFlow stores the shapes of collective operations.

    A second strategy would use the numbers of the first one's operations again.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(params=["eager", "graph"])
def run(request):
    """Runs a function of tensors eagerly, or as a graph."""
    return tf.function if request.param == "graph" else lambda function: function


class Expected:
    """The expected results of a layer, from the slow reference."""

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
        """The factor of each element: the scale if it is kept, else 0."""
        return cls.output(np.ones(shape, np.float32), rate, seed, step, noise_shape)


@pytest.fixture(scope="session")
def expected():
    return Expected
