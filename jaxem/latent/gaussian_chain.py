"""Linear-Gaussian chains: Kalman filter, smoother and draws, for many series at a time.

    x_1 ~ N(m, P),   x_{t+1} = A x_t + drift_t + w_t,  w ~ N(0, Q),   y_t = C x_t + v_t,  v ~ N(0, R)

The entries of a step are looked at one after the other, their noise made independent first (Anderson & Moore 1979,
section 6.5; Koopman & Durbin 2000): no matrix is inverted, an entry that is missing is left out, and a sensor far more
precise than what is known keeps its digits in float32 by Joseph's form of the update. The pass backwards carries r and
N, by which the smoothed state is x̂ = x̂_pred + P_pred r, with covariance P_pred − P_pred N P_pred (de Jong 1989): states
without noise, whose predicted covariance is singular, need no care.

Layout: time first, series last, (t, s, n): vector units run along the series. What does not depend on the values, such
as covariances, is the same for all series that have the same steps and entries; it is then computed once, and its last
axis is 1. Products of small matrices are sums of broadcast ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Key

_UNROLLED = 8  # entries of a step that are written out one after the other
_SUM_BLOCK = 64


class GaussianChain(NamedTuple):
    """Series of a linear-Gaussian state space model.

    Attributes:
        initial_mean: (s,) of the state at the first step.
        initial_covariance: (s, s).
        transition: A (s, s).
        transition_covariance: Q (s, s).
        emission: C (d, s).
        emission_covariance: R (d, d).
        values: (t, d, n), numbers where nothing is observed too.
        observed: (t, d, n) booleans.
        present: (t, n) booleans: which steps there are; those of a series come first.
        drift: (t, s, n), what inputs add to the state after each step; None is nothing.
    """

    initial_mean: Array
    initial_covariance: Array
    transition: Array
    transition_covariance: Array
    emission: Array
    emission_covariance: Array
    values: Array
    observed: Array
    present: Array
    drift: Array | None = None


class Entries(NamedTuple):
    """The entries of all steps with independent noise: y* = L⁻¹y of R = L D Lᵀ among those observed; m is 1 or n.

    Attributes:
        values: y* (t, d, n).
        rows: C* = L⁻¹C (t, d, s, m).
        noise: D (t, d, m).
        seen: (t, d, m).
        mixing: L⁻¹ (t, d, d, m), zero where nothing is observed.
    """

    values: Array
    rows: Array
    noise: Array
    seen: Array
    mixing: Array


class FilteredStates(NamedTuple):
    """What the pass forwards finds.

    Attributes:
        mean: (t, s, n) of x_t given y_1 … y_t.
        covariance: (t, s, s, m).
        residuals: (t, d, n) of the entries, one step ahead and given those before in the step; 0 where not observed.
        variances: (t, d, m) of these; 1 where not observed.
        gains: (t, d, s, m).
        ahead: mean (s, n) and covariance (s, s, m) of the state after the end of each series.
    """

    mean: Array
    covariance: Array
    residuals: Array
    variances: Array
    gains: Array
    ahead: tuple[Array, Array]


def product(a: Array, b: Array) -> Array:
    """(…, i, k, m) times (…, k, j, m), lanes last: broadcast, as a batch of tiny matrix products is slow."""
    a, b = _of_one_rank(a, b)
    if not 2 < a.shape[-2] <= _UNROLLED:
        return jnp.sum(a[..., :, :, None, :] * b[..., None, :, :, :], -3)
    # written out, it runs along the lanes and not along k: more than twice as fast for four states, no gain for two.
    # What follows keeps its sums, at which fusions end: written out too, each would compute the products again
    total = a[..., :, 0, None, :] * b[..., None, 0, :, :]
    for k in range(1, a.shape[-2]):
        total = total + a[..., :, k, None, :] * b[..., None, k, :, :]
    return total


def applied(matrix: Array, vector: Array) -> Array:
    """(…, i, k, m) times (…, k, n), lanes last."""
    matrix, vector = _of_one_rank(matrix, vector[..., None, :, :])
    return jnp.sum(matrix * vector, -2)


def _of_one_rank(*arrays: Array) -> list[Array]:
    """The arrays with leading axes of size 1, as many as the one with the most axes has."""
    most = max(array.ndim for array in arrays)
    return [array.reshape((1,) * (most - array.ndim) + array.shape) for array in arrays]


def _outer(a: Array, b: Array) -> Array:
    return a[:, None] * b[None]


def _symmetric(a: Array) -> Array:
    return (a + jnp.swapaxes(a, -2, -3)) / 2


def is_common(chain: GaussianChain) -> Array:
    """Whether all series have the same steps and entries, so that they share their covariances: ()."""
    same = jnp.all(chain.observed == chain.observed[..., :1])
    return same & jnp.all(chain.present == chain.present[..., :1])


def shared_or_each(chain: GaussianChain, fn: Callable[[GaussianChain, Array], Any]) -> Any:
    """fn(chain, observed (t, d, m)), m = 1 where all series have the same entries, else n; it returns sums over series.

    Decided when it runs; of one series there is nothing to decide.
    """
    if chain.observed.shape[-1] == 1:
        return fn(chain, chain.observed)
    once = lambda chain: fn(chain, chain.observed[..., :1])  # noqa: E731
    return lax.cond(is_common(chain), once, lambda chain: fn(chain, chain.observed), chain)


def independent_entries(chain: GaussianChain, observed: Array) -> Entries:
    """The entries with independent noise, by L D Lᵀ of R among those observed (Golub & Van Loan 2013, section 4.1)."""
    t, d, m = observed.shape
    n = chain.values.shape[-1]
    noise, rows, values, mixing = [], [], [], []
    seen = observed.astype(chain.values.dtype)
    identity = jnp.eye(d, dtype=chain.values.dtype)
    low: list[list[Array]] = []
    for i in range(d):
        here = observed[:, i]
        low.append([])
        rest = jnp.broadcast_to(chain.emission_covariance[i, i], (t, m))
        value = jnp.broadcast_to(chain.values[:, i], (t, n))
        row = chain.emission[i][None, :, None] * seen[:, i, None]
        own = identity[i][None, :, None] * seen[:, i, None]
        for j in range(i):
            inner = chain.emission_covariance[i, j]
            for q in range(j):
                inner = inner - low[i][q] * low[j][q] * noise[q]
            sound = here & observed[:, j] & (noise[j] > 0)
            factor = jnp.where(sound, inner, 0) / jnp.where(sound, noise[j], 1)
            low[i].append(factor)
            rest = rest - jnp.square(factor) * noise[j]
            value = value - factor * values[j]
            row = row - factor[:, None] * rows[j]
            own = own - factor[:, None] * mixing[j]
        noise.append(jnp.where(here, rest, 1))
        values.append(jnp.where(chain.observed[:, i], value, 0))
        rows.append(row)
        mixing.append(own)
    stack = lambda each: jnp.stack(each, 1)  # noqa: E731
    return Entries(stack(values), stack(rows), stack(noise), observed, stack(mixing))


def over_entries(fn: Callable, carry: Any, entries: Any, d: int, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` over the d entries of a step, written out where they are few: what is found is then a list of d."""
    if d > _UNROLLED:
        return lax.scan(fn, carry, entries, reverse=reverse)
    found: list[Any] = [None] * d
    for i in reversed(range(d)) if reverse else range(d):
        carry, found[i] = fn(carry, jax.tree.map(lambda leaf: leaf[i], entries))  # noqa: B023
    return carry, found


