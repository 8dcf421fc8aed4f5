"""Computes stream version 2, the bit packing and dropout slowly, as docs/stream.md defines them.

It follows the specification and never the library's sources, so the two can disagree. It has the
stream twice: in Python integers, one element at a time, short enough to check by eye; and in NumPy,
for masks of millions of elements. ``test_stream.py`` compares the two.
"""

import itertools
import math

import numpy as np

BLOCK = 4096
VECTOR = 512
LANES = 8
DIGITS = 48
PLANES_WITHOUT_A_TEST = 12

WORD = 2**64 - 1
G = 0x9E3779B97F4A7C15
M1 = 0xBF58476D1CE4E5B9
M2 = 0x94D049BB133111EB


# One element at a time, in Python integers.


def mix64(z):
    z &= WORD
    z = ((z ^ (z >> 30)) * M1) & WORD
    z = ((z ^ (z >> 27)) * M2) & WORD
    return z ^ (z >> 31)


def rotl(x, k):
    return ((x << k) | (x >> (64 - k))) & WORD


def key(seed, step):
    """The four key words of a seed in [0, 2**128) and a step in [0, 2**64)."""
    lo, hi = seed & WORD, seed >> 64
    h0 = mix64(lo + G)
    h1 = mix64(hi + h0 + 2 * G)
    k0 = mix64(step + h1 + 3 * G)
    k1 = mix64(k0 + h0 + 4 * G)
    if k1 == k0:
        k1 ^= WORD
    k2 = mix64(k1 + h1 + 5 * G)
    k3 = mix64(k2 + h0 + 6 * G)
    return k0, k1, k2, k3


def threshold(rate):
    """T: the probability of keeping, in units of 2**-48."""
    return math.floor((1.0 - rate) * 2.0**DIGITS + 0.5)


def digit(t, d):
    """Binary digit d of t / 2**48; digit 1 is worth a half."""
    return (t >> (DIGITS - d)) & 1


def last_digit(t):
    """L: the place of the last digit 1; 0 if there is none (t = 0 or 2**48)."""
    return max((d for d in range(1, DIGITS + 1) if digit(t, d)), default=0)


def lane_words(keys, lane):
    """Yield the random words of a lane, which is counted through all blocks."""
    s0, s1, s2, s3 = (mix64(k + lane * G) for k in keys)
    while True:
        yield (rotl((s0 + s3) & WORD, 23) + s0) & WORD
        t = (s1 << 17) & WORD
        s2 ^= s0
        s3 ^= s1
        s1 ^= s2
        s0 ^= s3
        s2 ^= t
        s3 = rotl(s3, 45)


