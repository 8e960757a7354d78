"""How well a map carries activations over, on documents it was not fitted to, each number with its null."""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import scipy.sparse
import scipy.special

from hubsae import cooccurrence, maps, metrics, similarity
from hubsae.align_config import AlignConfig
from hubsae.cooccurrence import CodePair
from hubsae.dictionary import Dictionary
from hubsae.joint_moments import JointMoments
from hubsae.maps import LinearMap
from hubsae.paired_rows import Observed, Rows
from hubsae.sparse import as_numpy

MEASURES: dict[str, str] = {
    "r2": "share of B's variance at held-out anchors that the mapped activations of A explain, against the mean",
    "r2_shifted_fit": "the same by a map that was fitted on anchors moved on against each other by half of a batch",
    "r2_within_word": "the same where every row is paired with another one at which the same piece of a word ends",
    "context_excess": "r2 less r2_within_word, on the same rows: what is more than the word that is being read (a map "
    "that relies on context loses twice when it is wrong, so this may exceed r2)",
    "retrieval_at_1": "share of 1,000 held-out anchors whose mapped activation is closest to its own partner",
    "cka": "debiased linear CKA (Kornblith et al. 2019; Song et al. 2012)",
    "svcca_fit": "mean SVCCA correlation, 99 % of the variance, on the data that it was fitted to",
    "svcca_held_out": "mean correlation of the same directions on held-out anchors",
    "pwcca": "projection-weighted CCA (Morcos et al. 2018), on the data that it was fitted to",
    "ev_own": "explained variance of the target's own SAE at held-out anchors",
    "ev_transferred": "explained variance of the other model's SAE there, moved over through the map and back",
    "ev_round_trip": "explained variance of the two maps alone, there and back",
    "matched_share": "share of the features that fire often enough which have a confirmed partner",
    "above_within_word": "share of the confirmed pairs whose correlation beats 99 % of shuffles within words",
    "mean_corr_chosen": "mean held-out correlation of all pairs that were chosen, confirmed or not",
    "mean_corr_eval": "mean held-out correlation of the confirmed pairs",
    "share_above_half": "share of the confirmed pairs whose held-out correlation is above 0.5",
    "invariance": "mean share of refits on documents drawn anew that find a pair again",
    "distinct_targets": "different best partners for each feature, many-to-one allowed: 1 where none is shared",
    "top_k_overlap": "share of the largest features at an anchor, of those with a partner, whose partner is among the "
    "other model's largest",
}
_RETRIEVED = 1000
_JACKKNIFE = 10


def measured(name: str, value: float, **known: Any) -> dict[str, Any]:
    """One row of the table of metrics; what is not finite is missing."""
    row = {"name": name, "value": value, "split": "eval", "direction": "a->b", **known}
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}


def measure_maps(
    observed: Observed,
    forward: Mapping[str, LinearMap],
    backward: Mapping[str, LinearMap],
    dictionaries: tuple[Dictionary, Dictionary],
    config: AlignConfig,
) -> list[dict[str, Any]]:
    """Rows of metrics: of every map in both directions, of the activations as such, of the SAEs moved over."""
    fit = JointMoments.weighted(observed.fit)
    out = [measure_cka(observed.rows, config), *measure_canonical(observed.rows, fit)]
    turned, a, b = observed.rows.swapped(), dictionaries[0], dictionaries[1]
    sides = (
        ("a->b", observed.rows, forward, backward, observed.shifted, observed.match, (a, b)),
        ("b->a", turned, backward, forward, observed.shifted.swapped(), observed.match.swapped(), (b, a)),
    )
    for direction, rows, there, back, shifted, match, pair in sides:
        for method, map_ in there.items():
            known = {"direction": direction, "method": method}
            out += measure_map(rows, map_, config, known)
            nothing = maps.fitted(method, shifted, match)
            out.append(_explained("r2_shifted_fit", rows, nothing(rows.x), nothing.mean_y, config, known))
            out += _measure_transfer(rows, map_, back[method], pair, config, known)
    return out


def measure_map(rows: Rows, map_: LinearMap, config: AlignConfig, known: dict) -> list[dict[str, Any]]:
    """R2, R2 within words and their difference, retrieval: of one map on held-out rows."""
    rng = np.random.default_rng([config.seed, 3])
    found = _explained("r2", rows, map_(rows.x), map_.mean_y, config, known)
    nulls = _shifted_r2(rows, map_, config.n_shifts, rng)
    p = (1 + int((nulls >= found["value"]).sum())) / (1 + len(nulls))
    null = {"null_name": "rows moved on", "null_mean": nulls.mean(), "null_q95": np.quantile(nulls, 0.95), "p": p}
    out = [{**found, **null}]
    out += _within_words(rows, map_, config, rng, known)
    return [*out, _retrieval(rows, map_, config, rng, known)]


