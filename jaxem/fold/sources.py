"""Where the rows of an E step are: in memory, prepared once, or nowhere any more, as their sums are all there is."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, Key, Params, Stats
from ..contracts import capabilities as ask
from ..latent.finite import Labelled, Rule, Soft, in_place_of, restrict, unlabelled
from ..numerics import tree as _tree
from ..numerics.linalg import components_first
from .chunks import FoldPlan, Rows, with_plan
from .part import Chunks, Part, compensated_sum, key_of_part
from .present import present_rows


class Source:
    """What stands in the place of data in `Folded.e_step`; made by nobody but `fold`, the loop and streams."""

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """Statistics and objective of all rows; `folded` has the model, and says how sums are cut."""
        raise NotImplementedError


@_tree.register
@dataclass(frozen=True)
class InMemory(Source):
    """Raw rows, or `Labelled` ones; read in chunks, prepared anew in each."""

    data: Data
    sample_weight: Array | None

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """See `Source`."""
        if not is_additive(folded.model):
            return self._keep_rows(folded, params, rule, key)

        def one_chunk(model: Any, params: Params, part: Part) -> tuple[Stats, Array]:
            if folded.can_prepare:
                part = replace(part, data=prepare(model, part.data, columns_first=True))
            return e_step_of(model, params, part)

        whole = Part(self.data, self.sample_weight, rule, key)
        return folded.total(one_chunk, params, whole, folded.chunk_rows(params, self.data))

    def _keep_rows(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """The E step of a model whose statistics are the rows themselves."""
        data = present_rows(self.data, self.sample_weight)
        if ask.offers(folded.model, "e_step"):
            stats, objective = e_step_of(folded.model, params, Part(data, self.sample_weight, rule, key))
            return with_plan(stats, folded.plan), objective
        inner = unlabelled(data)
        log_joint = folded.log_joint_of_all(params, inner)
        # the density of an impossible state has no slope that anybody may ask for
        log_joint = restrict(jnp.where(log_joint == -jnp.inf, -jnp.inf, log_joint), data)
        responsibilities, objective = weighted(*rule(log_joint, key), self.sample_weight)
        return keep_rows(folded.model, params, inner, responsibilities, folded.plan), objective


@_tree.register
@dataclass(frozen=True)
class Prepared(Source):
    """Rows prepared once, before the loop, in one piece."""

    data: Data
    sample_weight: Array | None

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """See `Source`."""
        return folded.over_shards(e_step_of, params, Part(self.data, self.sample_weight, rule, key))


@_tree.register
@dataclass(frozen=True)
class PreparedChunks(Source):
    """Rows prepared once in chunks, with which every leaf leads.

    Attributes:
        data: prepared rows.
        sample_weight: (chunks, rows).
        chunks: how the rows were cut.
    """

    data: Data
    sample_weight: Array
    chunks: Chunks = field(metadata={"static": True})

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """See `Source`."""

        def one(i: Array) -> tuple[Stats, Array]:
            rows, weight = jax.tree.map(lambda leaf: leaf[i], (self.data, self.sample_weight))
            part = Part(rows, weight, self.chunks.rule(rule, i), key_of_part(key, i))
            return e_step_of(folded.model, params, part)

        return compensated_sum(one, self.chunks.number)


def prepared_chunks(model: Any, whole: Part, rows: int) -> PreparedChunks:
    """All rows prepared, chunk by chunk."""
    chunks = Chunks(_tree.n_rows(whole.data), rows)

    def one(i: Array) -> tuple[Data, Array | None]:
        part = chunks.part(whole, i)
        return prepare(model, part.data, columns_first=True), part.sample_weight

    rows_of_chunks, weights = lax.map(one, jnp.arange(chunks.number, dtype=jnp.int32))
    return PreparedChunks(rows_of_chunks, weights, chunks)


@_tree.register
@dataclass(frozen=True)
class Summed(Source):
    """The outcome of one E step over data that are not here, such as a stream's.

    Attributes:
        stats, objective: as an E step returns them, for `Soft`.
        total: weight of all rows, ().
        n_present: rows of positive weight, ().
        params: at which they were taken.
    """

    stats: Stats
    objective: Any
    total: Array
    n_present: Array
    params: Any = None

    def e_step(self, folded: Any, params: Params, rule: Rule, key: Key | None) -> tuple[Stats, Array]:
        """See `Source`."""
        if params is not self.params or not isinstance(rule, Soft):
            raise ValueError(
                "algorithm: expected one that takes one E step an iteration, with Soft() responsibilities, as the data "
                "are read once an iteration; got one that takes others. Use EM(), SQUAREM(), Anderson() or "
                "ParabolicEM()."
            )
        return self.stats, self.objective


def is_additive(model: Any) -> bool:
    """Whether the statistics of two chunks add; otherwise they are `Rows`."""
    return ask.told(model, "additive", ask.offers(model, "e_step") or ask.offers(model, "statistics"))


def keep_rows(model: Any, params: Params | None, data: Data, responsibilities: Array, plan: FoldPlan) -> Stats:
    """The statistics of a model that is not additive."""
    if ask.offers(model, "statistics"):
        return with_plan(model.statistics(params, data, responsibilities), plan)
    return Rows(data, responsibilities, plan)


def prepare(model: Any, data: Data, columns_first: bool) -> Data:
    """The rows in the form that the model's E step is fastest with."""
    prepared = model.prepare(unlabelled(data), columns_first=columns_first)
    return in_place_of(data, prepared)


def e_step_of(model: Any, params: Params, part: Part) -> tuple[Stats, Array]:
    """The E step of rows that are all at hand."""
    data, weight = part.data, part.sample_weight
    readable = not isinstance(data, Labelled) or ask.told(model, "reads_labels", False)
    if ask.offers(model, "e_step_by_rule") and readable:
        return model.e_step_by_rule(params, data, weight, part.rule, part.key)
    if ask.offers(model, "e_step"):
        if not isinstance(part.rule, Soft) or isinstance(data, Labelled):
            raise ValueError(
                f"{type(model).__name__}: rules other than Soft() and labelled data need log_joint and statistics, "
                "got a model with an e_step of its own; write those two methods instead of e_step."
            )
        ones = lambda: jnp.ones(_tree.n_rows(data), _tree.float_dtype(data))  # noqa: E731
        return model.e_step(params, data, ones() if weight is None else weight)
    inner = unlabelled(data)
    log_joint = restrict(model.log_joint(params, inner), data)
    responsibilities, objective = weighted(*part.rule(log_joint, part.key), weight)
    return model.statistics(params, inner, responsibilities), objective


def weighted(responsibilities: Array, objective: Any, weight: Array | None) -> tuple[Array, Any]:
    """Responsibilities times the sample weights, and the weighted sum of the rows' objectives."""
    if weight is None:
        return responsibilities, jax.tree.map(jnp.sum, objective)
    total = lambda rows: jnp.sum(jnp.where(weight > 0, weight * rows, 0))  # noqa: E731
    return weigh_rows(responsibilities, weight), jax.tree.map(total, objective)


def weigh_rows(responsibilities: Array, weight: Array) -> Array:
    """(n, k) times (n, 1), in the layout that the neighbours use."""
    if components_first(weight.shape[0]):
        return (responsibilities.T * weight[None]).T
    return responsibilities * weight[:, None]
