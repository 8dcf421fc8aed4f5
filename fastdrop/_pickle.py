"""Owns the names that pickles hold: they stay, wherever what they stand for moves."""

from typing import Any

from fastdrop._mask import Mask, restored_mask
from fastdrop._stream import Stream, restored_stream


def _mask(state: dict[str, Any]) -> Mask:
    """The mask that was pickled as this state."""
    return restored_mask(state)


def _stream(state: dict[str, Any]) -> Stream:
    """The stream that was pickled as this state."""
    return restored_stream(state)
