"""Two small families beside trees: a network of one or two layers with 8-bit weights, and a logistic regression.

Both read the same inputs: each feature's quantile as a normal deviate, 0 where it is unknown, and whether it is.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

N_QUANTILES = 64
MARGIN_MAX = 6.0
"""Beyond it a teacher's margin says no more than surely."""
TRAINED_ROWS = 150_000
EPOCHS = 12


class Inputs(NamedTuple):
    """How a feature becomes an input."""

    edges: NDArray[np.float32]
    """Shape (n_features, N_QUANTILES)."""
    deviates: NDArray[np.float32]

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> "Inputs":
        """Learn the quantiles."""
        shares = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
        edges = np.nanquantile(rows, shares, axis=0, method="lower").T.astype(np.float32)
        return cls(np.ascontiguousarray(edges), norm.ppf((np.arange(N_QUANTILES + 1) + 0.5) / 65).astype(np.float32))

    def of_rows(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the inputs, shape (n, 2 * n_features)."""
        unknown = np.isnan(rows)
        inputs = np.empty((len(rows), 2 * rows.shape[1]), dtype=np.float32)
        for i, edges in enumerate(self.edges):
            inputs[:, i] = self.deviates[np.searchsorted(edges, rows[:, i], side="right")]
        inputs[:, : rows.shape[1]][unknown] = 0.0
        inputs[:, rows.shape[1] :] = unknown
        return inputs

    def n_bytes(self) -> int:
        """Return the bytes of the quantiles as 16-bit keys."""
        return 2 * self.edges.size


class Network(NamedTuple):
    """Layers of weights on inputs; rectified between them."""

    inputs: Inputs
    weights: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32]]
    weight_bytes: int

    def margins(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the last layer's output."""
        values = self.inputs.of_rows(rows)
        for i, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values @ weights + bias
            if i + 1 < len(self.weights):
                np.maximum(values, 0, out=values)
        return values[:, 0].astype(np.float64)

    def n_bytes(self) -> int:
        """Return the bytes of quantiles, weights, biases and scales."""
        n_biases = sum(bias.size for bias in self.biases)
        return self.inputs.n_bytes() + self.weight_bytes * sum(w.size for w in self.weights) + 8 * n_biases


def network(
    rows: NDArray[np.float32],
    margins: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    layers: tuple[int, ...],
    seed: int,
) -> Network:
    """Fit the teacher's margins; weights are rounded to 8 bits, a scale an output."""
    inputs = Inputs.of(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), size=min(TRAINED_ROWS, len(rows)), replace=False)
    model = MLPRegressor(
        hidden_layer_sizes=layers,
        batch_size=512,
        learning_rate_init=0.003,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS + 1,
        random_state=seed,
    )
    # So many epochs are the budget: that the loss might fall further is no news.
    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):
        model.fit(
            inputs.of_rows(rows[chosen]),
            np.clip(margins[chosen], -MARGIN_MAX, MARGIN_MAX),
            sample_weight=weight[chosen],
        )
    rounded = []
    for weights in model.coefs_:
        scale = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 127
        rounded.append((np.rint(weights / scale) * scale).astype(np.float32))
    return Network(inputs, rounded, [bias.astype(np.float32) for bias in model.intercepts_], 1)


def regression(rows: NDArray[np.float32], target: NDArray[np.float64], weight: NDArray[np.float64]) -> Network:
    """Fit probabilities by Newton's method: a network without a hidden layer, of 32-bit weights."""
    inputs = Inputs.of(rows)
    design = np.column_stack([inputs.of_rows(rows), np.ones(len(rows), dtype=np.float32)]).astype(np.float64)
    beta = np.zeros(design.shape[1])
    for _ in range(8):
        p = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (weight * (p - target)) + beta
        curvature = (design * (weight * p * (1 - p))[:, None]).T @ design + np.eye(len(beta))
        beta -= np.linalg.solve(curvature, gradient)
    return Network(inputs, [beta[:-1, None].astype(np.float32)], [beta[-1:].astype(np.float32)], 4)
