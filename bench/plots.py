"""Draws a run: time an element against the size, speed-ups, step times and memory, as figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Case, Run
from bench.tables import TABLES, Unit, digits, in_units

# Okabe and Ito's colours, which the colour-blind can tell apart.
OURS, THEIRS, NEITHER = "#0072B2", "#D55E00", "#999999"
OTHERS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#8C564B", "#7F7F7F")
LIMITS = ("numpy.multiply", "numpy.copyto")
# How their lines are drawn.
NOT_DROPOUT = {"numpy.multiply": "--", "numpy.copyto": ":", "an empty graph": "--"}


def figures(run: Run) -> Iterator[tuple[str, str, Figure]]:
    """Give the file name, the caption and the figure of each plot that the run has cases for."""
    arrays = run.of("arrays").get("forward", [])
    if len(arrays) > 1:
        yield (
            "arrays",
            "Time an element on NumPy arrays (float32, one thread). The edge of the grey band is "
            "the faster of NumPy's in-place multiplication and copy, which draw nothing.",
            time_against_size(arrays, TABLES["arrays"].unit),
        )
        yield (
            "arrays-speedup",
            "How many times as fast `dropout_` is as each peer (float32, one thread).",
            speedups(arrays),
        )
    for group, cases in run.of("layers").items():
        if group.endswith(", float32") and len(cases) > 1:
            name = "layers-training" if "backward" in group else "layers-forward"
            yield (
                name,
                f"Time a layer in a `tf.function` ({group}), the graph's call included.",
                time_against_size(cases, TABLES["layers"].unit),
            )
            yield (
                f"{name}-speedup",
                f"How many times as fast our layer is as each peer in a `tf.function` ({group}).",
                speedups(cases),
            )
    training = run.of("training").get("", [])
    if training:
        yield "training", "What dropout adds to a step of `model.fit`.", bars_of_steps(training)
    memory = run.of("memory").get("", [])
    if memory:
        yield "memory", "Bytes that training holds for dropout.", bars_of_memory(memory)


def sizes(cases: Iterable[Case]) -> list[int]:
    """The number of elements of each case: of its row, where a layer's case has no other."""
    return [2 ** int(case.row.removeprefix("2^")) for case in cases]


def median(case: Case, name: str, unit: Unit) -> float:
    return statistics.median(in_units(case, name, unit))


def colours(cases: list[Case]) -> dict[str, str]:
    """A colour for each candidate, ours and Keras's the same in all figures."""
    names = list(dict.fromkeys(name for case in cases for name in case.figures))
    fixed = {names[0]: OURS, "keras.layers.Dropout": THEIRS, "no dropout": NEITHER}
    free = iter(OTHERS * 3)
    return {name: fixed.get(name) or next(free) for name in names}


def blank(width: float = 9, height: float = 5.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    return figure, axes


def lines(
    axes: Axes, cases: list[Case], values: Callable[[Case, str], list[float]], names: Iterable[str]
) -> None:
    """A line a candidate over the sizes, both axes logarithmic, the quartiles as bands."""
    colour = colours(cases)
    for name in names:
        have = [case for case in cases if name in case.figures]
        low, middle, high = zip(*(quartiles(values(case, name)) for case in have), strict=True)
        shade = NEITHER if name in NOT_DROPOUT else colour[name]
        axes.plot(
            sizes(have),
            middle,
            NOT_DROPOUT.get(name, "-"),
            color=shade,
            linewidth=2.5 if name == cases[0].ours else 1.5,
            marker="o",
            markersize=3.5,
            label=name,
        )
        axes.fill_between(sizes(have), low, high, color=shade, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: digits(value))
    axes.set_xlabel("elements")
    axes.legend(fontsize="small")


def time_against_size(cases: list[Case], unit: Unit) -> Figure:
    """The time of all candidates, above what memory allows."""
    figure, axes = blank()
    axes.set_ylabel(unit.name)
    if all(name in cases[0].figures for name in LIMITS):
        limit = [min(median(case, name, unit) for name in LIMITS) for case in cases]
        axes.fill_between(sizes(cases), 0, limit, color=NEITHER, alpha=0.2, linewidth=0)
    names = dict.fromkeys(name for case in cases for name in case.figures)
    lines(axes, cases, lambda case, name: in_units(case, name, unit), names)
    return figure


def speedups(cases: list[Case]) -> Figure:
    """The time of each peer over ours; below the line of 1, the peer is faster."""
    figure, axes = blank()
    axes.set_ylabel(f"times as fast as the peer: {cases[0].ours}")
    axes.axhline(1, color="black", linewidth=1)

    def ratio(case: Case, name: str) -> list[float]:
        return [a / b for a, b in zip(case.figures[name], case.figures[case.ours], strict=True)]

    names = dict.fromkeys(name for case in cases for name in case.figures)
    peers = [n for n in names if n not in NOT_DROPOUT and not n.startswith("fastdrop")]
    lines(axes, cases, ratio, peers)
    return figure


def bars_of_steps(cases: list[Case]) -> Figure:
    """Bars of the step of each network, its parts without dropout in grey."""
    figure = Figure(figsize=(3.6 * len(cases), 4.5), layout="constrained")
    unit = TABLES["training"].unit
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        colour = colours([case])
        for name in reversed(case.figures):
            low, middle, high = quartiles(in_units(case, name, unit))
            place = name.replace(".", "\n.")
            spread = [[middle - low], [high - middle]]
            axes.bar(place, middle, yerr=spread, color=colour[name], capsize=5, width=0.7)
            axes.text(place, middle / 2, digits(middle), color="white", ha="center")
        axes.set_title(case.row, fontsize="small")
        axes.tick_params(axis="x", labelsize="x-small")
        axes.set_ylabel(unit.name)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def bars_of_memory(cases: list[Case]) -> Figure:
    """Bars of ours and of Keras's, on a logarithmic axis, with the one bit as a line."""
    figure, axes = blank(9, 4.5)
    names = [name for name in cases[0].figures if name != "one bit"]
    colour = colours(cases)
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [case.figures[name][0] for case in cases]
        where = [index + (place - (len(names) - 1) / 2) * width for index in range(len(cases))]
        bars = axes.bar(where, values, width, color=colour[name], label=name)
        axes.bar_label(bars, [digits(value) for value in values])
    axes.axhline(cases[0].figures["one bit"][0], color="black", linewidth=1, label="one bit")
    axes.set_xticks(range(len(cases)), [case.row for case in cases], fontsize="small")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: digits(value))
    axes.set_ylabel(TABLES["memory"].unit.name)
    axes.legend(fontsize="small")
    return figure


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
