"""What every benchmark uses: the fixture `measure`, the length of a run, its progress bar."""

import os

# Before TensorFlow is imported, which greets at length.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastdrop
from bench import machine, tables
from bench.turns import Turns


class Clock:
    """Stands still but for the seconds of what a benchmark calls ours.

    pytest-benchmark times whole rounds with it, and so keeps the figures of ours for its own
    statistics, though the peers have their turns in the same rounds.
    """

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


CLOCK = Clock()


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="fewer sizes and rounds: under a minute in all"
    )


def pytest_generate_tests(metafunc):
    """Give a benchmark its sizes: of `@pytest.mark.sizes(full, quick)`."""
    mark = metafunc.definition.get_closest_marker("sizes")
    if mark is not None:
        full, quick = mark.args
        sizes = quick if metafunc.config.getoption("--quick") else full
        metafunc.parametrize("size", sizes, ids=tables.power)


def pytest_configure(config):
    config.addinivalue_line("markers", "sizes(full, quick): numbers of elements of the two runs")
    config.addinivalue_line("markers", "full: left out of a quick run")


def pytest_collection_modifyitems(config, items):
    timed = pytest.mark.benchmark(timer=CLOCK)
    skipped = pytest.mark.skip(reason="not in a quick run")
    for item in items:
        item.add_marker(timed)
        if config.getoption("--quick") and item.get_closest_marker("full"):
            item.add_marker(skipped)


@pytest.fixture
def quick(request):
    """Whether the run is to be short."""
    return request.config.getoption("--quick")


@pytest.fixture
def measure(benchmark, quick):
    """Time candidates in turns and keep the figures: ``measure(table, row, candidates, ...)``.

    The first of the candidates is ours; the last is not, and is what two runs are compared by: a
    limit of the machine, or a peer. `ratios` maps a heading to the names of two candidates, the
    first over the second. `elements` is what one call works on.
    """

    def measure(table, row, candidates, *, group="", elements=None, ratios=(), seconds=0.6):
        turns = Turns(candidates)
        ours = next(iter(candidates))

        def round_():
            turns.round()
            CLOCK.now += turns.seconds[ours][-1]

        # Three rounds of what takes a second each still have quartiles.
        fewest, most = (3, 5) if quick or turns.round_seconds > 1 else (5, 30)
        rounds = turns.rounds(0.1 * seconds if quick else seconds, fewest, most)
        benchmark.pedantic(round_, rounds=rounds)
        keep(benchmark, table, group, row, ratios, elements=elements, seconds=turns.seconds)
        return turns.seconds

    return measure


@pytest.fixture
def record(benchmark):
    """Keep figures that are no times, such as bytes: ``record(table, row, {"ours": 0.13})``."""

    def record(table, row, figures, *, ratios=()):
        # pytest-benchmark writes only what it has timed.
        benchmark.pedantic(lambda: None)
        values = {name: [float(value)] for name, value in figures.items()}
        keep(benchmark, table, "", row, ratios, values=values)

    return record


def keep(benchmark, table, group, row, ratios, elements=None, seconds=None, values=None):
    """Put one case where the report finds it."""
    assert table in tables.TABLES, f"bench/tables.py has no table {table!r}"
    benchmark.extra_info.update(
        table=table,
        group=group,
        row=row,
        ratios={heading: list(pair) for heading, pair in dict(ratios).items()},
        elements=elements,
        **({"seconds": seconds} if seconds is not None else {"values": values}),
    )


@pytest.fixture
def one_thread():
    """The peers in NumPy use one thread, so we do."""
    with fastdrop.num_threads(1):
        yield


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastdrop"] = machine.describe()


class Bar:
    """A bar on the terminal in place of pytest's dots."""

    def __init__(self, console):
        self.progress = Progress(
            TextColumn("{task.description:60.60}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,  # a thread that redraws would be timed along with the benchmarks
        )

    def pytest_collection_finish(self, session):
        self.task = self.progress.add_task("", total=len(session.items))
        self.progress.start()

    def pytest_runtest_logstart(self, nodeid):
        self.progress.update(self.task, description=nodeid.partition("/")[2], refresh=True)

    def pytest_runtest_logfinish(self):
        self.progress.update(self.task, advance=1, refresh=True)

    def pytest_sessionfinish(self):
        self.progress.stop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        if report.passed and report.when == "call":
            return "passed", "", ""
        return None


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    console = Console(file=sys.__stderr__)
    if console.is_terminal and session.config.option.verbose < 1:
        session.config.pluginmanager.register(Bar(console))
