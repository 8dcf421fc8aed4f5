"""Owns the guard on instructions: what the kernels execute for an element, against baselines.

Times cannot be asserted on shared machines; counts can, since they are the same at each run. They
are callgrind's, of fastdrop's own modules alone: what the C library executes depends on the CPU, so
only the calls of it are counted. They depend on the compiler, so each compiler has baselines of its
own, in `instructions.json`.

    python -m bench.instructions            compare
    python -m bench.instructions --show     print each count, too
    python -m bench.instructions --record   make the counts of now the baselines of this compiler
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastdrop
from bench.instruction_cases import CALL_CASES, KERNEL_CASES

ROOT = Path(__file__).parent.parent
BASELINES = Path(__file__).with_name("instructions.json")
MODULES = Path(fastdrop.__file__).resolve().parent
MORE, LESS = 1.02, 0.95
RECORD = "python -m bench.instructions --record"

# The sections; the others are instructions a call.
KERNELS = "instructions an element"
LIBRARY = "calls of the C library in 4096 elements, where there are any"

# Without those that only say where the source was.
CODE_FLAG = re.compile(r"-(O|m|D_FORTIFY_SOURCE|f(?!\w+-prefix-map))")
C_LIBRARY = re.compile(r"(libc|libm|ld)[-.]")

Counts = dict[str, dict[str, float]]  # instruction set: case: instructions
Sections = dict[str, Counts]  # by what else they depend on
Baselines = Mapping[str, Sections]  # by compiler


class UnavailableError(Exception):
    """The machine has not what counting needs."""


# ---- Counting ----


def compiler() -> str:
    """The compiler, its major version, and the flags for its code that this Python builds with:
    distributions add some that cost instructions. Those of an environment's CFLAGS nobody knows."""
    found = re.search(r"(gcc|clang)\D*(\d+)", fastdrop._isa.COMPILER.lower())
    name = " ".join(found.groups()) if found else fastdrop._isa.COMPILER
    flags = (sysconfig.get_config_var("CFLAGS") or "").split()
    return " ".join([name, *sorted({flag for flag in flags if CODE_FLAG.match(flag)})])


def interpreter() -> str:
    """What the cost of a small call in fastdrop's own modules depends on besides: their C is
    Cython's, with macros of Python's and NumPy's headers in it."""
    try:
        cython = version("cython")
    except PackageNotFoundError:
        cython = "unknown"
    packages = {
        platform.python_implementation(): platform.python_version(),
        "NumPy": np.__version__,
        "Cython": cython,
    }
    return ", ".join(f"{name} {'.'.join(v.split('.')[:2])}" for name, v in packages.items())


def interpreter_build() -> str:
    """What that of a whole call depends on: this very build of Python."""
    return f"{interpreter()}, {platform.python_version()} of {platform.python_build()[1]}"


def run_callgrind(folder: Path) -> None:
    """Count the cases into files of the folder."""
    if shutil.which("valgrind") is None:
        raise UnavailableError("valgrind is not installed; Debian's package is `valgrind`")
    compile_c = shutil.which("cc") or shutil.which("gcc")
    if compile_c is None:
        raise UnavailableError("there is no C compiler; Debian's package is `gcc`")
    marks = folder / "marks.so"
    source = Path(__file__).with_name("callgrind_marks.c")
    compiled = subprocess.run(
        [compile_c, "-O2", "-shared", "-fPIC", str(source), "-o", str(marks)],
        capture_output=True,
        text=True,
    )
    if "valgrind/callgrind.h: No such file" in compiled.stderr:
        raise UnavailableError(
            "valgrind's header callgrind.h is not there; Debian has it in `valgrind`"
        )
    compiled.check_returncode()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDROP_")}
    # One thread, as callgrind adds threads up; and nothing that differs from run to run.
    clean |= {"FASTDROP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--compress-strings=no",
            "--compress-pos=no",
            f"--callgrind-out-file={folder / 'count'}",
            sys.executable,
            "-m",
            "bench.instruction_cases",
            str(marks),
        ],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if done.returncode:
        raise RuntimeError(f"valgrind ended with {done.returncode}:\n{done.stderr}")


class Cost(NamedTuple):
    """What a line of callgrind's says of an object file."""

    module: str
    instructions: int
    library_calls: int  # from it to the C library


def costs(lines: Iterator[str]) -> Iterator[Cost]:
    """The costs in one of callgrind's files."""
    module = callee = ""
    for line in lines:
        if line.startswith("ob="):
            module = line[3:].rstrip()
        elif line.startswith("cob="):
            callee = line[4:].rstrip()
        elif line.startswith("calls="):
            next(lines)  # What the callee cost, which is counted where the callee is.
            if C_LIBRARY.match(Path(callee).name):
                yield Cost(module, 0, int(line[6:].split()[0]))
            callee = ""
        elif line[:1].isdigit():
            yield Cost(module, int(line.split()[1]), 0)


LABEL = "desc: Trigger: Client Request: "


