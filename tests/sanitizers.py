"""Builds and runs programs with gcc's sanitizers, and skips tests without a sanitizer."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matrix
import pytest

ROOT = Path(__file__).parent.parent
RACES = "thread"
MEMORY = "address,undefined"
# Another thread may hold AddressSanitizer's locks at a fork.
UNDEFINED = "undefined"
LIBRARIES = {RACES: ["libtsan.so"], MEMORY: ["libasan.so", "libubsan.so"]}
BUILDS = {RACES: "tsan", MEMORY: "asan"}

# ThreadSanitizer needs fixed addresses, which randomization may use.
UNSHUFFLED = ["setarch", "-R"] if shutil.which("setarch") else []


def skip_without(sanitizer):
    """Skip the test if gcc lacks the sanitizer or cannot run it."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc here (Debian: gcc, and libtsan2 for ThreadSanitizer)")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "empty")
        source = program.with_suffix(".c")
        source.write_text("int main(void) { return 0; }\n")
        probe = ["gcc", f"-fsanitize={sanitizer}", str(source), "-o", str(program)]
        if subprocess.run(probe, capture_output=True).returncode != 0:
            pytest.skip(f"gcc has no sanitizer for {sanitizer} here (Debian: libtsan2, libasan8)")
        if run([program], sanitizer, preload="").returncode != 0:
            pytest.skip(f"the sanitizer for {sanitizer} does not run here")


def compile_program(source, to, sanitizer, *folders):
    """Build a C program, with headers from these folders of the checkout."""
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    include = [f"-I{ROOT / folder}" for folder in folders]
    source = ROOT / "tests" / "native" / source
    subprocess.run(["gcc", *flags, *include, str(source), "-o", str(to)], check=True)


def build_modules(folder, sanitizer):
    """Build the packages outside the checkout; return the folder to import them from."""
    matrix.copy(matrix.SOURCES, folder)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "lib"],
        cwd=folder,
        env=os.environ | {"FASTDROP_BUILD": BUILDS[sanitizer], "LD_PRELOAD": ""},
        check=True,
    )
    return folder / "lib"


def path_of(library):
    find = ["gcc", f"-print-file-name={library}"]
    return subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()


def run(command, sanitizer, options="", preload=None, timeout=120, **environment):
    """Run a program built for the sanitizer, or preload the sanitizer's library."""
    if preload is None:
        preload = " ".join(map(path_of, LIBRARIES[sanitizer]))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
    # Other tests measure leaks: an interpreter does not free all of its memory at exit.
    settings = {
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode=66:{options}",
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode=66:{options}",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
        "LD_PRELOAD": preload,
    }
    return subprocess.run(
        [*UNSHUFFLED, *map(str, command)],
        env=clean | settings | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
