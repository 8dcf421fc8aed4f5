"""Owns the description of an installation: what bug reports and benchmarks are to carry."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy

from fastdrop._isa import BUILD, COMPILER, active_isa, available_isas, failures
from fastdrop._threads import get_num_threads

__version__ = version("fastdrop")

STREAM_VERSION = 2


def description() -> dict[str, str]:
    """What is installed and in use, by name."""
    rows = {
        "fastdrop": __version__,
        "stream version": str(STREAM_VERSION),
        "instruction set in use": active_isa(),
        "instruction sets available": ", ".join(available_isas()),
        "threads": str(get_num_threads()),
        "compiler": COMPILER,
        "build": BUILD,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": numpy.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
    }
    rows |= {f"{name} kernels not loaded": why for name, why in failures.items()}
    return rows


def get_include() -> str:
    """The folder of ``fastdrop.h``, the public interface in C, for a compiler's ``-I``.

    Returns
    -------
    str

    Examples
    --------
    >>> import fastdrop, pathlib
    >>> pathlib.Path(fastdrop.get_include(), "fastdrop.h").is_file()
    True
    """
    return str(Path(__file__).parent / "include")


def show_config() -> None:
    """Prints what is installed and in use, for bug reports.

    The version, the version of the random stream, the instruction set in use and those available,
    the number of threads, the compiler, the kind of build, and the versions of Python and NumPy.

    Examples
    --------
    >>> import fastdrop
    >>> fastdrop.show_config()  # doctest: +ELLIPSIS
    fastdrop ...
    """
    rows = description()
    print(f"fastdrop {rows.pop('fastdrop')}")
    for name, value in rows.items():
        print(f"  {name}: {value}")
