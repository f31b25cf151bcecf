"""The bootstrap: what is drawn, that a replicate is a fit, that components keep their names, and the test on it."""

import itertools
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver_cases import MAX_ITER, MODEL, N, assert_close, begin
from helpers import KEY, D, assert_finite, assert_same, blobs, slow, take

import jaxem
from jaxem import BayesianBootstrap, Bootstrap, EfronBootstrap, Status, bootstrap, likelihood_ratio_test
from jaxem.contracts.result import permute_components
from jaxem.drivers.asked import make_options
from jaxem.fold.chunks import FoldPlan
from jaxem.inference import likelihood_ratio, resampling
from jaxem.numerics import tree as _tree

R = 6
SCHEMES = {"multinomial": EfronBootstrap(), "dirichlet": BayesianBootstrap()}
OPTIONS: dict[str, Any] = {"n_replicates": R, "max_iter": MAX_ITER}
REVERSED = jnp.array([1, 0])


def draws(scheme: Any, n: int, weight: Any = None, count: int = 4000) -> np.ndarray:
    draw = jax.jit(jax.vmap(lambda key, weight: scheme.draw(key, n, weight), (0, None)))
    return np.asarray(draw(jax.random.split(KEY, count), weight))


@cache
def plain() -> tuple[np.ndarray, Any, Bootstrap]:
    """Data, the parent's params, and the replicates that most tests compare with."""
    x = blobs(N)
    parent = jaxem.fit(MODEL, begin(), x, max_iter=MAX_ITER).check().params
    return x, parent, bootstrap(MODEL, parent, x, KEY, **OPTIONS)


@_tree.register
@dataclass(frozen=True)
class Reversing(jaxem.EM):
    """EM that hands its components on in the other order after every step."""

    def step(self, model, params, data, sample_weight, state):
        params, state, info = super().step(model, params, data, sample_weight, state)
        return permute_components(params, MODEL.component_axes(), REVERSED), state, info


# --- what is drawn


@slow
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("weight", [None, [0, 1, 3, 0.25, 1.5, 2.6], [0, 500, 1500, 125, 750, 1300]])
def test_drawn_weights_have_the_total_and_the_moments_of_the_scheme(name, weight):
    want = np.ones(6) if weight is None else np.array(weight, float)
    total, p = want.sum(), want / want.sum()
    drawn = draws(SCHEMES[name], 6, None if weight is None else want)
    np.testing.assert_allclose(drawn.sum(1), total, rtol=1e-12)
    assert (drawn[:, want == 0] == 0).all() and (drawn >= 0).all()
    n_draws = np.round(total)
    variance = total**2 * p * (1 - p) / (n_draws if name == "multinomial" else total + 1)
    error = np.sqrt(variance / len(drawn))
    assert (abs(drawn.mean(0) - want) <= 5 * error).all()
    # a variance of r draws is known to √((kurtosis − 1) / r), and no kurtosis here is above 12
    np.testing.assert_allclose(drawn.var(0), variance, rtol=5 * np.sqrt(11 / len(drawn)))


def test_counts_are_whole_and_rows_are_drawn_independently():
    drawn = draws(EfronBootstrap(), 6)
    assert_same(drawn, np.round(drawn))
    correlation = np.corrcoef(drawn.T)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(correlation, -1 / 5, atol=5 / np.sqrt(len(drawn)))


@slow
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_an_impossible_weight_makes_no_weights_that_look_possible(name, value):
    assert np.isnan(draws(SCHEMES[name], 3, np.array([1.0, value, 2.0]), count=2)).any(1).all()


@pytest.mark.parametrize("bound", [1, 272, 65_536, 65_537, 10**7, 2**31 - 1])
def test_integers_below_a_bound_are_the_high_word_of_the_product(bound):
    bits = np.asarray(jax.random.bits(KEY, (1000,), jnp.uint32)).astype(object)
    assert_same(np.asarray(resampling._below(bound, KEY, 1000)), (bits * bound >> 32).astype(np.int64))


# --- a replicate is a fit


