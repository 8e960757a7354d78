"""Exact top-k and sparse codes: what few of many features are active, without building the dense matrix."""

from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np
import scipy.sparse

from hubsae import backend


@dataclass(frozen=True)
class SparseCode:
    """A batch of codes: `indices` (..., k) of features and their `values` (..., k), largest first.

    Where fewer than k features are active the rest have value 0; an index says nothing there.
    """

    indices: mx.array
    values: mx.array
    n_features: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense code, (..., F)."""
        return (*self.indices.shape[:-1], self.n_features)

    def dense(self) -> mx.array:
        """(..., F)"""
        return mx.put_along_axis(mx.zeros(self.shape, self.values.dtype), self.indices, self.values, axis=-1)

    @cached_property
    def csr(self) -> scipy.sparse.csr_matrix:
        """(n, F) SciPy matrix over all rows, zeros dropped; views of the MLX memory where that is possible."""
        k = self.indices.shape[-1]
        values = np.array(self.values.astype(mx.float32).reshape(-1))
        indices = np.array(self.indices.reshape(-1))
        starts = np.arange(0, len(values) + 1, max(k, 1))
        matrix = scipy.sparse.csr_matrix((values, indices, starts), shape=(len(starts) - 1, self.n_features))
        matrix.eliminate_zeros()
        return matrix

    def active_counts(self) -> np.ndarray:
        """(F,) in how many rows each feature is active."""
        return np.bincount(self.csr.indices, minlength=self.n_features)


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
    if backend.is_cpu():
        product = code.csr @ np.array(W_dec.astype(mx.float32), copy=False)
        return mx.array(product).astype(W_dec.dtype).reshape(*code.shape[:-1], W_dec.shape[1])
    flat_indices, flat_values = (a.reshape(-1, a.shape[-1]) for a in (code.indices, code.values))
    rows_at_once = max(1, (1 << 26) // (flat_indices.shape[1] * W_dec.shape[1]))
    parts = [
        (flat_values[i : i + rows_at_once, None, :] @ W_dec[flat_indices[i : i + rows_at_once]])[:, 0]
        for i in range(0, len(flat_indices), rows_at_once)
    ]
    return mx.concatenate(parts).reshape(*code.shape[:-1], W_dec.shape[1])
