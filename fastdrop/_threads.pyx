"""Owns how many threads share a large call, and hands the work to the pool."""
import os

from libc.stdint cimport int64_t

from fastdrop._arguments cimport integer_of, shown

cdef extern from "pool.h" nogil:
    ctypedef void (*c_pool_task "pool_task")(void *context, int64_t begin, int64_t end)
    int pool_prepare()
    void pool_run(c_pool_task task, void *context, int64_t items, int64_t grain, int threads)

cdef extern from * nogil:
    """
    #include <stdatomic.h>
    /* Calls read it after they have let go of the GIL, while another thread may be setting it. */
    static atomic_int thread_limit = 1;
    """
    int count "thread_limit"

VARIABLE = "FASTDROP_NUM_THREADS"
MOST = 2**31 - 1


cdef enum:
    PARALLEL_SIZE = 1 << 18         # from here on, threads gain more than waking them costs


cdef int thread_count() noexcept nogil:
    return count


cdef void set_thread_count(int n) noexcept nogil:
    """The count is at least 1."""
    global count
    count = n


cdef void run(pool_task task, void *context, int64_t items, int64_t size) noexcept nogil:
    """Calls task on ranges of items that together are 0 .. items - 1, in several threads if there
    are so many elements to work on."""
    # A few helpings for each thread, so that none is waited for.
    cdef int64_t helpings = 4 * <int64_t>count if size >= PARALLEL_SIZE else 1
    if items:
        pool_run(<c_pool_task>task, context, items, (items + helpings - 1) // helpings, count)


cdef int checked(object n) except -1:
    return integer_of(n, "n", 1, MOST, "of at least 1")


def set_num_threads(n):
    """Sets how many threads a call on a large array may use, for the whole process.

    Parameters
    ----------
    n : int
        At least 1. With 1, no thread is ever started; above 256, no more than with 256. Small
        arrays use the calling thread only, whatever n is. Results do not depend on n.

    Raises
    ------
    TypeError
        If n is no integer.
    ValueError
        If n is below 1.

    See Also
    --------
    num_threads : the same for the length of a ``with`` block.

    Examples
    --------
    >>> import fastdrop
    >>> before = fastdrop.get_num_threads()
    >>> fastdrop.set_num_threads(1)
    >>> fastdrop.get_num_threads()
    1
    >>> fastdrop.set_num_threads(before)
    """
    set_thread_count(checked(n))


def get_num_threads():
    """How many threads a call on a large array may use.

    Returns
    -------
    int
        At first the environment variable ``FASTDROP_NUM_THREADS``, else ``OMP_NUM_THREADS``, else
        the number of CPUs that the process may run on.

    Examples
    --------
    >>> import fastdrop
    >>> fastdrop.get_num_threads() >= 1
    True
    """
    return count


class num_threads:
    """Context manager: at most n threads for each call until the block ends, process-wide.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        As `set_num_threads`, when constructed.

    Examples
    --------
    >>> import fastdrop
    >>> with fastdrop.num_threads(1):
    ...     fastdrop.get_num_threads()
    1
    """

    def __init__(self, n):
        self._n = checked(n)
        self._before = []

    def __enter__(self):
        self._before.append(get_num_threads())
        set_num_threads(self._n)
        return self

    def __exit__(self, *exception):
        set_num_threads(self._before.pop())


def allowed_cpus():
    """How many CPUs the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


cdef int parsed(str text) except -1:
    """A count of threads from the environment; 0 where there is none."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST:
        return int(text)
    return 0


def _initial_count():
    value = os.environ.get(VARIABLE)
    if value:
        if not parsed(value):
            raise ImportError(
                f"{VARIABLE} must be a whole number of at least 1, got {shown(value)}")
        return parsed(value)
    # OpenMP allows a list, one number for each level of nesting.
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return parsed(value) or allowed_cpus()


if pool_prepare() != 0:
    raise MemoryError("no memory to register what is to be done after a fork")
set_num_threads(_initial_count())
