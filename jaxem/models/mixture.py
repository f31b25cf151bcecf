"""Finite mixtures over any component family."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from .. import _tree, parts
from .._typing import Array, Data, Key
from ..criteria import criterion_of
from ..extrapolation import is_feasible, onto_simplex, project, sizes
from ..fold import Folded, posterior_statistics, present_rows
from ..initialize import Initializer, start_arguments
from ..priors import dirichlet_log_prob
from ..result import Status
from ..rules import Soft, unlabelled
from ._holding import all_held, any_held, held_leafwise


class MixtureParams(NamedTuple):
    """Weights (k,) on the simplex and the components, a bank of the family."""

    weights: Array
    components: Any


class MixtureStats(NamedTuple):
    """Σ responsibilities (k,) and the family's statistics."""

    count: Array
    components: Any


@_tree.register
@dataclass(frozen=True)
class Mixture:
    """p(x) = Σ_j w_j f(x | component j).

    Attributes:
        family: how an observation is distributed given its component, e.g. `FullNormal()`.
        n_components: k.
        concentration: Dirichlet prior on the weights, () or (k,), ≥ 1 for a mode inside; None is flat.
        active: booleans (k,): components switched off have weight exactly 0 and take no part; None is all on.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> params = model.init(jax.random.key(0), x)
        >>> [round(float(w), 3) for w in params.weights]
        [0.5, 0.5]
    """

    family: Any
    n_components: int = field(metadata={"static": True})
    concentration: Any = None
    active: Any = None

    # --- constants of the data

    def bind(self, data: Data, sample_weight: Array | None = None) -> Self:
        """The model with its family's constants of these data."""
        if not hasattr(self.family, "bind"):
            return self
        return replace(self, family=self.family.bind(unlabelled(data), sample_weight))

    def recentred(self, params: MixtureParams) -> Self:
        """The model on its family's stable path, moments about these params."""
        if not hasattr(self.family, "recentred"):
            return self
        return replace(self, family=self.family.recentred(params.components))

    def localised(self) -> Self:
        """The bound model for params relative to the data's own place, in which the loop works."""
        if not hasattr(self.family, "localised"):
            return self
        return replace(self, family=self.family.localised())

    def to_local(self, params: MixtureParams) -> MixtureParams:
        """Params as `localised` takes them."""
        if not hasattr(self.family, "localised"):
            return params
        return params._replace(components=self.family.to_local(params.components))

    def to_global(self, params: MixtureParams) -> MixtureParams:
        """Inverse of `to_local`."""
        if not hasattr(self.family, "localised"):
            return params
        return params._replace(components=self.family.to_global(params.components))

    @property
    def additive(self) -> bool:
        """Whether the statistics of two chunks add."""
        return getattr(self.family, "additive", True)

    @property
    def has_fast_path(self) -> bool:
        """Whether the family has one, and knows its limit."""
        return hasattr(self.family, "trusted")

    def trusted(self, params: MixtureParams) -> Array:
        """Whether the family's fast path keeps its digits at these params."""
        return self.family.trusted(params.components)

    def prepare(self, data: Data, columns_first: bool = False) -> Data:
        """The form of the data in which the family's two products are fastest; the data where there is none."""
        if not hasattr(self.family, "prepare"):
            return data
        return self.family.prepare(data, self.n_components if columns_first else None)

    # --- the derivative of an EM step, whose rows meet in one matrix product

    def n_features(self, data: Data) -> int | None:
        """f of the features T in which the family is exponential; None if it says nothing, or components share params.

        About a place that components share, products of features would lose digits far from it.
        """
        if not hasattr(self.family, "n_features"):
            return None
        axes = jax.tree.leaves(self.family.component_axes(), is_leaf=lambda axis: axis is None)
        return self.family.n_features(data) if all(axis is not None for axis in axes) else None

    def linearised(self, params: MixtureParams) -> Self:
        """The bound model with moments about a place where products of features keep their digits."""
        return replace(self, family=self.family.linearised(params.components))

    def features(self, data: Data) -> Array:
        """T(x_i) as component j sees it, the first entry one: (k, f, n)."""
        return self.family.features(data)

    def natural(self, params: MixtureParams) -> Array:
        """Natural parameters of the features, with log w_j in the first: (k, f)."""
        return self.family.natural(params.components, self._log_weights(params))

    def stats_of_products(self, products: Array) -> MixtureStats:
        """The statistics in Σ_i r_ij T_ij T_ijᵀ, (k, f, f)."""
        return MixtureStats(products[:, 0, 0], self.family.stats_of_products(products))

    # --- the two arrows

    def log_joint(self, params: MixtureParams, data: Data) -> Array:
        """log w_j + log f(x_i | j): (n, k); −inf where the weight is zero."""
        log_weights = self._log_weights(params)
        if hasattr(self.family, "log_joint"):
            return self.family.log_joint(params.components, log_weights, data)
        return self.family.log_prob(params.components, data) + log_weights[None]

    def _log_weights(self, params: MixtureParams) -> Array:
        weights = params.weights if self.active is None else jnp.where(self.active, params.weights, 0)
        zero = weights == 0  # not "is not positive": NaN must come through
        return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, weights)))

    def statistics(self, params: MixtureParams | None, data: Data, responsibilities: Array) -> MixtureStats:
        """Counts and component statistics; responsibilities (n, k) are already times the sample weight."""
        bank = None if params is None else params.components
        components = self.family.statistics(bank, data, responsibilities)
        counted = "count" in getattr(components, "_fields", ())
        return MixtureStats(components.count if counted else jnp.sum(responsibilities, 0), components)

    def m_step(self, params: MixtureParams | None, stats: MixtureStats) -> MixtureParams:
        """Mode of Q + log prior: w_j ∝ N_j + α_j − 1 (not below 0), components by the family."""
        bank = None if params is None else params.components
        return MixtureParams(self._weights(stats), self.family.estimate(bank, stats.components, self.active))

    def _weights(self, stats: MixtureStats) -> Array:
        count = stats.count
        if self.concentration is not None:
            count = jnp.maximum(count + (jnp.asarray(self.concentration, count.dtype) - 1), 0)
        if self.active is not None:
            count = jnp.where(self.active, count, 0)
        return count / jnp.sum(count)

    def m_step_held(self, params: MixtureParams, stats: MixtureStats, held: MixtureParams) -> MixtureParams:
        """`m_step` over what is not held; `held` are booleans shaped as the params.

        Raises:
            ValueError: where a part of the weights is held, or the family cannot hold a part of the bank.
        """
        weights = params.weights if self._holds_weights(held) else self._weights(stats)
        bank = params.components
        if all_held(held.components):
            return MixtureParams(weights, bank)
        if not any_held(held.components):
            return MixtureParams(weights, self.family.estimate(bank, stats.components, self.active))
        if not hasattr(self.family, "estimate_held"):
            raise ValueError(
                f"mask.components: {type(self.family).__name__} has no estimate_held(bank, stats, held, active), so "
                "that all of the components are held or nothing of them; got a part."
            )
        return MixtureParams(weights, self.family.estimate_held(bank, stats.components, held.components, self.active))

    def frozen_coordinates(self, params: MixtureParams, held: MixtureParams) -> MixtureParams:
        """Which free coordinates are held, shaped as `unconstrain(params)`."""
        weights: Any = np.full(self.n_components - 1, self._holds_weights(held))
        if hasattr(self.family, "frozen_coordinates"):
            return MixtureParams(weights, self.family.frozen_coordinates(params.components, held.components))
        free = jax.eval_shape(self.family.unconstrain, params.components)
        return MixtureParams(weights, held_leafwise(held.components, free, self.family, entries=False))

    def _holds_weights(self, held: MixtureParams) -> bool:
        if any_held(held.weights) and not all_held(held.weights):
            raise ValueError(
                "mask.weights: expected all weights held or none, as they sum to one, got a part; hold all of them."
            )
        return any_held(held.weights)

    def log_prior(self, params: MixtureParams) -> Array:
        """Dirichlet log density of the weights (0 if flat) plus the family's log prior."""
        total = parts.log_prior(self.family, params.components, self.active, params.weights != 0)
        if self.concentration is not None:
            concentration = jnp.asarray(self.concentration, params.weights.dtype)
            total = total + dirichlet_log_prob(concentration, params.weights, self.active)
        return total

    def expected_log_joint(self, params: MixtureParams, stats: MixtureStats) -> Array:
        """Q(params; stats) = Σ_j N_j log w_j + Σ_ij r_ij log f(x_i | j)."""
        positive = params.weights > 0
        terms = stats.count * jnp.log(jnp.where(positive, params.weights, 1))
        terms = jnp.where(positive | (stats.count == 0), terms, -jnp.inf)
        return jnp.sum(terms) + self.family.expected_log_prob(params.components, stats.components)

    # --- what users ask of a fitted mixture

    def init(
        self, key: Key, data: Data, sample_weight: Array | None = None, method: Initializer | None = None
    ) -> MixtureParams:
        """Start params: responsibilities by `method` (default `KMeans()`), then one M step.

        Args:
            key: of `jax.random`.
            data: as in `fit`.
            sample_weight: (n,) or None.
            method: `KMeans`, `RandomPoints`, `RandomResponsibilities`, `Labels` or `Responsibilities`.
        """
        data = unlabelled(data)
        self.validate_data(data)
        return _init(*start_arguments(self, key, data, sample_weight, method))

    def log_prob(self, params: MixtureParams, data: Data) -> Array:
        """log p(x_i): (n,)."""
        return Soft()(self.log_joint(params, data))[1]

    def responsibilities(self, params: MixtureParams, data: Data) -> Array:
        """p(z_i = j | x_i): (n, k), rows summing to 1."""
        return Soft()(self.log_joint(params, data))[0]

    def predict(self, params: MixtureParams, data: Data) -> Array:
        """The most probable component of each row: (n,) integers."""
        return jnp.argmax(self.log_joint(params, data), 1)

    def sample(self, params: MixtureParams, key: Key, n: int) -> tuple[Data, Array]:
        """n draws and the components they came from."""
        key_z, key_x = jax.random.split(key)
        z = jax.random.categorical(key_z, jnp.log(params.weights), shape=(n,))
        return self.family.sample(params.components, key_x, z), z

    def n_parameters(self, params: MixtureParams) -> Any:
        """Free parameters of the active components."""
        k = self.n_components if self.active is None else jnp.sum(jnp.asarray(self.active))
        return k - 1 + parts.count_parameters(self.family, params.components, self.active, self.n_components)

    def bic(self, params: MixtureParams, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + p·log(total weight): lower is better (Schwarz 1978)."""
        return criterion_of("bic", self, params, data, sample_weight)

    def aic(self, params: MixtureParams, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + 2p: lower is better (Akaike 1974)."""
        return criterion_of("aic", self, params, data, sample_weight)

    def icl(self, params: MixtureParams, data: Data, sample_weight: Array | None = None) -> Array:
        """BIC + 2·entropy of the responsibilities: lower is better (Biernacki, Celeux & Govaert 2000)."""
        return criterion_of("icl", self, params, data, sample_weight)

    # --- for drivers

    def feasible(self, params: MixtureParams) -> Array:
        """Whether weights are not negative and components allowed by the family, wherever params came from: ()."""
        weights = params.weights
        return jnp.all(weights >= 0) & (jnp.sum(weights) > 0) & is_feasible(self.family, params.components)

    def projected(self, params: MixtureParams, near: MixtureParams) -> MixtureParams:
        """Params from elsewhere put back on the constraints, beside allowed ones; see `onto_simplex`."""
        components = project(self.family, params.components, near.components)
        return MixtureParams(onto_simplex(params.weights, near.weights), components)

    def sizes(self, params: MixtureParams) -> MixtureParams:
        """Standard deviations of the estimates from one row whose component is known: √w_j of a weight.

        Those of a component are its family's, over √w_j. In these units EM's derivative is about symmetric. Weights
        below 1e-4 count as that.
        """
        root = jnp.sqrt(jnp.maximum(params.weights, 1e-4))

        def spread(root: Array | None, leaf: Array) -> Array:
            return leaf if root is None else leaf / root.reshape(-1, *[1] * (leaf.ndim - 1))

        own = sizes(self.family, params.components)
        return MixtureParams(root, parts.by_component(self.family, spread, root, own))

    def health(self, params: MixtureParams) -> Array:
        """DEGENERATE if a component of positive weight has no density; RUNNING otherwise."""
        if not hasattr(self.family, "health"):
            return jnp.asarray(Status.RUNNING, jnp.int32)
        return self.family.health(params.components, params.weights > 0)

    def min_rows(self) -> Any:
        """Rows of positive weight that a fit needs: one for each active component."""
        return self.n_components if self.active is None else jnp.sum(jnp.asarray(self.active))

    @property
    def closed_m_step(self) -> bool:
        """Whether the M step is a formula."""
        return getattr(self.family, "closed_m_step", True)

    @property
    def component_axes(self) -> Callable[[], MixtureParams]:
        """Where the components lead; absent where they are not exchangeable."""
        axes = self.family.component_axes
        return lambda: MixtureParams(0, axes())  # type: ignore[arg-type]

    def relabelled(self, order: Array) -> Self:
        """The model of params whose components were taken in this order."""
        take = lambda leaf: leaf if leaf is None or jnp.ndim(leaf) == 0 else jnp.asarray(leaf)[order]  # noqa: E731
        family = self.family.relabelled(order) if hasattr(self.family, "relabelled") else self.family
        return replace(self, family=family, concentration=take(self.concentration), active=take(self.active))

    def unconstrain(self, params: MixtureParams) -> MixtureParams:
        """Free coordinates: log-ratios to the weight of the last active component (k − 1,) and the family's own."""
        positive = params.weights > 0
        log_weights = jnp.where(positive, jnp.log(jnp.where(positive, params.weights, 1)), 0)
        others = self._others()
        ratios = log_weights[others] - log_weights[self._last()]
        return MixtureParams(ratios, self.family.unconstrain(params.components))

    def constrain(self, free: MixtureParams) -> MixtureParams:
        """Inverse of `unconstrain`; components switched off get weight 0."""
        logits = jnp.zeros(self.n_components, free.weights.dtype).at[self._others()].set(free.weights)
        if self.active is not None:
            logits = jnp.where(self.active, logits, -jnp.inf)
        return MixtureParams(jax.nn.softmax(logits), self.family.constrain(free.components))

    def restricted(self, params: MixtureParams) -> Self:
        """The model with components of weight zero switched off: it stays on the boundary that the params are on."""
        on = params.weights != 0  # NaN stays to be seen
        family = self.family.restricted(params.components) if hasattr(self.family, "restricted") else self.family
        return replace(self, family=family, active=on if self.active is None else on & jnp.asarray(self.active))

    def held(self, params: MixtureParams) -> MixtureParams:
        """Which free coordinates are on a boundary, or of a component switched off; shaped as `unconstrain(params)`."""
        on = jnp.ones(self.n_components, bool) if self.active is None else jnp.asarray(self.active)
        free = jax.eval_shape(self.unconstrain, params)

        def off(on: Array | None, leaf: Any) -> Array:
            here = jnp.zeros((1,) * leaf.ndim, bool) if on is None else ~on.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.broadcast_to(here, leaf.shape)

        components = parts.by_component(self.family, off, on, free.components)
        if hasattr(self.family, "held"):
            components = jax.tree.map(jnp.logical_or, components, self.family.held(params.components))
        return MixtureParams(~on[self._others()], components)

    def _last(self) -> Any:
        """The last active component, which the weights are relative to."""
        k = self.n_components
        return k - 1 if self.active is None else k - 1 - jnp.argmax(jnp.asarray(self.active)[::-1])

    def _others(self) -> Array:
        index = jnp.arange(self.n_components - 1)
        return index + (index >= self._last())

    def validate_data(self, data: Data) -> None:
        """Raises a ValueError if the data do not fit the family or the model's own leaves do not fit k."""
        k = self.n_components
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"n_components: expected a positive int, got {k!r}.")
        own = getattr(self.family, "n_components", k)
        if own != k:
            raise ValueError(
                f"n_components: expected {own}, one for each family of {type(self.family).__name__}, got {k}."
            )
        for name in ("concentration", "active"):
            leaf = getattr(self, name)
            if leaf is not None and jnp.shape(leaf) not in ((k,), *([()] if name == "concentration" else [])):
                raise ValueError(f"{name}: expected shape ({k},), got {jnp.shape(leaf)}.")
        if self.active is not None and jnp.asarray(self.active).dtype != bool:
            raise ValueError(f"active: expected booleans ({k},), got {jnp.asarray(self.active).dtype}.")
        if hasattr(self.family, "validate_data"):
            self.family.validate_data(unlabelled(data))

    def readable(self, data: Data) -> Data:
        """The data with a number wherever the family allows a missing entry."""
        return self.family.readable(data) if hasattr(self.family, "readable") else data

    def check_data(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data outside of the family's support."""
        if hasattr(self.family, "check_data"):
            self.family.check_data(data, sample_weight)

    def validate(self, params: MixtureParams, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model and the data."""
        self.validate_data(data)
        if not isinstance(params, MixtureParams):
            raise TypeError(f"params: expected MixtureParams, got {type(params).__name__}; model.init makes them.")
        if jnp.shape(params.weights) != (self.n_components,):
            raise ValueError(f"params.weights: expected shape ({self.n_components},), got {jnp.shape(params.weights)}.")
        if hasattr(self.family, "validate"):
            self.family.validate(params.components, unlabelled(data), self.n_components)


@jax.jit
def _init(model: Mixture, key: Key, data: Data, weight: Array | None, method: Initializer) -> MixtureParams:
    model = model.bind(data, weight)
    points = model.family.points(present_rows(data, weight)) if hasattr(model.family, "points") else data
    draw = lambda k, weight, active: method(key, points, k, weight, active)  # noqa: E731
    if hasattr(model.family, "assigned"):  # a family that knows which of its components may explain a row
        groups = getattr(method, "groups", False)
        assigned = model.family.assigned(draw, present_rows(data, weight), weight, model.active, groups)
    else:
        assigned = draw(model.n_components, weight, model.active)
    if model.active is not None and assigned.ndim == 2:
        assigned = jnp.where(jnp.asarray(model.active)[None], assigned, 0)
    params = model.m_step(None, posterior_statistics(Folded(model), data, weight, assigned))
    if not hasattr(model.family, "recentred"):
        return params
    # moments about the pivot lose digits where components are narrow: once more about their own means
    model = model.recentred(params)
    return model.m_step(params, posterior_statistics(Folded(model), data, weight, assigned))
