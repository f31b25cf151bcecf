"""The E step of a hidden Markov model, and a whole fit: jaxem beside hmmlearn's "scaling", normal emissions.

    python -m benchmarks.hidden_markov [--repeats N] [--one-core]

Same series, same params, same run, repetitions in turn. The E step is that of the loop on its fast path, float32, steps
prepared once as the loop holds them; hmmlearn's is its own `_do_estep`, the only precision it has. A fit makes 20
iterations from the same start, from NumPy arrays to params, compile time apart. The column "log-likelihood" is the mean
of a step at the params of the E step, or after the fit, computed by jaxem in float64 for both.
"""

import argparse
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table, x64
from jaxem.fold.folded import Folded

# series, steps, states, columns: the ratios that are asked for
AT_LEAST = {(5000, 200, 3, 1): 40.0, (200, 500, 5, 3): 15.0, (1, 100_000, 4, 2): 8.0}
FITTED, AT_LEAST_FIT, N_ITER = (5000, 200, 3, 1), 30.0, 20


class Problem(NamedTuple):
    """Series (n, t, d), and where to begin: initial (k,), transition (k, k), means (k, d), variances (k, d)."""

    x: np.ndarray
    initial: np.ndarray
    transition: np.ndarray
    means: np.ndarray
    variances: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hidden_markov", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one-core", action="store_true", help="keep this process on one core")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(machine("hmmlearn"))
    rows = [["n, t, k, d", "compile s", "jaxem E step ms", "hmmlearn E step ms", "ratio", "log-likelihood, each"]]
    rows += [e_step_row(shape, options.repeats) for shape in AT_LEAST]
    print(table(rows))
    print(f"\n{N_ITER} iterations from arrays to params")
    rows = [["n, t, k, d", "compile s", "jaxem s", "hmmlearn s", "ratio", "log-likelihood, each"]]
    print(table([*rows, fit_row(FITTED, max(2, options.repeats // 2))]))


def e_step_row(shape: tuple[int, int, int, int], repeats: int) -> list[str]:
    problem = problem_of(*shape)
    ours, at_ours = jaxem_e_step(problem)
    theirs, at_theirs = hmmlearn_e_step(problem)
    compiling = seconds(ours)
    spent = medians(interleaved({"ours": ours, "theirs": theirs}, repeats))
    ratio = spent["theirs"] / spent["ours"]
    steps = shape[0] * shape[1]
    return [
        ", ".join(map(str, shape)),
        f"{compiling - spent['ours']:.2f}",
        f"{1e3 * spent['ours']:.1f}",
        f"{1e3 * spent['theirs']:.1f}",
        limit(ratio, at_least=AT_LEAST[shape], form=".1f"),
        f"{at_ours() / steps:.6f}, {at_theirs() / steps:.6f}",
    ]


def fit_row(shape: tuple[int, int, int, int], repeats: int) -> list[str]:
    problem = problem_of(*shape)
    ours, theirs = functools.partial(jaxem_fit, problem), functools.partial(hmmlearn_fit, problem)
    compiling = seconds(ours)
    spent = medians(interleaved({"ours": ours, "theirs": theirs}, repeats))
    steps = shape[0] * shape[1]
    return [
        ", ".join(map(str, shape)),
        f"{compiling - spent['ours']:.2f}",
        f"{spent['ours']:.2f}",
        f"{spent['theirs']:.2f}",
        limit(spent["theirs"] / spent["ours"], at_least=AT_LEAST_FIT, form=".1f"),
        f"{log_lik(problem, ours()) / steps:.6f}, {log_lik(problem, theirs()) / steps:.6f}",
    ]


def problem_of(n: int, t: int, k: int, d: int) -> Problem:
    """Chains that stay with probability 0.9, unit normals at means two apart on average."""
    rng = np.random.default_rng(0)
    transition = np.full((k, k), 0.1 / (k - 1))
    np.fill_diagonal(transition, 0.9)
    means = 2 * rng.normal(size=(k, d))
    states = np.empty((n, t), int)
    states[:, 0] = rng.integers(k, size=n)
    leaves = rng.random((n, t)) < 0.1
    away = rng.integers(1, k, size=(n, t))
    for i in range(1, t):
        states[:, i] = np.where(leaves[:, i], (states[:, i - 1] + away[:, i]) % k, states[:, i - 1])
    x = (means[states] + rng.normal(size=(n, t, d))).astype(np.float32)
    return Problem(x, np.full(k, 1 / k), transition, means + 0.3, np.full((k, d), 1.5))


def jaxem_model(problem: Problem, dtype: type) -> tuple[Any, jaxem.HMMParams, jaxem.Sequences]:
    cast = functools.partial(jnp.asarray, dtype=dtype)
    n, t, _ = problem.x.shape
    model = jaxem.HiddenMarkovModel(jaxem.DiagonalNormal(floor=0.0), len(problem.initial))
    bank = jaxem.NormalParams(cast(problem.means), cast(problem.variances))
    params = jaxem.HMMParams(cast(problem.initial), cast(problem.transition), bank)
    return model, params, jaxem.Sequences(cast(problem.x), jnp.full(n, t, jnp.int32))


def jaxem_e_step(problem: Problem) -> tuple[Callable[[], Any], Callable[[], float]]:
    model, params, data = jaxem_model(problem, np.float32)
    folded = Folded(jax.jit(jaxem.bind)(model, data, None))
    held = jax.block_until_ready(jax.jit(folded.hold)(params, data, None))
    run = jax.jit(lambda params, held: folded.e_step(params, held, None))
    return lambda: jax.block_until_ready(run(params, held)), lambda: float(run(params, held)[1])


def jaxem_fit(problem: Problem) -> jaxem.HMMParams:
    model, params, data = jaxem_model(problem, np.float32)
    result = jaxem.fit(model, params, data, tol=-1.0, max_iter=N_ITER)
    return jax.block_until_ready(result.params)


def log_lik(problem: Problem, params: jaxem.HMMParams) -> float:
    with x64():
        model, _, data = jaxem_model(problem, np.float64)
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)
        return float(model.log_prob(params, data).sum())


def hmmlearn_model(problem: Problem) -> tuple[Any, np.ndarray, list[int]]:
    from hmmlearn.hmm import GaussianHMM

    n, t, d = problem.x.shape
    model = GaussianHMM(
        len(problem.initial), "diag", implementation="scaling", init_params="", n_iter=N_ITER, tol=-np.inf,
        min_covar=0, covars_prior=0, covars_weight=0,
    )  # fmt: skip
    model.startprob_, model.transmat_, model.n_features = problem.initial, problem.transition, d
    model.means_, model.covars_ = problem.means, problem.variances
    return model, problem.x.reshape(-1, d).astype(np.float64), [t] * n


def hmmlearn_e_step(problem: Problem) -> tuple[Callable[[], Any], Callable[[], float]]:
    model, x, lengths = hmmlearn_model(problem)
    return lambda: model._do_estep(x, lengths), lambda: float(model.score(x, lengths))


def hmmlearn_fit(problem: Problem) -> jaxem.HMMParams:
    model, x, lengths = hmmlearn_model(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, lengths)
    variances = np.diagonal(model.covars_, axis1=1, axis2=2)
    bank = jaxem.NormalParams(*map(jnp.asarray, (model.means_, variances)))
    return jaxem.HMMParams(model.startprob_, model.transmat_, bank)


if __name__ == "__main__":
    main()
