"""The scale of a column, which no one row in a hundred moves by much: the unit of floors and of starts.

It is that of the Cauchy distribution which fits best, by its likelihood at the maximum,

    scale² = constant · exp(2 min_{c,s} [Σ w log(s² + (x − c)²) / Σ w − log s]),

the variance where the column is normal. A row at distance D counts with 2 log(D) / n in the bracket, where it counts
with D² / n in the variance: one at 10⁷ in a thousand moves the scale by 3 %. It is equivariant, that of a·x + b is
|a|·scale, smooth, and made of sums over rows alone. Rows equal to the median count as many as the others at most, so
that a column of mostly one value has the scale of the rest, of which one row in a hundred is then a larger part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array

_NORMAL = 1.603775  # variance / (exp(min …) / 2)² of a normal
_STEPS = 48  # towards the best Cauchy distribution, at most
_ARRIVED = 1e-4  # in units of the scale: a step of Newton's method of this length ends 1e-8 away
_CLUMPS = 64
_EXACT_ROWS = 2**14  # of more rows a sample gives the place to begin
_SAMPLE = 2**13


class Clumps(NamedTuple):
    """Rows in up to m clumps for each column, from which scales of batches are put together.

    Attributes:
        weight: (m, d), 0 where there is none.
        place: (m, d), the centre of a clump.
        width: (m, d), the typical distance from it.
    """

    weight: Array
    place: Array
    width: Array


class Weighed(NamedTuple):
    """What stands behind moments and scales of a batch.

    Attributes:
        weight: of the entries that are present, (d,).
        clumps: of the rows.
    """

    weight: Array
    clumps: Clumps

    def merged(self, other: "Weighed") -> "Weighed":
        """That of both."""
        return Weighed(self.weight + other.weight, merged_clumps(self.clumps, other.clumps))

    def robust_variance(self, other: "Weighed") -> Array:
        """Squared scales of the rows of both: (d,)."""
        return variance_of_clumps(merged_clumps(self.clumps, other.clumps))


def weighed(x: Array, sample_weight: Array | None) -> Weighed:
    """What stands behind moments and scales of rows (n, d), NaN where an entry is missing."""
    observed = ~jnp.isnan(x)
    weight = observed.astype(x.dtype) * (1 if sample_weight is None else sample_weight[:, None])
    return Weighed(jnp.sum(weight, 0), clumps_of(jnp.where(observed, x, 0), weight))


def robust_variance(x: Array, weight: Array | None) -> Array:
    """Squared scales of the columns of x (n, d), 0 where one is constant or without weight: (d,).

    Args:
        x: rows, all of them present.
        weight: (n,), of entries (n, d), or None for ones.
    """
    return _NORMAL * jnp.square(_spread(x, _of_entries(x, weight), None)[1])


def clumps_of(x: Array, weight: Array | None) -> Clumps:
    """The rows themselves if they are few, else one clump."""
    n, d = x.shape
    weight = _of_entries(x, weight)
    if n > _CLUMPS:
        place, width = _spread(x, weight, None)
        rows = Clumps(jnp.sum(weight, 0)[None], place[None], width[None])
    else:
        rows = Clumps(weight, x, jnp.zeros_like(x))
    none = jnp.zeros((_CLUMPS - rows.place.shape[0], d), x.dtype)
    return Clumps(*(jnp.concatenate([leaf, none]) for leaf in rows))


def merged_clumps(clumps: Clumps, other: Clumps) -> Clumps:
    """The clumps of both, of which neighbours are joined until they are few enough."""
    both = Clumps(*(jnp.concatenate(pair) for pair in zip(clumps, other, strict=True)))
    unit = _spread(both.place, both.weight, both.width)[1]
    return jax.vmap(_joined, (1, 0), 1)(both, unit)


def variance_of_clumps(clumps: Clumps) -> Array:
    """Squared scales of the rows behind clumps, exactly if they are those rows, else nearly: (d,)."""
    return _NORMAL * jnp.square(_spread(clumps.place, clumps.weight, clumps.width)[1])


def _of_entries(x: Array, weight: Array | None) -> Array:
    if weight is None:
        return jnp.ones_like(x)
    return jnp.broadcast_to(weight if weight.ndim == 2 else weight[:, None], x.shape).astype(x.dtype)


def _spread(x: Array, weight: Array, width: Array | None) -> tuple[Array, Array]:
    """Centres, and exp(min …) / 2, 0 where nothing varies, of rows or clumps: (d,), (d,).

    Of many rows the place of the minimum is that of a sample, off by a hundredth of the scale: the value there is off
    by the square of that.
    """
    sample, mass = lax.stop_gradient(_sample(x, weight))
    median = _weighted_median(sample, mass)
    whole = _Cauchy(x, _untied(x, weight, median), width)
    still = lax.stop_gradient(whole)
    if sample.shape == x.shape:
        place = still.best(still.around(median), jnp.ones(x.shape[1:], bool))
    else:
        seen = _Cauchy(sample, _untied(sample, mass, median), width)
        few = jnp.sum(mass > 0, 0) < _CLUMPS  # rows with weight in the sample: all rows are asked instead
        place = seen.best(seen.around(median), ~few)
        place = _Place(*(jnp.where(few, a, b) for a, b in zip(still.around(still.mean()), place, strict=True)))
        place = still.best(place, few)
    centre, square = _following(whole, place.centre, place.square)
    return centre, jnp.where(place.varies, jnp.sqrt(square) * jnp.exp(whole.excess(centre, square)) / 2, 0)


class _Place(NamedTuple):
    """Of each column c, s² and whether anything varies, else s² is 1: (d,) each."""

    centre: Array
    square: Array
    varies: Array


@jax.custom_jvp
def _following(cauchy: "_Cauchy", centre: Array, square: Array) -> tuple[Array, Array]:
    """The place of the minimum, with the derivative that it has there."""
    return centre, square


@_following.defjvp
def _following_jvp(primals: tuple, tangents: tuple) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    place = _following(*primals)
    return place, jax.jvp(lambda cauchy: cauchy.corrected(*place), primals[:1], tangents[:1])[1]


def _untied(x: Array, weight: Array, median: Array) -> Array:
    """Shares of the rows in the sums; those equal to the median have at most the weight of the others."""
    tied = lax.stop_gradient(x) == median[None]
    ours, others = (jnp.sum(jnp.where(which, weight, 0), 0) for which in (tied, ~tied))
    capped = jnp.minimum(ours, others)
    total = capped + others
    share = 1 / jnp.where(total > 0, total, 1)
    return weight * jnp.where(tied, (capped / jnp.where(ours > 0, ours, 1) * share)[None], share[None])


class _Cauchy(NamedTuple):
    """Rows, shares that sum to 1 in each column, and the widths of clumps: each (n, d)."""

    x: Array
    share: Array
    width: Array | None

    def _terms(self, centre: Array, square: Array) -> tuple[Array, Array, Array]:
        """In units of s: deviations u, s² / D, and what of D is not s², with D = s² + width² + (x − c)²."""
        u = (self.x - centre[None]) * lax.rsqrt(square)[None]
        rest = jnp.square(u)
        rest = rest if self.width is None else rest + jnp.square(self.width) / square[None]
        return u, 1 / (1 + rest), rest

    def mean(self) -> Array:
        """(d,)."""
        return jnp.sum(self.share * self.x, 0)

    def around(self, start: Array) -> _Place:
        """The size that the rows have about a start, from which `best` finds its way."""
        distance = jnp.abs(self.x - start[None])
        distance = distance if self.width is None else jnp.hypot(distance, self.width)
        size = jnp.sum(self.share * distance, 0)
        return _Place(start, jnp.where(size > 0, jnp.square(size), 1), size > 0)

    def best(self, place: _Place, wanted: Array) -> _Place:
        """c and s², of the columns wanted, from afar, where they hardly depend on the start.

        Newton's method where it is near, else a step of EM; there is one stationary point (Copas 1975). A loop that has
        nothing to do takes no step, and all devices of sharded rows as many as each other.
        """
        moves = place.varies & wanted

        def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            i, centre, square, _ = state
            move_c, move_t, is_near = self._moves(centre, square)
            arrived = is_near & (jnp.maximum(jnp.abs(move_c), jnp.abs(move_t)) < _ARRIVED)
            centre = jnp.where(moves, centre + move_c * jnp.sqrt(square), centre)
            square = jnp.where(moves, square * jnp.exp(2 * move_t), square)
            return i + 1, centre, square, jnp.all(arrived | ~moves)

        def goes_on(state: tuple[Array, Array, Array, Array]) -> Array:
            return (state[0] < _STEPS) & ~state[3]

        begin = (jnp.array(0), place.centre, place.square, ~jnp.any(moves))
        _, centre, square, _ = lax.while_loop(goes_on, step, begin)
        return place._replace(centre=centre, square=square)

    def corrected(self, centre: Array, square: Array) -> tuple[Array, Array]:
        """One step of Newton's method, which carries the derivative."""
        move_c, move_t, is_near = self._moves(centre, square)
        # on a plateau, as between two clusters far apart, the value is the same wherever EM has stopped
        move_c, move_t = (jnp.where(is_near, move, 0) for move in (move_c, move_t))
        return centre + move_c * jnp.sqrt(square), square * jnp.exp(2 * move_t)

    def _moves(self, centre: Array, square: Array) -> tuple[Array, Array, Array]:
        """The moves of c, in units of s, and of log s: by Newton's method, and whether that is near, or else by EM."""
        u, inverse, _ = self._terms(centre, square)
        r = self.share * inverse
        near, shift = jnp.sum(r, 0), jnp.sum(r * u, 0)
        closer, tilt, bend = (jnp.sum(r * inverse * power, 0) for power in (1, u, jnp.square(u)))
        h_cc, h_ct, h_tt = lax.stop_gradient((near - 2 * bend, 2 * tilt, 2 * (near - closer)))
        slope_c, slope_t = -shift, near - 0.5
        det = h_cc * h_tt - jnp.square(h_ct)
        safe = jnp.where(det > 0, det, 1)
        move_c, move_t = (h_ct * slope_t - h_tt * slope_c) / safe, (h_ct * slope_c - h_cc * slope_t) / safe
        is_near = (det > 0) & (h_tt > 0) & (jnp.abs(move_c) < 0.3) & (jnp.abs(move_t) < 0.3)
        fewer = 2 * (1 - near)
        by_em = shift / jnp.where(near > 0, near, 1), 0.5 * jnp.log(jnp.where(fewer > 0, fewer, 1))
        return jnp.where(is_near, move_c, by_em[0]), jnp.where(is_near, move_t, by_em[1]), is_near

    def excess(self, centre: Array, square: Array) -> Array:
        """Σ share · log(D / s²)."""
        return jnp.sum(self.share * jnp.log1p(self._terms(centre, square)[2]), 0)


