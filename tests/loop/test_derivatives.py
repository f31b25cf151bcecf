"""The strategies and solvers of a fit's derivative; what every model owes is in `test_contract_derivatives`."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import quick_jit
from helpers import first, replaced
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from joint_cases import fit_linkage, linkage_model

import jaxem
from jaxem.fold.chunks import FoldPlan
from jaxem.loop.equation import FixedPoint, minus_jacobian
from jaxem.numerics import tree as _tree
from jaxem.numerics.solvers import Operator

N, MAX_ITER = 400, 400
MODEL = jaxem.Mixture(jaxem.DiagonalNormal(), 2)
X = np.random.default_rng(0).normal(size=(N, 1)) + 2.5 * (np.arange(N) % 2)[:, None]
COTANGENT = np.array([[1.0], [-3.0]])


def start(dtype: Any = np.float64, gap: float = 2.5) -> jaxem.MixtureParams:
    bank = jaxem.NormalParams(jnp.array([[0.0], [gap]], dtype), jnp.ones((2, 1), dtype))
    return jaxem.MixtureParams(jnp.array([0.5, 0.5], dtype), bank)


def mean_of(x: Any, derivative: Any, begin: Any = None, **options: Any) -> jax.Array:
    begin = start(x.dtype) if begin is None else begin
    options = {"max_iter": MAX_ITER} | options
    params = jaxem.fit(MODEL, begin, x, derivative=derivative, **options).params
    return jnp.sum(params.components.mean * COTANGENT.astype(x.dtype))


def slope(x: Any, derivative: Any = jaxem.Implicit(), **options: Any) -> np.ndarray:
    return np.asarray(quick_jit(jax.grad(lambda x: mean_of(x, derivative, **options)))(jnp.asarray(x)))


def relative(got: Any, want: Any) -> float:
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-4), (np.float32, 1e-2)])
def test_components_that_overlap_have_their_derivative_at_the_default_tol(dtype, tolerance):
    """EM at a rate of 0.998 stops far from its fixed point; the corrections make up for it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1)) + 1.9 * (np.arange(2000) % 2)[:, None]
    want_fit = jaxem.fit(MODEL, start(gap=1.9), x, tol=-1.0, max_iter=20_000)
    rate = float(jaxem.em_rate(MODEL, want_fit.params, x))
    assert 0.9975 < rate < 0.9995, rate
    want = slope(x, begin=want_fit.params)
    got = slope(x.astype(dtype), begin=start(dtype, 1.9), max_iter=500)
    assert relative(got, want) < tolerance
    rough, rule = jaxem.Implicit(polish=0, valid_below=np.inf), jaxem.Objective(1e-6)
    stopped_early = slope(x.astype(dtype), rough, begin=start(dtype, 1.9), max_iter=500, stop=rule)
    assert relative(stopped_early, want) > 3 * tolerance


def _normal_log_density(params: Any, x: Any) -> Any:
    spread = params["spread"]
    return -0.5 * jnp.square((x - params["centre"]) / spread) - jnp.log(spread)


@pytest.mark.slow
def test_corrections_that_settle_elsewhere_give_no_derivative():
    """One component is fitted in one step, so that the last of three corrections is zero, wherever they came from."""
    one = jaxem.Mixture(jaxem.DiagonalNormal(), 1)
    at = jax.tree.map(lambda leaf: leaf[:1], start())._replace(weights=jnp.ones(1))
    far = at._replace(components=at.components._replace(mean=jnp.array([[50.0]])))

    def mean(x: Any, begin: Any, max_iter: int) -> Any:
        return jnp.sum(jaxem.fit(one, begin, x, max_iter=max_iter).params.components.mean)

    slope = jax.grad(mean)
    assert np.isnan(slope(jnp.asarray(X), far, 0)).all()
    np.testing.assert_allclose(slope(jnp.asarray(X), far, 1), 1 / N, rtol=1e-9)


