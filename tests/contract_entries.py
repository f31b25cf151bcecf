"""What the registry of `contract.py` is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

N = 32  # divisible by the four devices of conftest, and by no chunk size of the tests
K = 3
CENTRES = {2: np.array([[0.0, 0.0], [3.0, 1.0], [0.5, 4.0]]), 1: np.array([[0.0], [4.0], [9.0]])}
COLUMN_SCALE = np.array([1.0, 5.0])


@dataclass(frozen=True, eq=False)
class ModelEntry:
    """One public model.

    Attributes:
        name: of the entry; unique.
        build: a new model, its hyper-parameters not bound to any data.
        data: as the model takes it, float64.
        start: new start params, float64.
        moved: (model, params, data, scale, shift) -> the same three in other units, column by column; None if the
            model has no such symmetry.
        one_scale: the symmetry holds for a scale that all columns share.
        variant: the same class as an entry before it, with other hyper-parameters: what does not depend on those is
            tested with the slow tests.
        slow: everything about it is tested with the slow tests.
        reference: (model, params) -> a fitted scikit-learn mixture with these params, or None.
        moments: params -> mean (d,) and covariance (d, d) of an observation, or None.
        component_means: params -> (k, d), where there are moments.
        discrete: data in the support stay there only as they are: they are not moved a little.
        augmented: Q is of more than rows and states, such as the precision of a row.
        given: what five draws are conditional on, for `sample`.
        sampled: what else `sample` takes, such as the number of steps.
        unreadable: a number that no data may hold; not NaN where that marks what is missing.
    """

    name: str
    build: Callable[[], Any]
    data: Any
    start: Callable[[], Any]
    moved: Callable[[Any, Any, Any, np.ndarray, np.ndarray], tuple[Any, Any, Any]] | None = None
    one_scale: bool = False
    variant: bool = False
    slow: bool = False
    reference: Callable[[Any, Any], Any] | None = None
    moments: Callable[[Any], tuple[np.ndarray, np.ndarray]] | None = None
    component_means: Callable[[Any], np.ndarray] = lambda params: np.asarray(params.components.mean)
    discrete: bool = False
    augmented: bool = False
    given: Any = None
    sampled: tuple = ()
    unreadable: float = np.nan


@dataclass(frozen=True, eq=False)
class AlgorithmEntry:
    """One public algorithm.

    Attributes:
        name: of the entry; unique.
        build: a new algorithm.
        changed: another one with new values of its leaves; None multiplies all leaves by a number.
        needs_states: whether it needs the posterior of a model with finitely many states.
        exempt: names of properties (tests) that it does not have → why.
    """

    name: str
    build: Callable[[], Any]
    changed: Callable[[], Any] | None = None
    needs_states: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    def takes(self, model: ModelEntry) -> bool:
        """Whether it can fit this model."""
        return not self.needs_states or any(hasattr(model.build(), name) for name in ("log_joint", "chain"))


@dataclass(frozen=True, eq=False)
class Case:
    """A model fitted by an algorithm.

    Attributes:
        model: its entry.
        algorithm: its entry.
        slow: only with the slow tests.
        crossed: a pair that is tested on nothing but the objective.
    """

    model: ModelEntry
    algorithm: AlgorithmEntry
    slow: bool = False
    crossed: bool = False

    @property
    def name(self) -> str:
        return f"{self.model.name}-{self.algorithm.name}"
