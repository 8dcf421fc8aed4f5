"""Threads: their number, forks, signals, and the threads of other libraries."""

import concurrent.futures
import ctypes
import itertools
import os
import shutil
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reference
from reference import assert_same_bits

import fastdrop

LARGE = 2**21 + 4099

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")


@pytest.fixture(autouse=True)
def restored():
    before = fastdrop.get_num_threads()
    yield
    fastdrop.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_set_and_get(n):
    fastdrop.set_num_threads(n)
    assert fastdrop.get_num_threads() == n
    assert type(fastdrop.get_num_threads()) is int


def test_the_initial_count(import_in):
    cpus = len(os.sched_getaffinity(0))
    counts = [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"OMP_NUM_THREADS": "3", "FASTDROP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "many"}, cpus),
        ({"OMP_NUM_THREADS": ""}, cpus),
        ({"FASTDROP_NUM_THREADS": "1"}, 1),
    ]
    code = "import fastdrop; print(fastdrop.get_num_threads())"
    printed = import_in([environment for environment, _ in counts], code)
    assert [int(count) for count in printed] == [count for _, count in counts]


def test_the_initial_count_is_the_number_of_allowed_cpus(run_python):
    one_cpu = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code = "import fastdrop; print(fastdrop.get_num_threads())"
    assert run_python(one_cpu + code, OMP_NUM_THREADS="").stdout == "1\n"


def test_the_count_is_process_wide():
    found = []

    def other():
        found.append(fastdrop.get_num_threads())
        fastdrop.set_num_threads(7)

    with fastdrop.num_threads(6):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found == [6]
        assert fastdrop.get_num_threads() == 7


def test_context_manager_restores():
    fastdrop.set_num_threads(3)
    with fastdrop.num_threads(2):
        assert fastdrop.get_num_threads() == 2
        with fastdrop.num_threads(5):
            assert fastdrop.get_num_threads() == 5
        assert fastdrop.get_num_threads() == 2
    assert fastdrop.get_num_threads() == 3


def test_context_manager_restores_after_an_error():
    fastdrop.set_num_threads(3)
    with pytest.raises(KeyError), fastdrop.num_threads(2):
        raise KeyError
    assert fastdrop.get_num_threads() == 3


BAD = [0, -1, 1.5, "2", None, float("nan"), [2], 2**70]


@pytest.mark.parametrize("n", BAD, ids=repr)
def test_bad_numbers_are_refused(n):
    fastdrop.set_num_threads(3)
    with pytest.raises((TypeError, ValueError)) as refused:
        fastdrop.set_num_threads(n)
    assert repr(n) in str(refused.value)
    assert fastdrop.get_num_threads() == 3


@pytest.mark.parametrize("n", BAD, ids=repr)
def test_bad_numbers_are_refused_by_the_context_manager(n):
    fastdrop.set_num_threads(3)
    with pytest.raises((TypeError, ValueError)) as refused, fastdrop.num_threads(n):
        pass
    assert repr(n) in str(refused.value)
    assert fastdrop.get_num_threads() == 3


def test_a_bad_environment_is_refused(import_in):
    values = ["0", "-1", "1.5", "two", "1 2"]
    errors = import_in([{"FASTDROP_NUM_THREADS": value} for value in values])
    for value, error in zip(values, errors, strict=True):
        assert error.startswith("ImportError: FASTDROP_NUM_THREADS")
        assert value in error


def test_many_python_threads_at_once(isa):
    x = np.random.default_rng(0).normal(size=LARGE).astype(np.float32)
    expected = [
        reference.dropout(x, reference.keep_mask(seed, 0, 0.2, LARGE), 1 / (1 - 0.2))
        for seed in range(4)
    ]

    def call(i):
        seed, fresh = i % 4, x.copy()
        mask = fastdrop.dropout_(fresh, 0.2, seed=seed, store_mask=bool(i % 3))
        return seed, fresh, fastdrop.dropout_grad(x, mask)

    with fastdrop.num_threads(3), concurrent.futures.ThreadPoolExecutor(6) as pool:
        for seed, y, dx in pool.map(call, range(24)):
            assert_same_bits(y, expected[seed])
            assert_same_bits(dx, expected[seed])


