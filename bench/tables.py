"""Every table of the report: what it shows, in which unit and against what, and its layout."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate

from bench.results import Case


@dataclass(frozen=True)
class Unit:
    """What the figures of a table are multiplied by, and what that makes them."""

    name: str
    factor: float
    each_element: bool = False


AN_ELEMENT = Unit("ns an element", 1e9, each_element=True)
A_CALL = Unit("µs a call", 1e6)
A_LAYER = Unit("µs a layer", 1e6)
A_STEP = Unit("ms a step", 1e3)
BYTES = Unit("bytes an element and layer", 1)


@dataclass(frozen=True)
class Table:
    """The heading of a table, the unit of its figures, and what has to be known to read it."""

    title: str
    unit: Unit
    about: str
    in_readme: bool = False


# In the order of the report.
TABLES = {
    "arrays": Table(
        "NumPy arrays: ours and the peers",
        AN_ELEMENT,
        "float32, one thread, the best instruction set; the mask is drawn and stored. Faster than: "
        "time of the peer over that of `dropout_`. NumPy's multiplication and copy, which only "
        "read and write, are the limits of the machine's memory and no dropouts.",
        in_readme=True,
    ),
    "kernels": Table(
        "Each kernel over the limits of memory",
        AN_ELEMENT,
        "One thread; x times the time of NumPy's in-place float32 multiplication (float64 for "
        "float64) or copy of as many bytes, which draw nothing and are not dropouts. Replay: "
        "forward and gradient with nothing stored, the mask drawn twice.",
    ),
    "rates": Table(
        "Rates",
        AN_ELEMENT,
        "float32 in place, one thread, over the time of rate 0.2: a rate whose threshold has "
        "few binary digits takes as few random bits for a decision.",
    ),
    "noise shapes": Table(
        "Noise shapes",
        AN_ELEMENT,
        "float32 in place, 2^22 elements, one thread: shared decisions over the time of a decision "
        "for each element.",
    ),
    "views": Table(
        "Strides and orders",
        AN_ELEMENT,
        "float32 in place, one thread, over NumPy's in-place multiplication of the same view.",
    ),
    "fused": Table(
        "Fused operations",
        AN_ELEMENT,
        "float32, one thread, into memory that is there: over NumPy's time for the same traffic of "
        "memory, and faster than NumPy's operations one by one.",
    ),
    "small call": Table(
        "A call on 16 elements",
        A_CALL,
        "What the way from Python to the kernel costs, over `numpy.multiply` on the same array.",
    ),
    "threads": Table(
        "Threads, and growing arrays",
        AN_ELEMENT,
        "float32 in place. Faster: time of one thread over that of all. The array grows by 2^20.",
    ),
    "layers": Table(
        "Layers: a chain of layers in a row",
        A_LAYER,
        "Time of the whole chain, the call of the graph included, over the number of its layers. "
        "Faster than: the same chain of the peer's layers. An empty graph: a `tf.function` that "
        "does nothing, called once, over the same number of layers.",
        in_readme=True,
    ),
    "further layer": Table(
        "Layers: each further layer",
        A_LAYER,
        "What one layer more costs in a graph: the difference of chains of two lengths, which "
        "leaves out what the graph's call costs whatever is in it. Without TensorFlow: the same "
        "masks and gradients by `dropout_` and `dropout_grad_` on one array, called in a row.",
        in_readme=True,
    ),
    "one layer": Table(
        "Layers: one call",
        A_CALL,
        "One layer, called once. Under XLA (`jit_compile=True`) the peers are compiled and ours, "
        "which XLA cannot compile, run in a plain graph, as Keras arranges by itself.",
    ),
    "training": Table(
        "Training: a step of `model.fit`",
        A_STEP,
        "The median step of each turn. Added: what dropout adds to the step without dropout, ours "
        "over Keras's.",
        in_readme=True,
    ),
    "memory": Table(
        "Memory of training",
        BYTES,
        "Fresh processes; differences of a deep and a shallow model. Peak: of forward and "
        "backward. Alive: between the two. One bit, 0.125, is the least.",
        in_readme=True,
    ),
}


def power(size: int) -> str:
    """2^n for a power of two."""
    return f"2^{size.bit_length() - 1}" if size & (size - 1) == 0 else f"{size:,}"


def in_units(case: Case, name: str, unit: Unit) -> list[float]:
    """The figures of a candidate in the unit of its table."""
    each = case.elements if unit.each_element else 1
    return [figure * unit.factor / each for figure in case.figures[name]]


def digits(value: float) -> str:
    """Three digits that mean something, without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    decimals = next((d for d, least in enumerate((100, 10, 1, 0.1)) if magnitude >= least), 4)
    return f"{value:,.{decimals}f}"


def with_spread(values: list[float], spread: bool) -> str:
    """The median, with the quartiles of the turns if there are several and they are asked for."""
    middle = digits(statistics.median(values))
    if not spread or len(values) < 2:
        return middle
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle} ({digits(low)}-{digits(high)})"


def markdown(cases: Iterable[Case], table: Table, whole: bool = True) -> str:
    """Lay out cases of one table and group: the ratios, then the times.

    `whole` is with every candidate's time and with the quartiles; without it, the medians of the
    ratios and of the time of ours.
    """
    rows = []
    for case in cases:
        row = {"": case.row}
        row |= {heading: with_spread(case.ratio(heading), whole) for heading in case.ratios}
        row |= {
            f"{name}, {table.unit.name}": with_spread(in_units(case, name, table.unit), whole)
            for name in (case.figures if whole else [case.ours])
        }
        rows.append(row)
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    cells = [[row.get(heading, "") for heading in headings] for row in rows]
    align = ("left",) + ("right",) * (len(headings) - 1)
    return tabulate(cells, headings, tablefmt="pipe", disable_numparse=True, colalign=align)
