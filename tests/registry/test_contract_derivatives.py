"""The contracts of every model and algorithm: derivatives; rows that do not exist."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contract_cases import (
    INTEGER,
    UNEVEN,
    answer,
    arrays,
    assert_same_bits,
    assert_same_fit,
    derivatives,
    directions,
    em_first,
    fit,
    fit_as_users,
    floats_of,
    for_cases,
    is_not,
    is_quick_variant,
    is_variant,
    need_fixed_point,
    quick_jit,
    split_model,
    with_absent_rows,
)

# --- derivatives


def inner(a: Any, b: Any) -> float:
    return sum(float(np.sum(np.asarray(x) * np.asarray(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@for_cases(slow=em_first(is_quick_variant))
def test_the_derivative_is_that_of_finite_differences(case):
    need_fixed_point(case)
    arguments = (split_model(case)[0], case.model.start(), floats_of(case.model.data), UNEVEN)
    _, _, pushed, _ = derivatives(case, case.model.data, UNEVEN)
    value = answer(case, arguments, run=fit)
    h = 1e-3

    def at(step: Any, multiple: int) -> Any:
        moved = jax.tree.map(lambda leaf, part: leaf + multiple * h * part, arguments, step)
        return answer(case, moved, run=fit)

    for i, (name, step) in enumerate(directions(case)):
        differences = jax.tree.map(
            lambda a, b, c, d: (8 * (np.asarray(b) - np.asarray(c)) - (np.asarray(a) - np.asarray(d))) / (12 * h),
            *[at(step, multiple) for multiple in (2, 1, -1, -2)],
        )
        tangent = jax.tree.map(lambda leaf, i=i: leaf[i], pushed)
        for t, fd, v in zip(*map(jax.tree.leaves, (tangent, differences, value)), strict=True):
            # Truncation h⁴ = 1e-12 times a fifth derivative, 1.4e-6 of tied spheres, 2.7e-6 of Weibulls, a sixteenth of
            # that with h/2; rounding of the fixed points, 10·ROUNDING, over h.
            scale, size = np.max(np.abs(fd), initial=0), np.max(np.abs(v), initial=0)
            cut = 4e-6 if "weibull" in case.name else 2e-6
            np.testing.assert_allclose(t, fd, rtol=0, atol=cut * scale + 1e-10 * size, err_msg=name)
        still = not any(map(np.any, jax.tree.leaves(step)))  # a hyper-parameter of 0 is not moved
        moved = np.max(np.abs(jax.tree.leaves(differences)[0])) > 0
        assert moved or still or name.endswith("floor") or ".values" in name, name


@for_cases(slow=em_first(is_quick_variant))
def test_forward_and_reverse_derivatives_agree(case):
    need_fixed_point(case)
    tangents, cotangent, pushed, pulled = derivatives(case, case.model.data, UNEVEN)
    for i, (name, _) in enumerate(directions(case)):
        tangent, image = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (tangents, pushed))
        np.testing.assert_allclose(inner(pulled, tangent), inner(cotangent, image), rtol=1e-10, err_msg=name)
    for leaf in jax.tree.leaves(pulled[1]):
        np.testing.assert_array_equal(leaf, 0)  # the start has no influence


@for_cases(
    slow=is_not("spherical"),
    weekly=is_not("spherical", "full_prior"),
    algorithms=False,
    only=("full_prior", "diagonal", "spherical", "tied", "poisson", "student_t"),
)
def test_second_derivatives_are_those_of_finite_differences(case):
    need_fixed_point(case)
    arguments = arrays((split_model(case)[0], case.model.start(), floats_of(case.model.data), UNEVEN))
    step = jax.tree.map(lambda *leaves: sum(leaves), *[step for _, step in directions(case)])
    rng = np.random.default_rng(7)
    cotangent = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape), jax.eval_shape(functools.partial(answer, case), arguments)[0]
    )

    def gradient(arguments: Any) -> Any:
        return jax.grad(lambda a: sum(map(jnp.vdot, *map(jax.tree.leaves, (answer(case, a)[0], cotangent)))))(arguments)

    h = 1e-4
    at = jax.tree.map(lambda leaf, part: np.stack([leaf - h * part, leaf, leaf + h * part]), arguments, step)
    value, tangent = quick_jit(lambda at: jax.lax.map(lambda a: jax.jvp(gradient, (a,), (arrays(step),)), at))(at)
    for g, t in zip(*map(jax.tree.leaves, (value, tangent)), strict=True):
        want = (np.asarray(g[2]) - np.asarray(g[0])) / (2 * h)
        # truncation h² = 1e-8 times a fourth derivative
        np.testing.assert_allclose(t[1], want, rtol=0, atol=1e-4 * max(np.max(np.abs(want), initial=0), 1e-6))


# --- rows that do not exist


@for_cases(slow=em_first(is_quick_variant))
def test_rows_of_weight_zero_are_never_looked_at(case):
    plain, unreadable = fit(case, weight=INTEGER), fit(case, with_absent_rows(case, np.nan, np.inf, -np.inf), INTEGER)
    assert_same_bits(unreadable, plain)
    assert np.isfinite(plain.objective)
    if "test_chunks_do_not_change_the_answer" not in case.algorithm.exempt:
        assert_same_fit(fit(case, with_absent_rows(case, np.nan), INTEGER, chunk_size=7), plain)
    assert bool(fit_as_users(case, with_absent_rows(case, np.inf), INTEGER).converged)  # no complaint about the data


@for_cases(slow=em_first(is_quick_variant))
def test_rows_of_weight_zero_have_no_derivative(case):
    need_fixed_point(case)
    _, _, pushed, pulled = derivatives(case, case.model.data, INTEGER)
    _, _, pushed_unreadable, pulled_unreadable = derivatives(case, with_absent_rows(case, np.nan, np.inf), INTEGER)
    assert_same_bits(pushed_unreadable, pushed)
    assert_same_bits(pulled_unreadable, pulled)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((pushed, pulled)))
    for leaf in jax.tree.leaves(pulled[2]):
        np.testing.assert_array_equal(leaf[INTEGER == 0], 0)


@for_cases(slow=em_first(is_variant))
def test_nothing_depends_on_the_weight_of_a_row_that_is_never_looked_at(case):
    need_fixed_point(case)
    _, _, _, pulled = derivatives(case, with_absent_rows(case, np.nan), INTEGER)
    np.testing.assert_array_equal(pulled[3][INTEGER == 0], 0)
