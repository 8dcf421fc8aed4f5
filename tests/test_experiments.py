"""The experiments run, and what their page says follows from the numbers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from experiments import __main__ as command
from experiments import calibration, digits, factorization, page, regularizers, trees

ROOT = Path(__file__).parent.parent
TINY = page.Work(2, 0.01, Progress(disable=True))


# The sentences.


def test_a_difference_beyond_the_spread_has_a_direction():
    more = page.compared("Accuracy", "a", [92.0, 93.0, 94.5], "b", [90.0, 91.0, 92.0])
    assert more.startswith(
        "Accuracy: 2.2 points higher with a than with b (95 % interval 1.4 to 2.9"
    )
    less = page.compared("Accuracy", "b", [90.0, 91.0, 92.0], "a", [92.0, 93.0, 94.5])
    assert less.startswith(
        "Accuracy: 2.2 points lower with b than with a (95 % interval -2.9 to -1.4"
    )


@pytest.mark.parametrize("ones", [[91.0, 92.0, 91.5], [90.0, 91.0, 92.0]], ids=["noise", "equal"])
def test_a_difference_within_the_spread_has_none(ones):
    sentence = page.compared("Accuracy", "a", ones, "b", [90.0, 91.0, 92.0], decimals=2)
    assert "no difference between a and b beyond the spread" in sentence
    assert "higher" not in sentence
    assert "lower" not in sentence


def test_the_interval_is_students():
    """Of the differences 1, 2, 3, 4: 2.5 ± 3.182 * 1.291 / 2, by a table of the distribution."""
    sentence = page.compared("X", "a", [1, 2, 3, 4], "b", np.zeros(4), "", 3)
    assert "95 % interval 0.446 to 4.554, 4 pairs" in sentence


def test_the_best_has_the_highest_or_lowest_mean():
    results = {"a": [1.0, 5.0], "b": [2.0, 2.0], "c": [9.0, 0.0]}
    assert page.best(results) == "c"
    assert page.best(results, lowest=True) == "b"


# The measures.


def test_wrong_labels_are_a_fraction_of_those_that_are_seen():
    correct, wrong = (digits.split(3, training=800, validation=100, wrong=w) for w in (0.0, 0.2))
    np.testing.assert_array_equal(correct.images, wrong.images)
    np.testing.assert_array_equal(correct.test_labels, wrong.test_labels)
    seen = [np.concatenate([d.labels, d.validation_labels]) for d in (correct, wrong)]
    assert np.mean(seen[0] != seen[1]) == 0.2
    assert len(correct.images) == 800
    assert len(correct.validation_images) == 100
    assert len(correct.images) + 100 + len(correct.test_images) == 1797


def test_the_calibration_error_by_hand():
    """Two of confidence 0.95 of which one is right, one of 0.45 that is right."""
    confidence, right = np.array([0.95, 0.95, 0.45]), np.array([True, False, True])
    want = 100 * (2 * 0.45 + 0.55) / 3
    assert calibration.calibration_error(confidence, right) == pytest.approx(want)
    assert calibration.calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_separation_counts_pairs():
    assert calibration.separation(np.array([0.1, 0.4]), np.array([0.3, 0.5])) == 0.75


def test_validation_images_choose_the_penalty_and_the_epoch():
    """Pairs of a validation and a test accuracy after each of two epochs."""
    curves = {
        (rate, penalty): [(50.0, 1.0), (40.0, 2.0)]
        for rate in regularizers.RATES
        for penalty in regularizers.PENALTIES
    }
    curves[0.0, 1e-3] = [(45.0, 3.0), (60.0, 4.0)]
    curves[0.5, 1e-2] = [(70.0, 5.0), (30.0, 6.0)]
    results = regularizers.chosen(curves)
    assert results == {
        "none": 2.0,
        "early stopping": 1.0,
        "L2": 4.0,
        "L2 + early stopping": 4.0,
        "dropout": 2.0,
        "dropout + early stopping": 1.0,
        "dropout + L2": 2.0,
        "dropout + L2 + early stopping": 5.0,
    }


def of_diabetes():
    x, y = trees.load_diabetes(return_X_y=True)
    return trees.train_test_split(x, y, random_state=0)


def test_boosting_is_that_of_scikit_learn():
    from sklearn.ensemble import GradientBoostingRegressor

    x, test_x, y, test_y = data = of_diabetes()
    peer = GradientBoostingRegressor(
        n_estimators=20, learning_rate=0.1, max_depth=4, random_state=0
    ).fit(x, y)
    want = [np.sqrt(np.mean((p - test_y) ** 2)) for p in peer.staged_predict(test_x)]
    # Ties of splits are broken at random.
    np.testing.assert_allclose(trees.boost(data, 20, 0, shrinkage=0.1), want, rtol=0.01)


def test_dart_at_rate_one_averages_trees():
    """Each tree fits the targets, and all have one weight."""
    x, test_x, y, test_y = data = of_diabetes()
    generator = np.random.RandomState(3)
    fitted = [
        trees.DecisionTreeRegressor(max_depth=4, random_state=generator)
        .fit(x, y - y.mean())
        .predict(test_x)
        for _ in range(6)
    ]
    want = [
        np.sqrt(np.mean((y.mean() + np.mean(fitted[:n], axis=0) - test_y) ** 2))
        for n in range(1, 7)
    ]
    np.testing.assert_allclose(trees.boost(data, 6, 3, rate=1), want, rtol=1e-6)


def test_factorization_finds_a_matrix_of_low_rank():
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(60, 2)) @ generator.normal(size=(2, 30))
    shown = generator.random(matrix.shape) < 0.6
    fitted = factorization.factorize(matrix, shown, 2, 0.0, 0, 1500)
    assert np.sqrt(np.mean((fitted - matrix)[~shown] ** 2)) < 0.05 * matrix.std()


# From end to end.


def check_page(folder, names):
    text = (folder / "experiments.md").read_text()
    for part in ("**Claim.**", "**Done.**", "**Found.**"):
        assert text.count(part) == len(names)
    for name in names:
        assert f"(experiments/{name}.png)" in text
        assert (folder / f"experiments/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "nan" not in text


def test_an_experiment_from_end_to_end(tmp_path):
    sections = {name: command.EXPERIMENTS[name](TINY) for name in ("factorization", "trees")}
    page.write(sections, "Of a test.", tmp_path)
    check_page(tmp_path, sections)


@pytest.mark.slow
@pytest.mark.parametrize("name", command.EXPERIMENTS)
def test_each_experiment_with_little_work(name, tmp_path):
    section = command.EXPERIMENTS[name](TINY)
    assert section.rows
    assert all(len(row) == len(section.headings) for row in section.rows)
    page.write({name: section}, "Of a test.", tmp_path)
    check_page(tmp_path, [name])


@pytest.mark.slow
def test_the_command(tmp_path):
    options = ["--quick", "--only", "trees,underfitting", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check_page(tmp_path, ["underfitting", "trees"])


def test_an_unknown_experiment_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "trees,unknown"])
    assert "no experiment 'unknown'" in capsys.readouterr().err
