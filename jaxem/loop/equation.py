"""The equation R(θ; arguments) = 0 that a fit solves, and the linear map −∂R/∂θ of its derivative and corrections.

`arguments` are the model, its data and their weights; the model is not bound, but in `BoundArguments`. Where the M step
is closed form, R = M(θ) − θ; where it climbs, so that its own derivative says nothing, R is the gradient of the
objective in free coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params, PyTree
from ..contracts import capabilities as ask
from ..contracts.inside import with_slopes
from ..fold.chunks import FoldPlan
from ..fold.climb import FORWARD_PARAMETERS
from ..fold.folded import Folded, has_closed_m_step
from ..latent.finite import Soft, restrict, unlabelled
from ..latent.units import units_of
from ..numerics import tree as _tree
from ..numerics.linalg import dot, einsum
from ..numerics.solvers import Factors, Operator, Solver, choose, columns_of

_FEATURE_ROWS = 2048  # in a chunk; times components and features they still fit the cache


class BoundArguments(NamedTuple):
    """Arguments whose model is bound to the data already, for all that is asked of an equation at one place."""

    model: Any
    data: Data
    sample_weight: Array | None


def bound_model(arguments: PyTree) -> Any:
    """The model bound to the data."""
    return arguments[0] if isinstance(arguments, BoundArguments) else ask.bind(*arguments)


class Equation(Protocol):
    """R(θ; arguments) = 0 at a fit, in flat coordinates. Hashable. `plan`: how its E steps are folded."""

    @property
    def plan(self) -> FoldPlan: ...

    def bound(self, arguments: PyTree) -> PyTree:
        """The same arguments, bound once for several uses, where that is all that the equation does with them."""
        ...

    def coordinates(self, params: Params, arguments: PyTree) -> tuple[Array, Callable[[Array], Params]]:
        """The params as a vector (p,), and the way back."""
        ...

    def residual(self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """R, (p,)."""
        ...

    def residual_on(self, fast: Any, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """R, (p,), with the E step on the fast path where `fast`; `Score` has only the stable one."""
        ...

    def operator(
        self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree, fast: Any = False
    ) -> Operator:
        """−∂R/∂θ; its inverse times R is a Newton correction."""
        ...


def equation_of(params: Params, arguments: PyTree, plan: FoldPlan) -> Equation:
    """The equation that a fit of this model to these data solves."""
    return FixedPoint(plan) if has_closed_m_step(arguments[0], params, arguments[1]) else Score(plan)


def newton(
    equation: Equation, solver: Solver | None, flat: Array, to_params: Callable, arguments: PyTree, fast: Any = False
) -> tuple[Callable[[Array], Array], Array]:
    """(−∂R/∂θ)⁻¹ as a function, and R; one applied to the other is a Newton correction."""
    operator = equation.operator(flat, to_params, arguments, fast)
    inverse, residual = (choose(operator) if solver is None else solver).inverse(operator)
    return inverse, equation.residual(flat, to_params, arguments) if residual is None else residual


def minus_jacobian(equation: Equation, flat: Array, to_params: Callable, arguments: PyTree) -> Array:
    """−∂R/∂θ, (p, p)."""
    return columns_of(equation.operator(flat, to_params, arguments).linearise(), flat)


# --- M(θ) = θ


@dataclass(frozen=True)
class FixedPoint:
    """M(θ) − θ = 0, for an M step in closed form."""

    plan: FoldPlan

    def bound(self, arguments: PyTree) -> PyTree:
        """See `Equation`."""
        return BoundArguments(bound_model(arguments), *arguments[1:])

    def coordinates(self, params: Params, arguments: PyTree) -> tuple[Array, Callable[[Array], Params]]:
        """See `Equation`."""
        model = arguments[0]
        flat, unravel = model.coordinates(params) if ask.offers(model, "coordinates") else ravel_pytree(params)
        return flat, lambda flat: with_slopes(model, unravel(flat))

    def residual(self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """See `Equation`."""
        return self.residual_on(False, flat, to_params, arguments)

    def residual_on(self, fast: Any, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """See `Equation`."""
        return self.coordinates(em_map(to_params(flat), arguments, self.plan, fast), arguments)[0] - flat

    def operator(
        self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree, fast: Any = False
    ) -> Operator:
        """See `Equation`. With factors where the model has `linearised`."""
        scale = self.coordinates(jax.tree.map(_tree.sizes, to_params(lax.stop_gradient(flat))), arguments)[0]
        linearise = lambda: _minus(lambda flat: self.residual_on(fast, flat, to_params, arguments), flat)  # noqa: E731
        (_, data, sample_weight), bound = arguments, bound_model(arguments)
        # rows of an id meet in its state: their products are not those of rows
        n_features = None if units_of(data) is not None else ask.n_features(bound, unlabelled(data))
        if n_features is None:
            return Operator(linearise, scale)
        factors = lambda: _factors(bound, flat, to_params, data, sample_weight, self.plan)  # noqa: E731
        return Operator(linearise, scale, n_features * bound.n_components, factors)


def em_map(params: Params, arguments: PyTree, plan: FoldPlan, fast: Any = False) -> Params:
    """M(θ; model, data, weights): one E step and one M step of the model bound to these data."""
    _, data, sample_weight = arguments

    def step(folded: Folded) -> Params:
        stats, _ = folded.e_step(params, data, sample_weight)
        return folded.m_step(params, stats)

    return _on_path(fast, bound_model(arguments), params, plan, step)


def on_stable_path(bound: Any, params: Params, plan: FoldPlan) -> Folded:
    """The bound model's E and M step where they keep all their digits."""
    recentred = ask.recentred(bound, params)
    return Folded(recentred, plan, fast=False)


