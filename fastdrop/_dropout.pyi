from collections.abc import Sequence
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdrop._mask import Mask
from fastdrop._stream import Stream

def dropout(
    x: ArrayLike,
    rate: SupportsFloat,
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    scale: SupportsFloat | None = None,
    out: NDArray[Any] | None = None,
    store_mask: bool = True,
) -> tuple[NDArray[Any], Mask]: ...
def dropout_(
    x: NDArray[Any],
    rate: SupportsFloat,
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    scale: SupportsFloat | None = None,
    store_mask: bool = True,
) -> Mask: ...
