"""Quadratures that do not resolve a posterior, and rules that cannot be made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import bijections
from jaxem.contracts.status import Status
from jaxem.running.rounds import standing_of


def poisson_intercept(params, counts, z):
    log_rate = params["intercept"] + params["spread"] * z
    return jnp.sum(counts * log_rate - jnp.exp(log_rate) - jax.scipy.special.gammaln(counts + 1))


INTERCEPT = {"intercept": None, "spread": bijections.positive}


def of_intercepts(mean, spread):
    """Ten counts of each of ten persons: many counts narrow the posterior of a person's intercept."""
    rng = np.random.default_rng(51)
    return rng.poisson(np.exp(mean + spread * rng.normal(size=(10, 1))), (10, 10)).astype(float)


def test_a_quadrature_that_does_not_resolve_the_posteriors_has_a_status_of_its_own_and_never_wins():
    start = {"intercept": jnp.asarray(2.0), "spread": jnp.asarray(1.0)}
    model = jaxem.LogJoint.quadrature(poisson_intercept, constraints=INTERCEPT, start=start)
    wide, narrow = of_intercepts(0.0, 0.1), of_intercepts(3.0, 2.0)
    result = jaxem.fit(model, start, narrow)
    assert Status(int(result.status)) is Status.UNRESOLVED and bool(result.failed) and not bool(result.converged)
    with pytest.raises(RuntimeError, match=r"UNRESOLVED, rows 0, 1, .*: the nodes .*; use more n_nodes"):
        result.check()
    assert jaxem.fit(model, start, wide).check().unresolved.tolist() == [-1] * 5
    both = jaxem.fit_batch(model, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), start), np.stack([wide, narrow]))
    assert [Status(int(code)).name for code in both.status] == ["CONVERGED", "UNRESOLVED"]
    with pytest.raises(RuntimeError, match=r"1 of 2 lanes .*\s+UNRESOLVED \(1: 1\)"):
        both.check()
    assert np.isneginf(standing_of(result)) and np.isfinite(standing_of(jaxem.fit(model, start, wide)))


@pytest.mark.parametrize(("n_nodes", "message"), [(400, "expected at most about 370"), (0, "positive"), (2.5, "int")])
def test_a_rule_that_cannot_be_made_names_the_number_of_nodes(n_nodes, message):
    with pytest.raises(ValueError, match=rf"n_nodes: .*{message}"):
        jaxem.LogJoint.quadrature(poisson_intercept, n_nodes)
