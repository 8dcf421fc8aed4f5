"""Tests this installation in a few seconds and describes it: ``python -m fastdrop``.

It prints the configuration, whether each instruction set draws the bits that it must, and the speed
over NumPy's. A bug report can carry the whole output.
"""

import hashlib
import sys
import time
from collections.abc import Callable

import numpy as np

import fastdrop
from fastdrop import _isa

SECONDS = 2.0  # of measuring
SIZE = 2**20


def _digest(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()[:16]


def _known_answers() -> dict[str, tuple[np.ndarray, str]]:
    """Return a result of each kind, and the digest that it must have."""
    x = np.arange(-5000, 5000, dtype=np.float32) / 1024
    stream = fastdrop.Stream(42)
    stream.state = {"seed": 42, "step": 7}
    y, mask = fastdrop.dropout(x, 0.3, seed=stream)
    half = fastdrop.draw_mask(16384, 0.5, seed=0)
    return {
        "mask at rate 0.5": (np.asarray(half.bits), "3bcc6bffbee99bd9"),
        "mask at rate 0.3": (np.asarray(mask.bits), "1a18c038fb600f4f"),
        "dropout": (y, "856effca9e1c722c"),
        "its gradient": (fastdrop.dropout_grad(x, mask), "856effca9e1c722c"),
        "dropout of ReLU": (fastdrop.relu_dropout(x, 0.3, seed=42)[0], "91522c190278ccbe"),
        "alpha dropout": (fastdrop.alpha_dropout(x, 0.3, seed=42)[0], "9124d7b0acdff81d"),
        "Gaussian noise": (fastdrop.gaussian_noise(x, 0.5, seed=42)[0], "eed87c779cfe7cc0"),
    }


def wrong_answers() -> list[str]:
    """Return a line for each result that is wrong on an instruction set of this machine."""
    wrong = []
    for isa in fastdrop.available_isas():
        with _isa.using(isa):
            wrong += [
                f"{isa}: {name} has the digest {_digest(array)}, expected {expected}"
                for name, (array, expected) in _known_answers().items()
                if _digest(array) != expected
            ]
    return wrong


def _least_times(calls: list[Callable[[], object]]) -> list[float]:
    """Return the least time of each call, which take turns."""
    least = [float("inf")] * len(calls)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[index] = min(least[index], time.perf_counter() - start)
    return least


def _speeds() -> list[str]:
    """Return lines that compare `dropout_` with NumPy on an array of 4 MiB."""
    x, stream = np.ones(SIZE, np.float32), fastdrop.Stream(0)
    generator, rate = np.random.Generator(np.random.SFC64(0)), 0.2
    scale = np.float32(1 / (1 - rate))
    ours, multiply, expression = _least_times(
        [
            lambda: fastdrop.dropout_(x, rate, seed=stream),
            lambda: np.multiply(x, np.float32(1), out=x),
            lambda: x * (generator.random(SIZE, dtype=np.float32) >= rate) * scale,
        ]
    )
    return [
        f"dropout_ of {SIZE} float32: {ours * 1e6:.0f} us",
        f"over numpy.multiply in place: {ours / multiply:.2f}",
        f"the expression in NumPy over it: {expression / ours:.1f}",
    ]


def main() -> int:
    """Print the report; return 1 if a result is wrong, else 0."""
    fastdrop.show_config()
    wrong = wrong_answers()
    print("known answers")
    for line in wrong or [f"right on {', '.join(fastdrop.available_isas())}"]:
        print(f"  {line}")
    print("speed")
    for line in _speeds():
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
