"""The parts of the benchmarks: checks of peers, turns, the report, the comparison of two runs."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as command
from bench import report, runs
from bench.peers import (
    OURS,
    PEERS,
    TORCH_OURS,
    TORCH_PEERS,
    Calls,
    InvalidDropoutError,
    check_dropout,
    check_peer,
    fastdrop_in_place,
    numpy_buffered,
)
from bench.turns import Prepared, Turns

ROOT = Path(__file__).parent.parent
RATE, SIZE = 0.2, 2**14


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_each_peer_is_a_dropout(name):
    make = (OURS | PEERS)[name]
    try:
        check_peer(name, make, SIZE, RATE)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.slow
# Of PyTorch's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [*TORCH_OURS, *TORCH_PEERS])
@pytest.mark.parametrize("compiled", [False, True])
def test_each_torch_peer_is_a_dropout(name, compiled):
    pytest.importorskip("torch")
    make = (TORCH_OURS | TORCH_PEERS)[name]
    check_peer(name, lambda size, rate: make(size, rate, compiled), SIZE, RATE)


def same_mask(size, rate):
    y = numpy_buffered(size, rate).forward()
    return Calls(lambda: y, None)


def first_half(size, rate):
    calls = numpy_buffered(size, rate)
    return Calls(lambda: calls.forward()[: size // 2], None)


def no_dropout(size, rate):
    return fastdrop_in_place(size, rate)._replace(forward=lambda: np.ones(size, np.float32))


def gradient_with_another_mask(size, rate):
    calls = numpy_buffered(size, rate)
    return Calls(calls.forward, lambda: (calls.forward().copy(), calls.forward()))


def gradient_without_scale(size, rate):
    calls = numpy_buffered(size, rate)

    def training():
        y = calls.forward()
        return y, (y != 0).astype(np.float32)

    return Calls(calls.forward, training)


@pytest.mark.parametrize(
    "fault",
    [same_mask, first_half, no_dropout, gradient_with_another_mask, gradient_without_scale],
    ids=lambda fault: fault.__name__,
)
def test_a_peer_with_a_wrong_result_is_refused(fault):
    with pytest.raises(InvalidDropoutError, match="some peer"):
        check_peer("some peer", fault, SIZE, RATE)


@pytest.mark.parametrize("kept", [1.0, np.nan, 1.25 + 2**-22, 1e-30])
def test_one_wrong_element_is_refused(kept):
    y = numpy_buffered(SIZE, RATE).forward()
    check_dropout(y, RATE, "some peer")
    y[np.flatnonzero(y)[0]] = kept
    with pytest.raises(InvalidDropoutError, match=r"for a kept 1, not the scale 1\.25"):
        check_dropout(y, RATE, "some peer")


def test_a_fraction_nine_sigma_off_is_refused():
    y = numpy_buffered(SIZE, RATE).forward()
    y[np.flatnonzero(y)[: int(9 * np.sqrt(SIZE * RATE * (1 - RATE)))]] = 0
    with pytest.raises(InvalidDropoutError, match=f"of {SIZE} elements, not 0.8"):
        check_dropout(y, RATE, "some peer")


def test_each_round_times_each_candidate_and_starts_with_another():
    order = []
    turns = Turns({name: lambda name=name: order.append(name) or 1.0 for name in "abc"})
    turns.calls = dict.fromkeys("abc", 1)
    order.clear()
    for _ in range(3):
        turns.round()
    assert "".join(order) == "abcbcacab"
    assert turns.figures == {name: [1.0] * 3 for name in "abc"}


def test_a_figure_is_the_mean_of_the_calls_of_a_turn():
    figures = itertools.cycle([1.0, 2.0, 3.0, 6.0])
    turns = Turns({"a": lambda: next(figures)})
    turns.calls["a"] = 4
    turns.round()
    assert turns.figures["a"] == [3.0]


def test_the_call_before_a_turn_is_not_timed(monkeypatch):
    now, prepared = itertools.count(), []
    monkeypatch.setattr("bench.turns.time.perf_counter", lambda: next(now))
    turns = Turns({"a": Prepared(lambda: None, before=lambda: prepared.append(next(now)))})
    turns.calls["a"] = 2
    prepared.clear()
    turns.round()
    assert len(prepared) == 1
    assert turns.figures["a"] == [0.5]


MACHINE = {
    "command": "make bench",
    "processor": "2 x Something",
    "instruction set in use": "portable",
    **dict.fromkeys(["compiler", "python", "numpy", "tensorflow", "keras", "torch", "jax"], "1.0"),
}


def store(path, *cases, machine=MACHINE):
    """A run as pytest-benchmark stores it."""
    path.write_text(
        json.dumps(
            {
                "datetime": "2026-01-02T03:04:05",
                "machine_info": {"fastdrop": machine},
                "commit_info": {"id": "0123456789abcdef", "dirty": False},
                "benchmarks": [{"extra_info": case} for case in cases],
            }
        )
    )
    return path


def arrays(exponent=10, nanoseconds=1.0, machine=1.0):
    """A case with this time per element for ours, 10 ns for the peer and 0.5 ns for NumPy."""
    second = machine * 2**exponent
    return {
        "table": "arrays",
        "group": "forward, rate 0.5",
        "row": f"2^{exponent}",
        "each": 2**exponent,
        "ours": {"fastdrop.dropout_": [nanoseconds * second * n for n in (9.9e-10, 1e-9, 1.01e-9)]},
        "peers": {"peer": [1e-8 * second] * 3},
        "limits": {"numpy.multiply": [5e-10 * second] * 3},
    }


def memory():
    return {
        "table": "memory",
        "group": "",
        "row": "peak",
        "each": 1,
        "ours": {"fastdrop_keras.Dropout": [0.13] * 3},
        "peers": {"keras.layers.Dropout": [1.0] * 3},
        "limits": {"one bit": [0.125] * 3},
    }


@pytest.mark.parametrize(
    ("nanoseconds", "cells"),
    [
        (1, ["10.0 (9.95-10.1)", "2.00 (1.99-2.01)", "1.00 (0.995-1.00)"]),
        # The cell of a faster peer is bold.
        (20, ["**0.500 (0.498-0.503)**", "40.0 (39.8-40.2)", "20.0 (19.9-20.1)"]),
    ],
)
def test_a_row_has_ratios_and_times_and_marks_a_faster_peer(tmp_path, nanoseconds, cells):
    run = runs.load(store(tmp_path / "run.json", arrays(10, nanoseconds)))
    [line] = [line for line in report.tables(run, 2).splitlines() if line.startswith("| 2^10")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["2^10", *cells]


def test_the_page_shows_every_table_and_plot(tmp_path):
    run = runs.load(store(tmp_path / "run.json", arrays(10), arrays(20), memory()))
    page = report.write(run, tmp_path).read_text()
    assert re.findall(r'<img src="(.*?)"', page) == ["arrays.png", "memory.png"]
    assert (tmp_path / "arrays.png").read_bytes().startswith(b"\x89PNG")
    for word in ("2026-01-02", "0123456789", "2 x Something", "2^20", "smaller than keras"):
        assert word in page


def checkout(folder, readme=f"{report.BEGIN}\nof the last run\n{report.END}\n"):
    """The two pages of a checkout into which a run is published."""
    (folder / "docs").mkdir()
    page = folder / "docs/benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nof the last run\n{report.END}\nafter\n")
    (folder / "README.md").write_text(readme)
    return folder / "README.md", page


def test_only_the_tables_of_the_pages_are_replaced(tmp_path):
    readme, page = checkout(tmp_path)
    stored = store(tmp_path / "run.json", arrays(20), arrays(10))
    arguments = ["report", str(stored), "--publish", str(tmp_path)]
    assert command.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n`make bench` on 2026-01-02, commit 0123456789")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "of the last run" not in text + readme.read_text()
    assert "faster than peer" in text
    assert "](measured/arrays.png)" in text
    assert (tmp_path / "docs/measured/arrays.png").exists()
    before = readme.read_text()
    report.publish(runs.load(stored), tmp_path)
    assert (readme.read_text(), page.read_text()) == (before, text)


def test_the_readme_has_the_highlights_that_the_run_has(tmp_path):
    readme, _ = checkout(tmp_path)
    report.publish(runs.load(store(tmp_path / "run.json", arrays(20), arrays(10))), tmp_path)
    rows = [line for line in readme.read_text().splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in rows[-1].strip("|").split("|")]
    assert cells == ["NumPy, elements: 2^20", "peer", "10.0", "2.00 x numpy.multiply"]
    assert len(rows) == 3


def test_a_checkout_with_a_page_without_marks_is_not_changed(tmp_path, capsys):
    readme, page = checkout(tmp_path, readme="no marks")
    before = page.read_text()
    stored = store(tmp_path / "run.json", arrays())
    assert command.main(["report", str(stored), "--publish", str(tmp_path)]) == 2
    assert str(readme) in capsys.readouterr().err
    assert (readme.read_text(), page.read_text()) == ("no marks", before)
    assert not (tmp_path / "docs/measured").exists()


def noisy(case):
    case["ours"]["fastdrop.dropout_"][0] /= 2
    return case


@pytest.mark.parametrize(
    ("new", "threshold", "code"),
    [
        (arrays(nanoseconds=1.3), "20", 1),
        (arrays(nanoseconds=1.3), "40", 0),
        (arrays(nanoseconds=0.5), "0", 0),
        (arrays(machine=3.0), "0", 0),
        (noisy(arrays(nanoseconds=1.3)), "20", 0),
    ],
    ids=["slower", "below the threshold", "faster", "a slower machine", "within noise"],
)
def test_compare_exits_with_1_if_fastdrop_is_slower(tmp_path, new, threshold, code):
    old, new = store(tmp_path / "old.json", arrays()), store(tmp_path / "new.json", new)
    assert command.main(["compare", str(old), str(new), "--threshold", threshold]) == code


def test_compare_prints_the_differences(tmp_path, capsys):
    more = memory()
    more["ours"]["fastdrop_keras.Dropout"] = [0.26] * 3
    old = store(tmp_path / "old.json", arrays(10), memory())
    new = store(tmp_path / "new.json", more, machine=MACHINE | {"numpy": "3"})
    assert command.main(["compare", str(old), str(new)]) == 1
    out = capsys.readouterr().out
    assert "different: numpy: 1.0 -> 3" in out
    assert re.search(r"memory · peak +\| keras.layers.Dropout +\| 2.000 +\| slower", out)
    assert "1 cases in both runs, of 2 and 1; 1 slower by more than 10 %" in out


def test_runs_without_common_cases_are_refused(tmp_path, capsys):
    old, new = store(tmp_path / "old.json", arrays()), store(tmp_path / "new.json", memory())
    assert command.main(["compare", str(old), str(new)]) == 2
    assert "no case in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [None, "", "{}", "[]", "null", '{"commit_info": {}, "benchmarks": [{"extra_info": {}}]}'],
)
def test_a_file_that_is_not_a_run_is_refused_by_name(tmp_path, capsys, content):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    assert command.main(["report", str(path), "--output", str(tmp_path / "out")]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_quick_run_from_end_to_end(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = runs.load(tmp_path / "run.json")
    tables = {"arrays", "kernels", "fused", "noise", "rates", "threads", "layers", "one layer"}
    tables |= {"training"}
    if importlib.util.find_spec("torch"):
        tables |= {"torch layers", "torch training"}
    if importlib.util.find_spec("flax"):
        tables |= {"jax layers", "jax training"}
    assert {case.table for case in run.cases} == tables
    # Every case has a reference, so another run can be compared with it.
    assert len(runs.changes(run, run)) == len(run.cases)
    assert (tmp_path / "report.html").exists()
