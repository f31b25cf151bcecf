"""Information criteria as methods of a fitted model."""

from typing import Any

from .._typing import Array, Data
from ..fold.criteria import criterion_of


class Criteria:
    """The criteria of a model with `n_parameters`, and `log_joint` for the last two."""

    def bic(self, params: Any, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + p·log(total weight): lower is better (Schwarz 1978)."""
        return criterion_of("bic", self, params, data, sample_weight)

    def aic(self, params: Any, data: Data, sample_weight: Array | None = None) -> Array:
        """−2 log-likelihood + 2p: lower is better (Akaike 1974)."""
        return criterion_of("aic", self, params, data, sample_weight)

    def icl(self, params: Any, data: Data, sample_weight: Array | None = None) -> Array:
        """BIC − 2·Σ_i log max_j r_ij: lower is better (Biernacki, Celeux & Govaert 2000); as mclust's, negated."""
        return criterion_of("icl", self, params, data, sample_weight)

    def icl_entropy(self, params: Any, data: Data, sample_weight: Array | None = None) -> Array:
        """BIC + 2·entropy of the responsibilities: lower is better (McLachlan & Peel 2000, section 6.10)."""
        return criterion_of("icl_entropy", self, params, data, sample_weight)
