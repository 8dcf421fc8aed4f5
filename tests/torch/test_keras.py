"""The Keras layers on PyTorch: the tests of tests/keras_torch, in processes with that backend."""

import os
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent.parent / "keras_torch"


def run_with_pytorch(file):
    """Run the tests of a file: a process has one backend of Keras."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--show-capture=no"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, FOLDER / file],
        cwd=FOLDER.parent.parent,
        env=os.environ | {"KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_the_layers_on_pytorch():
    run_with_pytorch("test_layers.py")


def test_models_on_pytorch():
    run_with_pytorch("test_models.py")


def test_recurrent_layers_on_pytorch():
    run_with_pytorch("test_recurrent.py")


def test_every_file_is_run():
    files = {path.name for path in FOLDER.glob("test_*.py")}
    assert files == {"test_layers.py", "test_models.py", "test_recurrent.py"}
