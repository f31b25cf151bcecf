"""Time of one EM iteration of mixtures of other families than normals, beside a peer or a simpler family.

    python -m benchmarks.families

A Bernoulli mixture (latent classes) beside StepMix; the same with 5 % of the entries missing; a categorical mixture; a
gamma mixture beside an exponential one; a normal mixture of rows with missing entries beside tgmm. Same data, same
starts, same run. Time of an iteration = (time of m2 iterations - time of m1) / (m2 - m1), the median of interleaved
repetitions: what is paid once a call cancels. jaxem runs with status, history and safeguards on (`tol=-1.`). StepMix
(`pip install stepmix`) runs its own `_e_step` and `_m_step` in float64, as it does in `fit`; tgmm (`pip install tgmm`,
which brings PyTorch) its `fit` in float32. The column "objective" is the mean log-likelihood after three iterations, by
NumPy.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

import jaxem
from benchmarks import interleaved, limit, machine, medians, seconds, table, without_blas_overrides

SHAPE = (200_000, 100, 10)
LOW, HIGH, PEER_HIGH = 3, 23, 6
AT_LEAST_PEER = 10.0
AT_MOST_MISSING = 2.0
AT_MOST_EXPONENTIAL = 1.5
MISSING = 0.05
INCOMPLETE = (10_000, 8, 3)
AT_LEAST_TGMM = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description="Time of one EM iteration.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, two repetitions")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions")
    options = parser.parse_args()
    without_blas_overrides()
    scale, repeats = (10, 2) if options.quick else (1, options.repeats)
    print(machine("scipy"))
    latent_classes(SHAPE[0] // scale, *SHAPE[1:], repeats)
    positive(1_000_000 // scale, repeats)
    for share in (0.05, 0.3):
        incomplete_rows(share, repeats)


def iteration_times(runs: dict[str, Callable[[int], Any]], highs: dict[str, int], repeats: int) -> dict[str, float]:
    """Seconds an iteration; `run(m)` makes m iterations and waits."""
    for name, run in runs.items():
        print(f"  {name}: first call {seconds(lambda run=run: run(LOW)):.2f} s", flush=True)
        run(highs[name])
    calls = {(name, m): (lambda run=run, m=m: run(m)) for name, run in runs.items() for m in (LOW, highs[name])}
    times = medians(interleaved(calls, repeats))  # type: ignore[arg-type]
    return {name: (times[name, highs[name]] - times[name, LOW]) / (highs[name] - LOW) for name in runs}  # type: ignore[index]


def fitter(family: Any, bank: Any, x: np.ndarray, dtype: Any) -> Callable[[int], Any]:
    """m iterations of jaxem; max_iter is static, so that each m compiles once."""
    k = jax.tree.leaves(bank)[0].shape[0]
    model = jaxem.Mixture(family, k)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), jaxem.MixtureParams(jnp.full(k, 1 / k), bank))
    rows = jnp.asarray(x, dtype)
    return lambda m: jax.block_until_ready(jaxem.fit(model, params, rows, tol=-1.0, max_iter=m)).params


def latent_classes(n: int, d: int, k: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    prob = rng.uniform(0.1, 0.9, (k, d))
    x = (rng.random((n, d)) < prob[rng.integers(0, k, n)]).astype(np.float32)
    start = rng.uniform(0.3, 0.7, (k, d))
    gaps = np.where(rng.random((n, d)) < MISSING, np.nan, x).astype(np.float32)
    bank = jaxem.BernoulliParams(start)  # type: ignore[arg-type]
    two = jaxem.CategoricalParams(np.stack([1 - start, start], -1))  # type: ignore[arg-type]
    runs = {
        "Bernoulli f32": fitter(jaxem.Bernoulli(), bank, x, np.float32),
        "Bernoulli f32, 5 % missing": fitter(jaxem.Bernoulli(missing=True), bank, gaps, np.float32),
        "Categorical f32": fitter(jaxem.Categorical(2), two, x, np.float32),
        "Categorical f32, 5 % missing": fitter(jaxem.Categorical(2, missing=True), two, gaps, np.float32),
    }
    highs = dict.fromkeys(runs, HIGH)
    if importlib.util.find_spec("stepmix"):
        runs["StepMix f64"] = stepmix(x.astype(np.float64), start)
        highs["StepMix f64"] = PEER_HIGH
    times = iteration_times(runs, highs, repeats)
    rows = [["unit", "iteration ms", "/ Bernoulli f32", "objective"]]
    mine = times["Bernoulli f32"]
    for name, run in runs.items():
        data = gaps if "missing" in name else x
        objective = f"{mean_log_lik(data, *plain(run(LOW))):.6f}"
        rows.append([name, f"{1e3 * times[name]:.1f}", f"{times[name] / mine:.2f}", objective])
    print(f"\n(n, d, k) = ({n:,}, {d}, {k}), zeros and ones")
    print(table(rows))
    if "StepMix f64" in times:
        print(f"StepMix / Bernoulli f32: {limit(times['StepMix f64'] / mine, at_least=AT_LEAST_PEER, form='.1f')}")
    for name in ("Bernoulli", "Categorical"):
        ratio = times[f"{name} f32, 5 % missing"] / times[f"{name} f32"]
        print(f"{name}, missing / complete: {limit(ratio, at_most=AT_MOST_MISSING)}")


def positive(n: int, repeats: int) -> None:
    """A gamma mixture beside an exponential one, one column and four components."""
    rng = np.random.default_rng(0)
    means = np.array([0.5, 2.0, 8.0, 30.0])
    z = rng.integers(0, 4, n)
    x = (rng.gamma(3.0, size=n) * means[z] / 3)[:, None].astype(np.float32)
    gamma = jaxem.GammaParams(np.full((4, 1), 2.0), 2 / means[:, None])  # type: ignore[arg-type]
    runs = {
        "exponential f32": fitter(jaxem.Exponential(), jaxem.ExponentialParams(1 / means[:, None]), x, np.float32),  # type: ignore[arg-type]
        "gamma f32": fitter(jaxem.Gamma(), gamma, x, np.float32),
    }
    times = iteration_times(runs, dict.fromkeys(runs, HIGH), repeats)
    rows = [["unit", "iteration ms"], *([name, f"{1e3 * time:.1f}"] for name, time in times.items())]
    print(f"\n(n, d, k) = ({n:,}, 1, 4), positive")
    print(table(rows))
    print(f"gamma / exponential: {limit(times['gamma f32'] / times['exponential f32'], at_most=AT_MOST_EXPONENTIAL)}")


def incomplete_rows(share: float, repeats: int) -> None:
    """A normal mixture with full covariances of which this share of the entries is missing."""
    n, d, k = INCOMPLETE
    rng = np.random.default_rng(0)
    mean, root = 3 * rng.normal(size=(k, d)), np.eye(d) + 0.5 * rng.normal(size=(k, d, d))
    z = rng.integers(0, k, n)
    x = mean[z] + np.einsum("nij,nj->ni", root[z], rng.normal(size=(n, d)))
    x = np.where(rng.random((n, d)) < share, np.nan, x).astype(np.float32)
    bank = jaxem.NormalParams(mean + 0.5, np.stack([3 * np.eye(d)] * k))  # type: ignore[arg-type]
    name = f"FullNormal(missing=True) f32, {share:.0%}"
    runs = {name: fitter(jaxem.FullNormal(missing=True), bank, x, np.float32)}
    highs = {name: HIGH}
    if importlib.util.find_spec("tgmm"):
        runs["tgmm f32"] = tgmm(x, *(np.asarray(leaf, np.float32) for leaf in bank))
        highs["tgmm f32"] = PEER_HIGH + LOW
    times = iteration_times(runs, highs, repeats)
    patterns = len(np.unique(np.isnan(x), axis=0))
    print(f"\n(n, d, k) = ({n:,}, {d}, {k}), {share:.0%} of the entries missing in {patterns} patterns")
    print(table([["unit", "iteration ms"], *([unit, f"{1e3 * time:.1f}"] for unit, time in times.items())]))
    if "tgmm f32" in times:
        print(f"tgmm / jaxem: {limit(times['tgmm f32'] / times[name], at_least=AT_LEAST_TGMM, form='.1f')}")


def tgmm(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> Callable[[int], Any]:
    """m iterations of tgmm from the same start."""
    import warnings

    import torch
    from tgmm import GaussianMixture

    k, d = mean.shape
    start = {
        "init_means": torch.tensor(mean),
        "init_covariances": torch.tensor(covariance),
        "init_weights": torch.full((k,), 1 / k),
    }
    rows = torch.tensor(x)

    def run(m: int) -> Any:
        model = GaussianMixture(k, d, max_iter=m, tol=1e-30, missing="em", device="cpu", **start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is not to converge
            model.fit(rows)
        assert model.n_iter_ >= m - 1, f"tgmm stopped after {model.n_iter_} iterations of {m}"
        return model

    return run


def stepmix(x: np.ndarray, start: np.ndarray) -> Callable[[int], Any]:
    """m iterations of StepMix's own steps from the same start."""
    import warnings

    from stepmix.stepmix import StepMix

    k = len(start)
    model = StepMix(n_components=k, measurement="binary", max_iter=1, progress_bar=0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one iteration does not converge
        model.fit(x[:1000])

    def run(m: int) -> Any:
        model.weights_, model._mm.parameters["pis"] = np.full(k, 1 / k), start.copy()
        for _ in range(m):
            _, log_resp = model._e_step(x)
            model._m_step(x, np.exp(log_resp), None)
        return model.weights_, model._mm.parameters["pis"]

    return run


def plain(params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights and probabilities of a one."""
    weights, prob = params
    prob = np.asarray(getattr(prob, "prob", prob), np.float64)
    return np.asarray(weights, np.float64), prob if prob.ndim == 2 else prob[..., 1]


def mean_log_lik(x: np.ndarray, weights: np.ndarray, prob: np.ndarray) -> float:
    ones, zeros = np.nan_to_num(x == 1).astype(np.float64), (x == 0).astype(np.float64)
    joint = ones @ np.log(prob).T + zeros @ np.log1p(-prob).T + np.log(weights)
    return float(np.mean(np.asarray(logsumexp(joint, axis=1))))


if __name__ == "__main__":
    main()
