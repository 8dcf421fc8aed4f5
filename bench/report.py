"""Writes the report of a run, and the tables and plots of the documentation and the README."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from tabulate import tabulate

from bench import plots
from bench.runs import Case, Run, quartiles


class Table(NamedTuple):
    """A table of the report. `factor` converts seconds, or another measured unit, to `unit`."""

    title: str
    unit: str
    factor: float
    about: str
    on_site: bool = False
    better: str = "faster"


# In the order of the report.
TABLES = {
    "arrays": Table(
        "NumPy arrays: ours and the peers",
        "ns an element",
        1e9,
        "float32, one thread, the best instruction set; the mask is drawn and stored. NumPy's "
        "multiplication in place and copy only read and write: they are the limits of the "
        "machine's memory, and no dropouts.",
        on_site=True,
    ),
    "kernels": Table(
        "Instruction sets and dtypes",
        "ns an element",
        1e9,
        "One thread, rate 0.2 where no other is given. The limits are NumPy's on float32 (float64 "
        "for float64) arrays of as many bytes.",
    ),
    "layouts": Table(
        "Strides, orders and noise shapes",
        "ns an element",
        1e9,
        "float32 in place, one thread, rate 0.2, and NumPy's multiplication of the same view.",
    ),
    "shapes": Table(
        "Many shapes, layouts and noise shapes: the worst case and the median",
        "ns an element",
        1e9,
        "float32, rate 0.2, 2^16 to 2^20 elements. NumPy's operations: random numbers, a "
        "comparison and two products, on one thread.",
    ),
    "fused": Table(
        "Fused operations",
        "ns an element",
        1e9,
        "float32, one thread, rate 0.2, into allocated arrays. The same traffic: NumPy's copy, or "
        "its sum of two arrays.",
    ),
    "noise": Table(
        "Gaussian dropout",
        "ns an element",
        1e9,
        "float32 in place, one thread, rate 0.2, the draw included. The first peer only draws as "
        "many normal numbers, by NumPy's fastest generator; the second applies them too.",
        on_site=True,
    ),
    "rates": Table(
        "An array of rates",
        "ns an element",
        1e9,
        "float32, one thread, a rate for each element. NumPy's operations: x * (rng.random(n, "
        "dtype=f4) >= r) / (1 - r) with its fastest generator, into a new array.",
        on_site=True,
    ),
    "threads": Table(
        "Threads", "ns an element", 1e9, "float32 in place, rate 0.2, on all CPUs and on one."
    ),
    "layers": Table(
        "Layers: a chain of layers in a row",
        "µs a layer",
        1e6,
        "Time of the whole chain, the call of the graph included, over the number of its layers. "
        "An empty graph: a `tf.function` that does nothing, called once for the whole chain.",
        on_site=True,
    ),
    "further layer": Table(
        "Layers: each further layer",
        "µs a layer",
        1e6,
        "What one layer more costs in a graph: the difference of chains of two lengths, which "
        "leaves out what the graph's call costs whatever is in it. Without TensorFlow: the same "
        "masks and gradients by `dropout_` and `dropout_grad_` on one array, called in a row.",
        on_site=True,
    ),
    "one layer": Table(
        "Layers: one call",
        "µs a call",
        1e6,
        "One layer, called once. Under XLA (`jit_compile=True`) XLA compiles ours and the peers. A "
        "peer takes much longer where its shape occurs once in the program, as here.",
    ),
    "kinds": Table(
        "Layers: other kinds of dropout",
        "µs a layer",
        1e6,
        "float32, rate 0.5 where no other is given, the gradients of inputs and weights included.",
        on_site=True,
    ),
    "training": Table(
        "Training: a step of `model.fit`",
        "ms a step",
        1e3,
        "The median step of each turn.",
        on_site=True,
    ),
    "torch layers": Table(
        "PyTorch: one call",
        "µs a call",
        1e6,
        "float32, one thread, rate 0.1. Compiled: by `torch.compile`. The multiplication by a "
        "number, with its gradient, is the limit of PyTorch's eager calls and of the memory.",
    ),
    "torch training": Table(
        "PyTorch: a training step",
        "ms a step",
        1e3,
        "Network, loss, gradients and SGD. Ours: by `convert`, and by `enabled` for the dropout of "
        "attention weights. Compiled: network and loss, by `torch.compile`.",
        on_site=True,
    ),
    "jax layers": Table(
        "JAX: one call",
        "µs a call",
        1e6,
        "float32, one thread, rate 0.1, in one `jax.jit` that also splits the key. The "
        "multiplication by a number, with the same split and its gradient, is the limit.",
    ),
    "jax training": Table(
        "JAX: a training step",
        "ms a step",
        1e3,
        "Network in Flax NNX, loss, gradients and SGD in one `nnx.jit`, on one thread.",
        on_site=True,
    ),
    "memory": Table(
        "Memory of training",
        "bytes an element and layer",
        1,
        "Fresh processes; differences of a deep and a shallow model. Peak: of forward and "
        "backward. Alive: between the two. One bit, 0.125, is the least.",
        on_site=True,
        better="smaller",
    ),
}

HOW = """\
One process times all candidates of a row in turns, after a check that each computes a dropout. A
ratio compares two times of one round, in which the machine has the same load. The tables have the
medians of the ratios. "Faster than" is the peer's time over ours, **bold if the peer is faster**;
"x" is our time over a limit.
"""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0;
        font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
strong { color: #D55E00; }
img { max-width: 100%; }
"""


def digits(value: float) -> str:
    """The number with three significant digits, without an exponent."""
    magnitude = abs(value)
    decimals = next((d for d, least in enumerate((100, 10, 1, 0.1)) if magnitude >= least), 4)
    return f"{value:,.{decimals}f}"


