"""Loads dropout's handler for XLA, and registers it with TensorFlow's XLA.

TensorFlow and jaxlib each have their own XLA. A program that XLA compiles calls the handler by its
name.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from fastdrop._api import _C_API

# The handler's name in programs.
NAME = "fastdrop_dropout"
LIBRARY = Path(__file__).parent / "libfastdrop_xla_handler.so"


def load() -> ctypes.CDLL:
    """Return the handler's library, which then has fastdrop's functions.

    Raises:
        ImportError: With the reason why the handler cannot be used.
    """
    if not LIBRARY.exists():
        where = f": it is for Linux, not {sys.platform}" if sys.platform != "linux" else ""
        raise ImportError(f"fastdrop's handler for XLA was not built{where}")
    try:
        library = ctypes.CDLL(str(LIBRARY))
        use = library.fastdrop_use
    except (OSError, AttributeError) as error:
        raise ImportError(f"fastdrop's handler for XLA cannot be loaded: {error}") from error
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer_of.restype = ctypes.c_void_p
    needed = use(ctypes.c_void_p(pointer_of(_C_API, b"fastdrop._C_API")))
    if needed:
        raise ImportError(
            f"fastdrop's handler for XLA needs version {needed} of fastdrop's C interface"
        )
    return library


def register(functions: int | None) -> str:
    """Register the handler, and return an empty string or the reason why not.

    `functions` is the address of XLA's functions, a `XLA_FFI_Api`.
    """
    try:
        registration = load().fastdrop_register
    except ImportError as reason:
        return str(reason)
    registration.restype = ctypes.c_char_p
    refusal = registration(ctypes.c_void_p(functions), NAME.encode())
    return refusal.decode(errors="replace") if refusal else ""
