"""Counts and categories: the edges of their spaces, what is missing, and data outside of the support."""

import math
from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import first, made, mixture_params, slow

import jaxem
from jaxem import Status
from jaxem.numerics.special import poisson_log_prob

KEY = jax.random.key(0)


def poisson_start(rates: Any, dtype: Any = np.float64) -> jaxem.MixtureParams:
    return mixture_params(made(jaxem.PoissonParams, np.asarray(rates, dtype)))


# --- Poisson


def _log_poisson(x: int, rate: float) -> float:
    """To forty digits."""
    with localcontext() as context:
        context.prec = 40
        n, mean = Decimal(x), Decimal(rate)
        if x <= 2000:
            log_factorial = Decimal(math.factorial(x)).ln()
        else:  # the next term of Stirling's series is below 1e-45
            series = 1 / (12 * n) - 1 / (360 * n**3) + 1 / (1260 * n**5) - 1 / (1680 * n**7)
            two_pi = 2 * Decimal("3.1415926535897932384626433832795028841972")
            log_factorial = n * n.ln() - n + (two_pi * n).ln() / 2 + series
        return float((n * mean.ln() if x else 0) - mean - log_factorial)


@first("dtype", [np.float64, np.float32])
def test_the_poisson_density_keeps_its_digits_for_counts_of_any_size(dtype):
    pairs = [
        (0, 0.7),
        (1, 2),
        (3, 3),
        (15, 14),
        (16, 16.5),
        (17, 40),
        (7, 1e-5),
        (100, 100),
        (1000, 1003),
        (10**6, 1000128),
    ]
    pairs += [(10**6, 999936.0), (10**6, 5e5), (2**24, 2.0**24 + 4096)]
    x = np.array([pair[0] for pair in pairs])
    rate = np.array([pair[1] for pair in pairs], dtype)
    got = jax.jit(poisson_log_prob)(jnp.asarray(x, dtype), rate)
    want = [_log_poisson(int(a), float(b)) for a, b in zip(x, rate, strict=True)]
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(got, want, rtol=20 * eps, atol=20 * eps)
    np.testing.assert_array_equal(poisson_log_prob(jnp.array([0.0, 3.0]), jnp.zeros(2)), [0, -np.inf])


@first("dtype", [np.float64, np.float32])
def test_large_counts_are_fitted_as_well_as_small_ones(dtype):
    """On the stable path in float32: rates of 10⁶ that differ by three of their standard deviations."""
    x = np.random.default_rng(0).poisson(np.where(np.arange(400) % 2, 1.003e6, 1e6))[:, None]
    start = poisson_start([[0.999e6], [1.004e6]], dtype)
    fit = lambda x, start: jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), start, x, tol=1e-5).check()  # noqa: E731
    double = fit(x.astype(np.float64), poisson_start([[0.999e6], [1.004e6]]))
    got = fit(x.astype(dtype), start)
    log_joint = scipy.stats.poisson.logpmf(x, np.asarray(double.params.components.rate)[:, 0])
    peer = scipy.special.logsumexp(log_joint, b=np.asarray(double.params.weights)[None], axis=1).sum()
    # scipy's own terms are of size 1e7, so it keeps 9 digits
    np.testing.assert_allclose(double.log_lik, peer, rtol=1e-9)
    np.testing.assert_allclose(got.log_lik, double.log_lik, rtol=1e-5)
    np.testing.assert_allclose(got.params.components.rate, double.params.components.rate, rtol=1e-5)


