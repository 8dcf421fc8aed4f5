from types import TracebackType
from typing import SupportsIndex

VARIABLE: str

def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...

class num_threads:  # noqa: N801 (a function to those who use it)
    def __init__(self, n: SupportsIndex) -> None: ...
    def __enter__(self) -> num_threads: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = ...,
        value: BaseException | None = ...,
        traceback: TracebackType | None = ...,
    ) -> None: ...
