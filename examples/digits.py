"""Trains a small network on handwritten digits, a fifth of them with wrong labels, without dropout,
with Keras's dropout and with fastdrop's, and compares accuracies and step times."""

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # this compares layers on the CPU


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what is written to the file descriptor of the standard error stream."""
    terminal = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


with quiet():  # TensorFlow logs some lines at its start whatever the level
    import keras
    import tensorflow as tf

    import fastdrop
    import fastdrop_keras

    tf.config.list_logical_devices()

NONE, KERAS, FASTDROP = "no dropout", "keras.layers.Dropout", "fastdrop_keras.Dropout"
VARIANTS = {NONE: None, KERAS: keras.layers.Dropout, FASTDROP: fastdrop_keras.Dropout}
COLOURS = {NONE: "#555555", KERAS: "#0072B2", FASTDROP: "#D55E00"}  # for colour-blind readers, too

INPUT_RATE, RATE = 0.1, 0.5  # of the pixels, and of the units of each hidden layer
UNITS = 128
BATCH = 100
TRAINING_IMAGES = 9 * BATCH  # whole batches, for the step times
WRONG = TRAINING_IMAGES // 5  # of the labels
TURN = 10  # epochs that one variant trains before the next variant trains


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 pixels in [0, 1], and their labels; those of the test are correct."""

    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Result:
    """The measurements of one variant, over all seeds."""

    train_accuracy: np.ndarray  # (seeds, epochs), measured without dropout
    test_accuracy: np.ndarray  # (seeds, epochs)
    milliseconds: np.ndarray  # (seeds, epochs, steps)

    def timed(self) -> np.ndarray:
        """Return the step times without the first epoch, which traces, and each first step."""
        return self.milliseconds[:, 1:, 1:]

    def turn_medians(self) -> np.ndarray:
        """Return the median step time of each turn of each seed."""
        turns = np.arange(TURN, self.milliseconds.shape[1], TURN) - 1  # without the first epoch
        return np.stack([np.median(t, axis=(1, 2)) for t in np.split(self.timed(), turns, 1)])


class Recorder(keras.callbacks.Callback):
    """Records the time of each training step, and the accuracies after each epoch."""

    def __init__(self, digits: Digits, after_epoch: Callable[[], None]) -> None:
        super().__init__()
        self.digits = digits
        self.after_epoch = after_epoch
        self.train_accuracy: list[float] = []
        self.test_accuracy: list[float] = []
        self.milliseconds: list[list[float]] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.milliseconds.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        # Keras has read the step's loss: the step is complete, and not only launched.
        self.milliseconds[-1].append(1e3 * (time.perf_counter() - self.start))

    def on_epoch_end(self, epoch, logs=None):
        digits = self.digits
        self.train_accuracy.append(self.accuracy(digits.train_images, digits.train_labels))
        self.test_accuracy.append(self.accuracy(digits.test_images, digits.test_labels))
        self.after_epoch()

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Return the fraction of the images that the model recognizes, with dropout off."""
        probabilities = self.model(images, training=False)
        return float(np.mean(np.argmax(probabilities, axis=1) == labels))


def load(seed: int) -> Digits:
    """Return a random half of scikit-learn's digits, with wrong labels, and the rest as a test."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = train_test_split(
        images, labels, train_size=TRAINING_IMAGES, stratify=labels, random_state=seed
    )
    digits = Digits(*parts)
    random = np.random.default_rng(seed)
    wrong = random.permutation(TRAINING_IMAGES)[:WRONG]
    digits.train_labels[wrong] = (digits.train_labels[wrong] + random.integers(1, 10, WRONG)) % 10
    return digits


def build(dropout: type[keras.layers.Layer] | None) -> keras.Model:
    """Return a network of two hidden layers, with dropout of the input and of each if there is."""
    model = keras.Sequential([keras.Input((64,))])
    if dropout is not None:
        model.add(dropout(INPUT_RATE))
    for _ in range(2):
        model.add(keras.layers.Dense(UNITS, activation="relu"))
        if dropout is not None:
            model.add(dropout(RATE))
    model.add(keras.layers.Dense(10, activation="softmax"))
    # Without XLA, as Keras itself chooses on a CPU.
    model.compile("adam", loss="sparse_categorical_crossentropy", jit_compile=False)
    return model


