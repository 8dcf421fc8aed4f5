"""Times fastdrop and its peers in turns, in one run, and writes a report of the run.

Each `test_*.py` answers one question. It passes calls to the fixture `measure` (`conftest.py`).
`turns` times the calls, pytest-benchmark stores the times, `runs` reads and compares stored runs,
and `report` and `plots` present a run. `peers` calls the other libraries and checks that each
computes a dropout. `python -m bench --help` lists the commands.
"""
