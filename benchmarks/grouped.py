"""An iteration over rows whose state an id shares, beside one over as many rows that are units. CPU time.

python -m benchmarks.grouped
"""

import time
from typing import Any

import jax
import numpy as np

import jaxem

N_IDS, MOST_ROWS = 100_000, 200


def table() -> tuple[np.ndarray, np.ndarray]:
    """About a million rows of two columns, in 10⁵ ids of 1 to 200 rows, shuffled."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.geometric(0.1, N_IDS), MOST_ROWS)
    ids = rng.permutation(np.repeat(np.arange(N_IDS), sizes))
    centres = np.array([[0.0, 0.0], [2.0, 1.0], [0.0, 2.0]])[rng.integers(0, 3, N_IDS)]
    return (rng.normal(size=(len(ids), 2)) + centres[ids]).astype(np.float32), ids


def seconds(model: Any, start: Any, data: Any, n_iter: int) -> float:
    """Of so many iterations, once they are compiled."""
    run = lambda: jax.block_until_ready(jaxem.fit(model, start, data, tol=-1.0, max_iter=n_iter).params)  # noqa: E731
    run()
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    """Prints seconds of an iteration, and their ratio."""
    x, ids = table()
    model = jaxem.Mixture(jaxem.FullNormal(), 3)
    start = model.init(jax.random.key(0), x)
    found = []
    for name, data in (("rows", x), ("grouped", jaxem.grouped(x, ids))):
        few, many = (seconds(model, start, data, n_iter) for n_iter in (2, 12))
        found.append((many - few) / 10)
        print(f"{name}: {len(x)} rows, {found[-1]:.4f} s an iteration, {few:.2f} s for the first two")
    print(f"grouped / rows: {found[1] / found[0]:.2f}, wanted at most 1.5")


if __name__ == "__main__":
    main()
