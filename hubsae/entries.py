"""Codes of a batch while they are trained: the entries that count, and the products that a step needs of them.

`Ragged` holds the few entries of each row in NumPy and multiplies with SciPy on all cores; `Fixed` holds k of each row
in MLX; `Dense` holds all of them, in either. All obey the laws of the matrix (n, F) that is 0 elsewhere.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, Self

import mlx.core as mx
import numpy as np
from scipy.sparse import csr_matrix

from hubsae import threads
from hubsae.choose import Places

try:
    from scipy.sparse._sparsetools import csr_matvecs
except ImportError:  # it is private to SciPy
    csr_matvecs = None

Array = Any  # np.ndarray or mx.array, the same kind for all arrays of a call

_GATHERED_VALUES = 1 << 18  # of decoder rows at once, so that they stay in the cache
_GATHERED_ON_DEVICE = 1 << 26
_NOWHERE = -1e30  # a pre-code that no rule counts


def module_of(array: Array) -> Any:
    """The module, NumPy or MLX, that an array belongs to."""
    return mx if isinstance(array, mx.array) else np


def product(a: Array, b: Array, scratch: "Scratch | None" = None) -> Array:
    """a (n, m) times b (m, p); in memory of `scratch` where NumPy computes it."""
    if isinstance(a, mx.array):
        return a @ b
    shape = (a.shape[0], b.shape[1])
    if scratch is None or a.dtype != np.float32:
        return threads.product(a, b, np.empty(shape, a.dtype))
    return threads.product(a, b, scratch.array(shape))


class Entries(Protocol):
    """Entries of a matrix (n, F); `values` stand there, and other values can take their places."""

    values: Array

    @property
    def n_features(self) -> int: ...

    def holding(self, values: Array) -> Self:
        """The same places with other values."""
        ...

    def at(self, per_feature: Array) -> Array:
        """(F,) -> what belongs to the feature of each entry, to be used with `values`."""
        ...

    def per_feature(self) -> Array:
        """(F,) sums of the values over rows."""
        ...

    def times(self, W: Array, onto: Array) -> Array:
        """`onto` (n, d) plus the matrix times W (F, d); NumPy adds in place."""
        ...

    def transposed_times(self, rows: Array, out: Array | None = None) -> Array:
        """The transposed matrix times rows (n, d) -> (F, d), in `out` if it is given; that is for NumPy."""
        ...

    def dots(self, rows: Array, W: Array) -> Array:
        """The product of rows (n, d) and W (F, d) transposed, at the entries alone."""
        ...

    def split(self, stops: Sequence[int]) -> list[Self]:
        """The features up to each of `stops`, from the one before on."""
        ...

    def joined(self, stops: Sequence[int], values: Sequence[Array]) -> Array:
        """Values for all entries from those of the parts of `split`."""
        ...


class Ragged:
    """Few entries in each row, as many as there are; NumPy."""

    def __init__(self, places: Places, values: np.ndarray | None = None):
        self._places, self.values = places, places.values if values is None else values

    def holding(self, values: np.ndarray) -> "Ragged":
        return Ragged(self._places, values)

    @property
    def n_features(self) -> int:
        return self._places.n_features

    def where(self, kept: np.ndarray) -> "Ragged":
        """Only the entries where `kept` is true."""
        return Ragged(self._places.where(kept), self.values[kept])

    @classmethod
    def stacked(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """The rows of all parts, one after the other."""
        return cls(Places.joined([part._places for part in parts], parts[0].n_features))

    def dense(self, other: float) -> np.ndarray:
        """(n, F), with the value `other` beside the entries."""
        p = self._places
        out = np.full((p.n, p.n_features), other, self.values.dtype)
        out[p.rows, p.indices] = self.values
        return out

    def at(self, per_feature: np.ndarray) -> np.ndarray:
        return per_feature[self._places.indices]

    def per_feature(self) -> np.ndarray:
        p = self._places
        return np.bincount(p.indices, self.values, minlength=p.n_features).astype(self.values.dtype)

    def times(self, W: np.ndarray, onto: np.ndarray) -> np.ndarray:
        p = self._places
        _add_product(p.starts, p.indices, self.values, np.ascontiguousarray(W), onto)
        return onto

    def transposed_times(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        turned = self._places.by_feature
        out = np.empty((self._places.n_features, rows.shape[1]), rows.dtype) if out is None else out
        threads.in_parts(len(out), out.size, lambda part: out[part].fill(0))
        _add_product(turned.indptr, turned.indices, self.values[turned.data], np.ascontiguousarray(rows), out)
        return out

    def dots(self, rows: np.ndarray, W: np.ndarray) -> np.ndarray:
        p, out = self._places, np.empty(len(self.values), rows.dtype)
        most = max(1, _GATHERED_VALUES // rows.shape[1])

        def work(part: slice) -> None:
            start = part.start
            gathered = np.empty((most, rows.shape[1]), rows.dtype)
            while start < part.stop:
                first = p.starts[start]
                stop = int(np.searchsorted(p.starts[: part.stop + 1], first + most, side="right")) - 1
                stop = min(max(stop, start + 1), part.stop)
                ids = p.indices[first : p.starts[stop]]
                taken = gathered[: len(ids)] if len(ids) <= most else np.empty((len(ids), rows.shape[1]), rows.dtype)
                np.take(W, ids, axis=0, out=taken, mode="clip")
                _row_products(taken, rows[start:stop], p.starts[start : stop + 1] - first, out[first : p.starts[stop]])
                start = stop

        threads.in_shares(p.starts, out.size * rows.shape[1], work)
        return out

    def split(self, stops: Sequence[int]) -> list["Ragged"]:
        if len(stops) == 1:
            return [self]
        return [self.where(mask) for mask in self._masks(stops)]

    def joined(self, stops: Sequence[int], values: Sequence[np.ndarray]) -> np.ndarray:
        if len(stops) == 1:
            return values[0]
        out = np.zeros(len(self._places.indices), values[0].dtype)
        for mask, part in zip(self._masks(stops), values, strict=True):
            out[mask] = part
        return out

    def _masks(self, stops: Sequence[int]) -> list[np.ndarray]:
        indices = self._places.indices
        return [(indices >= a) & (indices < b) for a, b in pairwise((0, *stops))]


def _row_products(taken: np.ndarray, rows: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
    """out[i] = taken[i] · the row that entry i belongs to; row r has the entries from starts[r] to starts[r + 1]."""
    n, width = len(rows), int(starts[1])
    if width and starts[-1] == n * width and (np.diff(starts) == width).all():
        np.matmul(taken.reshape(n, width, -1), rows[:, :, None], out=out.reshape(n, width, 1))
        return
    for row, start, stop in zip(rows, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        np.dot(taken[start:stop], row, out=out[start:stop])


def _add_product(starts: np.ndarray, indices: np.ndarray, values: np.ndarray, W: np.ndarray, out: np.ndarray) -> None:
    """Add a CSR matrix times W to `out`, in place; threads take rows with about as many entries each."""

    def work(part: slice) -> None:
        own = starts[part.start : part.stop + 1]
        these = slice(own[0], own[-1])
        _add_rows(own - own[0], indices[these], values[these], W, out[part])

    threads.in_shares(starts, len(values) * W.shape[1], work)


def _add_rows(starts: np.ndarray, indices: np.ndarray, values: np.ndarray, W: np.ndarray, out: np.ndarray) -> None:
    """What SciPy's product does last, without an array for the result: a tenth of a step's time beside the encoder."""
    if csr_matvecs is None or not out.flags.c_contiguous:
        out += csr_matrix((values, indices, starts), shape=(len(out), len(W))) @ W
    else:
        csr_matvecs(len(out), len(W), W.shape[1], starts, indices, values, W.reshape(-1), out.reshape(-1))


class Fixed:
    """k entries in each row; MLX."""

    def __init__(self, indices: mx.array, values: mx.array, n_features: int):
        self._indices, self.values, self.n_features = indices, values, n_features

    def holding(self, values: mx.array) -> "Fixed":
        return Fixed(self._indices, values, self.n_features)

    @classmethod
    def stacked(cls, parts: "Sequence[Fixed]") -> "Fixed":
        """The rows of all parts, one after the other."""
        indices, values = (mx.concatenate([getattr(p, name) for p in parts]) for name in ("_indices", "values"))
        return cls(indices, values, parts[0].n_features)

    def at(self, per_feature: mx.array) -> mx.array:
        return mx.take(per_feature, self._indices)

    def per_feature(self) -> mx.array:
        return mx.zeros(self.n_features, self.values.dtype).at[self._indices.reshape(-1)].add(self.values.reshape(-1))

    def _slices(self, d: int) -> list[slice]:
        n, k = self._indices.shape
        return list(threads.spans(n, _GATHERED_ON_DEVICE // (k * d)))

    def times(self, W: mx.array, onto: mx.array) -> mx.array:
        parts = [(self.values[s, None, :] @ W[self._indices[s]])[:, 0] for s in self._slices(W.shape[1])]
        return onto + mx.concatenate(parts)

    def transposed_times(self, rows: mx.array, out: Array | None = None) -> mx.array:
        total = mx.zeros((self.n_features, rows.shape[1]), rows.dtype)
        for s in self._slices(rows.shape[1]):
            spread = self.values[s][..., None] * rows[s][:, None, :]
            total = total.at[self._indices[s].reshape(-1)].add(spread.reshape(-1, rows.shape[1]))
        return total

    def dots(self, rows: mx.array, W: mx.array) -> mx.array:
        parts = [(W[self._indices[s]] @ rows[s][..., None])[..., 0] for s in self._slices(W.shape[1])]
        return mx.concatenate(parts)

    def split(self, stops: Sequence[int]) -> list["Fixed"]:
        return [self] if len(stops) == 1 else [self.holding(self.values * m) for m in self._masks(stops)]

    def joined(self, stops: Sequence[int], values: Sequence[mx.array]) -> mx.array:
        if len(stops) == 1:
            return values[0]
        return sum((v * m for v, m in zip(values, self._masks(stops), strict=True)), mx.array(0.0))

    def _masks(self, stops: Sequence[int]) -> list[mx.array]:
        return [(self._indices >= a) & (self._indices < b) for a, b in pairwise((0, *stops))]


class Dense:
    """All entries (n, F), of which those in the columns of `window` may differ from 0; NumPy or MLX."""

    def __init__(self, values: Array, window: slice | None = None):
        self.values, self._window = values, window or slice(0, values.shape[1])

    @property
    def n_features(self) -> int:
        return self.values.shape[1]

    def holding(self, values: Array) -> "Dense":
        return Dense(values, self._window)

    def at(self, per_feature: Array) -> Array:
        return per_feature

    def per_feature(self) -> Array:
        return self.values.sum(axis=0)

    def times(self, W: Array, onto: Array) -> Array:
        return onto + product(self.values[:, self._window], W[self._window])

    def transposed_times(self, rows: Array, out: Array | None = None) -> Array:
        return self._at_window(product(self.values[:, self._window].T, rows), axis=0)

    def dots(self, rows: Array, W: Array) -> Array:
        return self._at_window(product(rows, W[self._window].T), axis=1)

    def split(self, stops: Sequence[int]) -> list["Dense"]:
        return [Dense(self.values, slice(a, b)) for a, b in pairwise((0, *stops))]

    def joined(self, stops: Sequence[int], values: Sequence[Array]) -> Array:
        return sum(values[1:], values[0])

    def _at_window(self, found: Array, axis: int) -> Array:
        n_features, w = self.values.shape[1], self._window
        if found.shape[axis] == n_features:
            return found
        beside = [(0, 0), (0, 0)]
        beside[axis] = (w.start, n_features - w.stop)
        return module_of(found).pad(found, beside)


def stacked(parts: Sequence[Any]) -> Any:
    """Entries of some rows after those of others: few of each row, or all where one part has them."""
    if len(parts) == 1:
        return parts[0]
    if not any(isinstance(part, Dense) for part in parts):
        return type(parts[0]).stacked(parts)
    arrays = [part.dense(_NOWHERE) if isinstance(part, Ragged) else part.values for part in parts]
    return Dense(module_of(arrays[0]).concatenate(arrays))


class Scratch:
    """Memory that is used again in every step, since asking for much of it anew costs more than filling it."""

    def __init__(self):
        self._free: list[np.ndarray] = []
        self._given: list[np.ndarray] = []

    def array(self, shape: tuple[int, int]) -> np.ndarray:
        """An fp32 array of any content, to be used until `free` is called."""
        size = shape[0] * shape[1]
        fitting = [i for i, memory in enumerate(self._free) if memory.size >= size]
        smallest = min(fitting, key=lambda i: self._free[i].size, default=None)
        memory = np.empty(size, np.float32) if smallest is None else self._free.pop(smallest)
        self._given.append(memory)
        return memory[:size].reshape(shape)

    def free(self) -> None:
        """Say that the arrays are not used any more."""
        self._free, self._given = self._free + self._given, []
