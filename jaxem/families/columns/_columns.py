"""Families whose log density is linear in few sufficient statistics of each entry.

    log f(x_i | j) = Σ_a [ Σ_s t_s(x_ia) η_sja + c_ja ] + h(x_i)

Fast path: `prepare` turns rows into T(x) = (1, t_1 …, t_S, h), and both arrows of EM are matrix products. Stable path:
the log density by a formula that keeps its digits. Where the columns are independent within a component, entries may
be `missing`: NaN is left out of the sum over columns, and each column counts the rows in which it was seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._typing import Array, Key
from ...contracts.domains import Domain, check_leaves
from ...contracts.space import InSpace
from ...fold.constants import merged_mean
from ...fold.features import Features, make_features
from ...fold.present import present_rows
from ...numerics import tree as _tree
from ...numerics.linalg import dot, sum_terms


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
class ColumnFamily(InSpace):
    """What families of rows (n, d) share, whatever their statistics.

    Attributes:
        pivot: set by `bind`, (d,): column means, where a component without weight is put.
    """

    pivot: Any = field(default=None, kw_only=True)

    additive: ClassVar[bool] = True
    reads_floats: ClassVar[bool] = True

    # what each family defines
    _bank: ClassVar[type]
    _domains: ClassVar[tuple[Domain, ...]]  # of the leaves of a bank
    _support: ClassVar[str]
    _legal: ClassVar[float]  # an entry in the support, in the place of a missing one
    _vague: ClassVar[float]  # the pivot of a column in which nothing was observed
    _is_valid: ClassVar[Callable[..., Array]]  # entries, the axis of the columns -> booleans
    _log_prob_rows: ClassVar[Callable[..., Array]]  # bank, legal rows, which entries are present -> (n, k)

    @property
    def _may_miss(self) -> bool:
        return False

    # --- constants of the data

    def bind(self, x: Array, sample_weight: Array | None) -> Self:
        """Sets the pivot: weighted column means of the entries observed, rows (n, d)."""
        x = present_rows(x, sample_weight)
        weight = jnp.ones(x.shape[0], x.dtype) if sample_weight is None else sample_weight
        seen = weight[:, None] if not self._may_miss else jnp.where(jnp.isnan(x), 0, weight[:, None])
        values = x if not self._may_miss else jnp.where(jnp.isnan(x), self._legal, x)
        total = jnp.broadcast_to(jnp.sum(seen, 0), x.shape[1:])
        mean = jnp.sum(values * seen, 0) / jnp.where(total > 0, total, 1)
        return replace(self, pivot=jnp.where(total > 0, mean, self._vague))

    def merged(self, seen: Array, other: Self, other_seen: Array) -> Self:
        """The family bound to the rows of both."""
        return replace(self, pivot=merged_mean(self.pivot, seen, other.pivot, other_seen))

    # --- densities

    def _filled(self, x: Array) -> tuple[Array, Array | None]:
        """Rows with legal entries where they are missing, and which are not; None where none may be."""
        if not self._may_miss:
            return x, None
        present = ~jnp.isnan(x)
        return jnp.where(present, x, self._legal), present

    def log_prob(self, bank: Any, x: Array) -> Array:
        """log f(x_i | j): (n, k); −inf outside of the support."""
        bank = jax.tree.map(jnp.asarray, bank)
        dtype = jax.tree.leaves(bank)[0].dtype
        x, present = self._filled(jnp.asarray(x, dtype))
        valid = self._is_valid(x, 1)
        log_prob = self._log_prob_rows(bank, jnp.where(valid, x, self._legal_row(x)), present)
        broken = jnp.any(jnp.isnan(x), 1, keepdims=True)  # to be seen
        outside = ~jnp.all(valid, 1, keepdims=True)
        return jnp.where(broken, jnp.nan, jnp.where(outside, -jnp.inf, log_prob))

    # --- known entries

    _simplex_axes: ClassVar[int] = 0  # trailing axes of a leaf over which it sums to one

    def estimate_held(self, bank: Any, stats: ColumnSums, held: Any, active: Array | None = None) -> Any:
        """The mode with some entries as `bank` has them, which the others do not depend on; `held` are booleans.

        Raises:
            ValueError: where a part of one distribution is held.
        """
        self._check_held(held)
        mode = self.estimate(bank, stats, active)  # type: ignore[attr-defined]
        return jax.tree.map(jnp.where, held, bank, mode)

    def frozen_coordinates(self, bank: Any, held: Any) -> Any:
        """Which free coordinates are held, shaped as `unconstrain(bank)`."""
        self._check_held(held)
        return held

    def _check_held(self, held: Any) -> None:
        axes = tuple(range(-self._simplex_axes, 0))
        if any(not np.array_equal(flags, held[0]) for flags in held[1:]):
            raise ValueError(
                f"mask.components: {type(self).__name__} can hold all of {', '.join(held._fields)} of an entry or "
                "nothing, as they are estimated together; got a part."
            )
        for name, flags in zip(held._fields, held, strict=True):
            if np.any(np.any(flags, axes) & ~np.all(flags, axes)):
                raise ValueError(
                    f"mask.components.{name}: {type(self).__name__} can hold all of a distribution that sums to one or "
                    "nothing of it, got a part; hold all of it."
                )

    # --- bookkeeping

    def component_axes(self) -> Any:
        """Every leaf leads with the components."""
        return self._bank(*[0] * len(self._bank._fields))  # type: ignore[attr-defined]

    def points(self, x: Array) -> Array:
        """Rows as points of a Euclidean space, for k-means; a missing entry lies at the mean of its column."""
        return jnp.where(jnp.isnan(x), self.pivot[None], x) if self._may_miss else x

    def readable(self, x: Array) -> Array:
        """The rows with a number where NaN is no fault."""
        return self._filled(x)[0]

    def informative(self, x: Array) -> Array | None:
        """Which rows have an entry: (n,); None where none may be missing."""
        return ~jnp.all(jnp.isnan(x), 1) if self._may_miss and jnp.ndim(x) == 2 else None

    def sample_like(self, bank: Any, key: Key, z: Array, x: Array) -> Array:
        """One row of component z_i for each row of x (n, d), with its missing entries: (n, d)."""
        drawn = self.sample(bank, key, z)  # type: ignore[attr-defined]
        return jnp.where(jnp.isnan(x), jnp.nan, drawn) if self._may_miss else drawn

    def supported(self, x: Array) -> tuple[Array, Array]:
        """Rows with legal entries in the place of those outside of the support, and which rows are not: (n,)."""
        filled, _ = self._filled(x)
        inside = jnp.all(self._is_valid(filled, 1), 1) | jnp.any(jnp.isnan(filled), 1)  # NaN stays to be seen
        return jnp.where(inside[:, None], x, self._legal_row(x)), inside

    def _legal_row(self, x: Array) -> Array:
        """A row (1, d) in the support, in the place of one that is not."""
        return jnp.full((1, x.shape[1]), self._legal, jnp.result_type(x.dtype, 1.0))

    def n_parameters(self, bank: Any, n_components: Any) -> Any:
        """Free parameters of so many components."""
        k = jax.tree.leaves(bank)[0].shape[0]
        return n_components * sum(leaf.size // k for leaf in jax.tree.leaves(bank))

    def validate(self, bank: Any, x: Any, n_components: int) -> None:
        """Raises a ValueError or TypeError if shapes or types do not fit."""
        if not isinstance(bank, self._bank):
            raise TypeError(f"params.components: expected {self._bank.__name__}, got {type(bank).__name__}.")
        d = self.validate_data(x)
        for name, leaf, want in zip(bank._fields, bank, self._shapes(n_components, d), strict=True):  # type: ignore[attr-defined]
            if tuple(jnp.shape(leaf)) != want:
                raise ValueError(
                    f"params.components.{name}: expected shape {want} for {type(self).__name__} with "
                    f"{n_components} components and {d} columns, got {tuple(jnp.shape(leaf))}."
                )

    def check_params(self, bank: Any, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank lies outside of the parameter space."""
        check_leaves("params.components", bank, self._domains, lanes=lanes)

    def _shapes(self, k: int, d: int) -> tuple[tuple[int, ...], ...]:
        return ((k, d),) * len(self._bank._fields)  # type: ignore[attr-defined]

    def validate_data(self, x: Any) -> int:
        """Raises a ValueError unless x is (n, d) and the prior fits; returns d."""
        if not hasattr(x, "ndim") or x.ndim != 2:
            got = f"shape {tuple(x.shape)}" if hasattr(x, "ndim") else type(x).__name__
            raise ValueError(f"data: expected an array of shape (n, d), got {got}; a single column is x[:, None].")
        d = x.shape[1]
        prior = getattr(self, "prior", None)
        names = [] if prior is None else [f.name for f in fields(prior)]
        for name in names:
            shape = tuple(jnp.shape(getattr(prior, name)))
            if shape not in self._prior_shapes(d):
                allowed = " or ".join(str(each) for each in self._prior_shapes(d))
                raise ValueError(f"prior.{name}: expected shape {allowed} on {d} columns, got {shape}.")
        return d

    def _prior_shapes(self, d: int) -> tuple[tuple[int, ...], ...]:
        return ((), (d,))

    def _spread(self, leaf: Any, like: Array) -> Array:
        """A leaf of the prior over the shape of one component of `like`, with a leading axis: (1, d)."""
        return jnp.broadcast_to(jnp.asarray(leaf, like.dtype), like.shape[1:])[None]

    def check_data(self, x: Any, sample_weight: Array | None) -> None:
        """Raises a ValueError that names the first entry of concrete data outside of the support."""
        # the prior may be traced, and has no say in this
        bare = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), _tree.float_dtype(x)), self)
        with jax.ensure_compile_time_eval():
            bad = np.asarray(_outside(bare, jnp.asarray(x), sample_weight))
        named_outside(x, bad, self._support, type(self).__name__)


