"""Status codes and the record that a fit returns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Params
from ..numerics import tree as _tree
from ..numerics.programs import program
from . import capabilities as ask
from .admissible import Holdings, holdings
from .columns import import_pandas, param_columns
from .status import Status, is_failure


@_tree.register
@dataclass(frozen=True)
class FitResult:
    """What a fit found. Under `vmap`, and from `fit_batch`, every leaf leads with the lanes.

    Attributes:
        params: as the model's; of a failed fit the last good ones.
        objective: log-likelihood + log prior at exactly these params. NaN if never finite.
        log_lik: log p(data | params), summed with the sample weights.
        n_iter: M steps inside `params`.
        n_evals: E steps taken in all; n_iter + 1 for EM.
        status: int32, see `Status`.
        history: (max_iter + 1,); history[i] is the objective after i M steps, NaN beyond the last.
        model: the model bound to the data: the one to predict, sample or count parameters with.
        lane_efficiency: of a batch, iterations needed over iterations run; None for a single fit.
        unresolved: (5,) the first rows that the model does not resolve at these params, −1 where there are fewer;
            None of models that resolve all.
        total_weight: of the rows: their number, or the sum of their weights; None where nothing has counted it.
        n_best: of several starts, how many reached the best objective, or came so near to it that `tol` or rounding
            may be all between them; int32. 1 says that more starts may find a better one. None for one start.
        n_starts: how many ran to their end (of a race, those it kept); int32. None for one start.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> result = jaxem.fit(model, model.init(jax.random.key(0), x), x).check()
        >>> bool(result.converged), bool(result.objective == result.history[result.n_iter])
        (True, True)
        >>> result.model.responsibilities(result.params, jnp.array([[0.1], [2.0]])).shape
        (2, 2)
    """

    params: Params
    objective: Array
    log_lik: Array
    n_iter: Array
    n_evals: Array
    status: Array
    history: Array
    model: Any
    lane_efficiency: Any = field(default=None)
    unresolved: Any = field(default=None)
    total_weight: Any = field(default=None)
    n_best: Any = field(default=None)
    n_starts: Any = field(default=None)

    @property
    def converged(self) -> Array:
        """Whether the status is CONVERGED or RESOLUTION."""
        return (self.status == Status.CONVERGED) | (self.status == Status.RESOLUTION)

    @property
    def failed(self) -> Array:
        """Whether the status is one of the failures."""
        return is_failure(self.status)

    def check(self) -> "FitResult":
        """Returns the result, or raises with the reason. Needs concrete values.

        Raises:
            RuntimeError: if the fit, or any lane, did not converge.
        """
        status = np.asarray(self.status)
        if status.ndim == 0 and status == Status.UNRESOLVED:
            known = [] if self.unresolved is None else np.asarray(self.unresolved).tolist()
            rows = ", ".join(str(row) for row in known if row >= 0)
            first, explanation = f", rows {rows} first" if rows else "", Status.UNRESOLVED.explanation
            raise RuntimeError(f"the fit ended with status UNRESOLVED{first}: {explanation}")
        check_status(status)
        return self

    def holdings(self) -> Holdings:
        """What the components hold: the fewest rows, the largest ratio of eigenvalues, how many lie at the floor.

        With a leading axis for every axis of lanes. What the model does not have, or a gate does not tell without
        data, is None.
        """
        return _holdings(jnp.ndim(self.status), self.model, self.params, self.total_weight)

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a lane: status, iterations, objective, and every number of the params by name.

        Columns: `lane` (its number, 0 for a single fit), `status` (the name), `n_iter`, `objective`, `log_lik`; of the
        components `smallest_count`, `largest_ratio`, `n_at_floor` (see `diagnose`), `n_best` of several starts, where
        the fit has them; and the params, such as `weights[0]` and `mean[0,1]`. Needs concrete values.

        Raises:
            ImportError: without pandas.
            ValueError: if the result has more than one axis of lanes.

        Example:
            >>> import jax, jax.numpy as jnp, jaxem
            >>> x = jnp.concatenate([jnp.linspace(-3.0, -2.0, 50), jnp.linspace(2.0, 3.0, 50)])[:, None]
            >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
            >>> frame = jaxem.fit(model, model.init(jax.random.key(0), x), x).ordered().to_frame()
            >>> list(frame.columns)[3:8]
            ['objective', 'log_lik', 'smallest_count', 'largest_ratio', 'n_at_floor']
            >>> list(frame.columns)[8:]
            ['weights[0]', 'weights[1]', 'mean[0,0]', 'mean[1,0]', 'covariance[0,0,0]', ...]
        """
        pandas = import_pandas("to_frame")
        status = np.asarray(self.status)
        if status.ndim > 1:
            raise ValueError(
                f"to_frame: expected a fit or one axis of lanes, got lanes of shape {status.shape}; take one axis."
            )
        lanes = lambda leaf: np.asarray(leaf)[None] if status.ndim == 0 else np.asarray(leaf)  # noqa: E731
        codes = lanes(status)
        names = {code: Status(code).name for code in np.unique(codes).tolist()}
        columns = {"lane": np.arange(len(codes)), "status": [names[code] for code in codes.tolist()]}
        columns |= {name: lanes(getattr(self, name)) for name in ("n_iter", "objective", "log_lik")}
        found = self.holdings()._asdict() | {"n_best": self.n_best}
        columns |= {name: lanes(value) for name, value in found.items() if value is not None}
        return pandas.DataFrame(columns | param_columns(jax.tree.map(lanes, self.params)))

    def ordered(self, by: str | Callable[[Params], Array] = "weight") -> "FitResult":
        """The same fit with its components sorted.

        Args:
            by: "weight" (heaviest first; of hidden Markov models the state that most steps are in), or a function of
                one lane's params that returns a key (k,), sorted ascending.

        Returns:
            A result with relabelled params and model; `history` and the rest are unchanged.

        Raises:
            ValueError: if the model does not say which axes are components.
        """
        if ask.component_axes(self.model) is None:
            raise ValueError(f"ordered: {type(self.model).__name__} has no component_axes(); it cannot be relabelled.")
        if isinstance(by, str) and by != "weight":
            raise ValueError(f"by: expected 'weight' or a function of params, got {by!r}.")
        has_shares = ask.offers(self.model, "shares")
        if by == "weight" and not has_shares and jax.tree.structure(self.params.weights) != jax.tree.structure(0):
            raise ValueError(
                "by: expected a function of params that returns a key (k,), as the weights depend on covariates, got "
                "'weight'."
            )
        one_lane = _relabel_one(by)
        for _ in range(jnp.ndim(self.status)):
            one_lane = jax.vmap(one_lane)
        params, model = one_lane(self.params, self.model)
        return replace(self, params=params, model=model)


