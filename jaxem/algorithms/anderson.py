"""Anderson acceleration of EM."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..contracts.checks import check_option, check_size
from ..contracts.inside import allowed
from ..contracts.protocols import StepInfo
from ..numerics import tree as _tree
from ..numerics.tree import is_rounding
from ._jumps import em_step, rate_of, step_info


class AndersonState(NamedTuple):
    """The window, and where to go if the next params are refused.

    Attributes:
        residual: M(θ) − θ at the params accepted last, (p,).
        point: M(θ) there, (p,).
        residuals: (m, p) differences of successive residuals, the newest first; zero where there is none.
        points: (m, p) differences of the M(θ) that belong to them.
        n_seen: params accepted since the window was empty.
        damping: of the next least-squares problem.
        image: M(θ) as params.
        jumped: whether the next params are extrapolated.
    """

    residual: Array
    point: Array
    residuals: Array
    points: Array
    n_seen: Array
    damping: Array
    image: Params
    jumped: Array


@_tree.register
@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration with damping and restarts (Anderson 1965; Henderson & Varadhan 2019): one E step each.

    From residuals f_i = M(θ_i) − θ_i of the last steps: θ ← M(θ) − ΔM γ, with γ = argmin ‖f − ΔF γ‖² + λ‖ΔF‖²‖γ‖²,
    norms relative to the sizes of the params. Where DAAREM relaxes a penalty with the iterations, λ here falls by
    `relaxation` with every extrapolation that is accepted, from `damping` on, and rises by its square when one is
    refused, as in Levenberg & Marquardt. A point that is not feasible, or lower than the last, is refused: the EM point
    is taken, and the window restarts. The objective never falls.

    Attributes:
        window: how many differences are kept; static.
        damping: the first λ, in [0, 1].
        relaxation: > 1.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (300, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = model.init(jax.random.key(1), x)
        >>> run = lambda algorithm: jaxem.fit(model, start, x, algorithm=algorithm, stop=jaxem.Residual(1e-3))
        >>> bool(run(jaxem.Anderson()).n_evals < run(jaxem.EM()).n_evals)
        True
    """

    window: int = field(metadata={"static": True}, default=5)
    damping: Any = 1e-3
    relaxation: Any = 10.0

    monotone: ClassVar[bool] = True
    ends_at_em_fixed_point: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises a ValueError if an option is out of range."""
        check_size("Anderson.window", self.window)
        check_option("Anderson.damping", self.damping, 0, 1)
        check_option("Anderson.relaxation", self.relaxation, 1, open_low=True)

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> AndersonState:
        """An empty window."""
        check_size("Anderson.window", self.window)
        flat = ravel_pytree(params)[0]
        none = jnp.zeros((self.window, flat.shape[0]), flat.dtype)
        return AndersonState(
            residual=jnp.zeros_like(flat),
            point=jnp.zeros_like(flat),
            residuals=none,
            points=none,
            n_seen=jnp.zeros((), jnp.int32),
            damping=jnp.asarray(self.damping, flat.dtype),
            image=params,
            jumped=jnp.zeros((), bool),
        )

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: AndersonState
    ) -> tuple[Params, AndersonState, StepInfo]:
        """See `Algorithm`."""
        image, _, objective, size_of_terms = em_step(model, params, data, sample_weight)
        flat, unravel = ravel_pytree(params)
        point, size = ravel_pytree(image)[0], ask.flat_sizes(model, params)
        residual = point - flat
        again = state.n_seen > 0
        residuals = _push(state.residuals, residual - state.residual, again)
        points = _push(state.points, point - state.point, again)
        coefficients = least_squares(residuals / size[None], residual / size, state.damping)
        moved = point - jnp.sum(coefficients[:, None] * points, 0)
        jump, feasible = allowed(model, unravel(moved), image)
        jumps = again & feasible & ~is_rounding(residual, flat, size)
        cleared = again & ~feasible
        relaxed = jnp.where(state.jumped, state.damping / jnp.asarray(self.relaxation, flat.dtype), state.damping)
        new = AndersonState(
            residual=residual,
            point=point,
            residuals=jnp.where(cleared, 0, residuals),
            points=jnp.where(cleared, 0, points),
            n_seen=jnp.where(cleared, 0, state.n_seen) + 1,
            damping=jnp.where(cleared, self._more(state.damping), jnp.maximum(relaxed, _least(flat.dtype))),
            image=image,
            jumped=jumps,
        )
        rate = _slower(jnp.nanmax(rate_of(points - residuals, -residuals, size[None])))
        more = {"rate": rate, "plain": again & ~state.jumped, "size": size_of_terms}
        return _tree.tree_where(jumps, jump, image), new, step_info(objective, image, **more)

    def refused(self, model: Any, state: AndersonState) -> tuple[Params, AndersonState, Array]:
        """See `Algorithm`: the EM point, with an empty window."""
        new = state._replace(
            residuals=jnp.zeros_like(state.residuals),
            points=jnp.zeros_like(state.points),
            damping=self._more(state.damping),
            jumped=jnp.zeros((), bool),
        )
        return state.image, new, state.jumped

    def _more(self, damping: Array) -> Array:
        raised = jnp.maximum(damping, _least(damping.dtype)) * jnp.square(jnp.asarray(self.relaxation, damping.dtype))
        return jnp.minimum(raised, 1)


def _slower(rate: Array) -> Array:
    """A rate that allows for modes which the window has not seen yet; measured on overlapping mixtures."""
    return 1 - (1 - rate) / 16


def _least(dtype: Any) -> Any:
    return jnp.asarray(jnp.square(jnp.finfo(dtype).eps), dtype)


def _push(window: Array, newest: Array, wanted: Array) -> Array:
    return jnp.where(wanted, jnp.concatenate([newest[None], window[:-1]]), window)


def least_squares(columns: Array, target: Array, damping: Array) -> Array:
    """γ = argmin ‖target − Σ γ_i columns_i‖² + λ‖γ‖², λ = damping · Σ‖columns_i‖²: (m,).

    By modified Gram–Schmidt on the columns with √λ below them, which does not square their condition and is plain
    arithmetic, fit for `vmap` (Björck 1967). Columns that others explain to rounding get γ = 0.

    Args:
        columns: (m, p); zero columns get γ = 0.
        target: (p,).
        damping: ().
    """
    m = columns.shape[0]
    # divided by their size first: their squares may not underflow
    top = jnp.maximum(jnp.max(jnp.abs(columns)), jnp.finfo(target.dtype).tiny)
    columns, target = columns / top, target / top
    ridge = jnp.sqrt(damping * jnp.sum(jnp.square(columns)))
    rest = jnp.concatenate([columns, ridge * jnp.eye(m, dtype=target.dtype)], 1)
    target = jnp.concatenate([target, jnp.zeros(m, target.dtype)])
    lengths = jnp.sqrt(jnp.sum(jnp.square(rest), 1))
    tolerance = 8 * jnp.finfo(target.dtype).eps
    upper, right, used = [], [], []
    for i in range(m):
        length = jnp.sqrt(jnp.sum(jnp.square(rest[i])))
        good = length > tolerance * lengths[i]
        unit = jnp.where(good, rest[i] / jnp.where(good, length, 1), 0)
        row = jnp.sum(rest * unit[None], 1)
        rest = rest - row[:, None] * unit[None]
        component = jnp.sum(target * unit)
        target = target - component * unit
        upper.append(row)
        right.append(component)
        used.append(good)
    solution: list[Array] = [jnp.zeros_like(damping)] * m
    for i in reversed(range(m)):
        total = right[i]
        for j in range(i + 1, m):
            total = total - upper[i][j] * solution[j]
        solution[i] = jnp.where(used[i], total / jnp.where(used[i], upper[i][i], 1), 0)
    return jnp.stack(solution)
