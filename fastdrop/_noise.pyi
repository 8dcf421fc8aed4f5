from collections.abc import Sequence
from typing import Any, ClassVar, SupportsIndex, TypeVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Never

from fastdrop._arguments import _Rate
from fastdrop._stream import Stream

_Array = TypeVar("_Array", bound=NDArray[Any])

@final
class Noise:
    __hash__: ClassVar[None]  # type: ignore[assignment]
    # Never returns: gaussian_dropout and gaussian_noise make noise.
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def noise_shape(self) -> tuple[int, ...]: ...
    @property
    def stddev(self) -> float | NDArray[np.float64]: ...
    @property
    def additive(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    def apply(self, x: ArrayLike, out: NDArray[Any] | None = None) -> NDArray[Any]: ...
    def apply_(self, x: _Array) -> _Array: ...
    def draw(self) -> NDArray[np.float32]: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __copy__(self) -> Noise: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Noise: ...

def gaussian_dropout(
    x: ArrayLike,
    rate: _Rate | NDArray[Any],
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Noise]: ...
def gaussian_dropout_(
    x: NDArray[Any],
    rate: _Rate | NDArray[Any],
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
) -> Noise: ...
def gaussian_noise(
    x: ArrayLike,
    stddev: _Rate,
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Noise]: ...
def gaussian_noise_(
    x: NDArray[Any],
    stddev: _Rate,
    *,
    seed: SupportsIndex | np.random.SeedSequence | Stream | None = None,
    noise_shape: Sequence[SupportsIndex | None] | None = None,
) -> Noise: ...
def restored_noise(state: dict[str, Any]) -> Noise: ...
