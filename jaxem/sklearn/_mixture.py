"""`GaussianMixture`."""

import math
import sys
import warnings
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from scipy.special import logsumexp
from sklearn import get_config
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as _Theirs
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..contracts.result import FitResult
from ..contracts.status import Status
from ..models.mixture import MixtureParams
from . import _float64
from ._draws import draw_responsibilities, draw_rows
from ._float64 import Rows
from ._starts import (
    ILL_DEFINED,
    Given,
    check_given,
    covariance_shape,
    has_collapsed,
    mixture_params,
    precisions_cholesky,
    start,
)


class GaussianMixture(DensityMixin, BaseEstimator):
    """scikit-learn's `GaussianMixture`, fitted by jaxem: same parameters, same attributes, and `sample_weight`.

    Computes in float64, whatever jax's setting, which is not touched; attributes and results have the dtype of X, as
    scikit-learn's have, but what is computed from them is computed from the unrounded ones. From the same start
    (`random_state` draws the same ones, without weights) it takes the same EM steps as scikit-learn, but for:

    - `reg_covar` is a prior, with density exp(−½ c tr Σ⁻¹) for each covariance, c = reg_covar · (number of rows) /
      n_components, not divided where covariances are tied. So an M step adds reg_covar / (n_components · weight of the
      component) to the variances, not reg_covar: the same where weights are equal or covariances tied, more in smaller
      components. What EM raises is then an objective that never falls; scikit-learn's may.
    - `lower_bound_` is that objective per row, log-likelihood plus log prior, at the attributes' values, and
      `lower_bounds_` after each M step. scikit-learn's are before it, and of the log-likelihood alone.
    - Of `n_init` starts one that fails never wins; ValueError only if all do.
    - Array API dispatch is not supported: data are NumPy arrays, or what becomes one.

    Args:
        n_components: k.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: the fit ends one M step after the objective per row has changed by less than this.
        reg_covar: see above; in squared units of the data.
        max_iter: the most M steps; with 0 the start is the result.
        n_init: number of starts, of which the best is kept. They run side by side.
        init_params: "kmeans", "k-means++", "random" or "random_from_data".
        weights_init: (k,), or None: as `init_params` says.
        means_init: (k, d) or None.
        precisions_init: shaped as `precisions_`, or None.
        random_state: of the starts and of `sample`.
        warm_start: whether a fit goes on from the one before.
        verbose: 1 reports starts and iterations on the standard output, 2 the objective too; when all have run.
        verbose_interval: M steps from one line to the next.

    Attributes:
        weights_: (k,).
        means_: (k, d).
        covariances_: (k, d, d) full, (d, d) tied, (k, d) diag, (k,) spherical.
        precisions_: inverses of the covariances.
        precisions_cholesky_: upper triangular U, precision = U Uᵀ; of variances, square roots of `precisions_`.
        converged_: whether the rule of `tol` ended the fit.
        n_iter_: M steps.
        lower_bound_: objective per row, or per unit of sample weight.
        lower_bounds_: list of it after each M step.
        n_features_in_: d.
        feature_names_in_: names of columns, where X has them.

    Example:
        >>> import numpy as np
        >>> from jaxem.sklearn import GaussianMixture
        >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> mixture = GaussianMixture(n_components=2, random_state=0).fit(x, sample_weight=[1, 1, 1, 2, 2, 2])
        >>> sorted(mixture.weights_.round(3).tolist())
        [0.333, 0.667]
    """

    n_features_in_: int
    _parameter_constraints: dict = dict(_Theirs._parameter_constraints)

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Fits the mixture.

        Args:
            X: (n, d), n ≥ max(2, n_components).
            y: ignored.
            sample_weight: (n,), not negative; a weight of two is a row twice, a row of weight zero is not there.

        Returns:
            The estimator.

        Raises:
            ValueError: on parameters or data that do not fit, and where a covariance collapses from every start.
            sklearn.exceptions.ConvergenceWarning: a warning, if `max_iter` did not suffice.
        """
        self._validate_params()
        if get_config()["array_api_dispatch"] and self.init_params in ("kmeans", "k-means++"):
            raise NotImplementedError(
                "Allowed `init_params` are ['random', 'random_from_data'] if 'array_api_dispatch' is enabled, got "
                f"{self.init_params!r}."
            )
        X = self._validated(X, reset=True, ensure_min_samples=2)
        rows = self._rows(X, sample_weight)
        k, total = self.n_components, rows.weight.sum()
        goes_on = self.warm_start and hasattr(self, "converged_")
        starts = [self._last()] if goes_on else self._starts(rows)
        tied = self.covariance_type == "tied"
        result = _float64.fit(
            self.covariance_type, rows, starts, self.reg_covar * total / (1 if tied else k),
            tol=self.tol, max_iter=self.max_iter, before=self._bound_before if goes_on else -np.inf,
        )  # fmt: skip
        self._report(result, total)
        lost = np.isin(result.status, (Status.NONFINITE, Status.DEGENERATE))
        lost |= has_collapsed(result.params.components.covariance, self.covariance_type, rows)
        if lost.all():
            raise ValueError(ILL_DEFINED)
        best = int(np.argmax(np.where(lost, -np.inf, result.objective)))
        self._keep(result, best, total, X.dtype)
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase max_iter, "
                "tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _validated(self, X: Any, reset: bool = False, **options: Any) -> np.ndarray:  # noqa: N803
        if hasattr(X, "todense") and not issparse(X):  # of jax
            raise TypeError(
                f"Sparse data was passed for X, a {type(X).__name__}, but dense data is required. Use '.todense()' to "
                "convert to a dense array."
            )
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset, **options)
        if not isinstance(X, np.ndarray):
            raise NotImplementedError(
                f"X: expected what becomes a NumPy array, got {type(X).__name__} with 'array_api_dispatch' enabled; "
                "disable it or convert X."
            )
        return X

    def _rows(self, X: np.ndarray, sample_weight: Any) -> Rows:  # noqa: N803
        """Those of positive weight."""
        weight = np.ones(len(X))
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
            if (weight < 0).any():
                raise ValueError(f"Negative values in data passed to `sample_weight`: {weight.min()}.")
        rows = Rows(X.astype(np.float64)[weight > 0], weight[weight > 0])
        if len(rows.x) < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {len(rows.x)}" + ("" if sample_weight is None else " of positive weight")
            )
        return rows

    def _starts(self, rows: Rows) -> list[MixtureParams]:
        given = self._given(self.n_components, rows.x.shape[1])
        if given.complete:
            return [start(rows, given, self.covariance_type, self.reg_covar, None)]
        random_state = check_random_state(self.random_state)
        drawn = (
            draw_responsibilities(rows, self.n_components, self.init_params, random_state) for _ in range(self.n_init)
        )
        return [start(rows, given, self.covariance_type, self.reg_covar, one) for one in drawn]

    def _given(self, k: int, d: int) -> Given:
        return check_given(self.weights_init, self.means_init, self.precisions_init, self.covariance_type, k, d)

    def _last(self) -> MixtureParams:
        """What the fit before ended with, for this one to go on from."""
        k, d = self.n_components, self.n_features_in_
        for name, shape in (("means_", (k, d)), ("covariances_", covariance_shape(self.covariance_type, k, d))):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"warm_start: expected {name} of shape {shape}, as n_components, covariance_type and X are now, "
                    f"got {getattr(self, name).shape} from the fit before; pass warm_start=False."
                )
        return self._params()

    def _params(self) -> MixtureParams:
        """Those of the attributes; before they were rounded, unless the user has changed them since."""
        public = (self.weights_, self.means_, self.covariances_)
        exact = getattr(self, "_unrounded", public)
        same = lambda part, full: part.shape == full.shape and np.array_equal(part, full.astype(part.dtype))  # noqa: E731
        return mixture_params(*(full if same(part, full) else part for part, full in zip(public, exact, strict=True)))

    def _keep(self, result: FitResult, best: int, total: float, dtype: Any) -> None:
        """Sets the attributes, of the start that is best."""
        weights, (means, covariances) = result.params
        upper = precisions_cholesky(covariances[best], self.covariance_type)
        params = (weights[best], means[best], covariances[best], upper)
        self._unrounded = params[:3]
        self._set_parameters(tuple(part.astype(dtype) for part in params))
        self.converged_ = bool(result.converged[best]) and self.max_iter > 0
        self.n_iter_ = int(result.n_iter[best])
        bounds = result.history[best] / total
        self.lower_bound_ = float(result.objective[best] / total)
        self.lower_bounds_ = bounds[1 : self.n_iter_ + 1].tolist()
        self._bound_before = float(bounds[self.n_iter_ - 1]) if self.n_iter_ else -np.inf

    def _set_parameters(self, params: tuple[np.ndarray, ...]) -> None:
        """Sets weights, means, covariances and triangular factors of precisions; named as in scikit-learn."""
        self.weights_, self.means_, self.covariances_, self.precisions_cholesky_ = params
        upper = self.precisions_cholesky_
        matrices = self.covariance_type in ("full", "tied")
        self.precisions_ = upper @ np.swapaxes(upper, -1, -2) if matrices else upper**2

    def _initialize(self, X: np.ndarray, resp: np.ndarray) -> None:  # noqa: N803
        """Sets the start that X (n, d) and responsibilities (n, k) give; named as in scikit-learn."""
        rows = Rows(np.asarray(X, np.float64), np.ones(len(X)))
        params = start(rows, self._given(resp.shape[1], X.shape[1]), self.covariance_type, self.reg_covar, resp)
        covariances = params.components.covariance
        upper = precisions_cholesky(covariances, self.covariance_type)
        self._set_parameters((params.weights, params.components.mean, covariances, upper))

    def _report(self, result: FitResult, total: float) -> None:
        if not self.verbose:
            return
        write = sys.stdout.write
        for number, (n_iter, converged) in enumerate(zip(result.n_iter, result.converged, strict=True)):
            bounds = result.history[number] / total
            write(f"Initialization {number}\n")
            for i in range(self.verbose_interval, n_iter + 1, self.verbose_interval):
                detail = f"\t lower bound {bounds[i]:.5f}\t change {bounds[i] - bounds[i - 1]:.5f}"
                write(f"  Iteration {i}{detail if self.verbose > 1 else ''}\n")
            end = f"\t lower bound {bounds[n_iter]:.5f}" if self.verbose > 1 else ""
            write(f"Initialization {'converged' if converged else 'did not converge'}.{end}\n")

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:  # noqa: N803
        """`fit`, then `predict` of the same rows."""
        return self.fit(X, y, sample_weight).predict(X)

    def _log_joint(self, X: Any) -> tuple[np.ndarray, np.ndarray, Any]:  # noqa: N803
        """log w_j + log N(x_i | component j): (n, k); their sum over j: (n, 1); both float64. And the dtype of X."""
        check_is_fitted(self)
        X = self._validated(X)
        log_joint = _float64.log_joint(self.covariance_type, self._params(), X.astype(np.float64))
        return log_joint, np.asarray(logsumexp(log_joint, axis=1, keepdims=True)), X.dtype

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable component of each row of X (n, d): (n,) integers; −1 where all densities are 0."""
        log_joint = self._log_joint(X)[0]
        return np.where(log_joint.max(1) > -np.inf, log_joint.argmax(1), -1)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Responsibilities of the components for each row of X (n, d): (n, k); NaN where all densities are 0."""
        log_joint, total, dtype = self._log_joint(X)
        with np.errstate(invalid="ignore"):
            return np.exp(log_joint - total).astype(dtype)

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Log-likelihood of each row of X (n, d): (n,)."""
        _, total, dtype = self._log_joint(X)
        return total[:, 0].astype(dtype)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """Mean log-likelihood of the rows of X (n, d), weighted if there are weights (n,): of `score_samples`."""
        return float(np.average(self.score_samples(X), weights=sample_weight))

    def bic(self, X: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """−2 log-likelihood + p·log(total weight): lower is better."""
        log_lik, total = self._log_lik(X, sample_weight)
        return -2 * log_lik + self._n_parameters() * math.log(total)

    def aic(self, X: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """−2 log-likelihood + 2p: lower is better."""
        return -2 * self._log_lik(X, sample_weight)[0] + 2 * self._n_parameters()

    def _log_lik(self, X: Any, sample_weight: Any) -> tuple[float, float]:  # noqa: N803
        """Its weighted sum, and the total weight."""
        scores = self._log_joint(X)[1][:, 0]
        total = float(len(scores) if sample_weight is None else np.sum(sample_weight))
        return float(np.average(scores, weights=sample_weight)) * total, total

    def _n_parameters(self) -> int:
        """Free parameters."""
        k, d = self.means_.shape
        triangle = d * (d + 1) // 2
        free = {"full": k * triangle, "tied": triangle, "diag": k * d, "spherical": k}
        return k * d + k - 1 + free[self.covariance_type]

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draws rows, ordered by component, and the components: (n_samples, d) and (n_samples,), as scikit-learn does.

        Raises:
            ValueError: if n_samples is not positive.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one sample.")
        weights, components = self._params()
        return draw_rows(
            check_random_state(self.random_state), n_samples, weights, components.mean, components.covariance,
            self.covariance_type,
        )  # fmt: skip
