"""Faults are planted in copies of the checkout: every test of the page of guarantees turns red.

What a test says of a promise is worth no more than the faults that it sees. `make faults` plants
all of those in planted_faults.py, one at a time, builds what they change, and runs the tests that
have to see them; it takes about an hour. What is quick to check is checked with every change: that
the faults still fit the sources, and that no test of the page is without one.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import sanitizers
from planted_faults import CONTROLS, FAULTS
from test_guarantees import named_tests

import fastdrop
from fastdrop import _isa

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "asan", "debug", "fuzz", "matrix"
)

release_only = pytest.mark.skipif(_isa.BUILD != "release", reason="builds its own copies")


def test_every_fault_fits_its_source():
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text().count(fault.old) == 1, fault.what
        assert fault.new != fault.old
        assert fault.tests
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


def test_every_test_of_the_page_sees_a_fault():
    named = {f"{file}::{name}" for file, name in named_tests()}
    planted = {test.partition("[")[0] for fault in FAULTS for test in fault.tests}
    # What says that tests are there to be run has no fault in the library to see.
    assert named - planted - set(CONTROLS) == set()
    assert set(CONTROLS) <= named - planted
    for test in planted | set(CONTROLS.values()):
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), test


def build(folder, name="release"):
    # What is there was built as a release.
    force = ["--force"] if name != "release" else []
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *force],
        cwd=folder,
        env=os.environ | {"FASTDROP_BUILD": name},
        check=True,
        capture_output=True,
        text=True,
    )


def surroundings(folder, build):
    """The environment in which programs find the copy, wherever they are started."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
    # Examples are the same each time.
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
        env=surroundings(folder, build),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The checkout in another folder, built there: what is planted is built on top of it."""
    folder = tmp_path_factory.mktemp("copy") / "checkout"
    # With the times of its files, so that nothing is built that is there.
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


@release_only
@pytest.mark.slow
def test_without_a_fault_all_are_green(copy):
    code, output = run(copy, sorted({test for fault in FAULTS for test in fault.tests}))
    assert code == 0, output[-5000:]


@release_only
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what.replace(" ", "-"))
def test_a_planted_fault_is_seen(copy, tmp_path, fault):
    if fault.isa not in fastdrop.available_isas():
        pytest.skip(f"this CPU has no {fault.isa}")
    planted = tmp_path / "checkout"
    shutil.copytree(copy, planted)
    source = planted / fault.file
    source.write_text(source.read_text().replace(fault.old, fault.new))
    if fault.build == "asan":
        sanitizers.skip_without(sanitizers.MEMORY)
    build(planted, fault.build)
    blind = []
    for test in fault.tests:
        code, output = run(planted, [test], "-x", build=fault.build)
        if code == 0 and " passed" not in output:
            continue  # all skipped, for want of a program
        # Failed, or taken down by what the fault does; not merely wrong to call.
        if code != 1 and code >= 0:
            blind.append(f"{test}: exit code {code}\n{output[-3000:]}")
    shutil.rmtree(planted)
    assert not blind, "\n".join(blind)
