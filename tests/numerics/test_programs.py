"""Programs compiled in haste: when, and with what result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.drivers import single
from jaxem.numerics import programs
from jaxem.numerics.programs import Program

ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)) + 4 * (np.arange(40) % 2)[:, None])
MODEL = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
START = MODEL.init(jax.random.key(0), ROWS)


def doubling() -> Program:
    return Program(lambda x: 2 * x, at_most=10)


def sizes(program: Program) -> tuple[int, int]:
    return program.hasty._cache_size(), program.thorough._cache_size()  # type: ignore[attr-defined]


def test_few_concrete_numbers_are_compiled_in_haste_and_more_are_not():
    program = doubling()
    assert program(jnp.ones(10))[0] == 2 and sizes(program) == (1, 0)
    assert program(jnp.ones(11))[0] == 2 and sizes(program) == (1, 1)


def test_a_part_of_another_program_is_left_to_xla_even_if_it_is_a_constant():
    program, constant = doubling(), jnp.ones(3)
    assert jax.jit(program)(constant)[0] == 2
    assert jax.jit(lambda x: program(constant) + x)(1.0)[0] == 3
    assert jax.jit(jax.grad(lambda x: program(x).sum()))(constant)[0] == 2
    assert jax.vmap(program)(constant)[0] == 2 and jax.grad(lambda x: program(x).sum())(constant)[0] == 2
    assert sizes(program)[0] == 0


def test_options_that_this_jaxlib_does_not_know_are_left_out(monkeypatch):
    programs.in_haste.cache_clear()
    known = "xla_backend_optimization_level"
    monkeypatch.setattr(programs, "_IN_HASTE", {"xla_no_such_option": False, known: 0})
    try:
        assert programs.in_haste() == {known: 0}
        assert doubling()(jnp.ones(3))[0] == 2
    finally:
        programs.in_haste.cache_clear()


def test_a_fit_in_haste_is_the_fit_inside_a_program():
    hasty = jaxem.fit(MODEL, START, ROWS)
    thorough = jax.jit(lambda x: jaxem.fit(MODEL, START, x))(ROWS)
    assert int(hasty.n_iter) == int(thorough.n_iter)
    for ours, theirs in zip(jax.tree.leaves(hasty.params), jax.tree.leaves(thorough.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


COUNTS = jnp.asarray(np.random.default_rng(1).poisson([[2.0]] * 15 + [[9.0]] * 15), jnp.result_type(float))
POISSON = jaxem.Mixture(jaxem.Poisson(), n_components=2)
COUNTS_START = POISSON.init(jax.random.key(0), COUNTS)


def weight(x):
    return jaxem.fit(POISSON, COUNTS_START, x, tol=1e-12).params.weights[0]


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, jax.jacrev], ids=["grad", "jacfwd", "jacrev"])
def test_a_fit_differentiated_from_python_is_as_one_inside_a_program(transform):
    np.testing.assert_allclose(transform(weight)(COUNTS), jax.jit(transform(weight))(COUNTS), rtol=1e-6, atol=1e-10)


def test_from_python_the_values_of_a_derivative_come_from_the_program_of_values():
    before = single._fit._cache_size()  # type: ignore[attr-defined]
    jax.value_and_grad(weight)(COUNTS)
    assert single._fit._cache_size() == before  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_second_derivative_from_python_is_that_of_a_program():
    second = jax.jacfwd(jax.grad(lambda t: weight(COUNTS.at[0].add(t))))
    got, want = second(0.0), jax.jit(second)(0.0)
    assert abs(float(want)) > 1e-6
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_integers_beside_floats_have_no_part_in_a_derivative_from_python():
    counts, model = jnp.arange(12).reshape(12, 1), jaxem.Mixture(jaxem.Poisson(), n_components=1)
    start = model.init(jax.random.key(0), counts)
    rate = lambda weight: jaxem.fit(model, start, counts, sample_weight=weight).params.components.rate[0, 0]  # noqa: E731
    slope = jax.grad(rate)(jnp.ones(12))
    np.testing.assert_allclose(slope, (counts[:, 0] - 5.5) / 12, rtol=1e-6)
