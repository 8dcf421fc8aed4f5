"""The library works with the oldest and the newest supported TensorFlow and Keras.

It is built from its sources for an environment with each.
"""

import sys

import matrix
import pytest

CELLS = {cell.name: cell for cell in matrix.CELLS if cell.name.startswith("tensorflow")}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="native operations are for Linux"),
]


@pytest.mark.parametrize("name", CELLS)
def test_versions(name, tmp_path):
    try:
        matrix.run_cell(CELLS[name], tmp_path)
    except matrix.AbsentError as why:
        pytest.skip(f"{name}: {why}")
