"""The numbers of a report: picked from evaluations, checked when read, as flat rows, and what keeps them apart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hubsae.errors import ConfigError
from hubsae.frontier import COLUMNS, Group, Setting, models_of, same_models, written
from hubsae.identity import BaseModel
from hubsae.report_config import (
    LONGEST_NAME,
    MOST_MODELS,
    MOST_SITES,
    ReportConfig,
    check_data,
    check_text,
    real,
    shortened,
    whole,
)
from hubsae.settings import as_type
from hubsae.sites import Site

COUNTS = ("n_tokens", "n_documents", "n_spliced_tokens")
NUMBERS = ("fvu", "explained_variance", "l0", "dead_share", "cosine", "ce_original", "ce_spliced", "ce_zero", "ce_mean")
NUMBERS += ("ce_recovered", "ce_recovered_mean", "kl")
INTERVALS = ("fvu", "ce_recovered", "ce_recovered_mean", "kl")
_KINDS = {"sae": "sparse autoencoder", "transcoder": "transcoder", "crosscoder": "crosscoder"}
_MOST_NAMED = 6


def picked(metrics: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a report keeps of `Evaluation.to_dict()` or of a metrics.json; `data`: of the texts, else as it says itself.

    Raises `ConfigError` for what is no number.
    """
    found = {name: metrics[name] for name in (*COUNTS, *NUMBERS) if metrics.get(name) is not None}
    for name in ("fvu_per_site", "ce_recovered_per_model", "intervals"):
        if metrics.get(name):
            found[name] = metrics[name]
    said = metrics.get("data") if data is None else data
    if isinstance(said, Mapping):
        known = {name: said[name] for name in ("name", "dataset", "digest", "n_texts") if said.get(name) is not None}
        if isinstance(known.get("name"), str):
            known["name"] = shortened(known["name"])
        found["data"] = {k: v for k, v in known.items() if not isinstance(v, str) or len(v) <= LONGEST_NAME}
    check(found)
    return found


def checked(config: ReportConfig, results: Any) -> dict[str, dict]:
    """Results of exactly the dictionaries of a config, all of them numbers; raises `ConfigError` otherwise."""
    names = {entry["name"] for entry in config.entries}
    if wrong := sorted(names ^ set(as_type(results, dict, "results"))):
        raise ConfigError(f"results: missing or unknown {', '.join(wrong)[:200]}")
    check_text(results, "results")
    for name, result in results.items():
        try:
            check(as_type(result, dict, "result"))
        except ConfigError as error:
            raise ConfigError(f"{name[:80]}: {error}") from error
    return dict(results)


def check(result: dict) -> None:
    """Raise `ConfigError` for numbers that no dictionary has."""
    for name in COUNTS:
        if name in result:
            whole(result[name], name, least=1)
    if "n_tokens" not in result:
        raise ConfigError("no n_tokens: over how many tokens this was measured")
    for name in NUMBERS:
        if result.get(name) is not None:
            real(result[name], name)
    for name in ("fvu", "l0", "dead_share", "kl"):
        if (result.get(name) or 0) < -1e-3:
            raise ConfigError(f"{name}={result[name]}: cannot be negative")
    for name, parts in (("fvu_per_site", dict), ("ce_recovered_per_model", list), ("intervals", dict), ("data", dict)):
        if name in result and not isinstance(result[name], parts | (tuple if parts is list else parts)):
            raise ConfigError(f"{name}: expected a {parts.__name__}")
    for name, most in (
        ("fvu_per_site", MOST_SITES),
        ("ce_recovered_per_model", MOST_MODELS),
        ("intervals", MOST_SITES),
    ):
        if len(result.get(name, ())) > most:
            raise ConfigError(f"{name}: {len(result[name]):,} numbers, expected at most {most}")
    per_site = result.get("fvu_per_site", {})
    for value in (*per_site.values(), *result.get("ce_recovered_per_model", ())):
        if value is not None:
            real(value, "fvu_per_site and ce_recovered_per_model")
    for name, pair in result.get("intervals", {}).items():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConfigError(f"interval of {str(name)[:80]}: expected two numbers")
        low, high = (real(value, f"interval of {str(name)[:80]}") for value in pair)
        if low > high:
            raise ConfigError(f"interval of {str(name)[:80]}: {low} to {high}")
    check_data(result.get("data", {}))


def row_of(entry: dict, result: dict, group: Group) -> dict[str, Any]:
    """The flat row of one dictionary, without `on_frontier`."""
    sites = [Site.parse(site) for site in written(entry)]
    rule = entry["sparsity"]
    row: dict[str, Any] = {name: entry[name] for name in ("name", "repo_id", "revision", "subfolder", "kind")}
    row |= {
        "layer": sites[0].layer,
        "component": " + ".join(dict.fromkeys(site.component for site in sites)),
        "reads": " + ".join(entry["reads"]),
        "writes": " + ".join(entry["writes"]),
        "n_features": entry["n_features"],
        "sparsity": rule["name"],
        "k": rule.get("k"),
        "data": group.setting.texts,
        "base_model": group.setting.model,
        "group": group.label,
    }
    row |= {name: result.get(name) for name in (*NUMBERS, *COUNTS) if name in COLUMNS}
    for name in INTERVALS:
        row[f"{name}_lo"], row[f"{name}_hi"] = result.get("intervals", {}).get(name, (None, None))
    return {name: row[name] for name in COLUMNS if name in row}


def columns_of(rows: Sequence[dict]) -> dict[str, np.ndarray]:
    """Rows as columns, None or nan where a value is missing."""
    found = {}
    for name, (kind, _) in COLUMNS.items():
        values = [row[name] for row in rows]
        plain = {float: np.float64, bool: bool}.get(kind, object)
        found[name] = np.array(values, plain)
    return found


