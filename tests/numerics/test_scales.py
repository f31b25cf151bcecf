"""The robust scale against a minimiser of its definition, and what it promises of outliers, ties and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.optimize import minimize

from jaxem.numerics.scales import _EXACT_ROWS, robust_variance


def _by_its_definition(x: np.ndarray, weight: np.ndarray) -> float:
    """constant · exp(2 min …) of the module's docstring."""
    share = weight / weight.sum()

    def bracket(at: np.ndarray) -> float:
        return share @ np.log(np.exp(2 * at[1]) + (x - at[0]) ** 2) - at[1]

    away = abs(x - np.median(x))
    begin = np.array([np.median(x), np.log(np.median(away[away > 0]))])
    best = minimize(bracket, begin, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000})
    return 1.603775 * np.exp(2 * best.fun) / 4


def _columns(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    normal = rng.normal(5, 3, n)
    return {
        "normal": normal,
        "far rows": np.where(np.arange(n) % 200 == 0, 1e7, normal),
        "two clusters": normal + 40 * (rng.random(n) < 0.35),
        "skew": rng.exponential(size=n) ** 2,
        "uniform": rng.uniform(-1, 1, n) * 1e-5,
    }


@pytest.mark.parametrize("n", [300, _EXACT_ROWS + 5000])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_scale_is_the_minimum_of_its_definition(n, is_weighted):
    columns = _columns(n)
    weight = np.random.default_rng(1).integers(0, 4, n).astype(float) if is_weighted else np.ones(n)
    found = robust_variance(jnp.asarray(np.stack([*columns.values()], 1)), jnp.asarray(weight) if is_weighted else None)
    want = [_by_its_definition(x, weight) for x in columns.values()]
    # of many rows at the minimum of a sample
    np.testing.assert_allclose(found, want, rtol=1e-8 if n == 300 else 2e-3)


def test_rows_of_one_value_count_as_much_as_the_others_at_most():
    column = np.concatenate([np.zeros(1600), np.random.default_rng(0).normal(2, 3, 400)])
    capped = np.where(column == 0, 0.25, 1.0)
    found = robust_variance(jnp.asarray(column[:, None]), None)[0]
    want = _by_its_definition(column, capped)
    assert want < found < 1.12 * want  # its minimum is at s = 0, which EM nears from above
    assert float(robust_variance(jnp.full((50, 1), 3.0), None)[0]) == 0


def test_every_part_of_many_rows_is_seen():
    n = 2 * _EXACT_ROWS - 1  # of which blocks of whole numbers of rows would leave out a quarter
    x = np.random.default_rng(0).normal(size=n) + 6 * (np.arange(n) > 0.6 * n)
    found = robust_variance(jnp.asarray(x)[:, None], None)[0]
    np.testing.assert_allclose(found, _by_its_definition(x, np.ones(n)), rtol=2e-3)


def test_a_few_rows_with_weight_among_many_are_as_if_alone():
    """And wherever the rows lie."""
    n = _EXACT_ROWS + 20_000
    x = 1e3 + np.random.default_rng(0).normal(size=(n, 2))
    weight = np.zeros(n)
    weight[::500] = 1.0
    want = robust_variance(jnp.asarray(x[weight > 0]), None)
    rows = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("rows",)), PartitionSpec("rows"))
    n = n // 4 * 4
    for place in (jnp.asarray, lambda leaf: jax.device_put(leaf, rows)):
        np.testing.assert_allclose(jax.jit(robust_variance)(place(x[:n]), place(weight[:n])), want, rtol=1e-9)
