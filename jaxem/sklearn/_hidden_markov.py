"""`GaussianHMM`."""

import logging
import math
import sys
from collections import deque
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from ..families.normal._normal import NormalParams
from ..latent.series import Sequences
from ..models._markov_params import HMMParams
from . import _hidden_float64 as _float64
from ._covariances import TYPES, compressed, filled, prior_scatter, spread_over

_log = logging.getLogger(__name__)


class Monitor:
    """How a fit went.

    Attributes:
        tol: as asked for.
        n_iter: as asked for.
        verbose: whether to report on standard error.
        history: log-likelihood plus log prior before each M step.
        iter: M steps.
    """

    def __init__(self, tol: float, n_iter: int, verbose: bool):
        self.tol, self.n_iter, self.verbose = tol, n_iter, verbose
        self.history: deque[float] = deque()
        self.iter = 0

    @property
    def converged(self) -> bool:
        """Whether a fit has ended: by the rule of `tol`, or as `n_iter` were done."""
        rise = self.history[-1] - self.history[-2] if len(self.history) >= 2 else math.inf
        return self.iter == self.n_iter or rise < self.tol

    def report(self, history: np.ndarray) -> None:
        """Takes in a fit's objectives, and writes them down if asked to."""
        self.history, self.iter = deque(history.tolist()), len(history)
        if self.verbose:
            for i, (value, before) in enumerate(zip(history, [math.nan, *history[:-1]], strict=True)):
                sys.stderr.write(f"{i + 1:>10d} {value:>16.8f} {value - before:>+16.8f}\n")


