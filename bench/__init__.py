"""The benchmarks: ours and its peers timed in turns, in one run, and a report of that run.

Each `test_*.py` asks one question and hands calls to the fixture `measure` (`conftest.py`). `turns`
times them; pytest-benchmark stores the figures; `runs` reads a stored run and compares two;
`report` and `plots` show one. `peers` holds the other libraries and checks that each computes a
dropout. `python -m bench --help` lists the commands.
"""
