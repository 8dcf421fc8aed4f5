"""Stream version 1: the reference against itself, the library against the reference, by bits.

The known answers and the frozen vectors hold both to the written specification; the rest holds
the library to the reference on every instruction set and wherever the kernels take another path.
"""

import csv
import hashlib
import os
import pathlib
import platform
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastdrop

DATA = pathlib.Path(__file__).parent / "data"

# seed, step, rate, elements, the bytes of `bits` in hex
KNOWN_BITS = [
    (0, 0, 0.5, 128, "0ef7708181871625f2439ea7b9cd7cfe"),
    (0, 0, 0.2, 128, "fff7fafbb98f7feffffffff7bdfd7efe"),
    (1, 0, 0.5, 128, "4b873335ee4b6af2457e1b66a421ee17"),
    (0, 1, 0.2, 128, "affddbf7ffeec74ffbf7ee7ee7a3feff"),
    (42, 7, 0.5, 128, "4aafec35bbd7843e9ad00f8e3feb8d9a"),
    (0x123456789ABCDEF0FEDCBA9876543210, 3, 0.2, 128, "e7afeecfd7f6dfebcffb7fcbf6729dff"),
]

# seed, step, rate, elements, kept, SHA-256 of the bytes of `bits`
KNOWN_DIGESTS = [
    (0, 0, 0.5, 16384, 8159, "b62637840a4bac2f3db94006cc34165b9f2cb6731b743c16701c81ba193e0aed"),
    (0, 0, 0.2, 16384, 13069, "7ad07fea01cced82d0240359ccdf40787218b200d08529067a82a1a9489f625d"),
    (134, 0, 0.1, 4096, 3668, "4a192935c155ef59863583f9b17843639cd0de0596ffda59ffb52a92271e10f1"),
    (42, 7, 0.3, 10000, 7013, "82b0c05cdac0ea71fe42e76197299d59d1433484cead207d50d88e13728d05a8"),
]

with (DATA / "vectors.csv").open(newline="") as lines:
    VECTORS = [
        (
            int(r["seed"], 16),
            int(r["step"]),
            float(r["rate"]),
            int(r["size"]),
            int(r["offset"]),
            int(r["kept"]),
            r["sha256"],
        )
        for r in csv.DictReader(lines)
    ]


def words(size):
    """Integers of so many bytes; integers() leans to small ones, which leave the high bits 0."""
    return st.one_of(
        st.binary(min_size=size, max_size=size).map(lambda word: int.from_bytes(word, "little")),
        st.sampled_from([0, 1, 2 ** (8 * size) - 1]),
    )


seeds = words(16)
steps = words(8)
rates = st.one_of(
    st.floats(0, 1),
    # Rates whose thresholds are whole fields, or a hair beside one.
    st.builds(lambda k, d: (k + d) / 2**16, st.integers(0, 2**16 - 1), st.sampled_from([0, 0.5])),
    st.sampled_from([0.0, 1.0, 2**-48, 2**-49, 1 - 2**-48, 1 - 2**-49, 1 - 2**-53, 5e-324]),
)
offsets = st.one_of(
    st.integers(0, 3 * 4096),
    st.sampled_from([2**31, 2**32, 2**40, 2**52]).flatmap(lambda n: st.integers(n - 99, n + 9999)),
)


def sha256(bits):
    return hashlib.sha256(bits.tobytes()).hexdigest()


# The reference against itself and against the specification's table.


@settings(max_examples=50)
@given(seeds, steps, rates, offsets, st.integers(1, 10000), st.data())
def test_array_reference_is_the_plain_reference(seed, step, rate, offset, size, data):
    kept = reference.keep_mask(seed, step, rate, size, offset)
    for _ in range(5):
        i = data.draw(st.integers(0, size - 1))
        assert kept[i] == reference.kept_bit(seed, step, rate, offset + i)


def test_array_reference_is_the_plain_reference_for_a_whole_block():
    kept = [reference.kept_bit(134, 0, 0.1, i) for i in range(4096)]
    assert reference.keep_mask(134, 0, 0.1, 4096).tolist() == kept


def test_array_reference_is_the_plain_reference_beyond_its_batches():
    size = 515 * 4096
    kept = reference.keep_mask(3, 9, 0.4, size, offset=77)
    for i in [0, 511 * 4096, 512 * 4096 - 78, 512 * 4096 - 77, 513 * 4096, size - 1]:
        assert kept[i] == reference.kept_bit(3, 9, 0.4, 77 + i)


def test_reference_key_words_that_coincide_are_told_apart(monkeypatch):
    monkeypatch.setattr(reference, "mix64", lambda z: 5)
    assert reference.key(0, 0) == (5, 5 ^ (2**64 - 1), 5, 5, 5)


