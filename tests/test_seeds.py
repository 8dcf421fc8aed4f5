"""Seeds and the Stream object select the mask of a call and of the next call."""

import concurrent.futures
import copy
import os
import pickle
import re
import signal
import sys
import sysconfig

import numpy as np
import pytest
import reference

import fastdrop

SIZE = 1000


def reference_bits(seed, step=0, rate=0.5, size=SIZE):
    return reference.pack_bits(reference.keep_mask(seed, step, rate, size))


def assert_drawn_at(mask, seed, step):
    assert (mask.seed, mask.step) == (seed, step)
    np.testing.assert_array_equal(mask.bits, reference_bits(seed, step))


# An int as seed.


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63, 2**64 - 1, 2**64, 2**127 + 1, 2**128 - 1])
def test_an_int_draws_step_zero_at_each_call(seed):
    for _ in range(2):
        assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=seed), seed, 0)
        assert_drawn_at(fastdrop.dropout(np.ones(SIZE), 0.5, seed=seed)[1], seed, 0)
        assert_drawn_at(fastdrop.dropout_(np.ones(SIZE), 0.5, seed=seed), seed, 0)


def test_equal_ints_are_one_seed_whatever_their_identity():
    seeds = [int("123456789012345678901234567890") for _ in range(2)]
    assert seeds[0] is not seeds[1]
    masks = [fastdrop.draw_mask(SIZE, 0.5, seed=seed) for seed in seeds]
    np.testing.assert_array_equal(masks[0].bits, masks[1].bits)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint64(7), np.uint8(7)], ids=repr)
def test_numpy_ints_are_ints(seed):
    assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=seed), 7, 0)
    assert fastdrop.Stream(seed).seed == 7


def test_both_words_of_a_seed_and_the_step_count(stream_at):
    places = [(0, 0), (1, 0), (2**64, 0), (0, 1), (0, 2**63), (2**127, 0), (2**63, 0)]
    masks = [fastdrop.draw_mask(SIZE, 0.5, seed=stream_at(*place)) for place in places]
    assert len({mask.bits.tobytes() for mask in masks}) == len(places)


# A SeedSequence as seed.


@pytest.mark.parametrize("entropy", [0, 12345, [1, 2, 3]], ids=str)
def test_a_seed_sequence_is_its_state_low_word_first(entropy):
    sequence = np.random.SeedSequence(entropy)
    low, high = (int(word) for word in sequence.generate_state(2, np.uint64))
    seed = high << 64 | low
    assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=sequence), seed, 0)
    assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=sequence), seed, 0)
    assert fastdrop.Stream(np.random.SeedSequence(entropy)).seed == seed


def test_spawned_seed_sequences_are_different_seeds():
    children = np.random.SeedSequence(5).spawn(4)
    seeds = {fastdrop.draw_mask(1, 0.5, seed=child).seed for child in children}
    assert len(seeds) == 4


# A Stream as seed.


def test_a_stream_takes_the_next_step_at_each_call():
    stream = fastdrop.Stream(42)
    assert (stream.seed, stream.step) == (42, 0)
    calls = [
        lambda: fastdrop.draw_mask(SIZE, 0.5, seed=stream),
        lambda: fastdrop.dropout(np.ones(SIZE), 0.5, seed=stream)[1],
        lambda: fastdrop.dropout_(np.ones(SIZE), 0.5, seed=stream),
        lambda: fastdrop.draw_mask(SIZE, 0.5, seed=stream),
        lambda: fastdrop.dropout(np.ones(SIZE), 0.5, seed=stream, out=np.ones(SIZE))[1],
    ]
    for step, call in enumerate(calls):
        assert stream.step == step
        assert_drawn_at(call(), 42, step)
    assert (stream.seed, stream.step) == (42, len(calls))


