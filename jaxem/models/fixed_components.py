"""Mixtures whose components are known: the weights alone are estimated."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._typing import Array, Data, Key
from ..bijections import constraints_of, simplex
from ..contracts.functions import as_function
from ..contracts.space import Coordinates
from ..latent.finite import Soft, posterior
from ..numerics import tree as _tree
from ..numerics.arguments import as_count, as_rows


@_tree.register
@dataclass(frozen=True)
class FixedComponents(Coordinates):
    """A mixture Σ_j w_j f_j(x) of known densities; params are the weights (k,).

    The non-parametric maximum-likelihood estimate of a mixing distribution on a grid, deconvolution, shares. The
    log-likelihood is concave, with one top, at which most of many weights are zero: EM takes 10⁴ iterations to it,
    `ActiveSet()` about twenty.

    Attributes:
        log_density: function of one row x -> (k,), log f_j(x); hyper-parameters travel in a `jax.tree_util.Partial`.
        n_components: k.

    Example:
        >>> import jax.numpy as jnp, jaxem
        >>> def log_density(x):  # normal with means on a grid, unit variance
        ...     return -0.5 * jnp.square(x - jnp.linspace(-4.0, 4.0, 9))
        >>> model = jaxem.FixedComponents(log_density, 9)
        >>> x = jnp.concatenate([jnp.linspace(-4.0, 0.0, 50), jnp.linspace(1.0, 3.0, 50)])
        >>> result = jaxem.fit(model, model.init(), x, algorithm=jaxem.ActiveSet())
        >>> bool(result.converged), int(jnp.sum(result.params > 0)) < 9
        (True, True)
    """

    log_density: Any
    n_components: int = field(metadata={"static": True})

    space: ClassVar[Any] = simplex

    def __post_init__(self) -> None:
        as_count("n_components", self.n_components)
        object.__setattr__(self, "log_density", as_function(self.log_density, "log_density"))

    def log_joint(self, params: Array, data: Data) -> Array:
        """log w_j + log f_j(x_i): (n, k)."""
        return jnp.log(params)[None] + self._log_densities(params, data)

    def _log_densities(self, params: Array, data: Data) -> Array:
        return jax.vmap(self.log_density)(data).astype(params.dtype)

    def statistics(self, params: Array | None, data: Data, responsibilities: Array) -> Array:
        """How many rows each component is expected to hold: (k,)."""
        return jnp.sum(responsibilities, 0)

    def m_step(self, params: Array | None, stats: Array) -> Array:
        """Their shares."""
        return stats / jnp.sum(stats)

    def row_slopes(self, params: Array, data: Data) -> tuple[Array, Array]:
        """∂ log p(x_i) / ∂w_j = f_j(x_i) / p(x_i), (n, k), and log p(x_i), (n,): for `ActiveSet`."""
        densities = self._log_densities(params, data)
        log_prob = Soft()(jnp.log(params)[None] + densities)[1]
        return jnp.exp(densities - log_prob[:, None]), log_prob

    def init(self, key: Key | None = None, data: Any = None, sample_weight: Any = None, method: Any = None) -> Array:
        """Equal weights: the top is the same from everywhere."""
        dtype = jnp.result_type(float) if data is None else _tree.float_dtype(data)
        return jnp.full(self.n_components, 1 / self.n_components, dtype)

    def with_slopes(self, params: Array) -> Array:
        """Weights whose zeros, where a logarithm has no slope, are tiny, and constants."""
        return jnp.where(params > 0, params, jnp.finfo(params.dtype).tiny)

    def responsibilities(self, params: Array, data: Data) -> Array:
        """p(z | x_i): (n, k); NaN in a row that no component explains."""
        return posterior(self.log_joint(params, as_rows(data)))

    def log_prob(self, params: Array, data: Data) -> Array:
        """log p(x_i): (n,)."""
        return Soft()(self.log_joint(params, as_rows(data)))[1]

    def check_params(self, params: Array, *, lanes: bool = False) -> None:
        """Raises a ValueError unless concrete weights lie on the simplex."""
        constraints_of(simplex).check(params, lanes=lanes)

    def validate(self, params: Array, data: Data) -> None:
        """Raises a ValueError if weights and densities do not fit each other."""
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
        want = (self.n_components,)
        for name, got in (("params", params), ("log_density", jax.eval_shape(self.log_density, row))):
            if jnp.shape(got) != want:
                raise ValueError(f"{name}: expected shape {want}, one value a component, got {jnp.shape(got)}.")
