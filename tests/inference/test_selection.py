"""Selection among models: criteria, padding, folds, failures.

Most tests select among three diagonal mixtures of weighted rows, which is one program for each criterion.
"""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from helpers import FAMILIES, KEY, assert_close, assert_same, blobs, first, made, mixture
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

import jaxem
from jaxem import Status
from jaxem.inference.selection import CrossValidation, Selection, select

REFERENCE = Path(__file__).parents[1] / "reference"
N, MAX_ITER = 60, 200
X = blobs(N)
HALVES = jaxem.Labels(np.asarray(np.arange(N) % 3 == 0, int))  # the two clouds
THREE = [mixture("diagonal", k) for k in (1, 2, 3)]
COLUMNS = ["name", "n_components", "criterion", "log_lik", "objective", "n_parameters", "status", "n_iter"]


def run(models: Any, x: Any = X, **options: Any) -> Selection:
    options = {"n_restarts": 2, "max_iter": MAX_ITER, "sample_weight": np.ones(len(x))} | options
    return select(models, KEY, x, **options)


def in_sklearn(result: jaxem.FitResult, kind: str) -> GaussianMixture:
    """The same mixture as an estimator of scikit-learn; its criteria need no fit."""
    weights, (mean, covariance) = jax.tree.map(np.asarray, result.params)
    other = GaussianMixture(len(weights), covariance_type=kind)  # type: ignore[arg-type]
    other.weights_, other.means_, other.covariances_ = weights, mean, covariance
    other.precisions_cholesky_ = _compute_precision_cholesky(covariance, kind)
    return other


# --- criteria


@pytest.mark.slow
@first("criterion", ["icl", "icl_entropy", "bic", "aic"])
def test_criteria_are_those_of_scikit_learn(criterion):
    selection = run(THREE, criterion=criterion)
    for i, result in enumerate(selection.results):
        other = in_sklearn(result, "diag")
        r = other.predict_proba(X)
        entropy = -np.sum(r * np.log(np.where(r > 0, r, 1)))
        more = {"icl": -2 * np.log(r.max(1)).sum(), "icl_entropy": 2 * entropy}  # "icl" as mclust's, since 0.2
        want = other.aic(X) if criterion == "aic" else other.bic(X) + more.get(criterion, 0)
        np.testing.assert_allclose(selection.table["criterion"][i], want, rtol=1e-8)
        assert selection.table["n_parameters"][i] == other._n_parameters()
    assert selection.index == int(np.argmin(selection.table["criterion"]))


