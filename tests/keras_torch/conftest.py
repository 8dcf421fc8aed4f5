"""Sets up Keras on PyTorch, in a process of its own: tests/torch/test_keras.py runs these tests."""

# ruff: noqa: E402
import math
import sys

# As if TensorFlow were not installed: Keras imports it where it is.
sys.modules["tensorflow"] = None

import keras
import numpy as np
import pytest
import reference
import torch
import torch._dynamo

assert keras.config.backend() == "torch"


def pytest_configure(config):
    """Of the code of PyTorch and Keras, which this package cannot change."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def own_settings():
    """Every test starts with the same seed and the default settings."""
    keras.utils.set_random_seed(1234)
    torch._dynamo.reset()
    yield
    keras.config.set_dtype_policy("float32")


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
        ones = np.ones(shape, np.float32)
        return torch.from_numpy(cls.output(ones, rate, seed, step, noise_shape))


@pytest.fixture(scope="session")
def expected():
    return Expected
