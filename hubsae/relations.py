"""How features lie to each other: which fire together, which write the same way, and which form groups."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse

from hubsae import choose
from hubsae.entries import Scratch, product
from hubsae.errors import ConfigError, DataError

LEAST_TOGETHER = 5  # rows in which two features have to fire together before their phi is believed
_BLOCK_VALUES = 1 << 24
_MAX_PAIRS = 50_000_000


def phi(both: Any, first: Any, second: Any, n: int) -> np.ndarray:
    """Correlation of two yes-or-no variables that are true in `first` and `second` of n rows, and in `both` together.

    phi = (n n11 - n1 n2) / sqrt(n1 (n - n1) n2 (n - n2)), 0 where one of them never changes (Yule 1912).
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    scale = np.sqrt(first * (n - first) * second * (n - second))
    return np.divide(
        n * np.asarray(both, np.float64) - first * second, scale, out=np.zeros_like(scale), where=scale > 0
    )


def together(code: Any, features: np.ndarray | None = None) -> Iterator[tuple[slice, Any]]:
    """For blocks of features (all, or those of `features`): (b, F) CSR, in how many rows of a CSR code both fire."""
    fires: Any = scipy.sparse.csr_matrix((np.ones(len(code.data), np.float32), code.indices, code.indptr), code.shape)
    columns = fires.tocsc()
    columns = columns if features is None else columns[:, features]
    for part in _blocks(columns.shape[1], code.shape[1]):
        yield part, (columns[:, part].T.tocsr() @ fires)


def _phis(code: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For blocks of features: row, column, count and phi of the pairs that fire together often enough."""
    fired = np.bincount(code.indices, minlength=code.shape[1])
    for part, both in together(code):
        both = both.tocoo()
        row, column, count = both.row + part.start, both.col, both.data
        kept = (row != column) & (count >= LEAST_TOGETHER)
        row, column, count = row[kept], column[kept], count[kept]
        yield row, column, count, phi(count, fired[row], fired[column], code.shape[0])


def cofiring(code: Any, n: int = 8) -> dict[str, np.ndarray]:
    """(F, n) columns `cofiring_ids` (-1 where there are fewer), `_phi` and `_counts`: those with the largest phi."""
    n_features = code.shape[1]
    ids, counts = np.full((n_features, n), -1, np.int32), np.zeros((n_features, n), np.int32)
    scores = np.zeros((n_features, n), np.float32)
    for row, column, count, score in _phis(code):
        order = np.lexsort((column, -score, row))
        row, column, count, score = (a[order] for a in (row, column, count, score))
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        kept = (rank < n) & (score > 0)
        where = row[kept], rank[kept]
        ids[where], counts[where], scores[where] = column[kept], count[kept], score[kept]
    return {"cofiring_ids": ids, "cofiring_phi": scores, "cofiring_counts": counts}


def _directions(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def _cosines(rows: np.ndarray) -> Iterator[np.ndarray]:
    """For blocks of rows (F, d): (b, F) cosines with all, -1 with themselves; each is good until the next."""
    directions = _directions(rows)
    transposed, scratch = np.ascontiguousarray(directions.T), Scratch()
    for part in _blocks(len(rows), len(rows)):
        cosine = product(directions[part], transposed, scratch)
        own = np.arange(part.start, part.stop)
        cosine[own - part.start, own] = -1
        yield cosine
        scratch.free()


def similar(rows: np.ndarray, n: int = 8) -> dict[str, np.ndarray]:
    """(F, d) decoder rows -> (F, n) columns `similar_ids` and `similar_cosine`: those with the largest cosine."""
    if len(rows) == 1:
        return {"similar_ids": np.full((1, n), -1, np.int32), "similar_cosine": np.zeros((1, n), np.float32)}
    ids, cosines = [], []
    for cosine in _cosines(rows):
        places, values = choose.largest(cosine, min(n, len(rows) - 1)).ranked(n)
        ids.append(np.where(values[:, :n] > 0, places[:, :n], -1))
        cosines.append(values[:, :n].copy())
    return {"similar_ids": np.concatenate(ids), "similar_cosine": np.concatenate(cosines)}


def cosines_to(rows: np.ndarray, feature: int) -> np.ndarray:
    """(F,) cosines of all decoder rows with that of one feature."""
    directions = _directions(rows)
    return directions @ directions[feature]


def phi_to(code: Any, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """(F,) phi of all features with one, and in how many rows they fire together."""
    fired = np.bincount(code.indices, minlength=code.shape[1])
    both = next(together(code, np.array([feature])))[1].toarray()[0]
    return np.where(both >= LEAST_TOGETHER, phi(both, fired, fired[feature], code.shape[0]), 0), both.astype(np.int64)


def decoder_pairs(rows: np.ndarray, least: float) -> Any:
    """(F, F) CSR of the cosines of decoder rows that are at least `least`, without the diagonal."""
    parts = []
    for cosine in _cosines(rows):
        parts.append(choose.above(cosine, np.nextafter(np.float32(least), np.float32(-1))))
        _refuse_many(sum(len(p.indices) for p in parts), least)
    found = choose.Places.joined(parts, len(rows))
    return scipy.sparse.csr_matrix((found.values, found.indices, found.starts), (len(rows), len(rows)))


def cofiring_pairs(code: Any, least: float) -> Any:
    """(F, F) CSR of the phi of features that is at least `least`, without the diagonal."""
    n_features = code.shape[1]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for row, column, _, score in _phis(code):
        kept = score >= least
        parts.append((row[kept], column[kept], score[kept]))
        _refuse_many(sum(len(scores) for *_, scores in parts), least)
    rows, columns, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return scipy.sparse.csr_matrix((scores, (rows, columns)), (n_features, n_features))


def star_clusters(pairs: Any, members: np.ndarray) -> list[np.ndarray]:
    """Groups of features around a centre that each of them is paired with, largest first, the centre first in each.

    pairs (F, F): closeness of those that are close enough; members: the features that take part. The feature with the
    most free neighbours becomes the next centre and takes them (Taylor 1995; Butina 1999), so no group is a chain.
    """
    free = np.zeros(pairs.shape[0], bool)
    free[members] = True
    counts = np.asarray((pairs != 0) @ free.astype(np.int64)).ravel() * free
    found = []
    while counts.max(initial=0) > 0:
        centre = int(counts.argmax())
        near = pairs.indices[pairs.indptr[centre] : pairs.indptr[centre + 1]]
        closeness = pairs.data[pairs.indptr[centre] : pairs.indptr[centre + 1]]
        taken = free[near]
        group = np.r_[centre, near[taken][np.argsort(-closeness[taken], kind="stable")]]
        if len(group) > 1:
            found.append(group)
        free[group] = False
        counts[group] = 0
        touched = pairs[group].indices
        np.subtract.at(counts, touched, 1)  # pairs are mutual: each lost free neighbour is one less
        counts[~free] = 0
    return sorted(found, key=lambda group: -len(group))


def _blocks(n: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK_VALUES // width)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _refuse_many(n: int, least: float) -> None:
    if n > _MAX_PAIRS:
        raise DataError(f"over {_MAX_PAIRS:,} pairs of features are at least {least:g} close; raise min_similarity")


def check_similarity(least: float) -> float:
    """`least` if it is a closeness that can be asked for."""
    if isinstance(least, bool) or not isinstance(least, int | float | np.number) or not 0 < least <= 1:
        raise ConfigError(f"min_similarity={least!r}: expected a number above 0, up to 1")
    return float(least)
