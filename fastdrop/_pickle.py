"""Defines the functions that pickles name. They never move or change their names."""

from typing import Any

from fastdrop._mask import Mask, restored_mask
from fastdrop._noise import Noise, restored_noise
from fastdrop._stream import Stream, restored_stream


def _mask(state: dict[str, Any]) -> Mask:
    """Restore a mask from its pickled state."""
    return restored_mask(state)


def _noise(state: dict[str, Any]) -> Noise:
    """Restore noise from its pickled state."""
    return restored_noise(state)


def _stream(state: dict[str, Any]) -> Stream:
    """Restore a stream from its pickled state."""
    return restored_stream(state)
