"""Calls of the kernels' table as ``native/run_kernels.c`` reads them, and what each must leave.

A call is a dict of the fields of that program's ``call`` and of its arrays; what is expected comes
from ``reference.py`` and from NumPy. Numbers are compared by their bits, any NaN equalling any NaN.
"""

import struct
from itertools import product

import ml_dtypes
import numpy as np
import reference
from frozen_inputs import numbers

DRAW, DRAW_APPLY, APPLY, APPLY_ONE, RELU, ADD, APPLY_SUM = range(7)
APART, TO_IS_FROM, TO_IS_RESIDUAL = range(3)

# In the order of `element_kind` in table.h.
SCALED = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
KINDS = SCALED + [np.dtype(t) for t in (np.uint16, np.uint32, np.uint64)]

BLOCK = reference.BLOCK
GUARD = b"\xa5" * 64

SMALL = [1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 100, 255, 511, 512, 513, 700]
LARGE = [4095, 4096, 4097, 4128, 8191, 8192, 8193, 12289, 16384, 16421, 20000, 33000]
SEEDS = [0, 1, 42, 2**64 - 1, 2**64, 0x0123456789ABCDEFFEDCBA9876543210, 2**128 - 1]
STEPS = [0, 7, 2**63, 2**64 - 1]
# One plane, two, twelve, thirteen, as many as it takes, and the rates that take none.
RATES = [0.5, 0.1, 0.2, 1 / 3, 0.9, 1e-5, 1 - 1e-5, 0.0, 1.0, 2**-12, 2**-13, 2**-17, 0.25]
FIRSTS = [0, 1, 3 * BLOCK, 31, 32, 5 * BLOCK + 4064, 2**32 - 7, 2**40 + 96, 2**52 + 4001]
SCALES = [1.25, 2.0, 1 / 0.7, 0.0, -1.5, 3e-5, 60000.0]

HEADER = struct.Struct("<13q4Qd6Q")


