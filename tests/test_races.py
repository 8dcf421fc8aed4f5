"""The pool of threads in plain C, under ThreadSanitizer: no races, no deadlocks, no lost items."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ["many_callers", "pauses", "forks", "forks_while_busy", "exit_while_busy"]

# ThreadSanitizer has fixed places for its own memory, which random addresses may take.
UNSHUFFLED = ["setarch", "-R"] if shutil.which("setarch") else []


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    """The path of the program, built with ThreadSanitizer."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc here (Debian: gcc, and libtsan2 for ThreadSanitizer)")
    program = tmp_path_factory.mktemp("native") / "pool_stress"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    source = ROOT / "tests" / "native" / "pool_stress.c"
    include = f"-I{ROOT / 'fastdrop'}"
    empty = program.with_suffix(".c")
    empty.write_text("int main(void) { return 0; }\n")
    probe = ["gcc", "-fsanitize=thread", str(empty), "-o", str(program)]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("gcc has no ThreadSanitizer here (Debian: libtsan2)")
    if subprocess.run([*UNSHUFFLED, str(program)], capture_output=True).returncode != 0:
        pytest.skip("ThreadSanitizer does not run here")
    command = ["gcc", *flags, "-fsanitize=thread", include, str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_pool(stress, name):
    done = subprocess.run(
        [*UNSHUFFLED, str(stress), name],
        # A fork beside threads is what is tested.
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0", "LD_PRELOAD": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