def named_outside(x: Any, bad: np.ndarray, support: str, name: str) -> None:
    """Raises a ValueError that names the first of the bad entries (n, d), if there is one."""
    if bad.any():
        rows = np.flatnonzero(bad.any(1))
        i, a = int(rows[0]), int(np.argmax(bad[rows[0]]))
        raise ValueError(
            f"data: expected {support} for {name}, got {np.asarray(x)[i, a]} in row {i}, column {a} ({len(rows)} such "
            "rows in all); leave them out or give them sample_weight 0."
        )


@dataclass(frozen=True)
class LinearFamily(ColumnFamily):
    """A family whose log density is linear in few statistics of a row: two matrix products."""

    _has_base: ClassVar[bool] = False
    rows_add: ClassVar[bool] = True  # prepared rows of one state may be added: densities are linear in them
    costly_features: ClassVar[bool] = False  # whether T takes special functions: then it is kept, where that may pay
    _terms: ClassVar[Callable[..., list[Array]]]  # entries -> t_s
    _natural: ClassVar[Callable[..., tuple[list[Array], Array | None]]]  # bank -> η_s (k, d), c (k, d) or None for 0
    _base: ClassVar[Callable[..., Array]]  # rows, which entries are present, the axis of the columns, kept -> h

    @property
    def _counts_seen(self) -> bool:
        """Whether the log-normaliser c is a statistic by column, because entries are missing."""
        return self._may_miss

    def prepare(self, x: Array, n_components: int | None) -> Features:
        """T(x) of the fast path."""
        return make_features(x, self._columns, n_components)

    def _columns(self, x: Array, axis: int) -> list[Array]:
        ones = jnp.ones_like(lax.slice_in_dim(x, 0, 1, axis=axis))
        x, present = self._filled(x)
        terms = self._terms_along(
            jnp.where(self._is_valid(x, axis), x, jnp.nan), axis
        )  # outside of the support: no likelihood
        if present is not None:
            terms = [jnp.where(present, term, 0) for term in terms]
        seen = [present.astype(x.dtype)] if self._counts_seen and present is not None else []
        last = [self._base(x, present, axis)] if self._has_base else []
        return [ones, *seen, *terms, *last]

    def _terms_along(self, x: Array, axis: int) -> list[Array]:
        """`_terms`, where they depend on the column too; `axis` is that of the columns."""
        return self._terms(x)

    def natural(self, bank: Any, log_weights: Array | float = 0.0) -> Array:
        """Natural parameters of T, the log-normaliser (plus log weights) first: (k, f); −inf as a finite number."""
        terms, constant = self._natural(bank)
        first = jnp.maximum(log_weights, jnp.finfo(terms[0].dtype).min / 4)
        seen = []
        if constant is not None and self._counts_seen:
            seen = [constant]
        elif constant is not None:
            first = first + jnp.sum(constant, 1)
        first = jnp.broadcast_to(first, terms[0].shape[:1])[:, None]
        last = [jnp.ones_like(first)] if self._has_base else []
        return jnp.concatenate([first, *seen, *terms, *last], 1)

    def log_prob(self, bank: Any, x: Array | Features) -> Array:
        """log f(x_i | j): (n, k); −inf outside of the support."""
        if isinstance(x, Features):
            bank = jax.tree.map(jnp.asarray, bank)
            return self.log_joint(bank, jnp.zeros((), jax.tree.leaves(bank)[0].dtype), x)
        return super().log_prob(bank, x)

    def log_joint(self, bank: Any, log_weights: Array, x: Array | Features) -> Array:
        """log w_j + log f(x_i | j): (n, k)."""
        if isinstance(x, Features):
            return low_to_minus_inf(x.logits(self.natural(bank, log_weights)))
        return self.log_prob(bank, x) + log_weights[None]

    def trusted(self, bank: Any) -> Array:
        """Whether the fast path keeps its digits: ()."""
        return jnp.ones((), bool)

    # --- statistics

    def statistics(self, bank: Any, x: Array | Features, responsibilities: Array) -> ColumnSums:
        """Sums weighted with responsibilities (n, k). `bank` is not used."""
        if isinstance(x, Features):
            sums, d = x.weighted_sums(responsibilities), x.n_linear
        else:
            d = x.shape[1]
            sums = jnp.concatenate([dot(responsibilities.T, part) for part in self._columns(x, 1)], 1)
        first = 1 + d if self._counts_seen else 1
        last = sums.shape[1] - self._has_base
        totals = tuple(sums[:, i : i + d] for i in range(first, last, d))
        observed = sums[:, 1:first] if self._counts_seen else sums[:, :1]
        return ColumnSums(
            sums[:, 0],
            sum_terms(list(totals)) if self._may_miss and not self._counts_seen else observed,
            totals,
            sums[:, -1] if self._has_base else jnp.zeros_like(sums[:, 0]),
        )

    def expected_log_prob(self, bank: Any, stats: ColumnSums) -> Array:
        """Σ_ij r_ij log f(x_i | j): ()."""
        terms, constant = self._natural(bank)
        total = jnp.sum(stats.base)
        if constant is not None:
            total = total + jnp.sum(stats.observed * constant)
        for eta, sums in zip(terms, stats.totals, strict=True):
            total = total + jnp.sum(eta * sums)
        return low_to_minus_inf(total)


