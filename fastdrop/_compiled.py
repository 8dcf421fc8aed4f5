"""Owns what is said of compiled modules that are missing, damaged or of another Python."""

import os
import struct
from pathlib import Path

_FOLDER = Path(__file__).parent

REPAIR = (
    "In a checkout, build it again with: python setup.py build_ext --inplace. Elsewhere, install "
    "it again, for example with: pip install --force-reinstall --no-deps fastdrop"
)


def is_cut_short(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends before its own header says: the system's loader would crash on some.

    That is what a full disk or an interrupted copy leaves behind.
    """
    with open(path, "rb") as file:
        header = file.read(64)
        size = os.fstat(file.fileno()).st_size
    # What is no 64-bit ELF file is left to the loader, which refuses it in words.
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    # The table of sections is the last thing in a file: its place, and its entries.
    place, entry_size, entries = struct.unpack_from("<Q10xHH", header, 0x28)
    return bool(size < place + entry_size * entries)


def check() -> None:
    """Raise an ImportError where a compiled module would take the process down with it."""
    for path in _FOLDER.glob("*.so"):
        if is_cut_short(path):
            raise ImportError(
                f"fastdrop's compiled module {path} is damaged: the file is cut short. {REPAIR}"
            )


def explained(error: ImportError) -> ImportError:
    """The error, with what to do where it is of a compiled module of this package."""
    # The system's loader names the file, Python's finders the module.
    name = error.name or ""
    if error.path is not None and Path(error.path).is_relative_to(_FOLDER):
        name = f"fastdrop.{name.rpartition('.')[2]}"
    if not name.startswith("fastdrop."):
        return error
    others = sorted(path.name for path in _FOLDER.glob(f"{name.rpartition('.')[2]}.*.so"))
    found = f", and of it there is {', '.join(others)}" if others else ""
    return ImportError(
        f"fastdrop's compiled module {name} is missing or cannot be loaded: {error}{found}. "
        f"{REPAIR}",
        name=name,
        path=error.path,
    )
