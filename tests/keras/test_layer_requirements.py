"""Importing `fastdrop_keras` without TensorFlow or Keras, or with another backend."""

import pytest

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


def test_a_fault_inside_tensorflow_is_shown_as_it_is(run_python):
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
    assert "only Keras's TensorFlow backend" in error
    assert repr(backend) in error
    assert "KERAS_BACKEND=tensorflow" in error


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_other_backend(run_python, backend):
    """Whether or not what the backend needs is installed."""
    assert_says_what_to_do(error_of(run_python(IMPORT, KERAS_BACKEND=backend)), backend)


def test_other_backend_that_loads(run_python):
    loads = """
import sys, types
config = types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = types.SimpleNamespace(config=config, __spec__=None)
"""
    assert_says_what_to_do(error_of(run_python("import tensorflow" + loads + IMPORT)), "jax")


def test_older_keras(run_python):
    older = """
import sys, types
config = types.SimpleNamespace(backend=lambda: "tensorflow")
sys.modules["keras"] = types.SimpleNamespace(config=config, __version__="3.9.2", __spec__=None)
"""
    error = error_of(run_python("import tensorflow" + older + IMPORT))
    assert error.startswith("ImportError: ")
    assert "needs Keras 3.11 or newer" in error
    assert "Keras 3.9.2" in error
    assert "pip install --upgrade" in error


def test_the_public_names(run_python):
    code = (
        "import fastdrop, fastdrop_keras as fk\n"
        "from importlib.metadata import version\n"
        "assert fk.__version__ == fastdrop.__version__ == version('fastdrop')\n"
        "for name in fk.__all__: getattr(fk, name)\n"
    )
    process = run_python(code)
    assert process.returncode == 0, process.stderr
