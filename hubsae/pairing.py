"""Pairs of features that belong together, each with its nulls, interval and fate."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hubsae import cooccurrence, matching, similarity
from hubsae.align_config import AlignConfig
from hubsae.cooccurrence import CodePair, DocumentSums
from hubsae.errors import DataError
from hubsae.joint_moments import JointMoments
from hubsae.maps import LinearMap, fitted, haar
from hubsae.matching import Block, Edges
from hubsae.paired_rows import Observed
from hubsae.threads import spans

FATES = ("matched", "unconfirmed", "lost_assignment", "below_null", "too_rare", "dead")
_ORDERS_AT_ONCE, _EDGES_AT_ONCE = 1 << 25, 4096
_NULL_MAXIMA = 10_000  # best scores of the null from which its quantile is taken
_ROUNDING = 1e-6  # of correlations in single precision: equal ones count as reached
_GROUPS = 50  # of documents, drawn anew when pairs are looked for again


@dataclass(frozen=True)
class Paired:
    """All candidates with both scores (m,), the thresholds, which were chosen (m,), and what is known of those."""

    candidates: Edges
    correlation: np.ndarray
    cosine: np.ndarray
    thresholds: dict[str, float]
    chosen: np.ndarray
    pairs: dict[str, np.ndarray]
    fate_a: np.ndarray
    fate_b: np.ndarray


def pair_up(
    observed: Observed, decoder_a: np.ndarray, decoder_b: np.ndarray, map_: LinearMap, config: AlignConfig
) -> Paired:
    """Match features on the match split, and confirm and judge the pairs on the eval split."""
    rng = np.random.default_rng([config.seed, 1])
    mapped = decoder_a @ map_.matrix
    match, other = observed.codes["match"], observed.codes["eval"]
    if not all((counts >= config.min_firings).any() for counts in match.firings):
        raise DataError(
            f"no feature of one side fires min_firings={config.min_firings} times at the {match.n:,} anchors of the "
            "match split; give more texts"
        )
    thresholds = _thresholds(match, mapped, decoder_b, config, rng)
    edges = _candidates(match, mapped, decoder_b, thresholds, config)
    correlation = DocumentSums.of(match, 1).correlations(edges.a, edges.b)
    cosine = _cosines(mapped, decoder_b, edges)
    chosen = _chosen(edges, correlation, cosine, thresholds, config)
    found = edges.where(chosen)
    pairs = _judged(found, match, other, observed.words["eval"], config, rng)
    by_cosine = config.criterion == "cosine"
    above = edges.where((cosine if by_cosine else correlation) > thresholds["cosine" if by_cosine else "correlation"])
    sizes = len(decoder_a), len(decoder_b)
    degrees = [np.bincount(ids, minlength=size) for ids, size in zip((above.a, above.b), sizes, strict=True)]
    pairs |= {
        "mutual": matching.mutual(edges)[chosen],
        "rank_ab": edges.rank()[chosen],
        "rank_ba": edges.rank(of_b=True)[chosen],
        "degree_a": degrees[0][found.a],
        "degree_b": degrees[1][found.b],
        "cos_map": cosine[chosen],
        "corr_match": correlation[chosen],
        "invariance": _invariance(observed, edges, chosen, decoder_a, decoder_b, thresholds, config),
    }
    fires = [np.asarray(count) for count in observed.fires()]
    fate = [
        _fates(ids, above_ids, pairs["confirmed"], counts, total, config)
        for ids, above_ids, counts, total in zip(
            (found.a, found.b), (above.a, above.b), match.firings, fires, strict=True
        )
    ]
    return Paired(edges, correlation, cosine, thresholds, chosen, pairs, *fate)


def _blocks(codes: CodePair, config: AlignConfig) -> Iterator[Block]:
    return cooccurrence.correlation_blocks(codes, config.min_firings, config.min_cofirings)


def _thresholds(
    codes: CodePair, mapped: np.ndarray, decoder_b: np.ndarray, config: AlignConfig, rng: np.random.Generator
) -> dict[str, float]:
    """The least correlation and cosine of a pair: what a feature's best partner reaches where none belongs to it.

    For correlations B's rows are moved on in a circle, far; for cosines A's decoder is rotated at random, and where
    random directions reach more, that is taken. Of features that fire often enough.
    """
    alive = [count >= config.min_firings for count in codes.firings]
    draws = int(np.clip(-(-_NULL_MAXIMA // max(min(int(a.sum()) for a in alive), 1)), 1, 20))
    maxima = [
        _best(_blocks(cooccurrence.rolled(codes, int(by)), config), alive)
        for by in cooccurrence.far_shifts(codes.n, draws, rng)
    ]
    rotated = _best(matching.cosine_blocks(mapped @ haar(rng, mapped.shape[1]), decoder_b), alive)
    low = similarity.best_cosine_by_chance(mapped.shape[1], len(decoder_b), config.null_quantile)
    found = {
        "correlation": float(np.quantile(np.concatenate(maxima), config.null_quantile)),
        "cosine": max(low, float(np.quantile(rotated, config.null_quantile))),
        "cosine_null_q95": float(np.quantile(rotated, 0.95)),
    }
    if config.threshold is not None:
        found["cosine" if config.criterion == "cosine" else "correlation"] = config.threshold
    return found


def _best(blocks: Iterator[Block], alive: list[np.ndarray]) -> np.ndarray:
    """The best score of every feature that is alive, of either side; 0 for one that goes with none often enough."""
    rows: list[np.ndarray] = []
    best: np.ndarray | None = None
    for _, scores in blocks:
        rows.append(scores.max(axis=0))
        top = scores.max(axis=1)
        best = top if best is None else np.maximum(best, top)
    assert best is not None
    found = np.concatenate([best[alive[0]], np.concatenate(rows)[alive[1]]])
    return np.where(np.isfinite(found), found, 0)


def _candidates(
    codes: CodePair, mapped: np.ndarray, decoder_b: np.ndarray, thresholds: dict[str, float], config: AlignConfig
) -> Edges:
    """The best partners of every feature, and all above the threshold, by the criterion (or by either of both)."""
    shape, found = (codes.a.shape[1], codes.b.shape[1]), []
    if config.criterion != "cosine":
        blocks, least = _blocks(codes, config), thresholds["correlation"]
        found.append(matching.gathered(blocks, *shape, n_best=config.n_candidates, threshold=least))
    if config.criterion != "correlation":
        enough = [count >= config.min_firings for count in codes.firings]
        blocks = (
            (part, np.where(enough[0][:, None] & enough[1][part], scores, -np.inf))
            for part, scores in matching.cosine_blocks(mapped, decoder_b)
        )
        near = matching.gathered(blocks, *shape, n_best=config.n_candidates, threshold=thresholds["cosine"])
        found.append(near.where(cooccurrence.counts(codes, near.a, near.b) >= config.min_cofirings))
    return matching.joined(found, shape[1])


def _cosines(mapped: np.ndarray, decoder_b: np.ndarray, edges: Edges) -> np.ndarray:
    a, b = matching.unit(mapped), matching.unit(decoder_b)
    parts = [np.einsum("md,md->m", a[edges.a[part]], b[edges.b[part]]) for part in spans(len(edges), _EDGES_AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _chosen(
    edges: Edges, correlation: np.ndarray, cosine: np.ndarray, thresholds: dict[str, float], config: AlignConfig
) -> np.ndarray:
    """(m,) bool: the pairs, by the criterion; with "both" those that either would choose by itself."""
    by = {"correlation": correlation, "cosine": cosine}
    names = tuple(by) if config.criterion == "both" else (config.criterion,)
    chosen = np.ones(len(edges), bool)
    for name in names:
        chosen &= matching.matched(Edges(edges.a, edges.b, by[name]), config.matching, thresholds[name])
    return chosen


def _judged(
    found: Edges, match: CodePair, other: CodePair, words: np.ndarray, config: AlignConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What the eval split says of pairs that were chosen on the match split."""
    a, b = found.a, found.b
    sums = DocumentSums.of(other).of_pairs(a, b)
    corr = sums.correlations()
    low, high = sums.intervals(config.n_bootstraps, config.seed)
    shifts = _null(other, a, b, lambda n: cooccurrence.roll_orders(other.n, n, rng), config.n_shifts)
    shuffles = _null(other, a, b, lambda n: cooccurrence.class_orders(words, n, rng), config.n_shuffles)
    known = np.isfinite(corr)
    beaten = (np.nan_to_num(shifts, nan=np.inf) >= np.where(known, corr, -np.inf) - _ROUNDING).sum(axis=0)
    firings, together = other.firings, cooccurrence.counts(other, a, b)
    enough = known & (corr > 0) & (together >= max(2, config.min_cofirings // 2))
    p = np.where(enough, (1 + beaten) / (1 + config.n_shifts), 1.0)
    q = false_discovery_rates(p)
    fires_a, fires_b = firings[0][a], firings[1][b]
    with np.errstate(invalid="ignore", divide="ignore"):
        jaccard = together / (fires_a + fires_b - together)
        gain = np.asarray(sums.ab.sum(axis=0)).ravel() / np.asarray(sums.aa.sum(axis=0)).ravel()
    return {
        "feature_a": a,
        "feature_b": b,
        "corr_eval": corr,
        "corr_eval_lo": low,
        "corr_eval_hi": high,
        "corr_docshift_q99": _quantile(shifts),
        "corr_withinword_q99": _quantile(shuffles),
        "jaccard_eval": jaccard,
        "gain": gain,
        "n_fire_a": fires_a,
        "n_fire_b": fires_b,
        "n_cofire": together,
        "p": p,
        "q_bh": q,
        "confirmed": q < config.max_q,
    }


def _null(codes: CodePair, a: np.ndarray, b: np.ndarray, orders, n_draws: int) -> np.ndarray:
    """(n_draws, m) correlations of the pairs under rearrangements, a few orders in memory at a time."""
    step = max(1, _ORDERS_AT_ONCE // max(codes.n, 1))
    parts = [
        cooccurrence.rearranged(codes, a, b, orders(min(step, n_draws - start))) for start in range(0, n_draws, step)
    ]
    return np.concatenate(parts)


def _quantile(draws: np.ndarray) -> np.ndarray:
    found = np.full(draws.shape[1], np.nan)
    known = np.isfinite(draws).all(axis=0)
    if known.any():
        found[known] = np.quantile(draws[:, known], 0.99, axis=0)
    return found


def false_discovery_rates(p: np.ndarray) -> np.ndarray:
    """(m,) q: the least false discovery rate at which a test with this p counts (Benjamini and Hochberg 1995)."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    found = np.empty(len(p))
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return found


def _invariance(
    observed: Observed,
    edges: Edges,
    chosen: np.ndarray,
    decoder_a: np.ndarray,
    decoder_b: np.ndarray,
    thresholds: dict[str, float],
    config: AlignConfig,
) -> np.ndarray:
    """(pairs,) share of refits, on documents drawn anew, that choose the same pair among the candidates.

    The correlations are those of the documents drawn; where the criterion needs cosines the map is fitted anew too.
    """
    rng = np.random.default_rng([config.seed, 2])
    sums = DocumentSums.of(observed.codes["match"], _GROUPS)
    groups = len(sums.n)
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=config.n_refits)
    correlation = sums.correlations(edges.a, edges.b, weights)
    again = np.zeros(int(chosen.sum()))
    for draw in range(config.n_refits):
        cosine = np.zeros(len(edges))
        if config.criterion != "correlation":
            shards = len(observed.fit)
            parts = rng.multinomial(shards, np.full(shards, 1 / shards)) if shards > 1 else [1]
            refit = fitted(config.method, JointMoments.weighted(observed.fit, parts), observed.match)
            cosine = _cosines(decoder_a @ refit.matrix, decoder_b, edges)
        again += _chosen(edges, correlation[draw], cosine, thresholds, config)[chosen]
    return again / config.n_refits


def _fates(
    ids: np.ndarray,
    above: np.ndarray,
    confirmed: np.ndarray,
    firings: np.ndarray,
    total: np.ndarray,
    config: AlignConfig,
) -> np.ndarray:
    rare = np.flatnonzero((firings < config.min_firings) & (total > 0))
    return matching.fates(
        len(firings),
        {
            "dead": np.flatnonzero(total == 0),
            "too_rare": rare,
            "matched": ids[confirmed],
            "unconfirmed": ids[~confirmed],
            "lost_assignment": above,
            "below_null": [],
        },
    )
