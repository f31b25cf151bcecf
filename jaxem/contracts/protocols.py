"""What a model, a family and an algorithm must offer. Structural: nothing here is inherited from.

Some methods are optional and unlock features by being there; the functions below supply what is absent.
"""

from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key, Params, Stats


class EMModel(Protocol):
    """A model whose E step is written out.

    Params are any pytree of floating arrays. `data` is a pytree whose leaves share a leading axis of n observations;
    its whole numbers and booleans arrive as such, unless the class has `reads_floats = True`.
    Optional: `log_prior(params)`, `bind(data, sample_weight)`, `expected_log_joint(params, stats)`,
    `health(params) -> status`, `min_rows()`, `validate(params, data)`, `check_data(data, sample_weight)` of concrete
    rows one by one, `check_table(data, sample_weight)` of all together, `readable(data)` where NaN may mark what is
    missing, `informative(data)`, (n,) which rows say something (None: all), others having no weight anywhere,
    `check_params(params, *, lanes)`, which raises on concrete ones that no model allows, `unresolved(params, data,
    plan)`, (n,) rows of which the objective cannot be trusted,
    `component_axes()`, `init(key, data, …)`, `n_parameters(params)`, `unconstrain(params)`, `constrain(free)`,
    `sample(params, key, n)`, `sample_like(params, key, data)`, rows in the place of the data's with what is no outcome
    as they have it, `costly_features`, whether `prepare` (see `FiniteLatent`) takes much longer than to read
    the data, the pair
    `trusted(params) -> bool`, `recentred(params) -> model` of a fast path that knows its limit, and
    `localised() -> model`, `to_local(params)`, `to_global(params)` of params relative to the data, for the loop.
    For algorithms that jump ahead of EM: `feasible(params) -> bool`, `projected(params, near)`, which puts params back
    on constraints such as a simplex, `near` being allowed ones, and `sizes(params)`, by which changes are measured.
    For `Frozen`: `m_step_held(params, stats, held)`, `frozen_coordinates(params, held)`. A model that holds params
    itself: `holding(params)`, `imposed(params)`, `coordinates(params)`.
    `m_step` may be `Full()` or `Truncated(n)`, or absent, where `expected_log_joint` is there to be climbed.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Lifetimes:  # exponential, some cut off before their end: expected then to go on for 1 / rate
        ...     def e_step(self, rate, data, sample_weight):
        ...         time, ended = data
        ...         log_lik = ended * jnp.log(rate) - rate * time
        ...         stats = jnp.sum(sample_weight), jnp.sum(sample_weight * (time + (1 - ended) / rate))
        ...         return stats, jnp.sum(sample_weight * log_lik)
        ...     def m_step(self, rate, stats):
        ...         return stats[0] / stats[1]
        >>> data = (jnp.array([1.0, 2.0, 3.0, 3.0]), jnp.array([1.0, 1.0, 0.0, 0.0]))
        >>> jaxem.fit(Lifetimes(), jnp.array(1.0), data).params.round(2)  # 2 ends in a time of 9
        Array(0.22, dtype=...)
    """

    def e_step(self, params: Params, data: Data, sample_weight: Array) -> tuple[Stats, Array]:
        """Expected sufficient statistics and the log-likelihood, both sums over observations, weighted."""
        ...

    def m_step(self, params: Params | None, stats: Stats) -> Params:
        """The mode of Q(·; stats) + log prior. `params` is None at initialisation."""
        ...


class FiniteLatent(Protocol):
    """A model with finitely many latent states: two methods instead of `e_step`; `m_step` as above.

    Without `statistics` (or with `additive` False) the statistics are the rows themselves, `Rows`, and an M step that
    is not written climbs Σ responsibilities · log_joint.

    Optional besides those of `EMModel`: `prepare(data, columns_first)`, the form of the data in which these two
    methods are fastest, made once per fit where it fits in memory; `elements_per_row(data)`, where they make an array
    of more elements than that, by which chunks are cut.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Coins:  # heads in 10 tosses of one of two coins (Do & Batzoglou 2008)
        ...     def log_joint(self, p, heads):
        ...         heads, p = heads[:, None], p[None]
        ...         return jnp.log(0.5) + heads * jnp.log(p) + (10 - heads) * jnp.log(1 - p)
        ...     def statistics(self, p, heads, responsibilities):
        ...         return jnp.sum(responsibilities, 0), jnp.sum(responsibilities * heads[:, None], 0)
        ...     def m_step(self, p, stats):
        ...         return stats[1] / (10 * stats[0])
        >>> jaxem.fit(Coins(), jnp.array([0.6, 0.5]), jnp.array([5, 9, 8, 4, 7])).params.round(1)
        Array([0.8, 0.5], dtype=...)
    """

    def log_joint(self, params: Params, data: Data) -> Array:
        """(n, k): log p(x_i, z_i = j)."""
        ...

    def statistics(self, params: Params | None, data: Data, responsibilities: Array) -> Stats:
        """Sums over observations; `responsibilities` (n, k) are already times the sample weight."""
        ...


