"""Stopping rules: when a fit has converged.

Every rule has `tol`, below which it stops, and `min_iter`, before which it does not; `tol` < 0 never stops. What a rule
asks for is never below what the dtype resolves; a fit that only rounding stops ends with status RESOLUTION. After an
algorithm that jumps ahead of EM, whose last step may be small by chance, the objective has to stand still twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Array, Params
from ..contracts.checks import check_option
from ..contracts.protocols import Progress
from ..numerics import tree as _tree

_DOUBT = 8  # times the distance that steps foretell, as sizes leave out correlations; measured on overlapping mixtures


def _resolution(progress: Progress) -> Array:
    if progress.resolution is not None:
        return progress.resolution
    return 8 * jnp.finfo(progress.objective.dtype).eps * jnp.maximum(1, jnp.abs(progress.objective))


def _stands_still(now: Array, before: Array, tol: Array, resolution: Array) -> Array:
    rise = now - before
    return (rise <= jnp.maximum(tol, resolution)) & (rise >= -jnp.maximum(tol, 4 * resolution))


def _ask(rule: Any, progress: Progress) -> tuple[Array, Array]:
    """The rule's tol, and whether it may stop at all."""
    tol = jnp.asarray(rule.tol, progress.objective.dtype)
    return tol, (tol >= 0) & (progress.n_iter >= jnp.asarray(rule.min_iter, progress.objective.dtype))


def _check(rule: Any) -> None:
    """Raises a ValueError unless tol is a number and min_iter is not negative."""
    name = type(rule).__name__
    if not _tree.is_tracing(rule.tol):
        check_option(f"{name}.tol", rule.tol, -jnp.inf)
    check_option(f"{name}.min_iter", rule.min_iter, 0)


@_tree.register
@dataclass(frozen=True)
class Objective:
    """Stops when the objective per unit of sample weight rises by at most `tol`.

    The rise is absolute, because a density has no scale: fit(a·x) takes the iterations of fit(x). It is never asked to
    be below 8·eps·max(1, |objective per unit|), what the dtype resolves. `tol` < 0 never stops. A fall beyond rounding,
    which algorithms that are not monotone make, is no convergence.

    Attributes:
        tol: see above.
        min_iter: the fewest M steps.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> start = model.init(jax.random.key(0), x)
        >>> rule = jaxem.Objective(tol=1e-3, min_iter=5)  # fit(…, tol=1e-3) is Objective(1e-3)
        >>> jaxem.fit(model, start, x, stop=rule).n_iter
        Array(5, dtype=int32)
    """

    tol: Any = 1e-6
    min_iter: Any = 0

    validate = _check

    def converged(self, progress: Progress) -> tuple[Array, Array]:
        """See `StoppingRule`."""
        tol, may = _ask(self, progress)
        resolution = _resolution(progress)
        settled = _stands_still(progress.objective, progress.previous_objective, tol, resolution)
        if progress.image is not None:
            earlier = progress.earlier_objectives[0]
            settled = settled & _stands_still(progress.previous_objective, earlier, tol, resolution)
        return may & settled, progress.objective - progress.previous_objective > tol


