"""Any density as a component of a mixture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import bijections
from ..._typing import Array, Data, Params
from ...bijections import constraints_of
from ...contracts.functions import PerRowAndComponent, as_function
from ...contracts.space import BankCoordinates
from ...fold.chunks import CURVATURE_ROWS, Rows
from ...fold.climb import Truncated, check_ascent, climb
from ...fold.present import some_present_row, without_absent_rows
from ...numerics import tree as _tree
from .._of_rows import OfRows


@_tree.register
@dataclass(frozen=True)
class Density(OfRows, BankCoordinates):
    """A family given by the log density of one observation under one component; its M step climbs by autodiff.

    The params of a bank are the tree that the function takes, every leaf leading with the k components.

    Attributes:
        log_prob: function (params, x) -> (), log f(x | params) of one component and one observation, −inf or NaN
            outside the support; smooth in the params: at a kink, as of a Laplace density, the climb may end too early.
            Defined at module level; see `LogJoint`.
        constraints: prefix tree over the params of one component; None is unconstrained.
        start: params of one component, from which an M step without params sets out (`Mixture.init`).
        m_step: `Truncated(n)` or `Full()`, each component by itself.
        log_prior_of_one: function of the params of one component -> (), or None.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> def student(params, x):  # with 4 degrees of freedom, up to a constant
        ...     whitened = (x - params["centre"]) / params["scale"]
        ...     return -2.5 * jnp.log1p(jnp.square(whitened) / 4) - jnp.log(params["scale"])
        >>> family = jaxem.Density(student, {"centre": None, "scale": jaxem.bijections.positive})
        >>> x = jnp.concatenate([jnp.linspace(-1.0, 1.0, 31), 8 + jnp.linspace(-2.0, 2.0, 31)])
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), {"centre": jnp.array([1.0, 5.0]), "scale": jnp.ones(2)})
        >>> jaxem.fit(jaxem.Mixture(family, 2), start, x).params.components["centre"].round(1) + 0.0
        Array([0., 8.], dtype=...)
    """

    log_prob: Any
    constraints: Any = field(metadata={"static": True}, default=None)
    start: Params | None = None
    m_step: Any = Truncated(3)
    log_prior_of_one: Any = None

    def __post_init__(self) -> None:
        check_ascent(self.m_step)
        if not isinstance(self.log_prob, PerRowAndComponent):
            object.__setattr__(self, "log_prob", PerRowAndComponent(as_function(self.log_prob, "log_prob")))
        if self.log_prior_of_one is not None:
            object.__setattr__(self, "log_prior_of_one", as_function(self.log_prior_of_one, "log_prior_of_one"))
        object.__setattr__(self, "constraints", constraints_of(self.constraints))

    def estimate(self, bank: Params | None, stats: Rows, active: Array | None = None) -> Params:
        """A bank of a higher expected log density plus log prior; each component climbs by itself."""
        k = stats.responsibilities.shape[1]
        if bank is None:
            bank = self._started(k)

        def one(params: Params, r: Array) -> Params:
            # a row that the component cannot explain is not looked at: its density may have NaN for a slope
            data = without_absent_rows(stats.data, r, some_present_row(stats.data, r))
            rows = Rows(data, r[:, None], stats.plan)

            def expected(rows: Rows) -> Callable[[Params], Array]:
                single = lambda params: jax.tree.map(lambda leaf: leaf[None], params)  # noqa: E731
                q = lambda params: jnp.sum(rows.expectation(lambda x: self.log_prob(single(params), x)))  # noqa: E731
                return lambda params: q(params) + self._log_prior_of(params)

            return climb(
                self.m_step,
                expected(rows),
                params,
                size=jnp.sum(r),
                sample=expected(rows.sample(CURVATURE_ROWS)),
                to_free=self.constraints.to_free,
                from_free=self.constraints.from_free,
                forward=True,
            )

        return jax.vmap(one, (0, 1))(bank, stats.responsibilities)

    def _started(self, k: int) -> Params:
        if self.start is None:
            raise ValueError(
                "start: expected the params of one component to set out from, got None; write Density(…, start=params)"
                ", or pass start params to fit or fit_batch."
            )
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k, *jnp.shape(leaf))), self.start)

    def _log_prior_of(self, params: Params) -> Array:
        if self.log_prior_of_one is None:
            return jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
        return self.log_prior_of_one(params)

    def log_prior(self, bank: Params, active: Array | None = None) -> Array:
        """Σ over the active components of the log prior of each: ()."""
        terms = jax.vmap(self._log_prior_of)(bank)
        return jnp.sum(terms if active is None else jnp.where(active, terms, 0))

    @property
    def space(self) -> Any:
        """The constraints."""
        return self.constraints

    def n_parameters(self, bank: Params, n_components: Any) -> Any:
        """Free parameters of so many components."""
        k = jax.tree.leaves(bank)[0].shape[0]
        free = jax.eval_shape(self.unconstrain, bank)
        return n_components * (sum(leaf.size for leaf in jax.tree.leaves(free)) // k)

    def component_axes(self) -> Any:
        """Every leaf leads with the components."""
        return 0

    def points(self, x: Data) -> Array:
        """Rows as points, for k-means: their numbers side by side."""
        return _tree.side_by_side(x)

    def check_params(self, bank: Params, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of a concrete bank violates the constraints."""
        self.constraints.check(bank, "params.components", lanes=lanes)

    def validate(self, bank: Params, x: Data, n_components: int) -> None:
        """Raises a ValueError if bank, constraints and function do not fit each other."""
        for leaf in jax.tree.leaves(bank):
            if jnp.shape(leaf)[:1] != (n_components,):
                raise ValueError(
                    f"params.components: expected leaves leading with {n_components} components, got {jnp.shape(leaf)}."
                )
        self.constraints.check(bank, "params.components")
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (bank, x))
        out = jax.eval_shape(self.log_prob.one, *one)
        if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
            got = f"{out.dtype}{out.shape}" if hasattr(out, "shape") else type(out).__name__
            raise ValueError(f"log_prob: expected a floating () for one component and observation, got {got}.")


