"""NumPy in, NumPy out: EM in float64 inside a local context, whatever the global setting. Host code.

Rows are padded, with some of weight zero, to a few sizes, so that the folds of a cross-validation share one program.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, PyTree
from ..algorithms.em import EM
from ..contracts.protocols import Progress
from ..contracts.result import FitResult
from ..contracts.status import Status
from ..families.normal.diagonal import DiagonalNormal
from ..families.normal.full import FullNormal
from ..families.normal.spherical import SphericalNormal
from ..families.normal.tied import TiedNormal
from ..fold.chunks import plan_fold
from ..latent.starts import Responsibilities
from ..loop.derivative import Stop
from ..loop.run import Options, begin, end, go_on
from ..models.mixture import Mixture, MixtureParams
from ..numerics import tree as _tree
from ..running.lanes import Lanes, resolve_plan, run_lanes


class Rows(NamedTuple):
    """Rows (n, d) and their positive weights (n,), float64."""

    x: np.ndarray
    weight: np.ndarray

    def padded(self) -> "Rows":
        """With rows of weight zero, up to the next size."""
        return Rows(_pad(self.x), _pad(self.weight))


def estimate(covariance_type: str, rows: Rows, responsibilities: np.ndarray) -> MixtureParams:
    """Weights, means and covariances of given responsibilities (n, k): maximum likelihood, as NumPy arrays.

    A component without rows gets weight zero, and the mean and variances of all rows.
    """
    model = _mixture(covariance_type, responsibilities.shape[1], 0.0)
    with jax.enable_x64(True):
        x, weight = map(jnp.asarray, rows.padded())
        method = Responsibilities(_pad(np.asarray(responsibilities, np.float64)))
        return _numpy(model.init(jax.random.key(0), x, weight, method))


def fit(
    covariance_type: str,
    rows: Rows,
    starts: list[MixtureParams],
    floor: float,
    *,
    tol: float,
    max_iter: int,
    before: float = -np.inf,
) -> FitResult:
    """A fit from each start, which lead the leaves, NumPy arrays; `history` may be longer than max_iter + 1.

    Args:
        covariance_type: "full", "tied", "diag" or "spherical".
        rows: n of them.
        starts: of one shape.
        floor: of the log prior −½ floor·tr Σ⁻¹ on each covariance; in squared units of the data times rows.
        tol: see `OneStepLater`.
        max_iter: the most M steps.
        before: objective per unit of weight before the start, if an earlier fit ended there.
    """
    with jax.enable_x64(True):
        model = _mixture(covariance_type, len(starts[0].weights), floor)
        x, weight = map(jnp.asarray, rows.padded())
        rule = OneStepLater(np.float64(tol), np.float64(before))
        options = Options(EM(), rule, Stop(), history_size(max_iter), plan_fold(x, None))
        lanes = Lanes(
            jax.tree.map(lambda *leaves: np.stack(leaves), *starts),
            (model, x, weight, options, np.int32(min(max_iter, options.max_iter))),
        )
        return _numpy(run_lanes(one_start, None, [lanes], resolve_plan("auto"))[0])


def log_joint(covariance_type: str, params: MixtureParams, x: np.ndarray) -> np.ndarray:
    """log w_j + log N(x_i | μ_j, Σ_j): (n, k), float64."""
    model = _mixture(covariance_type, len(params.weights), 0.0)
    with jax.enable_x64(True):
        return np.asarray(_log_joint(model, params, _pad(x)))[: len(x)]


@_tree.register
@dataclass(frozen=True)
class OneStepLater:
    """Stops one M step after the objective per unit has changed by less than `tol`, strictly.

    So scikit-learn counts, which does not evaluate the params that it returns. Here they are evaluated.

    Attributes:
        tol: absolute.
        before: the objective per unit before the first; −inf where no fit went before.
    """

    tol: Any
    before: Any

    def converged(self, progress: Progress) -> tuple[Array, Array]:
        """See `StoppingRule`."""
        assert progress.earlier_objectives is not None
        earlier = jnp.where(progress.n_iter == 1, self.before, progress.earlier_objectives[0])
        return jnp.abs(progress.previous_objective - earlier) < self.tol, jnp.zeros((), bool)


def one_start(static: None, params: Any, shared: tuple) -> FitResult:
    """The fit from one start; shared are model, data, weights, options, and the most M steps."""
    model, x, weight, options, n_iter = shared
    run = go_on(begin(model, params, x, weight, options), x, weight, options, n_iter)
    result = end(run, x, weight, options)
    # n_iter may be less than the loop has room for, and then it does not know that this is the end
    stopped = jnp.where(model.health(result.params) == Status.DEGENERATE, Status.DEGENERATE, Status.MAX_ITER)
    status = jnp.where(result.status == Status.RUNNING, stopped, result.status)
    return replace(result, status=status.astype(jnp.int32))


@jax.jit
def _log_joint(model: Mixture, params: MixtureParams, x: Array) -> Array:
    return model.log_joint(params, x)


class _Absolute:
    """A floor in squared units of the data; that of a `Normal` is relative to the variances of the columns."""

    floor: Any

    def _floor_scale(self, d: int, dtype: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.floor, dtype), (d,))


@_tree.register
@dataclass(frozen=True)
class _Full(_Absolute, FullNormal):
    pass


@_tree.register
@dataclass(frozen=True)
class _Tied(_Absolute, TiedNormal):
    pass


@_tree.register
@dataclass(frozen=True)
class _Diagonal(_Absolute, DiagonalNormal):
    pass


@_tree.register
@dataclass(frozen=True)
class _Spherical(_Absolute, SphericalNormal):
    pass


_FAMILIES = {"full": _Full, "tied": _Tied, "diag": _Diagonal, "spherical": _Spherical}


def _mixture(covariance_type: str, k: int, floor: float) -> Mixture:
    return Mixture(_FAMILIES[covariance_type](floor=np.float64(floor)), n_components=int(k))


def history_size(max_iter: int) -> int:
    """Room for so many iterations: it is compiled in, max_iter is not."""
    return max(128, 1 << (max_iter - 1).bit_length()) if max_iter > 0 else 128


def _pad(rows: np.ndarray) -> np.ndarray:
    """Zeros up to the next size: 16 sizes an octave, or multiples of 16."""
    n = len(rows)
    step = max(16, 1 << max(0, n.bit_length() - 5))
    return np.pad(rows, [(0, -n % step), *[(0, 0)] * (rows.ndim - 1)])


def _numpy(tree: PyTree) -> Any:
    return jax.tree.map(np.asarray, tree)
