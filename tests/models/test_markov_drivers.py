"""Series through the drivers: streams, checkpoints, groups, influence, cross-validation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

KEY = jax.random.key(0)
N, T = 12, 10
MODEL = jaxem.HiddenMarkovModel(jaxem.FullNormal(), 2)
START = jaxem.HMMParams(
    jnp.array([0.6, 0.4]),
    jnp.array([[0.8, 0.2], [0.3, 0.7]]),
    jaxem.NormalParams(jnp.array([[0.5], [3.0]]), jnp.ones((2, 1, 1))),
)
TRUTH = START._replace(emissions=jaxem.NormalParams(jnp.array([[0.0], [4.0]]), jnp.ones((2, 1, 1))))
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> jaxem.Sequences:
    drawn, _ = MODEL.sample(TRUTH, KEY, n=N, n_steps=T)
    values = np.array(drawn.values)
    values[2, 3] = values[5, 0] = np.nan
    return jaxem.Sequences(values, np.arange(N) % T + 1)


def _cut(data, *ends) -> list:
    starts = [0, *ends]
    return [jax.tree.map(lambda leaf: leaf[a:b], data) for a, b in zip(starts, [*ends, N], strict=True)]  # noqa: B023


def _same(a, b, **tolerance) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_a_stream_of_series_is_the_fit_of_all(data):
    """Cut between series, with weights, of which one is zero; `tol` and what is counted are of steps."""
    weight = np.where(np.arange(N) == 4, 0.0, 1.0 + np.arange(N) % 2)
    batches = lambda: zip(_cut(data, 5, 9), np.split(weight, [5, 9]), strict=True)  # noqa: E731
    whole = jaxem.fit(MODEL, START, data, sample_weight=weight)
    stream = jaxem.fit_stream(MODEL, START, batches)
    assert stream.n_iter == whole.n_iter and stream.status == whole.status
    _same(stream.params, whole.params, rtol=1e-8)
    np.testing.assert_allclose(stream.objective, whole.objective, rtol=1e-11)
    np.testing.assert_allclose(stream.total_weight, whole.total_weight, rtol=1e-12)


def test_a_stream_takes_labels_and_refuses_another_length_of_the_table(data):
    states = np.array(MODEL.predict(TRUTH, data))
    states[::2] = -1
    known = jaxem.labelled(data, states)
    whole = jaxem.fit(MODEL, START, known, tol=-1.0, max_iter=3)
    stream = jaxem.fit_stream(MODEL, START, lambda: [(b, None) for b in _cut(known, 6)], tol=-1.0, max_iter=3)
    _same(stream.params, whole.params, rtol=1e-9)
    first, last = _cut(data, 6)
    shorter = last._replace(values=last.values[:, :-1], length=np.minimum(last.length, T - 1))
    with pytest.raises(ValueError, match="expected rows of shapes"):
        jaxem.fit_stream(MODEL, START, lambda: [(first, None), (shorter, None)])


@slow
def test_kept_fits_go_on_where_they_were(data, tmp_path):
    """In memory, and from a stream."""
    options = {"tol": -1.0, "max_iter": 6}
    plain = jaxem.fit(MODEL, START, data, **options)
    for _ in range(2):
        kept = jaxem.fit(MODEL, START, data, checkpoint=jaxem.Checkpoint(tmp_path / "fit"), **options)
        np.testing.assert_array_equal(kept.history, plain.history)
    batches = lambda: [(b, None) for b in _cut(data, 5)]  # noqa: E731
    stream = jaxem.fit_stream(MODEL, START, batches, **options)
    np.testing.assert_allclose(stream.history, plain.history, rtol=1e-7)  # robust scales merge to seven digits
    for _ in range(2):
        kept = jaxem.fit_stream(MODEL, START, batches, checkpoint=jaxem.Checkpoint(tmp_path / "stream"), **options)
        np.testing.assert_array_equal(kept.history, stream.history)


def test_a_model_for_each_series(data):
    """`fit_groups` with a group a series; one of NaN is NONFINITE and disturbs none."""
    longer = jax.tree.map(lambda leaf: leaf[8:], data)
    longer = longer._replace(values=np.array(longer.values), length=np.array([9, 10, 10, 8]))
    longer.values[2, 4] = np.inf
    longer.values[:2] = np.nan_to_num(longer.values[:2])
    ids = np.array(["c", "a", "b", "d"])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), START)
    groups = jaxem.fit_groups(MODEL, KEY, longer, ids, init=starts, algorithm=jaxem.EM(), max_iter=5, tol=-1.0)
    assert groups.labels.tolist() == ["a", "b", "c", "d"]
    assert jaxem.Status(int(groups.fit_of("b").status)) is jaxem.Status.NONFINITE
    for i in (0, 1, 3):
        one = jaxem.Sequences(longer.values[i : i + 1], longer.length[i : i + 1])
        alone = jaxem.fit(MODEL, START, one, max_iter=5, tol=-1.0)
        found = groups.fit_of(str(ids[i]))
        np.testing.assert_allclose(found.objective, alone.objective, rtol=1e-10)
        assert found.total_weight == longer.length[i]
    good = np.array([0, 1, 3])
    rows = jax.tree.map(lambda leaf: leaf[good], longer)
    r = groups.responsibilities(rows, ids[good])
    assert r.shape == (3, T, 2)
    np.testing.assert_allclose(r[1], MODEL.responsibilities(groups.fit_of("a").params, rows)[1], rtol=1e-9)


@slow
def test_folds_and_what_is_left_out_are_whole_series(data):
    models = [jaxem.HiddenMarkovModel(jaxem.FullNormal(), k) for k in (2, 3)]
    chosen = jaxem.select(models, KEY, data, criterion=jaxem.CrossValidation(3), n_restarts=2, max_iter=20)
    assert chosen.folds is not None and chosen.folds.shape == (N,) and np.all(np.isfinite(chosen.table["criterion"]))
    result = jaxem.fit(MODEL, START, data, tol=1e-10, max_iter=2000).check()
    of = lambda params: params.emissions.mean[1, 0]  # noqa: E731
    found = jaxem.influence(result.model, result.params, data, of=of)
    assert found.shape == (N,)
    i = 9
    without = jaxem.fit(MODEL, result.params, data, sample_weight=np.ones(N) - (np.arange(N) == i), tol=1e-10)
    np.testing.assert_allclose(found[i], of(without.params) - of(result.params), rtol=0.35)


def test_lists_of_series_are_said_to_become_sequences(data):
    alone = [np.asarray(data.values)[i, : data.length[i]] for i in (3, 6)]
    with pytest.raises(ValueError, match=r"jaxem.sequences\(\[series"):
        jaxem.fit(MODEL, START, alone)
    with pytest.raises(ValueError, match=r"jaxem.sequences\(\[series"):
        MODEL.init(KEY, alone)
    assert jaxem.fit(MODEL, START, jaxem.sequences(alone), max_iter=2).n_iter > 0
