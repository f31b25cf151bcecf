"""How sure a fit is of its params: standard errors from the observed information, and the influence of each row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Params, PyTree
from ..contracts import capabilities as ask
from ..contracts.columns import param_columns
from ..contracts.result import check_status
from ..contracts.status import Status
from ..drivers.asked import check_arguments, take_in
from ..fold.chunks import FoldPlan, plan_fold
from ..fold.folded import Folded, expected_log_joint
from ..fold.units import States, log_joint_of_units
from ..latent.finite import Soft, restrict, unlabelled
from ..latent.units import row_weight, unit_weight, units_of
from ..loop.derivative import Implicit
from ..loop.equation import Score, gradient, held_coordinates, minus_jacobian, on_stable_path
from ..numerics import linalg as _linalg
from ..numerics import tree as _tree
from ..numerics.programs import program
from ..numerics.solvers import MOST_DENSE, columns_of

_SCORE_ROWS = 1024  # whose scores, (rows, p), are held at once


class StandardErrors(NamedTuple):
    """Standard errors and what they come from; under `vmap`, one a lane.

    Attributes:
        standard_errors: shaped as the params, or as what `of` returns.
        covariance: (q, q), of all its numbers in the order of `jax.flatten_util.ravel_pytree`.
        status: int32: CONVERGED; SINGULAR where the information is not positive definite; NONFINITE where it is not
            finite. SINGULAR leaves NaN what the data do not identify, and all of it where the params are no maximum;
            what they identify has its standard errors. Of NONFINITE all is NaN.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[1.0], [3.0], [5.0]])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=1)
        >>> params = model.init(jax.random.key(0), x)  # of one component: the fit
        >>> errors = jaxem.standard_errors(model, params, x)
        >>> errors.standard_errors.components.rate.round(3), jaxem.Status(int(errors.status)).name
        (Array([[1.]], dtype=...), 'CONVERGED')
    """

    standard_errors: PyTree
    covariance: Array
    status: Array

    def check(self) -> "StandardErrors":
        """Returns the standard errors, or raises with the reason and the first params that have none.

        Raises:
            RuntimeError: if the status, or that of any lane, is not CONVERGED.
        """
        status = np.asarray(self.status)
        if status.ndim or status == Status.CONVERGED:
            check_status(status)
            return self
        columns = param_columns(jax.tree.map(lambda leaf: np.asarray(leaf)[None], self.standard_errors))
        lost = [name for name, value in columns.items() if np.isnan(value[0])]
        code, names = Status(int(status)), ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
        raise RuntimeError(
            f"{len(lost)} of {len(columns)} numbers have no standard error ({names}), status {code.name}: "
            f"{code.explanation}"
        )


class CovarianceEstimator(Protocol):
    """The covariance of the estimates, from the inverse information. Hashable.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @dataclasses.dataclass(frozen=True)
        ... class Inflated:  # for rows that are not independent
        ...     factor: float
        ...     def covariance(self, inverse, scores):
        ...         return self.factor * inverse
        >>> x = jnp.array([[1.0], [3.0], [5.0]])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=1)
        >>> params = model.init(jax.random.key(0), x)  # of one component: the fit
        >>> errors = jaxem.standard_errors(model, params, x, covariance=Inflated(4.0))
        >>> errors.standard_errors.components.rate.round(3)
        Array([[2.]], dtype=...)
    """

    def covariance(self, inverse: Array, scores: Callable[[], Array]) -> Array:
        """(p, p), given I⁻¹ and a function that makes Σ_i s_i s_iᵀ of the scores s_i of the rows."""
        ...


@dataclass(frozen=True)
class ObservedInformation:
    """I⁻¹, for a model that is true.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[1.0], [3.0], [5.0]])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=1)
        >>> params = model.init(jax.random.key(0), x)  # of one component: the fit
        >>> errors = jaxem.standard_errors(model, params, x, covariance=jaxem.ObservedInformation())  # the default
        >>> errors.standard_errors.components.rate.round(3)  # √(mean / n)
        Array([[1.]], dtype=...)
    """

    def covariance(self, inverse: Array, scores: Callable[[], Array]) -> Array:
        """See `CovarianceEstimator`."""
        return inverse


@dataclass(frozen=True)
class Sandwich:
    """I⁻¹ (Σ_i s_i s_iᵀ) I⁻¹, which holds for a model that is not true (Huber 1967; White 1982).

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[1.0], [3.0], [5.0]])
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=1)
        >>> params = model.init(jax.random.key(0), x)  # of one component: the fit
        >>> errors = jaxem.standard_errors(model, params, x, covariance=jaxem.Sandwich())
        >>> errors.standard_errors.components.rate.round(3)  # √(variance / n), whether or not that is the mean
        Array([[0.943]], dtype=...)
    """

    def covariance(self, inverse: Array, scores: Callable[[], Array]) -> Array:
        """See `CovarianceEstimator`."""
        return _linalg.dot(_linalg.dot(inverse, scores()), inverse)


def standard_errors(
    model: Any,
    params: Params,
    data: Data,
    *,
    sample_weight: Any = None,
    of: Callable[[Params], PyTree] | None = None,
    covariance: CovarianceEstimator = ObservedInformation(),
) -> StandardErrors:
    """Standard errors of a fit's params, or of any function of them.

    The observed information I = −∂²(log-likelihood + log prior) in free coordinates is taken by Oakes' identity,
    I = −[∂²Q/∂θ'² + ∂²Q/∂θ'∂θ] at θ' = θ (Oakes 1999, eq. 3), so that the E step is differentiated once. Its inverse is
    carried to the params by the delta method. Params on a boundary, such as a component of weight zero, are held there:
    their standard error is 0. Sample weights count repeated rows.

    Args:
        model: as fitted; with `unconstrain` and `constrain` where its params are constrained.
        params: of a fit, best one with a small `tol`, or after `newton_correction`.
        data: as in `fit`.
        sample_weight: (n,) or None.
        of: a function of the params, differentiable, that returns an array or a tree of them; None is the params. A
            fresh lambda compiles anew.
        covariance: `ObservedInformation()` or `Sandwich()`.

    Returns:
        A `StandardErrors`.

    Raises:
        ValueError: on shapes that do not fit, something else for `covariance`, or more than 4096 parameters.
        TypeError: as in `fit`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.linspace(-1.0, 1.0, 101)[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(floor=0.0), n_components=1)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x)
        >>> errors = jaxem.standard_errors(model, result.params, x)
        >>> s = jnp.std(x)
        >>> bool(jnp.allclose(errors.standard_errors.components.mean, s / 101**0.5))
        True
    """
    if isinstance(covariance, type) or not hasattr(covariance, "covariance"):
        raise ValueError(f"covariance: expected ObservedInformation() or Sandwich(), got {covariance!r}.")
    arguments, params, plan = _prepared(model, params, data, sample_weight)
    return _standard_errors(of, covariance, plan, params, arguments)


def _prepared(model: Any, params: Params, data: Data, sample_weight: Any) -> tuple[PyTree, Params, FoldPlan]:
    model, data, sample_weight, dtype = take_in(model, data, sample_weight)
    params = _tree.cast_data(params, dtype)
    check_arguments(model, params, data, sample_weight)
    return (model, data, sample_weight), params, plan_fold(unlabelled(data), None)


@program(at_most=2**14, static_argnums=(0, 1, 2))
def _standard_errors(
    of: Callable | None, covariance: CovarianceEstimator, plan: FoldPlan, params: Params, arguments: PyTree
) -> StandardErrors:
    model, data, sample_weight = arguments
    model = ask.on_its_boundary(model, params)
    arguments = (model, data, sample_weight)
    flat, to_params = Score(plan).coordinates(params, arguments)
    p = flat.shape[0]
    if p > MOST_DENSE:
        raise ValueError(
            f"params: expected at most {MOST_DENSE} free coordinates, got {p}; their covariance is a dense matrix. "
            "The derivative of one quantity is jax.grad through fit, the spread of all of them bootstrap."
        )
    held = held_coordinates(model, params, flat)
    information = observed_information(flat, to_params, arguments, plan)
    found = _inverse_information(information, held)
    scores = lambda: _sum_of_squared_scores(flat, to_params, arguments, plan)  # noqa: E731
    inverse = covariance.covariance(found.inverse, lambda: jnp.where(held[:, None] | held[None], 0, scores()))
    value = lambda flat: ravel_pytree((of or _same)(to_params(flat)))[0]  # noqa: E731
    slope = jax.jacfwd(value)(flat)
    spread = _linalg.dot(_linalg.dot(slope, inverse), slope.T)
    finite = jnp.all(jnp.isfinite(information)) & _tree.is_finite(params)
    singular = jnp.any(found.open != 0) | ~found.is_maximum
    status = jnp.where(finite, jnp.where(singular, Status.SINGULAR, Status.CONVERGED), Status.NONFINITE)
    known = finite & found.is_maximum & ~_is_open(slope, found, held)
    spread = jnp.where(known[:, None] & known[None], spread, jnp.nan)
    unravel = ravel_pytree((of or _same)(to_params(flat)))[1]
    deviation = jnp.sqrt(jnp.maximum(jnp.diagonal(spread), 0))  # of a quantity that cannot vary: rounding below 0
    return StandardErrors(unravel(deviation), spread, status.astype(jnp.int32))


def _same(params: Params) -> Params:
    return params


def observed_information(flat: Array, to_params: Callable, arguments: PyTree, plan: FoldPlan) -> Array:
    """−∂²(log-likelihood + log prior)/∂θ², (p, p), in the coordinates given.

    By Oakes' identity where Q can be written; by two derivatives of the log-likelihood where it cannot.
    """
    model, data, sample_weight = arguments
    bound = ask.bind(model, data, sample_weight)
    if ask.offers(bound, "e_step") and not ask.offers(bound, "expected_log_joint"):
        information = minus_jacobian(Score(plan), flat, to_params, arguments)
    else:
        folded = on_stable_path(bound, to_params(flat), plan)

        def score(flat: Array) -> Array:
            stats, _ = folded.e_step(to_params(flat), data, sample_weight)
            q, _ = expected_log_joint(folded.model, stats)
            here = lambda other: q(to_params(other)) + ask.log_prior(bound, to_params(other))  # noqa: E731
            return gradient(here, flat)

        information = -columns_of(jax.linearize(score, flat)[1], flat)
    return (information + information.T) / 2


class _Inverse(NamedTuple):
    """I⁻¹ over what is identified, zeros for what is held; see `_inverse_information`.

    Attributes:
        inverse: (p, p).
        scale: (p,), one standard deviation of each coordinate if the others were known.
        open: (p, p), in these units orthonormal columns, the directions in which the likelihood is flat; else zeros.
        is_maximum: whether it falls in all others, ().
    """

    inverse: Array
    scale: Array
    open: Array
    is_maximum: Array


def _inverse_information(information: Array, held: Array) -> _Inverse:
    """The inverse on the span of the eigenvectors whose eigenvalues are not 0. Scale-free: the diagonal is made one."""
    free = ~(held[:, None] | held[None])
    identity = jnp.eye(held.shape[0], dtype=information.dtype)
    diagonal = jnp.where(held, 1, jnp.diagonal(information))
    scale = jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    scaled = jnp.where(free, scale[:, None] * information * scale[None], identity)
    values, vectors = _linalg.symmetric_eigen(scaled)
    least = 32 * held.shape[0] * jnp.finfo(scaled.dtype).eps
    flat = ~(jnp.abs(values) > least)
    inverse = _linalg.dot(vectors * jnp.where(flat, 0, 1 / jnp.where(flat, 1, values))[None], vectors.T)
    inverse = jnp.where(free, scale[:, None] * inverse * scale[None], 0)
    return _Inverse(inverse, scale, jnp.where(flat[None], vectors, 0), jnp.all(values > -least))


def _is_open(slope: Array, found: _Inverse, held: Array) -> Array:
    """Which quantities (q,) change in a direction in which the likelihood is flat."""
    slope = jnp.where(held[None], 0, slope * found.scale[None])
    along = jnp.sum(jnp.square(_linalg.dot(slope, found.open)), 1)
    return along > jnp.finfo(slope.dtype).eps * jnp.sum(jnp.square(slope), 1)


def _sum_of_squared_scores(flat: Array, to_params: Callable, arguments: PyTree, plan: FoldPlan) -> Array:
    """Σ_i w_i s_i s_iᵀ, (p, p), of the gradients s_i of the rows' log-likelihoods."""
    model, data, sample_weight = arguments
    folded = Folded(ask.bind(model, data, sample_weight), plan, fast=False)
    if units_of(data) is not None:
        of_ids = lambda flat: Soft()(log_joint_of_units(folded, to_params(flat), data, sample_weight))[1]  # noqa: E731
        # one tangent after the other: all at once would be so many times the rows
        scores = lax.map(lambda e: jax.jvp(of_ids, (flat,), (e,))[1], jnp.eye(flat.shape[0], dtype=flat.dtype))
        weight = States.of(data, sample_weight).weight[None]
        scores = jnp.where(weight > 0, scores, 0)
        return _linalg.dot(scores * weight, scores.T)

    def one_chunk(model: Any, params: Params, rows: Data, weight: Array | None) -> Array:
        scores = jax.jacfwd(lambda flat: _evidence(model, to_params(flat), rows))(flat)
        weighted = scores if weight is None else jnp.where(weight[:, None] > 0, weight[:, None] * scores, 0)
        return _linalg.dot(weighted.T, scores)

    return folded.sum_rows(one_chunk, to_params(flat), data, sample_weight, _SCORE_ROWS)


