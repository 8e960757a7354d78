"""Linear maps between the activations of two models, from their joint moments."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from hubsae import threads
from hubsae.errors import ConfigError, DataError
from hubsae.joint_moments import JointMoments

METHODS = ("procrustes", "ridge", "svcca")
_SMALL = 2048  # columns
_PENALTIES = tuple(10.0**e for e in range(-6, 2))


@dataclass(frozen=True)
class LinearMap:
    """x (n, p) -> (x - mean_x) matrix + mean_y, (n, q); directions, such as decoder rows, go through `matrix` alone."""

    matrix: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, p) -> (n, q), in the precision of x."""
        if x.shape[-1:] != self.mean_x.shape:
            raise DataError(f"rows of shape {x.shape}: this map takes {len(self.mean_x)} columns")
        kind = x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64
        return (x - self.mean_x.astype(kind)) @ self.matrix.astype(kind) + self.mean_y.astype(kind)

    def then(self, other: "LinearMap") -> "LinearMap":
        """This one, followed by another."""
        if self.matrix.shape[1] != other.matrix.shape[0]:
            raise DataError(f"a map to {self.matrix.shape[1]} columns, then one of {other.matrix.shape[0]}")
        mean_y = (self.mean_y - other.mean_x) @ other.matrix + other.mean_y
        return LinearMap(self.matrix @ other.matrix, self.mean_x, mean_y)

    def rotated(self, rng: np.random.Generator) -> "LinearMap":
        """Followed by a random rotation (Haar): as long as before, in directions that mean nothing."""
        q = haar(rng, self.matrix.shape[1])
        return LinearMap(self.matrix @ q, self.mean_x, self.mean_y)


@dataclass(frozen=True)
class Procrustes:
    """The orthogonal fit of y by scale * x rotation; `rho` is the cosine between them, R2 on the data it was fitted to
    is rho^2 (Gower and Dijksterhuis 2004). Of unequal widths the rotation is the semi-orthogonal matrix that maximises
    tr(rotation' x'y), which is the least-squares fit only where x is not the wider side."""

    rotation: np.ndarray
    scale: float
    rho: float


def _calm(moments: JointMoments) -> AbstractContextManager[Any]:
    """A context with one BLAS thread where the matrices are small."""
    return threads.alone_if(moments.p + moments.q < _SMALL)


def procrustes_fit(moments: JointMoments) -> Procrustes:
    """Rotation (p, q), scale and rho, by the SVD of x'y."""
    xx, yy, xy = moments.scatters()
    with _calm(moments):
        u, s, vt = scipy.linalg.svd(xy, full_matrices=False, lapack_driver="gesdd")
    total, width, length = float(s.sum()), float(np.trace(xx)), float(np.trace(yy))
    if width <= 0 or length <= 0:
        raise DataError("one side's activations are the same at all anchors, so there is nothing to map")
    return Procrustes(u @ vt, total / width, total / np.sqrt(width * length))


def procrustes(moments: JointMoments) -> LinearMap:
    """The map of `procrustes_fit`."""
    fit = procrustes_fit(moments)
    return LinearMap(fit.scale * fit.rotation, moments.mean_x, moments.mean_y)


def ridge(moments: JointMoments, penalty: float) -> LinearMap:
    """(x'x + penalty * tr(x'x) / p)^-1 x'y."""
    xx, _, xy = moments.scatters()
    p = len(xx)
    ballast = penalty * np.trace(xx) / p
    if not ballast > 0:
        raise DataError("x is the same at all anchors, or the penalty is not positive: no ridge map")
    with _calm(moments):
        matrix = scipy.linalg.solve(xx + ballast * np.eye(p), xy, assume_a="pos")
    return LinearMap(matrix, moments.mean_x, moments.mean_y)


def best_penalty(fit: JointMoments, other: JointMoments) -> float:
    """The penalty of ridge, a power of ten, whose map fitted on `fit` explains most of `other`."""
    xx, _, xy = fit.scatters()
    with _calm(fit):
        values, vectors = scipy.linalg.eigh(xx)
    turned, mean = vectors.T @ xy, max(float(values.mean()), 1e-300)

    def explained(penalty: float) -> float:
        matrix = vectors @ (turned / (values + penalty * mean)[:, None])
        return r2(LinearMap(matrix, fit.mean_x, fit.mean_y), other)

    with _calm(fit):
        return max(_PENALTIES, key=explained)