def published(case_id: str) -> tuple[np.ndarray, float]:
    """Data of a case, and BIC (lower is better) from its log-likelihood at the optimum."""
    cases = json.loads((REFERENCE / "cases.json").read_text(encoding="utf-8"))["cases"]
    case = next(case for case in cases if case["id"] == case_id)
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    x = np.array([[float(row[name]) for name in case["data"]["columns"]] for row in rows])
    return x, -2 * case["expected"]["loglik"] + case["expected"]["df"] * np.log(len(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case_id", "k", "mclust"),
    [
        pytest.param("acidity_E2", 2, 392.0723, id="acidity"),
        pytest.param("gmm_faithful_K3_tied", 3, 2314.316, id="faithful", marks=pytest.mark.slow),
    ],
)
def test_the_published_choice_is_made(case_id, k, mclust):
    """The quick tour of mclust 6.1.3 chooses E,2 for acidity and EEE,3 for Old Faithful, among these and others."""
    x, bic = published(case_id)
    assert abs(bic - mclust) < 0.03  # it stops at tol 1e-5, up to 1e-2 of log-likelihood short
    families = {"tied": 4, "diagonal": 3}  # of one column, diagonal is mclust's V
    models = [mixture(name, j, floor=0.0) for name, most in families.items() for j in range(1, most + 1)]
    selection = run(models, x, n_restarts=12, tol=1e-12, max_iter=1000, sample_weight=None)
    assert selection.best_name == f"TiedNormal, k={k}"
    np.testing.assert_allclose(selection.table["criterion"][selection.index], bic, rtol=1e-8)
    selection.check()


# --- one program, padded


_compiled: list[str] = []


def _note(event: str, duration_secs: float, **about: Any) -> None:
    if "backend_compile" in event:
        _compiled.append(str(about.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_note)


def test_all_sizes_of_a_family_compile_once():
    x = blobs(37)  # a shape of its own
    models = lambda scale: [mixture("spherical", k, floor=scale * 1e-6) for k in range(1, 7)]  # noqa: E731
    _compiled.clear()
    run(models(1.0), x)
    assert sum("_run_block" in name for name in _compiled) == 1, _compiled
    _compiled.clear()
    run(models(2.0), x + 1)
    assert _compiled == []


@pytest.mark.slow
@first("name", ["diagonal", "tied"])
def test_padded_fits_are_those_of_each_model_alone(name):
    family, weight = FAMILIES[name](1e-3), jnp.linspace(0.5, 1.5, N)
    models = [
        jaxem.Mixture(family, 2, concentration=np.array([2.0, 3.0])),
        jaxem.Mixture(FAMILIES[name](), 4, concentration=1.5, active=np.array([True, False, True, True])),
    ]
    selection = run(models, sample_weight=weight)
    # the other is as large as the largest
    model, got = models[0], selection.results[0]
    want = jaxem.fit_restarts(model, KEY, X, n_restarts=2, max_iter=MAX_ITER, sample_weight=weight)
    assert (int(got.n_iter), int(got.status)) == (int(want.n_iter), int(want.status))
    assert_close((got.params, got.objective, got.log_lik), (want.params, want.objective, want.log_lik), 1e-9, 1e-12)
    assert jax.tree.structure(got.model) == jax.tree.structure(want.model)
    assert_close(got.model, want.model, 1e-12)
    bic = jax.jit(want.model.bic)(want.params, X, weight)
    np.testing.assert_allclose(selection.table["criterion"][0], bic, rtol=1e-10)
    assert selection.table["n_components"] == [2, 4]
    assert [result.params.weights.shape for result in selection.results] == [(2,), (4,)]
    k = {"diagonal": (2 * 4 + 1, 3 * 4 + 2), "tied": (2 * 2 + 3 + 1, 3 * 2 + 3 + 2)}[name]
    assert selection.table["n_parameters"] == list(k)
    assert selection.results[1].params.weights[1] == 0
    assert_same(selection.results[1].model.active, models[1].active)


@pytest.mark.slow
def test_plans_agree():
    options = {"criterion": CrossValidation(2)}
    one, other = run(THREE, plan="lanes", **options), run(THREE, plan="sequential", **options)
    assert_close([r.params for r in one.results], [r.params for r in other.results], 1e-9)
    np.testing.assert_allclose(one.table["criterion"], other.table["criterion"], rtol=1e-10)


# --- rows that are left out


@pytest.mark.slow
def test_cross_validation_is_a_loop_over_folds():
    """Against fits to tables from which the rows are missing, scored by scikit-learn."""
    x, weight = np.insert(X, 7, np.nan, 0), np.insert(np.linspace(0.5, 1.5, N), 7, 0.0)
    labels = np.insert(np.asarray(HALVES.labels), 7, 0)
    models = {"plain": mixture("diagonal"), "floored": mixture("diagonal", floor=0.05)}
    options = {"criterion": CrossValidation(3), "sample_weight": weight, "n_restarts": 1, "algorithm": jaxem.EM()}
    selection = run(models, x, init=jaxem.Labels(labels), **options)
    folds = selection.folds
    assert folds is not None and folds[7] == -1
    assert np.bincount(np.delete(folds, 7)).tolist() == [20, 20, 20]

    def fit(model: Any, kept: np.ndarray) -> jaxem.FitResult:
        start = model.init(KEY, x[kept], weight[kept], jaxem.Labels(labels[kept]))
        return jaxem.fit(model, start, x[kept], sample_weight=weight[kept], max_iter=MAX_ITER)

    for name, score in zip(models, selection.table["criterion"], strict=True):
        total = 0.0
        for fold in range(3):
            result, out = fit(models[name], (folds != fold) & (weight > 0)), folds == fold
            total += np.sum(weight[out] * in_sklearn(result, "diag").score_samples(x[out]))
        np.testing.assert_allclose(score, -2 * total, rtol=1e-9)
    assert_close(selection.best.params, fit(models[selection.best_name], weight > 0).params, 1e-9)


def test_folds_are_drawn_from_the_key():
    folds = CrossValidation(5)
    one, again, other = (folds.assign(jax.random.key(seed), 53) for seed in (0, 0, 1))
    assert_same(one, again)
    assert (one != other).any()
    assert sorted(np.bincount(one)) == [10, 10, 11, 11, 11]


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["icl", CrossValidation(2)], ids=["icl", "folds"])
def test_rows_of_weight_zero_are_never_looked_at(criterion):
    weight = np.where(np.arange(N) % 5 == 0, 0.0, 1.0)
    tables = [np.where(weight[:, None] > 0, X, absent) for absent in (np.nan, 0.0)]
    got, want = (run(THREE, x, criterion=criterion, sample_weight=weight) for x in tables)
    assert np.isfinite(got.table["criterion"]).all()
    assert_same((got.table["criterion"], got.best.params), (want.table["criterion"], want.best.params))


def test_models_of_any_kind_are_compared_by_cross_validation():
    model = jaxem.LogJoint(two_normals, 2, start=(jnp.zeros(2), jnp.array([0.0, 4.0])))
    selection = run([*THREE[:1], model, *THREE[1:]], criterion=CrossValidation(2))
    assert selection.names[:2] == ["DiagonalNormal, k=1", "LogJoint"]
    assert selection.table["n_parameters"] == [4, 4, 9, 14]
    assert selection.best_name == "LogJoint"  # two clouds of unit variance
    assert selection.check() is selection


def two_normals(params: Any, x: Any) -> Any:
    """log p(x, z) of two spherical normals of variance 1."""
    logits, centre = params
    squared = jnp.sum(jnp.square(x[None] - centre[:, None]), 1)
    return jax.nn.log_softmax(logits) - 0.5 * squared - np.log(2 * np.pi)


# --- failures


@pytest.mark.slow
def test_a_model_that_failed_never_wins():
    """Rows that repeat have no density without a floor; with one they have the highest."""
    x = np.where(np.asarray(HALVES.labels)[:, None] == 1, 9.0, X)
    models = {"collapsed": mixture("full", floor=0.0), "sound": mixture("full", floor=0.1)}
    selection = run(models, x, init=HALVES)
    assert selection.table["status"] == ["DEGENERATE", "CONVERGED"]
    assert np.isnan(selection.table["criterion"]).tolist() == [True, False]
    assert selection.best_name == "sound" and selection.best is selection.results[1]
    selection.check()


def test_a_model_that_failed_in_a_fold_never_wins():
    weight = np.where(np.arange(N) < 4, 1.0, 0.0)  # two rows in each fit, for three components
    selection = run(THREE[::-1], sample_weight=weight, criterion=CrossValidation(2))
    assert selection.table["status"][0] == "TOO_FEW" and np.isnan(selection.table["criterion"][0])
    assert not bool(selection.results[0].failed)
    assert selection.index != 0 and np.isfinite(selection.table["criterion"][selection.index])


@pytest.mark.slow
def test_if_all_failed_the_first_is_returned_and_check_raises():
    constant = X * np.array([1.0, 0.0])
    selection = run([mixture("diagonal", k, floor=0.0) for k in (3, 2, 1)], constant)
    assert selection.index == 0 and int(selection.best.status) == Status.DEGENERATE
    with pytest.raises(RuntimeError, match=r"3 of 3 models did not converge:\s+DEGENERATE \(3: DiagonalNormal, k=3, "):
        selection.check()


def test_nan_in_the_data_is_a_status_and_too_few_iterations_may_win():
    broken = run(THREE, np.where(np.arange(N)[:, None] == 3, np.nan, X))
    assert broken.table["status"] == ["NONFINITE"] * 3
    endless = run(THREE, tol=-1.0)
    assert endless.best_name == "DiagonalNormal, k=2" and endless.table["status"][1] == "MAX_ITER"
    with pytest.raises(RuntimeError, match="the winner, DiagonalNormal, k=2 ended with status MAX_ITER: max_iter"):
        endless.check()


# --- forms and arguments


def test_names_and_table():
    models = [mixture("diagonal", 1), mixture("diagonal", 3), mixture("diagonal", 3, floor=1e-3)]
    selection = run(models)
    assert selection.names == ["DiagonalNormal, k=1", "DiagonalNormal, k=3", "DiagonalNormal, k=3 (2)"]
    assert list(selection.table) == COLUMNS
    assert all(len(column) == 3 for column in selection.table.values())
    assert selection.table["n_components"] == [1, 3, 3]
    head, *lines = str(selection).splitlines()
    assert "bic" in head and [line.startswith("*") for line in lines] == [i == selection.index for i in range(3)]
    assert len({len(line) for line in [head, *lines]}) == 1
    named = run(dict(zip("abc", models, strict=True)))
    assert named.names == named.table["name"] == ["a", "b", "c"] and named.best_name == "abc"[selection.index]
    assert_same(named.best.params, selection.best.params)


ONE = THREE[:1]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "models: expected a sequence .* got none"),
        (mixture("diagonal", 1), {}, "models: expected a sequence .* got Mixture"),
        ([FAMILIES["full"]()], {}, "model: FullNormal has no M step"),
        ({1: ONE[0], "1": ONE[0]}, {}, "models: expected names that differ, got '1'"),
        (ONE, {"criterion": "hqc"}, "criterion: expected one of 'bic', .* got 'hqc'"),
        (ONE, {"criterion": CrossValidation}, "criterion: expected one of 'bic'"),
        (ONE, {"criterion": CrossValidation(N + 1)}, f"n_folds: expected at most .* {N}, got {N + 1}"),
        ([toys.PoissonMixture()], {}, r"criterion: expected models with a method n_parameters.*'PoissonMixture'"),
        (ONE, {"n_restarts": 0}, "n_restarts: expected a positive int"),
        (ONE, {"plan": "both"}, "plan: expected"),
        (ONE, {"init": "kmeans"}, "init: expected an initialiser"),
        ([*ONE, mixture("diagonal", 2)], {"init": HALVES}, "Labels: expected states 0 to 0, got 0 to 1"),
        (ONE, {"sample_weight": np.ones(3)}, "sample_weight: expected shape"),
        (ONE, {"max_iter": -1}, "max_iter: expected"),
    ],
)
def test_bad_arguments(models, options, message):
    with pytest.raises(ValueError, match=message):
        run(models, **options)


