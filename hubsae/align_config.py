"""Settings of an alignment."""

from dataclasses import dataclass

from hubsae.errors import ConfigError
from hubsae.maps import METHODS
from hubsae.matching import MATCHINGS
from hubsae.settings import check_types

CRITERIA = ("correlation", "cosine", "both")


@dataclass(frozen=True)
class AlignConfig:
    """How features are matched and judged.

    method: the map between the models' activations; orthogonal Procrustes keeps lengths and angles, ridge regression
    explains more of the other side. criterion: what makes two features alike: the correlation of their
    activations at the anchors, the cosine of their decoder rows through the map, or both at once. matching: exact
    one-to-one, or mutual nearest neighbours. threshold: the least score of a pair (None: the `null_quantile` of the
    best scores that features reach where nothing belongs together). min_firings, min_cofirings: features that fire less
    often, alone or together, are not matched. n_candidates: partners kept for every feature. max_q: pairs are confirmed
    on other documents at this false discovery rate. n_shifts, n_shuffles: draws of the nulls; n_bootstraps: of
    intervals; n_refits: of how often a pair is found again. eval_rows: anchors on which maps are judged. top_k: largest
    features of a place that are compared. seed: of all chance.
    """

    method: str = "ridge"
    criterion: str = "correlation"
    matching: str = "mutual"
    threshold: float | None = None
    null_quantile: float = 0.99
    min_firings: int = 30
    min_cofirings: int = 10
    n_candidates: int = 8
    max_q: float = 0.05
    n_shifts: int = 199
    n_shuffles: int = 99
    n_bootstraps: int = 200
    n_refits: int = 50
    eval_rows: int = 20_000
    top_k: int = 10
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        for name, known in (("method", METHODS), ("criterion", CRITERIA), ("matching", MATCHINGS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        for name in ("null_quantile", "max_q"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a share between 0 and 1")
        if self.threshold is not None and not -1 <= self.threshold < 1:
            raise ConfigError(f"threshold={self.threshold}: scores lie between -1 and 1")
        if (1 + self.n_shifts) * self.max_q <= 1:
            raise ConfigError(
                f"n_shifts={self.n_shifts} gives p of at least {1 / (1 + self.n_shifts):.3g}, so that no pair can be "
                f"confirmed at max_q={self.max_q}; ask for more shifts"
            )
        least = {"min_firings": 2, "min_cofirings": 1, "n_candidates": 1, "n_shifts": 19, "n_shuffles": 9}
        for name, low in {**least, "n_bootstraps": 50, "n_refits": 1, "eval_rows": 1000, "top_k": 1}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
