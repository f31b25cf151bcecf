"""What users pass: tables of every library, whole numbers of every kind, and what is refused by name at every door."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_same, blobs, mixture, stacked, two_starts
from jax.experimental import sparse as jax_sparse

import jaxem
from jaxem.numerics.arguments import as_count, as_rows

N = 12
X = blobs(N)
MODEL, START, ONE = mixture("full"), two_starts("full"), mixture("full", 1)


@cache
def groups() -> jaxem.GroupsResult:
    return jaxem.fit_groups(MODEL, KEY, X, np.zeros(N, int), init=stacked([START]), max_iter=2)


WEIGHTED: dict[str, Callable] = {
    "init": lambda x, w: MODEL.init(KEY, x, w),
    "fit": lambda x, w: jaxem.fit(MODEL, START, x, sample_weight=w),
    "fit_restarts": lambda x, w: jaxem.fit_restarts(MODEL, KEY, x, n_restarts=2, sample_weight=w),
    "fit_groups": lambda x, w: jaxem.fit_groups(MODEL, KEY, x, np.zeros(N, int), sample_weight=w),
    "fit_stream": lambda x, w: jaxem.fit_stream(MODEL, START, lambda: [(x, w)]),
    "select": lambda x, w: jaxem.select([MODEL], KEY, x, n_restarts=1, sample_weight=w),
    "bootstrap": lambda x, w: jaxem.bootstrap(MODEL, START, x, KEY, n_replicates=2, sample_weight=w),
    "standard_errors": lambda x, w: jaxem.standard_errors(MODEL, START, x, sample_weight=w),
    "influence": lambda x, w: jaxem.influence(MODEL, START, x, of=lambda params: params.weights, sample_weight=w),
    "decompose": lambda x, w: jaxem.decompose(MODEL, START, x, sample_weight=w),
    "trace_bound": lambda x, w: jaxem.trace_bound(MODEL, START, x, 2, sample_weight=w),
    "em_rate": lambda x, w: jaxem.em_rate(MODEL, START, x, sample_weight=w),
    "newton_correction": lambda x, w: jaxem.newton_correction(MODEL, START, x, sample_weight=w),
    "bic": lambda x, w: MODEL.bic(START, x, w),
    "shard": lambda x, w: jaxem.shard(x, sample_weight=w),
    "labelled": lambda x, w: jaxem.fit(MODEL, START, jaxem.labelled(x, np.full(N, -1)), sample_weight=w),
}
UNWEIGHTED: dict[str, Callable] = {
    "predict": lambda x, w: MODEL.predict(START, x),
    "responsibilities": lambda x, w: MODEL.responsibilities(START, x),
    "log_prob": lambda x, w: MODEL.log_prob(START, x),
    "likelihood_ratio_test": lambda x, w: jaxem.likelihood_ratio_test(ONE, MODEL, KEY, x, n_replicates=2),
    "groups": lambda x, w: groups().predict(x, np.zeros(N, int)),
    "gated": lambda x, w: jaxem.gated(x, np.ones((N, 1))),
}  # fmt: skip


@pytest.mark.parametrize("entry", WEIGHTED)
def test_weights_of_another_shape_are_named_at_every_door(entry):
    with pytest.raises(ValueError, match=r"(?s)one weight a row.* got \(12, 1\).*weight.ravel\(\)"):
        WEIGHTED[entry](X, np.ones((N, 1)))
    with pytest.raises(ValueError, match=r"(?s)one weight a row.* got \(5,\)"):
        WEIGHTED[entry](X, np.ones(5))


def _sparse() -> list:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    return [scipy_sparse.csr_matrix(X), scipy_sparse.coo_array(X), jax_sparse.BCOO.fromdense(jnp.asarray(X))]


@pytest.mark.parametrize("entry", [*WEIGHTED, *UNWEIGHTED])
def test_sparse_matrices_and_lists_are_refused_by_name_at_every_door(entry):
    call = {**WEIGHTED, **UNWEIGHTED}[entry]
    for matrix in _sparse():
        with pytest.raises(ValueError, match=r"(data|batch 0): expected dense rows \(n, d\), got a sparse .*toarray"):
            call(matrix, None)
    with pytest.raises(ValueError, match=r"(data|batch 0): expected arrays .*lists are trees: pass arrays"):
        call(X.tolist(), None)


@pytest.mark.parametrize("entry", [entry for entry in (*WEIGHTED, *UNWEIGHTED) if entry != "gated"])
def test_rows_without_columns_are_refused_by_name_at_every_door(entry):
    with pytest.raises(ValueError, match=r"(data|batch 0): expected at least one column, got shape \(12, 0\)"):
        {**WEIGHTED, **UNWEIGHTED}[entry](X[:, :0], None)


def test_batches_of_lanes_are_checked_alike():
    params, x = stacked([START, START]), np.stack([X, X])
    with pytest.raises(ValueError, match=r"sample_weight: .*got \(12, 1\)"):
        jaxem.fit_batch(MODEL, params, x, sample_weight=np.ones((2, N, 1)))
    with pytest.raises(ValueError, match="data: expected dense rows"):
        jaxem.fit_batch(MODEL, params, _sparse()[-1])
    with pytest.raises(ValueError, match="data: expected at least one column"):
        jaxem.fit_batch(MODEL, params, x[..., :0])


def test_the_interface_of_scikit_learn_refuses_sparse_matrices_of_jax_too():
    GaussianMixture = pytest.importorskip("jaxem.sklearn").GaussianMixture  # noqa: N806
    for matrix in _sparse():
        with pytest.raises(TypeError, match="Sparse data was passed for X"):
            GaussianMixture(2).fit(matrix)


# --- tables


def test_tables_of_pandas_polars_and_pyarrow_are_data_everywhere():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    names: Any = ["a", "b"]
    weight: Any = np.linspace(0.5, 1.5, N)
    tables = [(pd.DataFrame(X, columns=names), pd.Series(weight)), (pl.DataFrame(X, schema=names), pl.Series(weight))]
    tables += [(pd.DataFrame(X, columns=names).astype("Float64"), pd.array(weight, dtype="Float64"))]
    start = MODEL.init(KEY, X, weight)
    want = jaxem.fit(MODEL, start, X, sample_weight=weight, max_iter=3, tol=-1)
    for x, w in tables:
        assert_same(MODEL.init(KEY, x, w), start)
        assert_same(jaxem.fit(MODEL, start, x, sample_weight=w, max_iter=3, tol=-1), want)
        assert_same(MODEL.predict(START, x), MODEL.predict(START, X))
        assert_same(MODEL.bic(START, x, w), MODEL.bic(START, X, weight))
        assert_same(groups().log_prob(x, [0] * N), groups().log_prob(X, [0] * N))
        batches = lambda: [(x, w)]  # noqa: B023, E731
        assert jaxem.fit_stream(MODEL, START, batches, max_iter=1, tol=-1).n_iter == 1


def test_what_is_missing_in_a_table_is_nan():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    want = np.array([[1.0, np.nan], [np.nan, 2.5]])
    nullable = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": pd.array([None, 2.5], "Float64")})
    tables = [nullable, pl.DataFrame({"a": [1, None], "b": [None, 2.5]}), np.ma.masked_invalid(want)]
    for table in tables:
        np.testing.assert_array_equal(as_rows(table), want)
    single = nullable.astype("Float32")
    assert as_rows(single).dtype == np.float32
    with pytest.raises(TypeError, match="data: expected numbers, got dtype object"):
        jaxem.fit(MODEL, START, pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}))


# --- whole numbers


WHOLE = [np.int64(2), np.uint8(2), np.array(2), jnp.asarray(2)]


@pytest.mark.parametrize("two", WHOLE, ids=lambda two: f"{type(two).__name__} {two.dtype}")
def test_whole_numbers_of_every_kind_are_counts(two):
    assert as_count("n", two) == 2 and type(as_count("n", two)) is int
    made = [
        jaxem.Mixture(jaxem.FullNormal(), two).n_components, jaxem.LowRankNormal(two).rank, jaxem.KMeans(two).n_steps,
        jaxem.LogJoint(lambda params, x: params, two).n_states, jaxem.Race(two, two).keep, jaxem.Anderson(two).window,
        jaxem.LogJoint.quadrature(lambda params, x, z: params, n_nodes=two).n_states, jaxem.Implicit(polish=two).polish,
        jaxem.CrossValidation(two).n_folds, jaxem.Unrolled(two).n_iter, jaxem.OnlineEM(KEY, two).batch_size,
        jaxem.GMRES(restart=two).restart, jaxem.Categorical((two, 2)).n_categories[0],  # type: ignore[index]
    ]  # fmt: skip
    assert made == [2] * len(made) and {type(each) for each in made} == {int}


def test_whole_numbers_of_numpy_pass_in_every_driver(tmp_path):
    two: Any = np.int64(2)
    four: Any = np.int32(4)
    model, params = jaxem.Mixture(jaxem.FullNormal(), two), two_starts("full")
    options: dict[str, Any] = {"max_iter": two, "chunk_size": four}
    x, lanes = blobs(N), {"n_restarts": two, "max_lanes": four}
    assert jaxem.fit(model, params, x, tol=-1, **options).n_iter == 2
    assert jaxem.fit_restarts(model, KEY, x, race=jaxem.Race(two, two), **lanes, **options).n_iter <= 2
    assert len(jaxem.fit_groups(model, KEY, x, [0] * 6 + [1] * 6, **lanes, **options).labels) == 2
    assert jaxem.fit_batch(model, stacked([params]), x[None], max_lanes=two, **options).status.shape == (1,)
    jaxem.save(tmp_path / "fit.npz", model, params)
    assert jaxem.load(tmp_path / "fit.npz")[0] == model
    batches = jaxem.ArrayBatches(x, batch_rows=four)
    assert jaxem.fit_stream(model, params, batches, **options).n_iter <= 2


@pytest.mark.parametrize("wrong", [True, np.True_, 2.0, "2", np.array([2]), None, 0, np.int64(-1)], ids=repr)
def test_what_is_no_positive_whole_number_is_refused_by_name(wrong: Any):
    with pytest.raises(ValueError, match="n_restarts: expected a positive int, got"):
        jaxem.fit_restarts(MODEL, KEY, X, n_restarts=wrong)
    with pytest.raises(ValueError, match="n_components: expected a positive int, got"):
        jaxem.Mixture(jaxem.FullNormal(), wrong).init(KEY, X)
    with pytest.raises(ValueError, match="n_states: expected a positive int, got"):
        jaxem.LogJoint(lambda params, x: params, wrong)
    for name in ("chunk_size", "max_iter"):
        if wrong is not None and not (name == "max_iter" and wrong is not False and np.array_equal(wrong, 0)):
            with pytest.raises(ValueError, match=f"{name}: expected a .* int"):
                options: dict[str, Any] = {name: wrong}
                jaxem.fit(MODEL, START, X, **options)


def test_a_traced_count_is_refused_by_name():
    with pytest.raises(ValueError, match="n: expected a positive int, got .*Tracer"):
        jax.jit(lambda n: as_count("n", n))(2)
