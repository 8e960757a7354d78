"""How alike the activations of two models are, each measure with what independent data would give."""

import numpy as np
import scipy.special

from hubsae.errors import ConfigError
from hubsae.joint_moments import JointMoments
from hubsae.maps import canonical

_ENTRIES = ((0, 1), (0, 0), (1, 1))


def linear_cka(moments: JointMoments, debiased: bool = True) -> float:
    """|x'y|^2 / (|x'x| |y'y|), Frobenius norms of centred rows (Kornblith et al. 2019).

    Debiased: HSIC's unbiased estimator in each place (Song et al. 2012), so that independent data give 0 whatever the
    widths, and may give less; nan where one side's own term is not positive.
    """
    xx, yy, xy = moments.scatters()
    n, squares = moments.n, [float(np.trace(s)) for s in (xx, yy)]
    if n <= 3:
        return float("nan")
    values = []
    for (i, j), block in zip(_ENTRIES, (xy, xx, yy), strict=True):
        value = float(np.square(block).sum())
        if debiased:
            value += squares[i] * squares[j] / ((n - 1) * (n - 2)) - n / (n - 2) * moments.fourth(i, j)
        values.append(value)
    if min(values[1:]) <= 0:
        return float("nan")
    return values[0] / float(np.sqrt(values[1] * values[2]))


def mean_canonical(moments: JointMoments, keep: float = 1.0) -> float:
    """The mean canonical correlation; with keep=0.99 SVCCA's (Raghu et al. 2017)."""
    return float(canonical(moments, keep).rho.mean())


def pwcca(moments: JointMoments) -> float:
    """Canonical correlations weighted by how much of x each variate accounts for (Morcos et al. 2018, equation 2)."""
    xx = moments.scatters()[0]
    found = canonical(moments)
    weights = np.abs(found.x.T @ xx).sum(axis=1)
    return float(weights @ found.rho / weights.sum())


def _centred(rows: np.ndarray) -> np.ndarray:
    """In float64 about their mean: distances and kernels far from zero lose all their digits otherwise."""
    return rows - rows.mean(axis=0, dtype=np.float64)


def _gaussian(rows: np.ndarray, fraction: float) -> np.ndarray:
    rows = _centred(rows)
    lengths = np.square(rows).sum(axis=1)
    distances = np.maximum(lengths[:, None] + lengths[None] - 2 * rows @ rows.T, 0)
    np.fill_diagonal(distances, 0)
    width = 2 * fraction**2 * np.median(distances)
    return np.exp(-distances / width) if width > 0 else np.full_like(distances, np.nan)


def _hsic(k: np.ndarray, other: np.ndarray, debiased: bool) -> float:
    """HSIC of two kernels (n, n), up to what cancels in CKA."""
    n = len(k)
    if not debiased:
        centred = k - k.mean(axis=0) - k.mean(axis=1, keepdims=True) + k.mean()
        return float(np.sum(centred * other))
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    a, b = k.sum(axis=1), other.sum(axis=1)
    return float(np.sum(k * other) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b) / (n - 2))


def kernel_cka(k: np.ndarray, other: np.ndarray, debiased: bool = True) -> float:
    """CKA of two kernel matrices (n, n)."""
    cross, own, theirs = _hsic(k, other, debiased), _hsic(k, k, debiased), _hsic(other, other, debiased)
    return cross / float(np.sqrt(own * theirs)) if min(own, theirs) > 0 else float("nan")


def rbf_cka(x: np.ndarray, y: np.ndarray, debiased: bool = True, fraction: float = 1.0) -> float:
    """CKA of Gaussian kernels, their bandwidth `fraction` times the median distance of all rows; n x n memory.

    The median is over the whole matrix of squared distances, the diagonal included (Kornblith et al. 2019).
    """
    if not fraction > 0:
        raise ConfigError(f"fraction={fraction}: expected more than 0")
    return kernel_cka(_gaussian(x, fraction), _gaussian(y, fraction), debiased)


def minibatch_cka(x: np.ndarray, y: np.ndarray, batch_size: int = 256, seed: int = 0) -> float:
    """Debiased linear CKA by means over random batches of rows (Nguyen, Raghu and Kornblith 2021)."""
    sums, order = np.zeros(3), np.random.default_rng(seed).permutation(len(x))
    x, y = _centred(x), _centred(y)
    for start in range(0, len(x) - batch_size + 1, batch_size):
        k, other = (part @ part.T for part in (rows[order[start : start + batch_size]] for rows in (x, y)))
        sums += _hsic(k, other, True), _hsic(k, k, True), _hsic(other, other, True)
    return sums[0] / float(np.sqrt(sums[1] * sums[2])) if min(sums[1:]) > 0 else float("nan")


def rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman correlation of the Euclidean distances between rows on either side (Kriegeskorte et al. 2008)."""
    from scipy.spatial.distance import pdist
    from scipy.stats import rankdata

    ranks = [rankdata(pdist(rows)) for rows in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def cka_by_chance(n: float, p: float, q: float) -> float:
    """What biased linear CKA comes to on independent Gaussian rows of p and q independent columns."""
    return float(np.sqrt(p * q / ((n + p) * (n + q))))


def canonical_by_chance(n: float, p: int, q: int) -> tuple[float, float]:
    """(root mean square, largest) canonical correlation of independent Gaussian rows (Wachter 1980)."""
    a, b = min(1.0, p / n), min(1.0, q / n)
    top = np.sqrt(a * (1 - b)) + np.sqrt(b * (1 - a)) if a + b < 1 else 1.0
    return float(min(1.0, np.sqrt(max(p, q) / (n - 1)))), float(min(1.0, top))


def procrustes_by_chance(n: float, d: float) -> float:
    """Procrustes' rho of independent Gaussian rows, d columns each, n many more than d."""
    return float(8 / (3 * np.pi) * np.sqrt(d / n))


def retrieval(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) bool: whether row i of `found` (n, d) is closest to row i of all `wanted` (n, d), by cosine once centred."""
    unit = [rows - rows.mean(axis=0) for rows in (found, wanted)]
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in unit]
    return np.argmax(unit[0] @ unit[1].T, axis=1) == np.arange(len(found))


def best_cosine_by_chance(d: int, n: int, quantile: float = 0.95) -> float:
    """The quantile of the largest cosine between a direction and n random ones in d dimensions.

    A squared cosine has the distribution Beta(1/2, (d - 1)/2).
    """
    return float(np.sqrt(scipy.special.betaincinv(0.5, (d - 1) / 2, max(0.0, 2 * quantile ** (1 / n) - 1))))
