"""The native operations in plain C under sanitizers, with as much of TensorFlow as they need."""

import sys

import pytest
import sanitizers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operations are for Linux")


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    """A program, built for a sanitizer: ``stress(name, sanitizer)``."""
    folder = tmp_path_factory.mktemp("native")
    built = {}

    def stress(name, sanitizer):
        if sanitizer not in built:
            sanitizers.skip_without(sanitizer)
            built[sanitizer] = folder / sanitizer
            sanitizers.compile_program(
                "native_op_stress.c",
                built[sanitizer],
                sanitizer,
                "fastdrop/include",
                "fastdrop_keras",
            )
        return sanitizers.run([built[sanitizer], name], sanitizer, preload="")

    return stress


@pytest.mark.parametrize("name", ["sizes", "errors", "many_threads"])
def test_no_byte_beside_a_tensor_and_nothing_kept(stress, name):
    done = stress(name, sanitizers.MEMORY)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("name", ["many_threads", "many_dials"])
def test_one_operation_in_many_threads_has_no_race(stress, name):
    done = stress(name, sanitizers.RACES)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_fork_while_operations_are_made(stress):
    done = stress("forks", sanitizers.UNDEFINED)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_faults_of_kernels_are_found(stress):
    done = stress("byte_too_many", sanitizers.MEMORY)
    assert done.returncode == 66, done.stderr
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    done = stress("unguarded_count", sanitizers.RACES)
    assert done.returncode == 66, done.stderr
    assert "ThreadSanitizer: data race" in done.stderr