def _sample(x: Array, weight: Array) -> tuple[Array, Array]:
    """The rows and their weights; of many rows one of each block, here and there in it so as to follow no period."""
    n = x.shape[0]
    if n <= _EXACT_ROWS:
        return x, weight
    block, rest = np.uint32(n // _SAMPLE), np.uint32(n % _SAMPLE)
    number = jnp.arange(_SAMPLE, dtype=jnp.uint32)
    mixed = number * np.uint32(0x9E3779B9)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA77)
    first = number * block + number * rest // np.uint32(_SAMPLE)
    index = (first + (mixed ^ (mixed >> 13)) % block).astype(jnp.int32)
    # rows by number: of sharded ones every device finds its own, which dynamic slices do not
    return x.at[index].get(mode="clip"), weight.at[index].get(mode="clip")


def _weighted_median(rows: Array, weight: Array) -> Array:
    """The least value of each column up to which there is half of the weight: (d,).

    Found bit by bit in the floats, whose patterns are in the order of the numbers: exact in a fixed number of sums
    over the rows, without sorting, which would gather sharded rows.
    """
    n_bits = jnp.finfo(rows.dtype).bits
    unsigned = jnp.dtype(f"uint{n_bits}")
    top = jnp.asarray(1 << (n_bits - 1), unsigned)
    bits = lax.bitcast_convert_type(jnp.where(rows == 0, 0, rows), unsigned)
    keys = jnp.where(bits >= top, ~bits, bits | top)
    # a little less than half, so that the rounding of a sum does not decide between two rows
    target = 0.49995 * jnp.sum(weight, 0)

    def add_bit(i: Array, found: Array) -> Array:
        candidate = found | lax.shift_right_logical(top, jnp.asarray(i, unsigned))
        below = jnp.sum(jnp.where(keys < candidate[None], weight, 0), 0)
        return jnp.where(below < target, candidate, found)

    found = lax.fori_loop(0, n_bits, add_bit, jnp.zeros(rows.shape[1:], unsigned))
    value = lax.bitcast_convert_type(jnp.where(found >= top, found ^ top, ~found), rows.dtype)
    return jnp.where(target > 0, value, 0)


