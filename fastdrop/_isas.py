"""Owns the list of instruction sets, best first: what each is built with and where.

This is plain data that the build reads too, before anything is compiled. Each row has a kernel
module of its name in ``_kernels/``, a header of its name in ``simd/``, and a line in ``simd/cpu.h``
that asks the CPU for it.
"""

from typing import NamedTuple


class Isa(NamedTuple):
    """An instruction set that the kernels are built for."""

    name: str
    machines: tuple[str, ...]  # in the spelling of platform.machine(), lower case; empty: all
    flags: tuple[str, ...]  # what tells a compiler (gcc or clang) to use it, in its module only


_X86_64 = ("x86_64", "amd64")
_AARCH64 = ("aarch64", "arm64")

ISAS = (
    Isa("avx512", _X86_64, ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    Isa("avx2", _X86_64, ("-march=x86-64-v3",)),
    Isa("neon", _AARCH64, ()),
    Isa("portable", (), ()),
)
