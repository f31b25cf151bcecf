"""GPU-accelerated, differentiable expectation–maximization in JAX."""

from .algorithms.em import EM
from .batch import fit_batch, fit_restarts
from .derivative import Implicit, Stop
from .diagnostics import Diagnosis, diagnose
from .families._normal import NormalParams
from .families.normal import DiagonalNormal, FullNormal, SphericalNormal, TiedNormal
from .fitting import fit
from .grouping import GroupsResult, fit_groups
from .initialize import KMeans, Labels, RandomPoints, RandomResponsibilities, Responsibilities
from .loop import Objective
from .models.mixture import Mixture, MixtureParams
from .priors import NormalInverseWishart
from .result import FitResult, Status
from .rules import Given, Hard, Labelled, Sampled, Soft, Tempered, labelled
