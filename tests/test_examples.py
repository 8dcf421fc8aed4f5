"""Each example runs as users run it, but with less work."""

import re
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
        "dask_larger_than_memory.py",
        "digits.py",
        "drop_connect.py",
        "jax_transformer.py",
        "keras_hub_finetune.py",
        "notebook.py",
        "numpy_mlp.py",
        "tf_distribute.py",
        "torch_ddp.py",
        "torch_digits.py",
        "torch_transformer.py",
        "torchvision_convnext.py",
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


def test_dask_with_less_memory_than_the_array():
    pytest.importorskip("dask")
    array, blocks, mask, rows = run("dask_larger_than_memory.py").stdout.splitlines()
    assert array == "2 GiB in 64 blocks, with 1 GiB of data"
    assert re.findall(r"\d[\d,]{8,}\d", blocks) == re.findall(r"\d[\d,]{8,}\d", mask) != []
    assert rows == "the last rows are those of the mask"


def test_tf_distribute():
    theirs, ours, again, loss, repeated = run("tf_distribute.py").stdout.splitlines()
    assert theirs.endswith("the replicas differ in 0 of 64")
    assert ours.startswith("fastdrop_keras")
    assert 10 < int(re.search(r"differ in (\d+)", ours)[1]) < 54
    assert again.endswith("are the same")
    assert re.findall(r"\d\.\d{4}", loss) == re.findall(r"\d\.\d{4}", repeated) != []


def test_torch_ddp():
    pytest.importorskip("torch")
    weights, masks, *repeated = run("torch_ddp.py").stdout.splitlines()
    assert weights.endswith("weights equal: True")
    assert 10 < int(re.search(r"differ in (\d+)", masks)[1]) < 54
    assert repeated == [weights, masks]


def test_keras_hub():
    pytest.importorskip("keras_hub")
    printed = run("keras_hub_finetune.py").stdout
    assert "7 layers changed" in printed
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after) ", printed))
    assert after < before


def test_the_notebook(tmp_path):
    pytest.importorskip("marimo")
    page = tmp_path / "notebook.html"
    done = subprocess.run(
        [sys.executable, "-m", "marimo", "export", "html", EXAMPLES / "notebook.py", "-o", page],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert "fastdrop.Mask" in html
    assert html.count("data:image/png") == 2


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


def test_torchvision():
    pytest.importorskip("torchvision")
    printed = run("torchvision_convnext.py").stdout
    assert "18 modules changed" in printed
    assert printed.endswith("the same seed gives the same losses: True\n")


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
