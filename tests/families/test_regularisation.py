"""What keeps components from collapsing: floors and their scale, the default prior, the bound on ratios."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import jaxem
from jaxem.families.normal import _ratio
from jaxem.fold.constants import bound_to, merge
from jaxem.numerics.scales import clumps_of, merged_clumps, robust_variance, variance_of_clumps

KEY = jax.random.key(0)
_LABELS = np.r_[np.zeros(60, int), np.ones(8, int)]
_NORMALS = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "low_rank": lambda **options: jaxem.LowRankNormal(1, **options),
    "log_normal": jaxem.LogNormal,
    "student_t": lambda **options: jaxem.StudentT(3.0, jaxem.FullNormal(**options)),
    "product": lambda **options: jaxem.Product(x=jaxem.FullNormal(**options)),
}


def _spike(spread: float) -> np.ndarray:
    """60 rows of spread one, and 8 rows of this spread elsewhere."""
    rng = np.random.default_rng(0)
    return np.r_[5 + rng.normal(size=(60, 2)), 9 + spread * rng.normal(size=(8, 2))]


def _assigned(family, data):
    """Bound family, bank and counts of the two groups of `_spike`."""
    model = jaxem.Mixture(family, 2)
    params = model.init(KEY, data, method=jaxem.Labels(_LABELS))
    return model.bind(data).family, params.components, params.weights * len(_LABELS)


@pytest.mark.parametrize("name", _NORMALS)
def test_a_component_lies_at_the_floor_where_half_of_its_variance_is_the_floors(name: str) -> None:
    for spread, found in ((0.0, True), (1e-4, True), (0.5, False)):
        x = jnp.asarray(np.exp(_spike(spread)) if name == "log_normal" else _spike(spread))
        family, bank, count = _assigned(_NORMALS[name](), {"x": x} if name == "product" else x)
        assert family.at_floor(bank, count).tolist() == [False, found], spread
        assert not family.at_floor(bank, 0 * count).any()
    family, bank, count = _assigned(_NORMALS[name](floor=0.0), {"x": x} if name == "product" else x)
    assert not family.at_floor(bank, count).any()


def test_a_regression_lies_at_the_floor_where_half_of_its_variance_is_the_floors() -> None:
    for family in (jaxem.LinearRegression(), jaxem.StudentTRegression(3.0)):
        for spread, found in ((0.0, True), (0.5, False)):
            y = jnp.asarray(_spike(spread)[:, 0])
            bound, bank, count = _assigned(family, (jnp.ones((len(y), 1)), y))
            assert bound.at_floor(bank, count).tolist() == [False, found]
            assert bound.eigenvalues(bank).shape == (2, 1)


def test_one_of_names_the_component_at_its_floor() -> None:
    x = jnp.asarray(_spike(0.0))
    family, bank, count = _assigned(jaxem.OneOf(jaxem.Uniform(), jaxem.FullNormal()), x)
    assert family.at_floor(bank, count).tolist() == [False, True]


@pytest.mark.parametrize("name", ["full", "diagonal", "spherical", "low_rank"])
def test_eigenvalues_are_those_of_the_covariances(name: str) -> None:
    family, bank, _ = _assigned(_NORMALS[name](), jnp.asarray(_spike(0.5)))
    whole = {
        "full": lambda: bank.covariance,
        "diagonal": lambda: np.stack([np.diag(row) for row in bank.covariance]),
        "spherical": lambda: np.stack([value * np.eye(2) for value in bank.covariance]),
        "low_rank": lambda: np.stack([w @ w.T + np.diag(v) for w, v in zip(bank.loadings, bank.noise, strict=True)]),
    }[name]()
    np.testing.assert_allclose(family.eigenvalues(bank), np.linalg.eigvalsh(whole), rtol=1e-9)


# --- the unit of a floor

_RNG = np.random.default_rng(1)
_CLEAN = {
    "normal": _RNG.normal(size=1000),
    "two groups": _RNG.normal(size=1000) + 12.0 * (np.arange(1000) % 3 == 0),
    "two groups far apart": _RNG.normal(size=1000) + 1e3 * (np.arange(1000) % 2),
    "far from zero": _RNG.normal(size=1000) + 1e4,
    "skew": _RNG.exponential(size=1000),
    "many zeros": _RNG.normal(3, 1, size=1000) * (np.arange(1000) % 5 > 1),
}
_BAD = (1e7, -999999.0, 1e12, 0.0, 50.0, -3.0)
_WHERE = {"the first rows": slice(0, 10), "every hundredth": slice(7, None, 100)}
_scale = jax.jit(lambda x, weight=None: jnp.sqrt(robust_variance(x, weight)))


def test_the_scale_moves_by_less_than_two_whatever_one_row_in_a_hundred_is() -> None:
    for name, x in _CLEAN.items():
        clean = float(_scale(jnp.asarray(x)[:, None])[0])
        for value in _BAD:
            for place, rows in _WHERE.items():
                spoilt = x.copy()
                spoilt[rows] = value
                ratio = float(_scale(jnp.asarray(spoilt)[:, None])[0]) / clean
                assert 0.5 < ratio < 2, (name, value, place, ratio)


def test_the_scale_of_normal_columns_is_their_standard_deviation() -> None:
    x = np.random.default_rng(0).normal(size=(20_000, 2)) * [3.0, 0.1] + [5.0, -70.0]
    np.testing.assert_allclose(_scale(jnp.asarray(x)), [3.0, 0.1], rtol=0.02)


def test_the_scale_is_that_of_the_best_cauchy_distribution() -> None:
    x = _CLEAN["two groups"][:50]
    minus = lambda t: np.mean(np.log(np.exp(2 * t[1]) + (x - t[0]) ** 2)) - t[1]  # noqa: E731
    best: Any = scipy.optimize.minimize(minus, [np.median(x), 0.0], method="BFGS", options={"gtol": 1e-10})
    at_normal: Any = scipy.optimize.minimize_scalar(
        lambda t: scipy.stats.norm.expect(lambda z: np.log(np.exp(2 * t) + z**2)) - t
    )
    np.testing.assert_allclose(_scale(jnp.asarray(x)[:, None])[0], np.exp(best.fun - at_normal.fun), rtol=1e-6)


def test_the_scale_is_equivariant_and_integer_weights_are_repeated_rows() -> None:
    for x in map(jnp.asarray, _CLEAN.values()):
        x = x[:90, None]
        np.testing.assert_allclose(_scale(3 * x + 11), 3 * _scale(x), rtol=1e-9)
        np.testing.assert_allclose(_scale(-x), _scale(x), rtol=1e-5)  # it begins at the lower of two medians
        weight = np.arange(90) % 4
        np.testing.assert_allclose(_scale(x, jnp.asarray(weight, x.dtype)), _scale(jnp.repeat(x, weight, 0)), rtol=1e-9)
    assert _scale(jnp.full((5, 1), 0.1)) == 0


def test_the_scale_of_many_rows_is_begun_from_a_sample() -> None:
    x = np.random.default_rng(0).standard_t(3, size=(70_000, 1))
    few, many = jnp.asarray(x[:60_000]), jnp.asarray(x)
    np.testing.assert_allclose(_scale(many), _scale(few), rtol=0.02)
    weight = np.zeros(70_000)
    weight[:5] = 1  # no sample finds these rows: the beginning is worse
    np.testing.assert_allclose(_scale(many, jnp.asarray(weight)), _scale(many[:5]), rtol=0.5)


def test_the_scale_has_the_derivatives_of_finite_differences() -> None:
    x = jnp.asarray(_CLEAN["two groups"][:40])
    direction = jnp.asarray(np.random.default_rng(2).normal(size=40))
    along = lambda t: robust_variance((x + t * direction)[:, None], None)[0]  # noqa: E731
    slope, h = jax.jit(jax.grad(along)), 1e-4
    np.testing.assert_allclose(slope(0.0), (along(h) - along(-h)) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(slope)(0.0), (slope(h) - slope(-h)) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("order", ["as drawn", "sorted", "the first batch far away"])
def test_scales_of_batches_are_put_together(order: str) -> None:
    x = np.random.default_rng(0).normal(size=20_000)
    x = np.sort(x) if order == "sorted" else x
    x[: 200 * (order == "the first batch far away")] = -999999.0
    clumps, merge = jax.jit(clumps_of), jax.jit(merged_clumps)
    total: Any = None
    for batch in np.split(x, 100):  # more than there are clumps
        new = clumps(jnp.asarray(batch)[:, None], None)
        total = new if total is None else merge(total, new)
    got, want = np.sqrt(variance_of_clumps(total)), _scale(jnp.asarray(x)[:, None])
    np.testing.assert_allclose(got, want, rtol=0.03)


_FLOORED = {
    "full": lambda: jaxem.FullNormal(),
    "missing": lambda: jaxem.FullNormal(missing=True),
    "diagonal": lambda: jaxem.DiagonalNormal(),
    "spherical": lambda: jaxem.SphericalNormal(),
    "tied": lambda: jaxem.TiedNormal(),
    "student_t": lambda: jaxem.StudentT(3.0),
    "low_rank": lambda: jaxem.LowRankNormal(1),
    "log_normal": lambda: jaxem.LogNormal(),
    "regression": lambda: jaxem.LinearRegression(),
    "student_t_regression": lambda: jaxem.StudentTRegression(3.0),
}


@pytest.mark.parametrize("name", _FLOORED)
def test_a_row_far_away_does_not_raise_the_floor_of_the_others(name: str) -> None:
    """The log prior at the same params moves by less than 2² where it is a share of the variance."""
    x = np.random.default_rng(0).normal(size=(1000, 1))
    spoilt = np.r_[x, [[1e7 if name != "log_normal" else 5e3]]]

    def log_prior(x: np.ndarray) -> float:
        data: object = jnp.asarray(np.exp(x / 10) if name == "log_normal" else x)
        if "regression" in name:
            data = (jnp.ones((len(x), 1)), jnp.asarray(x[:, 0]))
        model = jaxem.Mixture(_FLOORED[name](), 1)
        few = jnp.arange(1.0, 10)
        start = model.init(KEY, (jnp.ones((9, 1)), few) if "regression" in name else few[:, None])
        return float(model.bind(data).log_prior(start))

    assert 1 <= log_prior(spoilt) / log_prior(x) < 1.2


def test_a_row_far_away_leaves_a_heavy_tailed_component_its_scale() -> None:
    x = np.r_[np.random.default_rng(0).normal(size=300), 1e7]
    model = jaxem.Mixture(jaxem.StudentT(3.0), 1)
    data = jnp.asarray(x)[:, None]
    result = jaxem.fit(model, model.init(KEY, data), data, max_iter=2000).check()
    minus = lambda t: -scipy.stats.t.logpdf(x, 3, t[0], np.exp(t[1])).sum()  # noqa: E731
    found = scipy.optimize.minimize(minus, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8})
    got = float(result.params.components.scatter[0, 0, 0]) ** 0.5
    np.testing.assert_allclose(got, np.exp(found.x[1]), rtol=1e-3)


def test_a_row_far_away_leaves_narrow_components_their_variance() -> None:
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(0, 1, 100), rng.normal(6, 1, 100), 1e7]
    bank = jaxem.NormalParams(jnp.array([[0.0], [6.0], [1e7]]), jnp.ones((3, 1, 1)))
    start = jaxem.MixtureParams(jnp.array([0.495, 0.495, 0.01]), bank)
    result = jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 3), start, jnp.asarray(x)[:, None]).check()
    np.testing.assert_allclose(result.params.components.covariance[:2, 0, 0], 1, atol=0.3)


# --- the default prior

_REFERENCE = Path(__file__).parents[1] / "reference"
_MCLUST = json.loads((_REFERENCE / "mclust_prior.json").read_text("utf-8"))["cases"]
_COLUMNS = {"faithful": (0, 1), "iris": (0, 1, 2, 3), "diabetes": (1, 2, 3)}
_FORMS = {
    "VVV": jaxem.FullNormal,
    "EEE": jaxem.TiedNormal,
    "VVI": jaxem.DiagonalNormal,
    "VII": jaxem.SphericalNormal,
    "EII": jaxem.TiedSphericalNormal,
}


def _table(name: str) -> np.ndarray:
    return np.loadtxt(_REFERENCE / "data" / f"{name}.csv", delimiter=",", skiprows=1, usecols=_COLUMNS[name])


@pytest.mark.parametrize("case", _MCLUST, ids=lambda case: f"{case['data']}-{case['model']}")
def test_the_default_prior_is_that_of_mclust(case: dict) -> None:
    x, k = _table(case["data"]), case["n_components"]
    rank = np.argsort(np.argsort(x[:, 0], kind="stable"))
    labels = jaxem.Labels(jnp.asarray(rank * k // len(x)))
    prior: Any = jaxem.NormalInverseWishart.default()
    if case["model"] == "EII":  # whose scale mclust 6.0.0 leaves out of its M step, and only there
        prior = jaxem.NormalInverseWishart(x.mean(0), 0.01, x.shape[1] + 2, 1e-12)
    model = jaxem.Mixture(_FORMS[case["model"]](floor=0.0, prior=prior), k)
    result = jaxem.fit(model, model.init(KEY, x, method=labels), x, tol=-1.0, max_iter=5000)
    weights, (mean, covariance) = result.params
    want = np.asarray(case["covariance"])
    if case["model"] == "VVI":
        want = np.diagonal(want.reshape(k, x.shape[1], -1), axis1=1, axis2=2)
    np.testing.assert_allclose(result.log_lik, case["log_lik"], rtol=1e-6)
    np.testing.assert_allclose(weights, case["weights"], rtol=1e-6)
    np.testing.assert_allclose(mean, np.reshape(case["mean"], mean.shape), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(covariance), np.ravel(want), rtol=1e-6, atol=1e-8)


def test_the_default_prior_is_made_anew_for_every_lane() -> None:
    x = jnp.asarray(_table("faithful"))
    model = jaxem.Mixture(jaxem.FullNormal(prior=jaxem.NormalInverseWishart.default()), 2)
    lanes = jnp.stack([x[:100], 3 * x[100:200] + 5])
    params = jax.vmap(lambda rows: model.init(KEY, rows))(lanes)
    together = jaxem.fit_batch(model, params, lanes)
    for i in range(2):
        alone = jaxem.fit(model, jax.tree.map(lambda leaf, i=i: leaf[i], params), lanes[i])
        np.testing.assert_allclose(together.objective[i], alone.objective, rtol=1e-9)


@pytest.mark.parametrize("name", ["full", "missing", "diagonal", "spherical"])
def test_the_default_prior_merges_and_counts_integer_weights_as_rows(name: str) -> None:
    x = _table("iris")[:60]
    if name == "missing":
        x[3, 1] = x[40, 2] = np.nan
    family = jaxem.FullNormal if name == "missing" else _NORMALS[name]
    options = {"missing": True} if name == "missing" else {}
    prior = jaxem.NormalInverseWishart.default()
    model = jaxem.Mixture(family(prior=prior, **options), 3, active=jnp.array([True, True, False]))
    weight = np.arange(60) % 3
    want = model.bind(jnp.asarray(np.repeat(x, weight, 0))).family.prior
    parts = [slice(0, 30), slice(30, 60)]
    bound = [bound_to(model, jnp.asarray(x[part]), jnp.asarray(weight[part], float)) for part in parts]
    got = merge(*bound).model.family.prior
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-12)
    # a missing entry is worth its column's mean: that of its batch, where batches are put together
    np.testing.assert_allclose(got.covariance, want.covariance, rtol=1e-9, atol=5e-3 if name == "missing" else 0)
    assert want.n_components == 2


def test_the_default_prior_has_a_derivative() -> None:
    x = jnp.asarray(_table("faithful")[:40])
    model = jaxem.Mixture(jaxem.FullNormal(prior=jaxem.NormalInverseWishart.default()), 1)
    start = model.init(KEY, x)
    variance = lambda t: jaxem.fit(model, start, x * (1 + t), tol=1e-12).params.components.covariance[0, 0, 0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(variance)(0.0), 2 * variance(0.0), rtol=1e-6)  # it goes with the data's scale


def test_an_unbound_default_prior_says_what_it_needs() -> None:
    model = jaxem.Mixture(jaxem.FullNormal(prior=jaxem.NormalInverseWishart.default()), 1)
    start = model.init(KEY, jnp.arange(5.0)[:, None])
    with pytest.raises(ValueError, match="prior: expected a model that is bound to its data"):
        model.log_prior(start)


# --- the bound on the ratio of eigenvalues

_BOUNDED = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "tied": jaxem.TiedNormal,
    "tied_spherical": jaxem.TiedSphericalNormal,
    "student_t": lambda **options: jaxem.StudentT(4.0, jaxem.FullNormal(**options)),
}


def _uneven(n: int = 40) -> np.ndarray:
    """Two elongated groups, and a few rows that are nearly equal."""
    rng = np.random.default_rng(0)
    wide, tall = rng.normal(size=(n, 2)) * [1, 0.2], rng.normal(size=(n, 2)) * [0.1, 3] + 5
    return np.r_[wide, tall, rng.normal(size=(5, 2)) * 0.01 + [9, 0]]


def test_two_variances_under_a_bound_are_those_found_by_hand() -> None:
    """Both are clipped: m = (10·1 + 30·16/4) / (10 + 30) = 3.25, and 4 m = 13 (tclust's restriction factor 4)."""
    low, high = _ratio.limits(jnp.array([[1.0], [16.0]]), jnp.array([10.0, 30.0]), 4.0)
    np.testing.assert_allclose([low, high], [3.25, 13.0], rtol=1e-12)


@pytest.mark.parametrize("bound", [1.0, 1.5, 10.0, 200.0])
def test_clipped_eigenvalues_are_the_best_under_the_bound(bound: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        d, n = np.exp(2 * rng.normal(size=(3, 2))), rng.uniform(1, 50, 3)
        low, high = _ratio.limits(jnp.asarray(d), jnp.asarray(n), bound)

        def loss(low: float, d: np.ndarray = d, n: np.ndarray = n) -> float:
            clipped = np.clip(d, low, bound * low)
            return float(np.sum(n[:, None] * (np.log(clipped) + d / clipped)))

        if np.isinf(high):
            assert d.max() <= bound * d.min()
            continue
        grid = np.exp(np.linspace(np.log(d.min() / bound), np.log(d.max()), 4001))
        best = min(grid, key=loss)
        found: Any = scipy.optimize.minimize_scalar(loss, bounds=(0.99 * best, 1.01 * best), method="bounded")
        assert loss(float(low)) <= found.fun + 1e-9
        np.testing.assert_allclose(high, bound * low)


@pytest.mark.parametrize("name", ["full", "diagonal", "spherical", "tied", "tied_spherical"])
def test_a_ratio_of_one_is_the_spherical_tied_model(name: str) -> None:
    x, labels = _uneven(), np.repeat([0, 1, 2], [40, 40, 5])
    model = jaxem.Mixture(_BOUNDED[name](floor=0.0, max_ratio=1.0), 3)
    params = model.init(KEY, jnp.asarray(x), method=jaxem.Labels(jnp.asarray(labels)))
    within = sum(np.sum((x[labels == j] - x[labels == j].mean(0)) ** 2) for j in range(3))
    np.testing.assert_allclose(model.family.eigenvalues(params.components), within / (2 * len(x)), rtol=1e-9)


@pytest.mark.parametrize("name", ["full", "spherical"])
def test_an_infinite_ratio_is_no_bound_to_the_bit(name: str) -> None:
    x = jnp.asarray(_uneven())
    start = jaxem.Mixture(_BOUNDED[name](), 3).init(KEY, x)
    results = [jaxem.fit(jaxem.Mixture(_BOUNDED[name](max_ratio=c), 3), start, x) for c in (None, np.inf)]
    for one, other in zip(*(jax.tree.leaves((r.params, r.objective)) for r in results), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("full", "student_t") else pytest.mark.slow) for name in _BOUNDED]
)
def test_fits_under_a_bound_obey_it_and_never_fall(name: str) -> None:
    """200 random sets of rows, from starts that break the bound."""
    rng = np.random.default_rng(1)
    spread = np.exp(rng.normal(size=(200, 3, 2)))
    z = np.arange(40) % 3
    x = rng.normal(size=(200, 40, 2)) * spread[:, z] + 2.0 * z[None, :, None]
    model = jaxem.Mixture(_BOUNDED[name](max_ratio=6.0), 3)
    loose = jaxem.Mixture(_BOUNDED[name](), 3)
    params = jax.jit(jax.vmap(lambda rows: loose.init(KEY, rows)))(jnp.asarray(x))
    result = jaxem.fit_batch(model, params, jnp.asarray(x), max_iter=100)
    history = np.asarray(result.history)
    rise = np.diff(history, axis=1)
    assert np.all((rise > -1e-9 * (1 + np.abs(history[:, :-1]))) | np.isnan(rise))
    assert not np.isin(np.asarray(result.status), [jaxem.Status.DECREASED, jaxem.Status.NONFINITE]).any()
    values = jax.vmap(model.bind(jnp.asarray(x[0])).family.eigenvalues)(result.params.components)
    assert np.max(values.max((1, 2)) / values.min((1, 2))) < 6.0 * (1 + 1e-9)


