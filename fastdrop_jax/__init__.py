"""Dropout for JAX on the CPU, computed by fastdrop's kernels."""

from fastdrop import __version__
from fastdrop_jax.functional import dropout

__all__ = ["__version__", "dropout"]
