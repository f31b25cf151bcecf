"""Three toys that prove the contracts: a model without a closed M step, a minibatch EM, a batch in two rounds."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.contracts import capabilities as ask
from jaxem.contracts.protocols import StepInfo
from jaxem.contracts.status import Status
from jaxem.loop.loop import advance, finish, start
from jaxem.loop.stopping import Aitken
from jaxem.numerics.maximize import ascend

# --- (a) a model written from its log joint, whose M step climbs


class CountParams(NamedTuple):
    """Free coordinates: log-ratios of the weights to the last (k − 1,), log rates (k,)."""

    log_ratio: jax.Array
    log_rate: jax.Array


class CountStats(NamedTuple):
    rows: jax.Array
    events: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PoissonMixture:
    """Counts (n,) from k rates; data are the counts, or (counts, exposures). Gamma(1 + shape, rate) prior on rates."""

    shape: Any = 0.0
    rate: Any = 0.0
    n_steps: int = field(metadata={"static": True}, default=30)

    def log_joint(self, params, data):
        count, exposure = data if isinstance(data, tuple) else (data, jnp.ones_like(data))
        log_mean = params.log_rate[None] + jnp.log(exposure)[:, None]
        log_density = count[:, None] * log_mean - jnp.exp(log_mean) - jax.scipy.special.gammaln(count + 1)[:, None]
        return log_density + log_weights(params)[None]

    def statistics(self, params, data, responsibilities):
        count, exposure = data if isinstance(data, tuple) else (data, jnp.ones_like(data))
        total = jnp.sum(responsibilities * exposure[:, None], 0)
        return CountStats(jnp.sum(responsibilities, 0), responsibilities.T @ count), total

    def expected_log_joint(self, params, stats):
        (rows, events), exposure = stats
        return jnp.sum(rows * log_weights(params) + events * params.log_rate - exposure * jnp.exp(params.log_rate))

    def log_prior(self, params):
        return jnp.sum(self.shape * params.log_rate - self.rate * jnp.exp(params.log_rate))

    def m_step(self, params, stats):
        q = lambda free: self.expected_log_joint(free, stats) + self.log_prior(free)  # noqa: E731
        return ascend(q, params, n_steps=self.n_steps).params


def log_weights(params):
    return jax.nn.log_softmax(jnp.append(params.log_ratio, 0.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClosedPoissonMixture(PoissonMixture):
    """The same model with the M step that everybody knows."""

    def m_step(self, params, stats):
        (rows, events), exposure = stats
        log_rows = jnp.log(rows)
        return CountParams(log_rows[:-1] - log_rows[-1:], jnp.log((events + self.shape) / (exposure + self.rate)))


# --- (b) minibatch EM


class StepwiseState(NamedTuple):
    stats: Any
    key: jax.Array
    n_steps: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stepwise:
    """Online EM on random minibatches (Cappé & Moulines 2009): s ← (1 − γ_t) s + γ_t ŝ, γ_t = (t + 1)^−power.

    It takes rows out of the data and carries statistics from step to step, so it needs the rows as they are and
    statistics that mean the same at every step: `by_rows`.
    """

    key: Any
    batch_size: int = field(metadata={"static": True}, default=32)
    power: Any = 0.6

    monotone: ClassVar[bool] = False
    ends_at_em_fixed_point: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True

    def init(self, model, params, data, sample_weight):
        stats, _ = model.e_step(params, data, sample_weight)
        return StepwiseState(stats, self.key, jnp.zeros((), jnp.int32))

    def step(self, model, params, data, sample_weight, state):
        _, log_lik = model.e_step(params, data, sample_weight)
        info = StepInfo(log_lik + ask.log_prior(model, params), jnp.full((), 2, jnp.int32), jnp.zeros((), bool))
        key, own = jax.random.split(state.key)
        n = jax.tree.leaves(data)[0].shape[0]
        rows = jax.random.randint(own, (self.batch_size,), 0, n)
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        weight = None if sample_weight is None else sample_weight[rows]
        seen, _ = model.e_step(params, batch, weight)
        step = (state.n_steps + 2.0) ** -self.power
        scale = n / self.batch_size
        stats = jax.tree.map(
            lambda old, new: ((1 - step) * old + step * scale * new).astype(old.dtype), state.stats, seen
        )
        return model.m_step(params, stats), StepwiseState(stats, key, state.n_steps + 1), info


# --- (c) lanes in two rounds


@partial(jax.jit, static_argnames=("algorithm", "max_iter"))
def start_lanes(model, params, data, *, algorithm, max_iter):
    def one(params, data):
        bound = ask.bind(model, data, None)
        return bound, start(bound, params, data, None, algorithm=algorithm, max_iter=max_iter)

    return jax.vmap(one)(params, data)


@partial(jax.jit, static_argnames=("algorithm", "tol"))
def advance_lanes(bound, state, data, n_iter, *, algorithm, tol):
    def one(bound, state, data):
        return advance(state, bound, data, None, algorithm=algorithm, stop=Aitken(tol), n_iter=n_iter)

    return jax.vmap(one)(bound, state, data)


def fit_in_rounds(model, params, data, *, algorithm, max_iter, tol, first):
    """`first` iterations of all lanes; then those still running are gathered on the host, go on, and are put back."""
    go_on = partial(advance_lanes, algorithm=algorithm, tol=tol)
    bound, state = start_lanes(model, params, data, algorithm=algorithm, max_iter=max_iter)
    state = go_on(bound, state, data, first)
    running = np.flatnonzero(np.asarray(state.status) == Status.RUNNING)
    gather = partial(jax.tree.map, lambda leaf: leaf[running])
    rest = go_on(gather(bound), gather(state), gather(data), max_iter)
    home = jax.tree.map(lambda whole, part: whole.at[running].set(part), state, rest)
    return jax.jit(jax.vmap(finish))(home, bound), running
