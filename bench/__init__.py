"""The benchmarks: ours and its peers timed in turns, in one run, and the report of that run.

Each `test_*.py` asks one question. It hands candidates to the fixture `measure`, which times them
in turns and leaves the figures of every turn in pytest-benchmark's JSON. `results` reads such a
file, `tables` and `plots` show it, `report` writes the page, `compare` holds two runs against each
other. `python -m bench` runs any of this.
"""
