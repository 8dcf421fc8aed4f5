"""Stream version 2: the library equals the reference, and both equal the specification.

The known answers and the frozen vectors compare both with the specification. Other tests compare
the library with the reference, on every instruction set and every path of the kernels.
"""

import csv
import hashlib
import itertools
import os
import pathlib
import platform
import re
import subprocess
import sys

import broken_streams
import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastdrop

DATA = pathlib.Path(__file__).parent / "data"

# seed, step, rate, elements, kept, the bytes of `bits` in hex
KNOWN_BITS = [
    (0, 0, 0.5, 128, 67, "b95b1f91d0b2fbcc375c3563057e5660"),
    (0, 0, 0.2, 128, 103, "f9ff7f9ddefffbfcb7dff5ebff7ed6f6"),
    (1, 0, 0.5, 128, 59, "22db1eaab54082bc276f42740ce3b81c"),
    (0, 1, 0.2, 128, 103, "edfdff8ffb7efddfff6ffcf89eefdff5"),
    (42, 7, 0.5, 128, 69, "046db0f8a375f08be07ede389ed9785f"),
    (0x123456789ABCDEF0FEDCBA9876543210, 3, 0.2, 128, 104, "dffffbffffff6f2eddaedfa5f9f7e7fb"),
]

# seed, step, rate, elements, kept, SHA-256 of the bytes of `bits`
KNOWN_DIGESTS = [
    (0, 0, 0.5, 16384, 8214, "3bcc6bffbee99bd9473b456e7b20e744d599c67e582a06c5c25613f812e0c9ab"),
    (0, 0, 0.2, 16384, 13066, "111c3ed800e3921c7fde828b80639480c2ef3beddcaec52db51a91cbb5a0b9df"),
    (42, 7, 0.3, 10000, 6954, "1a18c038fb600f4f19f710c1dc93c332c75f5e043ec9334365eda86b334dfa93"),
    (36, 0, 0.1, 4096, 3663, "232d1ac6ff5373b6cec8ff77209407ee8e59b8d643618c68ef9265981a9443e8"),
    (7, 0, 0.999, 16384, 15, "26fda2e1ea7248fdc712e6bfd8432165b3fdd37e45e141c45bbb782ee867deb6"),
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
    """Integers of so many bytes. `integers()` prefers small ones, without high bits."""
    return st.one_of(
        st.binary(min_size=size, max_size=size).map(lambda word: int.from_bytes(word, "little")),
        st.sampled_from([0, 1, 2 ** (8 * size) - 1]),
    )


seeds = words(16)
steps = words(8)
rates = st.one_of(
    st.floats(0, 1),
    # Rates whose thresholds have few digits, for few planes, or are next to such a threshold.
    st.builds(
        lambda digits, k, hair: min(max(k % 2**digits / 2**digits + hair, 0.0), 1.0),
        st.integers(1, 16),
        st.integers(0, 2**16 - 1),
        st.sampled_from([0.0, 0.0, 2**-48, -(2**-48), 2**-30]),
    ),
    st.sampled_from([0.0, 1.0, 2**-48, 2**-49, 1 - 2**-48, 1 - 2**-49, 1 - 2**-53, 5e-324]),
)
offsets = st.one_of(
    st.integers(0, 3 * 4096),
    # Around the ends of vectors and blocks.
    st.builds(lambda n, d: 512 * n + d, st.integers(1, 24), st.integers(-1, 1)),
    st.sampled_from([2**31, 2**32, 2**40, 2**52]).flatmap(lambda n: st.integers(n - 99, n + 9999)),
)
# Sizes and offsets around groups of 8 and 32, lanes, vectors and blocks.
ENDS_OF_VECTORS = [512 * n + d for n in range(1, 17) for d in (-1, 0, 1)]


def sha256(bits):
    return hashlib.sha256(bits.tobytes()).hexdigest()


# The reference, compared with itself and with the specification's table.


@settings(max_examples=50)
@given(seeds, steps, rates, offsets, st.integers(1, 10000), st.data())
def test_both_references_are_the_same(seed, step, rate, offset, size, data):
    kept = reference.keep_mask(seed, step, rate, size, offset)
    for _ in range(5):
        i = data.draw(st.integers(0, size - 1))
        assert kept[i] == reference.kept_bit(seed, step, rate, offset + i)


@pytest.mark.parametrize("rate", [0.5, 0.25, 2**-12, 2**-13, 0.1, 1 - 1e-5, 2**-48, 1 - 2**-48])
def test_both_references_are_the_same_for_whole_blocks(rate):
    keys, t = reference.key(36, 0), reference.threshold(rate)
    vectors = [kept for block in range(3) for kept, _ in reference.kept_vectors(keys, t, block)]
    kept = reference.pack_bits(reference.keep_mask(36, 0, rate, 3 * 4096))
    assert kept.tobytes() == b"".join(vector.to_bytes(64, "little") for vector in vectors)


def test_both_references_are_the_same_beyond_its_batches():
    size = 515 * 4096
    kept = reference.keep_mask(3, 9, 0.4, size, offset=77)
    for i in [0, 511 * 4096, 512 * 4096 - 78, 512 * 4096 - 77, 513 * 4096, size - 1]:
        assert kept[i] == reference.kept_bit(3, 9, 0.4, 77 + i)


def test_reference_replaces_a_second_key_word_that_equals_the_first(monkeypatch):
    monkeypatch.setattr(reference, "mix64", lambda z: 5)
    assert reference.key(0, 0) == (5, 5 ^ (2**64 - 1), 5, 5)


@given(rates)
def test_reference_uses_the_digits_of_the_threshold(rate):
    t = reference.threshold(rate)
    digits = [reference.digit(t, d) for d in range(1, 49)]
    last = reference.last_digit(t)
    assert sum(digit * 2 ** (48 - d) for d, digit in enumerate(digits, 1)) == t % 2**48
    assert not any(digits[last:])
    assert last == 0 or digits[last - 1] == 1


@given(seeds, rates, st.integers(0, 2**52))
def test_reference_keeps_the_numbers_below_the_threshold(seed, rate, block):
    """In the first vector of a block, all digits of the numbers can be computed."""
    keys, t = reference.key(seed, 0), reference.threshold(rate)
    kept, planes = next(reference.kept_vectors(keys, t, block))
    assert planes <= reference.last_digit(t)
    for lane in range(8):
        words = list(itertools.islice(reference.lane_words(keys, 8 * block + lane), 48))
        for bit in range(64):
            number = sum((word >> bit & 1) << (48 - d) for d, word in enumerate(words, 1))
            assert (kept >> (64 * lane + bit) & 1) == (number < t)


@given(st.lists(st.booleans(), max_size=70))
def test_reference_packs_little_endian(kept):
    packed = reference.pack_bits(np.array(kept, dtype=bool))
    assert packed.tobytes() == reference.pack_bits_one_by_one(kept)


def test_reference_rounds_to_bfloat16_like_ml_dtypes():
    patterns = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    # The discarded part is below, at and above the middle.
    patterns[:30000] = patterns[:30000] & 0xFFFF0000 | np.repeat([0x7FFF, 0x8000, 0x8001], 10000)
    x = patterns.view(np.float32)
    x = x[~np.isnan(x)]
    rounded = reference.round_to_bfloat16(x, np.dtype(ml_dtypes.bfloat16))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(rounded.view("u2"), x.astype(ml_dtypes.bfloat16).view("u2"))


@pytest.mark.parametrize(("seed", "step", "rate", "size", "kept", "bits"), KNOWN_BITS)
def test_known_bits_of_the_reference(seed, step, rate, size, kept, bits):
    mask = reference.keep_mask(seed, step, rate, size)
    assert mask.sum() == kept
    assert reference.pack_bits(mask).tobytes().hex() == bits
    one_by_one = [reference.kept_bit(seed, step, rate, i) for i in range(size)]
    assert reference.pack_bits_one_by_one(one_by_one).hex() == bits


@pytest.mark.parametrize(("seed", "step", "rate", "size", "kept", "digest"), KNOWN_DIGESTS)
def test_known_digests_of_the_reference(seed, step, rate, size, kept, digest):
    mask = reference.keep_mask(seed, step, rate, size)
    assert mask.sum() == kept
    assert sha256(reference.pack_bits(mask)) == digest


def test_known_answer_that_takes_twenty_planes():
    """Seed 36 at rate 0.1: after eleven to nineteen planes only element 323 is undecided."""
    keys, t = reference.key(36, 0), reference.threshold(0.1)
    planes = [planes for _, planes in reference.kept_vectors(keys, t, 0)]
    assert planes == [20, *[12] * 7]
    words = list(itertools.islice(reference.lane_words(keys, 323 // 64), 20))
    digits = [word >> 323 % 64 & 1 for word in words]
    assert digits[:19] == [reference.digit(t, d) for d in range(1, 20)]
    assert digits[19] > reference.digit(t, 20)
    assert not reference.kept_bit(36, 0, 0.1, 323)


def test_frozen_vectors_of_the_reference():
    wrong = []
    for vector in VECTORS:
        seed, step, rate, size, offset, kept, digest = vector
        mask = reference.keep_mask(seed, step, rate, size, offset)
        if mask.sum() != kept or sha256(reference.pack_bits(mask)) != digest:
            wrong.append(vector)
    assert not wrong


def test_the_program_reproduces_the_frozen_vectors():
    program = subprocess.run(
        [sys.executable, DATA / "make_vectors.py"], capture_output=True, text=True, check=True
    )
    assert program.stdout == (DATA / "vectors.csv").read_text()


def test_frozen_vectors_cover_every_number_of_planes_and_start_anywhere():
    planes, places = set(), set()
    for seed, step, rate, size, offset, _, _ in VECTORS:
        keys, t = reference.key(seed, step), reference.threshold(rate)
        if size > 512:
            places.add((offset % 4096 > 0, offset % 512 > 0, reference.last_digit(t) > 12))
        planes |= {n for _, n in reference.kept_vectors(keys, t, offset // 4096)}
    assert planes >= {0, 1, 2, 3, 12, 13, 14, 15}
    # Starts of a block and of a vector, and a start inside a vector.
    assert places == {(a, b, c) for a, b in [(0, 0), (1, 0), (1, 1)] for c in (False, True)}
    assert {reference.last_digit(reference.threshold(rate)) for _, _, rate, *_ in VECTORS} >= {
        *(0, 1, 2, 3, 12, 13, 48)
    }


# The library, compared with both.


@pytest.mark.parametrize(("seed", "step", "rate", "size", "kept", "bits"), KNOWN_BITS)
def test_known_bits(isa, stream_at, seed, step, rate, size, kept, bits):
    mask = fastdrop.draw_mask(size, rate, seed=stream_at(seed, step))
    assert mask.count() == kept
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
@example(36, 0, 0.1, 4096, 0)
@example(36, 0, 0.1, 3000, 400)
@example(36, 0, 0.1, 1, 323)
def test_library_draws_the_reference(isa, stream_at, seed, step, rate, size, offset):
    mask = fastdrop.draw_mask(size, rate, seed=stream_at(seed, step), offset=offset)
    expected = reference.pack_bits(reference.keep_mask(seed, step, rate, size, offset))
    np.testing.assert_array_equal(mask.bits, expected)


def unmixed64(z):
    """The inverse of `mix64`."""

    def unshifted(z, count):
        x = z
        for _ in range(64 // count):
            x = z ^ (x >> count)
        return x

    z = unshifted(z, 31) * pow(reference.M2, -1, 2**64) & reference.WORD
    z = unshifted(z, 27) * pow(reference.M1, -1, 2**64) & reference.WORD
    return unshifted(z, 30)


@pytest.mark.parametrize("word", [1, 2**63 + 12345])
def test_library_replaces_a_second_key_word_that_equals_the_first(isa, stream_at, word):
    """Mixing is invertible, which gives a seed and a step whose k0 and k1 would both be `word`."""
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


# Rates with one plane, two, up to twelve, and more than twelve.
FEW_AND_MANY_PLANES = [0.5, 0.25, 2**-12, 0.3]


@pytest.mark.parametrize("rate", FEW_AND_MANY_PLANES)
def test_library_draws_the_reference_at_every_small_size(isa, stream_at, rate):
    whole = reference.keep_mask(77, 5, rate, 8193)
    for size in [*range(1, 130), *ENDS_OF_VECTORS, *range(4060, 4130)]:
        mask = fastdrop.draw_mask(size, rate, seed=stream_at(77, 5))
        np.testing.assert_array_equal(mask.bits, reference.pack_bits(whole[:size]), str(size))


@pytest.mark.parametrize("rate", FEW_AND_MANY_PLANES)
def test_library_draws_the_reference_at_every_small_offset(isa, stream_at, rate):
    whole = reference.keep_mask(77, 5, rate, 8193 + 4500)
    for offset in [*range(70), *ENDS_OF_VECTORS, *range(4060, 4100)]:
        for size in (3, 4500):
            mask = fastdrop.draw_mask(size, rate, seed=stream_at(77, 5), offset=offset)
            expected = reference.pack_bits(whole[offset : offset + size])
            np.testing.assert_array_equal(mask.bits, expected, str(offset))


@pytest.mark.parametrize("rate", [0.3, 0.999])
def test_a_mask_is_the_start_of_a_longer_mask(isa, rate):
    # At this size, one vector in eight needs more than twelve planes.
    for seed in range(24):
        whole = reference.keep_mask(seed, 0, rate, 1024)
        for size in range(1, 521):
            mask = fastdrop.draw_mask(size, rate, seed=seed)
            assert mask.bits.tobytes() == reference.pack_bits(whole[:size]).tobytes(), (seed, size)


@pytest.mark.parametrize(
    "rate", [0.1, 0.2, 0.7, 1e-5, 1 - 1e-5, 2**-13, 1 - 2**-13, 2**-48, 1 - 2**-48]
)
def test_library_takes_as_many_planes_as_the_reference(isa, rate):
    # Of 8192 vectors, a thousand need more than twelve planes, and some more than twenty. One plane
    # too few or too many changes all later vectors of the block.
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


def pieces_that_differ(draw):
    """The number of pieces, of 256 that start inside a vector, that are not slices of the whole."""
    different = 0
    for seed in range(256):
        start = 1 + 37 * seed % 1535
        whole = np.unpackbits(draw(seed, 0, 0.3, 8192), bitorder="little")
        piece = np.unpackbits(draw(seed, 0, 0.3, 2000, start), bitorder="little", count=2000)
        different += not np.array_equal(piece, whole[start : start + 2000])
    return different


def test_pieces_that_start_inside_a_vector(isa, stream_at):
    def draw(seed, step, rate, size, offset=0):
        return fastdrop.draw_mask(size, rate, seed=stream_at(seed, step), offset=offset).bits

    assert pieces_that_differ(draw) == 0


def test_pieces_that_start_inside_a_vector_catch_an_uncounted_part():
    assert pieces_that_differ(broken_streams.outside_is_not_counted) > 0


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


def test_mask_does_not_depend_on_earlier_draws(isa):
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


# The choice of instruction set.

NAMES = ("avx512", "avx2", "neon", "portable")


def isa_in_use(configs):
    """The name that distinguishes each output in {isa: output of show_config}."""
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


def test_the_requested_isa_runs_and_the_best_by_default(import_in):
    code = """
import fastdrop
fastdrop.show_config()
print(fastdrop.draw_mask(128, 0.2, seed=0).bits.tobytes().hex())
"""
    isas = fastdrop.available_isas()
    without_a_wish, *outputs = import_in([{}, *({"FASTDROP_ISA": isa} for isa in isas)], code)
    configs = {}
    for isa, output in zip(isas, outputs, strict=True):
        configs[isa], _, bits = output.rstrip().rpartition("\n")
        assert bits == KNOWN_BITS[1][5]
    assert isa_in_use(configs) == {isa: isa for isa in configs}
    assert outputs.index(without_a_wish) == 0


def test_isas_can_be_switched_in_process(capsys):
    configs = {}
    for isa in fastdrop.available_isas():
        with fastdrop._isa.using(isa):
            fastdrop.show_config()
        configs[isa] = capsys.readouterr().out
    assert isa_in_use(configs) == {isa: isa for isa in configs}


def test_unknown_and_unavailable_isas_are_refused(import_in):
    available = fastdrop.available_isas()
    names = ["sse9", "AVX3", "avx512 avx2", *(name for name in NAMES if name not in available)]
    errors = import_in([{"FASTDROP_ISA": name} for name in names])
    for name, error in zip(names, errors, strict=True):
        assert error.startswith("ImportError: FASTDROP_ISA")
        assert name in error
        for isa in available:
            assert isa in error


def test_show_config(capsys):
    with fastdrop.num_threads(12345):
        fastdrop.show_config()
    first, *rows = capsys.readouterr().out.splitlines()
    told = dict(row.strip().split(": ", 1) for row in rows)
    assert first == f"fastdrop {fastdrop.__version__}"
    assert told["stream version"] == "2"
    assert told["instruction set in use"] == fastdrop._isa.active_isa()
    assert told["instruction sets available"].split(", ") == list(fastdrop.available_isas())
    assert told["threads"] == "12345"
    assert told["compiler"].lower().startswith(("gcc ", "clang ", "apple clang "))
    assert told["build"] == os.environ.get("FASTDROP_BUILD", "release")
    assert told["python"].endswith(platform.python_version())
    assert told["numpy"] == np.__version__


# The page that defines the stream.


def test_the_page_has_the_known_answers():
    page = (DATA.parents[1] / "docs" / "stream.md").read_text()
    row = r"^\| (\w+) \| (\d+) \| ([\d.]+) \| (\d+) \| (\d+) \| `([0-9a-f]+)` \|$"
    told = [
        (int(seed, 0), int(step), float(rate), int(size), int(kept), answer)
        for seed, step, rate, size, kept, answer in re.findall(row, page, re.MULTILINE)
    ]
    assert told == KNOWN_BITS + KNOWN_DIGESTS
