"""Hidden Markov models for `GaussianHMM`: NumPy in, NumPy out, float64 inside a local context. Host code."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array
from ..algorithms.em import EM
from ..contracts.result import FitResult
from ..families.normal._normal import Moments, NormalParams
from ..families.normal.diagonal import DiagonalNormal
from ..families.normal.full import FullNormal
from ..families.normal.spherical import SphericalNormal
from ..families.normal.tied import TiedNormal
from ..fold.chunks import plan_fold
from ..latent.chain import best_path, filtered, log_likelihood, smoothed
from ..latent.series import Sequences
from ..loop.derivative import Stop
from ..loop.run import Options
from ..models._markov_params import HMMParams, HMMStats
from ..models.hidden_markov import HiddenMarkovModel
from ..numerics import tree as _tree
from ..running.lanes import Lanes, run_lanes
from ._float64 import OneStepLater, history_size, one_start

_LEAST_DIVISOR = 1e-5  # of a covariance


class Prior(NamedTuple):
    """Of means and covariances: −½ Σ_j [w (μ_j − m_j)ᵀ Σ_j⁻¹ (μ_j − m_j) + tr(C_j Σ_j⁻¹) + c log |Σ_j|].

    Attributes:
        mean: m (k, d).
        weight: w (k,).
        scale: C, in the shape of the family's scatter.
        count: c (k,).
    """

    mean: Any
    weight: Any
    scale: Any
    count: Any


@dataclass(frozen=True)
class _WithPrior:
    """A normal family with this prior, of which means or covariances may be held."""

    priors: Any = field(default=None, kw_only=True)
    fitted: str = field(default="mc", kw_only=True, metadata={"static": True})
    has_proper_prior: ClassVar[bool] = True

    def estimate(self: Any, bank: Any, stats: Moments, active: Array | None = None) -> NormalParams:
        """The mode, about the means as they then are."""
        (_, d), prior = stats.first.shape, self.priors
        pivot = jnp.zeros((1, d)) if self.pivot is None else jnp.atleast_2d(self.pivot)
        mean, covariance = bank
        if "m" in self.fitted:
            total = (prior.weight + stats.count)[:, None]
            sums = prior.weight[:, None] * self._prior_mean() + stats.first + stats.count[:, None] * pivot
            mean = jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), mean)
        if "c" in self.fitted:
            offset = mean - pivot
            scatter = stats.second - self._cross(stats.first, offset) + self._outer(offset, stats.count)
            scatter = scatter + self._prior_scatter(mean)
            divisor = self._divisor(stats.count + prior.count, None, d, active)
            covariance = scatter / self._expand(jnp.maximum(divisor, _LEAST_DIVISOR))
        return NormalParams(mean, covariance)

    def _prior_mean(self: Any) -> Array:
        return self.priors.mean if self.origin is None else self.priors.mean - self.origin[None]

    def _prior_scatter(self: Any, mean: Array) -> Array:
        return self.priors.scale + self._outer(mean - self._prior_mean(), self.priors.weight)

    def log_prior(self: Any, bank: NormalParams, active: Array | None = None) -> Array:
        """Up to a constant: ()."""
        factor, half_log_det = self._whitening(bank)
        return -jnp.sum(self.priors.count * half_log_det) - 0.5 * self._trace(factor, self._prior_scatter(bank.mean))


@_tree.register
@dataclass(frozen=True)
class _Full(_WithPrior, FullNormal):
    pass


@_tree.register
@dataclass(frozen=True)
class _Tied(_WithPrior, TiedNormal):
    pass


@_tree.register
@dataclass(frozen=True)
class _Diagonal(_WithPrior, DiagonalNormal):
    pass


@_tree.register
@dataclass(frozen=True)
class _Spherical(_WithPrior, SphericalNormal):
    pass


_FAMILIES = {"full": _Full, "tied": _Tied, "diag": _Diagonal, "spherical": _Spherical}


@_tree.register
@dataclass(frozen=True)
class _Chain(HiddenMarkovModel):
    """A hidden Markov model of which first states or transitions may be held."""

    fitted: str = field(default="st", kw_only=True, metadata={"static": True})

    def m_step(self, params: HMMParams | None, stats: HMMStats) -> HMMParams:
        """The mode of what is fitted."""
        assert params is not None
        found = super().m_step(params, stats)
        initial = found.initial if "s" in self.fitted else params.initial
        return HMMParams(initial, found.transition if "t" in self.fitted else params.transition, found.emissions)


class Asked(NamedTuple):
    """What a fit is asked for.

    Attributes:
        covariance_type: "full", "tied", "diag" or "spherical".
        fitted: of "stmc", what is fitted.
        prior: of means and covariances.
        initial_concentration, concentration: of first states (k,) and transitions (k, k), or None.
        tol: of the log-likelihood plus log prior, in all.
        max_iter: the most M steps.
    """

    covariance_type: str
    fitted: str
    prior: Prior
    initial_concentration: Any
    concentration: Any
    tol: float
    max_iter: int


def padded(x: np.ndarray, lengths: np.ndarray) -> Sequences:
    """Series (n, t, d) of rows that follow each other; t is one of a few sizes, which share a program."""
    longest = int(lengths.max())
    step = max(16, 1 << max(0, longest.bit_length() - 5))
    values = np.zeros((len(lengths), longest + -longest % step, x.shape[1]))
    values[np.arange(values.shape[1])[None] < lengths[:, None]] = x
    return Sequences(values, lengths.astype(np.int32))


def fit(start: HMMParams, data: Sequences, asked: Asked) -> FitResult:
    """EM from the start; `history` may be longer than max_iter + 1. Probabilities that are zero stay zero."""
    with jax.enable_x64(True):
        family = _FAMILIES[asked.covariance_type](floor=0.0, priors=asked.prior, fitted=asked.fitted)
        model = _Chain(
            family, len(start.initial), concentration=asked.concentration, allowed=start.transition > 0,
            initial_concentration=asked.initial_concentration, initial_allowed=start.initial > 0, fitted=asked.fitted,
        )  # fmt: skip
        data = jax.tree.map(jnp.asarray, data)
        rule = OneStepLater(np.float64(asked.tol / data.length.sum()), np.float64(-np.inf))
        options = Options(EM(), rule, Stop(), history_size(asked.max_iter), plan_fold(data, None))
        n_iter = np.int32(min(asked.max_iter, options.max_iter))
        lanes = Lanes(jax.tree.map(lambda leaf: leaf[None], start), (model, data, None, options, n_iter))
        (result,) = run_lanes(one_start, None, [lanes], "sequential")
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], replace(result, model=None))


def scored(covariance_type: str, params: HMMParams, data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) of each series (n,), and the states' probabilities in the steps there are, one below the other."""
    return _of(_scored, covariance_type, params, data)


def decoded(covariance_type: str, params: HMMParams, data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, path) of each series (n,), and the most probable states in the steps there are."""
    return _of(_decoded, covariance_type, params, data)


def _of(fn: Any, covariance_type: str, params: HMMParams, data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    family = {"full": FullNormal, "tied": TiedNormal, "diag": DiagonalNormal, "spherical": SphericalNormal}
    model = HiddenMarkovModel(family[covariance_type](), len(params.initial))
    present = np.arange(data.values.shape[1])[None] < data.length[:, None]
    with jax.enable_x64(True):
        total, each = fn(model, params, jax.tree.map(jnp.asarray, data))
        return np.asarray(total), np.asarray(each)[present]


@jax.jit
def _scored(model: Any, params: HMMParams, data: Sequences) -> tuple[Array, Array]:
    chain = model.chain(params, data)
    forward = filtered(chain)
    return log_likelihood(forward), jnp.transpose(smoothed(chain, forward).states, (2, 0, 1))


@jax.jit
def _decoded(model: Any, params: HMMParams, data: Sequences) -> tuple[Array, Array]:
    path, log_joint = best_path(model.chain(params, data))
    return log_joint, path.T
