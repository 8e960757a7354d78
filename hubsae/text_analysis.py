"""Questions about a text: which features fire where, what a text is as one code, which features tell texts apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import scipy.sparse

from hubsae import tokens
from hubsae.activations import Models, as_models, read_chunks
from hubsae.codes import Codes, encode_chunks, pool
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.features import Features
from hubsae.sparse import SparseCode
from hubsae.tables import Shown, Table

Pool = Literal["max", "mean", "sum", "last"]
_POOLS = ("max", "mean", "sum", "last")


@dataclass(frozen=True)
class ActiveFeature:
    """A feature that fires: `value`, and `relative` to its typical activation (None where that is not known).

    token, position: where (of several places the strongest); n_tokens: on how many; name: its label or tokens.
    """

    feature: int
    value: float
    relative: float | None
    token: str = ""
    position: int = -1
    n_tokens: int = 1
    name: str = ""


@dataclass(frozen=True, repr=False)
class ActiveFeatures(Shown):
    """Features that fire somewhere, strongest first."""

    title: str
    features: tuple[ActiveFeature, ...]

    def __iter__(self):
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> ActiveFeature:
        return self.features[index]

    def tables(self) -> list[Table]:
        placed = any(f.position >= 0 for f in self.features)
        head = (
            "feature",
            "value",
            "x typical",
            *(("token", "tokens") if placed else ()),
            "label, or tokens it fires on",
        )
        rows = [
            (f.feature, f.value, _or_nan(f.relative), *((f.token, f.n_tokens) if placed else ()), f.name)
            for f in self.features
        ]
        return [Table(self.title, head, rows)]


@dataclass(frozen=True, repr=False)
class TextAnalysis(Shown):
    """The features of every token of a text.

    tokens: all tokens that the model read; read (tokens,): those whose activations the dictionary takes (not the first,
    nor special ones); code (tokens, F) CSR: their codes, empty rows for the rest.
    """

    tokens: tuple[str, ...]
    read: np.ndarray
    code: Any
    top_k: int
    known: Features | None

    def top(self, position: int, top_k: int | None = None) -> list[ActiveFeature]:
        """The strongest features at a token."""
        row = self.code[[position]]
        order = np.argsort(-row.data, kind="stable")[: top_k or self.top_k]
        found = zip(row.indices[order].tolist(), row.data[order].tolist(), strict=True)
        return [active(i, value, self.known, self.tokens[position], position) for i, value in found]

    def values(self, feature: int) -> np.ndarray:
        """(tokens,) values of one feature."""
        if not 0 <= feature < self.code.shape[1]:
            raise DataError(f"feature {feature}: this dictionary has features 0 to {self.code.shape[1] - 1}")
        return self.code[:, [feature]].toarray()[:, 0]

    def strongest(self, top_k: int | None = None) -> ActiveFeatures:
        """The features with the largest values anywhere in the text."""
        columns = self.code.tocsc()
        counts = np.diff(columns.indptr)
        best = np.asarray(columns.max(axis=0).todense()).ravel()
        order = np.argsort(-best, kind="stable")[: min(top_k or self.top_k, int((counts > 0).sum()))]
        found = []
        for i in order.tolist():
            part = slice(columns.indptr[i], columns.indptr[i + 1])
            position = int(columns.indices[part][columns.data[part].argmax()])
            found.append(active(i, float(best[i]), self.known, self.tokens[position], position, int(counts[i])))
        return ActiveFeatures(f"strongest features of {int(self.read.sum())} tokens", tuple(found))

    def tables(self) -> list[Table]:
        rows = []
        for position, token in enumerate(self.tokens):
            if not self.read[position]:
                rows.append((token, "(not read)"))
                continue
            named = (f"{f.feature} {f.value:.2f}" + (f" ({f.name})" if f.name else "") for f in self.top(position))
            rows.append((token, ", ".join(named)))
        return [Table("features of each token, strongest first", ("token", "features"), rows)]


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
class FoundFeatures(Shown):
    """Features that set examples apart, best first."""

    title: str
    features: tuple[FoundFeature, ...]

    def __iter__(self):
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> FoundFeature:
        return self.features[index]

    def tables(self) -> list[Table]:
        head = ("feature", "score", "AUC", "examples", "background", "value", "token", "label, or tokens it fires on")
        rows = [
            (f.feature, f.score, f.auc, _percent(f.on_examples), _percent(f.on_background), f.value, f.token, f.name)
            for f in self.features
        ]
        return [Table(self.title, head, rows)]


def active(
    feature: int, value: float, known: Features | None, token: str = "", position: int = -1, n_tokens: int = 1
) -> ActiveFeature:
    """A firing with what is known of the feature."""
    typical = float(known.mean[feature]) if known else 0.0
    relative = value / typical if typical > 0 else None
    return ActiveFeature(feature, value, relative, token, position, n_tokens, known.name(feature) if known else "")


def encode_texts(dictionary: Dictionary, models: Models, texts: Sequence[str]) -> Codes:
    """Codes of a few texts as the dictionary's settings cut them; raises `DataError` where a text has no tokens."""
    models = as_models(models)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise DataError("no texts were given")
    if empty := [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise DataError(f"text {empty[0]} is empty or no text: {texts[empty[0]]!r}")
    config = dictionary.config.token_config()
    chunks = list(read_chunks(models, texts, config))
    if missing := sorted(set(range(len(texts))) - {chunk.document for chunk in chunks}):
        raise DataError(
            f"text {missing[0]} ({texts[missing[0]][:60]!r}) has no tokens that the dictionary reads: it leaves out "
            f"the first {config.skip_positions} position(s) of a text"
            + (" and special tokens" if config.skip_special else "")
            + "; give a longer text"
        )
    return encode_chunks(dictionary, models, chunks)


def analyze_text(
    dictionary: Dictionary, models: Models, text: str, top_k: int = 10, known: Features | None = None
) -> TextAnalysis:
    """Which features fire on every token of a text."""
    check_top_k(top_k)
    codes = encode_texts(dictionary, models, [text])
    number = min(site.model for site in dictionary.config.read_sites)
    shown = [chunk.of(number) for chunk in codes.chunks]
    starts = np.concatenate([[0], np.cumsum([len(chunk.ids) for chunk in shown])])
    place = starts[codes.chunk] + codes.position
    read = np.zeros(starts[-1], bool)
    read[place] = True
    spread = scipy.sparse.csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))), (len(read), len(place)))
    ids = np.concatenate([chunk.ids for chunk in shown])
    texts = tokens.token_texts(as_models(models)[number].tokenizer, ids)
    return TextAnalysis(
        tuple(texts[int(i)] for i in ids), read, (spread @ codes.matrix).astype(np.float32), top_k, known
    )


