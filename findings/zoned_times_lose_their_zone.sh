#!/usr/bin/env bash
# polars 2.1.0, pyarrow 26.0.1, NumPy 2.4.6. A column of times with a zone that goes through numpy.asarray comes back as
# datetime64 without one, its numbers in UTC, and no warning says so. And to_list() of polars times in nanoseconds gives
# Python datetimes cut to microseconds: two rows that differ become one. Where rows are grouped by time, groups merge.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "polars==2.1.0" "numpy==2.4.6" "pyarrow==26.0.1"
"$folder/env/bin/python" -W error - <<'PY'
import datetime, numpy as np, polars as pl, pyarrow as pa

zoned = pl.Series([datetime.datetime(2026, 1, 1, 12)]).dt.replace_time_zone("Europe/Zurich")
array = np.asarray(zoned)
print("polars", pl.__version__, zoned.dtype, "->", array.dtype, array[0])
arrow = pa.array([datetime.datetime(2026, 1, 1, 12)], pa.timestamp("us", "Europe/Zurich"))
from_arrow = np.asarray(arrow)
print("pyarrow", pa.__version__, arrow.type, "->", from_arrow.dtype, from_arrow[0])
nano = pl.Series([0, 1]).cast(pl.Datetime("ns"))
listed = nano.to_list()
print("polars", nano.dtype, "with", nano.n_unique(), "values -> to_list with", len(set(listed)))
assert array.dtype.kind == "M" and array[0] == np.datetime64("2026-01-01T11:00:00"), "the zone is kept now"
assert from_arrow.dtype.kind == "M", "the zone is kept now"
assert nano.n_unique() == 2 and len(set(listed)) == 1, "nanoseconds are kept now"
PY