@given(st.lists(st.booleans(), max_size=70))
def test_reference_packs_little_endian(kept):
    packed = reference.pack_bits(np.array(kept, dtype=bool))
    assert packed.tobytes() == reference.pack_bits_plain(kept)


def test_reference_rounds_to_bfloat16_like_ml_dtypes():
    patterns = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    # Every way that the lost half can lie: below, at and above the middle.
    patterns[:30000] = patterns[:30000] & 0xFFFF0000 | np.repeat([0x7FFF, 0x8000, 0x8001], 10000)
    x = patterns.view(np.float32)
    x = x[~np.isnan(x)]
    rounded = reference.round_to_bfloat16(x, np.dtype(ml_dtypes.bfloat16))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(rounded.view("u2"), x.astype(ml_dtypes.bfloat16).view("u2"))


@pytest.mark.parametrize(("seed", "step", "rate", "size", "bits"), KNOWN_BITS)
def test_known_bits_of_the_reference(seed, step, rate, size, bits):
    assert reference.pack_bits(reference.keep_mask(seed, step, rate, size)).tobytes().hex() == bits
    plain = [reference.kept_bit(seed, step, rate, i) for i in range(size)]
    assert reference.pack_bits_plain(plain).hex() == bits


@pytest.mark.parametrize(("seed", "step", "rate", "size", "kept", "digest"), KNOWN_DIGESTS)
def test_known_digests_of_the_reference(seed, step, rate, size, kept, digest):
    mask = reference.keep_mask(seed, step, rate, size)
    assert mask.sum() == kept
    assert sha256(reference.pack_bits(mask)) == digest


def test_known_tie_is_a_tie():
    high = reference.threshold(0.1) >> 32
    assert reference.field(reference.key(134, 0), 2766) == high


def test_frozen_vectors_of_the_reference():
    wrong = []
    for vector in VECTORS:
        seed, step, rate, size, offset, kept, digest = vector
        mask = reference.keep_mask(seed, step, rate, size, offset)
        if mask.sum() != kept or sha256(reference.pack_bits(mask)) != digest:
            wrong.append(vector)
    assert not wrong


def test_frozen_vectors_are_what_their_program_makes():
    program = subprocess.run(
        [sys.executable, DATA / "make_vectors.py"], capture_output=True, text=True, check=True
    )
    assert program.stdout == (DATA / "vectors.csv").read_text()


# The library against both.


@pytest.mark.parametrize(("seed", "step", "rate", "size", "bits"), KNOWN_BITS)
def test_known_bits(isa, stream_at, seed, step, rate, size, bits):
    mask = fastdrop.draw_mask(size, rate, seed=stream_at(seed, step))
    assert mask.bits.tobytes().hex() == bits


@pytest.mark.parametrize(("seed", "step", "rate", "size", "kept", "digest"), KNOWN_DIGESTS)
def test_known_digests(isa, stream_at, seed, step, rate, size, kept, digest):
    mask = fastdrop.draw_mask(size, rate, seed=stream_at(seed, step))
    assert mask.count() == kept
    assert sha256(mask.bits) == digest


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("store_mask", [True, False], ids=["stored", "drawn again"])
def test_frozen_vectors(isa, stream_at, threads, store_mask):
    wrong = []
    with fastdrop.num_threads(threads):
        for vector in VECTORS:
            seed, step, rate, size, offset, kept, digest = vector
            mask = fastdrop.draw_mask(
                size, rate, seed=stream_at(seed, step), offset=offset, store_mask=store_mask
            )
            bits = mask.bits if store_mask else reference.pack_bits(mask.unpack())
            if mask.count() != kept or sha256(bits) != digest:
                wrong.append(vector)
    assert not wrong


@settings(max_examples=150)
@given(seeds, steps, rates, st.integers(0, 20000), offsets)
@example(134, 0, 0.1, 4096, 0)
@example(134, 0, 0.1, 1, 2766)
def test_library_draws_the_reference(isa, stream_at, seed, step, rate, size, offset):
    mask = fastdrop.draw_mask(size, rate, seed=stream_at(seed, step), offset=offset)
    expected = reference.pack_bits(reference.keep_mask(seed, step, rate, size, offset))
    np.testing.assert_array_equal(mask.bits, expected)


