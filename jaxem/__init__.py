"""GPU-accelerated, differentiable expectation–maximization in JAX.

**Fitting.** `fit` one problem; from many starts `fit_restarts` (`Race`), maxima without spikes by `Admissible`; many
problems `fit_batch`, a ragged table `fit_groups` (`GroupsResult`), rows that do not fit in memory `fit_stream`
(`ArrayBatches`, `TableBatches`), on several devices `shard` (`Sharded`). What comes back is a `FitResult` with a
`Status`. `Checkpoint` keeps a fit under way, `save` and `load` what it found.

**Models.**

- `Mixture` (`MixtureParams`) of components of any family; weights that depend on covariates by `SoftmaxGate`
  (`GateParams`, `gated`).
- `LogJoint`: write log p(x, z) of one observation; `Full` or `Truncated` M steps.
- `VariationalLogisticRegression` (`LogisticParams`), its priors `FixedPrecision`, `GammaPrecision`,
  `EstimatedPrecision`, its bound `sigmoid_bound`, `expected_sigmoid_bound`.
- Any of them with params that are known, `Frozen`, or states that are, `labelled`.

**Families of components**, each with the record of its params.

- Normal: `FullNormal`, `DiagonalNormal`, `SphericalNormal`, `TiedNormal`, `TiedSphericalNormal` (`NormalParams`),
  `LowRankNormal` (`LowRankNormalParams`); heavy tails: `StudentT` (`StudentTParams`).
- Positive: `Exponential` (`ExponentialParams`), `Gamma` (`GammaParams`), `LogNormal`. Shares: `Beta` (`BetaParams`),
  `Dirichlet` (`DirichletParams`). Directions: `VonMisesFisher` (`VonMisesFisherParams`).
- Counts: `Poisson` (`PoissonParams`), `NegativeBinomial` (`NegativeBinomialParams`), `Multinomial`
  (`MultinomialParams`). Classes: `Bernoulli` (`BernoulliParams`), `Categorical` (`CategoricalParams`).
- Regressions: `LinearRegression` (`LinearRegressionParams`), `StudentTRegression` (`StudentTRegressionParams`),
  `PoissonRegression` (`PoissonRegressionParams`), `NegativeBinomialRegression` (`NegativeBinomialRegressionParams`),
  `LogisticRegression` (`LogisticRegressionParams`).
- Any density: `Density`, `from_numpyro`. Columns of several kinds: `Product`. Components of several kinds: `OneOf`,
  with `PointMass` and `Uniform` (`NoParams`).

**Priors.** `NormalInverseWishart`, `DefaultPrior`; `GammaPrior`, `BetaPrior`, `DirichletPrior`,
`GaussianPrior`.

**Starts.** `KMeans`, `RandomPoints`, `RandomResponsibilities`, `Labels`, `Responsibilities`; an
`Initializer` of your own.

**Algorithms.** `EM`; faster `SQUAREM`, `Anderson`, `ParabolicEM`, `NewtonCG`; less dependent on the start `AnnealedEM`
(`geometric_schedule`), `StochasticEM`; of hard states `HardEM`; of minibatches `OnlineEM`.

**When a fit ends.** `Objective`, `Aitken`, `ParameterChange`, `Residual`.

**Its derivative.** `Implicit` (`Dense`, `GMRES`), `OneStep`, `Unrolled`, `Stop`.

**How sure, and how many.** `standard_errors` (`StandardErrors`, `ObservedInformation`, `Sandwich`), `influence`,
`bootstrap` (`Bootstrap`, `EfronBootstrap`, `BayesianBootstrap`), `likelihood_ratio_test` (`LikelihoodRatioTest`),
`select` (`Selection`, `GroupsSelection`, `CrossValidation`).

**Seeing EM work.** `diagnose` (`Diagnosis`), `decompose` (`Decomposition`), `trace_bound` (`BoundTrace`), `em_rate`,
`newton_correction`; pictures in `jaxem.plots`.

**Parts of your own.** A model: `EMModel` or `FiniteLatent` (`Rows`, `bind`). A `Family`; an `Algorithm` (`StepInfo`)
with a `Rule` of its E step, `Soft`, `Hard`, `Tempered`, `Sampled`, `Given`; a `StoppingRule` (`Progress`), a
`Derivative`, a `CovarianceEstimator`, a `ResamplingScheme`. Constraints: `jaxem.bijections`. The loop itself: `start`,
`advance`, `conclude`, `finish` (`LoopState`).

**Elsewhere.** scikit-learn's interface in `jaxem.sklearn`; the command line `python -m jaxem`.
"""

