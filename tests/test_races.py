"""ThreadSanitizer finds no races in the thread pool and in the modules."""

import sys

import pytest
import sanitizers

pytestmark = pytest.mark.slow

PROGRAMS = ["many_callers", "pauses", "forks", "forks_while_busy", "exit_while_busy"]


# The pool.


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    """The path of the program, built with ThreadSanitizer."""
    sanitizers.skip_without(sanitizers.RACES)
    program = tmp_path_factory.mktemp("native") / "pool_stress"
    sanitizers.compile_program("pool_stress.c", program, sanitizers.RACES, "fastdrop")
    return program


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_pool(stress, name):
    # The program forks while threads run.
    done = sanitizers.run([stress, name], sanitizers.RACES, "die_after_fork=0", preload="")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# The modules in Python threads. ThreadSanitizer knows the lock of the GIL, so it reports races
# between code that runs without the GIL.

SETUP = """
import ctypes, sys, threading
import numpy as np, fastdrop
assert fastdrop._isa.BUILD == "tsan"
sys.setswitchinterval(1e-5)
fastdrop.set_num_threads(2)
SIZE = 2**17 + 77

def on_threads(function, count=4):
    failures = []
    ready = threading.Barrier(count)
    def work():
        try:
            ready.wait()
            function()
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures

# The calls of a native operation of TensorFlow, in threads without the GIL.
pointer = ctypes.pythonapi.PyCapsule_GetPointer
pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
place, number, word, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_double

class Dropout(ctypes.Structure):
    _fields_ = [("kind", number), ("ndim", number), ("shape", place), ("noise_shape", place),
                ("low", word), ("high", word), ("step", word), ("rate", real), ("scale", real)]

# After three numbers of 32 bits and 32 bits of padding.
entries = ctypes.cast(
    pointer(fastdrop._C_API, b"fastdrop._C_API") + 16, ctypes.POINTER(ctypes.c_void_p))
call = ctypes.CFUNCTYPE(number, place, place, place, place, place, place)
shape = (ctypes.c_int64 * 1)(SIZE)
FLOAT32 = 2
of_all = Dropout(FLOAT32, 1, ctypes.addressof(shape), None, 5, 0, 0, 0.3, -float("inf"))

def forward_without_gil(y, x, bits):
    assert call(entries[0])(ctypes.addressof(of_all), y.ctypes.data, None, x.ctypes.data, None,
                            bits.ctypes.data) == 0

def backward_without_gil(dx, dy, bits):
    assert call(entries[1])(ctypes.addressof(of_all), dx.ctypes.data, None, dy.ctypes.data, None,
                            bits.ctypes.data) == 0

"""

EVERYTHING_THAT_MAY_BE_SHARED = """
stream = fastdrop.Stream(3)
stored = fastdrop.draw_mask(SIZE, 0.3, seed=stream)
# Masks without bits, which all threads use at about the same time.
drawn_again = [fastdrop.draw_mask(SIZE, 0.3, seed=3, store_mask=False) for _ in range(6)]
of_rows = [
    fastdrop.draw_mask((SIZE, 2), 0.3, seed=3, noise_shape=(None, 1), store_mask=False)
    for _ in range(6)
]
x = np.ones(SIZE, np.float32)
matrix = x.reshape(SIZE, 1)
pairs = np.ones((SIZE, 2), np.float32)
expected = stored.apply(x)
bits_of_all = fastdrop.draw_mask(SIZE, 0.3, seed=5).bits

def work():
    own = np.ones(SIZE, np.float32)
    bits = np.zeros((SIZE + 7) // 8, np.uint8)
    for i in range(6):
        for mask in (stored, drawn_again[i]):
            assert mask.unpack().any()
            assert np.array_equal(mask.apply(x), expected)
            mask.apply_(own)
            mask.count()
        assert stored.bits.any()
        assert np.array_equal(of_rows[i].apply(pairs)[:, 1], expected)
        fastdrop.dropout_(own, 0.3, seed=stream, store_mask=bool(i % 2))
        fastdrop.dropout_(own[::2], 0.3)
        _, mask = fastdrop.relu_dropout(x, 0.3, seed=stream)
        fastdrop.relu_dropout_grad(x, mask)
        _, mask = fastdrop.bias_dropout_add(matrix, None, None, 0.3)
        fastdrop.bias_dropout_add_grad(matrix, mask)
        stream.state, stream.spawn(1)
        forward_without_gil(own, x, bits)
        backward_without_gil(own, x, bits_of_all)
        fastdrop.set_num_threads(1 + i % 3)

on_threads(work)
print("done")
"""

# A user's race: two threads change one array.
ONE_ARRAY = """
x, bits = np.ones(SIZE, np.float32), np.zeros((SIZE + 7) // 8, np.uint8)

def work():
    for _ in range(3):
        CALL

on_threads(work, 2)
print("done")
"""


@pytest.fixture(scope="module")
def under_sanitizer(tmp_path_factory):
    """Run a program in an interpreter with modules built for ThreadSanitizer."""
    sanitizers.skip_without(sanitizers.RACES)
    modules = sanitizers.build_modules(tmp_path_factory.mktemp("tsan"), sanitizers.RACES)

    def under_sanitizer(code):
        # Next to the modules, so that the interpreter finds them first.
        program = modules / "program.py"
        program.write_text(SETUP + code)
        return sanitizers.run(
            [sys.executable, "-W", "error", program],
            sanitizers.RACES,
            timeout=600,
            # ThreadSanitizer would watch NumPy's threads too.
            OPENBLAS_NUM_THREADS="1",
        )

    return under_sanitizer


def test_the_modules_in_many_threads(under_sanitizer):
    done = under_sanitizer(EVERYTHING_THAT_MAY_BE_SHARED)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize(
    "call",
    [
        "fastdrop.dropout_(x, 0.3)",
        "fastdrop.dropout(np.ones(SIZE, np.float32), 0.3, out=x)",
        "forward_without_gil(x, x.copy(), bits)",
    ],
)
def test_two_threads_that_change_one_array_are_a_race(under_sanitizer, call):
    done = under_sanitizer(ONE_ARRAY.replace("CALL", call))
    assert (done.returncode, done.stdout) == (66, ""), done.stderr
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "_kernels" in done.stderr
