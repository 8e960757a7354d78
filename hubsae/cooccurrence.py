"""How two dictionaries' codes of the same places go together: correlations of all pairs, and of some with intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from hubsae.matching import Block
from hubsae.threads import spans

_VALUES_AT_ONCE = 1 << 25
_PAIRS_AT_ONCE = 2048
_FEWEST_DOCUMENTS = 10


@dataclass(frozen=True)
class CodePair:
    """Codes of the same n places by two dictionaries: a (n, F_A) and b (n, F_B), CSC; document (n,) of each place."""

    a: Any
    b: Any
    document: np.ndarray

    @property
    def n(self) -> int:
        return self.a.shape[0]

    @cached_property
    def firings(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each feature fires: (F_A,), (F_B,)."""
        return tuple(np.diff(m.indptr) for m in (self.a, self.b))  # type: ignore[return-value]

    def swapped(self) -> "CodePair":
        """The same with A and B exchanged."""
        return CodePair(self.b, self.a, self.document)


def _sums(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """(F,) sum and scatter about the mean of every column, float64."""
    first = np.asarray(matrix.astype(np.float64).sum(axis=0)).ravel()  # `dtype=` adds in single precision
    second = np.asarray(_squared(matrix).sum(axis=0)).ravel()
    return first, np.maximum(second - first**2 / max(matrix.shape[0], 1), 0)


def correlation_blocks(codes: CodePair, min_firings: int = 1, min_cofirings: int = 0) -> Iterator[Block]:
    """Pearson correlations (F_A, block) of all pairs, some of B's features at a time, in bounded memory.

    -inf where a feature fires less than `min_firings` times, or the two together less than `min_cofirings`: few firings
    correlate highly by chance. Equal to numpy.corrcoef; a sparse product for every block.
    """
    n_a, n_b = codes.a.shape[1], codes.b.shape[1]
    (sum_a, scatter_a), (sum_b, scatter_b) = _sums(codes.a), _sums(codes.b)
    enough = [count >= min_firings for count in codes.firings]
    rows = codes.a.T.tocsr()
    marks = _marks(rows) if min_cofirings else None
    size = max(1, min(n_b, _VALUES_AT_ONCE // max(n_a, 1)))
    for part in spans(n_b, size):
        block = codes.b[:, part].tocsr()
        r = (rows @ block).toarray().astype(np.float32, copy=False)
        r -= np.outer(sum_a / codes.n, sum_b[part]).astype(np.float32)
        scale = np.outer(np.sqrt(scatter_a), np.sqrt(scatter_b[part])).astype(np.float32)
        r = np.divide(r, scale, out=np.full_like(r, -np.inf), where=scale > 0)
        if marks is not None:
            r[(marks @ _marks(block)).toarray() < min_cofirings] = -np.inf
        r[~enough[0]] = -np.inf
        r[:, ~enough[1][part]] = -np.inf
        yield part, r


def _squared(matrix: Any) -> Any:
    squares = matrix.copy()
    squares.data = np.square(squares.data, dtype=np.float64)
    return squares


def _marks(matrix: Any) -> Any:
    ones = matrix.copy()
    ones.data = np.ones(len(ones.data), np.float32)
    return ones


def _products(za: Any, zb: Any, a: np.ndarray, b: np.ndarray) -> Iterator[Any]:
    """(n, some) sparse: the columns a of one matrix times the columns b of the other, entry by entry, in turn."""
    for part in spans(len(a), _PAIRS_AT_ONCE):
        yield za[:, a[part]].multiply(zb[:, b[part]])


def rolled(codes: CodePair, by: int) -> CodePair:
    """B's places moved on by so many rows, in a circle: what belongs together no longer does, runs stay runs."""
    order = (np.arange(codes.n) + by) % codes.n
    return CodePair(codes.a, codes.b.tocsr()[order].tocsc(), codes.document)


@dataclass(frozen=True)
class DocumentSums:
    """Sums of codes over the places of each document (or group of them), from which those of any pairs follow quickly.

    n (documents,); a, aa (documents, F_A) and b, bb (documents, F_B): of values and of their squares, CSC.
    """

    codes: CodePair
    into: Any
    n: np.ndarray
    a: Any
    b: Any
    aa: Any
    bb: Any

    @classmethod
    def of(cls, codes: CodePair, n_groups: int | None = None) -> "DocumentSums":
        """By document, or with `n_groups` by every so many-th document together."""
        names, place = np.unique(codes.document, return_inverse=True)
        if n_groups is not None:
            place = place % n_groups
        size = min(len(names), n_groups or len(names))
        into = scipy.sparse.csr_matrix((np.ones(codes.n), (place, np.arange(codes.n))), shape=(size, codes.n))
        sums = [(into @ m).tocsc() for m in (codes.a, codes.b, _squared(codes.a), _squared(codes.b))]
        return cls(codes, into, np.bincount(place, minlength=size).astype(np.float64), *sums)

    def of_pairs(self, a: np.ndarray, b: np.ndarray) -> "PairSums":
        """The sums of the pairs (a[i], b[i])."""
        cross = [(self.into @ product).tocsc() for product in _products(self.codes.a, self.codes.b, a, b)]
        ab = scipy.sparse.hstack(cross, format="csc") if cross else scipy.sparse.csc_matrix((len(self.n), 0))
        return PairSums(self.n, self.a[:, a], self.b[:, b], self.aa[:, a], self.bb[:, b], ab)

    def correlations(self, a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """`PairSums.correlations` of any number of pairs, some at a time; 0 without variance; draws in fp32."""
        kind = np.float64 if weights is None else np.float32
        parts = [
            self.of_pairs(a[part], b[part]).correlations(weights).astype(kind)
            for part in spans(len(a), 2 * _PAIRS_AT_ONCE)
        ]
        empty = np.zeros(0 if weights is None else (len(weights), 0))
        return np.nan_to_num(np.concatenate(parts, axis=-1)) if parts else empty


@dataclass(frozen=True)
class PairSums:
    """Sums over the places of each document, for m pairs: n (documents,), the rest (documents, m) sparse."""

    n: np.ndarray
    a: Any
    b: Any
    aa: Any
    bb: Any
    ab: Any

    def correlations(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(m,), or (draws, m) with weights (draws, documents): how often each document counts; nan without variance."""
        w = np.ones((1, len(self.n))) if weights is None else np.asarray(weights, np.float64)
        n = (w @ self.n)[:, None]
        a, b, aa, bb, ab = (np.asarray((m.T @ w.T).T) for m in (self.a, self.b, self.aa, self.bb, self.ab))
        scatter = np.maximum(aa - a**2 / n, 0) * np.maximum(bb - b**2 / n, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.where(scatter > 0, (ab - a * b / n) / np.sqrt(scatter), np.nan)
        return r[0] if weights is None else r

    def intervals(self, n_draws: int, seed: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(m,) ends of percentile intervals when documents are drawn anew; nan with fewer than 10 of them, and where a
        correlation is rarely defined."""
        documents = len(self.n)
        if documents < _FEWEST_DOCUMENTS:
            return np.full(self.ab.shape[1], np.nan), np.full(self.ab.shape[1], np.nan)
        w = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=n_draws)
        low, high = (np.full(self.ab.shape[1], np.nan) for _ in range(2))
        tail = 100 * (1 - level) / 2
        for part in spans(len(low), _PAIRS_AT_ONCE):
            draws = self.where(part).correlations(w)
            some = np.isfinite(draws).sum(axis=0) > n_draws // 2
            if some.any():
                low[part][some], high[part][some] = np.nanpercentile(draws[:, some], [tail, 100 - tail], axis=0)
        return low, high

    def where(self, part: Any) -> "PairSums":
        """Some of the pairs."""
        return PairSums(self.n, *(m[:, part] for m in (self.a, self.b, self.aa, self.bb, self.ab)))


def rearranged(codes: CodePair, a: np.ndarray, b: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """(draws, m) correlations of the pairs when the place t of B is taken from orders[draw, t]."""
    n, out = codes.n, np.full((len(orders), len(a)), np.nan, np.float32)
    (sum_a, scatter_a), (sum_b, scatter_b) = _sums(codes.a), _sums(codes.b)
    scratch = np.zeros(n)
    for m, (i, j) in enumerate(zip(a, b, strict=True)):
        scale = np.sqrt(scatter_a[i] * scatter_b[j])
        if not scale > 0:
            continue
        rows_b = slice(codes.b.indptr[j], codes.b.indptr[j + 1])
        rows_a = slice(codes.a.indptr[i], codes.a.indptr[i + 1])
        scratch[codes.b.indices[rows_b]] = codes.b.data[rows_b]
        products = scratch[orders[:, codes.a.indices[rows_a]]] @ codes.a.data[rows_a]
        scratch[codes.b.indices[rows_b]] = 0
        out[:, m] = (products - sum_a[i] * sum_b[j] / n) / scale
    return out


def far_shifts(n: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws,) by how many places to move n places in a circle: at least a twentieth of them either way."""
    least = max(1, n // 20)
    return rng.integers(least, max(n - least, least + 1), n_draws)


def roll_orders(n: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, n) circular shifts by at least a twentieth of the rows."""
    by = far_shifts(n, n_draws, rng)
    return (np.arange(n, dtype=np.int32)[None] + by[:, None].astype(np.int32)) % np.int32(n)


def class_orders(classes: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, n) orders that exchange places of the same class alone; a class of one stays where it is."""
    by_class = np.argsort(classes, kind="stable")
    orders = np.empty((n_draws, len(classes)), np.int32)
    for draw in orders:
        shuffled = np.lexsort((rng.random(len(classes)), classes))
        draw[by_class] = shuffled
    return orders


def counts(codes: CodePair, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(m,) at how many places the features of each pair fire together."""
    products = _products(_marks(codes.a), _marks(codes.b), a, b)
    parts = [np.asarray(product.sum(axis=0)).ravel() for product in products]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