@_tree.register
@dataclass(frozen=True)
class Aitken:
    """Stops when the objective per unit is within `tol` of the limit that its last rises foretell: the default.

    With rises d₁, then d₂, of a sequence that converges linearly, what is left is d₂·a / (1 − a), a = d₂ / d₁ (Böhning
    et al. 1994; McLachlan & Krishnan 2008, section 4.9). Where EM crawls, a is near 1, and much more is left than the
    last rise says. Ratios that still grow are foretold to grow on. An algorithm that jumps ahead of EM says itself how
    slow EM is there (`StepInfo.rate`), and its last two rises have to be at most `tol`.

    A rise below the resolution of the dtype says nothing: then what is left follows from the step of EM, in units of
    the params' sizes, ‖M(θ) − θ‖² / (2(1 − ρ)), for as long as successive steps agree. Steps that are rounding stop it.

    Attributes:
        tol: of the distance to the limit.
        min_iter: the fewest M steps.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, stop=jaxem.Aitken(1e-4))
        >>> bool(result.converged)
        True
    """

    tol: Any = 1e-6
    min_iter: Any = 0

    validate = _check

    def converged(self, progress: Progress) -> tuple[Array, Array]:
        """See `StoppingRule`."""
        tol, may = _ask(self, progress)
        now, before, earlier = progress.objective, progress.previous_objective, progress.earlier_objectives
        rise, resolution = now - before, _resolution(progress)

        def stands_still(tol: Array) -> Array:
            still = _stands_still(now, before, tol, resolution)
            return still if progress.image is None else still & _stands_still(before, earlier[0], tol, resolution)

        if progress.rate is not None:
            near = _is_left(rise, jnp.square(progress.rate), tol) & (before - earlier[0] <= tol)
        else:
            shrinks = _shrinkage(now, before, earlier)
            if progress.steps is not None:  # three of them: where sizes change, the first two may say anything
                shrinks = jnp.where(jnp.isnan(progress.steps[2]), jnp.nan, _slowest(progress.steps))
            near = _is_left(rise, shrinks, tol)
            if progress.image is not None:
                near = near & _is_left(before - earlier[0], _shrinkage(before, earlier[0], earlier[1:]), tol)
        near = near & (rise > resolution)
        steps = _by_steps(progress)
        resolved = stands_still(jnp.zeros_like(tol)) & ((steps.left <= tol) | steps.are_rounding)
        ended = near | resolved | (stands_still(tol) & steps.stray)
        return may & ended, ~near & ~(steps.left <= tol)


def _is_left(rise: Array, shrink: Array, tol: Array) -> Array:
    """Whether rises that shrink by this factor, the last of them given, sum to at most tol from here on."""
    return (rise >= 0) & (shrink < 1) & (rise * shrink <= tol * (1 - shrink))


def _shrinkage(now: Array, before: Array, earlier: Array) -> Array:
    """By how much the next rises of a sequence shrink at most, as its last ones say; NaN where they do not shrink.

    Modes that vanish soon hide those that stay, whose rises shrink less: of the last three ratios the largest counts,
    and a ratio that still grows is foretold to grow on, by growth that itself shrinks as much.
    """
    objectives = jnp.concatenate([now[None], before[None], earlier])
    return _slowest(objectives[:-1] - objectives[1:])


def _slowest(rises: Array) -> Array:
    """The same of rises, or of squared lengths of steps, which shrink alike and with less rounding: newest first."""
    ratios = rises[:-1] / jnp.where(rises[1:] > 0, rises[1:], jnp.nan)
    last, grown = ratios[0], ratios[0] - ratios[1]
    more = jnp.where(grown > 0, grown / jnp.maximum(1 - last, jnp.finfo(last.dtype).eps), 0)
    most = jnp.max(jnp.where(jnp.isnan(ratios), last, ratios))
    return jnp.where(last < 1, most + more, jnp.nan)


class _Steps(NamedTuple):
    """What two steps of EM in a row say.

    Attributes:
        left: the distance of the objective per unit to its limit that they foretell; NaN where they cannot.
        are_rounding: they are no steps at all, or nobody knows them.
        stray: the second does not go on in the direction of the first.
    """

    left: Array
    are_rounding: Array
    stray: Array


def _by_steps(progress: Progress) -> _Steps:
    """Sizes are standard deviations of complete-data estimates.

    In their metric half the square of an EM step is, to second order, what it gains (Dempster, Laird & Rubin 1977,
    section 3). Steps towards a limit, or away from a saddle, agree in the end; those that rounding makes do not.
    """
    nan, yes, no = jnp.full_like(progress.objective, jnp.nan), jnp.ones((), bool), jnp.zeros((), bool)
    if progress.image is not None and progress.rate is None:
        return _Steps(nan, yes, no)
    image = progress.proposal if progress.image is None else progress.image
    there, here, last, size = (
        ravel_pytree(tree)[0] for tree in (image, progress.params, progress.previous, progress.sizes)
    )
    step, moved = (there - here) / size, (here - last) / size
    before, square, across = jnp.sum(moved * moved), jnp.sum(step * step), jnp.sum(moved * step)
    plain, rate = yes, across / before  # of steps of EM
    if progress.image is not None:
        plain, rate = progress.plain, jnp.where(progress.plain, rate, progress.rate)
    left = _DOUBT * square / (2 * jnp.where(rate < 1, 1 - rate, jnp.nan))
    reach = jnp.max(jnp.abs(here) / size, initial=1)
    still = jnp.max(jnp.abs(step)) <= 32 * jnp.finfo(step.dtype).eps * reach
    stray = plain & ~(across > 0.5 * jnp.sqrt(before * square))
    unknown = no if progress.image is None else ~plain & ~jnp.isnan(progress.rate)
    return _Steps(jnp.where(still, 0, left), still | stray | unknown, stray)


