"""The rows that replace a product of parameters have every pair of values."""

import itertools

from pairwise import pairwise


def test_few_rows_have_every_pair_of_values():
    choices = [range(17), "abcdefghijk", [None, 1.0, "x", (2,)], [True, False], ["alone"]]
    rows = pairwise(*choices)
    for i, j in itertools.combinations(range(len(choices)), 2):
        met = {(row[i], row[j]) for row in rows}
        assert met == set(itertools.product(choices[i], choices[j]))
    # The minimum, which is the number of pairs of the two longest lists.
    assert len(rows) == 17 * 11
    assert rows == pairwise(*choices)
