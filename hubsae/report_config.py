"""The content of a report.json: which dictionaries were judged, and with what."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from hubsae import sparsity
from hubsae.dictionary import Dictionary, kind_of
from hubsae.errors import ConfigError
from hubsae.hub_client import library_version
from hubsae.identity import BaseModel
from hubsae.settings import as_type
from hubsae.sites import parse_sites
from hubsae.store import REPORT, WEIGHTS, config_from, sha256_of
from hubsae.survey import fingerprint
from hubsae.tokens import TokenConfig

FORMAT_VERSION = 1
MOST_ENTRIES = 1000
_MOST_COMPARED = 64 << 20  # characters: every record of language models is compared with every other
MOST_MODELS = 10  # of one dictionary, as many as sites can name
MOST_SITES = 200
MOST_BYTES = 16 << 20
LONGEST_NAME = 200
_LONGEST_PATH = 1000
_LARGEST = 1e40  # beyond float32; ten times a hundred of it is a number still
REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_TYPES = {
    "name": str,
    "repo_id": str,
    "revision": str,
    "subfolder": str,
    "sha256": str,
    "fingerprint": dict,
    "kind": str,
    "reads": list,
    "writes": list,
    "n_features": int,
    "sparsity": dict,
    "skip": bool,
    "base_models": list,
    "measured_with": list,
    "tokens": dict,
    "training_tokens": int,
    "training_data": str,
}
_MAY_BE_UNKNOWN = {
    "repo_id",
    "revision",
    "subfolder",
    "sha256",
    "measured_with",
    "training_tokens",
    "training_data",
}


@dataclass(frozen=True)
class ReportConfig:
    """What a report is about: the content of its report.json.

    entries: the dictionaries, as `record` describes them. data: of the texts that all of them were judged on, `name`,
    `dataset` (a Hub id, where it is one) and `max_rows`; None where the numbers are those that were recorded with each
    dictionary, which say themselves what they were measured on.
    """

    entries: tuple[dict, ...]
    data: dict | None = None
    format_version: int = FORMAT_VERSION
    library_name: str = "hubsae"
    library_version: str = field(default_factory=library_version)

    def __post_init__(self):
        if not isinstance(self.entries, list | tuple) or not 1 <= len(self.entries) <= MOST_ENTRIES:
            raise ConfigError(f"entries: expected a list of 1 to {MOST_ENTRIES:,} dictionaries")
        check_text([list(self.entries), self.data], "entries")
        object.__setattr__(self, "entries", tuple(map(_without_fingerprints, self.entries)))
        for entry in self.entries:
            _check(entry)
        counts = Counter(entry["name"] for entry in self.entries)
        if twice := sorted(name for name, n in counts.items() if n > 1):
            raise ConfigError(f"entries: several are called {twice[0]!r}; give different names")
        kinds = {models_key(entry) for entry in self.entries}
        if len(kinds) * sum(500 + len(kind) for kind in kinds) > _MOST_COMPARED:
            raise ConfigError(f"entries: {len(kinds):,} different language models are too many for one report")
        if self.data is not None:
            check_data(as_type(self.data, dict, "data"))

    @classmethod
    def from_dict(cls, data: dict) -> "ReportConfig":
        """From a report.json; raises `ArtifactError` for what is not ours or too new."""
        return config_from(cls, data, REPORT, FORMAT_VERSION)


def check_name(name: Any) -> str:
    """A name that a dictionary can have in a report, or `ConfigError`."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
        raise ConfigError(f"name {str(name)[:80]!r}: expected a text of 1 to {LONGEST_NAME} characters")
    return name


def check_text(content: Any, what: str) -> None:
    """Raise `ConfigError` for what cannot be written as a JSON file of at most `MOST_BYTES`."""
    try:
        size = len(json.dumps(content, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what}: {error.object[error.start]!r} is half a letter, which no file can hold") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: cannot be written as JSON ({error})") from error
    if size > MOST_BYTES:
        raise ConfigError(f"{what}: {size:,} bytes, at most {MOST_BYTES:,} are read; make several reports")


def whole(value: Any, name: str, least: int = 0) -> int:
    """A whole number that a table can hold, or `ConfigError`."""
    found = as_type(value, int, name)
    if not least <= found < 1 << 63:
        raise ConfigError(f"{name}={str(found)[:40]}: expected at least {least}, and less than 2**63")
    return found


def real(value: Any, name: str) -> float:
    """A number that can be shown and drawn, or `ConfigError`."""
    found = as_type(value, float, name)
    if abs(found) > _LARGEST:
        raise ConfigError(f"{name}={found:.3g}: expected at most {_LARGEST:g}")
    return found


def check_data(data: dict) -> None:
    """Raise `ConfigError` for what does not say on which texts something was measured."""
    known = {"name": str, "dataset": str, "digest": str, "n_texts": int, "max_rows": int}
    for key, value in data.items():
        if key not in known:
            raise ConfigError(f"data: unknown entry {str(key)[:80]!r}")
        if value is not None and known[key] is int:
            whole(value, f"data, {key}")
        elif value is not None:
            _check_length(as_type(value, str, f"data, {key}"), f"data, {key}")


def _check_length(text: str, name: str, most: int = LONGEST_NAME) -> None:
    if len(text) > most:
        raise ConfigError(f"{name}: {len(text):,} characters, expected at most {most}")


def models_key(entry: dict) -> str:
    """The same for two entries that say the same of the models that they were judged with."""
    return repr(entry["measured_with"] or entry["base_models"])


