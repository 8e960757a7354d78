"""Does a feature of A do in B what it does in A? Steering by equal doses, compared with controls that should fail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import vectorised
from hubsae.anchors import AnchorSet
from hubsae.errors import ConfigError, DataError
from hubsae.evaluate import log_probabilities
from hubsae.frames import Frame
from hubsae.lm import LanguageModel, padded
from hubsae.map_quality import measured
from hubsae.maps import LinearMap, haar
from hubsae.matching import unit
from hubsae.metrics import bootstrap_interval
from hubsae.settings import check_types
from hubsae.sites import Site
from hubsae.threads import spans
from hubsae.tokens import Chunk
from hubsae.transfer import shared_tokens

CONTROLS = ("random direction", "rotated map", "shuffled", "unmapped")
CAUSAL_MEASURES = {
    "causal_corr": "mean correlation of a feature's effects in A with those of its direction in B, on the "
    "log-probabilities of the tokens that both vocabularies have",
    "causal_retrieval_at_1": "share of the tested features whose effect in B is most like their own in A",
    "causal_auc": "chance that a feature's effect in B is more like its own in A than like another tested feature's",
    "promoted_overlap": "share of A's five most raised tokens among B's five",
    "stitched_loss_recovered": "share of the loss that is kept when B's activations at the anchors are A's, mapped: "
    "1 as B's own, 0 as with the mean",
    "stitched_gap": "nats between the mean in their place and B's own activations, of which that is a share",
}
_VALUES_AT_ONCE = 1 << 24
_TOLERANCE, _MOST_STEPS = 0.1, 12
_TOP = 5


@dataclass(frozen=True)
class CausalConfig:
    """n_features: pairs that are tested, those with the highest correlation on the match split. dose: mean KL(original
    || steered) in nats at the anchors, the same for every direction in both models. n_anchors: places of the eval split
    that are steered and looked at. seed: of all chance."""

    n_features: int = 64
    dose: float = 0.3
    n_anchors: int = 256
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        for name, low in (("n_features", 2), ("n_anchors", 10)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
        if not 0 < self.dose < 10:
            raise ConfigError(f"dose={self.dose}: expected nats between 0 and 10")


@dataclass(frozen=True)
class Effects:
    """What steering along k directions does: mean change of log-probability (k, tokens), the dose (k,) in nats that was
    reached, and the length (k,) of what was added, in mean lengths of an activation."""

    change: np.ndarray
    kl: np.ndarray
    length: np.ndarray


class Steered:
    """A model at some anchors, which can be steered along directions there."""

    def __init__(self, model: LanguageModel, site: Site, chunks: Sequence[Chunk], tokens: np.ndarray):
        self._model, self._site = model, site.of(0)
        self._ids = padded([chunk.ids for chunk in chunks])
        keep = padded([chunk.keep for chunk in chunks]).astype(bool)
        self._mask = mx.array(keep)[..., None]
        self._where = mx.array(np.flatnonzero(keep).astype(np.int32))
        self._tokens = mx.array(tokens.astype(np.int32))
        run = model.run(self._ids, read=[self._site])
        self._base = log_probabilities(run, self._where)
        activation = run.activations[self._site].astype(mx.float32)
        rows = mx.take(activation.reshape(-1, activation.shape[-1]), self._where, axis=0)
        self.mean_length = float(np.linalg.norm(np.array(rows), axis=1).mean())

    def steered(self, directions: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k, tokens) mean changes of log-probability and (k,) mean KL with `lengths` of unit `directions` added."""
        k, texts = len(directions), len(self._ids)
        deltas = mx.array((directions * (lengths * self.mean_length)[:, None]).astype(np.float32))
        spread = mx.repeat(deltas, texts, axis=0)[:, None]
        mask = mx.concatenate([self._mask] * k)

        def edit(x: mx.array) -> mx.array:
            return x + (mask * spread).astype(x.dtype)

        run = self._model.run(np.tile(self._ids, (k, 1)), edit={self._site: edit})
        where = mx.concatenate([self._where + copy * self._ids.size for copy in range(k)])
        changed = log_probabilities(run, where).reshape(k, *self._base.shape)
        kl = mx.mean(mx.sum(mx.exp(self._base) * (self._base - changed), axis=-1), axis=-1)
        change = mx.mean(mx.take(changed - self._base, self._tokens, axis=-1), axis=1)
        return np.array(change), np.array(kl)

    def effects(self, directions: np.ndarray, dose: float) -> Effects:
        """The effects of `directions` (k, d), each as long as it has to be for the dose."""
        return self._in_parts(directions, lambda part: self._dosed(part, dose))

    def effects_at(self, directions: np.ndarray, length: float) -> Effects:
        """The effects of `directions` (k, d), each of one length, in mean lengths of an activation."""

        def steer(part: np.ndarray) -> Effects:
            lengths = np.full(len(part), float(length))
            return Effects(*self.steered(unit(part), lengths), lengths)

        return self._in_parts(directions, steer)

    def _in_parts(self, directions: np.ndarray, work: Callable[[np.ndarray], Effects]) -> Effects:
        """`work` on as many directions at a time as have room for their logits."""
        at_once = _VALUES_AT_ONCE // (self._ids.size * self._model.vocab_size)
        with vectorised.exponentials():
            parts = [work(directions[part]) for part in spans(len(directions), at_once)]
        return Effects(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("change", "kl", "length")))

    def _dosed(self, directions: np.ndarray, dose: float) -> Effects:
        """Lengths by interpolation between one that gives less and one that gives more, both on logarithmic scales."""
        directions, k = unit(directions), len(directions)
        low, high, lengths = np.zeros(k), np.full(k, np.inf), np.full(k, 0.5)
        below, above = np.full(k, np.nan), np.full(k, np.nan)
        change, kl = self.steered(directions, lengths)
        for _ in range(_MOST_STEPS):
            open_ = np.flatnonzero(np.abs(kl / dose - 1) > _TOLERANCE)
            if not len(open_):
                break
            less = kl[open_] < dose
            for ends, doses, at in ((low, below, open_[less]), (high, above, open_[~less])):
                ends[at], doses[at] = lengths[at], np.maximum(kl[at], 1e-9)
            with np.errstate(invalid="ignore", divide="ignore"):
                share = (np.log(dose) - np.log(below)) / (np.log(above) - np.log(below))
                between = low * (high / low) ** np.clip(share, 0.05, 0.95)
            outside = lengths * np.clip(np.sqrt(dose / np.maximum(kl, 1e-9)), 0.25, 4)  # KL grows like the square
            both = (low > 0) & np.isfinite(high)
            lengths[open_] = np.where(both, between, outside)[open_]
            change[open_], kl[open_] = self.steered(directions[open_], lengths[open_])
        return Effects(change, kl, lengths)


