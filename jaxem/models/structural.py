"""Structural time series: level, trend, seasons and autoregressions, and sums of them, as state space models."""

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Data, Key
from ..contracts.checks import check_option
from ..latent.series import as_sequences
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows
from ._state_space_params import GaussianState, LGSSMParams
from ._state_space_steps import observed_entries, outcomes
from .frozen import Frozen
from .state_space import LinearGaussianStateSpace, check_method

_DIFFUSE = 1e7
_SPREAD = 0.5  # of the logarithms of start variances, by which starts differ


@_tree.register
@dataclass(frozen=True)
class StructuralModel(Frozen):
    """A `LinearGaussianStateSpace` of one column with parts that are known: what its makers, and sums of them, return.

    `a + b` is the model of a series that is the sum of both, with noise that is estimated if either estimates it. The
    blocks of the state stay independent of each other. All that `Frozen` does goes for it, and `init` makes starts from
    the scale of the series. Diffuse starts are `diffuse` ones of `LinearGaussianStateSpace`, exact in float32 too.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> month = jnp.arange(48)
        >>> data = jaxem.sequences([(10 + month / 12 + 3 * jnp.cos(month * jnp.pi / 6))[:, None]])
        >>> model = jaxem.local_trend(level_variance=0.0) + jaxem.seasonal(12, variance=0.0)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> model.forecast(result.params, data, horizon=12).mean[0, ::6, 0].round(0)  # January, July
        Array([17., 12.], dtype=...)
    """

    def __add__(self, other: Any) -> Self:
        """The model of the sum of both."""
        if not isinstance(other, StructuralModel):
            return NotImplemented
        both = [jax.tree.map(np.asarray, each.values) for each in (self, other)]
        masks = [each.spread(values) for each, values in zip((self, other), both, strict=True)]
        values, mask = _beside(*both, fill=0.0), _beside(*masks, fill=True)
        free = [~flags.emission_covariance for flags in masks]
        noise = [own.emission_covariance for own in both]
        shared = np.logical_or(*free)
        noise = np.where(shared, 1.0, noise[0] + noise[1])
        n_states, diffuse = self.model.n_states + other.model.n_states, self.model.diffuse or other.model.diffuse
        model = replace(self.model, n_states=n_states, diffuse=diffuse)
        return type(self)(model, mask._replace(emission_covariance=~shared), values)

    def init(self, key: Key, data: Data, sample_weight: Array | None = None, method: Any = None) -> LGSSMParams:
        """Start params: variances about a tenth of the column's, times e to the power of normal draws of the key.

        Autoregressions begin at a first coefficient of ½.

        Raises:
            ValueError: if the data are no series of one column, or for a method other than None or `KMeans()`.
        """
        data = as_rows(as_sequences(data))
        self.validate_data(data)
        if outcomes(data).shape[2] != 1:
            raise ValueError(
                f"data.values: expected one column (n, t, 1), got {outcomes(data).shape}; a StructuralModel is of one."
            )
        return self.init_bound(key, self.cast_rows(data, _tree.float_dtype(data.values)), sample_weight, method)

    def init_bound(self, key: Key, data: Data, sample_weight: Array | None = None, method: Any = None) -> LGSSMParams:
        """`init` of a model that is bound to these data."""
        check_method(method)
        dtype = _tree.float_dtype(data.values)
        weight = None if sample_weight is None else jnp.asarray(sample_weight, dtype)
        size = _variance(data, weight) / 10
        values = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.values)
        s = self.model.n_states
        drawn = size * jnp.exp(_SPREAD * jax.random.normal(key, (s + 1,), dtype))
        held = self.spread(values)
        half = np.zeros((s, s))
        rows, columns = np.nonzero(~held.transition)
        for row in np.unique(rows):
            half[row, columns[rows == row].min()] = 0.5
        start = values._replace(
            transition=jnp.asarray(half, dtype),
            transition_covariance=jnp.diag(drawn[:s]),
            emission_covariance=drawn[s:, None],
        )
        pick = lambda flags, value, own: jnp.where(flags, value, own)  # noqa: E731
        return jax.tree.map(pick, held, values, start)


