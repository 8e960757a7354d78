"""`compare`: dictionaries judged side by side, and `load_report`, what somebody published of that."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubsae import evaluate, tokens
from hubsae.activations import read_chunks
from hubsae.api import BoundDictionary, InterpretableModel, as_models
from hubsae.errors import ConfigError
from hubsae.frontier import distinct
from hubsae.identity import BaseModel, Check
from hubsae.lm import LanguageModel
from hubsae.metric_report import Report
from hubsae.report_config import LONGEST_NAME, REPO_ID, ReportConfig, check_name, record, shortened
from hubsae.report_rows import picked, sort_key
from hubsae.tokens import Chunk

Models = tuple[LanguageModel, ...]


def compare(
    dictionaries: Any,
    model: Any = None,
    texts: Any = None,
    *,
    names: Sequence[str] | None = None,
    max_rows: int = 50_000,
    text_column: str = "text",
    dataset_name: str | None = None,
    check: Check = "warn",
) -> Report:
    """A `Report` of dictionaries, or of what `load_sae` takes: their numbers, who dominates whom, and what is not
    comparable.

    With `texts` each is judged on them (at most `max_rows` tokens), with `model`, or else with the model it is bound
    to, or the one it names, which is loaded once for all. Those of one site share the model's own passes, and every
    number is that of `evaluate`. Without `texts` the numbers recorded with each dictionary are taken (metrics.json).

    names: one for each, by default from repository, folder or what it is. dataset_name: what the report calls the
    texts, a Hub id where it is one. check: how models are compared with the recorded ones, as in `load_sae`. The order
    that dictionaries are given in does not matter.
    """
    given = _listed(dictionaries)
    if names is not None and (isinstance(names, str) or len(names) != len(given)):
        raise ConfigError(f"names: expected {len(given)}, one for each dictionary")
    if names is not None and len(set(map(check_name, names))) < len(names):
        raise ConfigError("names: expected different ones")
    found = [one if isinstance(one, BoundDictionary) else _loaded(one) for one in given]
    data: dict | None = None
    if texts is None:
        if model is not None:
            raise ConfigError("a model needs texts to judge with it; without texts the recorded numbers are taken")
        results: list[dict] = [recorded_numbers(dictionary) for dictionary in found]
        models: list[Models] | None = None
    else:
        models = _models(found, model, check)
        data = _name_of(texts, dataset_name)
        results = _judged(found, models, texts, max_rows, text_column, data)
    known = [tuple(m.identity for m in own) for own in models] if models else [None] * len(found)
    entries = [record(one, "?", identity) for one, identity in zip(found, known, strict=True)]
    return report_of(_called(found, entries, names), results, data and {**data, "max_rows": max_rows})


def load_report(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Report:
    """The `Report` of a folder or of a dataset repository, all files from one commit."""
    return Report.from_pretrained(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )


def _listed(dictionaries: Any) -> list[Any]:
    if isinstance(dictionaries, str | Path | BoundDictionary):
        return [dictionaries]
    if not isinstance(dictionaries, Iterable):
        raise ConfigError(
            f"a {type(dictionaries).__name__}: expected a list of dictionaries, folders or repository ids"
        )
    given = list(dictionaries)
    if not given:
        raise ConfigError("no dictionaries: give at least one")
    return given


def _loaded(source: Any) -> BoundDictionary:
    from hubsae import load_sae

    if not isinstance(source, str | Path):
        raise ConfigError(
            f"a {type(source).__name__}: expected an SAE, Transcoder or Crosscoder, a folder or a repository id"
        )
    return load_sae(source)


def recorded_numbers(dictionary: BoundDictionary) -> dict:
    """The numbers of a dictionary's metrics.json, or `ConfigError` where there are none."""
    if dictionary.metrics.get("n_tokens") is None or dictionary.metrics.get("l0") is None:
        raise ConfigError(
            f"{dictionary.source or dictionary.label}: has no recorded metrics; give texts=... to judge it on "
            "(and model=..., where that is not the recorded one)"
        )
    try:
        return picked(dictionary.metrics)
    except ConfigError as error:
        raise ConfigError(f"{dictionary.source or dictionary.label}, metrics: {error}") from error


def _models(found: Sequence[BoundDictionary], model: Any, check: Check) -> list[Models]:
    """The models to judge each with: those given, else those it is bound to, else those it names, each loaded once."""
    shared = None if model is None else as_models(model)
    loaded: dict[tuple[str, str | None], LanguageModel] = {}
    out = []
    for dictionary in found:
        models = (
            shared or dictionary.models or tuple(_named(base, dictionary, loaded) for base in dictionary.base_models)
        )
        if models is not dictionary.models:  # else it was compared when it was bound
            dictionary.check_models(models, check)
        out.append(models)
    return out


