"""Families whose columns are independent within a component, and whose entries have few sufficient statistics.

    log f(x_i | j) = Σ_a [ Σ_s t_s(x_ia) η_sja + c_ja ] + h(x_i)

Fast path: `prepare` turns rows into T(x) = (1, t_1 …, t_S, h), and both arrows of EM are matrix products. Stable path:
the log density of every entry by a formula that keeps its digits, one component at a time. With `missing`, entries
that are NaN are left out of the sum over columns, and each column counts the rows in which it was seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._linalg import dot
from .._typing import Array
from ..features import Features, make_features
from ..fold import present_rows


class ColumnSums(NamedTuple):
    """Sums over rows, weighted with responsibilities.

    Attributes:
        count: (k,), of the rows.
        observed: (k, d), of the rows in which the column was seen; (k, 1) where none is missing.
        totals: of each sufficient statistic, (k, d).
        base: (k,), of h(x).
    """

    count: Array
    observed: Array
    totals: tuple[Array, ...]
    base: Array


@dataclass(frozen=True)
class IndependentColumns:
    """What these families share; each adds its statistics, natural parameters and the mode of its expected log density.

    Attributes:
        missing: whether NaN marks an entry that was not observed; static.
        pivot: set by `bind`, (d,): column means, where a component without weight is put.
    """

    missing: bool = field(metadata={"static": True}, default=False)
    pivot: Any = None

    additive: ClassVar[bool] = True

    # what each family defines, on arrays of entries
    _bank: ClassVar[type]
    _support: ClassVar[str]
    _legal: ClassVar[float]  # an entry in the support, in the place of a missing one
    _is_valid: ClassVar[Callable[..., Array]]
    _terms: ClassVar[Callable[..., list[Array]]]
    _natural: ClassVar[Callable[..., tuple[list[Array], Array]]]
    _entry: ClassVar[Callable[..., Array]]

    def _base(self, x: Array, axis: int) -> Array | None:
        """log h of entries, the columns of x along `axis`; None is 0."""
        return None

    # --- constants of the data

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets the pivot: weighted column means of the entries observed, rows (n, d)."""
        x = present_rows(x, sample_weight)
        values, seen = self._seen(x)
        weight = jnp.ones(x.shape[0], x.dtype) if sample_weight is None else sample_weight
        if seen is None:
            total = jnp.broadcast_to(jnp.sum(weight), (x.shape[1],))
        else:
            total = dot(weight, seen)
        # a product of means of chunks of a row would be as good; this sum is made once
        mean = jnp.sum(values * weight[:, None], 0) / jnp.where(total > 0, total, 1)
        return replace(self, pivot=jnp.where(total > 0, mean, self._legal))

    def _seen(self, x: Array) -> tuple[Array, Array | None]:
        """Entries, 0 where they are missing, and 1 where they are not; None where nothing is missing."""
        if not self.missing:
            return x, None
        present = ~jnp.isnan(x)
        return jnp.where(present, x, 0), present.astype(x.dtype)

    # --- densities

    def prepare(self, x: Array, n_components: int | None) -> Features:
        """T(x) of the fast path."""
        return make_features(x, self._columns, n_components)

    def _columns(self, x: Array, axis: int) -> list[Array]:
        ones = jnp.ones_like(lax.slice_in_dim(x, 0, 1, axis=axis))
        if not self.missing:
            terms = self._terms(jnp.where(self._is_valid(x), x, jnp.nan))  # outside of the support: no likelihood
            base, seen = self._base(x, axis), []
        else:
            present = ~jnp.isnan(x)
            x = jnp.where(present, x, self._legal)
            terms = self._terms(jnp.where(self._is_valid(x), x, jnp.nan))
            terms = [jnp.where(present, term, 0) for term in terms]
            base, seen = self._base(x, axis), [present.astype(x.dtype)]
            base = None if base is None else jnp.where(present, base, 0)
        last = [] if base is None else [jnp.sum(base, axis, keepdims=True)]
        return [ones, *seen, *terms, *last]

    @property
    def _has_base(self) -> bool:
        return type(self)._base is not IndependentColumns._base

    def natural(self, bank: Any, log_weights: Array | float = 0.0) -> Array:
        """Natural parameters of T, the log-normaliser (plus log weights) first: (k, f); −inf as a finite number."""
        terms, constant = self._natural(bank)
        first = jnp.maximum(log_weights, jnp.finfo(constant.dtype).min / 4)
        seen = [constant] if self.missing else []
        if not self.missing:
            first = first + jnp.sum(constant, 1)
        first = jnp.broadcast_to(first, constant.shape[:1])[:, None]
        last = [jnp.ones_like(first)] if self._has_base else []
        return jnp.concatenate([first, *seen, *terms, *last], 1)

    def log_prob(self, bank: Any, x: Array | Features) -> Array:
        """log f(x_i | j): (n, k); −inf outside of the support."""
        if isinstance(x, Features):
            return self.log_joint(bank, jnp.zeros((), jax.tree.leaves(bank)[0].dtype), x)
        bank = jax.tree.map(jnp.asarray, bank)
        leaves = jax.tree.leaves(bank)
        x = jnp.asarray(x, leaves[0].dtype)
        present = ~jnp.isnan(x) if self.missing else None
        x = x if present is None else jnp.where(present, x, self._legal)
        valid = self._is_valid(x) | jnp.isnan(x)  # NaN stays to be seen
        safe = jnp.where(valid, x, self._legal)

        def one(j: Array) -> Array:
            row = jax.tree.map(lambda leaf: leaf[j][None], bank)
            entries = jnp.where(valid, self._entry(row, safe), -jnp.inf)
            return jnp.sum(entries if present is None else jnp.where(present, entries, 0), 1)

        return lax.map(one, jnp.arange(leaves[0].shape[0])).T

    def log_joint(self, bank: Any, log_weights: Array, x: Array | Features) -> Array:
        """log w_j + log f(x_i | j): (n, k)."""
        if isinstance(x, Features):
            logits = x.logits(self.natural(bank, log_weights))
            # −inf entered the product as a very low number
            return jnp.where(logits <= jnp.finfo(logits.dtype).min / 8, -jnp.inf, logits)
        return self.log_prob(bank, x) + log_weights[None]

    def trusted(self, bank: Any) -> Array:
        """Whether the fast path keeps its digits: ()."""
        return jnp.ones((), bool)

    # --- statistics

    def statistics(self, bank: Any, x: Array | Features, responsibilities: Array) -> ColumnSums:
        """Sums weighted with responsibilities (n, k). `bank` is not used."""
        if isinstance(x, Features):
            sums = x.weighted_sums(responsibilities)
        else:
            sums = jnp.concatenate([dot(responsibilities.T, part) for part in self._columns(x, 1)], 1)
        d, k = (x.n_linear if isinstance(x, Features) else x.shape[1]), sums.shape[0]
        first = 1 + d if self.missing else 1
        last = sums.shape[1] - self._has_base
        return ColumnSums(
            sums[:, 0],
            sums[:, 1:first] if self.missing else sums[:, :1],
            tuple(sums[:, i : i + d] for i in range(first, last, d)),
            sums[:, -1] if self._has_base else jnp.zeros(k, sums.dtype),
        )

    def expected_log_prob(self, bank: Any, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        terms, constant = self._natural(bank)
        total = jnp.sum(stats.base) + jnp.sum(stats.observed * constant)
        for eta, sums in zip(terms, stats.totals, strict=True):
            total = total + jnp.sum(eta * sums)
        return jnp.where(total <= jnp.finfo(total.dtype).min / 8, -jnp.inf, total)

    # --- bookkeeping

    def component_axes(self) -> Any:
        """Every leaf leads with the components."""
        return self._bank(*[0] * len(self._bank._fields))  # type: ignore[attr-defined]

    def points(self, x: Array) -> Array:
        """Rows as points of a Euclidean space, for k-means; a missing entry lies at the mean of its column."""
        return x if self.pivot is None or not self.missing else jnp.where(jnp.isnan(x), self.pivot[None], x)

    def readable(self, x: Array) -> Array:
        """The rows with a number where NaN is no fault."""
        return jnp.where(jnp.isnan(x), self._legal, x) if self.missing else x

    def n_parameters(self, bank: Any, n_components: Any) -> Any:
        """Free parameters of so many components."""
        k = jax.tree.leaves(bank)[0].shape[0]
        return n_components * sum(leaf.size // k for leaf in jax.tree.leaves(bank))

    def validate(self, bank: Any, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, self._bank):
            raise TypeError(f"params.components: expected {self._bank.__name__}, got {type(bank).__name__}.")
        d = self.validate_data(x)
        for name, leaf, want in zip(self._bank._fields, bank, self._shapes(n_components, d), strict=True):  # type: ignore[attr-defined]
            if tuple(jnp.shape(leaf)) != want:
                raise ValueError(
                    f"params.components.{name}: expected shape {want} for {type(self).__name__} with "
                    f"{n_components} components and {d} columns, got {tuple(jnp.shape(leaf))}."
                )

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], ...]:
        return ((k, d),) * len(self._bank._fields)  # type: ignore[attr-defined]

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d); returns d."""
        if not hasattr(x, "ndim") or x.ndim != 2:
            got = f"shape {tuple(x.shape)}" if hasattr(x, "ndim") else type(x).__name__
            raise ValueError(f"data: expected an array of shape (n, d), got {got}; a single column is x[:, None].")
        return x.shape[1]

    def check_data(self, x: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError that names the first entries of concrete data outside of the support."""
        with jax.ensure_compile_time_eval():
            bad = np.asarray(_outside(self, jnp.asarray(x), sample_weight))
        if bad.any():
            rows = np.flatnonzero(bad.any(1))
            i, a = rows[0], int(np.argmax(bad[rows[0]]))
            raise ValueError(
                f"data: expected {self._support} for {type(self).__name__}, got {np.asarray(x)[i, a]} in row {i}, "
                f"column {a}, and in {len(rows)} rows in all; leave them out or give them sample_weight 0."
            )


@jax.jit
def _outside(family: IndependentColumns, x: Array, sample_weight: Array | None) -> Array:
    bad = ~family._is_valid(x)
    bad = bad & ~jnp.isnan(x) if family.missing else bad
    return bad if sample_weight is None else bad & (sample_weight > 0)[:, None]


def log_or_low(p: Array) -> Array:
    """log p, and a very low number that is finite where p is 0: in a matrix product it meets zeros."""
    zero = p == 0  # not "is not positive": NaN must come through
    return jnp.where(zero, jnp.finfo(p.dtype).min / 4, jnp.log(jnp.where(zero, 1, p)))
