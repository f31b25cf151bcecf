"""Labels of groups in every type that tables have: the rows of one label are one group, and are found again."""

import datetime
import zoneinfo
from typing import Any

import jax
import numpy as np
import pytest
from driver_cases import MAX_ITER, MODEL, N, begin
from helpers import KEY, blobs

import jaxem
from jaxem.numerics.labels import find, positions
from jaxem.running.padding import group_rows

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")

CODE = [1, 2, 0, 2, 1, 1, 0]  # of the rows of each column below
PARIS = zoneinfo.ZoneInfo("Europe/Paris")
TIMES = [datetime.datetime(2019, 5, 1), datetime.datetime(2020, 1, 3, 4, 5, 6, 7), datetime.datetime(2020, 1, 4)]
ZONED = [time.replace(tzinfo=PARIS) for time in TIMES]
NANOSECONDS = np.array(["2019-05-01", "2020-01-03T00:00:00.000000001", "2020-01-03T00:00:00.000000002"], "M8[ns]")
LARGE = [5, 2**60, 2**60 + 1]  # the last two are one float


def column(values: Any) -> list:
    return [values[i] for i in CODE]


COLUMNS: dict[str, Any] = {
    **{f"datetime64[{unit}]": column(np.array(TIMES, f"M8[{unit}]")) for unit in ("D", "s", "us", "ns")},
    "datetime64[ns] array": NANOSECONDS[CODE],
    "datetime64[M]": np.array(["2019-05", "2020-01", "2020-02"], "M8[M]")[CODE],
    "timedelta64[ns]": np.array([1, 2, 3], "m8[ns]")[CODE],
    "datetime": column(TIMES),
    "datetime with a zone": column(ZONED),
    "pandas datetime": pd.Series(NANOSECONDS[CODE]),
    "pandas zoned": pd.Series(pd.to_datetime(NANOSECONDS)[CODE]).dt.tz_localize("UTC"),
    "pandas index": pd.DatetimeIndex(NANOSECONDS[CODE]),
    "pandas period": pd.Series(pd.period_range("2020-01", periods=3, freq="M")[CODE]),
    "pandas interval": pd.Series(pd.interval_range(0, 3)[CODE]),
    "pandas Int64": pd.Series(column(LARGE), dtype="Int64"),
    "pandas Float64": pd.Series(column([0.5, 1.5, 2.5]), dtype="Float64"),
    "pandas string": pd.Series(column(["a", "b", "c"]), dtype="string"),
    "pandas category": pd.Series(column(["a", "b", "c"]), dtype="category"),
    "pandas array": pd.array(column(LARGE), dtype="Int64"),
    "pandas arrow": pd.Series(column(["a", "b", "c"]), dtype=pd.ArrowDtype(pa.string())),
    "polars int": pl.Series(column(LARGE)),
    "polars text": pl.Series(column(["a", "b", "c"])),
    "polars category": pl.Series(column(["a", "b", "c"]), dtype=pl.Categorical),
    "polars enum": pl.Series(column(["a", "b", "c"]), dtype=pl.Enum(["a", "b", "c"])),
    "polars date": pl.Series(column([time.date() for time in TIMES])),
    "polars nanoseconds": pl.Series(NANOSECONDS[CODE]),
    "polars zoned": pl.Series(column(ZONED), dtype=pl.Datetime("us", "Europe/Paris")),
    "pyarrow int": pa.chunked_array([column(LARGE)]),
    "pyarrow text": pa.array(column(["a", "b", "c"])),
    "pyarrow zoned": pa.array(column(ZONED), pa.timestamp("us", "Europe/Paris")),
    "long text": column(["a" * 200, "b", "c"]),
    "text of any length": np.array(column(["a", "b", "c"]), np.dtypes.StringDType()),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_labels_of_every_type_of_column_are_found_by_what_labels_lists(kind):
    grouping = group_rows(COLUMNS[kind])
    assert grouping.sizes.tolist() == [2, 3, 2]
    assert [sorted(rows.tolist()) for rows in np.split(grouping.order, grouping.offsets[1:-1])] == [
        [2, 6], [0, 4, 5], [1, 3]
    ]  # fmt: skip
    known = positions(grouping.labels)
    assert [find(label, known) for label in grouping.labels] == [0, 1, 2]
    if kind != "polars nanoseconds":  # which polars hands out one by one as microseconds
        assert [find(label, known) for label in COLUMNS[kind][:3]] == [1, 2, 0]
    assert group_rows(COLUMNS[kind], grouping.labels).sizes.tolist() == [2, 3, 2]


GAPS: dict[str, Any] = {
    "NaN": np.array([0.5, np.nan, -1, np.nan]),
    "NaT": np.array(["2020-01-03", "NaT", "2019-05-01", "NaT"], "M8[ns]"),
    "NaT of a duration": np.array([3, "NaT", 2, "NaT"], "m8[D]"),
    "complex NaN": np.array([2j, np.nan, 1j, np.nan]),
    "None": ["b", None, "a", None],
    "None and numbers": [3, None, 2, None],
    "all kinds of missing": ["b", np.nan, "a", pd.NA],
    "NaN of their own": ["b", float("nan"), "a", float("nan")],
    "tuples": [("b", 1.0), ("b", float("nan")), ("a", 2.0), ("b", pd.NA)],
    "times with a zone": [ZONED[1], pd.NaT, ZONED[0], None],
    "masked": np.ma.masked_array([3, 0, 2, 7], [False, True, False, True]),
    "pandas object": pd.Series(["b", None, "a", np.nan], dtype=object),
    "pandas string": pd.Series(["b", None, "a", None], dtype="string"),
    "pandas category": pd.Series(["b", None, "a", None], dtype="category"),
    "pandas Int64": pd.Series([3, None, 2, None], dtype="Int64"),
    "pandas boolean": pd.Series([True, None, False, None], dtype="boolean"),
    "pandas datetime": pd.Series([TIMES[1], None, TIMES[0], None]),
    "pandas zoned": pd.Series([ZONED[1], None, ZONED[0], None]),
    "polars int": pl.Series([3, None, 2, None]),
    "polars text": pl.Series(["b", None, "a", None]),
    "polars date": pl.Series([TIMES[1].date(), None, TIMES[0].date(), None]),
    "polars zoned": pl.Series([ZONED[1], None, ZONED[0], None], dtype=pl.Datetime("us", "Europe/Paris")),
    "pyarrow int": pa.array([3, None, 2, None]),
    "pyarrow date": pa.array([TIMES[1].date(), None, TIMES[0].date(), None]),
}


@pytest.mark.parametrize("kind", GAPS)
def test_rows_whose_label_is_missing_are_one_group_the_last(kind):
    grouping = group_rows(GAPS[kind])
    assert grouping.order.tolist() == [2, 0, 1, 3] and grouping.sizes.tolist() == [1, 1, 2]
    known = positions(grouping.labels)
    if kind != "tuples":
        assert [find(missing, known) for missing in (None, float("nan"), np.datetime64("NaT"), pd.NaT, pd.NA)] == [
            2
        ] * 5
    assert find(grouping.labels[2], known) == 2 and find("no label", known) == -1
    assert group_rows(GAPS[kind], grouping.labels).sizes.tolist() == [1, 1, 2]


def test_times_are_found_in_other_resolutions_and_types():
    days = np.array(["2019-05-01", "2020-01-03"], "M8[D]")
    for made in (days, days.astype("M8[ns]"), days.astype("M8[h]"), list(days), pd.Series(days), days.tolist()):
        labels = group_rows(made).labels
        for asked in (days.astype("M8[s]"), days.astype("M8[ns]"), pl.Series(days), pd.Series(days).tolist()):
            assert group_rows(asked, labels).sizes.tolist() == [1, 1]
        known = positions(labels)
        other = [datetime.datetime(2020, 1, 3), datetime.date(2020, 1, 3), pd.Timestamp("2020-01-03")]
        assert [find(one, known) for one in other] == [1, 1, 1]
        assert find(datetime.datetime(2020, 1, 3, tzinfo=PARIS), known) == -1  # a zone is not forgotten
    zoned = positions(group_rows(ZONED).labels)
    assert find(ZONED[1].astimezone(datetime.UTC), zoned) == 1 and find(TIMES[1], zoned) == -1
    durations = positions(group_rows(np.array([60, 120], "m8[s]")).labels)
    assert find(datetime.timedelta(minutes=2), durations) == find(pd.Timedelta("2min"), durations) == 1


def test_labels_that_cannot_be_told_apart_or_hashed_are_a_value_error():
    fine = pl.Series(NANOSECONDS).dt.replace_time_zone("UTC")
    for labels in (fine, [{1}, {2}], [{"a": 1}, 3], [np.zeros(2), "a"]):
        with pytest.raises(ValueError, match="group_ids: expected"):
            group_rows(labels)


def test_a_group_without_a_label_is_fitted_and_predicted():
    x, ids = blobs(3 * N), pd.Series([3, None, 2] * N, dtype="Int64")
    groups = jaxem.fit_groups(MODEL, KEY, x, ids, init=begin(3), max_iter=MAX_ITER)
    assert groups.labels.tolist() == [2, 3, None] and groups.n_rows.tolist() == [N, N, N]
    assert groups.predict(x, ids).shape == (3 * N,)
    assert groups.to_frame()["group"].tolist() == [2, 3, None]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b[2]).all(), groups.fit_of(pd.NA).params, groups.params))
