"""Linear-Gaussian state space models."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key
from ..contracts.checks import check_option
from ..contracts.domains import check_params
from ..fold.criteria import criterion_of
from ..latent.gaussian_chain import shared_or_each
from ..latent.series import Sequences, as_sequences
from ..latent.starts import KMeans
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows
from . import _state_space_answers as answers
from ._state_space_answers import Forecast
from ._state_space_checks import StateSpaceChecks
from ._state_space_params import GaussianState, LGSSMParams, LGSSMStats
from ._state_space_space import StateSpaceSpace
from ._state_space_start import start
from ._state_space_steps import StateSpaceConstants, StateSteps, chain_of, expected_statistics, raw_steps

__all__ = ["Forecast", "GaussianState", "LGSSMParams", "LinearGaussianStateSpace"]


@_tree.register
@dataclass(frozen=True)
class LinearGaussianStateSpace(StateSpaceConstants, StateSpaceSpace, StateSpaceChecks):
    """A hidden vector that moves linearly with normal noise, seen through a linear map with normal noise.

    x_1 ~ N(m, P),  x_{t+1} = A x_t + B u_{t+1} + w_t,  w ~ N(0, Q),  y_t = C x_t + D u_t + v_t,  v ~ N(0, R).

    Observations are whole series, `Sequences` of arrays (n, t, d), or of pairs of inputs (n, t, q) and such arrays:
    sample weights and bootstrap go by series, `tol` and log n of BIC by steps. NaN is a missing number: of a step all
    of them, or some, which are expected given the others (Shumway & Stoffer 1982). Inputs are known in every step; one
    that is constant is an intercept.

    The E step is the Kalman filter and a smoother; its statistics are those of the disturbances w and v about the
    current params (Koopman 1993), and not raw moments of the states, of which a precise sensor's variance would be the
    difference of large numbers. The M step is two regressions.

    The axes of the state mean nothing: x and T x say the same of y, so that a model of which nothing is held has s²
    coordinates too many for standard errors; and P of a single series tends to 0. `Frozen` holds what is known: rows or
    entries of A and C, blocks of Q and R, m and P. With P held at 0 the first state is m, and estimated as such.

    Attributes:
        n_states: s, the size of the hidden vector.
        floor: of R, a prior −½ tr(Λ R⁻¹) with Λ = floor · diag(variances of the columns); 0 is maximum likelihood.
        transition_prior: Λ of such a prior of Q, () or (s,) of its diagonal, or (s, s); None is flat.
        initial_prior: Λ of such a prior of P.
        column_variance: (d,), which `bind` takes from the data.
        diffuse: static; True for an initial P much wider than the noise, of several states: the first state is then
            estimated beside the filter (de Jong 1991). The answer is the same, but in float32 the filter alone would
            lose its digits.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> turn = jnp.array([[0.9, -0.4], [0.4, 0.9]])
        >>> eye, see = jnp.eye(2), jnp.array([[1.0, 0.0]])
        >>> truth = jaxem.LGSSMParams(jaxem.GaussianState(jnp.zeros(2), eye), turn, 0.1 * eye, see, jnp.ones((1, 1)))
        >>> model = jaxem.LinearGaussianStateSpace(n_states=2)
        >>> data, _ = model.sample(truth, jax.random.key(0), 50, n_steps=60)
        >>> result = jaxem.fit(model, model.init(jax.random.key(1), data), data)
        >>> bool(jnp.all(jnp.abs(jnp.linalg.det(result.params.transition) - jnp.linalg.det(turn)) < 0.05))
        True
    """

    # --- the first arrow; the second is `m_step`

    def e_step(self, params: LGSSMParams, data: Data, sample_weight: Array | None) -> tuple[LGSSMStats, Array]:
        """Expected second moments of the disturbances, and the log-likelihood; sums over series."""
        steps = data if isinstance(data, StateSteps) else raw_steps(data)
        n = steps.present.shape[1]
        weight = jnp.ones(n, steps.values.dtype) if sample_weight is None else sample_weight
        return shared_or_each(
            chain_of(params, steps),
            lambda chain, observed: expected_statistics(chain, observed, steps.inputs, weight, diffuse=self._regresses),
        )

    # --- what users ask of a fitted model

    def init(self, key: Key, data: Data, sample_weight: Array | None = None, method: Any = None) -> LGSSMParams:
        """Start params: principal components of the steps, and of those before them, are the states of one M step.

        Args:
            key: of `jax.random`; of noise that is added to the components, so that starts differ.
            data: `Sequences`.
            sample_weight: (n,) or None.
            method: None, or `KMeans()`, the default of drivers; a state that is a vector has no clusters.

        Raises:
            ValueError: for another method.
        """
        data = as_rows(as_sequences(data))
        self.validate_data(data)
        return self.init_bound(key, self.cast_rows(data, _tree.float_dtype(data.values)), sample_weight, method)

    def init_bound(self, key: Key, data: Data, sample_weight: Array | None = None, method: Any = None) -> LGSSMParams:
        """`init` of a model that is bound to these data."""
        check_method(method)
        weight = None if sample_weight is None else jnp.asarray(sample_weight, _tree.float_dtype(data.values))
        return start(self, key, data, weight)

    def log_prob(self, params: LGSSMParams, data: Data) -> Array:
        """log p(y) of each series: (n,)."""
        return answers.log_prob(*self._asked(params, data), self._regresses)

    def filtered(self, params: LGSSMParams, data: Data) -> GaussianState:
        """x_t given y_1 … y_t: mean (n, t, s), covariance (n, t, s, s); NaN in absent steps."""
        return answers.filtered(*self._asked(params, data), self._regresses)

    def smoothed(self, params: LGSSMParams, data: Data) -> GaussianState:
        """x_t given the whole series: mean (n, t, s), covariance (n, t, s, s); NaN in absent steps."""
        return answers.smoothed(*self._asked(params, data), self._regresses)

    def residuals(self, params: LGSSMParams, data: Data) -> Array:
        """One-step residuals in units of their standard deviation: (n, t, d); NaN where nothing is observed.

        Those of a step are independent too, each given the columns before it: N(0, 1) if the model is true.

        Example:
            >>> import jax.numpy as jnp, jaxem
            >>> one = jnp.ones((1, 1))
            >>> params = jaxem.LGSSMParams(jaxem.GaussianState(jnp.zeros(1), one), one, one, one, one)
            >>> data = jaxem.sequences([jnp.array([[0.0], [3.0]])])
            >>> jaxem.LinearGaussianStateSpace(1).residuals(params, data)[0, :, 0].round(2)
            Array([0. , 1.9], dtype=...)
        """
        return answers.residuals(*self._asked(params, data), self._regresses)

    def forecast(
        self, params: LGSSMParams, data: Data, horizon: int, *, level: Any = 0.95, inputs: Any = None
    ) -> Forecast:
        """The steps one to `horizon` after the end of each series, with intervals; params count as known.

        Args:
            params: of the model.
            data: `Sequences`.
            horizon: steps.
            level: probability of each number to lie in its interval.
            inputs: (n, horizon, q) of these steps, of a model with inputs.

        Raises:
            ValueError: if `horizon` is not a positive int, `level` no probability, or inputs do not fit.
        """
        horizon = as_count("horizon", horizon)
        check_option("level", level, 0, 1)
        params, data = self._asked(params, data)
        check_inputs(params, inputs, (data.length.shape[0], horizon))
        return answers.forecast(params, data, horizon, level, inputs, self._regresses)

    def sample(
        self, params: LGSSMParams, key: Key, n: int, n_steps: int | None = None, inputs: Any = None
    ) -> tuple[Sequences, Array]:
        """n series and the states behind them, (n, n_steps, s).

        Args:
            params: of the model.
            key: of `jax.random`.
            n: how many series.
            n_steps: of each.
            inputs: (n, n_steps, q), of a model with inputs.

        Raises:
            ValueError: without a number of steps, or if inputs do not fit.
        """
        check_params(self, params)
        n, t = as_count("n", n), as_count("n_steps", n_steps)
        check_inputs(params, inputs, (n, t))
        return answers.draw(params, key, n, t, inputs)

    def sample_like(self, params: LGSSMParams, key: Key, data: Data) -> Sequences:
        """New series in the place of the data's, as long, with what is missing, and with their inputs."""
        params, data = self._asked(params, data)
        return answers.draw_like(params, key, data)

    def _asked(self, params: LGSSMParams, data: Data) -> tuple[LGSSMParams, Sequences]:
        """Of params as users have them: checked, and NumPy's too; data as they are read."""
        check_params(self, params)
        data = as_rows(as_sequences(data))
        self.validate(params, data)
        return jax.tree.map(jnp.asarray, params), self.cast_rows(data, _tree.float_dtype(data.values))

    def bic(self, params: LGSSMParams, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + p·log(number of steps): lower is better (Schwarz 1978)."""
        return criterion_of("bic", self, params, data, sample_weight)

    def aic(self, params: LGSSMParams, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + 2p: lower is better (Akaike 1974)."""
        return criterion_of("aic", self, params, data, sample_weight)


def check_method(method: Any) -> None:
    """Raises a ValueError for a method of starts that a vector of states does not have."""
    if method is not None and not isinstance(method, KMeans):
        raise ValueError(
            f"method: expected None, for principal components, got {type(method).__name__}; a state that is a vector "
            "has no clusters: leave it out."
        )


def check_inputs(params: LGSSMParams, inputs: Any, shape: tuple[int, int]) -> None:
    """Raises a ValueError unless inputs (*shape, q) are given where params have input matrices, and only there."""
    if params.emission_input is None:
        if inputs is not None:
            raise ValueError(
                "inputs: expected None, as params have no input matrices, got some; fit with "
                "Sequences((inputs, values), length)."
            )
        return
    want = (*shape, jnp.shape(params.emission_input)[1])
    if inputs is None or jnp.shape(inputs) != want:
        got = "None" if inputs is None else jnp.shape(inputs)
        raise ValueError(f"inputs: expected shape {want}, one row for each step, got {got}.")