def encode_text(dictionary: Dictionary, models: Models, text: str, pooling: Pool | None = "max") -> mx.array:
    """(F,) one code for a text: the largest, mean, summed or last value of every feature; None: (tokens, F), all."""
    if pooling is not None and pooling not in _POOLS:
        raise ConfigError(f"pool={pooling!r}: expected one of {', '.join(_POOLS)}, or None for all tokens")
    codes = encode_texts(dictionary, models, [text])
    matrix = codes.matrix[np.lexsort((codes.position, codes.chunk))]
    if pooling is None:
        return mx.array(matrix.toarray())
    if pooling == "last":
        pooled = matrix[[-1]].toarray()
    elif pooling == "max":
        pooled = matrix.max(axis=0).toarray()
    else:
        pooled = np.asarray(matrix.sum(axis=0)) / (matrix.shape[0] if pooling == "mean" else 1)
    return mx.array(pooled.reshape(-1).astype(np.float32))


def interpret_features(code: Any, n_features: int, top_k: int = 10, known: Features | None = None) -> ActiveFeatures:
    """The strongest features of a code (..., F), dense or sparse; of several rows the largest value of each."""
    check_top_k(top_k)
    if isinstance(code, SparseCode):
        code = code.dense()
    values = np.array(code.astype(mx.float32) if isinstance(code, mx.array) else code, dtype=np.float32)
    if not values.ndim or values.shape[-1] != n_features:
        raise DataError(f"a code of shape {values.shape}: expected (..., {n_features})")
    values = values.reshape(-1, n_features)
    largest = values[np.abs(values).argmax(axis=0), np.arange(n_features)]
    order = [i for i in np.argsort(-np.abs(largest), kind="stable")[:top_k].tolist() if largest[i] != 0]
    counts = (values != 0).sum(axis=0)
    found = tuple(active(i, float(largest[i]), known, n_tokens=int(counts[i])) for i in order)
    return ActiveFeatures(f"strongest of {int((largest != 0).sum())} active features", found)


