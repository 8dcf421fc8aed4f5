"""Dropout layers for Keras, on TensorFlow, PyTorch or JAX, by fastdrop's kernels on the CPU.

Each layer takes the same arguments as Keras's layer of the same name:

>>> from fastdrop_keras import Dropout  # instead of: from keras.layers import Dropout
"""

from fastdrop_keras import _requirements

_backend = _requirements.check()

# After the check, which explains why one of these imports would fail.
from fastdrop import __version__  # noqa: E402
from fastdrop_keras.adaptive import (  # noqa: E402
    ConcreteDropout,
    Standout,
    VariationalDense,
    VariationalGaussianDropout,
)
from fastdrop_keras.averaging import exact_average, weight_scaling  # noqa: E402
from fastdrop_keras.backend import show_config  # noqa: E402
from fastdrop_keras.conversion import ConversionReport, LayerReport, convert, to_keras  # noqa: E402
from fastdrop_keras.layers import (  # noqa: E402
    Dropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
)
from fastdrop_keras.noise_layers import AlphaDropout, GaussianDropout, GaussianNoise  # noqa: E402
from fastdrop_keras.recurrent import (  # noqa: E402
    GRU,
    LSTM,
    GRUCell,
    LSTMCell,
    SimpleRNN,
    SimpleRNNCell,
)
from fastdrop_keras.schedule import RateSchedule, cosine_ramp, linear_ramp  # noqa: E402
from fastdrop_keras.structured import (  # noqa: E402
    DropBlock2D,
    DropConnectConv2D,
    DropConnectDense,
    StochasticDepth,
)
from fastdrop_keras.switch import disable, enable, enabled  # noqa: E402

if _backend == "tensorflow":
    from fastdrop_keras.bridge import get_bridge, set_bridge
    from fastdrop_keras.monte_carlo import mc_predict
else:
    from fastdrop_keras.only_tensorflow import get_bridge, mc_predict, set_bridge

__all__ = [
    "GRU",
    "LSTM",
    "AlphaDropout",
    "ConcreteDropout",
    "ConversionReport",
    "DropBlock2D",
    "DropConnectConv2D",
    "DropConnectDense",
    "Dropout",
    "GRUCell",
    "GaussianDropout",
    "GaussianNoise",
    "LSTMCell",
    "LayerReport",
    "RateSchedule",
    "SimpleRNN",
    "SimpleRNNCell",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Standout",
    "StochasticDepth",
    "VariationalDense",
    "VariationalGaussianDropout",
    "__version__",
    "convert",
    "cosine_ramp",
    "disable",
    "enable",
    "enabled",
    "exact_average",
    "get_bridge",
    "linear_ramp",
    "mc_predict",
    "set_bridge",
    "show_config",
    "to_keras",
    "weight_scaling",
]
