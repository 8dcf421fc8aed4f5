# Draws masks from the random stream (version 2) and uses them on arrays.
#
# The kernels are written once, in the words of vocabulary.pxi. A module for each instruction set
# includes a header that defines these words, and this file.
#
# A kernel draws the bits of a vector (512 elements) into the mask, then uses them on one group of
# 32 elements after the other. The same code uses masks that were drawn earlier. The use follows one
# vector behind the draw: it never waits for bits that are still being stored, and it can begin at a
# cache line.

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memmove, memset

from fastdrop._kernels.table cimport (
    ADD, ALL_KEPT, BLOCK, GOLDEN, LANE_MULTIPLES, KIND_BF16, KIND_F16, KIND_F32, KIND_F64,
    KIND_W16, KIND_W32, KIND_W64, MIX_FIRST, MIX_SECOND, RELU, SCALE, SUM, MIN_PLANES,
    TABLE_CAPSULE, VECTOR, VECTOR_BYTES, kernel_table, operands, stream_key,
)

include "vocabulary.pxi"

ctypedef fused element:
    f16
    bf16
    float
    double
    uint16_t
    uint32_t
    uint64_t

cdef extern from *:
    """
    /* A call would spill the registers that the loops work in: everything is inlined. */
    #undef CYTHON_INLINE
    #define CYTHON_INLINE inline __attribute__((always_inline))
    """

cdef enum:
    NO_USE = -1                  # an element_use: draw only
    GROUP = 32                   # elements of a group
    GROUPS = 16                  # groups of a vector
    WINDOW = 32768               # elements whose bits are buffered where the mask is not stored
    WINDOW_BYTES = 4096


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


cdef inline void next_plane(Lanes *lanes, uint64_t *digits, u64x8 *kept,
                            u64x8 *undecided) noexcept nogil:
    """Compare the next digit of 512 random numbers with the next digit of the threshold."""
    cdef u64x8 words = next_words(lanes)
    if <int64_t>digits[0] < 0:
        kept[0] = u64x8_or(kept[0], u64x8_andnot(words, undecided[0]))
        undecided[0] = u64x8_and(undecided[0], words)
    else:
        undecided[0] = u64x8_andnot(words, undecided[0])
    digits[0] <<= 1


# The last parameter of the functions below is NULL: it selects the type of the elements.

cdef inline void draw_vector(Lanes *lanes, uint64_t threshold, uint8_t *bits, int use,
                             int64_t groups, operands *on, const element *typed) noexcept nogil:
    """Draw the bits of a vector, and meanwhile use earlier bits on `groups` groups."""
    cdef uint64_t digits = threshold << 16
    cdef u64x8 kept = u64x8_splat(0)
    cdef u64x8 undecided = u64x8_splat(~<uint64_t>0)
    cdef int required = MIN_PLANES
    cdef int i
    while digits != 0 and (required > 0 or u64x8_any(undecided)):
        next_plane(lanes, &digits, &kept, &undecided)
        required -= 1
        if use != NO_USE and 0 < GROUPS_BETWEEN_PLANES <= groups and not on.streaming:
            for i in range(GROUPS_BETWEEN_PLANES):
                use_group(use, False, on, typed)
            groups -= GROUPS_BETWEEN_PLANES
    u64x8_store(bits, kept)
    if use != NO_USE:
        use_groups(use, on, groups, typed)


# ---- Using bits on elements ----

cdef inline void keep_scale(element *to, const element *from_, keep32 keep,
                            const operands *on) noexcept nogil:
    """Keep and scale a group. Word types have no scale."""
    if element is f16:
        keep_scale_f16(to, from_, keep, on.scale_f32)
    elif element is bf16:
        keep_scale_bf16(to, from_, keep, on.scale_f32)
    elif element is float:
        keep_scale_f32(to, from_, keep, on.scale_f32)
    elif element is double:
        keep_scale_f64(to, from_, keep, on.scale)
    elif element is uint16_t:
        keep_w16(to, from_, keep)
    elif element is uint32_t:
        keep_w32(to, from_, keep)
    else:
        keep_w64(to, from_, keep)


cdef inline keep32 positive(keep32 keep, const element *from_) noexcept nogil:
    """Clear the bits of elements that ReLU drops. Word types do not support it."""
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


