"""Write the joint, get EM: a model from log p(x, z | θ) of one observation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key, Params
from ..bijections import constraints_of, ordered, positive, positive_definite, real, simplex, softplus, unit_interval
from ..contracts.functions import GaussHermite, PerRow, as_function, check_nodes, is_quadrature
from ..contracts.space import Coordinates
from ..fold.chunks import FoldPlan, Rows
from ..fold.climb import Truncated, check_ascent
from ..fold.closed import Block, explained
from ..fold.folded import Folded
from ..fold.present import present_rows
from ..fold.sources import keep_rows
from ..latent.finite import Soft, posterior, unlabelled
from ..latent.starts import Initializer, start_arguments
from ..numerics import tree as _tree
from ..numerics.affine import is_affine
from ..numerics.arguments import as_count, as_rows
from ..numerics.linalg import dot
from ..numerics.log_entries import LOGS, Entry
from ..numerics.log_linear import entries_of
from ..numerics.separable import is_separable
from ._joint_checks import check_shapes, check_start

_FEW = 8  # coordinates, of which a whole curvature costs nothing
_ON_ONE_NODE = 0.95  # of a normal posterior at a node: its deviation is 0.42 of the distance to the next


@_tree.register
@dataclass(frozen=True)
class LogJoint(Coordinates):
    """A latent-variable model given by its log joint density, and nothing else.

    The E step is the softmax over the latent states; the M step raises Q = Σ_i Σ_z r_iz log p(x_i, z | θ) + log prior.
    A leaf on a `simplex` that enters as a sum of logarithms, Σ c log θ, has its maximum in closed form, c / Σ c, by one
    gradient (Baum & Eagon 1967): that is found in the operations of the function, and `explain` says of which leaves.
    A floor such as `jnp.maximum(p, 1e-300)` may be under the logarithm. The other leaves climb in free coordinates, by
    autodiff. Rows may be chunked, weighted, labelled and sharded as for any model.

    Attributes:
        log_joint: function (params, x) -> (n_states,), log p(x, z | θ) of one observation x, a leaf or tree without
            the leading axis, whose whole numbers stay whole: they may be indices; −inf for a state that is impossible.
            Defined at module level: a fresh lambda or closure compiles anew. Hyper-parameters that shall have new
            values or derivatives travel in a `jax.tree_util.Partial`. Several latent variables are enumerated jointly,
            z the number of the combination.
        n_states: number of latent states.
        constraints: prefix tree over the params of `jaxem.bijections`; None is unconstrained.
        m_step: `Truncated(n)` takes a few climbing steps, `Full()` climbs to the top; of what has no closed form.
        log_prior: function params -> (), or None.
        start: params from which `init` sets out, e.g. for `fit_restarts`; their values matter little.

    Example:
        >>> import jax, jax.numpy as jnp, jaxem
        >>> def log_joint(theta, cell):  # Dempster, Laird & Rubin (1977): five cells, the first two seen as one
        ...     cells = jnp.stack([0.5 + 0 * theta, theta / 4, (1 - theta) / 4, (1 - theta) / 4, theta / 4])
        ...     seen = jnp.array([0, 0, 1, 2, 3]) == cell
        ...     return jnp.where(seen, jnp.log(cells), -jnp.inf)
        >>> model = jaxem.LogJoint(log_joint, 5, constraints=jaxem.bijections.unit_interval, m_step=jaxem.Full())
        >>> counts = jnp.array([125.0, 18.0, 20.0, 34.0])
        >>> result = jaxem.fit(model, jnp.array(0.5), jnp.arange(4), sample_weight=counts)
        >>> round(float(result.params), 2)
        0.63
    """

    log_joint: Any
    n_states: int = field(metadata={"static": True})
    constraints: Any = field(metadata={"static": True}, default=None)
    m_step: Any = Truncated(3)
    log_prior: Any = None
    start: Params | None = None

    def __post_init__(self) -> None:
        as_count("n_states", self.n_states)
        check_ascent(self.m_step)
        if not isinstance(self.log_joint, PerRow):
            object.__setattr__(self, "log_joint", PerRow(as_function(self.log_joint, "log_joint")))
        if self.log_prior is not None:
            object.__setattr__(self, "log_prior", as_function(self.log_prior, "log_prior"))
        object.__setattr__(self, "constraints", constraints_of(self.constraints))

    @classmethod
    def quadrature(cls, log_conditional: Callable, n_nodes: int = 21, **options: Any) -> Self:
        """A model with one continuous latent variable z ~ N(0, 1) an observation, by Gauss–Hermite quadrature.

        Item-response models and random intercepts: a latent of other mean and scale is μ + σz inside the function.

        Args:
            log_conditional: function (params, x, z) -> (), log p(x | z, θ).
            n_nodes: of the rule; the likelihood is that of a latent on these nodes. They lie about π/√n_nodes apart:
                posteriors of z much narrower than that need more of them. A fit in which more than a twentieth of the
                units have 0.95 of their posterior on one node ends as UNRESOLVED.
            options: the other fields.

        Raises:
            ValueError: if there is no such rule in floating point.
        """
        n_nodes = as_count("n_nodes", n_nodes)
        check_nodes(n_nodes)
        return cls(GaussHermite(log_conditional, n_nodes), n_nodes, **options)

    @property
    def n_components(self) -> int:
        """What initialisers divide rows among."""
        return self.n_states

    @property
    def space(self) -> Any:
        """The constraints."""
        return self.constraints

    def n_parameters(self, params: Params) -> int:
        """Free coordinates, counted."""
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.unconstrain, params)))

    def blocks_of(self, params: Params, data: Data) -> Any:
        """How each leaf of the params enters the joint, and whether its M step is therefore in closed form.

        Found from the operations of `log_joint` and `log_prior`, whatever the values: traced once.
        """
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
        entries = entries_of(self.log_joint.one, params, row)
        prior = [None] * len(entries) if self.log_prior is None else entries_of(self.log_prior, params)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        each = zip(paths, self.constraints.leaves(params), entries, prior, strict=True)
        return tuple(_block(*parts) for parts in each)

    def items_of(self, params: Params, data: Data, stays: tuple[bool, ...]) -> int:
        """Of how many items the leaves that climb are made, if nothing in the joint touches two of them.

        Items of a test, columns: their leading axis. 1 where they are not, or few coordinates make it no matter.
        """
        leaves = jax.tree.leaves(params)
        climbs = [leaf for leaf, c in zip(leaves, stays, strict=True) if not c]
        sizes = {jnp.shape(leaf)[:1] for leaf in climbs}
        if len(sizes) != 1 or sizes == {()} or sum(jnp.size(leaf) for leaf in climbs) <= _FEW:
            return 1
        bijections = [b for b, c in zip(self.constraints.leaves(params), stays, strict=True) if not c]
        free = [jax.eval_shape(b.to_free, leaf).shape for b, leaf in zip(bijections, climbs, strict=True)]
        (items,) = sizes.pop()
        if items < 2 or any(shape[:1] != (items,) for shape in free) or _mix_items(bijections, climbs):
            return 1
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
        among = [not c for c in stays]
        alone = is_separable(self.log_joint.one, params, row, among=among)
        if alone and self.log_prior is not None:
            alone = is_separable(self.log_prior, params, among=among)
        return items if alone else 1

    def condensed(self, params: Params, stats: Rows) -> Rows:
        """The statistics as one mean row for each state, where the joint is affine in the rows; else as they are.

        Items answered right or wrong, counts of words: Σ_i r_iz log p(x_i, z) = (Σ_i r_iz) log p(x̄_z, z), exactly.
        """
        n, k = stats.responsibilities.shape
        data = stats.data
        numbers = all(jnp.issubdtype(leaf.dtype, jnp.number) for leaf in jax.tree.leaves(data))
        if 2 * k > n or not numbers or not self._is_affine(params, data):
            return stats
        dtype = stats.responsibilities.dtype

        def sums(rows: Data, r: Array) -> tuple[Array, Data]:
            there = jnp.sum(r, 1) > 0
            flat = lambda leaf: jnp.where(there[:, None], leaf.reshape(len(there), -1), 0).astype(dtype)  # noqa: E731
            return jnp.sum(r, 0), jax.tree.map(lambda leaf: dot(r.T, flat(leaf)), rows)

        weight, total = stats.total(sums)

        def mean(leaf: Array, like: Array) -> Array:
            return (leaf / jnp.where(weight > 0, weight, 1)[:, None]).reshape(k, *like.shape[1:])

        return Rows(jax.tree.map(mean, total, data), jnp.diag(weight))

    def _is_affine(self, params: Params, data: Data) -> bool:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], dtype), data)
        try:
            return is_affine(self.log_joint.one, params, row)
        except TypeError:  # whole numbers that are indices
            return False

    def explain(self, params: Params, data: Data) -> str:
        """What the M step does with each leaf of the params, and why: one line each.

        Args:
            params: as in `fit`; only shapes matter.
            data: as in `fit`.

        Example:
            >>> import jax.numpy as jnp, jaxem
            >>> def log_joint(p, x):  # shares of two exponential lifetimes
            ...     return jnp.log(p["share"]) + jnp.log(p["rate"]) - p["rate"] * x
            >>> constraints = {"share": jaxem.bijections.simplex, "rate": jaxem.bijections.positive}
            >>> model = jaxem.LogJoint(log_joint, 2, constraints)
            >>> params = {"share": jnp.array([0.5, 0.5]), "rate": jnp.array([1.0, 2.0])}
            >>> print(model.explain(params, jnp.arange(3.0)))
            ['rate']: climbs: in positive, not on a simplex
            ['share']: closed: a simplex, and a sum of its logarithms
        """
        return explained(self.blocks_of(params, unlabelled(as_rows(data))))

    def with_slopes(self, params: Params) -> Params:
        """Params whose zeros on a simplex, where a logarithm has no slope, are tiny, and constants: they stay zero."""
        off = lambda leaf: jnp.where(leaf > 0, leaf, jnp.finfo(leaf.dtype).tiny)  # noqa: E731
        leaves, structure = jax.tree.flatten(params)
        each = zip(leaves, self.constraints.leaves(params), strict=True)
        return jax.tree.unflatten(structure, [off(leaf) if b is simplex else leaf for leaf, b in each])

    def responsibilities(self, params: Params, data: Data) -> Array:
        """p(z | x_i): (n, n_states); NaN in a row that no state explains."""
        self.check_params(params)
        return posterior(self.log_joint(params, as_rows(data)))

    def log_prob(self, params: Params, data: Data) -> Array:
        """log p(x_i): (n,)."""
        self.check_params(params)
        return Soft()(self.log_joint(params, as_rows(data)))[1]

    def unresolved(self, params: Params, data: Data, plan: FoldPlan) -> Array | None:
        """Which rows have nearly all of their posterior on one node of the quadrature: (n,). None without one."""
        if not is_quadrature(self.log_joint):
            return None
        r = Soft()(Folded(self, plan).log_joint_of_all(params, unlabelled(data)))[0]
        return jnp.max(r, 1) > _ON_ONE_NODE

    def init(
        self, key: Key, data: Data, sample_weight: Array | None = None, method: Initializer | None = None
    ) -> Params:
        """Start params: responsibilities by `method` (default `KMeans()`) among the states possible, then an M step.

        Args:
            key: of `jax.random`.
            data: as in `fit`.
            sample_weight: (n,) or None.
            method: as in `Mixture.init`.

        Raises:
            ValueError: if `start` is None: the function alone does not say what params look like.
        """
        if self.start is None:
            raise ValueError(
                f"start: expected params from which to draw starts, got None; write LogJoint(…, start=params), "
                f"or pass start params to fit or fit_batch. constraints: {self.constraints}"
            )
        return _init(*start_arguments(self, key, unlabelled(data), sample_weight, method))

    def check_params(self, params: Params, *, lanes: bool = False) -> None:
        """Raises a ValueError that names what of concrete params violates the constraints."""
        self.constraints.check(params, lanes=lanes)

    def validate(self, params: Params, data: Data) -> None:
        """Raises a ValueError or TypeError if params, constraints and function do not fit each other."""
        self.constraints.check(params)
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), unlabelled(data))
        check_shapes(self, params, row)

    def check_start(self, params: Params, data: Data, sample_weight: Array | None) -> None:
        """Raises a ValueError that names the first rows with NaN, or an index beyond an array, at the start."""
        check_start(self, params, data, sample_weight)


def _mix_items(bijections: Any, leaves: Any) -> bool:
    """Whether a bijection may mix the entries of the leading axis, as it maps trailing ones."""
    elementwise = {real, positive, softplus, unit_interval}
    for bijection, leaf in zip(bijections, leaves, strict=True):
        known = bijection in elementwise or bijection.name.startswith(("interval(", "greater_than("))
        mixes_few = bijection in (simplex, ordered, positive_definite) and jnp.ndim(leaf) > bijection.trailing
        if not known and not mixes_few:
            return True
    return False


def _block(name: str, bijection: Any, joint: Entry, prior: Entry | None) -> Block:
    for where, entry in (("log_joint", joint), ("log_prior", prior)):
        if entry is not None and bijection is simplex and (entry.form != LOGS or entry.sign < 0):
            why = entry.why or "a negative coefficient"
            return Block(name, False, False, f"climbs: no sum of its logarithms in {where}, but {why}")
    if bijection is not simplex:
        return Block(name, False, False, f"climbs: in {bijection.name}, not on a simplex")
    floored = joint.floored or (prior is not None and prior.floored)
    return Block(name, True, floored, "closed: a simplex, and a sum of its logarithms")


@jax.jit
def _init(model: LogJoint, key: Key, data: Data, weight: Array | None, method: Initializer) -> Params:
    data = present_rows(data, weight)
    assigned = method(key, _tree.side_by_side(data), model.n_states, weight, None)
    log_joint = model.log_joint(model.start, data)
    chosen = jax.nn.one_hot(assigned, model.n_states, dtype=log_joint.dtype) if assigned.ndim == 1 else assigned
    chosen = jnp.where(log_joint > -jnp.inf, chosen, 0)
    total = jnp.sum(chosen, 1, keepdims=True)
    responsibilities = jnp.where(total > 0, chosen / jnp.where(total > 0, total, 1), Soft()(log_joint)[0])
    if weight is not None:
        responsibilities = responsibilities * weight[:, None]
    stats = keep_rows(model, None, data, responsibilities, FoldPlan())
    return Folded(model).m_step(model.start, stats)