def _evidence(model: Any, params: Params, rows: Data) -> Array:
    """log p(x_i), (n,)."""
    if ask.offers(model, "e_step"):
        one_row = jnp.ones(1, _tree.float_dtype(rows))
        one = lambda row: model.e_step(params, jax.tree.map(lambda leaf: leaf[None], row), one_row)[1]  # noqa: E731
        return jax.vmap(one)(rows)
    return Soft()(restrict(model.log_joint(params, unlabelled(rows)), rows))[1]


def influence(
    model: Any,
    params: Params,
    data: Data,
    *,
    of: Callable[[Params], PyTree],
    sample_weight: Any = None,
    derivative: Implicit = Implicit(),
) -> PyTree:
    """What leaving out each observation would do to a function of the fit, to first order, without a refit.

    of(θ without i) − of(θ) ≈ −w_i ∂of/∂w_i, the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6), through
    the implicit derivative of the fit: one adjoint solve a number of `of`, whatever n.

    Args:
        model: as fitted.
        params: of a fit that converged.
        data: as in `fit`.
        of: a function of the params, differentiable. A fresh lambda compiles anew.
        sample_weight: (n,) or None.
        derivative: how the derivative of the fit is solved for.

    Returns:
        What `of` returns, every leaf with a leading axis n; of grouped rows u, their sorted ids.
        NaN where the params are not at a fixed point.

    Raises:
        ValueError, TypeError: as in `fit`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.array([[0.0], [1.0], [2.0], [9.0]])
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=1)
        >>> params = jaxem.fit(model, model.init(jax.random.key(0), x), x).params
        >>> jaxem.influence(model, params, x, of=lambda params: params.components.mean[0, 0])
        Array([ 0.75,  0.5 ,  0.25, -1.5 ], dtype=...)
    """
    if not isinstance(derivative, Implicit):
        raise ValueError(f"derivative: expected Implicit(), got {derivative!r}.")
    arguments, params, plan = _prepared(model, params, data, sample_weight)
    dtype = _tree.float_dtype(unlabelled(arguments[1]))
    return _influence(of, plan, params, arguments, _tree.cast_floats(derivative, dtype))


@program(at_most=2**14, static_argnums=(0, 1))
def _influence(of: Callable, plan: FoldPlan, params: Params, arguments: PyTree, derivative: Implicit) -> PyTree:
    model, data, weight = arguments
    given, units = weight, units_of(data)
    if units is not None:
        weight = unit_weight(units, weight)
    elif weight is None:
        weight = jnp.ones(_tree.n_rows(unlabelled(data)), _tree.float_dtype(unlabelled(data)))
    unravel = ravel_pytree(of(params))[1]

    def value(weight: Array) -> Array:
        weight = jnp.where(weight > 0, weight, 0)  # a row of weight zero does not exist
        weight = weight if units is None else row_weight(units, weight, given)
        return ravel_pytree(of(derivative.attach(params, (model, data, weight), plan)))[0]

    flat, pull = jax.vjp(value, weight)
    slopes = jax.vmap(lambda e: pull(e)[0])(jnp.eye(flat.shape[0], dtype=flat.dtype))
    return jax.vmap(unravel)(-(slopes * weight[None]).T)
