"""The nonparametric bootstrap. Every replicate is a lane that draws sample weights of its own; all share the data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._typing import Array, Data, Key, Params, PyTree
from ..algorithms.em import EM
from ..contracts import capabilities as ask
from ..contracts.protocols import Algorithm, number_of
from ..contracts.result import FitResult, check_status, permute_components
from ..contracts.status import Status
from ..drivers.asked import check_arguments, make_options, take_in
from ..fold.chunks import HOLD_BYTES, plan_fold
from ..fold.part import Part, sum_over_chunks
from ..fold.present import present_rows
from ..latent.finite import Labelled, Soft, unlabelled
from ..latent.units import draw_by_unit, units_of
from ..loop.derivative import Stop
from ..loop.run import Options, solve
from ..numerics import tree as _tree
from ..numerics.arguments import as_count
from ..numerics.linalg import dot
from ..running.lanes import Lanes, resolve_plan, run_lanes

_DRAWS_AT_ONCE = 1024  # at least, where rows have weights
_CELLS = 2**30  # of the unit interval that weighted rows divide among them
_MATCHED_ROWS = 16384  # in one chunk of the overlap of two fits


class ResamplingScheme(Protocol):
    """How a bootstrap draws the sample weights of a replicate.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class HalfSamples:  # a random half of the rows, each twice; for bootstrap(…, scheme=HalfSamples())
        ...     def draw(self, key, n, sample_weight=None):
        ...         twice = 2.0 * jax.random.permutation(key, jnp.arange(n) % 2)
        ...         return twice if sample_weight is None else twice * sample_weight
        >>> sorted(HalfSamples().draw(jax.random.key(0), 6).tolist())
        [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]
    """

    def draw(self, key: Key, n: int, sample_weight: Array | None = None) -> Array:
        """(n,) weights with the total of `sample_weight` (n if None); zero where that is zero."""
        ...


@_tree.register
@dataclass(frozen=True)
class EfronBootstrap:
    """Counts of draws with replacement (Efron 1979), each row in proportion to its sample weight.

    Integer sample weights mean repeated rows: the number of draws is the total weight. A total W that is no integer is
    rounded to N draws, at least one, each of weight W/N, so that a replicate weighs what the data do. N draws take N
    random numbers: scale weights beyond need down.

    Example:
        >>> import jax, jaxem
        >>> weights = jaxem.EfronBootstrap().draw(jax.random.key(0), 10)  # bootstrap does it for each replicate
        >>> bool((weights == weights.round()).all()), weights.sum()
        (True, Array(10., dtype=...))
    """

    def draw(self, key: Key, n: int, sample_weight: Array | None = None) -> Array:
        """See `ResamplingScheme`."""
        if sample_weight is None:
            rows = _below(n, key, n)
            return jnp.zeros(n, jnp.int32).at[rows].add(1).astype(jnp.result_type(float))
        valid = jnp.all((sample_weight >= 0) & jnp.isfinite(sample_weight))
        total = jnp.where(valid, jnp.sum(sample_weight), 0)
        # cells are integers, of which a sum loses none; their number for each unit too where it can be
        scale = jnp.where(total < _CELLS, jnp.floor(_CELLS / jnp.where(total > 0, total, 1)), _CELLS / total)
        edges = jnp.cumsum(jnp.where(valid, jnp.round(sample_weight * scale), 0).astype(jnp.int32))
        n_draws = jnp.maximum(jnp.round(total), 1).astype(jnp.int32)
        at_once = max(n, _DRAWS_AT_ONCE)

        def add(i: Array, counts: Array) -> Array:
            place = _below(edges[-1], jax.random.fold_in(key, i), at_once)
            rows = jnp.searchsorted(edges, place, side="right")
            wanted = i * at_once + jnp.arange(at_once) < n_draws
            return counts.at[rows].add(wanted.astype(jnp.int32))

        counts = lax.fori_loop(0, -(-n_draws // at_once), add, jnp.zeros(n, jnp.int32))
        return jnp.where(valid, counts.astype(total.dtype) * (total / n_draws.astype(total.dtype)), jnp.nan)


def _below(bound: Any, key: Key, n: int) -> Array:
    """n integers uniform on 0 … bound − 1, floor(bound · bits / 2³²) in halves: half the time of `randint`."""
    bits, bound = jax.random.bits(key, (n,), jnp.uint32), jnp.asarray(bound, jnp.uint32)
    high, low, bound_high, bound_low = bits >> 16, bits & 0xFFFF, bound >> 16, bound & 0xFFFF
    middle = high * bound_low + (low * bound_low >> 16)
    carry = low * bound_high + (middle & 0xFFFF) >> 16
    return (high * bound_high + (middle >> 16) + carry).astype(jnp.int32)


@_tree.register
@dataclass(frozen=True)
class BayesianBootstrap:
    """The Bayesian bootstrap (Rubin 1981): exponential draws, normalised to the total weight.

    With sample weights gamma draws of these shapes, which is what repeated rows add up to.

    Example:
        >>> import jax, jaxem
        >>> weights = jaxem.BayesianBootstrap().draw(jax.random.key(0), 10)  # for bootstrap(…, scheme=…)
        >>> bool((weights > 0).all()), weights.sum().round(3)
        (True, Array(10., dtype=...))
    """

    def draw(self, key: Key, n: int, sample_weight: Array | None = None) -> Array:
        """See `ResamplingScheme`."""
        if sample_weight is None:
            mass = jax.random.exponential(key, (n,))
            return mass * (n / jnp.sum(mass))
        absent = sample_weight == 0  # not "is not positive": NaN must come through
        log_mass = jax.random.loggamma(key, jnp.where(absent, 1, sample_weight))
        log_mass = jnp.where(absent, jnp.finfo(log_mass.dtype).min, log_mass)
        return jax.nn.softmax(log_mass) * jnp.sum(sample_weight)


@_tree.register
@dataclass(frozen=True)
class Bootstrap:
    """Fits of the replicates of a bootstrap; every leaf but `parent` leads with the r replicates.

    Attributes:
        params: with components in the order of the parent's.
        objective: (r,), as in `FitResult`.
        log_lik: (r,).
        n_iter: (r,).
        status: (r,), see `Status`.
        parent: the params that were bootstrapped.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (100, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=1)
        >>> params = jaxem.fit(model, model.init(jax.random.key(1), x), x).params
        >>> found = jaxem.bootstrap(model, params, x, jax.random.key(2), n_replicates=500)
        >>> low, high = found.interval(0.95, of=lambda params: params.components.mean[0, 0])
        >>> bool(low < params.components.mean[0, 0]), bool(params.components.mean[0, 0] < high)
        (True, True)
    """

    params: Params
    objective: Array
    log_lik: Array
    n_iter: Array
    status: Array
    parent: Params

    @property
    def converged(self) -> Array:
        """(r,): whether the status is CONVERGED or RESOLUTION. No other replicate enters the methods below."""
        return (self.status == Status.CONVERGED) | (self.status == Status.RESOLUTION)

    def check(self) -> "Bootstrap":
        """Returns the bootstrap, or raises with counts per status and the first replicates that did not converge.

        Those do not enter the methods below; if they are few, these can be used all the same.

        Raises:
            RuntimeError: if a replicate did not converge.
        """
        check_status(np.asarray(self.status), noun="replicates")
        return self

    def standard_errors(self, of: Callable[[Params], PyTree] | None = None) -> PyTree:
        """Standard deviation over the replicates that converged, divisor one less than their number.

        Args:
            of: function of the params of one fit; None for the params themselves.

        Returns:
            What `of` returns, without its values; NaN if fewer than two replicates converged.
        """
        return jax.tree.map(lambda leaf: jnp.linalg.norm(self._deviations(leaf), axis=0), self._values(of))

    def covariance(self, of: Callable[[Params], PyTree] | None = None) -> Array:
        """Covariance (p, p) over the replicates that converged, of all numbers of `of` in the order of its leaves."""
        deviations = self._deviations(_tree.side_by_side(self._values(of)))
        return dot(deviations.T, deviations)

    def interval(self, level: Any = 0.95, of: Callable[[Params], PyTree] | None = None) -> tuple[PyTree, PyTree]:
        """Percentile interval (Efron & Tibshirani 1993, ch. 13) over the replicates that converged.

        Args:
            level: of confidence, between 0 and 1.
            of: as in `standard_errors`.

        Returns:
            Lower and upper ends, each like what `of` returns.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not _tree.is_tracing(level) and not 0 < level < 1:
            raise ValueError(f"level: expected a number between 0 and 1, got {level!r}; 0.95 is 95 %.")

        def quantile(q: Any) -> PyTree:
            one = lambda leaf: jnp.nanquantile(self._chosen(leaf, jnp.nan), q, axis=0)  # noqa: E731
            return jax.tree.map(one, self._values(of))

        return quantile((1 - level) / 2), quantile((1 + level) / 2)

    def _values(self, of: Callable[[Params], PyTree] | None) -> PyTree:
        return self.params if of is None else jax.vmap(of)(self.params)

    def _chosen(self, leaf: Array, otherwise: Any) -> Array:
        return jnp.where(self.converged.reshape(-1, *([1] * (leaf.ndim - 1))), leaf, otherwise)

    def _deviations(self, leaf: Array) -> Array:
        """From the mean, over √(number − 1)."""
        count = jnp.sum(self.converged)
        mean = jnp.sum(self._chosen(leaf, 0), 0) / jnp.maximum(count, 1)
        return self._chosen(leaf - mean[None], 0) / jnp.sqrt(jnp.where(count > 1, count - 1, jnp.nan))


