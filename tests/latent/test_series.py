"""Series from tables and lists."""

import numpy as np
import pytest

import jaxem

X = np.arange(6.0)[:, None]


def test_series_come_in_the_order_of_the_table():
    data = jaxem.sequences(X, ids=["b", "b", "a", "c", "c", "c"])
    np.testing.assert_array_equal(data.length, [2, 1, 3])
    np.testing.assert_array_equal(data.values[:, :, 0], [[0, 1, 0], [2, 0, 0], [3, 4, 5]])


def test_a_list_of_series_is_its_table():
    data = jaxem.sequences([X[:2], X[2:3], X[3:]])
    for a, b in zip(data, jaxem.sequences(X, ids=[0, 0, 1, 2, 2, 2]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_times_left_out_are_missing_steps():
    data = jaxem.sequences(X.astype(int), ids=[7, 7, 7, 3, 3, 3], time=[2001, 2002, 2004, 10.0, 11.0, 12.0])
    np.testing.assert_array_equal(data.length, [4, 3])
    np.testing.assert_array_equal(data.values[:, :, 0], [[0, 1, np.nan, 2], [3, 4, 5, 0]])


def test_a_tree_of_columns_and_tables_of_other_libraries():
    data = jaxem.sequences({"a": X, "b": X[:, 0].astype(int)}, ids=[0, 0, 0, 0, 1, 1])
    assert data.values["a"].shape == (2, 4, 1) and data.values["b"].shape == (2, 4)
    assert data.values["b"].dtype.kind == "i"  # without gaps whole numbers stay
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": X[:, 0], "id": [0, 0, 0, 0, 1, 1]})
    np.testing.assert_array_equal(jaxem.sequences(frame[["x"]], frame["id"]).values, data.values["a"])


BAD = {
    r"ids: expected the rows of a series to follow each other, got 'a' again in row 2": {"ids": list("abaabb")},
    r"ids: expected shape \(6,\)": {"ids": [1, 2]},
    r"time: expected times that rise within a series, got 1 after 2 in row 1": {
        "ids": np.zeros(6),
        "time": [2, 1, 3, 4, 5, 6],
    },
    r"time: expected times that rise within a series, got 3 repeated in row 3": {
        "ids": np.zeros(6),
        "time": [1, 2, 3, 3, 5, 6],
    },
    r"time: expected whole numbers": {"ids": np.zeros(6), "time": np.linspace(0, 1, 6)},
    r"time: expected steps of 1, .*time // 60": {"ids": np.zeros(6), "time": 60 * np.arange(6)},
    r"time: expected shape \(6,\)": {"ids": np.zeros(6), "time": [1]},
    r"ids: expected the series of each row": {},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_table_of_series_is_named(message):
    with pytest.raises(ValueError, match=message):
        jaxem.sequences(X, **BAD[message])


def test_what_is_no_list_of_series_is_named():
    with pytest.raises(ValueError, match=r"table: expected series of steps \(1,\).*in series 1"):
        jaxem.sequences([X, np.ones((2, 3))])
    with pytest.raises(ValueError, match=r"at least one step, got none in series 1"):
        jaxem.sequences([X, X[:0]])
    with pytest.raises(ValueError, match=r"time: expected None beside a list"):
        jaxem.sequences([X], time=[1])
    with pytest.raises(ValueError, match=r"table: expected at least one row"):
        jaxem.sequences(X[:0], ids=[])