class Choices:
    """Walks through each list at a pace of its own, so that all combinations come up in time."""

    def __init__(self):
        self.turn = 0

    def __call__(self, values, pace):
        return values[(self.turn // pace + self.turn) % len(values)]

    def next(self):
        self.turn += 1


def new_call(entry, kind, size, choices):
    seed, step = choices(SEEDS, 3), choices(STEPS, 5)
    return {
        "entry": entry,
        "kind": kind,
        "size": size,
        "seed": seed,
        "step": step,
        "rate": choices(RATES, 7),
        "scale": choices(SCALES, 2),
        "first": 0,
        "bit_offset": 0,
        "period": 0,
        "kept": 0,
        "advance": 1,
        "has_key": True,
        "place": choices([APART, TO_IS_FROM], 11),
        "odd_float_modes": choices([0, 0, 1], 13),
        "alignment": choices([0, 16, 8, 1, 48, 3, 62], 1),
        "from": np.empty(0, np.uint8),
        "bits": np.empty(0, np.uint8),
        "bias": np.empty(0, np.uint8),
        "residual": np.empty(0, np.uint8),
        "sums": np.empty(0, np.uint8),
    }


def kept_by_bits(call):
    bits = np.unpackbits(call["bits"], bitorder="little")
    return bits[call["bit_offset"] :][: call["size"]].astype(bool)


def random_bits(bits, salt):
    """Packed bits; those behind the last one are zero, as the table's masks have them."""
    packed = numbers(np.dtype(np.uint8), -(-bits // 8), salt).copy()
    if bits % 8:
        packed[-1] &= (1 << bits % 8) - 1
    return packed


def calls():
    """Every entry, kind and size; the rest in turns."""
    choices = Choices()
    for size in [*SMALL, *LARGE, 2**20]:
        for _ in range(3 if size < 2**20 else len(RATES)):
            choices.next()
            call = new_call(DRAW, 0, size, choices) | {"place": APART}
            call["first"] = choices(FIRSTS, 4)
            call["bits"] = np.full(-(-size // 8), 0x5A, np.uint8)
            yield call
    for kind, size in product(range(len(KINDS)), SMALL + LARGE):
        choices.next()
        x = numbers(KINDS[kind], size, choices.turn)
        call = new_call(DRAW_APPLY, kind, size, choices) | {"from": x}
        call["first"] = choices([0, BLOCK, 2**32, 2**52], 2)
        if choices([True, False], 3):
            call["bits"] = np.full(-(-size // 8), 0x5A, np.uint8)
        yield call
        choices.next()
        call = new_call(APPLY, kind, size, choices) | {"from": x, "has_key": False}
        call["bit_offset"] = choices([0, 1, 7, 3, 8, 13, 64, 4097], 1)
        call["bits"] = random_bits(call["bit_offset"] + size, choices.turn)
        yield call
        choices.next()
        call = new_call(APPLY_ONE, kind, size, choices) | {"from": x, "has_key": False}
        call["kept"] = choices([1, 1, 0], 2)
        yield call
    for kind, size in product(range(len(SCALED)), SMALL + LARGE):
        dtype = KINDS[kind]
        wide = reference.computed_in(dtype)
        x = numbers(dtype, size, choices.turn + 1)
        for has_key in (True, False):
            choices.next()
            call = new_call(RELU, kind, size, choices) | {"from": x, "has_key": has_key}
            call["first"] = choices([0, BLOCK, 2**32], 2)
            call["bits"] = random_bits(size, choices.turn)
            yield call
            choices.next()
            call = new_call(ADD, kind, size, choices) | {"from": x, "has_key": has_key}
            call["place"] = choices([APART, TO_IS_FROM, TO_IS_RESIDUAL], 2)
            call["first"] = choices([0, BLOCK, 2**32], 2)
            call["advance"] = choices([1, 1, 0], 3)
            if call["advance"] == 0 and call["place"] == TO_IS_RESIDUAL:
                call["place"] = APART
            call["period"] = choices([32, 33, 64, 100, 1000, 5000], 1)
            bias = numbers(wide, call["period"], choices.turn + 2)
            call["bias"] = np.concatenate([bias, bias[:31]])
            call["residual"] = numbers(dtype, size if call["advance"] else 32, choices.turn + 3)
            if not has_key or choices([True, False], 4):
                call["bits"] = random_bits(size, choices.turn)
            yield call
        choices.next()
        call = new_call(APPLY_SUM, kind, size, choices) | {"from": x, "has_key": False}
        call["bit_offset"] = choices([0, 1, 7, 3, 8, 13, 64, 4097], 1)
        call["bits"] = random_bits(call["bit_offset"] + size, choices.turn)
        call["sums"] = numbers(wide, size, choices.turn + 4)
        yield call


def encoded(call):
    key = (0,) * 6
    if call["has_key"]:
        key = (*reference.key(call["seed"], call["step"]), reference.threshold(call["rate"]))
    arrays = [call[name] for name in ("from", "bits", "bias", "residual", "sums")]
    header = HEADER.pack(
        *(call[name] for name in ("entry", "kind", "place", "kept", "advance", "has_key")),
        call["odd_float_modes"],
        call["alignment"],
        *(array.nbytes for array in arrays),
        *(call[name] for name in ("first", "size", "bit_offset", "period")),
        call["scale"],
        *key,
    )
    return b"".join([header, *(array.tobytes() for array in arrays)])


def result(call):
    """What is written to `to`, the bits and the sums afterwards."""
    x, size = call["from"], call["size"]
    bits, sums = call["bits"], call["sums"]
    if call["entry"] == APPLY_ONE:
        kept = np.full(size, bool(call["kept"]))
    elif call["has_key"]:
        kept = reference.keep_mask(call["seed"], call["step"], call["rate"], size, call["first"])
        if bits.size:
            bits = reference.pack_bits(kept)
    else:
        kept = kept_by_bits(call)
    if call["entry"] == DRAW:
        return x, bits, sums
    if call["entry"] == RELU:
        kept &= reference.positive(x)
        bits = reference.pack_bits(kept)
    if call["entry"] == ADD:
        residual = call["residual"] if call["advance"] else np.resize(call["residual"], size)
        columns = (call["first"] % call["period"] + np.arange(size)) % call["period"]
        bias = call["bias"][columns]
        return reference.bias_dropout_add(x, bias, residual, kept, call["scale"]), bits, sums
    if call["entry"] == APPLY_SUM:
        wide = sums.dtype
        with np.errstate(all="ignore"):
            products = np.where(kept, x.astype(wide) * wide.type(call["scale"]), wide.type(0))
            sums = sums + products
    if x.dtype.kind == "u":
        return np.where(kept, x, x.dtype.type(0)), bits, sums
    return reference.dropout(x, kept, call["scale"]), bits, sums


def expected(call):
    """Five arrays: from, to, bits, residual and sums. `to` is None where nothing is to be there."""
    to, bits, sums = result(call)
    if call["entry"] == DRAW:
        return [call["from"], call["from"], bits, call["residual"], sums]
    if call["place"] == TO_IS_FROM:
        return [to, None, bits, call["residual"], sums]
    if call["place"] == TO_IS_RESIDUAL:
        return [call["from"], None, bits, to, sums]
    return [call["from"], to, bits, call["residual"], sums]


def same(actual, array):
    """Whether bytes are an array's, any NaN being any other."""
    if actual == array.tobytes():
        return True
    if array.dtype.kind == "u":
        return False
    got = np.frombuffer(actual, array.dtype)
    equal = reference.bit_patterns(got) == reference.bit_patterns(array)
    return bool((equal | reference.is_nan(got) & reference.is_nan(array)).all())


def faults(call, wanted, output):
    """What is wrong with one call's output, a readable buffer; an empty list if nothing is."""
    found = []
    if int.from_bytes(output.read(8), "little") != 1:
        found.append("float modes")
    names = ("from", "to", "bits", "residual", "sums")
    for name, array in zip(names, wanted, strict=True):
        size = call["from"].nbytes if array is None else array.nbytes
        before, content, after = (output.read(n) for n in (len(GUARD), size, len(GUARD)))
        untouched = array is None and content == GUARD[:1] * size
        if not untouched and (array is None or not same(content, array)):
            found.append(name)
        if before != GUARD or after != GUARD:
            found.append(f"around {name}")
    return found
