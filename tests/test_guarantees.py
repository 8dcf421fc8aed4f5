"""The page of guarantees names tests: each of them has to be there, and to be run."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from fastdrop import _isa

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs" / "guarantees.md"


def named_tests():
    return re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())


def test_every_test_that_the_page_names_is_there():
    named = named_tests()
    assert len(named) > 40
    # Nothing that looks like a test's name is overlooked.
    assert PAGE.read_text().count("::") == len(named)
    missing = []
    for file, name in named:
        source = (TESTS / file).read_text() if (TESTS / file).exists() else ""
        functions = {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        if name not in functions:
            missing.append(f"{file}::{name}")
    assert not missing


COLLECT = """
import sys
import pytest

class Switched:
    # What a machine lacks may skip a test there: that is a condition, and no mark like these.
    def pytest_collection_finish(self, session):
        for item in session.items:
            off = any(item.iter_markers("skip")) or any(item.iter_markers("xfail"))
            print("off" if off else "on", item.nodeid)

options = ["--collect-only", "-qq", "-p", "no:cacheprovider"]
options += ["-o", "empty_parameter_set_mark=fail_at_collect"]
sys.exit(pytest.main([*options, *sys.argv[1:]], plugins=[Switched()]))
"""


@pytest.mark.skipif(_isa.BUILD != "release", reason="names are the same in every build")
def test_every_test_that_the_page_names_is_run():
    """It is neither switched off by a mark nor left without parameters."""
    names = {f"tests/{file}::{name}" for file, name in named_tests()}
    if importlib.util.find_spec("tensorflow") is None:
        names = {name for name in names if "/keras/" not in name}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *sorted(names)],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = [line.split(" ", 1) for line in done.stdout.splitlines() if re.match("(on|off) ", line)]
    assert [name for state, name in told if state == "off"] == []
    assert {name.partition("[")[0] for _, name in told} == names


def test_every_promise_in_a_table_names_a_test():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    promises = [row for row in rows if not re.match(r"\|( promise |-)", row)]
    assert promises
    assert all("::" in row.rsplit("|", 2)[1] for row in promises)
