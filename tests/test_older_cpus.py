"""The built modules run under qemu on x86-64 CPUs without newer instruction sets.

An instruction that a module must not have ends the run with SIGILL. TensorFlow's wheels need AVX,
so test_instruction_sets.py checks fastdrop_keras's native operations instead.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import pytest

from fastdrop import _isa

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
QEMU = "qemu-x86_64"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64"), reason="needs an x86-64 Python"
    ),
    pytest.mark.skipif(
        shutil.which(QEMU) is None, reason=f"needs {QEMU}: apt-get install qemu-user"
    ),
    pytest.mark.skipif(_isa.BUILD in ("asan", "tsan"), reason="qemu does not run sanitizers"),
]

# The instruction sets for CPUs without AVX, with AVX only, and with AVX2.
CHOICES = {
    "Nehalem": ["portable"],
    "SandyBridge": ["portable"],
    "Haswell": ["avx2", "portable"],
}


def run_on(cpu, *arguments, timeout=900, **environment):
    """Run a Python program on this CPU. Its own child processes run on the real CPU."""
    if cpu == "Haswell":
        version = subprocess.run([QEMU, "--version"], capture_output=True, text=True).stdout
        if tuple(map(int, re.search(r"(\d+)\.(\d+)", version).groups())) < (7, 2):
            pytest.skip("needs qemu 7.2, the first that emulates AVX2")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
    return subprocess.run(
        [QEMU, "-cpu", cpu, sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_tests(cpu, *arguments):
    done = run_on(cpu, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("cpu", CHOICES)
def test_the_best_instruction_set_of_the_cpu_is_chosen(cpu):
    code = "import fastdrop; print(*fastdrop.available_isas(), fastdrop._isa.active_isa())"
    done = run_on(cpu, "-c", code)
    names = CHOICES[cpu]
    assert done.stdout.split() == [*names, names[0]], done.stderr


@pytest.mark.parametrize("cpu", [cpu for cpu, names in CHOICES.items() if "avx2" not in names])
def test_an_instruction_set_that_the_cpu_lacks_is_refused(cpu):
    done = run_on(cpu, "-c", "import fastdrop", FASTDROP_ISA="avx2")
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: FASTDROP_ISA='avx2' is not")
    assert error.endswith("the choices are portable")


def test_known_answers_and_frozen_results_without_avx():
    run_tests(
        "Nehalem",
        *("tests/test_stream.py::test_known_bits", "tests/test_stream.py::test_known_digests"),
        "tests/test_stream.py::test_frozen_vectors[portable-stored-2]",
        "tests/test_frozen_results.py::test_every_operation",
    )


@pytest.mark.parametrize("file", ["test_mask.py", "test_fused.py", "test_bad_input.py"])
def test_the_public_functions_without_avx(file):
    run_tests("Nehalem", f"tests/{file}")


def test_frozen_results_with_avx2():
    """The emulator runs the AVX2 module on machines without AVX2."""
    run_tests("Haswell", "tests/test_frozen_results.py", "-k", "every_operation and avx2")
