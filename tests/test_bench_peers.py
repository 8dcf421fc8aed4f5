"""Tests the peers of the benchmarks: each computes a dropout, and what is none is refused."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastdrop
from bench.peers import (
    PEERS,
    FastdropInPlace,
    JaxThreefry,
    JaxUnsafeRbg,
    NumPyBuffered,
    TorchDropout,
)
from bench.validity import InvalidDropoutError, check_dropout, check_peer

ROOT = Path(__file__).parent.parent
RATE, SIZE = 0.2, 2**16
SCALE = 1 / (1 - RATE)
DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


@pytest.mark.parametrize("rate", [RATE, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer_is_a_dropout(peer, dtype, rate):
    reason = peer.unavailable()
    if reason:
        pytest.skip(reason)
    check_peer(peer(rate=rate), SIZE, dtype)


def kept_of_ones(seed=42, rate=RATE):
    """A dropout of ones in plain NumPy, of float64."""
    uniform = np.random.Generator(np.random.SFC64(seed)).random(SIZE)
    return np.where(uniform < rate, 0, SCALE)


def test_a_dropout_is_accepted():
    check_dropout(kept_of_ones(), RATE, SCALE, name="plain", dtype=np.float64)


def unscaled(y):
    y[y != 0] = 1


def one_not_dropped_to_zero(y):
    y[np.flatnonzero(y == 0)[0]] = 1e-300


def one_nan(y):
    y[np.flatnonzero(y == 0)[0]] = np.nan


def one_ulp_more(y):
    y[np.flatnonzero(y)[0]] = np.nextafter(SCALE, 2)


def a_few_more_dropped(y):
    sigma = np.sqrt(RATE * (1 - RATE) / y.size)
    y[np.flatnonzero(y)[: int(9 * sigma * y.size)]] = 0


def all_kept(y):
    y[:] = SCALE


def all_dropped(y):
    y[:] = 0


FAULTS = (
    unscaled,
    one_not_dropped_to_zero,
    one_nan,
    one_ulp_more,
    a_few_more_dropped,
    all_kept,
    all_dropped,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_is_no_dropout_is_refused(fault):
    y = kept_of_ones()
    fault(y)
    with pytest.raises(InvalidDropoutError, match="the peer's name"):
        check_dropout(y, RATE, SCALE, name="the peer's name", dtype=np.float64)


def test_nothing_is_no_dropout():
    with pytest.raises(InvalidDropoutError, match="no result"):
        check_dropout(np.ones(0), RATE, SCALE, name="empty")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_the_tolerance_of_peers_is_one_unit_in_the_last_place(dtype):
    scale = np.dtype(dtype).type(SCALE)
    one_more = np.nextafter(scale, np.dtype(dtype).type(9))
    two_more = np.nextafter(one_more, np.dtype(dtype).type(9))
    y = kept_of_ones() != 0
    check_dropout(y * float(one_more), RATE, SCALE, name="peer", dtype=dtype, ulps=1)
    with pytest.raises(InvalidDropoutError, match="not the scale"):
        check_dropout(y * float(two_more), RATE, SCALE, name="peer", dtype=dtype, ulps=1)
    with pytest.raises(InvalidDropoutError, match="not the scale"):
        check_dropout(y * float(one_more), RATE, SCALE, name="ours", dtype=dtype)


class SameMask(NumPyBuffered):
    name = "the same mask at each call"

    def forward(self):
        self._generator = np.random.Generator(np.random.SFC64(1))
        super().forward()


class OtherGradient(NumPyBuffered):
    name = "a gradient of its own"

    def forward_backward(self):
        super().forward_backward()
        self._dx[:] = self._dx[::-1].copy()


class UnscaledGradient(NumPyBuffered):
    name = "a gradient without the scale"

    def forward_backward(self):
        super().forward_backward()
        self._dx[:] = self._dx != 0


class HalfOfIt(NumPyBuffered):
    name = "the first half alone"

    def result(self):
        return super().result()[: SIZE // 2]

    def gradient(self):
        return super().gradient()[: SIZE // 2]


class Nothing(FastdropInPlace):
    name = "nothing at all"

    def forward(self):
        pass


@pytest.mark.parametrize(
    "peer",
    [SameMask, OtherGradient, UnscaledGradient, HalfOfIt, Nothing],
    ids=lambda peer: peer.__name__,
)
def test_a_peer_that_does_something_else_is_refused(peer):
    with pytest.raises(InvalidDropoutError, match=peer.name):
        check_peer(peer(rate=RATE), SIZE, np.float32)


@pytest.mark.parametrize(
    ("peer", "project", "module"),
    [(TorchDropout, "PyTorch", "torch"), (JaxThreefry, "JAX", "jax")],
)
def test_a_peer_that_cannot_be_imported_says_why(peer, project, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    assert peer.unavailable() == f"{project} is not installed: pip install {module}"

    monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{module}.py").write_text("import fastdrop_test_no_such_module")
    assert peer.unavailable() == (
        f"{project} is installed without fastdrop_test_no_such_module, which it needs: "
        "pip install fastdrop_test_no_such_module"
    )
    (tmp_path / f"{module}.py").write_text("raise ImportError('libcudart.so.12: not found')")
    assert peer.unavailable() == f"{project} cannot be imported: libcudart.so.12: not found"


def test_threads_of_ours():
    with fastdrop.num_threads(1):
        FastdropInPlace().set_threads(2)
        assert fastdrop.get_num_threads() == 2


def test_threads_of_torch():
    if reason := TorchDropout.unavailable():
        pytest.skip(reason)
    import torch

    before = torch.get_num_threads()
    TorchDropout().set_threads(1)
    assert torch.get_num_threads() == 1
    TorchDropout().set_threads(before)


def test_threads_of_jax_are_those_that_it_started_with(monkeypatch):
    monkeypatch.setattr(JaxThreefry.__mro__[1], "started_with", 2)
    JaxUnsafeRbg().set_threads(2)
    with pytest.raises(RuntimeError, match="2 threads in this process and cannot change to 1"):
        JaxUnsafeRbg().set_threads(1)


THREADS = """
import os, sys
from bench.peers import JaxThreefry
peer = JaxThreefry()
peer.set_threads(int(sys.argv[1]))
assert "NPROC" not in os.environ
peer.prepare(2**20, "float32")
peer.forward()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(sum("Eigen" in name for name in names))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_jax_starts_with_the_threads_asked_for(threads):
    if reason := JaxThreefry.unavailable():
        pytest.skip(reason)
    environment = {k: v for k, v in os.environ.items() if k != "NPROC"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", THREADS, str(threads)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == threads
