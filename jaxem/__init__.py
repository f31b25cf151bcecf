"""GPU-accelerated, differentiable expectation–maximization in JAX."""

from . import bijections
from .algorithms.em import EM
from .batch import fit_batch, fit_restarts
from .derivative import Implicit, Stop
from .diagnostics import Diagnosis, diagnose
from .families._normal import NormalParams
from .families.normal import DiagonalNormal, FullNormal, SphericalNormal, TiedNormal
from .fitting import fit
from .grouping import GroupsResult, fit_groups
from .initialize import KMeans, Labels, RandomPoints, RandomResponsibilities, Responsibilities
from .loop import LoopState, Objective, advance, finish, start
from .models.mixture import Mixture, MixtureParams
from .priors import NormalInverseWishart
from .protocols import Algorithm, EMModel, Family, FiniteLatent, Progress, StepInfo, StoppingRule, bind
from .result import FitResult, Status
from .rules import Given, Hard, Sampled, Soft, Tempered, labelled

__all__ = [
    "EM",
    "Algorithm",
    "DiagonalNormal",
    "Diagnosis",
    "EMModel",
    "Family",
    "FiniteLatent",
    "FitResult",
    "FullNormal",
    "Given",
    "GroupsResult",
    "Hard",
    "Implicit",
    "KMeans",
    "Labels",
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
    "Sampled",
    "Soft",
    "SphericalNormal",
    "Status",
    "StepInfo",
    "Stop",
    "StoppingRule",
    "Tempered",
    "TiedNormal",
    "advance",
    "bijections",
    "bind",
    "diagnose",
    "finish",
    "fit",
    "fit_batch",
    "fit_groups",
    "fit_restarts",
    "labelled",
    "start",
]
