"""The E step of rows that share states: log densities are summed over the rows of an id before the rule.

    rows ── log_given ── Σ over the rows of an id, + log_state ── rule ──▶ responsibilities of ids
    rows ── statistics under the responsibilities of their ids, with states counted by id ──▶ stats

Rows may lie in any order and be cut anywhere: chunks and shards add to the sums of one id. What is held is of the size
of the rows or of the ids times states.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, Key, Params, Stats
from ..contracts import capabilities as ask
from ..latent.finite import Given, Rule, restrict, unlabelled
from ..latent.units import (
    Grouped,
    Labelled,
    first_rows,
    parts_of_units,
    sum_by_unit,
    sum_of_parts,
    unit_weight,
    units_of,
)
from ..numerics import tree as _tree
from .chunks import with_plan
from .part import Part
from .present import present_rows
from .sources import Source, is_additive, keep_rows, weighted


@_tree.register
@dataclass(frozen=True)
class GroupedRows(Source):
    """Raw rows that are `Grouped`, `Labelled` or not; read in chunks, twice in each E step."""

    data: Data
    sample_weight: Array | None

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """See `Source`."""
        given = log_given_of_units(folded, params, self.data, self.sample_weight)
        states = States.of(self.data, self.sample_weight)
        r, objective = states.posterior(folded.model, params, given, rule, key)
        rows = folded.chunk_rows(params, self.data)
        stats = _statistics(folded, params, Part(units_of(self.data), self.sample_weight), r, rows)
        return with_plan(folded.model.with_states(params, stats, states.rows, r), folded.plan), objective


@_tree.register
@dataclass(frozen=True)
class SummedUnits(Source):
    """Features of rows, summed over those of each id once and for all: to densities linear in them ids are rows.

    Attributes:
        sums: prepared rows, summed: leaves (u, …).
        states: what the ids are beside their rows.
    """

    sums: Data
    states: "States"

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """See `Source`."""
        model, states = folded.model, self.states
        r, objective = states.posterior(model, params, model.log_given(params, self.sums), rule, key)
        return model.with_states(params, model.statistics(params, self.sums, r), states.rows, r), objective


@_tree.register
@dataclass(frozen=True)
class States:
    """What belongs to the states of ids, and not to their rows.

    Attributes:
        rows: a row of each id, labelled or not: its label and covariates of a gate are those of all.
        weight: (u,), 0 of an id without rows.
        first: (u,), which row that is.
    """

    rows: Data
    weight: Array
    first: Array

    @classmethod
    def of(cls, data: Data, sample_weight: Array | None) -> "States":
        """Of grouped data."""
        units = units_of(data)
        assert units is not None
        first = first_rows(units, sample_weight)
        rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[first], units.data)
        if isinstance(data, Labelled):
            rows = Labelled(rows, jnp.asarray(data.allowed)[first])
        return cls(rows, unit_weight(units, sample_weight), first)

    def joint(self, model: Any, params: Params, given: Array) -> Array:
        """log p(rows of the id, z = j): (u, k), of Σ log p(x | z = j)."""
        joint = given + model.log_state(params, unlabelled(self.rows))
        return restrict(joint, self.rows)

    def posterior(self, model: Any, params: Params, given: Array, rule: Rule, key: Key | None) -> tuple[Array, Any]:
        """Responsibilities times weights (u, k), and the objective."""
        joint = self.joint(model, params, given)
        if isinstance(rule, Given):
            rule = Given(rule.responsibilities[self.first])
        return weighted(*rule(joint, key), self.weight)


def log_joint_of_units(folded: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    """log p(rows of the id, z = j): (u, k), without what labels rule out."""
    states = States.of(data, sample_weight)
    return states.joint(folded.model, params, log_given_of_units(folded, params, data, sample_weight))


def joint_and_weight(
    folded: Any, params: Params, data: Data, sample_weight: Array | None
) -> tuple[Array, Array | None]:
    """log p(x_i, z_i = j), (n, k) or of ids (u, k), and the weights that go with it."""
    if units_of(data) is not None:
        joint = log_joint_of_units(folded, params, data, sample_weight)
        return joint, States.of(data, sample_weight).weight
    data = present_rows(data, sample_weight)
    return restrict(folded.model.log_joint(params, unlabelled(data)), data), sample_weight


def log_given_of_units(folded: Any, params: Params, data: Data, sample_weight: Array | None) -> Array:
    """Σ log p(x_i | z = j) over the rows of each id: (u, k)."""
    units = units_of(data)
    assert units is not None
    rows = folded.chunk_rows(params, data)

    def local(model: Any, params: Params, part: Part) -> Array:
        part = part.present()
        given = _log_given(folded, model, params, part.data.data, rows)
        if part.sample_weight is not None:
            given = jnp.where((part.sample_weight > 0)[:, None], given, 0)
        return sum_by_unit(given, part.data.ids, units.n_units)

    return folded.over_shards(local, params, Part(units, sample_weight).with_stand_in())


def _log_given(folded: Any, model: Any, params: Params, data: Data, rows: int) -> Array:
    """(n, k), made chunk by chunk."""
    n = _tree.n_rows(data)

    def one(chunk: Data) -> Array:
        if folded.can_prepare:
            chunk = model.prepare(chunk, columns_first=True)
        return model.log_given(params, chunk)

    return one(data) if rows >= n else in_chunks(one, data, rows)


def in_chunks(fn: Any, data: Data, rows: int) -> Array:
    """fn of so many rows at a time, (rows, k), put together: (n, k)."""
    n = _tree.n_rows(data)

    def chunk(first: Any) -> Array:
        return fn(jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, rows), data))

    n_whole = n // rows
    whole = lax.map(chunk, rows * jnp.arange(n_whole, dtype=jnp.int32))
    whole = whole.reshape(n_whole * rows, -1)
    return whole if n_whole * rows == n else jnp.concatenate([whole, chunk(n - rows)[n_whole * rows - n :]])


def assigned_statistics(folded: Any, data: Grouped, sample_weight: Array | None, assigned: Array, rows: int) -> Stats:
    """Statistics under given responsibilities or states of the rows, which are those of their ids; without params."""
    states, dtype = States.of(data, sample_weight), _tree.float_dtype(data.data)
    mine = assigned[states.first]
    r = jax.nn.one_hot(mine, folded.model.n_components, dtype=dtype) if mine.ndim == 1 else mine.astype(dtype)
    r = jnp.where(states.weight[:, None] > 0, r * states.weight[:, None], 0)
    stats = _statistics(folded, None, Part(data, sample_weight), r, rows)
    return with_plan(folded.model.with_states(None, stats, states.rows, r), folded.plan)


def _statistics(folded: Any, params: Params | None, whole: Part, r: Array, n_rows: int) -> Stats:
    """Statistics of grouped rows under the responsibilities of their ids (u, k), which are times the weights."""

    def of_rows(ids: Array, weight: Array | None, r: Array) -> Array:
        mine = r[ids]
        return mine if weight is None else jnp.where((weight > 0)[:, None], mine, 0)

    if not is_additive(folded.model):
        rows, ids = whole.with_stand_in().present().data.data, jnp.asarray(whole.data.ids)
        return keep_rows(folded.model, params, rows, of_rows(ids, whole.sample_weight, r), folded.plan)

    def one_chunk(model: Any, both: tuple[Params, Array], part: Part) -> Stats:
        (params, r), rows = both, part.data.data
        if folded.can_prepare:
            rows = model.prepare(rows, columns_first=True)
        return model.statistics(params, rows, of_rows(part.data.ids, part.sample_weight, r))

    return folded.total(one_chunk, (params, r), whole, n_rows)


def summed_units(folded: Any, params: Params, data: Data, sample_weight: Array | None) -> Source:
    """The features of all rows summed over those of each id, if the model's densities are linear in them.

    And the sums have room; else the rows as they are.
    """
    units, plan = units_of(data), folded.plan
    assert units is not None
    one_row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), units.data)
    form = jax.eval_shape(lambda d: folded.model.prepare(d, columns_first=False), one_row)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(form)) * units.n_units
    if not ask.told(folded.model, "rows_add", False) or size > plan.hold_bytes:
        return GroupedRows(data, sample_weight)
    rows = folded.chunk_rows(params, data)

    def local(model: Any, params: Params, part: Part) -> Data:
        part = part.present()
        n = _tree.n_rows(part.data)
        weight = jnp.ones(n, bool) if part.sample_weight is None else part.sample_weight > 0

        ids, n_parts = parts_of_units(jnp.asarray(part.data.ids), jnp.arange(n, dtype=jnp.int32), n, units.n_units)

        def add(total: Data, i: Array) -> tuple[Data, None]:
            start = jnp.minimum(i * rows, n - rows)
            cut = lambda leaf: lax.dynamic_slice_in_dim(jnp.asarray(leaf), start, rows)  # noqa: E731
            chunk, own, there = jax.tree.map(cut, (part.data.data, ids, weight))
            there = there & (start + jnp.arange(rows) >= i * rows)
            values = model.prepare(chunk, columns_first=False)
            put = lambda sums, leaf: sums.at[own].add(  # noqa: E731
                jnp.where(there.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), mode="promise_in_bounds"
            )
            return jax.tree.map(put, total, values), None

        zeros = lambda leaf: jnp.zeros((units.n_units * n_parts, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        sums, _ = lax.scan(add, jax.tree.map(zeros, form), jnp.arange(-(-n // rows), dtype=jnp.int32))
        return jax.tree.map(lambda leaf: sum_of_parts(leaf, n_parts), sums)

    sums = folded.over_shards(local, params, Part(units, sample_weight).with_stand_in())
    return SummedUnits(sums, States.of(data, sample_weight))
