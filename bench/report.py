"""Writes the report of a run: a page that holds all of it, its plots, and tables for the README."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from markdown_it import MarkdownIt

from bench import plots
from bench.results import Run
from bench.tables import TABLES, markdown, with_spread

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0;
        font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
img { max-width: 100%; }
h2 { margin-top: 3rem; }
"""

HOW = """\
Candidates are timed in turns in one process: a round gives each of them a turn, and each round
begins with another. A figure is the median of the rounds, with the quartiles in brackets; a ratio
is taken within each round, where both sides see the same machine, and then its median. Before a
clock starts, each candidate has shown that what it computes is a dropout: the fraction kept within
six sigma, what is kept scaled exactly, and its gradient through the same mask. All have the same
sizes, dtypes and thread counts and are warmed up. Figures where ours is slower are here too.
"""


def heading(run: Run, command: str) -> str:
    """What ran, where and when, in Markdown."""
    machine = "\n".join(f"- {name}: {value}" for name, value in run.machine.items())
    return f"`{command}`, {run.date}, commit {run.commit}\n\n{machine}\n"


def text(run: Run, level: int, whole: bool = True, only_readme: bool = False) -> str:
    """The tables of the run in Markdown, under headings of this level."""
    parts = []
    for name, table in TABLES.items():
        groups = run.of(name)
        if not groups or (only_readme and not table.in_readme):
            continue
        parts.append(f"{'#' * level} {table.title}\n\n{table.about}\n")
        for group, cases in groups.items():
            title = f"{'#' * (level + 1)} {group}\n\n" if group else ""
            parts.append(f"{title}{markdown(cases, table, whole)}\n")
    return "\n".join(parts)


def losses(run: Run) -> str:
    """Where a peer took less time than ours, in Markdown."""
    lines = [
        f"- {case.label}: {name} takes less; ours takes {with_spread(ratio, True)} times as long"
        for case in run.cases
        for name, ratio in case.faster_than_ours().items()
    ]
    return "\n".join(lines) if lines else "Nowhere in this run."


def write(run: Run, folder: Path, command: str) -> list[Path]:
    """Write the plots, the tables and the page into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written, pictures = [], []
    for name, caption, figure in plots.figures(run):
        memory = io.BytesIO()
        figure.savefig(memory, dpi=150)
        written.append(folder / f"{name}.png")
        written[-1].write_bytes(memory.getvalue())
        data = base64.b64encode(memory.getvalue()).decode()
        pictures.append(f"{caption}\n\n![{name}](data:image/png;base64,{data})\n\n")
    top = f"# fastdrop, measured\n\n{heading(run, command)}\n{HOW}\n"
    tables = folder / "report.md"
    slower = f"## Where a peer is faster\n\n{losses(run)}\n\n"
    tables.write_text(f"{top}\n{slower}{text(run, 2, whole=False)}")
    parser = MarkdownIt("commonmark").enable("table")
    # The images are our own, and in the page itself, which it would not allow to strangers.
    parser.validateLink = lambda url: True
    body = parser.render(f"{top}\n## Pictures\n\n{''.join(pictures)}\n{slower}{text(run, 2)}")
    page = folder / "report.html"
    page.write_text(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>fastdrop, measured</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}</body></html>\n"
    )
    return [page, tables, *written]


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


# Which plots a README shows, and the folder beside it that holds them.
SHOWN, FOLDER = ("arrays", "layers-training-speedup", "training", "memory"), Path("docs/measured")


def put_into(readme: Path, run: Run, command: str) -> None:
    """Put the tables and plots that are for it between the two marks in a README, in the place of
    the old ones.

    Raises
    ------
    ValueError
        If the marks are not there; nothing is written then.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} has no {BEGIN} ... {END}")
    machine = run.machine
    what = (
        f"`{command}` on {run.date}, commit {run.commit}: {machine['processor']}, "
        f"{machine['instruction set in use']}, {machine['compiler']}, {machine['python']}, NumPy "
        f"{machine['numpy']}, TensorFlow {machine['tensorflow']}, Keras {machine['keras']}, "
        f"PyTorch {machine['torch']}, JAX {machine['jax']}."
    )
    pictures = []
    for name, caption, figure in plots.figures(run):
        if name in SHOWN:
            (readme.parent / FOLDER).mkdir(parents=True, exist_ok=True)
            figure.savefig(readme.parent / FOLDER / f"{name}.png", dpi=80)
            pictures.append(f"![{name}]({(FOLDER / name).as_posix()}.png)\n\n{caption}\n\n")
    tables = text(run, 3, whole=False, only_readme=True)
    readme.write_text(f"{before}{BEGIN}\n{what}\n\n{''.join(pictures)}{tables}{END}{after}")
