"""EM and its relatives."""

from ..numerics.on_demand import on_demand as _on_demand

with _on_demand(globals()):
    from .active_set import ActiveSet
    from .anderson import Anderson
    from .annealed import AnnealedEM, geometric_schedule
    from .em import EM
    from .hard import HardEM
    from .newton import NewtonCG
    from .online import OnlineEM
    from .over_relaxed import OverRelaxedEM
    from .parabolic import ParabolicEM
    from .squarem import SQUAREM
    from .stochastic import StochasticEM

__all__ = [
    "ActiveSet",
    "Anderson",
    "AnnealedEM",
    "EM",
    "HardEM",
    "NewtonCG",
    "OnlineEM",
    "OverRelaxedEM",
    "ParabolicEM",
    "SQUAREM",
    "StochasticEM",
    "geometric_schedule",
]
