"""Builds and tests the library with each available Python, NumPy, TensorFlow, PyTorch and JAX.

``python tests/matrix.py`` builds a wheel from the sources with each Python, installs it into a new
environment for each cell, runs some of the tests there, and prints a table. It exits with 1 if a
cell failed. Arguments choose cells by a part of their name.

All cells of a Python use one wheel, so one build of the native operations runs with several
versions of TensorFlow.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# What a build needs.
SOURCES = [
    "fastdrop",
    "fastdrop_jax",
    "fastdrop_keras",
    "fastdrop_torch",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
]
# The helper files of the tests, without the packages: tests must import the installed ones.
TESTS = ["tests", "docs", "bench", "pyproject.toml"]
NUMPY_TESTS = ("bad_input", "fused", "hostile", "mask", "seeds", "stream", "threads", "values")
KERAS_TESTS = ("layer_values", "layer_gradients", "layer_state", "bridges")
TORCH_TESTS = ("functions", "gradients", "compiled", "modules")
JAX_TESTS = ("functions", "transforms", "devices")
# A "t" means CPython without the GIL.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
LONGEST = 3600  # seconds that one command may take before it counts as hanging


class Cell(NamedTuple):
    """The packages of an environment, and its tests."""

    name: str
    python: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    oldest: str = "3.10"
    newest: str = "3.99"  # the newest Python that the requirements support


def numpy_cell(python: str, version: str, requirement: str, newest: str = "3.99") -> Cell:
    tests = tuple(f"tests/test_{name}.py" for name in NUMPY_TESTS)
    name = f"python {python}, numpy {version}"
    return Cell(name, python, (requirement, "ml_dtypes"), tests, newest=newest)


def keras_cell(version: str, *requirements: str, newest: str = "3.99") -> Cell:
    tests = tuple(f"tests/keras/test_{name}.py" for name in KERAS_TESTS)
    return Cell(f"tensorflow {version}", HERE, requirements, tests, newest=newest)


def torch_cell(version: str, requirement: str) -> Cell:
    tests = tuple(f"tests/torch/test_{name}.py" for name in TORCH_TESTS)
    return Cell(f"pytorch {version}", HERE, (requirement, "numpy"), tests)


def jax_cell(version: str, requirement: str) -> Cell:
    tests = tuple(f"tests/jax/test_{name}.py" for name in JAX_TESTS)
    # JAX exports programs by flatbuffers.
    return Cell(f"jax {version}", HERE, (requirement, "flatbuffers"), tests, oldest="3.11")


CELLS = [
    *(numpy_cell(python, "1.26", "numpy==1.26.*", newest="3.12") for python in PYTHONS),
    *(numpy_cell(python, "newest", "numpy") for python in PYTHONS),
    keras_cell("oldest", "tensorflow==2.16.*", "keras==3.11.*", newest="3.12"),
    keras_cell("2.18", "tensorflow==2.18.*", "keras==3.11.*", newest="3.12"),
    keras_cell("newest", "tensorflow", "keras"),
    torch_cell("oldest", "torch==2.9.*"),
    torch_cell("newest", "torch"),
    jax_cell("oldest", "jax==0.9.0"),
    jax_cell("newest", "jax"),
]


class FailedError(Exception):
    """A command of a cell failed; the message is the end of its output."""


class AbsentError(Exception):
    """A cell is not available on this machine; the message is the reason."""


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.rstrip("t").split("."))


def environment() -> dict[str, str]:
    """The caller's environment without variables that lead to another fastdrop or Python."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("FASTDROP_", "PYTHON"))}


def run(*command: str, cwd: Path, path: str | None = None) -> str:
    """The output of the command, which searches programs in `path`."""
    env = environment() | ({"PATH": path} if path else {})
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, env=env, timeout=LONGEST
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{' '.join(command[1:4])} took more than {LONGEST} s") from error
    if done.returncode != 0:
        output = done.stdout[-5000:] + done.stderr[-5000:]
        raise FailedError(f"{' '.join(command[1:4])} exited with {done.returncode}:\n{output}")
    return done.stdout


