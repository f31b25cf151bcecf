"""The initialisers: where starts come from, and what they never do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import first, slow

import jaxem
from jaxem.latent.starts import _draw_row
from jaxem.numerics import scales

KEY = jax.random.key(0)
N, D, K = 60, 2, 3
LABELS = np.arange(N) % K
METHODS: dict[str, Any] = {
    "k-means": jaxem.KMeans(),
    "points": jaxem.RandomPoints(),
    "responsibilities": jaxem.RandomResponsibilities(),
    "labels": jaxem.Labels(LABELS),
    "given": jaxem.Responsibilities(np.eye(K)[LABELS]),
}
FAMILIES = [jaxem.FullNormal, jaxem.DiagonalNormal, jaxem.SphericalNormal, jaxem.TiedNormal]
CENTRES = np.array([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]])

every_method = first("method", METHODS.values(), ids=METHODS.keys())
random_method = first("label", ["k-means", "points", "responsibilities"])
every_dtype = first("dtype", [np.float64, np.float32])


def clusters(n: int = N, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """K clouds, 30 standard deviations apart."""
    rng = np.random.default_rng(seed)
    return (CENTRES[np.arange(n) % K] + rng.normal(size=(n, D))).astype(dtype)


@jax.jit
def assign(method: Any, key: Any, x: Any, weight: Any = None, active: Any = None) -> jax.Array:
    """Responsibilities (n, K) of a method's states or responsibilities."""
    assigned = method(key, x, K, weight, active)
    return jax.nn.one_hot(assigned, K, dtype=x.dtype) if assigned.ndim == 1 else assigned


@jax.jit
def init(model: Any, key: Any, x: Any, weight: Any = None, method: Any = None) -> Any:
    return model.init(key, x, sample_weight=weight, method=method)


def means_of(r: Any, x: Any, weight: Any = None) -> np.ndarray:
    r = np.asarray(r) * (np.ones(len(x)) if weight is None else np.asarray(weight))[:, None]
    x = np.where(r.sum(1, keepdims=True) > 0, x, 0)
    return r.T @ x / r.sum(0)[:, None]


def inertia(r: Any, x: Any) -> float:
    """Σ squared distances to the mean of a row's cluster."""
    r = np.asarray(r)
    return float(np.sum((x - r @ np.nan_to_num(means_of(r, x))) ** 2))


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def assert_close(got: Any, want: Any, rtol: float, atol: float = 0.0) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


# --- every method


@every_method
@every_dtype
def test_responsibilities_are_rows_on_the_simplex(method, dtype):
    r = assign(method, KEY, clusters(dtype=dtype))
    assert r.shape == (N, K) and r.dtype == dtype
    assert (np.asarray(r) >= 0).all()
    np.testing.assert_allclose(np.sum(r, 1), 1, rtol=1e-5)


@every_method
@first("family", FAMILIES)
def test_every_method_serves_every_family(method, family):
    x = clusters()
    r = np.asarray(assign(method, KEY, x))
    params = init(jaxem.Mixture(family(), K), KEY, x, None, method)
    np.testing.assert_allclose(np.sum(params.weights), 1, rtol=1e-12)
    np.testing.assert_allclose(params.weights, r.mean(0), rtol=1e-10)
    np.testing.assert_allclose(params.components.mean, means_of(r, x), rtol=1e-8, atol=1e-10)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@every_method
def test_a_start_is_the_m_step_of_its_responsibilities(method):
    x = clusters(dtype=np.float64)
    r = np.asarray(assign(method, KEY, x))
    params = init(jaxem.Mixture(jaxem.FullNormal(floor=1e-3), K), KEY, x, None, method)
    y = x[:, None] - means_of(r, x)[None]
    scatter = np.einsum("nk,nki,nkj->kij", r, y, y)
    spread = np.asarray(scales.robust_variance(jnp.asarray(x), None))  # the unit of floors
    want = (scatter + 1e-3 * np.diag(spread)) / r.sum(0)[:, None, None]
    np.testing.assert_allclose(params.components.covariance, want, rtol=1e-7, atol=1e-9)


