"""Registers dropout's handler with a copy of XLA in this process.

TensorFlow and jaxlib have a copy each. A program that XLA compiles calls the handler by its name.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from pathlib import Path

from fastdrop._api import _C_API

# The handler's name in programs.
NAME = "fastdrop_dropout"
LIBRARY = Path(__file__).parent / f"_xla_handler{sysconfig.get_config_var('EXT_SUFFIX')}"


def register(functions: int | None) -> str:
    """Register the handler, and return an empty string or the reason why not.

    `functions` is the address of XLA's functions, a `XLA_FFI_Api`.
    """
    if not LIBRARY.exists():
        where = f", which is for Linux, not {sys.platform}" if sys.platform != "linux" else ""
        return f"the handler was not built{where}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        use, registration = library.fastdrop_use, library.fastdrop_register
    except (OSError, AttributeError) as error:
        return f"the handler cannot be loaded: {error}"
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer_of.restype = ctypes.c_void_p
    needed = use(ctypes.c_void_p(pointer_of(_C_API, b"fastdrop._C_API")))
    if needed:
        return f"the handler needs version {needed} of fastdrop's C interface"
    registration.restype = ctypes.c_char_p
    refusal = registration(ctypes.c_void_p(functions), NAME.encode())
    return refusal.decode(errors="replace") if refusal else ""