cdef inline void keep_scale_add(element *to, const element *from_, const void *bias, keep32 keep,
                                const operands *on) noexcept nogil:
    """Add the bias, keep and scale, and add the residual. Not for word types."""
    cdef const element *residual = <const element *>on.residual
    if element is f16:
        keep_scale_add_f16(to, from_, <const float *>bias, residual, keep, on.scale_f32)
    elif element is bf16:
        keep_scale_add_bf16(to, from_, <const float *>bias, residual, keep, on.scale_f32)
    elif element is float:
        keep_scale_add_f32(to, from_, <const float *>bias, residual, keep, on.scale_f32)
    elif element is double:
        keep_scale_add_f64(to, from_, <const double *>bias, residual, keep, on.scale)


cdef inline void keep_scale_sum(element *to, const element *from_, keep32 keep,
                                const operands *on) noexcept nogil:
    """Keep and scale, and add the results to the sums. Not for word types."""
    if element is f16:
        keep_scale_sum_f16(to, from_, <float *>on.sums, keep, on.scale_f32)
    elif element is bf16:
        keep_scale_sum_bf16(to, from_, <float *>on.sums, keep, on.scale_f32)
    elif element is float:
        keep_scale_sum_f32(to, from_, <float *>on.sums, keep, on.scale_f32)
    elif element is double:
        keep_scale_sum_f64(to, from_, <double *>on.sums, keep, on.scale)


cdef inline uint64_t sum_size(const element *typed) noexcept nogil:
    """Bytes of a number in the precision of the computation."""
    return sizeof(double) if element is double else sizeof(float)


cdef inline void advance_by(int use, operands *on, uint64_t count,
                            const element *typed) noexcept nogil:
    """Advance all pointers by up to 32 elements."""
    on.to = <element *>on.to + count
    on.from_ = <const element *>on.from_ + count
    on.bits += count // 8
    if count % 8:
        on.bit += count % 8
        on.bits += on.bit // 8
        on.bit %= 8
    on.size -= count
    if use == ADD:
        if on.advance:
            on.residual = <const element *>on.residual + count
        on.column += count
        if on.column >= on.period:
            on.column -= on.period
    elif use == SUM:
        on.sums = <char *>on.sums + count * sum_size(typed)


cdef inline void use_group(int use, bint streaming, operands *on,
                           const element *typed) noexcept nogil:
    """Use bits on a group; read eight bytes of them."""
    cdef element line[GROUP]
    cdef element *to = &line[0] if streaming else <element *>on.to
    cdef const element *from_ = <const element *>on.from_
    cdef keep32 keep = keep32_load_at(on.bits, on.bit)
    if use == SCALE:
        keep_scale(to, from_, keep, on)
    elif use == RELU:
        keep = positive(keep, from_)
        keep32_store(on.bits, keep)
        keep_scale(to, from_, keep, on)
    elif use == ADD:
        keep_scale_add(to, from_, <const char *>on.bias + on.column * sum_size(typed), keep, on)
    elif use == SUM:
        keep_scale_sum(to, from_, keep, on)
    if streaming:
        stream_lines(on.to, line, sizeof(line))
    advance_by(use, on, GROUP, typed)


cdef inline void use_groups(int use, operands *on, int64_t groups,
                            const element *typed) noexcept nogil:
    cdef int64_t i
    if on.streaming:
        for i in range(groups):
            use_group(use, True, on, typed)
    else:
        for i in range(groups):
            use_group(use, False, on, typed)


cdef void copy_bits(uint8_t *to, const uint8_t *from_, uint64_t offset,
                    uint64_t size) noexcept nogil:
    """Copy bits from an offset on to the front. Unused bits of the last byte become zero."""
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
        # Seven bytes per step: one load of eight bytes holds all of their bits.
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


cdef void use_last_group(int use, operands on, const element *typed) noexcept nogil:
    """Use bits on a group; read no bits beyond it."""
    cdef uint8_t bits[8]
    cdef uint8_t *from_ = on.bits
    memset(bits, 0, sizeof(bits))
    copy_bits(bits, from_, on.bit, GROUP)
    on.bits, on.bit = &bits[0], 0
    use_group(use, False, &on, typed)
    if use == RELU:
        copy_bits(from_, bits, 0, GROUP)


