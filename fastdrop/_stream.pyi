from typing import Any, SupportsIndex, TypedDict, final, type_check_only

import numpy as np

@type_check_only
class _State(TypedDict):
    seed: int
    step: int

@final
class Stream:
    state: _State
    def __init__(self, seed: SupportsIndex | np.random.SeedSequence | None = None) -> None: ...
    @property
    def seed(self) -> int: ...
    @property
    def step(self) -> int: ...
    def spawn(self, n: SupportsIndex) -> list[Stream]: ...

def restored_stream(state: dict[str, Any]) -> Stream: ...
