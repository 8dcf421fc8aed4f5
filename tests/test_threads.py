"""Thread control: setting it, the environment, after a fork, and from many Python threads."""

import concurrent.futures
import os
import threading
import time

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


def test_there_is_at_least_one_thread_to_begin_with(run_python):
    program = run_python("import fastdrop; print(fastdrop.get_num_threads())")
    assert int(program.stdout) >= 1


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


@pytest.mark.parametrize("n", [1, 3])
def test_environment(run_python, n):
    program = run_python(
        "import fastdrop; print(fastdrop.get_num_threads())", FASTDROP_NUM_THREADS=str(n)
    )
    assert program.stdout == f"{n}\n", program.stderr


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", "1 2"])
def test_a_bad_environment_is_refused(run_python, value):
    program = run_python("import fastdrop", FASTDROP_NUM_THREADS=value)
    assert program.returncode != 0
    error = program.stderr.strip().splitlines()[-1]
    assert "FASTDROP_NUM_THREADS" in error
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


def test_the_interpreter_runs_on_while_a_kernel_does():
    size = 2**27
    with fastdrop._isa.using("portable"), fastdrop.num_threads(1):
        start = time.perf_counter()
        fastdrop.draw_mask(size, 0.3, seed=1)
        alone = time.perf_counter() - start
        # One pause may be the operating system's: a kernel that held the GIL would make five.
        longest_pauses = []
        for _ in range(5):
            worker = threading.Thread(target=fastdrop.draw_mask, args=(size, 0.3))
            worker.start()
            longest, before = 0, time.perf_counter()
            while worker.is_alive():
                now = time.perf_counter()
                longest, before = max(longest, now - before), now
            longest_pauses.append(longest)
    assert min(longest_pauses) < alone / 2


FORK = """
import os
import warnings

import fastdrop
import numpy as np

# Python warns of forking beside threads, which is what is tested.
warnings.simplefilter("ignore", DeprecationWarning)


def call():
    y, mask = fastdrop.dropout(np.ones(2**21 + 4099, np.float32), 0.2, seed=5)
    return y.tobytes() + mask.bits.tobytes()


fastdrop.set_num_threads(3)
expected = call()
child = os.fork()
if not child:
    # Twice: the child must be able to start threads and to use them again.
    right = call() == expected and call() == expected
    fastdrop.set_num_threads(2)
    os._exit(0 if right and call() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
assert call() == expected
print("done")
"""


@needs_fork
def test_threads_work_after_a_fork(run_python):
    program = run_python(FORK)
    assert program.stdout == "done\n", program.stderr


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
    # Python 3.12 warns of forking beside threads, which is what is tested.
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
