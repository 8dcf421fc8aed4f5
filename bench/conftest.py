"""What every benchmark uses: one thread of NumPy's kind, a table of ratios, the machine's name."""

import platform

import pytest
import rich.console
import rich.table

import fastdrop


class Report:
    """The ratios of a run, printed when it ends."""

    def __init__(self):
        self.tables = {}
        self.asked = {}

    def add(self, title, row, **columns):
        """Put figures into a row of the table of that title, a column for each name."""
        self.tables.setdefault(title, {}).setdefault(row, {}).update(columns)

    def ask(self, what, limit, case, ratio):
        """Hold a ratio to a limit such as "≤ 1.5", for the table of what is reached and where."""
        self.asked.setdefault((what, limit), {})[case] = ratio

    def show_asked(self, console):
        """What was asked for: the range of each ratio, and the cases that miss the limit."""
        table = rich.table.Table("", "asked", "from", "to", "not reached at", title="asked for")
        for (what, limit), cases in self.asked.items():
            bound = float(limit.split()[1])
            missed = [
                f"{case} ({ratio:.2f})"
                for case, ratio in cases.items()
                if (ratio > bound if limit.startswith("≤") else ratio < bound)
            ]
            table.add_row(
                what,
                limit,
                f"{min(cases.values()):.2f}",
                f"{max(cases.values()):.2f}",
                ", ".join(missed) or "-",
            )
        console.print(table)

    def show(self, console):
        for title, rows in self.tables.items():
            names = list(dict.fromkeys(name for columns in rows.values() for name in columns))
            table = rich.table.Table("", *names, title=title, title_justify="left")
            for row, columns in rows.items():
                table.add_row(row, *(columns.get(name, "") for name in names))
            console.print(table)


_report = Report()


@pytest.fixture
def report():
    """Where a benchmark puts its ratios."""
    return _report


@pytest.fixture
def one_thread():
    """The peers in NumPy use one thread, so we do."""
    with fastdrop.num_threads(1):
        yield


def pytest_terminal_summary(terminalreporter):
    if not _report.tables:
        return
    terminalreporter.section("ratios")
    console = rich.console.Console(width=120)
    _report.show(console)
    if _report.asked:
        _report.show_asked(console)
    console.print(f"{processor()}, Python {platform.python_version()}")
    fastdrop.show_config()


def processor():
    """The processor's name, as its maker gives it where that can be read."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        return f"{len(names)} x {names[0]}"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
