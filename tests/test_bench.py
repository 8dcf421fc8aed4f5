"""Tests what the benchmarks are built on: turns, saved runs, the report, and comparing two runs."""

import itertools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import compare, report, results, tables
from bench.turns import Candidate, Turns, difference, part

ROOT = Path(__file__).parent.parent
MACHINE = {
    "processor": "2 x Something",
    "instruction set in use": "portable",
    "compiler": "a compiler",
    "python": "CPython 3",
    "numpy": "2",
    "tensorflow": "2",
    "keras": "3",
    "torch": "not installed",
    "jax": "not installed",
}


class TestTurns:
    def test_every_candidate_has_as_many_turns_and_each_begins_once(self):
        calls = []

        def call(name):
            calls.append(name)
            return 1.0

        turns = Turns({name: lambda name=name: call(name) for name in "abc"})
        turns.calls = dict.fromkeys("abc", 1)
        calls.clear()
        for _ in range(3):
            turns.round()
        assert "".join(calls) == "abcbcacab"
        assert {len(figures) for figures in turns.seconds.values()} == {3}

    def test_a_turn_is_the_mean_of_its_calls(self):
        figures = itertools.cycle([1.0, 2.0, 3.0, 6.0])
        turns = Turns({"a": lambda: next(figures)})
        turns.calls["a"] = 4
        turns.round()
        assert turns.seconds["a"] == [3.0]

    def test_what_comes_before_a_turn_is_done_once_and_not_timed(self, monkeypatch):
        now, before = itertools.count(), []
        monkeypatch.setattr("bench.turns.time.perf_counter", lambda: next(now))

        def prepare():
            before.append(1)
            next(now)

        turns = Turns({"a": Candidate(lambda: None, before=prepare)})
        turns.calls["a"] = 2
        before.clear()
        turns.round()
        assert before == [1]
        assert turns.seconds["a"] == [0.5]

    def test_parts_and_differences(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("bench.turns.time.perf_counter", lambda: now[0])

        def takes(seconds):
            def call():
                now[0] += seconds

            return call

        assert part(takes(10.0), 5)() == 2.0
        assert difference(takes(10.0), takes(4.0), 3)() == 2.0

    def test_rounds_fit_into_the_time_within_bounds(self):
        turns = Turns({"a": lambda: 1.0})
        turns.round_seconds = 0.1
        assert turns.rounds(1.05, 5, 30) == 10
        assert turns.rounds(0.1, 5, 30) == 5
        assert turns.rounds(100, 5, 30) == 30


def benchmark(table, row, seconds, *, group="", elements=None, ratios=None):
    """A case as pytest-benchmark saves it."""
    return {
        "fullname": f"{table}-{group}-{row}",
        "extra_info": {
            "table": table,
            "group": group,
            "row": row,
            "elements": elements,
            "ratios": ratios or {},
            "seconds": seconds,
        },
    }


def save(path, benchmarks, machine=MACHINE):
    run = {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"fastdrop": machine},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": benchmarks,
    }
    path.write_text(json.dumps(run))
    return path


def arrays(factor=1.0):
    """Two sizes on which ours takes `factor` nanoseconds an element, and the peer ten."""
    return [
        benchmark(
            "arrays",
            tables.power(size),
            {
                "fastdrop.dropout_": [factor * size * 1e-9 * noise for noise in (0.99, 1, 1.01)],
                "peer": [size * 1e-8] * 3,
                "numpy.multiply": [size * 1e-10] * 3,
                "numpy.copyto": [size * 2e-10] * 3,
            },
            group="forward",
            elements=size,
            ratios={"faster than peer": ["peer", "fastdrop.dropout_"]},
        )
        for size in (2**10, 2**20)
    ]


def training(ours=2.0):
    return [
        benchmark(
            "training",
            "a network",
            {
                "fastdrop_keras.Dropout": [ours * 1e-3] * 3,
                "keras.layers.Dropout": [3e-3] * 3,
                "no dropout": [1e-3] * 3,
            },
            ratios={"ours over no dropout": ["fastdrop_keras.Dropout", "no dropout"]},
        )
    ]


