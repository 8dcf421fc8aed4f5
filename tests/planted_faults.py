"""Reads the faults of tests/faults, which `make faults` applies, and the tests that detect each.

Each fault is a patch with a plausible mistake. Its header has a line `Test: FILE::NAME` for each
test that must fail, `Isa: NAME` if only a CPU with that instruction set runs the changed code, and
`Build: NAME` if another of setup.py's builds detects the fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    patch: Path
    tests: list[str]  # as docs/guarantees.md writes them
    isa: str
    build: str


def read(patch: Path) -> Fault:
    head = patch.read_text().partition("\n\n")[0]
    entries = [line.partition(": ")[::2] for line in head.splitlines()]
    tests = [value for name, value in entries if name == "Test"]
    others = {name: value for name, value in entries if name != "Test"}
    assert tests, f"{patch.name} names no test"
    assert set(others) <= {"Isa", "Build"}, f"{patch.name}: {others}"
    return Fault(patch, tests, others.get("Isa", "portable"), others.get("Build", "release"))


FAULTS = [read(patch) for patch in sorted((Path(__file__).parent / "faults").glob("*.patch"))]

# Tests on the page with a control test instead of a patch: another test, or the test itself.
CONTROLS = {
    "test_stream.py::test_pieces_that_start_inside_a_vector": (
        "test_stream.py::test_pieces_that_start_inside_a_vector_catch_an_uncounted_part"
    ),
    "test_statistics.py::test_walsh": "test_statistics.py::test_walsh_catches_xorshift128plus",
    "test_statistics.py::test_gaps": "test_statistics.py::test_gaps_catches_narrow_words",
    "test_noise_statistics.py::test_distribution_of_2_to_28_numbers": (
        "test_noise_statistics.py::test_distribution_catches"
    ),
    "test_noise_statistics.py::test_neighbours_are_uncorrelated": (
        "test_noise_statistics.py::test_neighbours_catch"
    ),
    "test_noise_statistics.py::test_positions_in_a_block_are_alike": (
        "test_noise_statistics.py::test_positions_catch_repeated_blocks"
    ),
    "test_noise_statistics.py::test_related_noise_is_uncorrelated": (
        "test_noise_statistics.py::test_related_noise_catches_unmixed_keys"
    ),
    "test_noise_statistics.py::test_the_tails_have_the_probabilities_of_a_normal_distribution": (
        "test_noise_statistics.py::test_the_tails_catch_shorter_words"
    ),
    "test_dieharder.py::test_the_stream_passes": (
        "test_dieharder.py::test_every_test_catches_one_block"
    ),
    "test_large.py::test_keep_rate_of_2_to_36_elements": (
        "test_large.py::test_a_rate_off_by_two_in_100_000_would_be_detected"
    ),
    "keras/test_training_statistics.py::test_our_layer_trains_as_well_as_keras": (
        "keras/test_training_statistics.py::test_a_wrong_rate_is_detected"
    ),
    **{
        test: test
        for test in (
            "test_builds.py::test_address_sanitizer_detects_a_byte_too_many",
            "test_races.py::test_two_threads_that_change_one_array_are_a_race",
            "test_valgrind.py::test_faults_are_found",
            "keras/test_address_sanitizer.py::test_an_access_beyond_a_tensor_is_detected",
        )
    },
}
