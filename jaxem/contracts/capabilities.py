"""What a model or family can do besides what it must: asked here, with what holds where it says nothing.

A class offers an ability by a method or an attribute of its name (`names.OPTIONAL`); what it does not offer has the
default below, or is a ValueError that says what to write. One line `space = Params(rate=bijections.positive, …)` stands
for all that follows from where the params live.
"""

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._typing import Array, Data, Key, Params, Stats
from ..bijections import Constraints, constraints_of
from ..numerics import tree as _tree
from .names import OPTIONAL
from .status import Status

OwnerT = TypeVar("OwnerT")
_ABSENT = object()


def offers(owner: Any, name: str) -> bool:
    """Whether the model or family has this ability.

    Raises:
        AttributeError: that of something else inside of a property, which is a fault in it, and no ability that is
            missing.
    """
    return told(owner, name, _ABSENT) is not _ABSENT


def told(owner: Any, name: str, otherwise: Any) -> Any:
    """What the model or family says by this name, or what holds otherwise.

    Raises:
        AttributeError: as `offers`.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        if error.name != name:
            raise
        return otherwise


def needed(owner: Any, name: str) -> Any:
    """What the model or family has by this name.

    Raises:
        ValueError: if it has none: says what to write.
    """
    own = told(owner, name, _ABSENT)
    if own is _ABSENT:
        raise ValueError(f"{type(owner).__name__} has no {name}, which is needed here; write it: {OPTIONAL[name]}.")
    return own


def _or_itself(owner: Any, name: str, argument: Any, *more: Any) -> Any:
    """The owner's answer, or the argument as it is."""
    own = told(owner, name, None)
    return argument if own is None else own(argument, *more)


def _if_offered(owner: Any, name: str, *arguments: Any) -> Any:
    """The owner's answer, or None."""
    own = told(owner, name, None)
    return None if own is None else own(*arguments)


# --- where params live


def _space(owner: Any) -> Constraints | None:
    return constraints_of(owner.space) if offers(owner, "space") else None


def knows_coordinates(owner: Any) -> bool:
    """Whether a model or family has free coordinates."""
    return offers(owner, "unconstrain") or offers(owner, "space")


def unconstrain(owner: Any, params: Params) -> Params:
    """Free coordinates of the params.

    Raises:
        ValueError: if the model or family has none: says what to write.
    """
    space = None if offers(owner, "unconstrain") else _space(owner)
    return needed(owner, "unconstrain")(params) if space is None else space.to_free(params)


def constrain(owner: Any, free: Params) -> Params:
    """Inverse of `unconstrain`.

    Raises:
        ValueError: as there.
    """
    space = None if offers(owner, "constrain") else _space(owner)
    return needed(owner, "constrain")(free) if space is None else space.from_free(free)


def free(owner: Any, params: Params) -> Params:
    """Free coordinates of the params; the params themselves where the owner has none."""
    return unconstrain(owner, params) if knows_coordinates(owner) else params


def from_free(owner: Any, free: Params) -> Params:
    """Inverse of `free`."""
    return constrain(owner, free) if knows_coordinates(owner) else free


def counts_parameters(owner: Any) -> bool:
    """Whether a model or family tells how many free parameters there are."""
    return offers(owner, "n_parameters") or offers(owner, "space")


def n_parameters(owner: Any, params: Params, n_components: Any = None) -> Any:
    """Free parameters of a model, or of so many components of a family; of its space the free coordinates.

    Raises:
        ValueError: if the owner does not tell: says what to write.
    """
    space = None if offers(owner, "n_parameters") else _space(owner)
    if space is None:
        return needed(owner, "n_parameters")(params, *([] if n_components is None else [n_components]))
    n = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(space.to_free, params)))
    return n if n_components is None else n_components * (n // _tree.n_rows(params, "params"))


def sizes(owner: Any, params: Params) -> Params:
    """By which changes of the params' entries are measured: the owner's `sizes`, or their root mean squares.

    Best the standard deviations of complete-data estimates: EM's derivative is self-adjoint in the metric of the
    complete-data information (Dempster, Laird & Rubin 1977, section 3), which is what extrapolations thrive on.
    """
    return owner.sizes(params) if offers(owner, "sizes") else jax.tree.map(_tree.sizes, params)


def flat_sizes(model: Any, params: Params) -> Array:
    """`sizes` as a vector (p,)."""
    return ravel_pytree(sizes(model, params))[0]


def is_feasible(owner: Any, params: Params) -> Array:
    """Whether params are finite, and allowed by the model's or family's `feasible` or in its space: ()."""
    finite = _tree.is_finite(params)
    if offers(owner, "feasible"):
        return finite & owner.feasible(params)
    space = _space(owner)
    return finite if space is None else finite & space.contains(params)


def knows_space(owner: Any) -> bool:
    """Whether a model or family says which params are allowed, so that a jump stays among them."""
    return offers(owner, "feasible") or knows_coordinates(owner)


def held(owner: Any, params: Params) -> Params:
    """Which free coordinates are on a boundary, or of a component that is off; shaped as these."""
    if offers(owner, "held"):
        return owner.held(params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), jax.eval_shape(partial(free, owner), params))


