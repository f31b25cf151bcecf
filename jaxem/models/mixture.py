"""Finite mixtures over any component family."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..contracts.domains import check_params
from ..contracts.holding import all_held, any_held, held_leafwise
from ..fold import constants as merging
from ..latent.finite import Gated, Soft, most_probable, posterior, ungated, unlabelled
from ..latent.starts import Initializer, start_arguments
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows
from ._criteria import Criteria
from ._drawing import draw, draw_like
from ._starting import start
from ._weights import ConstantWeights
from .gate import GateWeights, SoftmaxGate, check_gated, covariates_of


class MixtureParams(NamedTuple):
    """Weights (k,) on the simplex, or `GateParams` where there is a gate, and the components, a bank of the family.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> bank = jaxem.NormalParams(jnp.array([[-1.0], [2.0]]), jnp.ones((2, 1, 1)))
        >>> start = jaxem.MixtureParams(weights=jnp.array([0.3, 0.7]), components=bank)  # or model.init
        >>> jaxem.Mixture(jaxem.FullNormal(), n_components=2).predict(start, jnp.array([[0.0], [1.0]]))
        Array([0, 1], dtype=...)
    """

    weights: Any
    components: Any


class MixtureStats(NamedTuple):
    """Σ responsibilities (k,), or `Rows` of a gate, and the family's statistics."""

    count: Any
    components: Any


