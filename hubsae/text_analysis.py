"""Questions about a text: which features fire where, and what a text is as one code."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import mlx.core as mx
import numpy as np
import scipy.sparse

from hubsae import tokens
from hubsae.activations import Models, as_models, read_chunks
from hubsae.codes import Codes, encode_chunks
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.features import Features, check_feature
from hubsae.settings import as_type
from hubsae.sparse import SparseCode
from hubsae.tables import Listed, Shown, Table

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
class ActiveFeatures(Listed):
    """Features that fire somewhere, strongest first."""

    listed: ClassVar[str] = "features"

    title: str
    features: tuple[ActiveFeature, ...]

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
        if not 0 <= as_type(position, int, "position") < len(self.tokens):
            raise DataError(f"position {position}: this text has tokens 0 to {len(self.tokens) - 1}")
        row = self.code[[position]]
        order = np.argsort(-row.data, kind="stable")[: self.top_k if top_k is None else check_top_k(top_k)]
        found = zip(row.indices[order].tolist(), row.data[order].tolist(), strict=True)
        return [active(i, value, self.known, self.tokens[position], position) for i, value in found]

    def values(self, feature: int) -> np.ndarray:
        """(tokens,) values of one feature."""
        return self.code[:, [check_feature(feature, self.code.shape[1])]].toarray()[:, 0]

    def strongest(self, top_k: int | None = None) -> ActiveFeatures:
        """The features with the largest values anywhere in the text."""
        columns = self.code.tocsc()
        counts = np.diff(columns.indptr)
        best = np.asarray(columns.max(axis=0).todense()).ravel()
        n = self.top_k if top_k is None else check_top_k(top_k)
        order = np.argsort(-best, kind="stable")[: min(n, int((counts > 0).sum()))]
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
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise DataError(f"texts is a {type(texts).__name__}: expected a list of texts")
    texts = list(texts)
    if not texts:
        raise DataError("no texts were given")
    if empty := [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise DataError(f"text {empty[0]} is empty or no text: {texts[empty[0]]!r}")
    for text in texts:
        tokens.check_text(text)
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
    number = dictionary.config.first_model
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
    if scipy.sparse.issparse(code):
        code = code.toarray()
    try:
        values = np.array(code.astype(mx.float32) if isinstance(code, mx.array) else code, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"a code that is a {type(code).__name__}: expected numbers (..., {n_features})") from error
    if not values.size or values.shape[-1:] != (n_features,):
        raise DataError(f"a code of shape {values.shape}: expected (..., {n_features}), with at least one row")
    values = values.reshape(-1, n_features)
    largest = values[np.abs(values).argmax(axis=0), np.arange(n_features)]
    order = [i for i in np.argsort(-np.abs(largest), kind="stable")[:top_k].tolist() if largest[i] != 0]
    counts = (values != 0).sum(axis=0)
    found = tuple(active(i, float(largest[i]), known, n_tokens=int(counts[i])) for i in order)
    return ActiveFeatures(f"strongest of {int((largest != 0).sum())} active features", found)


def check_top_k(top_k: Any) -> int:
    """`top_k` if it is a number to show; raises `ConfigError` where it is not."""
    if as_type(top_k, int, "top_k") < 1:
        raise ConfigError(f"top_k={top_k!r}: expected at least 1")
    return int(top_k)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
