"""Failures that are none: random plain data sets in float32, none of which may end as DECREASED or NONFINITE.

    python -m benchmarks.false_failures                 # every family and regression
    python -m benchmarks.false_failures --only Poisson

Two hundred data sets a family, of one to three components, whose means go up to 10⁴ (those of fractions, shares and
directions cannot: their concentrations go up to 100 or 1000 instead), each fitted with as many components, all in one
call for each number of components. Printed: how the fits ended.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import limit, machine, table
from benchmarks.extremes import CASES, Case, single, stacked

FALSE = (jaxem.Status.DECREASED, jaxem.Status.NONFINITE)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.false_failures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--lanes", type=int, default=200, help="data sets a family")
    parser.add_argument("--n", type=int, default=300, help="rows")
    options = parser.parse_args()
    print(machine())
    rows, total = [["family", "false failures", "all ends"]], 0
    for name, case in CASES.items():
        if options.only not in name or "far row" in name:
            continue
        ends = np.concatenate([how_ended(case, k, options.lanes, options.n) for k in (1, 2, 3)])
        false = int(np.isin(ends, FALSE).sum())
        codes, counts = np.unique(ends, return_counts=True)
        named = ", ".join(f"{jaxem.Status(code).name} {count}" for code, count in zip(codes, counts, strict=True))
        rows.append([name, str(false), named])
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
        total += false
    print(table(rows))
    print(f"false failures: {limit(total, at_most=0, form='d')}")
    sys.exit(total > 0)


def how_ended(case: Case, k: int, lanes: int, n: int) -> np.ndarray:
    """Status codes of a third of the lanes, those of k components."""
    low, high = case.plain
    numbers = range(k - 1, lanes, 3)
    rngs = [np.random.default_rng([11, i]) for i in numbers]
    level = lambda rng: rng.uniform(low, high) if low <= 0 else np.exp(rng.uniform(np.log(low), np.log(high)))  # noqa: E731
    data = single(stacked([case.draw(rng, n, k, level(rng)) for rng in rngs]))
    data = jax.tree.map(jnp.asarray, data)
    model = jaxem.Mixture(case.family, k)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(rngs)))
    starts = jax.jit(jax.vmap(model.init))(keys, data)
    return np.asarray(jaxem.fit_batch(model, starts, data).status)


if __name__ == "__main__":
    main()
