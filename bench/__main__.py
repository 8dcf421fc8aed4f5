"""`python -m bench`: runs the benchmarks, writes the report, compares two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from bench import report, results
from bench.compare import changes

FOLDER = Path(__file__).parent


def run(options: argparse.Namespace) -> int:
    """Run the benchmarks, save the figures and write the report beside them."""
    options.output.mkdir(parents=True, exist_ok=True)
    saved = options.output / "run.json"
    arguments = [str(FOLDER), "-q", f"--benchmark-json={saved}", "--benchmark-quiet"]
    # Said where nothing was measured, which pytest's own words and the exit code tell.
    arguments += ["-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"]
    arguments += ["--quick"] if options.quick else []
    arguments += ["-k", options.only] if options.only else []
    code = pytest.main(arguments)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not saved.exists():
        return int(code)
    command = "make bench-quick" if options.quick else "make bench"
    show(report.write(results.load(saved), options.output, command))
    return int(code)


def write(options: argparse.Namespace) -> int:
    """Write the report of a saved run, and its tables into a README."""
    saved = results.load(options.run)
    if options.readme is not None:
        report.put_into(options.readme, saved, "make bench")
    show(report.write(saved, options.output, "make bench"))
    return 0


def show(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def compare(options: argparse.Namespace) -> int:
    """Print what changed; 1 if something became slower by more than the threshold."""
    old, new = results.load(options.old), results.load(options.new)
    console = Console()
    differing = [
        f"{name}: {old.machine.get(name)} -> {new.machine.get(name)}"
        for name in dict.fromkeys([*old.machine, *new.machine])
        if old.machine.get(name) != new.machine.get(name)
    ]
    for line in differing:
        console.print(f"not the same machine or versions: {line}", style="yellow", highlight=False)
    found, alone = changes(old, new)
    if not found:
        raise results.NotARunError("the two runs have no case in common")
    threshold = options.threshold / 100
    table = Table("case", "ours over", "new / old", "")
    slower = 0
    for change in found:
        verdict = change.verdict(threshold)
        slower += verdict == "slower"
        if verdict or options.all:
            style = {"slower": "red", "faster": "green"}.get(verdict)
            table.add_row(change.case, change.over, f"{change.factor:.3f}", verdict, style=style)
    if table.row_count:
        console.print(table)
    for line in alone:
        console.print(line, style="dim", highlight=False)
    console.print(
        f"{len(found)} cases, {slower} slower by more than {options.threshold:g} % and noise"
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

    parse = commands.add_parser("run", help="run all, and write the report")
    parse.add_argument("--quick", action="store_true", help="under a minute")
    parse.add_argument("--only", metavar="WORDS", help="a part, as pytest's -k")
    parse.add_argument("--output", type=Path, default=default, help="default: %(default)s")
    parse.set_defaults(call=run)

    parse = commands.add_parser("report", help="write the report of a saved run again")
    parse.add_argument("run", type=Path, help="a run.json")
    parse.add_argument("--output", type=Path, default=default, help="default: %(default)s")
    parse.add_argument("--readme", type=Path, help="whose tables are to be replaced")
    parse.set_defaults(call=write)

    parse = commands.add_parser("compare", help="what changed between two saved runs")
    parse.add_argument("old", type=Path)
    parse.add_argument("new", type=Path)
    parse.add_argument(
        "--threshold",
        type=percentage,
        default=10.0,
        metavar="PERCENT",
        help="exit with 1 if anything is slower by more than this (default: %(default)g)",
    )
    parse.add_argument("--all", action="store_true", help="what did not change too")
    parse.set_defaults(call=compare)

    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except results.NotARunError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
