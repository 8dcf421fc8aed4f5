"""A damaged or incomplete installation gives an error with the missing file and a remedy."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastdrop

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
PACKAGE = Path(fastdrop.__file__).parent
USE = "import fastdrop; fastdrop.dropout([1.0, 2.0], 0.5); fastdrop.show_config()"
BEST = fastdrop.available_isas()[0]
FULL_KERNELS = pytest.mark.skipif(BEST == "portable", reason="only the portable kernels run here")


@pytest.fixture
def installation(tmp_path):
    """A copy of the package, which tests damage."""
    copy = tmp_path / "fastdrop"
    ignore = shutil.ignore_patterns("*.pyx", "*.h", "__pycache__")
    shutil.copytree(PACKAGE, copy, ignore=ignore)
    return copy


def use(installation, **environment):
    """Run a program with the copy in a fresh interpreter that prints warnings."""
    program = (
        # The finder of an editable installation would find the missing files there.
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path.insert(0, {str(installation.parent)!r})\n" + USE
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTDROP_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=clean | environment,
        cwd=installation.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def remove(path):
    path.unlink()


def garbage(path):
    path.write_bytes(b"garbage" * 1000)


def empty(path):
    path.write_bytes(b"")


def header_only(path):
    path.write_bytes(path.read_bytes()[:100])


def first_pages(path):
    # The system's loader maps such a file, and gets a bus error when it reads the end.
    path.write_bytes(path.read_bytes()[:5000])


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_python(path):
    path.rename(path.with_name(path.name.replace(SUFFIX, ".cpython-25-nowhere.so")))


DAMAGES = [remove, garbage, empty, header_only, first_pages, half, of_another_python]
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
# A shared object for this platform; the loader's messages differ on others.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="damages files of Linux's format")


def test_the_copy_is_imported(installation):
    done = use(installation)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"instruction set in use: {BEST}" in done.stdout


@each_damage
@pytest.mark.parametrize("module", ["_mask", "_isa"])
def test_a_damaged_module_is_named_with_a_remedy(installation, module, damage):
    damage(installation / f"{module}{SUFFIX}")
    done = use(installation)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastdrop's compiled module")
    assert module in last
    assert "python setup.py build_ext --inplace" in last
    assert "pip install" in last
    if damage is of_another_python:
        assert f"{module}.cpython-25-nowhere.so" in last


@FULL_KERNELS
@each_damage
def test_without_the_best_kernels_the_next_are_used(installation, damage):
    damage(installation / "_kernels" / f"{BEST}{SUFFIX}")
    done = use(installation)
    assert done.returncode == 0, done.stderr
    rest = [name for name in fastdrop.available_isas() if name != BEST]
    assert f"instruction set in use: {rest[0]}" in done.stdout
    assert f"available: {', '.join(rest)}" in done.stdout
    if damage in (remove, of_another_python):  # as if the compiler could not build them
        assert done.stderr == ""
    else:
        assert f"RuntimeWarning: fastdrop's {BEST} kernels are damaged" in done.stderr
        assert "pip install" in done.stderr
        assert f"{BEST} kernels not loaded: " in done.stdout


@FULL_KERNELS
@each_damage
def test_damaged_kernels_that_were_requested(installation, damage):
    damage(installation / "_kernels" / f"{BEST}{SUFFIX}")
    done = use(installation, FASTDROP_ISA=BEST)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: FASTDROP_ISA='{BEST}'")
    assert last.endswith("portable")
    if damage not in (remove, of_another_python):
        assert f"{BEST}{SUFFIX}" in last  # the reason


@each_damage
def test_without_any_kernels(installation, damage):
    for path in (installation / "_kernels").glob("*.so"):
        damage(path)
    done = use(installation)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastdrop's kernel modules are missing or damaged")
    assert "pip install" in last


def test_only_numpy_is_needed(run_python):
    others = "tensorflow", "keras", "ml_dtypes", "typing_extensions", "scipy"
    done = run_python(
        "import sys\n"
        f"for name in {others}: sys.modules[name] = None\n"
        "import numpy as np, fastdrop\n"
        "y, mask = fastdrop.dropout(np.ones(8, np.float32), 0.5, seed=1)\n"
        "fastdrop.show_config()\n"
    )
    assert done.returncode == 0, done.stderr


def test_an_error_of_another_package_is_not_changed(installation):
    (installation.parent / "numpy.py").write_text("raise ImportError('numpy is broken')\n")
    done = use(installation)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "ImportError: numpy is broken"


@pytest.mark.parametrize(
    ("name", "value"), [("FASTDROP_ISA", "mmx"), ("FASTDROP_NUM_THREADS", "many")]
)
def test_a_wrong_setting_is_not_reported_as_damage(installation, name, value):
    done = use(installation, **{name: value})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"ImportError: {name}")
    assert "build_ext" not in done.stderr
