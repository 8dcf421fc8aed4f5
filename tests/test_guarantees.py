"""Every test on the page of guarantees exists, runs, and detects a fault."""

import ast
import pathlib
import re

from planted_faults import CONTROLS, FAULTS

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs" / "guarantees.md"


def named_tests():
    return re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())


def marks_of(tree, name):
    """The source text of the marks of a test and of its file."""
    marks = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            marks += node.decorator_list
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks.append(node.value)
    return " ".join(map(ast.unparse, marks))


def test_every_test_on_the_page_exists_and_runs():
    """No mark disables a test. A condition on the machine may skip it."""
    named = named_tests()
    assert len(named) > 40
    # The pattern finds every test's name on the page.
    assert PAGE.read_text().count("::") == len(named)
    for file in {file for file, _ in named}:
        tree = ast.parse((TESTS / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for name in {name for other, name in named if other == file}:
            assert name in functions, f"{file}::{name}"
            assert not re.search(r"mark\.(skip|xfail)\b", marks_of(tree, name)), f"{file}::{name}"


def test_every_promise_in_a_table_names_a_test():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    promises = [row for row in rows if not re.match(r"\|( promise |-)", row)]
    assert promises
    assert all("::" in row.rsplit("|", 2)[1] for row in promises)


def test_every_test_on_the_page_detects_a_fault():
    """`make faults` applies the faults, and reports patches that no longer apply."""
    named = {f"{file}::{name}" for file, name in named_tests()}
    planted = {test.partition("[")[0] for fault in FAULTS for test in fault.tests}
    assert named - planted - set(CONTROLS) == set()
    assert set(CONTROLS) <= named - planted
    for test in planted | set(CONTROLS.values()):
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), test