@slow
@first("dtype", [np.float64, np.float32])
def test_a_rate_of_zero_is_a_legal_boundary(dtype):
    rng = np.random.default_rng(1)
    far = np.arange(60) % 2 == 1
    x = np.stack([rng.poisson(np.where(far, 30, 0)), rng.poisson(np.where(far, 25, 3))], 1).astype(dtype)
    model, start = jaxem.Mixture(jaxem.Poisson(), 2), poisson_start([[0.5, 2.0], [20.0, 20.0]], dtype)
    result = jaxem.fit(model, start, x, tol=1e-5).check()
    rate = np.asarray(result.params.components.rate)
    assert rate[0, 0] < 1e-10
    exact = result.params._replace(components=made(jaxem.PoissonParams, jnp.asarray(rate).at[0, 0].set(0)))
    want = scipy.special.logsumexp(
        scipy.stats.poisson.logpmf(x[:, None], np.asarray(exact.components.rate)[None]).sum(2),
        b=np.asarray(exact.weights)[None],
        axis=1,
    )
    np.testing.assert_allclose(model.log_prob(exact, jnp.asarray(x)), want, rtol=1e-5 if dtype == np.float32 else 1e-13)
    # the boundary is a fixed point, and the derivative there is finite
    again = jaxem.fit(model, exact, x, tol=1e-5).check()
    assert float(again.params.components.rate[0, 0]) == 0
    weight = jnp.ones(60, dtype)
    slope = jax.grad(lambda w: jnp.sum(jaxem.fit(model, exact, x, sample_weight=w).params.components.rate))(weight)
    assert np.all(np.isfinite(slope)) and np.max(np.abs(slope)) > 0
    errors = jaxem.standard_errors(model, exact, x)
    assert int(errors.status) == Status.CONVERGED
    assert float(errors.standard_errors.components.rate[0, 0]) == 0
    assert np.all(np.asarray(errors.standard_errors.components.rate).ravel()[1:] > 0)
    with pytest.raises(RuntimeError, match="NONFINITE"):  # counts that no component explains
        jaxem.fit(model, poisson_start(np.zeros((2, 2)), dtype), x).check()


def test_counts_that_are_none_are_named():
    model, start = jaxem.Mixture(jaxem.Poisson(), 2), poisson_start([[1.0, 1.0], [4.0, 4.0]])
    x = np.random.default_rng(2).poisson(3.0, (20, 2)).astype(float)
    for value in (-1.0, 2.5):
        bad = x.copy()
        bad[3, 1] = value
        with pytest.raises(ValueError, match=rf"non-negative integers for Poisson, got {value} in row 3, column 1"):
            jaxem.fit(model, start, bad)
        assert model.log_prob(start, jnp.asarray(bad))[3] == -np.inf
        weight = np.where(np.arange(20) == 3, 0.0, 1.0)
        jaxem.fit(model, start, bad, sample_weight=weight).check()
        both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), start)
        lanes = jaxem.fit_batch(model, both, np.stack([bad, x]))
        assert [int(status) for status in lanes.status] == [Status.NONFINITE, Status.CONVERGED]


@slow
def test_every_driver_takes_counts():
    rng = np.random.default_rng(3)
    x = rng.poisson(np.where(np.arange(60) % 2, 12, 2))[:, None]  # integers
    model = jaxem.Mixture(jaxem.Poisson(), 2)
    best = jaxem.fit_restarts(model, KEY, x, n_restarts=4).check()
    rates = np.sort(np.asarray(best.params.components.rate)[:, 0])
    np.testing.assert_allclose(rates, [2, 12], rtol=0.25)
    groups = jaxem.fit_groups(model, KEY, x, np.repeat([5, 9], 30), n_restarts=2)
    assert np.asarray(groups.params.components.rate).shape == (2, 2, 1)
    replicates = jaxem.bootstrap(model, best.params, x, KEY, n_replicates=6)
    assert np.all(np.isfinite(jax.tree.leaves(replicates.params)[0]))
    assert int(jaxem.select([jaxem.Mixture(jaxem.Poisson(), k) for k in (1, 2, 3)], KEY, x, n_restarts=2).index) == 1
    draws, _ = model.sample(best.params, KEY, 50)
    assert draws.shape == (50, 1) and bool(jnp.all(draws == jnp.round(draws)))


