"""Weights alone: sequential quadratic steps on the simplex."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data
from ..contracts import capabilities as ask
from ..contracts.checks import check_option
from ..contracts.protocols import StepInfo
from ..fold.part import Part
from ..latent.finite import Labelled
from ..latent.units import units_of
from ..numerics import tree as _tree

_ELEMENTS = 2**20  # of the slopes of rows at a time
_MOST_STEPS = 400  # of the quadratic problem; where it is cut short the point is good enough
_MOST_HALVINGS = 30


class ActiveSetState(NamedTuple):
    """Where the last step led from and to, for a shorter one.

    Attributes:
        base: the weights that it set out from, (k,).
        target: where the whole step leads.
        length: the share of it that was proposed.
    """

    base: Array
    target: Array
    length: Array


@_tree.register
@dataclass(frozen=True)
class ActiveSet:
    """Sequential quadratic programming of weights alone (Kim, Carbonetto, Stephens & Anitescu 2020, algorithm 1).

    For models that are linear in their weights, such as `FixedComponents`. Each step maximises the quadratic that
    agrees with the log-likelihood in slope and curvature, over the weights that are not negative: those at zero are an
    active set, which a weight leaves where its slope says so. A step that ends lower is halved. The fit ends where
    max_j ∂log_lik/∂w_j − 1, per unit, which bounds what is left to gain (Lindsay 1983, theorem 4.1), is at most `gap`;
    no stopping rule ends it before. A few tens of E steps, each with k² sums: for k up to some hundreds.

    Attributes:
        gap: of the objective per unit to its maximum.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> def log_density(x):
        ...     return -0.5 * jnp.square(x - jnp.linspace(-4.0, 4.0, 9))
        >>> model, x = jaxem.FixedComponents(log_density, 9), jnp.linspace(-3.0, 3.0, 60)
        >>> run = lambda algorithm: jaxem.fit(model, model.init(), x, algorithm=algorithm)
        >>> bool(run(jaxem.ActiveSet()).n_iter < run(jaxem.EM()).n_iter)
        True
    """

    gap: Any = 1e-8

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True
    by_rows: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if a concrete option is out of range."""
        check_option("ActiveSet.gap", self.gap, 0)

    def init(self, model: Any, params: Array, data: Data, sample_weight: Array | None) -> ActiveSetState:
        """Nothing proposed yet.

        Raises:
            ValueError: if the model is not linear in its weights, as far as it says, or data are labelled.
        """
        if not ask.offers(model, "row_slopes") or isinstance(data, Labelled) or units_of(data) is not None:
            raise ValueError(
                f"ActiveSet: expected a model with row_slopes(params, data), linear in its weights, and rows without "
                f"labels or ids, got "
                f"{type(ask.told(model, 'model', model)).__name__}; use FixedComponents, or SQUAREM()."
            )
        return ActiveSetState(params, params, jnp.zeros((), params.dtype))

    def step(
        self, model: Any, params: Array, data: Data, sample_weight: Array | None, state: ActiveSetState
    ) -> tuple[Array, ActiveSetState, StepInfo]:
        """See `Algorithm`."""
        rows = max(1, min(_tree.n_rows(data), _ELEMENTS // params.shape[0]))
        sums = model.total(_sums, params, Part(data, sample_weight), rows)
        log_lik, size, total, slope, curvature = sums
        slope, curvature = slope / total, curvature / total
        left = jnp.max(slope) - 1
        target = _quadratic(curvature, 1 - slope, params)
        target = target / jnp.sum(target)
        least = 8 * jnp.finfo(params.dtype).eps * jnp.maximum(1, size / total)
        done = left <= jnp.maximum(jnp.asarray(self.gap, params.dtype), least)
        info = StepInfo(log_lik, jnp.ones((), jnp.int32), done, may_stop=False, size=size)
        return target, ActiveSetState(params, target, jnp.ones((), params.dtype)), info

    def refused(self, model: Any, state: ActiveSetState) -> tuple[Array, ActiveSetState, Array]:
        """See `Algorithm`: half the step."""
        length = state.length / 2
        params = state.base + length * (state.target - state.base)
        return params, state._replace(length=length), length > 0.5**_MOST_HALVINGS


def _sums(model: Any, params: Array, part: Part) -> tuple[Array, ...]:
    slopes, log_prob = model.row_slopes(params, part.data)
    weight = jnp.ones_like(log_prob) if part.sample_weight is None else part.sample_weight
    there = weight > 0
    slopes, log_prob = jnp.where(there[:, None], slopes, 0), jnp.where(there, log_prob, 0)
    weighted = slopes * weight[:, None]
    curvature = jnp.matmul(weighted.T, slopes, precision="highest")
    log_lik, size = jnp.sum(weight * log_prob), jnp.sum(weight * jnp.abs(log_prob))
    return log_lik, size, jnp.sum(weight), jnp.sum(weighted, 0), curvature


class _Walk(NamedTuple):
    """A primal active-set method under way: the point, which entries are free of their bound, steps, whether done."""

    y: Array
    free: Array
    n: Array
    done: Array


def _quadratic(hessian: Array, linear: Array, x: Array) -> Array:
    """argmin of ½(y − x)ᵀH(y − x) + linearᵀ(y − x) over y ≥ 0, from y = x (Nocedal & Wright 2006, algorithm 16.3).

    A whole step that would leave the bounds is first tried cut off at all of them at once.
    """
    eps = jnp.finfo(x.dtype).eps
    ridge = jnp.sqrt(eps) * jnp.max(jnp.diagonal(hessian))
    hessian = hessian + ridge * jnp.eye(x.shape[0], dtype=x.dtype)
    product = lambda v: jnp.matmul(hessian, v, precision="highest")  # noqa: E731
    value = lambda y: jnp.dot(y - x, 0.5 * product(y - x) + linear)  # noqa: E731

    def step(w: _Walk) -> _Walk:
        slope = product(w.y - x) + linear
        within = jnp.where(w.free[:, None] & w.free[None], hessian, jnp.eye(x.shape[0], dtype=x.dtype))
        move = jnp.linalg.solve(within, jnp.where(w.free, -slope, 0))
        cut = jnp.where(w.free, jnp.maximum(w.y + move, 0), w.y)
        at_once = value(cut) < value(w.y)
        room = jnp.where(w.free & (move < 0), w.y / jnp.where(move < 0, -move, 1), jnp.inf)
        length = jnp.minimum(1, jnp.min(room))
        single = jnp.where(room <= length, 0, w.y + length * move)
        y = jnp.where(at_once, cut, jnp.where(w.free, single, w.y))
        free = w.free & (y > 0)
        stays = ~at_once & jnp.all(free == w.free)
        # at the top of the free ones: the one at its bound that wants most to leave it, if any
        want = jnp.where(w.free, jnp.inf, slope)
        leaves = stays & (jnp.min(want) < -jnp.sqrt(eps))
        free = free | (leaves & (jnp.arange(x.shape[0]) == jnp.argmin(want)))
        return _Walk(jnp.where(stays, w.y, y), free, w.n + 1, stays & ~leaves)

    begun = _Walk(x, x > 0, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    return lax.while_loop(lambda w: ~w.done & (w.n < _MOST_STEPS), step, begun).y
