"""Explains import errors of compiled modules: missing, damaged, or built for another Python."""

import os
import struct
from pathlib import Path

_FOLDER = Path(__file__).parent

REPAIR = (
    "In a checkout, build it again with: python setup.py build_ext --inplace. Elsewhere, install "
    "it again, for example with: pip install --force-reinstall --no-deps fastdrop"
)


def is_cut_short(path: str | os.PathLike[str]) -> bool:
    """Whether an ELF file is shorter than its header says, as after an interrupted copy.

    The system's loader crashes on some of these files.
    """
    with open(path, "rb") as file:
        header = file.read(64)
        size = os.fstat(file.fileno()).st_size
    # The loader reports an error for any other kind of file.
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    # The section header table is the last part of a file.
    offset, entry_size, entries = struct.unpack_from("<Q10xHH", header, 0x28)
    return bool(size < offset + entry_size * entries)


def check() -> None:
    """Raise an ImportError if a compiled module is cut short, before loading it can crash."""
    for path in _FOLDER.glob("*.so"):
        if is_cut_short(path):
            raise ImportError(
                f"fastdrop's compiled module {path} is damaged: the file is cut short. {REPAIR}"
            )


def explained(error: ImportError) -> ImportError:
    """An error that says how to repair a compiled module of this package; other errors as is."""
    # The system's loader names the file, Python's finders name the module.
    name = error.name or ""
    if error.path is not None and Path(error.path).is_relative_to(_FOLDER):
        name = f"fastdrop.{name.rpartition('.')[2]}"
    if not name.startswith("fastdrop."):
        return error
    others = sorted(path.name for path in _FOLDER.glob(f"{name.rpartition('.')[2]}.*.so"))
    found = f" (found {', '.join(others)})" if others else ""
    return ImportError(
        f"fastdrop's compiled module {name} is missing or cannot be loaded: {error}{found}. "
        f"{REPAIR}",
        name=name,
        path=error.path,
    )