def interpreter(version: str) -> str:
    """The Python of this version in PATH or pyenv."""
    pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    candidates = [sys.executable] if version == HERE else []
    candidates += filter(None, [shutil.which(f"python{version}")])
    digits = version.rstrip("t")
    pattern = f"{digits}.*{version[len(digits) :]}"
    candidates += sorted(glob.glob(f"{pyenv}/versions/{pattern}/bin/python{version}"))
    ask = (
        "import sys, sysconfig\n"
        "free = sysconfig.get_config_var('Py_GIL_DISABLED')\n"
        "print('%d.%d' % sys.version_info[:2] + ('t' if free else ''))"
    )
    for candidate in candidates:
        # A shim of pyenv in PATH may have no Python.
        told = subprocess.run([candidate, "-c", ask], capture_output=True, text=True)
        if told.returncode == 0 and told.stdout.strip() == version:
            return candidate
    raise AbsentError(f"no Python {version} on this machine")


def copy(names: list[str], to: Path, root: Path = ROOT) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in names:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=ignore)
        else:
            shutil.copy(root / name, to / name)
    return to


def new_environment(python: str, folder: Path) -> str:
    """The interpreter of a new virtual environment."""
    run(python, "-m", "venv", str(folder), cwd=folder.parent)
    return str(folder / "bin" / "python")


def wheel(version: str, folder: Path) -> Path:
    """The wheel that a Python builds from the sources; built once for all its cells."""
    built = folder / f"wheel-{version}"
    if not built.exists():
        interpreter(version)  # before the copy
        return build_wheel(version, copy(SOURCES, folder / f"sources-{version}"), built)
    return next(built.glob("*.whl"))


def build_wheel(version: str, sources: Path, to: Path) -> Path:
    """The wheel that a Python builds in the folder `sources`, with the packages that it needs."""
    builder = new_environment(interpreter(version), to.with_name(f"builder-{version}"))
    run(builder, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(to), ".", cwd=sources)
    return next(to.glob("*.whl"))


def run_cell(cell: Cell, folder: Path) -> str:
    """The summary of the tests in a new environment."""
    if not number(cell.oldest) <= number(cell.python) <= number(cell.newest):
        raise AbsentError(f"not made for Python {cell.python}")
    built = wheel(cell.python, folder)
    own = folder / cell.name.replace(", ", "-").replace(" ", "-")
    tests = copy(TESTS, own / "tests")
    python = new_environment(interpreter(cell.python), own / "venv")
    install = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    run(*install, *cell.requirements, "pytest", "hypothesis", "rich", str(built), cwd=own)
    # Warnings of other versions are ignored. The oldest Keras cannot load the frozen files, which a
    # newer Keras wrote.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not slow"]
    options += ["-k", "not version_0_1"]
    output = run(python, "-m", "pytest", *options, *cell.tests, cwd=tests)
    names = [name.split("=")[0].split(".")[0] for name in cell.requirements if name != "ml_dtypes"]
    versions = run(
        python,
        "-c",
        "import sys\nfrom importlib.metadata import version\n"
        "print(*(f'{n} {version(n)}' for n in sys.argv[1:]), sep=', ')",
        *names,
        cwd=own,
    )
    return f"{versions.strip()}: {output.strip().splitlines()[-1].strip('= ')}"


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("cells", nargs="*", help="parts of the names of cells; all without one")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    # An earlier run may have built other sources.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = Console()
    table = Table("cell", "", "result")
    failures = []
    for cell in CELLS:
        if arguments.cells and not any(part in cell.name for part in arguments.cells):
            continue
        try:
            with console.status(f"{cell.name}: builds, installs and tests"):
                row = (cell.name, "[green]ok", run_cell(cell, folder))
        except AbsentError as why:
            row = (cell.name, "not here", str(why))
        except FailedError as why:
            failures.append(f"{cell.name}: {why}")
            row = (cell.name, "[red]failed", str(why).splitlines()[0])
        table.add_row(*row)
        console.print(*row)  # the table comes hours later
        shutil.rmtree(folder / cell.name.replace(", ", "-").replace(" ", "-"), ignore_errors=True)
    for failure in failures:
        console.print(failure, markup=False)
    console.print(table)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
