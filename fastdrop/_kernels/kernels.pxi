# Owns every kernel, once: the random stream (version 1) and its use on arrays, written in the
# vocabulary and included by one small module for each instruction set.
#
# A step of the eight lanes makes the decisions on 32 elements in their natural order, so everything
# here advances by 32 elements, and by two steps where it can: one branch tests 64 for ties.

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memmove, memset

from fastdrop._kernels.table cimport (
    ALL_KEPT, BLOCK, BLOCK_BYTES, GOLDEN, LANE_MULTIPLES,
    KIND_BF16, KIND_F16, KIND_F32, KIND_F64, KIND_W16, KIND_W32, KIND_W64,
    MIX_FIRST, MIX_SECOND, TABLE_CAPSULE, kernel_table, mix64, stream_key,
)

include "vocabulary.pxi"

ctypedef fused number:
    f16
    bf16
    float
    double

ctypedef fused element:
    f16
    bf16
    float
    double
    uint16_t
    uint32_t
    uint64_t

cdef enum:
    STEP = 32                    # elements decided by one step of the lanes
    PAIR = 2 * STEP

cdef enum Use:
    # What the decisions on elements are for; always a constant, so that one loop serves all.
    NOTHING, SCALE, RELU, ADD


# ---- The stream ----

cdef struct Lanes:
    u64x8 s0
    u64x8 s1
    u64x8 s2
    u64x8 s3


cdef inline u64x8 mix64x8(u64x8 z) noexcept nogil:
    z = u64x8_mul(u64x8_xor(z, u64x8_shr(z, 30)), u64x8_splat(MIX_FIRST))
    z = u64x8_mul(u64x8_xor(z, u64x8_shr(z, 27)), u64x8_splat(MIX_SECOND))
    return u64x8_xor(z, u64x8_shr(z, 31))


cdef inline Lanes lanes_of_block(const stream_key *key, uint64_t block) noexcept nogil:
    cdef u64x8 counter = u64x8_add(u64x8_load(LANE_MULTIPLES), u64x8_splat(8 * block * GOLDEN))
    cdef Lanes lanes
    lanes.s0 = mix64x8(u64x8_add(u64x8_splat(key.k[0]), counter))
    lanes.s1 = mix64x8(u64x8_add(u64x8_splat(key.k[1]), counter))
    lanes.s2 = mix64x8(u64x8_add(u64x8_splat(key.k[2]), counter))
    lanes.s3 = mix64x8(u64x8_add(u64x8_splat(key.k[3]), counter))
    return lanes


cdef inline u64x8 next_words(Lanes *lanes) noexcept nogil:
    """One step of xoshiro256++ (Blackman and Vigna, 2021) in each lane."""
    cdef u64x8 s0 = lanes.s0
    cdef u64x8 s1 = lanes.s1
    cdef u64x8 s2 = lanes.s2
    cdef u64x8 s3 = u64x8_xor(lanes.s3, s1)
    cdef u64x8 result = u64x8_add(u64x8_rotl(u64x8_add(s0, lanes.s3), 23), s0)
    lanes.s1 = u64x8_xor3(s1, s2, s0)
    lanes.s2 = u64x8_xor3(s2, s0, u64x8_shl(s1, 17))
    lanes.s0 = u64x8_xor(s0, s3)
    lanes.s3 = u64x8_rotl(s3, 45)
    return result


cdef inline keep32 keep32_of_bits(uint32_t bits) noexcept nogil:
    return keep32_load(<const uint8_t *>&bits)


cdef inline uint32_t keep32_bits(keep32 keep) noexcept nogil:
    cdef uint32_t bits
    keep32_store(<uint8_t *>&bits, keep)
    return bits


cdef extern from *:
    """
    /* Inlined, this rare path would take the hot loops' registers. */
    static keep32 settle_ties(const stream_key *, u64x8, keep32, uint64_t)
        __attribute__((cold, noinline));
    """