def test_a_fit_under_a_bound_has_a_derivative() -> None:
    x, labels = jnp.asarray(_uneven(20)), jnp.asarray(np.repeat([0, 1, 2], [20, 20, 5]))
    direction = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
    start = jaxem.Mixture(jaxem.FullNormal(max_ratio=9.0), 3).init(KEY, x, method=jaxem.Labels(labels))

    @jax.jit
    def of(t: float, ratio: float) -> jax.Array:
        bound = jaxem.Mixture(jaxem.FullNormal(max_ratio=ratio), 3)
        fitted = jaxem.fit(bound, start, x + t * direction, tol=1e-12).params.components
        return jnp.sum(jnp.sin(fitted.covariance)) + jnp.sum(jnp.sin(fitted.mean))

    h = 1e-4
    by_data, by_ratio = jax.jit(jax.grad(of, (0, 1)))(0.0, 9.0)
    np.testing.assert_allclose(by_data, (of(h, 9.0) - of(-h, 9.0)) / (2 * h), rtol=1e-5)
    np.testing.assert_allclose(by_ratio, (of(0.0, 9 + h) - of(0.0, 9 - h)) / (2 * h), rtol=1e-5)


def test_a_bound_that_makes_no_sense_is_an_error() -> None:
    x = jnp.asarray(_uneven())
    for bad in (0.5, np.array([2.0, 3.0])):
        with pytest.raises(ValueError, match="max_ratio: expected a number ≥ 1"):
            jaxem.Mixture(jaxem.FullNormal(max_ratio=bad), 2).init(KEY, x)
    model = jaxem.Mixture(jaxem.DiagonalNormal(max_ratio=4.0), 2)
    mask = jaxem.MixtureParams(False, jaxem.NormalParams(False, np.array([True, False])))  # type: ignore[arg-type]
    start = model.init(KEY, x)
    with pytest.raises(ValueError, match="max_ratio estimates all covariances together"):
        jaxem.fit(jaxem.Frozen(model, mask), start, x)
