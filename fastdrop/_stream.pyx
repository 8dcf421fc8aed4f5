"""Owns seeds and streams of seeds: which (seed, step) a call draws its mask from."""
cimport cython
import os
import secrets

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport uint64_t

from fastdrop._arguments cimport integer_of, shown

import numpy as np

from fastdrop._config import STREAM_VERSION

SEEDS = 2**128
STEPS = 2**64


cdef object seed_number(const fastdrop_seed *draw):
    """Both words of a seed as one int."""
    return (<object>draw.high << 64) | <object>draw.low if draw.high else <object>draw.low


cdef fastdrop_seed words_of(object seed, object step):
    cdef fastdrop_seed draw
    draw.low = seed & 0xFFFFFFFFFFFFFFFF
    draw.high = seed >> 64
    draw.step = step
    return draw


cdef object sequence_number(object sequence):
    """The seed that a SeedSequence stands for: its first two 64-bit words, low word first."""
    bounds = "or a SeedSequence whose state is two words in [0, 2**64)"
    try:
        low, high = sequence.generate_state(2, np.uint64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`seed` must be an int {bounds}, got {shown(sequence)}") from error
    low = integer_of(low, "seed", 0, STEPS - 1, bounds)
    return integer_of(high, "seed", 0, STEPS - 1, bounds) << 64 | low


@cython.final
cdef class Stream:
    """A sequence of masks: each call that is given the stream draws with its next step.

    A mask is a pure function of the seed, the step, the rate and the element's index, so a stream
    is no more than a seed and a counter. The same seed gives the same masks, bit for bit, on every
    CPU, thread count, operating system and version of fastdrop (stream version 2).

    Parameters
    ----------
    seed : int, numpy.random.SeedSequence or None, optional
        An int in [0, 2**128); or a SeedSequence, which stands for
        ``generate_state(2, numpy.uint64)``, low word first; or None, for 128 bits of the operating
        system's entropy.

    Attributes
    ----------
    seed : int
        The seed, whatever it was made from.
    step : int
        The step that the next call takes, in [0, 2**64]; at 2**64 the stream is exhausted.
    state : dict
        ``{"seed": ..., "step": ...}``. Set it to continue from, or to go back to, that place.

    Raises
    ------
    TypeError
        If the seed is none of these.
    ValueError
        If the seed is an int outside [0, 2**128).

    Notes
    -----
    Safe to share among threads: each call takes a step of its own. A stream is pickled with its
    step, so both copies go on from the same place; give workers streams from `spawn` instead.

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
        return self.state["seed"]

    @property
    def step(self):
        return self.state["step"]

    @property
    def state(self):
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
                f'`state` must be a dict with the keys "seed" and "step", got {shown(state)}'
            )
        if set(state) != {"seed", "step"}:
            raise ValueError(
                f'`state` must be a dict with the keys "seed" and "step", got {shown(state)}'
            )
        seed = integer_of(state["seed"], 'state["seed"]', 0, SEEDS - 1, "in [0, 2**128)")
        step = integer_of(state["step"], 'state["step"]', 0, STEPS, "in [0, 2**64]")
        self._set(seed, step)

    def spawn(self, n):
        """Makes streams that are independent of this one and of each other, for workers.

        Parameters
        ----------
        n : int
            How many, at least 0. Each takes one step of this stream, so that later calls of
            ``spawn`` make others.

        Returns
        -------
        list of Stream
            At step 0. The child made at step i of a stream of seed s has the seed of
            ``numpy.random.SeedSequence(s, spawn_key=(i,))``.

        Raises
        ------
        TypeError, ValueError
            If n is no integer of at least 0.
        OverflowError
            If fewer than n steps are left.
        MemoryError
            If there is no memory for a list of n.

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
                f"`n`: the stream has {STEPS - self.step} steps left, got {shown(n)}")
        try:
            # Before any step is taken: what is too much for memory is refused here, and at once.
            children = [None] * n
        except (MemoryError, OverflowError):
            raise MemoryError(f"`n`: no memory for {shown(n)} streams") from None
        state = self._take(n)
        try:
            for i in range(n):
                children[i] = Stream(
                    np.random.SeedSequence(state["seed"], spawn_key=(state["step"] + i,)))
        except BaseException:
            # Without memory, or interrupted: as if nothing had been taken.
            self._give_back(state, n)
            raise
        return children

    cdef dict _take(self, object n):
        """Takes n steps at once, or none; the state before."""
        cdef fastdrop_seed draw
        cdef bint exhausted
        with cython.critical_section(self):
            draw.low, draw.high, draw.step = self.low, self.high, self.next_step
            exhausted = self.exhausted
            state = {"seed": seed_number(&draw), "step": STEPS if exhausted else draw.step}
            if n > STEPS - state["step"]:
                raise OverflowError(
                    f"`n`: the stream has {STEPS - state['step']} steps left, got {shown(n)}")
            if n:
                self.next_step += <uint64_t>(n & (STEPS - 1))
                self.exhausted = state["step"] + n == STEPS
        return state

    cdef _give_back(self, dict state, object n):
        """Goes back to a state from n steps on, unless others have taken steps since."""
        if self.state == {"seed": state["seed"], "step": state["step"] + n}:
            self._set(state["seed"], state["step"])

    def __reduce__(self):
        # Only here: that module imports this one.
        from fastdrop import _pickle
        return _pickle._stream, ({**self.state, "stream": STREAM_VERSION},)

    def __repr__(self):
        state = self.state
        return f"fastdrop.Stream(seed={state['seed']}, step={state['step']})"


