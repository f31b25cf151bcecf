"""Truncated Newton steps on the observed objective, after some steps of EM."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params, Stats
from ..contracts import capabilities as ask
from ..contracts.checks import check_option
from ..contracts.inside import allowed
from ..contracts.protocols import StepInfo
from ..fold.chunks import Rows
from ..fold.folded import expected_log_joint
from ..numerics import tree as _tree
from ..numerics.linalg import dot, whitening
from ..numerics.tree import is_rounding
from ._jumps import em_step, step_info

_DENSE = 128  # up to so many free coordinates the complete-data information is factored
_HESSIAN_COST = 2  # E steps that a Hessian-vector product counts for


class NewtonState(NamedTuple):
    """The line along which the next params lie.

    Attributes:
        n_accepted: params accepted so far.
        base: free coordinates of the params accepted last, (p,).
        direction: of the Newton step from there, (p,).
        length: of the step to the next params, as a part of the direction.
        image: the EM point of those accepted last: where to go when the line is given up.
        objective: at those accepted last.
        first_decrement: gᵀC⁻¹g at the first Newton step.
        jumped: whether the next params are on the line.
    """

    n_accepted: Array
    base: Array
    direction: Array
    length: Array
    image: Params
    objective: Array
    first_decrement: Array
    jumped: Array


@_tree.register
@dataclass(frozen=True)
class NewtonCG:
    """Truncated Newton on the observed objective, quadratic where EM crawls (Nocedal & Wright 2006, algorithm 7.1).

    In free coordinates of the model. The gradient is that of the expected log joint (Fisher's identity), so it costs no
    E step of its own where the model has one; products with the Hessian are derivatives of it, and count as two E steps
    each. The step is found by conjugate gradients, preconditioned by the information of the complete data, in which
    EM's own step has length one; it ends early far from the maximum, and before a direction of negative curvature. A
    point that is lower is refused: the step is halved, and in the end EM's taken. The objective never falls.

    Attributes:
        warmup: steps of EM before.
        forcing: conjugate gradients end where the residual, in the norm of the preconditioner, is this part of the
            gradient; later at the square root of how much the gradient has fallen.
        max_products: the most Hessian-vector products a step.
        halvings: the most halvings of a step.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(1), x), x, algorithm=jaxem.NewtonCG())
        >>> bool(result.converged)
        True
    """

    warmup: Any = 5
    forcing: Any = 0.3
    max_products: Any = 50
    halvings: Any = 3

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if a concrete option is out of range."""
        check_option("NewtonCG.warmup", self.warmup, 0)
        check_option("NewtonCG.forcing", self.forcing, 0, 1)
        check_option("NewtonCG.max_products", self.max_products, 1)
        check_option("NewtonCG.halvings", self.halvings, 0)

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> NewtonState:
        """Before the first step.

        Raises:
            ValueError: if the model has no free coordinates.
        """
        if not ask.knows_coordinates(model):
            name = type(ask.told(model, "model", model)).__name__
            raise ValueError(
                f"algorithm: NewtonCG expected a model with unconstrain(params) and constrain(free), got {name}, which "
                "has no free coordinates; write these two or a line `space = …`, or use SQUAREM() or Anderson()."
            )
        free = ravel_pytree(ask.unconstrain(model, params))[0]
        real = lambda value: jnp.asarray(value, free.dtype)  # noqa: E731
        return NewtonState(
            n_accepted=jnp.zeros((), jnp.int32),
            base=free,
            direction=jnp.zeros_like(free),
            length=real(1),
            image=params,
            objective=real(-jnp.inf),
            first_decrement=real(0),
            jumped=jnp.zeros((), bool),
        )

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: NewtonState
    ) -> tuple[Params, NewtonState, StepInfo]:
        """See `Algorithm`."""
        image, stats, objective, size_of_terms = em_step(model, params, data, sample_weight)
        line = _Line(model, params)
        flat, size = ravel_pytree(params)[0], ask.flat_sizes(model, params)
        # the loop will refuse a lower point: no products are spent on it
        promising = (objective >= state.objective) & jnp.isfinite(objective)
        moves = ~is_rounding(ravel_pytree(image)[0] - flat, flat, size)
        wanted = (state.n_accepted >= jnp.asarray(self.warmup, flat.dtype)) & promising & moves
        fisher = ask.offers(model, "expected_log_joint") or isinstance(stats, Rows)

        def value(free: Array) -> Array:
            params = line.params(free)
            return model.e_step(params, data, sample_weight)[1] + ask.log_prior(model, params)

        def score(free: Array) -> Array:
            if not fisher:
                return line.held_still(jax.grad(value)(free))
            return line.slope(free, model.e_step(line.params(free), data, sample_weight)[0])

        system = _System(
            product=lambda v: -jax.jvp(score, (line.free,), (v,))[1],
            precondition=line.preconditioner(image, stats) if fisher else lambda vector: vector,
            gradient=line.slope(line.free, stats) if fisher else score(line.free),
        )
        direction, n_products, decrement = self._direction(system, wanted, state.first_decrement)
        point, feasible = allowed(model, line.params(line.free + direction), image)
        jumps = (n_products > 0) & feasible & jnp.any(direction != 0)
        new = NewtonState(
            n_accepted=state.n_accepted + 1,
            base=line.free,
            direction=direction,
            length=jnp.ones_like(state.length),
            image=image,
            objective=objective.astype(flat.dtype),
            first_decrement=jnp.where(wanted & (state.first_decrement == 0), decrement, state.first_decrement),
            jumped=jumps,
        )
        info = step_info(objective, image, (1 if fisher else 2) + _HESSIAN_COST * n_products, size=size_of_terms)
        return _tree.tree_where(jumps, point, image), new, info

    def refused(self, model: Any, state: NewtonState) -> tuple[Params, NewtonState, Array]:
        """See `Algorithm`: half the step, or EM's."""
        length = state.length / 2
        halvings = jnp.asarray(self.halvings, length.dtype)
        on_line = length > 0.75 * jnp.exp2(-halvings - 1)
        line = _Line(model, state.image)
        point, feasible = allowed(model, line.params(state.base + length * state.direction), state.image)
        halves = on_line & feasible
        new = state._replace(length=length, jumped=halves)
        return _tree.tree_where(halves, point, state.image), new, state.jumped

    def _direction(self, system: "_System", wanted: Array, first: Array) -> tuple[Array, Array, Array]:
        """The truncated Newton step, the products that it took, and gᵀC⁻¹g."""
        gradient = system.gradient
        start = system.precondition(gradient)
        decrement = jnp.sum(gradient * start)
        wanted = wanted & jnp.isfinite(decrement) & (decrement > 0)
        fallen = jnp.where(first > 0, jnp.sqrt(jnp.sqrt(decrement / jnp.where(first > 0, first, 1))), 1)
        part = jnp.minimum(jnp.asarray(self.forcing, gradient.dtype), fallen)
        enough = jnp.square(part) * decrement
        most = jnp.minimum(jnp.asarray(self.max_products, gradient.dtype), gradient.shape[0])
        begin = _Iterate(jnp.zeros_like(gradient), gradient, start, decrement, jnp.zeros((), jnp.int32), ~wanted)

        def one(at: _Iterate) -> _Iterate:
            product = system.product(at.search)
            curvature = jnp.sum(at.search * product)
            convex = curvature > 0  # NaN is not
            length = at.decrement / jnp.where(convex, curvature, 1)
            found = at.found + length * at.search
            residual = at.residual - length * product
            scaled = system.precondition(residual)
            left = jnp.sum(residual * scaled)
            new = _Iterate(
                found, residual, scaled + left / at.decrement * at.search, left, at.n_products + 1, ~(left > enough)
            )
            ended = at._replace(n_products=at.n_products + 1, done=jnp.ones((), bool))
            return _tree.tree_where(convex, new, ended)

        last = lax.while_loop(lambda at: ~at.done & (at.n_products < most), one, begin)
        usable = jnp.all(jnp.isfinite(last.found))
        return jnp.where(usable, last.found, 0), last.n_products, decrement


