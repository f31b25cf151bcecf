"""GPU-accelerated, differentiable expectation–maximization in JAX."""

from . import bijections
from .algorithms.anderson import Anderson
from .algorithms.em import EM
from .algorithms.newton import NewtonCG
from .algorithms.parabolic import ParabolicEM
from .algorithms.squarem import SQUAREM
from .ascent import Full, Truncated
from .batch import fit_batch, fit_restarts
from .chunks import Rows
from .derivative import Derivative, Implicit, OneStep, Stop, Unrolled
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
from .families.discrete import Poisson, PoissonParams
from .families.normal import DiagonalNormal, FullNormal, SphericalNormal, TiedNormal
from .fitting import fit
from .grouping import GroupsResult, fit_groups
from .initialize import KMeans, Labels, RandomPoints, RandomResponsibilities, Responsibilities
from .likelihood_ratio import LikelihoodRatioTest, likelihood_ratio_test
from .loop import LoopState, advance, finish, start
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
from .priors import GammaPrior, NormalInverseWishart
from .protocols import Algorithm, EMModel, Family, FiniteLatent, Progress, StepInfo, StoppingRule, bind
from .resampling import Bootstrap, Dirichlet, Multinomial, ResamplingScheme, bootstrap
from .result import FitResult, Status
from .rules import Given, Hard, Sampled, Soft, Tempered, labelled
from .selection import CrossValidation, Selection, select
from .solvers import GMRES, Dense
from .stopping import Aitken, Objective, ParameterChange, Residual
from .uncertainty import StandardErrors, influence, standard_errors

__all__ = [
    "Aitken",
    "Algorithm",
    "Anderson",
    "Bootstrap",
    "BoundTrace",
    "CrossValidation",
    "Decomposition",
    "Dense",
    "Density",
    "Derivative",
    "Diagnosis",
    "DiagonalNormal",
    "Dirichlet",
    "EM",
    "EMModel",
    "EstimatedPrecision",
    "Family",
    "FiniteLatent",
    "FitResult",
    "FixedPrecision",
    "Full",
    "FullNormal",
    "GMRES",
    "GammaPrecision",
    "GammaPrior",
    "Given",
    "GroupsResult",
    "Hard",
    "Implicit",
    "KMeans",
    "Labels",
    "LikelihoodRatioTest",
    "LogJoint",
    "LogisticParams",
    "LoopState",
    "Mixture",
    "MixtureParams",
    "Multinomial",
    "NewtonCG",
    "NormalInverseWishart",
    "NormalParams",
    "Objective",
    "OneStep",
    "ParabolicEM",
    "ParameterChange",
    "Poisson",
    "PoissonParams",
    "Progress",
    "RandomPoints",
    "RandomResponsibilities",
    "ResamplingScheme",
    "Residual",
    "Responsibilities",
    "Rows",
    "Sampled",
    "Soft",
    "Selection",
    "SQUAREM",
    "SphericalNormal",
    "StandardErrors",
    "Status",
    "StepInfo",
    "Stop",
    "StoppingRule",
    "Tempered",
    "TiedNormal",
    "Truncated",
    "Unrolled",
    "VariationalLogisticRegression",
    "advance",
    "bijections",
    "bind",
    "bootstrap",
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
    "influence",
    "labelled",
    "likelihood_ratio_test",
    "newton_correction",
    "select",
    "sigmoid_bound",
    "standard_errors",
    "start",
    "trace_bound",
]