def _beside(a: LGSSMParams, b: LGSSMParams, fill: Any) -> LGSSMParams:
    """Params, or booleans, of both states, one after the other."""

    def blocks(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        out = np.full(np.add(first.shape, second.shape), fill)
        out[: len(first), : len(first)], out[len(first) :, len(first) :] = first, second
        return out

    initial = GaussianState(
        np.concatenate([a.initial.mean, b.initial.mean]), blocks(a.initial.covariance, b.initial.covariance)
    )
    return LGSSMParams(
        initial,
        blocks(a.transition, b.transition),
        blocks(a.transition_covariance, b.transition_covariance),
        np.concatenate([a.emission, b.emission], 1),
        a.emission_covariance,
    )


@jax.jit
def _variance(data: Any, sample_weight: Array | None) -> Array:
    """Of the numbers that there are about their mean; 1 where they are all the same: ()."""
    observed = observed_entries(data)
    weight = observed.astype(outcomes(data).dtype)
    if sample_weight is not None:
        weight = weight * sample_weight[:, None, None]
    y, total = jnp.where(weight > 0, outcomes(data), 0), jnp.sum(weight)
    total = jnp.where(total > 0, total, 1)
    about = y - jnp.sum(y * weight) / total
    variance = jnp.sum(jnp.square(about) * weight) / total
    return jnp.where(variance == 0, 1, variance)


# --- makers


def _structural(
    transition: np.ndarray, variances: list[Any], noise: Any, start: Any, coefficients: int = 0
) -> StructuralModel:
    """A model whose first state is what is seen; None among the variances and the noise is estimated."""
    s = len(transition)
    free_noise, free = noise is None, [variance is None for variance in variances]
    for name, value in (*((f"variance of state {i + 1}", v) for i, v in enumerate(variances)), ("noise", noise)):
        if value is not None:
            check_option(name, value, 0)
    diffuse = start is None
    start = GaussianState(np.zeros(s), _DIFFUSE * np.eye(s)) if start is None else start
    if not isinstance(start, GaussianState) or np.shape(start.mean) != (s,) or np.shape(start.covariance) != (s, s):
        raise ValueError(f"start: expected a GaussianState of mean ({s},) and covariance ({s}, {s}), got {start}.")
    values = LGSSMParams(
        GaussianState(np.asarray(start.mean, float), np.asarray(start.covariance, float)),
        transition,
        np.diag([1.0 if variance is None else float(variance) for variance in variances]),
        np.eye(1, s),
        np.array([[1.0 if free_noise else float(noise)]]),
    )
    moves = np.ones((s, s), bool)
    moves[0, :coefficients] = False
    mask = LGSSMParams(True, moves, ~np.diag(free), True, not free_noise)
    return StructuralModel(LinearGaussianStateSpace(s, floor=0.0, diffuse=diffuse), mask, values)


def local_level(*, variance: Any = None, noise: Any = None, start: GaussianState | None = None) -> StructuralModel:
    """A level that wanders, seen with noise: x_{t+1} = x_t + w_t, y_t = x_t + v_t (Durbin & Koopman 2012, eq. 2.3).

    Args:
        variance: of w; None is estimated. 0 is a constant mean.
        noise: of v; None is estimated.
        start: of the level; None is N(0, 10⁷), which says nothing of series whose numbers are well below 3000.

    Raises:
        ValueError: for a negative variance, or a start of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> data = jaxem.sequences([jnp.array([3.0, 5.0, 2.0, 4.0, 6.0, 3.0, 5.0, 4.0])[:, None]])
        >>> model = jaxem.local_level(variance=0.0)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), data), data)
        >>> model.smoothed(result.params, data).mean[0, 0].round(1)
        Array([4.], dtype=...)
    """
    return _structural(np.eye(1), [variance], noise, start)


def local_trend(
    *, level_variance: Any = None, slope_variance: Any = None, noise: Any = None, start: GaussianState | None = None
) -> StructuralModel:
    """A level with a slope, both wandering: states (level, slope) (Durbin & Koopman 2012, eq. 3.2).

    Args:
        level_variance: of what the level moves by beside the slope; None is estimated, 0 is a smooth trend.
        slope_variance: of the slope; None is estimated.
        noise: as in `local_level`.
        start: of both states; None is diffuse, N(0, 10⁷).

    Raises:
        ValueError: as `local_level`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> data = jaxem.sequences([(2.0 * jnp.arange(20) + jnp.arange(20) % 2)[:, None]])
        >>> model = jaxem.local_trend(level_variance=0.0, slope_variance=0.0)
        >>> model.init(jax.random.key(0), data).transition  # of level and slope
        Array([[1., 1.],
               [0., 1.]], dtype=...)
    """
    return _structural(np.array([[1.0, 1.0], [0.0, 1.0]]), [level_variance, slope_variance], noise, start)


def seasonal(
    period: int, *, variance: Any = None, noise: Any = None, start: GaussianState | None = None
) -> StructuralModel:
    """A pattern that comes back, and sums to zero over a period but for noise (Durbin & Koopman 2012, eq. 3.3).

    Args:
        period: steps, at least 2; the states are the seasons of this step and of period − 2 before it.
        variance: of that noise; None is estimated, 0 is a pattern that never changes.
        noise: as in `local_level`.
        start: of the states; None is diffuse.

    Raises:
        ValueError: as `local_level`, and for a period below 2.

    Example:
        >>> import jaxem
        >>> quarters = jaxem.local_level() + jaxem.seasonal(4)
        >>> quarters.model.n_states
        4
    """
    s = as_count("period", period, 2) - 1
    transition = np.eye(s, k=-1)
    transition[0] = -1
    return _structural(transition, [variance, *[0.0] * (s - 1)], noise, start)


def autoregression(
    order: int, *, variance: Any = None, noise: Any = 0.0, start: GaussianState | None = None
) -> StructuralModel:
    """x_{t+1} = φ_1 x_t + … + φ_p x_{t−p+1} + w_t, seen as it is, about zero; coefficients are estimated.

    A mean is `+ local_level(variance=0.0, noise=0.0)`. That the coefficients are stationary is not imposed.

    Args:
        order: p, at least 1.
        variance: of w; None is estimated.
        noise: of what is seen; None is estimated, 0 is none.
        start: of x_1 and the p − 1 before it; None is diffuse.

    Raises:
        ValueError: as `local_level`, and for an order below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> model = jaxem.autoregression(1)
        >>> decay = jaxem.sequences([jnp.array([8.0, 4.1, 2.0, 1.1, 0.5])[:, None]])
        >>> jaxem.fit(model, model.init(jax.random.key(0), decay), decay).params.transition.round(1)
        Array([[0.5]], dtype=...)
    """
    p = as_count("order", order)
    return _structural(np.eye(p, k=-1), [variance, *[0.0] * (p - 1)], noise, start, coefficients=p)
