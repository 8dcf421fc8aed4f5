"""Allocates memory between inaccessible pages, and runs tests in child processes that may crash."""

import ctypes
import functools
import mmap
import os
import signal
import traceback
import warnings

import numpy as np

import fastdrop

PAGE = mmap.PAGESIZE
PROT_NONE = 0

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """Bytes with an inaccessible page directly before the first and after the last.

    `start` and `end` are views of all bytes.
    """

    def __init__(self, size):
        size = -(-size // PAGE) * PAGE
        self.memory = mmap.mmap(-1, size + 2 * PAGE)
        whole = np.frombuffer(self.memory, np.uint8)
        for guard in (whole[:PAGE], whole[size + PAGE :]):
            if libc.mprotect(guard.ctypes.data, PAGE, PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.bytes = whole[PAGE : size + PAGE]

    def array(self, place, count, dtype=np.uint8, *, away=0):
        """`count` elements at the "start" or the "end", `away` bytes away from the guard."""
        size = count * np.dtype(dtype).itemsize
        first = away if place == "start" else self.bytes.size - size - away
        return self.bytes[first : first + size].view(dtype)

    def copy(self, place, content, *, away=0):
        """A copy of an array there, in C order."""
        array = self.array(place, content.size, content.dtype, away=away).reshape(content.shape)
        array[...] = content
        return array


# A child writes its current case to the test that forked it, and then its traceback.
_case = mmap.mmap(-1, PAGE)
_failure = mmap.mmap(-1, 8 * PAGE)


def _write(place, text):
    room = len(place) - 1
    place[:] = text.encode()[-room:].ljust(room + 1, b"\0")


def _read(place):
    return place[:].rstrip(b"\0").decode(errors="replace")


def at(*case):
    """Report the next case: after a crash, nothing else is known."""
    _write(_case, repr(case))


def survives(test):
    """Run a test in a child process, so that a crash is a failure of this test only."""

    @functools.wraps(test)
    def in_a_child(*args, **kwargs):
        _write(_case, "")
        _write(_failure, "")
        with warnings.catch_warnings():
            # Python warns of a fork with threads, but this child uses no threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                fastdrop.set_num_threads(1)
                test(*args, **kwargs)
                status = 0
            except BaseException:
                _write(_failure, traceback.format_exc())
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            how = f"died of {signal.Signals(-status).name}" if status < 0 else "failed"
            raise AssertionError(f"{how} at {_read(_case) or 'the start'}\n{_read(_failure)}")

    return in_a_child
