"""Raw rows <-> the scaled rows that training sees, and the weights that do both at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from hubsae.errors import DataError
from hubsae.sites import Site, columns

MIN_ROWS = 2


@dataclass(frozen=True)
class Scaling:
    """x' = (x - mean) * scale, column by column (d,): every site centred, all sites together of mean squared norm 1.

    `site_scales`: root mean square distance of each site's rows from their mean, in raw units.
    """

    mean: mx.array
    scale: mx.array
    site_scales: tuple[float, ...]

    @classmethod
    def of(
        cls, sample: np.ndarray, sites: Sequence[Site], widths: Sequence[int], weights: Sequence[float] | None = None
    ) -> "Scaling":
        """From a sample of rows (n, d): site s has mean squared norm weights[s] / sum(weights) afterwards."""
        mean = sample.mean(axis=0, dtype=np.float64)
        shares = np.ones(len(sites)) if weights is None else np.asarray(weights, np.float64)
        shares = shares / shares.sum()
        scale, raw = np.empty(len(mean)), []
        for (site, where), share in zip(columns(sites, widths).items(), shares, strict=True):
            power = float(np.square(sample[:, where] - mean[where]).sum(axis=1).mean())
            if len(sample) < MIN_ROWS or power <= 0:
                raise DataError(f"{site}: the rows do not vary; every one of {len(sample)} is the same")
            scale[where] = (share / power) ** 0.5
            raw.append(power**0.5)
        return cls(mx.array(mean.astype(np.float32)), mx.array(scale.astype(np.float32)), tuple(raw))

    def apply(self, rows: mx.array) -> mx.array:
        return (rows - self.mean) * self.scale

    @property
    def unit(self) -> float:
        """Raw length of what has length 1 in scaled rows, on average over the columns."""
        return float(np.mean(1 / np.array(self.scale, dtype=np.float64)))


def fold(params: Mapping[str, mx.array], inner: Scaling, outer: Scaling) -> dict[str, mx.array]:
    """The same map on raw rows: mean and scale of both sides go into the weights.

    With x' = (x - m) s and y = y' / t + c: codes are multiplied by u, the raw length of a unit of y', so that decoder
    rows of one site keep their norm. What a sparsity learnt is for its `in_units` with the same factor.
    """
    u, W_enc = outer.unit, params["W_enc"]
    bias = params["b_dec"]
    out = {
        "W_enc": W_enc * inner.scale[:, None] * u,
        "b_enc": (params["b_enc"] - (inner.mean * inner.scale) @ W_enc) * u,
        "W_dec": params["W_dec"] / outer.scale / u,
    }
    if "W_skip" in params:
        out["W_skip"] = params["W_skip"] * inner.scale[:, None] / outer.scale
        bias = bias - (inner.mean * inner.scale) @ params["W_skip"]
    return {**out, "b_dec": bias / outer.scale + outer.mean}
