"""Starts. Each method yields states (n,) or responsibilities (n, k); one M step of the model makes them params.

So every method serves every model. All are jit- and vmap-able and honour sample weights: a row of weight zero is
never chosen. `active` (k,) leaves components out.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows, check_weight_shape
from ..numerics.linalg import components_first, dot
from ..numerics.processes import everywhere, lying_as
from .finite import as_read, unlabelled
from .informative import informed_weight
from .units import mean_by_unit, unit_weight


class Initializer(Protocol):
    """Makes states (n,) or responsibilities (n, k) to start from; a plain function will do.

    Called with a key, points (n, d), k, sample weights (n,) or None and the active components (k,) or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> def by_first_column(key, points, k, sample_weight, active):  # equally many rows in each state
        ...     return jnp.argsort(jnp.argsort(points[:, 0])) * k // len(points)
        >>> x = jnp.array([[9.0], [0.0], [8.0], [1.0]])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> model.init(jax.random.key(0), x, method=by_first_column).components.rate.ravel()
        Array([0.5, 8.5], dtype=...)
    """

    def __call__(  # noqa: D102
        self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None
    ) -> Array: ...


@_tree.register
@dataclass(frozen=True)
class _Custom:
    """An initialiser that is a plain function."""

    method: Any = field(metadata={"static": True})

    def __call__(self, *arguments: Any) -> Array:
        return self.method(*arguments)


def as_initializer(method: Any) -> Any:
    """The method in a form that passes into jit: a plain function becomes structure."""
    plain = any(callable(leaf) for leaf in jax.tree.leaves(method))
    return _Custom(method) if plain else method


class _Rows(NamedTuple):
    """Points scaled to unit variance per column, and their weights."""

    points: Array
    weight: Array


def _scaled(points: Array, sample_weight: Array | None) -> _Rows:
    n = points.shape[0]
    weight = jnp.ones(n, points.dtype) if sample_weight is None else sample_weight.astype(points.dtype)
    total = jnp.sum(weight)
    origin = points[0 if sample_weight is None else jnp.argmax(weight > 0)]  # of constants: long to compile
    y = jnp.where((weight > 0)[:, None], points - origin[None], 0)
    mean = jnp.sum(y * weight[:, None], 0) / jnp.where(total > 0, total, 1)
    y = y - mean[None]
    variance = jnp.sum(jnp.square(y) * weight[:, None], 0) / jnp.where(total > 0, total, 1)
    scale = jnp.where(variance > 0, lax.rsqrt(jnp.where(variance > 0, variance, 1)), 0)
    return _Rows(y * scale[None], weight)


def _draw_row(where: Array, mass: Array) -> Array:
    """Index of a row with probability proportional to `mass` (n,), by inverting its cumulative sums in blocks.

    The place is the first of two uniform numbers `where` (2,), and in the gaps of eps that it leaves the second, so
    that rows are told apart where float32 counts no further. No sum has many more than √n terms. Rows of mass 0 are
    drawn only where all are 0, and change nothing, wherever they stand and however many they are.
    """
    n, eps = mass.shape[0], jnp.finfo(mass.dtype).eps
    width = math.isqrt(n - 1) + 1
    blocks = jnp.pad(mass, (0, -n % width)).reshape(-1, width)
    sums = jnp.cumsum(jnp.sum(blocks, 1))
    place = where[0] * sums[-1]
    block = jnp.minimum(jnp.sum(sums <= place), len(blocks) - 1)
    within = jnp.cumsum(blocks[block])
    rest = place - jnp.where(block > 0, sums[block - 1], 0) + where[1] * eps * sums[-1]
    rest = jnp.clip(rest, 0, within[-1] * (1 - eps))  # rounding leads into no other block
    return jnp.minimum(block * width + jnp.sum(within <= rest), n - 1)


def _squared_distance(points: Array, centre: Array) -> Array:
    return jnp.sum(jnp.square(points - centre[None]), 1)


def _seeds(key: Key, rows: _Rows, k: int, active: Array | None) -> Array:
    """k-means++ (Arthur & Vassilvitskii 2007): each next centre drawn in proportion to the squared distance.

    Active components are seeded first.
    """
    where = jax.random.uniform(key, (k, 2), rows.points.dtype)
    first = rows.points[_draw_row(where[0], rows.weight)]
    centres = jnp.zeros((k, rows.points.shape[1]), rows.points.dtype).at[0].set(first)

    def add(j: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, nearest = carry
        mass = rows.weight * nearest
        mass = jnp.where(jnp.max(mass) > 0, mass, rows.weight)  # all rows lie on centres: any will do
        centre = rows.points[_draw_row(where[j], mass)]
        return centres.at[j].set(centre), jnp.minimum(nearest, _squared_distance(rows.points, centre))

    centres = lax.fori_loop(1, k, add, (centres, _squared_distance(rows.points, first)))[0]
    if active is None:
        return centres
    turn = jnp.argsort(jnp.argsort(~jnp.asarray(active), stable=True), stable=True)
    return centres[turn]


def _nearest(points: Array, centres: Array, active: Array | None) -> Array:
    """Index of the nearest active centre."""
    norms = jnp.sum(jnp.square(centres), 1)
    norms = norms if active is None else jnp.where(active, norms, jnp.inf)
    if components_first(points.shape[0]):
        return jnp.argmin(norms[:, None] - 2 * dot(centres, points.T), 0)
    return jnp.argmin(norms[None] - 2 * dot(points, centres.T), 1)


def _lloyd(rows: _Rows, centres: Array, active: Array | None, n_steps: Any) -> Array:
    """Lloyd's iterations; a centre without rows stays."""
    k = centres.shape[0]

    def step(_: int, centres: Array) -> Array:
        state = _nearest(rows.points, centres, active)
        member = jnp.where(state[None] == jnp.arange(k)[:, None], rows.weight[None], 0)
        count = jnp.sum(member, 1)
        mean = dot(member, rows.points) / jnp.where(count > 0, count, 1)[:, None]
        return jnp.where((count > 0)[:, None], mean, centres)

    return lax.fori_loop(0, n_steps, step, centres)


