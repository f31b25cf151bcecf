"""A model of which parts are known."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Key, Params, PyTree, Stats
from ..contracts import capabilities as ask
from ..contracts.domains import check_params
from ..contracts.holding import HeldEntries, all_held, held_leafwise
from ..fold import constants as merging
from ..fold.climb import Full, Truncated
from ..fold.closed import Block, explained
from ..fold.criteria import NAMES, criterion_of
from ..latent.finite import unlabelled
from ..numerics import tree as _tree
from ..numerics.arguments import as_rows

# of the model inside, whatever is held
_AS_THEY_ARE = frozenset({
    "active", "additive", "cast_rows", "check_data", "check_table", "closed_m_step", "costly_features",
    "elements_per_row", "family", "gate", "has_fast_path", "informative", "may_underflow", "min_rows", "n_components",
    "prepare", "readable", "reads_floats", "reads_labels", "rows_add", "rows_at_once", "to_global", "to_local",
    "units", "validate_data",
})  # fmt: skip
# of the model inside, at params of which the held entries are what they are held at
_AT_PARAMS = frozenset({
    "chain", "check_start", "component_counts", "condensed", "dwell_times", "e_step", "e_step_by_rule",
    "expected_log_joint", "feasible", "filtered", "forecast", "health", "log_given", "log_prior", "log_prob",
    "log_state", "predict", "residuals", "responsibilities", "sample", "sample_ahead", "sample_like", "sizes",
    "smoothed", "statistics", "transition_matrix", "trusted", "unresolved", "with_slopes", "with_states",
})  # fmt: skip
_BY_BLOCKS = frozenset({"blocks_of", "explain", "items_of", "leafwise"})
_MODELS = frozenset({"localised", "recentred", "restricted"})


@_tree.register
@dataclass(frozen=True)
class Frozen:
    """A model of which some params are known and held; the others are fitted as if these were constants.

    The M step is the mode of Q + log prior over what is not held, exactly: under a known mean a covariance is the
    scatter about that mean. Free coordinates leave out what is held, and so do derivatives, standard errors (held
    params have 0), `em_rate`, `n_parameters` and the criteria. What cannot be held exactly is a ValueError: a part of
    the weights, of one covariance matrix, of one component's mean beside a full or tied covariance.

    Params are held at what the start has, and the derivative with respect to the start is zero. With `values`, they
    are held at these, whatever the start has; a fit then has a derivative with respect to them, and `init` (restarts,
    groups, selection) can draw the rest. A result's `model` has them. Components with known params are not
    exchangeable: there is no `component_axes`, so results are not `ordered`, and replicates of a bootstrap are left
    as they are.

    Attributes:
        model: what is fitted.
        mask: booleans shaped as the params, True where held: for a subtree, a leaf, its leading axes, or entry by
            entry. Concrete; static.
        values: params of which the held entries are read, or None.

    Raises:
        ValueError: while tracing, if the mask does not fit the params, holds all of them, or the model cannot hold
            this part of them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> x = jnp.concatenate([jnp.linspace(-3.0, -1.0, 50), jnp.linspace(2.0, 3.0, 150)])[:, None]
        >>> model = jaxem.Mixture(jaxem.FullNormal(), n_components=2)
        >>> start = jaxem.MixtureParams(jnp.array([0.5, 0.5]), jaxem.NormalParams(jnp.array([[-2.0], [1.0]]),
        ...                                                                       jnp.ones((2, 1, 1))))
        >>> mask = jaxem.MixtureParams(True, jaxem.NormalParams(jnp.array([True, False]), False))
        >>> result = jaxem.fit(jaxem.Frozen(model, mask), start, x)
        >>> result.params.weights.tolist(), result.params.components.mean.round(1).tolist()
        ([0.5, 0.5], [[-2.0], [2.5]])
    """

    model: Any
    mask: Any = field(metadata={"static": True})
    values: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.mask, HeldEntries):
            object.__setattr__(self, "mask", HeldEntries.of(self.mask))

    def __getattr__(self, name: str) -> Any:
        if name in _AS_THEY_ARE:
            return getattr(self.model, name)
        if name in _AT_PARAMS:
            method = getattr(self.model, name)
            if method is None:  # a field that may be a function
                return None
            return lambda params, *rest, **options: method(self.imposed(params), *rest, **options)
        if name == "projected":
            onto = getattr(self.model, name)
            return lambda params, near: self.imposed(onto(self.imposed(params), near))
        if name in _MODELS:
            return self._rebuilding(name, getattr(self.model, name))
        if name in _BY_BLOCKS and ask.offers(self.model, "blocks_of"):
            return getattr(self, f"_{name}")
        if name in NAMES and ask.counts_parameters(self.model):
            return lambda params, data, sample_weight=None: criterion_of(name, self, params, data, sample_weight)
        raise AttributeError(name)

    def _blocks_of(self, params: Params, data: Data) -> tuple[Block, ...]:
        """How each leaf enters the joint inside; what is held stays."""
        self._held_coordinates(params)  # refuses parts of leaves
        blocks, held = self.model.blocks_of(params, data), jax.tree.leaves(self.spread(params))
        return tuple(block.as_held() if np.any(h) else block for block, h in zip(blocks, held, strict=True))

    def _explain(self, params: Params, data: Data) -> str:
        return explained(self._blocks_of(params, unlabelled(as_rows(data))))

    def _items_of(self, params: Params, data: Data, stays: tuple[bool, ...]) -> int:
        return self.model.items_of(params, data, stays)

    @property
    def _leafwise(self) -> Any:
        return self.model

    def _rebuilding(self, name: str, method: Callable) -> Callable:
        """A method that returns a model, as one that returns this model around it."""

        def rebuilt(*arguments: Any) -> Self:
            values = self.values
            if name == "localised" and values is not None:
                values = self.model.to_local(values)
            return replace(self, model=method(*arguments), values=values)

        return rebuilt

    # --- what is held

    def spread(self, params: Params) -> PyTree:
        """Which entries are held, shaped as the params."""
        return self.mask.spread(params)

    def holding(self, params: Params) -> Self:
        """The model that holds what these params have, where it has no `values`."""
        return self if self.values is not None else replace(self, values=params)

    def imposed(self, params: Params) -> Params:
        """Params with the `values` that are held; as they are where there are none."""
        if self.values is None or params is None:
            return params

        def one(flags: np.ndarray, value: Any, leaf: Array) -> Array:
            value = jnp.asarray(value, leaf.dtype)
            return value if np.all(flags) else jnp.where(flags, value, leaf) if np.any(flags) else leaf

        return jax.tree.map(one, self.spread(params), self.values, params)

    def coordinates(self, params: Params) -> tuple[Array, Callable[[Array], Params]]:
        """The entries that are not held as a vector, and the way back."""
        flat, unravel = ravel_pytree(params)
        index = np.flatnonzero(~_flat(self.spread(params)))
        return flat[index], lambda moved: self.imposed(unravel(flat.at[index].set(moved)))

    # --- the two arrows

    def bind(self, data: Data, sample_weight: Array | None = None) -> Self:
        """The model bound to the data."""
        return replace(self, model=ask.bind(self.model, data, sample_weight))

    def weigh(self, data: Data, sample_weight: Array | None) -> Any:
        """The weight behind the model's constants."""
        return merging.weigh(self.model, data, sample_weight)

    def merged(self, seen: Any, other: Self, other_seen: Any) -> Self:
        """The model bound to the rows of both."""
        return replace(self, model=merging.merged(self.model, seen, other.model, other_seen))

    def merged_weight(self, seen: Any, other_seen: Any) -> Any:
        """The weight of both."""
        return merging.merged_weight(self.model, seen, other_seen)

    @property
    def log_joint(self) -> Callable[[Params, Data], Array]:
        """log p(x_i, z_i = j): (n, k)."""
        method = self.model.log_joint
        return lambda params, data: method(self.imposed(params), data)

    @property
    def m_step(self) -> Any:
        """The mode over what is not held; where the model climbs, so does this, in its own free coordinates."""
        own = self.model.m_step
        return own if isinstance(own, (Full, Truncated)) else self._mode

    def _mode(self, params: Params | None, stats: Stats) -> Params:
        if params is None:
            return self.imposed(self.model.m_step(None, stats))
        if not ask.offers(self.model, "m_step_held"):
            raise ValueError(
                f"{type(self.model).__name__} has no m_step_held(params, stats, held), the mode of Q + log prior with "
                "the entries `held` as params have them; write it, or leave m_step out so that Q is climbed."
            )
        params = self.imposed(params)
        return self.imposed(self.model.m_step_held(params, stats, self.spread(params)))

    def init(self, key: Key, data: Data, sample_weight: Array | None = None, method: Any = None) -> Params:
        """Start params of the model, with the `values` that are held.

        Raises:
            ValueError: without `values`.
        """
        return self._drawn(ask.init, key, data, sample_weight, method)

    def init_bound(self, key: Key, data: Data, sample_weight: Array | None = None, method: Any = None) -> Params:
        """`init` of a model that is bound to these data."""
        return self._drawn(ask.init_bound, key, data, sample_weight, method)

    def _drawn(self, draw: Callable, *arguments: Any) -> Params:
        if self.values is None:
            raise ValueError("Frozen: expected values= to draw starts about, got None; or pass start params to fit.")
        return self.imposed(draw(self.model, *arguments))

    # --- free coordinates

    def unconstrain(self, params: Params) -> Array:
        """The free coordinates of what is not held, a vector."""
        return ravel_pytree(ask.free(self.model, params))[0][self._index(params)]

    def constrain(self, free: Array) -> Params:
        """Inverse of `unconstrain`, with what is held.

        Raises:
            ValueError: of a model that does not know what it holds, see `holding`.
        """
        if self.values is None:
            raise ValueError(
                "Frozen: expected values to hold, got None; use the model of a result, or holding(params)."
            )
        values = _tree.cast_floats(self.values, free.dtype)
        flat, unravel = ravel_pytree(ask.free(self.model, values))
        whole = unravel(flat.at[self._index(values)].set(free))
        return self.imposed(ask.from_free(self.model, whole))

    def held(self, params: Params) -> Array:
        """Which free coordinates belong to components that are switched off; shaped as `unconstrain(params)`."""
        return self._inactive(params)[self._index(params)]

    def _inactive(self, params: Params) -> Array:
        return ravel_pytree(ask.held(self.model, params))[0]

    def _index(self, params: Params) -> np.ndarray:
        return np.flatnonzero(~self._held_coordinates(params))

    def _held_coordinates(self, params: Params) -> np.ndarray:
        """Which free coordinates of the model inside are held, flat."""
        held = self.spread(params)
        if ask.offers(self.model, "frozen_coordinates"):
            return _flat(self.model.frozen_coordinates(params, held))
        free = jax.eval_shape(partial(ask.free, self.model), params)
        return _flat(held_leafwise(held, free, self.model, entries=not ask.knows_coordinates(self.model)))

    # --- bookkeeping

    def n_parameters(self, params: Params) -> Any:
        """Free parameters that are not held."""
        if ask.offers(self.model, "n_parameters_held"):
            return self.model.n_parameters_held(params, self.spread(params))
        return ask.n_parameters(self.model, params) - self._n_held(params)

    def _n_held(self, params: Params) -> Array:
        return jnp.sum(self._held_coordinates(params) & ~self._inactive(params))

    def check_params(self, params: Params, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params, held ones included, no model allows."""
        params = params if lanes and self.values is not None else self.imposed(params)
        check_params(self.model, params, lanes=lanes)

    def validate(self, params: Params, data: Data) -> None:
        """Raises a ValueError or TypeError if params do not fit the model, or the mask or the values the params."""
        ask.validate(self.model, params, data)
        if all_held(self.spread(params)):
            raise ValueError("mask: expected params that are not held, got a mask that holds all; there is no fit.")
        if self.values is not None:
            shapes = [jax.tree.map(np.shape, tree) for tree in (params, self.values)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"values: expected the shapes of the params, {shapes[0]}, got {shapes[1]}.")


def _flat(held: PyTree) -> np.ndarray:
    """Booleans in the order of `ravel_pytree`."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(held)])