def on_its_boundary(owner: Any, params: Params) -> Any:
    """The owner with what these params have at zero switched off for good; itself where it knows no such thing."""
    return owner.restricted(params) if offers(owner, "restricted") else owner


def holding(model: OwnerT, params: Params) -> OwnerT:
    """The model with the params that it holds, if it holds any that the start has."""
    return model.holding(params) if offers(model, "holding") else model  # type: ignore[attr-defined]


def imposed(owner: Any, params: Params, *more: Any) -> Params:
    """Params with those that the owner holds, within its own bounds."""
    return _or_itself(owner, "imposed", params, *more)


# --- faster or safer forms of the same densities


def has_fast_path(owner: Any) -> bool:
    """Whether there are two paths through the same densities."""
    return told(owner, "has_fast_path", offers(owner, "trusted"))


def trusted(owner: Any, params: Params) -> Array:
    """Whether the fast path keeps its digits at these params: ()."""
    return owner.trusted(params) if offers(owner, "trusted") else jnp.ones((), bool)


def recentred(owner: Any, params: Params) -> Any:
    """The bound owner on its stable path about these params."""
    return owner.recentred(params) if offers(owner, "recentred") else owner


def localised(owner: Any) -> Any:
    """The bound owner for params relative to the data's own place."""
    return owner.localised() if offers(owner, "localised") else owner


def to_local(owner: Any, params: Params) -> Params:
    """Params as `localised` takes them."""
    return owner.to_local(params) if offers(owner, "localised") else params


def to_global(owner: Any, params: Params) -> Params:
    """Inverse of `to_local`."""
    return owner.to_global(params) if offers(owner, "localised") else params


def prepare(owner: Any, data: Data, *options: Any) -> Data:
    """The form of the data in which densities are fastest."""
    return _or_itself(owner, "prepare", data, *options)


def rows_at_once(owner: Any, data: Data, n: int) -> int:
    """How many of n rows an E step of the owner's own works on at a time, in chunks of about one size."""
    most = max(1, min(n, owner.rows_at_once(data))) if offers(owner, "rows_at_once") else n
    return -(-n // -(-n // most))


def elements_per_row(owner: Any, data: Data, *more: Any) -> int:
    """Of the largest array that is made of the rows, over their number; 0 where it is no more than prepared rows."""
    return owner.elements_per_row(data, *more) if offers(owner, "elements_per_row") else 0


def n_features(owner: Any, data: Data) -> int | None:
    """The length of the features T in which the owner is exponential; None where it has none."""
    return _if_offered(owner, "n_features", data)


# --- constants of the data


def bind(model: OwnerT, data: Data, sample_weight: Array | None) -> OwnerT:
    """The model or family with its data-dependent constants; itself if it has none.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> model = jaxem.Mixture(jaxem.Uniform(), n_components=1)
        >>> bound = jaxem.bind(model, jnp.array([[1.0], [3.0]]), None)
        >>> bound.family.low, bound.family.high
        (Array([1.], dtype=...), Array([3.], dtype=...))
    """
    return model.bind(data, sample_weight) if offers(model, "bind") else model  # type: ignore[attr-defined]


def among(family: Any, n_components: Any) -> Any:
    """The family of one of so many components, whose prior may ask for it."""
    return family.among(n_components) if offers(family, "among") else family


# --- which data are legal


def cast_rows(owner: Any, data: Data, dtype: Any) -> Data:
    """The data as the owner reads them: floats in one dtype, whole numbers as they are, for a user may index by them.

    The library's own families and models compute with floats only, `reads_floats`, and so whole numbers are cast too.
    One that is made of others casts part by part, `cast_rows`.
    """
    if offers(owner, "cast_rows"):
        return owner.cast_rows(data, dtype)
    return (_tree.cast_data if told(owner, "reads_floats", False) else _tree.cast_floats_of)(data, dtype)


def readable(owner: Any, data: Data) -> Data:
    """The data with a number wherever an entry may be missing."""
    return _or_itself(owner, "readable", data)


def informative(owner: Any, data: Data) -> Array | None:
    """Which rows say something about the params: (n,); None for all."""
    return _if_offered(owner, "informative", data)


def total_units(owner: Any, data: Data, sample_weight: Array | None) -> Array:
    """Σ sample weights times what each row counts, such as the steps of a series; the number of rows: ()."""
    own = _if_offered(owner, "units", data)
    if own is None:
        return jnp.asarray(_tree.n_rows(data)) if sample_weight is None else jnp.sum(sample_weight)
    return jnp.sum(own) if sample_weight is None else jnp.sum(jnp.where(sample_weight > 0, sample_weight * own, 0))


def points(family: Any, x: Data) -> Data:
    """Rows as points of a Euclidean space, for k-means."""
    return _or_itself(family, "points", x)


def supported(family: Any, x: Data) -> tuple[Data, Array | None]:
    """Rows with legal entries in the place of others, and which rows were legal: (n,), None for all."""
    return family.supported(x) if offers(family, "supported") else (x, None)


def validate(owner: Any, params: Params, data: Data, *more: Any) -> None:
    """Raises a ValueError or TypeError if params do not fit the owner and the data."""
    _if_offered(owner, "validate", params, data, *more)


def validate_data(owner: Any, data: Data) -> None:
    """Raises a ValueError if the shapes of the data do not fit the owner."""
    _if_offered(owner, "validate_data", data)


def check_data(owner: Any, data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError on concrete rows that the owner cannot have."""
    _if_offered(owner, "check_data", data, sample_weight)


def check_table(owner: Any, data: Data, sample_weight: Array | None) -> None:
    """Raises a ValueError on concrete data that as a whole do not determine the params."""
    _if_offered(owner, "check_table", data, sample_weight)


# --- what is exchangeable


def n_components(model: Any, otherwise: Any = None) -> Any:
    """k, of a model that has components."""
    return told(model, "n_components", otherwise)


def at_floor(family: Any, bank: Params, counts: Array) -> Array | None:
    """Which components lie at the floor, given the weights of their rows (k,): (k,); None of a family without one."""
    return _if_offered(family, "at_floor", bank, counts)


def eigenvalues(family: Any, bank: Params) -> Array | None:
    """Of the covariances, leading with the components; None of a family without any."""
    return _if_offered(family, "eigenvalues", bank)


def component_axes(owner: Any) -> Params | None:
    """Params-shaped: 0 where a leaf leads with the components; None where they are not exchangeable.

    (0, 1) of a leaf that has two such axes, as transitions from one to another.
    """
    return _if_offered(owner, "component_axes")


def relabelled(owner: Any, order: Array) -> Any:
    """The owner of params whose components were taken in this order."""
    return owner.relabelled(order) if offers(owner, "relabelled") else owner


# --- prior, starts, health


def log_prior(model: Any, params: Params) -> Array:
    """The model's log prior, 0 if it has none."""
    own = told(model, "log_prior", None)  # a field of some models, None where there is none
    if own is not None:
        return own(params)
    return jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))


