"""jaxem behind scikit-learn's interface: against its own class, its own checks and its own tests."""

import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sklearn.mixture
from helpers import first, once_a_week, slow
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from jaxem.running import lanes
from jaxem.sklearn import GaussianMixture, _float64

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("full", "tied", "diag", "spherical")
IRIS = np.asarray(load_iris(return_X_y=True)[0])
K, D = 3, 4
one_kind = first("kind", KINDS)

# from one start weights and repeated rows give one fit (below); but what is drawn for a start cannot be the same
NOT_EQUIVALENT = {"check_sample_weight_equivalence_on_dense_data": "k-means draws other rows from a repeated table"}


def start(kind: str) -> dict[str, Any]:
    """Means at three flowers, equal weights, the precision of all rows."""
    variances = IRIS.var(0)
    precisions = {
        "full": np.tile(np.linalg.inv(np.cov(IRIS.T)), (K, 1, 1)),
        "tied": np.linalg.inv(np.cov(IRIS.T)),
        "diag": np.tile(1 / variances, (K, 1)),
        "spherical": np.full(K, 1 / variances.mean()),
    }
    return {
        "n_components": K,
        "covariance_type": kind,
        "weights_init": np.full(K, 1 / K),
        "means_init": IRIS[[10, 70, 120]],
        "precisions_init": precisions[kind],
    }


def theirs(**options: Any) -> sklearn.mixture.GaussianMixture:
    return sklearn.mixture.GaussianMixture(**options)


def assert_same_fit(ours: Any, other: Any, **tolerance: Any) -> None:
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(other, name), err_msg=name, **tolerance)


# --- scikit-learn's own class


@one_kind
def test_the_same_start_takes_the_same_steps_as_scikit_learn(kind):
    options = {**start(kind), "tol": 1e-7, "max_iter": 400, "reg_covar": 0.0, "random_state": 3}
    ours, other = GaussianMixture(**options).fit(IRIS), theirs(**options).fit(IRIS)
    assert ours.converged_ and ours.n_iter_ == other.n_iter_ == len(ours.lower_bounds_)
    assert_same_fit(ours, other, rtol=1e-9, atol=1e-10)
    assert np.array_equal(ours.predict(IRIS), other.predict(IRIS))
    np.testing.assert_allclose(ours.predict_proba(IRIS), other.predict_proba(IRIS), atol=1e-10)
    np.testing.assert_allclose(ours.score_samples(IRIS), other.score_samples(IRIS), rtol=1e-10)
    for name in ("score", "bic", "aic"):
        np.testing.assert_allclose(getattr(ours, name)(IRIS), getattr(other, name)(IRIS), rtol=1e-12)
    for mine, their in zip(ours.sample(50), other.sample(50), strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-8, atol=1e-8)
    assert ours.lower_bound_ == ours.lower_bounds_[-1] == pytest.approx(ours.score(IRIS), rel=1e-12)
    if hasattr(other, "lower_bounds_"):  # since scikit-learn 1.7
        np.testing.assert_allclose(ours.lower_bounds_[:-1], other.lower_bounds_[1:], rtol=1e-10)


@slow
@one_kind
def test_by_default_too_the_fit_is_that_of_scikit_learn(kind):
    """reg_covar is a prior here, so that the two differ by about reg_covar; tied covariances not at all."""
    ours = GaussianMixture(K, covariance_type=kind, random_state=0).fit(IRIS)
    other = theirs(n_components=K, covariance_type=kind, random_state=0).fit(IRIS)
    assert ours.n_iter_ == other.n_iter_
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(other, name), atol=1e-11 if kind == "tied" else 2e-6)


@first("init_params", ["k-means++", "random", "random_from_data"])
def test_starts_are_those_of_scikit_learn(init_params):
    options = {"n_components": K, "random_state": 1, "init_params": init_params, "reg_covar": 1e-3, "max_iter": 0}
    other = _normalised(theirs(**options).fit(IRIS))
    assert_same_fit(GaussianMixture(**options).fit(IRIS), other, rtol=1e-9, atol=1e-20)


def _normalised(mixture: Any) -> Any:
    """scikit-learn leaves weights of starts from k rows at 1/n each."""
    mixture.weights_ = mixture.weights_ / mixture.weights_.sum()
    return mixture


