from contextlib import AbstractContextManager

BUILD: str
COMPILER: str
VARIABLE: str
failures: dict[str, str]

def available_isas() -> tuple[str, ...]: ...
def active_isa() -> str: ...
def using(name: str) -> AbstractContextManager[None]: ...
