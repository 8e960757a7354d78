"""`Features`: what is known of every feature of a dictionary, as arrays, as tables, and as a file that others read."""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from hubsae import feature_file
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.feature_file import FEATURES, FeatureFile
from hubsae.firing import BINS, Firing
from hubsae.settings import as_type
from hubsae.tables import Marked, Shown, Table, bars

Kind = Literal["top", "quantile", "random"]


@dataclass(frozen=True)
class Example:
    """A piece of text in which a feature fires.

    value: the feature's value at token `at`. values: its value on every one of `tokens`, 0 where it does not fire.
    ids: the token ids. document: the number of the text it comes from, empty ones not counted.
    """

    value: float
    at: int
    document: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def marked(self) -> Marked:
        return Marked(self.tokens, self.values)

    def __str__(self) -> str:
        return str(self.marked)


@dataclass(frozen=True)
class TokenWeight:
    """A token and how far a feature raises (or lowers) its logit."""

    token_id: int
    token: str
    weight: float


@dataclass(frozen=True)
class Neighbour:
    """Another feature, how close it is (-1 to 1), and in how many sampled rows both fired (None: not counted)."""

    feature: int
    score: float
    count: int | None = None


@dataclass(frozen=True)
class Label:
    """What a feature means in words; `score`: balanced accuracy on held-out examples (0.5 is chance), None unscored."""

    text: str
    score: float | None
    n_scored: int
    labeler: str


def check_feature(feature: Any, n_features: int) -> int:
    """The id of a feature as an int; raises `DataError` where there is none of this id."""
    if isinstance(feature, bool) or not isinstance(feature, int | np.integer) or not 0 <= feature < n_features:
        raise DataError(f"feature {str(feature)[:80]!s}: this dictionary has features 0 to {n_features - 1}")
    return int(feature)


def check_features(features: Any, n_features: int) -> list[int]:
    """The ids of several features as a list; raises `DataError` for what is no list, and ids that do not exist."""
    if isinstance(features, str | int | np.integer) or not isinstance(features, Iterable):
        raise DataError(f"features {str(features)[:80]}: expected a list of numbers")
    return [check_feature(feature, n_features) for feature in features]