def test_missing_counts_are_left_out_exactly():
    rng = np.random.default_rng(4)
    x = rng.poisson(np.array([[2.0, 9.0, 1.0], [8.0, 3.0, 6.0]])[np.arange(40) % 2]).astype(float)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[7] = np.nan
    model, start = jaxem.Mixture(jaxem.Poisson(missing=True), 2), poisson_start([[3.0, 6.0, 1.0], [6.0, 3.0, 4.0]])
    result = jaxem.fit(model, start, x, tol=1e-12).check()
    _assert_left_out(result, x, lambda x, rate: scipy.stats.poisson.logpmf(x, rate))
    with pytest.raises(ValueError, match="NaN or inf in rows"):
        jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), start, x)


def _assert_left_out(result: jaxem.FitResult, x: np.ndarray, log_prob: Any) -> None:
    """The log-likelihood by a loop over the entries that were observed, and the fixed point of means by hand."""
    weights, bank = np.asarray(result.params.weights), np.asarray(result.params.components[0])
    joint = np.log(weights)[None] + np.zeros((len(x), 1))
    for i, a in zip(*np.nonzero(~np.isnan(x)), strict=True):
        joint[i] += log_prob(x[i, a], bank[:, a])
    np.testing.assert_allclose(result.log_lik, np.sum(scipy.special.logsumexp(joint, axis=1)), rtol=1e-13)
    by_row = np.asarray(result.model.log_prob(result.params, jnp.asarray(x)))
    np.testing.assert_allclose(by_row, scipy.special.logsumexp(joint, axis=1), rtol=1e-12, atol=1e-13)
    assert np.abs(by_row[np.isnan(x).all(1)]).max() < 1e-15  # log 1
    r, seen = scipy.special.softmax(joint, axis=1), ~np.isnan(x)
    if bank.ndim == 2:
        np.testing.assert_allclose(bank, (r.T @ np.where(seen, x, 0)) / (r.T @ seen), rtol=1e-4, atol=1e-7)
    else:
        shares = np.stack([(r.T @ (x == code)) / (r.T @ seen) for code in range(bank.shape[2])], -1)
        np.testing.assert_allclose(bank, shares, rtol=1e-4, atol=1e-7)


# --- Bernoulli, categorical, multinomial


def _gaps(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    x[7] = np.nan
    return x


def test_missing_answers_are_left_out_exactly():
    rng = np.random.default_rng(5)
    z = np.arange(80) % 2
    p = np.array([[0.8, 0.7, 0.3, 0.6], [0.3, 0.2, 0.75, 0.7]])
    bits = _gaps((rng.random((80, 4)) < p[z]).astype(float), rng)
    model, start = jaxem.Mixture(jaxem.Bernoulli(missing=True), 2), mixture_params(made(jaxem.BernoulliParams, p))
    result = jaxem.fit(model, start, bits, tol=1e-12, max_iter=2000).check()
    _assert_left_out(result, bits, lambda x, prob: np.log(prob if x else 1 - prob))
    shares = np.array([[[0.6, 0.3, 0.1]] * 4, [[0.1, 0.3, 0.6]] * 4])
    codes = np.stack([[rng.choice(3, p=shares[j, a]) for a in range(4)] for j in z]).astype(float)
    codes[:, 3] = np.minimum(codes[:, 3], 1)  # a column of two categories
    shares[:, 3] = [[0.7, 0.3, 0], [0.3, 0.7, 0]]
    codes = _gaps(codes, rng)
    model = jaxem.Mixture(jaxem.Categorical((3, 3, 3, 2), missing=True), 2)
    result = jaxem.fit(
        model, mixture_params(made(jaxem.CategoricalParams, shares)), codes, tol=1e-12, max_iter=2000
    ).check()
    _assert_left_out(result, codes, lambda x, prob: np.log(prob[:, int(x)]))
    assert int(model.n_parameters(result.params)) == 1 + 2 * (2 + 2 + 2 + 1)
    fine = model.init(KEY, codes)  # k-means sees an entry that is missing at the shares of its column
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(fine))