def _errors(rows: Rows, guess: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) squared errors of a guess at y, and of the mean that a map knows."""
    total = np.square(rows.y - mean.astype(rows.y.dtype)).sum(axis=1, dtype=np.float64)
    return np.square(rows.y - guess).sum(axis=1, dtype=np.float64), total


def by_document(document: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """(documents, len(values)) sums of values (n,) over each document's rows."""
    _, place = np.unique(document, return_inverse=True)
    return np.stack([np.bincount(place, value) for value in values], axis=1)


def _interval(sums: np.ndarray, statistic: Callable[[np.ndarray], float], config: AlignConfig) -> tuple[float, float]:
    return metrics.bootstrap_interval(sums, statistic, n_draws=config.n_bootstraps, seed=config.seed)


def _explained(
    name: str, rows: Rows, guess: np.ndarray, mean: np.ndarray, config: AlignConfig, known: dict
) -> dict[str, Any]:
    """The share of y's variance about a mean that a guess explains, with its interval over documents."""
    error, total = _errors(rows, guess, mean)
    sums = by_document(rows.document, error, total)
    low, high = _interval(sums, lambda s: 1 - s[0] / s[1], config)
    return measured(name, 1 - float(error.sum() / total.sum()), lo=low, hi=high, n=len(rows), **known)


