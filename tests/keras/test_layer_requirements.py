"""Imports of `fastdrop_keras` without TensorFlow or Keras, or with another backend."""

import importlib.metadata

import pytest

import fastdrop
import fastdrop_keras

IMPORT = "import fastdrop_keras"


def error_of(process):
    assert process.returncode == 1
    return process.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("module", "name"), [("tensorflow", "TensorFlow"), ("keras", "Keras")])
def test_missing_package(run_python, module, name):
    error = error_of(run_python(f"import sys; sys.modules[{module!r}] = None; {IMPORT}"))
    assert error.startswith("ImportError: ")
    assert f"{name} is not installed" in error
    assert 'pip install "fastdrop[keras]"' in error


def test_an_import_error_inside_tensorflow_is_not_changed(run_python):
    break_it = """
import sys
class Breaker:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            raise ImportError("libtensorflow: cannot open shared object file")
sys.meta_path.insert(0, Breaker())
"""
    assert "cannot open shared object" in error_of(run_python(break_it + IMPORT))


def assert_says_what_to_do(error, backend):
    assert error.startswith("ImportError: ")
    assert "only Keras's backends 'tensorflow', 'torch' and 'jax'" in error
    assert repr(backend) in error
    assert "KERAS_BACKEND=tensorflow, KERAS_BACKEND=torch or KERAS_BACKEND=jax" in error


@pytest.mark.parametrize("backend", ["openvino", "numpy"])
def test_other_backend(run_python, backend):
    """The error is the same whether its package is installed, as NumPy is, or not (OpenVINO)."""
    assert_says_what_to_do(error_of(run_python(IMPORT, KERAS_BACKEND=backend)), backend)


def test_on_tensorflow_other_frameworks_are_not_imported(run_python):
    found = "{'torch', 'fastdrop_torch', 'fastdrop_jax'} & {*sys.modules}"
    done = run_python(f"{IMPORT}; import sys; sys.exit(bool({found}))")
    assert done.returncode == 0, done.stderr


STAND_INS = """
import sys
from types import SimpleNamespace
others = [
    SimpleNamespace(config=SimpleNamespace(backend=lambda: "openvino"), __spec__=None),
    SimpleNamespace(
        config=SimpleNamespace(backend=lambda: "tensorflow"), __version__="3.9.2", __spec__=None
    ),
]
for sys.modules["keras"] in others:
    try:
        import fastdrop_keras
    except ImportError as error:
        print(f"ImportError: {error}")
"""


def test_an_installed_keras_that_cannot_be_used(run_python):
    process = run_python(STAND_INS)
    assert process.returncode == 0, process.stderr
    of_another_backend, older = process.stdout.splitlines()
    assert_says_what_to_do(of_another_backend, "openvino")
    assert older.startswith("ImportError: ")
    assert "needs Keras 3.11 or newer" in older
    assert "Keras 3.9.2" in older
    assert "pip install --upgrade" in older


def test_the_public_names():
    installed = importlib.metadata.version("fastdrop")
    assert fastdrop_keras.__version__ == fastdrop.__version__ == installed
    for name in fastdrop_keras.__all__:
        assert hasattr(fastdrop_keras, name)
