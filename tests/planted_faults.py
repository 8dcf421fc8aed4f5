"""Owns the faults that are planted to see tests fail: where, what, and which tests have to see it.

Each is of a kind that somebody could write, and most have been written in a library of this field.
The tests are those that docs/guarantees.md names: a promise is worth what its test can see.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A text of one source file that is replaced, and the tests that fail then, each of them."""

    what: str
    file: str
    old: str  # there once in the file
    new: str
    tests: tuple[str, ...]  # as docs/guarantees.md writes them
    isa: str = "portable"  # which this CPU must have, or nothing runs what is changed
    build: str = "release"  # one of setup.py's


KERNELS = "fastdrop/_kernels/kernels.pxi"
PORTABLE = "fastdrop/simd/portable.h"
TABLE = "fastdrop/_kernels/table.h"
DRAW = "fastdrop/_draw.pyx"
PLAN = "fastdrop/_plan.pyx"
BITS = "fastdrop/_bits.pyx"
APPLY = "fastdrop/_apply.pyx"
THREADS = "fastdrop/_threads.pyx"
ARGUMENTS = "fastdrop/_arguments.pyx"
MASK = "fastdrop/_mask.pyx"
STREAM = "fastdrop/_stream.pyx"
POOL = "fastdrop/pool.h"
LAYERS = "fastdrop_keras/layers.py"
NATIVE = "fastdrop_keras/native_op.c"

