"""Which entries of a pre-code count, found by NumPy on all cores in slices that stay in the processor's cache."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from hubsae import threads

_SLICE_VALUES = 1 << 20
_WIDEST_BLOCK = 64
_BLOCKS_PER_CHOSEN = 4
_LEAST = np.nextafter(np.float32(0), np.float32(1))


@dataclass(frozen=True)
class Places:
    """Entries of a matrix (n, F), row by row: those of row i are [starts[i], starts[i + 1]) of `indices` and `values`.

    Indices (features) rise within a row.
    """

    starts: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    n_features: int

    @property
    def n(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> np.ndarray:
        """(entries,) the row of each."""
        return np.repeat(np.arange(self.n, dtype=np.int32), np.diff(self.starts))

    @cached_property
    def by_feature(self) -> Any:
        """(F, n) CSR of the same entries; its data are their numbers here."""
        numbers = np.arange(len(self.indices), dtype=np.int32)
        return csr_matrix((numbers, self.indices, self.starts), shape=(self.n, self.n_features)).tocsc()

    def where(self, kept: np.ndarray) -> "Places":
        """Only the entries where `kept` (entries,) is true."""
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts].astype(np.int32)
        return Places(starts, self.indices[kept], self.values[kept], self.n_features)

    def padded(self, width: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Indices and values (n, at least `width`), in order of the features; value 0 where a row has fewer."""
        counts = np.diff(self.starts)
        width = max(width, int(counts.max(initial=0)))
        rows, place = self.rows, np.arange(len(self.indices)) - np.repeat(self.starts[:-1], counts)
        indices, values = np.zeros((self.n, width), np.int32), np.zeros((self.n, width), self.values.dtype)
        indices[rows, place], values[rows, place] = self.indices, self.values
        return indices, values

    def ranked(self, width: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """`padded` with the largest value first."""
        indices, values = self.padded(width)
        order = np.argsort(-values, axis=1, kind="stable")
        return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)

    @classmethod
    def joined(cls, parts: "list[Places]", n_features: int) -> "Places":
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        parts = parts or [cls(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), n_features)]
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        indices, values = (np.concatenate([getattr(p, name) for p in parts]) for name in ("indices", "values"))
        return cls(starts, indices, values, n_features)


def kth(values: np.ndarray, k: int) -> Any:
    """(..., m) -> (...,) the k-th largest of each row, k from 1 to m."""
    place = values.shape[-1] - k
    return np.partition(values, place, axis=-1)[..., place]


def largest(pre: np.ndarray, k: int, bias: np.ndarray | None = None) -> Places:
    """(n, F) -> the k largest entries of each row, of those that are positive; exact, of equal ones the first.

    `bias` (F,) is added to `pre`, in place, on the way. The k largest lie in the k blocks of columns with the largest
    maxima, so the smallest of those k maxima bounds them from below, and few other entries reach it.
    """
    return _in_slices(pre, bias, lambda rows: _largest(rows, min(k, pre.shape[1])))


def share_above(pre: np.ndarray, bound: Any) -> float:
    """What share of the entries of (n, F) is above `bound`, a number or (F,), by a sample of rows."""
    return float(np.mean(pre[:: max(1, len(pre) // 32)] > bound))


def above(pre: np.ndarray, bound: Any, bias: np.ndarray | None = None) -> Places:
    """(n, F) -> the entries above `bound`, a number or (F,).

    `bias` (F,) is added to `pre`, in place, on the way.
    """
    return _in_slices(pre, bias, lambda rows: _entries(rows, rows > bound))


def kth_largest(pre: np.ndarray, total: int, bias: np.ndarray | None = None) -> tuple[float, Places]:
    """The `total`-th largest positive entry of the whole matrix (n, F), and all entries that reach it.

    `bias` (F,) is added to `pre`, in place, on the way. A sample of rows gives a guess that is a little too low, so
    that few entries have to be compared; should it be too high, a lower one is tried. With fewer positive entries than
    `total` the bound is the smallest of them, or 0.
    """
    rows = pre[:: max(1, len(pre) // 32)]
    sample = (rows if bias is None else rows + bias).reshape(-1)
    for excess in (1.3, 2.0, 4.0, np.inf):
        place = excess * total * len(sample) / pre.size
        guess = 0.0
        if place < len(sample):
            guess = max(0.0, float(kth(sample, int(place) + 1)))
        found = _in_slices(pre, bias, lambda rows, low=guess: _entries(rows, rows > low))
        bias = None  # it is in there now
        if len(found.values) >= total or guess == 0:
            break
    if len(found.values) <= total:
        return float(found.values.min(initial=np.inf)) if len(found.values) else 0.0, found
    smallest = kth(found.values, total)
    return float(smallest), found.where(found.values >= smallest)


def _in_slices(pre: np.ndarray, bias: np.ndarray | None, choose: Any) -> Places:
    n, n_features = pre.shape

    def work(part: slice) -> Places:
        rows = pre[part]
        if bias is not None:
            rows += bias
        return choose(rows)

    return Places.joined(threads.in_slices(n, _SLICE_VALUES // n_features, pre.size, work), n_features)


def _largest(rows: np.ndarray, k: int) -> Places:
    n_features = rows.shape[1]
    if k < n_features:
        bound = np.maximum(_lower_bound(rows, k), _LEAST)
        places = _entries(rows, rows >= bound[:, None])
    else:
        places = _entries(rows, rows > 0)
    counts = np.diff(places.starts)
    if counts.max(initial=0) <= k:
        return places
    smallest, row_of = kth(places.padded()[1], k), places.rows
    kept = places.values >= smallest[row_of]
    kept_counts = np.bincount(row_of[kept], minlength=len(rows))
    for row in np.flatnonzero(kept_counts > k):  # several equal the k-th largest
        part = slice(places.starts[row], places.starts[row + 1])
        equal = np.flatnonzero(places.values[part] == smallest[row])
        kept[places.starts[row] + equal[len(equal) - (kept_counts[row] - k) :]] = False
    return places.where(kept)


def _lower_bound(rows: np.ndarray, k: int) -> np.ndarray:
    """(n, F) -> (n,) a bound that k entries of each row reach: the k-th largest of the maxima of blocks of columns."""
    n, n_features = rows.shape
    width = _WIDEST_BLOCK
    while width > 1 and n_features // width < max(_BLOCKS_PER_CHOSEN * k, n_features % width):
        width //= 2
    n_blocks = n_features // width
    maxima = rows
    if width > 1:
        maxima = rows[:, : width * n_blocks].reshape(n, width, n_blocks).max(axis=1)
        rest = rows[:, width * n_blocks :]
        np.maximum(maxima[:, : rest.shape[1]], rest, out=maxima[:, : rest.shape[1]])
    return kth(maxima, k)


def _entries(rows: np.ndarray, mask: np.ndarray) -> Places:
    n, n_features = rows.shape
    flat = np.flatnonzero(mask)
    starts = np.searchsorted(flat, np.arange(n + 1) * n_features).astype(np.int32)
    columns = flat - np.repeat(np.arange(n) * n_features, np.diff(starts))
    return Places(starts, columns.astype(np.int32), rows.reshape(-1)[flat], n_features)
