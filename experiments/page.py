"""Writes the page of all experiments: for each the claim, the work, a table, a plot, sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import Progress
from scipy import stats
from tabulate import tabulate

# Okabe and Ito's palette for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """How much an experiment does: repetitions with other seeds, and a share of the steps."""

    seeds: int
    share: float
    progress: Progress

    def part(self, count: int) -> int:
        """Return the share of a number of epochs, passes or trees, at least 1."""
        return max(1, round(self.share * count))

    def some(self, values: Sequence[T], few: Sequence[T]) -> Sequence[T]:
        """Return `values` if all of the work is to be done, else `few`."""
        return values if self.share == 1 else few

    def runs(self, runs: Iterable[T], name: str) -> Iterator[T]:
        """Yield the runs of the experiment `name`, and show how many are done."""
        runs = list(runs)
        yield from self.progress.track(runs, description=name)


@dataclass(frozen=True)
class Section:
    """What the page says about an experiment. `found` are sentences that follow from numbers."""

    title: str
    claim: str
    done: str
    headings: list[str]
    rows: list[list[str]]
    figure: Figure
    found: list[str]


def spread(values: Any, decimals: int = 1) -> str:
    """Return the mean and the standard deviation of the seeds, as a cell of a table."""
    return f"{np.mean(values):.{decimals}f} ± {np.std(values, ddof=1):.{decimals}f}"


def compared(
    what: str, one: str, ones: Any, other: str, others: Any, unit: str = "points", decimals: int = 1
) -> str:
    """Return a sentence that compares `what` with `one` and with `other`, by pairs of equal seeds.

    It says that they differ only if the 95 % interval of the mean difference does not contain 0.
    """
    differences = np.subtract(ones, others)
    count = len(differences)
    mean = differences.mean()
    amount = f"{abs(mean):.{decimals}f} {unit}".rstrip()
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    interval = (
        f"(95 % interval {mean - half:.{decimals}f} to {mean + half:.{decimals}f}, {count} pairs "
        "with equal seeds)"
    )
    if abs(mean) <= half:
        return (
            f"{what}: no difference between {one} and {other} beyond the spread, "
            f"{'-' if mean < 0 else '+'}{amount} {interval}."
        )
    direction = "higher" if mean > 0 else "lower"
    return f"{what}: {amount} {direction} with {one} than with {other} {interval}."


def best(results: dict[Any, list[float]], lowest: bool = False) -> Any:
    """Return the key of the results with the highest, or the lowest, mean."""
    choose = min if lowest else max
    return choose(results, key=lambda key: np.mean(results[key]))


def plot(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side."""
    figure = Figure(figsize=(6.5 * panels, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.set_axisbelow(True)
        one.grid(alpha=0.3)
    return figure, axes


def line(axes: Axes, x: Any, results: Any, number: int, label: str) -> None:
    """Draw means by `x`, with a band of one standard deviation; `results` has a list for each."""
    mean = np.array([np.mean(values) for values in results])
    deviation = np.array([np.std(values, ddof=1) for values in results])
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(x, mean, marker="o", markersize=4, color=colour, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def log_scale(axes: Axes, ticks: Sequence[int]) -> None:
    """Give the horizontal axis a logarithmic scale, with labels at `ticks`."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def bars(axes: Axes, results: dict[str, Any]) -> None:
    """Draw the means of the results as points, with one standard deviation to each side."""
    for number, (name, values) in enumerate(results.items()):
        axes.errorbar(
            np.mean(values),
            name,
            xerr=np.std(values, ddof=1),
            fmt="o",
            capsize=4,
            color=COLOURS[number % len(COLOURS)],
        )
    axes.invert_yaxis()


def text(section: Section, name: str) -> str:
    """Return a section in Markdown, with a link to its plot."""
    table = tabulate(
        section.rows,
        section.headings,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left",) + ("right",) * (len(section.headings) - 1),
    )
    found = "\n".join(f"- {sentence}" for sentence in section.found)
    return (
        f"## {section.title}\n\n**Claim.** {section.claim}\n\n**Done.** {section.done}\n\n"
        f"{table}\n\n![{section.title}](experiments/{name}.png)\n\n**Found.**\n\n{found}\n"
    )


def write(sections: dict[str, Section], about: str, folder: Path) -> Path:
    """Write the page and its plots into `folder`, and return the page's path."""
    plots = folder / "experiments"
    plots.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():
        section.figure.savefig(plots / f"{name}.png", dpi=80)
    page = folder / "experiments.md"
    parts = [text(section, name) for name, section in sections.items()]
    page.write_text("\n".join([f"# Experiments\n\n{about}\n", *parts]))
    return page