LONG = np.ones((2**13, 2**12), np.float32)
LONG_CALLS = {
    "draw_mask": lambda: fastdrop.draw_mask(2**27, 0.3, seed=1),
    "dropout_": lambda: fastdrop.dropout_(LONG, 0.3, seed=1, scale=1.0),
    "dropout_, Fortran": lambda: fastdrop.dropout_(LONG.T, 0.3, seed=1, scale=1.0),
    "relu_dropout": lambda: fastdrop.relu_dropout(LONG, 0.3, seed=1, scale=1.0, out=LONG),
    "bias_dropout_add": lambda: fastdrop.bias_dropout_add(LONG, None, LONG, 0.3, out=LONG),
    "count": lambda: fastdrop.draw_mask(2**27, 0.3, seed=1, store_mask=False).count(),
    "alpha_dropout_": lambda: fastdrop.alpha_dropout_(LONG, 0.3, seed=1),
    "gaussian_dropout_": lambda: fastdrop.gaussian_dropout_(LONG[: 2**11], 0.3, seed=1),
    "gaussian_noise, Fortran": lambda: fastdrop.gaussian_noise(LONG[: 2**11].T, 0.0, seed=1),
}


@pytest.mark.alone
@pytest.mark.parametrize("call", LONG_CALLS)
def test_other_threads_run_python_during_a_kernel(call):
    with fastdrop._isa.using("portable"), fastdrop.num_threads(1):
        start = time.perf_counter()
        LONG_CALLS[call]()
        alone = time.perf_counter() - start
        # The system may cause one pause. A kernel with the GIL would cause five.
        longest_pauses = []
        for _ in range(5):
            worker = threading.Thread(target=LONG_CALLS[call])
            # Before the start, since a thread may keep the GIL from its start.
            longest, before = 0, time.perf_counter()
            worker.start()
            while worker.is_alive():
                now = time.perf_counter()
                longest, before = max(longest, now - before), now
            longest_pauses.append(longest)
    assert min(longest_pauses) < alone / 2


WITHOUT_GIL = """
import sys
import threading

import fastdrop
import numpy as np

size = 20_011
x = np.random.default_rng(0).normal(size=size)
stream = fastdrop.Stream(3)
stored = fastdrop.draw_mask(size, 0.3, seed=1)
drawn_again = fastdrop.draw_mask(size, 0.3, seed=1, store_mask=False)
expected = np.where(stored.unpack(), x * stored.scale, 0.0).tobytes()
ready = threading.Barrier(4)
steps, failures = [[] for _ in range(4)], []


def work(own):
    ready.wait()
    for i in range(200):
        fastdrop.set_num_threads(1 + i % 3)
        for mask in (stored, drawn_again):
            if mask.apply(x).tobytes() != expected or mask != stored:
                failures.append(i)
        y, mask = fastdrop.dropout(x, 0.3, seed=stream)
        own.append(mask.step)
        again = fastdrop.Stream(0)
        again.state = {"seed": 3, "step": mask.step}
        if fastdrop.draw_mask(size, 0.3, seed=again) != mask:
            failures.append(i)


workers = [threading.Thread(target=work, args=(own,)) for own in steps]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert not failures, failures
# One step for each call: none is repeated or skipped.
assert sorted(step for own in steps for step in own) == list(range(800)), stream.step
assert not sys._is_gil_enabled()
print("done")
"""


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the GIL"
)
def test_threads_without_the_gil(run_python):
    """Warnings are errors, and Python warns if a module enables the GIL."""
    program = run_python(WITHOUT_GIL)
    assert program.stdout == "done\n", program.stderr