def _joined(clumps: Clumps, unit: Array) -> Clumps:
    """Half as many clumps of one column (2m,): those of small weight are joined, and those near in this unit."""
    order = jnp.argsort(jnp.where(clumps.weight > 0, clumps.place, jnp.inf))
    m = clumps.weight.shape[0] // 2
    position = jnp.arange(2 * m)
    square = jnp.where(unit > 0, jnp.square(unit), 1)

    def join(_: Array, c: Clumps) -> Clumps:
        after = jax.tree.map(lambda leaf: jnp.roll(leaf, -1), c)
        cost = (c.weight + after.weight) * jnp.log1p(jnp.square(after.place - c.place) / square)
        pairs = (c.weight > 0) & (after.weight > 0) & (position < 2 * m - 1)
        j = jnp.argmin(jnp.where(pairs, cost, jnp.inf))
        both = _join(c, after)
        fewer = jax.tree.map(
            lambda old, one, right: jnp.where(position < j, old, jnp.where(position == j, one, right)), c, both, after
        )
        fewer = fewer._replace(weight=fewer.weight.at[-1].set(0))
        return jax.tree.map(lambda new, old: jnp.where(jnp.sum(c.weight > 0) > m, new, old), fewer, c)

    joined = lax.fori_loop(0, m, join, jax.tree.map(lambda leaf: leaf[order], clumps))
    return jax.tree.map(lambda leaf: leaf[:m], joined)


def _join(a: Clumps, b: Clumps) -> Clumps:
    """One clump of two, at the place of the heavier: a far one does not move it."""
    first = a.weight >= b.weight
    heavy = jax.tree.map(lambda left, right: jnp.where(first, left, right), a, b)
    light = jax.tree.map(lambda left, right: jnp.where(first, right, left), a, b)
    distance = jnp.hypot(light.width, light.place - heavy.place)
    near = jnp.maximum(heavy.width, 0.1 * distance)  # its rows may all be equal
    weight = a.weight + b.weight
    logs = heavy.weight * jnp.log(near) + light.weight * jnp.log(distance)
    width = jnp.exp(logs / jnp.where(weight > 0, weight, 1))
    return Clumps(weight, heavy.place, jnp.where(distance > 0, width, near))
