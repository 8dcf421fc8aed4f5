"""Defines the fixtures that several test files use, and hypothesis's profiles."""

import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import pytest

import fastdrop

# For imports of the helper modules and of `bench`; last, so that they shadow nothing.
TESTS = pathlib.Path(__file__).parent
sys.path += [str(TESTS), str(TESTS.parent)]

# A process has one backend of Keras. tests/torch/test_keras.py runs these in others.
_OF_BACKENDS = {"torch": "keras_torch", "jax": "keras_jax"}
collect_ignore = [
    name for backend, name in _OF_BACKENDS.items() if backend != os.environ.get("KERAS_BACKEND")
]

hypothesis.settings.register_profile(
    "local",
    deadline=None,
    # All examples of a test use the same instruction set, as intended.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
# The same examples at every run, so that failures are reproducible.
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("local"), derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items):
    """Refuse a test without parameters, which pytest would skip silently."""
    for item in items:
        for mark in item.iter_markers("skip"):
            if "empty parameter set" in mark.kwargs.get("reason", ""):
                raise pytest.UsageError(f"{item.nodeid} has no parameters")


@pytest.fixture(params=fastdrop.available_isas())
def isa(request):
    """Run the test once with each instruction set that this machine has."""
    with fastdrop._isa.using(request.param):
        yield request.param


@pytest.fixture
def stream_at():
    """A Stream at a given position: ``stream_at(seed, step)``."""

    def stream_at(seed, step=0):
        stream = fastdrop.Stream(seed)
        stream.state = {"seed": seed, "step": step}
        return stream

    return stream_at


@pytest.fixture
def run_python(tmp_path):
    """Run a program in a fresh interpreter: ``run_python(code, FASTDROP_ISA="portable")``."""

    # The timeout makes a child that hangs after a fork a failure.
    def run_python(code, timeout=120, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=clean | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run_python


# A child that is forked before fastdrop is imported is as good as a new interpreter.
IMPORT_IN_CHILDREN = """
import json, os, sys, warnings
import numpy
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with NumPy's threads
printed = []
for environment in {environments!r}:
    read, write = os.pipe()
    if not os.fork():
        os.environ.update(environment)
        os.dup2(write, 1)
        try:
            exec({code!r}, dict())
        except BaseException as error:
            print(f"{{type(error).__name__}}: {{error}}")
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    with open(read) as output:
        printed.append(output.read())
    os.wait()
print(json.dumps(printed))
"""


@pytest.fixture
def import_in(run_python):
    """Run a program that imports fastdrop in each environment, and return its output or error.

    ``import_in([{"FASTDROP_ISA": "portable"}, {}], code)``. All share one import of NumPy.
    """

    def import_in(environments, code="import fastdrop"):
        done = run_python(IMPORT_IN_CHILDREN.format(environments=environments, code=code))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return import_in
