"""Applies each fault of tests/faults to a copy of the checkout, where the tests it names must fail.

Only `make faults` runs this file, in about an hour. It rebuilds the modules that a fault changes.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import sanitizers
from planted_faults import FAULTS

import fastdrop
from fastdrop import _isa

ROOT = pathlib.Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "asan",
    "debug",
    "fuzz",
    "matrix",
    "wheels",
)

pytestmark = pytest.mark.skipif(_isa.BUILD != "release", reason="builds its own copies")


def build(folder, name="release"):
    # The copy has a release build.
    force = ["--force"] if name != "release" else []
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *force],
        cwd=folder,
        env=os.environ | {"FASTDROP_BUILD": name},
        check=True,
        capture_output=True,
        text=True,
    )


def environment(folder, build):
    """The environment in which programs import the copy from any folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
    # Hypothesis uses the same examples each time.
    clean |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    if build == "asan":
        libraries = map(sanitizers.path_of, sanitizers.LIBRARIES[sanitizers.MEMORY])
        clean |= {"FASTDROP_BUILD": build, "LD_PRELOAD": " ".join(libraries)}
        clean |= {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    return clean


def run(folder, tests, *options, build="release"):
    """pytest's exit code, or minus the signal that ended it, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        + [f"tests/{test}" for test in tests],
        cwd=folder,
        env=environment(folder, build),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A built copy of the checkout, to which faults are applied."""
    folder = tmp_path_factory.mktemp("copy") / "checkout"
    # With the files' times, so that only changes are built.
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    build(folder)
    where = "import fastdrop, fastdrop._dropout as built; print(fastdrop.__file__, built.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", where],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.count(str(folder)) == 2, told.stdout
    return folder


def test_without_a_fault_all_are_green(copy):
    code, output = run(copy, sorted({test for fault in FAULTS for test in fault.tests}))
    assert code == 0, output[-5000:]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.patch.stem)
def test_a_planted_fault_is_seen(copy, tmp_path, fault):
    if fault.isa not in fastdrop.available_isas():
        pytest.skip(f"this CPU has no {fault.isa}")
    planted = tmp_path / "checkout"
    shutil.copytree(copy, planted)
    done = subprocess.run(
        ["git", "apply", str(fault.patch)],
        cwd=planted,
        # If the copy is inside a repository, git would look for the files there.
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{fault.patch.name} no longer fits: {done.stderr}"
    if fault.build == "asan":
        sanitizers.skip_without(sanitizers.MEMORY)
    build(planted, fault.build)
    blind = []
    for test in fault.tests:
        code, output = run(planted, [test], "-x", build=fault.build)
        if code == 0 and " passed" not in output:
            continue  # all tests are skipped, since a program is missing
        # The tests failed or crashed; pytest's other exit codes are usage errors.
        if code != 1 and code >= 0:
            blind.append(f"{test}: exit code {code}\n{output[-3000:]}")
    shutil.rmtree(planted)
    assert not blind, "\n".join(blind)