def unmixed64(z):
    """What `mix64` makes z of."""

    def unshifted(z, count):
        x = z
        for _ in range(64 // count):
            x = z ^ (x >> count)
        return x

    z = unshifted(z, 31) * pow(reference.M2, -1, 2**64) & reference.WORD
    z = unshifted(z, 27) * pow(reference.M1, -1, 2**64) & reference.WORD
    return unshifted(z, 30)


@pytest.mark.parametrize("word", [1, 2**63 + 12345])
def test_library_tells_key_words_apart_that_coincide(isa, stream_at, word):
    """Mixing can be undone: here are a seed and a step whose k0 and k1 would both be `word`."""
    golden, mask64 = reference.G, reference.WORD
    h0 = (unmixed64(word) - word - 4 * golden) & mask64
    low, high = (unmixed64(h0) - golden) & mask64, 77
    h1 = reference.mix64((high + h0 + 2 * golden) & mask64)
    step = (unmixed64(word) - h1 - 3 * golden) & mask64
    seed = high << 64 | low
    assert reference.key(seed, step)[:2] == (word, word ^ mask64)
    mask = fastdrop.draw_mask(5000, 0.3, seed=stream_at(seed, step))
    expected = reference.pack_bits(reference.keep_mask(seed, step, 0.3, 5000))
    np.testing.assert_array_equal(mask.bits, expected)


@pytest.mark.parametrize("size", [*range(1, 130), *range(4060, 4130), 8191, 8192, 8193])
def test_library_draws_the_reference_at_every_small_size(isa, stream_at, size):
    expected = reference.keep_mask(77, 5, 0.3, 8193)[:size]
    mask = fastdrop.draw_mask(size, 0.3, seed=stream_at(77, 5))
    np.testing.assert_array_equal(mask.bits, reference.pack_bits(expected))


@pytest.mark.parametrize("offset", [*range(70), *range(4060, 4100), 8191])
def test_library_draws_the_reference_at_every_small_offset(isa, stream_at, offset):
    expected = reference.keep_mask(77, 5, 0.3, 8191 + 4500)[offset : offset + 4500]
    mask = fastdrop.draw_mask(4500, 0.3, seed=stream_at(77, 5), offset=offset)
    np.testing.assert_array_equal(mask.bits, reference.pack_bits(expected))


def test_library_decides_ties_like_the_reference(isa):
    # 2**22 elements hold some sixty ties at each rate, at any place in a block.
    for rate in (0.1, 0.2, 0.7, 1e-5, 1 - 1e-5):
        mask = fastdrop.draw_mask(2**22, rate, seed=2024)
        expected = reference.keep_mask(2024, 0, rate, 2**22)
        np.testing.assert_array_equal(mask.bits, reference.pack_bits(expected))


def test_rate_zero_keeps_all_and_rate_one_keeps_none(isa):
    for size in (1, 31, 4096, 5000):
        assert fastdrop.draw_mask(size, 0, seed=1).count() == size
        assert fastdrop.draw_mask(size, 1, seed=1).count() == 0


@settings(max_examples=50)
@given(st.integers(0, 30000), st.integers(0, 9000), st.booleans())
def test_pieces_are_slices_of_the_whole(isa, start, size, store_mask):
    whole = fastdrop.draw_mask(39000, 0.3, seed=9).unpack()
    piece = fastdrop.draw_mask(size, 0.3, seed=9, offset=start, store_mask=store_mask)
    np.testing.assert_array_equal(piece.unpack(), whole[start : start + size])


def test_pieces_of_a_noise_shape_are_slices_of_the_whole(isa):
    whole = fastdrop.draw_mask((20, 7, 50), 0.3, seed=9, noise_shape=(None, 1, None)).unpack()
    piece = fastdrop.draw_mask(
        (6, 7, 50), 0.3, seed=9, noise_shape=(None, 1, None), offset=11 * 50
    ).unpack()
    np.testing.assert_array_equal(piece, whole[11:17])


def test_mask_follows_the_flattened_noise_shape(isa):
    flat = fastdrop.draw_mask(2 * 3 * 4 * 50, 0.4, seed=3)
    shaped = fastdrop.draw_mask((2, 3, 4, 50), 0.4, seed=3)
    np.testing.assert_array_equal(shaped.bits, flat.bits)
    np.testing.assert_array_equal(shaped.unpack(), flat.unpack().reshape(2, 3, 4, 50))


def test_mask_does_not_depend_on_what_was_drawn_before(isa):
    first = fastdrop.draw_mask(5000, 0.3, seed=3).bits
    fastdrop.draw_mask(333, 0.7, seed=4)
    fastdrop.draw_mask(333, 0.7)
    np.testing.assert_array_equal(fastdrop.draw_mask(5000, 0.3, seed=3).bits, first)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_mask_is_the_same_on_any_number_of_threads(isa, threads):
    size, offset = 2**23 + 4321, 123
    expected = reference.pack_bits(reference.keep_mask(8, 0, 0.2, size, offset))
    with fastdrop.num_threads(threads):
        mask = fastdrop.draw_mask(size, 0.2, seed=8, offset=offset)
    np.testing.assert_array_equal(mask.bits, expected)


def test_more_than_two_to_the_31_elements():
    size = 2**31 + 2**24 + 4099
    # So many that one begins beyond the first 2**31 elements, and does not only end there.
    with fastdrop.num_threads(64):
        mask = fastdrop.draw_mask(size, 0.5, seed=5)
    assert mask.nbytes == mask.bits.size == -(-size // 8)
    for first in (2**30, 2**31 - 8192, 2**31, 2**31 + 2**24 - 8192):
        count = min(16384, size - first)
        expected = reference.pack_bits(reference.keep_mask(5, 0, 0.5, count, first))
        bits = mask.bits[first // 8 :][: expected.size]
        np.testing.assert_array_equal(bits, expected)
    # Not numpy.bitwise_count, which NumPy 1 does not have.
    bits_of_a_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(
        axis=1
    )
    assert mask.count() == np.bincount(mask.bits, minlength=256) @ bits_of_a_byte


# The choice of instruction set.

NAMES = ("avx512", "avx2", "neon", "portable")


def isa_in_use(configs):
    """From {isa: what show_config printed}: which name is printed first where they differ."""
    in_use = {}
    for isa, config in configs.items():
        elsewhere = {
            line for other, text in configs.items() if other != isa for line in text.splitlines()
        }
        own = "\n".join(line for line in config.splitlines() if line not in elsewhere)
        names = re.findall("|".join(NAMES), own)
        in_use[isa] = names[0] if names else None
    return in_use


def test_available_isas():
    available = fastdrop.available_isas()
    assert isinstance(available, tuple)
    assert set(available) <= set(NAMES)
    assert list(available) == sorted(available, key=NAMES.index)
    assert available[-1] == "portable"


def test_forced_isa_runs(run_python):
    code = """
import fastdrop
fastdrop.show_config()
print(fastdrop.draw_mask(128, 0.2, seed=0).bits.tobytes().hex())
"""
    configs = {}
    for isa in fastdrop.available_isas():
        program = run_python(code, FASTDROP_ISA=isa)
        assert program.returncode == 0, program.stderr
        configs[isa], _, bits = program.stdout.rstrip().rpartition("\n")
        assert bits == KNOWN_BITS[1][4]
    assert isa_in_use(configs) == {isa: isa for isa in configs}


def test_best_isa_runs_unless_one_is_forced(run_python):
    code = "import fastdrop; fastdrop.show_config()"
    best, *others = fastdrop.available_isas()
    assert run_python(code).stdout == run_python(code, FASTDROP_ISA=best).stdout
    for isa in others:
        assert run_python(code).stdout != run_python(code, FASTDROP_ISA=isa).stdout


def test_isas_can_be_switched_in_process(capsys):
    configs = {}
    for isa in fastdrop.available_isas():
        with fastdrop._isa.using(isa):
            fastdrop.show_config()
        configs[isa] = capsys.readouterr().out
    assert isa_in_use(configs) == {isa: isa for isa in configs}


@pytest.mark.parametrize(
    "name",
    ["sse9", "AVX3", "avx512 avx2", *(set(NAMES) - set(fastdrop.available_isas()))],
)
def test_unknown_and_unavailable_isas_are_refused(run_python, name):
    program = run_python("import fastdrop", FASTDROP_ISA=name)
    assert program.returncode != 0
    error = program.stderr.strip().splitlines()[-1]
    assert "ImportError" in error
    assert "FASTDROP_ISA" in error
    assert name in error
    for isa in fastdrop.available_isas():
        assert isa in error


def test_show_config(capsys):
    with fastdrop.num_threads(12345):
        fastdrop.show_config()
    first, *rows = capsys.readouterr().out.splitlines()
    shown = dict(row.strip().split(": ", 1) for row in rows)
    assert first == f"fastdrop {fastdrop.__version__}"
    assert shown["stream version"] == "1"
    assert shown["instruction set in use"] == fastdrop._isa.active_isa()
    assert shown["instruction sets available"].split(", ") == list(fastdrop.available_isas())
    assert shown["threads"] == "12345"
    assert shown["compiler"].lower().startswith(("gcc ", "clang ", "apple clang "))
    assert shown["build"] == os.environ.get("FASTDROP_BUILD", "release")
    assert shown["python"].endswith(platform.python_version())
    assert shown["numpy"] == np.__version__


# The page that defines the stream.


def test_the_page_has_the_known_answers():
    page = (DATA.parents[1] / "docs" / "stream.md").read_text()
    row = r"^\| (\w+) \| (\d+) \| ([\d.]+) \| (\d+) \| (\d*) ?\| `([0-9a-f]+)` \|$"
    told = [
        (int(seed, 0), int(step), float(rate), int(size), *([int(kept)] if kept else []), answer)
        for seed, step, rate, size, kept, answer in re.findall(row, page, re.MULTILINE)
    ]
    assert told == KNOWN_BITS + KNOWN_DIGESTS