@slow
@first("dtype", [np.float64, np.float32])
@first("missing", [True, False])
def test_probabilities_of_zero_and_one_are_legal(dtype, missing):
    z = np.arange(60) % 3 == 0
    rng = np.random.default_rng(6)
    x = np.stack([z, z, rng.random(60) < np.where(z, 0.7, 0.2)], 1).astype(dtype)
    bank = made(jaxem.BernoulliParams, np.array([[1, 1, 0.7], [0, 0, 0.2]], dtype))
    model, start = jaxem.Mixture(jaxem.Bernoulli(missing=missing), 2), mixture_params(bank)
    result = jaxem.fit(model, start, x).check()
    want = np.stack([x[z].mean(0), x[~z].mean(0)])
    np.testing.assert_allclose(result.params.components.prob, want, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(result.params.components.prob)[:, :2], want[:, :2])
    ones = np.asarray(result.params.components.prob)[:, 2]
    by_hand = (
        20 * np.log(1 / 3)
        + 40 * np.log(2 / 3)
        + sum(np.sum(np.log(np.where(x[rows, 2] == 1, p, 1 - p))) for rows, p in ((z, ones[0]), (~z, ones[1])))
    )
    np.testing.assert_allclose(result.log_lik, by_hand, rtol=1e-5 if dtype == np.float32 else 1e-13)
    strange = jnp.asarray([[1.0, 0.0, 1.0]], dtype)  # no component explains it
    assert model.log_prob(result.params, strange)[0] == -np.inf
    slope = jax.grad(lambda w: jnp.sum(jaxem.fit(model, start, x, sample_weight=w).params.components.prob))
    assert np.all(np.isfinite(slope(jnp.ones(60, dtype))))
    with pytest.raises(RuntimeError, match="NONFINITE"):
        jaxem.fit(model, start, np.concatenate([x[:-1], strange]), tol=1e-6).check()


@slow
def test_standard_errors_hold_what_lies_on_the_boundary():
    """A single component: √(p(1 − p)/n) of every share, 0 of a category never seen, whichever comes last."""
    rng = np.random.default_rng(7)
    codes = rng.choice(np.array([0, 2]), p=[0.3, 0.7], size=(50, 1)).astype(float)
    for family, params in (
        (jaxem.Categorical(4), lambda p: made(jaxem.CategoricalParams, p[None, None])),
        (jaxem.Multinomial(), lambda p: made(jaxem.MultinomialParams, p[None])),
    ):
        share = (codes == np.arange(4)).mean(0)
        x = codes if isinstance(family, jaxem.Categorical) else (codes == np.arange(4)).astype(float)
        model = jaxem.Mixture(family, 1)
        result = jaxem.fit(model, mixture_params(params(np.full(4, 0.25))), x).check()
        np.testing.assert_allclose(np.asarray(result.params.components.prob).ravel(), share, rtol=1e-12)
        errors = jaxem.standard_errors(model, result.params, x)
        assert int(errors.status) == Status.CONVERGED
        want = np.sqrt(share * (1 - share) / 50)
        np.testing.assert_allclose(np.ravel(errors.standard_errors.components.prob), want, rtol=1e-8, atol=1e-15)


@slow
@first("dtype", [np.float64, np.float32])
def test_the_multinomial_density_is_that_of_scipy(dtype):
    rng = np.random.default_rng(8)
    p = rng.dirichlet(np.ones(6), 3).astype(dtype)
    p[0, 2] = 0
    p = p / p.sum(1, keepdims=True)
    x = np.stack(
        [
            rng.multinomial(total, p[i % 3].astype(float) / p[i % 3].astype(float).sum())
            for i, total in enumerate([0, 1, 5, 40, 900, 10**5] * 2)
        ]
    )
    got = jaxem.Multinomial().log_prob(made(jaxem.MultinomialParams, p), jnp.asarray(x, dtype))
    exact = p.astype(float) / p.astype(float).sum(1, keepdims=True)
    want = np.asarray(scipy.stats.multinomial.logpmf(x[:, None], x.sum(1)[:, None], exact[None]))
    far = np.abs(want) > 1e4  # rows of another component: digits in proportion
    rtol = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
    seen = np.isfinite(want) & ~far
    np.testing.assert_allclose(np.asarray(got)[seen], want[seen], rtol=rtol, atol=rtol)
    # and the fast path is the stable one
    bound = jaxem.Multinomial().bind(jnp.asarray(x[:10], dtype), None)
    fast = bound.log_prob(
        made(jaxem.MultinomialParams, jnp.asarray(p)), bound.prepare(jnp.asarray(x[:10], dtype), None)
    )
    np.testing.assert_allclose(
        np.where(seen[:10], fast, 0), np.where(seen[:10], np.asarray(got)[:10], 0), rtol=rtol, atol=3e-4
    )


