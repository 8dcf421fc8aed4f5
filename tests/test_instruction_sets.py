"""No built module has a machine instruction that is newer than its instruction set.

A run would detect one only in the code that it reaches, on a CPU that lacks the instruction. These
tests read all code, as disassembled by `objdump`.
"""

import collections
import functools
import importlib.util
import pathlib
import platform
import re
import shutil
import subprocess

import pytest

pytestmark = [
    pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86-64's encodings"
    ),
    pytest.mark.skipif(
        shutil.which("objdump") is None, reason="needs objdump: apt-get install binutils"
    ),
]

# Located without an import, so TensorFlow is not needed.
PACKAGES = [
    pathlib.Path(importlib.util.find_spec(name).origin).parent
    for name in ("fastdrop", "fastdrop_keras")
]
BUILT = {
    str(path.relative_to(folder.parent)).partition(".")[0]: path
    for folder in PACKAGES
    for path in sorted(folder.rglob("*.so"))
}
WIDE = [f"fastdrop/_kernels/{isa}" for isa in ("avx2", "avx512")]
BASELINE = [name for name in BUILT if name not in WIDE]

# Prefixes that may precede a VEX or EVEX prefix.
SEGMENTS = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67}
ENCODINGS = {0xC4: "VEX", 0xC5: "VEX", 0x62: "EVEX"}
# Instructions after SSE2 in the legacy encoding, SSE3 to SSE4.2 and others. `tzcnt` is not among
# them: older CPUs ignore its prefix and run `bsf`, and compilers rely on that.
NEWER = re.compile(
    r"(addsub|hadd|hsub)p[sd]|lddqu|mov(d|sl|sh)dup|fisttp|cmpxchg16b"
    r"|p(shufb|hadd|hsub|maddub|mulhrs|sign|abs|align)\w*"
    r"|(d?p?blend|dpp|round|insertps|extractps|mpsad|movntdqa|phminpos|packusdw|ptest)\w*"
    r"|p(insr|extr)[bdq]|pmov[sz]x\w*|pm(in|ax)(sb|sd|uw|ud)|pmul(dq|ld)|pcmp(eqq|gtq|[ei]str\w*)"
    r"|popcnt|lzcnt|crc32\w*|movbe|aes\w*|pclmul\w*|rd(rand|seed)|ad[co]x|xbegin"
)


@functools.cache
def instructions(path):
    """(mnemonic, encoding, operands) of each instruction; the legacy encoding is ""."""
    found = []
    command = ["objdump", "-d", "-w", "--insn-width=16", path]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        parts = line.split("\t")
        if len(parts) < 3:
            continue
        bytes_ = [int(byte, 16) for byte in parts[1].split()]
        first = next((byte for byte in bytes_ if byte not in SEGMENTS), None)
        words = parts[2].split(None, 1)
        found.append((words[0], ENCODINGS.get(first, ""), words[1] if len(words) > 1 else ""))
    return found


def encodings(name):
    return collections.Counter(encoding for _, encoding, _ in instructions(BUILT[name]))


def test_every_built_module_is_checked():
    assert "fastdrop/_kernels/portable" in BASELINE
    assert {"fastdrop/_mask", "fastdrop/_isa", "fastdrop/_api"} <= set(BASELINE)
    assert "fastdrop_keras/libfastdrop_native_op" in BASELINE
    assert "fastdrop/libfastdrop_xla_handler" in BASELINE
    for name in BUILT:
        assert encodings(name)[""] > 50, name


@pytest.mark.parametrize("name", BASELINE)
def test_a_baseline_module_has_only_instructions_of_every_x86_64(name):
    found = collections.Counter(
        (mnemonic, encoding)
        for mnemonic, encoding, _ in instructions(BUILT[name])
        if encoding or NEWER.fullmatch(mnemonic)
    )
    assert not found


def test_the_avx2_module_has_no_avx512_instructions():
    found = collections.Counter()
    for mnemonic, encoding, operands in instructions(BUILT["fastdrop/_kernels/avx2"]):
        # Instructions on mask registers are VEX-encoded.
        if encoding == "EVEX" or re.search(r"%(zmm|k[0-7]\b|[xy]mm(1[6-9]|2\d|3[01]))", operands):
            found[mnemonic] += 1
    assert not found


def test_wide_modules_have_wide_instructions():
    """These tests recognize wide instructions, by their encodings and registers."""
    assert encodings("fastdrop/_kernels/avx2")["VEX"] > 1000
    if "fastdrop/_kernels/avx512" in BUILT:
        assert encodings("fastdrop/_kernels/avx512")["EVEX"] > 1000
        operands = {o for _, _, o in instructions(BUILT["fastdrop/_kernels/avx512"])}
        assert any("%zmm" in o for o in operands)
        assert any("%k1" in o for o in operands)


@pytest.mark.parametrize("name", BUILT)
def test_no_module_has_fused_multiply_adds(name):
    fused = [m for m, _, _ in instructions(BUILT[name]) if re.match(r"vfn?m(add|sub)", m)]
    assert not fused


@pytest.mark.parametrize("name", BUILT)
def test_no_module_dispatches_by_itself(name):
    """The loader would choose among several versions of a function, and ignore `FASTDROP_ISA`."""
    symbols = subprocess.run(
        ["readelf", "-sW", BUILT[name]], capture_output=True, text=True, check=True
    ).stdout
    assert "FUNC" in symbols
    assert "IFUNC" not in symbols