FORKING = """
import os
import warnings

import fastdrop
import numpy as np

# Python warns of a fork with threads, which these tests need.
warnings.simplefilter("ignore", DeprecationWarning)


def call():
    y, mask = fastdrop.dropout(np.ones(2**21 + 4099, np.float32), 0.2, seed=5)
    return y.tobytes() + mask.bits.tobytes()


def threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0


def right_and_with_threads(expected):
    # Detects a child that uses its parent's workers: its results are right, but it has one thread.
    before = threads()
    return call() == expected and threads() == (before and before + 2)
"""

MULTIPROCESSING = """
import multiprocessing
import sys

import fastdrop


def bits(seed):
    return fastdrop.draw_mask(2**21 + 4099, 0.2, seed=seed).bits.tobytes()


if __name__ == "__main__":
    fastdrop.set_num_threads(2)
    expected = [bits(seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(bits, range(4)) == expected
    print("done")
"""


@needs_fork
def test_threads_work_in_a_forked_pool(run_python):
    # Python 3.12 warns of a fork with threads, which this test needs.
    code = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)"
    program = run_python(code + MULTIPROCESSING)
    assert program.stdout == "done\n", program.stderr


def test_the_interpreter_ends_cleanly_with_threads_running(run_python):
    program = run_python("""
import threading
import fastdrop
import numpy as np
fastdrop.set_num_threads(3)
def work():
    while True:
        fastdrop.dropout(np.ones(2**21, np.float32), 0.2)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
fastdrop.dropout(np.ones(2**21, np.float32), 0.2)
""")
    assert program.returncode == 0, program.stderr
    assert program.stderr == ""


# Memory that threads share.


@pytest.mark.parametrize("store_mask", [True, False])
def test_overlapping_reads(isa, store_mask):
    """Calls read the same memory and one mask at once, whole and in pieces."""
    x = np.random.default_rng(1).normal(size=LARGE).astype(np.float32)
    x.flags.writeable = False
    kept = reference.keep_mask(3, 0, 0.3, LARGE)
    expected = reference.dropout(x, kept, 1 / (1 - 0.3))
    mask = fastdrop.draw_mask(LARGE, 0.3, seed=3, store_mask=store_mask)

    def call(i):
        if i % 2:
            return mask.apply(x), expected
        first = i * 1000
        y, _ = fastdrop.dropout(x[first:], 0.3, seed=3)
        count = LARGE - first
        return y, reference.dropout(x[first:], kept[:count], 1 / (1 - 0.3))

    with fastdrop.num_threads(2), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for y, wanted in pool.map(call, range(12)):
            assert_same_bits(y, wanted)


def test_the_count_may_change_while_calls_run(isa):
    x = np.random.default_rng(2).normal(size=LARGE).astype(np.float32)
    kept = reference.keep_mask(4, 0, 0.3, LARGE)
    expected = reference.dropout(x, kept, 1 / (1 - 0.3))
    stop = threading.Event()

    def change():
        for n in itertools.cycle((1, 5, 2, 8, 3)):
            fastdrop.set_num_threads(n)
            if stop.wait(0.0005):
                return

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(20):
            assert_same_bits(fastdrop.dropout(x, 0.3, seed=4)[0], expected)
    finally:
        stop.set()
        changer.join()