def test_every_call_of_any_size_takes_one_step():
    stream = fastdrop.Stream(42)
    sizes = [0, 1, 4097, 10**6]
    for size in sizes:
        fastdrop.draw_mask(size, 0.5, seed=stream)
        fastdrop.draw_mask(size, 0.5, seed=stream, store_mask=False)
    fastdrop.draw_mask(5, 0, seed=stream)
    fastdrop.draw_mask(5, 1, seed=stream)
    assert stream.step == 2 * len(sizes) + 2


def test_gradients_and_attributes_of_a_mask_take_no_step():
    stream = fastdrop.Stream(42)
    mask = fastdrop.draw_mask(SIZE, 0.5, seed=stream, store_mask=False)
    fastdrop.dropout_grad(np.ones(SIZE), mask)
    fastdrop.dropout_grad_(np.ones(SIZE), mask)
    mask.apply(np.ones(SIZE))
    mask.apply_(np.ones(SIZE))
    mask.count()
    mask.unpack()
    assert stream.step == 1


def test_successive_masks_of_a_stream_differ():
    stream = fastdrop.Stream(42)
    drawn = {fastdrop.draw_mask(SIZE, 0.5, seed=stream).bits.tobytes() for _ in range(50)}
    assert len(drawn) == 50


def test_a_stream_at_a_masks_position_draws_the_mask_again(stream_at):
    stream = fastdrop.Stream()
    for _ in range(3):
        mask = fastdrop.draw_mask(SIZE, 0.5, seed=stream)
        again = fastdrop.draw_mask(SIZE, 0.5, seed=stream_at(mask.seed, mask.step))
        np.testing.assert_array_equal(mask.bits, again.bits)


def test_streams_without_a_seed_differ():
    seeds = {fastdrop.Stream().seed for _ in range(20)} | {fastdrop.Stream(None).seed}
    assert len(seeds) == 21
    assert all(0 <= seed < 2**128 for seed in seeds)
    # Both words are random: a constant high word would be in all twenty seeds.
    assert len({seed >> 64 for seed in seeds}) == 21


def test_state():
    stream = fastdrop.Stream(2**100 + 1)
    fastdrop.draw_mask(SIZE, 0.5, seed=stream)
    state = stream.state
    assert state == {"seed": 2**100 + 1, "step": 1}
    first = fastdrop.draw_mask(SIZE, 0.5, seed=stream)
    assert state == {"seed": 2**100 + 1, "step": 1}
    other = fastdrop.Stream(5)
    other.state = state
    assert (other.seed, other.step) == (2**100 + 1, 1)
    again = fastdrop.draw_mask(SIZE, 0.5, seed=other)
    np.testing.assert_array_equal(first.bits, again.bits)


def test_a_stream_copies_the_state_that_is_set():
    state = {"seed": 3, "step": 4}
    stream = fastdrop.Stream(0)
    stream.state = state
    state["step"] = 99
    assert stream.step == 4


def test_the_last_step(stream_at):
    assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=stream_at(1, 2**64 - 1)), 1, 2**64 - 1)


def test_a_stream_ends_after_its_last_step(stream_at):
    stream = stream_at(1, 2**64 - 1)
    fastdrop.draw_mask(SIZE, 0.5, seed=stream)
    # Such a stream is at step 2**64: its state can be saved, but it has no step left.
    state = stream.state
    assert state == {"seed": 1, "step": 2**64}
    restored = fastdrop.Stream(0)
    restored.state = state
    x = np.ones(SIZE)
    for ended in (stream, restored, pickle.loads(pickle.dumps(stream))):
        with pytest.raises(OverflowError, match="step"):
            fastdrop.dropout_(x, 0.5, seed=ended)
        assert ended.state == state
    np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, stream: fastdrop.dropout(x, 0.5, seed=stream, out=x),
        lambda x, stream: fastdrop.dropout_(x.T, 0.5, seed=stream),
        lambda x, stream: fastdrop.relu_dropout(x, 0.5, seed=stream, out=x),
        lambda x, stream: fastdrop.bias_dropout_add(x, None, x, 0.5, seed=stream, out=x),
        lambda x, stream: fastdrop.draw_mask(3, 0.5, seed=stream),
    ],
    ids=["dropout", "dropout_", "relu_dropout", "bias_dropout_add", "draw_mask"],
)
def test_a_call_without_a_step_left_changes_nothing(stream_at, call):
    x, stream = -np.ones((3, 4)), stream_at(1, 2**64)
    with pytest.raises(OverflowError, match="`seed`"):
        call(x, stream)
    np.testing.assert_array_equal(x, -1)
    assert stream.step == 2**64