cdef keep32 settle_ties "settle_ties"(const stream_key *key, u64x8 words, keep32 keep,
                                      uint64_t first) noexcept nogil:
    """The decisions on elements first .. first + 31 with those whose field equals the threshold's
    upper part settled by a second draw against its lower part.
    """
    cdef uint64_t lane_words[8]
    cdef uint32_t bits = keep32_bits(keep)
    cdef uint64_t high = key.threshold >> 32
    cdef uint64_t low = <uint32_t>key.threshold
    cdef uint64_t i
    u64x8_store(lane_words, words)
    for i in range(STEP):
        if (lane_words[i // 4] >> (16 * (i % 4))) & 0xFFFF == high:
            if mix64(key.k[4] + (first + i) * GOLDEN) >> 32 < low:
                bits |= <uint32_t>1 << i
    return keep32_of_bits(bits)


# ---- Using decisions on elements ----

cdef inline void keep_scale(element *to, const element *from_, keep32 keep,
                            double scale) noexcept nogil:
    """Thirty-two elements; words of bits have no scale."""
    if element is f16:
        keep_scale_f16(to, from_, keep, <float>scale)
    elif element is bf16:
        keep_scale_bf16(to, from_, keep, <float>scale)
    elif element is float:
        keep_scale_f32(to, from_, keep, <float>scale)
    elif element is double:
        keep_scale_f64(to, from_, keep, scale)
    elif element is uint16_t:
        keep_w16(to, from_, keep)
    elif element is uint32_t:
        keep_w32(to, from_, keep)
    else:
        keep_w64(to, from_, keep)


cdef inline void keep_scale_part(element *to, const element *from_, keep32 keep, double scale,
                                 uint64_t size) noexcept nogil:
    """The first elements of thirty-two, the rest lying outside of the array."""
    cdef element part[STEP]
    memset(part, 0, sizeof(part))
    memcpy(part, from_, size * sizeof(element))
    keep_scale(part, part, keep, scale)
    memcpy(to, part, size * sizeof(element))


cdef inline keep32 positive(keep32 keep, const element *from_) noexcept nogil:
    """Words of bits have no ReLU."""
    if element is f16:
        return keep32_positive_f16(keep, from_)
    elif element is bf16:
        return keep32_positive_bf16(keep, from_)
    elif element is float:
        return keep32_positive_f32(keep, from_)
    elif element is double:
        return keep32_positive_f64(keep, from_)
    else:
        return keep


cdef inline void keep_scale_add(element *to, const element *from_, const char *bias,
                                const element *residual, keep32 keep,
                                double scale) noexcept nogil:
    """And nothing is added to words of bits."""
    if element is f16:
        keep_scale_add_f16(to, from_, <const float *>bias, residual, keep, <float>scale)
    elif element is bf16:
        keep_scale_add_bf16(to, from_, <const float *>bias, residual, keep, <float>scale)
    elif element is float:
        keep_scale_add_f32(to, from_, <const float *>bias, residual, keep, <float>scale)
    elif element is double:
        keep_scale_add_f64(to, from_, <const double *>bias, residual, keep, scale)


cdef inline uint64_t sums_size(const element *to) noexcept nogil:
    """Bytes of a number in the precision that elements are computed in."""
    return sizeof(double) if element is double else sizeof(float)


cdef inline void use_step(Use use, element *to, const element *from_, uint8_t *bits, double scale,
                          const char *bias, const element *residual) noexcept nogil:
    """Thirty-two elements by stored bits, which ReLU takes its part of away from."""
    cdef keep32 keep
    if use == SCALE:
        keep_scale(to, from_, keep32_load(bits), scale)
    elif use == RELU:
        keep = positive(keep32_load(bits), from_)
        keep32_store(bits, keep)
        keep_scale(to, from_, keep, scale)
    elif use == ADD:
        keep_scale_add(to, from_, bias, residual, keep32_load(bits), scale)


cdef inline void store_part(uint8_t *bits, keep32 keep, uint64_t size) noexcept nogil:
    """The first bits of thirty-two, the unused ones of the last byte being zero."""
    cdef uint8_t part[4]
    keep32_store(part, keep32_of_bits(keep32_bits(keep) & ((<uint32_t>1 << size) - 1)))
    memcpy(bits, part, (size + 7) // 8)


# ---- Drawing ----

cdef void draw_block(const stream_key *key, uint64_t block, uint64_t skip, uint64_t size,
                     uint8_t *bits) noexcept nogil:
    """The decisions of one block on its elements from skip on (a multiple of 32)."""
    cdef uint64_t first = block * BLOCK + skip
    cdef uint16_t high = <uint16_t>(key.threshold >> 32)
    cdef bint ties = <uint32_t>key.threshold != 0
    cdef Lanes lanes = lanes_of_block(key, block)
    cdef u64x8 words, more_words
    cdef keep32 keep, more_keep
    cdef uint64_t i
    for i in range(skip // STEP):
        next_words(&lanes)
    i = 0
    while i + PAIR <= size:
        words = next_words(&lanes)
        more_words = next_words(&lanes)
        keep = keep32_less(words, high)
        more_keep = keep32_less(more_words, high)
        if ties and any_equal(words, more_words, high):
            keep = settle_ties(key, words, keep, first + i)
            more_keep = settle_ties(key, more_words, more_keep, first + i + STEP)
        keep32_store(bits + i // 8, keep)
        keep32_store(bits + i // 8 + 4, more_keep)
        i += PAIR
    while i < size:
        words = next_words(&lanes)
        keep = settle_ties(key, words, keep32_less(words, high), first + i)
        if size - i >= STEP:
            keep32_store(bits + i // 8, keep)
        else:
            store_part(bits + i // 8, keep, size - i)
        i += STEP


cdef inline void draw_pair(const stream_key *key, uint64_t block, uint8_t *bits, Use use,
                           element *to, const element *from_, uint8_t *from_bits, double scale,
                           const char *bias, uint64_t period, uint64_t column,
                           const element *residual, int advance) noexcept nogil:
    """The decisions of two whole blocks, and in the same loop the use of other ones.

    Two chains of steps keep more of the CPU busy than one. The bits that are used were drawn
    before, so nothing waits for anything, and memory is walked from front to back.
    """
    cdef uint64_t first = block * BLOCK
    cdef uint16_t high = <uint16_t>(key.threshold >> 32)
    cdef bint ties = <uint32_t>key.threshold != 0
    cdef Lanes lanes = lanes_of_block(key, block)
    cdef Lanes more_lanes = lanes_of_block(key, block + 1)
    cdef u64x8 words, more_words
    cdef keep32 keep, more_keep
    cdef uint64_t i = 0
    cdef int part
    while i < BLOCK:
        words = next_words(&lanes)
        more_words = next_words(&more_lanes)
        keep = keep32_less(words, high)
        more_keep = keep32_less(more_words, high)
        if ties and any_equal(words, more_words, high):
            keep = settle_ties(key, words, keep, first + i)
            more_keep = settle_ties(key, more_words, more_keep, first + BLOCK + i)
        keep32_store(bits + i // 8, keep)
        keep32_store(bits + BLOCK_BYTES + i // 8, more_keep)
        if use != NOTHING:
            for part in range(2):
                use_step(use, to, from_, from_bits, scale,
                         bias + column * sums_size(to), residual)
                to += STEP
                from_ += STEP
                from_bits += STEP // 8
                if use == ADD:
                    residual += advance * STEP
                    column += STEP
                    if column >= period:
                        column -= period
        i += STEP


cdef void draw_aligned(const stream_key *key, uint64_t first, uint64_t size,
                       uint8_t *bits) noexcept nogil:
    """As draw, where first is a multiple of 32."""
    cdef uint64_t skip = first % BLOCK
    cdef uint64_t count
    if BLOCKS_IN_FLIGHT == 2 and skip == 0:
        while size >= 2 * BLOCK:
            draw_pair(key, first // BLOCK, bits, NOTHING, <uint16_t *>NULL,
                      <const uint16_t *>NULL, NULL, 1.0, NULL, 0, 0, <const uint16_t *>NULL, 0)
            bits += 2 * BLOCK_BYTES
            first += 2 * BLOCK
            size -= 2 * BLOCK
    while size:
        count = min(size, BLOCK - skip)
        draw_block(key, first // BLOCK, skip, count, bits)
        bits += count // 8
        first += count
        size -= count
        skip = 0


cdef inline void copy_bits(uint8_t *to, const uint8_t *from_, uint64_t offset,
                           uint64_t size) noexcept nogil:
    """Moves bits from offset on to the front; unused bits of the last byte are zero."""
    cdef uint64_t count = (size + 7) // 8
    cdef uint64_t last = (offset + size - 1) // 8
    cdef uint64_t word, i = 0
    cdef int shift = offset % 8
    cdef uint64_t start = offset // 8
    if size == 0:
        return
    if shift == 0:
        memmove(to, from_ + start, count)
    else:
        # Seven bytes at a time, so that one load of eight holds all of their bits.
        while start + i + 7 <= last:
            memcpy(&word, from_ + start + i, 8)
            word >>= shift
            memcpy(to + i, &word, 7)
            i += 7
        while i < count:
            word = from_[start + i]
            if start + i < last:
                word |= <uint64_t>from_[start + i + 1] << 8
            to[i] = <uint8_t>(word >> shift)
            i += 1
    if size % 8:
        to[count - 1] &= <uint8_t>((1 << (size % 8)) - 1)


cdef void draw(const stream_key *key, uint64_t first, uint64_t size, uint8_t *bits) noexcept nogil:
    cdef uint8_t window[BLOCK_BYTES + 4]
    cdef uint64_t skip = first % STEP
    cdef uint64_t count
    if key.threshold >= ALL_KEPT:
        memset(bits, 0xFF, size // 8)
        if size % 8:
            bits[size // 8] = <uint8_t>((1 << (size % 8)) - 1)
    elif key.threshold == 0:
        memset(bits, 0, (size + 7) // 8)
    elif skip == 0:
        draw_aligned(key, first, size, bits)
    else:
        while size:
            count = min(size, BLOCK)
            draw_aligned(key, first - skip, count + skip, window)
            copy_bits(bits, window, skip, count)
            bits += count // 8
            first += count
            size -= count


# ---- Applying ----

cdef inline uint64_t before_line(const element *to, uint64_t size) noexcept nogil:
    """How many elements lie before the first line of 64 bytes that begins in the array.

    NumPy's arrays begin 16 bytes into a line; vectors that straddle two lines cost up to a half of
    the speed. Worth it from a few lines on.
    """
    cdef uint64_t bytes_before = -<uint64_t><uintptr_t>to % 64
    if size < 8 * PAIR or bytes_before % sizeof(element):
        return 0
    return bytes_before // sizeof(element)


cdef void apply_as(element *to, const element *from_, uint64_t size, const uint8_t *bits,
                   uint64_t offset, double scale) noexcept nogil:
    cdef uint8_t window[8]
    cdef uint64_t before = before_line(to, size)
    cdef uint64_t count
    cdef int shift
    bits += offset // 8
    shift = offset % 8
    if before:
        keep_scale_part(to, from_, keep32_load_at(bits, shift), scale, before)
        to += before
        from_ += before
        size -= before
        bits += (shift + before) // 8
        shift = (shift + before) % 8
    while size >= PAIR:  # so that eight bytes of bits are there
        keep_scale(to, from_, keep32_load_at(bits, shift), scale)
        to += STEP
        from_ += STEP
        bits += STEP // 8
        size -= STEP
    if size:
        copy_bits(window, bits, shift, size)
        bits = window
    while size:
        count = min(size, STEP)
        if count == STEP:
            keep_scale(to, from_, keep32_load(bits), scale)
        else:
            keep_scale_part(to, from_, keep32_load(bits), scale, count)
        to += count
        from_ += count
        bits += STEP // 8
        size -= count


cdef void apply_one_as(element *to, const element *from_, uint64_t size, bint kept,
                       double scale) noexcept nogil:
    cdef keep32 all_kept = keep32_of_bits(0xFFFFFFFF)
    cdef uint64_t before = before_line(to, size)
    cdef uint64_t i = 0
    if not kept:
        memset(to, 0, size * sizeof(element))
    elif element is uint16_t or element is uint32_t or element is uint64_t:
        if to != from_:
            memcpy(to, from_, size * sizeof(element))
    else:
        if before:
            keep_scale_part(to, from_, all_kept, scale, before)
            i = before
        while i + STEP <= size:
            keep_scale(to + i, from_ + i, all_kept, scale)
            i += STEP
        if i < size:
            keep_scale_part(to + i, from_ + i, all_kept, scale, size - i)


cdef void draw_apply_block(const stream_key *key, uint64_t block, uint64_t size, element *to,
                           const element *from_, uint8_t *bits, double scale) noexcept nogil:
    cdef uint64_t first = block * BLOCK
    cdef uint16_t high = <uint16_t>(key.threshold >> 32)
    cdef bint ties = <uint32_t>key.threshold != 0
    cdef Lanes lanes = lanes_of_block(key, block)
    cdef u64x8 words, more_words
    cdef keep32 keep, more_keep
    cdef uint64_t i = 0
    while i + PAIR <= size:
        words = next_words(&lanes)
        more_words = next_words(&lanes)
        keep = keep32_less(words, high)
        more_keep = keep32_less(more_words, high)
        if ties and any_equal(words, more_words, high):
            keep = settle_ties(key, words, keep, first + i)
            more_keep = settle_ties(key, more_words, more_keep, first + i + STEP)
        keep32_store(bits + i // 8, keep)
        keep32_store(bits + i // 8 + 4, more_keep)
        keep_scale(to + i, from_ + i, keep, scale)
        keep_scale(to + i + STEP, from_ + i + STEP, more_keep, scale)
        i += PAIR
    while i < size:
        words = next_words(&lanes)
        keep = settle_ties(key, words, keep32_less(words, high), first + i)
        if size - i >= STEP:
            keep32_store(bits + i // 8, keep)
            keep_scale(to + i, from_ + i, keep, scale)
        else:
            store_part(bits + i // 8, keep, size - i)
            keep_scale_part(to + i, from_ + i, keep, scale, size - i)
        i += STEP


cdef void use_as(Use use, element *to, const element *from_, uint64_t size, uint8_t *bits,
                 double scale, const char *bias, uint64_t period, uint64_t column,
                 const element *residual, int advance) noexcept nogil:
    """Elements by bits that are there."""
    cdef element part[STEP]
    cdef element part_residual[STEP]
    cdef uint8_t part_bits[4]
    while size >= STEP:
        use_step(use, to, from_, bits, scale, bias + column * sums_size(to), residual)
        to += STEP
        from_ += STEP
        bits += STEP // 8
        size -= STEP
        if use == ADD:
            residual += advance * STEP
            column += STEP
            if column >= period:
                column -= period
    if size:
        memset(part, 0, sizeof(part))
        memset(part_bits, 0, 4)
        memcpy(part, from_, size * sizeof(element))
        memcpy(part_bits, bits, (size + 7) // 8)
        if use == ADD:
            memset(part_residual, 0, sizeof(part))
            memcpy(part_residual, residual, size * sizeof(element))
        use_step(use, part, part, part_bits, scale, bias + column * sums_size(to), part_residual)
        memcpy(to, part, size * sizeof(element))
        if use == RELU:
            store_part(bits, keep32_load(part_bits), size)


cdef inline void draw_use(Use use, const stream_key *key, uint64_t first, uint64_t size,
                          element *to, const element *from_, uint8_t *bits, double scale,
                          const char *bias, uint64_t period, uint64_t column,
                          const element *residual, int advance) noexcept nogil:
    cdef uint8_t unwanted[4 * BLOCK_BYTES]
    cdef uint8_t *drawn
    cdef uint8_t *other
    cdef bint wanted = bits != NULL
    cdef uint64_t count
    cdef bint last
    if not wanted:
        bits = unwanted
    if BLOCKS_IN_FLIGHT == 2 and size >= 4 * BLOCK:
        drawn, other = bits, bits + 2 * BLOCK_BYTES
        draw_aligned(key, first, 2 * BLOCK, drawn)
        while size >= 2 * BLOCK:
            last = size < 4 * BLOCK
            if last:
                use_as(use, to, from_, 2 * BLOCK, drawn, scale, bias, period, column, residual,
                       advance)
            else:
                draw_pair(key, first // BLOCK + 2, other, use, to, from_, drawn, scale, bias,
                          period, column, residual, advance)
            to += 2 * BLOCK
            from_ += 2 * BLOCK
            first += 2 * BLOCK
            size -= 2 * BLOCK
            if use == ADD:
                residual += advance * 2 * BLOCK
                column = (column + 2 * BLOCK) % period
            if wanted:
                bits = drawn = other
                other += 2 * BLOCK_BYTES
            else:
                drawn, other = other, drawn
            if last:
                break
    while size:
        count = min(size, BLOCK)
        if use == SCALE:
            draw_apply_block(key, first // BLOCK, count, to, from_, bits, scale)
        else:
            draw_aligned(key, first, count, bits)
            use_as(use, to, from_, count, bits, scale, bias, period, column, residual, advance)
        if wanted:
            bits += BLOCK_BYTES
        if use == ADD:
            residual += advance * count
            column = (column + count) % period
        to += count
        from_ += count
        first += count
        size -= count


cdef void draw_apply_as(const stream_key *key, uint64_t first, uint64_t size, element *to,
                        const element *from_, uint8_t *bits, double scale) noexcept nogil:
    if key.threshold >= ALL_KEPT or key.threshold == 0:
        if bits != NULL:
            draw(key, first, size, bits)
        apply_one_as(to, from_, size, key.threshold != 0, scale)
    else:
        draw_use(SCALE, key, first, size, to, from_, bits, scale, NULL, 0, 0, from_, 0)


# ---- Fused with what comes before or after ----

cdef void relu_as(const stream_key *key, uint64_t first, uint64_t size, number *to,
                  const number *from_, uint8_t *bits, double scale) noexcept nogil:
    if key != NULL and 0 < key.threshold < ALL_KEPT:
        draw_use(RELU, key, first, size, to, from_, bits, scale, NULL, 0, 0, from_, 0)
        return
    if key != NULL:
        draw(key, first, size, bits)
    use_as(RELU, to, from_, size, bits, scale, NULL, 0, 0, from_, 0)


cdef void add_as(const stream_key *key, uint64_t first, uint64_t size, number *to,
                 const number *from_, const char *bias, uint64_t period, const number *residual,
                 int advance, uint8_t *bits, double scale) noexcept nogil:
    cdef uint8_t same[BLOCK_BYTES]
    cdef uint64_t count
    if key != NULL and 0 < key.threshold < ALL_KEPT:
        draw_use(ADD, key, first, size, to, from_, bits, scale, bias, period, first % period,
                 residual, advance)
        return
    if key != NULL and bits != NULL:
        draw(key, first, size, bits)
    if bits != NULL:
        use_as(ADD, to, from_, size, bits, scale, bias, period, first % period, residual, advance)
        return
    # All kept or all dropped, and the bits not wanted: one block of them serves all blocks.
    draw(key, 0, BLOCK, same)
    while size:
        count = min(size, BLOCK)
        use_as(ADD, to, from_, count, same, scale, bias, period, first % period, residual, advance)
        to += count
        from_ += count
        residual += advance * count
        first += count
        size -= count


cdef inline void keep_scale_sum(number *to, const number *from_, void *sums, keep32 keep,
                                double scale) noexcept nogil:
    if number is f16:
        keep_scale_sum_f16(to, from_, <float *>sums, keep, <float>scale)
    elif number is bf16:
        keep_scale_sum_bf16(to, from_, <float *>sums, keep, <float>scale)
    elif number is float:
        keep_scale_sum_f32(to, from_, <float *>sums, keep, <float>scale)
    else:
        keep_scale_sum_f64(to, from_, <double *>sums, keep, scale)


cdef inline void sum_part(number *to, const number *from_, char *sums, keep32 keep, double scale,
                          uint64_t size) noexcept nogil:
    """The first elements of thirty-two, the rest lying outside of the array."""
    cdef number part[STEP]
    cdef double part_sums[STEP]
    memset(part, 0, sizeof(part))
    memset(part_sums, 0, sizeof(part_sums))
    memcpy(part, from_, size * sizeof(number))
    memcpy(part_sums, sums, size * sums_size(to))
    keep_scale_sum(part, part, part_sums, keep, scale)
    memcpy(to, part, size * sizeof(number))
    memcpy(sums, part_sums, size * sums_size(to))


cdef void sum_as(number *to, const number *from_, uint64_t size, const uint8_t *bits,
                 uint64_t offset, double scale, char *sums) noexcept nogil:
    cdef uint8_t window[8]
    cdef uint64_t before = before_line(to, size)
    cdef uint64_t count
    cdef int shift
    bits += offset // 8
    shift = offset % 8
    if before:
        sum_part(to, from_, sums, keep32_load_at(bits, shift), scale, before)
        to += before
        from_ += before
        sums += before * sums_size(to)
        size -= before
        bits += (shift + before) // 8
        shift = (shift + before) % 8
    while size >= PAIR:  # so that eight bytes of bits are there
        keep_scale_sum(to, from_, sums, keep32_load_at(bits, shift), scale)
        to += STEP
        from_ += STEP
        sums += STEP * sums_size(to)
        bits += STEP // 8
        size -= STEP
    if size:
        copy_bits(window, bits, shift, size)
        bits = window
    while size:
        count = min(size, STEP)
        sum_part(to, from_, sums, keep32_load(bits), scale, count)
        to += count
        from_ += count
        sums += count * sums_size(to)
        bits += STEP // 8
        size -= count


# ---- The table ----

cdef void draw_apply(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
                     const void *from_, uint8_t *bits, double scale) noexcept nogil:
    cdef float_state saved = float_state_enter()
    if kind == KIND_F32:
        draw_apply_as(key, first, size, <float *>to, <const float *>from_, bits, scale)
    elif kind == KIND_F64:
        draw_apply_as(key, first, size, <double *>to, <const double *>from_, bits, scale)
    elif kind == KIND_F16:
        draw_apply_as(key, first, size, <f16 *>to, <const f16 *>from_, bits, scale)
    elif kind == KIND_BF16:
        draw_apply_as(key, first, size, <bf16 *>to, <const bf16 *>from_, bits, scale)
    elif kind == KIND_W16:
        draw_apply_as(key, first, size, <uint16_t *>to, <const uint16_t *>from_, bits, scale)
    elif kind == KIND_W32:
        draw_apply_as(key, first, size, <uint32_t *>to, <const uint32_t *>from_, bits, scale)
    elif kind == KIND_W64:
        draw_apply_as(key, first, size, <uint64_t *>to, <const uint64_t *>from_, bits, scale)
    float_state_leave(saved)


cdef void apply(int kind, uint64_t size, void *to, const void *from_, const uint8_t *bits,
                uint64_t offset, double scale) noexcept nogil:
    cdef float_state saved = float_state_enter()
    if kind == KIND_F32:
        apply_as(<float *>to, <const float *>from_, size, bits, offset, scale)
    elif kind == KIND_F64:
        apply_as(<double *>to, <const double *>from_, size, bits, offset, scale)
    elif kind == KIND_F16:
        apply_as(<f16 *>to, <const f16 *>from_, size, bits, offset, scale)
    elif kind == KIND_BF16:
        apply_as(<bf16 *>to, <const bf16 *>from_, size, bits, offset, scale)
    elif kind == KIND_W16:
        apply_as(<uint16_t *>to, <const uint16_t *>from_, size, bits, offset, scale)
    elif kind == KIND_W32:
        apply_as(<uint32_t *>to, <const uint32_t *>from_, size, bits, offset, scale)
    elif kind == KIND_W64:
        apply_as(<uint64_t *>to, <const uint64_t *>from_, size, bits, offset, scale)
    float_state_leave(saved)


cdef void apply_one(int kind, uint64_t size, void *to, const void *from_, int kept,
                    double scale) noexcept nogil:
    cdef float_state saved = float_state_enter()
    if kind == KIND_F32:
        apply_one_as(<float *>to, <const float *>from_, size, kept, scale)
    elif kind == KIND_F64:
        apply_one_as(<double *>to, <const double *>from_, size, kept, scale)
    elif kind == KIND_F16:
        apply_one_as(<f16 *>to, <const f16 *>from_, size, kept, scale)
    elif kind == KIND_BF16:
        apply_one_as(<bf16 *>to, <const bf16 *>from_, size, kept, scale)
    elif kind == KIND_W16:
        apply_one_as(<uint16_t *>to, <const uint16_t *>from_, size, kept, scale)
    elif kind == KIND_W32:
        apply_one_as(<uint32_t *>to, <const uint32_t *>from_, size, kept, scale)
    elif kind == KIND_W64:
        apply_one_as(<uint64_t *>to, <const uint64_t *>from_, size, kept, scale)
    float_state_leave(saved)


cdef void relu(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
               const void *from_, uint8_t *bits, double scale) noexcept nogil:
    cdef float_state saved = float_state_enter()
    if kind == KIND_F32:
        relu_as(key, first, size, <float *>to, <const float *>from_, bits, scale)
    elif kind == KIND_F64:
        relu_as(key, first, size, <double *>to, <const double *>from_, bits, scale)
    elif kind == KIND_F16:
        relu_as(key, first, size, <f16 *>to, <const f16 *>from_, bits, scale)
    elif kind == KIND_BF16:
        relu_as(key, first, size, <bf16 *>to, <const bf16 *>from_, bits, scale)
    float_state_leave(saved)


cdef void add(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
              const void *from_, const void *bias, uint64_t period, const void *residual,
              int advance, uint8_t *bits, double scale) noexcept nogil:
    cdef float_state saved = float_state_enter()
    cdef const char *b = <const char *>bias
    if kind == KIND_F32:
        add_as(key, first, size, <float *>to, <const float *>from_, b, period,
               <const float *>residual, advance, bits, scale)
    elif kind == KIND_F64:
        add_as(key, first, size, <double *>to, <const double *>from_, b, period,
               <const double *>residual, advance, bits, scale)
    elif kind == KIND_F16:
        add_as(key, first, size, <f16 *>to, <const f16 *>from_, b, period,
               <const f16 *>residual, advance, bits, scale)
    elif kind == KIND_BF16:
        add_as(key, first, size, <bf16 *>to, <const bf16 *>from_, b, period,
               <const bf16 *>residual, advance, bits, scale)
    float_state_leave(saved)


cdef void apply_sum(int kind, uint64_t size, void *to, const void *from_, const uint8_t *bits,
                    uint64_t offset, double scale, void *sums) noexcept nogil:
    cdef float_state saved = float_state_enter()
    cdef char *s = <char *>sums
    if kind == KIND_F32:
        sum_as(<float *>to, <const float *>from_, size, bits, offset, scale, s)
    elif kind == KIND_F64:
        sum_as(<double *>to, <const double *>from_, size, bits, offset, scale, s)
    elif kind == KIND_F16:
        sum_as(<f16 *>to, <const f16 *>from_, size, bits, offset, scale, s)
    elif kind == KIND_BF16:
        sum_as(<bf16 *>to, <const bf16 *>from_, size, bits, offset, scale, s)
    float_state_leave(saved)


cdef kernel_table kernels
kernels.name = ISA_NAME
kernels.draw = draw
kernels.draw_apply = draw_apply
kernels.apply = apply
kernels.apply_one = apply_one
kernels.relu = relu
kernels.add = add
kernels.apply_sum = apply_sum
table = PyCapsule_New(&kernels, TABLE_CAPSULE, NULL)
