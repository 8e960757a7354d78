"""Pure arithmetic on arrays: how good a reconstruction is. Sums are streamed, so that any number of rows will do."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.special

_MIN_UNITS = 10


@dataclass
class Moments:
    """Running float64 sums over rows for mean and total variance: n, sum of (x - shift), sum of |x - shift|^2.

    The shift (the first batch's mean) keeps the difference of large numbers small where the mean is far from zero.
    """

    n: int = 0
    shift: np.ndarray = field(default_factory=lambda: np.zeros(0))
    first: np.ndarray = field(default_factory=lambda: np.zeros(0))
    second: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, rows: np.ndarray) -> None:
        """Take in rows (n, d)."""
        if not len(rows):
            return
        if self.n == 0:
            self.shift = rows.mean(axis=0, dtype=np.float64)
            self.first, self.second = np.zeros_like(self.shift), np.zeros_like(self.shift)
        centred = rows - self.shift
        self.n += len(rows)
        self.first += centred.sum(axis=0)
        self.second += np.square(centred).sum(axis=0)

    @property
    def mean(self) -> np.ndarray:
        """(d,) mean of all rows."""
        return self.shift + self.first / max(self.n, 1)

    @property
    def scatter(self) -> np.ndarray:
        """(d,) sum over rows of (x - mean)^2."""
        return self.second - np.square(self.first) / max(self.n, 1)


@dataclass
class Fidelity:
    """Running sums of how well rows y are reconstructed by y_hat from codes with `n_features` features.

    - fvu: sum |y - y_hat|^2 / sum |y - mean(y)|^2, both over all rows and columns (fraction of variance unexplained)
    - explained_variance: 1 - fvu
    - l0: mean number of active features a row; density (F,): share of rows in which a feature is active
    - dead_share: share of features that were active in no row
    - cosine: mean over rows of cos(y, y_hat), 0 where either is zero
    """

    n_features: int
    moments: Moments = field(default_factory=Moments)
    squared_errors: Any = 0.0
    cosine_sum: float = 0.0
    active: Any = None

    def add(self, y: np.ndarray, y_hat: np.ndarray, active_counts: np.ndarray) -> None:
        """Take in rows (n, d), their reconstructions and how often each feature was active in them (F,)."""
        error = np.subtract(y, y_hat, dtype=np.float64)
        self.squared_errors = self.squared_errors + np.square(error).sum(axis=0)
        norms = np.linalg.norm(y, axis=1) * np.linalg.norm(y_hat, axis=1)
        dots = np.einsum("nd,nd->n", y, y_hat, dtype=np.float64)
        self.cosine_sum += float(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0).sum())
        self.active = active_counts.astype(np.int64) + (0 if self.active is None else self.active)
        self.moments.add(y)

    @property
    def n(self) -> int:
        return self.moments.n

    @property
    def fvu(self) -> float:
        """nan without rows or without variance."""
        return self.fvu_of({"": slice(None)})[""]

    def fvu_of(self, parts: dict[str, slice]) -> dict[str, float]:
        """The same over the columns of each part alone."""
        found = {}
        for name, part in parts.items():
            total = float(self.moments.scatter[part].sum()) if self.n else 0.0
            found[name] = float(self.squared_errors[part].sum()) / total if total > 0 else float("nan")
        return found

    @property
    def explained_variance(self) -> float:
        return 1.0 - self.fvu

    @property
    def density(self) -> np.ndarray:
        """(F,)"""
        return np.zeros(self.n_features) if self.active is None else self.active / max(self.n, 1)

    @property
    def l0(self) -> float:
        return float(self.density.sum())

    @property
    def dead_share(self) -> float:
        return float((self.density == 0).mean())

    @property
    def cosine(self) -> float:
        return self.cosine_sum / max(self.n, 1)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n, V) logits, (n,) token ids -> (n,) negative log-probabilities in nats."""
    logits = logits.astype(np.float64)
    picked = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return scipy.special.logsumexp(logits, axis=1) - picked


def recovered(original: float, spliced: float, ablated: float) -> float:
    """(ablated - spliced) / (ablated - original): 1 where the splice costs nothing, 0 where it equals ablation.

    nan where ablation does not raise the loss, since there is nothing to recover then.
    """
    gap = ablated - original
    return (ablated - spliced) / gap if gap > 0 else float("nan")


def bootstrap_interval(
    sums: np.ndarray, statistic, *, n_draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(column sums)` when units (rows of `sums`, e.g. documents) are drawn anew.

    sums (units, c): additive sums of each unit. Tokens of one document hang together, so units are whole documents
    (Efron and Tibshirani 1993, chapter 13). nan, nan with fewer than 10 units, or if it is never defined.
    """
    units = len(sums)
    if units < _MIN_UNITS:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=n_draws)
    values = np.array([statistic(row) for row in weights @ sums])
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)