@one_kind
def test_reg_covar_is_a_prior_under_which_the_objective_never_falls(kind):
    options = {**start(kind), "reg_covar": 0.5, "tol": 0.0}
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        plain = GaussianMixture(**{**options, "reg_covar": 0.0}, max_iter=1).fit(IRIS)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        ours = GaussianMixture(**options, max_iter=1).fit(IRIS)
    share = (
        np.ones(()) if kind == "tied" else (1 / (K * plain.weights_)).reshape(K, *[1] * (plain.covariances_.ndim - 1))
    )
    ridge = np.eye(D) if kind in ("full", "tied") else 1.0
    np.testing.assert_allclose(ours.covariances_, plain.covariances_ + 0.5 * share * ridge, rtol=1e-10, atol=1e-12)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        ours = GaussianMixture(**options, max_iter=60).fit(IRIS)
    assert (np.diff(ours.lower_bounds_) >= -1e-12).all() and ours.lower_bound_ < ours.score(IRIS)


def test_float32_rows_give_float32_results_of_a_float64_fit():
    x = IRIS.astype(np.float32)
    small, large = (GaussianMixture(**start("full")).fit(rows) for rows in (x, x.astype(np.float64)))
    assert_same_fit(small, large, rtol=2e-6, atol=1e-6)
    made = [small.means_, small.precisions_cholesky_, small.predict_proba(x), small.score_samples(x)]
    assert {array.dtype for array in made} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_params_rounded_to_float32_rows_are_not_those_that_score(kind):
    """Of correlated columns, far from zero: a rounded covariance is indefinite, a rounded mean far away."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 1))
    x = np.c_[z, z + 3e-4 * rng.normal(size=(400, 1))]
    x[200:] += 3
    if kind in ("diag", "spherical"):
        x = 1e4 + 1e-2 * x
    x = x.astype(np.float32)
    options: dict[str, Any] = {"covariance_type": kind, "random_state": 0, "reg_covar": 1e-12}
    single, double = (GaussianMixture(2, **options).fit(rows) for rows in (x, x.astype(np.float64)))
    assert single.means_.dtype == np.float32 and single.lower_bound_ == double.lower_bound_
    for one in (single, pickle.loads(pickle.dumps(single))):
        assert one.score(x) == pytest.approx(double.score(x.astype(np.float64)), rel=1e-6)
        assert one.bic(x) == pytest.approx(double.bic(x.astype(np.float64)), rel=1e-12)
        np.testing.assert_allclose(one.predict_proba(x), double.predict_proba(x.astype(np.float64)), atol=1e-7)
        assert (one.sample(5)[0] == double.sample(5)[0]).all()
    single.means_ = single.means_ + np.float32(1)  # what the user sets counts
    assert single.score(x) < double.score(x.astype(np.float64)) - 0.1


# --- sample weights


@slow
def test_integer_weights_are_repeated_rows_and_weight_zero_is_no_row():
    weight = np.arange(len(IRIS)) % 3
    options = {**start("full"), "tol": 1e-6, "max_iter": 300}
    weighted = GaussianMixture(**options).fit(IRIS, sample_weight=weight)
    repeated = GaussianMixture(**options).fit(np.repeat(IRIS, weight, 0))
    assert weighted.n_iter_ == repeated.n_iter_
    assert_same_fit(weighted, repeated, rtol=1e-9, atol=1e-10)
    scaled = GaussianMixture(**options).fit(IRIS, sample_weight=7.0 * weight)
    assert_same_fit(weighted, scaled, rtol=1e-9, atol=1e-10)
    for name in ("score", "bic", "aic"):
        got = getattr(weighted, name)(IRIS, sample_weight=weight)
        assert got == pytest.approx(getattr(repeated, name)(np.repeat(IRIS, weight, 0)), rel=1e-9)
    assert np.array_equal(weighted.predict(IRIS), GaussianMixture(**options).fit_predict(IRIS, sample_weight=weight))


@slow
@first("init_params", ["kmeans", "k-means++", "random_from_data", "random"])
def test_rows_of_weight_zero_are_not_drawn_either(init_params):
    weight = (np.arange(len(IRIS)) < 100) * 1.0
    options = {"n_components": K, "random_state": 0, "init_params": init_params}
    weighted = GaussianMixture(**options).fit(IRIS, sample_weight=weight)
    assert_same_fit(weighted, GaussianMixture(**options).fit(IRIS[:100]), rtol=1e-12)


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="Negative values"):
        GaussianMixture().fit(IRIS, sample_weight=-np.ones(len(IRIS)))
    with pytest.raises(ValueError, match="n_samples = 2 of positive weight"):
        GaussianMixture(K).fit(IRIS, sample_weight=np.arange(len(IRIS)) < 2)


# --- starts, their number, and going on


def test_the_best_of_several_starts_is_kept():
    singles = [GaussianMixture(K, init_params="random", random_state=seed).fit(IRIS) for seed in range(3)]
    state = np.random.RandomState(0)
    several = GaussianMixture(K, init_params="random", random_state=state, n_init=4).fit(IRIS)
    again = np.random.RandomState(0)
    one_by_one = [GaussianMixture(K, init_params="random", random_state=again).fit(IRIS) for _ in range(4)]
    assert several.lower_bound_ == max(fit.lower_bound_ for fit in one_by_one)
    assert len({fit.lower_bound_ for fit in (*singles, *one_by_one)}) > 1  # else the starts prove nothing


def test_warm_start_goes_on_where_the_last_fit_ended():
    whole = GaussianMixture(**start("full")).fit(IRIS)
    parts = GaussianMixture(**start("full"), warm_start=True, max_iter=1)
    n_fits = 0
    while not (n_fits and parts.converged_):
        n_fits += 1
        if n_fits < whole.n_iter_:
            with pytest.warns(ConvergenceWarning):
                parts.fit(IRIS)
        else:
            parts.fit(IRIS)
    assert n_fits == whole.n_iter_ > 2
    assert_same_fit(parts, whole, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="warm_start: expected means_ of shape"):
        parts.fit(IRIS[:, :2])


def test_no_iterations_return_the_start():
    ours = GaussianMixture(**start("full"), max_iter=0).fit(IRIS)
    assert np.array_equal(ours.means_, start("full")["means_init"]) and ours.n_iter_ == 0 and not ours.converged_
    np.testing.assert_allclose(ours.precisions_, start("full")["precisions_init"], rtol=1e-10)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@one_kind
def test_a_collapse_is_an_error_that_says_what_helps(kind):
    two_points = np.repeat([[0.0, 0.0], [1.0, 1.0]], 8, 0)
    with pytest.raises(ValueError, match="increase reg_covar"):
        GaussianMixture(K, covariance_type=kind, reg_covar=0, random_state=0).fit(two_points)
    assert np.isfinite(GaussianMixture(K, covariance_type=kind, random_state=0).fit(two_points).score(two_points))


def test_other_options_and_folds_of_other_sizes_compile_nothing_new():
    options = start("full")
    GaussianMixture(**options).fit(IRIS).predict(IRIS)
    programs: Any = (lanes._one_thread_program, _float64._log_joint)
    before = [program._cache_size() for program in programs]
    GaussianMixture(**options, tol=1e-5, reg_covar=1e-3, max_iter=120).fit(IRIS[:-1]).predict(IRIS[:-5])
    assert [program._cache_size() for program in programs] == before


@slow
def test_starts_that_run_side_by_side_give_the_same(monkeypatch):
    """As they do on an accelerator."""
    options = {"n_components": K, "init_params": "random", "random_state": 0, "n_init": 3}
    one_by_one = GaussianMixture(**options).fit(IRIS)
    monkeypatch.setattr(_float64, "resolve_plan", lambda plan: "lanes")
    together = GaussianMixture(**options).fit(IRIS)
    assert together.n_iter_ == one_by_one.n_iter_
    assert_same_fit(together, one_by_one, rtol=1e-8, atol=1e-9)


def test_verbose_reports_every_start(capsys):
    fitted = GaussianMixture(K, init_params="random", random_state=0, n_init=4, verbose=2, verbose_interval=5).fit(IRIS)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("Initialization")][::2] == [
        f"Initialization {i}" for i in range(4)
    ]
    assert any(line.startswith("  Iteration 5\t lower bound -") for line in lines)
    assert any(f"lower bound {fitted.lower_bound_:.5f}" in line for line in lines)
    GaussianMixture(**start("full"), verbose=1).fit(IRIS)
    assert "\t" not in capsys.readouterr().out


# --- the rest of scikit-learn


def test_pipeline_set_output_clone_and_pickle():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IRIS, columns=pandas.Index(["a", "b", "c", "d"]))
    pipeline = make_pipeline(StandardScaler(), GaussianMixture(K, random_state=0)).set_output(transform="pandas")
    labels = pipeline.fit_predict(frame)
    mixture = pipeline[-1]
    assert mixture.feature_names_in_.tolist() == ["a", "b", "c", "d"] and mixture.n_features_in_ == D
    scaled = StandardScaler().fit_transform(IRIS)
    assert np.array_equal(labels, theirs(n_components=K, random_state=0).fit_predict(scaled))
    loaded = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(loaded.predict_proba(frame), pipeline.predict_proba(frame))
    copy: Any = clone(mixture)
    assert copy.get_params() == mixture.get_params() and not hasattr(copy, "means_")
    assert mixture.get_params().keys() == sklearn.mixture.GaussianMixture().get_params().keys()


@slow
@pytest.mark.parametrize("kinds", [("full",), pytest.param(KINDS, marks=once_a_week)], ids=["one", "all"])
def test_grid_search_finds_what_it_finds_with_scikit_learn(kinds):
    grid = {"n_components": [1, 2, K], "covariance_type": list(kinds)}
    x = IRIS[np.random.default_rng(0).permutation(len(IRIS))]
    ours, other = (
        GridSearchCV(mixture(random_state=0), grid, cv=3).fit(x)
        for mixture in (GaussianMixture, sklearn.mixture.GaussianMixture)
    )
    assert ours.best_params_ == other.best_params_
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"], atol=1e-4)


@slow
def test_the_global_precision_is_left_alone():
    """In a process of its own, with jax as it comes: 32 bits outside, 64 inside."""
    code = (
        "import jax, numpy as np, jax.numpy as jnp; from jaxem.sklearn import GaussianMixture as G;"
        "before = dict(jax.config.values); x = 1e6 + np.random.default_rng(0).normal(size=(60, 2));"
        "g = G(1).fit(x); assert g.means_.dtype == np.float64 and before == dict(jax.config.values);"
        "print(abs(g.means_[0] - x.mean(0)).max() < 1e-8, g.score_samples(x).dtype, jnp.ones(1).dtype)"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("JAX_ENABLE_X64", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["True", "float64", "float32"], done.stderr


def test_in_64_bits_it_is_left_alone_too():
    assert jax.config.jax_enable_x64  # type: ignore[attr-defined]
    GaussianMixture(K, random_state=0).fit(IRIS)
    assert jax.config.jax_enable_x64  # type: ignore[attr-defined]


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[:2] == ["jaxem", "sklearn"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"jaxem\[sklearn\]"):
        importlib.import_module("jaxem.sklearn")


@slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"n_components": 2, "covariance_type": "diag"}], ids=str)
def test_scikit_learn_checks(options):
    expected = NOT_EQUIVALENT if options else {}
    results = check_estimator(GaussianMixture(**options), on_fail=None, expected_failed_checks=expected)
    done = {status: {r["check_name"] for r in results if r["status"] == status} for status in ("passed", "xfail")}
    # scikit-learn leaves one out itself unless SCIPY_ARRAY_API is set
    others = {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "xfail")}
    assert not others.keys() - {"check_array_api_input"}, others
    assert done["xfail"] == expected.keys() and len(done["passed"]) > 35


# Of the tests of scikit-learn 1.9 that make the class; every other one passes.
EXPECTED_FAILURES = {
    "test_check_weights": "scikit-learn's message calls the smallest weight the largest; ours does not",
    "test_gaussian_mixture_setting_best_params": "a component falls on one row under reg_covar=0: here an error, there "
    "a variance of 1e-16, which is rounding",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": "counts calls of a private function of "
    "scikit-learn, which jaxem does not call",
}

SWAPPED = """
import inspect, json, pathlib, sys, pytest, sklearn
from jaxem.sklearn import GaussianMixture