RESHAPED = """
import threading, time, warnings
import numpy as np, fastdrop
fastdrop.set_num_threads(1)
warnings.simplefilter("ignore", DeprecationWarning)  # newer NumPy deprecates it
shape = (2048, 2048, 2)
content = np.arange(2**23, dtype=np.float32).reshape(shape)
x, out = content.copy(), content.copy()
args = dict(seed=1, noise_shape=(None, None, 1))
replayed = fastdrop.draw_mask(shape, 0.5, offset=3, store_mask=False, seed=1)
calls = {
    "dropout": lambda: fastdrop.dropout(x, 0.5, **args)[0],
    "dropout, out": lambda: fastdrop.dropout(x, 0.5, out=out, **args)[0],
    "dropout_": lambda: (fastdrop.dropout_(x, 0.5, **args), x)[1],
    "apply": lambda: replayed.apply(x),
    "apply_": lambda: replayed.apply_(x),
    "dropout_grad": lambda: fastdrop.dropout_grad(x, replayed, out=out),
    "relu_dropout": lambda: fastdrop.relu_dropout(x, 0.5, out=out, **args)[0],
    "bias_dropout_add": lambda: fastdrop.bias_dropout_add(x, None, out, 0.5, **args)[0],
    "bias_dropout_add_grad": lambda: fastdrop.bias_dropout_add_grad(x, replayed, out=out)[0],
    "alpha_dropout": lambda: fastdrop.alpha_dropout(x, 0.5, out=out, **args)[0],
    "gaussian_dropout": lambda: fastdrop.gaussian_dropout(x, 0.5, out=out, **args)[0],
    "gaussian_noise_": lambda: (fastdrop.gaussian_noise_(x, 0.5, seed=1), x)[1],
}

def called(call):
    x.shape = out.shape = shape
    x[...] = out[...] = content
    go.set()
    try:
        return call().tobytes()
    finally:
        while go.is_set():
            time.sleep(0.0001)

def reshape():
    # During the draw of the mask, which is most of each call.
    while not stop.is_set():
        go.wait()
        if changing:
            time.sleep(0.001)
            for array in (x, out):
                array.shape = (2**23, 1, 1)
                array.shape = (2,) * 23
        go.clear()

changing, stop, go = [], threading.Event(), threading.Event()
other = threading.Thread(target=reshape)
other.start()
expected = {name: called(call) for name, call in calls.items()}
changing.append(True)
seen = 0
for name, call in calls.items():
    for _ in range(5):
        try:
            assert called(call) == expected[name], name
            seen += 1
        except ValueError as error:
            assert "shape" in str(error), error  # the shape changed before the call
stop.set()
go.set()
other.join()
print("done", seen)
"""


@pytest.mark.alone
def test_an_array_that_another_thread_reshapes_during_a_call(run_python):
    program = run_python(RESHAPED, FASTDROP_ISA="portable")
    assert program.stdout.startswith("done "), (program.returncode, program.stderr)
    assert int(program.stdout.split()[1]) > 20, "calls that were reshaped too early say nothing"


# The number of threads.

COUNT = """
import os, threading
import numpy as np, fastdrop
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
for n in range(1, 5):
    fastdrop.set_num_threads(n)
    for _ in range(3):
        x = np.ones((2048, 2049), np.float32)
        mask = fastdrop.dropout_(x, 0.2)
        fastdrop.dropout_grad(x.T, fastdrop.draw_mask(x.T.shape, 0.2))
        fastdrop.relu_dropout(x, 0.2)
        fastdrop.bias_dropout_add_grad(x, fastdrop.bias_dropout_add(x, None, None, 0.2)[1])
        fastdrop.draw_mask(2**24, 0.2)
    print(threads() - before)
"""

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")


@pytest.mark.alone
@needs_proc
def test_no_more_threads_than_requested(run_python):
    program = run_python(COUNT)
    assert program.stdout.split() == ["0", "1", "2", "3"], program.stderr