class Dump(NamedTuple):
    """A call's count."""

    isa: str
    case: str
    size: int
    ours: int  # of fastdrop's modules
    whole: int  # of everything in the process
    library_calls: int  # of the C library by fastdrop's modules


def read_dump(path: Path) -> Dump | None:
    """A file of callgrind's; None for that of the program's end."""
    with path.open() as lines:
        for line in lines:
            if line.startswith(LABEL):
                isa, case, size = line.removeprefix(LABEL).rstrip("\n").split("|")
                break
        else:
            return None
        ours = whole = library_calls = 0
        for cost in costs(lines):
            whole += cost.instructions
            if Path(cost.module).parent in (MODULES, MODULES / "_kernels"):
                ours += cost.instructions
                library_calls += cost.library_calls
    return Dump(isa, case, int(size), ours, whole, library_calls)


def count() -> Sections:
    """The instructions an element of each kernel, and those of a call on few elements: in
    fastdrop's own modules, and in all of the process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_callgrind(folder)
        dumps = [dump for path in folder.glob("count*") if (dump := read_dump(path))]
    found = {(dump.isa, dump.case, dump.size): dump for dump in dumps}
    sections: Sections = {
        section: {isa: {} for isa in sorted({dump.isa for dump in dumps})}
        for section in (KERNELS, LIBRARY, interpreter(), interpreter_build())
    }
    for isa in sections[KERNELS]:
        for name, case in (KERNEL_CASES | CALL_CASES).items():
            small, large = (found[isa, name, size] for size in case.sizes)
            per = case.sizes[1] - case.sizes[0]
            ours, whole = (large.ours - small.ours) / per, (large.whole - small.whole) / per
            if name in KERNEL_CASES:
                sections[KERNELS][isa][name] = round(ours, 3)
                calls = large.library_calls - small.library_calls
                if calls:
                    sections[LIBRARY][isa][name] = round(4096 * calls / per, 2)
            else:
                sections[interpreter()][isa][name] = round(ours)
                sections[interpreter_build()][isa][f"{name}, whole"] = round(whole)
    return sections


# ---- Comparing ----


class Comparison(NamedTuple):
    """What became of the counts: lines for a reader."""

    more: list[str]  # what fails
    notices: list[str]
    compared: int


def compare(counts: Sections, baselines: Baselines, name: str) -> Comparison:
    """Hold the counts of the compiler of that name to its baselines."""
    comparison = Comparison([], [], 0)
    if name not in baselines:
        comparison.notices.append(f"{name}: there is no baseline for this compiler; {RECORD}")
        return comparison
    compared = 0
    for section, of_isas in counts.items():
        known = baselines[name].get(section)
        if known is None:
            comparison.notices.append(f"{name}: there is no baseline for {section}; {RECORD}")
            continue
        for isa, rows in of_isas.items():
            if isa not in known:
                comparison.notices.append(f"{name}: there is no baseline for {isa}; {RECORD}")
                continue
            for case in sorted(rows.keys() | known[isa].keys()):
                absent = 0.0 if section == LIBRARY else None
                now, then = rows.get(case, absent), known[isa].get(case, absent)
                if now is None or then is None:
                    missing = "count" if now is None else "baseline"
                    comparison.more.append(f"{isa}, {case}: there is no {missing} of it; {RECORD}")
                    continue
                compared += 1
                what = "calls of the C library" if section == LIBRARY else "instructions"
                change = f"{isa}, {case}: {now} {what} after {then}"
                if then:
                    change += f" ({now / then - 1:+.1%})"
                if now > then * MORE:
                    comparison.more.append(f"{change}: it costs more than the baseline")
                elif now < then * LESS:
                    comparison.notices.append(f"{change}: it costs much less; {RECORD}")
    return comparison._replace(compared=compared)


def read_baselines() -> Baselines:
    """What is committed."""
    return json.loads(BASELINES.read_text()) if BASELINES.exists() else {}


def record(counts: Sections) -> None:
    """Make the counts the baselines of this compiler, in place of all that it had."""
    baselines = read_baselines() | {compiler(): counts}
    BASELINES.write_text(json.dumps(dict(sorted(baselines.items())), indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts what the kernels execute for an element.")
    parser.add_argument("--record", action="store_true", help="make these counts the baselines")
    parser.add_argument("--show", action="store_true", help="print every count")
    arguments = parser.parse_args()
    try:
        counts = count()
    except UnavailableError as error:
        print(f"not counted: {error}")
        return 0
    if arguments.show:
        for section, of_isas in counts.items():
            print(section)
            for isa, rows in of_isas.items():
                for case, number in rows.items():
                    print(f"  {isa:9} {case:45} {number:10}")
    if arguments.record:
        record(counts)
        print(f"recorded for {compiler()} in {BASELINES.name}")
        return 0
    comparison = compare(counts, read_baselines(), compiler())
    for line in comparison.notices + comparison.more:
        print(line)
    print(
        f"{comparison.compared} counts are compared with those of {compiler()}, and "
        f"{len(comparison.more)} are wrong"
    )
    return bool(comparison.more)


if __name__ == "__main__":
    sys.exit(main())