def test_a_start_works_eagerly_under_jit_and_from_numpy_alike():
    x, model = clusters(), jaxem.Mixture(jaxem.FullNormal(), K)
    want = init(model, KEY, x, None, jaxem.KMeans())
    assert_close(model.init(KEY, x), want, 1e-10, 1e-12)
    assert_close(model.init(KEY, jnp.asarray(x)), want, 1e-10, 1e-12)
    assert_close(jax.jit(lambda key: model.init(key, x))(KEY), want, 1e-10, 1e-12)  # NumPy rows, traced key


@first("label", ["responsibilities", "k-means", "points"])
def test_starts_of_many_keys_and_problems_come_from_one_vmap(label):
    method, model = METHODS[label], jaxem.Mixture(jaxem.FullNormal(), K)
    x = jnp.stack([jnp.asarray(clusters(seed=seed)) for seed in range(2)])
    keys = jax.random.split(KEY, 2)
    got = jax.jit(jax.vmap(lambda key, x: model.init(key, x, method=method)))(keys, x)
    for i in range(2):
        want = init(model, keys[i], x[i], None, method)
        assert_close(jax.tree.map(lambda leaf: leaf[i], got), want, 1e-8, 1e-10)  # noqa: B023
    other = init(model, keys[1], x[0], None, method)
    if label != "k-means":  # which finds the same clusters whatever the key, up to their order
        assert not np.allclose(other.components.mean, got.components.mean[0])