def _shifted_r2(rows: Rows, map_: LinearMap, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """(n_draws,) R2 when the partners of whole runs of rows are others, far away."""
    n = len(rows)
    guess = map_(rows.x) - map_.mean_y.astype(rows.x.dtype)
    target = rows.y - map_.mean_y.astype(rows.y.dtype)
    squares, total = float(np.square(guess).sum(dtype=np.float64)), float(np.square(target).sum(dtype=np.float64))
    found = []
    for by in cooccurrence.far_shifts(n, n_draws, rng):
        cross = np.vdot(guess[by:], target[: n - by]) + np.vdot(guess[:by], target[n - by :])
        found.append((2 * float(cross) - squares) / total)
    return np.array(found)


def shared_words(rows: Rows) -> np.ndarray:
    """(n,) bool: rows at which the same piece of a word ends as at some other row."""
    _, place, size = np.unique(rows.word, return_inverse=True, return_counts=True)
    return size[place] > 1


def _moved_within(words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) an order that gives every row another one of its word, chosen at random."""
    order = np.lexsort((rng.random(len(words)), words))
    starts = np.flatnonzero(np.r_[True, np.diff(words[order]) != 0])
    following = np.r_[order[1:], order[:1]]
    ends = np.r_[starts[1:], len(order)] - 1
    following[ends] = order[starts]
    found = np.empty(len(words), np.int64)
    found[order] = following
    return found


def _within_words(
    rows: Rows, map_: LinearMap, config: AlignConfig, rng: np.random.Generator, known: dict
) -> list[dict[str, Any]]:
    rows = rows.where(shared_words(rows))
    if len(rows) < 2:
        return []
    guess = map_(rows.x)
    error, total = _errors(rows, guess, map_.mean_y)
    shuffled = np.mean(
        [np.square(rows.y[_moved_within(rows.word, rng)] - guess).sum(axis=1, dtype=np.float64) for _ in range(5)],
        axis=0,
    )
    sums = by_document(rows.document, error, shuffled, total)
    whole = sums.sum(axis=0)
    same, excess = (lambda s: 1 - s[1] / s[2]), (lambda s: (s[1] - s[0]) / s[2])
    return [
        measured(name, float(f(whole)), lo=low, hi=high, n=len(rows), **known)
        for name, f in (("r2_within_word", same), ("context_excess", excess))
        for low, high in [_interval(sums, f, config)]
    ]


def _retrieval(rows: Rows, map_: LinearMap, config: AlignConfig, rng: np.random.Generator, known: dict) -> dict:
    some = rows.where(np.sort(rng.permutation(len(rows))[:_RETRIEVED]))
    hits = similarity.retrieval(map_(some.x), some.y)
    sums = by_document(some.document, hits, np.ones(len(hits)))
    low, high = _interval(sums, lambda s: s[0] / s[1], config)
    null = {"null_name": "chance", "null_mean": 1 / len(some)}
    return measured("retrieval_at_1", float(hits.mean()), lo=low, hi=high, n=len(some), **known, **null)


def measure_cka(rows: Rows, config: AlignConfig) -> dict[str, Any]:
    """CKA of the activations as such, with what is left when rows are shuffled within words; jackknife interval."""
    rng = np.random.default_rng([config.seed, 4])
    inside = rows.where(shared_words(rows))
    order = _moved_within(inside.word, rng) if len(inside) else np.zeros(0, int)
    same_word = similarity.linear_cka(JointMoments.of(inside.x, inside.y[order])) if len(inside) > 3 else float("nan")
    value, low, high = _jackknifed(_grouped(rows), similarity.linear_cka)
    null = {"null_name": "shuffled within words", "null_mean": same_word}
    return measured("cka", value, lo=low, hi=high, direction="both", n=len(rows), **null)


def measure_canonical(rows: Rows, fit: JointMoments) -> list[dict[str, Any]]:
    """SVCCA and PWCCA on the data that they were fitted to, and SVCCA's correlations on held-out rows."""
    found = maps.canonical(fit, 0.99)
    by_chance = {"null_name": "independent data (root mean square)", "split": "fit", "n": int(fit.n)}
    dims = [similarity.canonical_by_chance(fit.n, *sizes)[0] for sizes in (found.dims, (fit.p, fit.q))]
    value, low, high = _jackknifed(_grouped(rows), lambda m: float(found.correlations(m).mean()))
    null = {"null_name": "independent data", "null_mean": 0.0}
    return [
        measured("svcca_fit", float(found.rho.mean()), direction="both", null_mean=dims[0], **by_chance),
        measured("svcca_held_out", value, lo=low, hi=high, direction="both", n=len(rows), **null),
        measured("pwcca", similarity.pwcca(fit), null_mean=dims[1], **by_chance),
    ]


def _grouped(rows: Rows) -> list[JointMoments]:
    """Moments of ten groups of documents."""
    shift = np.concatenate([part.mean(axis=0, dtype=np.float64) for part in (rows.x, rows.y)])
    parts = (rows.where(rows.document % _JACKKNIFE == i) for i in range(_JACKKNIFE))
    return [JointMoments.of(part.x, part.y, shift) for part in parts if len(part)]


def _jackknifed(groups: list[JointMoments], statistic: Callable[[JointMoments], float]) -> tuple[float, float, float]:
    """A statistic of all, with a 95 % interval from leaving out one group of documents after the other."""
    value, n = statistic(JointMoments.weighted(groups)), len(groups)
    if n < 3:
        return value, float("nan"), float("nan")
    left = np.array([statistic(JointMoments.weighted(groups, [i != j for j in range(n)])) for i in range(n)])
    half = scipy.special.stdtrit(n - 1, 0.975) * float(np.sqrt((n - 1) / n * np.square(left - left.mean()).sum()))
    return value, value - half, value + half


def _reconstructed(dictionary: Dictionary, rows: np.ndarray) -> np.ndarray:
    out = np.empty_like(rows)
    for part, code in dictionary.encode_slices(rows):
        out[part] = as_numpy(dictionary.decode(code).astype(mx.float32))
    return out


def _measure_transfer(
    rows: Rows,
    map_: LinearMap,
    back: LinearMap,
    pair: tuple[Dictionary, Dictionary],
    config: AlignConfig,
    known: dict,
) -> list[dict[str, Any]]:
    """Explained variance of y: by its own SAE, by the other one's moved over, and by going there and back."""
    returned = back(rows.y)
    guesses = {
        "ev_own": _reconstructed(pair[1], rows.y),
        "ev_transferred": map_(_reconstructed(pair[0], returned)),
        "ev_round_trip": map_(returned),
    }
    return [_explained(name, rows, guess, map_.mean_y, config, known) for name, guess in guesses.items()]


def top_k_overlap(
    codes: CodePair, pairs: tuple[np.ndarray, np.ndarray], config: AlignConfig, direction: str = "a->b"
) -> dict[str, Any]:
    """Through the table of pairs; the null moves the rows on."""
    largest = [_largest(matrix.tocsr(), config.top_k) for matrix in (codes.a, codes.b)]
    partner = np.full(codes.a.shape[1], -1)
    partner[pairs[0]] = pairs[1]
    known = partner[largest[0].indices] >= 0
    place = np.repeat(np.arange(codes.n), np.diff(largest[0].indptr))[known]
    wanted = partner[largest[0].indices[known]]
    keys = np.repeat(np.arange(codes.n), np.diff(largest[1].indptr)) * codes.b.shape[1] + largest[1].indices
    keys.sort()

    def hits(by: int) -> np.ndarray:
        asked = (place + by) % codes.n * codes.b.shape[1] + wanted
        at = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
        return keys[at] == asked if len(keys) else np.zeros(len(asked), bool)

    if not len(place):
        return measured("top_k_overlap", float("nan"), direction=direction, n=0)
    found, rng = hits(0), np.random.default_rng([config.seed, 5])
    nulls = [hits(int(by)).mean() for by in cooccurrence.far_shifts(codes.n, 19, rng)]
    sums = by_document(codes.document[place], found, np.ones(len(found)))
    low, high = _interval(sums, lambda s: s[0] / s[1], config)
    null = {
        "null_name": "rows moved on",
        "null_mean": float(np.mean(nulls)),
        "null_q95": float(np.quantile(nulls, 0.95)),
    }
    null["p"] = (1 + int(np.sum(nulls >= found.mean()))) / (1 + len(nulls))
    return measured("top_k_overlap", float(found.mean()), lo=low, hi=high, n=codes.n, direction=direction, **null)


def _largest(matrix: Any, k: int) -> Any:
    """The k largest entries of every row, CSR."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, rows))
    rank = np.arange(len(order)) - matrix.indptr[rows[order]]
    kept = order[rank < k]
    kept.sort()
    return scipy.sparse.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)
