"""Owns whether what a peer computes is a dropout: the time of anything else is worth nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SIGMAS = 6


class InvalidDropoutError(Exception):
    """A peer's result is no dropout of its input."""


def check_dropout(
    result: np.ndarray,
    rate: float,
    scale: float,
    *,
    name: str,
    dtype: Any = np.float32,
    ulps: int = 0,
) -> None:
    """Raise InvalidDropoutError, with the name, where the result is no dropout of ones.

    The kept fraction has to be within six sigma of 1 - rate; each kept element has to be the scale
    rounded to the dtype, exactly for ours and within `ulps` units in the last place for peers that
    divide by the rounded 1 - rate instead; each other one has to be zero.
    """
    result = np.asarray(result)
    if result.size == 0:
        raise InvalidDropoutError(f"{name}: there is no result to look at")
    kept = result != 0  # NaN too, which is no scale
    fraction, asked = kept.mean(), 1 - rate
    sigma = math.sqrt(rate * asked / result.size)
    if not abs(fraction - asked) <= SIGMAS * sigma:
        raise InvalidDropoutError(
            f"{name}: it keeps {fraction:.6f} of {result.size} elements where {asked:.6f} "
            f"(± {SIGMAS * sigma:.6f}) were asked for"
        )
    dtype = np.dtype(dtype)
    low = high = dtype.type(scale)
    for _ in range(ulps):
        low, high = np.nextafter(low, dtype.type(0)), np.nextafter(high, dtype.type(math.inf))
    wrong = kept & ~((float(low) <= result) & (result <= float(high)))
    if wrong.any():
        raise InvalidDropoutError(
            f"{name}: {int(wrong.sum())} kept elements are not the scale {float(low)!r}"
            + (f" .. {float(high)!r}" if ulps else "")
            + f" of {dtype.name}; the first of them is {float(result[wrong][0])!r}"
        )


def check_peer(peer: Any, n: int, dtype: Any) -> None:
    """Raise InvalidDropoutError unless each call of a prepared peer is a dropout of its own, and
    its gradient goes through the mask of its forward pass. What it prepared is made anew after."""
    scale = 1 / (1 - peer.rate)

    def checked(call: Any, read: Any) -> np.ndarray:
        call()
        result = read()
        check_dropout(result, peer.rate, scale, name=peer.name, dtype=dtype, ulps=peer.ulps)
        if result.size != n:
            raise InvalidDropoutError(f"{peer.name}: {result.size} elements of {n} came back")
        return result

    peer.prepare(n, dtype)
    first = checked(peer.forward, peer.result)
    if not peer.in_place:
        second = checked(peer.forward, peer.result)
        if np.array_equal(first, second):
            raise InvalidDropoutError(f"{peer.name}: two calls have the same mask")
    if peer.has_backward:
        peer.prepare(n, dtype)
        result = checked(peer.forward_backward, peer.result)
        if not np.array_equal(peer.gradient() != 0, result != 0):
            raise InvalidDropoutError(f"{peer.name}: the gradient has another mask than the output")
        check_dropout(
            peer.gradient(),
            peer.rate,
            scale,
            name=f"{peer.name}, gradient",
            dtype=dtype,
            ulps=peer.ulps,
        )
    peer.prepare(n, dtype)