@dataclass(frozen=True, repr=False)
class Features(Shown):
    """Numbers, examples and labels of all F features, measured on `n_tokens` tokens of some texts.

    Arrays have one entry a feature: `n_active`, `density`, `mean` (the typical activation: mean value where it fires),
    `std`, `maximum`, `dead`, `site_norms` (F, sites). Examples and the rest are there after a pass over texts
    (`feature_statistics`); training alone gives the numbers. `columns` are as in features.parquet.
    """

    columns: Mapping[str, Any]
    info: dict

    @classmethod
    def of_firing(cls, firing: Firing, *, n_documents: int, data: str, **columns: Any) -> Self:
        """From what was summed over texts called `data`; further columns are taken as they are."""
        own = {
            "n_active": firing.n_active,
            "mean": firing.mean,
            "std": firing.std,
            "maximum": firing.maximum,
            "histogram": firing.histogram,
            "histogram_top": firing.top,
        }
        return cls({**own, **columns}, {"n_tokens": firing.n_tokens, "n_documents": n_documents, "data": data})

    @classmethod
    def load(cls, path: str | Path, n_features: int | None = None) -> Self:
        """From features.parquet or the folder it is in; columns are read when they are used."""
        file = FeatureFile(_file(path))
        if n_features is not None and file.n_features != n_features:
            raise ArtifactError(f"{file.path} is of {file.n_features} features, the dictionary has {n_features}")
        return cls(file, file.info)

    def save(self, path: str | Path) -> None:
        """Write features.parquet into the folder `path`, or the file `path`, if its name ends so."""
        try:
            _file(path).parent.mkdir(parents=True, exist_ok=True)
            feature_file.write(_file(path), self.columns, self.info)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written ({error})") from error

    def numbers_only(self) -> Self:
        """The same without examples and what else shows pieces of the texts; labels are kept."""
        kept = {name: column for name, column in self.columns.items() if not name.startswith(("top_", "random_"))}
        used = [self.columns[f"{kind}_ids"] for kind in ("promoted", "suppressed") if f"{kind}_ids" in self.columns]
        ids = set(np.unique(np.concatenate(used)).tolist()) if used else set()
        own = {i: text for i, text in self.vocabulary.items() if i in ids}
        return replace(self, columns=kept, info={**self.info, "vocabulary": {str(i): t for i, t in own.items()}})

    @property
    def n_features(self) -> int:
        return len(self.columns["n_active"])

    def __len__(self) -> int:
        return self.n_features

    @property
    def n_tokens(self) -> int:
        """Tokens it was measured on."""
        return self.info["n_tokens"]

    @property
    def data(self) -> str:
        """The texts it was measured on, as they were called."""
        return str(self.info.get("data", "unnamed texts"))

    @property
    def n_active(self) -> np.ndarray:
        return self.columns["n_active"]

    @property
    def density(self) -> np.ndarray:
        """(F,) share of tokens on which each fires."""
        return self.n_active / max(self.n_tokens, 1)

    @property
    def mean(self) -> np.ndarray:
        return self.columns["mean"]

    @property
    def std(self) -> np.ndarray:
        return self.columns["std"]

    @property
    def maximum(self) -> np.ndarray:
        return self.columns["maximum"]

    @property
    def dead(self) -> np.ndarray:
        """(F,) true where it never fired."""
        return self.n_active == 0

    @property
    def site_norms(self) -> np.ndarray | None:
        """(F, sites) norms of what each writes at every site."""
        return self.columns.get("site_norms")

    @property
    def has_examples(self) -> bool:
        return "top_value" in self.columns

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Texts of the tokens that occur in examples."""
        return {int(i): text for i, text in self.info.get("vocabulary", {}).items()}

    @cached_property
    def promoted_vocabulary(self) -> dict[int, str]:
        """Texts of the promoted and suppressed tokens, where they are another model's; else the same `vocabulary`."""
        own = self.info.get("promoted_vocabulary")
        return self.vocabulary if own is None else {int(i): text for i, text in own.items()}

    def check(self, feature: int, *, alive: bool = False) -> int:
        """The id of a feature; raises `DataError` where there is none, or (`alive`) where it never fired."""
        feature = check_feature(feature, self.n_features)
        if alive and self.n_active[feature] == 0:
            lively = ", ".join(map(str, np.argsort(-self.n_active)[:5]))
            raise DataError(
                f"feature {feature} is dead: it fired on none of {self.n_tokens:,} tokens ({self.data}). "
                f"{int((~self.dead).sum())} of {self.n_features} features did, most often {lively}"
            )
        return feature

    def label(self, feature: int) -> Label | None:
        """The label of a feature, if it has one."""
        if "label" not in self.columns or not (text := self.columns["label"][self.check(feature)]):
            return None
        score = float(self.columns["label_score"][feature])
        n = int(self.columns["label_examples"][feature])
        return Label(text, None if np.isnan(score) else score, n, self.columns["labeler"][feature] or "")

    @property
    def labels(self) -> dict[int, Label]:
        """The features that have labels."""
        found = {i: self.label(i) for i, text in enumerate(self.columns.get("label", ())) if text}
        return {i: label for i, label in found.items() if label}

    def labelled(self, labels: Mapping[int, Label]) -> Self:
        """The same with these labels added or replaced."""
        n = self.n_features
        texts, labelers = (list(self.columns.get(name, [None] * n)) for name in ("label", "labeler"))
        scores = np.array(self.columns.get("label_score", np.full(n, np.nan)))
        counts = np.array(self.columns.get("label_examples", np.zeros(n, np.int64)))
        for feature, label in labels.items():
            self.check(feature)
            if isinstance(label, Label) and len(label.text) > feature_file.MAX_TEXT:
                raise DataError(f"label of feature {feature}: over {feature_file.MAX_TEXT:,} letters")
            if not isinstance(label, Label):
                raise DataError(f"label of feature {feature} is a {type(label).__name__}: expected a Label")
            texts[feature], labelers[feature] = label.text, label.labeler
            scores[feature] = np.nan if label.score is None else label.score
            counts[feature] = label.n_scored
        new = {"label": texts, "label_score": scores, "label_examples": counts, "labeler": labelers}
        given = self.columns
        base = given.maps[-1] if isinstance(given, ChainMap) else given
        return replace(self, columns=ChainMap(new, base))  # type: ignore[arg-type]  # columns of a file stay unread

    def histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Edges (BINS + 1,) and counts (BINS,) of the values with which a feature fires."""
        feature = self.check(feature)
        return np.linspace(0, self.columns["histogram_top"][feature], BINS + 1), self.columns["histogram"][feature]

    def examples(self, feature: int, kind: Kind = "top", n: int | None = None) -> list[Example]:
        """Examples of a feature, at most one of a chunk of text.

        `"top"`: with the largest values, largest first. `"random"`: of chance. `"quantile"`: of the random ones those
        at equal steps of their values, so that weak firing is seen too, strongest first.
        """
        feature = self.check(feature)
        if kind not in ("top", "quantile", "random"):
            raise ConfigError(f"kind={kind!r}: expected 'top', 'quantile' or 'random'")
        if n is not None and as_type(n, int, "n") < 0:
            raise ConfigError(f"n={n}: expected 0 or more")
        if not self.has_examples:
            raise DataError("no examples are known yet; call feature_statistics(texts) first")
        prefix = "top" if kind == "top" else "random"
        return [self._example(prefix, feature, place) for place in self.places(feature, kind, n)]

    def places(self, feature: int, kind: Kind, n: int | None = None) -> list[int]:
        """Which of the `top_` or `random_` columns' examples `examples` gives, in its order."""
        values = self.columns["top_value" if kind == "top" else "random_value"][feature]
        found = np.flatnonzero(values > 0)
        n = len(found) if n is None else min(n, len(found))
        if kind == "quantile" and n:
            ranked = found[np.argsort(-values[found], kind="stable")]
            found = ranked[((np.arange(n) + 0.5) * len(ranked) / n).astype(int)]
        return found[:n].tolist()

    def _example(self, prefix: str, feature: int, place: int) -> Example:
        column = {name: self.columns[f"{prefix}_{name}"][feature] for name in ("value", "document", "at")}
        width = int(self.info["window"])
        part = slice(place * width, (place + 1) * width)
        ids = self.columns[f"{prefix}_tokens"][feature][part]
        values = self.columns[f"{prefix}_values"][feature][part]
        there = ids >= 0
        if column["at"][place] >= there.sum():
            raise ArtifactError(f"example {place} of feature {feature} is damaged: its token lies outside of its text")
        return Example(
            float(column["value"][place]),
            int(column["at"][place]),
            int(column["document"][place]),
            tuple(ids[there].tolist()),
            tuple(self.vocabulary.get(int(i), "�") for i in ids[there]),
            tuple(values[there].tolist()),
        )

    def token_weights(self, feature: int, kind: Literal["promoted", "suppressed"]) -> list[TokenWeight]:
        """The tokens whose logits a feature raises or lowers most; empty where it writes nowhere in the residual."""
        feature = self.check(feature)
        if kind not in ("promoted", "suppressed"):
            raise ConfigError(f"kind={kind!r}: expected 'promoted' or 'suppressed'")
        if f"{kind}_ids" not in self.columns:
            return []
        ids, weights = (self.columns[f"{kind}_{name}"][feature] for name in ("ids", "weights"))
        pairs = zip(ids, weights, strict=True)
        return [TokenWeight(int(i), self.promoted_vocabulary.get(int(i), "�"), float(w)) for i, w in pairs if i >= 0]

    def cofiring(self, feature: int) -> list[Neighbour]:
        """The features that most often fire on the same tokens, by phi (the correlation of firing or not)."""
        feature = self.check(feature)
        if "cofiring_ids" not in self.columns:
            return []
        names = ("cofiring_ids", "cofiring_phi", "cofiring_counts")
        triples = zip(*(self.columns[name][feature] for name in names), strict=True)
        return [Neighbour(int(i), float(phi), int(count)) for i, phi, count in triples if i >= 0]

    def similar(self, feature: int) -> list[Neighbour]:
        """The features whose decoder rows point most nearly the same way, by cosine."""
        feature = self.check(feature)
        if "similar_ids" not in self.columns:
            return []
        pairs = zip(*(self.columns[name][feature] for name in ("similar_ids", "similar_cosine")), strict=True)
        return [Neighbour(int(i), float(cosine)) for i, cosine in pairs if i >= 0]

    @cached_property
    def _top_tokens(self) -> list[list[str]]:
        """For each feature the tokens at which its five largest values are, each once, without spaces around them."""
        at, value = self.columns["top_at"], self.columns["top_value"]
        n = min(at.shape[1], 5)
        windows = self.columns["top_tokens"].reshape(len(at), at.shape[1], -1)[:, :n]
        if at.min(initial=0) < 0 or at.max(initial=0) >= windows.shape[2]:
            raise ArtifactError("examples of features are damaged: tokens lie outside of their texts")
        ids = np.take_along_axis(windows, at[:, :n, None].astype(np.int64), axis=2)[..., 0]
        ids[value[:, :n] <= 0] = -1
        if (ids[value[:, :n] > 0] < 0).any():
            raise ArtifactError("examples of features are damaged: tokens lie outside of their texts")
        texts = {i: self.vocabulary.get(i, "�").strip() for i in np.unique(ids).tolist()} | {-1: ""}
        return [[text for text in dict.fromkeys(map(texts.__getitem__, row)) if text] for row in ids.tolist()]

    def top_tokens(self, feature: int) -> list[str]:
        """The tokens it fires on most strongly, each once, spaces around them left out; empty without examples."""
        feature = self.check(feature)
        return self._top_tokens[feature] if self.has_examples and self.n_active[feature] else []

    @cached_property
    def _names(self) -> list[str]:
        names = [" | ".join(self.top_tokens(i)) for i in range(len(self))]
        for i, label in self.labels.items():
            names[i] = label.text
        return names

    def name(self, feature: int) -> str:
        """A few words for a table: its label, else the tokens it fires on most."""
        return self._names[self.check(feature)]

    def tables(self) -> list[Table]:
        alive = np.flatnonzero(~self.dead)
        order = alive[np.argsort(-self.density[alive], kind="stable")]
        shown = [*order[:5], *order[max(5, len(order) - 5) :]]
        density = np.log10(self.density[alive]) if len(alive) else np.zeros(0)
        counts, edges = np.histogram(density, np.arange(-6, 0.5, 0.5)) if len(alive) else (np.zeros(1), np.zeros(2))
        title = (
            f"{self.n_features:,} features on {self.n_tokens:,} tokens ({self.data}): "
            f"{int(self.dead.sum()):,} dead, {self.density.sum():.1f} active a token, {len(self.labels):,} labelled"
        )
        note = f"density from 1e{edges[0]:.0f} to 1e{edges[-1]:.0f}: {bars(counts)}"
        rows = [
            (int(i), float(self.density[i]), float(self.mean[i]), float(self.maximum[i]), self.name(int(i)))
            for i in shown
        ]
        head = ("feature", "density", "mean", "max", "label, or tokens it fires on")
        return [Table(title, head, rows, note)]


def _file(path: str | Path) -> Path:
    """The file itself, or features.parquet in the folder that is named."""
    path = Path(path).expanduser()
    return path if path.suffix == ".parquet" else path / FEATURES