def chosen_chunks(anchors: AnchorSet, n_anchors: int, seed: int) -> list[Chunk]:
    """Chunks drawn at random until they have so many anchors."""
    found, n = [], 0
    for i in np.random.default_rng(seed).permutation(len(anchors.chunks)):
        if n >= n_anchors:
            break
        found.append(anchors.chunks[i])
        n += found[-1].n_rows
    return found


def conditions(
    decoder_a: np.ndarray, decoder_b: np.ndarray, maps: Mapping[str, LinearMap], main: str, seed: int
) -> dict[str, np.ndarray]:
    """Directions (k, d_B) by which B is steered for the k pairs of decoder rows (k, d_A), (k, d_B), by condition."""
    rng, (k, d) = np.random.default_rng([seed, 6]), decoder_b.shape
    found = {name: decoder_a @ map_.matrix for name, map_ in maps.items()}
    found["partner"] = decoder_b
    found["random direction"] = rng.standard_normal((k, d))
    found["rotated map"] = found[main] @ haar(rng, d)
    if decoder_a.shape[1] == d:
        found["unmapped"] = decoder_a
    return found


def compare_effects(own: Effects, other: Effects) -> dict[str, np.ndarray]:
    """Per feature: correlation with its effect in A, its rank and AUC among all tested, overlap of raised tokens."""
    a, b = (unit(e.change - e.change.mean(axis=1, keepdims=True)) for e in (own, other))
    scores = a @ b.T
    diagonal = np.diag(scores)
    better = scores > diagonal[:, None]
    ties = (scores == diagonal[:, None]).sum(axis=1) - 1
    n = len(scores)
    tops = [np.argsort(-e.change, axis=1)[:, :_TOP] for e in (own, other)]
    overlap = [len(set(x) & set(y)) / _TOP for x, y in zip(*(t.tolist() for t in tops), strict=True)]
    return {
        "effect_corr": diagonal,
        "retrieval_rank": better.sum(axis=1) + ties,
        "auc": 1 - (better.sum(axis=1) + 0.5 * ties) / max(n - 1, 1),
        "promoted_overlap": np.array(overlap),
    }


