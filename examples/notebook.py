"""A marimo notebook that draws masks: `marimo edit notebook.py`, or `marimo run notebook.py`."""

import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo
    import matplotlib.pyplot as plt
    import numpy as np

    import fastdrop

    return fastdrop, mo, np, plt


@app.cell
def _(mo):
    mo.md("""
    # Masks

    A mask holds one bit for each element. The seed fixes it, on every machine. A notebook shows it
    as a table.
    """)
    return


@app.cell
def _(fastdrop, mo):
    mask = fastdrop.draw_mask((12, 24), 0.5, seed=1)
    mo.as_html(mask)
    return (mask,)


@app.cell
def _(mo):
    mo.md("""
    With a `noise_shape`, elements share a decision. At another offset, the mask is another piece of
    one larger mask.
    """)
    return


@app.cell
def _(fastdrop, mask, mo, plt):
    masks = {
        "rate 0.5": mask,
        "rate 0.2": fastdrop.draw_mask((12, 24), 0.2, seed=1),
        "noise_shape (12, 1)": fastdrop.draw_mask((12, 24), 0.5, seed=1, noise_shape=(12, 1)),
        "offset of 3 rows": fastdrop.draw_mask((12, 24), 0.5, seed=1, offset=3 * 24),
    }
    pictures, places = plt.subplots(2, 2, figsize=(8, 5), layout="constrained")
    for axes, (title, one) in zip(places.flat, masks.items(), strict=True):
        axes.imshow(one, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title)
    mo.as_html(pictures)
    return


@app.cell
def _(mo):
    mo.md("""
    The number of kept elements follows the binomial distribution: here of 1000 elements at rate
    0.2, in 20,000 masks. Its standard deviation is √(1000 · 0.2 · 0.8).
    """)
    return


@app.cell
def _(fastdrop, mo, np, plt):
    stream = fastdrop.Stream(1)
    kept = [fastdrop.draw_mask(1000, 0.2, seed=stream).count() for _ in range(20_000)]
    histogram, counts = plt.subplots(figsize=(8, 3), layout="constrained")
    counts.hist(kept, np.arange(740, 861, 2), density=True, color="#0072b2", label="masks")
    x, deviation = np.arange(740, 861), np.sqrt(1000 * 0.2 * 0.8)
    normal = np.exp(-(((x - 800) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    counts.plot(x, normal, color="#d55e00", label="normal approximation")
    counts.set(xlabel="kept elements", ylabel="frequency")
    counts.legend()
    mo.as_html(histogram)
    return


if __name__ == "__main__":
    app.run()
