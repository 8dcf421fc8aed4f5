"""Layers for Flax NNX, computed by fastdrop's kernels on the CPU.

Those whose names Flax has take the place of Flax's own.

>>> from fastdrop_jax.nnx import Dropout  # instead of: from flax.nnx import Dropout
"""

from fastdrop_jax.nnx.adaptive import (
    ConcreteDropout,
    Standout,
    VariationalGaussianDropout,
    VariationalLinear,
    regularization,
)
from fastdrop_jax.nnx.layers import AlphaDropout, Dropout, GaussianDropout, GaussianNoise
from fastdrop_jax.nnx.monte_carlo import mc_predict
from fastdrop_jax.nnx.recurrent import RNN, GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell
from fastdrop_jax.nnx.structured import (
    DropBlock2D,
    DropConnectConv,
    DropConnectLinear,
    StochasticDepth,
)

__all__ = [
    "RNN",
    "AlphaDropout",
    "ConcreteDropout",
    "DropBlock2D",
    "DropConnectConv",
    "DropConnectLinear",
    "Dropout",
    "GRUCell",
    "GaussianDropout",
    "GaussianNoise",
    "LSTMCell",
    "OptimizedLSTMCell",
    "SimpleCell",
    "Standout",
    "StochasticDepth",
    "VariationalGaussianDropout",
    "VariationalLinear",
    "mc_predict",
    "regularization",
]
