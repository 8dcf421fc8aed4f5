"""The examples in public docstrings, in the README and in the docs run as doctests."""

import doctest
import re
from pathlib import Path

import pytest

import fastdrop
import fastdrop_jax
import fastdrop_jax.equinox
import fastdrop_jax.nnx
import fastdrop_keras
import fastdrop_torch

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page.relative_to(ROOT)
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if ">>>" in page.read_text()
)


MODULES = [
    fastdrop,
    fastdrop_jax,
    fastdrop_jax.equinox,
    fastdrop_jax.nnx,
    fastdrop_keras,
    fastdrop_torch,
    fastdrop_torch.functional,
]


def documented():
    """Every public name, and each method of public classes, with its docstring."""
    for module in MODULES:
        yield module.__name__, module.__doc__
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", value.__doc__
            if isinstance(value, type) and module is fastdrop:
                for attribute in vars(value):
                    # From the class, since a class method in its dict is not callable.
                    member = getattr(value, attribute)
                    if not attribute.startswith("_") and callable(member):
                        yield f"{module.__name__}.{name}.{attribute}", member.__doc__


DOCSTRINGS = {name: text for name, text in documented() if "__version__" not in name}


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_docstring(name):
    assert DOCSTRINGS[name], "a public name says what it is"
    globals_ = {}
    if "fastdrop_keras" in name:
        globals_ = {name: getattr(fastdrop_keras, name) for name in fastdrop_keras.__all__}
    example = doctest.DocTestParser().get_doctest(DOCSTRINGS[name], globals_, name, None, 0)
    assert example.examples, "a public docstring shows how it is used"
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize(
    "value", [fastdrop.Mask, fastdrop.Noise, fastdrop.Stream, fastdrop.num_threads]
)
def test_every_public_attribute_has_a_docstring(value):
    for name in vars(value):
        assert name.startswith("_") or getattr(value, name).__doc__, name


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page(page):
    for name in re.findall(r"^>>> import (dask)\b", (ROOT / page).read_text(), re.MULTILINE):
        pytest.importorskip(name)
    assert doctest.testfile(str(ROOT / page), module_relative=False).failed == 0
