"""Lists the kinds of random operations that the kernels do, with their numbers in C."""

from __future__ import annotations

KINDS = {
    "dropout": 0,
    "gaussian_dropout": 1,
    "gaussian_noise": 2,
    "alpha_dropout": 3,
    "alpha_dropout_gradient": 4,
    "bernoulli": 5,
}

# The kinds of the derivatives. Of noise that is added, it is the identity; of "bernoulli", zero.
DERIVATIVES = {
    "dropout": "dropout",
    "gaussian_dropout": "gaussian_dropout",
    "alpha_dropout": "alpha_dropout_gradient",
    "alpha_dropout_gradient": "alpha_dropout_gradient",
}
