"""Chains of alignments: A to B to C, and whether it agrees with A to C."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubsae.alignment import StoredAlignment
from hubsae.errors import DataError
from hubsae.frames import Frame
from hubsae.maps import LinearMap
from hubsae.tables import Shown, Table


@dataclass(frozen=True)
class Chain:
    """Two alignments that meet in one dictionary: `pairs` of outer features, and the map between the outer models.

    `pairs` has feature_a, feature_b (of the last model), via (the feature in the middle), and the smaller of the two
    correlations, corr_eval.
    """

    pairs: Frame
    map_: LinearMap

    def map(self, x: np.ndarray) -> np.ndarray:
        """(n, width of the first model) -> (n, width of the last)."""
        return self.map_(x)


@dataclass(frozen=True, repr=False)
class Cycle(Shown):
    """How often A -> B -> C leads where A -> C does.

    n_closed of n_both features of A that have a partner along both ways come out at the same feature of C (`share`);
    `chance`: the share if the direct partners were drawn from those there are. `closed`: those features of A.
    """

    n_both: int
    n_closed: int
    chance: float
    closed: np.ndarray

    @property
    def share(self) -> float:
        """nan where no feature has a partner along both ways."""
        return self.n_closed / self.n_both if self.n_both else float("nan")

    def tables(self) -> list[Table]:
        rows = [("features with a partner along both ways", self.n_both), ("led to the same one", self.n_closed)]
        rows += [("share", self.share), ("by chance", self.chance)]
        return [Table("cycle consistency", ("", ""), rows)]


def _check_meeting(first: dict[str, Any], second: dict[str, Any], where: str) -> None:
    same = all(first[key] == second[key] for key in ("site", "width", "n_features", "sparsity"))
    marks = first["fingerprint"].keys() == second["fingerprint"].keys() and all(
        _close(values, second["fingerprint"][name]) for name, values in first["fingerprint"].items()
    )
    if not (same and marks):
        raise DataError(
            f"the alignments do not meet: {where} is {first['site']} with {first['n_features']:,} features on one side "
            f"and {second['site']} with {second['n_features']:,} on the other, or has other weights"
        )


def _close(one: list[float], other: list[float]) -> bool:
    """Whether the marks are those of one dictionary, in whatever precision, as a dictionary's are compared."""
    return len(one) == len(other) and np.allclose(one, other, rtol=0.02, atol=0.02 * float(np.abs(other).mean()))


def compose(ab: StoredAlignment, bc: StoredAlignment) -> Chain:
    """A -> C by way of B; raises `DataError` where the second alignment does not start at the first one's end."""
    _check_meeting(ab.sides[1], bc.sides[0], "the middle")
    first, second = ab.pairs, bc.pairs
    place = {b: i for i, b in enumerate(second["feature_a"].tolist())}
    kept = [(i, place[b]) for i, b in enumerate(first["feature_b"].tolist()) if b in place]
    i, j = (np.array([pair[k] for pair in kept], np.int64) for k in range(2))
    columns = {
        "feature_a": first["feature_a"][i],
        "via": first["feature_b"][i],
        "feature_b": second["feature_b"][j],
        "corr_eval": np.minimum(first["corr_eval"][i], second["corr_eval"][j]),
    }
    return Chain(Frame(columns, f"{len(i):,} pairs by way of {ab.sides[1]['site']}"), ab.map_of().then(bc.map_of()))


def cycle(ab: StoredAlignment, bc: StoredAlignment, ac: StoredAlignment) -> Cycle:
    """Of the features of A that have a partner both by way of B and directly, how many come to the same one in C."""
    _check_meeting(ab.sides[0], ac.sides[0], "the start")
    _check_meeting(bc.sides[1], ac.sides[1], "the end")
    around = compose(ab, bc).pairs
    direct = dict(zip(ac.pairs["feature_a"].tolist(), ac.pairs["feature_b"].tolist(), strict=True))
    both = [(a, c, direct[a]) for a, c in _pairs(around) if a in direct]
    closed = np.array([a for a, c, other in both if c == other], np.int64)
    ends = np.array([[c, other] for _, c, other in both]).reshape(-1, 2)
    chance = float(np.mean(ends[:, :1] == ends[:, 1])) if len(ends) else float("nan")
    return Cycle(len(both), len(closed), chance, closed)


def _pairs(frame: Frame) -> Sequence[tuple[int, int]]:
    return list(zip(frame["feature_a"].tolist(), frame["feature_b"].tolist(), strict=True))
