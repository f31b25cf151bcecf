"""Hidden Markov models over any family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key
from ..contracts import capabilities as ask
from ..contracts import components as parts
from ..contracts.domains import check_params
from ..fold.criteria import criterion_of
from ..latent.chain import LINEAR, LOG, Chain, best_path, filtered, log_likelihood, posterior_of, smoothed
from ..latent.finite import Gated, Rule, Soft, as_read, check_known, in_place_of, series_of, ungated, unlabelled
from ..latent.series import as_sequences, present_steps
from ..latent.starts import Initializer, start_arguments
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows
from ._markov_checks import MarkovChecks, covariates_for
from ._markov_drawing import draw, draw_like
from ._markov_forecast import MarkovForecast, states_so_far
from ._markov_labels import restricted
from ._markov_params import HMMParams, HMMStats
from ._markov_space import MarkovSpace
from ._markov_starting import start, start_bound
from ._markov_steps import MarkovConstants, Steps, raw_steps


@_tree.register
@dataclass(frozen=True)
class HiddenMarkovModel(MarkovConstants, MarkovSpace, MarkovForecast, MarkovChecks):
    """A state that moves from step to step, p(z_t = j | z_{t−1} = i) = A_ij, and steps that depend on it alone.

    Observations are whole series, `Sequences`: sample weights, criteria of influence and bootstrap go by series, `tol`
    and log n of BIC by steps. Emissions are of any family: a step is a row to it. A step that is missing, all of its
    numbers NaN, says nothing; single entries may be missing where the family has `missing=True`. The E step is
    forward–backward (Baum, Petrie, Soules & Weiss 1970); under `HardEM` the most probable path (Viterbi training),
    under `StochasticEM` a path drawn from the posterior.

    States have no order that means anything: `result.ordered()` begins with the state that most steps are in. States
    that are known are `labelled`, step by step. Transitions that depend on covariates are `transitions`.

    Attributes:
        family: how a step is distributed given its state, e.g. `FullNormal()`.
        n_states: k, at least 2.
        concentration: Dirichlet prior on each row of transitions, (), (k,) or (k, k), ≥ 1 for a mode inside; None is
            flat.
        allowed: booleans (k, k): which state may follow which; others have probability exactly 0. None is all.
        initial_concentration: Dirichlet prior on the first state, () or (k,); None is flat.
        initial_allowed: booleans (k,): in which states a series may begin; None is all.
        stationary: whether the first state has the stationary law of the transitions, π = πA, which then is no
            parameter of its own; static. A first state whose probabilities are known is `Frozen`.
        transitions: `SoftmaxTransitions()`: transitions that depend on covariates; data are then
            `gated(sequences, covariates)`. None is one matrix.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> calm, busy = jnp.arange(12) % 3, 9 + jnp.arange(8) % 3
        >>> data = jaxem.sequences([jnp.concatenate([calm, busy, calm])[:, None]] * 2)
        >>> model = jaxem.HiddenMarkovModel(jaxem.Poisson(), n_states=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> order = jnp.argsort(result.params.emissions.rate[:, 0])
        >>> result.params.emissions.rate[order, 0].round(1)
        Array([1. , 9.9], dtype=...)
        >>> model.predict(result.params, data)[0, 10:14] == order[1]  # the thirteenth step is the first busy one
        Array([False, False,  True,  True], dtype=bool)
    """

    # --- the two arrows

    def e_step(self, params: HMMParams, data: Data, sample_weight: Array | None) -> tuple[HMMStats, Array]:
        """Expected first states, transitions and emission statistics, and the log-likelihood; sums over series."""
        return self.e_step_by_rule(params, data, sample_weight, Soft(), None)

    def e_step_by_rule(
        self, params: HMMParams, data: Data, sample_weight: Array | None, rule: Rule, key: Key | None
    ) -> tuple[HMMStats, Any]:
        """`e_step` of another rule, such as `Hard`; data are `Sequences` or what `prepare` makes of them, or labelled.

        Raises:
            ValueError: for a rule that tells nothing of pairs of states.
        """
        numbers = LINEAR if isinstance(unlabelled(data), Steps) else LOG
        steps, chain = self._chain(params, data, stretched=True)
        found, objective = posterior_of(chain, rule, key, numbers=numbers, weight=sample_weight)
        stats = steps.statistics(self.family, params.emissions, found.states)
        if sample_weight is None:
            total = jax.tree.map(jnp.sum, objective)
        else:
            weight: Array = sample_weight
            total = jax.tree.map(lambda each: jnp.sum(jnp.where(weight > 0, weight * each, 0)), objective)
        first = jnp.sum(found.states[0, :, : steps.length.shape[0]], 1)
        return HMMStats(first, self._moves.counted(found.pairs, steps.covariates), stats), total

    def _chain(self, params: HMMParams, data: Data, *, stretched: bool = False) -> tuple[Steps, Chain]:
        """The steps, and the chains through them."""
        inner = unlabelled(data)
        steps = inner if isinstance(inner, Steps) else raw_steps(inner, stretched=stretched)
        log_emission = steps.log_prob(self.family, params.emissions, self.n_states)
        initial = self._first.masked(params.initial)
        transition = self._moves.of_steps(params.transition, steps.covariates)
        return steps, restricted(Chain(initial, transition, log_emission, steps.length), data)

    def chain(self, params: HMMParams, data: Data) -> Any:
        """The chains of the states through the series, for the recursions in `latent.chain`."""
        return self._chain(params, data)[1]

    def m_step(self, params: HMMParams | None, stats: HMMStats) -> HMMParams:
        """Mode of Q + log prior: rows ∝ N + α − 1, not below 0, or regressions; emissions by the family.

        A state that is never left keeps its row, on which Q does not depend. Where the first state has the stationary
        law, transitions are climbed: there is no closed form.
        """
        initial, transition = self.moved(params, stats)
        bank = None if params is None else params.emissions
        return HMMParams(initial, transition, self.family.estimate(bank, stats.emissions, None))

    def log_prior(self, params: HMMParams) -> Array:
        """Log prior of first state and transitions (0 if flat) plus the family's."""
        family = parts.log_prior(self.family, params.emissions, None, self._reached(params))
        return self._first.log_prior(params.initial) + self._moves.log_prior(params.transition) + family

    def expected_log_joint(self, params: HMMParams, stats: HMMStats) -> Array:
        """Q(params; stats) = Σ_j N_j log π_j + Σ_ij N_ij log A_ij + Σ_tj γ_tj log f(x_t | j)."""
        first = self._first.expected_log_prob(params.initial, stats.initial)
        moves = self._moves.expected_log_prob(params.transition, stats.transition)
        return first + moves + self.family.expected_log_prob(params.emissions, stats.emissions)

    @property
    def reads_labels(self) -> bool:
        """Whether an E step takes `Labelled` series: it does."""
        return True

    # --- what users ask of a fitted model

    def init(
        self, key: Key, data: Data, sample_weight: Array | None = None, method: Initializer | None = None
    ) -> HMMParams:
        """Start params: the method's states of all steps, how often they follow each other, then one M step.

        Args:
            key: of `jax.random`.
            data: `Sequences`; of `labelled` ones the states are named as the labels name them.
            sample_weight: (n,) or None.
            method: `KMeans` (the default), `RandomPoints`, `RandomResponsibilities`, or a function of yours; `Labels`
                and `Responsibilities` are of all n·t steps, series by series, absent ones included.
        """
        data = self._read(data)
        return self._started(start, key, data, sample_weight, method)

    def init_bound(
        self, key: Key, data: Data, sample_weight: Array | None = None, method: Initializer | None = None
    ) -> HMMParams:
        """`init` of a model that is bound to these data."""
        return self._started(start_bound, key, self._read(data), sample_weight, method)

    def _started(self, draw: Callable, key: Key, data: Data, sample_weight: Any, method: Any) -> HMMParams:
        if method is not None and ask.offers(method, "validate"):
            method = _OfSteps(method, present_steps(series_of(data)).size)
        return draw(*start_arguments(self, key, data, sample_weight, method))

    def transition_matrix(self, params: HMMParams, covariates: Any = None) -> Array:
        """p(z_t = j | z_{t−1} = i): (k, k); (m, k, k) at covariates (m, q) where transitions depend on them.

        Raises:
            ValueError: if covariates are missing, or given where transitions are constant.
        """
        check_params(self, params)
        covariates = covariates_for(self, covariates, None, params)
        transition = jax.tree.map(jnp.asarray, params.transition)
        if covariates is None:
            return self._moves.masked(transition)
        return self._moves.probabilities(transition, covariates)

    def log_prob(self, params: HMMParams, data: Data) -> Array:
        """log p(x) of each series: (n,)."""
        return _log_prob(*self._asked(params, data))

    def responsibilities(self, params: HMMParams, data: Data) -> Array:
        """p(z_t = j | the whole series): (n, t, k); 0 in absent steps, NaN in a series that no path explains."""
        return _responsibilities(*self._asked(params, data))

    def filtered(self, params: HMMParams, data: Data) -> Array:
        """p(z_t = j | x_1 … x_t): (n, t, k); 0 in absent steps."""
        return _filtered(*self._asked(params, data))

    def predict(self, params: HMMParams, data: Data) -> Array:
        """The most probable path of each series (Viterbi 1967): (n, t); −1 in absent steps, or where there is none."""
        return _predict(*self._asked(params, data))

    def _asked(self, params: HMMParams, data: Data) -> tuple[Any, HMMParams, Data]:
        """Of params as users have them: checked, and NumPy's too; data as the family reads them, labelled or not."""
        check_params(self, params)
        data = self._read(data)
        check_known(data, self.n_states, None)
        dtype = _tree.float_dtype(series_of(data).values)
        return _tree.cast_floats(self, dtype), jax.tree.map(jnp.asarray, params), as_read(self, data, dtype)

    def _read(self, data: Data) -> Data:
        """Series, labelled or not, in arrays."""
        as_sequences(series_of(data))
        data = in_place_of(data, as_rows(unlabelled(data)))
        self.validate_data(data)
        return data

    def sample(
        self,
        params: HMMParams,
        key: Key,
        n: int,
        n_steps: int | None = None,
        given: Data | None = None,
        *,
        covariates: Any = None,
    ) -> tuple[Data, Array]:
        """n series, `gated` where transitions depend on covariates, and the states behind them, (n, n_steps).

        Args:
            params: of the model.
            key: of `jax.random`.
            n: how many series.
            n_steps: of each.
            given: of a regression its covariates, arrays (n, n_steps, …) as it takes them by row.
            covariates: of the transitions, (n, n_steps, q).

        Raises:
            ValueError: without a number of steps, or covariates that the family or the transitions need.
        """
        check_params(self, params)
        n, t = as_count("n", n), as_count("n_steps", n_steps)
        if ask.told(self.family, "conditional", False) and given is None:
            raise ValueError(
                f"given: expected covariates of {type(self.family).__name__}, arrays ({n}, {t}, …), got None; a "
                "regression says nothing without."
            )
        covariates = covariates_for(self, covariates, (n, t), params)
        series, states = draw(self, params, key, n=n, t=t, given=given, covariates=covariates)
        return (series if covariates is None else Gated(series, covariates)), states

    def sample_like(self, params: HMMParams, key: Key, data: Data) -> Data:
        """New series in the place of the data's, as long, with what is missing, and no outcome, as the data have it."""
        check_params(self, params)
        as_sequences(ungated(data))
        return draw_like(self, params, key, data)

    def bic(self, params: HMMParams, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + p·log(number of steps): lower is better (Schwarz 1978)."""
        return criterion_of("bic", self, params, data, sample_weight)

    def aic(self, params: HMMParams, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + 2p: lower is better (Akaike 1974)."""
        return criterion_of("aic", self, params, data, sample_weight)

    # --- for drivers

    def health(self, params: HMMParams) -> Array:
        """DEGENERATE if a state that may be reached has no density; RUNNING otherwise."""
        return ask.health(self.family, params.emissions, self._reached(params))

    def _reached(self, params: HMMParams) -> Array:
        """States that a series may begin in or come to from another: (k,)."""
        return (params.initial > 0) | self._moves.reached(params.transition)

    @property
    def closed_m_step(self) -> bool:
        """Whether the M step is a formula."""
        return not self.stationary and self.transitions is None and ask.told(self.family, "closed_m_step", True)


@_tree.register
@dataclass(frozen=True)
class _OfSteps:
    """A method whose own values are one a step, and not one a series."""

    method: Any
    n_steps: int

    def __call__(self, key: Key, points: Array, k: int, sample_weight: Array | None, active: Array | None) -> Array:
        """See `Initializer`."""
        return self.method(key, points, k, sample_weight, active)

    def validate(self, n: int, k: int) -> None:
        """See `Labels`."""
        self.method.validate(self.n_steps, k)


@jax.jit
def _log_prob(model: Any, params: HMMParams, data: Data) -> Array:
    return log_likelihood(filtered(model.chain(params, data)))


@jax.jit
def _responsibilities(model: Any, params: HMMParams, data: Data) -> Array:
    chain = model.chain(params, data)
    forward = filtered(chain)
    states = jnp.transpose(smoothed(chain, forward).states, (2, 0, 1))
    impossible = (log_likelihood(forward) == -jnp.inf)[:, None] & chain.present.T
    return jnp.where(impossible[:, :, None], jnp.nan, states)


@jax.jit
def _filtered(model: Any, params: HMMParams, data: Data) -> Array:
    return states_so_far(model.chain(params, data))


@jax.jit
def _predict(model: Any, params: HMMParams, data: Data) -> Array:
    return best_path(model.chain(params, data))[0].T