@pytest.mark.parametrize("name", SCHEMES)
def test_a_replicate_is_the_fit_with_its_weights(name):
    x, parent, found = plain()
    if name == "dirichlet":
        found = bootstrap(MODEL, parent, x, KEY, scheme=BayesianBootstrap(), **OPTIONS)
    for lane, key in enumerate(jax.random.split(KEY, R)):
        want = jaxem.fit(MODEL, parent, x, sample_weight=SCHEMES[name].draw(key, N), max_iter=MAX_ITER)
        assert_same((found.status[lane], found.n_iter[lane]), (want.status, want.n_iter))
        assert_close(take(found.params, lane), want.params)
        assert_close((found.objective[lane], found.log_lik[lane]), (want.objective, want.log_lik))
    assert np.ptp(found.log_lik) > 1


def test_the_plan_does_not_change_the_answer():
    x, parent, found = plain()
    lanes = bootstrap(MODEL, parent, x, KEY, plan="lanes", **OPTIONS)
    assert_same((lanes.status, lanes.n_iter), (found.status, found.n_iter))
    assert_close(lanes.params, found.params)


@pytest.mark.parametrize("at_once", [7, 5, 3, 1])  # in 1, 2, 3 and 7 blocks; of 5 or 3, the last repeats some lanes
def test_lanes_run_in_blocks_that_memory_holds_come_out_once_and_in_order(at_once):
    keys = jax.random.split(KEY, 7)
    drawn = resampling.run_replicates(_draw_lane, None, keys, (), ("lanes", at_once, False))
    assert_same(drawn, jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys))


def _draw_lane(static: None, key: Any, shared: tuple) -> Any:
    return jax.random.uniform(key, (2,))


def test_rows_of_weight_zero_are_never_looked_at():
    x, parent, _ = plain()
    weight = np.where(np.arange(N) % 5 == 0, 0.0, np.arange(N) % 3 + 1.0)
    options = {**OPTIONS, "algorithm": Reversing()}  # or else components would be in place without looking for them
    run = lambda x: bootstrap(MODEL, parent, x, KEY, sample_weight=weight, **options)  # noqa: E731
    absent = weight == 0
    with_nan, with_others = run(np.where(absent[:, None], np.nan, x)), run(np.where(absent[:, None], 1e3, x))
    assert with_nan.converged.all()
    assert_same(with_nan, with_others)


@slow
def test_traced_a_bootstrap_is_the_same_and_lanes_that_draw_nan_fail_alone():
    x, parent, found = plain()
    run = jax.jit(lambda x: bootstrap(MODEL, parent, x, KEY, **OPTIONS))
    assert_close(run(x).params, found.params)
    row = 7
    ill = run(np.where(np.arange(N)[:, None] == row, np.nan, x))
    drawn = jax.vmap(lambda key: EfronBootstrap().draw(key, N))(jax.random.split(KEY, R))[:, row] > 0
    assert drawn.any() and not drawn.all()
    assert_same(ill.status == Status.NONFINITE, drawn)
    assert_close(take(ill.params, ~drawn), take(found.params, ~drawn))
    assert_finite(ill.standard_errors())


# --- components keep their names


def test_a_relabelled_parent_has_relabelled_replicates():
    x, parent, found = plain()
    relabel = lambda params: permute_components(params, MODEL.component_axes(), REVERSED)  # noqa: E731
    other = bootstrap(MODEL, relabel(parent), x, KEY, **OPTIONS)
    assert_same((other.status, other.n_iter), (found.status, found.n_iter))
    assert_close(other.params, jax.vmap(relabel)(found.params))
    assert abs(np.diff(found.params.components.mean[..., 0])).min() > 1


@pytest.mark.slow
def test_an_algorithm_that_relabels_is_undone():
    x, parent, _ = plain()
    options = {**OPTIONS, "tol": 1e-13}  # to the end, as the steps of such an algorithm never get short
    found = bootstrap(MODEL, parent, x, KEY, **options)
    other = bootstrap(MODEL, parent, x, KEY, algorithm=Reversing(), **options)
    assert len(np.unique(other.n_iter % 2)) > 1  # otherwise all would be relabelled alike
    assert_same(other.converged, found.converged)
    assert_close(other.params, found.params, 1e-5, 1e-6)


class Fitted(NamedTuple):
    """What `_matching` reads of a result."""

    model: Any
    params: Any


@partial(jax.jit, static_argnums=4)
def matching(fitted: Fitted, parent: Any, x: Any, weight: Any, chunk_size: int | None) -> Any:
    options = make_options(jaxem.EM(), 1e-6, 1, jaxem.Stop(), None, FoldPlan(chunk_size))
    result: Any = fitted
    return resampling._matching(result, parent, x, weight, options)


