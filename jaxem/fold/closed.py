"""M steps in closed form, of the params of a written joint that enter it as a sum of logarithms on a simplex.

Q(θ) + log prior = Σ_j c_j log θ_j + what does not depend on θ, whose maximum on the simplex is c / Σ c, with
c_j = θ_j ∂Q/∂θ_j, the growth transform of Baum & Eagon (1967). As c does not depend on θ, it is taken where nothing is
zero; where a floor makes it depend on θ, at θ: that raises Q, if not to its top.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._typing import Array, Data, Params
from ..contracts import capabilities as ask
from ..latent.finite import unlabelled
from .chunks import Rows


class Block(NamedTuple):
    """A leaf of the params, as its M step sees it.

    Attributes:
        name: its path.
        closed: whether its M step is c / Σ c.
        floored: whether c depends on where the params are, as there is a floor under them.
        why: for people.
        held: whether it stays as it is.
    """

    name: str
    closed: bool
    floored: bool
    why: str
    held: bool = False

    @property
    def stays(self) -> bool:
        """Whether nothing is left of it to climb."""
        return self.closed or self.held

    def as_held(self) -> "Block":
        """The block where all of it is held."""
        return Block(self.name, False, False, "held", held=True)


def explained(blocks: Iterable[Block]) -> str:
    """What the M step does with each block: one line each."""
    return "\n".join(f"{block.name or 'params'}: {block.why}" for block in blocks)


def blocks_of(model: Any, params: Params, data: Data) -> tuple[Block, ...] | None:
    """The blocks of a model that tells them, leaf by leaf; None of another."""
    if not ask.offers(model, "blocks_of"):
        return None
    return model.blocks_of(params, unlabelled(data))


def closed_part(
    model: Any, params: Params, stats: Any, q: Callable[[Params], Array]
) -> tuple[Params, tuple[bool, ...] | None]:
    """The params with those of closed blocks at the maximum of q given the others, and which leaves stay then."""
    blocks = blocks_of(model, params, stats.data) if isinstance(stats, Rows) else None
    if blocks is None or not any(block.stays for block in blocks):
        return params, None
    stays = tuple(block.stays for block in blocks)
    if not any(block.closed for block in blocks):
        return params, stays
    leaves, structure = jax.tree.flatten(params)
    at = [_place(block, leaf) for block, leaf in zip(blocks, leaves, strict=True) if block.closed]
    which = tuple(block.closed for block in blocks)

    def with_blocks(own: list[Array]) -> Params:
        rest = iter(own)
        return jax.tree.unflatten(structure, [next(rest) if c else leaf for c, leaf in zip(which, leaves, strict=True)])

    slopes = jax.grad(lambda own: q(with_blocks(own)))(at)
    old = [leaf for c, leaf in zip(which, leaves, strict=True) if c]
    each = zip(at, slopes, old, strict=True)
    return with_blocks([_mode(jnp.where(p > 0, p * slope, 0), leaf) for p, slope, leaf in each]), stays


def _place(block: Block, leaf: Array) -> Array:
    """Where c is taken."""
    return leaf if block.floored else jnp.full_like(leaf, 0.5)


def _mode(counts: Array, old: Array) -> Array:
    """c / Σ c; the old values where nothing is counted, NaN where there is no maximum as a count is negative."""
    total, old = jnp.sum(counts, -1, keepdims=True), lax.stop_gradient(old)
    seen = total > 0
    mode = jnp.where(seen, counts / jnp.where(seen, total, 1), old)
    return jnp.where(jnp.any(counts < 0, -1, keepdims=True), jnp.nan, mode)
