"""`python -m experiments`: runs the experiments and writes their page."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import sklearn
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastdrop
from experiments import (
    averages,
    calibration,
    factorization,
    kinds,
    noise,
    page,
    regularizers,
    trees,
    underfitting,
    width,
)

# In the order of the page.
EXPERIMENTS = {
    "noise": noise.run,
    "width": width.run,
    "underfitting": underfitting.run,
    "regularizers": regularizers.run,
    "averages": averages.run,
    "kinds": kinds.run,
    "factorization": factorization.run,
    "trees": trees.run,
    "calibration": calibration.run,
}


def names(text: str) -> list[str]:
    """Parse names of experiments, separated by commas."""
    chosen = text.split(",")
    for name in chosen:
        if name not in EXPERIMENTS:
            raise argparse.ArgumentTypeError(f"no experiment {name!r} in {', '.join(EXPERIMENTS)}")
    return [name for name in EXPERIMENTS if name in chosen]


def about(seconds: float) -> str:
    """Return what the page says of the whole run."""
    return (
        f"Written by `python -m experiments` in {seconds / 60:.0f} minutes on "
        f"{time.strftime('%Y-%m-%d')}: {os.cpu_count()} CPUs, {platform.machine()}, "
        f"{fastdrop._isa.active_isa()}, CPython {platform.python_version()}, fastdrop "
        f"{fastdrop.__version__}, NumPy {np.__version__}, TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}, scikit-learn {sklearn.__version__}.\n\nThe sentences under *Found* "
        "are computed from the numbers. They say that two results differ only if the 95 % interval "
        "of the mean difference does not contain 0. An interval of a few seeds is wide, and about "
        "one in twenty misses the true difference. The masks are the same on every machine, but "
        "the rounding of matrix products may not be."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few seeds and steps: only to try it")
    parser.add_argument(
        "--only",
        type=names,
        default=list(EXPERIMENTS),
        metavar="NAMES",
        help=f"some of {','.join(EXPERIMENTS)}",
    )
    parser.add_argument(
        "--output", type=Path, help="default: docs for a complete run, else results/experiments"
    )
    options = parser.parse_args(arguments)
    complete = not options.quick and options.only == list(EXPERIMENTS)
    output = options.output or Path("docs" if complete else "results/experiments")
    seeds, share = (3, 0.2) if options.quick else (6, 1.0)
    started = time.perf_counter()
    console = Console()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        work = page.Work(seeds, share, progress)
        sections = {name: EXPERIMENTS[name](work) for name in options.only}
    written = page.write(sections, about(time.perf_counter() - started), output)
    console.print(f"Page: {written}", highlight=False)


if __name__ == "__main__":
    main()