cdef void use_partial_group(int use, operands on, uint64_t count,
                            const element *typed) noexcept nogil:
    """Use bits on part of a group, in buffers: no byte beyond the arrays is touched."""
    cdef element elements[GROUP]
    cdef element residual[GROUP]
    cdef double sums[GROUP]
    cdef uint8_t bits[8]
    cdef operands part = on
    part.to = &elements[0]
    part.from_ = &elements[0]
    part.bits = &bits[0]
    part.bit = 0
    memset(bits, 0, sizeof(bits))
    copy_bits(bits, on.bits, on.bit, count)
    memset(elements, 0, sizeof(elements))
    memcpy(elements, on.from_, count * sizeof(element))
    if use == ADD:
        part.residual = &residual[0]
        memset(residual, 0, sizeof(residual))
        memcpy(residual, on.residual, count * sizeof(element))
    elif use == SUM:
        part.sums = &sums[0]
        memset(sums, 0, sizeof(sums))
        memcpy(sums, on.sums, count * sum_size(typed))
    use_group(use, False, &part, typed)
    memcpy(on.to, elements, count * sizeof(element))
    if use == RELU:
        copy_bits(on.bits, bits, 0, count)
    elif use == SUM:
        memcpy(on.sums, sums, count * sum_size(typed))


cdef inline uint64_t head_size(int use, const operands *on, const element *typed) noexcept nogil:
    """The number of elements before the first cache line (64 bytes) that begins in the array.

    NumPy's arrays begin 16 bytes into a line, and accesses that straddle two lines take up to half
    of the speed. Zero for short arrays, and for RELU, which stores its bits in whole bytes.
    """
    cdef uint64_t bytes_before = -<uint64_t><uintptr_t>on.to % 64
    if use == RELU or on.size < VECTOR or bytes_before % sizeof(element):
        return 0
    return bytes_before // sizeof(element)


cdef inline void use_head(int use, operands *on, const element *typed) noexcept nogil:
    """Use bits on the elements before the first cache line."""
    cdef uint64_t head = head_size(use, on, typed)
    if head:
        use_partial_group(use, on[0], head, typed)
        advance_by(use, on, head, typed)
    on.streaming &= <uintptr_t>on.to % 64 == 0


