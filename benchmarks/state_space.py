"""The E step of a linear-Gaussian state space model: jaxem beside dynamax and a loop over statsmodels.

    python -m benchmarks.state_space [--repeats N] [--one-core]

Same series, same params, same run, repetitions in turn. The E step is that of the loop, float32, steps prepared once as
the loop holds them. dynamax's is its own `e_step`, float32, jitted, under `vmap` over the series; statsmodels has a
smoother alone, float64, without statistics, one series after another. "entries missing" is jaxem beside itself with all
entries: 0.3 of them are missing at random, so that no two series share their covariances. The last column is the mean
log-likelihood of a step, of each. Both peers are asked for only if they are installed.
"""

import argparse
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table
from jaxem.fold.folded import Folded

# series, steps, states, columns: the ratio to dynamax that is asked for
AT_LEAST = {(1, 10_000, 2, 2): 3.0, (500, 200, 2, 2): 2.0, (3000, 200, 2, 2): 2.0, (500, 200, 4, 3): 2.0}
LOOPED, AT_LEAST_LOOPED = (500, 200, 2, 2), 50.0
MISSING, AT_MOST_MISSING = 0.3, 4.0


class Problem(NamedTuple):
    """Series (n, t, d), and the params of the E step."""

    y: np.ndarray
    params: jaxem.LGSSMParams


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.state_space", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", help="what stands in the column beside: dynamax, statsmodels, missing")
    parser.add_argument("--one-core", action="store_true", help="keep this process on one core")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    peers = [name for name in ("dynamax", "statsmodels") if importlib.util.find_spec(name)]
    print(machine(*peers))
    head = ["n, t, s, d", "beside", "compile s", "jaxem ms", "other ms", "ratio", "log-likelihood, each"]
    rows = []
    for shape, least in AT_LEAST.items():
        if "dynamax" in peers and options.only in (None, "dynamax"):
            rows.append(row(shape, "dynamax", dynamax_e_step, limit_of(at_least=least), options.repeats))
    if "statsmodels" in peers and options.only in (None, "statsmodels"):
        rows.append(row(LOOPED, "statsmodels", statsmodels_loop, limit_of(at_least=AT_LEAST_LOOPED), options.repeats))
    for shape in AT_LEAST if options.only in (None, "missing") else ():
        rows.append(missing_row(shape, options.repeats))
    print(table([head, *rows]))


def limit_of(**bound: float) -> Callable[[float], str]:
    return lambda ratio: limit(ratio, **bound, form=".1f")


Step = tuple[Callable[[], Any], Callable[[], float]]


def row(shape: tuple, name: str, other: Callable[[Problem], Step], form: Callable, repeats: int) -> list[str]:
    problem = problem_of(*shape)
    (ours, at_ours), (theirs, at_theirs) = jaxem_e_step(problem), other(problem)
    compiling = seconds(ours)
    spent = medians(interleaved({"ours": ours, "theirs": theirs}, repeats))
    steps = shape[0] * shape[1]
    return [
        ", ".join(map(str, shape)),
        name,
        f"{compiling - spent['ours']:.2f}",
        f"{1e3 * spent['ours']:.1f}",
        f"{1e3 * spent['theirs']:.1f}",
        form(spent["theirs"] / spent["ours"]),
        same_log_lik(at_ours() / steps, at_theirs() / steps),
    ]


def same_log_lik(ours: float, theirs: float) -> str:
    """Both, a step; a row whose two sides did different things is no row."""
    if not abs(ours - theirs) < 1e-3:
        raise RuntimeError(f"log-likelihood of a step: expected the same of both, got {ours} and {theirs}.")
    return f"{ours:.5f}, {theirs:.5f}"


