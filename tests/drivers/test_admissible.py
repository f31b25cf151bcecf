"""Maxima that are no answers: spikes on a few rows or on a value that repeats, and what the drivers do about them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Admissible, Status

pytestmark = pytest.mark.filterwarnings("ignore:fit_restarts")  # spikes are often reached by one start only
MODEL = jaxem.Mixture(jaxem.FullNormal(), 2)
KEY = jax.random.key(1)


def spiked(n=60, n_equal=2, seed=0):
    """Standard normal rows, and a few that are equal: the best maximum of two components is a spike on these."""
    return np.concatenate([np.random.default_rng(seed).normal(size=(n, 1)), np.full((n_equal, 1), 3.0)])


def clusters():
    """Two groups and two rows far away that are equal: a spike on these is the best maximum, the groups another."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=30), 3 + rng.normal(size=30), np.full(2, 12.0)])[:, None]


def names(status):
    return [Status(int(code)).name for code in np.ravel(status)]


def fewest(result):
    return float(np.min(np.asarray(result.params.weights) * np.asarray(result.total_weight)[..., None]))


@pytest.mark.parametrize("plan", ["sequential", "lanes"])
def test_the_best_admissible_maximum_wins(plan):
    x = clusters()
    fit = lambda admissible: jaxem.fit_restarts(  # noqa: E731
        MODEL, KEY, x, n_restarts=8, admissible=admissible, plan=plan, algorithm=jaxem.EM(), max_iter=5000
    )
    free, bounded = fit(None).check(), fit(Admissible(min_count=5)).check()
    assert fewest(free) < 3 < 5 <= fewest(bounded)
    assert free.objective > bounded.objective
    # it is one of the maxima of the likelihood, and the best of those
    every = [
        jaxem.fit(MODEL, MODEL.init(key, x), x, max_iter=5000) for key in jax.random.split(KEY, 8)
    ]  # fmt: skip
    allowed = [float(one.objective) for one in every if fewest(one) >= 5]
    assert float(bounded.objective) == pytest.approx(max(allowed), abs=1e-4)


@pytest.mark.parametrize(("plan", "race"), [("sequential", None), ("lanes", jaxem.Race(3, 4))])
def test_where_no_start_is_admissible_the_status_says_so_and_the_best_is_returned(plan, race):
    fit = lambda admissible: jaxem.fit_restarts(  # noqa: E731
        MODEL, KEY, spiked(), n_restarts=8, admissible=admissible, plan=plan, race=race
    )
    result, free = fit(Admissible(min_count=40.0)), fit(None)
    assert names(result.status) == ["INADMISSIBLE"] and result.failed and not result.converged
    assert float(result.objective) == pytest.approx(float(free.objective), abs=1e-4)
    with pytest.raises(RuntimeError, match="INADMISSIBLE: no start has found .* use fewer components, more starts"):
        result.check()


def test_a_spike_whose_density_is_rounding_is_not_admissible():
    rng = np.random.default_rng(0)
    two = np.array([[53.0, 38.0], [134.0, 125.0]])  # of their covariance float32 knows one eigenvalue
    x = np.concatenate([rng.normal((-6, -20), (4, 20), (19, 2)).round(), two]).astype(np.float32)
    init = jaxem.Labels(np.repeat([0, 1], [19, 2]))
    fit = lambda admissible: jaxem.fit_restarts(MODEL, KEY, x, n_restarts=1, init=init, admissible=admissible)  # noqa: E731
    assert names(fit(None).status) == ["DEGENERATE"]
    assert names(fit(Admissible(min_count=3)).status) == ["INADMISSIBLE"]


def test_a_value_that_repeats_is_at_the_floor_in_one_dimension_as_well():
    x = spiked(60, 20)
    free = jaxem.fit_restarts(MODEL, KEY, x, n_restarts=3)
    assert fewest(free) > 15  # many rows: a least count does not see it
    assert int(free.holdings().n_at_floor) == 1
    low = jaxem.fit_restarts(MODEL, KEY, x, n_restarts=3, admissible=Admissible(min_count=5, at_floor=True))
    assert low.objective == free.objective
    result = jaxem.fit_restarts(MODEL, KEY, x, n_restarts=3, admissible=Admissible())
    assert names(result.status) == ["INADMISSIBLE"] or int(result.holdings().n_at_floor) == 0


