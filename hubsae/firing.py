"""How often and how strongly each feature fires: sums over any number of rows, in memory that does not grow."""

from dataclasses import dataclass, field

import numpy as np

from hubsae.choose import Places

BINS = 64


@dataclass
class Firing:
    """Running statistics of the values with which each of `n_features` features fires.

    n_tokens: rows seen. n_active (F,): rows in which it fired. total, squares (F,): sums of its values and of their
    squares. maximum (F,): its largest value. histogram (F, BINS): counts of its values in equal bins from 0 to
    `top` (F,), a power of two above the maximum; when a larger value comes, bins are joined in pairs, so counts stay
    exact and at least half of the bins are in use.
    """

    n_features: int
    n_tokens: int = 0
    n_active: np.ndarray = field(init=False)
    total: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)
    maximum: np.ndarray = field(init=False)
    histogram: np.ndarray = field(init=False)
    top: np.ndarray = field(init=False)

    def __post_init__(self):
        n = self.n_features
        self.n_active, self.histogram = np.zeros(n, np.int64), np.zeros((n, BINS), np.int64)
        self.total, self.squares = np.zeros(n), np.zeros(n)
        self.maximum, self.top = np.zeros(n, np.float32), np.zeros(n)

    def add(self, places: Places) -> None:
        """Take in the codes of some rows."""
        indices, values = places.indices, places.values
        n = self.n_features
        self.n_tokens += places.n
        self.n_active += np.bincount(indices, minlength=n)
        self.total += np.bincount(indices, values, n)
        self.squares += np.bincount(indices, np.square(values, dtype=np.float64), n)
        np.maximum.at(self.maximum, indices, values)
        self._widen()
        bins = np.minimum(values / self.top[indices] * BINS, BINS - 1).astype(np.int64)
        self.histogram += np.bincount(indices.astype(np.int64) * BINS + bins, minlength=n * BINS).reshape(n, BINS)

    def _widen(self) -> None:
        """Join bins where the maximum has left the range."""
        beyond = np.flatnonzero(self.maximum >= self.top)
        beyond = beyond[self.maximum[beyond] > 0]
        top = np.exp2(np.floor(np.log2(self.maximum[beyond].astype(np.float64))) + 1)
        known = self.top[beyond] > 0
        doublings = np.zeros(len(beyond), int)
        doublings[known] = np.log2(top[known] / self.top[beyond][known]).round().astype(int)
        for times in np.unique(doublings[doublings > 0]):
            which = beyond[doublings == times]
            joined = min(1 << int(times), BINS)
            kept = self.histogram[which].reshape(len(which), -1, joined).sum(axis=2)
            self.histogram[which] = 0
            self.histogram[which, : kept.shape[1]] = kept
        self.top[beyond] = top

    @property
    def mean(self) -> np.ndarray:
        """(F,) mean value where it fires, 0 where it never does: the typical activation."""
        return self.total / np.maximum(self.n_active, 1)

    @property
    def std(self) -> np.ndarray:
        """(F,) standard deviation of its values where it fires."""
        return np.sqrt(np.maximum(self.squares / np.maximum(self.n_active, 1) - np.square(self.mean), 0))
