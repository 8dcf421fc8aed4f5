"""Under valgrind, the library reads no uninitialized byte and no byte outside of an array."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind here (Debian: valgrind)"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here (Debian: gcc)"),
    pytest.mark.skipif(
        fastdrop._isa.BUILD in ("asan", "tsan"), reason="valgrind does not run sanitizers"
    ),
]

# valgrind 3.19 does not support AVX-512.
ISAS = [name for name in fastdrop.available_isas() if name != "avx512"]

# By default, an aligned load is no error if one of its bytes may be read.
OPTIONS = ["--quiet", "--error-limit=no", "--partial-loads-ok=no"]

SETUP = """
import ctypes, sys
import numpy as np, fastdrop
memcheck = ctypes.CDLL(sys.argv[1])
for name in ("first_bad", "forbid", "forget", "allow"):
    getattr(memcheck, name).argtypes = [ctypes.c_void_p, ctypes.c_ulong]
memcheck.first_bad.restype = ctypes.c_long
ROOM = 128

class Placed:
    # An array between inaccessible bytes; uninitialized if there is no content.
    def __init__(self, shape, dtype, content=None):
        size = int(np.prod(shape)) * dtype.itemsize
        self.memory = np.zeros(size + 2 * ROOM, np.uint8)
        self.array = self.memory[ROOM : ROOM + size].view(dtype).reshape(shape)
        memcheck.forbid(self.memory.ctypes.data, self.memory.nbytes)
        memcheck.forget(self.array.ctypes.data, size)
        if content is not None:
            self.array[...] = content
    def __del__(self, memcheck=memcheck):
        memcheck.allow(self.memory.ctypes.data, self.memory.nbytes)

def check(array, *case):
    # An array in C order.
    bad = memcheck.first_bad(array.ctypes.data, array.nbytes)
    assert bad == -1, (bad, *case)

"""

CALLS = """
DTYPES = [np.dtype(name) for name in ("f2", "f4", "f8")]
SIZES = [*range(70), 127, 130, 511, 512, 513, 577, 600, 4095, 4097, 8192 + 33, 16384 + 1]
for dtype in DTYPES:
    for size in SIZES:
        content = np.arange(size).astype(dtype)
        x = Placed(size, dtype, content)
        for store_mask in (True, False):
            case = (dtype.name, size, store_mask)
            y = Placed(size, dtype)
            mask = fastdrop.dropout(
                x.array, 0.3, seed=1, out=y.array, store_mask=store_mask)[1]
            check(y.array, "dropout", *case)
            if store_mask:
                check(mask.bits, "bits", *case)
            dx = Placed(size, dtype)
            fastdrop.dropout_grad(x.array, mask, out=dx.array)
            check(dx.array, "grad", *case)
            mask.count()
        case = (dtype.name, size)
        y = Placed(size, dtype)
        mask = fastdrop.relu_dropout(x.array, 0.3, seed=1, out=y.array)[1]
        check(y.array, "relu", *case)
        check(mask.bits, "relu bits", *case)
        y = Placed(size, dtype)
        mask = fastdrop.bias_dropout_add(
            x.array, x.array, x.array, 0.3, seed=1, out=y.array)[1]
        check(y.array, "add", *case)
        check(mask.bits, "add bits", *case)
        dx = Placed(size, dtype)
        dbias = fastdrop.bias_dropout_add_grad(x.array, mask, out=dx.array)[1]
        check(dx.array, "add grad", *case)
        check(dbias, "dbias", *case)
    for shape in [(3, 5), (33, 67), (65, 8), (2, 130), (70, 3)]:
        for noise_shape in (None, (None, 1), (1, None), (1, 1)):
            for view in (lambda x: x, lambda x: x.T, lambda x: x[:, ::2], lambda x: x[::-1, ::-1]):
                x = Placed(shape, dtype, 1)
                seen = view(x.array)
                case = (dtype.name, shape, seen.strides, noise_shape)
                mask = fastdrop.dropout_(
                    seen, 0.3, seed=1, noise_shape=noise_shape)
                check(x.array, "dropout_", *case)
                check(mask.bits, "bits", *case)
for size in SIZES:
    for offset, rate in [(0, 0.3), (1, 0.3), (32, 0.3), (4095, 0.3), (0, 0), (1, 0), (0, 1)]:
        mask = fastdrop.draw_mask(size, rate, seed=1, offset=offset)
        check(mask.bits, size, offset, rate)
        check(mask.unpack(), size, offset)
        bits = fastdrop.Mask.pack(mask.unpack()).bits
        check(bits, "pack", size)
        assert bits.tobytes() == mask.bits.tobytes()
print("done")
"""

FAULTS = """
x = Placed(64, np.dtype("f2"))
try:
    check(x.array, "never written")
except AssertionError as error:
    print(error)
fastdrop.dropout_(x.array, 0.3, scale=2.0)
y = Placed(40, np.dtype("f4"), 1)
memcheck.forbid(y.array.ctypes.data + 156, 4)
fastdrop.dropout(y.array, 0.3)
"""


@pytest.fixture(scope="module")
def under_valgrind(tmp_path_factory):
    """Run a program in an interpreter under valgrind: ``under_valgrind(code, isa)``."""
    folder = tmp_path_factory.mktemp("native")
    library = folder / "memcheck.so"
    source = Path(__file__).parent / "native" / "memcheck.c"
    command = ["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)

    def under_valgrind(code, isa):
        program = folder / "program.py"
        program.write_text(SETUP + code)
        return subprocess.run(
            ["valgrind", *OPTIONS, sys.executable, str(program), str(library)],
            # Python's own allocator would hide accesses beyond objects.
            env=os.environ | {"PYTHONMALLOC": "malloc", "FASTDROP_ISA": isa},
            capture_output=True,
            text=True,
            timeout=1200,
        )

    return under_valgrind


def complaints(done):
    """Valgrind's findings in the library's code or in functions that it calls directly.

    Other findings are in the interpreter.
    """
    blocks = re.split(r"(?m)^==\d+== *\n", done.stderr)
    return [block for block in blocks if any("fastdrop" in x for x in block.splitlines()[1:4])]


@pytest.mark.parametrize("isa", ISAS)
def test_memory(under_valgrind, isa):
    done = under_valgrind(CALLS, isa)
    assert done.stdout == "done\n", done.stderr[-4000:]
    assert complaints(done) == []


def test_faults_are_found(under_valgrind):
    done = under_valgrind(FAULTS, "portable")
    assert done.stdout == "(0, 'never written')\n", done.stderr[-4000:]
    found = complaints(done)
    assert any("uninitialised value" in text for text in found)
    assert any("Invalid read of size" in text for text in found)
