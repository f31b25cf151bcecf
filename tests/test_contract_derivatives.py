"""The contracts of every model and algorithm: derivatives; rows that do not exist."""

from typing import Any

import jax
import numpy as np
from contract_cases import (
    INTEGER,
    UNEVEN,
    answer,
    assert_same_bits,
    assert_same_fit,
    derivatives,
    directions,
    fit,
    fit_as_users,
    for_cases,
    is_variant,
    need_fixed_point,
    split_model,
    with_absent_rows,
)

# --- derivatives


def inner(a: Any, b: Any) -> float:
    return sum(float(np.sum(np.asarray(x) * np.asarray(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@for_cases()
def test_the_derivative_is_that_of_finite_differences(case):
    need_fixed_point(case)
    arguments = (split_model(case)[0], case.model.start(), case.model.data, UNEVEN)
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
            # Truncation h⁴ = 1e-12 times a fifth derivative; rounding of the fixed points, 10·ROUNDING, over h.
            scale, size = np.max(np.abs(fd)), np.max(np.abs(v))
            np.testing.assert_allclose(t, fd, rtol=0, atol=1e-6 * scale + 1e-10 * size, err_msg=name)
        assert np.max(np.abs(jax.tree.leaves(differences)[0])) > 0 or name.endswith("floor"), name


@for_cases()
def test_forward_and_reverse_derivatives_agree(case):
    need_fixed_point(case)
    tangents, cotangent, pushed, pulled = derivatives(case, case.model.data, UNEVEN)
    for i, (name, _) in enumerate(directions(case)):
        tangent, image = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (tangents, pushed))
        np.testing.assert_allclose(inner(pulled, tangent), inner(cotangent, image), rtol=1e-9, err_msg=name)
    for leaf in jax.tree.leaves(pulled[1]):
        np.testing.assert_array_equal(leaf, 0)  # the start has no influence


# --- rows that do not exist


@for_cases()
def test_rows_of_weight_zero_are_never_looked_at(case):
    plain, unreadable = fit(case, weight=INTEGER), fit(case, with_absent_rows(case, np.nan, np.inf, -np.inf), INTEGER)
    assert_same_bits(unreadable, plain)
    assert np.isfinite(plain.objective)
    assert_same_fit(fit(case, with_absent_rows(case, np.nan), INTEGER, chunk_size=7), plain)
    assert bool(fit_as_users(case, with_absent_rows(case, np.inf), INTEGER).converged)  # no complaint about the data


@for_cases()
def test_rows_of_weight_zero_have_no_derivative(case):
    need_fixed_point(case)
    _, _, pushed, pulled = derivatives(case, case.model.data, INTEGER)
    _, _, pushed_unreadable, pulled_unreadable = derivatives(case, with_absent_rows(case, np.nan, np.inf), INTEGER)
    assert_same_bits(pushed_unreadable, pushed)
    assert_same_bits(pulled_unreadable, pulled)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((pushed, pulled)))
    for leaf in jax.tree.leaves(pulled[2]):
        np.testing.assert_array_equal(leaf[INTEGER == 0], 0)


@for_cases(slow=is_variant)
def test_nothing_depends_on_the_weight_of_a_row_that_is_never_looked_at(case):
    need_fixed_point(case)
    _, _, _, pulled = derivatives(case, with_absent_rows(case, np.nan), INTEGER)
    np.testing.assert_array_equal(pulled[3][INTEGER == 0], 0)
