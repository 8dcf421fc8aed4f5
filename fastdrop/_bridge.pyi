from collections.abc import Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

def keep_thread_state() -> None: ...
def forward(
    x: NDArray[Any],
    seed: NDArray[np.integer],
    rate: SupportsFloat,
    noise_shape: Sequence[int | None] | None,
) -> tuple[NDArray[Any], NDArray[np.uint8]]: ...
def backward(
    dy: NDArray[Any], residual: NDArray[np.uint8], noise_shape: Sequence[int | None] | None
) -> NDArray[Any]: ...
