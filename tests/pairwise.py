"""Chooses few rows of parameters in which each two values of two different parameters meet."""

import itertools

import pytest

import fastdrop


def pairs_of(names, *choices):
    """Run a test with each instruction set and these parameters: every two values of two meet."""
    rows = pairwise(fastdrop.available_isas(), *choices)
    return pytest.mark.parametrize(("isa", *names.split()), rows, indirect=["isa"], ids=name_of)


def name_of(value):
    return getattr(value, "__name__", str(value))


def pairwise(*choices):
    """Rows of one value from each list; every two values of two lists are together in a row.

    A row begins with the first pair that no row has yet, and takes from each other list the value
    that adds the most new pairs. The rows are the same at each run.
    """
    choices = [list(values) for values in choices]
    sizes = [range(len(values)) for values in choices]
    places = itertools.combinations(range(len(choices)), 2)
    # A dict, for its order.
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
    """How many missing pairs this value makes with those that the row has."""
    pairs = (tuple(sorted([(place, value), other])) for other in row.items())
    return sum(pair in missing for pair in pairs)
