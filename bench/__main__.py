"""`python -m bench`: runs the benchmarks, writes the report, compares two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tabulate import tabulate

from bench import report, runs


def run(options: argparse.Namespace) -> int:
    """Run the benchmarks, store the figures and write the report beside them."""
    options.output.mkdir(parents=True, exist_ok=True)
    stored = options.output / "run.json"
    stored.unlink(missing_ok=True)
    arguments = [str(Path(__file__).parent), f"--benchmark-json={stored}", "--benchmark-quiet"]
    # The warning is for a test that fails before it measures, which pytest reports anyway.
    arguments += ["-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"]
    arguments += ["--quick"] if options.quick else []
    arguments += ["-k", options.only] if options.only else []
    code = pytest.main(arguments)
    # A benchmark that fails, for example for a wrong peer, does not stop the others.
    if stored.exists() and stored.stat().st_size:
        print(report.write(runs.load(stored), options.output))
    return int(code)


def write(options: argparse.Namespace) -> int:
    """Write the report of a stored run, and its tables into the pages of a checkout."""
    stored = runs.load(options.run)
    if options.publish is not None:
        report.publish(stored, options.publish)
    print(report.write(stored, options.output))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the changes as a table in Markdown; return 1 if a case became slower."""
    old, new = runs.load(options.old), runs.load(options.new)
    for name in old.machine | new.machine:
        before, after = old.machine.get(name), new.machine.get(name)
        if before != after:
            print(f"different: {name}: {before} -> {after}")
    changes = runs.changes(old, new)
    if not changes:
        raise runs.NotARunError(f"{options.old} and {options.new} have no case in common")
    verdicts = [change.verdict(options.threshold / 100) for change in changes]
    rows = [
        [change.case, change.reference, f"{change.factor:.3f}", verdict]
        for change, verdict in zip(changes, verdicts, strict=True)
        if verdict or options.all
    ]
    if rows:
        headings = ["case", "ours over", "new / old", ""]
        print(tabulate(rows, headings, tablefmt="pipe", disable_numparse=True))
    slower = verdicts.count("slower")
    print(
        f"{len(changes)} cases in both runs, of {len(old.cases)} and {len(new.cases)}; {slower} "
        f"slower by more than {options.threshold:g} % and the noise"
    )
    return int(slower > 0)


def percentage(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    default = Path("results/bench")

    parse = commands.add_parser("run", help="run the benchmarks and write the report")
    parse.add_argument("--quick", action="store_true", help="fewer benchmarks, in a minute")
    parse.add_argument("--only", metavar="WORDS", help="select benchmarks, as pytest's -k")
    parse.add_argument("--output", type=Path, default=default, help="default: %(default)s")
    parse.set_defaults(call=run)

    parse = commands.add_parser("report", help="write the report of a stored run")
    parse.add_argument("run", type=Path, help="a run.json")
    parse.add_argument("--output", type=Path, default=default, help="default: %(default)s")
    parse.add_argument(
        "--publish",
        type=Path,
        metavar="CHECKOUT",
        help="also replace the tables in its README.md and docs/benchmarks.md",
    )
    parse.set_defaults(call=write)

    parse = commands.add_parser("compare", help="compare two stored runs")
    parse.add_argument("old", type=Path)
    parse.add_argument("new", type=Path)
    parse.add_argument(
        "--threshold",
        type=percentage,
        default=10.0,
        metavar="PERCENT",
        help="exit with 1 if a case is slower by more than this (default: %(default)g)",
    )
    parse.add_argument("--all", action="store_true", help="also list cases that did not change")
    parse.set_defaults(call=compare)

    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except (runs.NotARunError, report.NoMarksError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
