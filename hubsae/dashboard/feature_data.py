"""What a site tells of features: the list of all, parts of a few with their examples, and what fires together."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hubsae.dashboard.shards import Strings, short
from hubsae.errors import ArtifactError
from hubsae.features import Features
from hubsae.tables import plain

SHARD = 64  # features of a part
_QUANTILES = 10
_PROMOTED = 3  # tokens by which a feature can be found
_CONTEXT = 8  # tokens
_IN_MATRIX, _IN_GROUP, _BELIEF = 36, 6, 10


def list_data(features: Features) -> dict[str, Any]:
    """Of every feature what lists and searches need."""
    strings = Strings()
    tokens = [[strings(token) for token in features.top_tokens(i)] for i in range(len(features))]
    labels = features.labels.items()
    return {
        "n": features.n_active.tolist(),
        "mean": short(features.mean),
        "max": short(features.maximum),
        "tokens": tokens,
        "context": _contexts(features),
        "promoted": _promoted(features, strings),
        "labelled": [[i, plain(label.text), label.score] for i, label in labels],
        "shares": _shares(features),
        "strings": strings.all,
    }


def _contexts(features: Features) -> list[str]:
    """Of every feature the few tokens that lead to the one where its value is largest, and that one."""
    if not features.has_examples:
        return [""] * len(features)
    width = int(features.info["window"])
    value, at = (features.columns[f"top_{name}"][:, 0] for name in ("value", "at"))
    tokens = features.columns["top_tokens"][:, :width].tolist()
    shown = []
    for first, last, ids in zip(value.tolist(), at.tolist(), tokens, strict=True):
        window = ids[max(0, last - _CONTEXT) : last + 1] if first > 0 else []
        shown.append(plain("".join(features.vocabulary.get(i, "�") for i in window)))
    return shown


def _promoted(features: Features, strings: Strings) -> list[list[int]]:
    if "promoted_ids" not in features.columns:
        return [[]] * len(features)
    ids = features.columns["promoted_ids"][:, :_PROMOTED]
    known = features.promoted_vocabulary
    places = _places(ids, lambda i: known.get(i, "�").strip(), strings)
    return [[places[i] for i in row if i >= 0] for row in ids.tolist()]


def _places(ids: np.ndarray, text_of: Callable[[int], str], strings: Strings) -> dict[int, int]:
    """The number of each id's text among `strings`; -1 stands for no id."""
    return {i: strings(text_of(i)) for i in np.unique(ids).tolist() if i >= 0}


def _shares(features: Features) -> list[list[float]] | None:
    """(sites, F) shares of the decoder norm, where there are several sites."""
    norms = features.site_norms
    if norms is None or norms.shape[1] < 2:
        return None
    return short((norms / np.maximum(norms.sum(axis=1, keepdims=True), 1e-30)).T)


def feature_shard(features: Features, number: int) -> dict[str, Any]:
    """Features number * SHARD and on, with everything that is known of them."""
    ids = range(number * SHARD, min((number + 1) * SHARD, len(features)))
    part = slice(ids.start, ids.stop)
    strings = Strings()
    shown = {kind: _examples(features, kind, part, strings) for kind in ("top", "random")}
    numbers = {name: short(getattr(features, name)[part]) for name in ("mean", "std")}
    numbers["max"] = short(features.maximum[part])
    numbers["histogram_top"] = short(features.columns["histogram_top"][part])
    norms = short(features.site_norms[part]) if features.site_norms is not None else None
    lists = {kind: _weights(features, kind, part, strings) for kind in ("promoted", "suppressed")}
    lists |= {kind: _neighbours(features, kind, part, strings) for kind in ("cofiring", "similar")}
    lists |= shown
    found = []
    for k, i in enumerate(ids):
        own = {name: values[k] for name, values in (numbers | lists).items()}
        own |= {"name": plain(features.name(i)), "n": int(features.n_active[i]), "label": _label(features, i)}
        own |= {"histogram": features.columns["histogram"][i].tolist(), "norms": norms and norms[k]}
        own["quantile"] = _quantiles(features, i) if features.has_examples else []
        found.append(own)
    return {"features": found, "strings": strings.all}


def _label(features: Features, feature: int) -> dict | None:
    label = features.label(feature)
    if label is None:
        return None
    return {"score": label.score, "n": label.n_scored, "labeler": plain(label.labeler)}


def _weights(features: Features, kind: str, part: slice, strings: Strings) -> list[list[list]]:
    """For each feature [token as the number of a string, weight] of the tokens that it promotes, or suppresses."""
    if f"{kind}_ids" not in features.columns:
        return [[]] * (part.stop - part.start)
    ids = features.columns[f"{kind}_ids"][part]
    known = features.promoted_vocabulary
    places = _places(ids, lambda i: known.get(i, "�"), strings)
    rows = zip(ids.tolist(), short(features.columns[f"{kind}_weights"][part]), strict=True)
    return [[[places[i], weight] for i, weight in zip(*row, strict=True) if i >= 0] for row in rows]