def measure_effects(
    models: tuple[LanguageModel, LanguageModel],
    sites: tuple[Site, Site],
    pairs: tuple[np.ndarray, np.ndarray],
    decoders: tuple[np.ndarray, np.ndarray],
    maps: Mapping[str, LinearMap],
    main: str,
    anchors: AnchorSet,
    config: CausalConfig,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of effects, rows of metrics) for pairs of features a (k,), b (k,) under all conditions."""
    if len(pairs[0]) < 2:
        raise DataError(f"{len(pairs[0])} pairs: at least two are needed to tell one effect from another")
    chunks = chosen_chunks(anchors, config.n_anchors, config.seed)
    tokens = shared_tokens(models)
    steered = [
        Steered(model, site, [chunk.of(m) for chunk in chunks], ids)
        for m, (model, site, ids) in enumerate(zip(models, sites, tokens, strict=True))
    ]
    rows = decoders[0][pairs[0]], decoders[1][pairs[1]]
    own = steered[0].effects(rows[0], config.dose)
    table, numbers = [], []
    for condition, directions in conditions(*rows, maps, main, config.seed).items():
        other = steered[1].effects(directions, config.dose)
        found = compare_effects(own, other)
        numbers += _summarised(condition, found)
        for i, (a, b) in enumerate(zip(*pairs, strict=True)):
            table.append(
                {
                    "condition": condition,
                    "feature_a": int(a),
                    "feature_b": int(b),
                    "effect_corr": float(found["effect_corr"][i]),
                    "retrieval_rank": int(found["retrieval_rank"][i]),
                    "n_tested": len(rows[0]),
                    "promoted_overlap": float(found["promoted_overlap"][i]),
                    "kl_a": float(own.kl[i]),
                    "kl_b": float(other.kl[i]),
                }
            )
    return table, numbers


def by_condition(numbers: list[dict[str, Any]], title: str) -> Frame:
    """The numbers of `measure_effects` and of stitching, a row for each way of steering or map."""
    names = ("causal_corr", "causal_retrieval_at_1", "causal_auc", "promoted_overlap", "stitched_loss_recovered")
    conditions = list(dict.fromkeys(row["method"] for row in numbers if row["name"] in names))
    columns: dict[str, np.ndarray] = {"condition": np.array(conditions, object)}
    for name in names:
        found = {row["method"]: row for row in numbers if row["name"] == name}
        for suffix, key in (("", "value"), ("_lo", "lo"), ("_hi", "hi")):
            values = [(found.get(condition) or {}).get(key) for condition in conditions]
            columns[name + suffix] = np.array([np.nan if v is None else v for v in values], np.float64)
    n = max((row["n"] for row in numbers if row["name"] == "causal_auc"), default=1)
    note = f"By chance: correlation 0, retrieval {1 / n:.3g}, AUC 0.5. Columns with _lo and _hi hold 95 % intervals."
    return Frame(columns, title, ("condition", *names), note)


def _summarised(condition: str, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    n = len(found["auc"])
    values = {
        "causal_corr": (found["effect_corr"], 0.0),
        "causal_retrieval_at_1": ((found["retrieval_rank"] == 0).astype(float), 1 / n),
        "causal_auc": (found["auc"], 0.5),
        "promoted_overlap": (found["promoted_overlap"], None),
    }
    out = []
    for name, (column, chance) in values.items():
        low, high = bootstrap_interval(np.stack([column, np.ones(n)], axis=1), lambda s: s[0] / s[1])
        row = {"lo": low, "hi": high, "n": n, "method": condition}
        if chance is not None:
            row |= {"null_name": "chance", "null_mean": chance}
        out.append(measured(name, float(column.mean()), **row))
    return out
