"""Raw rows <-> the scaled rows that training sees, and the weights that do both at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from hubsae import threads
from hubsae.entries import Array
from hubsae.errors import DataError
from hubsae.sites import Site, columns

MIN_ROWS = 2
_FOLDED = ("W_in", "b_enc", "W_dec", "b_dec", "W_skip")


@dataclass(frozen=True)
class Scaling:
    """x' = (x - mean) * scale, column by column (d,): every site centred, all sites together of mean squared norm 1.

    `site_scales`: root mean square distance of each site's rows from their mean, in raw units.
    """

    mean: Array
    scale: Array
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
        return cls(mean.astype(np.float32), scale.astype(np.float32), tuple(raw))

    def on_device(self) -> "Scaling":
        """The same for rows in MLX; as it is made it is for rows in NumPy."""
        return Scaling(mx.array(self.mean), mx.array(self.scale), self.site_scales)

    def apply(self, rows: Array) -> Array:
        if isinstance(rows, mx.array):
            return (rows - self.mean) * self.scale
        out = np.empty(rows.shape, np.float32)

        def work(part: slice) -> None:
            np.subtract(rows[part], self.mean, out=out[part])
            out[part] *= self.scale

        threads.in_parts(len(rows), rows.size, work)
        return out

    @property
    def unit(self) -> float:
        """Raw length of what has length 1 in scaled rows, on average over the columns."""
        return float(np.mean(1 / np.array(self.scale, dtype=np.float64)))


def fold(params: Mapping[str, Array], inner: Scaling, outer: Scaling) -> dict[str, mx.array]:
    """The same map on raw rows, with `W_enc` (d_in, F) for `W_in`: mean and scale of both sides go into the weights.

    With x' = (x - m) s and y = y' / t + c: codes are multiplied by u, the raw length of a unit of y', so that decoder
    rows of one site keep their norm. What a sparsity learnt is for its `in_units` with the same factor.
    """
    u, params = outer.unit, {name: mx.array(params[name]) for name in _FOLDED if name in params}
    inner, outer = inner.on_device(), outer.on_device()
    W_enc, bias = params.get("W_in", params["W_dec"]).T, params["b_dec"]
    out = {
        "W_enc": W_enc * inner.scale[:, None] * u,
        "b_enc": (params["b_enc"] - (inner.mean * inner.scale) @ W_enc) * u,
        "W_dec": params["W_dec"] / outer.scale / u,
    }
    if "W_skip" in params:
        out["W_skip"] = params["W_skip"] * inner.scale[:, None] / outer.scale
        bias = bias - (inner.mean * inner.scale) @ params["W_skip"]
    return {**out, "b_dec": bias / outer.scale + outer.mean}