def _neighbours(features: Features, kind: str, part: slice, strings: Strings) -> list[list[list]]:
    """For each feature [id, score, rows in which both fire, name as the number of a string] of its neighbours."""
    score = {"cofiring": "phi", "similar": "cosine"}[kind]
    if f"{kind}_ids" not in features.columns:
        return [[]] * (part.stop - part.start)
    ids = features.columns[f"{kind}_ids"][part]
    counts = features.columns["cofiring_counts"][part] if kind == "cofiring" else np.full(ids.shape, None)
    places = _places(ids, features.name, strings)
    rows = zip(ids.tolist(), short(features.columns[f"{kind}_{score}"][part]), counts.tolist(), strict=True)
    return [[[i, s, count, places[i]] for i, s, count in zip(*row, strict=True) if i >= 0] for row in rows]


def _quantiles(features: Features, feature: int) -> list[int]:
    """Numbers of the random examples that lie at equal steps of their values, among those that are there."""
    order = {place: k for k, place in enumerate(features.places(feature, "random"))}
    return [order[place] for place in features.places(feature, "quantile", _QUANTILES)]


def _examples(features: Features, kind: str, part: slice, strings: Strings) -> list[list[list]]:
    """For each feature [value, place of it, document, tokens as numbers of strings, [place, value, ...]]."""
    if not features.has_examples:
        return [[]] * (part.stop - part.start)
    columns, width = features.columns, int(features.info["window"])
    value, document, at = (columns[f"{kind}_{name}"][part] for name in ("value", "document", "at"))
    n, m = value.shape
    ids, values = (columns[f"{kind}_{name}"][part].reshape(n * m, width) for name in ("tokens", "values"))
    there = ids >= 0
    lengths = there.sum(axis=1)
    real = value.reshape(-1) > 0
    if (there[:, 1:] > there[:, :-1]).any() or (at.reshape(-1) >= lengths)[real].any():
        raise ArtifactError(f"examples of features {part.start} to {part.stop - 1} are damaged: texts with gaps")
    unique, inverse = np.unique(ids, return_inverse=True)
    places = np.array([strings(features.vocabulary.get(int(i), "�")) if i >= 0 else 0 for i in unique])
    texts = places[inverse].reshape(n * m, width).tolist()
    entry, place = np.nonzero((values > 0) & there)
    flat = [x for pair in zip(place.tolist(), short(values[entry, place]), strict=True) for x in pair]
    ends = (2 * np.searchsorted(entry, np.arange(n * m + 1))).tolist()
    rows = zip(short(value.reshape(-1)), at.reshape(-1).tolist(), document.reshape(-1).tolist(), strict=True)
    per_entry = zip(rows, texts, lengths.tolist(), ends, ends[1:], strict=False)
    made = [[*row, text[:length], flat[start:end]] for row, text, length, start, end in per_entry]
    return [[made[i * m + j] for j in range(m) if real[i * m + j]] for i in range(n)]


def together_data(features: Features) -> dict[str, Any]:
    """Every feature's neighbours by co-firing, one after the other, and features to begin with."""
    ids, phi, counts = (features.columns[f"cofiring_{name}"] for name in ("ids", "phi", "counts"))
    known = ids >= 0
    return {
        "counts_of": known.sum(axis=1).tolist(),
        "other": ids[known].tolist(),
        "phi": short(phi[known]),
        "count": counts[known].tolist(),
        "start": closest_groups(ids, phi, counts),
        "rows": int(features.info.get("sampled_rows", 0)),
        "width": ids.shape[1],
    }


def closest_groups(ids: np.ndarray, phi: np.ndarray, counts: np.ndarray) -> list[int]:
    """Some features, group after group, of those that fire together most closely; few common rows count for less."""
    row = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)[ids >= 0]
    other = ids[ids >= 0]
    weight = phi[ids >= 0] * counts[ids >= 0] / (counts[ids >= 0] + _BELIEF)
    group: dict[int, list[int]] = {}
    for k in np.argsort(-weight, kind="stable").tolist():
        if len(group) >= _IN_MATRIX:
            break
        a, b = (group.get(i, [i]) for i in (int(row[k]), int(other[k])))
        if a is b or len(a) + len(b) > _IN_GROUP:
            continue
        joined = [*a, *b]
        group.update(dict.fromkeys(joined, joined))
    return list(dict.fromkeys(i for joined in group.values() for i in joined))