def _on_path(fast: Any, bound: Any, params: Params, plan: FoldPlan, fn: Callable[[Folded], PyTree]) -> PyTree:
    """fn of the model on its fast path if so, else on its stable one; `fast` is a traced boolean, or False."""
    stable = on_stable_path(bound, params, plan)
    return fn(stable) if fast is False else lax.cond(fast, lambda: fn(Folded(bound, plan)), lambda: fn(stable))


def may_be_fast(params: Params, arguments: PyTree, plan: FoldPlan) -> Any:
    """Whether the model trusts its fast path at these params: under `vmap`, in all lanes that are finite.

    One answer for all lanes keeps a branch a branch; side by side both would run, and a `cond` whose operands are
    tangents could not be transposed.
    """
    bound = bound_model(lax.stop_gradient(arguments))
    if plan.is_brief or not ask.has_fast_path(bound) or ask.told(bound, "may_underflow", False):
        return False
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        # data may be sharded without a trace of it here; collectives in a branch then wait for others for ever
        return False
    params = lax.stop_gradient(params)
    return _in_all_lanes(bound.trusted(params) | ~_tree.is_finite((bound, params)))


@jax.custom_batching.custom_vmap
def _in_all_lanes(flag: Array) -> Array:
    return flag


@_in_all_lanes.def_vmap
def _in_all_lanes_vmap(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return (jnp.all(flag, 0), False) if in_batched[0] else (flag, False)


def _factors(
    bound: Any, flat: Array, to_params: Callable, data: Data, sample_weight: Array | None, plan: FoldPlan
) -> Factors:
    """∂M/∂θ = (statistics → M) · (natural parameters → statistics) · (θ → natural parameters).

    All rows are in the middle factor alone: with T_ij the features of row i as component j sees them,
    ∂S_j/∂η_l = Σ_i r_ij (δ_jl − r_il) T_ij T_ilᵀ, which is one matrix product.
    """
    params = to_params(flat)
    local = bound.linearised(params)
    folded = Folded(local, plan, fast=False)
    own, pairs = folded.sum_rows(_feature_products, params, data, sample_weight, _FEATURE_ROWS)
    k, f = own.shape[:2]
    together = jnp.zeros((k, f, k, f), own.dtype).at[jnp.arange(k), :, jnp.arange(k), :].set(own)

    def natural(flat: Array) -> Array:
        return local.natural(to_params(flat)).reshape(-1)

    def mode(sums: Array) -> Array:  # Σ r T is where T meets its first entry, which is one
        return ravel_pytree(local.m_step(params, local.stats_of_products(own.at[:, 0].set(sums.reshape(k, f)))))[0]

    down = jax.linearize(natural, flat)[1]
    image, up = jax.linearize(mode, own[:, 0].reshape(-1))
    # components meet in their counts alone, the first features, where Σ_j w_j = 1
    return Factors(down, together.reshape(k * f, k * f) - pairs, up, k, image - flat)


def _feature_products(local: Any, params: Params, data: Data, sample_weight: Array | None) -> tuple[Array, Array]:
    """Σ r_ij T_ij T_ijᵀ, (k, f, f), and Σ r_ij r_il T_ij T_ilᵀ, (kf, kf)."""
    features = local.features(unlabelled(data))
    k, f, n = features.shape
    log_joint = jnp.sum(features * local.natural(params)[:, :, None], 1).T
    r = Soft()(restrict(log_joint, data))[0].T
    times_r = features * r[:, None]
    weighted = times_r if sample_weight is None else times_r * sample_weight[None, None]
    own = einsum("kfn,kgn->kfg", weighted, features)
    return own, dot(weighted.reshape(k * f, n), times_r.reshape(k * f, n).T)


# --- ∇ objective = 0


@dataclass(frozen=True)
class Score:
    """The gradient of log-likelihood + log prior is zero, in free coordinates.

    Coordinates of components that are switched off or have weight zero are held where they are: the identity there.
    """

    plan: FoldPlan

    def bound(self, arguments: PyTree) -> PyTree:
        """See `Equation`: a model is put on its boundary first."""
        return arguments

    def coordinates(self, params: Params, arguments: PyTree) -> tuple[Array, Callable[[Array], Params]]:
        """See `Equation`."""
        model = ask.on_its_boundary(ask.holding(arguments[0], params), params)
        flat, unravel = ravel_pytree(ask.free(model, params))
        return flat, lambda flat: ask.from_free(model, unravel(flat))

    def residual(self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """See `Equation`."""
        params = lax.stop_gradient(to_params(flat))
        arguments = (ask.on_its_boundary(arguments[0], params), *arguments[1:])
        slope = gradient(lambda flat: values(to_params(flat), arguments, self.plan)[1], flat)
        return jnp.where(held_coordinates(arguments[0], params, flat), 0, slope)

    def residual_on(self, fast: Any, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree) -> Array:
        """See `Equation`."""
        return self.residual(flat, to_params, arguments)

    def operator(
        self, flat: Array, to_params: Callable[[Array], Params], arguments: PyTree, fast: Any = False
    ) -> Operator:
        """See `Equation`."""
        fn = lambda flat: self.residual(flat, to_params, arguments)  # noqa: E731
        held = held_coordinates(arguments[0], lax.stop_gradient(to_params(flat)), flat)

        def linearise() -> Callable[[Array], Array]:
            push = _minus(fn, flat)
            return lambda v: jnp.where(held, v, push(jnp.where(held, 0, v)))

        return Operator(linearise, jnp.ones_like(flat))


def held_coordinates(model: Any, params: Params, flat: Array) -> Array:
    """Which free coordinates of the params are not estimated: booleans (p,)."""
    model = ask.on_its_boundary(model, params)
    return ravel_pytree(ask.held(model, params))[0]


def _minus(fn: Callable[[Array], Array], flat: Array) -> Callable[[Array], Array]:
    push = jax.linearize(fn, flat)[1]
    return lambda v: -push(v)


def gradient(fn: Callable[[Array], Array], flat: Array) -> Array:
    """∂fn/∂flat, (p,); forwards where that is affordable: states of probability zero then leave no 0·inf."""
    forwards = flat.shape[0] <= FORWARD_PARAMETERS
    return (jax.jacfwd if forwards else jax.grad)(fn)(flat)


def values(params: Params, arguments: PyTree, plan: FoldPlan, fast: Any = False) -> tuple[Array, Array]:
    """log p(data | θ) and log p(data | θ) + log p(θ), () each."""
    (_, data, sample_weight), bound = arguments, bound_model(arguments)
    value = lambda folded: folded.e_step(params, data, sample_weight)[1]  # noqa: E731
    log_lik = _on_path(fast, bound, params, plan, value)
    return log_lik, log_lik + ask.log_prior(bound, params)
