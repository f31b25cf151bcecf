"""Results as tables: one row a lane, every number of the params in a column of its own."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, blobs, mixture, start

import jaxem

ROWS = blobs()
RATE = jaxem.PoissonParams(jnp.ones((1, 1)))
OPTIONS: Any = {"max_iter": 5, "tol": -1.0}


@pytest.fixture(scope="module")
def groups() -> jaxem.GroupsResult:
    labels = np.array(["b", "a"] * 19 + ["b", "c"])
    return jaxem.fit_groups(mixture("full"), KEY, ROWS, labels, **OPTIONS)


@pytest.mark.slow
def test_one_row_a_group(groups):
    frame = groups.to_frame()
    covariance = [f"covariance[{j},{a},{b}]" for j in range(2) for a in range(2) for b in range(2)]
    means = ["mean[0,0]", "mean[0,1]", "mean[1,0]", "mean[1,1]"]
    first = ["group", "n_rows", "status", "n_iter", "objective", "log_lik"]
    first += ["smallest_count", "largest_ratio", "n_at_floor", "weights[0]", "weights[1]"]
    assert list(frame.columns) == [*first, *means, *covariance]
    assert frame["group"].tolist() == ["a", "b", "c"] and frame["n_rows"].tolist() == [19, 20, 1]
    assert frame["status"].tolist() == ["MAX_ITER", "MAX_ITER", "TOO_FEW"]
    for name in ("n_iter", "objective", "log_lik"):
        assert np.array_equal(frame[name], getattr(groups, name), equal_nan=True)
    assert np.array_equal(frame["mean[1,0]"], groups.params.components.mean[:, 1, 0], equal_nan=True)
    assert np.array_equal(frame["covariance[0,1,0]"], groups.params.components.covariance[:, 0, 1, 0], equal_nan=True)


def test_labels_of_any_kind():
    labels = [("AA", 1), ("B6", None)] * 20
    frame = jaxem.fit_groups(mixture("diagonal"), KEY, ROWS, labels, **OPTIONS).to_frame()
    assert sorted(frame["group"], key=str) == [("AA", 1), ("B6", None)]


def test_one_row_for_one_fit_and_one_for_each_lane():
    params = start("diagonal", [[0.0, 0.0], [4.0, 4.0]], 1.0)
    result = jaxem.fit(mixture("diagonal"), params, ROWS, **OPTIONS)
    one = result.to_frame()
    assert one["lane"].tolist() == [0] and one["weights[1]"].tolist() == [float(result.params.weights[1])]
    for n_lanes in (1, 3):
        stack = lambda leaf: jnp.stack([jnp.asarray(leaf)] * n_lanes)  # noqa: B023, E731
        lanes = jaxem.fit_batch(mixture("diagonal"), jax.tree.map(stack, params), stack(ROWS), **OPTIONS)
        frame = lanes.to_frame()
        assert list(frame.columns) == list(one.columns) and frame["lane"].tolist() == list(range(n_lanes))
        assert np.array_equal(frame["mean[1,0]"], lanes.params.components.mean[:, 1, 0])
    two_axes = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), lanes)  # type: ignore[possibly-undefined]
    with pytest.raises(ValueError, match=r"got lanes of shape \(2, 3\)"):
        two_axes.to_frame()


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (jnp.float64(0.5), ["params"]),
        (jnp.ones(2), ["params[0]", "params[1]"]),
        ((jnp.float64(1.0), {"b": jnp.ones(1)}), ["params[0]", "params[1].b[0]"]),
        (jaxem.MixtureParams(jnp.ones(1), {"size": RATE}), ["weights[0]", "size.rate[0,0]"]),
        (jaxem.MixtureParams(jnp.ones(1), (RATE,)), ["weights[0]", "components[0].rate[0,0]"]),
        (jaxem.MixtureParams(jnp.ones(1), {"weights": jnp.ones(1)}), ["weights[0]", "components.weights[0]"]),
    ],
)
def test_names_of_params(params, names):
    zero = jnp.zeros(())
    result = jaxem.FitResult(params, zero, zero, zero, zero, jnp.zeros((), int), zero[None], None)
    assert list(result.to_frame().columns)[5:] == names


def test_without_pandas_the_error_names_the_extra(groups, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_frame needs pandas: pip install 'jaxem\[tables\]'"):
        groups.to_frame()
