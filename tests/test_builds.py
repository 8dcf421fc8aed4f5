"""Builds with sanitizers or checks: tests run the requested build, and it detects faults."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastdrop import _isa

ROOT = Path(__file__).parent.parent

needs_asan = pytest.mark.skipif(
    _isa.BUILD != "asan", reason="only `make test-asan` has AddressSanitizer"
)

CALL_A_KERNEL = f"""
import ctypes, importlib, sys
sys.path.append({str(ROOT / "tests")!r})
import fastdrop
from fastdrop import _isa
from test_guard_pages import Key, Operands, table_of
kernels = table_of(_isa.active_isa())
key = Key((1, 2, 3, 4), 2**47)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.calloc.restype, libc.calloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t] * 2
def draw(size, bits, shift=0):
    kernels.draw(ctypes.addressof(key) + shift, 0, size, bits)
def use(size, to, from_, bits):
    # float16 with given bits.
    on = Operands(0, size=size, to=to, from_=from_, bits=bits, scale=2.0, scale_f32=2.0)
    kernels.use(None, 0, ctypes.addressof(on))
"""


def test_the_requested_build_is_tested():
    assert os.environ.get("FASTDROP_BUILD", "release") == _isa.BUILD


def test_an_unknown_build_is_refused():
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"FASTDROP_BUILD": "fast"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "FASTDROP_BUILD must be one of release, asan, tsan, debug, got 'fast'" in done.stderr


def build(folder, compiler, lib="lib"):
    """The output of `setup.py build` with our script as the compiler."""
    program = folder / "compiler"
    if compiler:
        program.write_text(f'#!/bin/sh\n{compiler}\nexec {shutil.which("gcc")} "$@" -O0 -w\n')
        program.chmod(0o755)
    folders = ["--build-base", str(folder / "build"), "--build-lib", str(folder / lib)]
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build", *folders],
        cwd=ROOT,
        env=os.environ | {"CC": str(program), "FASTDROP_BUILD": "release", "LD_PRELOAD": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["", "echo 'Python.h: No such file' >&2; exit 1"])
def test_without_a_compiler_the_build_says_what_to_install(tmp_path, compiler):
    done = build(tmp_path, compiler)
    assert done.returncode != 0
    assert f"the compiler '{tmp_path / 'compiler'}' did not compile" in done.stderr
    assert "apt-get install gcc python3-dev" in done.stderr


@pytest.fixture(scope="module")
def without_avx512(tmp_path_factory):
    """The folder and the output of a build by a compiler that does not know AVX-512."""
    if platform.machine() != "x86_64":
        pytest.skip("other machines have one build for all")
    if not shutil.which("gcc"):
        pytest.skip("no gcc here")
    refuses = 'case "$*" in *x86-64-v4*) echo "bad value for -march=" >&2; exit 1;; esac'
    folder = tmp_path_factory.mktemp("without_avx512")
    return folder, build(folder, refuses)


@pytest.mark.slow
def test_kernels_that_the_compiler_cannot_build_are_left_out(without_avx512, run_python):
    folder, done = without_avx512
    assert done.returncode == 0, done.stderr
    assert (
        "this compiler cannot build the avx512 kernels (it refused -march=x86-64-v4" in done.stderr
    )
    assert "avx2" not in done.stderr
    code = """
import sys, numpy as np, fastdrop
assert fastdrop.__file__.startswith(sys.path[1]), fastdrop.__file__
assert "avx512" not in fastdrop.available_isas(), fastdrop.available_isas()
assert set(fastdrop.dropout(np.ones(1000), 0.5)[0]) == {0.0, 2.0}
"""
    done = run_python(code, PYTHONPATH=str(folder / "lib"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("outdated", [False, True])
@pytest.mark.skipif(sys.platform != "linux", reason="the libraries are for Linux")
def test_builds_for_several_pythons_share_the_libraries(without_avx512, outdated):
    folder, _ = without_avx512
    other = folder / f"other-{outdated}"
    # The build of another Python, which has all but the libraries.
    shutil.copytree(folder / "lib", other, ignore=shutil.ignore_patterns("lib*.so"))
    libraries = sorted(path.relative_to(folder / "lib") for path in folder.glob("lib/*/lib*.so"))
    assert len(libraries) == 2
    if outdated:
        for path in folder.glob("build/lib.*/lib*.so"):
            os.utime(path, (0, 0))
    done = build(folder, 'case "$*" in *native_op*|*xla_handler*) exit 1;; esac', other.name)
    assert done.returncode == 0, done.stderr
    found = sorted(path.relative_to(other) for path in other.glob("*/lib*.so"))
    assert found == ([] if outdated else libraries)
    for name in found:
        assert (other / name).read_bytes() == (folder / "lib" / name).read_bytes()


# For size 801, memory that is one byte, element or bit too short.
TOO_SHORT = {
    "a mask to write": ("draw(SIZE, libc.malloc(100))", "WRITE"),
    "an array to write": (
        "use(SIZE, libc.malloc(1600), libc.calloc(1, 1700), libc.calloc(1, 110))",
        "WRITE",
    ),
    "an array to read": (
        "use(SIZE, libc.malloc(1700), libc.calloc(1, 1600), libc.calloc(1, 110))",
        "READ",
    ),
    "a mask to read": (
        "use(SIZE, libc.malloc(1700), libc.calloc(1, 1700), libc.calloc(1, 100))",
        "READ",
    ),
}


@needs_asan
@pytest.mark.parametrize("what", TOO_SHORT)
def test_address_sanitizer_detects_a_byte_too_many(run_python, what):
    call, how = TOO_SHORT[what]
    code = CALL_A_KERNEL + call
    assert run_python(code.replace("SIZE", "800")).returncode == 0
    done = run_python(code.replace("SIZE", "801"))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"\n{how} of size " in done.stderr


@needs_asan
def test_address_sanitizer_detects_an_access_beyond_a_mask(run_python):
    """The mask's buffer has more bytes, up to a multiple of 64."""
    code = """
import ctypes, fastdrop
bits = fastdrop.draw_mask(80, 0.5).bits
ctypes.string_at(bits.ctypes.data, SIZE)
"""
    assert run_python(code.replace("SIZE", "10")).returncode == 0
    done = run_python(code.replace("SIZE", "11"))
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr


@needs_asan
def test_undefined_behaviour_sanitizer_detects_a_misaligned_word(run_python):
    code = CALL_A_KERNEL + "draw(32, libc.malloc(4), SHIFT)"
    assert run_python(code.replace("SHIFT", "0")).returncode == 0
    done = run_python(code.replace("SHIFT", "1"))
    assert done.returncode != 0
    assert "misaligned address" in done.stderr
