"""The operations are compiled once for the installed PyTorch, or an error says what is missing."""

import os
import stat

import pytest

IMPORT = """
try:
    import fastdrop_torch
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("compiler", "part"),
    [("/nowhere/c++", "No such file or directory"), ("false", "exit code 1")],
)
def test_without_a_compiler_the_error_says_what_to_do(run_python, tmp_path, compiler, part):
    done = run_python(IMPORT, CXX=compiler, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    for hint in (part, compiler, "apt-get install g++", "CXX", "TORCH_EXTENSIONS_DIR"):
        assert hint in done.stdout
    assert "compiling its operations for PyTorch" in done.stderr
    assert not list(tmp_path.glob("cache/**/*.so"))


def test_a_compiled_library_is_used_again(run_python, tmp_path):
    """The second import needs no compiler. The first runs the real one through a script."""
    calls = tmp_path / "calls"
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\necho >> {calls}\nexec {os.environ.get("CXX", "c++")} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    cache = str(tmp_path / "a folder with spaces")
    for _ in range(2):
        done = run_python(IMPORT, CXX=str(script), TORCH_EXTENSIONS_DIR=cache)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert calls.read_text() == "\n"


def test_the_other_packages_import_no_pytorch(run_python):
    done = run_python("import fastdrop, fastdrop_keras, sys; print('torch' in sys.modules)")
    assert done.stdout.endswith("False\n"), done.stderr


def test_this_package_imports_no_tensorflow(run_python):
    done = run_python(
        "import fastdrop_torch, sys; print({'tensorflow', 'keras', 'jax'} & {*sys.modules})"
    )
    assert done.stdout == "set()\n", done.stderr