@pytest.mark.slow
@first("switched_off", [True, False])
def test_a_climbing_mixture_is_differentiated_as_if_components_of_weight_zero_were_not_there(switched_off):
    """By the score equation, in which they are held; one of weight exactly zero, and one that is switched off."""
    family = jaxem.Density(_normal_log_density, {"centre": None, "spread": jaxem.bijections.positive})
    x = jnp.asarray(X[:60, 0])
    bank = {"centre": jnp.array([0.0, 1.0, 2.5]), "spread": jnp.ones(3)}
    begin = jaxem.MixtureParams(jnp.array([0.5, 0.0, 0.5]), bank)
    fewer = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], begin)
    active = jnp.array([True, False, True]) if switched_off else None
    two, three = jaxem.Mixture(family, 2), jaxem.Mixture(family, 3, active=active)
    # the mode of Q a step; a loose rule, so that the corrections have something to do
    options: dict[str, Any] = {"tol": 1e-7, "max_iter": 300}

    def centres(model: Any, start: Any) -> Any:
        apart = lambda x: jnp.sum(jaxem.fit(model, start, x, **options).params.components["centre"][jnp.array([0, -1])]  # noqa: E731
                                  * jnp.array([1.0, -3.0]))  # fmt: skip
        return quick_jit(jax.grad(apart))(x)

    np.testing.assert_allclose(centres(three, begin), centres(two, fewer), rtol=1e-6)
    fitted = [jaxem.fit(m, s, x, **options).params for m, s in ((two, fewer), (three, begin))]
    rates = [float(jaxem.em_rate(m, p, x)) for m, p in zip((two, three), fitted, strict=True)]
    np.testing.assert_allclose(rates[1], rates[0], rtol=1e-6)
    better, same = (jaxem.newton_correction(m, p, x) for m, p in zip((two, three), fitted, strict=True))
    assert same.weights[1] == 0 and same.components["centre"][1] == bank["centre"][1]
    np.testing.assert_allclose(same.components["centre"][jnp.array([0, 2])], better.components["centre"], rtol=1e-7)


@pytest.mark.slow
def test_all_solvers_agree():
    want = slope(X)
    for solver in (jaxem.Dense(), jaxem.GMRES()):
        np.testing.assert_allclose(slope(X, jaxem.Implicit(solver)), want, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
def test_a_system_that_is_not_solved_gives_nan():
    assert np.isnan(slope(X, jaxem.Implicit(jaxem.GMRES(restart=1, max_restarts=1), polish=0))).all()
    singular = Operator(lambda: lambda v: jnp.array([1.0, 0.0]) * v, jnp.ones(2))
    for solver in (jaxem.Dense(), jaxem.GMRES()):
        assert np.isnan(solver.inverse(singular)[0](jnp.ones(2))).all()
        np.testing.assert_array_equal(solver.inverse(singular)[0](jnp.zeros(2)), 0)


@pytest.mark.slow
@first("family", [jaxem.FullNormal, jaxem.SphericalNormal, jaxem.DiagonalNormal])
def test_the_jacobian_of_an_em_step_assembled_from_one_product_is_that_of_autodiff(family):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(150, 3)) * [1, 10, 100] + [0, 50, 1e4])
    weight = jnp.asarray(rng.uniform(0.5, 2, 150)).at[3].set(0)
    model = jaxem.Mixture(family(floor=0.01), 3, concentration=jnp.array([2.0, 1.0, 3.0]))
    params = jaxem.fit(model, model.init(jax.random.key(0), x), x, max_iter=3).params  # not at the fixed point
    equation, arguments = FixedPoint(FoldPlan()), (model, x, weight)
    flat, to_params = equation.coordinates(params, arguments)

    @quick_jit
    def both(flat: Any) -> Any:
        factors = equation.operator(flat, to_params, arguments).factors()  # type: ignore[misc]
        assembled = jax.vmap(lambda e: e - factors.up(factors.core @ factors.down(e)))(jnp.eye(flat.shape[0])).T
        around = factors._replace(n_blocks=1).around()
        residual = factors.residual - equation.residual(flat, to_params, arguments)
        return minus_jacobian(equation, flat, to_params, arguments), assembled, around, factors.around(), residual

    want, assembled, around, by_blocks, gap = both(flat)
    scale = np.abs(np.asarray(flat))
    in_units = lambda matrix: np.asarray(matrix) * scale[None] / scale[:, None]  # noqa: E731
    np.testing.assert_allclose(in_units(assembled), in_units(want), atol=1e-8)
    np.testing.assert_allclose(gap / scale, 0, atol=1e-12)
    np.testing.assert_allclose(by_blocks, around, rtol=1e-9, atol=1e-9 * np.max(np.abs(around)))


