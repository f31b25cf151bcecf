"""How a fit ended."""

import enum

from .._typing import Array


class Status(enum.IntEnum):
    """How a fit ended; an int32 per lane. 3 to 6, 8 and 9 are failures.

    Example:
        >>> import jaxem
        >>> jaxem.Status(6).name, jaxem.Status.TOO_FEW.explanation
        ('TOO_FEW', 'fewer rows of positive weight than the model needs; use fewer components or more rows.')
    """

    RUNNING = -1
    CONVERGED = 0
    RESOLUTION = 1
    MAX_ITER = 2
    NONFINITE = 3
    DECREASED = 4
    DEGENERATE = 5
    TOO_FEW = 6
    SINGULAR = 7
    UNRESOLVED = 8
    INADMISSIBLE = 9

    @property
    def explanation(self) -> str:
        """What it means and what to do about it."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Status.RUNNING: "the fit has not ended; advance it further.",
    Status.CONVERGED: "the stopping rule is satisfied, or an algorithm of fixed length has run max_iter iterations.",
    Status.RESOLUTION: "an end as good as this dtype can tell: what is left to gain, or the last step, is below its "
    "rounding; it counts as converged, and float64 would tell more.",
    Status.MAX_ITER: "max_iter iterations did not suffice; raise max_iter or tol, or choose an accelerated algorithm.",
    Status.NONFINITE: "the objective is NaN or infinite; look for NaN or inf in the data, weights or start params.",
    Status.DECREASED: "the objective fell although the algorithm promises it cannot; "
    "the M step does not maximise Q + log prior, or rounding dominates (use float64).",
    Status.DEGENERATE: "a component has no density any more: a constant column, repeated rows, or too little data "
    "under it; use fewer components, a family with fewer parameters, a larger floor, or a prior.",
    Status.TOO_FEW: "fewer rows of positive weight than the model needs; use fewer components or more rows.",
    Status.SINGULAR: "the information matrix is not positive definite: the data do not identify what is NaN, such as a "
    "part of the params that another one repeats; if all is NaN the params are no maximum: fit with a smaller tol, or "
    "use newton_correction.",
    Status.UNRESOLVED: "the nodes of the quadrature do not resolve the posterior of the latent variable: nearly all of "
    "it lies on one node, so that objective and params are off; use more n_nodes, or units of fewer observations.",
    Status.INADMISSIBLE: "no start has found a maximum that is admissible, and the best of them has a component of too "
    "few rows, at the floor, or of too large a ratio of eigenvalues; use fewer components, more starts, a prior, or "
    "max_ratio of the family.",
}


def is_failure(status: Array) -> Array:
    """Whether a status is one of NONFINITE, DECREASED, DEGENERATE, TOO_FEW, UNRESOLVED, INADMISSIBLE."""
    return ((status >= Status.NONFINITE) & (status <= Status.TOO_FEW)) | (status >= Status.UNRESOLVED)
