"""Dropout for NumPy arrays on the CPU: in place, with packed masks, bit-identical on every machine.

>>> import numpy as np, fastdrop
>>> x = np.ones((2, 4), np.float32)
>>> mask = fastdrop.dropout_(x, 0.5, seed=42)
>>> dx = fastdrop.dropout_grad(np.ones_like(x), mask)
>>> np.array_equal(x, dx)
True
"""

# Before the compiled modules: if NumPy is broken, Cython's error would hide NumPy's own.
import numpy as _numpy  # noqa: F401

from fastdrop import _compiled

_compiled.check()

try:
    from fastdrop._alpha import alpha_dropout, alpha_dropout_

    # PyCapsule_Import looks for it here.
    from fastdrop._api import _C_API as _C_API
    from fastdrop._config import __version__, get_include, show_config
    from fastdrop._dropout import dropout, dropout_
    from fastdrop._fused import (
        bias_dropout_add,
        bias_dropout_add_grad,
        relu_dropout,
        relu_dropout_grad,
    )
    from fastdrop._isa import available_isas
    from fastdrop._mask import Mask, draw_mask, dropout_grad, dropout_grad_
    from fastdrop._noise import (
        Noise,
        gaussian_dropout,
        gaussian_dropout_,
        gaussian_noise,
        gaussian_noise_,
    )
    from fastdrop._stream import Stream
    from fastdrop._threads import get_num_threads, num_threads, set_num_threads
except ImportError as _error:  # no public name
    raise _compiled.explained(_error) from _error

__all__ = [
    "Mask",
    "Noise",
    "Stream",
    "__version__",
    "alpha_dropout",
    "alpha_dropout_",
    "available_isas",
    "bias_dropout_add",
    "bias_dropout_add_grad",
    "draw_mask",
    "dropout",
    "dropout_",
    "dropout_grad",
    "dropout_grad_",
    "gaussian_dropout",
    "gaussian_dropout_",
    "gaussian_noise",
    "gaussian_noise_",
    "get_include",
    "get_num_threads",
    "num_threads",
    "relu_dropout",
    "relu_dropout_grad",
    "set_num_threads",
    "show_config",
]
