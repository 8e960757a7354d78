"""Export of features to Neuronpedia: the JSONL records that its import reads, from what hubsae knows itself.

    release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
    features/batch-0.jsonl.gz  activations/batch-0.jsonl.gz  explanations/batch-0.jsonl.gz  ...

The import takes the columns of a whole file from its first record, so all records of a file have the same fields, and
fields that are left out get the database's own defaults (dates among them, so that equal input gives equal bytes). It
cannot read empty files, so a batch without activations or explanations has no file of them.
"""

import gzip
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.features import Example, Features, Label
from hubsae.firing import BINS
from hubsae.formats.hook_names import hook_of
from hubsae.settings import as_type

SEEDED_USER = "clkht01d40000jv08hvalcvly"
"""The account "bot" of every Neuronpedia database: owner of what is imported, whose activations are public."""

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_INTERVALS = 5  # of values, among which examples are shown


@dataclass(frozen=True)
class _Source:
    """What Neuronpedia calls a source, features of one dictionary; `id`, its "layer", is such as `"10-res-16k"`."""

    model_id: str
    source_set: str
    id: str
    creator: str
    creator_id: str
    release: str

    def of(self, feature: int) -> dict:
        """The fields by which a record belongs to a feature."""
        return {"modelId": self.model_id, "layer": self.id, "index": str(feature)}

    def record_id(self, *parts: object) -> str:
        """25 characters in the form of Neuronpedia's own ids, the same for the same record."""
        name = "/".join(map(str, (self.model_id, self.id, *parts)))
        return "c" + uuid.uuid5(uuid.NAMESPACE_URL, f"hubsae:{name}").hex[:24]


def write_neuronpedia(
    dictionary: Dictionary,
    features: Features,
    folder: Path,
    *,
    model_id: str,
    source_set: str,
    release: str | None = None,
    creator: str = "hubsae",
    creator_id: str = SEEDED_USER,
    batch_features: int = 256,
) -> None:
    """Write the files into the existing empty folder, which Neuronpedia expects at `<model_id>/<layer>-<source_set>`.

    `model_id`: of the language model at Neuronpedia. `source_set`: one name for the same dictionaries of all layers.
    `release` (default: from both), `creator`: under which name and whose they are shown. `creator_id`: the account that
    will own the records; it must exist where they are imported. Numbers have seven digits.

    Left empty, since it is not known here: histograms of logits, neurons and features with correlated activations
    (hubsae has the correlation of firing or not, which is another number), the weights of attention heads, and an
    explanation's type and model, which can only name what Neuronpedia lists; who labelled it and how it scored is in
    its notes. Raises `ArtifactError` for what reads several sites and `DataError` for features without examples.
    """
    _check_name("model_id", model_id)
    _check_name("source_set", source_set)
    if source_set == "neurons" or "-neuronpedia" in f"-{source_set}":
        raise ConfigError(f"source_set={source_set!r}: Neuronpedia keeps this name for itself; take another")
    release = re.sub(r"[._]", "-", f"{model_id}-{source_set}") if release is None else _check_name("release", release)
    creator, creator_id = _text(as_type(creator, str, "creator")), as_type(creator_id, str, "creator_id")
    if as_type(batch_features, int, "batch_features") < 1:
        raise ConfigError(f"batch_features={batch_features}: expected at least 1")
    _check(dictionary, features)
    layer = dictionary.config.read_sites[0].layer
    source = _Source(model_id, source_set, f"{layer}-{source_set}", creator, creator_id, release)
    for name, record in _descriptions(source, dictionary, features).items():
        (folder / f"{name}.jsonl").write_bytes(_lines([record]))
    for number, first in enumerate(range(0, len(features), batch_features)):
        part = range(first, min(first + batch_features, len(features)))
        for kind, records in _batch(source, dictionary, features, part).items():
            if records:
                (folder / kind).mkdir(exist_ok=True)
                (folder / kind / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(_lines(records), mtime=0))


def _check_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 128 or not _NAME.fullmatch(value):
        raise ConfigError(
            f"{name}={str(value)[:80]!r}: Neuronpedia's names are of lower-case letters and digits, with single "
            "hyphens, dots or underscores between them, such as 'gemma-2-2b' or 'res-16k'"
        )
    return value


