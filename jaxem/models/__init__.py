"""Models: what has an E step and an M step."""

from ..numerics.on_demand import on_demand as _on_demand

with _on_demand(globals()):
    from .fixed_components import FixedComponents
    from .frozen import Frozen
    from .gate import GateParams, SoftmaxGate
    from .hidden_markov import HiddenMarkovModel, HMMParams
    from .latent_joint import LogJoint
    from .logistic import (
        EstimatedPrecision,
        FixedPrecision,
        GammaPrecision,
        LogisticParams,
        VariationalLogisticRegression,
        expected_sigmoid_bound,
        sigmoid_bound,
    )
    from .mixture import Mixture, MixtureParams
    from .state_space import Forecast, GaussianState, LGSSMParams, LinearGaussianStateSpace
    from .structural import StructuralModel, autoregression, local_level, local_trend, seasonal
    from .transitions import SoftmaxTransitions, TransitionParams

__all__ = [
    "EstimatedPrecision",
    "FixedComponents",
    "FixedPrecision",
    "Forecast",
    "Frozen",
    "GammaPrecision",
    "GateParams",
    "GaussianState",
    "HMMParams",
    "HiddenMarkovModel",
    "LGSSMParams",
    "LinearGaussianStateSpace",
    "LogJoint",
    "LogisticParams",
    "Mixture",
    "MixtureParams",
    "SoftmaxGate",
    "SoftmaxTransitions",
    "StructuralModel",
    "TransitionParams",
    "VariationalLogisticRegression",
    "autoregression",
    "expected_sigmoid_bound",
    "local_level",
    "local_trend",
    "seasonal",
    "sigmoid_bound",
]