def test_ratios_of_eigenvalues_are_bounded_over_all_components():
    x = np.concatenate(
        [np.random.default_rng(0).normal(size=(90, 1)), 20 + 0.1 * np.random.default_rng(1).normal(size=(90, 1))]
    )
    fit = lambda ratio: jaxem.fit_restarts(MODEL, KEY, x, n_restarts=2, admissible=Admissible(max_ratio=ratio))  # noqa: E731
    wide = fit(1e4)
    ratio = float(wide.holdings().largest_ratio)
    variances = np.asarray(wide.params.components.covariance).ravel()
    assert ratio == pytest.approx(variances.max() / variances.min()) and 50 < ratio < 200
    assert names(wide.status) != ["INADMISSIBLE"] and names(fit(10.0).status) == ["INADMISSIBLE"]


def test_what_a_family_does_not_have_is_not_asked_of_it():
    counts = np.random.default_rng(0).poisson(3.0, (30, 1)).astype(float)
    poisson = jaxem.Mixture(jaxem.Poisson(), 2)
    assert jaxem.fit_restarts(poisson, KEY, counts, n_restarts=2, admissible=Admissible(min_count=1)).converged
    with pytest.raises(ValueError, match="max_ratio: expected a family with covariances, got Poisson"):
        jaxem.fit_restarts(poisson, KEY, counts, admissible=Admissible(max_ratio=10.0))
    with pytest.raises(ValueError, match="min_count: expected a number of at least 0, got -1"):
        jaxem.fit_groups(MODEL, KEY, counts, np.arange(30) % 2, admissible=Admissible(min_count=-1))
    with pytest.raises(ValueError, match="admissible: expected Admissible"):
        jaxem.select([MODEL], KEY, counts, admissible=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="admissible: expected a Mixture"):
        joint = jaxem.LogJoint(lambda theta, row: jnp.zeros(2) + theta, n_states=2)
        jaxem.fit_restarts(joint, KEY, counts, admissible=Admissible())


def test_a_component_that_is_alone_is_always_admissible():
    one = jaxem.Mixture(jaxem.FullNormal(), 1)
    x = np.random.default_rng(0).normal(size=(4, 1))
    assert jaxem.fit_restarts(one, KEY, x, n_restarts=2, admissible=Admissible(min_count=5)).converged


def test_counts_follow_weights_gates_and_held_params():
    x, weight = spiked(60, 5), np.concatenate([np.full(60, 2.0), np.full(5, 0.1)])
    result = jaxem.fit_restarts(MODEL, KEY, x, n_restarts=3, sample_weight=weight)
    assert float(result.total_weight) == pytest.approx(120.5)
    assert float(result.holdings().smallest_count) == pytest.approx(fewest(result), rel=1e-5)
    gated = jaxem.gated(x, np.arange(65.0)[:, None])
    gate = jaxem.Mixture(jaxem.FullNormal(), 2, gate=jaxem.SoftmaxGate())
    for least, name in ((1.0, "CONVERGED"), (40.0, "INADMISSIBLE")):
        fitted = jaxem.fit_restarts(gate, KEY, gated, n_restarts=1, admissible=Admissible(least, at_floor=True))
        assert name in names(fitted.status) or (name == "CONVERGED" and fitted.converged)
    mask = jaxem.MixtureParams(True, False)
    bank = jaxem.NormalParams(jnp.zeros((2, 1)), jnp.ones((2, 1, 1)))
    held = jaxem.Frozen(MODEL, mask, jaxem.MixtureParams(jnp.array([0.9, 0.1]), bank))
    result = jaxem.fit_restarts(held, KEY, x, n_restarts=2, admissible=Admissible(min_count=8.0))
    assert names(result.status) == ["INADMISSIBLE"]


