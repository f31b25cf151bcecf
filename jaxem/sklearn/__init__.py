"""jaxem's EM behind scikit-learn's interface, and hmmlearn's: `GaussianMixture`, `GaussianHMM`.

Needs scikit-learn 1.6 or newer: pip install 'jaxem[sklearn]'. `import jaxem` does not import this.
"""

try:
    from ._hidden_markov import GaussianHMM
    from ._mixture import GaussianMixture
except ImportError as error:
    raise ImportError(
        f"jaxem.sklearn needs scikit-learn 1.6 or newer: pip install 'jaxem[sklearn]' ({error})."
    ) from error

__all__ = ["GaussianHMM", "GaussianMixture"]
