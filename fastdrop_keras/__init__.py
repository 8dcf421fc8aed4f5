"""Dropout layers for Keras on TensorFlow, computed by fastdrop's kernels on the CPU.

Each layer takes the same arguments as Keras's layer of the same name:

>>> from fastdrop_keras import Dropout  # instead of: from keras.layers import Dropout
"""

from fastdrop_keras import _requirements

_requirements.check()

# After the check, which explains why one of these imports would fail.
from fastdrop import __version__  # noqa: E402
from fastdrop_keras.bridge import get_bridge, set_bridge, show_config  # noqa: E402
from fastdrop_keras.conversion import ConversionReport, LayerReport, convert, to_keras  # noqa: E402
from fastdrop_keras.layers import (  # noqa: E402
    Dropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    disable,
    enable,
    enabled,
)
from fastdrop_keras.monte_carlo import mc_predict  # noqa: E402
from fastdrop_keras.schedule import RateSchedule, cosine_ramp, linear_ramp  # noqa: E402

__all__ = [
    "ConversionReport",
    "Dropout",
    "LayerReport",
    "RateSchedule",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "__version__",
    "convert",
    "cosine_ramp",
    "disable",
    "enable",
    "enabled",
    "get_bridge",
    "linear_ramp",
    "mc_predict",
    "set_bridge",
    "show_config",
    "to_keras",
]