def filtered_states(chain: GaussianChain, entries: Entries) -> FilteredStates:
    """The pass forwards (Kalman 1960)."""
    d, n, m = chain.values.shape[1], chain.values.shape[2], entries.seen.shape[-1]
    move, noise = chain.transition[:, :, None], chain.transition_covariance[:, :, None]
    drift = jnp.zeros((chain.values.shape[0], 1, 1), chain.values.dtype) if chain.drift is None else chain.drift

    def entry(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        mean, covariance = carry
        value, row, own, seen = now
        cross = applied(covariance, row)
        variance = jnp.where(seen, jnp.sum(row * cross, 0) + own, 1)
        gain = cross * jnp.where(seen, 1 / variance, 0)[None]
        half = covariance - _outer(gain, cross)  # (I − k cᵀ) P, then times (I − c kᵀ), plus noise (Joseph)
        covariance = half + _outer(own[None] * gain - applied(half, row), gain)
        residual = jnp.where(seen, value - jnp.sum(row * mean, 0), 0)
        return (mean + gain * residual[None], covariance), (residual, variance, gain)

    def step(ahead: tuple[Array, Array], now: tuple[Any, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        each, here, added = now
        (mean, covariance), found = over_entries(entry, ahead, each, d)
        following = applied(move, mean) + added
        spread = _symmetric(product(product(move, covariance), jnp.swapaxes(move, 0, 1))) + noise
        # after its end a series stays where it is: its last prediction is kept
        following = jnp.where(here[None], following, ahead[0])
        spread = jnp.where(here[None, None] if m == n else here[None, None, :1], spread, ahead[1])
        return (following, spread), (mean, covariance, found)

    first = (
        jnp.broadcast_to(chain.initial_mean[:, None], (len(chain.initial_mean), n)),
        jnp.broadcast_to(chain.initial_covariance[:, :, None], (*chain.initial_covariance.shape, m)),
    )
    each = entries.values, entries.rows, entries.noise, entries.seen
    ahead, (mean, covariance, found) = lax.scan(step, first, (each, chain.present, drift))
    if isinstance(found, list):  # stacked here, and not within a step: this is faster
        found = jax.tree.map(lambda *each: jnp.stack(each, 1), *found)
    return FilteredStates(mean, covariance, *found, ahead=ahead)


def log_likelihoods(forward: FilteredStates, observed: Array) -> Array:
    """log p(y) of each series: (n,)."""
    terms = jnp.log(2 * jnp.pi * forward.variances) + jnp.square(forward.residuals) / forward.variances
    return sum_over_time(jnp.sum(jnp.where(observed, -terms / 2, 0), 1))


def nothing_behind(chain: GaussianChain, entries: Entries) -> tuple[Array, Array]:
    """r and N after the end."""
    s, n, dtype = chain.transition.shape[0], chain.values.shape[2], chain.values.dtype
    return jnp.zeros((s, n), dtype), jnp.zeros((s, s, entries.seen.shape[-1]), dtype)


def what_goes_back(entries: Entries, forward: FilteredStates) -> tuple[Array, ...]:
    """What a step backwards is told of its step; each leads with t."""
    inverse = jnp.where(entries.seen, 1 / forward.variances, 0)
    return entries.rows, forward.gains, forward.residuals, inverse, forward.mean, forward.covariance


def step_back(
    chain: GaussianChain, behind: tuple[Array, Array], now: tuple[Array, ...]
) -> tuple[tuple[Array, Array], Array, Array, Array]:
    """r and N of the state predicted for a step, its smoothed mean and covariance, and N_{t+1} A; given r, N after."""
    *each, mean, covariance = now
    move = chain.transition[:, :, None]
    back = jnp.swapaxes(move, 0, 1)

    def entry(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        score, information = carry
        row, gain, residual, inverse = now
        score = score + row * (residual * inverse - jnp.sum(gain * score, 0))[None]
        half = information - _outer(row, applied(information, gain))
        return (score, half + _outer(row * inverse[None] - applied(half, gain), row)), None

    score = applied(back, behind[0])
    moved = product(behind[1], move)
    information = _symmetric(product(back, moved))
    states = mean + applied(covariance, score)
    spread = covariance - _symmetric(product(product(covariance, information), covariance))
    carry, _ = over_entries(entry, (score, information), tuple(each), chain.emission.shape[0], reverse=True)
    return carry, states, spread, moved


def sum_over_time(values: Array) -> Array:
    """Σ_t of (t, …) in blocks of blocks: one sum over 10⁶ steps would lose the last three digits of float32."""
    while values.shape[0] > _SUM_BLOCK:
        whole = values.shape[0] // _SUM_BLOCK
        blocks = values[: whole * _SUM_BLOCK].reshape(whole, _SUM_BLOCK, *values.shape[1:])
        rest = jnp.sum(values[whole * _SUM_BLOCK :], 0, keepdims=True)
        values = jnp.concatenate([jnp.sum(blocks, 1), rest])
    return jnp.sum(values, 0)


def factor(covariance: Array) -> Array:
    """L with L Lᵀ = Σ of one positive semidefinite matrix (s, s): a pivot that is not positive is left out."""
    s = covariance.shape[0]
    columns: list[Array] = []
    rest = covariance
    for j in range(s):
        pivot = rest[j, j]
        sound = pivot > 0
        column = jnp.where(sound, rest[:, j], 0) / jnp.sqrt(jnp.where(sound, pivot, 1))
        column = jnp.where(jnp.arange(s) < j, 0, column)
        columns.append(column)
        rest = rest - column[:, None] * column[None]
    return jnp.stack(columns, 1)


def drawn_states(chain: GaussianChain, key: Key) -> Array:
    """States of n series, as the model has them before anything is observed: (t, s, n)."""
    t, n = chain.present.shape
    noise = jax.random.normal(key, (t, len(chain.initial_mean), n), chain.values.dtype)
    by_step = factor(chain.transition_covariance)[:, :, None]
    drift = jnp.zeros((t, 1, 1), noise.dtype) if chain.drift is None else chain.drift
    first = chain.initial_mean[:, None] + applied(factor(chain.initial_covariance)[:, :, None], noise[0])

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        shock, added = now
        after = applied(chain.transition[:, :, None], state) + added + applied(by_step, shock)
        return after, after

    _, later = lax.scan(step, first, (noise[1:], drift[:-1]))
    return jnp.concatenate([first[None], later])