def _bootstrap_lane(static: None, key: Key, shared: tuple) -> Bootstrap:
    model, parent, data, sample_weight, scheme, options = shared
    n, dtype = _tree.n_rows(data), _tree.float_dtype(unlabelled(data))
    options = options.for_lane(number_of(key))
    result = solve(
        model, parent, data, draw_by_unit(partial(scheme.draw, key), data, n, sample_weight).astype(dtype), options
    )
    params = result.params
    has_posterior = ask.offers(model, "responsibilities") or ask.offers(model, "log_joint")
    axes = ask.component_axes(model)
    if axes is not None and has_posterior and not isinstance(data, Labelled):
        order = _matching(result, parent, data, sample_weight, options)
        params = permute_components(params, axes, order)
    return Bootstrap(params, result.objective, result.log_lik, result.n_iter, result.status, None)


def bootstrap(
    model: Any,
    params: Params,
    data: Data,
    key: Key,
    n_replicates: int = 1000,
    *,
    sample_weight: Any = None,
    scheme: ResamplingScheme = EfronBootstrap(),
    plan: str = "auto",
    progress: bool = False,
    algorithm: Algorithm = EM(),
    tol: Any = 1e-6,
    max_iter: int = 500,
    chunk_size: int | None = None,
) -> Bootstrap:
    """The nonparametric bootstrap of a fit (Efron 1979), replicates as lanes with sample weights of their own.

    Replicate r is the fit from `params` with weights `scheme.draw(jax.random.split(key, n_replicates)[r], n,
    sample_weight)`. Its components are put in the order of the parent's: the assignment that maximises Σ_j
    overlap_{j, order(j)}, overlap_jl = Σ_i w_i r_ij(parent) r_il(replicate). Components switched off stay in their
    places. Models without `component_axes` are left as they are, and so are fits of `labelled` data, whose labels say
    which component is which.

    Args:
        model: as in `fit`.
        params: of the fit to be bootstrapped, e.g. `fit(…).params`: the parent, and the start of every replicate.
        data: as in `fit`.
        key: of `jax.random`; the same key gives the same replicates, whatever the plan.
        n_replicates: r.
        sample_weight: (n,) or None. Rows of weight zero never take part; integers mean repeated rows.
        scheme: `EfronBootstrap()` draws rows with replacement, `BayesianBootstrap()` is the Bayesian bootstrap.
        plan: as in `fit_batch`.
        progress: as in `fit_batch`.
        algorithm: as in `fit`.
        tol: as in `fit`.
        max_iter: as in `fit`.
        chunk_size: as in `fit`.

    Returns:
        A `Bootstrap`, whose values carry no derivative.

    Raises:
        ValueError: as in `fit`, NaN or inf in concrete data among them.
        TypeError: as in `fit`.

    Status:
        Any of `Status`, by replicate.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (100, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=1)
        >>> fitted = jaxem.fit(model, model.init(jax.random.key(1), x), x)
        >>> found = jaxem.bootstrap(model, fitted.params, x, jax.random.key(2), n_replicates=500)
        >>> 0.08 < float(found.standard_errors().components.mean[0, 0]) < 0.12  # the standard deviation / √n
        True
    """
    plan = resolve_plan(plan)
    n_replicates = as_count("n_replicates", n_replicates)
    if not hasattr(scheme, "draw") or isinstance(scheme, type):
        raise ValueError(
            f"scheme: expected EfronBootstrap() or BayesianBootstrap(), got {scheme!r}; arrays go to sample_weight."
        )
    model, data, sample_weight, dtype = take_in(model, data, sample_weight)
    fold = plan_fold(unlabelled(data), chunk_size)
    at_once = lanes_at_once(plan, n_replicates, data, ask.n_components(model, 1))
    fold = replace(fold, hold_bytes=HOLD_BYTES // (at_once if plan == "lanes" else 1))
    options = _tree.cast_floats(make_options(algorithm, tol, max_iter, Stop(), None, fold), dtype)
    params = _tree.cast_data(params, dtype)
    check_arguments(model, params, data, sample_weight)
    shared = (model, params, present_rows(data, sample_weight), sample_weight, scheme, options)
    keys = jax.random.split(key, n_replicates)
    found = run_replicates(_bootstrap_lane, None, keys, shared, (plan, at_once, progress))
    return replace(found, parent=params)


def responsibilities_of(model: Any, params: Params, data: Data) -> Array:
    """(n, …, k)."""
    if ask.offers(model, "responsibilities"):
        return model.responsibilities(params, data)
    return Soft()(model.log_joint(params, data))[0]


def _matching(result: FitResult, parent: Params, data: Data, sample_weight: Array | None, options: Options) -> Array:
    """Which component of a replicate takes the place of each of the parent's: (k,)."""
    from optax.assignment import hungarian_algorithm

    def one_chunk(part: Part) -> Array:
        rows, weight = part.data, part.sample_weight
        ours, theirs = (responsibilities_of(result.model, params, rows) for params in (parent, result.params))
        # of a row that no component explains
        ours, theirs = (jnp.where(jnp.isnan(r), 0, r) for r in (ours, theirs))
        ours = ours if weight is None else ours * weight.reshape(-1, *([1] * (ours.ndim - 1)))
        k = ours.shape[-1]
        return dot(ours.reshape(-1, k).T, theirs.reshape(-1, k))

    n = _tree.n_rows(data)
    most = options.plan.chunk_size or min(_MATCHED_ROWS, ask.rows_at_once(result.model, data, n))
    in_one = options.plan.mesh is not None or units_of(data) is not None
    rows = n if in_one else min(n, most)
    overlap = sum_over_chunks(one_chunk, Part(data, sample_weight), rows)
    share = overlap / jnp.sum(overlap)
    share = jnp.where(jnp.isfinite(share), share, 0)  # of a failed fit; with NaN the assignment would never end
    active = ask.told(result.model, "active", None)
    if active is not None:
        movable = jnp.asarray(active)[:, None] & jnp.asarray(active)[None]
        # all shares sum to 1, so no gain makes up for 2
        share = jnp.where(movable | jnp.eye(share.shape[0], dtype=bool), share, -2)
    ours, theirs = hungarian_algorithm(-share)
    return theirs[jnp.argsort(ours)]


def lanes_at_once(plan: str, n_replicates: int, data: Data, k: int) -> int:
    """Side by side, every replicate has weights, responsibilities and a copy of the rows: so many fit in memory."""
    rows = jax.tree.leaves(unlabelled(data))
    size = sum(leaf.size for leaf in rows) + rows[0].shape[0] * (2 * k + 1)
    most = HOLD_BYTES // (size * _tree.float_dtype(unlabelled(data)).itemsize)
    return max(1, min(n_replicates, most)) if plan == "lanes" else n_replicates


def run_replicates(per_lane: Callable, static: Any, keys: Array, shared: tuple, how: tuple[str, int, bool]) -> PyTree:
    """`per_lane` over the keys, in blocks of one size; the last overlaps its neighbour."""
    plan, at_once, progress = how
    n = keys.shape[0]
    size = -(-n // -(-n // at_once))
    starts = [min(first, n - size) for first in range(0, n, size)]
    blocks = run_lanes(per_lane, static, [Lanes(keys[i : i + size], shared) for i in starts], plan, progress=progress)
    fresh = [jax.tree.map(lambda x, s=b * size - i: x[s:], blocks[b]) for b, i in enumerate(starts)]  # noqa: B023
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *fresh)
