# Draws normal noise from the random stream and applies it to arrays, in the words of
# vocabulary.pxi and of simd/normal.h.
#
# A group of 32 elements takes two steps of the lanes. The noise is not stored: the same key draws
# it again.

from fastdrop._kernels.table cimport kind_size, noise_operands

ctypedef fused number:
    f16
    bf16
    float
    double


cdef inline void noise_group(bint additive, number *to, const number *from_, const float *numbers,
                             const noise_operands *on) noexcept nogil:
    if number is f16:
        if additive:
            noise_plus_f16(to, from_, numbers, <float>on.stddev)
        else:
            noise_times_f16(to, from_, numbers, <float>on.stddev)
    elif number is bf16:
        if additive:
            noise_plus_bf16(to, from_, numbers, <float>on.stddev)
        else:
            noise_times_bf16(to, from_, numbers, <float>on.stddev)
    elif number is float:
        if additive:
            noise_plus_f32(to, from_, numbers, <float>on.stddev)
        else:
            noise_times_f32(to, from_, numbers, <float>on.stddev)
    else:
        if additive:
            noise_plus_f64(to, from_, numbers, on.stddev)
        else:
            noise_times_f64(to, from_, numbers, on.stddev)


cdef inline void noise_on(bint additive, const stream_key *key, uint64_t first,
                          const noise_operands *on, const number *typed) noexcept nogil:
    """Apply noise to all elements. The last parameter selects the type of the elements."""
    cdef float drawn[GROUP]
    cdef number part[GROUP]
    cdef number *to = <number *>on.to
    cdef const number *from_ = <const number *>on.from_
    cdef const float *numbers = &drawn[0]
    cdef uint64_t done = 0
    cdef uint64_t rest
    cdef Lanes lanes
    cdef u64x8 distances
    while done < on.size:
        rest = on.size - done
        if on.numbers == NULL:
            if done % BLOCK == 0:
                lanes = lanes_of_block(key, (first + done) // BLOCK)
            distances = next_words(&lanes)
            normals(drawn, distances, next_words(&lanes))
        elif rest >= GROUP:
            numbers = on.numbers + done
        else:
            memset(drawn, 0, sizeof(drawn))
            memcpy(drawn, on.numbers + done, rest * sizeof(float))
            numbers = &drawn[0]
        if rest >= GROUP:
            noise_group(additive, to + done, from_ + done, numbers, on)
        else:
            # In a buffer: no byte beyond the arrays is touched.
            memset(part, 0, sizeof(part))
            memcpy(part, from_ + done, rest * sizeof(number))
            noise_group(additive, part, part, numbers, on)
            memcpy(to + done, part, rest * sizeof(number))
        done += GROUP


cdef void noise_typed(const stream_key *key, uint64_t first, const noise_operands *on,
                      const number *typed) noexcept nogil:
    if on.additive:
        noise_on(True, key, first, on, typed)
    else:
        noise_on(False, key, first, on, typed)


cdef void noise(const stream_key *key, uint64_t first, const noise_operands *on) noexcept nogil:
    cdef float_state saved
    if on.stddev == 0.0:
        # No noise: the elements are copied bit for bit, signalling NaNs too.
        if on.to != on.from_:
            memcpy(on.to, on.from_, on.size * kind_size(on.kind))
        return
    saved = float_state_enter()
    if on.kind == KIND_F32:
        noise_typed(key, first, on, <const float *>NULL)
    elif on.kind == KIND_F64:
        noise_typed(key, first, on, <const double *>NULL)
    elif on.kind == KIND_F16:
        noise_typed(key, first, on, <const f16 *>NULL)
    else:
        noise_typed(key, first, on, <const bf16 *>NULL)
    float_state_leave(saved)
