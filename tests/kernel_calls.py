"""Makes calls of the kernels' table for ``native/run_kernels.c``, with the expected results.

A call is a dict of the fields and arrays of that program's ``call``. The expected results come from
``reference.py`` and NumPy. Numbers are compared by their bits, except that all NaNs are equal.
"""

import struct
from itertools import product

import ml_dtypes
import numpy as np
import reference
from frozen_inputs import numbers

DRAW, USE, NOISE, BY_RATES = range(4)
SCALE, RELU, ADD, SUM = range(4)
APART, TO_IS_FROM, TO_IS_RESIDUAL = range(3)

# In the order of `element_kind` in table.h.
SCALED = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
KINDS = SCALED + [np.dtype(t) for t in (np.uint16, np.uint32, np.uint64)]

BLOCK = reference.BLOCK
GUARD = b"\xa5" * 64

# Around a group of 32 elements, a vector of 512, a block of 4096, and 32768, the number of bits in
# a kernel's buffer if the mask is not stored.
SMALL = [
    1,
    2,
    7,
    8,
    31,
    32,
    33,
    63,
    64,
    65,
    95,
    96,
    100,
    255,
    511,
    512,
    513,
    543,
    544,
    545,
    575,
    576,
]
LARGE = [700, 1023, 1024, 1025, 1087, 1535, 1600, 4095, 4096, 4097, 4128, 4608, 8191, 8192, 8193]
LONG = [12289, 16421, 20000, 32767, 32768, 32769, 32800, 33300, 36864, 65535, 65536, 65537, 70001]
SEEDS = [0, 1, 42, 2**64 - 1, 2**64, 0x0123456789ABCDEFFEDCBA9876543210, 2**128 - 1]
STEPS = [0, 7, 2**63, 2**64 - 1]
# Rates with one plane, two, twelve, thirteen, any number, and none.
RATES = [0.5, 0.1, 0.2, 0.0, 1 / 3, 0.9, 1e-5, 2**-12, 1.0, 1 - 1e-5, 2**-13, 2**-17, 0.25]
RATES += [2**-48, 1 - 2**-48]
FIRSTS = [0, 1, 3 * BLOCK, 31, 32, 5 * BLOCK + 4064, 2**32 - 7, 2**40 + 96, 512, 2**52 + 4001]
FIRSTS += [8, 504, 511, 513, 2 * BLOCK + 1024 + 8]
WHOLE_BLOCKS = [0, BLOCK, 2**32, 2**52]
BITS_BEFORE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 64, 4097]
PERIODS = [32, 33, 63, 64, 100, 1000, 5000]
SCALES = [1.25, 2.0, 1 / 0.7, 0.0, -1.5, 3e-5, 60000.0]
STDDEVS = [0.5, 1.0, 0.0, 1 / 3, 1e-40, 1e30, 1e300]
ALIGNMENTS = [0, 16, 8, 1, 48, 3, 62, 32, 4, 60]

HEADER = struct.Struct("<15q5Qd5Q")