GOOD_STATE = {"seed": 3, "step": 4}
BAD_STATES = [
    (None, "state"),
    (3, "state"),
    ({}, "state"),
    ({"seed": 1}, "step"),
    ({"step": 1}, "seed"),
    ({"seed": -1, "step": 0}, "seed"),
    ({"seed": 2**128, "step": 0}, "seed"),
    ({"seed": 1.5, "step": 0}, "seed"),
    ({"seed": None, "step": 0}, "seed"),
    ({"seed": 1, "step": -1}, "step"),
    ({"seed": 1, "step": 2**64 + 1}, "step"),
    ({"seed": 1, "step": 1.5}, "step"),
    ({"seed": 1, "step": None}, "step"),
    ({"seed": 1, "step": "2"}, "step"),
]


@pytest.mark.parametrize(("state", "named"), BAD_STATES, ids=lambda v: repr(v)[:40])
def test_a_bad_state_is_refused_and_changes_nothing(state, named):
    stream = fastdrop.Stream(0)
    stream.state = GOOD_STATE
    with pytest.raises((TypeError, ValueError), match=named):
        stream.state = state
    assert stream.state == GOOD_STATE


@pytest.mark.parametrize("attribute", ["seed", "step"])
def test_seed_and_step_are_set_only_together(attribute):
    with pytest.raises(AttributeError):
        setattr(fastdrop.Stream(3), attribute, 5)


# Spawning.


def test_spawned_streams_draw_different_masks():
    parent = fastdrop.Stream(42)
    children = parent.spawn(10)
    assert len(children) == 10
    assert all(isinstance(child, fastdrop.Stream) for child in children)
    assert all(child.step == 0 for child in children)
    assert len({child.seed for child in children} | {42}) == 11
    drawn = {
        fastdrop.draw_mask(SIZE, 0.5, seed=stream).bits.tobytes() for stream in (parent, *children)
    }
    assert len(drawn) == 11


def test_spawned_seeds_match_seed_sequences():
    stream = fastdrop.Stream(2**100 + 7)
    fastdrop.draw_mask(1, 0.5, seed=stream)
    for step, child in enumerate(stream.spawn(3), 1):
        sequence = np.random.SeedSequence(2**100 + 7, spawn_key=(step,))
        low, high = map(int, sequence.generate_state(2, np.uint64))
        assert child.state == {"seed": high << 64 | low, "step": 0}


@pytest.mark.parametrize(("step", "n"), [(2**64 - 2, 3), (2**64 - 1, 2), (2**64, 1)])
def test_spawning_more_children_than_steps_are_left(stream_at, step, n):
    stream = stream_at(5, step)
    with pytest.raises(OverflowError, match="`n`"):
        stream.spawn(n)
    assert stream.state == {"seed": 5, "step": step}
    assert len(stream.spawn(2**64 - step)) == 2**64 - step


def test_a_pickled_stream_of_version_0_1():
    # The text of protocol 0. The format is the function's name and the fields.
    stream = pickle.loads(
        b"cfastdrop._pickle\n_stream\n((dVseed\nI5\nsVstep\nI7\nsVstream\nI2\nstR."
    )
    assert stream.state == {"seed": 5, "step": 7}


def test_a_pickled_stream_of_another_stream():
    function, (state,) = fastdrop.Stream(5).__reduce__()
    assert state == {"seed": 5, "step": 0, "stream": 2}
    with pytest.raises(ValueError, match=r"of random stream 1, .* draws stream 2\b"):
        function(state | {"stream": 1})
    for wrong in ({"seed": 5, "step": 0}, state | {"stream": None}, state | {"more": 1}, None):
        with pytest.raises((TypeError, ValueError), match="stream"):
            function(wrong)


