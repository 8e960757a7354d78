"""Second moments of paired rows, streamed: all that linear maps and linear similarities need, in memory of d x d."""

from collections.abc import Iterable, Sequence

import numpy as np

_ROWS_AT_ONCE = 8192


class JointMoments:
    """Running float64 sums over pairs of rows x (n, p) and y (n, q), side by side as z = [x | y].

    About a fixed `shift` (near the mean): without it single-precision products lose everything where a mean is large
    beside its deviation. Sums about one shift can be added, and weighted. Beside z and z'z they hold |x|^2, |y|^2,
    |x|^2 z, |y|^2 z and the products of |x|^2 and |y|^2, from which unbiased similarities are made.
    """

    def __init__(self, p: int, q: int, shift: np.ndarray | None = None):
        self.p, self.q = p, q
        self.shift = shift
        self.n = 0.0
        self.first = np.zeros(p + q)
        self.second = np.zeros((p + q, p + q))
        self.squares = np.zeros(2)
        self.cubes = np.zeros((2, p + q))
        self.fourths = np.zeros((2, 2))

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, shift: np.ndarray | None = None) -> "JointMoments":
        """The moments of rows at hand."""
        found = cls(x.shape[1], y.shape[1], shift)
        found.add(x, y)
        return found

    @property
    def shift(self) -> np.ndarray | None:
        """(p + q,), of values that single precision holds, so that what is taken off rows is what is put back."""
        return self._shift

    @shift.setter
    def shift(self, shift: np.ndarray | None) -> None:
        self._shift = None if shift is None else shift.astype(np.float32).astype(np.float64)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in paired rows (n, p), (n, q); the shift is the first ones' mean where none was given."""
        for start in range(0, len(x), _ROWS_AT_ONCE):
            z = np.concatenate([x[start : start + _ROWS_AT_ONCE], y[start : start + _ROWS_AT_ONCE]], axis=1)
            if self.shift is None:
                self.shift = z.mean(axis=0, dtype=np.float64)
            z -= self.shift.astype(z.dtype)
            lengths = np.stack([np.square(part).sum(axis=1) for part in (z[:, : self.p], z[:, self.p :])])
            self.n += len(z)
            self.first += z.sum(axis=0, dtype=np.float64)
            self.second += z.T @ z
            self.squares += lengths.sum(axis=1, dtype=np.float64)
            self.cubes += lengths @ z
            self.fourths += lengths.astype(np.float64) @ lengths.T

    @classmethod
    def weighted(cls, parts: Sequence["JointMoments"], weights: Iterable[float] | None = None) -> "JointMoments":
        """The sum of several about one shift, each `weights` times: documents drawn anew, or some left out."""
        filled = [part for part in parts if part.shift is not None]
        found = cls(parts[0].p, parts[0].q, filled[0].shift if filled else None)
        for part, weight in zip(parts, weights if weights is not None else [1.0] * len(parts), strict=True):
            if part.shift is None or not weight:
                continue
            if found.shift is None or not np.array_equal(part.shift, found.shift):
                raise ValueError("moments about different shifts cannot be added")
            for name in ("n", "first", "second", "squares", "cubes", "fourths"):
                setattr(found, name, getattr(found, name) + weight * getattr(part, name))
        return found

    def swapped(self) -> "JointMoments":
        """The same with x and y exchanged."""
        found = JointMoments(self.q, self.p)
        order = np.r_[self.p : self.p + self.q, 0 : self.p]
        found.shift = None if self.shift is None else self.shift[order]
        found.n, found.first, found.second = self.n, self.first[order], self.second[np.ix_(order, order)]
        found.squares, found.cubes, found.fourths = (
            self.squares[::-1],
            self.cubes[::-1, order],
            self.fourths[::-1, ::-1],
        )
        return found

    @property
    def _offset(self) -> np.ndarray:
        return self.first / max(self.n, 1)

    @property
    def mean(self) -> np.ndarray:
        """(p + q,) mean of z."""
        return self._offset if self.shift is None else self.shift + self._offset

    @property
    def mean_x(self) -> np.ndarray:
        """(p,)"""
        return self.mean[: self.p]

    @property
    def mean_y(self) -> np.ndarray:
        """(q,)"""
        return self.mean[self.p :]

    def scatter(self) -> np.ndarray:
        """(p + q, p + q) sum of (z - mean)'(z - mean)."""
        return self.second - self.n * np.outer(self._offset, self._offset)

    def scatters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Its blocks: x'x (p, p), y'y (q, q) and x'y (p, q), centred."""
        s, p = self.scatter(), self.p
        return s[:p, :p], s[p:, p:], s[:p, p:]

    def fourth(self, i: int, j: int) -> float:
        """Sum over rows of |a|^2 |b|^2, centred, where a and b are x (0) or y (1)."""
        part = (slice(0, self.p), slice(self.p, None))
        m = [self._offset[part[k]] for k in (i, j)]
        lengths = [float(v @ v) for v in m]
        raw, n = self.squares, self.n
        cross = self.second[part[i], part[j]]
        firsts = [float(m[0] @ self.first[part[i]]), float(m[1] @ self.first[part[j]])]
        return float(
            self.fourths[i, j]
            - 2 * m[1] @ self.cubes[i, part[j]]
            - 2 * m[0] @ self.cubes[j, part[i]]
            + lengths[1] * raw[i]
            + lengths[0] * raw[j]
            + 4 * m[0] @ cross @ m[1]
            - 2 * lengths[1] * firsts[0]
            - 2 * lengths[0] * firsts[1]
            + n * lengths[0] * lengths[1]
        )
