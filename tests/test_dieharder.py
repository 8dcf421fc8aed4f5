"""Dieharder, an independent program, tests the mask stream; `make test-slow` runs it.

Dieharder reads the packed bits of masks at rate 1/2, one mask for each step. The rule: none of the
M p-values of the battery may be within ALPHA / 2M of 0 or 1. A perfect stream breaks the rule for
at most a fraction ALPHA of all seeds. Dieharder's own verdict WEAK is ignored: it is for p-values
within .005 of 0 or 1, which are one in a hundred for a perfect stream.
"""

import concurrent.futures
import contextlib
import shutil
import subprocess
import threading

import numpy as np
import pytest

import fastdrop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("dieharder") is None, reason="needs dieharder: apt-get install dieharder"
    ),
]

ALPHA = 1e-3
# The numbers of the tests that dieharder rates as good and that take seconds.
TESTS = {
    "birthdays": 0,
    "rank 32x32": 2,
    "rank 6x8": 3,
    "bitstream": 4,
    "count the ones, stream": 8,
    "count the ones, bytes": 9,
    "parking lot": 10,
    "minimum distance": 11,
    "spheres": 12,
    "squeeze": 13,
    "runs": 15,
    "craps": 16,
    "monobit": 100,
    "runs of bits": 101,
    "serial": 102,
    "DCT": 206,
    "monobit 2": 209,
}
NEIGHBOURS = ("birthdays", "rank 32x32", "bitstream", "squeeze", "serial")
PIECE = 2**25


def library(seed):
    """Bytes of mask after mask."""
    stream = fastdrop.Stream(seed)
    while True:
        yield fastdrop.draw_mask(PIECE, 0.5, seed=stream).bits


def one_block(seed):
    """As if every block started from the same state."""
    block = fastdrop.draw_mask(4096, 0.5, seed=seed).bits
    while True:
        yield np.tile(block, PIECE // 4096)


def dead_half(seed):
    """As if half of the lanes repeated the other half's state."""
    for bits in library(seed):
        # Four of eight lanes, of 64 bits each, in every vector of 512.
        yield np.repeat(bits.reshape(-1, 2, 32)[:, :1], 2, axis=1)


def write(pieces, pipe):
    """Write until the reader closes the pipe."""
    with contextlib.suppress(BrokenPipeError), pipe:
        for piece in pieces:
            pipe.write(piece)


def p_values(pieces, number):
    """Dieharder's p-values for a stream in one of its tests."""
    # 200 is its raw input; the flags 8 + 128 print only the test's name and its p-values.
    command = ["dieharder", "-g", "200", "-d", str(number), "-D", "8", "-D", "128", "-c", ","]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        writer = threading.Thread(target=write, args=(pieces, program.stdin))
        writer.start()
        output = program.stdout.read().decode()
        writer.join()
    assert program.returncode == 0
    values = [float(line.split(",")[1]) for line in output.splitlines()]
    assert values, output
    return values


def battery(source, names=tuple(TESTS)):
    """The p-values of each test, with a new stream for each; two tests run at a time."""
    numbers = [TESTS[name] for name in names]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        streams = [source(2024 + number) for number in numbers]
        return dict(zip(names, pool.map(p_values, streams, numbers), strict=True))


def broken_in(results):
    """The names of the tests with a p-value that breaks the rule."""
    bound = ALPHA / (2 * sum(map(len, results.values())))
    return [name for name, values in results.items() if any(min(p, 1 - p) < bound for p in values)]


def test_the_stream_passes():
    results = battery(library)
    assert sum(map(len, results.values())) > 40
    assert not broken_in(results), results


def test_every_test_catches_one_block():
    results = battery(one_block)
    assert broken_in(results) == list(TESTS), results


def test_the_tests_of_neighbours_catch_a_dead_half():
    results = battery(dead_half, NEIGHBOURS)
    assert broken_in(results) == list(NEIGHBOURS), results