def init(model: Any, key: Key, data: Data, sample_weight: Array | None, method: Any) -> Params:
    """Start params of the model.

    Raises:
        ValueError: if the model has no `init`.
    """
    if not offers(model, "init"):
        raise ValueError(
            f"{type(model).__name__}: expected a method init(key, data, sample_weight, method) to draw starts from, "
            "got none; write one, or pass start params to fit or fit_batch."
        )
    return model.init(key, data, sample_weight, method)


def init_bound(bound: Any, key: Key, data: Data, sample_weight: Array | None, method: Any) -> Params:
    """Start params, of a model that is bound to these data.

    Raises:
        ValueError: as `init`.
    """
    draw = bound.init_bound if offers(bound, "init_bound") else partial(init, bound)
    return draw(key, data, sample_weight, method)


def health(owner: Any, params: Params, *more: Any) -> Array:
    """DEGENERATE where something has no density, RUNNING otherwise: int32 ()."""
    return owner.health(params, *more) if offers(owner, "health") else jnp.asarray(Status.RUNNING, jnp.int32)


def unresolved(model: Any, params: Params, data: Data, plan: Any) -> Array | None:
    """Rows of which the objective cannot be trusted: (n,); None of a model that resolves all."""
    return _if_offered(model, "unresolved", params, data, plan)


def min_rows(model: Any) -> Any:
    """The fewest rows of positive weight that determine the params."""
    return model.min_rows() if offers(model, "min_rows") else 1


def evaluated_with_size(
    model: Any, params: Params, data: Data, sample_weight: Array | None
) -> tuple[Stats, Array, Array]:
    """Statistics, the objective (log-likelihood + log prior), and the size of its terms, see `StepInfo`."""
    prior = log_prior(model, params)
    if offers(model, "e_step_and_size"):
        stats, log_lik, size = model.e_step_and_size(params, data, sample_weight)
    else:
        stats, log_lik = model.e_step(params, data, sample_weight)
        size = jnp.abs(log_lik)
    return stats, log_lik + prior, size + jnp.abs(prior)


# --- algorithms


def by_rows(algorithm: Any) -> bool:
    """Whether the algorithm needs rows as they are, and statistics that mean the same at every step."""
    return told(algorithm, "by_rows", False)


def has_fixed_length(algorithm: Any) -> bool:
    """Whether a fit runs max_iter iterations, whatever a stopping rule says, and ends as CONVERGED."""
    return offers(algorithm, "final")


def for_lane(algorithm: Any, number: Array) -> Any:
    """The algorithm with random numbers of its own for the lane of this number, (); itself if it draws none."""
    return algorithm.for_lane(number) if offers(algorithm, "for_lane") else algorithm