@dataclass(frozen=True)
class SeparateColumns(ColumnFamily):
    """Columns that are independent within a component, so that an entry may be missing.

    Attributes:
        missing: whether NaN marks an entry that was not observed; static.
    """

    missing: bool = field(metadata={"static": True}, default=False, kw_only=True)

    @property
    def _may_miss(self) -> bool:
        return self.missing

    _entry: ClassVar[Callable[..., Array]]  # bank of one component (1, d), entries (n, d) -> log density (n, d)

    def _log_prob_rows(self, bank: Any, x: Array, present: Array | None) -> Array:
        def one(j: Array) -> Array:
            entries = self._entry(jax.tree.map(lambda leaf: leaf[j][None], bank), x)
            return jnp.sum(entries if present is None else jnp.where(present, entries, 0), 1)

        return lax.map(one, jnp.arange(jax.tree.leaves(bank)[0].shape[0])).T


@dataclass(frozen=True)
class IndependentColumns(SeparateColumns, LinearFamily):
    """Both: independent columns, and two matrix products."""


@jax.jit
def _outside(family: ColumnFamily, x: Array, sample_weight: Array | None) -> Array:
    bad = ~family._is_valid(family._filled(x)[0], 1)
    return bad if sample_weight is None else bad & (sample_weight > 0)[:, None]


