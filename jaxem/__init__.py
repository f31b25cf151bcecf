"""GPU-accelerated, differentiable expectation–maximization in JAX."""

from . import bijections
from .algorithms.em import EM
from .ascent import Full, Truncated
from .batch import fit_batch, fit_restarts
from .chunks import Rows
from .derivative import Implicit, Stop
from .diagnostics import (
    BoundTrace,
    Decomposition,
    Diagnosis,
    decompose,
    diagnose,
    em_rate,
    newton_correction,
    trace_bound,
)
from .families._normal import NormalParams
from .families.density import Density, from_numpyro
from .families.normal import DiagonalNormal, FullNormal, SphericalNormal, TiedNormal
from .fitting import fit
from .grouping import GroupsResult, fit_groups
from .initialize import KMeans, Labels, RandomPoints, RandomResponsibilities, Responsibilities
from .loop import LoopState, Objective, advance, finish, start
from .models.latent_joint import LogJoint
from .models.logistic import (
    EstimatedPrecision,
    FixedPrecision,
    GammaPrecision,
    LogisticParams,
    VariationalLogisticRegression,
    expected_sigmoid_bound,
    sigmoid_bound,
)
from .models.mixture import Mixture, MixtureParams
from .priors import NormalInverseWishart
from .protocols import Algorithm, EMModel, Family, FiniteLatent, Progress, StepInfo, StoppingRule, bind
from .result import FitResult, Status
from .rules import Given, Hard, Sampled, Soft, Tempered, labelled

__all__ = [
    "Algorithm",
    "BoundTrace",
    "Decomposition",
    "Density",
    "Diagnosis",
    "DiagonalNormal",
    "EM",
    "EMModel",
    "EstimatedPrecision",
    "Family",
    "FiniteLatent",
    "FitResult",
    "FixedPrecision",
    "Full",
    "FullNormal",
    "GammaPrecision",
    "Given",
    "GroupsResult",
    "Hard",
    "Implicit",
    "KMeans",
    "Labels",
    "LogJoint",
    "LogisticParams",
    "LoopState",
    "Mixture",
    "MixtureParams",
    "NormalInverseWishart",
    "NormalParams",
    "Objective",
    "Progress",
    "RandomPoints",
    "RandomResponsibilities",
    "Responsibilities",
    "Rows",
    "Sampled",
    "Soft",
    "SphericalNormal",
    "Status",
    "StepInfo",
    "Stop",
    "StoppingRule",
    "Tempered",
    "TiedNormal",
    "Truncated",
    "VariationalLogisticRegression",
    "advance",
    "bijections",
    "bind",
    "decompose",
    "diagnose",
    "em_rate",
    "expected_sigmoid_bound",
    "finish",
    "fit",
    "fit_batch",
    "fit_groups",
    "fit_restarts",
    "from_numpyro",
    "labelled",
    "newton_correction",
    "sigmoid_bound",
    "start",
    "trace_bound",
]
