"""Which features belong together, from scores of pairs: mutual nearest neighbours, and exact one-to-one with reject."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from hubsae.errors import ConfigError
from hubsae.threads import spans

MATCHINGS = ("one_to_one", "mutual")
_VALUES_AT_ONCE = 1 << 25
_LARGEST = 1 << 24  # scores of one component that are assigned exactly
Block = tuple[slice, np.ndarray]


@dataclass(frozen=True)
class Edges:
    """Pairs of features a (m,), b (m,) with their scores (m,)."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    def where(self, chosen: np.ndarray) -> "Edges":
        """Some of them."""
        return Edges(self.a[chosen], self.b[chosen], self.score[chosen])

    def best(self, of_b: bool = False) -> np.ndarray:
        """(m,) bool: whether a pair is the best of its feature in A (or in B); of equal scores the first one."""
        own, other = (self.b, self.a) if of_b else (self.a, self.b)
        order = np.lexsort((other, -self.score, own))
        found = np.zeros(len(self), bool)
        found[order[np.r_[True, np.diff(own[order]) != 0]] if len(order) else order] = True
        return found

    def rank(self, of_b: bool = False) -> np.ndarray:
        """(m,) place of a pair among those of its feature in A (or in B) by score, from 0."""
        own = self.b if of_b else self.a
        order = np.lexsort((-self.score, own))
        starts = np.searchsorted(own[order], own[order])
        rank = np.empty(len(self), np.int64)
        rank[order] = np.arange(len(self)) - starts
        return rank


class Candidates:
    """Pairs worth keeping while blocks of scores stream by: of every feature the best few, and all above a threshold.

    `threshold` None: the best few alone. Scores that are not finite are no pairs.
    """

    def __init__(self, n_a: int, n_b: int, n_best: int = 8, threshold: float | None = None):
        self._n_a, self._n_b, self._n_best, self._threshold = n_a, n_b, n_best, threshold
        self._scores = np.full((n_a, n_best), -np.inf, np.float32)
        self._ids = np.full((n_a, n_best), -1, np.int64)
        self._parts: list[Edges] = []

    def add(self, columns: slice, scores: np.ndarray) -> None:
        """Take in scores (F_A, block) of some of B's features."""
        ids = np.arange(columns.start, columns.stop)
        keep = np.zeros(scores.shape, bool)
        k = min(self._n_best, len(scores))
        top = np.argpartition(-scores, k - 1, axis=0)[:k]
        np.put_along_axis(keep, top, True, axis=0)
        if self._threshold is not None:
            keep |= scores > self._threshold
        keep &= np.isfinite(scores)
        a, b = np.nonzero(keep)
        self._parts.append(Edges(a, ids[b], scores[a, b]))
        both = np.concatenate([self._scores, scores], axis=1)
        names = np.concatenate([self._ids, np.broadcast_to(ids, scores.shape)], axis=1)
        picked = np.argpartition(-both, self._n_best - 1, axis=1)[:, : self._n_best]
        self._scores = np.take_along_axis(both, picked, axis=1)
        self._ids = np.take_along_axis(names, picked, axis=1)

    def edges(self) -> Edges:
        """All of them, each once, by feature of A, then of B."""
        rows, places = np.nonzero(np.isfinite(self._scores) & (self._ids >= 0))
        return joined([*self._parts, Edges(rows, self._ids[rows, places], self._scores[rows, places])], self._n_b)


def joined(parts: Iterable[Edges], n_b: int) -> Edges:
    """All edges of several, each once, by feature of A, then of B; of scores that differ the first one's."""
    parts = list(parts)
    a, b, score = (np.concatenate([getattr(part, name) for part in parts]) for name in ("a", "b", "score"))
    _, first = np.unique(a * n_b + b, return_index=True)
    return Edges(a[first], b[first], score[first])


def gathered(blocks: Iterable[Block], n_a: int, n_b: int, *, n_best: int = 8, threshold: float | None = None) -> Edges:
    """The candidates of all blocks of scores."""
    found = Candidates(n_a, n_b, n_best, threshold)
    for columns, scores in blocks:
        found.add(columns, scores)
    return found.edges()