def missing_row(shape: tuple, repeats: int) -> list[str]:
    whole, gaps = problem_of(*shape), problem_of(*shape, missing=MISSING)
    (all_of_it, at_all), (with_gaps, at_gaps) = jaxem_e_step(whole), jaxem_e_step(gaps)
    compiling = seconds(with_gaps)
    spent = medians(interleaved({"all": all_of_it, "gaps": with_gaps}, repeats))
    steps = shape[0] * shape[1]
    return [
        ", ".join(map(str, shape)),
        f"{MISSING} of entries missing",
        f"{compiling - spent['gaps']:.2f}",
        f"{1e3 * spent['gaps']:.1f}",
        f"{1e3 * spent['all']:.1f}",
        limit(spent["gaps"] / spent["all"], at_most=AT_MOST_MISSING, form=".1f"),
        f"{at_gaps() / steps:.5f}, {at_all() / steps:.5f}",
    ]


def problem_of(n: int, t: int, s: int, d: int, missing: float = 0.0) -> Problem:
    """A state that turns and decays, seen through a random map; the E step begins beside the truth."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(s, s)))[0]
    move, see = 0.95 * turn, rng.normal(size=(d, s))
    states = np.empty((t, n, s))
    states[0] = rng.normal(size=(n, s))
    for i in range(1, t):
        states[i] = states[i - 1] @ move.T + 0.3 * rng.normal(size=(n, s))
    y = (np.swapaxes(states, 0, 1) @ see.T + rng.normal(size=(n, t, d))).astype(np.float32)
    y[rng.random(y.shape) < missing] = np.nan
    eye = np.eye(s)
    params = jaxem.LGSSMParams(jaxem.GaussianState(np.zeros(s), eye), 0.9 * turn, 0.2 * eye, see + 0.1, 1.5 * np.eye(d))
    return Problem(y, jax.tree.map(lambda leaf: leaf.astype(np.float32), params))


def jaxem_e_step(problem: Problem) -> Step:
    n, t, _ = problem.y.shape
    model = jaxem.LinearGaussianStateSpace(problem.params.transition.shape[0])
    data = jaxem.Sequences(jnp.asarray(problem.y), jnp.full(n, t, jnp.int32))
    params = jax.tree.map(jnp.asarray, problem.params)
    folded = Folded(jax.jit(jaxem.bind)(model, data, None))
    held = jax.block_until_ready(jax.jit(folded.hold)(params, data, None))
    run = jax.jit(lambda params, held: folded.e_step(params, held, None))
    return lambda: jax.block_until_ready(run(params, held)), lambda: float(run(params, held)[1])


def dynamax_e_step(problem: Problem) -> Step:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    p, (_, _, d) = problem.params, problem.y.shape
    s = p.transition.shape[0]
    model = LinearGaussianSSM(s, d, has_dynamics_bias=False, has_emissions_bias=False)
    params, _ = model.initialize(
        jax.random.key(0), p.initial.mean, p.initial.covariance, dynamics_weights=p.transition,
        dynamics_covariance=p.transition_covariance, emission_weights=p.emission,
        emission_covariance=p.emission_covariance,
    )  # fmt: skip
    y = jnp.asarray(problem.y)

    @jax.jit
    def run(params: Any, y: Any) -> Any:
        stats, log_lik = jax.vmap(functools.partial(model.e_step, params))(y)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), stats), jnp.sum(log_lik)

    return lambda: jax.block_until_ready(run(params, y)), lambda: float(run(params, y)[1])


def statsmodels_loop(problem: Problem) -> Step:
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    p, (_, _, d) = problem.params, problem.y.shape
    s = p.transition.shape[0]
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    matrices = {
        "design": wide.emission, "obs_cov": wide.emission_covariance, "transition": wide.transition,
        "selection": np.eye(s), "state_cov": wide.transition_covariance,
    }  # fmt: skip

    def run() -> float:
        total = 0.0
        for series in problem.y.astype(np.float64):
            smoother = KalmanSmoother(d, s, **matrices)  # a new one: bound again, one answers for another series
            smoother.initialize_known(*wide.initial)
            smoother.bind(np.ascontiguousarray(series))
            total += smoother.smooth().llf
        return total

    return run, run


if __name__ == "__main__":
    main()