def _without_fingerprints(entry: Any) -> Any:
    """The entry without what its language models do with a fixed text: it is long, and their files tell them apart."""
    if not isinstance(entry, dict):
        return entry
    plain = {}
    for key in ("base_models", "measured_with"):
        if isinstance(found := entry.get(key), list | tuple):
            plain[key] = [
                {k: v for k, v in base.items() if k != "fingerprint"} if isinstance(base, dict) else base
                for base in found
            ]
    return {**entry, **plain}


def _check(entry: Any) -> None:
    """Raise `ConfigError` for what describes no dictionary."""
    as_type(entry, dict, "entries")
    name = check_name(entry.get("name"))
    if wrong := sorted(set(map(str, entry)) ^ set(_TYPES)):
        raise ConfigError(f"{name}: missing or unknown {', '.join(wrong)[:200]}")
    for key, kind in _TYPES.items():
        value = entry[key]
        if value is None and key in _MAY_BE_UNKNOWN:
            continue
        if kind is list and not (isinstance(value, list | tuple) and value):
            raise ConfigError(f"{name}, {key}: expected a list")
        if kind is not list:
            as_type(value, kind, f"{name}, {key}")
    for key, most in (("reads", MOST_SITES), ("writes", MOST_SITES), ("base_models", MOST_MODELS)):
        if len(entry[key]) > most:
            raise ConfigError(f"{name}, {key}: {len(entry[key]):,} of them, expected at most {most}")
    sites = {key: tuple(as_type(site, str, f"{name}, {key}") for site in entry[key]) for key in ("reads", "writes")}
    if any(len(parse_sites(found)) != len(found) for found in sites.values()):
        raise ConfigError(f"{name}: a site stands there twice")
    if entry["kind"] != kind_of(sites["reads"], sites["writes"]):
        raise ConfigError(f"{name}: kind={entry['kind'][:80]!r} does not fit the sites that it reads and writes")
    whole(entry["n_features"], f"{name}, n_features", least=1)
    whole(entry["training_tokens"] or 0, f"{name}, training_tokens")
    _check_length(entry["training_data"] or "", f"{name}, training_data")
    _check_length(entry["subfolder"] or "", f"{name}, subfolder", _LONGEST_PATH)
    sparsity.from_dict(entry["sparsity"]).check(entry["n_features"])
    TokenConfig.recorded(entry["tokens"])
    for key, marks in entry["fingerprint"].items():
        if not isinstance(marks, list):
            raise ConfigError(f"{name}, fingerprint, {str(key)[:80]}: expected a list of numbers")
        for value in marks:
            as_type(value, float, f"{name}, fingerprint")
    _check_place(name, entry)


def _check_place(name: str, entry: dict) -> None:
    if (entry["repo_id"] is None) != (entry["revision"] is None):
        raise ConfigError(f"{name}: a repository and its commit belong together")
    forms = {"repo_id": REPO_ID, "revision": re.compile("[0-9a-f]{40}"), "sha256": re.compile("[0-9a-f]{64}")}
    for key, form in forms.items():
        if entry[key] is not None and not form.fullmatch(entry[key]):
            raise ConfigError(f"{name}, {key}={entry[key][:80]!r}: not of this form")
    measured_with = entry["measured_with"] or ()
    if len(measured_with) > MOST_MODELS:
        raise ConfigError(f"{name}, measured_with: {len(measured_with):,} of them, expected at most {MOST_MODELS}")
    for given in (*entry["base_models"], *measured_with):
        base = BaseModel.from_dict(as_type(given, dict, f"{name}, base model"))
        _check_length(base.repo_id or "", f"{name}, base model, repo_id")


def record(dictionary: Dictionary, name: str, measured_with: tuple[BaseModel, ...] | None = None) -> dict[str, Any]:
    """What a report keeps of a dictionary: where it is, what it reads and writes, how to recognise it, its models.

    measured_with: the models that it was judged with; None where its recorded numbers are taken.
    """
    c, source = dictionary.config, dictionary.source
    on_hub = source is not None and source.revision is not None
    data = dictionary.statistics.get("data")
    data_name = data.get("name") if isinstance(data, dict) else None
    rows = dictionary.statistics.get("rows")
    return {
        "name": name,
        "repo_id": source.access["repo_id"] if source is not None and on_hub else None,
        "revision": source.revision if source is not None and on_hub else None,
        "subfolder": source.access.get("subfolder") if source is not None and on_hub else None,
        "sha256": _sha256(dictionary),
        "fingerprint": fingerprint(dictionary),
        "kind": c.kind,
        "reads": list(c.reads),
        "writes": list(c.writes),
        "n_features": c.n_features,
        "sparsity": c.sparsity,
        "skip": c.skip,
        "base_models": _plain(dictionary.base_models),
        "measured_with": None if measured_with is None else _plain(measured_with),
        "tokens": c.tokens,
        "training_tokens": rows if type(rows) is int and 0 <= rows < 1 << 63 else None,
        "training_data": shortened(data_name) if isinstance(data_name, str) else None,
    }


def shortened(text: str) -> str:
    """A name of somebody else's as a report can keep it."""
    return text.encode(errors="replace").decode()[:LONGEST_NAME]


def _plain(models: tuple[BaseModel, ...]) -> list[dict]:
    return [replace(base, fingerprint=None).to_dict() for base in models]


def _sha256(dictionary: Dictionary) -> str | None:
    """Of the model.safetensors that it was loaded from; None where that is none of ours, or not on this machine."""
    if dictionary.source is None or "imported" in dictionary.statistics:
        return None
    path = dictionary.source.cached(WEIGHTS)
    return None if path is None else sha256_of(path)  # names in the Hub's cache are of other sums
