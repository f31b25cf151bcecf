"""Files that revision 6bacd56 wrote, before modules had folders: they load, and mean what they meant.

Each is a mixture of two components after five iterations of EM on 120 rows drawn by NumPy, float64: `_rows` below.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxem

SAVED = Path(__file__).with_name("saved")
LOG_LIK = {  # as that revision printed them
    "full": -419.3783217613011,
    "gated": -178.01948408775348,
    "poisson": -313.5717132964671,
    "product": -684.3043284717869,
    "student_t": -424.4138110827581,
}


def _rows() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 4])
    counts = np.concatenate([rng.poisson(2, (60, 1)), rng.poisson(9, (60, 1))])
    by = np.stack([np.ones(120), x[:, 0]], 1)
    gated = jaxem.gated((by, x[:, 1]), by)
    return {"full": x, "gated": gated, "poisson": counts, "product": {"a": x, "b": counts}, "student_t": x}


@pytest.mark.parametrize("name", LOG_LIK)
def test_a_file_of_before_has_the_likelihood_it_had_and_can_be_fitted_on(name: str) -> None:
    model, params = jaxem.load(SAVED / f"{name}.npz")
    rows = _rows()[name]
    here = jaxem.fit(model, params, rows, max_iter=0)
    np.testing.assert_allclose(here.log_lik, LOG_LIK[name], rtol=1e-12)
    assert jaxem.fit(model, params, rows, max_iter=3).objective > here.objective