def test_an_initialiser_need_not_be_one_of_ours():
    def halves(key, points, k, sample_weight, active):
        return (jnp.arange(points.shape[0]) * k) // points.shape[0]

    x = clusters()
    params = jaxem.Mixture(jaxem.FullNormal(), K).init(KEY, x, method=halves)
    np.testing.assert_allclose(params.components.mean, x.reshape(K, N // K, D).mean(1))


# --- sample weights


@random_method
def test_rows_of_weight_zero_are_never_chosen(label):
    """Far-off rows of weight zero: no cluster forms around them, and NaN in them reaches nothing."""
    x, weight = clusters(), np.ones(N)
    far = np.array([0, 7, 8, 30, N - 1])
    weight[far] = 0
    harmless, garbage = x.copy(), x.copy()
    harmless[far], garbage[far] = 1e6, np.nan
    model = jaxem.Mixture(jaxem.FullNormal(), K)
    for seed in range(8):
        key = jax.random.key(seed)
        got = init(model, key, garbage, weight, METHODS[label])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
        assert np.abs(got.components.mean).max() < 40
        np.testing.assert_allclose(np.sum(got.weights), 1, rtol=1e-12)
        jax.tree.map(np.testing.assert_array_equal, got, init(model, key, harmless, weight, METHODS[label]))


@random_method
def test_rows_are_weighed(label):
    """All the weight on one cluster but for a trace: the start lies there."""
    x = clusters()
    weight = np.where(np.arange(N) % K == 0, 1.0, 1e-9)
    params = init(jaxem.Mixture(jaxem.FullNormal(), K), KEY, x, weight, METHODS[label])
    mean = np.average(np.asarray(params.components.mean), axis=0, weights=np.asarray(params.weights))
    np.testing.assert_allclose(mean, x[::K].mean(0), atol=1e-5)


def test_random_points_are_drawn_in_proportion_to_weight():
    """With one row of nearly all the weight, it is always among the points chosen."""
    x = np.arange(N, dtype=float)[:, None] * np.ones((1, D))
    weight = np.full(N, 1e-6)
    weight[N - 1] = 1.0
    draws = [np.asarray(assign(jaxem.RandomPoints(), jax.random.key(seed), x, weight)) for seed in range(10)]
    assert all(np.argmax(r[N - 1]) == 0 for r in draws)  # the first draw: rows are drawn one after another
    assert len({tuple(np.argmax(r, 1)) for r in draws}) > 1


# --- components switched off


@random_method
@pytest.mark.parametrize("active", [[True, False, True], [False, True, True], [False, False, True]], ids=str)
def test_inactive_components_are_empty(label, active):
    x, active = clusters(), np.array(active)
    for seed in range(3):
        r = np.asarray(assign(METHODS[label], jax.random.key(seed), x, None, active))
        np.testing.assert_array_equal(r[:, ~active], 0)
        np.testing.assert_allclose(r.sum(1), 1, rtol=1e-12)


@random_method
def test_inactive_components_have_weight_zero_and_finite_params(label):
    model = jaxem.Mixture(jaxem.FullNormal(), K, active=np.array([True, False, True]))
    params = init(model, KEY, clusters(), None, METHODS[label])
    assert params.weights[1] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_k_means_spends_no_seed_on_an_inactive_component():
    """Three clusters, three active components of five: each gets one, wherever in the bank they stand."""
    x = clusters()
    for active in ([False, False, True, True, True], [True, False, True, False, True]):
        model = jaxem.Mixture(jaxem.SphericalNormal(), 5, active=np.array(active))
        found = 0
        for seed in range(10):
            params = init(model, jax.random.key(seed), x, None, jaxem.KMeans())
            means = np.asarray(params.components.mean)[np.array(active)]
            found += np.linalg.norm(means[:, None] - CENTRES[None], axis=2).min(0).max() < 2
        assert found == 10, (active, found)


# --- k-means


def test_seeds_spread_over_clusters_that_are_far_apart():
    """Of the squared distances one in about 60 is within the clusters that have a centre already."""
    x, spread = clusters(), 0
    for seed in range(20):
        r = np.asarray(assign(jaxem.KMeans(n_steps=0), jax.random.key(seed), x))
        if sorted(np.argmax(r[:K], 1)) == [0, 1, 2]:  # the first rows come from different clusters
            spread += 1
            np.testing.assert_array_equal(r, r[np.arange(N) % K])
    assert spread >= 18


@every_dtype
def test_rows_are_drawn_in_proportion_to_their_mass(dtype):
    """37 rows do not fill blocks of 7; the bound on χ² is exceeded once in 10⁴ keys."""
    n, n_draws = 37, 100_000
    mass = np.random.default_rng(1).random(n) ** 3
    mass[[0, 5, n - 1]] = 0
    where = jax.random.uniform(KEY, (n_draws, 2), dtype)
    drawn = np.bincount(jax.jit(jax.vmap(_draw_row, (0, None)))(where, jnp.asarray(mass, dtype)), minlength=n)
    want = n_draws * mass / mass.sum()
    some = want > 0
    np.testing.assert_array_equal(drawn[~some], 0)
    assert np.sum((drawn[some] - want[some]) ** 2 / want[some]) < 71  # of 33 degrees of freedom


def test_a_million_rows_are_told_apart_in_float32():
    """A cumulative sum over all of them has steps of 1/16 of a row, and none of 1/16 of the rows may be left out."""
    n, n_draws = 1_000_000, 4000
    where = jax.random.uniform(KEY, (n_draws, 2), np.float32)
    rows = np.asarray(jax.jit(lambda w: jax.lax.map(lambda u: _draw_row(u, jnp.ones(n, np.float32)), w))(where))
    assert len(np.unique(rows)) > n_draws - 60  # 8 pairs are expected among fair draws
    for digit in (rows // 100_000, rows % 10):
        assert np.bincount(digit, minlength=10).min() > n_draws / 10 - 100  # five standard deviations


def test_rows_without_mass_change_no_draw():
    mass = np.random.default_rng(2).random(25)
    spread = np.zeros(90)
    spread[7 : 7 + 3 * 25 : 3] = mass
    where = jax.random.uniform(KEY, (500, 2))
    rows, padded, apart = (
        np.asarray(jax.vmap(_draw_row, (0, None))(where, jnp.asarray(m)))
        for m in (mass, np.r_[mass, np.zeros(25)], spread)
    )
    np.testing.assert_array_equal(padded, rows)
    np.testing.assert_array_equal(apart, 7 + 3 * rows)


@first("end", [0.0, 1 - 2.0**-23])
def test_a_draw_at_either_end_is_a_row_with_mass(end):
    mass = jnp.asarray(np.r_[0, 0, 1.0, 0, 3.0, 0, 0], np.float32)
    row = int(_draw_row(jnp.full(2, end, np.float32), mass))
    assert row == (4 if end else 2)
    assert 0 <= int(_draw_row(jnp.full(2, end, np.float32), jnp.zeros(7, np.float32))) < 7


def test_lloyd_steps_never_raise_the_inertia():
    x = np.random.default_rng(0).normal(size=(N, D))
    gains = []
    for seed in range(5):
        key = jax.random.key(seed)
        values = [inertia(assign(jaxem.KMeans(n_steps=n), key, x), standardised(x)) for n in (0, 1, 3, 8)]
        assert (np.diff(values) <= 1e-9).all(), values
        gains.append(values[0] - values[-1])
    assert np.median(gains) > 1  # of about 55: a start may be a fixed point already, most are not


@slow
def test_k_means_comes_near_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(c, s, (100, D)) for c, s in (((0, 0), 1.0), ((6, 0), 2.0), ((3, 5), 0.5))])
    y = standardised(x)
    best = cluster.KMeans(K, n_init=10, random_state=0).fit(y).inertia_
    ours = [inertia(assign(jaxem.KMeans(), jax.random.key(seed), x), y) for seed in range(10)]
    assert min(ours) <= 1.001 * best
    assert np.median(ours) <= 1.1 * best


@first("label", ["k-means", "points"])
@every_dtype
def test_the_units_of_the_columns_change_no_assignment(label, dtype):
    x = (np.random.default_rng(0).normal(size=(N, D)) + 2.0 * (np.arange(N) % 2)[:, None]).astype(dtype)
    want = assign(METHODS[label], KEY, x)
    for scale in (np.array([2.0**20, 2.0**-20]), np.array([2.0**-20, 1.0])):
        got = assign(METHODS[label], KEY, (x * scale).astype(dtype))
        np.testing.assert_array_equal(got, want)
    rough = assign(METHODS[label], KEY, (x * np.array([1e6, 1e-6])).astype(dtype))
    assert np.mean(np.any(np.asarray(rough) != np.asarray(want), 1)) <= 0.05  # rounding moves a row on a border at most


@first("label", ["k-means", "points"])
def test_an_offset_changes_no_assignment(label):
    x = np.round(clusters() * 64) / 64
    want = assign(METHODS[label], KEY, x)
    np.testing.assert_array_equal(assign(METHODS[label], KEY, x + 2.0**20), want)


# --- ties


@random_method
@every_dtype
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 + 0.3])
def test_rows_that_are_all_equal_give_finite_starts(label, dtype, value):
    x = np.full((N, D), value, dtype)
    params = init(jaxem.Mixture(jaxem.FullNormal(), K), KEY, x, None, METHODS[label])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(np.sum(params.weights), 1, rtol=1e-6)
    np.testing.assert_allclose(params.components.mean, np.full((K, D), x[0, 0]), rtol=1e-6)


@random_method
def test_fewer_distinct_rows_than_components_give_finite_starts(label):
    x = np.repeat(np.array([[0.0, 0.0], [1.0, 1.0]]), N // 2, 0)
    params = init(jaxem.Mixture(jaxem.FullNormal(), K), KEY, x, None, METHODS[label])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@random_method
def test_fewer_rows_than_components_give_finite_starts(label):
    params = init(jaxem.Mixture(jaxem.FullNormal(), K), KEY, clusters(2), None, METHODS[label])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@random_method
def test_a_constant_column_takes_no_part(label):
    x = clusters()
    x[:, 1] = 0.1
    r = np.asarray(assign(METHODS[label], KEY, x))
    assert np.isfinite(r).all()
    x[:, 1] = 7e5
    np.testing.assert_array_equal(assign(METHODS[label], KEY, x), r)
