"""The page of guarantees names tests: each of them has to be there."""

import ast
import pathlib
import re

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs" / "guarantees.md"


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())
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


def test_every_promise_in_a_table_names_a_test():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    promises = [row for row in rows if not re.match(r"\|( promise |-)", row)]
    assert promises
    assert all("::" in row.rsplit("|", 2)[1] for row in promises)
