"""Questions about several features: which resemble one, which form groups, which fire together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hubsae import relations
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.features import Features, Neighbour, check_feature, check_features
from hubsae.sparse import as_numpy
from hubsae.tables import Listed, Shown, Table
from hubsae.text_analysis import check_top_k

_SHOWN_GROUPS, _SHOWN_MEMBERS = 20, 8


@dataclass(frozen=True, repr=False)
class SimilarFeatures(Listed):
    """The features nearest to one, by decoder cosine or phi."""

    listed: ClassVar[str] = "neighbours"

    feature: int
    by: str
    neighbours: tuple[Neighbour, ...]
    known: Features | None = field(default=None)

    def tables(self) -> list[Table]:
        measure = "cosine" if self.by == "decoder" else "phi"
        rows = [(n.feature, n.score, _name(self.known, n.feature)) for n in self.neighbours]
        title = f"features nearest to {self.feature} by {self.by}"
        return [Table(title, ("feature", measure, "label, or tokens it fires on"), rows)]


@dataclass(frozen=True, repr=False)
class FeatureClusters(Listed):
    """Groups of features, largest first, the centre first in each; `alone` features are in none."""

    listed: ClassVar[str] = "clusters"

    by: str
    min_similarity: float
    clusters: tuple[tuple[int, ...], ...]
    alone: int
    known: Features | None = field(default=None)

    def tables(self) -> list[Table]:
        rows = []
        for group in self.clusters[:_SHOWN_GROUPS]:
            named = (f"{i} {_name(self.known, i)}".strip() for i in group[:_SHOWN_MEMBERS])
            rows.append((len(group), group[0], "; ".join(named) + (" ..." if len(group) > _SHOWN_MEMBERS else "")))
        title = (
            f"{len(self.clusters)} groups by {self.by} (at least {self.min_similarity:g} to the centre), "
            f"{self.alone} features alone"
        )
        return [Table(title, ("size", "centre", "features"), rows)]


@dataclass(frozen=True, repr=False)
class CoOccurrence(Shown):
    """counts, phi (m, m): how often two of `features` fire on the same of `n_rows` sampled tokens, and how closely."""

    features: tuple[int, ...]
    counts: np.ndarray
    phi: np.ndarray
    n_rows: int
    known: Features | None = field(default=None)

    def tables(self) -> list[Table]:
        rows = [
            (i, _name(self.known, i), *(float(v) for v in row)) for i, row in zip(self.features, self.phi, strict=True)
        ]
        head = ("feature", "", *map(str, self.features))
        return [Table(f"phi of firing on the same of {self.n_rows:,} tokens", head, rows)]


def similar_features(
    dictionary: Dictionary, feature: int, by: str, top_k: int, known: Features | None, sample: Any
) -> SimilarFeatures:
    """The `top_k` features nearest to one."""
    check_top_k(top_k)
    check_by(by)
    feature = check_feature(feature, dictionary.n_features)
    counts = None
    if by == "decoder":
        scores = relations.cosines_to(as_numpy(dictionary.W_dec), feature)
    elif sample is not None:
        scores, counts = relations.phi_to(sample, feature)
    else:
        stored = known.cofiring(feature) if known else []
        if known is None or "cofiring_ids" not in known.columns:
            raise DataError("which features fire together is not known; call feature_statistics(texts) first")
        return SimilarFeatures(feature, by, tuple(stored[:top_k]), known)
    scores = scores.copy()
    scores[feature] = -np.inf
    order = [int(i) for i in np.argsort(-scores, kind="stable")[:top_k] if scores[i] > 0]
    found = (Neighbour(i, float(scores[i]), None if counts is None else int(counts[i])) for i in order)
    return SimilarFeatures(feature, by, tuple(found), known)


def feature_clusters(
    dictionary: Dictionary, by: str, min_similarity: float, known: Features | None, sample: Any
) -> FeatureClusters:
    """Groups of features around centres (`relations.star_clusters`); features known to be dead take no part."""
    check_by(by)
    least = relations.check_similarity(min_similarity)
    if by == "decoder":
        pairs = relations.decoder_pairs(as_numpy(dictionary.W_dec), least)
    else:
        pairs = relations.cofiring_pairs(_needed(sample), least)
    members = np.arange(dictionary.n_features) if known is None else np.flatnonzero(~known.dead)
    groups = relations.star_clusters(pairs, members)
    alone = len(members) - sum(map(len, groups))
    return FeatureClusters(by, least, tuple(tuple(map(int, group)) for group in groups), alone, known)


def co_occurrence(dictionary: Dictionary, features: Sequence[int], known: Features | None, sample: Any) -> CoOccurrence:
    """Counts and phi of each two of some features."""
    chosen = check_features(features, dictionary.n_features)
    if not chosen or len(set(chosen)) < len(chosen):
        raise DataError(f"features {chosen}: expected some different ones")
    code = _needed(sample)
    fired = np.bincount(code.indices, minlength=dictionary.n_features)[chosen]
    ids = np.array(chosen)
    both = np.concatenate([part.toarray()[:, ids] for _, part in relations.together(code, ids)])
    phi = relations.phi(both, fired[:, None], fired[None], code.shape[0])
    return CoOccurrence(tuple(map(int, chosen)), both.astype(np.int64), phi, code.shape[0], known)


def check_by(by: str) -> None:
    """Raise `ConfigError` for what is no way of comparing features."""
    if by not in ("decoder", "coactivation"):
        raise ConfigError(f"by={by!r}: expected 'decoder' or 'coactivation'")


def _needed(sample: Any) -> Any:
    if sample is None:
        raise DataError("pairs of features are counted in a pass over texts: give dataset=, or call feature_statistics")
    return sample


def _name(known: Features | None, feature: int) -> str:
    return known.name(feature) if known else ""
