# Draws decisions about elements that have a rate of their own, and scales the kept elements, in the
# words of vocabulary.pxi and of simd/rates.h.
#
# One step of the lanes gives the numbers of eight elements.

from fastdrop._kernels.table cimport rate_operands


cdef inline void keep_by(number *to, const number *from_, uint32_t kept,
                         const double *scales) noexcept nogil:
    if number is f16:
        keep_by_f16(to, from_, kept, scales)
    elif number is bf16:
        keep_by_bf16(to, from_, kept, scales)
    elif number is float:
        keep_by_f32(to, from_, kept, scales)
    else:
        keep_by_f64(to, from_, kept, scales)


cdef inline void keep_by_some(number *to, const number *from_, uint64_t count, uint32_t kept,
                              const double *scales) noexcept nogil:
    """Scale up to a group of elements."""
    cdef number part[GROUP]
    if count >= GROUP:
        keep_by(to, from_, kept, scales)
    else:
        # In a buffer: no byte beyond the arrays is touched.
        memset(part, 0, sizeof(part))
        memcpy(part, from_, count * sizeof(number))
        keep_by(part, part, kept, scales)
        memcpy(to, part, count * sizeof(number))


cdef inline void scale_group(const rate_operands *on, uint64_t done, uint64_t count, uint32_t kept,
                             const double *scales) noexcept nogil:
    if on.kind == KIND_F32:
        keep_by_some(<float *>on.to + done, <const float *>on.from_ + done, count, kept, scales)
    elif on.kind == KIND_F64:
        keep_by_some(<double *>on.to + done, <const double *>on.from_ + done, count, kept, scales)
    elif on.kind == KIND_F16:
        keep_by_some(<f16 *>on.to + done, <const f16 *>on.from_ + done, count, kept, scales)
    else:
        keep_by_some(<bf16 *>on.to + done, <const bf16 *>on.from_ + done, count, kept, scales)


cdef inline void keeps_of(double *keeps, const rate_operands *on, uint64_t done,
                          uint64_t count) noexcept nogil:
    """The probabilities of keeping a group; beyond the last element they are 0."""
    cdef float single[GROUP]
    cdef double rates[GROUP]
    cdef uint64_t i
    if on.double_rates:
        if count >= GROUP:
            keep_rates_f64(keeps, <const double *>on.rates + done)
            return
        memcpy(rates, <const double *>on.rates + done, count * sizeof(double))
        for i in range(count, GROUP):
            rates[i] = 1.0
        keep_rates_f64(keeps, rates)
    else:
        if count >= GROUP:
            keep_rates_f32(keeps, <const float *>on.rates + done)
            return
        memcpy(single, <const float *>on.rates + done, count * sizeof(float))
        for i in range(count, GROUP):
            single[i] = 1.0
        keep_rates_f32(keeps, single)


cdef void rates(const stream_key *key, uint64_t first, const rate_operands *on) noexcept nogil:
    cdef double keeps[GROUP]
    cdef double scales[GROUP]
    cdef float_state saved = float_state_enter()
    cdef uint64_t skipped, count, bytes, done = 0
    cdef uint32_t kept
    cdef Lanes lanes
    cdef int i
    memset(keeps, 0, sizeof(keeps))  # compilers do not see that it is set where it is read
    if key != NULL:
        lanes = lanes_of_block(key, first // BLOCK)
        for skipped in range(first % BLOCK // 8):
            next_words(&lanes)
    while done < on.size:
        count = min(on.size - done, <uint64_t>GROUP)
        bytes = (count + 7) // 8
        if key != NULL or on.scales == NULL:
            keeps_of(keeps, on, done, count)
        kept = 0
        if key == NULL:
            memcpy(&kept, on.bits + done // 8, bytes)
        else:
            if done and (first + done) % BLOCK == 0:
                lanes = lanes_of_block(key, (first + done) // BLOCK)
            for i in range(4):
                kept |= kept_of_8(next_words(&lanes), keeps + 8 * i) << 8 * i
            if on.bits != NULL:
                memcpy(on.bits + done // 8, &kept, bytes)
        if on.to != NULL:
            if on.scales == NULL:
                inverses(scales, keeps)
            else:
                memset(scales, 0, sizeof(scales))
                memcpy(scales, on.scales + done, count * sizeof(double))
            scale_group(on, done, count, kept, scales)
        done += GROUP
    float_state_leave(saved)