class Family(Protocol):
    """The distribution of an observation given its latent state; a Bank is a pytree over k components.

    Optional: `additive` False where statistics are `Rows`; `closed_m_step` False where `estimate` climbs, so that a fit
    is differentiated through the score equation, for which `unconstrain` and `constrain` are needed; `feasible(bank)`,
    `projected(bank, near)` and `sizes(bank)`, standard deviations of the estimates from one row, for algorithms that
    jump ahead of EM. Without the first two these go by way of the free coordinates.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class HalfNormal:  # of one column, its bank the variances (k,)
        ...     additive = True
        ...     def log_prob(self, bank, x):
        ...         return -(jnp.log(jnp.pi / 2 * bank)[None] + jnp.square(x) / bank[None]) / 2
        ...     def statistics(self, bank, x, responsibilities):
        ...         return jnp.sum(responsibilities, 0), jnp.sum(responsibilities * jnp.square(x), 0)
        ...     def estimate(self, bank, stats, active=None):
        ...         return stats[1] / stats[0]
        ...     def component_axes(self):
        ...         return 0
        >>> x = jnp.concatenate([jnp.linspace(0.0, 1.0, 50), jnp.linspace(0.0, 30.0, 50)])[:, None]
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), jnp.array([1.0, 100.0]))
        >>> bool(jaxem.fit(jaxem.Mixture(HalfNormal(), 2), start, x).converged)
        True
    """

    additive: ClassVar[bool]

    def log_prob(self, bank: Any, x: Data) -> Array:
        """(n, k)."""
        ...

    def statistics(self, bank: Any, x: Data, responsibilities: Array) -> Stats:
        """Sums over observations, one row a component."""
        ...

    def estimate(self, bank: Any, stats: Stats, active: Array | None = None) -> Any:
        """The bank that maximises the expected log-density plus the log prior.

        `bank` is None at initialisation, `active` (k,) the components that are on, None where all are.
        """
        ...

    def component_axes(self) -> Any:
        """Bank-shaped: 0 where a leaf leads with the components, None where they share it."""
        ...


class StepInfo(NamedTuple):
    """What one step of an algorithm reports.

    Attributes:
        objective: log-likelihood + log prior at the params that the step *received*.
        n_evals: E steps that it took.
        done: the algorithm says itself that it has finished.
        criterion: what the stopping rule sees in the place of the objective; None is the objective.
        may_stop: whether the stopping rule may end the fit at these params.
        image: the EM point of the params received, from an algorithm that may propose another; None where every
            proposal is its algorithm's EM point.
        passing: the params received are a place on the way, not a candidate: the loop goes on to the proposal without
            accepting them, whatever their objective, if that is finite. None: never.
        rate: by which an EM step shrinks the residual M(θ) − θ here, as an algorithm that jumps has seen it; NaN where
            it has not. None where it does not look.
        plain: whether the params received are the EM point of those accepted before; where there is a rate.
        size: of the terms that the objective is a sum of, Σ |term|, by which its rounding is measured where the
            algorithm is monotone. None is |objective|.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class TwoSteps:  # of EM as one; what is reported is the objective at the params received
        ...     monotone, ends_at_em_fixed_point = True, True
        ...     def init(self, model, params, data, sample_weight):
        ...         return ()
        ...     def step(self, model, params, data, sample_weight, state):
        ...         middle, _, info = jaxem.EM().step(model, params, data, sample_weight, state)
        ...         after, _, _ = jaxem.EM().step(model, middle, data, sample_weight, state)
        ...         return after, state, info._replace(n_evals=2 * info.n_evals)
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=TwoSteps())
        >>> bool(result.converged), bool(result.n_evals == 2 * (result.n_iter + 1))
        (True, True)
    """

    objective: Array
    n_evals: Array
    done: Array
    criterion: Array | None = None
    may_stop: Any = True
    image: Any = None
    passing: Any = None
    rate: Any = None
    plain: Any = None
    size: Any = None