def test_admissible_maxima_are_differentiable_and_new_bounds_do_not_retrace():
    x, traced = jnp.asarray(clusters()), []

    @jax.jit
    @jax.value_and_grad
    def fit(x, least):
        traced.append(0)
        best = jaxem.fit_restarts(MODEL, KEY, x, n_restarts=8, admissible=Admissible(least, at_floor=True), tol=1e-9)
        return jnp.sum(best.params.components.mean)

    value, gradient = fit(x, 5.0)
    assert not np.isclose(fit(x, 0.0)[0], value) and len(traced) == 1
    step = 1e-4 * jnp.cos(jnp.arange(62.0))[:, None]
    difference = (fit(x + step, 5.0)[0] - fit(x - step, 5.0)[0]) / 2
    assert float(jnp.sum(gradient * step)) == pytest.approx(float(difference), rel=1e-2)


@pytest.mark.parametrize("plan", ["sequential", "lanes"])
def test_groups_without_an_admissible_maximum_are_counted_and_named(plan):
    x = np.concatenate([spiked(30, 2, seed) for seed in range(4)])
    ids = np.repeat(["a", "b", "c", "d"], 32)
    free = jaxem.fit_groups(MODEL, KEY, x, ids, n_restarts=4, plan=plan)
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, n_restarts=4, plan=plan, admissible=Admissible(min_count=5))
    counts = np.asarray(groups.params.weights).min(1) * 32
    failed = np.asarray(groups.status) == Status.INADMISSIBLE
    assert np.array_equal(failed, counts < 5) and np.all(np.asarray(free.objective) >= np.asarray(groups.objective))
    everywhere = jaxem.fit_groups(MODEL, KEY, x, ids, plan=plan, admissible=Admissible(min_count=17))
    with pytest.raises(RuntimeError, match=r"4 of 4 groups did not converge:\s+INADMISSIBLE \(4: a, b, c, d\)"):
        everywhere.check()


def test_selection_passes_over_what_is_not_admissible():
    models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2)]
    x = spiked(60, 4)
    free = jaxem.select(models, KEY, x, n_restarts=4)
    bounded = jaxem.select(models, KEY, x, n_restarts=4, admissible=Admissible(min_count=40))
    assert free.index == 1 and bounded.index == 0
    assert bounded.table["status"][1] == "INADMISSIBLE" and np.isnan(bounded.table["criterion"][1])


# --- how many starts reached the best


@pytest.mark.parametrize("plan", ["sequential", "lanes"])
def test_starts_that_reached_the_best_are_counted(plan):
    x = np.random.default_rng(3).normal(size=(80, 2))
    model = jaxem.Mixture(jaxem.FullNormal(), 3)
    every = [jaxem.fit(model, model.init(key, x), x) for key in jax.random.split(KEY, 6)]
    objectives = np.array([float(one.objective) for one in every])
    best = jaxem.fit_restarts(model, KEY, x, n_restarts=6, plan=plan, algorithm=jaxem.EM())
    assert int(best.n_starts) == 6 and int(best.n_best) == int((objectives > objectives.max() - 10e-6 * 80).sum())
    run = lambda x: jaxem.fit_restarts(model, KEY, x, n_restarts=6, plan=plan, algorithm=jaxem.EM())  # noqa: E731
    traced = jax.jit(run)(x)
    assert int(traced.n_best) == int(best.n_best)
    alone = jaxem.fit_restarts(model, KEY, x, n_restarts=1, plan=plan)
    assert alone.n_best is None and jaxem.fit(model, model.init(KEY, x), x).n_best is None
    groups = jaxem.fit_groups(model, KEY, np.tile(x, (2, 1)), np.repeat([0, 1], 80), n_restarts=3, plan=plan)
    assert groups.n_best.shape == groups.n_starts.shape == (2,)
    assert int(groups.ordered().fit_of(1).n_starts) == 3 and "n_best" in groups.to_frame()