@_tree.register
@dataclass(frozen=True)
class ParameterChange:
    """Stops when no parameter has changed by more than `tol` of its size.

    A size is the model's own measure (for normal components the data's standard deviations), else the root mean square
    over the components. Where EM crawls, steps are small far from the fixed point; `Residual` shares this, `Aitken`
    does not. Of an algorithm that jumps, the step of EM from here has to be small as well.

    Attributes:
        tol: of the relative change.
        min_iter: the fewest M steps.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, stop=jaxem.ParameterChange(1e-3))
        >>> bool(result.converged)
        True
    """

    tol: Any = 1e-6
    min_iter: Any = 0

    validate = _check

    def converged(self, progress: Progress) -> tuple[Array, Array]:
        """See `StoppingRule`."""
        tol, may = _ask(self, progress)
        change = _largest(progress.params, progress.previous, progress.sizes)
        if progress.image is not None:
            change = jnp.maximum(change, _largest(progress.image, progress.params, progress.sizes))
        resolution = 4 * jnp.finfo(tol.dtype).eps
        moved = progress.previous_objective > -jnp.inf  # at the first evaluation nothing has
        return may & moved & (change <= jnp.maximum(tol, resolution)), change > tol


@_tree.register
@dataclass(frozen=True)
class Residual:
    """Stops when the residual of the fixed-point equation, M(θ) − θ, is at most `tol`; M is one step of EM.

    Its largest entry relative to the params' sizes, as in `ParameterChange`; or, of a function of the params, the
    Euclidean norm of of(M(θ)) − of(θ), absolute. It is the step of EM even where the algorithm takes another; of an
    algorithm that is not EM (annealed, online), it is that algorithm's own step.

    Attributes:
        tol: see above.
        of: params → array; a function of a module, not a fresh lambda, which would compile anew. In the loop means of
            normal components are relative to the data's own; differences are not affected.
        min_iter: the fewest M steps.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, stop=jaxem.Residual(1e-3))
        >>> bool(result.converged)
        True
    """

    tol: Any = 1e-6
    of: Callable[[Params], Any] | None = field(metadata={"static": True}, default=None)
    min_iter: Any = 0

    def validate(self) -> None:
        """Raises a ValueError if a value is out of range."""
        _check(self)
        if self.of is not None and not callable(self.of):
            raise ValueError(f"Residual.of: expected a function of params, or None, got {self.of!r}.")

    def converged(self, progress: Progress) -> tuple[Array, Array]:
        """See `StoppingRule`."""
        tol, may = _ask(self, progress)
        image = progress.proposal if progress.image is None else progress.image
        resolution = 4 * jnp.finfo(tol.dtype).eps
        if self.of is None:
            residual = _largest(image, progress.params, progress.sizes)
        else:
            here, there = (ravel_pytree(self.of(params))[0] for params in (progress.params, image))
            residual, resolution = jnp.linalg.norm(there - here), resolution * jnp.linalg.norm(here)
        return may & (residual <= jnp.maximum(tol, resolution)), residual > tol


def _largest(a: Params, b: Params, sizes: Params) -> Array:
    parts = jax.tree.map(lambda x, y, size: jnp.max(jnp.abs(x - y) / size, initial=0), a, b, sizes)
    return jnp.max(jnp.stack(jax.tree.leaves(parts)))
