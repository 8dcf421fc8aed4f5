"""Splits handwritten digits, gives some of them wrong labels, and makes images that are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = 10
PIXELS = 64
WRONG = 0.2


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 pixels in [0, 1], and their labels. The test labels are all correct."""

    images: np.ndarray
    labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def split(seed: int, *, training: int = 900, validation: int = 0, wrong: float = 0.0) -> Digits:
    """Return a random split of the 1797 images, with a fraction `wrong` of the labels wrong.

    The wrong labels are those of the training and validation images. Each is another digit, all
    of which are equally likely.
    """
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    seen, test_images, true, test_labels = train_test_split(
        images, labels, train_size=training + validation, stratify=labels, random_state=seed
    )
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(true))[: round(wrong * len(true))]
    true[chosen] = (true[chosen] + generator.integers(1, CLASSES, len(chosen))) % CLASSES
    parts = np.split(seen, [training]), np.split(true, [training])
    return Digits(parts[0][0], parts[1][0], parts[0][1], parts[1][1], test_images, test_labels)


def no_digits(images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return images that are no digits, made of `images`."""
    generator = np.random.default_rng(seed)
    return {
        "digits with shuffled pixels": generator.permuted(images, axis=1),
        "uniform noise": generator.random(images.shape, np.float32),
        "digits in negative": 1 - images,
    }


def title(wrong: float) -> str:
    """Return the name of the labels with a fraction `wrong`."""
    return "A fifth of the labels wrong" if wrong else "All labels correct"
