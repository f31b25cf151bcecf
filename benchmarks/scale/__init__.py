"""What must hold at scale, measured: `python -m benchmarks.scale`."""
