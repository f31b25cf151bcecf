"""Families of components: the distribution of a row given its state."""

from ..numerics.on_demand import on_demand as _on_demand

with _on_demand(globals()):
    from .columns.beta import Beta, BetaParams
    from .columns.categorical import Bernoulli, BernoulliParams, Categorical, CategoricalParams
    from .columns.dirichlet import Dirichlet, DirichletParams
    from .columns.exponential import Exponential, ExponentialParams
    from .columns.gamma import Gamma, GammaParams
    from .columns.multinomial import Multinomial, MultinomialParams
    from .columns.negative_binomial import NegativeBinomial, NegativeBinomialParams
    from .columns.poisson import Poisson, PoissonParams
    from .columns.von_mises_fisher import VonMisesFisher, VonMisesFisherParams
    from .columns.weibull import Weibull, WeibullParams
    from .composed.background import NoParams, PointMass, Uniform
    from .composed.density import Density, from_numpyro
    from .composed.one_of import OneOf
    from .composed.product import Product
    from .normal._normal import NormalParams
    from .normal.diagonal import DiagonalNormal
    from .normal.full import FullNormal
    from .normal.lognormal import LogNormal
    from .normal.low_rank import LowRankNormal, LowRankNormalParams
    from .normal.spherical import SphericalNormal, TiedSphericalNormal
    from .normal.student_t import StudentT, StudentTParams
    from .normal.tied import TiedNormal
    from .regression.linear import LinearRegression, LinearRegressionParams
    from .regression.logistic import LogisticRegression, LogisticRegressionParams
    from .regression.negative_binomial import NegativeBinomialRegression, NegativeBinomialRegressionParams
    from .regression.poisson import PoissonRegression, PoissonRegressionParams
    from .regression.student_t import StudentTRegression, StudentTRegressionParams

__all__ = [
    "Bernoulli",
    "BernoulliParams",
    "Beta",
    "BetaParams",
    "Categorical",
    "CategoricalParams",
    "Density",
    "DiagonalNormal",
    "Dirichlet",
    "DirichletParams",
    "Exponential",
    "ExponentialParams",
    "FullNormal",
    "Gamma",
    "GammaParams",
    "LinearRegression",
    "LinearRegressionParams",
    "LogNormal",
    "LogisticRegression",
    "LogisticRegressionParams",
    "LowRankNormal",
    "LowRankNormalParams",
    "Multinomial",
    "MultinomialParams",
    "NegativeBinomial",
    "NegativeBinomialParams",
    "NegativeBinomialRegression",
    "NegativeBinomialRegressionParams",
    "NoParams",
    "NormalParams",
    "OneOf",
    "PointMass",
    "Poisson",
    "PoissonParams",
    "PoissonRegression",
    "PoissonRegressionParams",
    "Product",
    "SphericalNormal",
    "StudentT",
    "StudentTParams",
    "StudentTRegression",
    "StudentTRegressionParams",
    "TiedNormal",
    "TiedSphericalNormal",
    "Uniform",
    "VonMisesFisher",
    "VonMisesFisherParams",
    "Weibull",
    "WeibullParams",
    "from_numpyro",
]