@pytest.mark.alone
@needs_proc
def test_no_more_than_256_threads(run_python):
    program = run_python(
        "import os, fastdrop\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "fastdrop.set_num_threads(1000)\n"
        "assert fastdrop.draw_mask(2**26, 0.2, seed=1).count() > 0\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    assert program.stdout == "255\n", program.stderr


@pytest.mark.alone
def test_any_number_of_threads_may_be_requested(import_in):
    """A call with the environment's number also works."""
    code = """
import numpy as np, fastdrop
for n in (fastdrop.get_num_threads(), 2**29, 2**30 - 1, 2**30, 2**31 - 1):
    fastdrop.set_num_threads(n)
    y, _ = fastdrop.dropout(np.ones(2**21, np.float32), 0.5, seed=3)
    print(fastdrop.get_num_threads(), np.packbits(y[-5000:] != 0).tobytes().hex())
"""
    bits = np.packbits(reference.keep_mask(3, 0, 0.5, 5000, offset=2**21 - 5000)).tobytes().hex()
    numbers = [2**29, 2**30 - 1, 2**30, 2**31 - 1]
    printed = import_in([{"FASTDROP_NUM_THREADS": str(n)} for n in (1, *numbers)], code)
    for first, lines in zip((1, *numbers), printed, strict=True):
        assert lines.splitlines() == [f"{n} {bits}" for n in (first, *numbers)]


@pytest.mark.alone
@needs_proc
def test_small_arrays_start_no_thread(run_python):
    program = run_python("""
import os
import numpy as np, fastdrop
before = len(os.listdir("/proc/self/task"))
fastdrop.set_num_threads(8)
for size in (4096, 2**16):
    fastdrop.dropout(np.ones(size), 0.2)
    fastdrop.draw_mask(size, 0.2)
    fastdrop.relu_dropout(np.ones((size // 64, 64)).T, 0.2)
assert len(os.listdir("/proc/self/task")) == before
fastdrop.dropout(np.ones(2**21), 0.2)
assert len(os.listdir("/proc/self/task")) == before + 7
print("done")
""")
    assert program.stdout == "done\n", program.stderr


# Processes.

FORK_FIRST = """
fastdrop.set_num_threads(1)
expected = call()
fastdrop.set_num_threads(3)
# The child uses threads before its parent does, and forks again after.
child = os.fork()
if not child:
    right = right_and_with_threads(expected)
    grandchild = os.fork()
    if not grandchild:
        os._exit(0 if right_and_with_threads(expected) else 4)
    right = os.waitpid(grandchild, 0)[1] == 0 and call() == expected and right
    os._exit(0 if right else 3)
assert os.waitpid(child, 0)[1] == 0
assert call() == expected
child = os.fork()
if not child:
    # Twice, to start threads and to reuse them; and with another count.
    right = right_and_with_threads(expected) and call() == expected
    fastdrop.set_num_threads(2)
    os._exit(0 if right and call() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
assert call() == expected
print("done")
"""


@needs_fork
def test_a_child_may_use_threads_before_its_parent(run_python):
    program = run_python(FORKING + FORK_FIRST)
    assert program.stdout == "done\n", program.stderr


FORK_BUSY = """
import threading
fastdrop.set_num_threads(3)
expected = call()
stop = threading.Event()
def work():
    while not stop.is_set():
        call()
workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
ends = []
for _ in range(10):
    child = os.fork()
    if not child:
        os._exit(0 if right_and_with_threads(expected) else 3)
    ends.append(os.waitpid(child, 0)[1])
stop.set()
for worker in workers:
    worker.join()
assert ends == [0] * 10
print("done")
"""


@needs_fork
def test_a_fork_while_other_threads_are_busy(run_python):
    program = run_python(FORKING + FORK_BUSY)
    assert program.stdout == "done\n", program.stderr


def test_threads_work_in_spawned_processes(tmp_path, run_python):
    path = tmp_path / "spawned.py"
    path.write_text(MULTIPROCESSING.replace('"fork"', '"spawn"'))
    program = run_python(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')")
    assert program.stdout == "done\n", program.stderr


# Signals.

INTERRUPT = """
import os, signal, threading, time
import numpy as np, fastdrop
# A shell makes its background jobs ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
fastdrop.set_num_threads({threads})
x = np.ones(2**23, np.float32)
stream = fastdrop.Stream(5)
running = threading.Event()
def interrupt():
    running.wait()
    time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)
for _ in range(5):
    x[...] = 1
    running.clear()
    other = threading.Thread(target=interrupt)
    other.start()
    calls = 0
    first = stream.step
    try:
        running.set()
        while True:
            fastdrop.dropout_(x, 0.5, seed=stream, scale=1.0)
            calls += 1
    except KeyboardInterrupt:
        pass
    other.join()
    # Each step was used on the whole array.
    kept = np.ones(x.size, bool)
    for step in range(first, stream.step):
        there = fastdrop.Stream(0)
        there.state = {{"seed": 5, "step": step}}
        kept &= fastdrop.draw_mask(x.size, 0.5, seed=there).unpack()
    assert np.array_equal(x != 0, kept)
    assert stream.step - first - calls in (0, 1)
print("done")
"""


@pytest.mark.alone
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_comes_between_calls(run_python, threads):
    program = run_python(INTERRUPT.format(threads=threads))
    assert program.stdout == "done\n", program.stderr


INTERRUPT_ANY = """
import signal, traceback
import numpy as np, fastdrop
fastdrop.set_num_threads(1)
signal.signal(signal.SIGALRM, signal.default_int_handler)
x = np.full((2**11, 2**11), 3.0, np.float32)
memory = np.full((2**11, 2**12), 7.0, np.float32)
strided, dense = memory[:, ::2], np.full_like(x, 7.0)
bias, stream = np.ones(2**11, np.float32), fastdrop.Stream(1)
mask = fastdrop.draw_mask(x.shape, 0.5, seed=1)
replayed = fastdrop.draw_mask(x.shape, 0.5, seed=1, store_mask=False)
calls = {{
    "dropout": lambda out: fastdrop.dropout(x, 0.5, seed=stream, out=out),
    "dropout_": lambda out: fastdrop.dropout_(out, 0.5, seed=stream),
    "relu_dropout": lambda out: fastdrop.relu_dropout(x, 0.5, seed=stream, out=out),
    "bias_dropout_add": (
        lambda out: fastdrop.bias_dropout_add(x, bias, x, 0.5, seed=stream, out=out)
    ),
    "dropout_grad": lambda out: fastdrop.dropout_grad(x, replayed, out=out),
    "bias_dropout_add_grad": lambda out: fastdrop.bias_dropout_add_grad(x, mask, out=out),
    "draw_mask": lambda out: fastdrop.draw_mask(x.shape, 0.5, seed=stream),
    "alpha_dropout_": lambda out: fastdrop.alpha_dropout_(out, 0.5, seed=stream),
    "gaussian_dropout": lambda out: fastdrop.gaussian_dropout(x, 0.5, seed=stream, out=out),
    "spawn": lambda out: stream.spawn(3000),
}}
call, inside = calls[{call!r}], 0
for out in (strided, dense):
    for i in range(25):
        strided[...], dense[...] = 7.0, 7.0
        stream.state = {{"seed": 1, "step": 0}}
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0004 * i)
                call(out)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as interrupt:
            frames = traceback.extract_tb(interrupt.__traceback__)
            if any("fastdrop" in frame.name for frame in frames):
                inside += 1
                assert stream.step == 0, frames
                assert (strided == 7).all() and (dense == 7).all(), frames
print("done", inside)
"""

ANY_CALL = (
    *("dropout", "dropout_", "relu_dropout", "bias_dropout_add", "dropout_grad"),
    *("bias_dropout_add_grad", "draw_mask", "spawn"),
)


@pytest.mark.alone
@pytest.mark.parametrize("call", ANY_CALL)
def test_an_interrupted_call_is_complete_or_changes_nothing(run_python, call):
    program = run_python(INTERRUPT_ANY.format(call=call))
    assert program.stdout.startswith("done "), program.stderr


@pytest.mark.alone
def test_counting_a_mask_without_stored_bits_can_be_interrupted(run_python):
    """A mask without bits may have up to 2^63 elements."""
    program = run_python(
        """
import signal, fastdrop
signal.signal(signal.SIGALRM, signal.default_int_handler)
mask = fastdrop.draw_mask((2**60,), 0.5, store_mask=False)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    mask.count()
except KeyboardInterrupt:
    print("done")
""",
        timeout=30,
    )
    assert program.stdout == "done\n", program.stderr


@pytest.mark.alone
@needs_proc
def test_workers_block_signals(run_python):
    program = run_python("""
import os, signal, threading
import numpy as np, fastdrop
fastdrop.set_num_threads(4)
others = set(os.listdir("/proc/self/task"))
fastdrop.dropout(np.ones(2**21), 0.5)
workers = set(os.listdir("/proc/self/task")) - others
assert len(workers) == 3
for worker in workers:
    with open(f"/proc/self/task/{worker}/status") as status:
        blocked = next(int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
        assert blocked >> (number - 1) & 1, number
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
print("done")
""")
    assert program.stdout == "done\n", program.stderr


# Threads of other libraries.


@pytest.fixture(scope="module")
def parallel_callbacks(tmp_path_factory):
    """Call back from OpenMP's threads: ``parallel_callbacks(threads, calls, callback)``."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc here (Debian: gcc)")
    library = tmp_path_factory.mktemp("native") / "parallel_callbacks.so"
    source = Path(__file__).parent / "native" / "parallel_callbacks.c"
    command = ["gcc", "-O1", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    callback_type = ctypes.CFUNCTYPE(None, ctypes.c_int)
    function = ctypes.CDLL(str(library)).parallel_callbacks
    function.argtypes = [ctypes.c_int, ctypes.c_int, callback_type]
    return lambda threads, calls, callback: function(threads, calls, callback_type(callback))


@pytest.mark.slow
def test_calls_from_the_threads_of_openmp(parallel_callbacks, isa):
    x = np.random.default_rng(0).normal(size=2**19).astype(np.float32)
    expected = [
        reference.dropout(x, reference.keep_mask(seed, 0, 0.2, x.size), 1 / (1 - 0.2))
        for seed in range(4)
    ]
    results = [x.copy() for _ in range(16)]
    threads = set()

    def call(i):
        threads.add(threading.get_ident())
        fastdrop.dropout_(results[i], 0.2, seed=i % 4)

    with fastdrop.num_threads(3):
        assert parallel_callbacks(4, len(results), call) == 4
        fastdrop.dropout_(x, 0.2, seed=0)
    assert len(threads) > 1
    assert_same_bits(x, expected[0])
    for i, y in enumerate(results):
        assert_same_bits(y, expected[i % 4])


def test_calls_with_the_threads_of_scikit_learn(run_python):
    """OpenMP and BLAS threads work at the same time, and keep their limits."""
    pytest.importorskip("sklearn")
    program = run_python("""
import threading
import numpy as np, fastdrop
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits
fastdrop.set_num_threads(2)
points = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
x = np.ones(2**20 + 5, np.float32)
expected = fastdrop.dropout(x, 0.3, seed=1)[0].tobytes()
def limits():
    return sorted((library["filepath"], library["num_threads"]) for library in threadpool_info())
with threadpool_limits(2):
    before = limits()
    centers = KMeans(4, n_init=1, random_state=0).fit(points).cluster_centers_
    found = []
    def cluster():
        for _ in range(3):
            found.append(KMeans(4, n_init=1, random_state=0).fit(points).cluster_centers_)
    other = threading.Thread(target=cluster)
    other.start()
    while other.is_alive():
        assert fastdrop.dropout(x, 0.3, seed=1)[0].tobytes() == expected
    other.join()
    assert limits() == before
assert len(found) == 3
for each in found:
    np.testing.assert_allclose(each, centers, rtol=1e-4, atol=1e-5)
print("done")
""")
    assert program.stdout == "done\n", program.stderr