cdef bint is_other_stream(dict state) except -1:
    """Whether a pickle's state is of another random stream than this library's."""
    return integer_of(state["stream"], 'state["stream"]', 0, STEPS - 1,
                      "of at least 0") != STREAM_VERSION


cdef object other_stream(dict state):
    """The error of what would go on with other masks than it was pickled with."""
    return ValueError(f"`state` is of random stream {state['stream']}, and this version of "
                      f"fastdrop draws stream {STREAM_VERSION}, whose masks are others")


def restored_stream(state):
    """A stream from its state, for unpickling."""
    if not isinstance(state, dict) or set(state) != {"seed", "step", "stream"}:
        raise ValueError(f"`state` must be the dict that a stream pickles, got {shown(state)}")
    if is_other_stream(state):
        raise other_stream(state)
    stream = Stream(0)
    stream.state = {"seed": state["seed"], "step": state["step"]}
    return stream


cdef void take_step(Stream stream, fastdrop_seed *draw) except *:
    """The next place of the stream; without one, the draw stays what it is."""
    if stream is None:
        return
    with cython.critical_section(stream):
        if stream.exhausted:
            raise OverflowError("`seed`: the stream has no step left, all 2**64 were taken")
        draw.low, draw.high, draw.step = stream.low, stream.high, stream.next_step
        stream.next_step += 1
        stream.exhausted = stream.next_step == 0


# The process's own stream, for calls without a seed.
cdef Stream process_stream = Stream()


cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <stdatomic.h>
    static atomic_int in_child = 0;
    static void note_fork(void) { in_child = 1; }
    static int prepare_for_forks(void) { return pthread_atfork(0, 0, note_fork); }
    """
    bint in_child
    int prepare_for_forks()


def _reseed_after_fork():
    """A child that went on with its parent's stream would repeat its masks."""
    global in_child
    process_stream._set(secrets.randbits(128), 0)
    in_child = False


os.register_at_fork(after_in_child=_reseed_after_fork)
# Forks of other languages run none of Python's functions.
if prepare_for_forks() != 0:
    raise MemoryError("no memory to register what is to be done after a fork")


cdef Stream stream_of(object seed, fastdrop_seed *draw):
    """The stream that the argument `seed` asks for, no step being taken yet: a call that raises
    takes none. Or None, and the draw that it fixes, which is all zeros before."""
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
        # Most seeds are of one word, and this takes a fifth of the time.
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