FAULTS = [
    # ---- What is a function of what ----
    Fault(
        "the engine rotates by another count",
        KERNELS,
        "lanes.s3 = u64x8_rotl(s3, 45)",
        "lanes.s3 = u64x8_rotl(s3, 44)",
        (
            "test_stream.py::test_known_bits",
            "test_stream.py::test_known_digests",
            "test_stream.py::test_library_draws_the_reference",
            "test_stream.py::test_frozen_vectors",
            "test_frozen_results.py::test_every_operation",
            "test_other_machines.py::test_every_kernel_against_the_reference",
            "test_other_machines.py::test_frozen_vectors",
        ),
    ),
    Fault(
        "every vector takes one plane less",
        TABLE,
        "#define SURE_PLANES 12\n",
        "#define SURE_PLANES 11\n",
        ("test_stream.py::test_known_digests", "test_stream.py::test_library_draws_the_reference"),
    ),
    Fault(
        "the digit one keeps what has a one",
        KERNELS,
        "u64x8_or(kept[0], u64x8_andnot(words, undecided[0]))",
        "u64x8_or(kept[0], u64x8_and(words, undecided[0]))",
        ("test_stream.py::test_known_bits", "test_stream.py::test_library_draws_the_reference"),
    ),
    Fault(
        "lanes go on where the next block begins",
        KERNELS,
        "        if drawn and vector % (BLOCK // VECTOR) == 0:\n",
        "        if False:\n",
        (
            "test_stream.py::test_library_draws_the_reference",
            "test_stream.py::test_pieces_are_slices_of_the_whole",
        ),
    ),
    Fault(
        "bits are moved by eight bytes, of which the last lacks some",
        KERNELS,
        "            memcpy(to + i, &word, 7)\n            i += 7\n",
        "            memcpy(to + i, &word, 8)\n            i += 8\n",
        (
            "test_stream.py::test_pieces_are_slices_of_the_whole",
            "test_guard_pages.py::test_kernel_draw",
        ),
    ),
    Fault(
        "a mask depends on the calls before it",
        DRAW,
        "cdef void derive_key(stream_key *key, const fastdrop_seed *draw, double rate) noexcept "
        "nogil:\n"
        '    """The keys and the threshold of the stream, version 2 (docs/stream.md)."""\n'
        "    cdef uint64_t h0 = mix64(draw.low + GOLDEN)\n",
        "cdef uint64_t calls_before = 0\n\n\n"
        "cdef void derive_key(stream_key *key, const fastdrop_seed *draw, double rate) noexcept "
        "nogil:\n"
        "    global calls_before\n"
        "    cdef uint64_t h0 = mix64(draw.low + GOLDEN + calls_before)\n"
        "    calls_before += 1\n",
        (
            "test_stream.py::test_mask_does_not_depend_on_what_was_drawn_before",
            "test_seeds.py::test_an_int_draws_step_zero_at_each_call",
            "test_mask.py::test_a_drawn_mask_equals_the_reference_packed",
            "keras/test_layer_safety.py::test_workers_that_load_data_while_the_layer_trains",
        ),
    ),
    Fault(
        "a shared bit is not counted where the next dimension's bits begin",
        PLAN,
        "        bit_stride *= noise_shape[i]\n",
        "        bit_stride *= dim.size\n",
        (
            "test_fused.py::test_bias_dropout_add_with_a_noise_shape",
            "test_values.py::test_every_pattern_of_noise_shape",
            "test_frozen_results.py::test_every_operation",
        ),
    ),
    Fault(
        "bits follow the memory, not the indices",
        PLAN,
        "        if dim.strides[TO] < 0:\n            flip(plan, dim)\n",
        "        if dim.strides[TO] < 0:\n            flip(plan, dim)\n"
        "            dim.bit_stride = -dim.bit_stride\n"
        "            plan.start.bit -= (dim.size - 1) * dim.bit_stride\n",
        ("test_values.py::test_every_way_of_calling",),
    ),
    Fault(
        "the bits of a noise shape are in Fortran order",
        MASK,
        "        kept = kept.reshape(self.noise_shape)\n",
        '        kept = kept.reshape(self.noise_shape, order="F")\n',
        ("test_stream.py::test_mask_follows_the_flattened_noise_shape",),
    ),
    Fault(
        "a piece begins where its block begins",
        MASK,
        "            draw_bits(&key, mask.offset, mask.size_, mask.buffer.data)",
        "            draw_bits(&key, mask.offset // 4096 * 4096, mask.size_, mask.buffer.data)",
        (
            "test_stream.py::test_pieces_are_slices_of_the_whole",
            "test_stream.py::test_pieces_of_a_noise_shape_are_slices_of_the_whole",
            "test_large.py::test_2_to_33_bits",
        ),
    ),
    Fault(
        "an offset is kept in 32 bits",
        DRAW,
        "    kernels.draw(drawing.key, drawing.first + first, size,",
        "    kernels.draw(drawing.key, <int>(drawing.first + first), size,",
        (
            "test_large.py::test_2_to_33_bits",
            "test_hostile.py::test_offsets_at_the_end",
        ),
    ),
    Fault(
        "a place in an array is kept in 32 bits",
        APPLY,
        "    cdef uint64_t offset = first * flat.itemsize\n",
        "    cdef unsigned int offset = first * flat.itemsize\n",
        ("test_large.py::test_more_than_2_to_31_elements",),
    ),
    Fault(
        "a call takes two steps",
        STREAM,
        "        stream.next_step += 1\n",
        "        stream.next_step += 2\n",
        (
            "test_seeds.py::test_every_call_takes_one_step_however_much_or_little_it_draws",
            "test_threads.py::test_an_interrupt_comes_between_calls",
        ),
    ),
    Fault(
        "an int stands for the step after",
        STREAM,
        "            draw.low = word\n",
        "            draw.low, draw.step = word, 1\n",
        (
            "test_seeds.py::test_an_int_draws_step_zero_at_each_call",
            "test_values.py::test_every_way_of_calling",
        ),
    ),
    Fault(
        "a mask says the step after its own",
        MASK,
        "        return self.draw.step if self.drawn else None",
        "        return self.draw.step + 1 if self.drawn else None",
        (
            "test_seeds.py::test_a_stream_reproduces_what_its_masks_say",
            "test_mask.py::test_a_pickled_mask_replays_in_another_process",
        ),
    ),
    Fault(
        "a pickled stream begins again",
        STREAM,
        '{**self.state, "stream": STREAM_VERSION}',
        '{**self.state, "step": 0, "stream": STREAM_VERSION}',
        ("test_seeds.py::test_copies_go_on_from_the_same_place",),
    ),
    Fault(
        "what is dropped is multiplied by zero",
        PORTABLE,
        "        product = (i32x4)(x * scale) & keep32_wide(keep, i);\n",
        "        x *= scale * -__builtin_convertvector(keep32_wide(keep, i), f32x4);\n"
        "        product = (i32x4)x;\n",
        (
            "test_values.py::test_dropped_is_positive_zero_whatever_it_was",
            "test_values.py::test_any_call",
            "test_values.py::test_every_way_of_calling",
            "test_other_machines.py::test_every_kernel_against_the_reference",
        ),
    ),
    Fault(
        "half precision is cut off, not rounded",
        "fastdrop/simd/elements.h",
        "        result.bits = (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);",
        "        result.bits = (uint16_t)(bits >> 16);",
        ("test_values.py::test_every_half_precision_value_and_as_many_others",),
    ),
    Fault(
        "a scale of one multiplies",
        APPLY,
        "    if scale != 1.0:\n        return kind\n",
        "    if True:\n        return kind\n",
        (
            "test_values.py::test_rate_zero_gives_the_same_bits",
            "test_values.py::"
            "test_a_nan_is_kept_bit_for_bit_by_a_scale_of_one_and_made_quiet_by_others",
        ),
    ),
    Fault(
        "rate 1 keeps all",
        KERNELS,
        "        memset(on.to, 0, size * sizeof(element))\n",
        "        memmove(on.to, on.from_, size * sizeof(element))\n",
        ("test_values.py::test_rate_one_gives_positive_zeros",),
    ),
    Fault(
        "ReLU drops what is no number",
        PORTABLE,
        "        dropped |= (x <= 0) & first << (4 * i);\n",
        "        dropped |= ~(x > 0) & first << (4 * i);\n",
        (
            "test_fused.py::test_relu",
            "test_frozen_results.py::test_every_operation",
        ),
    ),
    Fault(
        "a bias does not begin again at the end of its row",
        KERNELS,
        "        if on.column >= on.period:\n            on.column -= on.period\n",
        "",
        ("test_fused.py::test_bias_dropout_add",),
    ),
    Fault(
        "a bias goes forwards where its row goes backwards",
        APPLY,
        "    cdef int64_t stride = inner_dim(plan).column_stride\n",
        "    cdef int64_t stride = llabs(inner_dim(plan).column_stride)\n",
        ("test_fused.py::test_bias_dropout_add_on_every_layout",),
    ),
    Fault(
        "ReLU's bits of each row go where those of the first belong",
        BITS,
        "put_row(plan, window, i * count, first + i * outer_dim(plan).bit_stride, count)",
        "put_row(plan, window, i * count, first, count)",
        ("test_fused.py::test_any_strides",),
    ),
    Fault(
        "ReLU's transposed bits begin at a whole byte",
        BITS,
        "    cdef uint8_t *to = bits + (first >> 3)\n    cdef int shift = first & 7\n    if shift:",
        "    cdef uint8_t *to = bits + (first >> 3)\n    cdef int shift = 0\n    if shift:",
        ("test_fused.py::test_any_strides",),
    ),
    Fault(
        "a mask without bits forgets its offset",
        MASK,
        "                draw_bits(&key, self.offset, self.size_, buffer.data)",
        "                draw_bits(&key, 0, self.size_, buffer.data)",
        ("test_mask.py::test_apply_with_an_offset",),
    ),
    Fault(
        "bits that are drawn again are of another rate",
        MASK,
        "            buffer = new_buffer(self.packed_size())\n"
        "            derive_key(&key, &self.draw, self.rate)",
        "            buffer = new_buffer(self.packed_size())\n"
        "            derive_key(&key, &self.draw, self.rate / 2)",
        (
            "test_mask.py::test_a_drawn_mask_equals_the_reference_packed",
            "test_frozen_results.py::test_every_operation",
        ),
    ),
    Fault(
        "equal seeds are equal masks, whatever is stored",
        MASK,
        "        if a.buffer is None and b.buffer is None and (\n",
        "        if a.drawn and b.drawn and (\n",
        ("test_mask.py::test_a_mask_of_other_bits_than_its_seed_draws_is_another",),
    ),
    Fault(
        "key words that coincide are left",
        DRAW,
        "        key.k[1] = ~key.k[1]\n",
        "        pass\n",
        ("test_stream.py::test_library_tells_key_words_apart_that_coincide",),
    ),
    Fault(
        "children of a stream are numbered from the next step on",
        STREAM,
        'spawn_key=(state["step"] + i,)',
        'spawn_key=(state["step"] + i + 1,)',
        ("test_seeds.py::test_spawned_seeds_are_those_of_seed_sequences",),
    ),
    Fault(
        "a field of pickled masks has another name than it had",
        MASK,
        '"scale", "seed", "step", "offset", "bits", "stream"\n',
        '"scale", "seed", "step", "first", "bits", "stream"\n',
        (
            "test_mask.py::test_a_pickled_mask_of_version_0_1",
            "test_mask.py::test_a_pickled_mask_without_bits_of_version_0_1",
        ),
    ),
    Fault(
        "a field of pickled streams has another name than it had",
        STREAM,
        'set(state) != {"seed", "step", "stream"}:\n',
        'set(state) != {"seed", "position", "stream"}:\n',
        ("test_seeds.py::test_a_pickled_stream_of_version_0_1",),
    ),
    Fault(
        "a stream begins again after its last step",
        STREAM,
        "        if stream.exhausted:\n",
        "        if False:\n",
        ("test_seeds.py::test_without_a_step_left_nothing_changes",),
    ),
    Fault(
        "the page has another answer",
        "docs/stream.md",
        "`22db1eaab54082bc276f42740ce3b81c`",
        "`22db1eaab54082bc276f42740ce3b81d`",
        ("test_stream.py::test_the_page_has_the_known_answers",),
    ),
    Fault(
        "a rate that is no number is taken",
        ARGUMENTS,
        "        inside = 0.0 <= value <= 1.0  # not NaN\n",
        "        inside = not (value < 0.0 or value > 1.0)\n",
        ("test_bad_input.py::test_rate", "test_fuzz.py::test_any_arguments"),
    ),
    Fault(
        "the step is taken before the other arguments are looked at",
        STREAM,
        "        return process_stream\n",
        "        take_step(process_stream, draw)\n        return process_stream\n",
        ("test_bad_input.py::test_a_call_without_a_seed_that_raises_takes_no_step",),
    ),
    Fault(
        "a layer's low word and step change places",
        NATIVE,
        "    seed->low = (uint64_t)words[0];\n"
        "    seed->high = (uint64_t)words[2];\n"
        "    seed->step = (uint64_t)words[1];",
        "    seed->low = (uint64_t)words[1];\n"
        "    seed->high = (uint64_t)words[2];\n"
        "    seed->step = (uint64_t)words[0];",
        ("keras/test_layer_values.py::test_bits",),
    ),
    Fault(
        "a graph draws what it drew when it was traced",
        LAYERS,
        "            seed = tf.convert_to_tensor(state)\n",
        "            seed = tf.convert_to_tensor(state)\n"
        "            if not alone:\n"
        "                seed = tf.constant(tf.get_static_value(seed) or [0, 0], seed.dtype)\n",
        ("keras/test_layer_state.py::test_eager_and_graph_calls_share_one_stream",),
    ),
    Fault(
        "the state of the seeds is saved under another name",
        "fastdrop_keras/seed_state.py",
        '        store["state"] = self._state',
        '        store["seed"] = self._state',
        (
            "keras/test_layer_state.py::test_an_interrupted_and_resumed_fit_ends_in_the_same_weights",
        ),
    ),
    Fault(
        "files of older versions are not read",
        "fastdrop_keras/seed_state.py",
        '        saved = store["state"]\n',
        '        saved = store["seed"]\n',
        (
            "keras/test_layer_state.py::test_a_keras_file_of_version_0_1",
            "keras/test_layer_state.py::test_a_weights_file_of_version_0_1",
        ),
    ),
    # ---- The same on every machine ----
    Fault(
        "AVX2 asks half of the elements whether any is undecided",
        "fastdrop/simd/avx2.h",
        "    __m256i either = _mm256_or_si256(x.a, x.b);\n",
        "    __m256i either = x.a;\n",
        (
            "test_other_machines.py::test_every_kernel_against_the_reference[avx2]",
            "test_stream.py::test_library_draws_the_reference",
        ),
        isa="avx2",
    ),
    Fault(
        "AVX-512 swaps the halves of 32 elements",
        "fastdrop/simd/avx512.h",
        "    __m512 low = _mm512_maskz_mul_ps(half_of(keep, 0), _mm512_loadu_ps(from), scales);\n"
        "    __m512 high = _mm512_maskz_mul_ps(half_of(keep, 1),",
        "    __m512 low = _mm512_maskz_mul_ps(half_of(keep, 1), _mm512_loadu_ps(from), scales);\n"
        "    __m512 high = _mm512_maskz_mul_ps(half_of(keep, 0),",
        ("test_other_machines.py::test_every_kernel_against_the_reference[avx512, emulated]",),
    ),
    Fault(
        "NEON takes the complement of the other operand",
        "fastdrop/simd/neon.h",
        "vbicq_u64(y.pair[i], x.pair[i])",
        "vbicq_u64(x.pair[i], y.pair[i])",
        (
            "test_other_machines.py::test_every_kernel_against_the_reference[neon]",
            "test_other_machines.py::test_frozen_vectors[neon]",
        ),
    ),
    Fault(
        "a thread draws the elements after its own",
        DRAW,
        "    kernels.draw(drawing.key, drawing.first + first, size,",
        "    kernels.draw(drawing.key, drawing.first + first + (begin > 0), size,",
        ("test_stream.py::test_mask_is_the_same_on_any_number_of_threads",),
    ),
    Fault(
        "a thread draws the block after its own, and uses it",
        APPLY,
        "    kernels.use(flat.key, first, &on)\n",
        "    kernels.use(flat.key, first + BLOCK * (begin > 0), &on)\n",
        (
            "test_values.py::test_large_arrays_on_any_number_of_threads",
            "keras/test_layer_values.py::test_every_instruction_set_and_number_of_threads",
        ),
    ),
    Fault(
        "a thread begins at the first piece of a run",
        APPLY,
        "    cdef int64_t piece = begin % plan.pieces\n",
        "    cdef int64_t piece = 0\n",
        ("test_values.py::test_large_layouts_on_any_number_of_threads",),
    ),
    Fault(
        "a thread reads from a place before its own",
        APPLY,
        "    on.from_ = <const char *>on.from_ + offset\n",
        "    on.from_ = <const char *>on.from_ + offset // 2\n",
        ("test_values.py::test_large_arrays_on_any_number_of_threads",),
    ),
    Fault(
        "a thread begins at the bias's first column",
        APPLY,
        "        on.column = first % on.period\n",
        "        on.column = 0\n",
        ("test_fused.py::test_large_arrays_on_any_number_of_threads",),
    ),
    Fault(
        "how many rows are added up together depends on the threads",
        "fastdrop/_fused.pyx",
        "                    <uint64_t>SUMMED_ROWS)",
        "                    <uint64_t>__import__('fastdrop').get_num_threads())",
        ("test_fused.py::test_sums_are_the_same_everywhere",),
    ),
    Fault(
        "the caller's rounding mode is left on",
        "fastdrop/simd/x86_float.h",
        "    if ((saved & ~0x3Fu) != 0x1F80u)\n",
        "    if (0)\n",
        (
            "test_hostile.py::test_the_callers_modes_do_not_matter_and_are_left",
            "test_other_machines.py::test_every_kernel_against_the_reference",
        ),
    ),
    Fault(
        "AVX2 leaks into every module",
        "setup.py",
        '    "-O3",\n    "-std=c11",\n',
        '    "-O3",\n    "-mavx2",\n    "-std=c11",\n',
        (
            "test_instruction_sets.py::test_a_baseline_module_has_only_what_every_x86_64_has",
            "test_older_cpus.py::test_known_answers_and_frozen_results_without_avx",
            "test_older_cpus.py::test_the_public_functions_without_avx",
        ),
        isa="avx2",
    ),
    Fault(
        "the kernels for AVX2 are built for AVX-512",
        "fastdrop/_isas.py",
        'Isa("avx2", _X86_64, ("-march=x86-64-v3",))',
        'Isa("avx2", _X86_64, ("-march=x86-64-v4",))',
        ("test_instruction_sets.py::test_the_avx2_module_has_nothing_of_avx512",),
        isa="avx2",
    ),
    Fault(
        "products and sums are rounded once",
        "fastdrop/simd/avx2.h",
        "        __m256 product = _mm256_mul_ps(_mm256_loadu_ps(from + 8 * i), scales);\n",
        "        __m256 product = _mm256_fmadd_ps(_mm256_loadu_ps(from + 8 * i), scales,\n"
        "                                         _mm256_setzero_ps());\n",
        ("test_instruction_sets.py::test_no_module_rounds_once_where_others_round_twice",),
        isa="avx2",
    ),
    Fault(
        "the CPU is not asked",
        "fastdrop/simd/cpu.h",
        "        return CPU_HAS_V3;\n",
        "        return 1;\n",
        (
            "test_older_cpus.py::test_the_best_that_the_cpu_has_is_chosen",
            "test_older_cpus.py::test_what_the_cpu_lacks_is_refused",
        ),
        isa="avx2",
    ),
    Fault(
        "an unknown instruction set is passed over",
        "fastdrop/_isa.pyx",
        "        if wanted not in available_isas() or not _load(wanted):\n",
        "        if wanted in available_isas() and not _load(wanted):\n",
        ("test_stream.py::test_unknown_and_unavailable_isas_are_refused",),
    ),
    # ---- Random enough ----
    Fault(
        "what is undecided is dropped, as with a threshold of 16 bits",
        KERNELS,
        "    while digits != 0 and (sure > 0 or u64x8_any(undecided)):\n",
        "    while digits != 0 and sure > SURE_PLANES - 16:\n",
        (
            "test_statistics.py::test_late_digits",
            "test_statistics.py::test_keep_rate",
        ),
    ),
    Fault(
        "lanes are told from each other by a counter, unmixed",
        KERNELS,
        "    z = u64x8_mul(u64x8_xor(z, u64x8_shr(z, 30)), u64x8_splat(MIX_FIRST))\n"
        "    z = u64x8_mul(u64x8_xor(z, u64x8_shr(z, 27)), u64x8_splat(MIX_SECOND))\n"
        "    return u64x8_xor(z, u64x8_shr(z, 31))\n",
        "    return z\n",
        ("test_statistics.py::test_related_streams",),
    ),
    Fault(
        "the engine gives its state without an addition",
        KERNELS,
        "    cdef u64x8 result = u64x8_add(u64x8_rotl(u64x8_add(s0, lanes.s3), 23), s0)\n",
        "    cdef u64x8 result = s0\n",
        ("test_statistics.py::test_gf2_rank",),
    ),
    Fault(
        "every block begins alike",
        KERNELS,
        "u64x8_splat(8 * block * GOLDEN))\n",
        "u64x8_splat(8 * (block & 1) * GOLDEN))\n",
        (
            "test_statistics.py::test_autocorrelation",
            "test_statistics.py::test_position_in_the_block",
        ),
    ),
    # ---- Memory safety ----
    Fault(
        "the last elements are used thirty-two at a time",
        KERNELS,
        "        use_part(use, on[0], count, typed)\n",
        "        use_part(use, on[0], GROUP, typed)\n",
        (
            "test_guard_pages.py::test_every_size",
            "keras/test_address_sanitizer.py::test_no_byte_beside_a_tensor",
        ),
    ),
    Fault(
        "eight bytes of bits are read where four are left",
        KERNELS,
        "    use_groups(use, on, <int64_t>(on.size // GROUP) - 1, typed)\n    while on.size:\n",
        "    use_groups(use, on, <int64_t>(on.size // GROUP), typed)\n    while on.size:\n",
        ("test_guard_pages.py::test_kernel_use",),
    ),
    Fault(
        "what lies before the first line is used thirty-two at a time",
        KERNELS,
        "        use_part(use, on[0], before, typed)\n",
        "        use_part(use, on[0], GROUP, typed)\n",
        ("test_guard_pages.py::test_every_alignment",),
    ),
    Fault(
        "as many elements are gathered as there is room for",
        APPLY,
        "        gather(plan, &gathered, 0, &place, some)\n",
        "        gather(plan, &gathered, 0, &place, most)\n",
        ("test_guard_pages.py::test_strided_views",),
    ),
    Fault(
        "whole words of bits are read at the end of a mask",
        BITS,
        "        memcpy(&word, from_, min(plan.bit_bytes - (index >> 3), <int64_t>8))\n",
        "        memcpy(&word, from_, 8)\n",
        ("test_values.py::test_noise_shapes_on_every_layout",),
        build="asan",
    ),
    Fault(
        "the ninth byte that sixty-four bits may lie in is forgotten",
        BITS,
        "    return (word >> shift | more << 1 << (63 - shift)) & low_bits(count)\n",
        "    return word >> shift & low_bits(count)\n",
        ("test_guard_pages.py::test_bits_beside_a_guard",),
    ),
    Fault(
        "sixty-four rows are always written",
        APPLY,
        "        use_row(plan, begin, rows * count, bits, 0)\n",
        "        use_row(plan, begin, TILE * count, bits, 0)\n",
        ("test_guard_pages.py::test_matrices",),
    ),
    Fault(
        "a residual is read beyond its end",
        KERNELS,
        "        memcpy(residual, on.residual, count * sizeof(element))\n",
        "        memcpy(residual, on.residual, sizeof(residual))\n",
        ("test_guard_pages.py::test_kernel_add",),
    ),
    Fault(
        "sums are written beyond their end",
        KERNELS,
        "        memcpy(on.sums, sums, count * sum_size(typed))\n",
        "        memcpy(on.sums, sums, GROUP * sum_size(typed))\n",
        ("test_guard_pages.py::test_kernel_sum",),
    ),
    Fault(
        "whole lines are written past the caches to where none begins",
        KERNELS,
        "    on.streaming &= <uintptr_t>on.to % 64 == 0\n",
        "",
        ("test_guard_pages.py::test_kernel_use",),
        isa="avx2",
    ),
    Fault(
        "the last byte of a mask that keeps all is left as it was",
        KERNELS,
        "        memset(bits, 0 if key.threshold == 0 else 0xFF, (size + 7) // 8)\n",
        "        memset(bits, 0 if key.threshold == 0 else 0xFF, size // 8)\n",
        ("test_valgrind.py::test_memory",),
    ),
    Fault(
        "a residual that is too short is used",
        NATIVE,
        "TF_Dim(tensors[1], 0) != of.residual_bytes)",
        "TF_Dim(tensors[1], 0) > of.residual_bytes)",
        ("test_native_operations.py::test_no_byte_beside_a_tensor_and_nothing_kept",),
    ),
    # ---- Threads ----
    Fault(
        "a caller does not wait for the threads that help it",
        POOL,
        "    while (pool.active > 0)\n        pthread_cond_wait(&pool.done, &pool.guard);\n",
        "",
        ("test_races.py::test_the_pool",),
    ),
    Fault(
        "a second caller takes the first one's workers",
        POOL,
        "    if (helpers < 1 || pthread_mutex_trylock(&pool.busy) != 0) {",
        "    if (helpers < 1) {",
        ("test_races.py::test_the_pool", "test_threads.py::test_calls_from_the_threads_of_openmp"),
    ),
    Fault(
        "the count of threads is a plain int",
        THREADS,
        "    static atomic_int thread_limit = 1;",
        "    static int thread_limit = 1;",
        ("test_races.py::test_the_modules_in_many_threads",),
    ),
    Fault(
        "the modules ask for the GIL",
        "setup.py",
        '    "freethreading_compatible": True,\n',
        '    "freethreading_compatible": False,\n',
        ("test_threads.py::test_threads_without_the_gil",),
    ),
    Fault(
        "four times the threads are counted in 32 bits",
        THREADS,
        "    cdef int64_t helpings = 4 * <int64_t>count if ",
        "    cdef int64_t helpings = 4 * count if ",
        ("test_threads.py::test_any_number_of_threads_may_be_asked_for",),
    ),
    Fault(
        "an array's own header is read without the GIL",
        MASK,
        "    cdef np.ndarray from_ = held(input_of(x, name))\n",
        "    cdef np.ndarray from_ = input_of(x, name)\n",
        ("test_threads.py::test_an_array_that_another_thread_reshapes_during_a_call",),
    ),
    Fault(
        "the GIL is kept while kernels run",
        APPLY,
        "        with nogil:\n            use_on(work, key)",
        "        if True:\n            use_on(work, key)",
        ("test_threads.py::test_the_interpreter_runs_on_while_a_kernel_does",),
    ),
    Fault(
        "more threads than the pool has places for",
        POOL,
        "    if (helpers > POOL_MAX_WORKERS)\n        helpers = POOL_MAX_WORKERS;\n",
        "",
        ("test_threads.py::test_no_more_than_256_threads",),
    ),
    Fault(
        "a signal is heard when arrays have changed",
        MASK,
        "    use_on_arrays(work, &key)\n",
        "    use_on_arrays(work, &key)\n    PyErr_CheckSignals()\n",
        ("test_threads.py::test_an_interrupted_call_has_changed_nothing_or_is_done",),
    ),
    Fault(
        "children of a stream take its steps one by one",
        STREAM,
        "            self._give_back(state, n)\n            raise\n",
        "            raise\n",
        (
            "test_seeds.py::test_spawning_without_memory_takes_no_step",
            "test_threads.py::test_an_interrupted_call_has_changed_nothing_or_is_done",
        ),
    ),
    Fault(
        "counting what is not stored hears no signal",
        MASK,
        "        PyErr_CheckSignals()\n",
        "",
        ("test_threads.py::test_counting_what_is_not_stored_can_be_interrupted",),
    ),
    Fault(
        "forks of other languages are not noticed",
        STREAM,
        "        if in_child:\n            _reseed_after_fork()\n",
        "",
        ("test_seeds.py::test_a_child_that_no_python_forked_reseeds_too",),
    ),
    Fault(
        "one thread more than was asked for",
        POOL,
        "    int helpers = threads - 1;\n",
        "    int helpers = threads;\n",
        ("test_threads.py::test_no_more_threads_than_asked_for",),
    ),
    Fault(
        "small arrays are shared among threads",
        THREADS,
        " if size >= PARALLEL_SIZE else 1\n",
        "\n",
        ("test_threads.py::test_small_arrays_start_no_thread",),
    ),
    Fault(
        "a forked child takes its parent's workers for its own",
        POOL,
        "    pool.workers = pool.places = pool.active = pool.sleepers = 0;\n",
        "",
        (
            "test_threads.py::test_a_child_may_use_threads_before_its_parent",
            "test_threads.py::test_a_fork_while_other_threads_are_busy",
        ),
    ),
    Fault(
        "a forked child draws what its parent draws",
        STREAM,
        "    process_stream._set(secrets.randbits(128), 0)\n    in_child = False\n",
        "    in_child = False\n",
        ("keras/test_layer_safety.py::test_a_forked_pool_beside_a_layer_in_use",),
    ),
    Fault(
        "every process begins with the same seed",
        STREAM,
        "cdef Stream process_stream = Stream()\n",
        "cdef Stream process_stream = Stream(0)\n",
        ("keras/test_layer_safety.py::test_a_spawned_pool_beside_a_layer_in_use",),
    ),
    Fault(
        "the pool's threads take signals",
        POOL,
        "    pthread_sigmask(SIG_SETMASK, &all, &before);\n",
        "    pthread_sigmask(SIG_BLOCK, 0, &before);\n",
        ("test_threads.py::test_workers_leave_signals_to_the_program",),
    ),
    Fault(
        "a rate is turned while it is read",
        NATIVE,
        "op->dial ? atomic_load(&op->dial->rate) : op->rate",
        "op->dial ? *(const double *)&op->dial->rate : op->rate",
        ("test_native_operations.py::test_one_operation_in_many_threads_has_no_race",),
    ),
    Fault(
        "a lock that a fork leaves taken",
        NATIVE,
        "    dial *made = malloc(sizeof *made);\n    if (made) {\n",
        "    static atomic_flag taken = ATOMIC_FLAG_INIT;\n"
        "    while (atomic_flag_test_and_set(&taken))\n"
        "        ;\n"
        "    dial *made = malloc(sizeof *made);\n"
        "    for (volatile int i = 0; i < 10000; i++)\n"
        "        ;\n"
        "    atomic_flag_clear(&taken);\n"
        "    if (made) {\n",
        ("test_native_operations.py::test_a_fork_while_operations_are_made",),
    ),
    Fault(
        "a forked child waits for a lock of its parent's threads",
        LAYERS,
        "    os.register_at_fork(after_in_child=_forget_the_lock)\n",
        "    pass\n",
        ("keras/test_layer_safety.py::test_a_fork_while_another_thread_takes_a_seed",),
    ),
    Fault(
        "two threads read a layer's state before either advances it",
        LAYERS,
        "        with _taking_a_seed if alone else contextlib.nullcontext():\n",
        "        with contextlib.nullcontext():\n",
        ("keras/test_layer_safety.py::test_many_threads_on_one_layer",),
    ),
    Fault(
        "a signal's handler waits for its own thread",
        LAYERS,
        "is in here.\n_taking_a_seed = threading.RLock()\n",
        "is in here.\n_taking_a_seed = threading.Lock()\n",
        ("keras/test_layer_safety.py::test_a_signals_handler_may_call_a_layer",),
    ),
    # ---- Hostile input ----
    Fault(
        "a seed's state may be of any numbers",
        "fastdrop_keras/seed_state.py",
        'kind not in "iu" or tuple(saved.shape)',
        'kind not in "iufcb" or tuple(saved.shape)',
        ("keras/test_layer_state.py::test_a_damaged_state_is_refused_and_changes_nothing",),
    ),
    Fault(
        "what was converted stays where the rest cannot be",
        "fastdrop_keras/layer_swap.py",
        "        for action in (*tracked_again, *reversed(undo), *tracked_again):\n",
        "        for action in ():\n",
        ("keras/test_conversion.py::test_a_model_that_cannot_be_changed_whole_stays_as_it_was",),
    ),
    Fault(
        "the bits of a mask are counted in 64 bits, whatever their number",
        "fastdrop/include/fastdrop.h",
        "        if (noise_shape[i] > (INT64_MAX - 7) / bits)\n            return -1;\n",
        "",
        (
            "keras/test_bridges.py::test_a_mask_of_more_bits_than_a_size_can_count",
            "test_native_operations.py::test_no_byte_beside_a_tensor_and_nothing_kept",
            "test_c_interface.py::test_an_error_changes_nothing",
        ),
    ),
    Fault(
        "a rate is an attribute of each eager operation",
        "fastdrop_keras/native_bridge.py",
        "    if tf.executing_eagerly():\n        return 0\n",
        "",
        ("keras/test_layer_safety.py::test_a_new_rate_at_each_eager_step_leaves_nothing_behind",),
    ),
    Fault(
        "an output may overlap its input partly",
        ARGUMENTS,
        "        overlap = numpy.shares_memory(array, x, max_work=OVERLAP_EFFORT)\n",
        "        overlap = False\n",
        ("test_fuzz.py::test_any_arguments",),
    ),
    Fault(
        "a public name that no fuzzer knows",
        "fastdrop/__init__.py",
        '    "show_config",\n',
        '    "show_config",\n    "_compiled",\n',
        ("test_fuzz.py::test_every_public_name_is_fuzzed",),
    ),
    Fault(
        "any class in C can be unpickled",
        "setup.py",
        '    "auto_pickle": False,\n',
        "",
        (
            "test_hostile.py::test_nothing_is_restored_but_masks_and_streams",
            "test_hostile.py::test_the_memory_of_bits_cannot_be_copied_as_an_object",
        ),
    ),
    Fault(
        "a mask that is drawn again may be of another stream",
        MASK,
        '    if other and state["bits"] is None:\n',
        "    if False:\n",
        ("test_mask.py::test_a_pickled_mask_of_another_stream",),
    ),
    Fault(
        "bits of another stream say a seed that draws others here",
        MASK,
        "        mask.drawn, mask.offset = False, 0\n",
        "        pass\n",
        ("test_mask.py::test_a_pickled_mask_of_another_stream",),
    ),
    Fault(
        "a stream goes on in another stream",
        STREAM,
        "    if is_other_stream(state):\n",
        "    if False:\n",
        ("test_seeds.py::test_a_pickled_stream_of_another_stream",),
    ),
    Fault(
        "a pickle names the module that a class is in",
        STREAM,
        "return _pickle._stream, ",
        "return restored_stream, ",
        ("test_seeds.py::test_a_pickle_names_one_module",),
    ),
    Fault(
        "a file's seed goes on in another stream",
        "fastdrop_keras/seed_state.py",
        "        _check_stream(int(stream[0]), ",
        "        (int(stream[0]), ",
        ("keras/test_layer_state.py::test_a_file_of_another_stream_is_refused",),
    ),
    Fault(
        "a checkpoint's seed goes on in another stream",
        "fastdrop_keras/seed_state.py",
        '        _check_stream(int(number) if number.isdecimal() else number, "the checkpoint")\n',
        "        pass\n",
        ("keras/test_layer_state.py::test_a_checkpoint_of_another_stream_is_refused",),
    ),
    Fault(
        "a graph of another stream runs",
        NATIVE,
        "    if (failed(status) || stream == (int64_t)api->stream)\n",
        "    if (true)\n",
        ("keras/test_bridges.py::test_a_graph_of_another_stream_is_refused",),
    ),
    Fault(
        "the C interface draws before it has looked at the scale",
        "fastdrop/_api.pyx",
        "    return FASTDROP_OK if isfinite(scale) else FASTDROP_BAD_SCALE\n",
        "    return FASTDROP_OK\n",
        ("test_c_interface.py::test_an_error_changes_nothing",),
    ),
    Fault(
        "the C interface forgets the mask of a shape that shares decisions",
        "fastdrop/_api.pyx",
        "        work.straight &= fitted[i] == dropout.shape[i]\n",
        "",
        ("test_c_interface.py::test_every_layout", "test_c_interface.py::test_in_place"),
    ),
    Fault(
        "the C interface draws pieces from their own beginning",
        "fastdrop/_api.pyx",
        "    draw_bits(&key, first, size, bits)\n",
        "    draw_bits(&key, 0, size, bits)\n",
        ("test_c_interface.py::test_the_mask_alone",),
    ),
    Fault(
        "the C interface draws beyond the last element",
        "fastdrop/_api.pyx",
        "    if first > end or size > end - first:\n",
        "    if size > end:\n",
        ("test_c_interface.py::test_a_draw_that_is_refused_changes_nothing",),
    ),
    Fault(
        "an older library is taken",
        "fastdrop/include/fastdrop.h",
        "    return api->version >= FASTDROP_API_VERSION && ",
        "    return ",
        ("test_c_interface.py::test_an_older_library_is_refused",),
    ),
    Fault(
        "a newer library is refused",
        "fastdrop/include/fastdrop.h",
        "    return api->version >= FASTDROP_API_VERSION && api->size >= sizeof *api;",
        "    return api->version == FASTDROP_API_VERSION && api->size == sizeof *api;",
        ("test_c_interface.py::test_a_newer_library_serves_an_older_header",),
    ),
    Fault(
        "the length of bits is what they say",
        MASK,
        "    if type(bits) is not bytes or ",
        "    if not isinstance(bits, bytes) or ",
        ("test_hostile.py::test_bits_that_lie_about_their_length",),
    ),
    Fault(
        "a pickled mask may have fewer bits than elements",
        MASK,
        "<size_t>len(bits) != mask.packed_size():",
        "<size_t>len(bits) > mask.packed_size():",
        ("test_hostile.py::test_a_crafted_pickle_is_refused",),
    ),
    Fault(
        "a pickled mask takes its memory at once",
        MASK,
        'or a seed, a step and a rate")\n        return mask\n',
        'or a seed, a step and a rate")\n        mask.stored_bits()\n        return mask\n',
        ("test_hostile.py::test_a_crafted_pickle_of_a_huge_mask_takes_no_memory_until_it_is_used",),
    ),
    Fault(
        "a shape may have more elements than a size can hold",
        ARGUMENTS,
        "        if size < 0 or (size > 0 and product > LARGEST_SIZE // size):\n",
        "        if size < 0 or size > LARGEST_SIZE:\n",
        ("test_hostile.py::test_shapes_whose_product_does_not_fit",),
    ),
    Fault(
        "an offset may be so large that the end wraps",
        MASK,
        '    return integer_of(offset, "offset", 0, LARGEST_OFFSET - size,',
        '    return integer_of(offset, "offset", 0, LARGEST_OFFSET - 1,',
        ("test_hostile.py::test_offsets_at_the_end",),
    ),
    Fault(
        "the strides of an array without elements are followed",
        APPLY,
        "    if work.size:\n        use_planned(work)\n",
        "    use_planned(work)\n",
        ("test_hostile.py::test_huge_strides_that_lead_nowhere",),
    ),
    Fault(
        "the step is taken before there is memory",
        MASK,
        "    if drawn is None and not work.straight:\n",
        "    request.start(mask, &key)\n    if drawn is None and not work.straight:\n",
        ("test_out_of_memory.py::test_a_call_without_memory_changes_nothing",),
    ),
    Fault(
        "an output that TensorFlow could not allocate is written to",
        NATIVE,
        "    tensors[2] = output_over(context, &tensors[0], &of, status);\n"
        "    if (failed(status))\n"
        "        return;\n"
        "    tensors[3]",
        "    tensors[2] = output_over(context, &tensors[0], &of, status);\n    tensors[3]",
        ("keras/test_layer_out_of_memory.py::test_an_error_and_then_the_next_call",),
    ),
    Fault(
        "the build says what the compiler says",
        "setup.py",
        "        if not self.compiles([]):\n",
        "        if False:\n",
        ("test_builds.py::test_without_a_compiler_the_build_says_what_to_install",),
    ),
    Fault(
        "kernels that cannot be built stop the build",
        "setup.py",
        "                self.extensions = [e for e in self.extensions if e.name != name]\n",
        "                del name\n",
        ("test_builds.py::test_kernels_that_the_compiler_cannot_build_are_left_out",),
    ),
    Fault(
        "a module that is cut short is loaded",
        "fastdrop/_compiled.py",
        "    return bool(size < place + entry_size * entries)\n",
        "    return False\n",
        (
            "test_surroundings.py::test_a_damaged_module_is_named_with_what_to_do",
            "keras/test_damaged_bridge.py::test_pythons_bridge_takes_over",
        ),
    ),
    Fault(
        "slower kernels are used without a word",
        "fastdrop/_isa.pyx",
        "            for failed, why in failures.items():\n",
        "            for failed, why in ():\n",
        ("test_surroundings.py::test_without_the_best_kernels_the_next_are_used",),
        isa="avx2",
    ),
    # ---- Large, and for long ----
    Fault(
        "an array is copied on its way",
        "fastdrop/_dropout.pyx",
        '    return drop(request, kind_of(array, "x"), array, array)\n',
        '    return drop(request, kind_of(array, "x"), array, array.copy())\n',
        ("test_large.py::test_memory_is_the_array_and_its_mask",),
    ),
    Fault(
        "a reference is kept by each call",
        "fastdrop/_memory.pyx",
        "    np.set_array_base(array, buffer)\n",
        "    Py_INCREF(buffer)\n    np.set_array_base(array, buffer)\n",
        (
            "test_endurance.py::test_a_million_calls_keep_nothing",
            "keras/test_layer_endurance.py::test_steps_keep_nothing",
        ),
    ),
]

