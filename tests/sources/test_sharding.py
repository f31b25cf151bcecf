"""Rows over devices: `shard`, what an iteration sends, lanes and rows over two axes of a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import once_a_week
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxem
from jaxem.drivers import single as fitting
from jaxem.fold.chunks import plan_fold

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(-1, 1, (61, 2)), RNG.normal(1, 0.6, (41, 2))])  # 102 rows: two are missing to 4 · 26
MODEL = jaxem.Mixture(jaxem.FullNormal(), 2)
START = jaxem.MixtureParams(
    jnp.array([0.5, 0.5]), jaxem.NormalParams(jnp.asarray(X[[0, -1]]), jnp.stack([jnp.eye(2)] * 2))
)


def test_rows_are_cut_in_equal_parts_and_padding_counts_nothing():
    data, weight = jaxem.shard(X)
    assert data.shape == (104, 2) and {part.data.shape for part in data.addressable_shards} == {(26, 2)}
    np.testing.assert_array_equal(data[:102], X)
    np.testing.assert_array_equal(data[102:], X[[-1, -1]])
    np.testing.assert_array_equal(weight, np.repeat([1.0, 0.0], [102, 2]))


def test_weights_are_made_only_where_they_are_needed():
    assert jaxem.shard(X[:100]).sample_weight is None
    data, weight = jaxem.shard(X[:100], sample_weight=np.arange(100))
    assert weight is not None and weight.sharding == data.sharding and weight.dtype == X.dtype
    np.testing.assert_array_equal(weight, np.arange(100))


def test_any_tree_of_numpy_and_jax_arrays_is_cut():
    tree = {"counts": np.arange(7), "flags": jnp.arange(14).reshape(7, 2) > 3}
    (data, allowed), weight = jaxem.shard(jaxem.labelled(tree, np.arange(7) - 1), sample_weight=jnp.ones(7))
    np.testing.assert_array_equal(data["counts"], [0, 1, 2, 3, 4, 5, 6, 6])
    np.testing.assert_array_equal(allowed, [-1, 0, 1, 2, 3, 4, 5, 5])
    np.testing.assert_array_equal(weight, [1, 1, 1, 1, 1, 1, 1, 0])
    assert data["flags"].dtype == bool and len(data["flags"].sharding.device_set) == 4


def test_fewer_rows_than_devices():
    data, weight = jaxem.shard(X[:2])
    np.testing.assert_array_equal(weight, [1, 1, 0, 0])
    np.testing.assert_array_equal(data[:2], X[:2])
    assert np.isfinite(data).all()


@pytest.mark.parametrize("names", [("here",), ("lanes", "observations"), ("observations", "lanes")])
def test_a_mesh_says_which_axis_takes_the_rows(names):
    mesh = Mesh(np.asarray(jax.devices()).reshape(4 if len(names) == 1 else (2, 2)), names)
    data, weight = jaxem.shard(X, mesh)
    assert data.sharding.spec == P("here" if len(names) == 1 else "observations")
    np.testing.assert_array_equal(data[:102], X)
    assert (weight is None) == (len(names) == 2)


@pytest.mark.slow
def test_the_fit_of_sharded_rows_is_the_fit_of_the_table():
    data, weight = jaxem.shard(X)
    got, want = jaxem.fit(MODEL, START, data, sample_weight=weight), jaxem.fit(MODEL, START, X)
    assert int(got.n_iter) == int(want.n_iter)
    np.testing.assert_allclose(got.objective, want.objective, rtol=1e-13)
    np.testing.assert_allclose(got.params.components.mean, want.params.components.mean, rtol=1e-11)


def test_wrong_arguments_are_errors_that_say_what_to_do():
    two = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("a", "b"))
    with pytest.raises(ValueError, match="one named 'observations' among several, got \\('a', 'b'\\)"):
        jaxem.shard(X, two)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(102,\)"):
        jaxem.shard(X, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="at least one row, got n = 0"):
        jaxem.shard(X[:0])
    with pytest.raises(ValueError, match="shard before jit"):
        jax.jit(lambda x: jaxem.shard(x).data)(X)
    with pytest.raises(TypeError, match="expected numbers"):
        jaxem.shard(np.array(["a", "b"]))
    with jax.enable_x64(False), pytest.warns(UserWarning, match="rounded to float32"):
        jaxem.shard(X)


# --- what an iteration sends

COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def sent_by_loops(text: str) -> list[list[str]]:
    """The collectives of each loop that is in no other, without those of loops inside it; then those of the latter."""
    parts = {
        found[1]: found[0] for found in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n.*?^\}", text, re.M | re.S)
    }
    loops = {name: set(re.findall(r" while\(.*?body=%?([\w.-]+)", part)) for name, part in parts.items()}
    bodies = set().union(*loops.values())

    def called(name: str, found: set[str]) -> set[str]:
        found.add(name)
        for other in set(re.findall(r"%([\w.-]+)", parts[name])) & parts.keys() - found - bodies:
            called(other, found)
        return found

    inside = {body: called(body, set()) for body in bodies}
    nested = {inner for names in inside.values() for name in names for inner in loops[name]}
    sent = {body: [x for name in names for x in COLLECTIVE.findall(parts[name])] for body, names in inside.items()}
    return [sent[body] for body in sorted(bodies - nested)] + [[x for body in sorted(nested) for x in sent[body]]]


@pytest.mark.parametrize(
    ("family", "chunk_size", "algorithm"),
    [
        (jaxem.FullNormal(), None, jaxem.EM()),
        (jaxem.FullNormal(), 10, jaxem.EM()),
        pytest.param(jaxem.DiagonalNormal(), 10, jaxem.SQUAREM(), marks=once_a_week),
        pytest.param(jaxem.StudentT(), 10, jaxem.EM(), marks=once_a_week),
        pytest.param(jaxem.Gamma(), None, jaxem.EM(), marks=once_a_week),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=once_a_week)])
def test_an_iteration_sends_one_sum_of_the_statistics_and_nothing_else(family, chunk_size, algorithm, weighted):
    model = jaxem.Mixture(family, 2)
    data, weight = jaxem.shard(np.abs(X) + 0.1)
    options = fitting.make_options(algorithm, 1e-6, 20, jaxem.Stop(), None, plan_fold(data, chunk_size))
    start = model.init(jax.random.key(0), data)
    program = fitting._fit.lower(model, start, data, weight if weighted else None, options)
    *loops, nested = sent_by_loops(str(program.compile().as_text()))
    loops = [sent for sent in loops if sent]
    assert loops and all(sent == ["all-reduce"] for sent in loops), loops
    assert not nested


# --- lanes over one axis, rows over the other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "chunk_size", "weighted"),
    [
        (P("lanes", "observations"), 20, True),
        pytest.param(P("lanes", "observations"), None, False, marks=once_a_week),
        pytest.param(P(None, ("lanes", "observations")), 20, True, marks=once_a_week),
        pytest.param(P(None, "observations"), None, True, marks=once_a_week),
        pytest.param(P("lanes"), None, True, marks=once_a_week),
    ],
    ids=str,
)
def test_lanes_and_rows_over_two_axes_of_a_mesh(spec, chunk_size, weighted):
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("observations", "lanes"))
    x = np.stack([X[:100], X[:100] * [2, 0.5], X[::-1][:100], X[:100] * [1, 3]])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), START)
    weight = np.random.default_rng(1).integers(0, 3, (4, 100)).astype(float) if weighted else None
    want = jaxem.fit_batch(MODEL, starts, x, sample_weight=weight)
    cut = NamedSharding(mesh, spec)
    data, weight = jax.device_put(x, cut), None if weight is None else jax.device_put(weight, cut)
    got = jaxem.fit_batch(MODEL, starts, data, sample_weight=weight, chunk_size=chunk_size)
    assert len(set(np.asarray(want.n_iter).tolist())) > 1
    np.testing.assert_array_equal(got.n_iter, want.n_iter)
    np.testing.assert_array_equal(got.status, want.status)
    np.testing.assert_allclose(got.objective, want.objective, rtol=1e-12)
    np.testing.assert_allclose(got.params.components.mean, want.params.components.mean, atol=1e-10)
