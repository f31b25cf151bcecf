"""All that is claimed for an accelerator, measured on one GPU or TPU in at most eight minutes: one table.

    python -m benchmarks.accelerator [--only PART …] [--toy]

Bandwidth and flops of the device are measured in the same run, and EM iterations stand beside the time that they allow.
Parts run in processes of their own, one after another, each within its seconds, without jax's cache of compiled
programs: one that fails or takes too long says so in its line, and what it had found stays. The parts are functions of
`benchmarks.accelerator_parts`. `--toy` runs all of them at sizes without meaning, on a CPU too, each in up to ten
minutes: it tests the command.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

MOST_SECONDS = 480
TOY_SECONDS = 600  # a part; nearly all of it is the compiler's
PARTS = {  # seconds that each may take, with its start and compilation
    "roofline": 105, "flights": 100, "lanes": 85, "loop": 75, "float64": 45, "gmmx": 20, "torch": 45,
}  # fmt: skip
HEADER = ("part", "figure", "value", "beside")


class Found(NamedTuple):
    """What a part has said."""

    machine: str  # empty if it had not come so far
    rows: list[list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="of " + ", ".join(PARTS))
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--part", choices=PARTS, help="runs this part in this process and prints lines of JSON")
    options = parser.parse_args()
    if options.part is not None:
        from benchmarks import accelerator_parts

        accelerator_parts.run(options.part, toy=options.toy)
        return
    started = time.monotonic()
    machine, rows = "", []
    for part in options.only or PARTS:
        left = MOST_SECONDS - (time.monotonic() - started)
        found = run(part, TOY_SECONDS if options.toy else min(PARTS[part], left), toy=options.toy)
        machine = machine or found.machine
        rows += found.rows
    print(machine)
    print()
    print(markdown(rows))


def run(part: str, seconds: float, *, toy: bool) -> Found:
    """A part in a process of its own.

    Raises:
        SystemExit: if there is no accelerator.
    """
    command = [sys.executable, "-m", "benchmarks.accelerator", "--part", part, *(["--toy"] if toy else [])]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": str(toy).lower()}
    if part == "torch":  # both libraries need room
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
        said, failure = done.stdout, "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired as expired:
        said, failure = expired.stdout or b"", f"stopped after its {seconds:.0f} s"
    machine, rows = "", []
    for line in (said.decode() if isinstance(said, bytes) else said).splitlines():
        told: Any = json.loads(line) if line.endswith("}") else {}  # the last line may be cut
        machine = told.get("machine", machine)
        if told.get("platform") == "cpu" and not toy:
            raise SystemExit("expected a GPU or a TPU, jax finds a CPU alone; --toy tries the command there.")
        if "row" in told:
            rows.append([part, *told["row"]])
    return Found(machine, rows + ([[part, "did not finish", failure[:100], ""]] if failure else []))


def markdown(rows: list[list[str]]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
