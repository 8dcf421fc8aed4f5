from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdrop._arguments import _Rate
from fastdrop._mask import Mask
from fastdrop._stream import Stream

def alpha_dropout(
    x: ArrayLike,
    rate: _Rate | NDArray[Any],
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Mask]: ...
def alpha_dropout_(
    x: NDArray[Any],
    rate: _Rate | NDArray[Any],
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
) -> Mask: ...
