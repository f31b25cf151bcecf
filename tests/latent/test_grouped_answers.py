"""What is asked of a fit to grouped rows: rules, derivatives, errors, groups of a table; id by id, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.fold.folded import Folded
from jaxem.latent.units import sum_by_unit

U = 24
_rng = np.random.default_rng(1)
IDS = _rng.permutation(np.repeat(np.arange(U), _rng.integers(1, 5, U)))
N = len(IDS)
CENTRES = np.array([[0.0, 0.0], [3.0, 1.0]])
X = _rng.normal(size=(N, 2)) + CENTRES[(np.arange(U) % 2)[IDS]]
DATA = jaxem.grouped(X, IDS)
MODEL = jaxem.Mixture(jaxem.DiagonalNormal(floor=0.0), 2)


def _start() -> jaxem.MixtureParams:
    return jaxem.MixtureParams(jnp.array([0.4, 0.6]), jaxem.NormalParams(jnp.asarray(CENTRES + 0.3), jnp.ones((2, 2))))


def _joint(params: jaxem.MixtureParams) -> jax.Array:
    """log p(rows of the id, z = j), (u, k)."""
    mean, variance = params.components
    gaps = X[:, None] - mean[None]
    given = -0.5 * jnp.sum(gaps**2 / variance[None] + jnp.log(2 * jnp.pi * variance)[None], 2)
    return jnp.stack([given[IDS == i].sum(0) for i in range(U)]) + jnp.log(params.weights)[None]


def _mode(r: np.ndarray) -> jaxem.MixtureParams:
    """The M step of responsibilities of ids."""
    rows, count = r[IDS], r[IDS].sum(0)[:, None]
    mean = rows.T @ X / count
    variance = np.stack([rows[:, j] @ (X - mean[j]) ** 2 for j in range(2)]) / count
    return jaxem.MixtureParams(r.mean(0), jaxem.NormalParams(mean, variance))  # type: ignore[arg-type]


def _fit(weight: np.ndarray | None = None, start: jaxem.MixtureParams | None = None) -> jaxem.FitResult:
    start = _start() if start is None else start
    return jaxem.fit(MODEL, start, DATA, sample_weight=weight, tol=-1.0, max_iter=300)


def _first_mean(params: jaxem.MixtureParams) -> jax.Array:
    return params.components.mean[0, 0]


def test_every_rule_takes_the_ids_as_rows():
    joint, given = np.asarray(_joint(_start())), _rng.dirichlet([1.0, 1.0], U)
    softmax = lambda t: np.asarray(jax.nn.softmax(joint / t, 1))  # noqa: E731
    evidence = lambda t: t * jax.scipy.special.logsumexp(joint / t, 1).sum()  # noqa: E731
    bound = (given * (joint - np.log(given))).sum()
    cases = [
        (jaxem.Tempered(2.0), softmax(2.0), evidence(2.0)),
        (jaxem.Hard(), np.eye(2)[joint.argmax(1)], joint.max(1).sum()),
        (jaxem.Given(jnp.asarray(given[IDS])), given, bound),
    ]
    folded = Folded(jaxem.bind(MODEL, X, None), fast=False)
    for rule, r, objective in cases:
        stats, got = folded.e_step(_start(), DATA, None, rule)
        np.testing.assert_allclose(got, objective, rtol=1e-12)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), folded.m_step(_start(), stats), _mode(r)
        )
    stats, got = folded.e_step(_start(), DATA, None, jaxem.Sampled(), jax.random.key(1))
    count = U * np.asarray(folded.m_step(_start(), stats).weights)
    np.testing.assert_allclose(count, count.round(), atol=1e-12)  # of ids, each in one state
    np.testing.assert_allclose(got, evidence(1.0), rtol=1e-12)


def test_a_draw_in_the_place_of_grouped_rows_has_one_state_an_id():
    params = _start()._replace(components=jaxem.NormalParams(1000 * jnp.asarray(CENTRES), jnp.ones((2, 2))))
    known = np.where(IDS < 5, 1, -1)
    drawn = MODEL.sample_like(params, jax.random.key(0), jaxem.labelled(DATA, known))
    state = np.asarray(drawn.data.data)[:, 0] > 1500
    assert state[IDS < 5].all() and not state.all()
    assert all(len(set(state[i == IDS])) == 1 for i in range(U))


@pytest.mark.slow
def test_influence_and_sandwich_errors_are_those_of_ids():
    params = _fit().params
    influence, step = jaxem.influence(MODEL, params, DATA, of=_first_mean), 1e-3
    for i in (0, 11):
        up, down = (float(_first_mean(_fit(np.where(i == IDS, 1 + s, 1.0), params).params)) for s in (step, -step))
        np.testing.assert_allclose(influence[i], (down - up) / (2 * step), rtol=1e-5, atol=1e-7)

    def split(flat: jax.Array) -> jaxem.MixtureParams:
        weights = jnp.stack([flat[0], 1 - flat[0]])
        return jaxem.MixtureParams(weights, jaxem.NormalParams(flat[1:5].reshape(2, 2), flat[5:].reshape(2, 2)))

    evidence = lambda flat: jax.scipy.special.logsumexp(_joint(split(flat)), 1)  # noqa: E731
    flat = jnp.concatenate([params.weights[:1], *(leaf.ravel() for leaf in params.components)])
    scores = jax.jacfwd(evidence)(flat)
    inverse = jnp.linalg.inv(-jax.hessian(lambda flat: evidence(flat).sum())(flat))
    found = jaxem.standard_errors(MODEL, params, DATA, covariance=jaxem.Sandwich()).standard_errors
    got = np.concatenate([found.weights[:1], *(leaf.ravel() for leaf in found.components)])
    np.testing.assert_allclose(got, np.sqrt(np.diag(inverse @ scores.T @ scores @ inverse)), rtol=1e-9)


def test_lanes_share_ids_and_ids_may_be_traced():
    one = lambda x, ids: jaxem.fit(MODEL, _start(), jaxem.Grouped(x, ids, U), tol=1e-9).objective  # noqa: E731
    moved = jnp.stack([jnp.asarray(X), 1.1 * X])
    by_lane = jax.vmap(one, (0, None))(moved, jnp.asarray(DATA.ids))
    want = [float(jaxem.fit(MODEL, _start(), jaxem.grouped(x, IDS), tol=1e-9).objective) for x in moved]
    np.testing.assert_allclose(by_lane, want, rtol=1e-12)
    order = _rng.permutation(N)
    np.testing.assert_allclose(jax.jit(one)(X[order], DATA.ids[order]), want[0], rtol=1e-12)


def test_ids_may_be_text_and_columns_of_a_table():
    pandas = pytest.importorskip("pandas")
    text = [f"s{i:03d}" for i in IDS]
    for ids in (text, pandas.Series(text, index=range(7, 7 + N)), pandas.Categorical(text), [(i, "a") for i in IDS]):
        data = jaxem.grouped(X, ids)
        np.testing.assert_array_equal(data.ids, DATA.ids)
        assert data.n_units == U


def test_an_id_of_many_rows_keeps_its_digits_in_float32():
    n = 400_000
    sums = sum_by_unit(jnp.full((n, 1), 0.1, jnp.float32), jnp.arange(n) % 2, 2)
    np.testing.assert_allclose(sums, 0.1 * n / 2, rtol=1e-6)  # one after the other 2e-3
    x, ids = _rng.normal(size=(n // 10, 2)) + 3.0, np.arange(n // 10) % 2
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), _start())
    exact = MODEL.log_prob(_start(), jaxem.grouped(x, ids))
    np.testing.assert_allclose(MODEL.log_prob(single, jaxem.grouped(x.astype(np.float32), ids)), exact, rtol=1e-6)


@pytest.mark.parametrize(
    "table_group",
    [
        pytest.param(IDS % 3, id="of whole ids", marks=pytest.mark.slow),
        pytest.param(np.arange(N) % 3, id="that cut ids"),
    ],
)
def test_groups_of_a_table_answer_as_fits_of_their_own_rows(table_group):
    groups = jaxem.fit_groups(MODEL, jax.random.key(0), DATA, table_group, n_restarts=2)
    methods = ("responsibilities", "predict", "log_prob")
    found = {name: np.asarray(getattr(groups, name)(DATA, table_group)) for name in methods}
    assert found["responsibilities"].shape == (N, 2) and found["log_prob"].shape == (N,)
    for g in range(3):
        mine = table_group == g
        own, params = jaxem.grouped(X[mine], IDS[mine]), groups.fit_of(g).params
        for name in methods:
            want = np.asarray(getattr(MODEL, name)(params, own))
            want = want[np.asarray(own.ids)] if name == "log_prob" else want
            np.testing.assert_allclose(found[name][mine], want, rtol=1e-10, atol=1e-13)
        bic = groups.criterion("bic", DATA, table_group)[g]
        np.testing.assert_allclose(bic, MODEL.bic(params, own), rtol=1e-10)
