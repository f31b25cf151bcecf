"""Reads beyond an array: found in the rows that use them, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.numerics.reads import rows_beyond

TABLE = jnp.arange(12.0).reshape(3, 4)
PAIRS = np.array([[0, 0], [2, 3], [3, 0], [1, 4], [-3, -4], [-4, 0]])
BEYOND = [False, False, True, True, False, True]


def by_slice(table, pair):
    return table[pair[0]][pair[1]]


def by_gather(table, pair):
    return table[pair[:1], pair[1:]].sum()


def by_take(table, pair):
    return jnp.take(jnp.take(table, pair[0], 0), pair[1])


def inside_a_function(table, pair):
    return jax.jit(by_slice)(table, pair)


def through_a_table_of_indices(table, pair):
    return jnp.arange(4.0)[jnp.array([[0, 1, 2, 3]] * 3)[pair[0], pair[1]]] + 0 * table[0, 0]


def of_every_column(table, pair):
    return jax.vmap(lambda column: column[pair[0]], 1)(table)[pair[1]]


@pytest.mark.parametrize(
    "fn", [by_slice, by_gather, by_take, inside_a_function, through_a_table_of_indices, of_every_column]
)
def test_reads_beyond_an_array_are_found_by_row(fn):
    assert rows_beyond(fn, TABLE, PAIRS).tolist() == BEYOND
    assert not rows_beyond(fn, TABLE, PAIRS[[0, 1, 4]]).any()
    assert rows_beyond(fn, TABLE, PAIRS, np.arange(6) != 3).tolist() == [False, False, True, False, False, True]


def test_what_is_masked_away_is_no_fault():
    masked = lambda table, pair: jnp.where(pair[0] < 3, table[pair[0], 0], -1.0)  # noqa: E731
    assert not rows_beyond(masked, TABLE, PAIRS[:5]).any()
    clipped = lambda table, pair: table[jnp.clip(pair[0], 0, 2), 0]  # noqa: E731
    assert not rows_beyond(clipped, TABLE, PAIRS).any()
    filled = lambda table, pair: table.at[pair[0], 0].get(mode="fill", fill_value=7.0)  # noqa: E731
    assert not rows_beyond(filled, TABLE, PAIRS).any()


def test_bounds_settle_most_without_an_evaluation(monkeypatch):
    """Also of indices that may be negative, are shifted, or made of several columns."""
    monkeypatch.setattr("jaxem.numerics.reads._used_beyond", None)
    shifted = lambda table, pair: table[jnp.maximum(pair[0] - 1, 0), pair[1]]  # noqa: E731
    for fn in (by_slice, by_gather, by_take, shifted):
        assert not rows_beyond(fn, TABLE, PAIRS[:2]).any()
