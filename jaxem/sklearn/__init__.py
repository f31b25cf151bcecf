"""jaxem's EM behind scikit-learn's interface: `from jaxem.sklearn import GaussianMixture`.

Needs scikit-learn 1.6 or newer: pip install 'jaxem[sklearn]'. `import jaxem` does not import this.
"""

try:
    from ._mixture import GaussianMixture
except ImportError as error:
    raise ImportError(
        f"jaxem.sklearn needs scikit-learn 1.6 or newer: pip install 'jaxem[sklearn]' ({error})."
    ) from error

__all__ = ["GaussianMixture"]