def train(seeds: int, epochs: int, progress: Progress) -> dict[str, Result]:
    """Train all variants with the same seeds, in turns: drift of the machine affects all alike."""
    task = progress.add_task("", total=seeds * len(VARIANTS) * epochs)
    after_epoch = partial(progress.update, task, advance=1, refresh=True)
    recorders: dict[str, list[Recorder]] = {name: [] for name in VARIANTS}
    order = list(VARIANTS)
    for seed in range(seeds):
        keras.utils.clear_session()
        digits, models = load(seed), {}
        for name, dropout in VARIANTS.items():
            keras.utils.set_random_seed(seed)
            models[name] = build(dropout)
            recorders[name].append(Recorder(digits, after_epoch))
        for epoch in range(0, epochs, TURN):
            for name in order:
                progress.update(
                    task, description=f"seed {seed + 1} of {seeds}: {name}", refresh=True
                )
                models[name].fit(
                    digits.train_images,
                    digits.train_labels,
                    batch_size=BATCH,
                    initial_epoch=epoch,
                    epochs=min(epoch + TURN, epochs),
                    callbacks=[recorders[name][-1]],
                    verbose=0,
                )
            order.append(order.pop(0))
    return {name: gather(of_seeds) for name, of_seeds in recorders.items()}


def gather(recorders: Sequence[Recorder]) -> Result:
    """Combine the records of all seeds."""
    return Result(
        np.array([recorder.train_accuracy for recorder in recorders]),
        np.array([recorder.test_accuracy for recorder in recorders]),
        np.array([recorder.milliseconds for recorder in recorders]),
    )


def added(results: dict[str, Result], name: str) -> np.ndarray:
    """Return the milliseconds that a dropout layer added to a step, for each turn."""
    return (results[name].turn_medians() - results[NONE].turn_medians()).ravel()


