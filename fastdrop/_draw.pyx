"""Draws masks: derives the key of a stream position, and draws its bits in parallel."""
from libc.math cimport floor
from libc.stdint cimport int64_t, uint8_t, uint64_t

from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport BLOCK, GOLDEN, mix64, stream_key
from fastdrop._stream cimport fastdrop_seed
from fastdrop._threads cimport parallel_for

cdef extern from "simd/float_state.h" nogil:
    ctypedef struct float_state:
        pass
    float_state float_state_enter()
    void float_state_leave(float_state saved)


cdef uint64_t threshold_of(double rate) noexcept nogil:
    """The threshold: elements with a random number in [0, 2^48) below it are kept."""
    cdef float_state saved = float_state_enter()
    cdef double threshold = floor((1.0 - rate) * 281474976710656.0 + 0.5)
    float_state_leave(saved)
    return <uint64_t>threshold


cdef void derive_key(stream_key *key, const fastdrop_seed *draw, double rate) noexcept nogil:
    """Derive the key of a stream position, in version 2 (docs/stream.md)."""
    cdef uint64_t h0 = mix64(draw.low + GOLDEN)
    cdef uint64_t h1 = mix64(draw.high + h0 + 2 * GOLDEN)
    key.k[0] = mix64(draw.step + h1 + 3 * GOLDEN)
    key.k[1] = mix64(key.k[0] + h0 + 4 * GOLDEN)
    if key.k[1] == key.k[0]:
        key.k[1] = ~key.k[1]
    key.k[2] = mix64(key.k[1] + h1 + 5 * GOLDEN)
    key.k[3] = mix64(key.k[2] + h0 + 6 * GOLDEN)
    key.threshold = threshold_of(rate)


cdef void derive_other_key(stream_key *key, const fastdrop_seed *draw,
                           uint64_t domain) noexcept nogil:
    """Derive the key of what is independent of the masks of a stream position."""
    cdef int i
    derive_key(key, draw, 0.0)
    for i in range(4):
        key.k[i] = mix64(key.k[i] ^ domain)


cdef struct Drawing:
    const stream_key *key
    uint64_t first
    uint64_t size
    uint8_t *bits


cdef void draw_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef Drawing *drawing = <Drawing *>context
    cdef uint64_t first = <uint64_t>begin * BLOCK
    cdef uint64_t size = min(<uint64_t>end * BLOCK, drawing.size) - first
    kernels.draw(drawing.key, drawing.first + first, size, drawing.bits + first // 8)


cdef void draw_bits(const stream_key *key, uint64_t first, uint64_t size,
                    uint8_t *bits) noexcept nogil:
    """Draw the bits of elements first .. first + size - 1."""
    cdef Drawing drawing
    drawing.key, drawing.first, drawing.size, drawing.bits = key, first, size, bits
    # Drawing is cheap: it takes eight times as many elements to gain from a thread.
    parallel_for(draw_blocks, &drawing, (size + BLOCK - 1) // BLOCK, size // 8)
