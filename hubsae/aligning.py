"""Two dictionaries of two models on the same texts -> the parts of an alignment."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import map_quality, maps
from hubsae.align_config import AlignConfig
from hubsae.alignment import StoredAlignment
from hubsae.alignment_config import AlignmentConfig, record
from hubsae.anchors import RULE_VERSION, AnchorConfig, AnchorSet, read_anchors
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.frames import Frame, stacked
from hubsae.joint_moments import JointMoments
from hubsae.lm import LanguageModel
from hubsae.map_quality import measured
from hubsae.maps import LinearMap
from hubsae.matching import Edges
from hubsae.metrics import bootstrap_interval
from hubsae.pair_tables import COLUMNS, kinds
from hubsae.paired_rows import Observed, observe, site_of
from hubsae.pairing import Paired, pair_up
from hubsae.sparse import as_numpy

Sides = tuple[Dictionary, Dictionary]


def align_dictionaries(
    sides: Sides,
    models: tuple[LanguageModel, LanguageModel],
    texts: Any,
    config: AlignConfig,
    anchor_config: AnchorConfig,
    *,
    data: str | None = None,
    progress: bool = False,
) -> tuple[AlignmentConfig, dict[str, tuple[LinearMap, LinearMap]], dict[str, Frame]]:
    """(config, maps, tables): read texts with both models at their anchors, fit maps, match, judge held out."""
    for side in sides:
        site_of(side)
        if bad := [name for name, array in side.arrays().items() if not mx.all(mx.isfinite(array)).item()]:
            raise DataError(f"{side.label}: {', '.join(bad)} holds NaN or infinity")
    anchors = anchors_of(sides, models, texts, anchor_config)
    observed = observe(sides, models, anchors, eval_rows=config.eval_rows, seed=config.seed, progress=progress)
    if len(observed.rows) < 10:
        raise DataError(f"{len(observed.rows)} anchors in the eval split: too few to judge anything; give more texts")
    fit, match = JointMoments.weighted(observed.fit), observed.match
    methods = dict.fromkeys((config.method, "procrustes", "ridge"))
    forward = {method: maps.fitted(method, fit, match) for method in methods}
    backward = {method: maps.fitted(method, fit.swapped(), match.swapped()) for method in methods}
    rows = [as_numpy(side.W_dec).astype(np.float64) for side in sides]
    paired = pair_up(observed, rows[0], rows[1], forward[config.method], config)
    numbers = map_quality.measure_maps(observed, forward, backward, sides, config)
    numbers += _measure_pairs(observed, paired, config)
    tables = {
        "pairs": Frame({name: paired.pairs[name] for name in COLUMNS["pairs"]}),
        "candidates": _candidates(paired),
        "features_a": _features(paired, observed, 0),
        "features_b": _features(paired, observed, 1),
        "metrics": Frame(stacked(numbers, kinds("metrics"))),
    }
    recorded = AlignmentConfig(
        record(sides[0], models[0].identity),
        record(sides[1], models[1].identity),
        asdict(config),
        describe_anchors(anchors, observed),
        paired.thresholds,
        data,
        created=datetime.now(UTC).date().isoformat(),
    )
    both = {method: (forward[method], backward[method]) for method in methods}
    nothing = observed.shifted
    both["shuffled"] = (
        maps.fitted(config.method, nothing, match),
        maps.fitted(config.method, nothing.swapped(), match.swapped()),
    )
    return recorded, both, tables


def anchors_of(
    sides: Sequence[Dictionary],
    models: Sequence[LanguageModel],
    texts: Any,
    config: AnchorConfig,
    split: str | None = None,
) -> AnchorSet:
    """The anchors of two models in texts, within the contexts that their dictionaries were trained in.

    `split`: all documents belong to that one.
    """
    contexts = []
    for side, model in zip(sides, models, strict=True):
        own = side.config.token_config()
        asked = replace(own, context_size=config.context_size or own.context_size)
        contexts.append(asked.context_for(model.max_positions))
    return read_anchors(texts, [model.tokenizer for model in models], config, contexts, split)


def at_hand(alignment: StoredAlignment) -> tuple[tuple[Any, Any], tuple[LanguageModel, LanguageModel]]:
    """The dictionaries and the models of an alignment; `ConfigError` where it is bound to none."""
    if alignment.dictionaries is None or alignment.models is None:
        what = "dictionaries" if alignment.dictionaries is None else "models"
        raise ConfigError(f"the aligned {what} are not at hand; bind(sae_a, sae_b, model_a, model_b) gives them")
    return alignment.dictionaries, alignment.models


def recorded_anchors(alignment: StoredAlignment, texts: Any, split: str | None = None, **changes: Any) -> AnchorSet:
    """The anchors of other texts by the rule of an alignment, divided as its own, or all in one `split`."""
    own, (dictionaries, models) = alignment.config.anchors, at_hand(alignment)
    known = {name: own[name] for name in AnchorConfig.__dataclass_fields__ if name in own and name != "text_column"}
    return anchors_of(dictionaries, models, texts, AnchorConfig(**{**known, **changes}), split)


def describe_anchors(anchors: AnchorSet, observed: Observed) -> dict[str, Any]:
    """For alignment.json."""
    names, documents = ("fit", "match", "eval"), np.bincount(anchors.split, minlength=3)
    counts = np.bincount(anchors.split[anchors.document], minlength=3)
    return {
        **asdict(anchors.config),
        "rule_version": RULE_VERSION,
        "n_anchors": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "n_documents": {name: int(count) for name, count in zip(names, documents, strict=True)},
        "coverage": [float(share) for share in anchors.coverage],
        "n_duplicates": anchors.n_duplicates,
        "n_outliers": observed.n_outliers,
        "digest": anchors.digest,
    }


def _candidates(paired: Paired) -> Frame:
    edges = paired.candidates
    columns = {
        "feature_a": edges.a.astype(np.int64),
        "feature_b": edges.b.astype(np.int64),
        "corr_match": paired.correlation,
        "cos_map": paired.cosine,
    }
    best = edges.rank() < 8
    best |= edges.rank(of_b=True) < 8
    return Frame({name: column[best] for name, column in columns.items()})


def _features(paired: Paired, observed: Observed, side: int) -> Frame:
    fires = np.asarray(observed.fires()[side])
    edges, n_features = paired.candidates, len(fires)
    own, other = (edges.b, edges.a) if side else (edges.a, edges.b)
    best = np.flatnonzero(edges.best(of_b=bool(side)))
    partner, corr = np.full(n_features, -1), np.full(n_features, np.nan)
    partner[own[best]], corr[own[best]] = other[best], paired.correlation[best]
    total = sum(codes.n for codes in observed.codes.values())
    return Frame(
        {
            "index": np.arange(n_features),
            "n_fire": fires.astype(np.int64),
            "density": fires / total,
            "fate": paired.fate_b if side else paired.fate_a,
            "best_partner": partner,
            "best_corr": corr,
        }
    )


def _measure_pairs(observed: Observed, paired: Paired, config: AlignConfig) -> list[dict[str, Any]]:
    pairs, out = paired.pairs, []
    confirmed = pairs["confirmed"]
    known = {"direction": "both", "method": config.method}
    for direction, fate in (("a->b", paired.fate_a), ("b->a", paired.fate_b)):
        eligible = int((~np.isin(fate, ["dead", "too_rare"])).sum())
        share = float((fate == "matched").sum()) / max(eligible, 1)
        null = {"null_name": "asked false discovery rate", "null_mean": config.max_q * share}
        out.append(measured("matched_share", share, n=eligible, direction=direction, method=config.method, **null))
    out += [
        measured(
            "distinct_targets", value, n=len(paired.candidates), split="match", direction=way, method=config.method
        )
        for way, value in zip(("a->b", "b->a"), _distinct(paired.candidates), strict=True)
    ]
    corr = pairs["corr_eval"][confirmed]
    beats = corr > pairs["corr_withinword_q99"][confirmed]
    nulls = {
        "mean_corr_eval": pairs["corr_docshift_q99"][confirmed],
        "share_above_half": pairs["corr_docshift_q99"][confirmed] > 0.5,
        "above_within_word": np.full(len(corr), 0.01),
    }
    values = {"mean_corr_eval": corr, "share_above_half": corr > 0.5, "above_within_word": beats}
    values["invariance"] = pairs["invariance"][confirmed]
    every = np.nan_to_num(pairs["corr_eval"])
    out.append(measured("mean_corr_chosen", float(every.mean()) if len(every) else float("nan"), n=len(every), **known))
    for name, column in values.items():
        column = np.asarray(column, np.float64)
        row: dict[str, Any] = {"n": len(column), **known}
        if len(column):
            low, high = bootstrap_interval(
                np.stack([column, np.ones(len(column))], axis=1), lambda s: s[0] / s[1], n_draws=config.n_bootstraps
            )
            row |= {"lo": low, "hi": high}
            if name in nulls:
                what = "shuffled within words" if name == "above_within_word" else "99 % quantile of moved rows"
                row |= {"null_name": what, "null_mean": float(np.mean(nulls[name]))}
        out.append(measured(name, float(column.mean()) if len(column) else float("nan"), **row))
    ids = pairs["feature_a"][confirmed], pairs["feature_b"][confirmed]
    codes = observed.codes["eval"]
    out.append(map_quality.top_k_overlap(codes, ids, config))
    out.append(map_quality.top_k_overlap(codes.swapped(), (ids[1], ids[0]), config, "b->a"))
    return out


def _distinct(edges: Edges) -> tuple[float, float]:
    """Different best partners for each feature that has one, from A and from B."""
    found = []
    for of_b in (False, True):
        best = edges.best(of_b)
        targets = (edges.a if of_b else edges.b)[best]
        found.append(len(np.unique(targets)) / max(len(targets), 1))
    return found[0], found[1]


def summary(table: Frame) -> dict[str, Any]:
    """For metrics.json: the value of every metric by name, method and direction."""
    found: dict[str, Any] = {}
    for i in range(len(table)):
        row = table.row(i)
        key = ".".join(str(part) for part in (row["name"], row["method"], row["direction"]) if part)
        found[key] = {name: row[name] for name in ("value", "lo", "hi", "null_mean", "n")}
    return found


def with_settings(config: AlignConfig | None, changes: dict[str, Any]) -> tuple[AlignConfig, AnchorConfig]:
    """Settings by name on top of a config; those of the anchors apart."""
    anchor_names = set(AnchorConfig.__dataclass_fields__) - {"seed"}
    unknown = sorted(set(changes) - anchor_names - set(AlignConfig.__dataclass_fields__))
    if unknown:
        known = sorted({*AlignConfig.__dataclass_fields__, *anchor_names})
        raise ConfigError(f"{', '.join(unknown)}: no such setting; there are {', '.join(known)}")
    own = {name: value for name, value in changes.items() if name not in anchor_names}
    settings = replace(config or AlignConfig(), **own)
    chosen = {name: value for name, value in changes.items() if name in anchor_names}
    return settings, AnchorConfig(**{"seed": settings.seed, **chosen})
