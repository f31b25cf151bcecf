"""Constants of batches put together equal those of all rows."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import MODELS
from helpers import once_a_week

import jaxem
from jaxem.contracts import capabilities as ask
from jaxem.fold.constants import bound_to, merge
from jaxem.fold.sources import is_additive
from jaxem.latent.finite import unlabelled

_MERGED = {entry.name: entry for entry in MODELS if is_additive(entry.build()) and hasattr(entry.build(), "log_joint")}
_ENDS = ((0, 6), (6, 16), (16, None))


def _cut(tree: Any, ends: tuple) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[slice(*ends)], tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(e.name, marks=once_a_week if e.variant or e.slow else ()) for e in _MERGED.values()]
)
def test_constants_of_three_batches_are_those_of_all_rows(name: str) -> None:
    entry = _MERGED[name]
    model, data = entry.build(), unlabelled(entry.data)
    n = len(jax.tree.leaves(data)[0])
    weight = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, n)).at[3].set(0)
    together = ask.bind(model, _cut(data, (0, n)), weight)
    first, second, third = (bound_to(model, _cut(data, ends), weight[slice(*ends)]) for ends in _ENDS)
    merged = merge(merge(first, second), third).model
    assert jax.tree.structure(merged) == jax.tree.structure(together)
    wanted = jax.tree_util.tree_leaves_with_path(together)
    for (path, want), got in zip(wanted, jax.tree.leaves(merged), strict=True):
        # logarithms of means stand in for means of logarithms, which only decides when a path is left
        rtol = 0.2 if "spread" in str(path[-1]) else 1e-11
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-12, err_msg=str(path))


@pytest.mark.slow
def test_a_regression_without_intercept_keeps_its_moments() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2)) + [3.0, 0.0]
    x[:20, 1] = 2 * x[:20, 0]  # dependent in the first batch only
    data = (jnp.asarray(x), jnp.asarray(rng.normal(size=60) + 1e3))
    family = jaxem.LinearRegression()
    parts = [bound_to(family, _cut(data, ends), None) for ends in ((0, 20), (20, 60))]
    merged, want = merge(*parts).model, family.bind(data, None)
    for got, leaf in zip(jax.tree.leaves(merged), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-9, atol=1e-9)


def test_a_model_that_cannot_merge_says_so() -> None:
    @dataclass(frozen=True)
    class Centred:
        def bind(self, data: Any, sample_weight: Any) -> Any:
            return self

    bound = bound_to(Centred(), jnp.ones((3, 1)), None)
    with pytest.raises(ValueError, match=r"Centred: expected a method merged\(seen, other, other_seen\)"):
        merge(bound, bound)
