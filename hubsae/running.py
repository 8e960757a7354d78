"""The examples worth keeping of every feature while texts stream by: running top-n, in memory that does not grow."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_FEATURES_AT_ONCE = 4096


@dataclass(frozen=True)
class Firings:
    """The entries of a code (n, F) feature by feature, and where in the texts its rows are.

    indptr (F + 1,), rows and values (entries,): a CSC matrix; the rows of a chunk follow each other. chunk, position
    (n,): of every row. tokens: the ids of all chunks one after the other, chunk c from starts[c] to starts[c + 1], and
    row_of (tokens,): the row of each, -1 where it is none. documents (chunks,): their numbers.
    """

    indptr: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    chunk: np.ndarray
    position: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray
    row_of: np.ndarray
    documents: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """(entries,) the feature of each."""
        return np.repeat(np.arange(len(self.indptr) - 1, dtype=np.int32), np.diff(self.indptr))

    def best_of_each_chunk(self, keys: np.ndarray) -> np.ndarray:
        """The entry with the largest key of every feature in every chunk where it fires, in the order of entries."""
        if not len(keys):
            return np.zeros(0, np.int64)
        features, chunks = self.features, self.chunk[self.rows]
        first = np.r_[True, (features[1:] != features[:-1]) | (chunks[1:] != chunks[:-1])]
        starts = np.flatnonzero(first)
        largest = np.maximum.reduceat(keys, starts)
        segment = np.cumsum(first) - 1
        hits = np.flatnonzero(keys == largest[segment])
        return hits[np.r_[True, np.diff(segment[hits]) > 0]]


class Kept:
    """For each of F features the `n` entries with the largest keys, each with `before` + 1 + `after` tokens around."""

    def __init__(self, n_features: int, n: int, before: int, after: int):
        self._n, self._before, self._window = n, before, before + 1 + after
        shape = (n_features, n)
        self.keys = np.full(shape, -np.inf, np.float32)
        self.value = np.zeros(shape, np.float32)
        self.document = np.full(shape, -1, np.int32)
        self.at = np.zeros(shape, np.int32)
        self.tokens = np.full((*shape, self._window), -1, np.int32)
        self.values = np.zeros((*shape, self._window), np.float32)

    def add(self, firings: Firings, keys: np.ndarray) -> None:
        """Take in a code; keys (entries,): what ranks them. Of a chunk a feature keeps one."""
        entries = firings.best_of_each_chunk(keys)
        features = firings.features[entries]
        worth = keys[entries] > self.keys[features, -1]
        entries, features = entries[worth], features[worth]
        order = np.lexsort((-keys[entries], features))
        entries, features = entries[order], features[order]
        first = np.searchsorted(features, np.arange(len(self.keys) + 1))
        rank = np.arange(len(features)) - first[features]
        entries, features, rank = (a[rank < self._n] for a in (entries, features, rank))
        lookup = _Lookup(firings)
        for low in range(0, len(self.keys), _FEATURES_AT_ONCE):
            part = slice(*np.searchsorted(features, (low, low + _FEATURES_AT_ONCE)))
            if part.start < part.stop:
                self._merge(firings, lookup, keys, entries[part], features[part], rank[part])

    def _merge(
        self,
        firings: Firings,
        lookup: "_Lookup",
        keys: np.ndarray,
        entries: np.ndarray,
        features: np.ndarray,
        rank: np.ndarray,
    ) -> None:
        which, line = np.unique(features, return_inverse=True)
        new_keys = np.full((len(which), self._n), -np.inf, np.float32)
        new_keys[line, rank] = keys[entries]
        new_entry = np.zeros((len(which), self._n), np.int64)
        new_entry[line, rank] = entries
        both = np.concatenate([self.keys[which], new_keys], axis=1)
        picked = np.argsort(-both, axis=1, kind="stable")[:, : self._n]
        old = np.minimum(picked, self._n - 1)
        for name in ("value", "document", "at", "tokens", "values"):
            array = getattr(self, name)
            array[which] = array[which[:, None], old]
        self.keys[which] = np.take_along_axis(both, picked, axis=1)
        fresh = (picked >= self._n) & np.isfinite(self.keys[which])
        i, place = np.nonzero(fresh)
        chosen = new_entry[i, picked[i, place] - self._n]
        into = which[i], place
        self.value[into] = firings.values[chosen]
        self._look_around(firings, lookup, chosen, which[i], into)

    def _look_around(
        self, firings: Firings, lookup: "_Lookup", entries: np.ndarray, features: np.ndarray, into: tuple
    ) -> None:
        rows = firings.rows[entries]
        chunk, position = firings.chunk[rows], firings.position[rows]
        self.document[into] = firings.documents[chunk]
        start = np.maximum(position - self._before, 0)
        self.at[into] = position - start
        first = firings.starts[chunk] + start
        places = first[:, None] + np.arange(self._window)
        inside = places < firings.starts[chunk + 1][:, None]
        places = np.where(inside, places, first[:, None])
        self.tokens[into] = np.where(inside, firings.tokens[places], -1)
        values = lookup(features[:, None], firings.row_of[places])
        self.values[into] = np.where(inside, values, 0)

    def columns(self, prefix: str) -> dict[str, np.ndarray]:
        """As the columns of a table of features."""
        n_features = len(self.keys)
        flat = {name: getattr(self, name).reshape(n_features, -1) for name in ("tokens", "values")}
        own = {"value": self.value, "document": self.document, "at": self.at, **flat}
        return {f"{prefix}_{name}": array for name, array in own.items()}


class _Lookup:
    """The value of (feature, row), 0 where there is no entry."""

    def __init__(self, firings: Firings):
        self._n_rows = len(firings.chunk)
        self._keys = firings.features.astype(np.int64) * self._n_rows + firings.rows
        self._values = firings.values

    def __call__(self, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
        wanted = features.astype(np.int64) * self._n_rows + rows
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where((rows >= 0) & (self._keys[place] == wanted), self._values[place], np.float32(0))


class RowSample:
    """A uniform sample of at most `n` rows of a code, for what needs pairs of features."""

    def __init__(self, n: int, rng: np.random.Generator):
        self._n, self._rng = n, rng
        self._parts: list[tuple[np.ndarray, Any]] = []
        self._size, self._bound = 0, -1.0

    def add(self, code: Any) -> None:
        """Take in a CSR code (n, F)."""
        keys = self._rng.random(code.shape[0])
        chosen = np.flatnonzero(keys > self._bound)
        self._parts.append((keys[chosen], code[chosen]))
        self._size += len(chosen)
        if self._size > 2 * self._n:
            self._prune()

    def _prune(self) -> None:
        import scipy.sparse

        keys = np.concatenate([k for k, _ in self._parts])
        code: Any = scipy.sparse.vstack([c for _, c in self._parts], format="csr")
        if len(keys) > self._n:
            self._bound = float(np.partition(keys, len(keys) - self._n)[len(keys) - self._n])
            chosen = np.flatnonzero(keys >= self._bound)
            keys, code = keys[chosen], code[chosen]
        self._parts, self._size = [(keys, code)], len(keys)

    @property
    def code(self) -> Any:
        """(at most n, F) CSR."""
        self._prune()
        return self._parts[0][1]
