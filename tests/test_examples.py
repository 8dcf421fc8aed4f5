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
    return done


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
    done = run("digits.py", "--output", str(picture))
    for name in ("no dropout", "keras.layers.Dropout", "fastdrop_keras.Dropout"):
        assert name in done.stdout
    assert "A fifth of the training labels is wrong: 180 of 900" in done.stdout
    assert done.stderr == ""  # nor TensorFlow's log
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_fifth_of_the_demos_training_labels_is_wrong():
    code = (
        "import digits, numpy as np; from sklearn.datasets import load_digits\n"
        "images, labels = load_digits(return_X_y=True)\n"
        "true = {image.tobytes(): y for image, y in zip((images / 16).astype('f4'), labels)}\n"
        "d = digits.load(0)\n"
        "for x, given in ((d.train_images, d.train_labels), (d.test_images, d.test_labels)):\n"
        "    print(sum(true[image.tobytes()] != y for image, y in zip(x, given)), 'of', len(x))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == ["180 of 900", "0 of 897"], done.stderr


def test_numpy_mlp():
    assert "Largest relative error" in run("numpy_mlp.py").stdout


def test_drop_connect():
    assert "connections dropped" in run("drop_connect.py").stdout


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("torch_digits.py", "fastdrop_torch.Dropout"),
        ("torch_transformer.py", "the same, and fused"),
    ],
)
def test_torch(name, ours):
    pytest.importorskip("torch")
    assert ours in run(name).stdout


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
    assert "fastdrop_jax.nnx.Dropout" in run("jax_transformer.py").stdout
