"""Rows that say nothing, and replicates that are drawn like the data."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from contract import MODELS
from helpers import KEY, first, made, statuses, take

import jaxem

_NAMES = ("multinomial", "poisson_prior", "bernoulli_missing", "gamma_missing")


def _with_empty_rows(name: str) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """Model, start, rows that all say something, and the same among others that do not."""
    entry = next(entry for entry in MODELS if entry.name == name)
    x = np.asarray(entry.data, float)
    x = x[~np.isnan(x).all(1)]
    empty = 0.0 if name == "multinomial" else np.nan
    return entry.build(), entry.start(), x, np.insert(x, [0, 3, 3, len(x)], empty, axis=0)


def _assert_same_fit(got: Any, want: Any) -> None:
    assert int(got.n_iter) == int(want.n_iter) and statuses(got) == statuses(want)
    np.testing.assert_allclose(got.log_lik, want.log_lik, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), got.params, want.params)


@first("name", _NAMES)
def test_rows_that_say_nothing_change_no_iteration_no_criterion_and_no_count(name):
    model, start, x, more = _with_empty_rows(name)
    some, both = (jaxem.fit(model, start, rows) for rows in (x, more))
    _assert_same_fit(both, some)
    assert np.all(np.isfinite(model.responsibilities(both.params, more)))
    for criterion in ("bic", "aic", "icl"):
        want, got = (getattr(some.model, criterion)(some.params, rows) for rows in (x, more))
        np.testing.assert_allclose(got, want, rtol=1e-10)
    traced = jax.jit(lambda rows: jaxem.fit(model, start, rows))(more)  # where the rows have no values yet
    _assert_same_fit(traced, some)


def test_every_driver_leaves_out_rows_that_say_nothing():
    model, start, x, more = _with_empty_rows("multinomial")
    want = jaxem.fit(model, start, x)
    lanes = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), start)
    many = jaxem.fit_batch(model, lanes, np.stack([more, more]))
    _assert_same_fit(take(replace(many, lane_efficiency=None), 1), want)
    ids = np.zeros(len(more), int)
    one = jax.tree.map(lambda leaf: leaf[None], start)
    groups = jaxem.fit_groups(model, KEY, more, ids, init=one, algorithm=jaxem.EM())
    np.testing.assert_allclose(groups.log_lik[0], want.log_lik, rtol=1e-10)
    stream = jaxem.fit_stream(model, start, lambda: iter([(more[:9], None), (more[9:], None)]))
    assert int(stream.n_iter) == int(want.n_iter)
    np.testing.assert_allclose(stream.log_lik, want.log_lik, rtol=1e-10)


def test_fits_of_nothing_but_rows_that_say_nothing_have_too_few():
    model = jaxem.Mixture(jaxem.Multinomial(), 2)
    start = made(
        jaxem.MixtureParams, np.full(2, 0.5), made(jaxem.MultinomialParams, np.array([[0.7, 0.3], [0.2, 0.8]]))
    )
    x = np.zeros((6, 2))
    x[4] = 1, 2
    assert statuses(jaxem.fit(model, start, x)) == [jaxem.Status.TOO_FEW]


def test_starts_are_not_drawn_from_rows_that_say_nothing():
    rng = np.random.default_rng(0)
    x = np.r_[rng.multinomial(10, [0.2, 0.3, 0.5], 50), rng.multinomial(10, [0.6, 0.3, 0.1], 50), np.zeros((60, 3))]
    model = jaxem.Mixture(jaxem.Multinomial(), 2)
    draw = jax.jit(jax.vmap(lambda key: model.init(key, x).components.prob))
    prob = np.asarray(draw(jax.random.split(KEY, 20)))
    assert np.all(np.ptp(prob[:, :, 0], axis=1) > 0.05), "a start gave a component to the empty rows"


def test_a_labelled_row_without_an_entry_tells_the_weights():
    model, _, x, _ = _with_empty_rows("poisson_prior")
    model = jaxem.Mixture(jaxem.Poisson(missing=True), 3)
    start = model.init(KEY, x)
    rows, known = np.r_[x, np.full((30, x.shape[1]), np.nan)], np.r_[np.full(len(x), -1), np.full(30, 2)]
    free, told = (jaxem.fit(model, start, jaxem.labelled(rows, k), tol=1e-9) for k in (np.full(len(rows), -1), known))
    assert told.params.weights[2] > free.params.weights[2] + 0.05


# --- replicates of the likelihood-ratio test


def _counts(shape: Any) -> Any:
    return np.random.default_rng(1).poisson(3.0, shape).astype(float)


_X = np.c_[np.ones(12), np.linspace(-1, 1, 12)]
_OFFSET = np.linspace(0, 1, 12)
_GAPS = np.where(np.arange(24).reshape(12, 2) % 5 == 0, np.nan, _counts((12, 2)))


@pytest.mark.parametrize(
    ("family", "data", "kept"),
    [
        (jaxem.Poisson(missing=True), _GAPS, lambda x: np.isnan(x)),
        (jaxem.FullNormal(missing=True), _GAPS, lambda x: np.isnan(x)),
        (jaxem.Multinomial(), _counts((12, 3)), lambda x: x.sum(1)),
        (jaxem.PoissonRegression(), (_X, _counts(12), _OFFSET), lambda x: (x[0], x[2])),
        (jaxem.LogisticRegression(), (_X, _counts((12, 2))), lambda x: (x[0], x[1].sum(1))),
        (jaxem.StudentTRegression(), (_X, _counts(12)), lambda x: x[0]),
        (
            jaxem.Product(a=jaxem.Poisson(missing=True), b=jaxem.LinearRegression()),
            {"a": _GAPS, "b": (_X, _counts(12))},
            lambda x: (np.isnan(x["a"]), x["b"][0]),
        ),
        (jaxem.OneOf(jaxem.PointMass(), jaxem.PoissonRegression()), (_X, _counts(12)), lambda x: x[0]),
    ],
    ids=["missing", "normal", "totals", "offset", "trials", "robust", "product", "one of"],
)
def test_draws_in_the_place_of_rows_have_what_is_no_outcome_as_the_rows_do(family, data, kept):
    model = jaxem.bind(jaxem.Mixture(family, 2), data, None)
    params = model.init(KEY, data)
    drawn = jax.jit(model.sample_like)(params, KEY, data)
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, data)
    jax.tree.map(np.testing.assert_array_equal, kept(drawn), kept(data))
    other = model.sample_like(params, jax.random.key(9), data)
    assert any(
        not np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (drawn, other)), strict=True)
    )


def test_draws_in_the_place_of_labelled_and_gated_rows_have_their_labels_and_covariates():
    model = jaxem.Mixture(jaxem.Poisson(), 2, gate=jaxem.SoftmaxGate())
    known = np.r_[np.zeros(4, int), np.ones(4, int), np.full(4, -1)]
    data = jaxem.labelled(jaxem.gated(_counts((12, 1)), _X), known)
    gate = made(jaxem.GateParams, np.zeros((2, 2)))
    params = made(jaxem.MixtureParams, gate, made(jaxem.PoissonParams, np.array([[0.0], [50.0]])))
    drawn = model.sample_like(params, KEY, data)
    np.testing.assert_array_equal(drawn.allowed, known)
    np.testing.assert_array_equal(drawn.data.covariates, _X)
    rows = np.asarray(drawn.data.data)[:, 0]
    assert np.all(rows[:4] == 0) and np.all(rows[4:8] > 10)


def test_the_null_law_of_rows_with_gaps_is_that_of_the_rows_that_say_something():
    x = np.random.default_rng(0).standard_t(4, size=(25, 1))
    one, two = (jaxem.Mixture(jaxem.Poisson(missing=True), k) for k in (1, 2))
    x = np.floor(np.abs(3 * x))
    run = lambda x: jaxem.likelihood_ratio_test(one, two, KEY, x, n_replicates=19, n_restarts=1)  # noqa: E731
    want, got = run(x), run(np.r_[x, np.full((25, 1), np.nan)])
    np.testing.assert_allclose(got.statistic, want.statistic, rtol=1e-6)
    assert abs(np.median(got.replicates) - np.median(want.replicates)) < 1.0


def test_a_mixture_of_regressions_has_a_likelihood_ratio_test():
    rng = np.random.default_rng(0)
    t = rng.normal(size=60)
    data = np.c_[np.ones(60), t], np.where(np.arange(60) < 30, 3.0, -3.0) * t + 0.3 * rng.normal(size=60)
    one, two = (jaxem.Mixture(jaxem.LinearRegression(), k) for k in (1, 2))
    assert jaxem.likelihood_ratio_test(one, two, KEY, data, n_replicates=19, n_restarts=2).p_value == 0.05


def test_labelled_data_are_tested_between_models_of_as_many_components():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2)) + 4.0 * (np.arange(30) % 2 == 0)[:, None]
    data = jaxem.labelled(x, np.where(np.arange(30) < 8, (np.arange(30) + 1) % 2, -1))
    null, other = jaxem.Mixture(jaxem.SphericalNormal(), 2), jaxem.Mixture(jaxem.DiagonalNormal(), 2)
    test = jaxem.likelihood_ratio_test(null, other, KEY, data, n_replicates=9, n_restarts=1)
    assert test.statistic > -1e-6 and np.all(test.replicates > -1e-3) and test.p_value > 0.05
