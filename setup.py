"""Builds the extension modules: the kernels once for each instruction set, from one source."""

import math
import os
import platform
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

ROOT = Path(__file__).parent
ISAS = runpy.run_path(str(ROOT / "fastdrop" / "_isas.py"))["ISAS"]

COMPILE_ARGS = [
    "-O3",
    "-std=c11",
    # A fused multiply-add would round once; other instruction sets round twice.
    "-ffp-contract=off",
    # Overrides the flags of the environment: the kernels compare NaN and infinity.
    "-fno-fast-math",
    "-fno-math-errno",
    "-fvisibility=hidden",
    # Cython compares its constants, which are ints, with sizes.
    "-Wno-sign-compare",
]
# These are libraries, not Python modules: one file works with every Python.
NATIVE_OPERATION = "fastdrop_keras.libfastdrop_native_op"
XLA_HANDLER = "fastdrop.libfastdrop_xla_handler"
WINDOWS = sys.platform == "win32"
if WINDOWS:
    # Visual C++ has no vector types. The package ziglang brings clang; without a target, it would
    # build for this machine's CPU.
    os.environ.setdefault("CC", "python-zig cc -target x86_64-windows-gnu")
    # Python's headers define it for Visual C++ only.
    COMPILE_ARGS.append("-DMS_WIN64=")
INCLUDE_DIRS = ["fastdrop", "fastdrop/include", "fastdrop/_kernels", "fastdrop/simd"]

# The modules between arrays and kernels. They are built for the baseline CPU.
MODULES = (
    "_alpha",
    "_api",
    "_apply",
    "_arguments",
    "_bits",
    "_draw",
    "_dropout",
    "_fused",
    "_isa",
    "_mask",
    "_memory",
    "_noise",
    "_plan",
    "_rates",
    "_stream",
    "_threads",
    "_walk",
)


class Build(NamedTuple):
    """The settings of a build that differ from a release."""

    compile_args: tuple[str, ...] = ()  # come last, and so override the others
    link_args: tuple[str, ...] = ()
    directives: Mapping[str, bool] = MappingProxyType({})


SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer")
MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RACES = ("-fsanitize=thread",)
BUILDS = {
    "release": Build(),
    # UBSan checks alignment, too: unaligned elements are accessed through memcpy or through
    # instructions for unaligned addresses only.
    "asan": Build((*SANITIZED, *MEMORY), MEMORY),
    "tsan": Build((*SANITIZED, *RACES), RACES),
    # -UNDEBUG enables the asserts of Python's, NumPy's and Cython's headers. -ftrapv traps signed
    # overflow.
    "debug": Build(
        ("-O1", "-g", "-UNDEBUG", "-ftrapv"),
        directives={
            "boundscheck": True,
            "wraparound": True,
            "nonecheck": True,
            "initializedcheck": True,
        },
    ),
}


def chosen_build():
    """Return the name of the build: ``FASTDROP_BUILD``, or ``release``."""
    name = os.environ.get("FASTDROP_BUILD") or "release"
    if name not in BUILDS:
        raise SystemExit(
            f"fastdrop: FASTDROP_BUILD must be one of {', '.join(BUILDS)}, got {name!r}"
        )
    return name


BUILD_NAME = chosen_build()
BUILD = BUILDS[BUILD_NAME]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    # Cython's pickles would restore any field of a class, pointers too.
    "auto_pickle": False,
    "embedsignature": True,
    "embedsignature.format": "python",
    "freethreading_compatible": True,
}


def package_files(*patterns):
    """Return the files of the package that match the patterns."""
    package = ROOT / "fastdrop"
    return [str(p.relative_to(ROOT)) for pattern in patterns for p in sorted(package.glob(pattern))]


# Only the kernel modules include these.
VOCABULARIES = package_files(
    "_kernels/*.pxi", "simd/normal.h", "simd/rates.h", *(f"simd/{isa.name}.h" for isa in ISAS)
)
HEADERS = package_files("*.h", "*.pxd", "include/*.h", "_kernels/*.h", "_kernels/*.pxd", "simd/*.h")
HEADERS = [path for path in HEADERS if path not in VOCABULARIES]
SETTINGS = ["setup.py", "fastdrop/_isas.py"]
# A build with other directives generates other C, in its own folder.
GENERATED = Path("build", "" if BUILD_NAME == "release" else BUILD_NAME)


def settings_changed():
    """Return whether setup.py is newer than the generated C. Cython checks its sources only."""
    made = [path.stat().st_mtime for path in (ROOT / GENERATED / "fastdrop").rglob("*.c")]
    return min(made, default=math.inf) < (ROOT / "setup.py").stat().st_mtime


def flags_of(isa):
    """Return the compiler's flags for an instruction set. zig has other names for CPUs."""
    return [flag.replace("x86-64-", "x86_64_") if WINDOWS else flag for flag in isa.flags]


def kernel_extension(isa):
    return Extension(
        f"fastdrop._kernels.{isa.name}",
        [f"fastdrop/_kernels/{isa.name}.pyx"],
        include_dirs=INCLUDE_DIRS,
        extra_compile_args=[*COMPILE_ARGS, *flags_of(isa), *BUILD.compile_args],
        extra_link_args=[*BUILD.link_args],
        depends=[*SETTINGS, *HEADERS, *VOCABULARIES],
    )


