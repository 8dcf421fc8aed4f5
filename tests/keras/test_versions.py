"""The oldest and the newest TensorFlow and Keras that are supported, each in an environment of its
own, into which the library is built from its sources."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
VERSIONS = {
    "oldest": ["tensorflow==2.16.*", "keras==3.11.*"],
    "newest": ["tensorflow", "keras"],
}
TESTS = ["test_layer_values", "test_layer_gradients", "test_layer_state", "test_bridges"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="native operations are for Linux"),
]


# Once is enough: in there, each test runs with both.
@pytest.mark.parametrize("bridge", ["native"], indirect=True)
@pytest.mark.parametrize("versions", VERSIONS)
def test_versions(bridge, versions, tmp_path):
    if versions == "oldest" and sys.version_info >= (3, 13):
        pytest.skip("TensorFlow 2.16 is for Python 3.12 at most")
    sources = ["fastdrop", "fastdrop_keras", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    tests = ["tests", "docs", "bench"]
    project = tmp_path / "project"
    for name in sources + tests:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        project.mkdir(exist_ok=True)
        copy(ROOT / name, project / name)
    for built in project.rglob("*.so"):
        built.unlink()
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")

    def run(*command):
        done = subprocess.run(
            [python, "-m", *command], cwd=project, capture_output=True, text=True, env=clean
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTDROP_", "PYTHON"))}
    run("pip", "install", "--quiet", *VERSIONS[versions], "pytest", "hypothesis", "rich", ".")
    for name in ("fastdrop", "fastdrop_keras"):
        # So that the tests import what was installed.
        shutil.rmtree(project / name)
    # What other versions warn of is not looked at here; and the frozen files were made with a Keras
    # newer than the oldest, whose own layers cannot be loaded there.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not slow"]
    options += ["-k", "not version_0_1"]
    run("pytest", *options, *(f"tests/keras/{name}.py" for name in TESTS))
