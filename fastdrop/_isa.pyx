"""Chooses the instruction set and loads its kernels, when the package is imported."""
import contextlib
import importlib
import importlib.util
import os
import warnings

from cpython.pycapsule cimport PyCapsule_GetPointer

from fastdrop._kernels.table cimport TABLE_CAPSULE, kernel_table

from fastdrop._compiled import REPAIR, is_cut_short
from fastdrop._isas import ISAS

cdef extern from *:
    const char *BUILD_NAME "FASTDROP_BUILD"

cdef extern from "simd/cpu.h":
    bint cpu_runs(const char *isa)
    const char *COMPILER_VERSION

VARIABLE = "FASTDROP_ISA"
COMPILER = (<bytes>COMPILER_VERSION).decode()
BUILD = (<bytes>BUILD_NAME).decode()

cdef dict modules = {}  # the loaded kernel modules, by name
failures = {}  # the error of each kernel module that could not be loaded, by name


def _load(name):
    """Import the kernel module of an instruction set; return whether it could be imported."""
    full_name = f"fastdrop._kernels.{name}"
    if name not in modules and name not in failures:
        try:
            spec = importlib.util.find_spec(full_name)
            if spec is not None and is_cut_short(spec.origin):
                raise ImportError(f"{spec.origin} is cut short")
            modules[name] = importlib.import_module(full_name)
        except ImportError as error:
            failures[name] = str(error)
    return name in modules


def available_isas():
    """List the instruction sets that this machine can use, best first.

    Returns
    -------
    tuple of str
        A subset of ``"avx512"`` (x86-64-v4), ``"avx2"`` (x86-64-v3), ``"neon"`` (aarch64) and
        ``"portable"`` (C without intrinsics, always available): the sets that have kernels here and
        that the CPU and the operating system support.

    Notes
    -----
    The first one is in use, unless the environment variable ``FASTDROP_ISA`` named another when
    fastdrop was imported. Results are bit-identical on all.

    Examples
    --------
    >>> import fastdrop
    >>> fastdrop.available_isas()[-1]
    'portable'
    """
    names = []
    for isa in ISAS:
        if not cpu_runs(isa.name.encode()) or isa.name in failures:
            continue
        if isa.name in modules or importlib.util.find_spec(f"fastdrop._kernels.{isa.name}"):
            names.append(isa.name)
    return tuple(names)


def active_isa():
    """The name of the instruction set in use."""
    return (<bytes>kernels.name).decode()


cdef _use(str name):
    global kernels
    kernels = <const kernel_table *>PyCapsule_GetPointer(modules[name].table, TABLE_CAPSULE)


@contextlib.contextmanager
def using(name):
    """Context manager for tests and benchmarks: uses another instruction set, process-wide."""
    if name not in available_isas() or not _load(name):
        raise ValueError(f"`name` must be one of {available_isas()}, got {name!r}")
    before = active_isa()
    _use(name)
    try:
        yield
    finally:
        _use(before)


def _choose():
    wanted = os.environ.get(VARIABLE)
    if wanted:
        if wanted not in available_isas() or not _load(wanted):
            why = f" ({failures[wanted]})" if wanted in failures else ""
            raise ImportError(
                f"{VARIABLE}={wanted!r} is not an instruction set that fastdrop can use here{why}; "
                f"the choices are {', '.join(available_isas())}"
            )
        return wanted
    for name in available_isas():
        if _load(name):
            # No warning for a module that was never built.
            for failed, why in failures.items():
                warnings.warn(
                    f"fastdrop's {failed} kernels are damaged and cannot be used: {why}. The "
                    f"{name} kernels are in use, which give the same results more slowly. {REPAIR}",
                    RuntimeWarning,
                )
            return name
    raise ImportError(
        f"fastdrop's kernel modules are missing or damaged ({failures or 'none was found'}). "
        f"{REPAIR}"
    )


_use(_choose())
