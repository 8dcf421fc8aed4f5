"""If the native operations are missing or damaged, `numpy_function` replaces them with a reason."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop
import fastdrop_keras

NATIVE = "libfastdrop_native_op.so"
USE = """
import numpy as np, tensorflow as tf, fastdrop, fastdrop_keras
fastdrop_keras.show_config()
y = fastdrop_keras.Dropout(0.5, seed=3)(tf.ones((5, 7)), training=True)
want, _ = fastdrop.dropout(np.ones((5, 7), "f4"), 0.5, seed=3)
assert np.array_equal(y, want)
"""
DAMAGES = {
    "missing": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:5000]),
}
REASONS = {"missing": "it was not built", "garbage": "cannot load it", "cut short": "is cut short"}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="native operations are for Linux"),
    # In subprocesses, the damage determines the bridge.
    pytest.mark.parametrize("bridge", ["native"], indirect=True),
]


@pytest.fixture
def use(tmp_path):
    """Run the layers of a damaged copy in a fresh interpreter: `use(damage, **environment)`."""

    def use(damage, **environment):
        shutil.copytree(Path(fastdrop_keras.__file__).parent, tmp_path / "fastdrop_keras")
        (tmp_path / "fastdrop").symlink_to(Path(fastdrop.__file__).parent)
        DAMAGES[damage](tmp_path / "fastdrop_keras" / NATIVE)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
        return subprocess.run(
            [sys.executable, "-c", USE],
            env=clean | {"PYTHONPATH": str(tmp_path)} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return use


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_numpy_function_bridge_replaces_a_damaged_bridge(bridge, use, damage):
    done = use(damage)
    assert done.returncode == 0, done.stderr
    assert "numpy_function (native not loaded: " in done.stdout
    assert REASONS[damage] in done.stdout


OLDER = """
import ctypes, fastdrop
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
head = (ctypes.c_uint32 * 50)(0, 200, 2)
fastdrop._C_API = new(ctypes.addressof(head), b"fastdrop._C_API", None)
"""


def test_an_older_interface_is_refused(bridge, run_python):
    done = run_python(OLDER + USE)
    assert done.returncode == 0, done.stderr
    assert (
        "numpy_function (native not loaded: it needs version 1 of fastdrop's C interface, and 0 is "
        "installed)\n"
    ) in done.stdout


def test_a_damaged_bridge_that_was_requested(bridge, use):
    done = use("cut short", FASTDROP_KERAS_BRIDGE="native")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "is cut short" in last
    assert "FASTDROP_KERAS_BRIDGE='native'" in last
