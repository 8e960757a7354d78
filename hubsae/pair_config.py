"""The settings of a whole comparison of two models, as they stand in one TOML file, and the documents it reads."""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from hubsae import aligning
from hubsae.api import InterpretableModel
from hubsae.demo import atlas
from hubsae.demo.run import MODELS, N_DOCUMENTS, load_model
from hubsae.errors import ConfigError, SiteError
from hubsae.recipe import SAEConfig
from hubsae.settings import check_types
from hubsae.sites import Site
from hubsae.sparsity import SPARSITIES
from hubsae.tokens import iterate_texts, read_texts

Part = Literal["train", "align"]
Side = Literal["a", "b", "b-untrained"]
OBJECTIVES = {"l1": "relu", "k_sparse": "topk"}
ATLAS = "atlas"
_ATLAS_SEED = 7
_LAYERS = ("layers", "layers_a", "layers_b")
_OWN_SETTINGS = ("sparsity", "expansion_factor", "k", "seed", "method", "threshold", "matching", "context_size")
_OWN_SETTINGS += ("max_anchors", "text_column")


@dataclass(frozen=True)
class PairRun:
    """What is compared and how: the content of a TOML file.

    run_name, out: results lie in out/run_name. model_a, model_b: repositories (at revision_a, revision_b), folders, or
    "atlas-llama", "atlas-neox", the embedded ones. dataset: a .txt, .jsonl, .csv or .parquet file, a dataset repository
    (with `subset`, `split`, `text_column`), or "atlas", generated documents. max_documents: of the dataset at most so
    many (0: all; the atlas has 8,000). per_doc_words: of a document at most so many words (0: all). align_share: of the
    documents, those for alignments, which the SAEs do not see. max_ctx: tokens a context.

    layers (of both models), or layers_a and layers_b. hook_point: "residual", "mlp", "attn" or another component.
    objective: "k_sparse" (k features a token), "l1", or a sparsity of `SAEConfig`. k: None for its default.
    training_tokens: None for all; streamed datasets need it. sae: other settings of `SAEConfig` by name.

    method, threshold, mutual (mutual nearest neighbours, else exact one-to-one): how features are matched. max_pairs:
    most places at which activations are compared. alignment: other settings of `AlignConfig` and `AnchorConfig`.
    causal: steer along the features of the best layer pair. alpha: of a single intervention, the length of what is
    added, in mean lengths of an activation; dose: nats, where there is no alpha, and of `causal`. untrained: compare
    with model_b of random weights too, as the null.
    """

    run_name: str
    model_a: str
    model_b: str
    dataset: str
    out: str = "runs"
    revision_a: str | None = None
    revision_b: str | None = None
    subset: str | None = None
    split: str = "train"
    text_column: str = "text"
    max_documents: int = 0
    per_doc_words: int = 0
    align_share: float = 0.3
    max_ctx: int = 256
    layers: tuple[int, ...] | None = None
    layers_a: tuple[int, ...] | None = None
    layers_b: tuple[int, ...] | None = None
    hook_point: str = "residual"
    objective: str = "k_sparse"
    expansion_factor: int = 8
    k: int | None = None
    training_tokens: int | None = None
    sae: dict = field(default_factory=dict)
    method: str = "procrustes"
    threshold: float | None = None
    mutual: bool = True
    max_pairs: int | None = None
    alignment: dict = field(default_factory=dict)
    causal: bool = False
    alpha: float | None = None
    dose: float = 0.3
    seed: int = 0
    untrained: bool = False

    def __post_init__(self):
        for name in _LAYERS:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, name, (value,))
        check_types(self)
        if {name for name in _LAYERS if getattr(self, name)} not in ({"layers"}, {"layers_a", "layers_b"}):
            found = f"layers={self.layers}, layers_a={self.layers_a}, layers_b={self.layers_b}"
            raise ConfigError(f"{found}: expected either layers, such as [5, 6, 7], or both layers_a and layers_b")
        for name, (fine, expected) in self._rules().items():
            if not fine:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {expected}")
        try:
            Site(0, self.hook_point)
        except SiteError as error:
            raise ConfigError(f"hook_point={self.hook_point!r}: {error}") from error
        for name in ("sae", "alignment"):
            if own := sorted(set(getattr(self, name)) & set(_OWN_SETTINGS)):
                raise ConfigError(f"{name}.{own[0]}: it follows from the settings above the tables; leave it out here")
        _ = self.recipe
        aligning.with_settings(None, self.align_settings)

    def _rules(self) -> dict[str, tuple[bool, str]]:
        layers = {n: getattr(self, n) for n in _LAYERS if getattr(self, n) is not None}
        lists = {n: (self._are_layers(v), "a list of different layers, such as [5, 6, 7]") for n, v in layers.items()}
        known = (*OBJECTIVES, *SPARSITIES)
        return {
            "run_name": (
                bool(re.fullmatch(r"\w[\w.-]*", self.run_name)),
                "the name of a folder: letters, digits, . _ -",
            ),
            **{n: (bool(getattr(self, n)), "a name or a path") for n in ("model_a", "model_b", "dataset", "out")},
            **lists,
            "objective": (self.objective in known, f"one of {', '.join(known)}{_nearest(self.objective, known)}"),
            "max_ctx": (self.max_ctx >= 8, "at least 8 tokens"),
            **{n: (getattr(self, n) >= 0, "0 for all, or a number") for n in ("max_documents", "per_doc_words")},
            "align_share": (0 < self.align_share < 1, "a share between 0 and 1"),
            "training_tokens": (self.training_tokens is None or self.training_tokens >= 1, "at least 1"),
            "max_pairs": (self.max_pairs is None or self.max_pairs >= 100, "at least 100 places"),
            "alpha": (self.alpha != 0, "another length than 0"),
            "dose": (0 < self.dose < 10, "nats between 0 and 10"),
            "seed": (0 <= self.seed < 2**32, "a number from 0 to 4294967295"),
        }

    @staticmethod
    def _are_layers(layers: Sequence[int]) -> bool:
        return bool(layers) and len(set(layers)) == len(layers) and min(layers) >= 0

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The run of a TOML file; paths in it are as seen from where the program was started."""
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file; see scripts/small-pair.toml for what it holds") from error
        except (tomllib.TOMLDecodeError, UnicodeError) as error:
            raise ConfigError(f"{path}: not TOML ({error})") from error
        known = [item.name for item in fields(cls)]
        for name in found:
            if name not in known:
                raise ConfigError(f"{path}: {name} = {found[name]!r}: no such setting{_nearest(name, known)}")
        for name in ("run_name", "model_a", "model_b", "dataset"):
            if name not in found:
                raise ConfigError(f'{path}: {name} is missing; expected a line {name} = "..."')
        try:
            return cls(**found)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @property
    def recipe(self) -> SAEConfig:
        """How the SAEs are trained."""
        own = {
            "expansion_factor": self.expansion_factor,
            "seed": self.seed,
            **({"k": self.k} if self.k is not None else {}),
        }
        return SAEConfig(sparsity=OBJECTIVES.get(self.objective, self.objective)).updated(**own, **self.sae)

    @property
    def align_settings(self) -> dict[str, Any]:
        """How features are matched, and at which places: settings of `align` by name."""
        matching = "mutual" if self.mutual else "one_to_one"
        own = {"method": self.method, "threshold": self.threshold, "matching": matching, "seed": self.seed}
        return {**own, "context_size": self.max_ctx, "max_anchors": self.max_pairs, **self.alignment}

    @property
    def folder(self) -> Path:
        """Where the results lie."""
        return Path(self.out).expanduser() / self.run_name

    @property
    def sides(self) -> tuple[Side, ...]:
        """What SAEs are trained of: the models, and B with random weights where that is asked for."""
        return ("a", "b", "b-untrained") if self.untrained else ("a", "b")

    def layers_of(self, side: Side) -> tuple[int, ...]:
        """The layers of A or B."""
        return (self.layers_a if side == "a" else self.layers_b) or self.layers or ()

    def site(self, layer: int) -> Site:
        """What is read of a layer."""
        return Site(layer, self.hook_point)

    def sae_folder(self, side: Side, layer: int) -> Path:
        """Where the SAE of a layer lies, such as saes/a.layers.5.residual."""
        return self.folder / "saes" / f"{side}.{self.site(layer)}"

    def alignment_folder(self, layers: tuple[int, int], side: Side = "b") -> Path:
        """Where the alignment of a layer of A with one of B lies, such as alignments/a5-b5."""
        return self.folder / "alignments" / pair_name(layers, side)

    def load(self, side: Side) -> InterpretableModel:
        """The model of a side; "b-untrained" is B with random weights of the run's seed."""
        name, revision = (self.model_a, self.revision_a) if side == "a" else (self.model_b, self.revision_b)
        if name in MODELS and not Path(name).exists():
            if revision is not None:
                raise ConfigError(f"revision_{side[0]}={revision!r}: {name} is embedded and has no revisions")
            model = load_model(name)
        else:
            model = InterpretableModel(name, revision=revision)
        return model.untrained(self.seed) if side == "b-untrained" else model

    @property
    def dataset_name(self) -> str:
        """What cards call the data: a dataset's id, a file's name."""
        if self.is_atlas:
            return "the demo's invented atlas"
        path = Path(self.dataset).expanduser()
        return path.name if path.is_file() else self.dataset

    @property
    def is_atlas(self) -> bool:
        """Whether the documents are generated."""
        return self.dataset == ATLAS and not Path(ATLAS).exists()

    def documents(self, part: Part) -> "Documents":
        """The documents for the SAEs ("train") or for alignments ("align"); no document is in both."""
        if self.is_atlas:
            generated = atlas.generate(self.max_documents or N_DOCUMENTS, seed=_ATLAS_SEED)
            source: Any = [document.text for document in generated]
        else:
            source = read_texts(self.dataset, split=self.split, subset=self.subset)
        return (CountedDocuments if hasattr(source, "__len__") else Documents)(self, source, part)


class Documents:
    """The documents of a run's data set for one part of it, read anew each time.

    Which part a document belongs to follows from a hash of its text, so equal ones never part.
    """

    def __init__(self, run: PairRun, source: Any, part: Part):
        self._run, self._source, self._part = run, source, part

    def __iter__(self) -> Iterator[str]:
        run = self._run
        for text in islice(iterate_texts(self._source, run.text_column), run.max_documents or None):
            place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") / 2**64
            if (place < run.align_share) == (self._part == "align"):
                yield first_words(text, run.per_doc_words) if run.per_doc_words else text


class CountedDocuments(Documents):
    """The same of a data set that ends, so that training can be planned without knowing how many tokens it has."""

    def __len__(self) -> int:
        return sum(1 for _ in self)


def first_words(text: str, n: int) -> str:
    """A text up to the end of its n-th word; what is between words stays as it is."""
    last = next(islice(re.finditer(r"\S+", text), n - 1, None), None)
    return text[: last.end()] if last else text


def pair_name(layers: tuple[int, int], side: Side = "b") -> str:
    """What files of a layer pair are called, such as a5-b5."""
    return f"a{layers[0]}-b{layers[1]}" + side.removeprefix("b")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