def sort_key(entry: dict, result: dict) -> tuple:
    """Where a dictionary stands in a report: by model, layer, site, active features; whatever was given first."""
    sites = [Site.parse(site) for site in written(entry)]
    models = " and ".join(base.label for base in models_of(entry))
    places = [(site.model, site.layer, site.component) for site in sites]
    rest = (entry["kind"], entry["reads"], entry["n_features"], str(entry["sparsity"]), str(entry["fingerprint"]))
    return models, places, result.get("l0") or 0.0, rest, entry["name"]


def notes_of(
    config: ReportConfig, settings: Sequence[Setting], groups: Sequence[Group], results: Mapping[str, dict]
) -> Iterator[str]:
    """What keeps numbers apart, and what else a reader has to know of them, a sentence each."""
    entries = config.entries
    if config.data is None:
        yield "The numbers are those that were recorded with each dictionary; they were not measured anew side by side."
    models = dict.fromkeys(setting.model for setting in settings)
    if len(models) > 1:
        parts = (
            f"{model} ({_named(entries[i]['name'] for s in settings if s.model == model for i in s.members)})"
            for model in models
        )
        yield f"They belong to different language models: {'; '.join(parts)}."
    yield from _of_texts(entries, settings)
    if len({group.writes for group in groups}) > 1:
        yield (
            "They write different sites. Unexplained variance and recovered loss are shares of what is at stake there, "
            "so each site has a frontier of its own."
        )
    for group in groups:
        reads = {entry["name"]: " + ".join(entry["reads"]) for entry in entries if entry["name"] in group.names}
        if len(set(reads.values())) > 1:
            yield f"In {group.label} not all read the same: {_named(f'{n} reads {r}' for n, r in reads.items())}."
    other = [e["name"] for e in entries if e["measured_with"] and not same_models(models_of(e), _made_for(e))]
    if other:
        yield f"Judged with another language model than they were made for, or one of other files: {_named(other)}."
    for name, what in (("ce_recovered", "no loss recovered, so no place on its frontier"), ("l0", "no l0")):
        if missing := [entry["name"] for entry in entries if results[entry["name"]].get(name) is None]:
            yield f"With {what}: {_named(missing)}."
    if missing := [entry["name"] for entry in entries if not results[entry["name"]].get("intervals")]:
        yield f"Without intervals: {_named(missing)}."


def _of_texts(entries: Sequence[dict], settings: Sequence[Setting]) -> Iterator[str]:
    """How the texts of different settings of one model differ."""
    by_model: dict[str, list[Setting]] = {}
    for setting in settings:
        by_model.setdefault(setting.model, []).append(setting)
    if all(len(found) == 1 for found in by_model.values()):
        if len({setting.texts for setting in settings}) > 1:
            yield f"The texts differ too: {_named(dict.fromkeys(setting.texts for setting in settings))}."
        return
    for model, found in by_model.items():
        if len(found) < 2:
            continue
        parts = [
            f"{_named(entries[i]['name'] for i in s.members)} on {s.texts} ({s.n_tokens:,} tokens"
            + (f", loss of the model as it is {s.ce_original:.4g}" if s.ce_original is not None else "")
            + ")"
            for s in found
        ]
        named, digests = {s.texts for s in found}, {s.data.get("digest") for s in found}
        why = "; the name of the texts is the same, the texts are not" if len(named) == 1 else ""
        if len(digests) == 1 and digests != {None}:
            why = "; the texts are the same, and were cut or read differently"
        yield (
            f"Not measured on the same tokens of {model}: {'; '.join(parts[:_MOST_NAMED])}"
            + ("; ..." if len(parts) > _MOST_NAMED else "")
            + f"{why}. Numbers of different tokens are not put into one frontier."
        )


def summary_of(rows: Sequence[dict], settings: Sequence[Setting]) -> str:
    """`"3 sparse autoencoders of layers.1.residual of org/name@1a2b3c4d"`."""
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in _KINDS}
    kinds = [f"{n:,} {_KINDS[kind]}s" if n > 1 else f"a {_KINDS[kind]}" for kind, n in counts.items() if n]
    sites = list(dict.fromkeys(row["writes"] for row in rows))
    where = " and ".join(sites) if len(sites) <= 2 else f"{len(sites):,} sites"
    models = list(dict.fromkeys(setting.model for setting in settings))
    made_for = " and ".join(models) if len(models) <= 2 else f"{len(models):,} models"
    return f"{' and '.join(filter(None, (', '.join(kinds[:-1]), kinds[-1])))} of {where} of {made_for}"


def only_place(entries: Sequence[dict]) -> dict[str, Any] | None:
    """What `load_sae` needs beside an index with these entries to find the first of them that can be told apart:
    `layer`, and of `component` and `k` as little as will do (see `members.choose`)."""
    known = [
        ({(s.layer, s.component) for s in map(Site.parse, entry["reads"])}, entry["sparsity"].get("k"))
        for entry in entries
        if entry["repo_id"] is not None
    ]
    for sites, k in known:
        layer, component = min(sites)
        of_layer = [(there, other) for there, other in known if layer in {place for place, _ in there}]
        of_site = [one for one in of_layer if (layer, component) in one[0]]
        for fit, place in ((of_layer, {"layer": layer}), (of_site, {"layer": layer, "component": component})):
            if len(fit) == 1:
                return place
            if k is not None and [other for _, other in fit].count(k) == 1:
                return {**place, "k": k}
    return None


def _made_for(entry: dict) -> tuple[BaseModel, ...]:
    return tuple(BaseModel.from_dict(base) for base in entry["base_models"])


def _named(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_MOST_NAMED]) + (
        f" and {len(found) - _MOST_NAMED:,} more" if len(found) > _MOST_NAMED else ""
    )
