"""Peers of jaxem on the device that `benchmarks.accelerator` measures, those that are installed.

gmmx is in jax. tgmm, pomegranate and gmm-gpu are in PyTorch and run on CUDA where it sees a device, else on the CPU;
their names say where. Same rows, same starts, float32, full covariances; none of them is to stop by itself.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxem
from benchmarks import interleaved, medians, mixture
from benchmarks.accelerator_parts import Sizes, mixture_fit, row, slope, trip_seconds
from benchmarks.scale import lanes

FEW, MANY = 2, 12
Run = Callable[[int], Any]  # m iterations, waited for


def gmmx(sizes: Sizes) -> None:
    attempt("gmmx", lambda: beside("gmmx", mixture.gmmx_full, sizes))


def torch(sizes: Sizes) -> None:
    attempt("tgmm", lambda: beside("tgmm", tgmm, sizes))
    attempt("pomegranate", lambda: beside("pomegranate", pomegranate, sizes))
    attempt("gmm_gpu", lambda: beside_gmm_gpu(sizes))


def attempt(package: str, measure: Callable[[], None]) -> None:
    """One that is absent or broken is a line, and the next ones have their turn."""
    if importlib.util.find_spec(package) is None:
        row(package, "not installed")
        return
    try:
        measure()
    except Exception as error:
        row(package, "failed", f"{type(error).__name__}: {error}"[:100])


def beside(package: str, made: Callable[[np.ndarray, mixture.Normals], Run], sizes: Sizes) -> None:
    """An iteration of a peer beside one of jaxem at the first shape."""
    run = made(*mixture.problem(*sizes.shapes[0]))
    theirs = slope({m: functools.partial(run, m) for m in (FEW, MANY)}, min(sizes.repeats, 3))
    ours = trip_seconds(mixture_fit(sizes.shapes[0], np.float32, sizes.trips)[0], sizes.repeats)
    where = "" if package == "gmmx" else on()
    name = f"{package}{where}, EM iteration, (n, d, k) = " + "({:,}, {}, {})".format(*sizes.shapes[0])
    row(name, f"{1e3 * theirs:.3f} ms", f"{theirs / ours:.1f} times jaxem")


def on() -> str:
    return f" on {device()}"


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tgmm(x: np.ndarray, start: mixture.Normals) -> Run:
    import torch
    from tgmm import GaussianMixture

    weights, means, covariances = (torch.tensor(array, dtype=torch.float32, device=device()) for array in start)
    rows = torch.tensor(x, device=device())

    def run(m: int) -> Any:
        fitted = GaussianMixture(
            *means.shape, max_iter=m, tol=1e-30, device=device(),
            init_weights=weights, init_means=means, init_covariances=covariances,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is not to converge
            fitted.fit(rows)
        assert fitted.n_iter_ >= m - 1, f"tgmm stopped after {fitted.n_iter_} iterations of {m}"
        return fitted.means_.cpu()

    return run


def pomegranate(x: np.ndarray, start: mixture.Normals) -> Run:
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    weights, means, covariances = (torch.tensor(array, dtype=torch.float32) for array in start)
    rows = torch.tensor(x, device=device())

    def run(m: int) -> Any:
        parts = [Normal(mean, covariance) for mean, covariance in zip(means, covariances, strict=True)]
        fitted = GeneralMixtureModel(parts, priors=weights, max_iter=m, tol=-float("inf"), check_data=False)
        fitted.to(device()).fit(rows)
        return fitted.priors.cpu()

    return run


def beside_gmm_gpu(sizes: Sizes) -> None:
    """Many fits of 30 iterations, which is what it is for, beside `fit_batch`."""
    import torch
    from gmm_gpu.gmm import GMM

    b, n_iter = min(sizes.lanes), 30
    x, params = lanes.problems(np.float32, b)
    rows = torch.tensor(np.asarray(x), device=device())
    means, covariances = (torch.tensor(np.asarray(leaf), device=device()) for leaf in params.components)
    weights, precisions = torch.tensor(np.asarray(params.weights), device=device()), torch.linalg.inv(covariances)

    def theirs() -> Any:
        start = {"means_init": means, "weights_init": weights, "precisions_init": precisions}
        fitted = GMM(means.shape[1], max_iter=n_iter, device=device(), tol=-1.0, **start)
        fitted.fit(rows)
        return fitted.means[0].cpu()

    def ours() -> Any:
        return jax.block_until_ready(jaxem.fit_batch(lanes.MODEL, params, x, tol=-1.0, max_iter=n_iter))

    calls = {"theirs": theirs, "ours": ours}
    for call in calls.values():
        call()
    times = medians(interleaved(calls, min(sizes.repeats, 3)))
    name = f"gmm-gpu{on()}, {b:,} mixtures of n = 200, d = 2, k = 3, {n_iter} iterations"
    row(name, f"{times['theirs']:.3f} s", f"{times['theirs'] / times['ours']:.1f} times jaxem")
