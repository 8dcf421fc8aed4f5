"""Layers for Flax NNX, computed by fastdrop's kernels on the CPU.

`Dropout` takes the place of Flax's own, and Flax has none of the others.

>>> from fastdrop_jax.nnx import Dropout  # instead of: from flax.nnx import Dropout
"""

from fastdrop_jax.nnx.layers import AlphaDropout, Dropout, GaussianDropout, GaussianNoise

__all__ = ["AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"]