@slow
def test_entries_outside_of_the_support_are_named():
    rng = np.random.default_rng(9)
    bits = rng.integers(0, 2, (20, 2)).astype(float)
    prob = np.array([[0.3, 0.4], [0.6, 0.7]])
    shares = np.array([[[0.5, 0.3, 0.2]] * 2, [[0.2, 0.3, 0.5]] * 2])
    cases = [
        (
            jaxem.Bernoulli(),
            made(jaxem.BernoulliParams, prob),
            2.0,
            "zeros and ones for Bernoulli, got 2.0 in row 3, column 1",
        ),
        (
            jaxem.Categorical(3),
            made(jaxem.CategoricalParams, shares),
            3.0,
            "codes below n_categories = 3 for Categorical, got 3.0",
        ),
        (jaxem.Categorical(3), made(jaxem.CategoricalParams, shares), 0.5, "got 0.5 in row 3"),
        (
            jaxem.Categorical((3, 2)),
            made(jaxem.CategoricalParams, shares * 0 + [0.5, 0.5, 0]),
            2.0,
            r"\(3, 2\) for Categorical, got 2.0",
        ),
        (
            jaxem.Multinomial(),
            made(jaxem.MultinomialParams, prob / prob.sum(1, keepdims=True)),
            -1.0,
            "non-negative integers for Multinomial, got -1.0",
        ),
    ]
    for family, bank, value, words in cases:
        bad = bits.copy()
        bad[3, 1] = value
        model, start = jaxem.Mixture(family, 2), mixture_params(bank)
        with pytest.raises(ValueError, match=words):
            jaxem.fit(model, start, bad)
        assert model.log_prob(start, jnp.asarray(bad))[3] == -np.inf
        both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), start)
        lanes = jaxem.fit_batch(model, both, np.stack([bad, bits]), max_iter=5)
        assert int(lanes.status[0]) == Status.NONFINITE and int(lanes.status[1]) != Status.NONFINITE


def test_shapes_and_options_that_do_not_fit_are_named():
    x = np.zeros((10, 3))
    start = lambda bank: mixture_params(bank)  # noqa: E731
    for family, bank, words in [
        (
            jaxem.Categorical(1),
            made(jaxem.CategoricalParams, np.ones((2, 3, 1))),
            "n_categories: expected an int ≥ 2",
        ),
        (
            jaxem.Categorical((2, 3)),
            made(jaxem.CategoricalParams, np.ones((2, 3, 3))),
            "one number for each of 3 columns, got 2",
        ),
        (
            jaxem.Categorical(4),
            made(jaxem.CategoricalParams, np.ones((2, 3, 3))),
            r"prob: expected shape \(2, 3, 4\)",
        ),
        (
            jaxem.Bernoulli(),
            made(jaxem.PoissonParams, np.ones((2, 3))),
            "expected BernoulliParams, got PoissonParams",
        ),
        (
            jaxem.Poisson(jaxem.GammaPrior(np.ones(2), 1.0)),
            made(jaxem.PoissonParams, np.ones((2, 3))),
            "prior.shape: expected",
        ),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            jaxem.fit(jaxem.Mixture(family, 2), start(bank), x)
    with pytest.raises(ValueError, match="total: expected the row total"):
        jaxem.Mixture(jaxem.Multinomial(), 2).sample(start(made(jaxem.MultinomialParams, np.ones((2, 3)) / 3)), KEY, 2)
