"""`Dictionary`: read sites -> code -> write sites, and the folder it lives in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from huggingface_hub import EvalResult, HfApi

from hubsae import backend, dictionary_card, identity, licences, sparse, sparsity, threads
from hubsae.charts import Picture
from hubsae.choose import Places
from hubsae.entries import Scratch, product
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.hub import Artifact, Source
from hubsae.hub_client import library_version
from hubsae.identity import BaseModel, Check, Compared, Difference
from hubsae.settings import as_type
from hubsae.sites import Site, columns, parse_sites
from hubsae.sparse import SparseCode
from hubsae.sparsity import Sparsity
from hubsae.store import CONFIG, config_from
from hubsae.tokens import TokenConfig

FORMAT_VERSION = 1
_SLICE_VALUES = 1 << 26


@dataclass(frozen=True)
class DictionaryConfig:
    """What a dictionary is: the content of its config.json.

    reads, writes: sites as text, in the order of their columns, with their widths. sparsity: the rule and settings.
    skip: whether there is a linear skip connection from reads to writes. write_scales: for each written site the root
    mean square distance of its training rows from their mean, by which norms of different sites are compared; what it
    computes does not depend on them. base_models: `BaseModel` as a dict, for each model that the sites name.
    tokens: how texts became rows (context, special tokens, what is left out).
    """

    reads: tuple[str, ...]
    read_widths: tuple[int, ...]
    writes: tuple[str, ...]
    write_widths: tuple[int, ...]
    n_features: int
    sparsity: dict
    skip: bool = False
    write_scales: tuple[float, ...] = ()
    base_models: tuple[dict, ...] = ()
    tokens: dict = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    library_name: str = "hubsae"
    library_version: str = field(default_factory=library_version)
    kind: str = ""

    def __post_init__(self):
        object.__setattr__(self, "base_models", self.base_models or ({},))
        lists = {"reads": str, "read_widths": int, "writes": str, "write_widths": int, "write_scales": float}
        for name, kind in {**lists, "base_models": dict}.items():
            if not isinstance(getattr(self, name), list | tuple):
                raise ConfigError(f"{name}: expected a list")
            values = (as_type(value, kind, name) for value in getattr(self, name))
            object.__setattr__(self, name, tuple(values))  # JSON has lists
        for name in ("sparsity", "tokens"):
            as_type(getattr(self, name), dict, name)
        as_type(self.skip, bool, "skip")
        for base in self.base_models:
            identity.BaseModel.from_dict(base)
        self.token_config()
        for sites, widths in ((self.reads, self.read_widths), (self.writes, self.write_widths)):
            if not sites or len(sites) != len(widths) or min(widths) < 1:
                raise ConfigError(f"sites {sites} with widths {widths}: each site needs one positive width")
            if len(parse_sites(sites)) != len(sites):
                raise ConfigError(f"sites {sites}: a site stands there twice")
        if {site.model for site in (*self.read_sites, *self.write_sites)} != set(range(len(self.base_models))):
            raise ConfigError(
                f"reads {self.reads} and writes {self.writes}, but {len(self.base_models)} base models are recorded"
            )
        if self.write_scales and (len(self.write_scales) != len(self.writes) or min(self.write_scales) <= 0):
            raise ConfigError(f"write_scales {self.write_scales}: expected a positive one for each of {self.writes}")
        if as_type(self.n_features, int, "n_features") < 1:
            raise ConfigError(f"n_features={self.n_features!r}: expected a whole number of at least 1")
        self.rule.check(self.n_features)
        derived = kind_of(self.reads, self.writes)
        if self.kind not in ("", derived):
            raise ConfigError(f"kind={self.kind!r}, but reading {self.reads} and writing {self.writes} is {derived!r}")
        if self.skip and derived != "transcoder":
            raise ConfigError(
                f"skip: a skip connection of a {derived} would copy what it reads; only transcoders have one"
            )
        object.__setattr__(self, "kind", derived)

    @classmethod
    def from_dict(cls, data: dict) -> "DictionaryConfig":
        """From a config.json; raises `ArtifactError` for what is not ours or too new."""
        return config_from(cls, data, CONFIG, FORMAT_VERSION)

    @property
    def rule(self) -> Sparsity:
        return sparsity.from_dict(self.sparsity)

    def token_config(self) -> TokenConfig:
        """How texts become rows, as recorded."""
        return TokenConfig.recorded(self.tokens)

    @property
    def read_sites(self) -> tuple[Site, ...]:
        return parse_sites(self.reads)

    @property
    def write_sites(self) -> tuple[Site, ...]:
        return parse_sites(self.writes)

    @property
    def first_model(self) -> int:
        """The first of the models that it reads, whose tokens its rows are shown by."""
        return min(site.model for site in self.read_sites)

    @property
    def write_columns(self) -> dict[Site, slice]:
        """The columns of y that each written site takes."""
        return columns(self.write_sites, self.write_widths)

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

    code = sparsity(x W_enc + b_enc), y = code W_dec + b_dec (+ x W_skip). Arrays: `W_enc` (d_in, F), `b_enc` (F,),
    `W_dec` (F, d_out), `b_dec` (d_out,), with a skip connection `W_skip` (d_in, d_out), and what the sparsity learnt.
    Column f of W_enc detects feature f, row f of W_dec is what it writes.
    """

    card_template: ClassVar[str] = "dictionary.md"
    pictures: ClassVar[tuple[str, ...]] = dictionary_card.PICTURES
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
        for name in set(arrays) - {"W_enc", "b_enc", "W_dec", "b_dec"}:
            self[name] = arrays[name]

    @staticmethod
    def array_shapes(config: DictionaryConfig) -> dict[str, tuple[int, ...]]:
        """The shape that each array must have."""
        d_in, d_out, n = config.d_in, config.d_out, config.n_features
        skip = {"W_skip": (d_in, d_out)} if config.skip else {}
        shapes = {"W_enc": (d_in, n), "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,)}
        return {**shapes, **skip, **config.rule.array_shapes(n)}

    @cached_property
    def rule(self) -> Sparsity:
        """The sparsity."""
        return self.config.rule

    @property
    def n_features(self) -> int:
        return self.config.n_features

    @property
    def base_model(self) -> BaseModel:
        """The language model it was made for, as recorded; the first where there are several."""
        return self.base_models[0]

    @property
    def base_models(self) -> tuple[BaseModel, ...]:
        """The language models that its sites belong to, as recorded."""
        return tuple(BaseModel.from_dict(base) for base in self.config.base_models)

    @property
    def label(self) -> str:
        """Where it reads and writes, and of which models: `"layers.10.mlp of org/name@1a2b3c4d"`."""
        c = self.config
        sites = " + ".join(c.reads) + ("" if c.reads == c.writes else f" -> {' + '.join(c.writes)}")
        return f"{sites} of {' and '.join(base.label for base in self.base_models)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label}, F={self.n_features}, {self.rule})"

    def _learned(self) -> dict[str, mx.array]:
        return {name: self[name] for name in self.rule.array_shapes(self.n_features)}

    def pre_code(self, x: mx.array) -> mx.array:
        """(..., d_in) raw activations -> (..., F), what the sparsity chooses from."""
        return self._checked(x) @ self.W_enc + self.b_enc

    def _checked(self, x: mx.array) -> mx.array:
        x = x if isinstance(x, mx.array) else mx.array(x)
        if x.shape[-1:] != (self.config.d_in,):
            raise DataError(
                f"activations have shape {x.shape}; this {self.config.kind} reads {self.config.d_in} columns "
                f"({', '.join(self.config.reads)})"
            )
        return x.astype(self.W_enc.dtype)

    def encode(self, x: mx.array) -> mx.array:
        """(..., d_in) raw activations -> (..., F) code, with gradients; `encode_sparse` is faster."""
        return self.rule(self.pre_code(x), self._learned())

    def encode_sparse(self, x: mx.array) -> SparseCode:
        """(..., d_in) raw activations -> indices and values (..., k) of the active features, largest first.

        No gradient goes through it on a CPU; through `encode` and `dictionary(x)` it does.
        """
        if not backend.is_cpu():
            return self.rule.sparse(self.pre_code(x), self._learned())
        x = self._checked(x)
        rows = sparse.as_numpy(x).reshape(-1, self.config.d_in)
        found = [code.places for _, code in self._encode_slices(rows)]
        shape, width = (*x.shape[:-1], self.n_features), self.rule.width(self.n_features)
        return SparseCode.of(Places.joined(found, self.n_features), shape, width, self.W_enc.dtype)

    def encode_slices(self, rows: np.ndarray) -> Iterator[tuple[slice, SparseCode]]:
        """(n, d_in) -> slices of the rows with their codes, each small enough that its pre-code stays under 256 MB."""
        if backend.is_cpu():
            yield from self._encode_slices(rows)
            return
        for part in threads.spans(len(rows), _SLICE_VALUES // self.n_features):
            yield part, self.encode_sparse(mx.array(rows[part]))

    def _encode_slices(self, rows: np.ndarray) -> Iterator[tuple[slice, SparseCode]]:
        """`encode_slices` by NumPy, on all cores of a CPU."""
        W_enc, b_enc = sparse.as_numpy(self.W_enc), sparse.as_numpy(self.b_enc)
        learned = {name: sparse.as_numpy(array) for name, array in self._learned().items()}
        scratch = Scratch()
        for part in threads.spans(len(rows), _SLICE_VALUES // self.n_features):
            with threads.alone():
                places = self.rule.places(product(rows[part], W_enc, scratch), b_enc, learned)
            scratch.free()
            yield part, SparseCode.of(places, (places.n, self.n_features))

    def decode(self, code: mx.array | SparseCode, x: mx.array | None = None) -> mx.array:
        """(..., F) code, dense or sparse -> (..., d_out) raw activations; a skip connection needs what was read, x."""
        if code.shape[-1] != self.n_features:
            raise DataError(f"a code of shape {code.shape}; this {self.config.kind} has {self.n_features} features")
        y = sparse.decode(code, self.W_dec) if isinstance(code, SparseCode) else code @ self.W_dec
        if not self.config.skip:
            return y + self.b_dec
        if x is None:
            raise DataError("this transcoder has a skip connection: give decode(code, x) the activations x it read too")
        return y + self._checked(x) @ self["W_skip"] + self.b_dec

    def __call__(self, x: mx.array) -> mx.array:
        """(..., d_in) -> its reconstruction or prediction (..., d_out), with gradients."""
        return self.decode(self.rule(self.pre_code(x), self._learned()), x)

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

    def compared(self, found: BaseModel | Sequence[BaseModel], widths: dict[Site, int] | None = None) -> list[Compared]:
        """Every field of the recorded base models beside those at hand; `widths` are of their sites."""
        models = (found,) if isinstance(found, BaseModel) else tuple(found)
        if len(models) != len(self.base_models):
            here = ", ".join(model.label for model in models)
            return [Compared("number of base models", len(self.base_models), f"{len(models)} ({here})", "error")]
        c = self.config
        out = []
        for verb, sites, own in (("reads", c.read_sites, c.read_widths), ("writes", c.write_sites, c.write_widths)):
            if (verb == "writes" and c.reads == c.writes) or widths is None:
                continue
            for site, width in zip(sites, own, strict=True):
                there = f"{widths[site]} columns" if site in widths else "no such site"
                verdict = "same" if widths.get(site) == width else "error"
                out.append(Compared(f"{site}, which it {verb}", f"{width} columns", there, verdict))
        for number, (recorded, model) in enumerate(zip(self.base_models, models, strict=True)):
            which = f"model {number}: " if len(models) > 1 else ""
            out += [replace(one, field=which + one.field) for one in identity.compared(recorded, model)]
        return out

    def compare(
        self, found: BaseModel | Sequence[BaseModel], widths: dict[Site, int] | None = None
    ) -> list[Difference]:
        """Differences between the recorded base models and those at hand, worst first; `widths` are of their sites."""
        return identity.differences(self.compared(found, widths))

    def check(
        self,
        found: BaseModel | Sequence[BaseModel],
        widths: dict[Site, int] | None = None,
        check: Check = "warn",
    ) -> list[Difference]:
        """Compare with the models at hand, then raise, warn or stay silent (see `identity.judge`)."""
        what = f"{self.source or repr(self)}"
        return identity.judge(self.compare(found, widths), check, what)

    def card_metadata(self) -> dict:
        c, bases = self.config, [base.repo_id for base in self.base_models if base.repo_id]
        tags = self.class_tags()
        return dictionary_card.metadata(c.kind, c.sparsity["name"], tags, bases, self.statistics, self.metrics)

    def card_results(self) -> list[EvalResult]:
        return dictionary_card.results(self.metrics)

    def card_pictures(self) -> dict[str, Picture]:
        c = self.config
        return dictionary_card.pictures(c.writes, c.n_features, self.statistics, self.metrics)

    def _inherited(self, api: HfApi) -> dict | None:
        """The licence that its language models share; none for what others made, who may have given it another."""
        if "imported" in self.statistics:
            return None
        return licences.shared(api, [base.repo_id for base in self.base_models])

    def card_values(self) -> dict:
        c = self.config
        more = dictionary_card.values(c.kind, c.sparsity["name"], c.skip, self.statistics)
        return {"bases": self.base_models, "rule": self.rule, **more}
