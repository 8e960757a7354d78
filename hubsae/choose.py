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
        """Indices and values (n, at least `width`), largest value first; value 0 where a row has fewer."""
        counts = np.diff(self.starts)
        width = max(width, int(counts.max(initial=0)))
        place = np.arange(len(self.indices)) - np.repeat(self.starts[:-1], counts)
        indices, values = np.zeros((self.n, width), np.int32), np.zeros((self.n, width), self.values.dtype)
        indices[self.rows, place], values[self.rows, place] = self.indices, self.values
        order = np.argsort(-values, axis=1, kind="stable")
        return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)

    @classmethod
    def joined(cls, parts: "list[Places]") -> "Places":
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        indices, values = (np.concatenate([getattr(p, name) for p in parts]) for name in ("indices", "values"))
        return cls(starts, indices, values, parts[0].n_features)


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


def kth_largest(pre: np.ndarray, total: int) -> tuple[float, Places]:
    """The `total`-th largest positive entry of the whole matrix (n, F), and all entries that reach it.

    A sample of rows gives a guess that is a little too low, so that few entries have to be compared; should it be too
    high, a lower one is tried. With fewer positive entries than `total` the bound is the smallest of them, or 0.
    """
    sample = pre[:: max(1, len(pre) // 32)].reshape(-1)
    for excess in (1.3, 2.0, 4.0, np.inf):
        place = excess * total * len(sample) / pre.size
        guess = 0.0
        if place < len(sample):
            guess = max(0.0, float(np.partition(sample, len(sample) - 1 - int(place))[len(sample) - 1 - int(place)]))
        found = _in_slices(pre, None, lambda rows, low=guess: _entries(rows, rows > low))
        if len(found.values) >= total or guess == 0:
            break
    if len(found.values) <= total:
        return float(found.values.min(initial=np.inf)) if len(found.values) else 0.0, found
    place = len(found.values) - total
    kth = np.partition(found.values, place)[place]
    return float(kth), found.where(found.values >= kth)


def _in_slices(pre: np.ndarray, bias: np.ndarray | None, choose: Any) -> Places:
    n, n_features = pre.shape
    step = max(1, _SLICE_VALUES // n_features)

    def work(part: slice) -> list[Places]:
        out = []
        for inner in threads.spans(part.stop - part.start, step):
            rows = pre[part][inner]
            if bias is not None:
                rows += bias
            out.append(choose(rows))
        return out

    return Places.joined([places for parts in threads.in_parts(n, pre.size, work) for places in parts])


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
    padded = np.zeros((len(rows), int(counts.max())), rows.dtype)
    place = np.arange(len(places.indices)) - np.repeat(places.starts[:-1], counts)
    padded[places.rows, place] = places.values
    kth = np.partition(padded, padded.shape[1] - k, axis=1)[:, padded.shape[1] - k]
    kept = places.values >= kth[places.rows]
    kept_counts = np.bincount(places.rows[kept], minlength=len(rows))
    for row in np.flatnonzero(kept_counts > k):  # several equal the k-th largest
        part = slice(places.starts[row], places.starts[row + 1])
        equal = np.flatnonzero(places.values[part] == kth[row])
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
    return np.partition(maxima, maxima.shape[1] - k, axis=1)[:, maxima.shape[1] - k]


def _entries(rows: np.ndarray, mask: np.ndarray) -> Places:
    n, n_features = rows.shape
    flat = np.flatnonzero(mask)
    starts = np.searchsorted(flat, np.arange(n + 1) * n_features).astype(np.int32)
    columns = flat - np.repeat(np.arange(n) * n_features, np.diff(starts))
    return Places(starts, columns.astype(np.int32), rows.reshape(-1)[flat], n_features)
