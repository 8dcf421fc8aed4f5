"""The state of a layer's seed generator, where files and checkpoints find it.

Keras saves the weights of a layer but not the state of its seed generator, so that a training
run that is interrupted and resumed would begin its stream of masks again.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class SeedState(keras.Operation):
    """Puts a seed generator's state into `.keras` and `.weights.h5` files.

    It is an object beside the layer's weights and not one of them: files without it load, the
    state staying as it is, and `keras.layers.Dropout` can load a file with it. An operation, since
    that is the plainest of Keras's public classes whose state its files hold; it is never called.

    Args:
        generator: The `keras.random.SeedGenerator` whose state is saved and restored.
    """

    def __init__(self, generator: keras.random.SeedGenerator) -> None:
        super().__init__()
        self._state = generator.state

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the state to a file; called by Keras."""
        store["state"] = self._state

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Read the state from a file, where there is one; called by Keras."""
        if "state" not in store.keys():  # noqa: SIM118 - Keras's stores are not all dicts
            return
        saved = store["state"]
        # Before anything is read: a damaged file may be of any size, and numbers of any kind.
        if np.dtype(saved.dtype).kind not in "iu" or tuple(saved.shape) != tuple(self._state.shape):
            raise ValueError(
                "The state of a dropout layer's seed generator must be two integers. Received: an "
                f"array of shape {tuple(saved.shape)} and dtype {saved.dtype} in the file, for "
                f"{self._state.path}"
            )
        self._state.assign(saved)


def checkpointed(generator: keras.random.SeedGenerator) -> tf.train.Checkpoint:
    """Return what a layer holds on to, so that `tf.train.Checkpoint` of its model saves the state.

    As an attribute of its own the variable would count among the layer's weights.
    """
    return tf.train.Checkpoint(state=generator.state)
