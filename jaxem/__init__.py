"""GPU-accelerated, differentiable expectation–maximization in JAX.

**Fitting.** `fit` one problem; from many starts `fit_restarts` (`Race`), maxima without spikes by `Admissible`; many
problems `fit_batch`, a ragged table `fit_groups` (`GroupsResult`), rows that do not fit in memory `fit_stream`
(`ArrayBatches`, `TableBatches`), on several devices `shard` (`Sharded`). What comes back is a `FitResult` with a
`Status`. `Checkpoint` keeps a fit under way, `save` and `load` what it found.

**Models.**

- `Mixture` (`MixtureParams`) of components of any family; weights that depend on covariates by `SoftmaxGate`
  (`GateParams`, `gated`).
- `HiddenMarkovModel` (`HMMParams`) of series, `Sequences`, that `sequences` makes of a table; emissions of any family;
  transitions that depend on covariates by `SoftmaxTransitions` (`TransitionParams`).
- `LinearGaussianStateSpace` (`LGSSMParams`, `GaussianState`) of series of vectors; `Forecast`. Of one column
  `local_level`, `local_trend`, `seasonal`, `autoregression`, and sums of them (`StructuralModel`).
- `LogJoint`: write log p(x, z) of one observation; `Full` or `Truncated` M steps.
- `FixedComponents`: known densities, of which the weights are estimated.
- `VariationalLogisticRegression` (`LogisticParams`), its priors `FixedPrecision`, `GammaPrecision`,
  `EstimatedPrecision`, its bound `sigmoid_bound`, `expected_sigmoid_bound`.
- Any of them with params that are known, `Frozen`, or states that are, `labelled`; states that rows share, `grouped`
  (`Grouped`).

**Families of components**, each with the record of its params.

- Normal: `FullNormal`, `DiagonalNormal`, `SphericalNormal`, `TiedNormal`, `TiedSphericalNormal` (`NormalParams`),
  `LowRankNormal` (`LowRankNormalParams`); heavy tails: `StudentT` (`StudentTParams`).
- Positive: `Exponential` (`ExponentialParams`), `Gamma` (`GammaParams`), `Weibull` (`WeibullParams`), `LogNormal`.
  Shares: `Beta` (`BetaParams`), `Dirichlet` (`DirichletParams`). Directions: `VonMisesFisher`
  (`VonMisesFisherParams`).
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

**Algorithms.** `EM`; faster `SQUAREM`, `Anderson`, `ParabolicEM`, `OverRelaxedEM`, `NewtonCG`; of weights alone
`ActiveSet`; less dependent on the start `AnnealedEM` (`geometric_schedule`), `StochasticEM`; of hard states `HardEM`;
of minibatches `OnlineEM`.

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

**Elsewhere.** scikit-learn's and hmmlearn's interfaces in `jaxem.sklearn`; the command line `python -m jaxem`; what
theory promises, tried on a class of your own, in `jaxem.testing`.
"""

from . import algorithms, families, models
from .numerics.on_demand import on_demand as _on_demand

with _on_demand(globals()):
    from . import bijections
    from .algorithms import *
    from .contracts.admissible import Admissible
    from .contracts.capabilities import bind
    from .contracts.priors import (
        BetaPrior,
        DefaultPrior,
        DirichletPrior,
        GammaPrior,
        GaussianPrior,
        NormalInverseWishart,
    )
    from .contracts.protocols import Algorithm, EMModel, Family, FiniteLatent, Progress, StepInfo, StoppingRule
    from .contracts.result import FitResult
    from .contracts.status import Status
    from .drivers.batch import fit_batch
    from .drivers.groups import GroupsResult, fit_groups
    from .drivers.restarts import Race, fit_restarts
    from .drivers.single import fit
    from .drivers.stream import fit_stream
    from .families import *
    from .families.composed.density import _NumpyroLogProb as _NumpyroLogProb
    from .fold.chunks import Rows
    from .fold.climb import Full, Truncated
    from .fold.covariates import Basis as _Basis  # noqa: F401 (no user names it, but a file may)
    from .inference.candidates import GroupsSelection
    from .inference.diagnostics import (
        BoundTrace,
        Decomposition,
        Diagnosis,
        decompose,
        diagnose,
        em_rate,
        newton_correction,
        trace_bound,
    )
    from .inference.information import (
        CovarianceEstimator,
        ObservedInformation,
        Sandwich,
        StandardErrors,
        influence,
        standard_errors,
    )
    from .inference.likelihood_ratio import LikelihoodRatioTest, likelihood_ratio_test
    from .inference.resampling import BayesianBootstrap, Bootstrap, EfronBootstrap, ResamplingScheme, bootstrap
    from .inference.selection import CrossValidation, Selection, select
    from .latent.finite import Given, Hard, Rule, Sampled, Soft, Tempered, gated, labelled
    from .latent.grouped import grouped
    from .latent.series import Sequences, sequences
    from .latent.starts import Initializer, KMeans, Labels, RandomPoints, RandomResponsibilities, Responsibilities
    from .latent.units import Grouped
    from .loop.derivative import Derivative, Implicit, OneStep, Stop, Unrolled
    from .loop.loop import advance, conclude, finish, start
    from .loop.state import LoopState
    from .loop.stopping import Aitken, Objective, ParameterChange, Residual
    from .models import *
    from .numerics.solvers import GMRES, Dense
    from .sources.readers import ArrayBatches, TableBatches
    from .sources.shards import Sharded, shard
    from .storage.checkpoint import Checkpoint
    from .storage.files import load, save

__all__ = [
    "Admissible",
    "Aitken",
    "Algorithm",
    "ArrayBatches",
    "BayesianBootstrap",
    "BetaPrior",
    "Bootstrap",
    "BoundTrace",
    "Checkpoint",
    "CovarianceEstimator",
    "CrossValidation",
    "Decomposition",
    "DefaultPrior",
    "Dense",
    "Derivative",
    "Diagnosis",
    "DirichletPrior",
    "EMModel",
    "EfronBootstrap",
    "Family",
    "FiniteLatent",
    "FitResult",
    "Full",
    "GMRES",
    "GammaPrior",
    "GaussianPrior",
    "Given",
    "Grouped",
    "GroupsResult",
    "GroupsSelection",
    "Hard",
    "Implicit",
    "Initializer",
    "KMeans",
    "Labels",
    "LikelihoodRatioTest",
    "LoopState",
    "NormalInverseWishart",
    "Objective",
    "ObservedInformation",
    "OneStep",
    "ParameterChange",
    "Progress",
    "Race",
    "RandomPoints",
    "RandomResponsibilities",
    "ResamplingScheme",
    "Residual",
    "Responsibilities",
    "Rows",
    "Rule",
    "Sampled",
    "Sandwich",
    "Selection",
    "Sequences",
    "Sharded",
    "Soft",
    "StandardErrors",
    "Status",
    "StepInfo",
    "Stop",
    "StoppingRule",
    "TableBatches",
    "Tempered",
    "Truncated",
    "Unrolled",
    "advance",
    "bijections",
    "bind",
    "bootstrap",
    "conclude",
    "decompose",
    "diagnose",
    "em_rate",
    "finish",
    "fit",
    "fit_batch",
    "fit_groups",
    "fit_restarts",
    "fit_stream",
    "gated",
    "grouped",
    "influence",
    "labelled",
    "likelihood_ratio_test",
    "load",
    "newton_correction",
    "save",
    "select",
    "sequences",
    "shard",
    "standard_errors",
    "start",
    "trace_bound",
]
__all__ += algorithms.__all__
__all__ += families.__all__
__all__ += models.__all__