class Swap:
    seen = {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            if "GaussianMixture(" in inspect.getsource(item.function):
                self.seen[item.originalname or item.name] = []
            item.module.GaussianMixture = GaussianMixture

    def pytest_runtest_logreport(self, report):
        name = report.location[2].split("[")[0]
        if name in self.seen and (report.when == "call" or report.outcome != "passed"):
            self.seen[name].append(report.outcome)

root = pathlib.Path(sklearn.__file__).parent
tests = root / "mixture" / "tests" / "test_gaussian_mixture.py"
options = ["-q", "-c", sys.argv[1], "--rootdir", str(root), "-p", "no:cacheprovider", "-W", "ignore"]
pytest.main([*options, str(tests)], plugins=[Swap()])
pathlib.Path(sys.argv[2]).write_text(json.dumps(Swap.seen))
"""


@pytest.mark.slow
@pytest.mark.weekly
def test_scikit_learn_own_tests_with_this_class(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "SCIPY_ARRAY_API": "1",
        "SKLEARN_RUN_FLOAT32_TESTS": "1",
    }
    command = [sys.executable, "-c", SWAPPED, str(tmp_path / "pytest.ini"), str(tmp_path / "seen.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seen = json.loads((tmp_path / "seen.json").read_text())
    passed = {name for name, outcomes in seen.items() if "passed" in outcomes and "failed" not in outcomes}
    assert seen.keys() - passed == EXPECTED_FAILURES.keys(), done.stdout[-4000:]
    assert len(passed) >= 0.9 * len(seen) and len(seen) >= 30
