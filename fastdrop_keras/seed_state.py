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

from fastdrop._config import STREAM_VERSION


class SeedState(keras.Operation):
    """Puts a seed generator's state into `.keras` and `.weights.h5` files.

    It is an object beside the layer's weights and not one of them: files without it load, the
    state staying as it is, and `keras.layers.Dropout` can load a file with it. An operation, since
    that is the plainest of Keras's public classes whose state its files hold; it is never called.

    Beside the state stands the number of the random stream that it is a place in: in another one
    it would be a place among other masks.

    Args:
        generator: The `keras.random.SeedGenerator` whose state is saved and restored.
    """

    def __init__(self, generator: keras.random.SeedGenerator) -> None:
        super().__init__()
        self._state = generator.state

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the state to a file; called by Keras."""
        store["state"] = self._state
        store["stream"] = np.array([STREAM_VERSION])

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
        # Stream 1 wrote no number.
        stream = store["stream"] if "stream" in store.keys() else np.array([1])  # noqa: SIM118
        if np.dtype(stream.dtype).kind not in "iu" or tuple(stream.shape) != (1,):
            raise ValueError(
                "The number of a dropout layer's random stream must be one integer. Received: an "
                f"array of shape {tuple(stream.shape)} and dtype {stream.dtype} in the file, for "
                f"{self._state.path}"
            )
        _check_stream(int(stream[0]), f"the file, for {self._state.path}")
        self._state.assign(saved)


class StreamNumber(tf.train.experimental.PythonState):
    """Puts the number of the random stream into checkpoints, and refuses those with another.

    TensorFlow restores Python's states before its variables, so that nothing has changed then.
    """

    def serialize(self) -> str:
        """Return what to write; called by TensorFlow."""
        return str(STREAM_VERSION)

    def deserialize(self, string_value: bytes) -> None:
        """Check what was read; called by TensorFlow."""
        number = string_value.decode(errors="replace")
        _check_stream(int(number) if number.isdecimal() else number, "the checkpoint")


def _check_stream(number: int | str, where: str) -> None:
    """Raise an error where a seed's state is of another random stream than this library's."""
    if number != STREAM_VERSION:
        raise ValueError(
            f"The state of a dropout layer's seed generator must be of random stream "
            f"{STREAM_VERSION}, which this version of fastdrop draws. Received: one of stream "
            f"{number} in {where}. Its masks would be others from here on"
        )


class Checkpointed(tf.train.Checkpoint):
    """What a layer holds on to, so that `tf.train.Checkpoint` of its model saves the seed's state.

    As an attribute of its own the variable would count among the layer's weights.

    Args:
        generator: The `keras.random.SeedGenerator` whose state is saved and restored.
    """

    def __init__(self, generator: keras.random.SeedGenerator) -> None:
        super().__init__(state=generator.state, stream=StreamNumber())

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        children = super()._trackable_children(save_type, **kwargs)
        # A SavedModel has no use for it, its operations say their own, and TensorFlow would warn.
        if save_type != "checkpoint":
            children.pop("stream", None)
        return children