def low_to_minus_inf(values: Array) -> Array:
    """−inf for what a product made of `log_or_low`."""
    return jnp.where(values <= jnp.finfo(values.dtype).min / 8, -jnp.inf, values)


def log_or_low(p: Array) -> Array:
    """log p, and a very low number that is finite where p is 0: in a matrix product it meets zeros."""
    zero = p == 0  # not "is not positive": NaN must come through
    return jnp.where(zero, jnp.finfo(p.dtype).min / 4, jnp.log(jnp.where(zero, 1, p)))


def log_ratio_or_low(p: Array, place: Array) -> Array:
    """`log_or_low` of p / place, to its own digits where p is close to it: in a product it meets large counts."""
    near = jnp.abs(p - place) < 0.5 * place
    step = jnp.where(near, p - place, 0) / place
    return jnp.where(near, jnp.log1p(step), log_or_low(jnp.where(near, 1, p / place)))


def smallest(dtype: Any) -> float:
    """A number next to 0 whose powers to −3 are finite: those of second derivatives of its logarithm."""
    return float(jnp.finfo(dtype).tiny) ** (1 / 3)


def is_nil(p: Array) -> Array:
    """Whether p is 0, or came back from free coordinates that stand for it."""
    return p <= smallest(p.dtype)


def is_count(x: Array) -> Array:
    """Whether an entry is a finite non-negative integer."""
    return (x >= 0) & (x == jnp.floor(x)) & (x < jnp.inf)


