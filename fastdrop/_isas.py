"""Lists the instruction sets, best first, with their compiler flags and machines.

The build runs this file before anything is compiled. Each row has a kernel module of its name in
``_kernels/``, a header of its name in ``simd/``, and a test of the CPU in ``simd/cpu.h``.
"""

from typing import NamedTuple


class Isa(NamedTuple):
    """An instruction set that the kernels are built for."""

    name: str
    machines: tuple[str, ...]  # values of platform.machine() in lower case; empty for all
    flags: tuple[str, ...]  # for gcc and clang, and for the kernel module only


_X86_64 = ("x86_64", "amd64")
_AARCH64 = ("aarch64", "arm64")

ISAS = (
    Isa("avx512", _X86_64, ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    Isa("avx2", _X86_64, ("-march=x86-64-v3",)),
    Isa("neon", _AARCH64, ()),
    Isa("portable", (), ()),
)
