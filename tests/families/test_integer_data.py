"""Whole numbers in the data of a user's own model arrive as such, wherever the data go; the library's families cast."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_close, assert_same, stacked

import jaxem

COUNTS = np.array([125, 18, 20, 34])  # genetic linkage: Dempster, Laird & Rubin (1977)
THETA = 0.626821498
CELLS = np.repeat(np.arange(4, dtype=np.int8), COUNTS)
START = jnp.array(0.5)


def log_table(theta: Any) -> Any:
    """(4, 2): of the cells, the first of which is two."""
    table = jnp.log(jnp.stack([0.5 + 0 * theta, (1 - theta) / 4, (1 - theta) / 4, theta / 4]))
    return jnp.stack([table, jnp.full(4, -jnp.inf).at[0].set(jnp.log(theta / 4))], 1)


def log_joint(theta: Any, cell: Any) -> Any:
    return log_table(theta)[cell]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linkage:
    """The same, with statistics that add up, indexed by the cells."""

    def log_joint(self, theta: Any, cell: Any) -> Any:
        return log_table(theta)[cell]

    def statistics(self, theta: Any, cell: Any, responsibilities: Any) -> Any:
        counts = jnp.zeros(4, responsibilities.dtype).at[cell].add(responsibilities[:, 0])
        return counts, jnp.sum(responsibilities[:, 1])

    def m_step(self, theta: Any, stats: Any) -> Any:
        counts, hidden = stats
        successes = hidden + counts[3]
        return successes / (successes + counts[1] + counts[2])

    def init(self, key: Any, data: Any, sample_weight: Any = None, method: Any = None) -> Any:
        return jax.random.uniform(key, (), float, 0.3, 0.9)


def _exact(**options: Any) -> dict[str, Any]:
    return {"tol": 1e-13, **options}


JOINT = jaxem.LogJoint(log_joint, 2, constraints=jaxem.bijections.unit_interval, start=START)


@pytest.mark.parametrize("model", [JOINT, Linkage()], ids=["joint", "class"])
@pytest.mark.parametrize("chunk_size", [None, 64])
def test_cells_are_indices_in_a_fit(model, chunk_size):
    options = _exact(chunk_size=chunk_size)
    for rows, weight in ((CELLS, None), (np.arange(4), COUNTS)):
        result = jaxem.fit(model, START, rows, sample_weight=weight, **options)
        assert result.params == pytest.approx(THETA, abs=1e-6) and result.params.dtype == jnp.float64
    labelled = jaxem.labelled(np.arange(4), np.array([0, -1, -1, -1]))  # the first cell is not hidden: a binomial
    fixed = jaxem.fit(model, START, labelled, sample_weight=COUNTS, **options)
    assert fixed.params == pytest.approx(34 / (18 + 20 + 34), abs=1e-6)


def test_they_are_in_every_driver(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    model, options = Linkage(), _exact()
    lanes = jaxem.fit_batch(model, stacked([START, START]), np.stack([CELLS, CELLS[::-1]]), **options)
    groups = jaxem.fit_groups(model, KEY, CELLS, np.arange(len(CELLS)) % 2, **options)
    split = [jaxem.fit(model, START, CELLS[i::2], **options).params for i in (0, 1)]
    restarts = jaxem.fit_restarts(model, KEY, CELLS, n_restarts=2, **options)
    kept = jaxem.fit(model, START, CELLS, checkpoint=jaxem.Checkpoint(tmp_path / "fit"), **options)
    parts = [(CELLS[:50], None), (CELLS[50:], np.ones(147))]  # filled up to one size
    stream = jaxem.fit_stream(model, START, lambda: parts, **options)
    for params in (*lanes.params, restarts.params, kept.params, stream.params):
        assert params == pytest.approx(THETA, abs=1e-6)
    assert_close(groups.params, np.array(split), rtol=1e-6)  # from starts of their own
    z = groups.fits.model.log_joint(split[0], jnp.asarray(CELLS)).argmax(1)
    assert z.shape == CELLS.shape


def test_they_are_where_fits_are_judged():
    theta = jaxem.fit(JOINT, START, CELLS, tol=1e-13).params
    covariance = jaxem.standard_errors(JOINT, theta, CELLS).standard_errors
    assert covariance == pytest.approx(0.0515, abs=2e-3)  # 1 / √377.5, ibid.
    rate = jaxem.em_rate(JOINT, theta, CELLS)
    assert rate == pytest.approx(0.1328, abs=1e-3)
    found = jaxem.bootstrap(JOINT, theta, CELLS, KEY, n_replicates=2, max_iter=2)
    assert np.isfinite(np.asarray(found.params)).all()
    assert float(jaxem.decompose(JOINT, theta, CELLS).kl) == pytest.approx(0, abs=1e-9)
    selection = jaxem.select([Linkage(), JOINT], KEY, CELLS, criterion=jaxem.CrossValidation(2), n_restarts=1)
    assert [float(result.params) for result in selection.results] == pytest.approx([THETA] * 2, abs=1e-3)


def test_a_fit_of_them_has_derivatives():
    at = lambda weight: jaxem.fit(Linkage(), START, jnp.arange(4), sample_weight=weight, tol=1e-13).params  # noqa: E731
    weight, step = jnp.asarray(COUNTS, float), jnp.array([0.0, 1e-3, 0, 0])
    difference = (at(weight + step) - at(weight - step)) / 2e-3
    assert jax.grad(at)(weight)[1] == pytest.approx(float(difference), rel=1e-4)


def test_leaves_keep_their_own_types():
    seen = {}

    def spy(params: Any, row: Any) -> Any:
        seen.update({name: leaf.dtype for name, leaf in row.items()})
        return jnp.stack([-jnp.square(row["x"] - params), jnp.where(row["known"], params * row["k"], 0.0)])

    data = {"k": np.arange(6, dtype=np.int16), "known": np.arange(6) > 2, "x": np.ones(6, np.float32)}
    model = jaxem.LogJoint(spy, 2)
    jaxem.fit(model, jnp.array(0.0), data, max_iter=1, tol=-1)
    assert seen == {"k": np.dtype(np.int16), "known": np.dtype(bool), "x": np.dtype(np.float32)}


def of_kind(params: Any, kind: Any) -> Any:
    return jax.nn.log_softmax(params)[kind]


def test_parts_of_a_mixture_are_cast_one_by_one():
    kind = jaxem.Density(of_kind, start=jnp.zeros(3))
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, 60)
    data = {"kind": np.where(z == 0, 0, rng.integers(1, 3, 60)), "size": (3 * z + rng.integers(0, 3, 60))[:, None]}
    model = jaxem.Mixture(jaxem.Product(kind=kind, size=jaxem.DiagonalNormal()), 2)
    cast = model.cast_rows(data, np.float32)
    assert cast["kind"].dtype == data["kind"].dtype and cast["size"].dtype == np.float32
    assert jaxem.Frozen(model, jaxem.MixtureParams(True, False)).cast_rows(data, np.float32)["size"].dtype == np.float32
    gated = jaxem.gated(data["size"], np.ones((60, 1), int))
    assert {leaf.dtype for leaf in jax.tree.leaves(jaxem.Mixture(jaxem.Poisson(), 2).cast_rows(gated, float))} == {
        np.dtype(float)
    }
    mixed = jaxem.Mixture(jaxem.OneOf(kind, jaxem.Poisson()), 2)
    assert mixed.cast_rows(data["size"], float).dtype == float
    result = jaxem.fit(model, model.init(KEY, data), data, max_iter=20)
    assert bool(jnp.isfinite(result.objective)) and result.model.predict(result.params, data).shape == (60,)


def test_families_of_the_library_read_whole_numbers_as_floats():
    x = np.random.default_rng(0).poisson(3.0, (40, 2))
    for family in (jaxem.Poisson(), jaxem.FullNormal(), jaxem.StudentT(), jaxem.LowRankNormal(1), jaxem.Uniform()):
        model = jaxem.Mixture(family, 2)
        assert model.cast_rows(x, np.float32).dtype == np.float32, family
    model = jaxem.Mixture(jaxem.Poisson(), 2)
    start = model.init(KEY, x)
    assert_same(jaxem.fit(model, start, x, max_iter=3), jaxem.fit(model, start, x.astype(float), max_iter=3))


def test_batches_that_the_types_of_the_first_do_not_hold_are_an_error():
    first, model = CELLS[:50], Linkage()
    for second in (np.array([0.5, 1.0]), np.array([1.0, np.nan]), np.array([300, 1])):
        with pytest.raises(
            ValueError, match="expected numbers that int8 holds, as the first batch has, got .* batch 1"
        ):
            jaxem.fit_stream(model, START, lambda: [(first, None), (second, None)])  # noqa: B023
    wider = [(first, None), (CELLS[50:].astype(float), None)]  # which int8 holds
    assert jaxem.fit_stream(model, START, lambda: wider, tol=1e-13).params == pytest.approx(THETA, abs=1e-6)
    normal = jaxem.Mixture(jaxem.FullNormal(), 1)
    x = np.linspace(0, 1, 20)[:, None]
    start = normal.init(KEY, x)
    with pytest.raises(ValueError, match="expected numbers that float32 holds, as the first batch has, got float64"):
        jaxem.fit_stream(normal, start, lambda: [(x.astype(np.float32), None), (x, None)])
    parts = [(np.arange(20)[:, None], None), (x, None)]  # whole numbers first
    whole = jaxem.fit(normal, start, np.concatenate([part for part, _ in parts]))
    assert_close(jaxem.fit_stream(normal, start, lambda: parts).params, whole.params, rtol=1e-12)


def test_whole_numbers_beyond_32_bits_are_refused_where_jax_has_no_more():
    with jax.enable_x64(False), pytest.raises(ValueError, match="expected integers that int32 holds"):
        jaxem.fit(Linkage(), np.float32(0.5), np.array([0, 2**40]))
