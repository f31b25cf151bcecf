"""Everything that must hold at scale, one table after another."""

from benchmarks import without_blas_overrides
from benchmarks.scale import groups, hosts, lanes, programs, streams


def main() -> None:
    for title, measure in (
        ("lanes", lanes.main),
        ("groups", groups.main),
        ("programs", lambda: programs.main([])),
        ("hosts", lambda: hosts.main([])),
        ("streams", lambda: streams.main([])),
    ):
        print(f"\n== {title}")
        measure()


if __name__ == "__main__":
    without_blas_overrides()
    main()
