"""An alignment's numbers, computed again on texts that it has not seen."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hubsae import map_quality
from hubsae.alignment import StoredAlignment
from hubsae.anchors import AnchorSet
from hubsae.cooccurrence import DocumentSums
from hubsae.errors import DataError
from hubsae.frames import Frame
from hubsae.paired_rows import observe
from hubsae.tables import Shown, Table

_FEWEST = 100
_COMPARED = ("r2", "context_excess", "retrieval_at_1", "cka")


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """What came out on fresh texts beside what was published.

    `numbers`: name, method, direction, published value and interval, the fresh value, whether it lies `inside` the
    interval, and whether the two are `compatible`: not further apart than both their uncertainties allow. An interval
    of 95 % holds a fresh value, which varies too, some 83 % of the time. `pairs`: the same for the correlation of every
    confirmed pair that fires often enough in these texts. n_anchors, n_documents: what was read.
    """

    numbers: Frame
    pairs: Frame
    n_anchors: int
    n_documents: int

    @property
    def share_inside(self) -> float:
        """Of the numbers of the whole alignment."""
        return float(np.mean(self.numbers["inside"])) if len(self.numbers) else float("nan")

    @property
    def share_of_pairs_inside(self) -> float:
        """Of the pairs' correlations."""
        return float(np.mean(self.pairs["inside"])) if len(self.pairs) else float("nan")

    @property
    def share_of_pairs_compatible(self) -> float:
        """Of the pairs' correlations."""
        return float(np.mean(self.pairs["compatible"])) if len(self.pairs) else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """For `verified_by` in alignment.json; None for the share of nothing."""
        shares = {
            "numbers_inside": self.share_inside,
            "pairs_inside": self.share_of_pairs_inside,
            "pairs_compatible": self.share_of_pairs_compatible,
        }
        return {
            "n_anchors": self.n_anchors,
            "n_documents": self.n_documents,
            "numbers": len(self.numbers),
            "pairs": len(self.pairs),
            **{name: None if np.isnan(share) else share for name, share in shares.items()},
        }

    def tables(self) -> list[Table]:
        title = f"on {self.n_anchors:,} anchors of {self.n_documents:,} fresh documents"
        shown = Frame(
            self.numbers.columns, title, ("name", "method", "direction", "value", "lo", "hi", "fresh", "inside")
        )
        rows = [
            ("numbers inside their interval", f"{100 * self.share_inside:.0f} %", len(self.numbers)),
            ("pairs inside theirs", f"{100 * self.share_of_pairs_inside:.0f} %", len(self.pairs)),
            ("pairs compatible", f"{100 * self.share_of_pairs_compatible:.0f} %", len(self.pairs)),
        ]
        return [*shown.tables(), Table("", ("", "share", "of"), rows)]


def verify_on(
    alignment: StoredAlignment, dictionaries: Any, models: Any, anchors: AnchorSet, *, progress: bool = False
) -> Verification:
    """Recompute what a map and its pairs are worth at fresh anchors, all of them; nothing is fitted or chosen anew."""
    config = alignment.settings
    seen = observe(dictionaries, models, anchors, eval_rows=config.eval_rows, seed=config.seed, progress=progress)
    numbers = []
    rows = seen.rows
    if len(rows) < _FEWEST:
        raise DataError(f"{len(rows)} anchors in these texts: too few to verify anything; give more")
    for direction, part, back in (("a->b", rows, False), ("b->a", rows.swapped(), True)):
        for method in alignment.maps:
            if method != "shuffled":
                known = {"direction": direction, "method": method}
                numbers += map_quality.measure_map(part, alignment.map_of(method, back), config, known)
    numbers.append(map_quality.measure_cka(rows, config))
    pairs = alignment.pairs
    sums = DocumentSums.of(seen.codes["eval"]).of_pairs(pairs["feature_a"], pairs["feature_b"])
    fresh, (low, high) = sums.correlations(), sums.intervals(config.n_bootstraps, config.seed)
    enough = np.isfinite(fresh) & (_firings(seen, pairs) >= config.min_firings) & np.isfinite(pairs["corr_eval_lo"])
    columns = {"feature_a": pairs["feature_a"], "feature_b": pairs["feature_b"]}
    columns |= _compared(pairs["corr_eval"], pairs["corr_eval_lo"], pairs["corr_eval_hi"], fresh, low, high)
    table, kept = Frame(_numbers(alignment, numbers)), Frame(columns).where(enough)
    if not len(table) and not len(kept):
        raise DataError("there are no intervals to compare with: too few documents here, or when it was aligned")
    return Verification(table, kept, len(seen.codes["eval"].document), _documents(anchors))


def _documents(anchors: AnchorSet) -> int:
    return len(np.unique(anchors.document))


def _firings(seen: Any, pairs: Frame) -> np.ndarray:
    a, b = seen.codes["eval"].firings
    return np.minimum(a[pairs["feature_a"]], b[pairs["feature_b"]])


def _compared(
    value: np.ndarray, lo: np.ndarray, hi: np.ndarray, fresh: np.ndarray, low: np.ndarray, high: np.ndarray
) -> dict[str, np.ndarray]:
    half = [np.where(fresh > value, hi - value, value - lo), np.where(fresh > value, fresh - low, high - fresh)]
    return {
        "value": value,
        "lo": lo,
        "hi": hi,
        "fresh": fresh,
        "inside": (fresh >= lo) & (fresh <= hi),
        "compatible": np.abs(fresh - value) <= np.sqrt(half[0] ** 2 + half[1] ** 2),
    }


def _numbers(alignment: StoredAlignment, fresh: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    table = alignment.frames["metrics"]
    known = {(r["name"], r["method"], r["direction"]): r for r in (table.row(i) for i in range(len(table)))}
    rows = []
    for row in fresh:
        old = known.get((row["name"], row.get("method"), row["direction"]))
        if row["name"] in _COMPARED and old is not None and old["lo"] is not None and row.get("lo") is not None:
            rows.append((row["name"], row.get("method"), row["direction"], old, row))
    names = {name: np.array([r[i] for r in rows], object) for i, name in enumerate(("name", "method", "direction"))}
    arrays = [np.array([float(r[k][key]) for r in rows]) for k in (3, 4) for key in ("value", "lo", "hi")]
    return {**names, **_compared(*arrays[:4], *arrays[4:])}