# --- free coordinates of probabilities: log-ratios to a reference that is on no boundary


def _others(reference: Array, c: int) -> Array:
    """The indices but the reference (…,): (…, c − 1)."""
    index = jnp.arange(c - 1).reshape((1,) * reference.ndim + (-1,))
    return index + (index >= reference[..., None])


def others_of(values: Array, reference: Array) -> Array:
    """Values (…, c) without those at the reference (…,): (…, c − 1)."""
    return jnp.take_along_axis(values, _others(reference, values.shape[-1]), -1)


def log_ratios(prob: Array, reference: Array) -> Array:
    """log prob relative to that at the reference: (…, c − 1). A probability of 0 counts as a very small number."""
    log_prob = jnp.log(jnp.maximum(prob, smallest(prob.dtype)))
    return others_of(log_prob, reference) - jnp.take_along_axis(log_prob, reference[..., None], -1)


def from_log_ratios(ratios: Array, reference: Array) -> Array:
    """Inverse of `log_ratios`."""
    c = ratios.shape[-1] + 1
    index, own = jnp.arange(c).reshape((1,) * reference.ndim + (-1,)), reference[..., None]
    place = jnp.where(index == own, c - 1, index - (index > own))
    zero = jnp.zeros((*ratios.shape[:-1], 1), ratios.dtype)
    return jax.nn.softmax(jnp.take_along_axis(jnp.concatenate([ratios, zero], -1), place, -1), -1)