def test_right_sides_of_any_size_are_solved_for():
    """The residual of a fit to the last digit is shorter than eps, which the library's GMRES takes for zero."""
    matrix = jnp.eye(3) + 0.1 * jnp.arange(9.0).reshape(3, 3)
    operator = Operator(lambda: lambda v: matrix @ v, jnp.ones(3))
    b = jnp.array([1.0, -2.0, 3.0])
    for size in (1e-30, 1.0, 1e30):
        for solver in (jaxem.Dense(), jaxem.GMRES()):
            found = solver.inverse(operator)[0](size * b)
            np.testing.assert_allclose(found / size, np.linalg.solve(matrix, b), rtol=1e-9)


def test_one_step_and_unrolled_steps_are_partial_sums():
    """Σ_i Jⁱ ∂M, of which the implicit derivative is the limit."""
    result = jaxem.fit(MODEL, start(), X, tol=1e-15, max_iter=5000)
    whole = slope(X, begin=result.params)
    rate = float(jaxem.em_rate(MODEL, result.params, X))
    errors = [relative(slope(X, jaxem.Unrolled(n), begin=result.params), whole) for n in (20, 40)]
    assert errors[0] > 1e-3 and abs(errors[1] / errors[0] / rate**20 - 1) < 0.2
    one = slope(X, jaxem.OneStep(), begin=result.params)
    np.testing.assert_array_equal(one, slope(X, jaxem.Unrolled(1), begin=result.params))
    assert relative(one, whole) > 0.1


def test_strategies_leave_the_values_alone():
    want = jaxem.fit(MODEL, start(), X, derivative=jaxem.Stop())
    for derivative in (jaxem.Implicit(), jaxem.OneStep(), jaxem.Unrolled(3)):
        jax.tree.map(np.testing.assert_array_equal, jaxem.fit(MODEL, start(), X, derivative=derivative), want)
    np.testing.assert_array_equal(slope(X, jaxem.Stop()), 0)


@pytest.mark.slow
@pytest.mark.parametrize("derivative", [jaxem.Implicit(), jaxem.Unrolled(2)], ids=["implicit", "unrolled"])
def test_a_loss_masked_by_status_over_lanes_has_finite_gradients(derivative):
    x = np.stack([X, X, X + 1])
    x[1, 5] = np.nan
    begin = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), start())

    def one(x: Any, begin: Any) -> tuple[jax.Array, jax.Array]:
        result = jaxem.fit(MODEL, begin, x, derivative=derivative, max_iter=MAX_ITER)
        return jnp.sum(result.params.components.mean * COTANGENT), result.failed

    def masked(shift: Any) -> jax.Array:
        value, failed = jax.vmap(one)(jnp.asarray(x) + shift, begin)
        return jnp.sum(jnp.where(failed, 0, value))

    backward, forward = quick_jit(jax.grad(masked))(0.0), quick_jit(jax.jacfwd(masked))(0.0)
    np.testing.assert_allclose(backward, forward, rtol=1e-9)
    np.testing.assert_allclose(backward, -4.0 if isinstance(derivative, jaxem.Implicit) else backward, rtol=1e-6)
    asked = quick_jit(jax.jacfwd(lambda shift: jax.vmap(one)(jnp.asarray(x) + shift, begin)[0]))(0.0)
    np.testing.assert_array_equal(np.isnan(asked), [False, True, False])


