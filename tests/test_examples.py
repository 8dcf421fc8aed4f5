"""Each example runs as users run it, but with less work."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), "--quick", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "digits.py",
        "drop_connect.py",
        "jax_transformer.py",
        "numpy_mlp.py",
        "torch_digits.py",
        "torch_transformer.py",
    }


def test_digits(tmp_path):
    picture = tmp_path / "digits.png"
    printed = run("digits.py", "--output", str(picture))
    for name in ("no dropout", "keras.layers.Dropout", "fastdrop_keras.Dropout"):
        assert name in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_numpy_mlp():
    assert "Largest relative error" in run("numpy_mlp.py")


def test_drop_connect():
    assert "connections dropped" in run("drop_connect.py")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("torch_digits.py", "fastdrop_torch.Dropout"),
        ("torch_transformer.py", "the same, and fused"),
    ],
)
def test_torch(name, ours):
    pytest.importorskip("torch")
    assert ours in run(name)


@pytest.mark.parametrize("wrong", ["1", "none"])
def test_digits_needs_seeds_for_a_spread(wrong):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "digits.py"), "--seeds", wrong],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "--seeds" in done.stderr


def test_jax():
    pytest.importorskip("flax")
    assert "fastdrop_jax.nnx.Dropout" in run("jax_transformer.py")
