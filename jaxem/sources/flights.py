"""The embedded data set: delays of 321,123 flights from New York City in 2013, by aircraft (see data/README.md)."""

from importlib import resources
from typing import NamedTuple

import numpy as np


class Flights(NamedTuple):
    """A flat table of flights, one row each; the rows of one aircraft are consecutive.

    Attributes:
        delays: (n, 2) int16, departure and arrival delay in minutes; negative = early.
        tailnum: (n,) str, tail number of the aircraft that flew.
    """

    delays: np.ndarray
    tailnum: np.ndarray


def load_flights() -> Flights:
    """Load the delays of the 3,146 aircraft with at least 20 flights from New York City in 2013.

    Returns:
        `Flights` with n = 321,123 rows: `delays` (n, 2) int16 in minutes, `tailnum` (n,) str.

    >>> flights = load_flights()
    >>> flights.delays.shape, len(set(flights.tailnum))
    ((321123, 2), 3146)
    """
    with (resources.files("jaxem") / "data" / "flight_delays.npz").open("rb") as file, np.load(file) as arrays:
        tailnum = np.repeat(arrays["tailnum"].astype(str), np.diff(arrays["offsets"]))
        return Flights(arrays["delays"], tailnum)
