"""What a site tells beside its features: the dictionaries, texts, circuits, pairs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np

from hubsae.circuits import Circuit
from hubsae.dashboard.feature_data import SHARD
from hubsae.dashboard.shards import short
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.features import Features, check_features
from hubsae.hub_client import library_version
from hubsae.identity import BaseModel
from hubsae.tables import plain
from hubsae.text_analysis import TextAnalysis

HUB = "https://huggingface.co"
_CURVES = ("loss", "fvu", "l0", "dead_share")
_METRICS = (
    *("fvu", "cosine", "l0", "ce_original", "ce_spliced", "ce_zero", "ce_mean", "ce_recovered", "ce_recovered_mean"),
    *("kl", "n_tokens", "n_documents", "n_spliced_tokens"),
)
_LARGEST = 1e300
_MAX_POINTS, _MAX_ROWS = 1_000, 1 << 53  # of a curve, and of the tokens that it was drawn over
_AT_A_TOKEN, _IN_A_TEXT = 10, 40
_DECADES = np.arange(-6, 0.01, 0.25)


@dataclass(frozen=True)
class Side:
    """A dictionary of a site, what is known of its features, and what it is called."""

    dictionary: Dictionary
    features: Features
    name: str

    @classmethod
    def of(cls, dictionary: Dictionary, features: Features) -> "Side":
        source = dictionary.source
        name = source.name.rstrip("/").split("/")[-1] if source else " + ".join(dictionary.config.reads)
        return cls(dictionary, features, plain(name))

    @property
    def repo(self) -> tuple[str, str] | None:
        """The repository that the dictionary was loaded from, and the commit; None for one that was not."""
        source = self.dictionary.source
        return (str(source.access["repo_id"]), source.revision) if source and source.revision else None


@dataclass(frozen=True)
class Column:
    """A number of every pair: `values` (n,), nan where there is none; title and description are shown."""

    name: str
    title: str
    values: Any
    description: str = ""


@dataclass(frozen=True)
class Pairs:
    """Features `a` (n,) of the first and `b` (n,) of the second dictionary that belong together, with their numbers."""

    a: Sequence[int]
    b: Sequence[int]
    columns: Sequence[Column]
    note: str = ""

    def checked(self, sides: Sequence[Side]) -> "Pairs":
        """The same as lists and arrays.

        Raises `DataError` where lengths differ, features do not exist, values are no numbers, names no texts, or
        there are not two dictionaries.
        """
        if len(sides) < 2 or not self.columns or not all(isinstance(column, Column) for column in self.columns):
            raise DataError("pairs need two dictionaries, and at least one Column of numbers")
        names = [column.name for column in self.columns]
        texts = [self.note, *names, *(text for column in self.columns for text in (column.title, column.description))]
        if not all(isinstance(text, str) for text in texts) or len(set(names)) < len(names):
            raise DataError(f"columns of the pairs, {names}: expected texts, and different names")
        a, b = (check_features(ids, len(side.features)) for ids, side in zip((self.a, self.b), sides, strict=False))
        columns = []
        for column in self.columns:
            try:
                values = np.array(column.values, np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"column {column.name!r} of the pairs holds no numbers: {error}") from error
            columns.append(replace(column, values=values))
        shapes = {(len(a),), (len(b),), *(column.values.shape for column in columns)}
        if len(shapes) > 1:
            raise DataError(f"pairs have columns of different lengths: {sorted(shapes)}")
        return Pairs(a, b, columns, self.note)


def about(sides: Sequence[Side], title: str, texts: Sequence[Any], circuits: Sequence[Circuit], pairs: Any) -> dict:
    """What is shown first, and what there is."""
    with_texts = {text.side for text in texts}
    return {
        "title": plain(title),
        "made_with": f"hubsae {library_version()}",
        "sides": [{**_side(side), "has_texts": i in with_texts} for i, side in enumerate(sides)],
        "circuits": [plain(f"{circuit.texts[0]} …") for circuit in circuits],
        "pairs": None if pairs is None else len(pairs.a),
    }


def _side(side: Side) -> dict[str, Any]:
    dictionary, features = side.dictionary, side.features
    c, repo = dictionary.config, side.repo
    trained = _dict(dictionary.statistics.get("data")).get("name")
    return {
        "name": side.name,
        "kind": c.kind,
        "reads": [plain(site) for site in c.reads],
        "writes": [plain(site) for site in c.writes],
        "n_features": c.n_features,
        "sparsity": plain(str(dictionary.rule)),
        "models": [_model(base) for base in dictionary.base_models],
        "repo": plain(repo[0]) if repo else None,
        "url": f"{HUB}/{quote(repo[0])}/tree/{quote(repo[1])}" if repo else None,
        "shard_size": SHARD,
        "n_tokens": features.n_tokens,
        "n_documents": int(features.info["n_documents"]),
        "data": plain(features.data),
        "trained_on": plain(str(trained)) if trained else None,
        "context": c.token_config().context_size if c.tokens else None,
        "has_examples": features.has_examples,
        "has_cofiring": "cofiring_ids" in features.columns,
        "n_labelled": len(features.labels),
        "n_dead": int(features.dead.sum()),
        "density": density(features),
        "metrics": shown_metrics(dictionary.metrics),
        "training": _training(dictionary.statistics),
    }


def _model(base: BaseModel) -> dict[str, Any]:
    if not base.repo_id:
        return {"name": plain(base.label), "full": plain(base.label), "url": None}
    url = f"{HUB}/{quote(base.repo_id)}" + (f"/tree/{quote(base.revision)}" if base.revision else "")
    return {"name": plain(base.repo_id), "full": plain(base.label), "url": url}


def density(features: Features) -> dict[str, Any]:
    """Counts of features by log10 of their density, in quarters of decades; `never` counts those that do not fire."""
    alive = np.log10(features.density[~features.dead]).clip(_DECADES[0], -1e-9)
    counts, _ = np.histogram(alive, _DECADES)
    used = np.flatnonzero(counts)
    first = int(used[0]) // 4 * 4 if len(used) else 0
    return {
        "edges": np.round(_DECADES[first:], 2).tolist(),
        "counts": counts[first:].tolist(),
        "never": int(features.dead.sum()),
    }


def shown_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of metrics.json that are shown; what is no number there is left out."""
    found: dict[str, Any] = {name: value for name in _METRICS if (value := _number(metrics.get(name))) is not None}
    sites = _dict(metrics.get("fvu_per_site"))
    found["fvu_per_site"] = {plain(site): _number(value) for site, value in sites.items()}
    pairs = {name: pair for name, pair in _dict(metrics.get("intervals")).items() if name in _METRICS}
    found["intervals"] = {
        name: [_number(value) for value in pair]
        for name, pair in pairs.items()
        if isinstance(pair, list | tuple) and len(pair) == 2 and None not in map(_number, pair)
    }
    name = _dict(metrics.get("data")).get("name")
    return {**found, "data": plain(name) if isinstance(name, str) else None}


