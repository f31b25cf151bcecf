"""Hidden Markov models beside hmmlearn's "scaling" and dynamax: an E step, a whole fit, and what float32 keeps.

    python -m benchmarks.hidden_markov [--repeats N] [--one-core] [--digits]

Same series of normal emissions, same params, same run, repetitions in turn; time of the processor, which others
disturb less than that of the clock on the wall. The E step of jaxem is that of the loop on its fast path, float32,
steps prepared once as the loop holds them; that of hmmlearn its own `_do_estep`, the only precision it has; that of
dynamax, where it is installed, `e_step` under vmap and jit, float32. A fit makes 20 iterations from the same start,
from NumPy arrays to params, compile time apart. The column "log-likelihood" is the mean of a step at the params of the
E step, or after the fit, then computed by jaxem in float64. `--digits` is about one series of a million steps.
"""

import argparse
import functools
import os
import time
import warnings
from collections.abc import Callable
from importlib import util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table, x64
from jaxem.fold.folded import Folded
from jaxem.latent.chain import LINEAR, posterior_of

# series, steps, states, columns: the ratios to hmmlearn and to dynamax that are asked for
AT_LEAST = {(5000, 200, 3, 1): (40.0, 8.0), (200, 500, 5, 3): (15.0, 4.0), (1, 100_000, 4, 2): (8.0, 4.0)}
FITTED, AT_LEAST_FIT, N_ITER = (5000, 200, 3, 1), 30.0, 20
LONG, N_STATES = 1_000_000, 8


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
    parser.add_argument("--digits", action="store_true", help="what float32 keeps, and nothing else")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    has_dynamax = util.find_spec("dynamax") is not None
    print(machine("hmmlearn", *["dynamax"] * has_dynamax))
    if options.digits:
        print(table(digits_rows()))
        return
    rows = [
        ["n, t, k, d", "compile s", "jaxem ms", "hmmlearn ms", "ratio", "dynamax ms", "ratio", "log-likelihood, each"]
    ]
    rows += [e_step_row(shape, options.repeats, has_dynamax) for shape in AT_LEAST]
    print(table(rows))
    print(f"\n{N_ITER} iterations from arrays to params")
    rows = [["n, t, k, d", "compile s", "jaxem s", "hmmlearn s", "ratio", "log-likelihood, each"]]
    print(table([*rows, fit_row(FITTED, max(2, options.repeats // 2))]))


def e_step_row(shape: tuple[int, int, int, int], repeats: int, has_dynamax: bool) -> list[str]:
    problem = problem_of(*shape)
    steps = {"jaxem": jaxem_e_step(problem), "hmmlearn": hmmlearn_e_step(problem)}
    if has_dynamax:
        steps["dynamax"] = dynamax_e_step(problem)
    calls = {name: call for name, (call, _) in steps.items()}
    compiling = {name: seconds(call, time.process_time) for name, call in calls.items()}
    spent = medians(interleaved(calls, repeats, time.process_time))
    row = [", ".join(map(str, shape)), f"{compiling['jaxem'] - spent['jaxem']:.2f}", f"{1e3 * spent['jaxem']:.1f}"]
    for name, asked in zip(("hmmlearn", "dynamax"), AT_LEAST[shape], strict=True):
        if name in spent:
            row += [f"{1e3 * spent[name]:.1f}", limit(spent[name] / spent["jaxem"], at_least=asked, form=".1f")]
        else:
            row += ["", "not installed"]
    return [*row, ", ".join(f"{log_lik() / (shape[0] * shape[1]):.6f}" for _, log_lik in steps.values())]


def fit_row(shape: tuple[int, int, int, int], repeats: int) -> list[str]:
    problem = problem_of(*shape)
    ours, theirs = functools.partial(jaxem_fit, problem), functools.partial(hmmlearn_fit, problem)
    compiling = seconds(ours, time.process_time)
    spent = medians(interleaved({"ours": ours, "theirs": theirs}, repeats, time.process_time))
    steps = shape[0] * shape[1]
    return [
        ", ".join(map(str, shape)),
        f"{compiling - spent['ours']:.2f}",
        f"{spent['ours']:.2f}",
        f"{spent['theirs']:.2f}",
        limit(spent["theirs"] / spent["ours"], at_least=AT_LEAST_FIT, form=".1f"),
        f"{log_lik(problem, ours()) / steps:.6f}, {log_lik(problem, theirs()) / steps:.6f}",
    ]


def digits_rows() -> list[list[str]]:
    """float32 against float64 of the same rounded numbers: one series, and the memory that its E step takes."""
    rows = [["1 series, 10^6 steps, 8 states", "temporaries MB", "log-likelihood off by", "smoothed", "pairs"]]
    for name, problem in long_problems().items():
        low, temporaries = long_e_step(problem, np.float32)
        with x64():
            high, _ = long_e_step(problem, np.float64)
        off = [np.abs(np.asarray(a, np.float64) - b) for a, b in zip(low, high, strict=True)]
        rows.append([
            name,
            limit(temporaries / 1e6, at_most=200, form=".0f"),
            limit(float(off[0].max()), at_most=1, form=".3f"),
            limit(float(off[1].max()), at_most=1e-4, form=".1e"),
            limit(float(off[2].max() / high[2].max()), at_most=1e-4, form=".1e"),
        ])  # fmt: skip
    return rows


def long_problems() -> dict[str, Problem]:
    usual = problem_of(1, LONG, N_STATES, 1)
    usual = Problem(*[field.astype(np.float32) for field in usual])
    stays = np.full((N_STATES, N_STATES), 1e-7 / (N_STATES - 1), np.float32)
    np.fill_diagonal(stays, 1 - 1e-7)
    far = usual.x.copy()
    far[0, ::1000] += 170  # some 10⁴ nats
    level = usual._replace(x=(usual.x + np.float32(10_000)), means=usual.means + np.float32(10_000))
    return {
        "staying with 0.9": usual,
        "staying with 1 - 1e-7": usual._replace(transition=stays),
        "rows 10^4 nats from all": usual._replace(x=far),
        "at a level of 10^4": level,
    }


def long_e_step(problem: Problem, dtype: type) -> tuple[tuple[np.ndarray, ...], int]:
    """Log-likelihood, smoothed states and pairs, and the bytes of an E step on the fast path."""
    model, params, data = jaxem_model(problem, dtype)
    bound = jax.jit(jaxem.bind)(model, data, None)
    params, local = bound.to_local(params), bound.localised()
    held = jax.block_until_ready(jax.jit(lambda data: local.prepare(data, columns_first=True))(data))
    e_step = jax.jit(lambda params, held: local.e_step(params, held, None)).lower(params, held).compile()
    needed: Any = e_step.memory_analysis()

    @jax.jit
    def posterior(params: Any, held: Any) -> Any:
        found, log_lik = posterior_of(local._chain(params, held), jaxem.Soft(), None, numbers=LINEAR)
        return log_lik, found.states, found.pairs

    return tuple(map(np.asarray, posterior(params, held))), needed.temp_size_in_bytes


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


def dynamax_e_step(problem: Problem) -> tuple[Callable[[], Any], Callable[[], float]]:
    from dynamax.hidden_markov_model import DiagonalGaussianHMM  # type: ignore[import-not-found]

    cast = functools.partial(jnp.asarray, dtype=np.float32)
    model = DiagonalGaussianHMM(len(problem.initial), problem.x.shape[2])
    params, _ = model.initialize(
        jax.random.key(0), method="prior", initial_probs=cast(problem.initial),
        transition_matrix=cast(problem.transition), emission_means=cast(problem.means),
        emission_scale_diags=cast(np.sqrt(problem.variances)),
    )  # fmt: skip
    run, x = jax.jit(lambda params, x: jax.vmap(lambda series: model.e_step(params, series))(x)), cast(problem.x)
    return lambda: jax.block_until_ready(run(params, x)), lambda: float(jnp.sum(run(params, x)[1]))


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
