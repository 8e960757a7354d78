"""Which language model an artifact belongs to: recorded when it is made, compared when it is loaded."""

import functools
import hashlib
import logging
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from hubsae.errors import CompatibilityError, ConfigError, SiteError, warn
from hubsae.sites import Site

logger = logging.getLogger(__name__)

Check = Literal["warn", "strict", "ignore"]
Severity = Literal["error", "warning", "equivalent", "silent"]
SEVERITIES: tuple[str, ...] = get_args(Severity)  # worst first

_TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "tiktoken.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
SIGNS = 16  # projections of a fingerprint
# rounding all weights to bf16 gives activations up to 0.023 apart, to 8 bits 0.013, to 6 bits 0.03, to 4 bits 0.14
SAME_WITHIN = 0.03
SAME_LOSSES = 0.1  # nats, of losses of single tokens
_MOST_TOKENS, _MOST_SITES, LARGEST = 256, 200, 1e30
_STRUCTURE = {
    "model_type": "architecture",
    "hidden_size": "residual width",
    "n_layers": "number of layers",
    "vocab_size": "vocabulary size",
}


@dataclass(frozen=True)
class Fingerprint:
    """What a model does with a fixed text, see `fingerprint.fingerprint`: `tokens` were run, `own_tokens` are its own.

    losses: of the tokens but the first, in nats. sites: of each, `norm` and `projected`.
    """

    tokens: list[int]
    own_tokens: list[int]
    losses: list[float]
    sites: dict[str, dict[str, Any]]

    @classmethod
    def from_dict(cls, data: dict) -> "Fingerprint":
        """From a config's entry; `ConfigError` for what is none."""
        tokens, own, losses, sites = (data.get(key) for key in ("tokens", "own_tokens", "losses", "sites"))
        ids = (isinstance(t, list) and 1 < len(t) <= _MOST_TOKENS and all(map(_is_id, t)) for t in (tokens, own))
        known = isinstance(sites, dict) and 0 < len(sites) <= _MOST_SITES and all(map(_is_site, sites))
        if not all(ids) or not known or not all(map(_is_mark, cast(dict, sites).values())):
            raise ConfigError(
                f"base_model, fingerprint: expected tokens, own_tokens and sites with {SIGNS} numbers each"
            )
        if not _are_numbers(losses, len(cast(list, tokens)) - 1):
            raise ConfigError("base_model, fingerprint: expected a loss of each token but the first")
        return cls(cast(list, tokens), cast(list, own), cast(list, losses), cast(dict, sites))

    def difference(self, other: "Fingerprint") -> float | None:
        """The estimated relative difference between the activations, 0 to about 1.4; None where nothing is comparable.

        Of several sites the largest, infinite where one has none; norms that differ count as much as directions.
        """
        if self.tokens != other.tokens:
            return None
        pairs = ((self.sites[site], other.sites.get(site)) for site in sorted(self.sites))
        return max(math.inf if theirs is None else _apart(own, theirs) for own, theirs in pairs)

    def loss_difference(self, other: "Fingerprint") -> float:
        """Root mean square of the differences between the losses of the tokens, in nats."""
        return _rms(self.losses, other.losses) if self.tokens == other.tokens else math.inf


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_site(text: Any) -> bool:
    try:
        return str(Site.parse(text)) == text
    except SiteError:
        return False


def _is_mark(mark: Any) -> bool:
    if not isinstance(mark, dict) or not _are_numbers([mark.get("norm")], 1):
        return False
    return mark["norm"] >= 0 and _are_numbers(mark.get("projected"), SIGNS)


def _are_numbers(values: Any, n: int) -> bool:
    """Whether it is a list of n numbers of a size that squares are of, too."""
    kinds = isinstance(values, list) and len(values) == n and all(type(value) in (int, float) for value in values)
    return kinds and all(-LARGEST <= value <= LARGEST for value in values)