from . import bijections
from .algorithms.anderson import Anderson
from .algorithms.annealed import AnnealedEM, geometric_schedule
from .algorithms.em import EM
from .algorithms.hard import HardEM
from .algorithms.newton import NewtonCG
from .algorithms.online import OnlineEM
from .algorithms.parabolic import ParabolicEM
from .algorithms.squarem import SQUAREM
from .algorithms.stochastic import StochasticEM
from .ascent import Full, Truncated
from .batch import fit_batch
from .candidates import GroupsSelection
from .checkpoint import Checkpoint
from .chunks import Rows
from .components import Admissible
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
from .families._full import FullNormal
from .families._normal import NormalParams
from .families.background import NoParams, PointMass, Uniform
from .families.categorical import Bernoulli, BernoulliParams, Categorical, CategoricalParams
from .families.counts import (
    LogisticRegression,
    LogisticRegressionParams,
    NegativeBinomialRegression,
    NegativeBinomialRegressionParams,
    PoissonRegression,
    PoissonRegressionParams,
)
from .families.density import Density, from_numpyro
from .families.directional import VonMisesFisher, VonMisesFisherParams
from .families.discrete import Multinomial, MultinomialParams, Poisson, PoissonParams
from .families.fractions import Beta, BetaParams, Dirichlet, DirichletParams
from .families.lognormal import LogNormal
from .families.low_rank import LowRankNormal, LowRankNormalParams
from .families.negative_binomial import NegativeBinomial, NegativeBinomialParams
from .families.normal import DiagonalNormal, SphericalNormal, TiedNormal, TiedSphericalNormal
from .families.one_of import OneOf
from .families.positive import Exponential, ExponentialParams, Gamma, GammaParams
from .families.product import Product
from .families.regression import LinearRegression, LinearRegressionParams
from .families.robust import StudentT, StudentTParams
from .families.robust_regression import StudentTRegression, StudentTRegressionParams
from .fitting import fit
from .grouping import GroupsResult, fit_groups
from .initialize import Initializer, KMeans, Labels, RandomPoints, RandomResponsibilities, Responsibilities
from .io import load, save
from .likelihood_ratio import LikelihoodRatioTest, likelihood_ratio_test
from .loop import LoopState, advance, conclude, finish, start
from .models.frozen import Frozen
from .models.gate import GateParams, SoftmaxGate
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
from .priors import BetaPrior, DefaultPrior, DirichletPrior, GammaPrior, GaussianPrior, NormalInverseWishart
from .protocols import Algorithm, EMModel, Family, FiniteLatent, Progress, StepInfo, StoppingRule, bind
from .readers import ArrayBatches, TableBatches
from .resampling import BayesianBootstrap, Bootstrap, EfronBootstrap, ResamplingScheme, bootstrap
from .restarts import Race, fit_restarts
from .result import FitResult, Status
from .rules import Given, Hard, Rule, Sampled, Soft, Tempered, gated, labelled
from .selection import CrossValidation, Selection, select
from .sharding import Sharded, shard
from .solvers import GMRES, Dense
from .stopping import Aitken, Objective, ParameterChange, Residual
from .streams import fit_stream
from .uncertainty import (
    CovarianceEstimator,
    ObservedInformation,
    Sandwich,
    StandardErrors,
    influence,
    standard_errors,
)