def find_by_examples(
    dictionary: Dictionary,
    models: Models,
    texts: Sequence[str],
    against: Sequence[str] | None = None,
    top_k: int = 10,
    known: Features | None = None,
) -> FoundFeatures:
    """The features that fire on all of some texts rather than on other text, by the area under the ROC curve.

    `against`: background texts. Without them the background is what `known` says of each feature's values, taken as
    independent from token to token, for texts as long as the examples.
    """
    check_top_k(top_k)
    codes = encode_texts(dictionary, models, texts)
    columns, lengths, best = _by_text(codes)
    candidates = np.flatnonzero((columns > 0).sum(axis=0) > 0)
    values = columns[:, candidates]
    if against is not None:
        other = _pieces(encode_texts(dictionary, models, list(against)), int(np.median(lengths)))[:, candidates]
        auc, on_background = _auc(values, other), np.diff(other.indptr) / other.shape[0]
        peak = np.maximum(values.max(axis=0), other.max(axis=0).toarray()[0])
        contrast = (values.mean(axis=0) - np.asarray(other.mean(axis=0)).ravel()) / peak
        title = f"features of {len(values)} examples against {other.shape[0]:,} pieces of text"
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
        number = min(site.model for site in dictionary.config.read_sites)
        chunk = codes.chunks[codes.chunk[row]].of(number)
        return models[number].token_to_str(int(chunk.ids[codes.position[row]]))

    return largest, np.bincount(document, minlength=n), token


def _pieces(codes: Codes, length: int) -> Any:
    """(pieces, F) CSC: largest values on runs of `length` rows of the texts, so that they compare with the examples."""
    order = np.lexsort((codes.position, codes.chunk))
    chunk = codes.chunk[order]
    rank = np.arange(len(chunk)) - np.searchsorted(chunk, chunk)
    _, of_sorted = np.unique(np.stack([chunk, rank // length]), axis=1, return_inverse=True)
    unit = np.empty(len(order), np.int64)
    unit[order] = of_sorted
    return pool(codes, unit, int(unit.max()) + 1).tocsc()


def _auc(values: np.ndarray, other: Any) -> np.ndarray:
    """(e, m), (b, m) -> (m,) share of pairs in which the first is larger, ties counted half."""
    found = np.empty(values.shape[1])
    for j in range(values.shape[1]):
        ranked = np.sort(other[:, [j]].toarray()[:, 0])
        below, up_to = (np.searchsorted(ranked, values[:, j], side) for side in ("left", "right"))
        found[j] = (below + up_to).mean() / (2 * len(ranked))
    return found


def _auc_by_chance(
    values: np.ndarray, lengths: np.ndarray, known: Features, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) AUC against texts of as many tokens whose values are drawn from each feature's histogram; and their share
    of texts on which it fires."""
    auc, fires = np.empty(len(candidates)), np.empty(len(candidates))
    for j, feature in enumerate(candidates):
        edges, counts = known.histogram(int(feature))
        above = np.append(np.cumsum(counts[::-1])[::-1], 0) / max(
            known.n_tokens, 1
        )  # share of tokens from each edge on
        chance = np.interp(values[:, j], edges, above) if edges[-1] > 0 else np.zeros(len(values))
        nothing = (1 - above[0]) ** lengths
        auc[j] = np.where(values[:, j] > 0, (1 - chance) ** lengths, nothing / 2).mean()
        fires[j] = (1 - nothing).mean()
    return auc, fires


def check_top_k(top_k: int) -> None:
    """Raise `ConfigError` where `top_k` is no number to show."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ConfigError(f"top_k={top_k!r}: expected a whole number of at least 1")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"