@pytest.mark.parametrize("n_folds", [1, True, 2.0])
def test_bad_folds(n_folds):
    with pytest.raises(ValueError, match="n_folds: expected an int of at least 2"):
        CrossValidation(n_folds)


@pytest.mark.slow
def test_labels_take_their_part_of_the_entropy_from_icl():
    known = np.where(np.arange(N) < N // 2, np.arange(N) % 3 == 0, -1).astype(int)
    data = jaxem.labelled(X, known)
    found = run([THREE[1]], data, criterion="icl_entropy", init=HALVES, n_restarts=1, sample_weight=None)
    r = np.asarray(found.best.model.responsibilities(found.best.params, X))[known < 0]
    bic = found.best.model.bic(found.best.params, data)
    np.testing.assert_allclose(found.table["criterion"][0], bic - 2 * np.sum(r * np.log(r)), rtol=1e-9)


def test_icl_is_that_of_mclust():
    """R 4.2.2, mclust 6.0.0, of m <- Mclust(faithful, G = 3, modelNames = "VVV") and p <- m$parameters.

    e <- estep(faithful, "VVV", p), whose log-likelihood is that at p (m$loglik is of the step before): the bic of
    e$loglik; icl(m) with this and m$z <- e$z.
    """
    pro = np.array([0.1226830089839792, 0.3558249628590151, 0.5214920281570057])
    mean = [[4.126443354789066, 86.34156702536724], [2.0362839598169, 54.47739942861859],
            [4.327924138499127, 78.46715720034308]]  # fmt: skip
    a = [[0.1798084500146315, 1.278686652906201, 19.30166479633797],
         [0.06909378231151413, 0.4344771491544129, 33.69312508990765],
         [0.1601084413124558, 1.165396676427248, 28.19977349257595]]  # fmt: skip
    covariance = np.array([[[xx, xy], [xy, yy]] for xx, xy, yy in a])
    x = np.loadtxt(REFERENCE / "data" / "faithful.csv", delimiter=",", skiprows=1)
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 3)
    params = made(jaxem.MixtureParams, pro, made(jaxem.NormalParams, np.array(mean), covariance))
    np.testing.assert_allclose(model.bic(params, x), 2349.684661736581, rtol=1e-11)
    np.testing.assert_allclose(model.icl(params, x), 2385.389619884861, rtol=1e-11)
    # bic + 2 * sum(z * log(z)), which mclust does not print
    np.testing.assert_allclose(model.icl_entropy(params, x), 2420.813134641824, rtol=1e-11)


@pytest.mark.slow
def test_a_joint_has_its_criterion_too():
    model = jaxem.LogJoint(two_normals, 2, start=(jnp.zeros(2), jnp.array([0.0, 4.0])))
    found = run([model], n_restarts=1)
    want = -2 * float(found.best.log_lik) + 4 * np.log(N)
    np.testing.assert_allclose(found.table["criterion"][0], want, rtol=1e-10)


def test_traced_values_are_refused():
    with pytest.raises(ValueError, match="select: expected concrete values"):
        jax.jit(lambda x: run(ONE, x).best.objective)(X)
    with pytest.raises(ValueError, match="select: expected concrete values"):
        jax.jit(lambda: run(ONE).best.objective)()
