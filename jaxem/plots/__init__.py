"""Pictures with matplotlib (`pip install 'jaxem[plot]'`): `from jaxem import plots`.

Every function draws into the Axes it is given, or into a figure of its own, and returns the Axes; `pairs` an array of
them. No global style is touched. Colours are told apart by colour-blind readers, and line styles, markers and hatching
say the same in grey.
"""

from .fits import bootstrap, half_steps, history, lanes
from .mixtures import mixture_1d, mixture_2d, pairs
from .series import series_states, transitions

__all__ = [
    "bootstrap",
    "half_steps",
    "history",
    "lanes",
    "mixture_1d",
    "mixture_2d",
    "pairs",
    "series_states",
    "transitions",
]
