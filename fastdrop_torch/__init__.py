"""Dropout for PyTorch on the CPU, computed by fastdrop's kernels.

Each module and function takes the arguments of PyTorch's own of the same name:

>>> from fastdrop_torch import Dropout  # instead of: from torch.nn import Dropout
"""

from fastdrop import __version__
from fastdrop_torch import functional
from fastdrop_torch.adaptive import (
    ConcreteDropout,
    Standout,
    VariationalGaussianDropout,
    VariationalLinear,
    regularization,
)
from fastdrop_torch.conversion import ConversionReport, ModuleReport, convert, to_torch
from fastdrop_torch.modules import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    GaussianDropout,
    GaussianNoise,
)
from fastdrop_torch.monte_carlo import mc_predict
from fastdrop_torch.recurrent import GRU, LSTM, RNN
from fastdrop_torch.structured import (
    DropBlock2d,
    DropConnectConv2d,
    DropConnectLinear,
    StochasticDepth,
)
from fastdrop_torch.switch import disable, enable, enabled

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AlphaDropout",
    "ConcreteDropout",
    "ConversionReport",
    "DropBlock2d",
    "DropConnectConv2d",
    "DropConnectLinear",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "ModuleReport",
    "Standout",
    "StochasticDepth",
    "VariationalGaussianDropout",
    "VariationalLinear",
    "__version__",
    "convert",
    "disable",
    "enable",
    "enabled",
    "functional",
    "mc_predict",
    "regularization",
    "to_torch",
]