def table(results: dict[str, Result]) -> Table:
    """Return the results as a table, with the method in its caption."""
    seeds, epochs, steps = results[NONE].milliseconds.shape
    table = Table(
        title=f"{epochs} epochs on {TRAINING_IMAGES} images, {seeds} seeds",
        caption=(
            "Accuracy: after the last epoch, dropout off; mean ± sd of the seeds, which split the "
            f"images too. Training: on the {TRAINING_IMAGES} images with the labels as "
            f"given, {WRONG} of them wrong; 100 % is to have memorized these. Step: one batch "
            f"of {BATCH}, from just before to just after Keras runs the graph for it "
            f"(steps_per_execution=1); median of {seeds} x {epochs - 1} x {steps - 1} steps, "
            f"without the first epoch, which traces, each epoch's first step, which waits for "
            f"data, and all evaluation. Added: by dropout of the input ({BATCH} x 64 elements, "
            f"rate {INPUT_RATE}) and of two layers ({BATCH} x {UNITS}, rate {RATE}), forward and "
            f"backward; median (quartiles) of the "
            f"differences from no dropout in {added(results, NONE).size} turns."
        ),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in ("test\naccuracy, %", "training", "step\nms", "added\nms"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        test, training = 100 * result.test_accuracy[:, -1], 100 * result.train_accuracy[:, -1]
        low, middle, high = np.percentile(added(results, name), [25, 50, 75])
        table.add_row(
            name,
            f"{test.mean():.2f} ± {test.std(ddof=1):.2f}",
            f"{training.mean():.2f}",
            f"{np.median(result.timed()):.2f}",
            "" if name == NONE else f"{middle:.2f} ({low:.2f}, {high:.2f})",
        )
    return table


def gain(results: dict[str, Result], name: str) -> str:
    """Return a sentence on the test accuracy with a dropout layer and without one."""
    points = 100 * (results[name].test_accuracy - results[NONE].test_accuracy)[:, -1]
    return (
        f"Test accuracy with {name} over none: {points.mean():+.1f} points "
        f"({points.min():+.1f} to {points.max():+.1f} in {points.size} seeds)."
    )


def verdict(results: dict[str, Result]) -> str:
    """Return a sentence that compares the times of the two dropout layers."""
    theirs, ours = added(results, KERAS), added(results, FASTDROP)
    if theirs.size < 10 or np.percentile(theirs, 25) <= 0:
        return "Too few turns, or too noisy a machine, to compare the added times."
    if np.percentile(ours, 25) <= 0:
        return (
            f"{KERAS} added {np.median(theirs):.2f} ms to a step; {FASTDROP} added "
            f"{np.median(ours):.2f} ms, which is within the noise."
        )
    ratio = np.median(theirs) / np.median(ours)
    return f"{KERAS} added {ratio:.2f} times as much to a step as {FASTDROP}."


def draw(results: dict[str, Result]) -> Figure:
    """Draw the learning curves and the step times."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(
        f"Dropout {RATE} when training on {TRAINING_IMAGES} handwritten digits, a fifth of them "
        "with wrong labels: accuracy, and the time of a step"
    )
    curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_curves(curves, results)
    draw_steps(bars, results)
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure


def draw_curves(axes: Axes, results: dict[str, Result]) -> None:
    """Draw the accuracies by epoch: solid on the test images, dashed on the training images."""
    seeds, epochs = results[NONE].test_accuracy.shape
    for name, result in results.items():
        for accuracy, line, images in (
            (result.train_accuracy, "--", "training"),
            (result.test_accuracy, "-", "test"),
        ):
            epoch = np.arange(1, epochs + 1)
            mean, sd = 100 * accuracy.mean(axis=0), 100 * accuracy.std(axis=0, ddof=1)
            low, high = mean - sd, np.minimum(mean + sd, 100)
            axes.plot(epoch, mean, line, color=COLOURS[name], label=f"{name}, {images}")
            axes.fill_between(epoch, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.set_title(f"Learning curves: mean of {seeds} seeds, band ± 1 sd", fontsize="medium")
    training = [100 * result.train_accuracy.mean(axis=0) for result in results.values()]
    axes.set_ylim(np.percentile(training, 5) - 1, 100.5)  # cuts off the first epochs
    axes.set(xlabel="epoch", ylabel="accuracy, dropout off (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize="small")


def draw_steps(axes: Axes, results: dict[str, Result]) -> None:
    """Draw a bar for each variant's step time, labelled with the time that dropout added."""
    for name, result in results.items():
        low, middle, high = np.percentile(result.timed(), [25, 50, 75])
        place = name.replace(".Dropout", "\n.Dropout")
        axes.bar(
            place,
            middle,
            yerr=[[middle - low], [high - middle]],
            color=COLOURS[name],
            capsize=6,
            width=0.7,
        )
        text = f"{middle:.2f} ms"
        if name != NONE:
            text += f"\nadded {np.median(added(results, name)):.2f}"
        axes.text(place, middle / 2, text, color="white", ha="center", va="center")
    axes.set_title("Training step: median, whiskers at the quartiles", fontsize="medium")
    axes.set_ylabel(f"time of a step, batch of {BATCH} (ms)")
    axes.grid(alpha=0.3, axis="y")


def describe() -> str:
    """Return the versions and the machine in one line."""
    with contextlib.redirect_stdout(io.StringIO()) as config:
        fastdrop.show_config()
    lines = [line.strip() for line in config.getvalue().splitlines()]
    return "; ".join([*lines, f"tensorflow: {tf.__version__}", f"keras: {keras.__version__}"])


def at_least_two(text: str) -> int:
    """Parse an int that is large enough for a standard deviation."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, not {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=at_least_two, default=3, help="default: %(default)s")
    parser.add_argument("--epochs", type=at_least_two, default=80, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("results/digits.png"), help="default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 epochs: only to try it")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs = 2, 3

    console = Console()
    console.print(describe(), style="dim", highlight=False)
    console.print(
        f"A fifth of the training labels is wrong: {WRONG} of {TRAINING_IMAGES}. The test labels "
        "are correct. With correct training labels there is little to gain: docs/experiments.md.",
        highlight=False,
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total} epochs"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,  # a thread that redraws would distort the step times
    ) as progress:
        results = train(options.seeds, options.epochs, progress)
    console.print(table(results))
    for sentence in (gain(results, KERAS), gain(results, FASTDROP), verdict(results)):
        console.print(sentence, highlight=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(options.output, dpi=150)
    console.print(f"Picture: {options.output}", highlight=False)


if __name__ == "__main__":
    main()
