"""Splits large loops among the threads of a pool, and sets the number of threads."""
import os

from libc.stdint cimport int64_t

from fastdrop._arguments cimport integer_of, short_repr

cdef extern from "pool.h" nogil:
    ctypedef void (*c_pool_task "pool_task")(void *context, int64_t begin, int64_t end)
    int pool_prepare()
    void pool_run(c_pool_task task, void *context, int64_t items, int64_t chunk, int threads)

cdef extern from * nogil:
    """
    #include <stdatomic.h>
    /* Atomic, since calls read it without the GIL while another thread may set it. */
    static atomic_int thread_limit = 1;
    """
    int count "thread_limit"

VARIABLE = "FASTDROP_NUM_THREADS"
MOST = 2**31 - 1


cdef enum:
    PARALLEL_SIZE = 1 << 18         # from this size on, threads gain more time than waking takes


cdef int thread_count() noexcept nogil:
    return count


cdef void set_thread_count(int n) noexcept nogil:
    """The count is at least 1."""
    global count
    count = n


cdef void parallel_for(pool_task task, void *context, int64_t items, int64_t size) noexcept nogil:
    """Call task on disjoint ranges that cover 0 .. items - 1, in parallel if `size` is large.

    `size` is the number of elements behind all items.
    """
    # Several chunks per thread, so that a slow thread delays the others little.
    cdef int64_t chunks = 4 * <int64_t>count if size >= PARALLEL_SIZE else 1
    if items:
        pool_run(<c_pool_task>task, context, items, (items + chunks - 1) // chunks, count)


cdef int checked(object n) except -1:
    return integer_of(n, "n", 1, MOST, "of at least 1")


def set_num_threads(n):
    """Set the number of threads that a call on a large array may use, for the whole process.

    Parameters
    ----------
    n : int
        The number, at least 1, including the calling thread. 1 starts no thread; numbers above 256
        have the effect of 256. A call on a small array uses the calling thread only. Results do not
        depend on n.

    Raises
    ------
    TypeError
        If n is not an integer.
    ValueError
        If n is below 1.

    See Also
    --------
    num_threads : Sets the number for a ``with`` block.

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
    """Return the number of threads that a call on a large array may use.

    Returns
    -------
    int
        The number that `set_num_threads` set. The initial number is the environment variable
        ``FASTDROP_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of CPUs that the process
        may run on.

    Examples
    --------
    >>> import fastdrop
    >>> fastdrop.get_num_threads() >= 1
    True
    """
    return count


class num_threads:
    """Context manager that sets the number of threads for a ``with`` block, process-wide.

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
    """The number of CPUs that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


cdef int parsed(str text) except -1:
    """The number of threads that an environment variable gives, or 0."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST:
        return int(text)
    return 0


def _initial_count():
    value = os.environ.get(VARIABLE)
    if value:
        if not parsed(value):
            raise ImportError(
                f"{VARIABLE} must be a whole number of at least 1, got {short_repr(value)}")
        return parsed(value)
    # OpenMP allows a list with a number for each level of nesting.
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return parsed(value) or allowed_cpus()


if pool_prepare() != 0:
    raise MemoryError("no memory to register a fork handler")
set_num_threads(_initial_count())