def spheres(weights: Any, mean: np.ndarray) -> jaxem.MixtureParams:
    return jaxem.MixtureParams(jnp.array(weights), jaxem.NormalParams(jnp.asarray(mean), jnp.ones(len(mean))))


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_assignment_has_the_largest_overlap_of_all(chunk_size):
    model = jaxem.Mixture(jaxem.SphericalNormal(), 3)
    x, rng, orders = blobs(N), np.random.default_rng(0), list(itertools.permutations(range(3)))
    weight = np.where(x[:, 0] > 2, 0.0, 1.0 + np.arange(N) % 2)
    found = set()
    for _ in range(12):
        parent, theirs = (spheres([0.3, 0.3, 0.4], rng.normal(size=(3, D))) for _ in range(2))
        r, s = (np.asarray(responsibilities(model, params, x)) for params in (parent, theirs))
        overlap = np.einsum("i,ij,il->jl", weight, r, s)
        best = max(orders, key=lambda order: overlap[np.arange(3), order].sum())
        found.add(best)
        assert_same(matching(Fitted(model, theirs), parent, x, jnp.asarray(weight), chunk_size), np.array(best))
    assert len(found) > 3  # among them one that is not its own inverse


responsibilities = jax.jit(lambda model, params, x: model.responsibilities(params, x))


def test_a_component_switched_off_stays_in_its_place():
    model = jaxem.Mixture(jaxem.SphericalNormal(), 4, active=np.array([True, False, True, True]))
    mean = np.array([[0.0, 0.0], [9.0, 9.0], [4.0, 4.0], [20.0, 20.0]])
    parent = spheres([0.6, 0.0, 0.4, 0.0], mean)
    # two active components without weight, and the one switched off: all overlaps of the three are zero
    for order in ([2, 1, 0, 3], [3, 1, 2, 0], [0, 1, 3, 2]):
        merged = spheres(np.array([1.0, 0.0, 0.0, 0.0])[order], mean[order])
        matched = matching(Fitted(model, merged), parent, blobs(N), None, None)
        assert sorted(matched.tolist()) == [0, 1, 2, 3] and int(matched[1]) == 1


@slow
def test_labelled_rows_keep_their_components():
    x, parent, _ = plain()
    known = np.where(np.arange(N) < 10, np.arange(N) % 3 == 0, -1).astype(int)
    data = jaxem.labelled(x, known)
    found = bootstrap(MODEL, parent, data, KEY, **OPTIONS)
    key = jax.random.split(KEY, R)[2]
    want = jaxem.fit(MODEL, parent, data, sample_weight=EfronBootstrap().draw(key, N), max_iter=MAX_ITER)
    assert_close(take(found.params, 2), want.params)


# --- what is read off


