"""What one EM iteration of a normal mixture costs in arithmetic and memory traffic, and the time that follows from it.

    python -m benchmarks.roofline

Counted, not measured: E step and M step are compiled in float32 with all rows in one piece, where no loop hides its
trips, and XLA's own count of flops and bytes is read off the compiled program (`cost_analysis`; for a GPU or a TPU
other fusions are made, so that bytes are an estimate there). Rows come as the loop has them: as features T where it
holds those, which it does for all shapes but the last, whose T is made in every iteration. Beside it the least that
the problem needs: every row read once, and the two products, logits = T ηᵀ and stats = Rᵀ T, with f features a row:

    full      f = 1 + d + d (d + 1) / 2      4 n f k flops
    diagonal  f = 1 + 2 d                    4 n f k
    tied      f = 1 + d                      4 n f k, and 4 n d² for what all components share

PREDICTED is the larger of flops / peak and bytes / bandwidth, of the program and of the least, on three accelerators
by their data sheets; likelihoods ask for full float32, so tensor cores do not count. No such device was used. Chunks
that stay in a cache move fewer bytes than the program with all rows in one piece; a chip never reaches its peak.
Measured is the machine this runs on, whole fits as in `benchmarks.mixture`, all shapes but the last.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import machine, table
from benchmarks.mixture import Unit, jaxem_family, measure, problem
from jaxem.fold.chunks import FoldPlan
from jaxem.fold.folded import Folded
from jaxem.fold.sources import Prepared

SHAPES = ((20_000, 8, 8), (131_072, 16, 16), (65_536, 64, 16), (1_048_576, 32, 64))
FAMILIES = {"full": jaxem.FullNormal, "diagonal": jaxem.DiagonalNormal, "tied": jaxem.TiedNormal}


class Device(NamedTuple):
    """Float32 without reduced precision, flops a second, and bytes a second of its main memory."""

    name: str
    flops: float
    bandwidth: float


DEVICES = (
    Device("H100 SXM", 67e12, 3.35e12),
    Device("A100 80 GB", 19.5e12, 2.0e12),
    Device("TPU v5e", 197e12 / 6, 0.819e12),  # full precision is six passes of bfloat16
)


class Cost(NamedTuple):
    flops: float
    bytes: float

    def seconds(self, device: Device) -> float:
        return max(self.flops / device.flops, self.bytes / device.bandwidth)

    def bound(self, device: Device) -> str:
        return "flops" if self.flops / device.flops > self.bytes / device.bandwidth else "bytes"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.split("\n")[0])
    parser.add_argument("--count-only", action="store_true", help="measure nothing here")
    parser.add_argument("--quick", action="store_true", help="the first shape only, one repetition")
    options = parser.parse_args()
    print(machine())
    counts = [["n, d, k, covariance", "Gflop", "least", "ratio", "GB", "least", "ratio", "measured here ms", "Gflop/s"]]
    predictions = [["PREDICTED ms, of the least ms", *(device.name for device in DEVICES)]]
    for shape in SHAPES[:1] if options.quick else SHAPES:
        times = {} if options.count_only or shape == SHAPES[-1] else measured(shape, repeats=1 if options.quick else 2)
        for name in FAMILIES:
            program, least = counted(name, *shape), needed(name, *shape)
            label = "{:,}, {}, {}, {}".format(*shape, name)
            here = times.get(name)
            ratios = (program.flops / least.flops, program.bytes / least.bytes)
            counts.append([
                label, f"{program.flops / 1e9:.3g}", f"{least.flops / 1e9:.3g}", f"{ratios[0]:.2f}",
                f"{program.bytes / 1e9:.3g}", f"{least.bytes / 1e9:.3g}", f"{ratios[1]:.1f}",
                "" if here is None else f"{1e3 * here:.2f}", "" if here is None else f"{least.flops / here / 1e9:.0f}",
            ])  # fmt: skip
            predictions.append([label, *(predicted(program, least, device) for device in DEVICES)])
    print("\nOne iteration, float32: counted in the compiled program, and the least that the problem needs\n")
    print(table(counts))
    print("\nPREDICTED from the counts and data sheets, not measured on these devices; what bounds the program\n")
    print(table(predictions))


def counted(name: str, n: int, d: int, k: int) -> Cost:
    """Of one E step and M step as compiled for this machine; nothing is computed."""
    model = jaxem.Mixture(FAMILIES[name](), k)
    x = jax.ShapeDtypeStruct((n, d), np.float32)
    bound = jax.eval_shape(lambda x: jaxem.bind(model, x, None).localised(), x)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jax.ShapeDtypeStruct((k + 2, d), np.float32))

    held = jax.eval_shape(lambda bound, params, x: Folded(bound).hold(params, x, None), bound, params, x)
    data, plan = (held, FoldPlan()) if isinstance(held, Prepared) else (x, FoldPlan(n))

    def iteration(bound: Any, params: Any, data: Any) -> Any:
        folded = Folded(bound, plan)
        stats, log_lik = folded.e_step(params, data, None)
        return folded.m_step(params, stats), log_lik

    found: Any = jax.jit(iteration).lower(bound, params, data).compile().cost_analysis()
    return Cost(found["flops"], found["bytes accessed"])


def needed(name: str, n: int, d: int, k: int) -> Cost:
    f = {"full": 1 + d + d * (d + 1) // 2, "diagonal": 1 + 2 * d, "tied": 1 + d}[name]
    shared = 4 * n * d * d if name == "tied" else 0
    return Cost(4 * n * f * k + shared, 4 * n * d)


def predicted(program: Cost, least: Cost, device: Device) -> str:
    return f"{1e3 * program.seconds(device):.3g}, {1e3 * least.seconds(device):.2g} ({program.bound(device)})"


def measured(shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    x, start = problem(*shape)
    x = jnp.asarray(x)
    covariances = {
        "full": start.covariances,
        "diagonal": np.diagonal(start.covariances, axis1=1, axis2=2),
        "tied": start.covariances[0],
    }
    high = 203 if x.size * shape[2] < 2e6 else 13 if x.size * shape[2] < 1e8 else 4  # short ones need many
    units = {
        name: Unit(jaxem_family(x, start, family(), covariances[name]), 1, high, repeats)
        for name, family in FAMILIES.items()
    }
    return measure(units)[1]


if __name__ == "__main__":
    main()
