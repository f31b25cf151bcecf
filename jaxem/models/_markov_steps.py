"""Series as the E step of a hidden Markov model reads them: step by step, and the constants taken from them."""

from dataclasses import replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from .._typing import Array, Data, PyTree
from ..contracts import capabilities as ask
from ..fold import constants as merging
from ..fold.present import present_rows
from ..latent.finite import Gated, series_of, ungated, unlabelled
from ..latent.series import Sequences, flat_steps, observed_steps, present_steps
from ..numerics import tree as _tree
from ..numerics.linalg import LANE_ROWS
from ._markov_params import HMMParams, MarkovFields

_LANES = 512  # series side by side: the arrays of one step stay in the cache
_WIDE = 128  # from so many series on nothing is transposed between densities and recursion
_LONG, _STRETCHES, _LEAST_STEPS = 4096, 256, 64
_MOST_ELEMENTS = 2**24  # of an array over all steps and states


class Blocks(NamedTuple):
    """Prepared rows in blocks, and in parts within them, with which every leaf leads.

    A part is one step of many series, or some steps of few: vector units run along it.
    """

    rows: Any


class _Cut(NamedTuple):
    """t steps as so many blocks of parts of steps."""

    blocks: int
    parts: int
    steps: int

    @property
    def total(self) -> int:
        """Steps in all, with those that fill up the last block."""
        return self.blocks * self.parts * self.steps


class Steps(NamedTuple):
    """Series, step by step: all first steps, then all second steps, and so on.

    Few long series are cut into stretches of time that lie side by side, as blocks do in `latent.recursion`: t is then
    the steps of a stretch, n the number of series times that of stretches.

    Attributes:
        rows: t·n raw rows, or `Blocks` of them, the last one filled up with others.
        observed: (t, n), which steps say something; another has some row that exists.
        length: of each series, before it is cut.
        covariates: (t, n, q) of the moves into each step, 0 where there is none; None where transitions are constant.
    """

    rows: Any
    observed: Array
    length: Array
    covariates: Array | None = None

    def log_prob(self, family: Any, bank: Any, n_states: int) -> Array:
        """log f(x_t | state), 0 where nothing is observed: (t, k, n)."""
        (t, n), k = self.observed.shape, n_states
        if isinstance(self.rows, Blocks):
            one = jax.vmap(lambda rows: family.log_prob(bank, rows).T)
            # a loop ends what fuses: with the cut of a chunk in them, exponentials of densities are ten times slower
            by_part = jax.lax.map(one, self.rows.rows) if n > _STRETCHES else jax.vmap(one)(self.rows.rows)
            by_part = by_part.reshape(-1, k, by_part.shape[3] // n, n)
            values = jnp.swapaxes(by_part, 1, 2).reshape(-1, k, n)[:t]
        else:
            values = jnp.swapaxes(family.log_prob(bank, self.rows).reshape(t, n, k), 1, 2)
        return jnp.where(self.observed[:, None], values, 0)

    def statistics(self, family: Any, bank: Any, states: Array) -> Any:
        """The family's statistics of the observed steps, given the weights of the states (t, k, n)."""
        states = jnp.where(self.observed[:, None], states, 0)
        t, k, n = states.shape
        if not isinstance(self.rows, Blocks):
            return family.statistics(bank, self.rows, jnp.swapaxes(states, 1, 2).reshape(t * n, k))
        cut = _cut(t, n)
        states = jnp.pad(states, ((0, cut.total - t), (0, 0), (0, 0)))
        by_part = jnp.swapaxes(states.reshape(-1, cut.steps, k, n), 1, 2)
        by_part = by_part.reshape(cut.blocks, cut.parts, k, cut.steps * n)
        one = lambda rows, r: family.statistics(bank, rows, r.T)  # noqa: E731
        each = jax.vmap(jax.vmap(one))(self.rows.rows, by_part)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, (0, 1)), each)