@pytest.mark.slow
def test_sharded_rows_have_the_same_gradient():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("rows",))
    spread = jax.device_put(jnp.asarray(X), NamedSharding(mesh, PartitionSpec("rows")))
    got = jax.grad(lambda x: mean_of(x, jaxem.Implicit()))(spread)
    assert len(got.sharding.device_set) == 4
    np.testing.assert_allclose(got, slope(X), rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_second_derivatives_of_a_single_normal_are_those_of_its_formula():
    model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), 1)
    x = jnp.asarray(X[:12])
    begin = jax.tree.map(lambda leaf: leaf[:1], start())
    begin = replaced(begin._replace(weights=jnp.ones(1)), covariance=jnp.ones((1, 1, 1)))
    variance = lambda x: jaxem.fit(model, begin, x).params.components.covariance[0, 0, 0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(variance)(x), jax.grad(lambda x: jnp.var(x))(x), rtol=1e-9, atol=1e-12)
    got, want = (quick_jit(jax.hessian(fn))(x).reshape(12, 12) for fn in (variance, lambda x: jnp.var(x)))
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@_tree.register
@dataclass(frozen=True)
class Elsewhere(jaxem.EM):
    """EM that does not say that it ends at its fixed point."""

    ends_at_em_fixed_point: ClassVar[bool] = False


def test_an_algorithm_that_ends_elsewhere_is_fitted_and_not_differentiated():
    assert jaxem.fit(MODEL, start(), X, algorithm=Elsewhere()).converged
    with pytest.raises(ValueError, match="Elsewhere does not end at a fixed point .* pass derivative=Stop"):
        slope(X, algorithm=Elsewhere())
    np.testing.assert_array_equal(slope(X, jaxem.Stop(), algorithm=Elsewhere()), 0)


def test_bad_options_are_named():
    for derivative, message in (
        (jaxem.Implicit(polish=-1), "polish: expected a non-negative int, got -1"),
        (jaxem.Unrolled(0), "n_iter: expected a positive int, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxem.fit(MODEL, start(), X, derivative=derivative)
    with pytest.raises(ValueError, match="LogJoint has no M step in closed form.* derivative=Implicit"):
        fit_linkage(linkage_model(), derivative=jaxem.OneStep())
    wide = np.zeros((70, 80))
    with pytest.raises(ValueError, match="solver: Dense.. takes at most 4096 unknowns, got 6642; pass solver=GMRES"):
        model = jaxem.Mixture(jaxem.FullNormal(), 2)
        bank = jaxem.NormalParams(jnp.zeros((2, 80)), jnp.stack([jnp.eye(80)] * 2))
        begin = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        derivative = jaxem.Implicit(jaxem.Dense())
        loss = lambda x: jnp.sum(jaxem.fit(model, begin, x, derivative=derivative).params.weights)  # noqa: E731
        jax.eval_shape(jax.grad(loss), wide)


@pytest.mark.slow
def test_the_fast_path_has_the_derivative_of_the_stable_one():
    """On one device, in a process of its own: with several CPU devices the derivative stays on the stable path."""
    code = """
import jax, numpy as np, jaxem
from jaxem.loop import derivative
jax.config.update("jax_enable_x64", True)
x = np.random.default_rng(0).normal(size=(200, 2)) + 3.0 * (np.arange(200) % 2)[:, None]
model = jaxem.Mixture(jaxem.FullNormal(), 2)
start = model.init(jax.random.key(0), x)
def slope():
    fit = lambda x: jaxem.fit(model, start, x, tol=1e-12)
    return jax.jit(jax.grad(lambda x: fit(x).params.components.mean.sum() + fit(x).log_lik))(x)
asked = []
original = derivative.may_be_fast
def watched(*arguments):
    fast = original(*arguments)
    asked.append(fast is not False)
    return fast
derivative.may_be_fast = watched
fast = slope()
assert asked and all(asked), asked
derivative.may_be_fast = lambda *arguments: False
np.testing.assert_allclose(fast, slope(), rtol=1e-9, atol=1e-12)
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"JAX_NUM_CPU_DEVICES": "1"})
