"""The kernels of every instruction set equal the reference, on this machine or an emulator.

``native/run_kernels.c`` is linked with the C code of one kernel module and without Python. NEON
runs under qemu if the CPU is not aarch64, and AVX-512's vocabulary in SIMDe's C code on any x86-64.
The instruction sets of this CPU run the same calls. The thread pool runs on Wine.
"""

import ast
import collections
import csv
import hashlib
import io
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig

import kernel_calls
import numpy as np
import pytest

import fastdrop
from fastdrop._isas import ISAS

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
MACHINE = platform.machine().lower()
FLAGS = {isa.name: isa.flags for isa in ISAS}

pytestmark = pytest.mark.slow

pytest.importorskip("Cython", reason="needs Cython, which `pip install -e '.[dev]'` brings")


def setup_constant(name):
    """A constant of setup.py, which cannot be imported, for builds with the same settings."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no constant {name}")


def needs(program, package):
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: apt-get install {package}")
    return program


def compiles(compiler, source):
    """Whether a compiler accepts a header."""
    command = [compiler, "-fsyntax-only", *include(), "-xc", "-"]
    return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0


def include():
    folders = [sysconfig.get_paths()["include"], *setup_constant("INCLUDE_DIRS")]
    return [f"-I{ROOT / folder}" for folder in folders]


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def native_compiler():
    return needs("gcc", "gcc libc6-dev"), [], []


def aarch64_compiler():
    if MACHINE in ("aarch64", "arm64"):
        return native_compiler()
    compiler = needs(
        "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
    )
    emulator = needs("qemu-aarch64", "qemu-user")
    if not compiles(compiler, "#include <Python.h>"):
        pytest.skip("needs Python's headers for aarch64: apt-get install libpython3-dev:arm64")
    # The emulator has no libraries of that machine.
    return compiler, ["-static"], [emulator]


def emulating_compiler():
    if MACHINE not in ("x86_64", "amd64"):
        pytest.skip("AVX-512 is emulated on x86-64 only")
    compiler, _, _ = native_compiler()
    if not compiles(compiler, "#include <simde/x86/avx512.h>"):
        pytest.skip("needs SIMDe's headers: apt-get install libsimde-dev")
    # For the baseline and without optimization: the test is about the vocabulary.
    return compiler, ["-O1", f"-I{TESTS / 'native' / 'emulated'}"], []


def this_cpus_compiler(isa):
    if isa not in fastdrop.available_isas():
        pytest.skip(f"this CPU has no {isa}")
    compiler, _, _ = native_compiler()
    return compiler, list(FLAGS[isa]), []


WAYS = {
    "portable": lambda: this_cpus_compiler("portable"),
    "avx2": lambda: this_cpus_compiler("avx2"),
    "avx512, emulated": emulating_compiler,
    "neon": aarch64_compiler,
}


@pytest.fixture(scope="module", params=WAYS)
def run_kernels(request, tmp_path_factory):
    """Run encoded calls with one instruction set's kernels: ``run_kernels(bytes) -> bytes``."""
    isa = request.param.partition(",")[0]
    compiler, flags, emulator = WAYS[request.param]()
    folder = tmp_path_factory.mktemp(isa)
    source, program = folder / f"{isa}.c", folder / "run_kernels"
    directives = [f"-X{name}={value}" for name, value in setup_constant("DIRECTIVES").items()]
    module = f"fastdrop._kernels.{isa}"
    cython = [sys.executable, "-m", "cython", *directives, "--module-name", module]
    run([*cython, f"fastdrop/_kernels/{isa}.pyx", "-o", source])
    prefix = "__pyx_f_" + "".join(f"{len(part)}{part}_" for part in module.split("."))
    run(
        [
            *(compiler, *setup_constant("COMPILE_ARGS"), *flags, *include(), "-Wno-psabi"),
            *(f'-DKERNELS="{source}"', f"-DKERNEL(name)={prefix}##name"),
            # The linker drops the functions that use Python, which no kernel calls.
            *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
            *(TESTS / "native" / "run_kernels.c", "-o", program),
        ]
    )

    def run_kernels(calls):
        done = subprocess.run([*emulator, program], input=calls, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr.decode().split() == [isa], "the kernels that were meant"
        return done.stdout

    return run_kernels


@pytest.fixture(scope="module")
def calls_and_results():
    """Many encoded calls, and the expected memory after each."""
    calls = list(kernel_calls.calls())
    encoded = b"".join(map(kernel_calls.encoded, calls))
    return calls, encoded, [kernel_calls.expected(call) for call in calls]


def test_every_kernel_against_the_reference(run_kernels, calls_and_results):
    calls, encoded, results = calls_and_results
    output = io.BytesIO(run_kernels(encoded))
    wrong = collections.Counter()
    for call, result in zip(calls, results, strict=True):
        for fault in kernel_calls.faults(call, result, output):
            kind = kernel_calls.KINDS[call["kind"]].name
            wrong[call["entry"], call["use"], kind, call["has_key"], fault] += 1
    assert output.read() == b""
    assert not wrong


def test_the_calls_cover_every_path(calls_and_results):
    """The comparison above needs calls that reach all parts of the kernels."""
    calls, _, results = calls_and_results
    combinations = {(call["entry"], call["use"], call["kind"]) for call in calls}
    assert len(combinations) == 1 + 7 + 3 * 4 + 2 * 4 + 4
    kept_shares = [result[2].size and np.unpackbits(result[2]).mean() for result in results]
    assert {0 < share < 1 for share in kept_shares} == {True, False}
    fields = ("place", "advance", "has_key", "streaming", "odd_float_modes", "alignment", "bit")
    for field in (*fields, "to_alignment", "first", "column"):
        assert len({call[field] for call in calls}) > 1, field


def test_frozen_vectors(run_kernels):
    with (TESTS / "data" / "vectors.csv").open(newline="") as lines:
        vectors = list(csv.DictReader(lines))
    calls = []
    for vector in vectors:
        size = int(vector["size"])
        call = kernel_calls.new_call(kernel_calls.Choices(), size, entry=kernel_calls.DRAW)
        call |= {"seed": int(vector["seed"], 16), "step": int(vector["step"])}
        call |= {"rate": float(vector["rate"]), "first": int(vector["offset"])}
        call |= {"place": kernel_calls.APART, "bits": np.zeros(-(-size // 8), np.uint8)}
        calls.append(call)
    output = io.BytesIO(run_kernels(b"".join(map(kernel_calls.encoded, calls))))
    guard = len(kernel_calls.GUARD)
    for vector, call in zip(vectors, calls, strict=True):
        output.read(8 + 2 * 2 * guard + guard)
        bits = output.read(call["bits"].size)
        output.read(guard + 2 * 2 * guard)
        assert hashlib.sha256(bits).hexdigest() == vector["sha256"], vector


@pytest.mark.long
@pytest.mark.parametrize("name", ["many_callers", "pauses"])
def test_the_thread_pool_on_windows(tmp_path, name):
    compiler = needs("x86_64-w64-mingw32-gcc-posix", "gcc-mingw-w64-x86-64-posix")
    wine = needs("wine", "wine wine64")
    program = tmp_path / "pool_stress.exe"
    flags = ["-O2", "-pthread", "-static", f"-I{ROOT / 'fastdrop'}"]
    run([compiler, *flags, TESTS / "native" / "pool_stress.c", "-o", program])
    done = subprocess.run(
        [wine, program, name],
        env=os.environ | {"WINEDEBUG": "-all"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