def whitener(scatter: np.ndarray, keep: float = 1.0) -> np.ndarray:
    """(d, r) W with W' scatter W = 1 on the directions that hold a share `keep` of the variance."""
    values, vectors = scipy.linalg.eigh(scatter)
    values, vectors = values[::-1], vectors[:, ::-1]
    positive = values > values[0] * len(values) * np.finfo(np.float64).eps
    if not positive.any() or values[0] <= 0:
        raise DataError("activations without variance have no canonical directions")
    r = int(positive.sum())
    if keep < 1:
        r = min(r, int(np.searchsorted(np.cumsum(values[:r]) / values[:r].sum(), keep)) + 1)
    return vectors[:, :r] / np.sqrt(values[:r])


@dataclass(frozen=True)
class CanonicalDirections:
    """Columns of `x` (p, r) and `y` (q, r): directions whose variates correlate by `rho` (r,), falling (Hotelling)."""

    x: np.ndarray
    y: np.ndarray
    rho: np.ndarray
    dims: tuple[int, int]

    def correlations(self, moments: JointMoments) -> np.ndarray:
        """(r,) correlations of the same variates on other data."""
        xx, yy, xy = moments.scatters()
        cross = np.einsum("pr,pq,qr->r", self.x, xy, self.y, optimize=True)
        own = [np.einsum("pr,pq,qr->r", w, s, w, optimize=True) for w, s in ((self.x, xx), (self.y, yy))]
        return cross / np.sqrt(np.maximum(own[0] * own[1], 1e-300))


def canonical(moments: JointMoments, keep: float = 1.0) -> CanonicalDirections:
    """CCA; with `keep` < 1 of the principal directions that hold such a share (SVCCA, Raghu et al. 2017)."""
    xx, yy, xy = moments.scatters()
    with _calm(moments):
        wx, wy = whitener(xx, keep), whitener(yy, keep)
        u, rho, vt = scipy.linalg.svd(wx.T @ xy @ wy, full_matrices=False)
    return CanonicalDirections(wx @ u, wy @ vt.T, np.minimum(rho, 1.0), (wx.shape[1], wy.shape[1]))


def svcca(moments: JointMoments, keep: float = 0.99) -> LinearMap:
    """x to its canonical variates, each shrunk by its correlation, and back into y's columns."""
    yy = moments.scatters()[1]
    found = canonical(moments, keep)
    back = found.y.T @ yy  # (r, q): the least-squares way back, since the variates are orthonormal
    return LinearMap((found.x * found.rho) @ back, moments.mean_x, moments.mean_y)


def fitted(method: str, fit: JointMoments, other: JointMoments) -> LinearMap:
    """The map of a method, x to y; ridge takes the penalty that does best on `other`."""
    if method == "procrustes":
        return procrustes(fit)
    if method == "ridge":
        return ridge(fit, best_penalty(fit, other))
    if method == "svcca":
        return svcca(fit)
    raise ConfigError(f"method={method!r}: expected one of {', '.join(METHODS)}")


def r2(map_: LinearMap, moments: JointMoments) -> float:
    """1 - |y - map(x)|^2 / |y - mean_y|^2 over all columns: against the mean that the map knows from its own data."""
    xx, yy, xy = moments.scatters()
    t, dx, dy = map_.matrix, moments.mean_x - map_.mean_x, moments.mean_y - map_.mean_y
    total = float(np.trace(yy) + moments.n * dy @ dy)
    if total <= 0:
        return float("nan")
    missed = dy - dx @ t
    spread = np.trace(yy) - 2 * np.sum(t * xy) + np.sum((xx @ t) * t)
    return 1 - float(spread + moments.n * missed @ missed) / total


def haar(rng: np.random.Generator, d: int) -> np.ndarray:
    """(d, d) rotation drawn uniformly from all (Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    return q * np.sign(np.diag(r))
