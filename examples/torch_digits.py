"""Trains a small PyTorch network on handwritten digits without dropout, with PyTorch's and with
fastdrop's, and compares accuracies and step times."""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fastdrop_torch

NONE, TORCH, FASTDROP = "no dropout", "torch.nn.Dropout", "fastdrop_torch.Dropout"
VARIANTS = {NONE: nn.Identity, TORCH: nn.Dropout, FASTDROP: fastdrop_torch.Dropout}
RATE, UNITS, BATCH = 0.2, 512, 128
TRAINING_IMAGES = 3 * BATCH  # few, so that the network overfits
DTYPES = (torch.float32, torch.float32, torch.int64, torch.int64)


class Run:
    """A network in training, and the milliseconds of its steps."""

    def __init__(self, dropout: type[nn.Module], seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            *(nn.Linear(64, UNITS), nn.ReLU(), dropout(RATE)),
            *(nn.Linear(UNITS, UNITS), nn.ReLU(), dropout(RATE)),
            nn.Linear(UNITS, 10),
        )
        self.optimizer = torch.optim.RMSprop(self.model.parameters(), 1e-3)
        self.milliseconds: list[float] = []

    def train(self, images: Tensor, labels: Tensor) -> None:
        """Train for one epoch."""
        self.model.train()
        for batch in torch.randperm(len(labels)).split(BATCH):
            x, y = images[batch], labels[batch]
            start = time.perf_counter()
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.milliseconds.append(1e3 * (time.perf_counter() - start))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the percentage of the images that the network recognizes, with dropout off."""
        return 100 * (self.model.eval()(images).argmax(1) == labels).float().mean().item()


def load() -> list[Tensor]:
    """Return training and test images, then their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images / 16, labels, train_size=TRAINING_IMAGES, stratify=labels, random_state=0
    )
    return [torch.tensor(part, dtype=dtype) for part, dtype in zip(parts, DTYPES, strict=True)]


def compare(seeds: int, epochs: int) -> Table:
    """Train the variants in turns, an epoch each, and return a table of the results."""
    train_images, test_images, train_labels, test_labels = load()
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for seed in range(seeds):
        for name, dropout in VARIANTS.items():
            runs[name].append(Run(dropout, seed))
        for _ in range(epochs):
            for of_seeds in runs.values():
                of_seeds[-1].train(train_images, train_labels)
    table = Table(title=f"{epochs} epochs on {TRAINING_IMAGES} images, mean ± sd of {seeds} seeds")
    table.add_column("", no_wrap=True)
    for heading in ("test\naccuracy, %", "training", "step\nms, median"):
        table.add_column(heading, justify="right")
    for name, of_seeds in runs.items():
        test = [run.accuracy(test_images, test_labels) for run in of_seeds]
        training = [run.accuracy(train_images, train_labels) for run in of_seeds]
        steps = [time for run in of_seeds for time in run.milliseconds]
        table.add_row(
            name,
            f"{np.mean(test):.2f} ± {np.std(test, ddof=1):.2f}",
            f"{np.mean(training):.2f}",
            f"{np.median(steps):.2f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 epochs: only to try it")
    options = parser.parse_args(arguments)
    seeds, epochs = (2, 3) if options.quick else (5, 60)
    torch.set_num_threads(1)  # a second thread gains little on matrices this small
    Console().print(compare(seeds, epochs))


if __name__ == "__main__":
    main()
