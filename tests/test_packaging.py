"""The source archive and the wheel are complete, and the wheel runs where no compiler is."""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import matrix
import pytest

from fastdrop._isas import ISAS

ROOT = Path(__file__).parent.parent
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def needs(*modules):
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(
        bool(missing), reason=f"needs {', '.join(missing)}: the extra release"
    )


def test_the_citation_and_the_changelog_have_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [VERSION]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released[0] == VERSION


@needs("check_jsonschema")
def test_the_workflows_follow_their_schema():
    files = sorted(map(str, ROOT.glob(".github/workflows/*.yml")))
    assert len(files) == 2
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@needs("cibuildwheel")
@pytest.mark.skipif(sys.platform != "linux", reason="names the wheels for Linux")
def test_cibuildwheel_builds_a_wheel_for_each_python():
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # cibuildwheel no longer has Python 3.13 without the GIL.
    pythons = [python.replace(".", "") for python in matrix.PYTHONS if python != "3.13t"]
    want = [f"cp{python}-manylinux_{platform.machine()}" for python in pythons]
    assert done.stdout.split() == want


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the source archive and of this Python's wheel, and the table of the tests.

    The build and the tests install packages from an index.
    """
    folder = tmp_path_factory.mktemp("wheels")
    folders = ["--folder", str(folder / "build"), "--dist", str(folder / "dist")]
    done = subprocess.run(
        [sys.executable, "tests/wheels.py", *folders, matrix.HERE],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist", done.stdout


def of_a_build(test):
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux"),
        needs("auditwheel", "build", "twine"),
    ):
        test = mark(test)
    return test


@of_a_build
def test_the_wheel_passes_its_tests_without_a_compiler(built):
    dist, table = built
    (wheel,) = dist.glob("*.whl")
    tag = f"cp{matrix.HERE.replace('.', '')}"
    assert wheel.name.startswith(f"fastdrop-{VERSION}-{tag}-{tag}-manylinux_2_")
    assert re.search(r" ok .* \d{3,} passed in ", table), table


@of_a_build
def test_the_wheel_holds_all_modules_and_no_sources(built):
    dist, _ = built
    (wheel,) = dist.glob("*.whl")
    patterns = ["**/*.py", "py.typed", "*.pyi", "include/*.h", "*.cpp"]
    packages = [ROOT / f"fastdrop{name}" for name in ("", "_jax", "_keras", "_torch")]
    want = {path for package in packages for one in patterns for path in package.glob(one)}
    modules = {path.with_suffix("") for path in ROOT.glob("fastdrop/*.pyx")}
    modules |= {
        ROOT / "fastdrop" / "_kernels" / isa.name
        for isa in ISAS
        if not isa.machines or platform.machine().lower() in isa.machines
    }
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    want |= {path.with_name(path.name + suffix) for path in modules}
    want = {str(path.relative_to(ROOT)) for path in want}
    want |= {"fastdrop/libfastdrop_xla_handler.so", "fastdrop_keras/libfastdrop_native_op.so"}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name and name[-1] != "/"} == want


@of_a_build
@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow")
def test_tensorflow_loads_the_libraries_of_the_wheel(built, tmp_path, run_python):
    dist, _ = built
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "wheel")
    done = run_python(
        "import fastdrop_keras; print(fastdrop_keras.__file__); fastdrop_keras.show_config()",
        PYTHONPATH=str(tmp_path / "wheel"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/wheel/fastdrop_keras/__init__.py\n")
    assert f"\nfastdrop {VERSION}\n" in done.stdout
    assert re.search(r"^  bridge to TensorFlow [\d.]+: native$", done.stdout, re.MULTILINE)
    assert "  compiled by XLA: yes\n" in done.stdout


@of_a_build
@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_source_archive_holds_all_files_of_the_repository(built):
    dist, _ = built
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = {name for name in listed.stdout.split() if not name.startswith(".")}
    assert len(files) > 300
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert files <= held