def _check(dictionary: Dictionary, features: Features) -> None:
    reads = dictionary.config.reads
    if len(reads) > 1:
        raise ArtifactError(f"Neuronpedia shows features of one site; this one reads {', '.join(reads)} at once")
    if len(features) != dictionary.n_features:
        raise DataError(f"these are {len(features)} features, but the dictionary has {dictionary.n_features}")
    if not features.has_examples:
        raise DataError("no examples of the features are known, which Neuronpedia shows; run feature_statistics(texts)")


def _descriptions(source: _Source, dictionary: Dictionary, features: Features) -> dict[str, dict]:
    """The records of the release, the model, the source set and the source, by the names of their files."""
    c, name = dictionary.config, source.model_id
    site = c.read_sites[0]
    base = dictionary.base_models[site.model]
    owner, slash, _ = _text(base.repo_id or "").rpartition("/")
    kind = "SAE" if c.kind == "sae" else c.kind
    texts = f"{features.n_tokens:,} tokens of {features.info.get('n_documents', 0):,} texts ({features.data})"
    creator = {"creatorName": source.creator, "urls": []}
    release = {"description": f"{source.source_set} of {name}", "descriptionShort": source.source_set, **creator}
    model = {"displayName": name, "displayNameShort": name, "owner": owner, "dimension": base.hidden_size}
    model |= {"layers": base.n_layers or 0, "neuronsPerLayer": 0}
    model |= {"website": f"https://huggingface.co/{_text(base.repo_id or '')}" if slash else None}
    sourceset = {"description": f"{kind}, {site.component}, {c.n_features:,} features", "type": "", **creator}
    found = {"dataset": _text(features.data), "num_tokens_in_prompt": c.token_config().context_size}
    found |= {"notes": _text(f"{dictionary.label}; measured on {texts}; exported by hubsae")}
    records = {
        "release": {"name": source.release, "creatorNameShort": source.creator, **release},
        "model": {"id": name, **model},
        "sourceset": {"modelId": name, "name": source.source_set, "releaseName": source.release, **sourceset},
        "source": {"modelId": name, "id": source.id, "setName": source.source_set, **found},
    }
    return {of: {**record, "creatorId": source.creator_id, "visibility": "PUBLIC"} for of, record in records.items()}


def _batch(source: _Source, dictionary: Dictionary, features: Features, part: range) -> dict[str, list[dict]]:
    """The records of some features, by the names of their folders."""
    hook, width = _hook(dictionary), dictionary.config.d_out if len(dictionary.config.writes) == 1 else 0
    # what is written at several sites is no one vector
    rows = np.array(dictionary.W_dec[part.start : part.stop].astype(mx.float32))[:, :width]
    return {
        "features": [_feature(source, features, i, row, hook) for i, row in zip(part, rows, strict=True)],
        "activations": [record for i in part for record in _activations(source, features, i)],
        "explanations": [_explanation(source, i, label) for i in part if (label := features.label(i))],
    }


def _hook(dictionary: Dictionary) -> str | None:
    """TransformerLens' name of the place that features write to, by which Neuronpedia steers; None if it has none."""
    written, model = dictionary.config.write_sites, dictionary.config.read_sites[0].model
    base = dictionary.base_models[model]
    if len(written) != 1 or written[0].model != model:
        return None
    return hook_of(written[0], base.model_type or base.repo_id)


def _feature(source: _Source, features: Features, i: int, row: np.ndarray, hook: str | None) -> dict:
    maximum, density = _numbers([features.maximum[i], features.density[i]])
    vector = _numbers(row) if hook else []  # without a place to add it at, it could not be used
    near = features.similar(i)
    up, down = features.token_weights(i, "promoted"), features.token_weights(i, "suppressed")
    edges, counts = _bins(features, i)
    return {
        **source.of(i),
        "sourceSetName": source.source_set,
        "creatorId": source.creator_id,
        "maxActApprox": maximum,
        "frac_nonzero": density,
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": _numbers((edges[:-1] + edges[1:]) / 2),  # bars are drawn around the middles
        "pos_str": [_text(t.token) for t in up],
        "pos_values": _numbers([t.weight for t in up]),
        "neg_str": [_text(t.token) for t in down],
        "neg_values": _numbers([t.weight for t in down]),
        **_alignment(row),
        # Neuronpedia's lists begin with the feature itself, and it leaves the first one out when it shows them
        "topkCosSimIndices": [i, *(n.feature for n in near)] if near else [],
        "topkCosSimValues": [1.0, *_numbers([n.score for n in near])] if near else [],
        "hasVector": bool(vector),
        "vector": vector,
        "hookName": hook if vector else None,
        "vectorDefaultSteerStrength": maximum if vector else None,
        **{f"correlated_{of}_{name}": [] for of in ("neurons", "features") for name in ("indices", "pearson", "l1")},
        **{f"logits_hist_data_bar_{name}": [] for name in ("heights", "values")},
        "decoder_weights_dist": [],
    }


