"""The options of the command."""

import argparse
import csv
from pathlib import Path

from .compiled import MOST_BYTES, cache_folder
from .fits import FAMILIES

_ABOUT = """\
Fit mixtures to the columns of a table, one for every group of its rows, and say how many components each has.

Without TABLE: fit a two-component full-covariance normal mixture of (departure delay, arrival delay) to each of 3,146
aircraft: 321,123 flights from New York City in 2013. It is run twice, so that compile time and steady time can be told
apart; it needs no arguments, no network and no GPU.
"""
_EPILOG = """\
examples:
  python -m jaxem iris.csv --columns petal_length,petal_width --components 1:6 --out iris
      one table; BIC chooses among 1 to 6 components; tables, params, pictures and report.html go to the folder iris
  python -m jaxem trips.parquet --columns distance,minutes --by driver --components 1:3 --out trips
      one mixture for each driver, all fitted together
  python -m jaxem counts.csv --family poisson --components 2
  python -m jaxem patients.csv --sequence patient --time day --states 1:4 --out patients
      a hidden Markov model of the series of all patients, whose rows follow each other; BIC chooses the states

what is read:
  .csv .tsv .txt   a header line of names; separator , ; tab or | (found in the header, or --separator)
  .parquet         columns by name
  .npy             a matrix, whose columns are named 0, 1, ...; or a record array
  .npz             arrays (n,) by name; the columns of a matrix x are x_0, x_1, ...
  Rows with a missing value, a word in place of a number, an infinity, or more fields than the header are left out,
  counted, and listed by line in bad_rows.csv; --strict refuses them.

what is written to --out:
  report.html      one page: what was done, how the fits ended, pictures (they need matplotlib)
  fits.csv         a row for each group: components chosen, status, criterion, log-likelihood
  candidates.csv   the same for every number of components that was tried
  components.csv   a row for each component of each group, heaviest first: weight, means, covariances
  models/k=2.npz   model and params for jaxem.load; with --by stacked by group as in fits.csv
  bad_rows.csv, summary.json
  rows.csv         with --rows, in the format of the table: its own rows, in its own order, with three columns more.
                   cluster: number of the most probable component, 1 is the heaviest of its group; probability;
                   left_out: why a row has no cluster. --rows all: probability_1, probability_2, ... too
  of series (--sequence): fits.csv, a row for each number of states; states.csv, the most probable state of each row
  and all probabilities; params.csv; series.png, transitions.png; models/, bad_rows.csv, summary.json. A bad row is a
  missing step
  All of it appears at the end or, after an error, nothing.

exit codes: 0 all went well; 1 a fit failed, or has no admissible maximum (see status in fits.csv); 2 bad input,
options or output, with one line that says what and where.
"""
_TABLE_ONLY = (
    "columns",
    "by",
    "sequence",
    "time",
    "states",
    "separator",
    "family",
    "components",
    "criterion",
    "floor",
    "min_count",
    "float64",
    "strict",
    "force",
    "rows",
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; a wrong one ends the process with exit code 2, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxem",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="?", type=Path, metavar="TABLE", help="a CSV, Parquet, npy or npz file")
    _add_table_options(parser)
    _add_other_options(parser)
    options = parser.parse_args(argv)
    given = [name for name in _TABLE_ONLY if getattr(options, name) is not None]
    if options.table is None and given:
        parser.error(f"--{given[0]} goes with a TABLE")
    _check_series(parser, options)
    options.restarts = options.restarts or 4
    options.n_restarts = options.restarts
    options.family = options.family or "full"
    options.components = options.states or options.components or [2]
    options.criterion = options.criterion or "bic"
    options.min_count = 5.0 if options.min_count is None else options.min_count
    return options


def _check_series(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the process where options of series and of mixtures meet."""
    if options.sequence is None:
        for name in ("time", "states"):
            if getattr(options, name) is not None:
                parser.error(f"--{name} goes with --sequence")
        return
    for name, instead in (
        ("by", "one model for all series"),
        ("components", "--states"),
        ("min_count", "mixtures"),
        ("rows", "states.csv has the state of every row"),
    ):
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} does not go with --sequence: {instead}")
    if options.criterion in ("icl", "icl_entropy"):
        parser.error(f"--criterion {options.criterion} does not go with --sequence: bic or aic")


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    """What says which rows are read, and which model is fitted to them."""
    data = parser.add_argument_group("data (with TABLE)")
    data.add_argument(
        "--columns", type=names, metavar="a,b", help="columns to fit (default: all but --by); a name with a comma in "
        "quotes of its own: '\"height, cm\",age'",
    )  # fmt: skip
    data.add_argument("--by", metavar="NAME", help="column of groups: one mixture for each of its values")
    data.add_argument(
        "--sequence", metavar="NAME", help="column that names the series: a hidden Markov model of all of them, whose "
        "steps are the rows in their order",
    )  # fmt: skip
    data.add_argument(
        "--time", metavar="NAME", help="column of whole numbers that rise by one from step to step (with --sequence)"
    )
    data.add_argument("--separator", type=separator, metavar="C", help="between fields of a text file")
    data.add_argument("--strict", action="store_const", const=True, help="refuse a table with bad rows")
    model = parser.add_argument_group("model (with TABLE)")
    model.add_argument(
        "--family", choices=list(FAMILIES), help="of the components (default: full, a normal with full covariance)"
    )
    model.add_argument(
        "--components", type=components, metavar="K", help="number of components, or a range 1:6 with both ends "
        "(default: 2)",
    )  # fmt: skip
    model.add_argument(
        "--states", type=components, metavar="K", help="number of hidden states, or a range 1:4 (with --sequence; "
        "default: 2)",
    )  # fmt: skip
    model.add_argument(
        "--criterion", choices=["bic", "aic", "icl", "icl_entropy"], help="chooses the number (default: bic)"
    )
    model.add_argument(
        "--floor", type=non_negative, help="of the variances of a normal family, in robust column variances (default: "
        "1e-6); 0.01 keeps small groups from spending a component on a single row",
    )  # fmt: skip
    model.add_argument(
        "--min-count", type=non_negative, metavar="N", help="least expected rows of a component, which also must not "
        "lie at the floor, on a value that repeats: a fit with another is INADMISSIBLE; 0 takes any (default: 5)",
    )  # fmt: skip


def _add_other_options(parser: argparse.ArgumentParser) -> None:
    """What goes with a table and without."""
    fit = parser.add_argument_group("fit")
    fit.add_argument("--restarts", "--n-restarts", type=positive, metavar="N", help="k-means++ starts (default: 4)")
    fit.add_argument("--max-iter", type=positive, default=500, metavar="N", help="EM iterations (default: %(default)s)")
    fit.add_argument(
        "--tol", type=number, default=1e-6, help="stop when the mean log-likelihood of a row is foretold to lie within "
        "this of its limit (default: %(default)s)",
    )  # fmt: skip
    fit.add_argument("--seed", type=seed, default=0, help="of the starts (default: %(default)s)")
    fit.add_argument("--float64", action="store_const", const=True, help="64-bit arithmetic (with TABLE)")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results; without TABLE for flights.csv, params.npz "
        "and, where matplotlib is installed, flights.png",
    )  # fmt: skip
    out.add_argument("--force", action="store_const", const=True, help="replace the results in --out (with TABLE)")
    out.add_argument(
        "--rows", nargs="?", const="cluster", choices=["cluster", "all"], help="write the table back with each row's "
        "cluster and its probability, or the probabilities of all components (with TABLE and --out)",
    )  # fmt: skip
    out.add_argument("--top", type=positive, default=10, metavar="N", help="how many to list (default: %(default)s)")
    out.add_argument("--no-progress", action="store_true", help="no progress bar (it needs tqdm and goes to stderr)")
    out.add_argument(
        "--no-cache", action="store_true", help="do not keep compiled programs for the next run; they are kept in "
        f"{str(cache_folder()).replace('%', '%%')}, at most {MOST_BYTES // 2**20} MB, and may be deleted at any time",
    )  # fmt: skip


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {value}")
    return value


def number(text: str) -> float:
    """A number."""
    value = float(text)
    if value != value:
        raise argparse.ArgumentTypeError(f"expected a number, got {text}")
    return value


def seed(text: str) -> int:
    """A whole number of 64 bits."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number of 64 bits, got {text}")
    return value


def non_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def names(text: str) -> list[str]:
    r"""Names between commas, which differ. A name with a comma is in quotes, or has \, for it, as in a CSV file."""
    try:
        found = next(csv.reader([text.replace("\\,", "\0")], skipinitialspace=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f"expected names between commas, got {text!r}: {error}") from error
    found = [name.replace("\0", ",") for name in found]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected names that differ, between commas, got {text!r}")
    return found


def components(text: str) -> list[int]:
    """A number, or the numbers of a range with both ends."""
    try:
        low, high = (int(part) for part in (text.split(":") if ":" in text else (text, text)))
    except ValueError:
        low = high = 0
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"expected a number such as 3 or a range such as 1:6, got {text!r}")
    return list(range(low, high + 1))


def separator(text: str) -> str:
    r"""One character; \t and tab are the tabulator."""
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or not text.isascii() or text in '"\r\n':
        raise argparse.ArgumentTypeError(f"expected one character, got {text!r}")
    return text
