"""A ragged table: which rows belong to which group, and the padded sizes that groups are fitted in. Host code."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..numerics.labels import as_labels, factorize, find, heads, positions

# What one more compiled shape must save to be worth its compilation, a share of all rows and so much work. The second
# that it takes is the fits of a million rows of two normal components in two columns, of work 4 each (measured); a
# seventh of that is asked, as others compile once and fit often. Tables of many rows are rather cut more finely.
_MOST_BUCKETS, _BUCKET_COST, _BUCKET_WORK = 6, 0.02, 600_000
_MANY_ROWS, _MORE_BUCKETS, _LOWER_COST = 2_000_000, 12, 0.01


class Bucket(NamedTuple):
    """Groups padded to one size: `rows` (g, size) indexes the table, `present` marks what is not padding."""

    groups: np.ndarray
    rows: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Grouping:
    """Which rows belong to which group.

    Attributes:
        labels: (G,) sorted unique labels.
        order: (n,) rows sorted by group, in table order within a group.
        offsets: (G + 1,) where each group starts in `order`.
        in_order: whether `order` is 0, 1, 2, …
    """

    labels: np.ndarray
    order: np.ndarray
    offsets: np.ndarray
    in_order: bool = False

    @property
    def sizes(self) -> np.ndarray:
        """(G,) rows per group."""
        return np.diff(self.offsets)

    def buckets(self, row_work: int = 1) -> list[Bucket]:
        """Groups in a few padded sizes, chosen from the histogram of sizes to waste few rows and few compilations.

        `row_work`: what one row costs: entries times components times fits.
        """
        sizes = self.sizes
        tops = np.asarray(_bucket_sizes(sizes, row_work))
        which = np.searchsorted(tops, sizes)
        buckets = []
        for bucket in range(len(tops)):
            groups = np.flatnonzero(which == bucket)
            if len(groups):
                column = np.arange(tops[bucket], dtype=self.order.dtype)
                present = column < sizes[groups][:, None]
                # padding is a row of the group, its last
                position = np.minimum(column, np.maximum(sizes[groups] - 1, 0)[:, None])
                position += np.minimum(self.offsets[groups], len(self.order) - 1)[:, None]
                buckets.append(Bucket(groups, position if self.in_order else self.order[position], present))
        return buckets


def group_rows(group_ids: Any, labels: np.ndarray | None = None) -> Grouping:
    """Groups the rows of a table by label.

    Runs of equal labels are found first, so a table that is already sorted, by whatever label, costs one comparison
    a row.

    Args:
        group_ids: (n,) labels of any hashable kind; those that are missing are one group, the last.
        labels: the labels known already; None takes those that occur, sorted.

    Raises:
        ValueError: on labels that are not one-dimensional, or not among `labels`.
    """
    ids = as_labels(group_ids)
    if len(ids) == 0:
        known = np.asarray([] if labels is None else labels)
        return Grouping(known, np.zeros(0, np.int64), np.zeros(len(known) + 1, np.int64))
    first = np.flatnonzero(heads(ids))
    known, code = factorize(ids[first]) if labels is None else (labels, _lookup(ids[first], labels))
    lengths = np.diff(np.append(first, len(ids)))
    if len(first) == len(known) and np.all(code[1:] > code[:-1]):
        return Grouping(known, np.arange(len(ids)), np.append(first, len(ids)), in_order=True)
    row_code = np.repeat(code, lengths)
    order = np.argsort(row_code, kind="stable")
    counts = np.bincount(row_code, minlength=len(known))
    return Grouping(known, order, np.concatenate([[0], np.cumsum(counts)]))


def _lookup(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    unique, inverse = factorize(values)
    known = positions(labels)
    code = np.asarray([find(value, known) for value in unique], np.int64)
    if (code < 0).any():
        unknown = unique[code < 0]
        raise ValueError(
            f"group_ids: expected labels that were fitted, got {unknown[0]!r}"
            f"{' and others' if len(unknown) > 1 else ''}; result.labels lists them."
        )
    return code[inverse]


def _bucket_sizes(sizes: np.ndarray, row_work: int) -> list[int]:
    """Padded sizes that waste the fewest rows, by dynamic programming over the histogram of rounded sizes."""
    tops, counts = np.unique([_round_up(int(size)) for size in np.unique(sizes)], return_counts=True)
    counts = np.bincount(np.searchsorted(tops, sizes), minlength=len(tops))
    total = max(int(sizes.sum()), 1)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.full(len(tops) + 1, np.inf)
    best[0] = 0
    choice: list[list[int]] = [[] for _ in range(len(tops) + 1)]
    answer, answer_cost = [int(tops[-1])], np.inf
    most, share = (_MORE_BUCKETS, _LOWER_COST) if total > _MANY_ROWS else (_MOST_BUCKETS, _BUCKET_COST)
    each = max(share * total, _BUCKET_WORK / max(row_work, 1))
    for n_buckets in range(1, min(most, len(tops)) + 1):
        new_best, new_choice = np.full_like(best, np.inf), [[] for _ in choice]
        for j in range(1, len(tops) + 1):
            costs = best[:j] + (before[j] - before[:j]) * tops[j - 1]
            i = int(np.argmin(costs))
            new_best[j], new_choice[j] = costs[i], [*choice[i], int(tops[j - 1])]
        best, choice = new_best, new_choice
        cost = best[-1] + n_buckets * each
        if cost < answer_cost:
            answer, answer_cost = choice[-1], cost
    return answer


def _round_up(size: int) -> int:
    """Up to a multiple of 8, and to three significant bits."""
    step = max(8, 2 ** max(size.bit_length() - 4, 0))
    return max(-(-size // step) * step, 8)
