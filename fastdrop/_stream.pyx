"""Chooses the stream position, a seed and a step, that a call draws its mask at."""
cimport cython
import os
import secrets

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport uint64_t

from fastdrop._arguments cimport integer_of, short_repr

import numpy as np

from fastdrop._config import STREAM_VERSION

SEEDS = 2**128
STEPS = 2**64


cdef object seed_number(const fastdrop_seed *draw):
    """The seed as one int."""
    return (<object>draw.high << 64) | <object>draw.low if draw.high else <object>draw.low


cdef fastdrop_seed words_of(object seed, object step):
    cdef fastdrop_seed draw
    draw.low = seed & 0xFFFFFFFFFFFFFFFF
    draw.high = seed >> 64
    draw.step = step
    return draw


cdef object sequence_number(object sequence):
    """The seed of a SeedSequence: its first two 64-bit words, low word first."""
    bounds = "or a SeedSequence whose state is two words in [0, 2**64)"
    try:
        low, high = sequence.generate_state(2, np.uint64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`seed` must be an int {bounds}, got {short_repr(sequence)}") from error
    low = integer_of(low, "seed", 0, STEPS - 1, bounds)
    return integer_of(high, "seed", 0, STEPS - 1, bounds) << 64 | low


@cython.final
cdef class Stream:
    """A sequence of masks: each call that receives the stream draws its next mask.

    A mask is a pure function of the seed, the step, the rate and the element's index, so a stream
    is a seed and a counter of steps. The same seed gives the same masks, bit for bit, on every CPU,
    operating system and number of threads, and in every version of fastdrop that draws version 2 of
    the random stream.

    Parameters
    ----------
    seed : int, numpy.random.SeedSequence or None, optional
        An int in [0, 2**128). A SeedSequence gives the seed whose low and high words are its
        ``generate_state(2, numpy.uint64)``. None takes 128 bits from the operating system.

    Attributes
    ----------
    seed : int
        The seed, in [0, 2**128).
    step : int
        The step that the next call takes, in [0, 2**64]; at 2**64 the stream is exhausted.
    state : dict
        The position, ``{"seed": ..., "step": ...}``. Assign to it to move the stream.

    Raises
    ------
    TypeError
        If the seed is of another type.
    ValueError
        If the seed is an int outside [0, 2**128).

    Notes
    -----
    Threads may share a stream: each call takes a step of its own. A pickle holds the seed and the
    step, so a copy draws the same masks as the original from there on. For workers that draw
    different masks, use `spawn`.

    Examples
    --------
    >>> import fastdrop
    >>> stream = fastdrop.Stream(42)
    >>> first = fastdrop.draw_mask(1000, 0.5, seed=stream)
    >>> second = fastdrop.draw_mask(1000, 0.5, seed=stream)
    >>> first == second, stream.step
    (False, 2)
    >>> stream.state = {"seed": 42, "step": 0}
    >>> fastdrop.draw_mask(1000, 0.5, seed=stream) == first
    True
    """

    def __init__(self, seed=None):
        if seed is None:
            number = secrets.randbits(128)
        elif isinstance(seed, np.random.SeedSequence):
            number = sequence_number(seed)
        else:
            number = integer_of(seed, "seed", 0, SEEDS - 1, "in [0, 2**128)")
        self._set(number, 0)

    cdef _set(self, object seed, object step):
        cdef fastdrop_seed draw = words_of(seed, 0 if step == STEPS else step)
        with cython.critical_section(self):
            self.low = draw.low
            self.high = draw.high
            self.next_step = draw.step
            self.exhausted = step == STEPS

    @property
    def seed(self):
        """The seed, an int in [0, 2**128)."""
        return self.state["seed"]

    @property
    def step(self):
        """The step that the next call takes, in [0, 2**64]; at 2**64 the stream is exhausted."""
        return self.state["step"]

    @property
    def state(self):
        """The position, ``{"seed": ..., "step": ...}``. Assign to it to move the stream."""
        cdef fastdrop_seed draw
        cdef bint exhausted
        with cython.critical_section(self):
            draw.low, draw.high, draw.step = self.low, self.high, self.next_step
            exhausted = self.exhausted
        return {"seed": seed_number(&draw), "step": STEPS if exhausted else draw.step}

    @state.setter
    def state(self, state):
        if not isinstance(state, dict):
            raise TypeError(
                f'`state` must be a dict with the keys "seed" and "step", got {short_repr(state)}'
            )
        if set(state) != {"seed", "step"}:
            raise ValueError(
                f'`state` must be a dict with the keys "seed" and "step", got {short_repr(state)}'
            )
        seed = integer_of(state["seed"], 'state["seed"]', 0, SEEDS - 1, "in [0, 2**128)")
        step = integer_of(state["step"], 'state["step"]', 0, STEPS, "in [0, 2**64]")
        self._set(seed, step)

    def spawn(self, n):
        """Make streams for workers, independent of this stream and of each other.

        Parameters
        ----------
        n : int
            The number of streams, at least 0. Each takes one step of this stream, so later calls
            make other streams.

        Returns
        -------
        list of Stream
            New streams at step 0. The one made at step i of a stream with seed s has the seed of
            ``numpy.random.SeedSequence(s, spawn_key=(i,))``.

        Raises
        ------
        TypeError, ValueError
            If n is not an integer of at least 0.
        OverflowError
            If fewer than n steps are left.
        MemoryError
            If there is no memory for n streams.

        Examples
        --------
        >>> import fastdrop
        >>> left, right = fastdrop.Stream(42).spawn(2)
        >>> left.seed == right.seed
        False
        """
        n = integer_of(n, "n", 0, STEPS, "of at least 0")
        if n > STEPS - self.step:
            raise OverflowError(
                f"`n`: the stream has {STEPS - self.step} steps left, got {short_repr(n)}")
        try:
            # Before any step is taken: a list that is too large for memory fails here.
            children = [None] * n
        except (MemoryError, OverflowError):
            raise MemoryError(f"`n`: no memory for {short_repr(n)} streams") from None
        state = self._take(n)
        try:
            for i in range(n):
                children[i] = Stream(
                    np.random.SeedSequence(state["seed"], spawn_key=(state["step"] + i,)))
        except BaseException:
            # Out of memory, or interrupted: the steps are not taken.
            self._give_back(state, n)
            raise
        return children

    cdef dict _take(self, object n):
        """Take n steps, or none; return the state before them."""
        cdef fastdrop_seed draw
        cdef bint exhausted
        with cython.critical_section(self):
            draw.low, draw.high, draw.step = self.low, self.high, self.next_step
            exhausted = self.exhausted
            state = {"seed": seed_number(&draw), "step": STEPS if exhausted else draw.step}
            if n > STEPS - state["step"]:
                raise OverflowError(
                    f"`n`: the stream has {STEPS - state['step']} steps left, got {short_repr(n)}")
            if n:
                self.next_step += <uint64_t>(n & (STEPS - 1))
                self.exhausted = state["step"] + n == STEPS
        return state

    cdef _give_back(self, dict state, object n):
        """Return n steps to the stream, unless another call has taken steps since."""
        if self.state == {"seed": state["seed"], "step": state["step"] + n}:
            self._set(state["seed"], state["step"])

    def __reduce__(self):
        # Not at the top: that module imports this one.
        from fastdrop import _pickle
        return _pickle._stream, ({**self.state, "stream": STREAM_VERSION},)

    def __repr__(self):
        state = self.state
        return f"fastdrop.Stream(seed={state['seed']}, step={state['step']})"


cdef bint is_other_stream(dict state) except -1:
    """Whether a pickled state belongs to another version of the random stream."""
    return integer_of(state["stream"], 'state["stream"]', 0, STEPS - 1,
                      "of at least 0") != STREAM_VERSION


cdef object other_stream(dict state):
    """The error for a state that would draw other masks here than where it was pickled."""
    return ValueError(f"`state` is of random stream {state['stream']}, and this version of "
                      f"fastdrop draws stream {STREAM_VERSION}, which has other masks")


def restored_stream(state):
    """Restore a pickled stream."""
    if not isinstance(state, dict) or set(state) != {"seed", "step", "stream"}:
        raise ValueError(f"`state` must be the dict that a stream pickles, got {short_repr(state)}")
    if is_other_stream(state):
        raise other_stream(state)
    stream = Stream(0)
    stream.state = {"seed": state["seed"], "step": state["step"]}
    return stream


cdef void take_step(Stream stream, fastdrop_seed *draw) except *:
    """Take the stream's next step into `draw`; without a stream, leave `draw` as it is."""
    if stream is None:
        return
    with cython.critical_section(stream):
        if stream.exhausted:
            raise OverflowError("`seed`: the stream has no step left, all 2**64 were taken")
        draw.low, draw.high, draw.step = stream.low, stream.high, stream.next_step
        stream.next_step += 1
        stream.exhausted = stream.next_step == 0


# The stream of calls without a seed.
cdef Stream process_stream = Stream()


cdef extern from * nogil:
    """
    #include <stdatomic.h>
    static atomic_int in_child = 0;
    #if defined(_WIN32)
    static int prepare_for_forks(void) { return 0; }
    #else
    #include <pthread.h>
    static void note_fork(void) { in_child = 1; }
    static int prepare_for_forks(void) { return pthread_atfork(0, 0, note_fork); }
    #endif
    """
    bint in_child
    int prepare_for_forks()


def _reseed_after_fork():
    """Give the child process a seed of its own; otherwise it would repeat its parent's masks."""
    global in_child
    process_stream._set(secrets.randbits(128), 0)
    in_child = False


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reseed_after_fork)
# A fork by code in another language does not run Python's fork handlers.
if prepare_for_forks() != 0:
    raise MemoryError("no memory to register a fork handler")


cdef Stream stream_of(object seed, fastdrop_seed *draw):
    """Check the argument `seed`: return the stream to draw from, or None and set `draw`.

    It takes no step, since a call that raises must not. `draw` is all zeros before.
    """
    cdef object number
    cdef long long word
    cdef int overflow
    if seed is None:
        if in_child:
            _reseed_after_fork()
        return process_stream
    if isinstance(seed, Stream):
        return <Stream>seed
    if type(seed) is int:
        # Most seeds have one word; this takes a fifth of the time.
        word = PyLong_AsLongLongAndOverflow(seed, &overflow)
        if overflow == 0 and word >= 0:
            draw.low = word
            return None
    if isinstance(seed, np.random.SeedSequence):
        number = sequence_number(seed)
    else:
        number = integer_of(seed, "seed", 0, SEEDS - 1,
                            "in [0, 2**128), None, a Stream or a SeedSequence")
    draw[0] = words_of(number, 0)
    return None
