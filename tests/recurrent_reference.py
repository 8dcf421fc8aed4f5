"""A slow LSTM, GRU and simple RNN with dropout, written from their equations."""

import numpy as np

GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def outputs(kind, x, weights, x_factors, h_factors, reset_after=True):
    """The outputs of all time steps, from zero states.

    `x_factors` and `h_factors` have an array for each gate, in Keras's order of the gates.
    """
    count = GATES[kind]
    w, u = (np.split(kernel, count, axis=1) for kernel in weights[:2])
    biases = weights[2] if weights[2].ndim == 2 else np.stack([weights[2], 0 * weights[2]])
    b, b_h = (np.split(bias, count) for bias in biases)
    h = c = np.zeros((len(x), u[0].shape[1]))
    results = []
    for t in range(x.shape[1]):
        # What a factor of 0 drops is zero, whatever it was.
        drop = [np.where(f == 0, 0, x[:, t]) * f for f in x_factors]
        from_x = [drop[g] @ w[g] + b[g] for g in range(count)]
        dropped = [h * f for f in h_factors]
        from_h = [dropped[g] @ u[g] + b_h[g] for g in range(count)]
        if kind == "LSTM":
            i, f, new, o = (a + b for a, b in zip(from_x, from_h, strict=True))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
            h = sigmoid(o) * np.tanh(c)
        elif kind == "GRU":
            z, r = (sigmoid(from_x[g] + from_h[g]) for g in (0, 1))
            last = r * from_h[2] if reset_after else (r * dropped[2]) @ u[2]
            h = z * h + (1 - z) * np.tanh(from_x[2] + last)
        else:
            h = np.tanh(from_x[0] + from_h[0])
        results.append(h)
    return np.stack(results, axis=1)


def expected_outputs(expected, layer, kind, x, seed, call=0):
    """The outputs of a call of a layer or cell that has made `call` calls with this seed."""
    weights = [np.asarray(one, np.float64) for one in layer.get_weights()]
    count = GATES[kind]
    cell = layer.cell
    masks = count if getattr(cell, "implementation", 2) == 1 else 1

    def factors(size, rate, step):
        drawn = expected.output(np.ones((len(x), masks * size)), rate, seed, 2 * call + step)
        parts = np.split(drawn, masks, axis=1)
        return parts if masks == count else parts * count

    x_factors = factors(x.shape[2], cell.dropout, 0)
    h_factors = factors(cell.units, cell.recurrent_dropout, 1)
    reset_after = getattr(cell, "reset_after", True)
    return outputs(kind, x, weights, x_factors, h_factors, reset_after)