def cosine_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[Block]:
    """Cosines of directions a (F_A, d), b (F_B, d), some of B's at a time; 0 where one is zero."""
    size = max(1, _VALUES_AT_ONCE // max(len(a), 1))
    unit_a, unit_b = (unit(rows).astype(np.float32) for rows in (a, b))
    for part in spans(len(b), size):
        yield part, unit_a @ unit_b[part].T


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; those of length 0 stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def mutual(edges: Edges) -> np.ndarray:
    """(m,) bool: pairs in which each is the other's best."""
    return edges.best() & edges.best(of_b=True)


def one_to_one(edges: Edges, threshold: float) -> np.ndarray:
    """(m,) bool: the pairs, each feature in at most one, that maximise the sum of (score - threshold) above it.

    Exact: a pair at or below the threshold is never worth having, so that components of the graph of those above it are
    assigned one by one (Kuhn 1955, Hungarian method, with rejection). Of a component of more than 16M possible pairs
    the mutual nearest neighbours are taken.
    """
    above = np.flatnonzero(edges.score > threshold)
    chosen = np.zeros(len(edges), bool)
    if not len(above):
        return chosen
    names_a, row = np.unique(edges.a[above], return_inverse=True)
    names_b, column = np.unique(edges.b[above], return_inverse=True)
    size = len(names_a) + len(names_b)
    graph = scipy.sparse.coo_matrix((np.ones(len(above)), (row, column + len(names_a))), shape=(size, size))
    label = connected_components(graph, directed=False)[1][row]
    order = np.argsort(label, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        if len(part) == 1:
            chosen[above[part]] = True
            continue
        _, i = np.unique(row[part], return_inverse=True)
        _, j = np.unique(column[part], return_inverse=True)
        if (i.max() + 1) * (j.max() + 1) > _LARGEST:
            chosen[above[part[mutual(edges.where(above[part]))]]] = True
            continue
        worth = np.zeros((i.max() + 1, j.max() + 1))
        which = np.full(worth.shape, -1)
        worth[i, j], which[i, j] = edges.score[above[part]] - threshold, above[part]
        found = which[scipy.optimize.linear_sum_assignment(worth, maximize=True)]
        chosen[found[found >= 0]] = True
    return chosen


def matched(edges: Edges, matching: str, threshold: float) -> np.ndarray:
    """(m,) bool: the pairs that a way of matching chooses among the candidates above a threshold."""
    if matching == "one_to_one":
        return one_to_one(edges, threshold)
    if matching == "mutual":
        return mutual(edges) & (edges.score > threshold)
    raise ConfigError(f"matching={matching!r}: expected one of {', '.join(MATCHINGS)}")


def hub_corrected(edges: Edges, n: int = 10) -> Edges:
    """CSLS (Conneau et al. 2018): 2 s - r_a - r_b, where r is the mean of a feature's n best scores.

    Features that are close to everything lose by it. The edges have to hold those n best.
    """
    if not len(edges):
        return edges
    means = []
    for own, of_b in ((edges.a, False), (edges.b, True)):
        best = edges.rank(of_b) < n
        total = np.bincount(own[best], edges.score[best], minlength=own.max() + 1)
        means.append((total / np.maximum(np.bincount(own[best], minlength=own.max() + 1), 1))[own])
    return Edges(edges.a, edges.b, (2 * edges.score - means[0] - means[1]).astype(np.float32))


def pw_mcc(a: np.ndarray, b: np.ndarray) -> float:
    """PW-MCC: the mean |cosine| of decoder rows (F, d) under the best one-to-one assignment (Song et al. 2025).

    Two dictionaries of one space, such as two seeds of a model's SAE; of unequal sizes all of the smaller are assigned.
    """
    scores = np.abs(unit(a) @ unit(b).T)
    return float(scores[scipy.optimize.linear_sum_assignment(scores, maximize=True)].mean())


def fates(n: int, pairs: dict[str, Any]) -> np.ndarray:
    """(n,) text: the first named of `pairs` (name -> features) that holds a feature; the last name is all others'."""
    *named, rest = pairs
    found = np.full(n, rest, object)
    for name in reversed(named):
        found[np.asarray(pairs[name], np.int64)] = name
    return found
