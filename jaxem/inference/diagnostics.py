"""What to know about a fit beyond its status, and the theory made visible: the bound, its gap, the rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from .._typing import Array, Data, Params
from ..algorithms.em import EM
from ..contracts import capabilities as ask
from ..contracts.admissible import holdings
from ..contracts.inside import refuses_jumps
from ..contracts.result import FitResult
from ..drivers.asked import take_in
from ..fold.chunks import FoldPlan
from ..fold.folded import Folded, expected_log_joint, has_closed_m_step
from ..fold.units import joint_and_weight
from ..latent.finite import Soft, unlabelled
from ..loop.equation import equation_of, gradient, held_coordinates, minus_jacobian, newton
from ..loop.loop import advance, start
from ..loop.state import LoopState
from ..loop.stopping import Objective
from ..numerics import tree as _tree
from ..numerics.arguments import as_weighted_rows
from ..numerics.linalg import spectral_radius

_FEW_ROWS = 5  # a component of fewer is named


class Diagnosis(NamedTuple):
    """Findings about a fit; of lanes or groups, one a lane. What is not known is None.

    Attributes:
        smallest_weight: of the active components. Zero is a legal boundary optimum: the component is not needed.
        worst_condition: largest condition number of an active component's covariance; NaN for families without one.
        equal_components: two active components are the same, as after a symmetric start: EM cannot part them.
        largest_fall: the most that the objective fell from one iteration to the next, 0 if it never did; rounding, if
            the algorithm is monotone. NaN without a history.
        smallest_count: the fewest rows, weight · total weight, that an active component of positive weight holds.
        largest_ratio: of two eigenvalues of covariances, within one such component or between two.
        n_at_floor: how many of them lie at the floor of their family: on a value that repeats, or on a few rows.
        n_best: of several starts, how many reached the best objective.
        n_starts: of how many.
        jumps_refused: of a model that is no mixture, whether its `feasible` and `projected` refuse its own params.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> x = jnp.array([[-1.0], [0.0], [1.0]])
        >>> bank = jaxem.NormalParams(jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1)))
        >>> params = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> unused = params._replace(weights=jnp.array([1.0, 0.0]))
        >>> jaxem.diagnose(model, unused).messages()
        ['a component has weight zero: fewer components give the same density.']
    """

    smallest_weight: Array
    worst_condition: Array
    equal_components: Array
    largest_fall: Array
    smallest_count: Any = None
    largest_ratio: Any = None
    n_at_floor: Any = None
    n_best: Any = None
    n_starts: Any = None
    jumps_refused: Any = None

    def messages(self) -> list[str]:
        """Sentences on what is unusual; empty if nothing is. Of lanes, each says in how many. Needs concrete values."""
        found: list[tuple[Any, str]] = [
            (
                np.asarray(self.equal_components),
                "two components are equal: their starts were, and EM cannot part them; start elsewhere.",
            ),
            (
                np.asarray(self.smallest_weight) <= 0,
                "a component has weight zero: fewer components give the same density.",
            ),
        ]
        condition = np.asarray(self.worst_condition)
        near_singular = condition > 1e-2 / np.finfo(condition.dtype).eps
        found.append(
            (near_singular, "a covariance is nearly singular for this dtype; use float64, a larger floor or a prior.")
        )
        if self.n_at_floor is not None:
            text = (
                "a component lies at the floor, on a value that repeats or on a few rows: it is a spike, no answer; "
                "use fewer components, admissible=Admissible(), max_ratio= of the family, or a prior."
            )
            found.append((np.asarray(self.n_at_floor) > 0, text))
        if self.smallest_count is not None:
            text = (
                f"a component holds fewer than {_FEW_ROWS} rows: look at them before you believe it; use fewer "
                "components, or admissible=Admissible()."
            )
            few = (np.asarray(self.smallest_count) < _FEW_ROWS) & (np.asarray(self.smallest_weight) < 1)
            found.append((few, text))
        fall = np.asarray(self.largest_fall)
        size = f"{np.max(np.nan_to_num(fall)):.1e}"
        falls = fall > np.sqrt(np.finfo(fall.dtype).eps)  # less is rounding
        found.append((falls, f"the objective fell by up to {size} from one iteration to the next."))
        if self.n_best is not None and self.n_starts is not None:
            alone = (np.asarray(self.n_best) == 1) & (np.asarray(self.n_starts) > 1)
            n_starts = int(np.max(np.asarray(self.n_starts)))
            found.append((alone, f"1 of {n_starts} starts reached the best objective: more may find a better one."))
        if self.jumps_refused is not None:
            text = "`feasible` or `projected` refuses the params of the fit: algorithms that jump take EM steps alone."
            found.append((np.asarray(self.jumps_refused), text))
        return [_said(where, text) for where, text in found if np.any(where)]


def _said(where: Any, text: str) -> str:
    """The sentence; of lanes with their number, and the first of them."""
    if np.ndim(where) == 0:
        return text
    lanes = np.flatnonzero(where)
    first = ", ".join(map(str, lanes[:5].tolist())) + (", …" if len(lanes) > 5 else "")
    return f"in {len(lanes)} of {np.size(where)} ({first}): {text}"


def diagnose(model: Any, params: Params = None, history: Array | None = None, *, total_weight: Any = None) -> Diagnosis:
    """What is unusual about a fit, in numbers and, by `messages()`, in sentences.

    Weights at zero, components of few rows, at the floor, or equal; near-singular covariances; falls of the objective;
    a best objective that one start alone has reached. Of another model falls, and whether it lets algorithms jump.

    Args:
        model: a `FitResult` of one fit or of lanes, or a `GroupsResult`, which know the rest; or a bound `Mixture`.
        params: its params; of lanes, stacked, with the model of each (as results have it) or with one for all (as
            `load` reads it from the command's files). Only a bound model knows where its floor lies.
        history: of the fit, objectives with NaN beyond the last; None leaves out `largest_fall`.
        total_weight: of the rows that were fitted; None leaves out `smallest_count` and `n_at_floor`.

    Returns:
        A `Diagnosis`; of lanes its arrays lead with them.

    Example:
        >>> import jax, jaxem
        >>> x = jax.random.normal(jax.random.key(0), (50, 1))
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> half = jaxem.Responsibilities(jax.numpy.full((50, 2), 0.5))
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x, method=half), x)
        >>> jaxem.diagnose(result).messages()
        ['two components are equal: their starts were, and EM cannot part them; start elsewhere.']
        >>> groups = jaxem.fit_groups(model, jax.random.key(1), x, [0] * 25 + [1] * 25)
        >>> jaxem.diagnose(groups).smallest_weight.shape
        (2,)
    """
    result = getattr(model, "fits", model)
    own = result.params if isinstance(result, FitResult) else params
    if not hasattr(own, "weights") and not isinstance(result, FitResult):
        raise ValueError(
            f"model: expected a mixture, whose weights are looked at, got params {type(own).__name__}; other models "
            "are told by their status and history."
        )
    if not isinstance(result, FitResult):
        return _diagnose_lanes(_n_lane_axes(model, params), model, params, history, total_weight)
    found = _diagnose_lanes(
        jnp.ndim(result.status), result.model, result.params, result.history, result.total_weight
    )  # fmt: skip
    return found._replace(n_best=result.n_best, n_starts=result.n_starts)


def _n_lane_axes(model: Any, params: Params) -> int:
    """How many axes of lanes lead params that were not told apart by a result."""
    gated = ask.told(model, "gate", None) is not None
    return 0 if gated else max(jnp.ndim(params.weights) - 1, 0)


def _diagnose_lanes(n_axes: int, model: Any, params: Params, history: Any, total_weight: Any) -> Diagnosis:
    if n_axes == 0:
        return _diagnose_one(model, params, history, total_weight)
    n_lanes = jax.tree.leaves(params)[0].shape[0]
    stacked = [jnp.ndim(leaf) > 0 and jnp.shape(leaf)[0] == n_lanes for leaf in jax.tree.leaves(model)]
    axis = 0 if stacked and all(stacked) else None  # of a loaded model, which all share
    of_history = None if np.ndim(history) <= 1 else 0
    of_weight = None if np.ndim(total_weight) == 0 else 0
    one = lambda model, params, history, total: _diagnose_lanes(n_axes - 1, model, params, history, total)  # noqa: E731
    return jax.vmap(one, (axis, 0, of_history, of_weight))(model, params, history, total_weight)


def _diagnose_one(model: Any, params: Params, history: Array | None, total_weight: Any) -> Diagnosis:
    if not hasattr(params, "weights"):
        nan, no = jnp.full((), jnp.nan, history.dtype), jnp.zeros((), bool)  # type: ignore[union-attr]
        return Diagnosis(nan, nan, no, _largest_fall(history), jumps_refused=refuses_jumps(model, params))  # type: ignore[arg-type]
    weights, k = params.weights, model.n_components
    active = jnp.ones(k, bool) if model.active is None else jnp.asarray(model.active)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    gated = ask.told(model, "gate", None) is not None
    smallest = jnp.full((), jnp.nan, dtype) if gated else jnp.min(jnp.where(active, weights, jnp.inf))
    # components of different families are never equal
    same = jnp.full((k, k), ask.component_axes(model) is not None)
    for leaf in _leaves_by_component(model, params):
        flat = leaf.reshape(k, -1)
        tolerance = 64 * jnp.finfo(leaf.dtype).eps * jnp.max(jnp.abs(flat), 0)
        same = same & jnp.all(jnp.abs(flat[:, None] - flat[None]) <= tolerance[None, None], -1)
    pairs = active[:, None] & active[None] & ~jnp.eye(k, dtype=bool)
    fall = jnp.full((), jnp.nan, dtype) if history is None else _largest_fall(history)
    found = holdings(model, params, total_weight)
    return Diagnosis(smallest, _worst_condition(model, params, active), jnp.any(same & pairs), fall, *found)


def _leaves_by_component(model: Any, params: Params) -> list[Array]:
    """The leaves that lead with the components; none where these are not exchangeable."""
    axes = ask.component_axes(model)
    if axes is None:
        return []
    own = lambda axis, subtree: None if axis is None else subtree  # noqa: E731
    return jax.tree.leaves(jax.tree.map(own, axes, params, is_leaf=lambda axis: axis is None))


def _largest_fall(history: Array) -> Array:
    falls = history[:-1] - history[1:]
    return jnp.max(jnp.where(falls > 0, falls, 0), initial=0)


def _worst_condition(model: Any, params: Params, active: Array) -> Array:
    covariance = getattr(params.components, "covariance", None)
    if covariance is None:
        return jnp.full((), jnp.nan, jnp.result_type(*jax.tree.leaves(params)))
    d = params.components.mean.shape[-1]
    of_model: Any = ask.component_axes(model)
    axes = None if of_model is None else of_model.components
    shared = axes is not None and axes.covariance is None
    if covariance.shape[-2:] == (d, d) and covariance.ndim == (2 if shared else 3):
        eigenvalues = jnp.linalg.eigvalsh(covariance)
    elif covariance.ndim == 2:
        eigenvalues = covariance
    else:
        eigenvalues = covariance[:, None]
    condition = jnp.max(eigenvalues, -1) / jnp.min(eigenvalues, -1)
    return condition if shared else jnp.max(jnp.where(active, condition, 1))


class Decomposition(NamedTuple):
    """log p(X | θ) = elbo + kl for any posterior q, sums over observations, each ().

    Attributes:
        log_lik: log p(X | θ).
        elbo: E_q[log p(X, Z | θ)] + H(q), which is at most log_lik.
        kl: KL(q ‖ p(Z | X, θ)) ≥ 0.
        expected_log_joint: E_q[log p(X, Z | θ)].
        entropy: H(q).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> x = jnp.array([[-1.0], [0.0], [1.0]])
        >>> bank = jaxem.NormalParams(jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1)))
        >>> params = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> parts = jaxem.decompose(model, params, x)  # with the exact posterior
        >>> abs(float(parts.kl)) < 1e-5, bool(jnp.isclose(parts.expected_log_joint + parts.entropy, parts.elbo))
        (True, True)
    """

    log_lik: Array
    elbo: Array
    kl: Array
    expected_log_joint: Array
    entropy: Array


def decompose(
    model: Any, params: Params, data: Data, posterior: Any = None, *, sample_weight: Any = None
) -> Decomposition:
    """The two parts of the log-likelihood of a model with finitely many latent states (Neal & Hinton 1998).

    Args:
        model: with `log_joint`.
        params: at which.
        data: as in `fit`, labelled or not.
        posterior: q, (n, k), rows that sum to 1; None is the exact posterior, whose kl is 0.
        sample_weight: (n,) or None.

    Returns:
        A `Decomposition`. Where q gives weight to a state that is impossible, elbo is −inf and kl inf.

    Raises:
        ValueError: if the model has no `log_joint`, or the posterior is not (n, k).

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> x = jnp.array([[-1.0], [0.0], [1.0]])
        >>> bank = jaxem.NormalParams(jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1)))
        >>> params = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> parts = jaxem.decompose(model, params, x, posterior=jnp.full((3, 2), 0.5))
        >>> bool(jnp.isclose(parts.elbo + parts.kl, parts.log_lik)), round(float(parts.kl), 2)
        (True, 0.87)
    """
    _check_states(model)
    data, sample_weight = as_weighted_rows(data, sample_weight)
    model = ask.bind(model, unlabelled(data), sample_weight)
    log_joint, sample_weight = joint_and_weight(Folded(model, fast=False), params, data, sample_weight)
    exact, evidence = Soft()(log_joint)
    q = exact if posterior is None else posterior
    if jnp.shape(q) != log_joint.shape:
        raise ValueError(f"posterior: expected shape {log_joint.shape}, one value a row and state, got {jnp.shape(q)}.")
    weight = jnp.ones_like(evidence) if sample_weight is None else jnp.asarray(sample_weight, evidence.dtype)
    total = lambda rows: jnp.sum(jnp.where(weight > 0, weight * rows, 0))  # noqa: E731
    positive = q > 0
    expected = total(jnp.sum(jnp.where(positive, q * jnp.where(positive, log_joint, 0), 0), 1))
    entropy = total(-jnp.sum(xlogy(q, q), 1))
    log_ratio = jnp.where(positive, jnp.log(jnp.where(positive, q, 1)) - (log_joint - evidence[:, None]), 0)
    return Decomposition(total(evidence), expected + entropy, total(jnp.sum(q * log_ratio, 1)), expected, entropy)


class BoundTrace(NamedTuple):
    """Both half steps of every iteration; each field (n_iter,).

    Attributes:
        after_e: decompositions at θ_t with the posterior of θ_t: kl is 0, elbo is the log-likelihood.
        after_m: decompositions at θ_{t+1} with the posterior of θ_t: elbo has risen, kl has opened again.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> trace = jaxem.trace_bound(model, model.init(jax.random.key(0), x), x, n_iter=2)
        >>> bool(jnp.all(trace.after_m.kl > trace.after_e.kl))  # an M step opens the gap that the E step has closed
        True
    """

    after_e: Decomposition
    after_m: Decomposition


def _check_states(model: Any) -> None:
    if not ask.offers(model, "log_joint"):
        raise ValueError(
            f"model: {type(model).__name__} has no log_joint; expected a model with one of finitely many states a row."
        )


def trace_bound(model: Any, params: Params, data: Data, n_iter: int, *, sample_weight: Any = None) -> BoundTrace:
    """Watches EM raise the bound and close its gap, from `params` on.

    Args:
        model: with `log_joint`.
        params: start.
        data: as in `fit`.
        n_iter: iterations, static.
        sample_weight: (n,) or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> trace = jaxem.trace_bound(model, model.init(jax.random.key(0), x), x, n_iter=2)
        >>> bool(jnp.all(trace.after_m.elbo > trace.after_e.elbo))  # an M step raises the bound
        True
    """
    _check_states(model)
    model, data, sample_weight, dtype = take_in(model, data, sample_weight)
    bound = ask.bind(model, data, sample_weight)
    params = _tree.cast_data(params, dtype)
    state = start(bound, params, data, sample_weight, algorithm=EM(), max_iter=n_iter)
    halves = []
    for i in range(n_iter):
        # one evaluation a call: `best` is where it took place, `params` what it proposes
        state, half = _half_steps(state, bound, data, sample_weight, min(i, 1))
        halves.append(half)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves)


@jax.jit
def _half_steps(
    state: LoopState, model: Any, data: Data, sample_weight: Array | None, n_iter: Array
) -> tuple[LoopState, BoundTrace]:
    state = advance(state, model, data, sample_weight, algorithm=EM(), stop=Objective(-1.0), n_iter=n_iter)
    globally = lambda params: ask.to_global(model, params)  # noqa: E731
    here, there = globally(state.best), globally(state.params)
    posterior = Soft()(joint_and_weight(Folded(model, fast=False), here, data, sample_weight)[0])[0]
    at = lambda params: decompose(model, params, data, posterior, sample_weight=sample_weight)  # noqa: E731
    return state, BoundTrace(at(here), at(there))


def em_rate(model: Any, params: Params, data: Data, *, sample_weight: Any = None) -> Array:
    """The rate at which EM converges near a fit, in [0, 1): the largest fraction of missing information.

    The spectral radius of ∂M/∂θ (Dempster, Laird & Rubin 1977, eq. 3.15). Where the M step climbs, its derivative says
    nothing, and the radius is that of 1 − I_complete⁻¹ I_observed in free coordinates.

    Args:
        model: as in `fit`.
        params: a fixed point; polish it by `newton_correction` if the fit stopped early.
        data: as in `fit`.
        sample_weight: (n,) or None.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> from typing import NamedTuple
        >>> class Lifetimes(NamedTuple):  # exponential; one that was cut off, with 0, is expected to go on for 1 / rate
        ...     def e_step(self, rate, data, w):
        ...         time, ended = data
        ...         return (w.sum(), w @ (time + (1 - ended) / rate)), w @ (ended * jnp.log(rate) - rate * time)
        ...     def m_step(self, rate, stats):
        ...         return stats[0] / stats[1]
        >>> time, ended = jnp.array([1.0, 2.0, 3.0, 3.0]), jnp.array([1.0, 1.0, 0.0, 0.0])
        >>> result = jaxem.fit(Lifetimes(), 1.0, (time, ended), tol=1e-9)
        >>> jaxem.em_rate(Lifetimes(), result.params, (time, ended)).round(2)  # half of them have not ended
        Array(0.5, dtype=...)
    """
    plan = FoldPlan()
    data, sample_weight = as_weighted_rows(data, sample_weight)
    arguments = (model, data, sample_weight)
    equation = equation_of(params, arguments, plan)
    flat, to_params = equation.coordinates(params, arguments)
    minus = minus_jacobian(equation, flat, to_params, arguments)
    if has_closed_m_step(model, params, data):
        map_jacobian = jnp.eye(flat.shape[0], dtype=flat.dtype) - minus
    else:
        bound = ask.bind(ask.on_its_boundary(model, params), data, sample_weight)
        stats, _ = Folded(bound, plan, fast=False).e_step(params, data, sample_weight)
        q, _ = expected_log_joint(bound, stats)
        complete = lambda flat: q(to_params(flat)) + ask.log_prior(bound, to_params(flat))  # noqa: E731
        identity, held = jnp.eye(flat.shape[0], dtype=flat.dtype), held_coordinates(model, params, flat)
        information = -jax.jacfwd(lambda flat: gradient(complete, flat))(flat)
        information = jnp.where(held[:, None] | held[None], identity, information)
        map_jacobian = identity - jnp.linalg.solve(information, minus)
    return spectral_radius(map_jacobian)


def newton_correction(model: Any, params: Params, data: Data, *, sample_weight: Any = None) -> Params:
    """Params moved by one Newton step towards the fixed point that they are near; EM stops a little before it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.arange(9.0), jnp.arange(5.0, 12.0)])[:, None]  # overlapping: EM is slow
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> early = jaxem.fit(model, model.init(jax.random.key(0), x), x, tol=1e-4).params
        >>> em_step = lambda params: jaxem.fit(model, params, x, max_iter=1).params
        >>> residual = lambda params: jnp.abs(em_step(params).weights - params.weights).max()
        >>> bool(residual(jaxem.newton_correction(model, early, x)) < residual(early) / 20)
        True
    """
    arguments = (model, *as_weighted_rows(data, sample_weight))
    equation = equation_of(params, arguments, FoldPlan())
    flat, to_params = equation.coordinates(params, arguments)
    inverse, residual = newton(equation, None, flat, to_params, arguments)
    return to_params(flat + inverse(residual))
