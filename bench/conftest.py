"""Defines the fixture `measure` and the option `--quick`, which every benchmark uses."""

import os

# Before TensorFlow is imported, which prints many lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from importlib.metadata import PackageNotFoundError, version

import pytest

import fastdrop
from bench.report import TABLES
from bench.turns import Turns

FULL = pytest.mark.full


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="fewer benchmarks and rounds: a minute in all"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "full: left out of a quick run")
    config.addinivalue_line("markers", "exponents(all, quick=()): array sizes, as powers of two")
    if config.option.quick:
        config.option.markexpr = "not full"


@pytest.hookimpl(trylast=True)  # sizes vary fastest, as in the tables
def pytest_generate_tests(metafunc):
    """Give a benchmark the argument `exponent`, from `@pytest.mark.exponents(all, quick=some)`."""
    for mark in metafunc.definition.iter_markers("exponents"):
        quick = mark.kwargs.get("quick", ())
        cases = [
            pytest.param(exponent, id=f"2^{exponent}", marks=() if exponent in quick else FULL)
            for exponent in mark.args[0]
        ]
        metafunc.parametrize("exponent", cases)


@pytest.fixture
def measure(benchmark, request):
    """Time fastdrop, its peers and its limits in turns: ``measure(table, row, ours={...}, ...)``.

    `ours`, `peers` and `limits` map names to candidates of `bench.turns`. Ratios are relative to
    the first candidate of `ours`. Peers compute the same as `ours`. Limits, such as a copy of the
    array, do less work. `each` is the number of units (elements, layers) that one call processes.
    """
    quick = request.config.option.quick

    def measure(table, row, *, ours, peers=None, limits=None, group="", each=1, seconds=0.5):
        assert table in TABLES
        sides = {"ours": ours, "peers": peers or {}, "limits": limits or {}}
        turns = Turns({name: call for side in sides.values() for name, call in side.items()})
        # Slow candidates get at least three rounds, which still have quartiles.
        fewest, most = 3 if quick or turns.round_seconds > 1 else 5, 5 if quick else 30
        rounds = turns.rounds(0.1 * seconds if quick else seconds, fewest, most)
        # The report uses `extra_info`: pytest-benchmark's statistics are about whole rounds.
        benchmark.pedantic(turns.round, rounds=rounds)
        figures = {
            side: {name: turns.figures[name] for name in names} for side, names in sides.items()
        }
        benchmark.extra_info.update(table=table, group=group, row=row, each=each, **figures)

    return measure


def pytest_benchmark_update_machine_info(config, machine_info):
    """Add the versions and settings that times depend on."""
    cpu = machine_info["cpu"]
    described = {
        "command": "make bench-quick" if config.option.quick else "make bench",
        "processor": f"{os.cpu_count()} x {cpu.get('brand_raw') or machine_info['machine']}",
        **fastdrop._config.description(),
    }
    for package in ("tensorflow", "keras", "torch", "jax"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = "not installed"
    machine_info["fastdrop"] = described
