"""``python -m fastdrop`` describes the installation and finds wrong results."""

import subprocess
import sys

import numpy as np
import reference

import fastdrop
from fastdrop import __main__ as selftest

X = np.arange(-5000, 5000, dtype=np.float32) / 1024


def test_the_known_answers_are_those_of_the_reference():
    kept = reference.keep_mask(42, 7, 0.3, X.size)
    at_step_0 = reference.keep_mask(42, 0, 0.3, X.size)
    scale = reference.default_scale(0.3)
    positive = np.where(X > 0, X, np.float32(0))
    numbers = reference.normals(42, 0, X.size)
    expected = {
        "mask at rate 0.5": reference.pack_bits(reference.keep_mask(0, 0, 0.5, 16384)),
        "mask at rate 0.3": reference.pack_bits(kept),
        "dropout": reference.dropout(X, kept, scale),
        "its gradient": reference.dropout(X, kept, scale),
        "dropout of ReLU": reference.dropout(positive, at_step_0, scale),
        "alpha dropout": reference.alpha_dropout(X, at_step_0, 0.3),
        "Gaussian noise": reference.noised(X, numbers, 0.5, True),
    }
    answers = {name: digest for name, (_, digest) in selftest._known_answers().items()}
    assert answers == {name: selftest._digest(array) for name, array in expected.items()}


def test_it_prints_the_configuration_the_answers_and_the_speed():
    run = subprocess.run(
        [sys.executable, "-m", "fastdrop"], capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"fastdrop {fastdrop.__version__}\n  stream version: 2\n")
    assert f"  right on {', '.join(fastdrop.available_isas())}\n" in run.stdout
    assert "  over numpy.multiply in place: " in run.stdout


def test_a_wrong_result_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(fastdrop, "relu_dropout", lambda x, *_, **__: (x, None))
    monkeypatch.setattr(selftest, "SECONDS", 0)
    assert selftest.main() == 1
    out = capsys.readouterr().out
    for isa in fastdrop.available_isas():
        assert f"  {isa}: dropout of ReLU has the digest " in out
