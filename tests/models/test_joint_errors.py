"""Faults of a written joint: every message names the function, the row or the shapes, and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import bijections

SIMPLEX = bijections.simplex
START = {"prior": np.array([0.5, 0.5]), "table": np.tile([[0.6, 0.4], [0.3, 0.7]], (3, 1, 1))}
WHO, LABEL = np.array([[0, 1], [1, 2], [2, 0], [0, 1]]), np.array([[0, 1], [1, 1], [0, 0], [0, 1]])


def annotated(p, row):
    who, label = row
    return jnp.log(p["prior"]) + jnp.sum(jnp.log(p["table"])[who, :, label], 0)


def summed_out(p, row):
    return jax.nn.logsumexp(annotated(p, row))


def not_summed(p, row):
    who, label = row
    return jnp.log(p["prior"])[None] + jnp.log(p["table"])[who, :, label]


def counted(p, row):
    return jnp.sum(row[0]) + jnp.arange(2)


def below_zero(p, row):
    who, label = row
    return jnp.log(p["prior"]) + jnp.log(0.5 - jnp.sum(label))


def infinite(p, row):
    return annotated(p, row) + 1.0 / jnp.sum(row[1])


def impossible(p, row):
    return annotated(p, row) + jnp.where(jnp.sum(row[1]) == 2, -jnp.inf, 0.0)


def misfit(p, row):
    return p["prior"] @ jnp.ones(3)


def by_rows(p):
    return jnp.sum(jnp.log(p["table"]), (-1, -2))


def fitted(fn, start=None, who: np.ndarray = WHO, label: np.ndarray = LABEL, weight=None, **options):
    model = jaxem.LogJoint(fn, 2, SIMPLEX, **options)
    return jaxem.fit(model, START if start is None else start, (who, label), sample_weight=weight)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (summed_out, r"log_joint \(summed_out\): expected float64\(2,\), one value a state .* got float64\(\); stack"),
        (not_summed, r"log_joint \(not_summed\): .*\(int64\[2\], int64\[2\]\), got float64\(2, 2\); x has no leading"),
        (counted, r"log_joint \(counted\): .* got int64\(2,\); log densities are real"),
        (below_zero, r"log_joint \(below_zero\): .* got NaN in row 0 .*x\[1\] = \[0, 1\]\) and 2 more; look for log"),
        (infinite, r"log_joint \(infinite\): .* got inf in row 2 "),
        (impossible, r"log_joint \(impossible\): .* got −inf, which no latent state explains in row 1 "),
    ],
)
def test_what_a_joint_returns(fn, message):
    with pytest.raises(ValueError, match=message):
        fitted(fn)


def test_a_shape_is_refused_while_tracing():
    with pytest.raises(ValueError, match="one value a state"):
        jax.jit(lambda who: fitted(summed_out, who=who).log_lik)(WHO)


def test_an_error_of_the_function_says_what_it_was_given():
    with pytest.raises(TypeError) as raised:
        fitted(misfit)
    assert any(
        "log_joint (misfit) was called with params {prior: float64[2]" in note for note in raised.value.__notes__
    )


def test_a_prior_is_one_finite_number():
    with pytest.raises(ValueError, match=r"log_prior \(by_rows\): expected float64\(\), a number, got float64\(3,\)"):
        fitted(annotated, log_prior=by_rows)
    zero = {**START, "table": np.tile([[1.0, 0.0], [0.3, 0.7]], (3, 1, 1))}
    with pytest.raises(ValueError, match="log_prior .* got -inf; start off the boundary"):
        fitted(annotated, zero, log_prior=lambda p: jnp.sum(jnp.log(p["table"])))


def test_a_scalar_for_a_vector():
    for scalar in (0.5, jnp.array(0.5)):
        with pytest.raises(ValueError, match=r"params\['prior'\]: expected vectors in simplex, got shape \(\)"):
            fitted(annotated, {**START, "prior": scalar})
    with pytest.raises(ValueError, match=r"log_conditional .* expected float64\(\).* got float64\(2,\); sum it"):
        model = jaxem.LogJoint.quadrature(lambda p, x, z: p * x * z, 5)
        jaxem.fit(model, jnp.array(0.5), np.ones((4, 2)))


def test_an_index_beyond_the_end_names_the_row():
    beyond = np.where((np.arange(4) == 2)[:, None] & (WHO == 0), 3, WHO)
    with pytest.raises(ValueError, match=r"log_joint \(annotated\): .*beyond the end in row 2 \(x\[0\] = \[2, 3\]"):
        fitted(annotated, who=beyond)
    absent = fitted(annotated, who=beyond, weight=np.array([1.0, 1.0, 0.0, 1.0]))
    there = fitted(annotated, who=WHO, weight=np.array([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(absent.log_lik, there.log_lik, rtol=1e-12)
    model = jaxem.Frozen(jaxem.LogJoint(annotated, 2, SIMPLEX), {"prior": True, "table": False})
    with pytest.raises(ValueError, match="beyond the end in row 2"):
        jaxem.fit(model, START, (beyond, LABEL))


def test_an_index_that_is_no_whole_number_names_the_leaf():
    with pytest.raises(TypeError, match=r"log_joint \(annotated\): .* got data\[1\] \(float64\); pass integers"):
        fitted(annotated, label=LABEL * 1.0)
    with pytest.raises(TypeError, match=r"got data\[0\] \(float64\), data\[1\] \(float64\)"):
        fitted(annotated, who=WHO * 1.0, label=LABEL * 1.0)


# --- long tables


def of_a_long_table(p, row):
    who, label, times = row.values
    seen = jnp.where(jnp.arange(len(who)) < row.length, times, 0)
    return jnp.log(p["prior"]) + jnp.sum(seen[:, None] * jnp.log(jnp.maximum(p["table"], 1e-300))[who, :, label], 0)


def test_a_long_table_of_who_item_label_with_counts():
    """An item's rows become one observation, its padding says nothing; a label given three times counts three times."""
    rng = np.random.default_rng(0)
    item = np.repeat(np.arange(30), 4)
    who, label, times = rng.integers(0, 3, 120), rng.integers(0, 2, 120), rng.integers(1, 4, 120)
    keep = rng.uniform(size=120) < 0.8
    item, who, label, times = (column[keep] for column in (item, who, label, times))
    counted = jaxem.sequences((who, label, times), item)
    repeated = jaxem.sequences(
        tuple(np.repeat(column, times) for column in (who, label, 1 + 0 * who)), np.repeat(item, times)
    )
    model = jaxem.LogJoint(of_a_long_table, 2, SIMPLEX)
    got, want = (jaxem.fit(model, START, data, max_iter=30, tol=-1.0) for data in (counted, repeated))
    np.testing.assert_allclose(got.history, want.history, rtol=1e-12)
    assert "climbs" not in model.explain(START, counted)


def topics(p, pair):
    document, word = pair
    return jnp.log(p["shares"][document]) + jnp.log(p["words"][:, word])


def test_a_long_table_of_documents_and_words_with_counts_as_weights():
    rng = np.random.default_rng(1)
    counts = rng.poisson(1.0, (6, 9))
    document, word = np.nonzero(counts)
    start = {"shares": np.full((6, 2), 0.5), "words": rng.dirichlet(np.ones(9), 2)}
    model = jaxem.LogJoint(topics, 2, SIMPLEX)
    options = {"max_iter": 30, "tol": -1.0}
    weight = counts[document, word].astype(float)
    got = jaxem.fit(model, start, (document, word), sample_weight=weight, **options)
    repeated = tuple(np.repeat(column, counts[document, word]) for column in (document, word))
    np.testing.assert_allclose(got.history, jaxem.fit(model, start, repeated, **options).history, rtol=1e-12)
