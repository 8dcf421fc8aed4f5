"""The drop rate of a layer, where its graphs find it."""

from __future__ import annotations

import secrets

from fastdrop_keras import native_library


class Dial:
    """A drop rate that can be turned while graphs use it: they read it each time they run.

    TensorFlow keeps graphs and their Python functions for good, and with them all that they refer
    to. So they refer to this and not to the layer; native operations by its number.

    Args:
        rate: Float between 0 and 1.
    """

    __slots__ = ("_native", "_rate", "number")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        # No graph that was saved in another process may find a dial of this one.
        self.number = secrets.randbits(63)
        self._native = None
        if native_library.FUNCTIONS is not None:
            self._native = native_library.FUNCTIONS.fastdrop_new_dial(self.number, rate)
            if self._native is None:
                raise MemoryError("no memory for the rate of a dropout layer")

    @property
    def rate(self) -> float:
        """Float between 0 and 1."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate = value
        if self._native is not None:
            native_library.FUNCTIONS.fastdrop_turn_dial(self._native, value)

    def __reduce__(self) -> tuple[type[Dial], tuple[float]]:
        # A copy is turned on its own.
        return Dial, (self._rate,)
