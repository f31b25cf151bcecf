"""Stopping rules, on sequences made by hand and on fits."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import quick_jit
from helpers import blobs, two_starts

import jaxem
from jaxem.contracts.protocols import Progress

NONE = jnp.asarray([jnp.nan, jnp.nan])


def progress(objectives: list[float], *, jumped: bool = False, step: float = 0.1, residual: float = 0.1) -> Progress:
    """The last of these objectives was just seen; the params moved by `step`, EM moves them by `residual`."""
    values: list[Any] = [jnp.nan] * 5 + [jnp.asarray(value) for value in objectives]
    n_iter = len(objectives) - 1
    return Progress(
        objective=values[-1],
        previous_objective=values[-2] if n_iter else -jnp.inf * jnp.ones(()),
        params=jnp.asarray([2.0, 0.0]),
        previous=jnp.asarray([2.0, -step]),
        proposal=jnp.asarray([2.0, 5.0 if jumped else residual]),
        n_iter=jnp.asarray(n_iter),
        image=jnp.asarray([2.0, residual]) if jumped else None,
        earlier_objectives=jnp.stack([jnp.asarray(values[-i]) for i in (3, 4, 5)]),
        sizes=jnp.asarray([1.0, 2.0]),
    )


def stops(rule, *args, **options) -> bool:
    return bool(rule.converged(progress(*args, **options))[0])


def test_the_objective_has_to_stand_still_twice_after_a_jump():
    rule = jaxem.Objective(1e-3)
    assert stops(rule, [0.0, 1.0, 1.0005])
    assert not stops(rule, [0.0, 1.0, 1.0005], jumped=True)
    assert stops(rule, [0.0, 1.0, 1.0005, 1.0006], jumped=True)
    assert not stops(rule, [1.0], jumped=True) and not stops(rule, [1.0, 1.0], jumped=True)
    assert not stops(rule, [0.0, 1.0, 0.9]) and not stops(jaxem.Objective(-1.0), [0.0, 1.0, 1.0])


def test_aitken_knows_the_limit_of_a_geometric_sequence():
    """l_t = −2·0.9^t: the distance to the limit is 2·0.9^t, the last rise a tenth of that of the step before."""
    sequence = [-2 * 0.9**t for t in range(40)]
    for tol in (0.5, 0.1, 0.05):
        first = next(t for t in range(2, 40) if stops(jaxem.Aitken(tol), sequence[: t + 1]))
        assert 2 * 0.9**first <= tol < 2 * 0.9 ** (first - 1)
        assert stops(jaxem.Objective(tol), sequence[: first - 8])  # the last rise says so much earlier
        jumping = next(t for t in range(2, 40) if stops(jaxem.Aitken(tol), sequence[: t + 1], jumped=True))
        assert jumping == first + 1
    assert not stops(jaxem.Aitken(0.5), [0.0, 1.0, 2.5])  # rises that grow foretell no limit
    assert not stops(jaxem.Aitken(0.5), [0.0, 1.0, 0.9]) and not stops(jaxem.Aitken(0.5), [0.0, 0.1])
    done, rounding = jaxem.Aitken(0.0).converged(progress([0.0, 1.0, 1.0 - 1e-15], step=0.1, residual=-0.1))
    assert bool(done) and bool(rounding)


def test_rises_below_the_resolution_end_nothing_while_steps_of_em_agree():
    """The objective stands still; what is left is 8·‖0.09 / 2‖² / (2(1 − 0.9)), from steps of 0.1 and 0.09."""
    still = [0.0, 1.0, 1.0]
    left = 8 * (0.09 / 2) ** 2 / (2 * (1 - 0.9))
    assert not stops(jaxem.Aitken(0.99 * left), still, step=0.1, residual=0.09)
    done, rounding = jaxem.Aitken(1.01 * left).converged(progress(still, step=0.1, residual=0.09))
    assert bool(done) and not bool(rounding)
    for step, residual in ((0.1, -0.09), (0.1, -0.5)):  # turned round
        done, rounding = jaxem.Aitken(1e-20).converged(progress(still, step=step, residual=residual))
        assert bool(done) and bool(rounding)
    for step, residual in ((0.1, 0.0), (1e-16, 1e-16)):  # at rest
        assert stops(jaxem.Aitken(1e-20), still, step=step, residual=residual)
    assert not stops(jaxem.Aitken(0.01), still, step=0.1, residual=0.11)  # it moves away


def test_modes_that_vanish_soon_do_not_hide_those_that_stay():
    """l_t = −100·0.3^t − 0.1·0.9^t: while the first is seen, what is left seems to be half of the last rise."""
    sequence = [-100 * 0.3**t - 0.1 * 0.9**t for t in range(200)]
    for tol in (1e-2, 1e-3, 1e-4):
        first = next(t for t in range(3, 200) if stops(jaxem.Aitken(tol), sequence[: t + 1], residual=0.0))
        assert -sequence[first] <= 10 * tol


def test_parameters_and_residuals_are_measured_by_the_sizes():
    rule = jaxem.ParameterChange(0.05)
    assert stops(rule, [0.0, 1.0], step=0.1) and not stops(rule, [0.0, 1.0], step=0.11)
    assert not stops(rule, [0.0], step=0.1)  # the first evaluation: nothing has moved
    assert not stops(rule, [0.0, 1.0], step=0.1, residual=0.11, jumped=True)
    rule = jaxem.Residual(0.05)
    assert stops(rule, [0.0], residual=0.1) and not stops(rule, [0.0], residual=0.11)
    assert stops(rule, [0.0], residual=0.1, jumped=True)  # not the proposal, which is far away
    of = jaxem.Residual(0.1, of=second)
    assert stops(of, [0.0], residual=0.1) and not stops(of, [0.0], residual=0.11)


def second(params):
    return params[1]


@pytest.mark.parametrize("rule", [jaxem.Objective, jaxem.Aitken, jaxem.ParameterChange, jaxem.Residual])
def test_every_rule_waits_for_its_fewest_iterations(rule):
    sequence = [0.0, 0.5, 0.75, 0.875]
    assert stops(rule(1.0), sequence) and stops(rule(1.0, min_iter=3), sequence)
    assert not stops(rule(1.0, min_iter=4), sequence)
    assert not stops(rule(-1.0), sequence)


@quick_jit
def fit_by(rule, x, start):
    return jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2), start, x, stop=rule)


def test_a_fit_ends_by_the_rule():
    x, start = blobs(), two_starts("full")
    limit = jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2), start, x, tol=-1.0, max_iter=2000)
    for rule in (jaxem.Aitken(1e-7), jaxem.ParameterChange(1e-5), jaxem.Residual(1e-5)):
        result = fit_by(rule, x, start)
        assert int(result.status) == jaxem.Status.CONVERGED
        history, n_iter = np.asarray(result.history), int(result.n_iter)
        if isinstance(rule, jaxem.Aitken):  # what it foretold is what was left, to a factor of two
            assert 0 < (float(limit.objective) - float(result.objective)) / len(x) < 2e-7
            assert float(limit.objective) - history[n_iter - 3] > 1e-7 * len(x)
    fit_residual = jax.jit(lambda params: jaxem.fit(result.model, params, x, max_iter=1, tol=-1.0).params)
    step = jax.tree.map(lambda a, b, s: np.max(np.abs(a - b) / s), fit_residual(result.params), result.params,
                        result.model.sizes(result.params))  # fmt: skip
    assert 1e-7 < max(jax.tree.leaves(step)) <= 1.01e-5


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (jaxem.Objective(np.nan), "Objective.tol"),
        (jaxem.Aitken(1e-6, min_iter=-1), "Aitken.min_iter"),
        (jaxem.ParameterChange("1e-6"), "ParameterChange.tol"),
        (jaxem.Residual(1e-6, of="weights"), "Residual.of"),  # type: ignore[arg-type]
    ],
)
def test_bad_rules_are_named(rule, named):
    with pytest.raises(ValueError, match=f"{named}: expected .*, got"):
        jaxem.fit(jaxem.Mixture(jaxem.FullNormal(), 2), two_starts("full"), blobs(), stop=rule)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Strays:
    """The objective is steep, and every M step goes down it."""

    step: Any

    def e_step(self, params: Any, data: Any, sample_weight: Any) -> tuple[Any, Any]:
        return jnp.zeros(()), -1e9 * (params - 1)

    def m_step(self, params: Any, stats: Any) -> Any:
        return params * (1 + self.step)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fall_is_an_error_unless_the_step_was_rounding(dtype):
    def ended(step: float) -> jaxem.FitResult:
        return jaxem.fit(Strays(np.asarray(step)), np.ones(()), np.ones((3, 1), dtype))

    eps = float(np.finfo(dtype).eps)
    for step, status in ((1e-3, "DECREASED"), (1000 * eps, "DECREASED"), (4 * eps, "RESOLUTION")):
        result = ended(step)
        assert jaxem.Status(int(result.status)).name == status
        assert float(result.params) == 1 and int(result.n_iter) == 0 and float(result.objective) == 0


@pytest.mark.slow
def test_diagnoses_report_the_largest_fall():
    x, start = blobs(), two_starts("full")
    result = fit_by(jaxem.Objective(1e-6), x, start)
    diagnosis = jaxem.diagnose(result.model, result.params, result.history)
    assert float(diagnosis.largest_fall) < 1e-12 and diagnosis.messages() == []
    fallen = result.history.at[2].add(-1.0)
    diagnosis = jax.vmap(jaxem.diagnose, (None, None, 0))(
        result.model, result.params, jnp.stack([result.history, fallen])
    )
    want = max(0.0, float(fallen[1] - fallen[2]))
    np.testing.assert_allclose(diagnosis.largest_fall, [0, want], rtol=1e-12, atol=1e-12)
    assert want > 0
    one = jax.tree.map(lambda leaf: leaf[1], diagnosis)
    assert "fell" in one.messages()[0]
    assert np.isnan(jaxem.diagnose(result.model, result.params).largest_fall)