def test_one_of_many_starts_that_alone_reached_the_best_is_a_warning():
    x = np.random.default_rng(3).normal(size=(80, 2))
    model = jaxem.Mixture(jaxem.FullNormal(), 5)
    with pytest.warns(UserWarning, match="fit_restarts: 1 of 4 starts reached the best objective"):
        jaxem.fit_restarts(model, KEY, x, n_restarts=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxem.fit_restarts(model, KEY, x, n_restarts=3)  # of three it says little
        jaxem.fit_restarts(jaxem.Mixture(jaxem.FullNormal(), 1), KEY, x, n_restarts=4)


# --- the best of several models for every group


def two_regimes(n=80, seed=0):
    """Groups of one regime, of two, and one with a value that repeats."""
    rng = np.random.default_rng(seed)
    one, spread = rng.normal(size=n), rng.normal(size=n)
    two = rng.normal(size=n) + np.where(np.arange(n) < n // 3, 9.0, 0.0)
    repeated = np.where(np.arange(n) < n // 3, -4.0, spread)
    return np.concatenate([one, two, repeated])[:, None], np.repeat(["one", "two", "repeated"], n)


@pytest.mark.parametrize("plan", ["sequential", "lanes"])
def test_every_group_has_its_own_number_of_components(plan):
    x, ids = two_regimes()
    models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2)]
    found = jaxem.select(models, KEY, x, group_ids=ids, n_restarts=3, plan=plan).check()
    assert found.labels.tolist() == ["one", "repeated", "two"] and found.index.tolist() == [0, 0, 1]
    assert found.counts() == {"FullNormal, k=1": 2, "FullNormal, k=2": 1}
    assert found.fit_of("two").params.weights.shape == (2,) and found.fit_of("one").params.weights.shape == (1,)
    # every candidate is in the table, those that are no answers too
    frame = found.to_frame().set_index(["group", "n_components"])
    assert len(frame) == 6 and frame.loc[("repeated", 2), "status"] == "INADMISSIBLE"
    assert frame.loc[("repeated", 2), "n_at_floor"] == 1 and np.isnan(frame.loc[("repeated", 2), "criterion"])
    free = jaxem.select(models, KEY, x, group_ids=ids, n_restarts=3, plan=plan, admissible=None)
    assert free.index.tolist() == [0, 1, 1]
    # the fits are those of fit_groups, whatever the other models are
    alone = jaxem.fit_groups(models[1], KEY, x, ids, n_restarts=3, plan=plan)
    np.testing.assert_allclose(free.results[1].objective, alone.objective, rtol=1e-6)
    np.testing.assert_allclose(free.results[1].params.components.mean, alone.params.components.mean, atol=1e-3)


def test_criteria_of_groups_are_those_of_their_own_rows():
    x, ids = two_regimes()
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, sample_weight=weight)
    for label in groups.labels:
        one, i = groups.fit_of(label), groups.index(label)
        rows = x[ids == label], weight[ids == label]
        np.testing.assert_allclose(groups.bic()[i], one.model.bic(one.params, *rows), rtol=1e-5)
        np.testing.assert_allclose(groups.aic()[i], one.model.aic(one.params, *rows), rtol=1e-5)
        np.testing.assert_allclose(groups.icl(x, ids, weight)[i], one.model.icl(one.params, *rows), rtol=1e-5)
    by_icl = jaxem.select(
        [MODEL], KEY, x, group_ids=ids, criterion="icl", n_restarts=1, sample_weight=weight, admissible=None
    )
    np.testing.assert_allclose(by_icl.table["criterion"][0], groups.icl(x, ids, weight)[0], rtol=1e-5)


def test_groups_choose_among_families_too_and_failures_are_named():
    x, ids = two_regimes()
    x, ids = np.concatenate([x, np.ones((3, 1))]), np.concatenate([ids, ["z"] * 3])
    models = {"normal": MODEL, "heavy": jaxem.Mixture(jaxem.StudentT(), 1)}
    found = jaxem.select(models, KEY, x, group_ids=ids, n_restarts=1, max_iter=5000)
    assert found.results[1].params.components.mean.shape == (4, 1, 1)
    assert found.best_name[found.labels.tolist().index("two")] == "normal"
    with pytest.raises(RuntimeError, match=r"1 of 4 groups did not converge:\s+DEGENERATE \(1: z\)"):
        found.check()
    with pytest.raises(ValueError, match="criterion: expected one of .* where group_ids are given"):
        jaxem.select(models, KEY, x, group_ids=ids, criterion=jaxem.CrossValidation(3))