@_tree.register
@dataclass(frozen=True)
class KMeans:
    """k-means++ seeds and a few Lloyd steps, in columns scaled to unit variance; each row to its nearest centre.

    More Lloyd steps make single starts a little better, but restarts alike: they all end in the same partition.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(0), x, method=jaxem.KMeans(n_steps=4))  # or init=… of fit_restarts
        >>> jnp.sort(start.components.mean[:, 0]).round(2)
        Array([-2.5,  2.5], dtype=...)
    """

    n_steps: int = field(metadata={"static": True}, default=2)

    groups: ClassVar[bool] = True  # states are groups of rows, in no order

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        rows = _scaled(points, sample_weight)
        centres = _lloyd(rows, _seeds(key, rows, k, active), active, self.n_steps)
        return _nearest(rows.points, centres, active)


@_tree.register
@dataclass(frozen=True)
class RandomPoints:
    """k rows drawn without replacement, in proportion to their weight; each row to the nearest of them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0], [9.0]])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> start = model.init(jax.random.key(0), x, method=jaxem.RandomPoints())  # or init=… of fit_restarts
        >>> jnp.sort(start.components.rate.ravel())
        Array([0., 9.], dtype=...)
    """

    groups: ClassVar[bool] = True

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        rows = _scaled(points, sample_weight)
        score = jnp.log(rows.weight) + jax.random.gumbel(key, rows.weight.shape, rows.weight.dtype)
        chosen = lax.top_k(score, min(k, points.shape[0]))[1]
        chosen = jnp.resize(chosen, (k,))
        return _nearest(rows.points, rows.points[chosen], active)


@_tree.register
@dataclass(frozen=True)
class RandomResponsibilities:
    """Responsibilities uniform on the simplex, independently for each row.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(0), x, method=jaxem.RandomResponsibilities())
        >>> bool(jnp.all(jnp.abs(start.components.mean) < 1))  # all components start near the mean of the data
        True
    """

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        mass = jax.random.exponential(key, (points.shape[0], k), points.dtype)
        mass = mass if active is None else jnp.where(active[None], mass, 0)
        return mass / jnp.sum(mass, 1, keepdims=True)


