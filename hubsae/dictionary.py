"""`Dictionary`: read sites -> code -> write sites, and the folder it lives in."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from huggingface_hub import EvalResult

from hubsae import identity, sparse, sparsity
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.hub import Artifact, Source
from hubsae.hub_client import library_version
from hubsae.identity import BaseModel, Check, Difference
from hubsae.settings import as_type
from hubsae.sites import Site, parse_sites
from hubsae.sparse import SparseCode
from hubsae.sparsity import Sparsity
from hubsae.tokens import TokenConfig

FORMAT_VERSION = 1
_SLICE_VALUES = 1 << 26

CARD_METRICS = {
    "fvu": "Fraction of variance unexplained",
    "l0": "Active features per token",
    "ce_recovered": "Cross-entropy loss recovered, against zero ablation",
    "dead_share": "Features never active on held-out tokens (share)",
}


@dataclass(frozen=True)
class DictionaryConfig:
    """What a dictionary is: the content of its config.json.

    reads, writes: sites as text, in the order of their columns, with their widths. sparsity: the rule and settings.
    base_model: `BaseModel` as a dict. tokens: how texts became rows (context, special tokens, what is left out).
    """

    reads: tuple[str, ...]
    read_widths: tuple[int, ...]
    writes: tuple[str, ...]
    write_widths: tuple[int, ...]
    n_features: int
    sparsity: dict
    base_model: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    library_name: str = "hubsae"
    library_version: str = field(default_factory=library_version)
    kind: str = ""

    def __post_init__(self):
        for name, kind in (("reads", str), ("read_widths", int), ("writes", str), ("write_widths", int)):
            if not isinstance(getattr(self, name), list | tuple):
                raise ConfigError(f"{name}: expected a list")
            values = (as_type(value, kind, name) for value in getattr(self, name))
            object.__setattr__(self, name, tuple(values))  # JSON has lists
        for name in ("sparsity", "base_model", "tokens"):
            if not isinstance(getattr(self, name), dict):
                raise ConfigError(f"{name}: expected a table of settings")
        identity.BaseModel.from_dict(self.base_model)
        self.token_config()
        for sites, widths in ((self.reads, self.read_widths), (self.writes, self.write_widths)):
            if not sites or len(sites) != len(widths) or min(widths) < 1:
                raise ConfigError(f"sites {sites} with widths {widths}: each site needs one positive width")
            if len(parse_sites(sites)) != len(sites):
                raise ConfigError(f"sites {sites}: a site stands there twice")
        if as_type(self.n_features, int, "n_features") < 1:
            raise ConfigError(f"n_features={self.n_features!r}: expected a whole number of at least 1")
        self.rule.check(self.n_features)
        derived = kind_of(self.reads, self.writes)
        if self.kind not in ("", derived):
            raise ConfigError(f"kind={self.kind!r}, but reading {self.reads} and writing {self.writes} is {derived!r}")
        object.__setattr__(self, "kind", derived)

    @classmethod
    def from_dict(cls, data: dict) -> "DictionaryConfig":
        """From a config.json; raises `ArtifactError` for what is not ours or too new."""
        if data.get("library_name") != "hubsae":
            raise ArtifactError("config.json was not written by hubsae (no library_name 'hubsae')")
        version = data.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ArtifactError(f"config.json: format_version {version!r} is not a positive number")
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"written in format {version} by hubsae {data.get('library_version')}; this version reads up to format "
                f"{FORMAT_VERSION}. Run: pip install -U hubsae"
            )
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ArtifactError(
                f"config.json: unknown entries {', '.join(unknown)}; they could change what it computes"
            )
        try:
            return cls(**data)
        except (TypeError, ValueError, KeyError) as error:
            raise ArtifactError(f"config.json: {error}") from error

    @property
    def rule(self) -> Sparsity:
        return sparsity.from_dict(self.sparsity)

    def token_config(self) -> TokenConfig:
        """How texts become rows, as recorded."""
        return TokenConfig(**{k: v for k, v in self.tokens.items() if k in TokenConfig.__dataclass_fields__})

    @property
    def read_sites(self) -> tuple[Site, ...]:
        return parse_sites(self.reads)

    @property
    def write_sites(self) -> tuple[Site, ...]:
        return parse_sites(self.writes)

    @property
    def d_in(self) -> int:
        return sum(self.read_widths)

    @property
    def d_out(self) -> int:
        return sum(self.write_widths)


def kind_of(reads: tuple[str, ...], writes: tuple[str, ...]) -> str:
    """`"sae"` (one site, the same), `"crosscoder"` (several, the same) or `"transcoder"` (anything else)."""
    if parse_sites(reads) != parse_sites(writes):
        return "transcoder"
    return "sae" if len(reads) == 1 else "crosscoder"


class Dictionary(Artifact, nn.Module, tags=["mechanistic-interpretability"]):
    """x (n, d_in) -> code (n, F) -> y (n, d_out), in raw activations on both sides.

    code = sparsity(x W_enc + b_enc), y = code W_dec + b_dec. Arrays: `W_enc` (d_in, F), `b_enc` (F,), `W_dec`
    (F, d_out), `b_dec` (d_out,). Column f of W_enc detects feature f, row f of W_dec is what it writes.
    """

    card_template: ClassVar[str] = "dictionary.md"
    kind: ClassVar[str | None] = None
    config: DictionaryConfig

    def __init__(self, config: DictionaryConfig, arrays: dict[str, mx.array]):
        super().__init__()
        if self.kind not in (None, config.kind):
            raise ArtifactError(f"this is a {config.kind}, not a {self.kind}: it reads {config.reads}")
        shapes = self.array_shapes(config)
        if set(arrays) != set(shapes):
            missing, extra = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
            raise ArtifactError(f"arrays do not fit the config: missing {missing or 'none'}, unknown {extra or 'none'}")
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ArtifactError(f"{name} has shape {arrays[name].shape}, the config says {shape}")
            if not mx.issubdtype(arrays[name].dtype, mx.floating):
                raise ArtifactError(f"{name} holds {arrays[name].dtype}, not floating-point numbers")
        self.config = config
        self.W_enc, self.b_enc = arrays["W_enc"], arrays["b_enc"]
        self.W_dec, self.b_dec = arrays["W_dec"], arrays["b_dec"]

    @staticmethod
    def array_shapes(config: DictionaryConfig) -> dict[str, tuple[int, ...]]:
        """The shape that each array must have."""
        d_in, d_out, n = config.d_in, config.d_out, config.n_features
        return {"W_enc": (d_in, n), "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,)}

    @cached_property
    def rule(self) -> Sparsity:
        """The sparsity."""
        return self.config.rule

    @property
    def n_features(self) -> int:
        return self.config.n_features

    @property
    def base_model(self) -> BaseModel:
        """The language model it was made for, as recorded."""
        return BaseModel.from_dict(self.config.base_model)

    def __repr__(self) -> str:
        c = self.config
        sites = " + ".join(c.reads) + ("" if c.reads == c.writes else f" -> {' + '.join(c.writes)}")
        return f"{type(self).__name__}({sites} of {self.base_model.label}, F={c.n_features}, {self.rule})"

    def _pre(self, x: mx.array) -> mx.array:
        x = x if isinstance(x, mx.array) else mx.array(x)
        if x.shape[-1:] != (self.config.d_in,):
            raise DataError(
                f"activations have shape {x.shape}; this {self.config.kind} reads {self.config.d_in} columns "
                f"({', '.join(self.config.reads)})"
            )
        return x.astype(self.W_enc.dtype) @ self.W_enc + self.b_enc

    def encode(self, x: mx.array) -> mx.array:
        """(..., d_in) raw activations -> (..., F) code."""
        return self.encode_sparse(x).dense()

    def encode_sparse(self, x: mx.array) -> SparseCode:
        """(..., d_in) raw activations -> indices and values (..., k) of the active features, largest first."""
        return self.rule.sparse(self._pre(x))

    def encode_slices(self, rows: np.ndarray) -> Iterator[tuple[slice, SparseCode]]:
        """(n, d_in) -> slices of the rows with their codes, each small enough that its pre-code stays under 256 MB."""
        step = max(1, _SLICE_VALUES // self.n_features)
        for start in range(0, len(rows), step):
            part = slice(start, min(start + step, len(rows)))
            yield part, self.encode_sparse(mx.array(rows[part]))

    def decode(self, code: mx.array | SparseCode) -> mx.array:
        """(..., F) code, dense or sparse -> (..., d_out) raw activations."""
        if code.shape[-1] != self.n_features:
            raise DataError(f"a code of shape {code.shape}; this {self.config.kind} has {self.n_features} features")
        if isinstance(code, SparseCode):
            return sparse.decode(code, self.W_dec) + self.b_dec
        return code @ self.W_dec + self.b_dec

    def __call__(self, x: mx.array) -> mx.array:
        """(..., d_in) -> its reconstruction or prediction (..., d_out), with gradients."""
        return self.decode(self.encode(x))

    def arrays(self) -> dict[str, mx.array]:
        return {name: self[name] for name in self.array_shapes(self.config)}

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> Self:
        return cls(DictionaryConfig.from_dict(config), arrays)

    def save(self, path: str | Path) -> None:
        """Write the folder `path`: config.json, model.safetensors, statistics.json, metrics.json, README.md."""
        self.save_pretrained(path)
        self.source = Source(str(Path(path).expanduser().resolve()))

    def file_metadata(self) -> dict[str, str]:
        base, c = self.base_model, self.config
        known = {"base_model": base.repo_id, "base_revision": base.revision}
        return {
            "kind": c.kind,
            "format_version": str(c.format_version),
            "reads": ",".join(c.reads),
            "writes": ",".join(c.writes),
            **{key: value for key, value in known.items() if value},
        }

    def compare(self, found: BaseModel, widths: dict[Site, int] | None = None) -> list[Difference]:
        """Differences between the recorded base model and one at hand, worst first; `widths` are that model's."""
        c = self.config
        out = []
        for verb, sites, own in (("reads", c.read_sites, c.read_widths), ("writes", c.write_sites, c.write_widths)):
            if verb == "writes" and c.reads == c.writes:
                continue
            for site, width in zip(sites, own, strict=True):
                if widths is not None and widths.get(site) != width:
                    there = f"{widths[site]} columns" if site in widths else "no such site"
                    out.append(Difference(f"{site}, which it {verb}", f"{width} columns", there, "error"))
        return out + identity.compare(self.base_model, found)

    def check(self, found: BaseModel, widths: dict[Site, int] | None = None, check: Check = "warn") -> list[Difference]:
        """Compare with a model at hand, then raise, warn or stay silent (see `identity.judge`)."""
        what = f"{self.source or repr(self)}"
        return identity.judge(self.compare(found, widths), check, what)

    def card_metadata(self) -> dict:
        base, c = self.base_model, self.config
        tag = {"sae": "sparse-autoencoder"}.get(c.kind, c.kind)
        data: dict = {"tags": [*self._tags(), tag, c.sparsity["name"]]}
        if base.repo_id:
            data |= {"base_model": base.repo_id, "base_model_relation": "adapter"}
        if dataset := self.metrics.get("data", {}).get("dataset"):
            data["datasets"] = [dataset]
        return data

    def _tags(self) -> list[str]:
        return list(self._hub_mixin_info.model_card_data.tags or [])

    def card_results(self) -> list[EvalResult]:
        """The card's model-index: those of `CARD_METRICS` that metrics.json holds."""
        data = self.metrics.get("data", {})
        return [
            EvalResult(
                task_type="feature-extraction",
                task_name="Activation reconstruction",
                dataset_type=data.get("dataset") or "text",
                dataset_name=data.get("name") or "held-out texts",
                metric_type=name,
                metric_name=label,
                metric_value=float(self.metrics[name]),
            )
            for name, label in CARD_METRICS.items()
            if self.metrics.get(name) is not None
        ]

    def card_values(self) -> dict:
        return {"base": self.base_model, "rule": self.rule}
