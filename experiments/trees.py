"""Boosted trees with dropped trees (DART), on scikit-learn's trees."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeRegressor

import fastdrop
from experiments.page import Section, Work, best, compared, line, log_scale, plot, spread

BOOSTING, SHRINKAGE = "boosting", "boosting, shrinkage 0.1"


def boost(
    data: tuple[np.ndarray, ...], count: int, seed: int, *, rate: float = 0, shrinkage: float = 1
) -> np.ndarray:
    """Return the test errors of ensembles of 1 to `count` trees, as root mean squares.

    Each new tree fits what the trees that are not dropped leave. Of k dropped trees, at least one
    if the rate is not 0, the weights are multiplied by k / (k + 1), and that of the new tree by
    1 / (k + 1).
    """
    x, test_x, y, test_y = data
    stream = fastdrop.Stream(seed)
    # The predictions of each tree, and its weight.
    fitted, tested = np.empty((count, len(y))), np.empty((count, len(test_y)))
    weights = np.zeros(count)
    generator = np.random.RandomState(seed)
    errors = np.empty(count)
    for number in range(count):
        dropped = ~np.asarray(fastdrop.draw_mask(number, rate, seed=stream))
        if rate and number and not dropped.any():
            dropped[generator.randint(number)] = True
        left = np.where(dropped, 0, weights[:number])
        tree = DecisionTreeRegressor(max_depth=4, random_state=generator)
        tree.fit(x, y - y.mean() - left @ fitted[:number])
        fitted[number], tested[number] = tree.predict(x), tree.predict(test_x)
        k = dropped.sum()
        weights[:number][dropped] *= k / (k + 1)
        weights[number] = shrinkage / (k + 1)
        prediction = y.mean() + weights[: number + 1] @ tested[: number + 1]
        errors[number] = np.sqrt(np.mean((prediction - test_y) ** 2))
    return errors


def run(work: Work) -> Section:
    """Boost with each rate, and without dropout with and without shrinkage."""
    methods = {
        BOOSTING: {},
        SHRINKAGE: {"shrinkage": 0.1},
        **{f"DART, rate {r:g}": {"rate": r} for r in work.some((0.02, 0.1, 0.5, 1), (0.1,))},
    }
    trees = work.part(200)
    results: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for seed in work.runs(range(2 * work.seeds), "trees"):
        data = train_test_split(*load_diabetes(return_X_y=True), test_size=0.3, random_state=seed)
        for name, options in methods.items():
            results[name].append(boost(data, trees, seed, **options))
    return section(results, 2 * work.seeds, trees)


def section(results: dict[str, list[np.ndarray]], seeds: int, trees: int) -> Section:
    """Return the section; `results` maps methods to errors by the number of trees, by seed."""
    shown = sorted({1, max(1, trees // 10), max(1, trees // 4), trees})
    figure, (axes,) = plot()
    for number, (name, errors) in enumerate(results.items()):
        line(axes, shown, np.transpose(errors)[np.array(shown) - 1], number, name)
    log_scale(axes, shown)
    axes.set(xlabel="trees", ylabel="test error")
    axes.legend(fontsize="small")
    last = {name: [of_seed[-1] for of_seed in errors] for name, errors in results.items()}
    with_dropout = best({n: v for n, v in last.items() if "DART" in n}, lowest=True)
    found = [
        compared(
            "Test error of all trees", with_dropout, last[with_dropout], other, last[other], ""
        )
        for other in (BOOSTING, SHRINKAGE)
    ]
    found.append(
        f"The lowest mean, {spread(last[best(last, lowest=True)])}, has: {best(last, lowest=True)}."
    )
    return Section(
        "Boosted trees with dropped trees",
        "In boosting, later trees matter for few samples only. Dropping random earlier trees while "
        "a new one is fitted (DART) prevents this, and is more accurate than boosting with "
        "shrinkage; with rate 1 it is a random forest without bagging "
        "([Rashmi and Gilad-Bachrach, 2015](https://proceedings.mlr.press/v38/korlakaivinayak15.html)).",
        "scikit-learn's diabetes data, 70 % for training; its regression trees of depth 4, "
        f"{trees} of them; `fastdrop.draw_mask` draws the trees to drop. {seeds} seeds, each with "
        "its own split. Root mean square error on the test data, mean ± standard deviation.",
        ["method", *(f"{n} tree{'s' if n > 1 else ''}" for n in shown)],
        [
            [name, *(spread([of_seed[n - 1] for of_seed in errors]) for n in shown)]
            for name, errors in results.items()
        ],
        figure,
        found,
    )