class _Iterate(NamedTuple):
    found: Array
    residual: Array
    search: Array
    decrement: Array
    n_products: Array
    done: Array


class _System(NamedTuple):
    """−H d = g."""

    product: Callable[[Array], Array]
    precondition: Callable[[Array], Array]
    gradient: Array


class _Line:
    """The model in flat free coordinates about some params; components of weight zero are held."""

    def __init__(self, model: Any, params: Params) -> None:
        self.model = ask.on_its_boundary(model, params)
        self.free, self._unravel = ravel_pytree(ask.unconstrain(self.model, params))
        self._free = ~ravel_pytree(ask.held(self.model, params))[0]

    def params(self, free: Array) -> Params:
        return ask.constrain(self.model, self._unravel(jnp.where(self._free, free, self.free)))

    def slope(self, free: Array, stats: Stats) -> Array:
        """∂Q(·; stats) + ∂ log prior at `free`: of the stats there, the gradient of the objective."""
        return self.held_still(jax.grad(self._surface(stats))(free))

    def held_still(self, gradient: Array) -> Array:
        return jnp.where(self._free, gradient, 0)

    def _surface(self, stats: Stats) -> Callable[[Array], Array]:
        q, _ = expected_log_joint(self.model, stats)
        return lambda free: q(self.params(free)) + ask.log_prior(self.model, self.params(free))

    def preconditioner(self, image: Params, stats: Stats) -> Callable[[Array], Array]:
        """C⁻¹ of the information of the complete data, at its maximum, the EM point; of its diagonal if that fails."""
        p = self.free.shape[0]
        if p > _DENSE:
            return lambda vector: vector
        at = ravel_pytree(ask.unconstrain(self.model, image))[0]
        information = -jax.jacfwd(lambda free: self.slope(free, stats))(at)
        diagonal = jnp.diagonal(information)
        proper = (diagonal > 0) & jnp.isfinite(diagonal)
        scale = jnp.where(proper, lax.rsqrt(jnp.where(proper, diagonal, 1)), 1)
        correlation = information * scale[:, None] * scale[None]
        eye = jnp.eye(p, dtype=self.free.dtype)
        factor, _ = whitening(correlation + jnp.sqrt(jnp.finfo(self.free.dtype).eps) * eye)
        factor = jnp.where(jnp.all(jnp.isfinite(factor)), factor, eye)
        return lambda vector: scale * dot(dot(factor, scale * vector), factor)