def test_a_pickle_names_one_module():
    """The module stays when others are merged or moved."""
    for thing in (fastdrop.Stream(5), fastdrop.draw_mask(9, 0.5)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            pickled = pickle.dumps(thing, protocol)
            named = set(re.findall(rb"fastdrop[\w.]*", pickled))
            assert named == {b"fastdrop._pickle"}


def test_spawning_is_reproducible():
    seeds = [[child.seed for child in fastdrop.Stream(42).spawn(5)] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert set(seeds[0]).isdisjoint(child.seed for child in fastdrop.Stream(43).spawn(5))


def test_spawning_twice_gives_other_streams():
    stream = fastdrop.Stream(42)
    seeds = [child.seed for _ in range(3) for child in stream.spawn(3)]
    assert len(set(seeds)) == 9


def test_spawning_after_a_restored_state_is_reproducible():
    stream = fastdrop.Stream(42)
    fastdrop.draw_mask(SIZE, 0.5, seed=stream)
    stream.spawn(2)
    state = stream.state
    seeds = [child.seed for child in stream.spawn(3)]
    restored = fastdrop.Stream(0)
    restored.state = state
    assert [child.seed for child in restored.spawn(3)] == seeds


def test_grandchildren_differ():
    stream = fastdrop.Stream(42)
    seeds = {stream.seed}
    for child in stream.spawn(3):
        seeds.add(child.seed)
        seeds.update(grandchild.seed for grandchild in child.spawn(3))
    assert len(seeds) == 13


def test_spawning_none():
    assert len(fastdrop.Stream(42).spawn(0)) == 0


@pytest.mark.parametrize("n", [-1, 1.5, "2", None], ids=repr)
def test_a_bad_number_of_children_is_refused(n):
    stream = fastdrop.Stream(42)
    with pytest.raises((TypeError, ValueError), match=r"\bn\b"):
        stream.spawn(n)
    assert stream.state == {"seed": 42, "step": 0}


@pytest.mark.parametrize(
    "n", [2**48, 2**62, 2**63, 2**64], ids=lambda n: f"2**{n.bit_length() - 1}"
)
def test_too_many_children_for_memory_take_no_step(n):
    stream = fastdrop.Stream(42)
    with pytest.raises(MemoryError, match=f"`n`.*{n}"):
        stream.spawn(n)
    assert stream.state == {"seed": 42, "step": 0}


@pytest.mark.alone
def test_spawning_many_can_be_interrupted():
    stream = fastdrop.Stream(42)

    def stop(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(InterruptedError):
            stream.spawn(1_000_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stream.step == 0


@pytest.mark.alone
@pytest.mark.skipif(
    sysconfig.get_config_var("Py_GIL_DISABLED") or fastdrop._isa.BUILD == "asan",
    reason="has memory for objects set aside",
)
def test_spawning_without_memory_takes_no_step(run_python):
    done = run_python("""
import resource, fastdrop
stream = fastdrop.Stream(1)
with open("/proc/self/statm") as pages:
    size = int(pages.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**22, resource.RLIM_INFINITY))
try:
    stream.spawn(200_000)
except MemoryError:
    print(stream.step)
""")
    assert done.stdout == "0\n", done.stderr


def test_threads_that_spawn_take_all_of_their_steps_or_none(stream_at, eager_switching):
    for _ in range(20):
        stream = stream_at(5, 2**64 - 300)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(stream.spawn, 200) for _ in range(2)]
            errors = [future.exception() for future in futures]
        assert sorted(map(type, errors), key=str) == [type(None), OverflowError]
        assert all("`n`" in str(error) for error in errors if error)
        assert stream.step == 2**64 - 100


# Copying and sharing a stream.


COPIES = {f"pickle {n}": n for n in range(2, pickle.HIGHEST_PROTOCOL + 1)} | {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_continue_at_the_same_position(how):
    stream = fastdrop.Stream(2**128 - 1)
    stream.state = {"seed": 2**128 - 1, "step": 2**63 + 5}
    copied = COPIES[how]
    if callable(copied):
        other = copied(stream)
    else:
        other = pickle.loads(pickle.dumps(stream, protocol=copied))
    assert type(other) is fastdrop.Stream
    assert other.state == stream.state
    assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=other), 2**128 - 1, 2**63 + 5)
    assert stream.step == 2**63 + 5
    assert_drawn_at(fastdrop.draw_mask(SIZE, 0.5, seed=stream), 2**128 - 1, 2**63 + 5)


@pytest.fixture
def eager_switching():
    """Let Python threads interrupt each other as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_a_stream_shared_by_threads_gives_each_call_its_own_step(eager_switching):
    stream = fastdrop.Stream(42)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        masks = list(
            pool.map(lambda _: fastdrop.draw_mask(SIZE, 0.5, seed=stream), range(2000), chunksize=1)
        )
    assert sorted(mask.step for mask in masks) == list(range(2000))
    assert stream.step == 2000
    for mask in masks[::40]:
        assert_drawn_at(mask, 42, mask.step)


# No seed.


def test_calls_without_a_seed_take_steps_of_one_stream():
    first = fastdrop.draw_mask(SIZE, 0.5)
    second = fastdrop.dropout_(np.ones(SIZE), 0.5, seed=None)
    third = fastdrop.dropout(np.ones(SIZE), 0.5)[1]
    assert first.seed == second.seed == third.seed
    assert [mask.step - first.step for mask in (first, second, third)] == [0, 1, 2]
    assert_drawn_at(third, third.seed, third.step)


def test_processes_without_a_seed_differ(import_in):
    seeds = set(import_in([{}] * 3, "import fastdrop; print(fastdrop.draw_mask(1, 0.5).seed)"))
    assert len(seeds) == 3
    assert all(0 <= int(seed) < 2**128 for seed in seeds)


FORK = """
import os
import warnings

import fastdrop

# Python warns of a fork with threads, which these tests need.
warnings.simplefilter("ignore", DeprecationWarning)


def in_child(call):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, repr(call()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return eval(os.read(read, 10**6))


def place(seed):
    mask = fastdrop.draw_mask(64, 0.5, seed=seed)
    return mask.seed, mask.step, mask.bits.tobytes()
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")


@needs_fork
def test_a_forked_child_has_its_own_process_wide_stream(run_python):
    """Forks before and after the first draw, and in a child."""
    program = run_python(
        FORK
        + """
children = [in_child(lambda: place(None)) for _ in range(3)]
before = place(None)
children += [in_child(lambda: place(None)) for _ in range(3)]
children += in_child(lambda: (place(None), in_child(lambda: place(None))))
after = place(None)
assert after[:2] == (before[0], before[1] + 1), (before, after)
assert len({seed for seed, _, _ in [before, *children]}) == 9, children
assert len({bits for _, _, bits in [before, after, *children]}) == 10, children
print("done")
"""
    )
    assert program.stdout == "done\n", program.stderr


@needs_fork
def test_a_child_forked_outside_python_reseeds(run_python):
    """Python's functions after a fork do not run if another language forks."""
    done = run_python("""
import ctypes, os, fastdrop
fork = ctypes.PyDLL(None).fork
fastdrop.draw_mask(1, 0.5)
read, write = os.pipe()
child = fork()
drawn = fastdrop.draw_mask(1000, 0.5)
if not child:
    os.write(write, f"{drawn.seed}".encode())
    os._exit(0)
os.waitpid(child, 0)
assert int(os.read(read, 100)) != drawn.seed
print("done")
""")
    assert done.stdout == "done\n", done.stderr


def test_a_forked_child_keeps_given_seeds(run_python):
    program = run_python(
        FORK
        + """
stream = fastdrop.Stream(5)
place(stream)
assert in_child(lambda: place(stream)) == place(stream)
assert in_child(lambda: place(5)) == place(5)
print("done")
"""
    )
    assert program.stdout == "done\n", program.stderr
