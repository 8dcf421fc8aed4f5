"""Owns the calls whose instructions are counted; a program that `instructions.py` runs.

Each case is called with two sizes, once each with everything warm; what counts is the difference,
in which the cost of a call and of its first elements drops out. Memory begins at a line of 64
bytes, or 16 bytes into one where a case says so, since kernels treat these differently.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import fastdrop

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
# Both of whole blocks, and enough of them for the loops that take several at a time.
ELEMENTS = (2**15, 2**16)
CALLS = (20, 120)
# 0.2 takes twelve planes and sometimes more, 0.5 one.
RATES = (0.2, 0.5)
SEED = 42


class Case(NamedTuple):
    """A call to count, made for a size by `make`, and the sizes to count it with."""

    make: Callable[[int], Callable[[], Any]]
    sizes: tuple[int, int] = ELEMENTS


def filled(size: int, dtype: Any, offset: int = 0) -> np.ndarray:
    """An array of halves that begins `offset` bytes into a line."""
    bytes_ = size * np.dtype(dtype).itemsize
    memory = np.empty(bytes_ + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    array = memory[start : start + bytes_].view(dtype)
    array[:] = 0.5
    return array


def in_place(size, dtype, rate=0.2, offset=0, **options):
    x = filled(size, dtype, offset)
    return lambda: fastdrop.dropout_(x, rate, seed=SEED, **options)


def out_of_place(size, dtype):
    x, out = filled(size, dtype), filled(size, dtype)
    return lambda: fastdrop.dropout(x, 0.2, seed=SEED, out=out)


def mask_only(size, rate, offset=0):
    return lambda: fastdrop.draw_mask(size, rate, seed=SEED, offset=offset)


def backward(size, dtype, offset=0, store_mask=True):
    dy = filled(size, dtype, offset)
    mask = fastdrop.draw_mask(size, 0.2, seed=SEED, store_mask=store_mask)
    return lambda: fastdrop.dropout_grad_(dy, mask)


def relu(size, dtype):
    x, out = filled(size, dtype), filled(size, dtype)
    return lambda: fastdrop.relu_dropout(x, 0.2, seed=SEED, out=out)


WIDTH = 256


def rows(size, dtype):
    return filled(size, dtype).reshape(size // WIDTH, WIDTH)


def bias_add(size, dtype):
    x, residual, out = (rows(size, dtype) for _ in range(3))
    bias = filled(WIDTH, dtype)
    return lambda: fastdrop.bias_dropout_add(x, bias, residual, 0.2, seed=SEED, out=out)


def bias_add_gradient(size, dtype):
    dy, out = rows(size, dtype), rows(size, dtype)
    mask = fastdrop.draw_mask(dy.shape, 0.2, seed=SEED)
    return lambda: fastdrop.bias_dropout_add_grad(dy, mask, out=out)


def shared(size, noise_shape):
    x = filled(size, np.float32).reshape(size // 1024, 64, 16)
    return lambda: fastdrop.dropout_(x, 0.2, seed=SEED, noise_shape=noise_shape)


def fortran(size, dtype):
    x = rows(size, dtype).T
    return lambda: fastdrop.dropout_(x, 0.2, seed=SEED)


def every_second(size, dtype):
    x = filled(2 * size, dtype)[::2]
    return lambda: fastdrop.dropout_(x, 0.2, seed=SEED)


def small_forward(calls):
    x, stream = filled(16, np.float32), fastdrop.Stream(SEED)

    def repeated():
        for _ in range(calls):
            fastdrop.dropout_(x, 0.2, seed=stream)

    return repeated


def small_backward(calls):
    dy = filled(16, np.float32)
    mask = fastdrop.draw_mask(16, 0.2, seed=SEED)

    def repeated():
        for _ in range(calls):
            fastdrop.dropout_grad_(dy, mask)

    return repeated


def _cases() -> dict[str, Case]:
    cases = {}

    def add(name, function, **arguments):
        cases[name] = Case(functools.partial(function, **arguments))

    for dtype in DTYPES:
        name = np.dtype(dtype).name
        for rate in RATES:
            add(f"forward in place, {name}, rate {rate}", in_place, dtype=dtype, rate=rate)
        add(f"forward out of place, {name}", out_of_place, dtype=dtype)
        add(f"forward in place, {name}, scale 1", in_place, dtype=dtype, scale=1.0)
        add(f"backward, {name}", backward, dtype=dtype)
        add(f"backward, {name}, off a line", backward, dtype=dtype, offset=16)
        add(f"replay, {name}", backward, dtype=dtype, store_mask=False)
        add(f"relu_dropout, {name}", relu, dtype=dtype)
        add(f"bias_dropout_add, {name}", bias_add, dtype=dtype)
        add(f"bias_dropout_add_grad, {name}", bias_add_gradient, dtype=dtype)
    for rate in RATES:
        add(f"mask only, rate {rate}", mask_only, rate=rate)
    add("mask only, from an odd offset", mask_only, rate=0.2, offset=5)
    add("forward in place, float32, off a line", in_place, dtype=np.float32, offset=16)
    add("forward in place, float32, rate 0", in_place, dtype=np.float32, rate=0.0, scale=2.0)
    add("noise_shape (None, 1, None), float32", shared, noise_shape=(None, 1, None))
    add("noise_shape (None, None, 1), float32", shared, noise_shape=(None, None, 1))
    add("noise_shape (1, None, None), float32", shared, noise_shape=(1, None, None))
    for dtype in (np.float32, np.float16):
        name = np.dtype(dtype).name
        add(f"Fortran order, {name}", fortran, dtype=dtype)
        add(f"every second element, {name}", every_second, dtype=dtype)
    return cases


# Instructions an element, in fastdrop's own modules.
KERNEL_CASES = _cases()
# Instructions a call on 16 elements: these hang on Python, whose interpreter they go through.
CALL_CASES = {
    "small dropout_": Case(small_forward, CALLS),
    "small dropout_grad_": Case(small_backward, CALLS),
}


def main(marks_library: str) -> None:
    """Run every case under every instruction set, a dump of callgrind's for each size."""
    marks = ctypes.CDLL(marks_library)
    gc.disable()  # A collection belongs to no case.
    calls = []
    for isa in fastdrop.available_isas():
        for name, case in (KERNEL_CASES | CALL_CASES).items():
            for size in case.sizes:
                calls.append((f"{isa}|{name}|{size}".encode(), isa, case.make(size)))
    for _, isa, call in calls:
        with fastdrop._isa.using(isa):
            call()
    marks.start()
    for label, isa, call in calls:
        with fastdrop._isa.using(isa):
            marks.zero()
            call()
            marks.dump(label)


if __name__ == "__main__":
    main(sys.argv[1])