def module_extension(name):
    return Extension(
        f"fastdrop.{name}",
        [f"fastdrop/{name}.pyx"],
        include_dirs=[*INCLUDE_DIRS, numpy.get_include()],
        # Every NumPy from 1.25 to 2.x offers NumPy 1.25's interface.
        define_macros=[
            ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
            ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
            ("FASTDROP_BUILD", f'"{BUILD_NAME}"'),
        ],
        extra_compile_args=[*COMPILE_ARGS, "-pthread", *BUILD.compile_args],
        extra_link_args=["-pthread", *BUILD.link_args],
        depends=[*SETTINGS, *HEADERS],
    )


def library_extension(name, source):
    """Return a library for another package, which builds without that package.

    It is optional: the layers work without it. TensorFlow loads the native operations, and XLA
    calls the handler.
    """
    return Extension(
        name,
        [source],
        include_dirs=["fastdrop", "fastdrop/include", "fastdrop/simd"],
        extra_compile_args=[
            "-O2",
            "-std=c11",
            "-ffp-contract=off",
            "-fvisibility=hidden",
            *BUILD.compile_args,
        ],
        extra_link_args=[*BUILD.link_args],
        depends=[*SETTINGS, *HEADERS],
        optional=True,
    )


def libraries():
    return [
        library_extension(NATIVE_OPERATION, "fastdrop_keras/native_op.c"),
        library_extension(XLA_HANDLER, "fastdrop/xla_handler.c"),
    ]


def isas_of_this_machine():
    machine = platform.machine().lower()
    return [isa for isa in ISAS if not isa.machines or machine in isa.machines]


class BuildExtensions(build_ext):
    """Builds the modules that the compiler supports.

    If the compiler does not support an instruction set, its kernels are left out with a message.
    Without a compiler the build stops with a message.
    """

    def build_extensions(self):
        if not self.compiles([]):
            raise SystemExit(
                "fastdrop: building needs a C11 compiler and Python's headers, and the compiler "
                f"{' '.join(getattr(self.compiler, 'compiler_so', ['cc'])[:1])!r} did not compile "
                "an empty program. On Debian or Ubuntu: apt-get install gcc python3-dev; on "
                "Fedora: dnf install gcc python3-devel; on macOS: xcode-select --install."
            )
        for isa in isas_of_this_machine():
            if not self.compiles([*COMPILE_ARGS, *flags_of(isa)], f'#include "{isa.name}.h"\n'):
                print(
                    f"fastdrop: this compiler cannot build the {isa.name} kernels (it refused "
                    f"{' '.join(isa.flags) or 'their header'}); they are left out. fastdrop works "
                    "without them, slower on CPUs that have them. A newer gcc (11) or clang (12) "
                    "builds all.",
                    file=sys.stderr,
                )
                name = f"fastdrop._kernels.{isa.name}"
                self.extensions = [e for e in self.extensions if e.name != name]
        super().build_extensions()

    def get_ext_filename(self, fullname):
        """Return the file of a module, whose name has the version of Python, or of a library."""
        if fullname.rpartition(".")[2].startswith("lib"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, extension):
        if extension.name not in (NATIVE_OPERATION, XLA_HANDLER):
            super().build_extension(extension)
            return
        # Builds for several Pythons share a library: the first of them builds it.
        built = Path(self.get_ext_fullpath(extension.name))
        shared = Path(self.get_finalized_command("build").build_base, f"lib.{self.plat_name}")
        if self.force or newer_group(
            [*extension.sources, *extension.depends], str(shared / built.name)
        ):
            if extension.name == NATIVE_OPERATION:
                extension.extra_link_args += ["-Wl,--no-as-needed", self.tensorflow_stub()]
            super().build_extension(extension)
            shared.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(shared))
        else:
            built.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(shared / built.name), str(built))

    def tensorflow_stub(self):
        """Build an empty library with the name of TensorFlow's library, and return its path.

        Linked with it, the native operations make the loader look for TensorFlow's symbols there.
        """
        name = "libtensorflow_framework.so.2"
        folder = Path(self.build_temp, "stub")
        folder.mkdir(parents=True, exist_ok=True)
        source, library = folder / "empty.c", folder / name
        source.write_text("")
        objects = self.compiler.compile([str(source)], output_dir=str(folder))
        self.compiler.link_shared_object(
            objects, str(library), extra_postargs=[f"-Wl,-soname,{name}"]
        )
        return str(library)

    def compiles(self, flags, source=""):
        """Return whether the compiler accepts the flags and the source."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.c")
            path.write_text(f"#include <Python.h>\n{source}int fastdrop_probe;\n")
            command = getattr(self.compiler, "compiler_so", ["cc"])
            include = [*self.include_dirs, str(ROOT / "fastdrop" / "simd")]
            command = [*command, *flags, *(f"-I{i}" for i in include), "-c", str(path)]
            try:
                done = subprocess.run(
                    [*command, "-o", str(Path(folder, "probe.o"))], capture_output=True, check=False
                )
            except OSError:
                return False
            return done.returncode == 0


if sys.byteorder != "little":
    raise SystemExit("fastdrop: only little-endian machines are supported.")

modules = cythonize(
    [
        *(kernel_extension(isa) for isa in isas_of_this_machine()),
        *(module_extension(name) for name in MODULES),
    ],
    compiler_directives={**DIRECTIVES, **BUILD.directives},
    nthreads=0,
    build_dir=str(GENERATED),
    force=settings_changed(),
)

setup(
    ext_modules=[*modules, *(libraries() if sys.platform == "linux" else [])],
    cmdclass={"build_ext": BuildExtensions},
    options={"build_ext": {"parallel": os.cpu_count(), "compiler": "mingw32" if WINDOWS else None}},
)