@dataclass(frozen=True)
class _NumpyroLogProb:
    distribution: Any

    def __call__(self, params: dict, x: Data) -> Array:
        distribution = self.distribution(**params, validate_args=False)
        support = distribution.support
        inside = support(x)
        legal = jnp.asarray(support.feasible_like(x), x.dtype)  # in its place, so that the slope is not NaN
        log_prob = distribution.log_prob(jnp.where(inside.reshape(*inside.shape, *[1] * support.event_dim), x, legal))
        # some densities of numpyro are finite outside of their support
        log_prob = jnp.where(inside, log_prob, -jnp.inf)
        return jnp.sum(log_prob)


def from_numpyro(distribution: Any, **options: Any) -> Density:
    """A numpyro distribution class as a component family; constraints and a start are read from the class.

    Args:
        distribution: e.g. `numpyro.distributions.Gamma`. Its params become a dict of arrays leading with k.
        options: the other fields of `Density`; `constraints` for parameters that numpyro leaves open, and `start`
            where they are not scalars.

    Raises:
        ImportError: without numpyro.
        ValueError: if a constraint of the class has no bijection here.

    Example:
        >>> import jax.numpy as jnp, jaxem, numpyro
        >>> model = jaxem.Mixture(jaxem.from_numpyro(numpyro.distributions.Gumbel), n_components=2)
        >>> bank = {"loc": jnp.array([0.0, 9.0]), "scale": jnp.array([1.0, 1.0])}
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), bank)  # for jaxem.fit(model, start, x)
        >>> model.predict(start, jnp.array([0.5, 8.0]))
        Array([0, 1], dtype=...)
    """
    try:
        from numpyro.distributions import constraints as known
    except ImportError as error:
        raise ImportError("from_numpyro needs numpyro: pip install numpyro.") from error
    if not isinstance(distribution, type) or not hasattr(distribution, "arg_constraints"):
        raise ValueError(f"distribution: expected a class of numpyro.distributions, got {distribution!r}.")
    by_constraint = [  # in some versions constraints have no hash
        (known.real, bijections.real),
        (known.real_vector, bijections.real),
        (known.positive, bijections.positive),
        (known.nonnegative, bijections.positive),
        (known.unit_interval, bijections.unit_interval),
        (known.simplex, bijections.simplex),
        (known.ordered_vector, bijections.ordered),
        (known.positive_definite, bijections.positive_definite),
    ]
    constraints = options.pop("constraints", None)
    if constraints is None:
        constraints = {
            name: _bijection_of(constraint, by_constraint, f"{distribution.__name__}.{name}")
            for name, constraint in _own_parameters(distribution).items()
        }
    start = options.pop("start", None)
    arrays = (bijections.simplex, bijections.ordered, bijections.positive_definite)
    if start is None and not any(bijection in arrays for bijection in constraints.values()):
        start = {name: np.asarray(bijection.from_free(jnp.zeros(()))) for name, bijection in constraints.items()}
    return Density(_NumpyroLogProb(distribution), constraints, start=start, **options)


def _bijection_of(constraint: Any, by_constraint: list, name: str) -> bijections.Bijection:
    low, high = (getattr(constraint, side, None) for side in ("lower_bound", "upper_bound"))
    for same, bijection in by_constraint:
        if constraint is same:
            return bijection
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return bijections.interval(float(low), float(high))
    if isinstance(low, (int, float)):
        return bijections.greater_than(float(low))
    raise ValueError(
        f"{name}: expected a constraint that has a bijection, got {constraint}; pass constraints={{name: bijection}} "
        "over all parameters."
    )


def _own_parameters(distribution: Any) -> dict[str, Any]:
    """The constraints of the parameters that the constructor takes, without alternatives that default to None."""
    import inspect

    signature = inspect.signature(distribution.__init__).parameters
    return {
        name: constraint
        for name, constraint in distribution.arg_constraints.items()
        if name in signature and signature[name].default is not None
    }