__all__ = [
    "Admissible",
    "Aitken",
    "Algorithm",
    "Anderson",
    "AnnealedEM",
    "ArrayBatches",
    "BayesianBootstrap",
    "Bernoulli",
    "BernoulliParams",
    "Beta",
    "BetaParams",
    "BetaPrior",
    "Bootstrap",
    "BoundTrace",
    "Categorical",
    "CategoricalParams",
    "Checkpoint",
    "CovarianceEstimator",
    "CrossValidation",
    "Decomposition",
    "DefaultPrior",
    "Dense",
    "Density",
    "Derivative",
    "Diagnosis",
    "DiagonalNormal",
    "Dirichlet",
    "DirichletParams",
    "DirichletPrior",
    "EM",
    "EMModel",
    "EfronBootstrap",
    "EstimatedPrecision",
    "Exponential",
    "ExponentialParams",
    "Family",
    "FiniteLatent",
    "FitResult",
    "FixedPrecision",
    "Frozen",
    "Full",
    "FullNormal",
    "GMRES",
    "Gamma",
    "GammaParams",
    "GammaPrecision",
    "GammaPrior",
    "GateParams",
    "GaussianPrior",
    "Given",
    "GroupsResult",
    "GroupsSelection",
    "Hard",
    "HardEM",
    "Implicit",
    "Initializer",
    "KMeans",
    "Labels",
    "LikelihoodRatioTest",
    "LinearRegression",
    "LinearRegressionParams",
    "LogJoint",
    "LogNormal",
    "LogisticParams",
    "LogisticRegression",
    "LogisticRegressionParams",
    "LoopState",
    "LowRankNormal",
    "LowRankNormalParams",
    "Mixture",
    "MixtureParams",
    "Multinomial",
    "MultinomialParams",
    "NegativeBinomial",
    "NegativeBinomialParams",
    "NegativeBinomialRegression",
    "NegativeBinomialRegressionParams",
    "NewtonCG",
    "NoParams",
    "NormalInverseWishart",
    "NormalParams",
    "Objective",
    "ObservedInformation",
    "OneOf",
    "OneStep",
    "OnlineEM",
    "ParabolicEM",
    "ParameterChange",
    "PointMass",
    "Poisson",
    "PoissonParams",
    "PoissonRegression",
    "PoissonRegressionParams",
    "Product",
    "Progress",
    "Race",
    "RandomPoints",
    "RandomResponsibilities",
    "ResamplingScheme",
    "Residual",
    "Responsibilities",
    "Rows",
    "SQUAREM",
    "Rule",
    "Sampled",
    "Sandwich",
    "Selection",
    "Sharded",
    "Soft",
    "SoftmaxGate",
    "SphericalNormal",
    "StandardErrors",
    "Status",
    "StepInfo",
    "StochasticEM",
    "Stop",
    "StoppingRule",
    "StudentT",
    "StudentTParams",
    "StudentTRegression",
    "StudentTRegressionParams",
    "TableBatches",
    "Tempered",
    "TiedNormal",
    "TiedSphericalNormal",
    "Truncated",
    "Uniform",
    "Unrolled",
    "VariationalLogisticRegression",
    "VonMisesFisher",
    "VonMisesFisherParams",
    "advance",
    "bijections",
    "bind",
    "bootstrap",
    "conclude",
    "decompose",
    "diagnose",
    "em_rate",
    "expected_sigmoid_bound",
    "finish",
    "fit",
    "fit_batch",
    "fit_groups",
    "fit_restarts",
    "fit_stream",
    "from_numpyro",
    "gated",
    "geometric_schedule",
    "influence",
    "labelled",
    "likelihood_ratio_test",
    "load",
    "newton_correction",
    "save",
    "select",
    "shard",
    "sigmoid_bound",
    "standard_errors",
    "start",
    "trace_bound",
]
