"""Rows that share one latent state: sums over the rows of an id, against the joint written out."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MODELS

import jaxem
from jaxem.contracts import capabilities as ask
from jaxem.fold.chunks import FoldPlan
from jaxem.fold.folded import Folded
from jaxem.models._mixture_params import MixtureStats

KEY = jax.random.key(0)
_MIXTURES = [entry for entry in MODELS if type(entry.build()) is jaxem.Mixture]
_IDS = np.random.default_rng(5).permutation(np.repeat([30, 4, 7, 9, 100, 11, 2], [12, 1, 7, 5, 4, 1, 2]))  # 32 rows


def _x64(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _alike(data: Any) -> Any:
    """Covariates of a gate that the rows of an id share."""
    if not hasattr(data, "covariates"):
        return data
    first = np.array([np.flatnonzero(_IDS == i)[0] for i in _IDS])
    return data._replace(covariates=np.asarray(data.covariates)[first])


def _by_hand(model: Any, params: Any, data: Any, weight: np.ndarray) -> tuple[Any, float, np.ndarray]:
    """M step, log-likelihood and responsibilities (n, k), one id after the other."""
    covariates = data.covariates if hasattr(data, "covariates") else None
    rows = data.data if hasattr(data, "covariates") else data
    given = np.asarray(model.family.log_prob(params.components, rows))
    log_weights = np.asarray(model._mixing.log_weights(params.weights, covariates))
    r, log_lik, units, first = np.zeros_like(given), 0.0, [], []
    for i in np.unique(_IDS):
        mine = np.flatnonzero((_IDS == i) & (weight > 0))
        if len(mine):
            own = log_weights if log_weights.ndim == 1 else log_weights[mine[0]]
            joint = given[mine].sum(0) + own
            top = joint.max()
            evidence = top + np.log(np.exp(joint - top).sum())
            r[mine] = np.exp(joint - evidence)
            log_lik += weight[mine[0]] * evidence
            units.append(weight[mine[0]] * r[mine[0]])
            first.append(mine[0])
    components = model.family.statistics(params.components, rows, jnp.asarray(r * weight[:, None]))
    given_to = None if covariates is None else covariates[np.array(first)]
    count = model._mixing.statistics(given_to, jnp.asarray(np.stack(units)), None)
    return model.m_step(params, MixtureStats(count, components)), log_lik, r


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=() if e.name == "full" else pytest.mark.slow) for e in _MIXTURES],
    ids=lambda e: e.name,
)
def test_an_em_step_is_that_of_the_joint_written_out(entry):
    model, params, rows = entry.build(), _x64(entry.start()), _x64(_alike(entry.data))
    data = jaxem.grouped(rows, _IDS)
    weight = np.where(_IDS == 7, 2.0, 1.0) * (np.arange(32) != 3) * (_IDS != 4)
    for used in (None, weight):
        sample_weight = None if used is None else jnp.asarray(used)
        bound = jaxem.bind(model, rows, sample_weight)
        want, log_lik, r = _by_hand(bound, params, rows, np.ones(32) if used is None else used)
        for plan, fast in ((FoldPlan(), True), (FoldPlan(), False), (FoldPlan(chunk_size=7), False)):
            folded = Folded(bound if fast else ask.recentred(bound, params), plan, fast=fast)
            held = folded.hold(params, data, sample_weight)
            stats, got = folded.e_step(params, held, sample_weight)
            np.testing.assert_allclose(got, log_lik, rtol=1e-11)
            for a, b in zip(jax.tree.leaves(folded.m_step(params, stats)), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
        if used is None:
            np.testing.assert_allclose(model.responsibilities(params, data), r, rtol=1e-10, atol=1e-13)


# --- against flexmix

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case["id"]: case for case in json.loads((REFERENCE / "grouped_cases.json").read_text("utf-8"))["cases"]}


def _columns(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with (REFERENCE / case["data"]["file"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _check(case: dict[str, Any], model: Any, result: jaxem.FitResult, data: Any) -> None:
    expected, rel = case["expected"], case["tolerance"]["params_rel"]
    of = lambda p: {"weights": p.weights} | dict(zip(("beta", "vars"), p.components))  # noqa: B905, E731
    close = lambda got, want: np.testing.assert_allclose(got, want, rtol=rel, atol=rel)  # noqa: E731
    assert abs(float(result.log_lik) - expected["loglik"]) < 1e-6
    assert int(model.n_parameters(result.params)) == expected["df"]
    bic = -2 * expected["loglik"] + expected["df"] * np.log(data.n_units)
    np.testing.assert_allclose(model.bic(result.params, data), bic, rtol=1e-8)
    jax.tree.map(close, of(result.params), {k: np.asarray(v) for k, v in expected["params"].items()})
    if "standard_errors" in expected:
        errors = jaxem.standard_errors(model, result.params, data, of=of).check().standard_errors
        jax.tree.map(close, errors, {k: np.asarray(v) for k, v in expected["standard_errors"].items()})


def test_regressions_with_repeated_measures():
    case = CASES["npreg_gauss2_grouped"]
    c = _columns(case)
    data = jaxem.grouped((np.stack([np.ones_like(c["x"]), c["x"], c["x"] ** 2], 1), c["yn"]), c["id2"])
    model = jaxem.Mixture(jaxem.LinearRegression(floor=0.0), 2)
    start = model.init(KEY, data, method=jaxem.Labels(c["class"].astype(int) - 1))
    _check(case, model, jaxem.fit(model, start, data, tol=1e-12), data)


def test_binomial_regressions_by_centre():
    case = CASES["betablocker_binom3"]
    c = _columns(case)
    design = np.stack([np.ones_like(c["Treated"]), c["Treated"]], 1)
    data = jaxem.grouped((design, np.stack([c["Deaths"], c["Total"] - c["Deaths"]], 1)), c["Center"])
    model = jaxem.Mixture(jaxem.LogisticRegression(), 3)
    beta = np.array([[-2.2, -0.2], [-2.9, 0.0], [-1.5, -0.3]])
    start = jaxem.MixtureParams(np.array([0.4, 0.3, 0.3]), jaxem.LogisticRegressionParams(jnp.asarray(beta)))
    _check(case, model, jaxem.fit(model, start, data, tol=1e-13, max_iter=2000), data)


@pytest.mark.slow
def test_a_thousand_ids_of_ten_rows():
    case = CASES["flexmix_grouped3_sim"]
    c = _columns(case)
    data = jaxem.grouped((np.stack([np.ones_like(c["x"]), c["x"]], 1), c["y"]), c["id"])
    model = jaxem.Mixture(jaxem.LinearRegression(floor=0.0), 3)
    start = model.init(KEY, data, method=jaxem.Labels(c["z"].astype(int) - 1))
    _check(case, model, jaxem.fit(model, start, data, tol=1e-12, max_iter=2000), data)


# --- bad input, and ids that do not exist


def _table() -> tuple[Any, np.ndarray, Any, Any]:
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 5, 12)))
    x = rng.normal(size=(len(ids), 1)) + 3.0 * (ids % 2)[:, None]
    model = jaxem.Mixture(jaxem.DiagonalNormal(), 2)
    return (
        x,
        ids,
        model,
        jaxem.MixtureParams(np.array([0.5, 0.5]), jaxem.NormalParams(jnp.array([[0.0], [3.0]]), jnp.ones((2, 1)))),
    )


def test_what_differs_within_an_id_is_refused():
    x, ids, model, start = _table()
    data = jaxem.grouped(x, ids)
    twice = np.flatnonzero(np.bincount(ids)[ids] > 1)[0]
    with pytest.raises(ValueError, match="known: expected one value in all rows of an id"):
        jaxem.fit(model, start, jaxem.labelled(data, np.where(np.arange(len(ids)) == twice, 1, -1)))
    with pytest.raises(ValueError, match="sample_weight: expected one value in all rows of an id"):
        jaxem.fit(model, start, data, sample_weight=1.0 + (np.arange(len(ids)) == twice))
    with pytest.raises(ValueError, match="one id a row"):
        jaxem.grouped(x, ids[:-1])
    with pytest.raises(ValueError, match="log_given"):
        jaxem.fit(jaxem.LogJoint(_no_joint, 2), np.zeros(2), data)
    with pytest.raises(ValueError, match="all rows of an id"):
        jaxem.fit(model, start, data, algorithm=jaxem.OnlineEM(KEY, batch_size=4))


def _no_joint(params: Any, x: Any) -> Any:
    return params - x[0]


def test_an_id_of_weight_zero_does_not_exist_and_ids_of_one_row_are_rows():
    x, ids, model, start = _table()
    fit = lambda data, weight=None: jaxem.fit(model, start, data, sample_weight=weight, tol=1e-10)  # noqa: E731
    without = fit(jaxem.grouped(x[ids != 3], ids[ids != 3]))
    holes = np.where((ids == 3)[:, None], np.nan, x)
    np.testing.assert_allclose(
        fit(jaxem.grouped(holes, ids), (ids != 3) * 1.0).objective, without.objective, rtol=1e-12
    )
    rows, single = fit(x), fit(jaxem.grouped(x, np.arange(len(x))[::-1]))
    assert int(rows.n_iter) == int(single.n_iter)
    np.testing.assert_allclose(single.objective, rows.objective, rtol=1e-13)
    np.testing.assert_allclose(single.params.components.mean, rows.params.components.mean, rtol=1e-12)


@pytest.mark.slow
def test_streams_and_shards_take_whole_ids():
    x, ids, model, start = _table()
    fit = jaxem.fit(model, start, jaxem.grouped(x, ids), tol=1e-10)
    parts = [np.isin(ids, some) for some in np.array_split(np.arange(12), 3)]
    stream = lambda: ((jaxem.grouped(x[part], ids[part]), None) for part in parts)  # noqa: E731
    np.testing.assert_allclose(jaxem.fit_stream(model, start, stream, tol=1e-10).objective, fit.objective, rtol=1e-12)
    data, weight = jaxem.shard(jaxem.grouped(x, ids))
    sharded = jaxem.fit(model, start, data, sample_weight=weight, tol=1e-10)
    np.testing.assert_allclose(sharded.objective, fit.objective, rtol=1e-12)
    cut = lambda: ((jaxem.grouped(x[part], ids[part]), None) for part in (slice(0, 9), slice(9, None)))  # noqa: E731
    with pytest.raises(ValueError, match="all rows of an id in one batch"):
        jaxem.fit_stream(model, start, cut)
