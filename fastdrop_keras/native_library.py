"""The library of native operations: loaded if it is there, or the reason why it is not."""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from pathlib import Path
from typing import Any

import tensorflow as tf

import fastdrop
from fastdrop import _compiled

_PATH = Path(__file__).parent / f"_native_op{sysconfig.get_config_var('EXT_SUFFIX')}"


def _load() -> tuple[Any, Any, str]:
    """Return the operations, the library's own functions, and else the reason."""
    if not _PATH.exists():
        where = (
            "" if sys.platform == "linux" else f", which is for Linux only and not {sys.platform}"
        )
        return None, None, f"it was not built{where}"
    if _compiled.is_cut_short(_PATH):
        return None, None, f"{_PATH} is cut short"
    try:
        operations = tf.load_op_library(str(_PATH))
        functions = ctypes.CDLL(str(_PATH))
    except (tf.errors.OpError, OSError) as error:
        return None, None, f"TensorFlow {tf.__version__} cannot load it: {error}"
    functions.fastdrop_use.argtypes = [ctypes.c_void_p]
    functions.fastdrop_use.restype = ctypes.c_int
    functions.fastdrop_new_dial.argtypes = [ctypes.c_int64, ctypes.c_double]
    functions.fastdrop_new_dial.restype = ctypes.c_void_p
    functions.fastdrop_turn_dial.argtypes = [ctypes.c_void_p, ctypes.c_double]
    functions.fastdrop_turn_dial.restype = None
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer_of.restype = ctypes.c_void_p
    interface = pointer_of(fastdrop._C_API, b"fastdrop._C_API")
    needed = functions.fastdrop_use(interface)
    if needed:
        version = ctypes.c_uint32.from_address(interface).value
        why = f"it needs version {needed} of fastdrop's C interface, and {version} is installed"
        return None, None, why
    return operations, functions, ""


# The Python functions that make the operations, the library's C functions, both None where it is
# not loaded; and then why.
OPERATIONS, FUNCTIONS, WHY_NOT = _load()
