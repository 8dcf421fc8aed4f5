"""Holds what the kernels execute for an element to the committed baselines, and tests the guard."""

import copy
import json

import pytest

import fastdrop
from bench import instructions
from bench.instructions import KERNELS, LIBRARY, UnavailableError, compare, read_dump


@pytest.fixture(scope="module")
def counts():
    if fastdrop._isa.BUILD != "release":
        pytest.skip("the baselines are those of a release")
    try:
        return instructions.count()
    except UnavailableError as error:
        pytest.skip(str(error))


def test_nothing_costs_more_than_its_baseline(counts):
    comparison = compare(counts, instructions.read_baselines(), instructions.compiler())
    print(*comparison.notices, sep="\n")
    assert not comparison.more, "\n".join(comparison.more)
    if not comparison.compared:
        pytest.skip("; ".join(comparison.notices))


def test_every_kernel_is_counted(counts):
    """A case that counts nothing, of which every baseline would hold, is a slip of the program."""
    assert set(counts[KERNELS]) <= set(fastdrop.available_isas())
    assert "portable" in counts[KERNELS]
    for rows in counts[KERNELS].values():
        assert rows.keys() == instructions.KERNEL_CASES.keys()
        assert all(0.1 < number < 200 for number in rows.values())


def test_cheaper_ways_are_counted_cheaper(counts):
    """The counts are of the calls that they are named after."""
    for rows in counts[KERNELS].values():
        assert (
            rows["forward in place, float32, rate 0.5"]
            < (rows["forward in place, float32, rate 0.2"])
        )
        assert rows["backward, float32"] < rows["replay, float32"]
        assert rows["mask only, rate 0.2"] < rows["forward in place, float32, rate 0.2"]
        assert rows["forward in place, float32, rate 0.2"] < rows["Fortran order, float32"]


COUNTS = {KERNELS: {"portable": {"forward": 100.0, "backward": 50.0}}, "CPython": {}}


def test_a_count_two_percent_up_passes():
    now = {KERNELS: {"portable": {"forward": 102.0, "backward": 49.0}}}
    comparison = compare(now, {"gcc 12": COUNTS}, "gcc 12")
    assert (comparison.more, comparison.notices, comparison.compared) == ([], [], 2)


def test_a_count_of_more_fails():
    now = {KERNELS: {"portable": {"forward": 100.0, "backward": 51.1}}}
    (line,) = compare(now, {"gcc 12": COUNTS}, "gcc 12").more
    assert line == (
        "portable, backward: 51.1 instructions after 50.0 (+2.2%): it costs more than the baseline"
    )


def test_a_count_of_much_less_is_noticed():
    now = {KERNELS: {"portable": {"forward": 90.0, "backward": 50.0}}}
    comparison = compare(now, {"gcc 12": COUNTS}, "gcc 12")
    assert not comparison.more
    (line,) = comparison.notices
    assert line.startswith("portable, forward: 90.0 instructions after 100.0 (-10.0%)")
    assert "--record" in line


def test_a_call_of_the_c_library_where_there_was_none_fails():
    before = {LIBRARY: {"portable": {"forward": 2.0}}}
    now = {LIBRARY: {"portable": {"forward": 2.0, "backward": 1.0}}}
    (line,) = compare(now, {"gcc 12": before}, "gcc 12").more
    assert line == (
        "portable, backward: 1.0 calls of the C library after 0.0: it costs more than the baseline"
    )
    assert not compare(before, {"gcc 12": now}, "gcc 12").more


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda now: now.pop("forward"), "count"),
        (lambda now: now.update(third=1.0), "baseline"),
    ],
)
def test_a_case_without_a_counterpart_fails(change, missing):
    now = copy.deepcopy(COUNTS)
    change(now[KERNELS]["portable"])
    (line,) = compare(now, {"gcc 12": COUNTS}, "gcc 12").more
    assert f"there is no {missing}" in line


@pytest.mark.parametrize(
    ("now", "name", "missing"),
    [
        (COUNTS, "clang 19", "this compiler"),
        ({KERNELS: {"neon": {"forward": 1.0}}}, "gcc 12", "neon"),
        ({"CPython 3.99": {"portable": {"call": 1.0}}}, "gcc 12", "CPython 3.99"),
    ],
)
def test_without_a_baseline_nothing_fails_and_it_is_said(now, name, missing):
    comparison = compare(now, {"gcc 12": COUNTS}, name)
    assert not comparison.more
    assert not comparison.compared
    (line,) = comparison.notices
    assert f"there is no baseline for {missing}; " in line
    assert "--record" in line


def test_other_flags_have_other_baselines(monkeypatch):
    """A distribution's own flags cost instructions, of which no change of the kernels is guilty."""
    monkeypatch.setattr(fastdrop._isa, "COMPILER", "GCC 12.2.0")
    for flags, name in (
        ("-Wall -g -O3 -fwrapv -O3 -DNDEBUG", "gcc 12 -O3 -fwrapv"),
        (
            "-O2 -ffile-prefix-map=/build=. -fstack-protector-strong",
            "gcc 12 -O2 -fstack-protector-strong",
        ),
        (None, "gcc 12"),
    ):
        monkeypatch.setattr("sysconfig.get_config_var", {"CFLAGS": flags}.get)
        assert instructions.compiler() == name


def test_recording_replaces_what_the_compiler_had(monkeypatch, tmp_path):
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps({"clang 1": {}, instructions.compiler(): {"old": {}}}))
    monkeypatch.setattr(instructions, "BASELINES", path)
    instructions.record(COUNTS)
    assert instructions.read_baselines() == {"clang 1": {}, instructions.compiler(): COUNTS}


DUMP = """desc: Trigger: Client Request: avx2|forward, float32|64
events: Ir
ob={modules}/_kernels/avx2.so
fn=draw
12 100
15 10
calls=1 7
15 5000
ob=/usr/lib/libc.so.6
fn=memcpy
0 7
ob={modules}/_dropout.so
fn=dropout
3 20
cob=/usr/lib/libc.so.6
cfn=memcpy
calls=2 0
3 7
cfn=inner
calls=3 0
3 50
totals: 137
"""


def test_a_file_of_callgrind_is_read(tmp_path):
    """Calls are counted where the callee is, and the C library not as ours."""
    path = tmp_path / "count.1"
    path.write_text(DUMP.format(modules=instructions.MODULES))
    assert read_dump(path) == ("avx2", "forward, float32", 64, 130, 137, 2)
    path.write_text("desc: Trigger: Program termination\nevents: Ir\ntotals: 0\n")
    assert read_dump(path) is None


def test_without_valgrind_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="Debian's package is `valgrind`"):
        instructions.count()
    monkeypatch.setattr("sys.argv", ["instructions"])
    assert instructions.main() == 0
    assert "not counted: valgrind is not installed" in capsys.readouterr().out
