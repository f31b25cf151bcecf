"""The names of all that a model or family can offer besides what it must, and a user's class held against them."""

import dataclasses
import difflib
import functools
from collections.abc import Iterator
from typing import Any

# of a model or a family: what it is for, where there is more to say than its absence
OPTIONAL = {
    "active": "which components are on, (k,) booleans",
    "additive": "whether statistics are sums over rows",
    "among": "the family of one of so many components",
    "assigned": "rows whose state is known",
    "at_floor": "which components lie at the floor",
    "bind": "what is taken from the data before the loop, bind(data, sample_weight)",
    "blocks_of": "how each leaf of the params enters, blocks_of(params, data)",
    "by_component": "a function of values of the components and of a leaf, leaf by leaf",
    "cast_rows": "the data in the dtype that is read",
    "check_data": "a ValueError on rows that are not legal, check_data(data, sample_weight)",
    "check_params": "a ValueError on params that are not legal, check_params(params, *, lanes)",
    "check_start": "a ValueError on rows that params cannot explain, check_start(params, data, sample_weight)",
    "check_table": "a ValueError on rows that are not legal together, check_table(data, sample_weight)",
    "claims": "whether a row that this family explains is a point that others hardly explain",
    "closed_m_step": "whether the M step is in closed form",
    "component_axes": "params-shaped: 0 where a leaf leads with the components, None where they share it",
    "component_counts": "the weight of each component in the data",
    "condensed": "the same statistics in fewer rows, condensed(params, stats)",
    "conditional": "whether rows are drawn given some of their columns",
    "constrain": "params from free coordinates, constrain(free), the inverse of unconstrain(params)",
    "coordinates": "the free coordinates as a vector, and the way back",
    "costly_features": "whether `prepare` takes much longer than to read the data",
    "count_parameters": "the number of free parameters of the active components",
    "e_step_by_rule": "an E step that takes rules, e_step_by_rule(params, data, sample_weight, rule, key)",
    "eigenvalues": "of the covariances, (k, d)",
    "elements_per_row": "of the largest array that is made of a row",
    "estimate_held": "the mode with some entries held, estimate_held(bank, stats, held, active)",
    "expected_log_joint": "Q(params; stats), which is climbed, expected_log_joint(params, stats)",
    "expected_log_prob": "the family's part of Q, expected_log_prob(bank, stats)",
    "family": "of the components",
    "feasible": "whether params are allowed, feasible(params)",
    "features": "T of a row about the components",
    "frozen_coordinates": "which free coordinates are held",
    "gate": "what the weights depend on",
    "has_fast_path": "whether there are two paths through the same densities",
    "has_proper_prior": "whether a component without rows has a mode",
    "health": "a status of params, health(params)",
    "held": "which free coordinates belong to components that are off",
    "holding": "the model that holds what params have",
    "imposed": "params put where they have to be",
    "informative": "which rows say something, informative(data)",
    "init": "start params, init(key, data, sample_weight, method)",
    "init_bound": "`init` of a model that is bound to these data",
    "items_of": "of how many items the leaves that climb are made, items_of(params, data, stays)",
    "leafwise": "the model whose free coordinates are leaf by leaf",
    "linearised": "the family with features about each component",
    "localised": "the model of params relative to the data",
    "log_given": "log p(x | z) of rows, log_given(params, data), (n, k), where rows of an id share a state",
    "log_prior": "the log prior of params, log_prior(params)",
    "log_prior_where": "the log prior of a bank by component",
    "log_state": "log p(z), log_state(params, data), (1, k) or (n, k), which counts once for an id",
    "m_step_held": "the mode of Q + log prior with some entries held, m_step_held(params, stats, held)",
    "may_underflow": "whether the fast path may lose a number that `trusted` does not see, and end in NaN",
    "merged": "the model bound to two batches",
    "merged_weight": "what stands behind the constants of two batches",
    "min_rows": "the fewest rows that determine the params",
    "n_components": "k",
    "n_features": "the length of T",
    "n_parameters": "the number of free parameters, n_parameters(params); of a family n_parameters(bank, n_components)",
    "n_parameters_held": "the number of free parameters beside some entries, n_parameters_held(params, held)",
    "natural": "natural parameters of T",
    "parts": "the families inside of a family",
    "points": "rows as points of a Euclidean space, for k-means",
    "prepare": "the form of the data in which densities are fastest",
    "projected": "params put back on constraints, projected(params, near)",
    "readable": "the data without what may be missing",
    "reads_floats": "whether whole numbers arrive as floats",
    "reads_labels": "whether e_step_by_rule takes labelled data",
    "recentred": "the model on its stable path about these params",
    "relabelled": "the model of components taken in another order",
    "responsibilities": "the posterior of the states",
    "restricted": "the model on the boundary where params lie",
    "rows_at_once": "how many rows an E step of its own works on at a time, rows_at_once(data)",
    "rows_add": "whether densities are linear in prepared rows, so that those of an id may be added",
    "row_slopes": "slopes of log p of a row in the weights, and log p, row_slopes(params, data)",
    "sample": "draws, sample(params, key, n); of a family sample(bank, key, z)",
    "sample_like": "draws in the place of the data's rows, sample_like(params, key, data)",
    "shares": "how much of the data each component has, shares(params), (k,)",
    "sizes": "by which changes of params are measured, sizes(params)",
    "space": "where params live: bijections, a prefix tree of the params, for free coordinates and all that follows",
    "stats_of_products": "statistics from products of features",
    "supported": "rows with legal entries in the place of others, and which are not",
    "to_global": "params as users have them",
    "to_local": "params relative to the data",
    "trusted": "whether the fast path keeps its digits, trusted(params)",
    "unconstrain": "free coordinates, unconstrain(params), with constrain(free), the way back",
    "units": "how many units of information each row is, units(data), (n,); ones where it is not told",
    "unresolved": "rows of which the objective cannot be trusted",
    "validate": "a ValueError where params do not fit the data, validate(params, data)",
    "validate_data": "a ValueError where the shape of the data does not fit, validate_data(data)",
    "weigh": "what stands behind the model's constants",
    "with_states": "statistics with states counted by id, with_states(params, stats, data, responsibilities)",
    "with_slopes": "params off the boundary where the objective has no slope, with_slopes(params)",
}
_REQUIRED = ("e_step", "estimate", "log_joint", "log_prob", "m_step", "statistics")
_ALIKE = 0.9  # of difflib's ratio: one letter wrong in ten