@_tree.register
@dataclass(frozen=True)
class Labels:
    """Given states: integers (n,) from 0 to k − 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0], [2.0], [10.0], [14.0]])
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> model.init(jax.random.key(0), x, method=jaxem.Labels(jnp.array([0, 0, 1, 1]))).components.mean
        Array([[ 1.],
               [12.]], dtype=...)
    """

    labels: Any

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        return jnp.asarray(self.labels)

    def validate(self, n: int, k: int) -> None:
        """Raises a ValueError on a wrong shape or dtype, or a label out of range."""
        labels = jnp.asarray(self.labels)
        if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"Labels: expected integers of shape ({n},), got {labels.dtype}{labels.shape}.")

        def check(labels: Array) -> None:
            values = np.asarray(labels)
            if values.min() < 0 or values.max() >= k:
                raise ValueError(f"Labels: expected states 0 to {k - 1}, got {values.min()} to {values.max()}.")

        if not _tree.is_tracing(labels):
            everywhere(check, labels)


@_tree.register
@dataclass(frozen=True)
class Responsibilities:
    """Given responsibilities: (n, k), non-negative, each row summing to 1, or 0 where it takes no part in the start.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0], [2.0], [10.0], [14.0]])
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> method = jaxem.Responsibilities(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
        >>> model.init(jax.random.key(0), x, method=method).weights
        Array([0.625, 0.375], dtype=...)
    """

    responsibilities: Any

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        return jnp.asarray(self.responsibilities, points.dtype)

    def validate(self, n: int, k: int) -> None:
        """Raises a ValueError on a wrong shape, or values that are negative or not finite."""
        r = jnp.asarray(self.responsibilities)
        if r.shape != (n, k):
            raise ValueError(f"Responsibilities: expected shape ({n}, {k}), got {r.shape}.")

        def check(r: Array) -> None:
            values = np.asarray(r)
            bad = np.flatnonzero(~((values >= 0) & np.isfinite(values)).all(1))
            if len(bad):
                raise ValueError(f"Responsibilities: expected finite values ≥ 0, got {values[bad[0]]} in row {bad[0]}.")
            total = values.sum(1)
            far = np.flatnonzero((np.abs(total - 1) > 1e-3) & (total != 0))  # a row of zeros takes no part in the start
            if len(far):
                raise ValueError(
                    f"Responsibilities: expected rows that sum to 1, got {values[far[0]]} in row {far[0]}; divide each "
                    "row by its sum, weights of rows go to sample_weight."
                )

        if not _tree.is_tracing(r):
            everywhere(check, r)


@_tree.register
@dataclass(frozen=True)
class OfUnits:
    """A method for rows that share states: it is given the mean point of each unit, and its answer is that of all rows.

    Labels and responsibilities that are given by row are so already.
    """

    method: Any
    units: Any

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        if isinstance(self.method, (Labels, Responsibilities)):
            return self.method(key, points, k, sample_weight, active)
        means = mean_by_unit(points, self.units, sample_weight)
        weight = unit_weight(self.units, sample_weight).astype(points.dtype)
        return self.method(key, means, k, weight, active)[jnp.asarray(self.units.ids)]

    @property
    def groups(self) -> bool:
        """That of the method."""
        return bool(getattr(self.method, "groups", False))


def start_arguments(
    model: Any, key: Key, data: Data, sample_weight: Any, method: Initializer | None
) -> tuple[Any, Key, Data, Array | None, Initializer]:
    """Model, key, data, weights and method of an `init`, checked, and cast to the dtype of the data.

    Raises:
        ValueError: if there is no row, or the method's own values do not fit.
    """
    method = KMeans() if method is None else method
    data = as_rows(data)
    n, dtype = _tree.n_rows(data), _tree.float_dtype(unlabelled(data))
    if n == 0:
        raise ValueError("data: expected at least one row, got n = 0.")
    if sample_weight is not None:
        check_weight_shape(sample_weight, n)
    if ask.offers(method, "validate"):
        method.validate(n, model.n_components)  # type: ignore[attr-defined]
    weight = None if sample_weight is None else jnp.asarray(lying_as(unlabelled(data), sample_weight), dtype)
    data = as_read(model, data, dtype)
    weight = informed_weight(model, data, weight)
    return _tree.cast_floats(model, dtype), key, data, weight, as_initializer(method)