def kept_vectors(keys, t, block):
    """Yield each vector of a block: 512 decisions as an integer, and the number of its planes."""
    lanes = [lane_words(keys, LANES * block + lane) for lane in range(LANES)]
    everything = 2**VECTOR - 1
    for _ in range(BLOCK // VECTOR):
        kept = everything if t == 2**DIGITS else 0
        undecided, planes = everything, 0
        for d in range(1, last_digit(t) + 1):
            if d > PLANES_WITHOUT_A_TEST and not undecided:
                break
            r = sum(next(words) << (64 * lane) for lane, words in enumerate(lanes))
            planes = d
            if digit(t, d):
                kept |= undecided & ~r
                undecided &= r
            else:
                undecided &= ~r
        yield kept, planes


def kept_bit(seed, step, rate, index):
    """Whether element ``index`` of the flattened noise shape is kept."""
    block, within = divmod(index, BLOCK)
    vector, place = divmod(within, VECTOR)
    vectors = kept_vectors(key(seed, step), threshold(rate), block)
    kept, _ = next(itertools.islice(vectors, vector, None))
    return bool(kept >> place & 1)


# Millions of elements, in NumPy.


def mix64_array(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(M1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(M2)
    return z ^ (z >> np.uint64(31))


def rotl_array(x, k):
    return (x << np.uint64(k)) | (x >> np.uint64(64 - k))


def weyl(key_word, counters):
    """``key_word + counters * G`` on uint64 arrays, which wrap as specified."""
    return np.uint64(key_word) + counters * np.uint64(G)


def lane_states(keys, lanes):
    """The four words of the state of each lane at the start of its block."""
    return np.stack([mix64_array(weyl(k, lanes)) for k in keys])


def next_words(state):
    """One step of all lanes: their random words; ``state`` is advanced in place."""
    s0, s1, s2, s3 = state
    r = rotl_array(s0 + s3, 23) + s0
    t = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= t
    s3[...] = rotl_array(s3, 45)
    return r


def decide(t, d, r, kept, undecided):
    """Decide by plane d, the words ``r``; ``kept`` and ``undecided`` change in place."""
    if digit(t, d):
        kept |= undecided & ~r
        undecided &= r
    else:
        undecided &= ~r


def first_planes(state, t, next_words=next_words):
    """Kept and undecided after the planes without a test, with a row for each block."""
    kept = np.full(state.shape[1:], WORD if t == 2**DIGITS else 0, dtype=np.uint64)
    undecided = np.full_like(kept, WORD)
    for d in range(1, min(last_digit(t), PLANES_WITHOUT_A_TEST) + 1):
        decide(t, d, next_words(state), kept, undecided)
    return kept, undecided


def late_planes(state, t, kept, undecided, next_words=next_words):
    """Decide by further planes in the blocks that need them."""
    for d in range(PLANES_WITHOUT_A_TEST + 1, last_digit(t) + 1):
        rows = np.flatnonzero(undecided.any(axis=1))
        if not rows.size:
            break
        some_state, some_kept, some_undecided = state[:, rows], kept[rows], undecided[rows]
        decide(t, d, next_words(some_state), some_kept, some_undecided)
        state[:, rows], kept[rows], undecided[rows] = some_state, some_kept, some_undecided


def next_vectors(state, t, next_words=next_words):
    """The next vector of many blocks: words of decisions, with a row of lanes for each block."""
    kept, undecided = first_planes(state, t, next_words)
    late_planes(state, t, kept, undecided, next_words)
    return kept


def keep_mask(seed, step, rate, size, offset=0):
    """A bool array: whether each of the elements ``offset .. offset + size - 1`` is kept."""
    keys, t = key(seed, step), threshold(rate)
    kept = np.empty(size, dtype=bool)
    at_once = 512
    end = offset + size
    for first_block in range(offset // BLOCK, -(-end // BLOCK), at_once):
        first = first_block * BLOCK
        blocks = min(at_once, -(-(end - first) // BLOCK))
        lanes = np.uint64(LANES * first_block & WORD) + np.arange(blocks * LANES, dtype=np.uint64)
        state = lane_states(keys, lanes).reshape(-1, blocks, LANES)
        words = np.stack([next_vectors(state, t) for _ in range(BLOCK // VECTOR)], axis=1)
        piece = np.unpackbits(words.astype("<u8").reshape(-1).view(np.uint8), bitorder="little")
        start, stop = max(first, offset), min(first + blocks * BLOCK, end)
        kept[start - offset : stop - offset] = piece[start - first : stop - first]
    return kept


# The mask's bits.


def pack_bits_one_by_one(kept):
    """Element i is bit i % 8 of byte i // 8; a list of bools to bytes."""
    packed = bytearray(-(-len(kept) // 8))
    for i, bit in enumerate(kept):
        packed[i // 8] |= bool(bit) << (i % 8)
    return bytes(packed)


def pack_bits(kept):
    """The same for a bool array of any shape, in C order, as a uint8 array."""
    return np.packbits(np.ravel(kept, order="C"), bitorder="little")


# Dropout itself.


def default_scale(rate):
    """Inverted dropout's 1 / (1 - rate); 0.0 at rate 1, which keeps nothing."""
    return 0.0 if rate == 1 else 1.0 / (1.0 - rate)


def resolve_noise_shape(shape, noise_shape):
    """The noise shape with every None replaced by the array's own size, and of the array's rank.

    As in Keras, a shorter one is for the last dimensions, and has no None.
    """
    if noise_shape is None:
        return tuple(shape)
    if None not in noise_shape:
        noise_shape = (1,) * (len(shape) - len(noise_shape)) + tuple(noise_shape)
    return tuple(
        size if entry is None else entry for size, entry in zip(shape, noise_shape, strict=True)
    )


def round_to_bfloat16(x32, bfloat16):
    """Round float32 to bfloat16, to nearest even, on the bits and without a library's cast."""
    bits = x32.view(np.uint32)
    nan = np.isnan(x32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    high = np.where(nan, np.uint32(0x7FC0), rounded >> np.uint32(16))
    return high.astype(np.uint16).view(bfloat16)


def scaled(x, scale):
    """``x * scale`` as the contract rounds it, in x's dtype."""
    x = np.array(x, order="C", ndmin=1)
    with np.errstate(all="ignore"):
        if x.dtype.name == "bfloat16":
            x32 = (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
            return round_to_bfloat16(x32 * np.float32(scale), x.dtype)
        if x.dtype == np.float16:
            return (x.astype(np.float32) * np.float32(scale)).astype(np.float16)
        return x * x.dtype.type(scale)


def dropout(x, kept, scale):
    """Dropout of ``x`` by ``kept``, a bool array in the noise shape."""
    product = scaled(x, scale).reshape(x.shape)
    everywhere = np.broadcast_to(kept, x.shape)
    # Start from zeros, so that a dropped NaN or -0.0 cannot get into the result.
    y = np.zeros(x.shape, dtype=x.dtype)
    y[everywhere] = product[everywhere]
    return y


# Fused operations.


def positive(x):
    """Whether max(x, 0) is x, also for NaN, which NumPy's maximum keeps."""
    with np.errstate(invalid="ignore"):
        return ~(x <= x.dtype.type(0))


def computed_in(dtype):
    """The dtype that the contract computes in."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def rounded(x32, dtype):
    if dtype.name == "bfloat16":
        return round_to_bfloat16(np.ascontiguousarray(x32), dtype)
    return x32.astype(dtype)


def bias_dropout_add(x, bias, residual, kept, scale):
    """``residual + dropout(x + bias)``, in float32 for the half-precision types."""
    wide = computed_in(x.dtype)
    with np.errstate(all="ignore"):
        total = x.astype(wide)
        if bias is not None:
            total = total + bias.astype(wide)
        total = np.where(kept, total * wide.type(scale), wide.type(0))
        if residual is not None:
            total = residual.astype(wide) + total
        return rounded(total, x.dtype).reshape(x.shape)


# Noise.

NOISE = int.from_bytes(b"noise", "big")
GROUP = 32
F4 = np.float32


def noise_key(seed, step):
    """The four key words of the noise of a stream position."""
    return tuple(mix64(word ^ NOISE) for word in key(seed, step))


def signed_words(words):
    """Two signed numbers of 32 bits from each word: its lower half, then its upper half."""
    return np.ascontiguousarray(words.astype("<u8")).view("<i4").astype(np.int32)


def distances(words):
    """Each point's distance from the origin, from an array of int32."""
    h = (words.astype(F4) + F4(0.5)) * F4(2.0**-32)
    u = np.where(words < 0, h + F4(1), h)
    fraction, exponent = np.frexp(u)  # fraction in [0.5, 1)
    small = fraction.view(np.int32) < 0x3F3504F3  # below sqrt(1/2)
    m = np.where(small, fraction * F4(2), fraction)
    exponent = np.where(small, exponent - 1, exponent)
    g = np.where(exponent == 0, h, m - F4(1))
    s = g / (g + F4(2))
    z = s * s
    series = z * F4(-0.59743728) - F4(0.79955074)
    series = z * series - F4(1.33333553)
    series = z * series - F4(4)
    return np.sqrt(exponent.astype(F4) * F4(-1.38629436) + s * series)


def coordinates(words, distance):
    """Both coordinates of each point, from an array of int32 and the distances."""
    t = ((words >> 2).astype(F4) + F4(0.5)) * F4(2.0**-29)
    y = t * t
    sine = y * F4(-3.59504522e-5) + F4(2.49000102e-3)
    sine = t * (y * (y * sine - F4(0.0807454325)) + F4(0.785398161))
    cosine = y * (y * F4(-3.19160152e-4) + F4(0.0158503976)) - F4(0.308424488)
    cosine = y * cosine + F4(1)
    distance = np.where(words & 1, -distance, distance)
    swapped = words & 2 != 0
    return np.where(swapped, sine, cosine) * distance, np.where(swapped, cosine, sine) * distance


def normal_groups(state):
    """The next 32 normal numbers of many blocks, with a row for each block."""
    radii = distances(signed_words(next_words(state)))
    return np.concatenate(coordinates(signed_words(next_words(state)), radii), axis=-1)


def normals(seed, step, size, offset=0):
    """A float32 array of the standard normal numbers of elements offset .. offset + size - 1."""
    keys = noise_key(seed, step)
    drawn = np.empty(size, F4)
    at_once = 256
    end = offset + size
    for first_block in range(offset // BLOCK, -(-end // BLOCK), at_once):
        first = first_block * BLOCK
        blocks = min(at_once, -(-(end - first) // BLOCK))
        lanes = np.uint64(LANES * first_block & WORD) + np.arange(blocks * LANES, dtype=np.uint64)
        state = lane_states(keys, lanes).reshape(-1, blocks, LANES)
        groups = [normal_groups(state) for _ in range(BLOCK // GROUP)]
        piece = np.stack(groups, axis=1).reshape(-1)
        start, stop = max(first, offset), min(first + blocks * BLOCK, end)
        drawn[start - offset : stop - offset] = piece[start - first : stop - first]
    return drawn


def gaussian_stddev(rate):
    """The standard deviation of Gaussian dropout."""
    return math.sqrt(rate / (1.0 - rate))


def noised(x, numbers, stddev, additive):
    """``x + stddev * numbers`` or ``x * (1 + stddev * numbers)``, as the contract rounds them."""
    if stddev == 0:
        return np.array(x, order="C")
    wide = computed_in(x.dtype)
    with np.errstate(all="ignore"):
        x_wide, noise = x.astype(wide), numbers.astype(wide) * wide.type(stddev)
        result = x_wide + noise if additive else x_wide * (noise + wide.type(1))
        return rounded(result, x.dtype).reshape(x.shape)


# Rates in an array.

RATES = int.from_bytes(b"rates", "big")


def rates_key(seed, step):
    """The four key words of decisions by an array of rates."""
    return tuple(mix64(word ^ RATES) for word in key(seed, step))


def rated_number(seed, step, index):
    """The number in [0, 2**48) that decides about an element, in Python integers."""
    block, place = divmod(index, BLOCK)
    words = lane_words(rates_key(seed, step), LANES * block + place % LANES)
    return next(itertools.islice(words, place // LANES, None)) >> 16


def rated_numbers(seed, step, size, offset=0):
    """The numbers that decide about elements offset .. offset + size - 1, as uint64."""
    keys = rates_key(seed, step)
    drawn = np.empty(size, np.uint64)
    at_once = 256
    end = offset + size
    for first_block in range(offset // BLOCK, -(-end // BLOCK), at_once):
        first = first_block * BLOCK
        blocks = min(at_once, -(-(end - first) // BLOCK))
        lanes = np.uint64(LANES * first_block & WORD) + np.arange(blocks * LANES, dtype=np.uint64)
        state = lane_states(keys, lanes).reshape(-1, blocks, LANES)
        words = [next_words(state) for _ in range(BLOCK // LANES)]
        piece = np.stack(words, axis=1).reshape(-1) >> np.uint64(16)
        start, stop = max(first, offset), min(first + blocks * BLOCK, end)
        drawn[start - offset : stop - offset] = piece[start - first : stop - first]
    return drawn


def keep_by_rates(seed, step, rates, shape, offset=0):
    """A bool array of a shape: whether each element, which has its own rate, is kept."""
    numbers = rated_numbers(seed, step, math.prod(shape), offset).reshape(shape)
    return (numbers.astype(np.float64) + 0.5) * 2.0**-48 <= 1.0 - rates.astype(np.float64)


def scales_of_rates(rates):
    """1 / (1 - rate) in double precision; 0 for rate 1, which keeps nothing."""
    keeps = 1.0 - rates.astype(np.float64)
    return np.divide(1.0, keeps, out=np.zeros_like(keeps), where=keeps > 0)


def dropout_by_scales(x, kept, scales):
    """Dropout of ``x`` where each element has a scale of its own."""
    wide = computed_in(x.dtype)
    with np.errstate(all="ignore"):
        factors = np.broadcast_to(scales.astype(wide), x.shape)
        product = rounded(x.astype(wide) * factors, x.dtype)
    scaled_or_not = np.where(factors == 1, x, product)
    return np.where(kept, scaled_or_not, x.dtype.type(0))


# Alpha dropout.

ALPHA = 1.7580993408473766


def alpha_scale(rate):
    """The factor of kept elements, which the gradient has too."""
    if rate == 1:
        return 0.0
    return 1.0 if rate == 0 else 1.0 / math.sqrt((ALPHA * ALPHA * rate + 1.0) * (1.0 - rate))


def alpha_dropout(x, kept, rate):
    """``(x + alpha) * a`` where kept, plus a constant; no change at rate 0, zeros at rate 1."""
    scale = alpha_scale(rate)
    if rate in (0, 1):
        return dropout(x, kept, scale)
    alpha = np.full(x.shape, ALPHA, x.dtype)
    shift = np.full(x.shape, -ALPHA * scale * (1.0 - rate), x.dtype)
    return bias_dropout_add(x, alpha, shift, kept, scale)


# The random operations of the frameworks' packages.


def drawn(kind, x, parameter, seed, step=0, noise_shape=None):
    """The result of a kind of random operation on an array, with a rate or a stddev."""
    noise_shape = x.shape if noise_shape is None else noise_shape
    size = math.prod(noise_shape)
    if kind.startswith("gaussian"):
        numbers = np.broadcast_to(normals(seed, step, size).reshape(noise_shape), x.shape)
        additive = kind == "gaussian_noise"
        return noised(x, numbers, parameter if additive else gaussian_stddev(parameter), additive)
    kept = keep_mask(seed, step, parameter, size).reshape(noise_shape)
    kept = np.broadcast_to(kept, x.shape)
    if kind == "alpha_dropout":
        return alpha_dropout(x, kept, parameter)
    scales = {"dropout": default_scale, "alpha_dropout_gradient": alpha_scale}
    return dropout(x, kept, scales[kind](parameter))


def drawn_gradient(kind, dy, *position):
    """The gradient of `drawn` for x: the arguments are those of `drawn`, with dy in place of x."""
    if kind == "gaussian_noise":
        return np.array(dy)
    return drawn("alpha_dropout_gradient" if kind == "alpha_dropout" else kind, dy, *position)


# Comparing results.


def bit_patterns(x):
    """The array's elements as unsigned integers of their own width, in C order."""
    flat = np.array(x, order="C", ndmin=1).reshape(-1)
    return flat.view(np.dtype(f"u{x.dtype.itemsize}"))


def is_nan(x):
    """Whether each element is NaN, by its bits, without warnings for signalling NaNs."""
    exponent_and_fraction = {
        "float16": (0x7C00, 0x03FF),
        "bfloat16": (0x7F80, 0x007F),
        "float32": (0x7F800000, 0x007FFFFF),
        "float64": (0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
    }[x.dtype.name]
    bits = bit_patterns(x)
    exponent, fraction = (bits.dtype.type(part) for part in exponent_and_fraction)
    return ((bits & exponent) == exponent) & ((bits & fraction) != 0)


def blocks_kept(
    shape, rate, block_size, seed, step=0, data_format="channels_last", per_channel=True
):
    """Which elements DropBlock keeps, one block at a time, as a bool array that broadcasts."""
    first = data_format == "channels_first"
    channel, axes = (1, (2, 3)) if first else (3, (1, 2))
    sizes = [shape[axis] for axis in axes]
    block = [min(pair) for pair in zip(block_size, sizes, strict=True)]
    valid = [size - length + 1 for size, length in zip(sizes, block, strict=True)]
    gamma = rate / math.prod(block) * math.prod(sizes) / math.prod(valid)
    positions, kept_shape = list(shape), list(shape)
    for axis, count in zip(axes, valid, strict=True):
        positions[axis] = count
    if not per_channel:
        positions[channel] = kept_shape[channel] = 1
    begins = keep_mask(seed, step, gamma, math.prod(positions)).reshape(positions)
    kept = np.ones(kept_shape, bool)
    for index in np.argwhere(~begins):
        covered = [slice(place, place + 1) for place in index]
        for axis, length in zip(axes, block, strict=True):
            covered[axis] = slice(index[axis], index[axis] + length)
        kept[tuple(covered)] = False
    return kept


def drop_block(x, kept):
    """The elements that are kept, times the number of all over the number of kept ones."""
    wide = x.dtype if x.dtype == np.float64 else np.dtype(np.float32)
    scale = wide.type(kept.size) / wide.type(max(kept.sum(), 1))
    return np.where(kept, (x.astype(wide) * scale).astype(x.dtype), np.zeros_like(x))


def assert_same_bits(actual, expected, *, nan_payloads=False):
    """Assert equal dtypes, shapes and bits. All NaNs are equal unless `nan_payloads` is set."""
    assert isinstance(actual, np.ndarray), type(actual)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = bit_patterns(actual) == bit_patterns(expected)
    if not nan_payloads:
        same |= is_nan(actual) & is_nan(expected)
    if not same.all():
        wrong = np.flatnonzero(~same)
        i = wrong[0]
        raise AssertionError(
            f"{wrong.size} of {same.size} elements differ, first at flat index {i}: "
            f"{bit_patterns(actual)[i]:#x} is not {bit_patterns(expected)[i]:#x}"
        )
