"""Chooses few rows of parameters that contain every pair of values of two parameters."""

import itertools

import pytest

import fastdrop


def pairs_of(names, *choices):
    """Run a test with rows of instruction sets and parameters that contain every pair of values."""
    rows = pairwise(fastdrop.available_isas(), *choices)
    return pytest.mark.parametrize(("isa", *names.split()), rows, indirect=["isa"], ids=name_of)


def name_of(value):
    return getattr(value, "__name__", str(value))


def pairwise(*choices):
    """Rows of one value from each list, such that every pair of values of two lists is in a row.

    A row starts with the first pair that no row has, and takes from each other list the value that
    adds the most new pairs. The rows are the same at each run.
    """
    choices = [list(values) for values in choices]
    sizes = [range(len(values)) for values in choices]
    places = itertools.combinations(range(len(choices)), 2)
    # A dict keeps the order.
    missing = {
        ((i, a), (j, b)): None for i, j in places for a, b in itertools.product(sizes[i], sizes[j])
    }
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for place in range(len(choices)):
            if place not in row:
                row[place] = max(sizes[place], key=lambda value: new(row, place, value, missing))
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(choices[place][row[place]] for place in range(len(choices))))
    return rows


def new(row, place, value, missing):
    """The number of missing pairs of this value with the values in the row."""
    pairs = (tuple(sorted([(place, value), other])) for other in row.items())
    return sum(pair in missing for pair in pairs)