def _training(statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The columns of the training log that are drawn."""
    given = statistics.get("log")
    log = (
        [row for row in given if 0 < (_number(_dict(row).get("rows")) or 0) < _MAX_ROWS]
        if isinstance(given, list)
        else []
    )
    log.sort(key=lambda row: row["rows"])
    if len(log) < 2:
        return None
    log = [*log[: -1 : -(-len(log) // _MAX_POINTS)], log[-1]]
    columns = {name: short([_or_nan(row.get(name)) for row in log]) for name in _CURVES}
    return {
        "rows": [row["rows"] for row in log],
        **columns,
        "dead_after_rows": _number(statistics.get("dead_after_rows")),
    }


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | int | None:
    """A number that files from others hold, or None for what is none, or no finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return None
    return value


def _or_nan(value: Any) -> float:
    found = _number(value)
    return float("nan") if found is None else float(found)


def _plain(data: Any) -> Any:
    """JSON with every text made to show what it is."""
    if isinstance(data, dict):
        return {plain(str(key)): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return plain(data) if isinstance(data, str) else data


def text_data(analysis: TextAnalysis, known: Features | None) -> dict[str, Any]:
    """The strongest features of each token, and of the whole text with all their values."""
    at = []
    for position in range(len(analysis.tokens)):
        top = analysis.top(position, _AT_A_TOKEN)
        values = short([feature.value for feature in top])
        at.append([x for feature, value in zip(top, values, strict=True) for x in (feature.feature, value)])
    columns = analysis.code.tocsc()
    strongest = []
    for found in analysis.strongest(_IN_A_TEXT):
        part = slice(*columns.indptr[found.feature : found.feature + 2])
        places, values = columns.indices[part].tolist(), short(columns.data[part])
        flat = [x for pair in sorted(zip(places, values, strict=True)) for x in pair]
        typical = float(known.mean[found.feature]) if known else 0.0
        strongest.append([found.feature, short(typical), flat])
    used = {feature for feature, *_ in strongest} | {int(i) for row in at for i in row[::2]}
    return {
        "tokens": [plain(token) for token in analysis.tokens],
        "read": analysis.read.astype(int).tolist(),
        "at": at,
        "features": strongest,
        "names": {str(i): plain(known.name(i)) for i in sorted(used)} if known else {},
    }


def circuit_data(circuit: Circuit, sides: Mapping[int, int | None]) -> dict[str, Any]:
    """A circuit's nodes, edges and checks; sides: for each layer the dictionary of this site, if it is here."""
    return _plain({**json.loads(circuit.to_json()), "sides": {str(layer): side for layer, side in sides.items()}})


def pairs_data(pairs: Pairs) -> dict[str, Any]:
    """Pairs and their numbers."""
    return {
        "a": pairs.a,
        "b": pairs.b,
        "columns": [
            {"name": plain(column.name), "title": plain(column.title), "description": plain(column.description)}
            for column in pairs.columns
        ],
        "values": [short(column.values) for column in pairs.columns],
        "note": plain(pairs.note),
    }
