"""What keeps components from collapsing: floors and their scale, the default prior, the bound on ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

KEY = jax.random.key(0)
_LABELS = np.r_[np.zeros(60, int), np.ones(8, int)]
_NORMALS = {
    "full": jaxem.FullNormal,
    "diagonal": jaxem.DiagonalNormal,
    "spherical": jaxem.SphericalNormal,
    "low_rank": lambda **options: jaxem.LowRankNormal(1, **options),
    "log_normal": jaxem.LogNormal,
    "student_t": lambda **options: jaxem.StudentT(3.0, jaxem.FullNormal(**options)),
    "product": lambda **options: jaxem.Product(x=jaxem.FullNormal(**options)),
}


def _spike(spread: float) -> np.ndarray:
    """60 rows of spread one, and 8 rows of this spread elsewhere."""
    rng = np.random.default_rng(0)
    return np.r_[5 + rng.normal(size=(60, 2)), 9 + spread * rng.normal(size=(8, 2))]


def _assigned(family, data):
    """Bound family, bank and counts of the two groups of `_spike`."""
    model = jaxem.Mixture(family, 2)
    params = model.init(KEY, data, method=jaxem.Labels(_LABELS))
    return model.bind(data).family, params.components, params.weights * len(_LABELS)


@pytest.mark.parametrize("name", _NORMALS)
def test_a_component_lies_at_the_floor_where_half_of_its_variance_is_the_floors(name: str) -> None:
    for spread, found in ((0.0, True), (1e-4, True), (0.5, False)):
        x = jnp.asarray(np.exp(_spike(spread)) if name == "log_normal" else _spike(spread))
        family, bank, count = _assigned(_NORMALS[name](), {"x": x} if name == "product" else x)
        assert family.at_floor(bank, count).tolist() == [False, found], spread
        assert not family.at_floor(bank, 0 * count).any()
    family, bank, count = _assigned(_NORMALS[name](floor=0.0), {"x": x} if name == "product" else x)
    assert not family.at_floor(bank, count).any()


def test_a_regression_lies_at_the_floor_where_half_of_its_variance_is_the_floors() -> None:
    for family in (jaxem.LinearRegression(), jaxem.StudentTRegression(3.0)):
        for spread, found in ((0.0, True), (0.5, False)):
            y = jnp.asarray(_spike(spread)[:, 0])
            bound, bank, count = _assigned(family, (jnp.ones((len(y), 1)), y))
            assert bound.at_floor(bank, count).tolist() == [False, found]
            assert bound.eigenvalues(bank).shape == (2, 1)


def test_one_of_names_the_component_at_its_floor() -> None:
    x = jnp.asarray(_spike(0.0))
    family, bank, count = _assigned(jaxem.OneOf(jaxem.Uniform(), jaxem.FullNormal()), x)
    assert family.at_floor(bank, count).tolist() == [False, True]


@pytest.mark.parametrize("name", ["full", "diagonal", "spherical", "low_rank"])
def test_eigenvalues_are_those_of_the_covariances(name: str) -> None:
    family, bank, _ = _assigned(_NORMALS[name](), jnp.asarray(_spike(0.5)))
    whole = {
        "full": lambda: bank.covariance,
        "diagonal": lambda: np.stack([np.diag(row) for row in bank.covariance]),
        "spherical": lambda: np.stack([value * np.eye(2) for value in bank.covariance]),
        "low_rank": lambda: np.stack([w @ w.T + np.diag(v) for w, v in zip(bank.loadings, bank.noise, strict=True)]),
    }[name]()
    np.testing.assert_allclose(family.eigenvalues(bank), np.linalg.eigvalsh(whole), rtol=1e-9)
