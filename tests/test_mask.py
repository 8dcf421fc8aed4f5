"""The Mask object: its attributes and bits, use, packing, comparison, copies and pickles."""

import copy
import itertools
import math
import operator
import pickle
from xml.etree import ElementTree

import numpy as np
import pytest
import reference
from pairwise import pairs_of
from reference import assert_same_bits

import fastdrop

SHAPES = [(), (1,), (7,), (8,), (9,), (33,), (4099,), (3, 5), (70, 69), (2, 3, 4, 5), (0,), (3, 0)]
STORED_OR_NOT = pytest.mark.parametrize("store_mask", [True, False])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def keep_mask(shape, rate, seed, step=0):
    return reference.keep_mask(seed, step, rate, math.prod(shape)).reshape(shape)


def attributes(mask):
    return {
        name: getattr(mask, name)
        for name in ("shape", "noise_shape", "rate", "scale", "seed", "step", "nbytes", "size")
    }


# Attributes.


@STORED_OR_NOT
@each_shape
def test_attributes(shape, store_mask):
    mask = fastdrop.draw_mask(shape, 0.2, seed=2**100 + 3, store_mask=store_mask)
    assert attributes(mask) == {
        "shape": shape,
        "noise_shape": shape,
        "rate": 0.2,
        "scale": 1 / (1 - 0.2),
        "seed": 2**100 + 3,
        "step": 0,
        "nbytes": -(-math.prod(shape) // 8) if store_mask else 0,
        "size": math.prod(shape),
    }


def test_attributes_are_python_objects():
    mask = fastdrop.draw_mask((3, 5), np.float64(0.25), seed=1, noise_shape=[None, 1])
    assert type(mask.shape) is tuple
    assert type(mask.noise_shape) is tuple
    assert all(type(entry) is int for entry in mask.shape + mask.noise_shape)
    assert type(mask.rate) is float
    assert type(mask.scale) is float
    assert type(mask.seed) is int
    assert type(mask.step) is int


@pytest.mark.parametrize("shape", [5, (5,), [5], np.int64(5), (np.int64(5),)], ids=repr)
def test_a_shape_may_be_a_number_or_any_sequence(shape):
    assert fastdrop.draw_mask(shape, 0.2, seed=1).shape == (5,)


ATTRIBUTES = ["shape", "noise_shape", "rate", "scale", "seed", "step", "size", "bits", "nbytes"]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_attributes_cannot_be_set(attribute):
    mask = fastdrop.draw_mask(10, 0.2, seed=1)
    with pytest.raises(AttributeError):
        setattr(mask, attribute, getattr(mask, attribute))


def test_scale_and_step_are_as_in_the_call(stream_at):
    mask = fastdrop.draw_mask(10, 0.2, seed=stream_at(5, 2**63 + 1), scale=1.0)
    assert mask.scale == 1.0
    assert mask.seed == 5
    assert mask.step == 2**63 + 1


def test_every_call_draws_the_mask_of_draw_mask():
    drawn = fastdrop.draw_mask((30, 40), 0.2, seed=7, noise_shape=(None, 1), scale=3.0)
    x = np.ones((30, 40), np.float32)
    options = {"seed": 7, "noise_shape": (None, 1), "scale": 3.0}
    for mask in (fastdrop.dropout(x, 0.2, **options)[1], fastdrop.dropout_(x, 0.2, **options)):
        assert attributes(mask) == attributes(drawn)
        np.testing.assert_array_equal(mask.bits, drawn.bits)


def test_none_in_a_noise_shape_is_the_arrays_own_size():
    mask = fastdrop.draw_mask((3, 5, 7), 0.2, seed=1, noise_shape=(None, 1, 7))
    assert mask.shape == (3, 5, 7)
    assert mask.noise_shape == (3, 1, 7)
    assert mask.nbytes == 3


FEWER_ENTRIES = [((4, 2), (2,)), ((4, 2), (1,)), ((4, 2), ()), ((3, 5, 7), (1, 7)), ((1, 7), (7,))]


@pytest.mark.parametrize(("shape", "noise_shape"), FEWER_ENTRIES, ids=str)
def test_a_shorter_noise_shape_belongs_to_the_last_dimensions(shape, noise_shape):
    """As in any broadcast."""
    kept = reference.keep_mask(1, 0, 0.4, math.prod(noise_shape)).reshape(noise_shape)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = reference.dropout(x, kept, 1 / 0.6)
    options = {"rate": 0.4, "seed": 1, "noise_shape": noise_shape}
    y, mask = fastdrop.dropout(x, **options)
    assert_same_bits(y, expected)
    assert mask.noise_shape == (1,) * (len(shape) - len(noise_shape)) + noise_shape
    assert fastdrop.draw_mask(shape, **options) == mask
    assert_same_bits(fastdrop.dropout_grad(x, mask), expected)
    assert_same_bits(fastdrop.bias_dropout_add(x, None, None, **options)[0], expected)
    positive = np.abs(x)
    y, _ = fastdrop.relu_dropout(positive, **options)
    assert_same_bits(y, reference.dropout(positive, kept, 1 / 0.6))
    y = x.copy()
    assert fastdrop.dropout_(y, **options) == mask
    assert_same_bits(y, expected)


def test_a_mask_applies_to_its_own_shape_alone():
    """Also where its bits would broadcast; the seed draws them for another number of rows."""
    mask = fastdrop.draw_mask((8, 5), 0.4, seed=1, noise_shape=(1, None))
    rows = np.ones((3, 5))
    for use in (mask.apply, mask.apply_, lambda x: fastdrop.dropout_grad(x, mask)):
        with pytest.raises(ValueError, match=r"`mask` must have the shape of .*\(3, 5\)"):
            use(rows)
    fewer = fastdrop.draw_mask(rows.shape, mask.rate, seed=mask.seed, noise_shape=mask.noise_shape)
    np.testing.assert_array_equal(fewer.bits, mask.bits)
    np.testing.assert_array_equal(fewer.unpack(), mask.unpack()[:3])


@pytest.mark.parametrize(
    "rate",
    [
        np.float64(0.25),
        np.float32(0.25),
        np.float16(0.25),
        np.longdouble(0.25),
        np.array(0.25),
        np.array(0.25, np.float16),
        np.array(0.25, ">f8"),
        np.ones(3)[1:2].reshape(()) / 4,
        np.int8(1),
        np.array(0),
        np.array(1, np.uint8),
    ],
    ids=repr,
)
def test_a_rate_may_be_an_array_without_dimensions(rate):
    for mask in (fastdrop.draw_mask(100, rate, seed=1), fastdrop.dropout_(np.ones(100), rate)):
        assert type(mask.rate) is float
        assert mask.rate == float(rate)
    assert fastdrop.draw_mask(100, rate, seed=1) == fastdrop.draw_mask(100, float(rate), seed=1)
    assert fastdrop.Mask.pack(np.ones(3, bool), rate=rate).rate == float(rate)


@pytest.mark.parametrize(
    ("shape", "store_mask"),
    # The second is larger than memory, so it cannot be stored.
    [((3,), True), ((2**20, 2**20), False), ((10**6,), True), ((1, 2, 3, 4, 5), False)],
    ids=str,
)
def test_repr_is_short_and_names_the_shape_and_the_rate(shape, store_mask):
    text = repr(fastdrop.draw_mask(shape, 0.2, seed=1, store_mask=store_mask))
    assert "Mask" in text
    assert str(shape) in text
    assert "0.2" in text
    assert len(text) < 200


def rows_of_html(mask):
    """The table that a notebook shows, as a dict of texts."""
    table = ElementTree.fromstring(mask._repr_html_())
    assert table.find("caption").text == "fastdrop.Mask"
    return {row.find("th").text: "".join(row.find("td").itertext()) for row in table.iter("tr")}


def test_a_notebook_shows_the_attributes_of_a_mask():
    mask = fastdrop.draw_mask((3, 4000), 0.25, seed=7, noise_shape=(3, 1))
    kept = int(keep_mask((3,), 0.25, 7).sum())
    shown = rows_of_html(mask)
    lines = ["□■"[int(one)] * 32 for one in keep_mask((3,), 0.25, 7)]
    assert shown.pop("[:3, :32]").split("\n") == lines
    assert shown == {
        "shape": "(3, 4000)",
        "noise shape": "(3, 1)",
        "rate": "0.25",
        "seed": "7",
        "step": "0",
        "kept": f"{kept} of 3 bits ({kept / 3:.1%})",
        "dropped": str(3 - kept),
        "stored": "1 bytes",
    }
    assert "seed" not in rows_of_html(fastdrop.Mask.pack([True]))
    assert rows_of_html(fastdrop.Mask.pack([True]))["rate"] == "None"
    by_array = fastdrop.draw_mask((2, 3), np.full((2, 1), 0.5), seed=1)
    assert rows_of_html(by_array)["rate"] == "array of shape (2, 1)"


@pytest.mark.parametrize(
    ("shape", "index", "place"),
    [
        ((), "[()]", np.s_[None, None]),
        ((5,), "[:5]", np.s_[None, :]),
        ((100,), "[:32]", np.s_[None, :32]),
        ((20, 40), "[:16, :32]", np.s_[:16, :32]),
        ((2, 3, 4, 5), "[0, 0, :4, :5]", np.s_[0, 0]),
    ],
    ids=str,
)
@STORED_OR_NOT
def test_a_notebook_shows_the_first_rows_and_columns(shape, index, place, store_mask):
    kept = keep_mask(shape, 0.5, 3)[place]
    picture = rows_of_html(fastdrop.draw_mask(shape, 0.5, seed=3, store_mask=store_mask))[index]
    assert picture.split("\n") == ["".join("□■"[int(one)] for one in row) for row in kept]


def test_a_notebook_shows_masks_of_any_size():
    assert not [name for name in rows_of_html(fastdrop.draw_mask((3, 0), 0.2)) if name[0] == "["]
    # Drawing all of it, or one column of it, would take days.
    huge = fastdrop.draw_mask((2**20, 2**40), 0.2, seed=1, store_mask=False)
    shown = rows_of_html(huge)
    assert shown["bits"] == f"{2**60:,}"
    assert "kept" not in shown
    first = keep_mask((32,), 0.2, 1)
    assert shown["[:16, :32]"].split("\n")[0] == "".join("□■"[int(one)] for one in first)
    assert len(huge._repr_html_()) < 3000


# The bits.


@each_shape
def test_bits_are_the_packed_keep_mask(isa, shape):
    mask = fastdrop.draw_mask(shape, 0.3, seed=11)
    assert mask.bits.dtype == np.uint8
    assert mask.bits.shape == (-(-math.prod(shape) // 8),)
    np.testing.assert_array_equal(mask.bits, reference.pack_bits(keep_mask(shape, 0.3, 11)))


def test_unused_high_bits_are_zero(isa):
    for size in range(1, 66):
        for rate in (0, 0.1):
            mask = fastdrop.draw_mask(size, rate, seed=11)
            assert np.unpackbits(mask.bits, bitorder="little")[size:].sum() == 0, (size, rate)
        packed = fastdrop.Mask.pack(np.ones(size, bool))
        assert np.unpackbits(packed.bits, bitorder="little")[size:].sum() == 0, size


def test_bits_cannot_be_made_writeable():
    bits = fastdrop.draw_mask(100, 0.3, seed=11).bits
    for view in (bits, bits[:5]):
        with pytest.raises(ValueError, match=r"(?i)writeable"):
            view.flags.writeable = True


def test_bits_are_read_only():
    bits = fastdrop.draw_mask(100, 0.3, seed=11).bits
    assert not bits.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        bits[0] = 0


@pytest.mark.parametrize("size", [1, 100, 5000, 10**6, 10**7])
def test_bits_are_aligned(size):
    x = np.ones(size, np.float32)
    masks = [
        fastdrop.draw_mask(size, 0.3, seed=11),
        fastdrop.dropout(x, 0.3, seed=11)[1],
        fastdrop.dropout_(x, 0.3, seed=11),
        fastdrop.Mask.pack(np.ones(size, bool)),
    ]
    masks += [pickle.loads(pickle.dumps(masks[0])), copy.deepcopy(masks[0])]
    for mask in masks:
        assert mask.bits.ctypes.data % 64 == 0


def test_bits_outlive_their_mask():
    bits = fastdrop.draw_mask(10**6, 0.3, seed=11).bits
    expected = reference.pack_bits(keep_mask((10**6,), 0.3, 11))
    others = [fastdrop.draw_mask(10**6, 0.5, seed=s) for s in range(8)]
    np.testing.assert_array_equal(bits, expected)
    assert len(others) == 8


def test_masks_do_not_share_bits():
    first = fastdrop.draw_mask(10**5, 0.3, seed=1)
    before = first.bits.copy()
    second = fastdrop.draw_mask(10**5, 0.3, seed=2)
    assert not np.shares_memory(first.bits, second.bits)
    np.testing.assert_array_equal(first.bits, before)


def test_a_stored_mask_is_a_32nd_of_a_float32_array():
    x = np.ones(2**20, np.float32)
    assert fastdrop.dropout(x, 0.5, seed=1)[1].nbytes * 32 == x.nbytes


def test_a_replayed_mask_stores_nothing():
    x = np.ones((30, 40), np.float32)
    masks = [
        fastdrop.dropout(x, 0.2, seed=1, store_mask=False)[1],
        fastdrop.dropout_(x, 0.2, seed=1, store_mask=False),
        # Far more than memory.
        fastdrop.draw_mask((2**25, 2**25), 0.2, seed=1, store_mask=False),
    ]
    for mask in masks:
        assert mask.bits is None
        assert mask.nbytes == 0


# Use.


@STORED_OR_NOT
@each_shape
def test_count(isa, shape, store_mask):
    for rate in (0, 0.3, 1):
        mask = fastdrop.draw_mask(shape, rate, seed=11, store_mask=store_mask)
        assert mask.count() == keep_mask(shape, rate, 11).sum()


@STORED_OR_NOT
def test_count_of_a_large_mask(isa, store_mask):
    mask = fastdrop.draw_mask(2**23 + 13, 0.3, seed=11, store_mask=store_mask)
    assert mask.count() == keep_mask((2**23 + 13,), 0.3, 11).sum()


@STORED_OR_NOT
@each_shape
def test_unpack(isa, shape, store_mask):
    mask = fastdrop.draw_mask(shape, 0.3, seed=11, store_mask=store_mask)
    unpacked = mask.unpack()
    assert isinstance(unpacked, np.ndarray)
    assert unpacked.dtype == bool
    assert unpacked.shape == shape
    np.testing.assert_array_equal(unpacked, keep_mask(shape, 0.3, 11))


@STORED_OR_NOT
@pytest.mark.parametrize("noise_shape", [(None, 1, None), (1, None, 1), (1, 1, 1), (3, 40, 1)])
def test_unpack_broadcasts_a_noise_shape(isa, noise_shape, store_mask):
    shape = (3, 40, 51)
    mask = fastdrop.draw_mask(shape, 0.3, seed=11, noise_shape=noise_shape, store_mask=store_mask)
    noise = keep_mask(reference.resolve_noise_shape(shape, noise_shape), 0.3, 11)
    np.testing.assert_array_equal(mask.unpack(), np.broadcast_to(noise, shape))


@STORED_OR_NOT
def test_an_unpacked_mask_is_writeable(store_mask):
    mask = draw(store_mask=store_mask)
    before, unpacked = mask.unpack(), mask.unpack()
    unpacked[...] = False
    np.testing.assert_array_equal(mask.unpack(), before)


def test_unpack_returns_a_new_array():
    mask = fastdrop.draw_mask((3, 40), 0.3, seed=11, noise_shape=(1, None))
    unpacked = mask.unpack()
    unpacked[...] = False
    np.testing.assert_array_equal(
        mask.unpack(), np.broadcast_to(keep_mask((1, 40), 0.3, 11), (3, 40))
    )


@STORED_OR_NOT
def test_apply(isa, store_mask):
    x = np.random.default_rng(0).normal(size=(70, 69))
    before = x.copy()
    mask = fastdrop.draw_mask(x.shape, 0.3, seed=11, store_mask=store_mask)
    expected = reference.dropout(x, keep_mask(x.shape, 0.3, 11), 1 / (1 - 0.3))
    assert_same_bits(mask.apply(x), expected)
    assert_same_bits(x, before)
    out = np.empty_like(x)
    assert mask.apply(x, out=out) is out
    assert_same_bits(out, expected)
    out = np.empty_like(x)
    assert mask.apply(x, out) is out
    assert_same_bits(out, expected)
    assert_same_bits(x, before)
    mask.apply_(x)
    assert_same_bits(x, expected)


@pairs_of(
    "noise_shape offset store_mask",
    [None, (None, 1), (1, None)],
    [1, 31, 32, 100, 4095, 4096, 4097, 2**33 + 1001, 2**60 + 5],
    [True, False],
)
def test_apply_with_an_offset(isa, noise_shape, offset, store_mask):
    x = np.random.default_rng(0).normal(size=(130, 131)).astype(np.float32)
    mask = fastdrop.draw_mask(
        x.shape, 0.3, seed=11, offset=offset, noise_shape=noise_shape, store_mask=store_mask
    )
    noise = reference.resolve_noise_shape(x.shape, noise_shape)
    kept = reference.keep_mask(11, 0, 0.3, math.prod(noise), offset).reshape(noise)
    expected = reference.dropout(x, kept, 1 / (1 - 0.3))
    assert_same_bits(mask.apply(x), expected)
    np.testing.assert_array_equal(mask.unpack(), np.broadcast_to(kept, x.shape))
    assert_same_bits(fastdrop.dropout_grad_(x, mask), expected)


def test_apply_takes_no_step_and_draws_nothing_new(stream_at):
    stream = stream_at(3)
    mask = fastdrop.draw_mask(5000, 0.3, seed=stream, store_mask=False)
    first = mask.apply(np.ones(5000))
    fastdrop.draw_mask(5000, 0.3, seed=stream)
    step = stream.step
    assert_same_bits(mask.apply(np.ones(5000)), first)
    assert stream.step == step


# As an array of bools.


def boolean_masks():
    """Masks of all kinds, each with the bools that it stands for."""
    shapes = [((), None), ((1,), None), ((1, 1), (1, 1)), ((0,), None), ((3, 0), (1, None))]
    shapes += [((37,), None), ((5, 11), None), ((5, 11), (1, None)), ((5, 11), (None, 1))]
    shapes += [((4, 3, 7), (None, 1, None)), ((4, 3, 7), (3, 1)), ((2, 9, 5), (1, 1, 1))]
    for (shape, noise_shape), store_mask, offset in itertools.product(
        shapes, [True, False], [0, 4093]
    ):
        noise = reference.resolve_noise_shape(shape, noise_shape)
        kept = reference.keep_mask(11, 0, 0.4, math.prod(noise), offset).reshape(noise)
        mask = fastdrop.draw_mask(
            shape, 0.4, seed=11, noise_shape=noise_shape, store_mask=store_mask, offset=offset
        )
        yield mask, np.broadcast_to(kept, shape).copy()


def assert_same_bools(actual, expected):
    assert type(actual) is type(expected)
    assert (actual.dtype, actual.shape) == (np.dtype(bool), expected.shape)
    np.testing.assert_array_equal(actual, expected)


def test_a_mask_is_an_array_of_bools_to_numpy(isa, tmp_path):
    for mask, kept in boolean_masks():
        x = np.random.default_rng(1).normal(size=kept.shape)
        assert_same_bools(np.asarray(mask), kept)
        assert_same_bools(np.array(mask, copy=True), kept)
        np.testing.assert_array_equal(np.where(mask, x, 0), np.where(kept, x, 0), strict=True)
        if kept.size or kept.ndim == 1:  # NumPy takes other empty indices for integers, as []
            np.testing.assert_array_equal(np.asarray(x)[mask], np.asarray(x)[kept], strict=True)
        np.testing.assert_array_equal(x * mask, x * kept)
        np.testing.assert_array_equal(np.asarray(mask, np.float32), kept.astype(np.float32))
        assert np.asarray(mask, "i1").dtype == np.int8
        assert np.count_nonzero(mask) == kept.sum()
        np.save(tmp_path / "mask.npy", mask)
        assert_same_bools(np.load(tmp_path / "mask.npy"), kept)
        made = np.asarray(mask)
        made[...] = False
        assert_same_bools(np.asarray(mask), kept)


def test_the_array_of_a_mask_is_always_a_copy():
    with pytest.raises(ValueError, match="`copy`"):
        draw().__array__(copy=False)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="`copy`"):
            np.asarray(draw(), copy=False)
    for copy_ in (None, True):
        assert_same_bools(draw().__array__(copy=copy_), draw().unpack())
        assert draw().__array__(np.float64, copy=copy_).dtype == np.float64


INDICES = [
    (), ..., None, 0, 1, -1, 3, -5, np.int64(2), np.uint8(1), np.array(1), slice(None), slice(1, 3),
    slice(None, None, -1), slice(4, 0, -2), slice(-2, None), slice(3, 1), slice(99, 100),
    (0, 1), (-1, -1), (1, slice(1, 9, 3)), (slice(None), 2), (slice(1, 3), 0), (..., 0), (0, ...),
    (0, None), (None, 0), (slice(1, None), ..., slice(None, None, 2)), (0, 2, 3),
    (0, 0, slice(1, 4)),
    (slice(0, 0), 1), (0, slice(None), [1, 2]), [0, 1], [], np.array([[0], [1]]), (0, [1, 0]),
    ([1, 0], slice(1, 3)), (slice(1, 3), [1, 0]), True, False, np.True_, ([0, 1], [1, 2]),
    (0, True), (0, 0, 0, 0),
]  # fmt: skip


def test_indices_select_as_from_an_array(isa):
    for mask, kept in boolean_masks():
        for index in [*INDICES, kept, kept[..., :1] if kept.ndim else kept]:
            try:
                expected = kept[index]
            except IndexError:
                with pytest.raises(IndexError):
                    mask[index]
            else:
                selected = mask[index]
                assert_same_bools(selected, expected)
                if isinstance(selected, np.ndarray):
                    selected[...] = False
                    assert_same_bools(np.asarray(mask), kept)


def test_indices_that_are_none():
    for index in ("x", 1.5, object(), [1.5], (0, "x"), {}):
        with pytest.raises(IndexError):
            draw()[index]
    with pytest.raises(IndexError, match="index 40 is out of bounds for axis 1 with size 40"):
        draw()[3, 40]
    with pytest.raises(TypeError, match="item assignment"):
        draw()[0] = True


def test_indices_read_what_they_select():
    """From a mask that is far larger than memory."""
    mask = fastdrop.draw_mask((2**25, 2**25), 0.4, seed=11, store_mask=False)
    first = 2**25 * 2**24 + 2**20
    kept = reference.keep_mask(11, 0, 0.4, 40, first)
    assert [mask[2**24, 2**20 + i] for i in range(40)] == list(kept)
    assert_same_bools(mask[2**24, 2**20 : 2**20 + 40], kept)
    row = fastdrop.draw_mask((2**50, 2), 0.4, seed=11, store_mask=False)
    assert_same_bools(row[first // 2 : first // 2 + 20, ::-1], kept.reshape(20, 2)[:, ::-1])
    shared = fastdrop.draw_mask((2**40, 3), 0.4, seed=11, noise_shape=(1, None), store_mask=False)
    assert_same_bools(shared[2**39], reference.keep_mask(11, 0, 0.4, 3))


def test_len_and_iteration_agree_with_indices():
    for mask, kept in boolean_masks():
        if kept.ndim == 0:
            for function in (len, iter):
                with pytest.raises(TypeError, match="without dimensions"):
                    function(mask)
            continue
        assert len(mask) == len(kept)
        rows = list(mask)
        assert len(rows) == len(kept)
        for row, expected in zip(rows, kept, strict=True):
            assert_same_bools(row, expected)
        assert (True in mask, False in mask) == (True in kept, False in kept)


def test_the_truth_of_a_mask_is_that_of_its_only_element():
    for mask, kept in boolean_masks():
        if kept.size == 1:
            assert bool(mask) == bool(kept)
        else:
            with pytest.raises(ValueError, match="ambiguous"):
                bool(mask)


def test_a_mask_is_no_input():
    huge = fastdrop.draw_mask((2**30, 2**30), 0.4, seed=11, store_mask=False)
    x = np.ones((30, 40))
    for name, call in [
        ("x", lambda mask: fastdrop.dropout(mask, 0.5)),
        ("x", lambda mask: fastdrop.dropout_(mask, 0.5)),
        ("x", lambda mask: fastdrop.relu_dropout(mask, 0.5)),
        ("x", lambda mask: fastdrop.bias_dropout_add(mask, None, None, 0.5)),
        ("bias", lambda mask: fastdrop.bias_dropout_add(x, mask, None, 0.5)),
        ("residual", lambda mask: fastdrop.bias_dropout_add(x, None, mask, 0.5)),
        ("out", lambda mask: fastdrop.dropout(x, 0.5, out=mask)),
        ("dy", lambda mask: fastdrop.dropout_grad(mask, mask)),
        ("dy", lambda mask: fastdrop.relu_dropout_grad(mask, mask)),
        ("dy", lambda mask: fastdrop.bias_dropout_add_grad(mask, mask)),
        ("x", lambda mask: mask.apply(mask)),
        ("rate", lambda mask: fastdrop.dropout(x, mask)),
        ("scale", lambda mask: fastdrop.dropout(x, 0.5, scale=mask)),
        ("seed", lambda mask: fastdrop.dropout(x, 0.5, seed=mask)),
        ("noise_shape", lambda mask: fastdrop.dropout(x, 0.5, noise_shape=mask)),
        ("store_mask", lambda mask: fastdrop.dropout(x, 0.5, store_mask=mask)),
        ("shape", lambda mask: fastdrop.draw_mask(mask, 0.5)),
        ("offset", lambda mask: fastdrop.draw_mask(3, 0.5, offset=mask)),
    ]:
        for mask in (draw(), huge):
            with pytest.raises(TypeError, match=rf"`{name}`.*got <fastdrop\.Mask"):
                call(mask)


# Packing.


@each_shape
def test_pack(isa, shape):
    kept = np.random.default_rng(1).random(shape) < 0.6
    kept = np.asarray(kept)
    mask = fastdrop.Mask.pack(kept)
    assert mask.shape == mask.noise_shape == shape
    assert mask.scale == 1.0
    assert mask.rate is None
    assert mask.seed is None
    assert mask.step is None
    assert mask.count() == kept.sum()
    np.testing.assert_array_equal(mask.bits, reference.pack_bits(kept))
    np.testing.assert_array_equal(mask.unpack(), kept)
    x = np.random.default_rng(2).normal(size=shape)
    x = np.asarray(x)
    assert_same_bits(mask.apply(x), reference.dropout(x, kept, 1.0))
    assert "Mask" in repr(mask)


def test_pack_with_a_rate_and_a_scale():
    kept = np.random.default_rng(1).random((30, 40)) < 0.6
    mask = fastdrop.Mask.pack(kept, rate=0.4, scale=2.5)
    assert mask.rate == 0.4
    assert mask.scale == 2.5
    dy = np.random.default_rng(2).normal(size=(30, 40)).astype(np.float32)
    assert_same_bits(fastdrop.dropout_grad(dy, mask), reference.dropout(dy, kept, 2.5))


@pytest.mark.parametrize("view", [lambda k: k.T, lambda k: k[::-2, ::3], lambda k: k[:, 5]])
def test_pack_follows_the_order_of_the_indices(view):
    kept = view(np.random.default_rng(1).random((30, 40)) < 0.6)
    mask = fastdrop.Mask.pack(kept)
    assert mask.shape == kept.shape
    np.testing.assert_array_equal(mask.bits, reference.pack_bits(kept))


def test_a_mask_can_be_packed_again():
    """With another scale, and a bit for each element."""
    mask = draw(noise_shape=(None, 1))
    packed = fastdrop.Mask.pack(mask, scale=3.0)
    assert (packed.noise_shape, packed.scale) == (mask.shape, 3.0)
    np.testing.assert_array_equal(packed.unpack(), mask.unpack())


def test_pack_copies():
    kept = np.ones(100, bool)
    mask = fastdrop.Mask.pack(kept)
    kept[...] = False
    assert mask.count() == 100


# Comparison.


def draw(**changes):
    arguments = {"shape": (30, 40), "rate": 0.3, "seed": 11} | changes
    return fastdrop.draw_mask(arguments.pop("shape"), arguments.pop("rate"), **arguments)


def test_equal_masks():
    for changes in ({}, {"store_mask": False}, {"noise_shape": (None, 1)}, {"shape": (0,)}):
        assert draw(**changes) == draw(**changes)
        assert not operator.ne(draw(**changes), draw(**changes))
    kept = np.random.default_rng(1).random((30, 40)) < 0.6
    assert fastdrop.Mask.pack(kept) == fastdrop.Mask.pack(kept.copy())


@STORED_OR_NOT
@pytest.mark.parametrize("offset", [0, 5])
def test_a_drawn_mask_equals_the_reference_packed(store_mask, offset):
    """The mask has the reference's bits, stored or drawn again. Equality ignores the seed."""
    mask = draw(offset=offset, store_mask=store_mask)
    kept = reference.keep_mask(11, 0, 0.3, 1200, offset).reshape(30, 40)
    packed = fastdrop.Mask.pack(kept, rate=0.3, scale=mask.scale)
    assert mask == packed
    assert packed == mask
    assert mask == draw(offset=offset, store_mask=not store_mask)
    np.testing.assert_array_equal(mask.unpack(), kept)
    kept[-1, -1] ^= True
    assert mask != fastdrop.Mask.pack(kept, rate=0.3, scale=mask.scale)


@STORED_OR_NOT
def test_a_mask_with_other_bits_than_its_seed_draws_is_different(store_mask):
    """A pickle may contain such a mask, and the stored bits count."""
    restored, (state,) = draw().__reduce__()
    other = restored(state | {"bits": bytes(150)})
    assert other.count() == 0
    assert other != draw(store_mask=store_mask)
    assert draw(store_mask=store_mask) != other


@STORED_OR_NOT
@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (40, 30)},
        {"shape": (1200,)},
        {"rate": 0.4},
        {"seed": 12},
        {"scale": 1.0},
        {"noise_shape": (None, 1)},
        {"offset": 1},
    ],
    ids=str,
)
def test_different_masks(changes, store_mask):
    one, other = draw(**changes, store_mask=store_mask), draw(store_mask=store_mask)
    assert one != other
    assert not operator.eq(one, other)


def test_masks_that_differ_in_one_bit_are_different():
    kept = np.ones((30, 40), bool)
    kept[29, 39] = False
    assert fastdrop.Mask.pack(kept) != fastdrop.Mask.pack(np.ones((30, 40), bool))


def test_a_mask_equals_nothing_else():
    mask = draw()
    for other in (None, "mask", mask.bits.tobytes(), {}, object(), draw):
        assert mask != other
        assert not operator.eq(mask, other)
        assert other != mask
    assert mask in [None, mask]


def test_elements_are_compared_with_arrays_numbers_and_sequences():
    for mask, kept in boolean_masks():
        others = [kept, ~kept, np.zeros(kept.shape, int), kept.tolist(), True, 0, 1.0]
        others += [np.True_, np.float32(1), np.array(False), kept[..., :1] if kept.ndim else kept]
        if kept.ndim == 1:
            others.append(tuple(kept))
        for other in others:
            for compare in (operator.eq, operator.ne):
                expected = compare(kept, other)
                for result in (compare(mask, other), compare(other, mask)):
                    assert type(result) in (np.ndarray, np.bool_)
                    np.testing.assert_array_equal(result, expected)
    with pytest.raises(ValueError, match="broadcast"):
        operator.eq(draw(), np.ones(7))


def test_masks_have_no_hash():
    with pytest.raises(TypeError, match="unhashable"):
        hash(draw())


# Copies and pickles.


def kinds_of_mask():
    return {
        "stored": draw(),
        "replayed": draw(store_mask=False),
        "stored, broadcast": draw(noise_shape=(None, 1), scale=1.0),
        "replayed, broadcast": draw(noise_shape=(1, None), store_mask=False),
        "stored, offset": draw(offset=4097),
        "replayed, offset": draw(offset=4097, store_mask=False),
        "wide seed": draw(seed=2**128 - 1, store_mask=False),
        "packed": fastdrop.Mask.pack(np.arange(35).reshape(5, 7) % 3 == 0, rate=0.5, scale=2.0),
        "0-d": draw(shape=()),
        "empty": draw(shape=(0, 3)),
    }


COPIES = {f"pickle {n}": n for n in range(2, pickle.HIGHEST_PROTOCOL + 1)} | {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", kinds_of_mask())
def test_copies(kind, how):
    mask, copied = kinds_of_mask()[kind], COPIES[how]
    other = copied(mask) if callable(copied) else pickle.loads(pickle.dumps(mask, protocol=copied))
    assert type(other) is fastdrop.Mask
    assert other == mask
    assert attributes(other) == attributes(mask)
    assert other.count() == mask.count()
    np.testing.assert_array_equal(other.unpack(), mask.unpack())
    x = np.random.default_rng(2).normal(size=mask.shape)
    x = np.asarray(x)
    assert_same_bits(other.apply(x), mask.apply(x))
    if mask.bits is None:
        assert other.bits is None
    else:
        np.testing.assert_array_equal(other.bits, mask.bits)
        assert not other.bits.flags.writeable


def test_pickles_are_as_small_as_their_bits():
    assert len(pickle.dumps(fastdrop.draw_mask(10**6, 0.5, seed=1))) < 10**6 / 8 + 1000
    replayed = fastdrop.draw_mask(10**12, 0.5, seed=1, store_mask=False)
    assert len(pickle.dumps(replayed)) < 1000


def test_a_pickled_mask_replays_in_another_process(run_python):
    mask = draw(store_mask=False, seed=2**90 + 5, noise_shape=(None, 1))
    program = run_python(f"""
import pickle
mask = pickle.loads({pickle.dumps(mask)!r})
print(mask.count(), mask.unpack().tobytes().hex())
""")
    assert program.returncode == 0, program.stderr
    assert program.stdout.split() == [str(mask.count()), mask.unpack().tobytes().hex()]


@pytest.mark.alone
def test_masks_and_results_free_their_memory(run_python):
    program = run_python("""
import pickle
import resource
import fastdrop
import numpy as np

x = np.ones(10**6, np.float32)
unit = 1 if __import__("sys").platform == "darwin" else 1024


def use():
    y, mask = fastdrop.dropout(x, 0.5, seed=1)
    fastdrop.dropout_grad(y, mask)
    pickle.loads(pickle.dumps(mask)).unpack()
    bits = fastdrop.draw_mask(3 * 10**7, 0.5).bits
    for bad in ({"noise_shape": (3,)}, {"out": x[:-1]}, {"seed": -1}):
        try:
            fastdrop.dropout(x, 0.5, **bad)
        except ValueError:
            pass
        else:
            raise AssertionError(bad)


for _ in range(5):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
for _ in range(100):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before)
""")
    assert program.returncode == 0, program.stderr
    # Each is created a hundred times; the smallest is 125 kB, the largest 4 MB.
    assert int(program.stdout) < 10 * 10**6


# Pickles of earlier versions, as the text of protocol 0. The format is the functions' names and the
# fields.
PICKLED_MASK = (
    "cfastdrop._pickle\n_mask\n((dVshape\n(I3\nI7\ntsVnoise_shape\n(I3\nI7\ntsVrate\nF0.25\ns"
    "Vscale\nF2.0\nsVseed\nL1180591620717411303424L\nsVstep\nI9\nsVoffset\nI4\nsVbits\nBITSsVstream\nI2\nstR."
)


def test_a_pickled_mask_of_version_0_1():
    bits = "c_codecs\nencode\n(V\\u00a5\\u00fe\\u0007\nVlatin1\ntR"
    mask = pickle.loads(PICKLED_MASK.replace("BITS", bits).encode())
    assert (mask.shape, mask.rate, mask.scale, mask.seed, mask.step) == (
        (3, 7),
        0.25,
        2.0,
        2**70,
        9,
    )
    assert mask.bits.tobytes() == b"\xa5\xfe\x07"


def test_a_pickled_mask_of_another_stream():
    """Stored bits are read. A mask that must be drawn again is refused."""
    stored = draw(offset=7)
    function, (state,) = stored.__reduce__()
    assert state["stream"] == 2
    other = function(state | {"stream": 1})
    assert other == stored
    np.testing.assert_array_equal(other.bits, stored.bits)
    x = np.random.default_rng(2).normal(size=stored.shape)
    assert_same_bits(other.apply(x), stored.apply(x))
    # The mask has no seed that would draw other bits here, also after another pickle.
    assert (other.seed, other.step, other.rate) == (None, None, stored.rate)
    assert pickle.loads(pickle.dumps(other)) == stored
    with pytest.raises(ValueError, match=r"of random stream 1, .* draws stream 2\b"):
        function(state | {"stream": 1, "bits": None})
    for wrong in (None, 2.0, True, -1, "2"):
        with pytest.raises((TypeError, ValueError), match="stream"):
            function(state | {"stream": wrong})


def test_a_pickled_mask_without_bits_of_version_0_1():
    mask = pickle.loads(PICKLED_MASK.replace("BITS", "N").encode())
    assert mask.bits is None
    kept = reference.keep_mask(2**70, 9, 0.25, 21, offset=4)
    np.testing.assert_array_equal(mask.unpack(), kept.reshape(3, 7))