class Choices:
    """Cycles through each list with another period, so that all combinations occur."""

    def __init__(self):
        self.turn = 0

    def __call__(self, values, pace):
        return values[(self.turn // pace + self.turn) % len(values)]

    def next(self):
        self.turn += 1


def new_call(choices, size, **fields):
    return {
        "entry": USE,
        "kind": 0,
        "use": SCALE,
        "size": size,
        "seed": choices(SEEDS, 3),
        "step": choices(STEPS, 5),
        "rate": choices(RATES, 7),
        "scale": choices(SCALES, 2),
        "first": 0,
        "bit": 0,
        "period": 0,
        "column": 0,
        "advance": 1,
        "has_key": True,
        "place": choices([APART, TO_IS_FROM], 11),
        "streaming": choices([0, 1], 17),
        "odd_float_modes": choices([0, 0, 1], 13),
        "alignment": choices(ALIGNMENTS, 1),
        "to_alignment": choices([0, *ALIGNMENTS], 19),
        "from": np.empty(0, np.uint8),
        "bits": np.empty(0, np.uint8),
        "bias": np.empty(0, np.uint8),
        "residual": np.empty(0, np.uint8),
        "sums": np.empty(0, np.uint8),
        **fields,
    }


def kept_by_bits(call):
    bits = np.unpackbits(call["bits"], bitorder="little")
    return bits[call["bit"] :][: call["size"]].astype(bool)


def random_bits(bits, salt):
    """Random packed bits; the unused bits of the last byte are zero, as in all masks."""
    packed = numbers(np.dtype(np.uint8), -(-bits // 8), salt).copy()
    if bits % 8:
        packed[-1] &= (1 << bits % 8) - 1
    return packed


def new_use(choices, kind, use, size, has_key):
    """A call that uses bits on numbers; the bits are drawn, stored or not, or given."""
    dtype = KINDS[kind]
    call = new_call(choices, size, kind=kind, use=use, has_key=has_key)
    call["from"] = numbers(dtype, size, choices.turn)
    if has_key:
        call["first"] = choices(WHOLE_BLOCKS, 2)
        if use == RELU or choices([True, False], 3):
            call["bits"] = np.full(-(-size // 8), 0x5A, np.uint8)
    else:
        call["bit"] = choices([0, 8, 64] if use == RELU else BITS_BEFORE, 1)
        call["bits"] = random_bits(call["bit"] + size, choices.turn)
    return call


def with_bias_and_residual(choices, call):
    dtype, size = KINDS[call["kind"]], call["size"]
    call["place"] = choices([APART, TO_IS_FROM, TO_IS_RESIDUAL], 2)
    call["advance"] = choices([1, 1, 0], 3)
    if call["advance"]:
        call["residual"] = numbers(dtype, size, choices.turn + 3)
    else:
        call["residual"] = np.repeat(numbers(dtype, 1, choices.turn + 3), 32)
        if call["place"] == TO_IS_RESIDUAL:
            call["place"] = APART
    call["period"] = choices(PERIODS, 1)
    call["column"] = choices([0, 1, 31, call["period"] - 1], 2)
    bias = numbers(reference.computed_in(dtype), call["period"], choices.turn + 2)
    call["bias"] = np.concatenate([bias, bias[:31]])
    return call


def noise_calls():
    """Noise that is drawn or given, times or plus, for each kind and size."""
    choices = Choices()
    for size, kind, additive, drawn in product(SMALL + LARGE, range(len(SCALED)), (0, 1), (1, 0)):
        choices.next()
        call = new_call(choices, size, entry=NOISE, kind=kind, use=additive, has_key=bool(drawn))
        call["from"] = numbers(KINDS[kind], size, choices.turn)
        call["first"] = choices(WHOLE_BLOCKS, 2)
        call["scale"] = choices(STDDEVS, 3)
        if not drawn:
            call["bias"] = reference.normals(choices.turn, 0, size)
        yield call


def random_rates(dtype, size, salt):
    """Rates from 0 to 1, both included."""
    words = numbers(np.dtype(np.uint64), size, salt)
    rates = (words >> np.uint64(11)) * 2.0**-53
    rates[words % np.uint64(13) == 0] = 0
    rates[words % np.uint64(17) == 0] = 1
    return rates.astype(dtype)


def rated_calls():
    """Drawn, drawn and scaled, and scaled by given bits; by rates and by scales of each element."""
    choices = Choices()
    ways = [(True, False), (True, True), (False, True)]
    for size, kind, way in product(SMALL + LARGE, range(len(SCALED)), ways):
        choices.next()
        has_key, scales = way
        call = new_call(choices, size, entry=BY_RATES, kind=kind, has_key=has_key)
        call["advance"] = choices([0, 1], 2)
        dtype = [np.float32, np.float64][call["advance"]]
        call["bias"] = random_rates(dtype, size, choices.turn)
        call["bits"] = np.full(-(-size // 8), 0xFF, np.uint8)
        if has_key:
            call["first"] = choices(range(0, 3 * BLOCK, 32), 3)
        else:
            # No mask keeps an element at rate 1.
            call["bits"] &= reference.pack_bits(call["bias"] < 1)
            call["bits"] &= random_bits(size, choices.turn)
        if scales:
            call["from"] = numbers(KINDS[kind], size, choices.turn)
            if choices([True, False], 5):
                call["residual"] = numbers(np.dtype(np.float64), size, choices.turn + 1)
            if has_key and choices([True, False], 3):
                call["bits"] = np.empty(0, np.uint8)
        yield call


def calls():
    """Every entry, kind, use and size, with the other fields in turns, and few large sizes."""
    choices = Choices()
    for size in [*SMALL, *LARGE, *LONG, 2**20]:
        for _ in range(4 if size < 2**20 else len(RATES)):
            choices.next()
            bits = np.full(-(-size // 8), 0x5A, np.uint8)
            first = choices(FIRSTS, 4)
            yield new_call(choices, size, entry=DRAW, place=APART, first=first, bits=bits)
    for size, kind, has_key in product(SMALL + LARGE + LONG, range(len(KINDS)), (True, False)):
        uses = [SCALE, RELU, ADD, SUM] if kind < len(SCALED) else [SCALE]
        for use in uses:
            choices.next()
            if size in LONG and (choices.turn + choices.turn // 4) % 4:
                continue
            call = new_use(choices, kind, use, size, has_key)
            if use == ADD:
                call = with_bias_and_residual(choices, call)
            elif use == SUM:
                wide = reference.computed_in(KINDS[kind])
                call["sums"] = numbers(wide, size, choices.turn + 4)
            yield call
    yield from noise_calls()
    yield from rated_calls()


def encoded(call):
    key = (0,) * 5
    if call["has_key"] and call["entry"] == NOISE:
        key = (*reference.noise_key(call["seed"], call["step"]), 0)
    elif call["has_key"] and call["entry"] == BY_RATES:
        key = (*reference.rates_key(call["seed"], call["step"]), 0)
    elif call["has_key"]:
        key = (*reference.key(call["seed"], call["step"]), reference.threshold(call["rate"]))
    arrays = [call[name] for name in ("from", "bits", "bias", "residual", "sums")]
    header = HEADER.pack(
        *(call[name] for name in ("entry", "kind", "use", "place", "advance", "has_key")),
        *(call[name] for name in ("streaming", "odd_float_modes", "alignment", "to_alignment")),
        *(array.nbytes for array in arrays),
        *(call[name] for name in ("first", "size", "bit", "period", "column")),
        call["scale"],
        *key,
    )
    return b"".join([header, *(array.tobytes() for array in arrays)])


def result(call):
    """The result of a call: `to`, the bits and the sums."""
    x, size = call["from"], call["size"]
    bits, sums = call["bits"], call["sums"]
    if call["entry"] == NOISE:
        drawn = call["bias"]
        if call["has_key"]:
            drawn = reference.normals(call["seed"], call["step"], size, call["first"])
        return reference.noised(x, drawn, call["scale"], call["use"]), bits, sums
    if call["entry"] == BY_RATES:
        return rated_result(call)
    if call["has_key"]:
        kept = reference.keep_mask(call["seed"], call["step"], call["rate"], size, call["first"])
        if bits.size:
            bits = reference.pack_bits(kept)
    else:
        kept = kept_by_bits(call)
    if call["entry"] == DRAW:
        return x, bits, sums
    if call["use"] == RELU:
        kept &= reference.positive(x)
        bits = np.concatenate([bits[: call["bit"] // 8], reference.pack_bits(kept)])
    if call["use"] == ADD:
        residual = np.resize(call["residual"], size)
        columns = (call["column"] + np.arange(size)) % call["period"]
        bias = call["bias"][columns]
        return reference.bias_dropout_add(x, bias, residual, kept, call["scale"]), bits, sums
    if call["use"] == SUM:
        wide = sums.dtype
        with np.errstate(all="ignore"):
            products = np.where(kept, x.astype(wide) * wide.type(call["scale"]), wide.type(0))
            sums = sums + products
    if x.dtype.kind == "u":
        return np.where(kept, x, x.dtype.type(0)), bits, sums
    return reference.dropout(x, kept, call["scale"]), bits, sums


def rated_result(call):
    rates, scales, bits = call["bias"], call["residual"], call["bits"]
    if call["has_key"]:
        position = call["seed"], call["step"]
        kept = reference.keep_by_rates(*position, rates, (call["size"],), call["first"])
        bits = reference.pack_bits(kept) if bits.size else bits
    else:
        kept = kept_by_bits(call)
    if not scales.size:
        scales = reference.scales_of_rates(rates)
    x = call["from"]
    return reference.dropout_by_scales(x, kept, scales) if x.size else x, bits, call["sums"]


def expected(call):
    """Five arrays: from, to, bits, residual and sums. `to` is None if the call writes nothing."""
    to, bits, sums = result(call)
    if call["entry"] == DRAW:
        return [call["from"], call["from"], bits, call["residual"], sums]
    if call["place"] == TO_IS_FROM:
        return [to, None, bits, call["residual"], sums]
    if call["place"] == TO_IS_RESIDUAL:
        return [call["from"], None, bits, to, sums]
    return [call["from"], to, bits, call["residual"], sums]


def same(actual, array):
    """Whether bytes equal an array; all NaNs are equal."""
    if actual == array.tobytes():
        return True
    if array.dtype.kind == "u":
        return False
    got = np.frombuffer(actual, array.dtype)
    equal = reference.bit_patterns(got) == reference.bit_patterns(array)
    return bool((equal | reference.is_nan(got) & reference.is_nan(array)).all())


def faults(call, wanted, output):
    """The faults of one call's output, a readable buffer; an empty list if there are none."""
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
