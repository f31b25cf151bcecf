"""`ascend` and `newton`: optima with closed forms, bad regions, batches, and the promise never to end lower."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import first, once_a_week, slow

from jaxem.numerics.maximize import ascend, newton

METHODS = [ascend, newton]
DTYPES = [jnp.float32, jnp.float64]
EPS = {jnp.float32: 1.2e-7, jnp.float64: 2.3e-16}


def rosenbrock(x):
    return -jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def half_plane(x):
    """Concave, NaN for x ≤ 0 (the log of a negative number), maximal at 1."""
    return jnp.sum(jnp.log(x) - x)


def rugged(coefficients, x):
    """Bounded above with many local optima; falls to −∞ at the edges of its domain, beyond them NaN or −inf."""
    wave = jnp.sum(jnp.sin(3 * coefficients * x + coefficients[::-1])) - 0.1 * jnp.sum(jnp.square(x))
    edges = jnp.log(9 - jnp.sum(jnp.square(x))) + jnp.log(1.2 - x[0])
    inside = x[1] < 1.4
    wall = jnp.where(inside, jnp.log(jnp.where(inside, 1.4 - x[1], 1)), -jnp.inf)
    return wave + 0.1 * (edges + wall)


def gentle_adam():
    return optax.adam(0.05)


def wild_gradient():
    return optax.sgd(30.0)


def backtracking():
    return optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(30, store_grad=True))


# under x64 optax's backtracking takes float64 cotangents for float32 params, an error of its own
NEVER_LOWER = [
    (None, jnp.float32),
    (None, jnp.float64),
    (gentle_adam, jnp.float32),
    (wild_gradient, jnp.float64),
    (backtracking, jnp.float64),
    (newton, jnp.float32),
    (newton, jnp.float64),
]
DEFAULT = [(None, jnp.float32), (newton, jnp.float64)]


@first(("method", "dtype"), [(ascend, jnp.float64), (newton, jnp.float32), (newton, jnp.float64)])
def test_rosenbrock_reaches_its_optimum(method, dtype):
    found = jax.jit(lambda start: method(rosenbrock, start, n_steps=100))(jnp.asarray([-1.2, 1.0], dtype))
    # where the objective no longer changes, the params are known to the square root of eps, times the condition
    np.testing.assert_allclose(found.params, [1, 1], atol=1e-3 if dtype == jnp.float32 else 1e-8)
    assert found.params.dtype == found.objective.dtype == found.gradient_norm.dtype == dtype
    assert found.improved and 0 < found.n_steps < 100


@slow
@first(("method", "dtype"), [(newton, jnp.float32), (newton, jnp.float64), (ascend, jnp.float64)])
def test_quadratic_of_a_tree(method, dtype):
    curvature = jnp.asarray([[2.0, 0.3], [0.3, 1.0]], dtype)
    centre = {"a": jnp.asarray([1.0, -2.0], dtype), "b": jnp.asarray(0.5, dtype)}

    def objective(params):
        gap = params["a"] - centre["a"]
        return -0.5 * gap @ curvature @ gap - 2 * jnp.square(params["b"] - centre["b"]) + 7

    found = jax.jit(lambda start: method(objective, start))(jax.tree.map(jnp.zeros_like, centre))
    tight = 100 * EPS[dtype]
    # L-BFGS stops at the resolution of the objective, Newton at that of the gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tight**0.5), found.params, centre)
    if method is newton:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tight), found.params, centre)
        assert found.n_steps <= 3
    assert abs(found.objective - 7) <= 10 * EPS[dtype] * 7
    gradient = jax.grad(objective)(found.params)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient))
    assert abs(found.gradient_norm - largest) <= tight


@first("dtype", DTYPES)
@first("method", METHODS)
def test_a_region_of_nan_beside_a_concave_summit(method, dtype):
    starts = [[1e-3, 50.0], [3.0, 1.0], [20.0, 1e-4], [1.0, 1.0], [-1.0, 2.0], [jnp.nan, 1.0], [0.0, 1.0]]
    starts = jnp.asarray(starts, dtype)
    found = jax.jit(jax.vmap(lambda start: method(half_plane, start, n_steps=100)))(starts)
    np.testing.assert_allclose(found.params[:4], np.ones((4, 2)), atol=3e-3 if dtype == jnp.float32 else 1e-6)
    assert found.improved[:3].all()
    assert found.n_steps[3] == 0 and not found.improved[3]  # it starts at the summit
    # starts that are not finite are returned, and disturb no other lane
    np.testing.assert_array_equal(found.params[4:], starts[4:])
    np.testing.assert_array_equal(found.n_steps[4:], 0)
    assert not found.improved[4:].any()


@slow
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [case if case in DEFAULT else pytest.param(*case, marks=once_a_week) for case in NEVER_LOWER],
)
def test_never_lower_than_the_start(optimizer, dtype):
    rng = np.random.default_rng(0)
    c, x = jnp.asarray(rng.normal(size=(200, 4)), dtype), jnp.asarray(rng.uniform(-1.6, 1.6, (200, 4)), dtype)

    def maximise(c, x):
        objective = lambda x: rugged(c, x)  # noqa: E731
        if optimizer is newton:
            return newton(objective, x, n_steps=10)
        return ascend(objective, x, n_steps=10, optimizer=optimizer)

    found = jax.jit(jax.vmap(maximise))(c, x)
    before, after = (np.asarray(jax.jit(jax.vmap(rugged))(c, points)) for points in (x, found.params))
    legal = np.isfinite(before)
    assert 140 < legal.sum() < 190
    # compiled apart, two evaluations of one point may differ in their last digits
    rounding = 20 * EPS[dtype] * (1 + np.abs(before[legal]))
    assert (after[legal] >= before[legal] - rounding).all()
    np.testing.assert_allclose(found.objective[legal], after[legal], atol=1000 * EPS[dtype])
    np.testing.assert_array_equal(found.params[~legal], x[~legal])
    # a wild optimiser is tamed by its refusals, so it too gets somewhere
    assert found.improved[legal].mean() > 0.5


@first("method", METHODS[::-1])
def test_vmap_equals_a_loop(method):
    rng = np.random.default_rng(1)
    starts = jnp.asarray(rng.normal(size=(6, 3)))
    solve = lambda x: method(rosenbrock, x, n_steps=30)  # noqa: E731
    batch = jax.jit(jax.vmap(solve))(starts)
    one = jax.jit(solve)
    for i in range(6):
        alone = one(starts[i])
        assert alone.n_steps == batch.n_steps[i]
        np.testing.assert_allclose(batch.params[i], alone.params, rtol=1e-8, atol=1e-10)


@first("method", METHODS)
def test_one_trace_over_new_values(method):
    traces = []

    @jax.jit
    def solve(start, centre, n_steps, tol):
        traces.append(1)
        return method(lambda x: -jnp.sum(jnp.cosh(x - centre)), start, n_steps=n_steps, tol=tol)

    few = solve(jnp.zeros(3), jnp.ones(3), jnp.asarray(1), jnp.asarray(0.0))
    many = solve(jnp.ones(3), 2 * jnp.ones(3), jnp.asarray(40), jnp.asarray(1e-4))
    exact = solve(jnp.ones(3), 2 * jnp.ones(3), jnp.asarray(40), jnp.asarray(0.0))
    none = solve(jnp.zeros(3), jnp.ones(3), jnp.asarray(0), jnp.asarray(0.0))
    assert len(traces) == 1
    assert none.n_steps == 0 and not none.improved and none.objective == -jnp.sum(jnp.cosh(jnp.ones(3)))
    np.testing.assert_array_equal(none.params, 0)
    assert few.n_steps == 1
    assert many.gradient_norm <= 1e-4 * jnp.abs(many.objective) and many.n_steps <= exact.n_steps
    np.testing.assert_allclose(exact.params, np.full(3, 2.0), atol=1e-6)


def test_leaf_rates_of_an_optimiser_may_be_traced():
    def solve(rate):
        return ascend(half_plane, jnp.full(2, 0.5), n_steps=5, optimizer=lambda: optax.sgd(rate)).params

    near, far = jax.jit(jax.vmap(solve))(jnp.asarray([0.01, 0.2]))
    assert (far > near).all() and (near > 0.5).all()


def test_newton_has_the_derivative_of_the_stationary_point():
    """argmax of m·u − exp(u) is log m: derivatives 1/m and −1/m²; in reverse, forward, twice, under vmap and jit."""
    root = lambda m: newton(lambda u: m * u - jnp.exp(u), jnp.zeros(())).params  # noqa: E731
    means = jnp.asarray([0.5, 1.0, 4.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.jacfwd(root)))(means), 1 / means, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(jax.grad(root))))(means), -1 / means**2, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda m: jnp.sum(jax.vmap(root)(m))))(means), 1 / means, rtol=1e-10)
    top = lambda m: newton(lambda u: m * u - jnp.exp(u), jnp.zeros(())).objective  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(top)))(means), jnp.log(means), atol=1e-10)  # the envelope


def test_newton_reaches_only_lanes_that_are_asked_for():
    """A lane with a singular Hessian has no derivative; those who do not ask for it see no NaN."""
    root = lambda m: newton(lambda u: m * u - jnp.exp(u), jnp.zeros(())).params  # noqa: E731
    gradient = jax.jit(jax.grad(lambda m: jax.vmap(root)(m)[0]))(jnp.asarray([2.0, jnp.nan, -1.0]))
    np.testing.assert_allclose(gradient, [0.5, 0, 0], rtol=1e-10)


@first("derive", [jax.grad, jax.jacfwd])
def test_differentiating_ascend_says_what_to_do(derive):
    with pytest.raises(ValueError, match=r"ascend: .*derivative=Stop\(\)"):
        derive(lambda m: ascend(lambda u: m * u - jnp.exp(u), jnp.zeros(())).params)(4.0)

    def held(m):
        fixed = jax.lax.stop_gradient(m)
        return ascend(lambda u: fixed * u - jnp.exp(u), jnp.zeros(())).params + m

    assert derive(held)(4.0) == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_bad_arguments(method):
    with pytest.raises(TypeError, match="start: expected a tree of floating arrays"):
        method(lambda x: jnp.sum(x * 1.0), jnp.arange(3))
    with pytest.raises(TypeError, match="start: expected a tree of floating arrays"):
        method(lambda x: jnp.zeros(()), ())
    with pytest.raises(ValueError, match=r"objective: expected a floating scalar.*float64\(3,\)"):
        method(lambda x: -x * x, jnp.zeros(3))
    with pytest.raises(ValueError, match="objective: expected a floating scalar"):
        method(lambda x: jnp.argmax(x), jnp.zeros(3))
