"""Dropout for JAX on the CPU, computed by fastdrop's kernels.

`fastdrop_jax.nnx` has the layer for Flax, and `fastdrop_jax.equinox` that for Equinox.
"""

from fastdrop import __version__
from fastdrop_jax.functional import bias_dropout_add, dropout, relu_dropout

__all__ = ["__version__", "bias_dropout_add", "dropout", "relu_dropout"]