class Algorithm(Protocol):
    """EM or a relative. `model` has an `e_step` that covers the whole data, however they are chunked or sharded.

    Optional: `by_rows: ClassVar[bool]`, True if it takes rows out of `data` or carries statistics from one step to the
    next. The loop then leaves the rows as they are, and statistics mean the same at every step (moments about the bound
    pivot). Otherwise `data` may arrive prepared, fit for `e_step` alone, and statistics are good for one `m_step`.
    `final(model, params, state) -> params`: no rule ends the fit, which runs max_iter iterations, and these are its
    params, of the last ones evaluated; there all rows are looked at once more. `for_lane(number)`: the algorithm with
    random numbers of its own for this lane. `validate()` raises a ValueError on concrete options out of range; stopping
    rules may have it too.

    Optional: `refused(model, state) -> (params, state, possible)`, of an algorithm that jumps ahead of EM. The loop
    asks when it refuses the proposal that came with `state`: if `possible`, it evaluates these params next, such as the
    EM point of those accepted last, and goes on as if they had been proposed. After one refusal too many, `possible` is
    False. Where the loop changes over to the model's stable path, such an algorithm is started anew by `init`.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Damped:  # goes half the way of EM
        ...     monotone, ends_at_em_fixed_point = False, True
        ...     def init(self, model, params, data, sample_weight):
        ...         return ()
        ...     def step(self, model, params, data, sample_weight, state):
        ...         image, state, info = jaxem.EM().step(model, params, data, sample_weight, state)
        ...         return jax.tree.map(lambda here, there: (here + there) / 2, params, image), state, info
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x, algorithm=Damped())
        >>> jnp.sort(result.params.components.rate[:, 0]).round(2)
        Array([ 1.5, 21.5], dtype=...)
    """

    monotone: ClassVar[bool]
    ends_at_em_fixed_point: ClassVar[bool]

    def init(self, model: Any, params: Params, data: Data, sample_weight: Array | None) -> Any:
        """The state that the first step needs."""
        ...

    def step(
        self, model: Any, params: Params, data: Data, sample_weight: Array | None, state: Any
    ) -> tuple[Params, Any, StepInfo]:
        """New params, new state, and what was seen at the params received."""
        ...


def number_of(key: Key) -> Array:
    """The number of a lane that has a key of its own."""
    return jax.random.bits(key, (), jnp.uint32)


class StoppingRule(Protocol):
    """Decides when a fit has converged.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxem
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class Reached:  # stops at an objective per row that is good enough
        ...     enough: float
        ...     def converged(self, progress):
        ...         return progress.objective >= self.enough, jnp.zeros((), bool)
        >>> x = jnp.concatenate([jnp.arange(4.0), 20 + jnp.arange(4.0)])[:, None]
        >>> model = jaxem.Mixture(jaxem.Poisson(), n_components=2)
        >>> jaxem.fit(model, model.init(jax.random.key(0), x), x, stop=Reached(-5.0)).n_iter
        Array(0, dtype=int32)
    """

    def converged(self, progress: "Progress") -> tuple[Array, Array]:
        """Whether to stop at `progress.params`, and whether only rounding says so."""
        ...


class Progress(NamedTuple):
    """What a stopping rule sees after each evaluation; objectives are per unit of sample weight.

    Attributes:
        objective: at `params`, or the algorithm's own criterion, see `StepInfo`.
        previous_objective: at `previous`; −inf at the first evaluation.
        params: just evaluated.
        previous: evaluated before them.
        proposal: what the algorithm would evaluate next.
        n_iter: M steps inside `params`.
        image: the EM point of `params`, from an algorithm that may propose another; None where that is `proposal`.
        earlier_objectives: (3,) accepted two to four evaluations before `params`; NaN where there was none.
        sizes: of the entries of `params`, by which their changes are measured.
        rate: as `StepInfo` has it.
        plain: as `StepInfo` has it.
        resolution: of the objective, by the rounding of its terms; None is that of its own size.
        steps: (4,) squared lengths of the last steps of EM in units of `sizes`, that from `params` first; NaN where
            there was none. None where the algorithm jumps.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> progress = jaxem.Progress(  # to try a rule without a fit
        ...     objective=jnp.array(-1.0), previous_objective=jnp.array(-1.001), n_iter=jnp.array(5),
        ...     params=jnp.ones(2), previous=jnp.zeros(2), proposal=jnp.ones(2))
        >>> [bool(jaxem.Objective(tol).converged(progress)[0]) for tol in (1e-2, 1e-4)]
        [True, False]
    """

    objective: Array
    previous_objective: Array
    params: Params
    previous: Params
    proposal: Params
    n_iter: Array
    image: Any = None
    earlier_objectives: Any = None
    sizes: Any = None
    rate: Any = None
    plain: Any = None
    resolution: Any = None
    steps: Any = None
