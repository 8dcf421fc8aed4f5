from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdrop._arguments import _Rate, _Real
from fastdrop._mask import Mask
from fastdrop._stream import Stream

def relu_dropout(
    x: ArrayLike,
    rate: _Rate | NDArray[Any],
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    scale: _Real | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Mask]: ...
def relu_dropout_grad(
    dy: ArrayLike, mask: Mask, *, out: NDArray[Any] | None = None
) -> NDArray[Any]: ...
def bias_dropout_add(
    x: ArrayLike,
    bias: ArrayLike | None,
    residual: ArrayLike | None,
    rate: _Rate | NDArray[Any],
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    scale: _Real | None = None,
    out: NDArray[Any] | None = None,
    store_mask: bool = True,
) -> tuple[NDArray[Any], Mask]: ...
def bias_dropout_add_grad(
    dy: ArrayLike, mask: Mask, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
