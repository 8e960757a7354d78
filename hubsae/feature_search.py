"""Which features set some texts apart from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hubsae.activations import Models, as_models, read_chunks
from hubsae.codes import Codes, encode_chunks, pool
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.features import Features
from hubsae.tables import Listed, Table
from hubsae.text_analysis import check_top_k, encode_texts


@dataclass(frozen=True)
class FoundFeature:
    """A feature that fires on the examples rather than on the background.

    auc: the chance that it is stronger on an example than on a background text (0.5 says nothing). on_examples: share
    of them on which it fires; on_background: the same there. score: mean of auc and of the balanced accuracy of firing
    at all, since a weak feature that fires nowhere else says more than a strong one that always does. value: mean of
    its largest values on the examples.
    """

    feature: int
    score: float
    auc: float
    on_examples: float
    on_background: float
    value: float
    token: str
    name: str


@dataclass(frozen=True, repr=False)
class FoundFeatures(Listed):
    """Features that set examples apart, best first."""

    listed: ClassVar[str] = "features"

    title: str
    features: tuple[FoundFeature, ...]

    def tables(self) -> list[Table]:
        head = ("feature", "score", "AUC", "examples", "background", "value", "token", "label, or tokens it fires on")
        rows = [
            (f.feature, f.score, f.auc, _percent(f.on_examples), _percent(f.on_background), f.value, f.token, f.name)
            for f in self.features
        ]
        return [Table(self.title, head, rows)]


def find_by_examples(
    dictionary: Dictionary,
    models: Models,
    texts: Sequence[str],
    against: Any = None,
    top_k: int = 10,
    known: Features | None = None,
) -> FoundFeatures:
    """The features that fire on all of some texts rather than on other text, by the area under the ROC curve.

    `against`: background texts, of which pieces as long as the examples are taken. Without them the background is what
    `known` says of each feature's values, taken as independent from token to token, for texts as long as the examples.
    """
    check_top_k(top_k)
    codes = encode_texts(dictionary, models, texts)
    columns, lengths, best = _by_text(codes)
    candidates = np.flatnonzero((columns > 0).sum(axis=0) > 0)
    values = columns[:, candidates]
    if against is not None:
        background = _background(dictionary, models, against)
        auc, on_background, peak = _auc_on_text(values, lengths, background, candidates)
        contrast = values.mean(axis=0) / np.maximum(peak, values.max(axis=0))
        n_tokens = background.matrix.shape[0]
        title = f"features of {len(values)} examples against pieces as long of {n_tokens:,} tokens"
    elif known is not None:
        auc, on_background = _auc_by_chance(values, lengths, known, candidates)
        contrast = values.mean(axis=0) / np.maximum(known.maximum[candidates], values.max(axis=0))
        title = f"features of {len(values)} examples against {known.n_tokens:,} tokens ({known.data})"
    else:
        raise DataError(
            "nothing is known of how often features fire elsewhere: give against=texts of all sorts, "
            "or call feature_statistics(texts) first"
        )
    on_examples = (values > 0).mean(axis=0)
    score = (auc + (1 + on_examples - on_background) / 2) / 2
    order = np.lexsort((-contrast, -score.round(2)))[:top_k]
    found = tuple(
        FoundFeature(
            feature=int(candidates[i]),
            score=float(score[i]),
            auc=float(auc[i]),
            on_examples=float(on_examples[i]),
            on_background=float(on_background[i]),
            value=float(values[:, i].mean()),
            token=best(int(candidates[i]), as_models(models), dictionary),
            name=known.name(int(candidates[i])) if known else "",
        )
        for i in order
    )
    return FoundFeatures(title, found)


def _by_text(codes: Codes) -> tuple[np.ndarray, np.ndarray, Any]:
    """(texts, F) largest values, (texts,) rows of each, and what tells the token on which a feature is strongest."""
    document = np.array([chunk.document for chunk in codes.chunks])[codes.chunk]
    n = int(document.max()) + 1
    largest = np.zeros((n, codes.matrix.shape[1]), np.float32)
    for i in range(n):
        largest[i] = codes.matrix[np.flatnonzero(document == i)].max(axis=0).toarray()[0]

    def token(feature: int, models: Any, dictionary: Dictionary) -> str:
        row = int(codes.matrix[:, [feature]].toarray()[:, 0].argmax())
        number = dictionary.config.first_model
        chunk = codes.chunks[codes.chunk[row]].of(number)
        return models[number].token_to_str(int(chunk.ids[codes.position[row]]))

    return largest, np.bincount(document, minlength=n), token


def _background(dictionary: Dictionary, models: Models, against: Any) -> Codes:
    """The codes of background texts, in the order of the texts."""
    models = as_models(models)
    if isinstance(against, str):
        raise DataError("against is one text: expected a list of texts, or a `datasets` dataset")
    chunks = list(read_chunks(models, against, dictionary.config.token_config()))
    codes = encode_chunks(dictionary, models, chunks)
    order = np.lexsort((codes.position, codes.chunk))
    return Codes(codes.matrix[order], codes.chunk[order], codes.position[order], codes.chunks)


def _auc_on_text(
    values: np.ndarray, lengths: np.ndarray, background: Codes, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m,) AUC of examples (e, m) against pieces of text of their own lengths; share of pieces on which each feature
    fires; and its largest value there. Lengths are rounded to at most 8 different ones."""
    some = np.unique(np.quantile(lengths, np.linspace(0, 1, 8), method="nearest"))
    nearest = some[np.abs(lengths[:, None] - some).argmin(axis=1)]
    n_rows = background.matrix.shape[0]
    if n_rows < 2 * some.max():
        raise DataError(
            f"against has only {n_rows:,} tokens, and an example {some.max():,}; give more background texts"
        )
    auc, fires = np.zeros(len(candidates)), np.zeros(len(candidates))
    for length in some:
        mine = nearest == length
        # pieces run on over the ends of texts, and what is left at the end is dropped
        unit = np.where(np.arange(n_rows) < n_rows // length * length, np.arange(n_rows) // length, -1)
        pieces: Any = pool(background, unit, n_rows // length).tocsc()[:, candidates]
        auc += _auc(values[mine], pieces) * mine.sum() / len(values)
        fires += np.diff(pieces.indptr) / pieces.shape[0] * mine.sum() / len(values)
    return auc, fires, background.matrix.max(axis=0).toarray()[0][candidates]


def _auc(values: np.ndarray, other: Any) -> np.ndarray:
    """(e, m), (b, m) CSC -> (m,) share of pairs in which the first is larger, ties counted half."""
    found = np.empty(values.shape[1])
    for j in range(values.shape[1]):
        ranked = np.sort(other.data[other.indptr[j] : other.indptr[j + 1]])
        zeros = other.shape[0] - len(ranked)
        some = values[:, j] > 0
        below = np.searchsorted(ranked, values[:, j], "left") + np.where(some, zeros, 0)
        up_to = np.searchsorted(ranked, values[:, j], "right") + zeros
        found[j] = (below + up_to).mean() / (2 * other.shape[0])
    return found


def _auc_by_chance(
    values: np.ndarray, lengths: np.ndarray, known: Features, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) AUC against texts of as many tokens whose values are drawn from each feature's histogram; and their share
    of texts on which it fires."""
    auc, fires = np.empty(len(candidates)), np.empty(len(candidates))
    for j, feature in enumerate(candidates):
        edges, counts = known.histogram(int(feature))
        reached = np.append(np.cumsum(counts[::-1])[::-1], 0)  # tokens on which it reaches each edge
        above = reached / known.n_tokens
        chance = np.interp(values[:, j], edges, above) if edges[-1] > 0 else np.zeros(len(values))
        nothing = (1 - above[0]) ** lengths
        auc[j] = np.where(values[:, j] > 0, (1 - chance) ** lengths, nothing / 2).mean()
        fires[j] = (1 - nothing).mean()
    return auc, fires


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"
