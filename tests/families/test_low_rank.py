"""Mixtures of factor analysers. The cases and where they come from: `tests/reference/README.md`."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from contract_cases import quick_jit
from helpers import made

import jaxem

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "low_rank_cases.json").read_text("utf-8"))["cases"]}
KEY = jax.random.key(0)


def _bank(k: int, d: int, q: int, seed: int = 0) -> jaxem.LowRankNormalParams:
    rng = np.random.default_rng(seed)
    leaves = rng.normal(size=(k, d)), rng.normal(size=(k, d, q)), rng.uniform(0.2, 1.0, (k, d))
    return made(jaxem.LowRankNormalParams, *map(jnp.asarray, leaves))


def _covariance(bank: Any) -> np.ndarray:
    loadings, noise = np.asarray(bank.loadings), np.asarray(bank.noise)
    return loadings @ loadings.transpose(0, 2, 1) + noise[:, :, None] * np.eye(noise.shape[1])


def _draws(n: int, d: int, q: int, k: int = 1) -> np.ndarray:
    model = jaxem.Mixture(jaxem.LowRankNormal(q), k)
    bank = _bank(k, d, q)
    params = made(jaxem.MixtureParams, jnp.full(k, 1 / k), bank._replace(mean=6 * bank.mean))
    return np.asarray(model.sample(params, KEY, n)[0])


def _fit(model: jaxem.Mixture, x: np.ndarray, **options: Any) -> jaxem.FitResult:
    result = jaxem.fit(model, model.init(KEY, x), x, **options)
    history = np.asarray(result.history)[: int(result.n_iter) + 1]
    assert np.all(np.diff(history) > -1e-9)
    return result


@pytest.mark.parametrize("q", [2, 5])
def test_the_density_is_that_of_the_full_covariance(q):
    bank, x = _bank(2, 5, q), np.random.default_rng(1).normal(size=(30, 5)) * 2
    got = jaxem.LowRankNormal(q).log_prob(bank, jnp.asarray(x))
    for j, covariance in enumerate(_covariance(bank)):
        want = scipy.stats.multivariate_normal(np.asarray(bank.mean[j]), covariance).logpdf(x)
        np.testing.assert_allclose(got[:, j], want, rtol=1e-12)
    full = made(jaxem.NormalParams, bank.mean, jnp.asarray(_covariance(bank)))
    np.testing.assert_allclose(got, jaxem.FullNormal().log_prob(full, jnp.asarray(x)), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fa_iris_1", "fa_wine_2"])
def test_maximum_likelihood_factor_analysis(name):
    case = CASES[name]
    expected, tolerance = case["expected"], case["tolerance"]
    q = len(expected["params"]["loadings"][0])
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    x = np.array([[float(value) for value in row[: len(expected["params"]["psi"])]] for row in rows])
    model = jaxem.Mixture(jaxem.LowRankNormal(q, floor=0.0), 1)
    # one ψ of iris goes to 0, where EM creeps: the likelihood still rises when the parameters have their digits
    result = _fit(model, x, algorithm=jaxem.SQUAREM(), stop=jaxem.Objective(1e-12), max_iter=20_000).check()
    bank = result.params.components
    want = np.array(expected["params"]["loadings"])
    common = np.asarray(bank.loadings[0] @ bank.loadings[0].T)
    off = lambda got, want: float(np.max(abs(got - want) / np.maximum(1, abs(want))))  # noqa: E731
    found = off(bank.noise[0], np.array(expected["params"]["psi"])), off(common, want @ want.T)
    print(f"{name}: log-likelihood off by {result.log_lik - expected['loglik']:.1e}, psi and W Wᵀ by {found}")
    assert abs(float(result.log_lik) - expected["loglik"]) < tolerance["loglik_abs"]
    assert max(found) < tolerance["params_rel"]
    np.testing.assert_allclose(bank.mean[0], x.mean(0), rtol=1e-5)  # what `tol` leaves
    # the case counts no mean, and every loading
    assert int(model.n_parameters(result.params)) - x.shape[1] + q * (q - 1) // 2 == expected["df"]


@pytest.mark.slow
def test_one_component_is_factor_analysis_of_scikit_learn():
    from sklearn.decomposition import FactorAnalysis

    x = _draws(200, 7, 2)
    peer = FactorAnalysis(2, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(x)
    result = _fit(jaxem.Mixture(jaxem.LowRankNormal(2, floor=0.0), 1), x, algorithm=jaxem.SQUAREM(), tol=1e-12)
    np.testing.assert_allclose(result.log_lik, peer.score(x) * len(x), rtol=1e-8)
    bank = result.params.components
    np.testing.assert_allclose(_covariance(bank)[0], peer.get_covariance(), rtol=1e-3, atol=1e-4)
    canonical = jaxem.LowRankNormal(2).canonical(bank)
    np.testing.assert_allclose(_covariance(canonical), _covariance(bank), rtol=1e-10, atol=1e-12)
    product = np.asarray(canonical.loadings[0].T @ (canonical.loadings[0] / canonical.noise[0][:, None]))
    assert product[0, 0] > product[1, 1] and abs(product[0, 1]) < 1e-10 * product[1, 1]


@pytest.mark.slow
def test_a_mixture_separates_its_components_and_leaves_an_empty_one_finite():
    x = _draws(300, 6, 2, k=2)
    model = jaxem.Mixture(jaxem.LowRankNormal(2), 3, active=np.array([True, True, False]))
    result = _fit(model, x, tol=1e-9, max_iter=2000).check()
    bank = result.params.components
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
    assert np.any(np.asarray(bank.loadings[2]) != 0)  # from zero, EM would never leave
    order = np.argsort(np.asarray(bank.mean[:2, 0]))
    truth = _bank(2, 6, 2)
    want = np.argsort(np.asarray(truth.mean[:, 0]))
    np.testing.assert_allclose(bank.mean[order], 6 * truth.mean[want], atol=0.6)  # 3 standard errors
    np.testing.assert_allclose(bank.noise[order], truth.noise[want], atol=0.5)


def test_loadings_leave_a_start_that_favours_the_other_sign():
    z = np.random.default_rng(2).normal(size=(400, 3))
    x = z[:, :2] * 0.3 + z[:, 2:] * [1.0, -1.0]
    result = _fit(jaxem.Mixture(jaxem.LowRankNormal(1, floor=0.0), 1), x, tol=1e-12, max_iter=2000)
    np.testing.assert_allclose(_covariance(result.params.components)[0], np.cov(x.T, bias=True), rtol=1e-4)


def _shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    found = {tuple(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars}
    for inner in _inner(jaxpr):
        found |= _shapes(inner)
    return found


def _inner(jaxpr: Any) -> list[Any]:
    parts = [part for eqn in jaxpr.eqns for part in jax.tree.leaves(tuple(eqn.params.values()))]
    return [getattr(part, "jaxpr", part) for part in parts if hasattr(part, "eqns") or hasattr(part, "jaxpr")]


def test_an_em_step_makes_no_array_of_rows_times_components_times_columns():
    n, d, q, k = 211, 100, 3, 4
    model = jaxem.Mixture(jaxem.LowRankNormal(q), k)
    params = made(jaxem.MixtureParams, jnp.full(k, 1 / k), _bank(k, d, q))

    def step(params: Any, x: Any) -> Any:
        here = model.bind(x).recentred(params)
        return here.m_step(params, here.statistics(params, x, here.responsibilities(params, x)))

    shapes = _shapes(jax.make_jaxpr(step)(params, jnp.zeros((n, d))).jaxpr)
    assert (n, d) in shapes and (n, q) in shapes and (k, d, q) in shapes
    assert max(int(np.prod(shape)) for shape in shapes) == n * d
    assert not any(shape.count(d) > 1 for shape in shapes)


@pytest.mark.slow
def test_float32_far_from_the_origin_agrees_with_float64():
    x = (_draws(200, 6, 2, k=2) + 1e3).astype(np.float32)
    model = jaxem.Mixture(jaxem.LowRankNormal(2, floor=1e-3), 2)
    start = model.init(KEY, x.astype(float))
    options = {"tol": -1.0, "max_iter": 60}
    double = jaxem.fit(model, start, x.astype(float), **options)
    single = jaxem.fit(model, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), start), x, **options)
    np.testing.assert_allclose(single.log_lik, double.log_lik, rtol=1e-5)
    scale = np.sqrt(np.max(_covariance(double.params.components)))
    np.testing.assert_allclose(single.params.components.mean, double.params.components.mean, rtol=0, atol=1e-4 * scale)
    found = _covariance(single.params.components), _covariance(double.params.components)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4 * scale**2)


def test_moments_about_the_params_are_moments_about_the_pivot():
    x = jnp.asarray(_draws(60, 5, 2, k=2))
    model = jaxem.Mixture(jaxem.LowRankNormal(2), 2).bind(x)
    params = model.init(KEY, x)

    @quick_jit
    def step(model: Any) -> Any:
        stats = model.statistics(params, x, model.responsibilities(params, x))
        new = model.m_step(params, stats)
        return new, model.expected_log_joint(params, stats), model.expected_log_joint(new, stats)

    plain, residual = step(model), step(model.recentred(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), plain, residual)
    assert residual[2] > residual[1]


def test_what_does_not_fit_is_named():
    x = np.zeros((5, 2))
    params = made(jaxem.MixtureParams, np.ones(1), _bank(1, 2, 1))
    for rank in (0, 3):
        with pytest.raises(ValueError, match=f"rank: expected an int from 1 to the number of columns, 2, got {rank}"):
            jaxem.fit(jaxem.Mixture(jaxem.LowRankNormal(rank), 1), params, x)
    with pytest.raises(ValueError, match=r"params.components.loadings: expected shape \(1, 2, 2\)"):
        jaxem.fit(jaxem.Mixture(jaxem.LowRankNormal(2), 1), params, x)
    constant = np.stack([np.linspace(-1, 1, 9), np.ones(9)], 1)
    result = jaxem.fit(jaxem.Mixture(jaxem.LowRankNormal(1), 1), params, constant)
    assert jaxem.Status(int(result.status)) is jaxem.Status.DEGENERATE  # a column without variance