@program(at_most=2**14, static_argnums=0)
def _holdings(n_axes: int, model: Any, params: Params, total: Array | None) -> Holdings:
    one = holdings
    for _ in range(n_axes):
        one = jax.vmap(one)
    return one(model, params, total)


def _relabel_one(by: str | Callable[[Params], Array]) -> Callable[[Params, Any], tuple[Params, Any]]:
    def relabel_lane(params: Params, model: Any) -> tuple[Params, Any]:
        sort_key = -_shares(model, params) if by == "weight" else by(params)  # type: ignore[operator]
        order = jnp.argsort(sort_key, stable=True)
        relabelled_model = ask.relabelled(model, order)
        return permute_components(params, model.component_axes(), order), relabelled_model

    return relabel_lane


def _shares(model: Any, params: Params) -> Array:
    return model.shares(params) if ask.offers(model, "shares") else params.weights


def permute_components(params: Params, axes: Params, order: Array) -> Params:
    """Takes the components of `params` in the order given; leaves that they share stay as they are.

    Args:
        params: of a model.
        axes: its `component_axes()`: of each leaf, or of all below, the axis of the components, None, or, of a leaf
            with several of them such as a matrix of transitions, a tuple.
        order: (k,).
    """

    def take(axis: int | tuple | None, subtree: Params) -> Params:
        if type(axis) is tuple and isinstance(subtree, (tuple, list)):  # params that are a plain tuple
            return type(subtree)(permute_components(one, own, order) for own, one in zip(axis, subtree, strict=True))
        several = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
        for one in several:
            subtree = jax.tree.map(lambda leaf: jnp.take(leaf, order, one), subtree)  # noqa: B023
        return subtree

    return jax.tree.map(take, axes, params, is_leaf=lambda leaf: leaf is None or type(leaf) is tuple)


def check_status(status: np.ndarray, labels: Any = None, noun: str = "lanes") -> None:
    """Raises a RuntimeError that counts those that did not converge by reason, with its remedy and the first of them.

    Args:
        status: of one fit or of many.
        labels: what many are called by; None is their number.
        noun: what they are.
    """
    bad = (status.ravel() != Status.CONVERGED) & (status.ravel() != Status.RESOLUTION)
    if not bad.any():
        return
    if status.ndim == 0:
        code = Status(int(status))
        subject = "the fit" if noun == "lanes" else noun
        raise RuntimeError(f"{subject} ended with status {code.name}: {code.explanation}")
    lines = [f"{bad.sum()} of {status.size} {noun} did not converge:"]
    codes, counts = np.unique(status.ravel()[bad], return_counts=True)
    for i in np.argsort(-counts, kind="stable"):  # the most frequent reason first
        lanes, code = np.flatnonzero(status.ravel() == codes[i]), Status(int(codes[i]))
        first = [lane if labels is None else labels[lane] for lane in lanes[:5]]
        names = ", ".join(str(name) for name in first) + (", …" if len(lanes) > 5 else "")
        lines.append(f"  {code.name} ({len(lanes)}: {names}): {code.explanation}")
    raise RuntimeError("\n".join(lines))
