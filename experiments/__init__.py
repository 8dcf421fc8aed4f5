"""Tries dropout on data: what the field's texts claim, and what comes out, with tables and plots.

Each module has one experiment: a function that takes the `Work` to do and returns a `Section` of
the page. `digits` has the data, `networks` trains, and `page` writes docs/experiments.md.
`python -m experiments --help` lists the options.
"""