@_tree.register
@dataclass(frozen=True)
class Mixture(Criteria):
    """p(x) = Σ_j w_j f(x | component j).

    Attributes:
        family: how an observation is distributed given its component, e.g. `FullNormal()`.
        n_components: k.
        concentration: Dirichlet prior on the weights, () or (k,), ≥ 1 for a mode inside; None is flat.
        active: booleans (k,): components switched off have weight exactly 0 and take no part; None is all on.
        gate: `SoftmaxGate()`: weights that depend on covariates; data are then `gated(data, covariates)`.

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
    gate: SoftmaxGate | None = None

    @property
    def _mixing(self) -> Any:
        """What the weights are, and how they are estimated."""
        if self.gate is not None:
            return GateWeights(self.gate, self.n_components, self.active)
        return ConstantWeights(self.n_components, self.concentration, self.active)

    # --- constants of the data

    def bind(self, data: Data, sample_weight: Array | None = None) -> Self:
        """The model with its family's constants of these data."""
        data = unlabelled(data)
        bound = self
        if self.gate is not None:
            bound = replace(bound, gate=self.gate.bind(covariates_of(data), sample_weight))
        family = ask.among(self.family, self.n_components if self.active is None else jnp.sum(jnp.asarray(self.active)))
        return replace(bound, family=ask.bind(family, ungated(data), sample_weight))

    def weigh(self, data: Data, sample_weight: Array | None) -> Any:
        """The weight behind the family's constants."""
        return merging.weigh(self.family, ungated(data), sample_weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The mixture bound to the rows of both."""
        return replace(self, family=merging.merged(self.family, seen, other.family, other_seen))

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """The weight of both."""
        return merging.merged_weight(self.family, seen, other_seen)

    def recentred(self, params: MixtureParams) -> Self:
        """The model on its family's stable path, moments about these params."""
        return replace(self, family=ask.recentred(self.family, params.components))

    def localised(self) -> Self:
        """The bound model for params relative to the data's own place, in which the loop works."""
        local = self if self.gate is None else replace(self, gate=self.gate.localised())
        return replace(local, family=ask.localised(self.family))

    def to_local(self, params: MixtureParams) -> MixtureParams:
        """Params as `localised` takes them."""
        weights = params.weights if self.gate is None else self.gate.to_local(params.weights)
        return MixtureParams(weights, ask.to_local(self.family, params.components))

    def to_global(self, params: MixtureParams) -> MixtureParams:
        """Inverse of `to_local`."""
        weights = params.weights if self.gate is None else self.gate.to_global(params.weights)
        return MixtureParams(weights, ask.to_global(self.family, params.components))

    @property
    def additive(self) -> bool:
        """Whether the statistics of two chunks add."""
        return self.gate is None and ask.told(self.family, "additive", True)

    @property
    def has_fast_path(self) -> bool:
        """Whether the family has one, and knows its limit."""
        return self.gate is None and ask.has_fast_path(self.family)

    def trusted(self, params: MixtureParams) -> Array:
        """Whether the family's fast path keeps its digits at these params."""
        return ask.trusted(self.family, params.components)

    @property
    def costly_features(self) -> bool:
        """Whether `prepare` takes much longer than to read the data."""
        return ask.told(self.family, "costly_features", False)

    def prepare(self, data: Data, columns_first: bool = False) -> Data:
        """The form of the data in which the family's two products are fastest; the data where there is none."""
        return data if self.gate else ask.prepare(self.family, data, self.n_components if columns_first else None)

    def elements_per_row(self, data: Data) -> int:
        """Of the largest array that the E step makes of the data, where that is more than prepared rows; else 0."""
        return ask.elements_per_row(self.family, ungated(data), self.n_components)

    # --- the derivative of an EM step, whose rows meet in one matrix product

    def n_features(self, data: Data) -> int | None:
        """f of the features T in which the family is exponential; None if it says nothing, or components share params.

        About a place that components share, products of features would lose digits far from it.
        """
        axes = jax.tree.leaves(ask.component_axes(self.family), is_leaf=lambda axis: axis is None)
        apart = self.gate is None and all(axis is not None for axis in axes)
        return ask.n_features(self.family, data) if apart else None

    def linearised(self, params: MixtureParams) -> Self:
        """The bound model with moments about a place where products of features keep their digits."""
        return replace(self, family=self.family.linearised(params.components))

    def features(self, data: Data) -> Array:
        """T(x_i) as component j sees it, the first entry one: (k, f, n)."""
        return self.family.features(data)

    def natural(self, params: MixtureParams) -> Array:
        """Natural parameters of the features, with log w_j in the first: (k, f)."""
        return self.family.natural(params.components, self._mixing.log_weights(params.weights))

    def stats_of_products(self, products: Array) -> MixtureStats:
        """The statistics in Σ_i r_ij T_ij T_ijᵀ, (k, f, f)."""
        return MixtureStats(products[:, 0, 0], self.family.stats_of_products(products))

    # --- the two arrows

    def cast_rows(self, data: Data, dtype: Any) -> Data:
        """The data as the family reads them; covariates of a gate are floats."""
        rows = ask.cast_rows(self.family, ungated(data), dtype)
        if not isinstance(data, Gated):
            return rows
        return Gated(rows, _tree.cast_data(data.covariates, dtype))

    def log_joint(self, params: MixtureParams, data: Data) -> Array:
        """log w_j + log f(x_i | j): (n, k); −inf where the weight is zero."""
        if self.gate is not None:
            log_weights = self._mixing.log_weights(params.weights, covariates_of(data))
            return self.family.log_prob(params.components, ungated(data)) + log_weights
        log_weights = self._mixing.log_weights(params.weights)
        if ask.offers(self.family, "log_joint"):
            return self.family.log_joint(params.components, log_weights, data)
        return self.family.log_prob(params.components, data) + log_weights[None]

    def statistics(self, params: MixtureParams | None, data: Data, responsibilities: Array) -> MixtureStats:
        """Counts and component statistics; responsibilities (n, k) are already times the sample weight."""
        bank = None if params is None else params.components
        components = self.family.statistics(bank, ungated(data), responsibilities)
        covariates = None if self.gate is None else covariates_of(data)
        return MixtureStats(self._mixing.statistics(covariates, responsibilities, components), components)

    def m_step(self, params: MixtureParams | None, stats: MixtureStats) -> MixtureParams:
        """Mode of Q + log prior: w_j ∝ N_j + α_j − 1 (not below 0), or by the gate; components by the family."""
        weights, bank = (None, None) if params is None else params
        components = self.family.estimate(bank, stats.components, self.active)
        return MixtureParams(self._mixing.estimate(weights, stats.count), components)

    def m_step_held(self, params: MixtureParams, stats: MixtureStats, held: MixtureParams) -> MixtureParams:
        """`m_step` over what is not held; `held` are booleans shaped as the params.

        Raises:
            ValueError: where a part of the weights is held, or the family cannot hold a part of the bank.
        """
        hold = self._holds_weights(held)
        weights = params.weights if hold else self._mixing.estimate(params.weights, stats.count)
        bank = params.components
        if all_held(held.components):
            return MixtureParams(weights, bank)
        if not any_held(held.components):
            return MixtureParams(weights, self.family.estimate(bank, stats.components, self.active))
        if not ask.offers(self.family, "estimate_held"):
            raise ValueError(
                f"mask.components: {type(self.family).__name__} has no estimate_held(bank, stats, held, active), so "
                "that all of the components are held or nothing of them; got a part."
            )
        return MixtureParams(weights, self.family.estimate_held(bank, stats.components, held.components, self.active))

    def frozen_coordinates(self, params: MixtureParams, held: MixtureParams) -> MixtureParams:
        """Which free coordinates are held, shaped as `unconstrain(params)`."""
        hold = self._holds_weights(held)
        free_weights = jax.eval_shape(self._mixing.unconstrain, params.weights)
        weights: Any = jax.tree.map(lambda leaf: np.full(leaf.shape, hold), free_weights)
        if ask.offers(self.family, "frozen_coordinates"):
            return MixtureParams(weights, self.family.frozen_coordinates(params.components, held.components))
        free = jax.eval_shape(partial(ask.unconstrain, self.family), params.components)
        return MixtureParams(weights, held_leafwise(held.components, free, self.family, entries=False))

    def _holds_weights(self, held: MixtureParams) -> bool:
        if any_held(held.weights) and not all_held(held.weights):
            raise ValueError(
                "mask.weights: expected all weights held or none, as they sum to one, got a part; hold all of them."
            )
        return any_held(held.weights)

    def imposed(self, params: MixtureParams) -> MixtureParams:
        """Params as a fit starts from them: those that the family's own bounds allow."""
        if params is None:
            return params
        weights = jnp.ones(self.n_components) if self.gate is not None else params.weights
        return params._replace(components=ask.imposed(self.family, params.components, weights))

    def log_prior(self, params: MixtureParams) -> Array:
        """Log prior of the weights (0 if flat) plus the family's."""
        alive = self._mixing.is_not_zero(params.weights)
        family = parts.log_prior(self.family, params.components, self.active, alive)
        return self._mixing.log_prior(params.weights) + family

    def expected_log_joint(self, params: MixtureParams, stats: MixtureStats) -> Array:
        """Q(params; stats) = Σ_j N_j log w_j + Σ_ij r_ij log f(x_i | j)."""
        weights = self._mixing.expected_log_prob(params.weights, stats.count)
        return weights + self.family.expected_log_prob(params.components, stats.components)

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
        data = as_rows(unlabelled(data))
        self.validate_data(data)
        return start(*start_arguments(self, key, data, sample_weight, method))

    def log_prob(self, params: MixtureParams, data: Data) -> Array:
        """log p(x_i): (n,)."""
        return Soft()(self._log_joint_of(params, data))[1]

    def responsibilities(self, params: MixtureParams, data: Data) -> Array:
        """p(z_i = j | x_i): (n, k), rows summing to 1; NaN in a row that no component explains, all densities 0."""
        return posterior(self._log_joint_of(params, data))

    def predict(self, params: MixtureParams, data: Data) -> Array:
        """The most probable component of each row: (n,) integers; −1 where none explains it, or an entry is NaN."""
        return most_probable(self._log_joint_of(params, data))

    def _log_joint_of(self, params: MixtureParams, data: Data) -> Array:
        """Of params as users have them: checked, and NumPy's too."""
        check_params(self, params)
        return self.log_joint(jax.tree.map(jnp.asarray, params), as_rows(data))

    def sample(self, params: MixtureParams, key: Key, n: int, given: Data | None = None) -> tuple[Data, Array]:
        """n draws and the components they came from.

        Args:
            params: of the mixture.
            key: of `jax.random`.
            n: how many.
            given: what the draws are conditional on. Of a regression, its covariates (n, p) or (covariates, offset);
                with a gate `gated(given, covariates)`, where `given` is any array (n, …) if the family needs none.

        Raises:
            ValueError: if it is missing.
        """
        check_params(self, params)
        return draw(self, params, key, n, given)

    def sample_like(self, params: MixtureParams, key: Key, data: Data) -> Data:
        """New rows in the place of the data's, with what is no outcome of the model as the data have it.

        That is missing entries, totals, covariates, offsets, covariates of the gate, and labels, by which the
        components are then restricted. Replicates of the parametric bootstrap are drawn so.
        """
        check_params(self, params)
        return draw_like(self, params, key, data)

    def n_parameters(self, params: MixtureParams) -> Any:
        """Free parameters of the active components."""
        own = self._mixing.n_parameters(params.weights)
        return own + parts.count_parameters(self.family, params.components, self.active, self.n_components)

    # --- for drivers

    def feasible(self, params: MixtureParams) -> Array:
        """Whether weights are not negative and components allowed by the family, wherever params came from: ()."""
        return self._mixing.feasible(params.weights) & ask.is_feasible(self.family, params.components)

    def projected(self, params: MixtureParams, near: MixtureParams) -> MixtureParams:
        """Params from elsewhere put back on the constraints, beside allowed ones."""
        components = ask.project(self.family, params.components, near.components)
        return MixtureParams(self._mixing.projected(params.weights, near.weights), components)

    def sizes(self, params: MixtureParams) -> MixtureParams:
        """Standard deviations of the estimates from one row whose component is known: √w_j of a weight.

        Those of a component are its family's, over √w_j. In these units EM's derivative is about symmetric. Weights
        below 1e-4 count as that.
        """
        weights, root = self._mixing.sizes(params.weights)

        def spread(root: Array | None, leaf: Array) -> Array:
            return leaf if root is None else leaf / root.reshape(-1, *[1] * (leaf.ndim - 1))

        own = ask.sizes(self.family, params.components)
        return MixtureParams(weights, parts.by_component(self.family, spread, root, own))

    def health(self, params: MixtureParams) -> Array:
        """DEGENERATE if a component of positive weight has no density; RUNNING otherwise."""
        return ask.health(self.family, params.components, self._mixing.is_positive(params.weights))

    def component_counts(
        self, params: MixtureParams, total: Any, data: Data | None = None, sample_weight: Array | None = None
    ) -> tuple[Array | None, Array]:
        """Expected rows of each component, None if a gate lacks its data; and which are on and not empty: (k,) each."""
        covariates = None if self.gate is None or data is None else covariates_of(unlabelled(data))
        return self._mixing.counts(params.weights, total, covariates, sample_weight)

    def min_rows(self) -> Any:
        """Rows of positive weight that a fit needs: one for each active component."""
        return self._mixing.n_active()

    @property
    def closed_m_step(self) -> bool:
        """Whether the M step is a formula."""
        return self.gate is None and ask.told(self.family, "closed_m_step", True)

    @property
    def component_axes(self) -> Callable[[], MixtureParams]:
        """Where the components lead; absent where they are not exchangeable."""
        axes, of_weights = self.family.component_axes, self._mixing.component_axes()
        return lambda: MixtureParams(of_weights, axes())

    def relabelled(self, order: Array) -> Self:
        """The model of params whose components were taken in this order."""
        take = lambda leaf: leaf if leaf is None or jnp.ndim(leaf) == 0 else jnp.asarray(leaf)[order]  # noqa: E731
        family = ask.relabelled(self.family, order)
        return replace(self, family=family, concentration=take(self.concentration), active=take(self.active))

    def unconstrain(self, params: MixtureParams) -> MixtureParams:
        """Free coordinates: log-ratios to the weight of the last active component (k − 1,) and the family's own."""
        own = ask.unconstrain(self.family, params.components)
        return MixtureParams(self._mixing.unconstrain(params.weights), own)

    def constrain(self, free: MixtureParams) -> MixtureParams:
        """Inverse of `unconstrain`; components switched off get weight 0."""
        own = ask.constrain(self.family, free.components)
        return MixtureParams(self._mixing.constrain(free.weights), own)

    def restricted(self, params: MixtureParams) -> Self:
        """The model with components of weight zero switched off: it stays on the boundary that the params are on."""
        family = ask.on_its_boundary(self.family, params.components)
        if self.gate is not None:
            return replace(self, family=family)
        on = self._mixing.is_not_zero(params.weights)
        return replace(self, family=family, active=on if self.active is None else on & jnp.asarray(self.active))

    def held(self, params: MixtureParams) -> MixtureParams:
        """Which free coordinates are on a boundary, or of a component switched off; shaped as `unconstrain(params)`."""
        on = jnp.ones(self.n_components, bool) if self.active is None else jnp.asarray(self.active)
        free = jax.eval_shape(self.unconstrain, params)

        def off(on: Array | None, leaf: Any) -> Array:
            here = jnp.zeros((1,) * leaf.ndim, bool) if on is None else ~on.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.broadcast_to(here, leaf.shape)

        components = parts.by_component(self.family, off, on, free.components)
        components = jax.tree.map(jnp.logical_or, components, ask.held(self.family, params.components))
        return MixtureParams(self._mixing.held(params.weights), components)

    def validate_data(self, data: Data) -> None:
        """Raises a ValueError if the data do not fit the family or the model's own leaves do not fit k."""
        k = as_count("n_components", self.n_components)
        own = ask.n_components(self.family, k)
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
        data = unlabelled(data)
        check_gated(self, data)
        ask.validate_data(self.family, ungated(data))

    def readable(self, data: Data) -> Data:
        """The data with a number wherever the family allows a missing entry."""
        rows = ask.readable(self.family, ungated(data))
        return data._replace(data=rows) if isinstance(data, Gated) else rows

    def informative(self, data: Data) -> Array | None:
        """Which rows say something about the params: (n,), or None for all."""
        return ask.informative(self.family, ungated(data))

    def check_data(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data outside of the family's support."""
        ask.check_data(self.family, ungated(data), sample_weight)

    def check_table(self, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError on concrete data that as a whole do not determine the params."""
        if isinstance(data, Gated):
            self._mixing.check_covariates(data.covariates, sample_weight)
        ask.check_table(self.family, ungated(data), sample_weight)

    def check_params(self, params: MixtureParams, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params lies outside of the parameter space."""
        self._mixing.check_params(params.weights, lanes=lanes)
        check_params(self.family, params.components, lanes=lanes)

    def validate(self, params: MixtureParams, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model and the data."""
        self.validate_data(data)
        if not isinstance(params, MixtureParams):
            raise TypeError(f"params: expected MixtureParams, got {type(params).__name__}; model.init makes them.")
        data = unlabelled(data)
        self._mixing.validate(params.weights, None if self.gate is None else covariates_of(data))
        ask.validate(self.family, params.components, ungated(data), self.n_components)
