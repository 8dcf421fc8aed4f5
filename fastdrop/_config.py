"""Describes the installation, for bug reports and benchmarks."""

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
    """The properties of the installation, by name."""
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
    """Return the folder of ``fastdrop.h``, the public C interface, for a compiler's ``-I``.

    Returns
    -------
    str
        The path of the folder.

    Examples
    --------
    >>> import fastdrop, pathlib
    >>> pathlib.Path(fastdrop.get_include(), "fastdrop.h").is_file()
    True
    """
    return str(Path(__file__).parent / "include")


def show_config() -> None:
    """Print the properties of the installation, for bug reports.

    It prints the versions of fastdrop, the random stream, Python and NumPy, the available
    instruction sets and the one in use, the number of threads, the compiler and the kind of build.

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
