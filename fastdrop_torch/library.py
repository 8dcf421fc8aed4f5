"""Compiles the operations for the installed PyTorch, once, and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

import fastdrop

SOURCE = Path(__file__).parent / "operations.cpp"


def _command() -> list[str]:
    """Return the compiler's command, except for the output."""
    system = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    return [
        os.environ.get("CXX", "c++"),
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{fastdrop.get_include()}",
        *(option for path in cpp_extension.include_paths() for option in ("-isystem", path)),
        str(SOURCE),
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        "-ltorch_cpu",
        "-lc10",
        *system,
    ]


def _path(command: list[str]) -> Path:
    """Return the library's path: PyTorch's folder for extensions, and a name for each version."""
    made_from = hashlib.sha256()
    header = Path(fastdrop.get_include(), "fastdrop.h")
    for part in (torch.__version__, *command, SOURCE.read_text(), header.read_text()):
        made_from.update(part.encode())
    folder = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(folder, "fastdrop_torch", f"operations-{made_from.hexdigest()[:16]}.so")


def _compile(command: list[str], path: Path) -> None:
    """Compile the library in a temporary folder beside its path, then move it there."""
    print(
        f"fastdrop_torch: compiling its operations for PyTorch {torch.__version__}, once for each "
        "version (half a minute)",
        file=sys.stderr,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            output = Path(folder, "operations.so")
            done = subprocess.run(
                [*command, "-o", str(output)], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                # Atomic: another process may compile the same.
                output.replace(path)
                return
            problem = done.stderr.strip()[-2000:] or f"exit code {done.returncode}"
    except OSError as error:
        problem = str(error)
    raise ImportError(
        "fastdrop_torch must compile its operations for the installed PyTorch, and could not. It "
        "needs a C++20 compiler (on Debian or Ubuntu: apt-get install g++; or set CXX) and a "
        f"folder to write to, {path.parent} (or set TORCH_EXTENSIONS_DIR).\n"
        f"{' '.join(command)}\n{problem}"
    )


def _loaded() -> ctypes.CDLL:
    """Load the operations, and give them fastdrop's C interface."""
    if sys.platform == "win32":
        raise ImportError("fastdrop_torch is for Linux and macOS, not Windows")
    command = _command()
    path = _path(command)
    if not path.exists():
        _compile(command, path)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer_of.restype = ctypes.c_void_p
    needed = library.fastdrop_use(ctypes.c_void_p(pointer_of(fastdrop._C_API, b"fastdrop._C_API")))
    if needed:
        raise ImportError(
            f"fastdrop_torch needs version {needed} of fastdrop's C interface: install a newer "
            "fastdrop"
        )
    return library


LIBRARY = _loaded()
