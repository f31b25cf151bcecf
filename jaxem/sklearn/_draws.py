"""What is drawn from a NumPy `RandomState`, in the order in which scikit-learn draws it."""

from typing import Any

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus

from ._float64 import Rows


def draw_responsibilities(rows: Rows, k: int, method: str, random_state: Any) -> np.ndarray:
    """(n, k). All but "random" are of ones and zeros; "k-means++" and "random_from_data" of k rows only.

    Without weights `random_state` is asked for what scikit-learn asks.
    """
    x, weight = rows
    n = len(x)
    if method == "random":
        r = random_state.uniform(size=(n, k))
        return r / r.sum(1, keepdims=True)
    r = np.zeros((n, k))
    if method == "kmeans":
        once: Any = 1
        clusters = KMeans(n_clusters=k, n_init=once, random_state=random_state).fit(x, sample_weight=weight)
        r[np.arange(n), clusters.labels_] = 1
    elif method == "k-means++":
        r[kmeans_plusplus(x, k, sample_weight=weight, random_state=random_state)[1], np.arange(k)] = 1
    else:
        equal = (weight == weight[0]).all()
        share = None if equal else weight / weight.sum()
        r[random_state.choice(n, size=k, replace=False, p=share), np.arange(k)] = 1
    return r


def draw_rows(
    random_state: Any, n: int, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, covariance_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """n rows of a mixture, ordered by component, and the components: (n, d) and (n,)."""
    counts = random_state.multinomial(n, weights.astype(np.float64))
    k, d = means.shape
    if covariance_type == "tied":
        covariances = np.broadcast_to(covariances, (k, d, d))
    rows = []
    for mean, covariance, count in zip(means, covariances, counts, strict=True):
        if covariance_type in ("full", "tied"):
            rows.append(random_state.multivariate_normal(mean, covariance, int(count)))
        else:
            rows.append(mean + random_state.standard_normal((count, d)) * np.sqrt(covariance))
    return np.vstack(rows), np.repeat(np.arange(k), counts)