def check_names(owner: Any) -> None:
    """Raises a ValueError where a user's class, or one inside of it, seems to misspell what somebody looks for."""
    for part in (owner, *_parts(owner)):
        for name, meant in _misspelt(type(part)):
            raise ValueError(
                f"{type(part).__name__} has {name}, for which nobody looks, and not {meant}, which it resembles; "
                f"rename it, or let it begin with an underscore. {meant}: {OPTIONAL.get(meant, 'see the protocol')}."
            )


def _parts(owner: Any) -> Iterator[Any]:
    """The models, families and priors that an object is made of, itself among them, at any depth."""
    if dataclasses.is_dataclass(owner):
        yield owner
        inside: Any = (getattr(owner, field.name) for field in dataclasses.fields(owner))
    elif isinstance(owner, dict):
        inside = owner.values()
    else:
        inside = owner if isinstance(owner, (tuple, list)) else ()
    for part in inside:
        yield from _parts(part)


@functools.cache
def _misspelt(cls: type) -> tuple[tuple[str, str], ...]:
    package = __name__.partition(".")[0]
    own = [base for base in cls.__mro__ if base is not object and base.__module__.partition(".")[0] != package]
    written = {name for base in own for name in vars(base) if not name.startswith("_")}
    written -= {*getattr(cls, "__dataclass_fields__", ()), *OPTIONAL, *_REQUIRED}
    absent = [known for known in (*OPTIONAL, *_REQUIRED) if not hasattr(cls, known)]
    return tuple(
        (name, meant) for name in sorted(written) for meant in difflib.get_close_matches(name, absent, 1, _ALIKE)
    )
