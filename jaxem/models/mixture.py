"""Finite mixtures over any component family."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..contracts.domains import check_params
from ..contracts.holding import all_held, any_held
from ..fold.folded import Folded
from ..fold.units import log_joint_of_units
from ..latent.finite import Soft, most_probable, posterior, ungated, unlabelled, without_labels
from ..latent.starts import Initializer, start_arguments
from ..latent.units import by_row, units_of
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows
from ._criteria import Criteria
from ._drawing import draw, draw_like
from ._mixture_checks import MixtureChecks
from ._mixture_constants import MixtureConstants
from ._mixture_params import MixtureParams, MixtureStats
from ._mixture_space import MixtureSpace
from ._starting import start, start_bound
from .gate import covariates_of


@_tree.register
@dataclass(frozen=True)
class Mixture(MixtureConstants, MixtureSpace, MixtureChecks, Criteria):
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

    # --- the two arrows

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

    def log_given(self, params: MixtureParams, data: Data) -> Array:
        """log f(x_i | j): (n, k)."""
        return self.family.log_prob(params.components, ungated(data))

    def log_state(self, params: MixtureParams, data: Data) -> Array:
        """log w_j: (1, k), or of each row where there is a gate (n, k)."""
        if self.gate is not None:
            return self._mixing.log_weights(params.weights, covariates_of(data))
        return self._mixing.log_weights(params.weights)[None]

    def with_states(
        self, params: MixtureParams | None, stats: MixtureStats, data: Data, responsibilities: Array
    ) -> MixtureStats:
        """The statistics with components counted by these rows, one of each id, and their responsibilities (u, k)."""
        covariates = None if self.gate is None else covariates_of(unlabelled(data))
        return stats._replace(count=self._mixing.statistics(covariates, responsibilities, None))

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
        data = as_rows(without_labels(data))
        self.validate_data(data)
        return start(*start_arguments(self, key, data, sample_weight, method))

    def init_bound(
        self, key: Key, data: Data, sample_weight: Array | None = None, method: Initializer | None = None
    ) -> MixtureParams:
        """`init` of a mixture that is bound to these data."""
        return start_bound(*start_arguments(self, key, as_rows(without_labels(data)), sample_weight, method))

    def log_prob(self, params: MixtureParams, data: Data) -> Array:
        """log p(x_i): (n,); of grouped rows by id (u,)."""
        return Soft()(self._log_joint_of(params, data))[1]

    def responsibilities(self, params: MixtureParams, data: Data) -> Array:
        """p(z_i = j | x_i): (n, k), rows summing to 1; NaN in a row that no component explains, all densities 0."""
        return by_row(posterior(self._log_joint_of(params, data)), data)

    def predict(self, params: MixtureParams, data: Data) -> Array:
        """The most probable component of each row: (n,) integers; −1 where none explains it, or an entry is NaN."""
        return by_row(most_probable(self._log_joint_of(params, data)), data)

    def _log_joint_of(self, params: MixtureParams, data: Data) -> Array:
        """Of params as users have them: checked, and NumPy's too. (n, k), or of ids (u, k)."""
        check_params(self, params)
        params, data = jax.tree.map(jnp.asarray, params), as_rows(data)
        if units_of(data) is not None:
            return log_joint_of_units(Folded(self, fast=False), params, data, None)
        return self.log_joint(params, data)

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

    # --- for drivers

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