# Tests of the page that are shown a fault by another test, or by themselves.
CONTROLS = {
    "test_stream.py::test_pieces_that_begin_inside_of_a_vector": (
        "test_stream.py::"
        "test_pieces_that_begin_inside_of_a_vector_catch_what_is_left_out_of_the_count"
    ),
    "test_statistics.py::test_walsh": "test_statistics.py::test_walsh_catches_xorshift128plus",
    "test_statistics.py::test_gaps": "test_statistics.py::test_gaps_catches_narrow_words",
    "test_dieharder.py::test_the_stream_passes": (
        "test_dieharder.py::test_every_test_catches_one_block"
    ),
    "test_large.py::test_keep_rate_of_2_to_36_elements": (
        "test_large.py::test_a_rate_off_by_two_in_100_000_would_show"
    ),
    "keras/test_training_statistics.py::test_our_layer_trains_as_well_as_that_of_keras": (
        "keras/test_training_statistics.py::test_a_wrong_rate_is_found"
    ),
    **{
        test: test
        for test in (
            "test_builds.py::test_address_sanitizer_sees_a_byte_too_many",
            "test_native_operations.py::test_faults_of_kernels_are_found",
            "test_races.py::test_two_threads_that_change_one_array_are_a_race",
            "test_valgrind.py::test_faults_are_found",
            "keras/test_address_sanitizer.py::test_the_end_of_a_tensor_is_known",
        )
    },
}