def _cut(t: int, n: int) -> _Cut:
    """Whole steps, so that rows of states are copied as they lie."""
    steps = max(1, min(t, LANE_ROWS // n))
    if n < _WIDE:
        return _Cut(-(-t // steps), 1, steps)
    blocks = -(-t // steps)
    return _Cut(blocks, -(-t // blocks), 1)


def raw_steps(data: Data, *, stretched: bool = False) -> Steps:
    """The steps with their rows as they are; `stretched` cuts few long series, but for those with covariates."""
    covariates = covariates_by_step(data)
    stretched, data = stretched and covariates is None, ungated(data)
    observed = observed_steps(data)
    n, t = observed.shape
    n_stretches = _stretches(n, t) if stretched else 1
    steps = -(-t // n_stretches)

    def by_step(leaf: Array) -> Array:
        fill = ((0, 0), (0, n_stretches * steps - t), *[(0, 0)] * (leaf.ndim - 2))
        apart = jnp.pad(leaf, fill).reshape(leaf.shape[0], n_stretches, steps, *leaf.shape[2:])
        return jnp.moveaxis(apart, 0, 2).swapaxes(0, 1).reshape(steps, -1, *leaf.shape[2:])

    observed = by_step(observed)
    rows: PyTree = jax.tree.map(lambda leaf: by_step(leaf).reshape(-1, *leaf.shape[2:]), data.values)
    weight = observed.reshape(-1).astype(_tree.float_dtype(data.values))
    return Steps(present_rows(rows, weight), observed, jnp.asarray(data.length), covariates)


def covariates_by_step(data: Data) -> Array | None:
    """Covariates (t, n, q) of the moves into each step; None of data without."""
    inner = unlabelled(data)
    return jnp.swapaxes(covariates_of_moves(inner), 0, 1) if isinstance(inner, Gated) else None


def covariates_of_moves(data: Gated) -> Array:
    """Covariates (n, t, q), 0 where no move is: in first and in absent steps."""
    return jnp.where(_is_move(data)[:, :, None], jnp.asarray(data.covariates), 0)


def rows_of_moves(data: Gated, sample_weight: Array | None) -> tuple[Array, Array]:
    """Covariates of all steps (n·t, q), and the weights of the moves (n·t,), 0 where there is none."""
    covariates = covariates_of_moves(data)
    weight = _is_move(data).astype(covariates.dtype)
    weight = weight if sample_weight is None else weight * sample_weight[:, None]
    return covariates.reshape(-1, covariates.shape[2]), weight.reshape(-1)


def _is_move(data: Gated) -> Array:
    """(n, t)."""
    present = present_steps(data.data)
    return present & (jnp.arange(present.shape[1]) > 0)[None]


def _stretches(n: int, t: int) -> int:
    """Into how many stretches n series of t steps are cut: all run at once, after a pass of n_states times the work."""
    return 1 if t < _LONG else max(1, min(_STRETCHES // n, t // _LEAST_STEPS))


def step_weight(data: Sequences, sample_weight: Array | None) -> Array:
    """The weight of every step, series by series: (n·t,), zero where nothing is observed."""
    observed = observed_steps(data).astype(_tree.float_dtype(data.values))
    return (observed if sample_weight is None else observed * sample_weight[:, None]).reshape(-1)


class MarkovConstants(MarkovFields):
    """What `bind` takes from the steps, and the faster form of the densities: the family's own."""

    def bind(self, data: Data, sample_weight: Array | None = None) -> Self:
        """The model with its family's constants of these steps."""
        family, moves, data = ask.among(self.family, self.n_states), unlabelled(data), series_of(data)
        transitions = self.transitions
        if transitions is not None:
            transitions = transitions.bind(*rows_of_moves(moves, sample_weight))
        weight = step_weight(data, sample_weight)
        rows = present_rows(flat_steps(data.values), weight)
        return replace(self, family=ask.bind(family, rows, weight), transitions=transitions)

    def weigh(self, data: Data, sample_weight: Array | None) -> Any:
        """The weight of steps behind the family's constants."""
        data = series_of(data)
        weight = step_weight(data, sample_weight)
        return merging.weigh(self.family, present_rows(flat_steps(data.values), weight), weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The model bound to the series of both."""
        return replace(self, family=merging.merged(self.family, seen, other.family, other_seen))

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """The weight of both."""
        return merging.merged_weight(self.family, seen, other_seen)

    def recentred(self, params: HMMParams) -> Self:
        """The model on its family's stable path, moments about these params."""
        return replace(self, family=ask.recentred(self.family, params.emissions))

    def localised(self) -> Self:
        """The bound model for params relative to the data's own place, in which the loop works."""
        transitions = None if self.transitions is None else self.transitions.localised()
        return replace(self, family=ask.localised(self.family), transitions=transitions)

    def to_local(self, params: HMMParams) -> HMMParams:
        """Params as `localised` takes them."""
        moves = params.transition if self.transitions is None else self.transitions.to_local(params.transition)
        return params._replace(transition=moves, emissions=ask.to_local(self.family, params.emissions))

    def to_global(self, params: HMMParams) -> HMMParams:
        """Inverse of `to_local`."""
        moves = params.transition if self.transitions is None else self.transitions.to_global(params.transition)
        return params._replace(transition=moves, emissions=ask.to_global(self.family, params.emissions))

    @property
    def additive(self) -> bool:
        """Whether the statistics of two chunks add."""
        return self.transitions is None and ask.told(self.family, "additive", True)

    @property
    def has_fast_path(self) -> bool:
        """Probabilities scaled to sum to one at each step; the stable path adds their logarithms."""
        return True

    @property
    def may_underflow(self) -> bool:
        """A state may be lost on the fast path, which is seen at its end, NaN, and not in the params."""
        return True

    def trusted(self, params: HMMParams) -> Array:
        """Whether the family's fast path keeps its digits at these params."""
        return ask.trusted(self.family, params.emissions)

    def prepare(self, data: Data, columns_first: bool = False) -> Steps:
        """The steps in the form that the fast path reads."""
        steps = raw_steps(data, stretched=True)
        if not (self.additive and ask.offers(self.family, "prepare")):
            return steps
        t, n = steps.observed.shape
        cut = _cut(t, n)

        def in_blocks(leaf: Array) -> Array:
            filled = jnp.concatenate([leaf, leaf[: (cut.total - t) * n]])
            return filled.reshape(cut.blocks, cut.parts, cut.steps * n, *leaf.shape[1:])

        one = lambda rows: ask.prepare(self.family, rows, self.n_states if columns_first else None)  # noqa: E731
        return steps._replace(rows=Blocks(jax.vmap(jax.vmap(one))(jax.tree.map(in_blocks, steps.rows))))

    def rows_at_once(self, data: Data) -> int:
        """How many series an E step works on at a time."""
        t = jax.tree.leaves(ungated(data).values)[0].shape[1]
        return max(1, min(_LANES, _MOST_ELEMENTS // (t * self.n_states)))

    def units(self, data: Data) -> Array:
        """Steps of each series that say something: (n,)."""
        data = ungated(data)
        return jnp.sum(_telling(self.family, data), 1).astype(_tree.float_dtype(data.values))

    def informative(self, data: Data) -> Array | None:
        """Which series have a step that says something: (n,)."""
        data = ungated(data)
        if not isinstance(data, Sequences) or min(map(jnp.ndim, jax.tree.leaves(data.values))) < 2:
            return None  # what are no series is refused soon
        return jnp.any(_telling(self.family, data), 1)


@jax.jit
def _telling(family: Any, data: Sequences) -> Array:
    """Which steps say something of the emissions: (n, t)."""
    observed = observed_steps(data)
    own = ask.informative(family, flat_steps(data.values))
    return observed if own is None else observed & own.reshape(observed.shape)