def _rms(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def _apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    norms = abs(a["norm"] - b["norm"]) / max(a["norm"], b["norm"], 1e-30)
    return max(_rms(a["projected"], b["projected"]), norms)


@dataclass(frozen=True)
class BaseModel:
    """What is known of a language model.

    `files` maps the names of config, tokenizer and weight files to the git blob ids that this content has on the Hub:
    one id where it is known, two (as regular and as LFS file) where it was computed from a local folder. `random_seed`:
    of the weights of a model that was never trained.
    """

    repo_id: str | None = None
    revision: str | None = None
    requested_revision: str | None = None
    architecture: str | None = None
    model_type: str | None = None
    hidden_size: int | None = None
    n_layers: int | None = None
    vocab_size: int | None = None
    quantization: dict | None = None
    dtype: str | None = None
    files: dict[str, list[str]] = field(default_factory=dict)
    random_seed: int | None = None
    fingerprint: Fingerprint | None = field(default=None, compare=False)

    @classmethod
    def from_dict(cls, data: dict | None) -> "BaseModel":
        """From a config's `base_model` entry; keys that are not ours are dropped, `ConfigError` for other types."""
        known = {f.name: f.type for f in fields(cls)}
        found = {key: value for key, value in (data or {}).items() if key in known and value is not None}
        for key, value in found.items():
            kind = dict if key in ("files", "quantization", "fingerprint") else int if known[key] == int | None else str
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ConfigError(f"base_model, {key}: expected {kind.__name__}, found {type(value).__name__}")
        for name, ids in found.get("files", {}).items():
            if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
                raise ConfigError(f"base_model, files, {str(name)[:80]}: expected a list of file ids")
        if "fingerprint" in found:
            found["fingerprint"] = Fingerprint.from_dict(found["fingerprint"])
        return cls(**found)

    def to_dict(self) -> dict:
        data = asdict(self)
        return data if self.fingerprint else {key: value for key, value in data.items() if key != "fingerprint"}

    @property
    def label(self) -> str:
        """`"org/name@1a2b3c4d"`, or what there is of it."""
        name = self.repo_id or f"a local {self.model_type or 'language'} model"
        return f"{name}@{self.revision[:8]}" if self.revision else name


@dataclass(frozen=True)
class Difference:
    """One compared field: what the artifact recorded, what the model at hand has, and how bad that is."""

    field: str
    recorded: object
    found: object
    severity: Severity

    def __str__(self) -> str:
        return f"{self.field}: recorded {self.recorded}, found {self.found}"


Verdict = Literal["same", "unknown"] | Severity


@dataclass(frozen=True)
class Compared:
    """One field of two language models: what was recorded, what is at hand, and what follows."""

    field: str
    recorded: object
    found: object
    verdict: Verdict


def compared(recorded: BaseModel, found: BaseModel) -> list[Compared]:
    """Every field that is compared, equal ones and unknown ones too."""
    out = [_field(label, getattr(recorded, n), getattr(found, n), "error") for n, label in _STRUCTURE.items()]
    both_known = bool(recorded.model_type and found.model_type)  # no quantisation is a statement then
    same = _same_quantization(recorded.quantization, found.quantization)
    a, b = (_quantization(q) for q in (recorded.quantization, found.quantization))
    out.append(Compared("quantisation", a, b, "unknown" if not both_known else "same" if same else "warning"))
    a, b = (_weights(m) for m in (recorded, found))
    out.append(Compared("weights", a, b, "unknown" if not both_known else "same" if a == b else "warning"))
    out += _compare_files(recorded.files, found.files)
    out.append(_field("repository", recorded.repo_id, found.repo_id, "warning"))
    out.append(_field("commit", recorded.revision, found.revision, "silent"))
    if not (recorded.files and found.files):
        a, b = ("file ids" if m.files else "no file ids" for m in (recorded, found))
        out.append(Compared("files", a, b, "silent"))
    return _as_it_behaves(out, recorded.fingerprint, found.fingerprint)


def _as_it_behaves(fields: list[Compared], recorded: Fingerprint | None, found: Fingerprint | None) -> list[Compared]:
    """The fields with what both models do with the fixed text: what differs in files alone is equivalent then."""
    apart = recorded.difference(found) if recorded and found else None
    if apart is None or recorded is None or found is None:
        return fields
    losses = recorded.loss_difference(found)
    agree, predicts = apart <= SAME_WITHIN, losses <= SAME_LOSSES
    same_tokens = recorded.own_tokens == found.own_tokens
    out = []
    for one in fields:
        settled = same_tokens if one.field.startswith("tokenizer, ") else agree and predicts
        out.append(replace(one, verdict="equivalent") if settled and one.verdict == "warning" else one)
    of, there = "of a fixed text", "" if same_tokens else "other "
    sites = ", ".join(list(recorded.sites)[:4])
    away = f"{100 * apart:.2g} % away from them"
    out.append(Compared(f"activations {of}", f"those of {sites}", away, "same" if agree else "warning"))
    a, b = (f"{sum(one.losses) / len(one.losses):.3f} nats a token" for one in (recorded, found))
    out.append(Compared(f"losses {of}", a, f"{b}, {losses:.2g} apart", "same" if predicts else "warning"))
    a, b = f"{len(recorded.own_tokens)} tokens", f"{len(found.own_tokens)} {there}tokens"
    out.append(Compared(f"tokens {of}", a, b, "same" if same_tokens else "warning"))
    return out


def compare(recorded: BaseModel, found: BaseModel) -> list[Difference]:
    """All differences, worst first. What is unknown on either side is not compared."""
    return differences(compared(recorded, found))


def differences(fields: list[Compared]) -> list[Difference]:
    """Those of the fields that differ, worst first."""
    bad = (one for one in fields if one.verdict in SEVERITIES)
    out = [Difference(one.field, one.recorded, one.found, cast(Severity, one.verdict)) for one in bad]
    return sorted(out, key=lambda d: SEVERITIES.index(d.severity))


def _field(name: str, a: object, b: object, severity: Severity) -> Compared:
    return Compared(name, a, b, "unknown" if a is None or b is None else "same" if a == b else severity)


def _weights(model: BaseModel) -> str | None:
    if not model.model_type:
        return None
    return "trained" if model.random_seed is None else f"random (seed {model.random_seed})"


def _same_quantization(a: dict | None, b: dict | None) -> bool:
    """Equal in what both sides say: a model in memory does not know all that its file says."""
    if not a or not b:
        return not a and not b
    return all(a[key] == b[key] for key in a.keys() & b.keys())


def _quantization(value: dict | None) -> str:
    if not value:
        return "none"
    return ", ".join(f"{key} {value[key]}" for key in sorted(value))


def _compare_files(recorded: dict[str, list[str]], found: dict[str, list[str]]) -> list[Compared]:
    """Weights, tokenizer and config, by the first file of each that differs, or the first there is."""
    if not (recorded and found):
        return []
    out: list[Compared] = []
    for label, wanted in (
        ("weights", _is_weights),
        ("tokenizer", _TOKENIZER_FILES.__contains__),
        ("config", _is_config),
    ):
        a = {name: ids for name, ids in recorded.items() if wanted(name)}
        b = {name: ids for name, ids in found.items() if wanted(name)}
        changed = sorted(n for n in {*a, *b} if not set(a.get(n, ())) & set(b.get(n, ())))
        names = changed or sorted({*a, *b})
        if names:
            one, other = (ids[0][:8] if ids else "absent" for ids in (a.get(names[0], []), b.get(names[0], [])))
            more = f" (and {len(names) - 1} more files)" if len(names) > 1 else ""
            verdict: Verdict = "warning" if changed else "same"
            other = other if changed else one  # equal content may be known by several ids
            out.append(Compared(f"{label}, {names[0]}{more}", one, other, verdict))
    return out


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _is_config(name: str) -> bool:
    return name == "config.json"


def check_policy(check: str) -> None:
    """Raise `ConfigError` for what is no `Check`."""
    if check not in get_args(Check):
        raise ConfigError(f"check={check!r}: expected 'warn', 'strict' or 'ignore'")


def judge(differences: list[Difference], check: Check, what: str) -> list[Difference]:
    """Raise, warn or log as `check` says; returns the differences.

    Structure that differs raises `CompatibilityError`; other weights, tokenizer, quantisation or repository warn, and
    raise under `check="strict"`, even where the models are equivalent: where they give the same activations and tokens
    of a fixed text within what rounding to bf16 does (`SAME_WITHIN`), which is only logged otherwise, as is another
    commit with the same files. `"ignore"` never raises.
    """
    check_policy(check)
    logger.info("%s: %s", what, "; ".join(map(str, differences)) or "no difference to the recorded base model")
    if check == "ignore":
        return differences
    refused = ("error", "warning", "equivalent") if check == "strict" else ("error",)
    bad = [d for d in differences if d.severity in refused]
    if bad:
        alike = all(d.severity == "equivalent" for d in bad)
        why = f" (other files, but activations of a fixed text within {100 * SAME_WITHIN:.0f} %)" if alike else ""
        raise CompatibilityError(
            f"{what} was made for another model than the one at hand: {'; '.join(map(str, bad))}{why}. "
            "Load the recorded base model, or pass check='ignore' to use it all the same"
        )
    doubts = [d for d in differences if d.severity == "warning"]
    if doubts:
        warn(
            f"{what} was made for a different version of this model: {'; '.join(map(str, doubts))}. "
            "Its numbers may not hold here (check='strict' makes this an error, check='ignore' silences it)",
        )
    return differences


def model_files(folder: Path) -> dict[str, list[str]]:
    """The git blob ids of config, tokenizer and weights in a checkpoint folder; hashes what the Hub did not name."""
    return {
        path.name: blob_ids(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.name in _TOKENIZER_FILES or path.name == "config.json" or _is_model_weights(path))
    }


def _is_model_weights(path: Path) -> bool:
    return path.name.startswith("model") and path.suffix == ".safetensors"


def blob_ids(path: Path) -> list[str]:
    """Git blob ids that this file's content has on the Hub.

    In the Hub's cache a snapshot's link names the etag: a blob id (40 hex digits) for a regular file, a sha256 for an
    LFS file, whose blob is its pointer text. Elsewhere the content is hashed; whether the Hub would keep it in LFS is
    not known then, so both ids are given.
    """
    if path.is_symlink():
        etag = Path(os.readlink(path)).name  # one level: deeper links name another kind of hash
        if re.fullmatch(r"[0-9a-f]{40}", etag):
            return [etag]
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            return [_pointer_id(etag, path.stat().st_size)]
    stat = path.stat()
    return list(_hashed(str(path.resolve()), stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _hashed(path: str, size: int, mtime_ns: int) -> tuple[str, str]:
    regular, sha256 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False), hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            regular.update(chunk)
            sha256.update(chunk)
    return regular.hexdigest(), _pointer_id(sha256.hexdigest(), size)


def _pointer_id(sha256: str, size: int) -> str:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return hashlib.sha1(f"blob {len(text)}\0".encode() + text, usedforsecurity=False).hexdigest()