def test_only_replicates_that_converged_enter_the_summaries():
    values = np.random.default_rng(0).normal(size=(9, 2, 3))
    status = np.array([0, 1, 2, 3, 4, 5, 6, 0, 1], np.int32)
    sound = values[[0, 1, 7, 8]]
    ill = np.where(
        np.isin(status, [0, 1])[:, None, None], values, np.array([1e9, np.nan, np.inf])[status % 3, None, None]
    )
    none = jnp.zeros(9)
    found = Bootstrap(jnp.asarray(ill), none, none, none, jnp.asarray(status), none)
    np.testing.assert_allclose(found.standard_errors(), sound.std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(found.covariance(), np.cov(sound.reshape(4, 6).T), rtol=1e-12)
    squares = found.standard_errors(lambda params: {"square": params[0, 0] ** 2})
    np.testing.assert_allclose(squares["square"], (sound[:, 0, 0] ** 2).std(ddof=1), rtol=1e-12)
    with pytest.raises(RuntimeError, match=r"(?s)5 of 9 replicates did not converge:.*MAX_ITER \(1: 2\)"):
        found.check()
    lower, upper = found.interval(0.8)
    np.testing.assert_allclose((lower, upper), np.quantile(sound, [0.1, 0.9], axis=0), rtol=1e-12)
    for dtype in (jnp.float32, jnp.float64):
        same = replace(found, params=found.params.astype(dtype))
        for leaf in (same.standard_errors(), same.covariance(), *same.interval()):
            assert leaf.dtype == dtype
    single = replace(found, status=jnp.where(jnp.arange(9) == 0, 0, 3))
    assert np.isnan(single.standard_errors()).all() and np.isnan(single.covariance()).all()


def test_the_standard_error_of_a_mean_is_the_closed_form():
    x, n_replicates = blobs(N), 2000
    model = jaxem.Mixture(jaxem.FullNormal(), 1)
    parent = jaxem.fit(model, model.init(KEY, x), x).params
    found = bootstrap(model, parent, x, KEY, n_replicates)
    assert found.converged.all()
    want = x.std(0) / np.sqrt(N)
    np.testing.assert_allclose(found.standard_errors().components.mean[0], want, rtol=4 / np.sqrt(2 * n_replicates))


def linkage(theta, cell):
    cells = jnp.stack([0.5 + 0 * theta, theta / 4, (1 - theta) / 4, (1 - theta) / 4, theta / 4])
    seen = jnp.array([0, 0, 1, 2, 3]) == cell
    return jnp.where(seen, jnp.log(cells), -jnp.inf)


@pytest.mark.slow
def test_frequency_weights_on_a_model_without_components_give_the_published_standard_error():
    # Dempster, Laird & Rubin (1977): θ = 0.6268, information −d²L/dθ² = 377.5; 4 rows that stand for 197
    model = jaxem.LogJoint(linkage, 5, constraints=jaxem.bijections.unit_interval, m_step=jaxem.Full())
    cells, counts, n_replicates = jnp.arange(4), np.array([125.0, 18.0, 20.0, 34.0]), 400
    parent = jaxem.fit(model, jnp.array(0.5), cells, sample_weight=counts).params
    found = bootstrap(model, parent, cells, KEY, n_replicates, sample_weight=counts)
    error = found.standard_errors()
    np.testing.assert_allclose(error, 1 / np.sqrt(377.5), rtol=4 / np.sqrt(2 * n_replicates))
    lower, upper = found.interval()
    np.testing.assert_allclose([lower, upper], 0.6268 + np.array([-1.96, 1.96]) * error, atol=0.02)


# --- the likelihood-ratio test

ONE, TWO = (jaxem.Mixture(jaxem.TiedNormal(), k) for k in (1, 2))
TEST: dict[str, Any] = {"n_replicates": 19, "n_restarts": 2, "max_iter": MAX_ITER}


def normals(separation: float) -> np.ndarray:
    x = np.random.default_rng(3).normal(size=(N, D))
    return x + separation * (np.arange(N) % 2 == 0)[:, None]


@pytest.mark.slow
def test_the_number_of_components_is_found_by_the_likelihood_ratio():
    apart = likelihood_ratio_test(ONE, TWO, KEY, normals(8.0), **TEST)
    assert float(apart.p_value) == pytest.approx(1 / 20)
    together = likelihood_ratio_test(ONE, TWO, KEY, normals(0.0), **TEST)
    assert float(together.p_value) > 0.2
    for found in (apart, together):
        assert float(found.statistic) == pytest.approx(2 * float(found.alternative.log_lik - found.null.log_lik))
        assert found.replicates.shape == (19,) and found.status.shape == (19, 2)
        counted = found.replicates[~np.isnan(found.replicates)]
        assert float(found.p_value) == pytest.approx((1 + (counted >= found.statistic).sum()) / (1 + len(counted)))


def halves_or_none(key, points, k, weight, active):
    """A good start for two components; for three, all alike, where EM is stuck."""
    if k == 2:
        return (points[:, 0] > 0).astype(jnp.int32)
    return jnp.full((points.shape[0], k), 1 / k)


@slow
def test_a_start_that_nests_the_null_keeps_the_statistic_from_falling_below_zero():
    two, three = (jaxem.Mixture(jaxem.TiedNormal(floor=0.0), k) for k in (2, 3))
    options: dict[str, Any] = {**TEST, "n_replicates": 3, "n_restarts": 1, "init": halves_or_none}
    found = likelihood_ratio_test(two, three, KEY, normals(8.0), **options)
    assert_finite(found.replicates)
    assert float(found.statistic) >= -1e-8 and (found.replicates >= -1e-8).all()


def halves_of_active_or_none(key, points, k, weight, active):
    on = jnp.ones(k, bool) if active is None else active
    halves = jnp.argsort(~on, stable=True)[jnp.where(points[:, 0] > 0, 1, 0)]
    even = jnp.broadcast_to(on / jnp.sum(on), (points.shape[0], k))
    return jnp.where(jnp.sum(on) == 2, jax.nn.one_hot(halves, k), even)


@slow
def test_components_that_are_switched_off_take_no_part_in_the_likelihood_ratio_test():
    """Full covariances, two components against three, as they are and as slots of larger mixtures."""
    plain = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (2, 3)]
    on = jnp.array([False, True, True, False]), jnp.array([True, False, True, False, True])
    slots = [jaxem.Mixture(jaxem.FullNormal(), len(active), active=active) for active in on]
    options: dict[str, Any] = {**TEST, "n_replicates": 5, "n_restarts": 1, "init": halves_of_active_or_none}
    got = likelihood_ratio_test(slots[0], slots[1], KEY, normals(8.0), **options)
    want = likelihood_ratio_test(plain[0], plain[1], KEY, normals(8.0), **options)
    assert (np.asarray(got.replicates) >= -1e-8).all() and float(got.statistic) >= -1e-8
    np.testing.assert_allclose(got.null.log_lik, want.null.log_lik, rtol=1e-6)
    r = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(2), 7)) @ jnp.array([[0.0, 1, 0, 0], [0, 0, 1, 0]])
    split = likelihood_ratio._split(r, slots[0], slots[1])
    heaviest = 1 + int(jnp.argmax(jnp.sum(r, 0)[1:3]))
    np.testing.assert_allclose(jnp.sum(split, 1), 1, rtol=1e-12)
    np.testing.assert_array_equal(split[:, jnp.array([1, 3])], 0)
    np.testing.assert_allclose(split[:, 4], r[:, heaviest] / 2, rtol=1e-12)


