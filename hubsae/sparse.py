"""Exact top-k and sparse codes: what few of many features are active, without building the dense matrix."""

from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from scipy.sparse import csr_matrix

from hubsae import backend
from hubsae.choose import Places
from hubsae.entries import Fixed, Ragged


class SparseCode:
    """A batch of codes: `indices` (..., k) of features and their `values` (..., k), largest first.

    Where fewer than k features are active the rest have value 0; an index says nothing there.
    """

    def __init__(self, indices: mx.array, values: mx.array, n_features: int):
        self._shape, self._padded, self._places = (*indices.shape[:-1], n_features), (indices, values), None
        self._width, self._dtype = 1, values.dtype

    @classmethod
    def of(cls, places: Places, shape: tuple[int, ...], width: int = 1, dtype: mx.Dtype = mx.float32) -> "SparseCode":
        """The entries of a matrix whose rows are the leading dimensions of `shape` (..., F); k is at least `width`."""
        self = cls.__new__(cls)
        self._shape, self._padded, self._places = shape, None, places
        self._width, self._dtype = width, dtype
        return self

    @cached_property
    def _arrays(self) -> tuple[mx.array, mx.array]:
        if self._padded is not None:
            return self._padded
        padded = self.places.ranked(self._width)
        indices, values = (mx.array(a).reshape(*self._shape[:-1], a.shape[1]) for a in padded)
        return indices, values.astype(self._dtype)

    @property
    def indices(self) -> mx.array:
        """(..., k)"""
        return self._arrays[0]

    @property
    def values(self) -> mx.array:
        """(..., k)"""
        return self._arrays[1]

    @property
    def n_features(self) -> int:
        return self._shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense code, (..., F)."""
        return self._shape

    @cached_property
    def places(self) -> Places:
        """The entries that are not 0, of all rows one after the other, in NumPy."""
        if self._places is not None:
            return self._places
        k = self.indices.shape[-1]
        values = np.array(self.values.astype(mx.float32).reshape(-1, k))
        kept, order = values != 0, np.argsort(np.array(self.indices.reshape(-1, k)), axis=1)
        indices = np.take_along_axis(np.array(self.indices.reshape(-1, k)), order, axis=1)
        values, kept = (np.take_along_axis(a, order, axis=1) for a in (values, kept))
        starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
        return Places(starts, indices[kept].astype(np.int32), values[kept], self.n_features)

    def dense(self) -> mx.array:
        """(..., F)"""
        if self._places is not None:
            return mx.array(Ragged(self._places).dense(0.0)).reshape(self.shape).astype(self._dtype)
        return mx.put_along_axis(mx.zeros(self.shape, self.values.dtype), self.indices, self.values, axis=-1)

    @cached_property
    def csr(self) -> Any:
        """(n, F) SciPy matrix over all rows, zeros dropped."""
        p = self.places
        return csr_matrix((p.values, p.indices, p.starts), shape=(p.n, p.n_features))

    def active_counts(self) -> np.ndarray:
        """(F,) in how many rows each feature is active."""
        return np.bincount(self.places.indices, minlength=self.n_features)


def top_k(pre: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """(..., F) -> indices and values (..., min(k, F)) of the largest entries, largest first; exact, ties by any order.

    The k largest entries lie in the k blocks with the largest maxima, so only those blocks are sorted.
    """
    n_features = pre.shape[-1]
    k = min(k, n_features)
    block = _block_width(n_features, k)
    if block > 1:
        blocks = pre.reshape(*pre.shape[:-1], n_features // block, block)
        kept = _arg_largest(mx.max(blocks, axis=-1), k)
        columns = (kept[..., None] * block + mx.arange(block, dtype=mx.int32)).reshape(*pre.shape[:-1], k * block)
        inner = _arg_largest(mx.take_along_axis(pre, columns, axis=-1), k)
        indices = mx.take_along_axis(columns, inner, axis=-1)
    else:
        indices = _arg_largest(pre, k)
    order = mx.argsort(-mx.take_along_axis(pre, indices, axis=-1), axis=-1)
    indices = mx.stop_gradient(mx.take_along_axis(indices, order, axis=-1))
    return indices, mx.take_along_axis(pre, indices, axis=-1)


def _block_width(n_features: int, k: int) -> int:
    """The divisor of F that sorts the fewest entries, F/b + k*b; 1 where blocks do not pay."""
    best, cost = 1, n_features
    for width in (2, 4, 8, 16, 32, 64):
        if n_features % width == 0 and n_features // width >= k and n_features // width + k * width < 0.8 * cost:
            best, cost = width, n_features // width + k * width
    return best


def _arg_largest(values: mx.array, k: int) -> mx.array:
    size = values.shape[-1]
    if k >= size:
        return mx.broadcast_to(mx.arange(size, dtype=mx.int32), values.shape)
    return mx.argpartition(values, size - k, axis=-1)[..., size - k :].astype(mx.int32)


def decode(code: SparseCode, W_dec: mx.array) -> mx.array:
    """Sparse code times W_dec (F, d) -> (..., d)."""
    d = W_dec.shape[1]
    if backend.is_cpu():
        places = code.places
        product = Ragged(places).times(as_numpy(W_dec), np.zeros((places.n, d), np.float32))
        return mx.array(product).astype(W_dec.dtype).reshape(*code.shape[:-1], d)
    indices, values = (a.reshape(-1, a.shape[-1]) for a in (code.indices, code.values))
    product = Fixed(indices, values, code.n_features).times(W_dec, mx.zeros(d, W_dec.dtype))
    return product.reshape(*code.shape[:-1], d)


def as_numpy(array: mx.array) -> np.ndarray:
    """The same in fp32, without a copy where it is fp32 already; not to be written to."""
    return np.array(array.astype(mx.float32), copy=None)
