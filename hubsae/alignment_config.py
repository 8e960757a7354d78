"""The content of an alignment.json: the two dictionaries, how they were aligned, and on what."""

import math
from dataclasses import dataclass, field
from typing import Any

from hubsae.align_config import AlignConfig
from hubsae.anchors import AnchorConfig
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError
from hubsae.hub_client import library_version
from hubsae.identity import BaseModel
from hubsae.sites import Site
from hubsae.store import ALIGNMENT, config_from
from hubsae.survey import fingerprint

FORMAT_VERSION = 1


@dataclass(frozen=True)
class AlignmentConfig:
    """What an alignment is: the content of its alignment.json.

    a, b: the dictionaries, as `record` describes them. settings: of `AlignConfig`. anchors: the rule, its version, how
    many there are, and a digest from which anyone can tell whether a rebuilt set is the same. thresholds: how they came
    out. data: what the texts are called.
    """

    a: dict
    b: dict
    settings: dict
    anchors: dict
    thresholds: dict
    data: str | None = None
    verified_by: tuple[dict, ...] = ()
    created: str | None = None
    format_version: int = FORMAT_VERSION
    library_name: str = "hubsae"
    library_version: str = field(default_factory=library_version)

    def __post_init__(self):
        object.__setattr__(self, "verified_by", tuple(self.verified_by))
        names = ("a", "b", "settings", "anchors", "thresholds")
        if not all(isinstance(part, dict) for part in (*(getattr(self, n) for n in names), *self.verified_by)):
            raise ConfigError(f"{', '.join(names)} and all of verified_by: expected objects")
        for side in (self.a, self.b):
            _check_side(side)
            _check_numbers("metrics", side.get("metrics", {}))
        _check_numbers("thresholds", self.thresholds)
        for name in ("n_anchors", "n_documents"):
            _check_numbers(f"anchors, {name}", self.anchors.get(name, {}))
        _check_numbers("anchors, coverage", dict(enumerate(self.anchors.get("coverage") or ())))
        texts = (self.data, self.created, self.anchors.get("digest"))
        if not all(text is None or isinstance(text, str) for text in texts):
            raise ConfigError("data, created, and the anchors' digest: expected texts")
        for name in ("rule_version", "n_duplicates", "n_outliers"):
            _check_numbers("anchors", {name: self.anchors.get(name, 0)})
        if not all(isinstance(v, str | int | float | None) for entry in self.verified_by for v in entry.values()):
            raise ConfigError("verified_by: expected texts and numbers")
        AlignConfig(**self.settings)
        AnchorConfig(**{n: self.anchors[n] for n in AnchorConfig.__dataclass_fields__ if n in self.anchors})

    @classmethod
    def from_dict(cls, data: dict) -> "AlignmentConfig":
        """From an alignment.json; raises `ArtifactError` for what is not ours or too new."""
        return config_from(cls, data, ALIGNMENT, FORMAT_VERSION)


def _check_numbers(what: str, numbers: Any) -> None:
    """Raise `ConfigError` for what is no object of numbers."""
    if not isinstance(numbers, dict):
        raise ConfigError(f"{what}: expected an object")
    if bad := [k for k, v in numbers.items() if not isinstance(v, int | float) or isinstance(v, bool)]:
        raise ConfigError(f"{what}, {str(bad[0])[:80]}: expected a number")


def _check_side(side: dict) -> None:
    """Raise `ConfigError` for a side that no dictionary can be compared with."""
    kinds = {"site": str, "sparsity": dict, "fingerprint": dict, "base_model": dict, "width": int, "n_features": int}
    texts = ("repo_id", "revision", "subfolder")
    for name, kind in {**kinds, **{name: str for name in texts if side.get(name) is not None}}.items():
        if not isinstance(side.get(name), kind) or isinstance(side[name], bool):
            raise ConfigError(f"{name}={str(side.get(name))[:80]!r}: expected {kind.__name__}")
    if min(side["width"], side["n_features"]) < 1:
        raise ConfigError(f"width={side['width']}, n_features={side['n_features']}: expected positive numbers")
    if side.get("repo_id") and not side.get("revision"):
        raise ConfigError(f"{side['repo_id'][:80]}: the repository of a dictionary without its commit")
    for name, marks in side["fingerprint"].items():
        if not isinstance(marks, list) or not all(isinstance(value, int | float) for value in marks):
            raise ConfigError(f"fingerprint, {str(name)[:80]}: expected a list of numbers")
    Site.parse(side["site"])
    BaseModel.from_dict(side["base_model"])


def record(dictionary: Dictionary, base_model: BaseModel | None = None) -> dict[str, Any]:
    """What an alignment keeps of a dictionary: where it is, what it reads, how to recognise it, and the model that read
    the texts (that which the dictionary names, where none is given)."""
    c, source = dictionary.config, dictionary.source
    on_hub = source is not None and source.revision is not None
    found = {name: dictionary.metrics.get(name) for name in ("fvu", "l0", "dead_share")}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}
    return {
        "repo_id": source.access["repo_id"] if source is not None and on_hub else None,
        "revision": source.revision if source is not None and on_hub else None,
        "subfolder": source.access.get("subfolder") if source is not None and on_hub else None,
        "site": c.reads[0],
        "width": c.d_in,
        "n_features": c.n_features,
        "sparsity": c.sparsity,
        "fingerprint": fingerprint(dictionary),
        "base_model": (base_model or dictionary.base_model).to_dict(),
        "tokens": c.tokens,
        "metrics": numbers,
    }