class GaussianHMM(BaseEstimator):
    """hmmlearn's `GaussianHMM`, fitted by jaxem: same parameters, same attributes.

    Computes in float64, whatever jax's setting, which is not touched. From the same start (`random_state` draws the
    same) it takes the same EM steps as hmmlearn 0.3.3, but for:

    - `implementation` is looked at by nobody: a fit runs scaled, and goes on in logarithms where a state is lost to
      underflow, as hmmlearn's "scaling" raises.
    - What `tol` and `monitor_` look at is log-likelihood plus log prior (up to a constant), which EM raises; the
      log-likelihood alone, hmmlearn's, may fall.
    - A state that is never left keeps its row of `transmat_`; hmmlearn sets it to zeros.
    - Spherical covariances start with the mean of the variances; hmmlearn's with that of the whole matrix.
    - A state without any weight keeps its mean; hmmlearn divides zero by zero.
    - `monitor_` is set by `fit`, and reports when all has run; one of your own is not asked.

    What hmmlearn does not take, this does not either: missing steps or entries, sample weights, other families are for
    `HiddenMarkovModel`.

    Args:
        n_components: k.
        covariance_type: "spherical", "diag", "full" or "tied".
        min_covar: added to the variances of the start.
        startprob_prior: of a Dirichlet, () or (k,).
        transmat_prior: of a Dirichlet on each row, () or (k, k).
        means_prior: mean of the normal prior on the means, () or (k, d).
        means_weight: its precision, in units of the state's own covariance.
        covars_prior: scale of the inverse gamma or Wishart prior on covariances.
        covars_weight: its degrees of freedom.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: of the start and of `sample`.
        n_iter: the most M steps; with 0 the start is the result.
        tol: a fit ends one M step after it has risen by less.
        verbose: whether to report iterations on standard error.
        params: what is fitted: of "s" startprob, "t" transmat, "m" means, "c" covars.
        init_params: what is set before a fit.
        implementation: "log" or "scaling"; see above.

    Attributes:
        startprob_: (k,).
        transmat_: (k, k).
        means_: (k, d).
        covars_: full matrices, (k, d, d); of "diag" (k, d, d) too, of "tied" one for each state. It is set in the
            covariance type's own shape: (k,), (k, d), (k, d, d) or (d, d).
        n_features: d.
        monitor_: `history`, `iter`, `converged`.

    Example:
        >>> import numpy as np
        >>> from jaxem.sklearn import GaussianHMM
        >>> x = np.r_[np.sin(np.arange(20.0)), 9 + np.sin(np.arange(10.0))][:, None]
        >>> model = GaussianHMM(2, random_state=0).fit(np.r_[x, x], lengths=[30, 30])
        >>> sorted(model.means_[:, 0].round().tolist())
        [0.0, 9.0]
        >>> states = model.predict(x)
        >>> len(set(states[:20].tolist())), len(set(states[18:22].tolist()))  # the twenty-first step is another's
        (1, 2)
    """

    n_features: int

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        means_prior: Any = 0,
        means_weight: Any = 0,
        covars_prior: Any = 1e-2,
        covars_weight: Any = 1,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.verbose = verbose
        self.params = params
        self.init_params = init_params
        self.implementation = implementation

    @property
    def covars_(self) -> np.ndarray:
        """Covariances as full matrices: (k, d, d)."""
        return filled(self._covars_, self.covariance_type, self.n_components, np.shape(self.means_)[1])

    @covars_.setter
    def covars_(self, covars: Any) -> None:
        self._covars_ = compressed(covars, self.covariance_type, self.n_components)

    def fit(self, X: Any, lengths: Any = None) -> Self:  # noqa: N803
        """Fits the model.

        Args:
            X: (n, d), series below each other.
            lengths: of the series, which sum to n; None is one series.

        Returns:
            The estimator.

        Raises:
            ValueError: on parameters or data that do not fit.
        """
        X = _rows(X)
        lengths = _lengths(lengths, X)
        self._init(X, lengths)
        self._check()
        self.monitor_ = Monitor(self.tol, self.n_iter, self.verbose)
        if self.n_iter == 0:
            return self
        result = _float64.fit(self._params(), _float64.padded(X, lengths), self._asked(X.shape[1]))
        n_iter = int(result.n_iter)
        if not np.isfinite(result.objective):
            raise ValueError(
                "fit: expected a finite log-likelihood of the start, got none; look at means_ and covars_."
            )
        self.startprob_, self.transmat_, bank = result.params
        self.means_, self._covars_ = bank
        self.monitor_.report(np.asarray(result.history)[:n_iter])
        return self

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:  # noqa: N803
        """Sets what `init_params` names and what is not there; named as in hmmlearn."""
        d, k = X.shape[1], self.n_components
        if d != getattr(self, "n_features", d):
            raise ValueError(f"X: expected {self.n_features} columns, as the fit before had, got {d}.")
        self.n_features = d
        random_state = check_random_state(self.random_state)
        if self._is_to_set("s", "startprob_"):
            self.startprob_ = random_state.dirichlet(np.full(k, 1 / k))
        if self._is_to_set("t", "transmat_"):
            self.transmat_ = random_state.dirichlet(np.full(k, 1 / k), size=k)
        n_fitted = sum(n for code, n in self._n_parameters().items() if code in self.params)
        if X.size < n_fitted:
            _log.warning("%d parameters are fitted to %d numbers: expect a degenerate solution.", n_fitted, X.size)
        if self._is_to_set("m", "means_"):
            means: Any = KMeans(k, random_state=self.random_state, n_init=10)  # type: ignore[arg-type]
            self.means_ = means.fit(X).cluster_centers_
        if self._is_to_set("c", "covars_"):
            whole = np.atleast_2d(np.cov(X.T)) + self.min_covar * np.eye(d)
            self._covars_ = spread_over(whole, self.covariance_type, k)

    def _is_to_set(self, code: str, name: str) -> bool:
        is_there = hasattr(self, "_covars_" if code == "c" else name)
        if is_there and code in self.init_params:
            _log.warning("init_params contains %r, so that %s, which is set, will be overwritten.", code, name)
        return code in self.init_params or not is_there

    def _check(self) -> None:
        """Raises a ValueError unless the attributes fit each other; named as in hmmlearn."""
        k = self.n_components
        if self.covariance_type not in TYPES:
            raise ValueError(f"covariance_type: expected one of {TYPES}, got {self.covariance_type!r}.")
        if self.implementation not in ("log", "scaling"):
            raise ValueError(f"implementation: expected 'log' or 'scaling', got {self.implementation!r}.")
        for name, shape in (("startprob_", (k,)), ("transmat_", (k, k))):
            values = np.asarray(getattr(self, name), np.float64)
            if values.shape != shape or not np.allclose(values.sum(-1), 1) or (values < 0).any():
                raise ValueError(f"{name}: expected shape {shape}, rows that sum to 1, got {values.tolist()}.")
            setattr(self, name, values)
        self.means_ = np.asarray(self.means_, np.float64)
        if self.means_.ndim != 2 or len(self.means_) != k:
            raise ValueError(f"means_: expected shape ({k}, d), got {self.means_.shape}.")
        self.n_features = self.means_.shape[1]

    def _asked(self, d: int) -> _float64.Asked:
        k, kind = self.n_components, self.covariance_type
        whole = kind in ("full", "tied")
        count = max(self.covars_weight - (d if whole else 1), 0) / (k if kind == "tied" else 1)
        prior = _float64.Prior(
            np.broadcast_to(np.asarray(self.means_prior, np.float64), (k, d)),
            np.broadcast_to(np.asarray(self.means_weight, np.float64), (k,)),
            prior_scatter(self.covars_prior, kind, k, d),
            np.full(k, float(count)),
        )
        alphas = (self.startprob_prior, (k,)), (self.transmat_prior, (k, k))
        first, moves = (
            None if np.all(np.asarray(alpha) == 1) else np.broadcast_to(np.asarray(alpha, np.float64), shape)
            for alpha, shape in alphas
        )
        return _float64.Asked(kind, self.params, prior, first, moves, self.tol, self.n_iter)

    def _params(self) -> HMMParams:
        bank: Any = NormalParams
        return HMMParams(self.startprob_, self.transmat_, bank(self.means_, np.asarray(self._covars_)))

    def _read(self, X: Any, lengths: Any) -> Sequences:  # noqa: N803
        check_is_fitted(self, "startprob_")
        self._check()
        X = _rows(X)
        return _float64.padded(X, _lengths(lengths, X))

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, np.ndarray]:  # noqa: N803
        """Log-likelihood of X (n, d), and the probabilities of the states: (n, k)."""
        log_lik, states = _float64.scored(self.covariance_type, self._params(), self._read(X, lengths))
        return float(log_lik.sum()), states

    def score(self, X: Any, lengths: Any = None) -> float:  # noqa: N803
        """Log-likelihood of X (n, d)."""
        return self.score_samples(X, lengths)[0]

    def predict_proba(self, X: Any, lengths: Any = None) -> np.ndarray:  # noqa: N803
        """Probabilities of the states given the whole series: (n, k)."""
        return self.score_samples(X, lengths)[1]

    def decode(self, X: Any, lengths: Any = None, algorithm: str | None = None) -> tuple[float, np.ndarray]:  # noqa: N803
        """States of X (n, d), and what they score: (n,).

        Args:
            X: (n, d).
            lengths: as in `fit`.
            algorithm: "viterbi", the most probable path, and log p(x, path); "map", the most probable state of each
                step, and the sum of these probabilities. None is that of the estimator.

        Raises:
            ValueError: if the algorithm is another.
        """
        algorithm = algorithm or self.algorithm
        if algorithm == "viterbi":
            log_joint, path = _float64.decoded(self.covariance_type, self._params(), self._read(X, lengths))
            return float(log_joint.sum()), path.astype(int)
        if algorithm != "map":
            raise ValueError(f"algorithm: expected 'viterbi' or 'map', got {algorithm!r}.")
        states = self.predict_proba(X, lengths)
        return float(states.max(1).sum()), states.argmax(1)

    def predict(self, X: Any, lengths: Any = None) -> np.ndarray:  # noqa: N803
        """States of X (n, d) by `decode`: (n,)."""
        return self.decode(X, lengths)[1]

    def sample(
        self, n_samples: int = 1, random_state: Any = None, currstate: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A series (n_samples, d) and its states (n_samples,); of the same seed the same as hmmlearn's.

        Args:
            n_samples: its length.
            random_state: None is that of the estimator.
            currstate: the first state; None draws it.
        """
        check_is_fitted(self, "startprob_")
        self._check()
        random_state = check_random_state(self.random_state if random_state is None else random_state)
        draw = lambda p: int((np.cumsum(p) > random_state.rand()).argmax())  # noqa: E731
        covars, rows, states = self.covars_, [], []
        for i in range(n_samples):
            if i == 0:
                state = draw(self.startprob_) if currstate is None else int(currstate)
            else:
                state = draw(self.transmat_[states[-1]])
            states.append(state)
            rows.append(random_state.multivariate_normal(self.means_[state], covars[state]))
        return np.atleast_2d(rows), np.array(states, dtype=int)

    def get_stationary_distribution(self) -> np.ndarray:
        """The law of the states that the transitions keep: (k,)."""
        check_is_fitted(self, "transmat_")
        values, vectors = np.linalg.eig(np.asarray(self.transmat_).T)
        law = np.real(vectors[:, np.argmax(np.real(values))])
        return law / law.sum()

    def bic(self, X: Any, lengths: Any = None) -> float:  # noqa: N803
        """−2 log-likelihood + p·log n, n the steps of all series: lower is better."""
        return -2 * self.score(X, lengths) + sum(self._n_parameters().values()) * math.log(len(X))

    def aic(self, X: Any, lengths: Any = None) -> float:  # noqa: N803
        """−2 log-likelihood + 2p: lower is better."""
        return -2 * self.score(X, lengths) + 2 * sum(self._n_parameters().values())

    def _n_parameters(self) -> dict[str, int]:
        """Free parameters, by code."""
        k, d = self.n_components, self.n_features
        triangle = d * (d + 1) // 2
        covars = {"full": k * triangle, "tied": triangle, "diag": k * d, "spherical": k}
        return {"s": k - 1, "t": k * (k - 1), "m": k * d, "c": covars.get(self.covariance_type, 0)}


def _rows(X: Any) -> np.ndarray:  # noqa: N803
    return np.asarray(check_array(X), np.float64)


def _lengths(lengths: Any, X: np.ndarray) -> np.ndarray:  # noqa: N803
    """Of the series, (n,).

    Raises:
        ValueError: unless they are positive and sum to the rows of X.
    """
    if lengths is None:
        return np.array([len(X)])
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any() or lengths.sum() != len(X):
        raise ValueError(f"lengths: expected positive integers that sum to {len(X)}, the rows of X, got {lengths}.")
    return lengths