def _alignment(row: np.ndarray) -> dict[str, list]:
    """The columns that a row is largest in (signed, as SAEDashboard has it), and their shares of the row's L1 norm."""
    columns = np.argsort(-row, kind="stable")[:3] if row.any() else np.zeros(0, int)
    return {
        "neuron_alignment_indices": columns.tolist(),
        "neuron_alignment_values": _numbers(row[columns]),
        "neuron_alignment_l1": _numbers(np.abs(row[columns]) / np.abs(row).sum(dtype=np.float64)),
    }


def _bins(features: Features, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges (n + 1,) and counts (n,) of the histogram's bins up to the largest value, beyond which all are empty."""
    edges, counts = features.histogram(i)
    top, maximum = float(edges[-1]), float(features.maximum[i])
    n = int(min(BINS - 1, maximum / top * BINS)) + 1 if top > 0 and maximum > 0 else 0
    return edges[: n + 1], counts[:n]


def _intervals(features: Features, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (_INTERVALS + 1,) from 0 to the largest value, and the share of all tokens in each (_INTERVALS,).

    Bounds lie on edges of the histogram, so that the shares are exact; tokens at which it does not fire are in the
    first, as SAEDashboard counts.
    """
    edges, counts = _bins(features, i)
    cuts = np.round(np.linspace(0, len(counts), _INTERVALS + 1)).astype(int)
    inside = np.diff(np.concatenate([[0], np.cumsum(counts)])[cuts]).astype(np.float64)
    inside[0] += features.n_tokens - features.n_active[i]
    bounds = edges[cuts]
    bounds[-1] = features.maximum[i]
    return bounds, inside / max(features.n_tokens, 1)


def _activations(source: _Source, features: Features, i: int) -> list[dict]:
    """The examples with the largest values, then those of all strengths, each in the interval of its value."""
    if features.n_active[i] == 0:
        return []
    bounds, shares = _intervals(features, i)
    # -1 stands for the group of the largest values, which is no interval
    records = [
        _activation(source, i, f"top/{n}", example, (-1.0, bounds[-1], -1.0))
        for n, example in enumerate(features.examples(i, "top"))
    ]
    for n, example in enumerate(features.examples(i, "quantile")):
        place = int(np.searchsorted(bounds[1:-1], example.value, side="right"))
        group = (bounds[place], bounds[place + 1], shares[place])
        records.append(_activation(source, i, f"quantile/{n}", example, group))
    return records


def _activation(source: _Source, i: int, name: str, example: Example, group: Sequence[float]) -> dict:
    values = _numbers(example.values)
    return {
        "id": source.record_id(i, "activation", name),
        **source.of(i),
        "creatorId": source.creator_id,
        "tokens": [_text(token) for token in example.tokens],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "qualifyingTokenIndex": example.at,
        **dict(zip(("binMin", "binMax", "binContains"), _numbers(group), strict=True)),
    }


def _explanation(source: _Source, i: int, label: Label) -> dict:
    notes = f"Labelled by {label.labeler or 'unknown'}"
    if label.score is not None:
        notes += f", balanced accuracy {label.score:.3f} on {label.n_scored} held-out examples"
    return {
        "id": source.record_id(i, "explanation"),
        **source.of(i),
        "description": _text(label.text),
        "authorId": source.creator_id,
        # a name that the database does not have would stop the whole import
        "typeName": None,
        "explanationModelName": None,
        "notes": _text(notes),
    }


def _numbers(values: Any) -> list[float]:
    """Numbers of seven digits, which is what a float32 holds."""
    return [float(f"{value:.7g}") for value in np.asarray(values, np.float64).tolist()]


def _text(text: str) -> str:
    """Text that PostgreSQL can store: without the character of code 0 and halves of surrogate pairs."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def _lines(records: Sequence[dict]) -> bytes:
    """One line of strict JSON for each record."""
    try:
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for record in records]
    except ValueError as error:
        raise DataError(f"features of {records[0].get('layer')} hold values that are not finite ({error})") from error
    # the import replaces every backslash-u0000, also where the text itself spells it, which would break the line
    return "".join(line.replace(r"\\u0000", r"\u005cu0000") + "\n" for line in lines).encode()
