"""Plots a run: time per element by size, speed-ups, step times and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench.runs import Case, Run, quartiles

# Okabe and Ito's palette for colour-blind readers.
OURS, THEIRS, LIMIT = "#0072B2", "#D55E00", "#999999"
OTHERS = ("#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#F0E442", "#000000", "#8C564B", "#9467BD")

Groups = dict[str, list[Case]]
Values = Callable[[Case, str], list[float]]


def draw(run: Run) -> Iterator[tuple[str, str, Figure]]:
    """Yield the name, the caption and the figure of each plot that has cases in the run."""
    arrays = {group: cases for group, cases in run.of("arrays").items() if "backward" not in group}
    if arrays:
        yield (
            "arrays",
            "Time an element on NumPy arrays (float32, one thread). Grey: NumPy's in-place "
            "multiplication and copy, which draw nothing.",
            against_size(
                arrays,
                "ns an element",
                lambda case, name: [figure * 1e9 / case.each for figure in case.figures[name]],
                lambda case: case.figures,
            ),
        )
    layers = {group: cases for group, cases in run.of("layers").items() if ", float32" in group}
    if layers:
        figure = against_size(
            layers,
            "times as fast as the peer",
            lambda case, name: case.ratio(name, case.first),
            lambda case: case.peers,
        )
        for axes in figure.axes:
            axes.axhline(1, color="black", linewidth=1)
        yield (
            "layers",
            "How many times as fast our layer is as each peer in a `tf.function` (float32). Below "
            "the line of 1, the peer is faster.",
            figure,
        )
    if training := run.of("training").get(""):
        yield (
            "training",
            "A step of `model.fit` with dropout, over the same step without.",
            bars(training, "no dropout", "times the step without dropout"),
        )
    if memory := run.of("memory").get(""):
        yield (
            "memory",
            "Memory that training holds for dropout, over one bit an element and layer.",
            bars(memory, "one bit", "times one bit", scale="log"),
        )


def colour(case: Case, name: str) -> str:
    """The colour of a candidate. Ours and Keras's layer have the same in all plots."""
    if name in case.limits:
        return LIMIT
    if name == "keras.layers.Dropout":
        return THEIRS
    others = [n for n in case.figures if n not in (case.first, *case.limits)]
    return OURS if name == case.first else OTHERS[others.index(name) % len(OTHERS)]


def against_size(
    groups: Groups, label: str, values: Values, names: Callable[[Case], object]
) -> Figure:
    """Draw a panel for each group and a line for each candidate, with the quartiles as a band."""
    figure = Figure(figsize=(7 * len(groups), 5.5), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (group, cases) in zip(panels, groups.items(), strict=True):
        for name in names(cases[0]):
            have = [case for case in cases if name in case.figures]
            sizes = [2 ** int(case.row.removeprefix("2^")) for case in have]
            low, middle, high = zip(*(quartiles(values(case, name)) for case in have), strict=True)
            shade = colour(cases[0], name)
            limits = list(cases[0].limits)
            axes.plot(
                sizes,
                middle,
                ("--", ":")[limits.index(name)] if name in limits else "-",
                color=shade,
                linewidth=2.5 if name == cases[0].first else 1.5,
                marker="o",
                markersize=3.5,
                label=name,
            )
            axes.fill_between(sizes, low, high, color=shade, alpha=0.15, linewidth=0)
        axes.set_title(group)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("elements")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        tidy(axes)
    panels[0].set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def bars(cases: list[Case], limit: str, label: str, scale: str = "linear") -> Figure:
    """Draw fastdrop and the peers relative to a limit, with a group of bars for each case."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in cases[0].figures if name != limit]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        spread = [quartiles(case.ratio(name, limit)) for case in cases]
        low, middle, high = zip(*spread, strict=True)
        drawn = axes.bar(
            [index + (place - (len(names) - 1) / 2) * width for index in range(len(cases))],
            middle,
            width,
            yerr=[
                [b - a for a, b in zip(low, middle, strict=True)],
                [b - a for a, b in zip(middle, high, strict=True)],
            ],
            color=colour(cases[0], name),
            capsize=4,
            label=name,
        )
        axes.bar_label(drawn, fmt="{:.3g}")
    axes.axhline(1, color="black", linewidth=1, label=limit)
    rows = [case.row.replace(", ", "\n") for case in cases]
    axes.set_xticks(range(len(cases)), rows, fontsize="small")
    axes.set_yscale(scale)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    tidy(axes)
    return figure


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
