"""Dropout for JAX on the CPU, computed by fastdrop's kernels.

`fastdrop_jax.nnx` has the layers for Flax, and `fastdrop_jax.equinox` those for Equinox.

>>> import jax
>>> from fastdrop_jax import dropout
>>> dropout(jax.random.key(42), jax.numpy.ones(8), 0.5)
Array([0., 2., 0., 0., 0., 0., 2., 0.], dtype=float32)
"""

try:
    import jax
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ImportError(
        "fastdrop_jax needs JAX, which is not installed. Install it with: "
        'pip install "fastdrop[jax]"'
    ) from error
if jax.__version_info__ < (0, 9):
    # Its XLA would refuse the handler, and after that every program.
    raise ImportError(
        f"fastdrop_jax needs JAX 0.9 or newer, and this is JAX {jax.__version__}. Update it with: "
        'pip install --upgrade "jax>=0.9"'
    )

# After the checks, which explain why one of these imports would fail.
from fastdrop import __version__
from fastdrop_jax.blocks import drop_block
from fastdrop_jax.functional import (
    alpha_dropout,
    bias_dropout_add,
    dropout,
    gaussian_dropout,
    gaussian_noise,
    relu_dropout,
)
from fastdrop_jax.monte_carlo import mc_predict

__all__ = [
    "__version__",
    "alpha_dropout",
    "bias_dropout_add",
    "drop_block",
    "dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "mc_predict",
    "relu_dropout",
]