def cell(values: list[float], with_quartiles: bool) -> str:
    """The median of the rounds, with their quartiles if asked for."""
    low, middle, high = map(digits, quartiles(values))
    return f"{middle} ({low}-{high})" if with_quartiles else middle


def row(case: Case, table: Table, with_quartiles: bool) -> dict[str, str]:
    """The cells of a case by heading: its ratios, then our figure."""
    ours, *other_ways = case.ours
    cells = {"": case.row}
    for name in [*case.peers, *other_ways]:
        ratio = case.ratio(name, ours)
        text = cell(ratio, with_quartiles)
        lost = name in case.peers and statistics.median(ratio) < 1
        cells[f"{table.better} than {name}"] = f"**{text}**" if lost else text
    for name in case.limits:
        cells[f"x {name}"] = cell(case.ratio(ours, name), with_quartiles)
    figures = [figure * table.factor / case.each for figure in case.ours[ours]]
    return cells | {f"{ours}, {table.unit}": cell(figures, with_quartiles)}


def markdown(cases: Iterable[Case], table: Table, with_quartiles: bool) -> str:
    """The table of the cases of one group."""
    rows = [row(case, table, with_quartiles) for case in cases]
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    return tabulate(
        [[row.get(heading, "") for heading in headings] for row in rows],
        headings,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left",) + ("right",) * (len(headings) - 1),
    )


def tables(run: Run, level: int, *, site: bool = False) -> str:
    """The tables of the run in Markdown, with headings of this level."""
    parts = []
    for name, table in TABLES.items():
        groups = run.of(name) if table.on_site or not site else {}
        if groups:
            parts.append(f"{'#' * level} {table.title}\n\n{table.about}\n")
        for group, cases in groups.items():
            title = f"{'#' * (level + 1)} {group}\n\n" if group else ""
            parts.append(f"{title}{markdown(cases, table, with_quartiles=not site)}\n")
    return "\n".join(parts)


def pictures(run: Run, folder: Path, link: str, dpi: int) -> str:
    """Draw the plots of the run into a folder; return them in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, caption, figure in plots.draw(run):
        figure.savefig(folder / f"{name}.png", dpi=dpi)
        parts.append(f"![{name}]({link}{name}.png)\n\n{caption}\n\n")
    return "".join(parts)


# The rows of the README's table: what it says, and the case by its table, group and row.
HIGHLIGHTS = [
    ("Keras, `fit`", "training", "", "digits, 64-512-512-10, batch 128"),
    ("Keras, `fit`", "training", "", "transformer encoder, 64 x 128, batch 16"),
    *(
        (f"{name}, a training step", table, group, "transformer encoder, 128 x 256, batch 16")
        for name, table, group in [
            ("PyTorch, eager", "torch training", "eager, 1 thread"),
            ("PyTorch, compiled", "torch training", "compiled, 1 thread"),
            ("JAX, jitted", "jax training", "threefry2x32"),
        ]
    ),
    ("NumPy, elements", "arrays", "forward, rate 0.5", "2^20"),
]


def highlights(run: Run) -> str:
    """The README's table: the highlights that the run has, each with its first peer and limit."""
    rows = []
    for title, table, group, label in HIGHLIGHTS:
        for case in run.of(table).get(group, []):
            if case.row == label:
                peer, limit = next(iter(case.peers)), next(iter(case.limits))
                faster = cell(case.ratio(peer, case.first), False)
                over = cell(case.ratio(case.first, limit), False)
                rows.append([f"{title}: {label}", peer, faster, f"{over} x {limit}"])
    headings = ["", "instead of", "times as fast", "time over a limit"]
    align = ("left", "left", "right", "left")
    return tabulate(rows, headings, tablefmt="pipe", disable_numparse=True, colalign=align)


def write(run: Run, folder: Path) -> Path:
    """Write the page and its plots into a folder, and return the page's path."""
    machine = "\n".join(f"- {name}: {value}" for name, value in run.machine.items())
    text = (
        f"# fastdrop, measured\n\n{run.date}, commit {run.commit}\n\n{machine}\n\n{HOW}\n"
        f"{pictures(run, folder, link='', dpi=150)}{tables(run, 2)}"
    )
    page = folder / "report.html"
    page.write_text(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>fastdrop, measured</title><style>{STYLE}</style></head>\n"
        f"<body>\n{MarkdownIt('commonmark').enable('table').render(text)}</body></html>\n"
    )
    return page


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


class NoMarksError(ValueError):
    """A page without the two marks around what was measured."""


def with_measured(page: Path, measured: str) -> str:
    """The page's text with this between its two marks, or raise NoMarksError."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise NoMarksError(f"{page} must have the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{measured}{END}{after}"


def publish(run: Run, checkout: Path) -> None:
    """Write the run's tables and plots into the documentation, and its highlights into the README.

    Raises NoMarksError, and writes nothing, if one of the pages lacks the marks.
    """
    machine = run.machine
    what = (
        f"`{machine['command']}` on {run.date}, commit {run.commit}: {machine['processor']}, "
        f"{machine['instruction set in use']}, {machine['compiler']}, {machine['python']}, NumPy "
        f"{machine['numpy']}, TensorFlow {machine['tensorflow']}, Keras {machine['keras']}, "
        f"PyTorch {machine['torch']}, JAX {machine['jax']}."
    )
    readme, page = checkout / "README.md", checkout / "docs/benchmarks.md"
    short = with_measured(readme, f"{what}\n\n{highlights(run)}\n")
    with_measured(page, "")
    plots = pictures(run, checkout / "docs/measured", link="measured/", dpi=80)
    long = with_measured(page, f"{what}\n\n{plots}{tables(run, 2, site=True)}")
    readme.write_text(short)
    page.write_text(long)