@slow
def test_the_likelihood_ratio_test_does_not_depend_on_the_plan_nor_on_jit():
    x = normals(0.0)
    run = lambda plan, x: likelihood_ratio_test(ONE, TWO, KEY, x, plan=plan, **TEST)  # noqa: E731
    want = run("sequential", x)
    for other in (run("lanes", x), jax.jit(run, static_argnums=0)("sequential", x)):
        assert_close((other.statistic, other.replicates), (want.statistic, want.replicates), rtol=1e-6, atol=1e-6)
        assert_same((other.p_value, other.status), (want.p_value, want.status))


# --- bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_replicates": 0}, "n_replicates: expected a positive int, got 0"),
        ({"n_replicates": 10.0}, "n_replicates: expected a positive int"),
        ({"scheme": np.ones(N)}, "scheme: expected EfronBootstrap"),
        ({"scheme": BayesianBootstrap}, "scheme: expected EfronBootstrap"),
        ({"sample_weight": np.ones(3)}, "sample_weight: expected shape"),
        ({"sample_weight": np.full(N, -1.0)}, "sample_weight: expected finite non-negative"),
        ({"data": np.full((N, D), np.nan)}, "data: expected finite values"),
        ({"params": begin()._replace(weights=jnp.ones(3))}, "params.weights: expected shape"),
        ({"model": object()}, "model: object has no E step"),
        ({"plan": "threads"}, "plan: expected"),
        ({"tol": np.nan}, "tol: expected a number"),
        ({"max_iter": -1}, "max_iter: expected"),
        ({"chunk_size": 0}, "chunk_size: expected"),
    ],
)
def test_bad_arguments_of_a_bootstrap_are_named(options, message):
    options = {"model": MODEL, "params": begin(), "data": blobs(N), "key": KEY, **options}
    with pytest.raises(ValueError, match=message):
        bootstrap(**options)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, -0.5])
def test_a_level_is_between_zero_and_one(level):
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        plain()[2].interval(level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null": TWO, "alternative": ONE}, "null: expected at most the alternative's 1 components, got 2"),
        ({"null": jaxem.LogJoint(linkage, 5)}, "null: expected sample"),
        ({"null": jaxem.Mixture(jaxem.Density(linkage), 1)}, "null: expected sample"),
        ({"alternative": object()}, "model: object has no E step"),
        ({"n_replicates": -1}, "n_replicates: expected a positive int"),
        ({"n_restarts": 0}, "n_restarts: expected a positive int"),
        ({"init": "kmeans"}, "init: expected an initialiser"),
        ({"data": jaxem.labelled(blobs(N), np.zeros(N, int))}, "data: expected rows without labels"),
        ({"data": np.full((N, D), np.nan)}, "data: expected finite values"),
    ],
)
def test_bad_arguments_of_the_test_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        likelihood_ratio_test(**{"null": ONE, "alternative": TWO, "key": KEY, "data": blobs(N), **options})