def _named(base: BaseModel, dictionary: BoundDictionary, loaded: dict) -> LanguageModel:
    if base.repo_id is None:
        raise ConfigError(
            f"{dictionary.source or dictionary.label}: names no repository of its base model; give model=..."
        )
    key = (base.repo_id, base.revision)
    if key not in loaded:
        loaded[key] = InterpretableModel(base.repo_id, revision=base.revision)
    return loaded[key]


def _judged(
    found: Sequence[BoundDictionary], models: Sequence[Models], texts: Any, max_rows: int, column: str, data: dict
) -> list[dict]:
    """The numbers of each on the same texts; those that read and write the same sites share the model's passes."""
    read = _Remembered(tokens.iterate_texts(texts, column))
    parts: dict[Any, list[int]] = {}
    for i, (dictionary, own) in enumerate(zip(found, models, strict=True)):
        config = replace(dictionary.config.token_config(), text_column=column)
        parts.setdefault((tuple(map(id, own)), config, dictionary.config.reads, dictionary.config.writes), []).append(i)
    chunks: dict[Any, list[Chunk]] = {}
    results: list[dict] = [{}] * len(found)
    for (ids, config, *_), members in parts.items():
        own = models[members[0]]
        if (ids, config) not in chunks:
            chunks[ids, config] = list(tokens.take_rows(read_chunks(own, read, config), max_rows))
        mine = chunks[ids, config]
        evaluations = evaluate.evaluate_together([found[i] for i in members], own, mine)
        n_texts = 1 + max(chunk.document for chunk in mine)
        said = {**data, "n_texts": n_texts, "digest": read.digest(n_texts)}
        for i, evaluation in zip(members, evaluations, strict=True):
            results[i] = picked(evaluation.to_dict(), said)
    return results


class _Remembered:
    """Texts that can be gone through again, and were read only as far as somebody went."""

    def __init__(self, texts: Iterator[str]):
        self._texts, self._seen = texts, []

    def __iter__(self) -> Iterator[str]:
        i = 0
        while True:
            while i < len(self._seen):
                yield self._seen[i]
                i += 1
            text = next(self._texts, None)
            if text is None:
                return
            self._seen.append(text)

    def digest(self, n: int) -> str:
        """SHA-256 of the first n texts, each with its length in bytes before it."""
        found = hashlib.sha256()
        for text in self._seen[:n]:
            data = text.encode("utf-8", "surrogatepass")
            found.update(len(data).to_bytes(8, "big") + data)
        return found.hexdigest()


def _name_of(texts: Any, name: str | None) -> dict:
    """What is said of texts: their name, and the Hub id if that is one."""
    dataset = name if name is not None and REPO_ID.fullmatch(name) else None
    told = getattr(getattr(texts, "info", None), "dataset_name", None)
    size = f"{len(texts):,} texts" if hasattr(texts, "__len__") else "a stream of texts"
    return {"name": shortened(str(name or told or size)), "dataset": dataset}


def _called(found: Sequence[BoundDictionary], entries: list[dict], names: Any) -> list[dict]:
    """The entries with the names given, or with short ones."""
    return [
        {**entry, "name": _short_name(dictionary) if names is None else names[i]}
        for i, (dictionary, entry) in enumerate(zip(found, entries, strict=True))
    ]


def report_of(entries: list[dict], results: list[dict], data: dict | None = None) -> Report:
    """A report of dictionaries as `report_config.record` describes them, and their numbers, sorted."""
    order = sorted(range(len(entries)), key=lambda i: sort_key(entries[i], results[i]))
    called = distinct([entries[i]["name"] for i in order])
    ordered = tuple({**entries[i], "name": name} for i, name in zip(order, called, strict=True))
    return Report(ReportConfig(ordered, data), {name: results[i] for i, name in zip(order, called, strict=True)})


def _short_name(dictionary: BoundDictionary) -> str:
    """Of its repository and folder, of its folder, or what it is."""
    source = dictionary.source
    if source is not None:
        return (source.name if source.revision else Path(source.name).name)[: LONGEST_NAME - 10]
    rule = dictionary.config.sparsity
    k = f" k={rule['k']}" if "k" in rule else ""
    reads, writes = dictionary.config.reads, dictionary.config.writes
    sites = " + ".join(reads) + ("" if reads == writes else f" to {' + '.join(writes)}")
    return f"{sites} {rule['name']}{k} F={dictionary.n_features}"[10 - LONGEST_NAME :]
