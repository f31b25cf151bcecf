"""hmmlearn's own tests of its `GaussianHMM`, of its installed package, with jaxem's in the place of the class."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

with np.errstate():  # which they change for the whole process
    theirs: Any = pytest.importorskip("hmmlearn.tests.test_gaussian_hmm")

from jaxem.sklearn import GaussianHMM  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def swapped(monkeypatch):
    monkeypatch.setattr(theirs, "hmm", SimpleNamespace(GaussianHMM=GaussianHMM))


class TestSpherical(theirs.TestGaussianHMMWithSphericalCovars):
    """All of theirs."""

    def test_underflow_from_scaling(self):
        """Theirs asks of "scaling" to fail, where jaxem goes on in logarithms."""
        super().test_underflow_from_scaling("log")


class TestDiagonal(theirs.TestGaussianHMMWithDiagonalCovars):
    """All of theirs."""


class TestTied(theirs.TestGaussianHMMWithTiedCovars):
    """All of theirs."""


class TestFull(theirs.TestGaussianHMMWithFullCovars):
    """All of theirs."""