def memory():
    [case] = training()
    case["fullname"] = "memory"
    info = case["extra_info"]
    info |= {"table": "memory", "row": "peak", "ratios": {}}
    del info["seconds"]
    info["values"] = {
        "fastdrop_keras.Dropout": [0.13],
        "keras.layers.Dropout": [1],
        "one bit": [0.1],
    }
    return [case]


class TestReport:
    def test_tables_have_the_ratios_and_the_times(self, tmp_path):
        run = results.load(save(tmp_path / "run.json", arrays()))
        lines = report.text(run, 2, whole=True).splitlines()
        [row] = [line for line in lines if line.startswith("| 2^10")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == "10.0 (9.95-10.1)"
        assert cells[2] == "1.00 (0.995-1.00)"
        assert cells[3] == "10.0 (10.0-10.0)"

    def test_the_page_holds_everything(self, tmp_path):
        run = results.load(save(tmp_path / "run.json", arrays() + training() + memory()))
        written = report.write(run, tmp_path / "out", "make bench")
        assert {path.name for path in written} == {
            "report.html",
            "report.md",
            "arrays.png",
            "arrays-speedup.png",
            "training.png",
            "memory.png",
        }
        page = (tmp_path / "out" / "report.html").read_text()
        assert page.count("data:image/png;base64,") == 4
        # Self-contained: nothing is loaded from elsewhere.
        assert not re.search(r"(src|href)=[\"'](?!data:)", page)
        for word in ("2 x Something", "2026-01-02", "0123456789", "<table>", "not installed"):
            assert word in page
        for path in written:
            if path.suffix == ".png":
                assert path.read_bytes().startswith(b"\x89PNG")

    def test_where_a_peer_is_faster_is_said(self, tmp_path):
        run = results.load(save(tmp_path / "run.json", arrays(0.5)))
        assert report.losses(run) == "Nowhere in this run."
        run = results.load(save(tmp_path / "run.json", arrays(20)))
        first, second = report.losses(run).splitlines()
        assert first.startswith("- arrays · forward · 2^10: peer takes less; ours takes 2.00")
        assert "2^20" in second
        # NumPy's multiplication is always faster, and no dropout.
        assert "multiply" not in report.losses(run)

    def test_the_readme_gets_its_tables_and_keeps_the_rest(self, tmp_path):
        run = results.load(save(tmp_path / "run.json", arrays()))
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        report.put_into(readme, run, "make bench")
        text = readme.read_text()
        assert text.startswith(
            f"before\n{report.BEGIN}\n`make bench` on 2026-01-02, commit 0123456789"
        )
        assert text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text
        assert "faster than peer" in text
        assert "](docs/measured/arrays.png)" in text
        assert (tmp_path / "docs/measured/arrays.png").read_bytes().startswith(b"\x89PNG")
        report.put_into(readme, run, "make bench")
        assert readme.read_text() == text

    def test_a_readme_without_its_marks_stays(self, tmp_path):
        run = results.load(save(tmp_path / "run.json", arrays()))
        readme = tmp_path / "README.md"
        readme.write_text("no marks")
        with pytest.raises(ValueError, match="no <!-- measured"):
            report.put_into(readme, run, "make bench")
        assert readme.read_text() == "no marks"

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (12345.6, "12,346"), (99.94, "99.9"), (1.234, "1.23"), (0.1234, "0.123")],
    )
    def test_digits(self, value, text):
        assert tables.digits(value) == text