@pytest.mark.slow  # twelve seconds, most of them compilation
def test_zeros_of_log_counts_are_not_taken_for_a_second_component():
    """The smaller sister of `python -m benchmarks.genes`, with its limits."""
    from benchmarks import genes

    counts, has_two = genes.draw_genes(300)
    x, ids = np.log1p(counts).reshape(-1, 1), np.repeat(np.arange(300), genes.N_CELLS)
    models = [jaxem.Mixture(jaxem.FullNormal(), k) for k in (1, 2)]
    free = jaxem.select(models, KEY, x, group_ids=ids, n_restarts=4, admissible=None)
    found = jaxem.select(models, KEY, x, group_ids=ids, n_restarts=4)
    false, seen = (float(np.mean(found.index[which])) for which in (~has_two, has_two))
    assert false <= genes.MOST_FALSE + 0.03 and seen >= genes.LEAST_SEEN  # 300 genes are off by 0.02
    assert np.mean(free.index[~has_two]) > 0.45  # by BIC alone
    spikes = np.asarray(free.table["n_at_floor"]).reshape(300, 2)[np.arange(300), free.index] > 0
    assert np.mean(spikes[free.index == 1]) > 0.4


# --- what is said about a fit


def test_diagnoses_name_few_rows_the_floor_and_the_largest_ratio():
    x = spiked(60, 3)
    result = jaxem.fit_restarts(MODEL, KEY, x, n_restarts=8)
    found = jaxem.diagnose(result)
    assert float(found.smallest_count) == pytest.approx(3, abs=0.1) and int(found.n_at_floor) == 1
    variances = np.asarray(result.params.components.covariance).ravel()
    assert float(found.largest_ratio) == pytest.approx(variances.max() / variances.min(), rel=1e-5)
    text = " ".join(found.messages())
    assert "lies at the floor" in text and "fewer than 5 rows" in text
    assert (int(found.n_best), int(found.n_starts)) == (int(result.n_best), 8)
    plain = jaxem.diagnose(
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 1), jaxem.Mixture(jaxem.FullNormal(), 1).init(KEY, x), x)
    )
    assert plain.messages() == [] and plain.n_best is None


def test_diagnoses_of_groups_lanes_and_loaded_files_are_those_of_every_fit(tmp_path):
    x = np.concatenate([spiked(30, 2, seed) for seed in range(3)])
    ids = np.repeat(["a", "b", "c"], 32)
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, n_restarts=4)
    found = jaxem.diagnose(groups)
    for label in groups.labels:
        own = jaxem.diagnose(groups.fit_of(label))
        for name in ("smallest_weight", "worst_condition", "smallest_count", "largest_ratio", "n_at_floor", "n_best"):
            np.testing.assert_allclose(getattr(found, name)[groups.index(label)], getattr(own, name), rtol=1e-6)
    n_low = int(np.sum(np.asarray(found.n_at_floor) > 0))
    assert n_low > 0 and any(message.startswith(f"in {n_low} of 3 (") for message in found.messages())
    jaxem.save(tmp_path / "bound.npz", groups.fits.model, groups.params)
    jaxem.save(tmp_path / "one.npz", MODEL, groups.params)
    bound = jaxem.diagnose(*jaxem.load(tmp_path / "bound.npz"), total_weight=np.full(3, 32.0))
    np.testing.assert_array_equal(bound.n_at_floor, found.n_at_floor)
    shared = jaxem.diagnose(*jaxem.load(tmp_path / "one.npz"))
    np.testing.assert_allclose(shared.largest_ratio, found.largest_ratio, rtol=1e-6)
    assert shared.smallest_count is None and shared.largest_fall.shape == (3,)
