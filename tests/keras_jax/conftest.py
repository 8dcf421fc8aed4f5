"""Sets up Keras on JAX, in a process of its own: tests/jax/test_keras.py runs these tests."""

# ruff: noqa: E402
import math
import sys

# As if TensorFlow were not installed: Keras imports it where it is.
sys.modules["tensorflow"] = None

import jax

# Before JAX is used, since it then keeps its devices.
jax.config.update("jax_num_cpu_devices", 4)

import keras
import numpy as np
import pytest
import reference

assert keras.config.backend() == "jax"


def pytest_configure(config):
    """Of the code of JAX and Keras, which this package cannot change."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def own_settings():
    """Every test starts with the same seed and the default settings."""
    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")
    keras.distribution.set_distribution(None)


class Expected:
    """The expected results of a layer, from the slow reference."""

    @staticmethod
    def output(x, rate, seed, step=0, noise_shape=None):
        """The output for a NumPy array, which has the dtype bfloat16 of ml_dtypes, too."""
        noise = reference.resolve_noise_shape(x.shape, noise_shape)
        kept = reference.keep_mask(seed, step, rate, math.prod(noise)).reshape(noise)
        kept = np.broadcast_to(kept, x.shape)
        return reference.dropout(x, kept, reference.default_scale(rate))

    @classmethod
    def factors(cls, shape, rate, seed, step=0, noise_shape=None):
        """The factor of each element: the scale if it is kept, else 0."""
        return cls.output(np.ones(shape, np.float32), rate, seed, step, noise_shape)


@pytest.fixture(scope="session")
def expected():
    return Expected