class TestCompare:
    def changes(self, tmp_path, old, new):
        runs = [
            results.load(save(tmp_path / name, cases)) for name, cases in (("o", old), ("n", new))
        ]
        return compare.changes(*runs)

    def test_slower_by_more_than_the_threshold(self, tmp_path):
        found, alone = self.changes(tmp_path, arrays(), arrays(1.3))
        assert [change.verdict(0.2) for change in found] == ["slower"] * 2
        assert [change.verdict(0.4) for change in found] == [""] * 2
        assert all(change.factor == pytest.approx(1.3) for change in found)
        assert alone == []

    def test_faster(self, tmp_path):
        found, _ = self.changes(tmp_path, arrays(), arrays(0.5))
        assert [change.verdict(0.1) for change in found] == ["faster"] * 2

    def test_within_noise_is_no_change(self, tmp_path):
        new = arrays(1.3)
        for case in new:
            figures = case["extra_info"]["seconds"]["fastdrop.dropout_"]
            figures[0] /= 2
        found, _ = self.changes(tmp_path, arrays(), new)
        assert [change.verdict(0.1) for change in found] == [""] * 2

    def test_a_machine_that_is_slower_in_all_is_no_change(self, tmp_path):
        new = arrays()
        for case in new:
            seconds = case["extra_info"]["seconds"]
            for name in seconds:
                seconds[name] = [3 * figure for figure in seconds[name]]
        found, _ = self.changes(tmp_path, arrays(), new)
        assert [change.verdict(0.01) for change in found] == [""] * 2

    def test_what_only_one_has(self, tmp_path):
        found, alone = self.changes(tmp_path, arrays(), training() + arrays()[1:])
        assert len(found) == 1
        assert alone == [
            "only in the old run: arrays · forward · 2^10",
            "only in the new run: training · a network",
        ]

    def test_memory_is_compared_as_it_is(self, tmp_path):
        new = memory()
        new[0]["extra_info"]["values"]["fastdrop_keras.Dropout"] = [0.26]
        found, _ = self.changes(tmp_path, memory(), new)
        assert [change.verdict(0.5) for change in found] == ["slower"]


class TestCommand:
    def test_compare_exits_with_1_when_slower(self, tmp_path, capsys):
        old = save(tmp_path / "old.json", arrays())
        new = save(tmp_path / "new.json", arrays(1.3), MACHINE | {"numpy": "3"})
        assert command.main(["compare", str(old), str(new), "--threshold", "20"]) == 1
        out = capsys.readouterr().out
        assert "slower" in out
        assert "numpy: 2 -> 3" in out
        assert command.main(["compare", str(old), str(new), "--threshold", "40"]) == 0
        assert command.main(["compare", str(old), str(old), "--threshold", "0"]) == 0

    @pytest.mark.parametrize(
        "content", ["", "{}", "[]", "null", '{"benchmarks": [{"extra_info": {}}]}', '{"a": 1}']
    )
    def test_what_is_no_run_is_said_to_be_none(self, tmp_path, capsys, content):
        path = tmp_path / "bad.json"
        path.write_text(content)
        assert command.main(["report", str(path), "--output", str(tmp_path / "out")]) == 2
        assert str(path) in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_file_that_is_not_there(self, tmp_path, capsys):
        assert command.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
        assert "No such file" in capsys.readouterr().err

    def test_runs_with_nothing_in_common(self, tmp_path):
        old, new = save(tmp_path / "o", arrays()), save(tmp_path / "n", training())
        assert command.main(["compare", str(old), str(new)]) == 2

    @pytest.mark.parametrize("threshold", ["-1", "nan", "ten"])
    def test_a_threshold_that_is_none(self, threshold):
        with pytest.raises(SystemExit):
            command.main(["compare", "a", "b", "--threshold", threshold])

    def test_a_run_from_end_to_end(self, tmp_path):
        """One benchmark, measured, saved and reported, as `make bench-quick` does it."""
        arguments = ["run", "--quick", "--only", "small_call", "--output", str(tmp_path / "out")]
        done = subprocess.run(
            [sys.executable, "-m", "bench", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        run = results.load(tmp_path / "out" / "run.json")
        [case] = run.cases
        assert case.label == "small call · 16"
        assert case.reference == "numpy.multiply"
        saved = json.loads((tmp_path / "out" / "run.json").read_text())["benchmarks"][0]
        # pytest-benchmark's own statistics are those of ours.
        ours = statistics.median(case.figures["dropout_"])
        assert saved["stats"]["median"] == pytest.approx(ours, rel=1e-6)
        assert (tmp_path / "out" / "report.html").exists()

    def test_nothing_to_run(self, tmp_path):
        arguments = ["run", "--only", "nothing_of_this_name", "--output", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, timeout=300
        )
        assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
