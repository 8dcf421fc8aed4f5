"""Saves a dropout layer's stream position in files, and gives each call a position of its own.

Keras does not save the state of a layer's seed generator. Without this module, a resumed training
run would start its stream of masks again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import MutableMapping
from typing import Any

import keras
import numpy as np

from fastdrop._config import STREAM_VERSION

# Two threads that read a state before either advances it would draw one mask. Reentrant: a signal
# handler may call a layer while its own thread has the lock.
taking_a_seed = threading.RLock()


def _forget_the_lock() -> None:
    """Make a new lock in a forked child: the thread that has the old one is not in the child."""
    global taking_a_seed
    taking_a_seed = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_lock)


def position(generator: keras.random.SeedGenerator) -> Any:
    """Return the seed and the step of a seed generator's state, an array of two integers."""
    state = np.asarray(generator.state)
    # On JAX, ours have them in two words each.
    return state.view(np.int64) if state.size == 4 else state


def set_position(generator: keras.random.SeedGenerator, seed_and_step: Any) -> None:
    """Set the seed and the step, or raise a ValueError if the state cannot hold them."""
    numbers = np.asarray(seed_and_step)
    if tuple(generator.state.shape) == (4,):
        numbers = numbers.astype(np.int64).view(np.uint32)
    if (numbers > np.iinfo(generator.state.dtype).max).any():
        raise ValueError(
            f"a seed generator with numbers of dtype {generator.state.dtype} cannot hold the seed "
            f"and step {numbers.tolist()}"
        )
    generator.state.assign(numbers)


class SeedState(keras.Operation):
    """Puts a seed generator's state into `.keras` and `.weights.h5` files.

    It is not a weight of the layer: a file without it loads and leaves the state unchanged, and
    `keras.layers.Dropout` can load a file with it. `keras.Operation` is the simplest public class
    whose state Keras's files hold; nothing calls it.

    It also saves the number of the random stream: another stream draws other masks.
    """

    def __init__(self, generator: keras.random.SeedGenerator) -> None:
        super().__init__()
        self._generator = generator

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the state to a file; called by Keras."""
        store["state"] = position(self._generator)
        store["stream"] = np.array([STREAM_VERSION])

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Read the state from a file, if the file has one; called by Keras."""
        if "state" not in store.keys():  # noqa: SIM118 - Keras's stores are not all dicts
            return
        saved = store["state"]
        # Before the data is read: in a damaged file it may have any size and type.
        if np.dtype(saved.dtype).kind not in "iu" or tuple(saved.shape) != (2,):
            raise ValueError(
                "The state of a dropout layer's seed generator must be two integers. Received: an "
                f"array of shape {tuple(saved.shape)} and dtype {saved.dtype} in the file, for "
                f"{self._generator.state.path}"
            )
        # Files of stream 1 have no number.
        stream = store["stream"] if "stream" in store.keys() else np.array([1])  # noqa: SIM118
        if np.dtype(stream.dtype).kind not in "iu" or tuple(stream.shape) != (1,):
            raise ValueError(
                "The number of a dropout layer's random stream must be one integer. Received: an "
                f"array of shape {tuple(stream.shape)} and dtype {stream.dtype} in the file, for "
                f"{self._generator.state.path}"
            )
        check_stream(int(stream[0]), f"the file, for {self._generator.state.path}")
        set_position(self._generator, saved)


def check_stream(number: int | str, where: str) -> None:
    """Raise an error if a seed's state is of another random stream."""
    if number != STREAM_VERSION:
        raise ValueError(
            f"The state of a dropout layer's seed generator must be of random stream "
            f"{STREAM_VERSION}, which this version of fastdrop draws. Received: one of stream "
            f"{number} in {where}. Its masks would be others from here on"
        )