cdef inline void use_bits(int use, operands *on, const element *typed) noexcept nogil:
    """Use bits on all elements that remain."""
    use_head(use, on, typed)
    # Not the last group: use_group reads eight bytes of bits, and fewer may remain.
    use_groups(use, on, <int64_t>(on.size // GROUP) - 1, typed)
    if on.size >= GROUP:
        use_last_group(use, on[0], typed)
        advance_by(use, on, GROUP, typed)
    if on.size:
        use_partial_group(use, on[0], on.size, typed)
        advance_by(use, on, on.size, typed)


# ---- Drawing and using ----

cdef inline void draw_use(int use, const stream_key *key, uint64_t first, operands *on,
                          const element *typed) noexcept nogil:
    """Draw the bits of elements first .. first + size - 1, unless the key is NULL, and use them.

    `first` is a multiple of 8; of 4096 if there is a use.
    """
    cdef uint8_t part[VECTOR_BYTES]
    cdef uint8_t *bits = on.bits
    cdef uint64_t vector = first // VECTOR
    cdef uint64_t skip = first % VECTOR
    cdef uint64_t size = on.size
    cdef uint64_t count, drawn = 0
    cdef int64_t groups = 0
    cdef Lanes lanes
    if key == NULL:
        drawn = size
    else:
        lanes = lanes_of_block(key, first // BLOCK)
    if use == NO_USE:
        for count in range(first % BLOCK // VECTOR):
            draw_vector(&lanes, key.threshold, part, NO_USE, 0, on, typed)
    while drawn < size:
        if drawn and vector % (BLOCK // VECTOR) == 0:
            lanes = lanes_of_block(key, vector // (BLOCK // VECTOR))
        if use != NO_USE and drawn:
            if on.size == size:
                use_head(use, on, typed)
            # Not the vector that was stored last: an eight-byte load would wait for that store.
            groups = min((<int64_t>(drawn - (size - on.size)) - VECTOR) // GROUP - 1,
                         <int64_t>GROUPS)
        count = min(size - drawn, VECTOR - skip)
        draw_vector(&lanes, key.threshold, bits if count == VECTOR else part, use, groups, on,
                    typed)
        if count < VECTOR:
            copy_bits(bits, part, skip, count)
        bits += count // 8
        drawn += count
        vector += 1
        skip = 0
    if use != NO_USE:
        use_bits(use, on, typed)


cdef void draw(const stream_key *key, uint64_t first, uint64_t size, uint8_t *bits) noexcept nogil:
    """Draw the bits of elements first .. first + size - 1, for any `first`."""
    cdef uint8_t window[WINDOW_BYTES + 1]
    cdef uint64_t skip = first % 8
    cdef uint64_t count
    cdef operands on
    if key.threshold == 0 or key.threshold >= ALL_KEPT:
        memset(bits, 0 if key.threshold == 0 else 0xFF, (size + 7) // 8)
        if size % 8:
            bits[size // 8] &= <uint8_t>((1 << (size % 8)) - 1)
    elif skip == 0:
        on.size = size
        on.bits = bits
        draw_use(NO_USE, key, first, &on, <const uint16_t *>NULL)
    else:
        while size:
            count = min(size, <uint64_t>WINDOW)
            draw(key, first - skip, count + skip, window)
            copy_bits(bits, window, skip, count)
            bits += count // 8
            first += count
            size -= count


cdef void use_typed(const stream_key *key, uint64_t first, operands on,
                    const element *typed) noexcept nogil:
    """Draw and use bits on elements of one type. Word types support SCALE only."""
    cdef uint8_t window[WINDOW_BYTES]
    cdef bint stored = on.bits != NULL
    cdef bint none_kept = key != NULL and key.threshold == 0
    cdef bint all_kept = key != NULL and key.threshold >= ALL_KEPT
    cdef const stream_key *lanes_key = key
    cdef uint64_t count, size = on.size
    on.scale_f32 = <float>on.scale
    if none_kept or all_kept:
        # All bits are equal: no lanes are seeded.
        lanes_key = NULL
    if stored:
        on.bits += on.bit // 8
        on.bit %= 8
        if none_kept or all_kept:
            draw(key, first, size, on.bits)
    if none_kept and on.use == SCALE:
        memset(on.to, 0, size * sizeof(element))
        return
    if element is uint16_t or element is uint32_t or element is uint64_t:
        if all_kept and on.to == on.from_:
            return
    while size:
        count = size
        if not stored:
            count = min(size, <uint64_t>WINDOW)
            on.bits = &window[0]
            on.bit = 0
            if none_kept or all_kept:
                draw(key, first, count, window)
        on.size = count
        if element is uint16_t or element is uint32_t or element is uint64_t:
            draw_use(SCALE, lanes_key, first, &on, typed)
        elif on.use == SCALE:
            draw_use(SCALE, lanes_key, first, &on, typed)
        elif on.use == RELU:
            draw_use(RELU, lanes_key, first, &on, typed)
        elif on.use == ADD:
            draw_use(ADD, lanes_key, first, &on, typed)
        else:
            draw_use(SUM, lanes_key, first, &on, typed)
        first += count
        size -= count


include "noise.pxi"
include "rates.pxi"


# ---- The table ----

cdef void use(const stream_key *key, uint64_t first, const operands *given) noexcept nogil:
    cdef float_state saved = float_state_enter()
    cdef operands on = given[0]
    if on.kind == KIND_F32:
        use_typed(key, first, on, <const float *>NULL)
    elif on.kind == KIND_F64:
        use_typed(key, first, on, <const double *>NULL)
    elif on.kind == KIND_F16:
        use_typed(key, first, on, <const f16 *>NULL)
    elif on.kind == KIND_BF16:
        use_typed(key, first, on, <const bf16 *>NULL)
    elif on.kind == KIND_W16:
        use_typed(key, first, on, <const uint16_t *>NULL)
    elif on.kind == KIND_W32:
        use_typed(key, first, on, <const uint32_t *>NULL)
    elif on.kind == KIND_W64:
        use_typed(key, first, on, <const uint64_t *>NULL)
    if given.streaming:
        stream_end()
    float_state_leave(saved)


cdef kernel_table kernels
kernels.name = ISA_NAME
kernels.draw = draw
kernels.use = use
kernels.noise = noise
kernels.rates = rates
table = PyCapsule_New(&kernels, TABLE_CAPSULE, NULL)
