"""Rows, and what is cut with them: what an E step takes besides model and params."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, Key, PyTree
from ..latent.finite import Given, Rule, Soft, unlabelled
from ..numerics import tree as _tree
from .present import some_present_row, without_absent_rows


@_tree.register
@dataclass(frozen=True)
class Part:
    """Some of the rows, with what belongs to them.

    Attributes:
        data: raw, `Labelled`, or prepared; leaves lead with the rows.
        sample_weight: (n,), or None for ones.
        rule: log joint → responsibilities; `Given` has a row for each of the data's.
        key: for rules that draw.
        stand_in: a row in the place of those of weight zero; None leaves them as they are.
    """

    data: Data
    sample_weight: Array | None = None
    rule: Rule = Soft()
    key: Key | None = None
    stand_in: PyTree = None

    def with_stand_in(self) -> "Part":
        """Weights of zero found, and a row that exists for theirs."""
        if self.sample_weight is None:
            return self
        return replace(self, stand_in=some_present_row(self.data, self.sample_weight))

    def present(self) -> "Part":
        """Rows of weight zero replaced: nobody looks at them."""
        if self.stand_in is None or self.sample_weight is None:
            return self
        return replace(self, data=without_absent_rows(self.data, self.sample_weight, self.stand_in))

    def specs(self, by_row: Any, everywhere: Any) -> "Part":
        """How each of it lies on a mesh whose axes cut the rows."""
        of_rule: Any = by_row if isinstance(self.rule, Given) else everywhere
        return Part(by_row, by_row, of_rule, everywhere, everywhere)


class Chunks(NamedTuple):
    """How n rows are cut; the last chunk overlaps the one before it, with weight zero where they share rows."""

    n: int
    rows: int

    @property
    def number(self) -> int:
        """How many there are."""
        return -(-self.n // self.rows)

    def cut(self, tree: PyTree, i: Array) -> PyTree:
        """The rows of chunk i; no padded copy is made."""
        start = jnp.minimum(i * self.rows, self.n - self.rows)
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, self.rows), tree)

    def weight(self, weight: Array | None, i: Array, dtype: Any) -> Array:
        """The sample weights of chunk i."""
        fresh = jnp.minimum(i * self.rows, self.n - self.rows) + jnp.arange(self.rows) >= i * self.rows
        return jnp.where(fresh, 1 if weight is None else self.cut(weight, i), 0).astype(dtype)

    def rule(self, rule: Rule, i: Array) -> Rule:
        """The rule for chunk i."""
        return self.cut(rule, i) if isinstance(rule, Given) else rule

    def part(self, whole: Part, i: Array) -> Part:
        """Chunk i of the whole; it draws from a key of its own."""
        dtype = _tree.float_dtype(unlabelled(whole.data))
        weight, rule = self.weight(whole.sample_weight, i, dtype), self.rule(whole.rule, i)
        return Part(self.cut(whole.data, i), weight, rule, key_of_part(whole.key, i), whole.stand_in)


def key_of_part(key: Key | None, i: Any) -> Key | None:
    """The key of the i-th chunk or shard."""
    return None if key is None else jax.random.fold_in(key, i)


def sum_over_chunks(fn: Callable[[Part], PyTree], whole: Part, rows: int) -> PyTree:
    """Σ over chunks of so many rows of fn(chunk)."""
    n = _tree.n_rows(whole.data)
    if rows >= n:
        return fn(whole)
    chunks = Chunks(n, rows)
    return compensated_sum(lambda i: fn(chunks.part(whole, i)), chunks.number)


def compensated_sum(fn: Callable[[Array], PyTree], n: int) -> PyTree:
    """Σ_i fn(i) with compensated addition (Kahan 1965)."""

    def add(carry: tuple[PyTree, PyTree], i: Array) -> tuple[tuple[PyTree, PyTree], None]:
        total, lost = carry
        term = jax.tree.map(jnp.subtract, fn(i), lost)
        new_total = jax.tree.map(jnp.add, total, term)
        new_lost = jax.tree.map(lambda new, old, part: (new - old) - part, new_total, total, term)
        return (new_total, new_lost), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, jnp.zeros((), jnp.int32)))
    (total, _), _ = lax.scan(add, (zero, zero), jnp.arange(n, dtype=jnp.int32))
    return total
