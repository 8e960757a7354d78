"""Texts -> chunks of token ids, with the positions that count marked, and a held-out share set apart."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.errors import ConfigError, DataError
from hubsae.settings import check_types

_TEXTS_AT_ONCE = 256
_GROUP_BYTES = 64 << 20
_LONG_DOCUMENT = 4  # chunks; longer documents are split between training and held-out by chunk


@dataclass(frozen=True)
class TokenConfig:
    """How texts become rows; recorded with every dictionary.

    context_size: tokens a chunk, special tokens included (None: 256, or what the model can take if that is less).
    skip_positions: first positions of every chunk that are left out (position 0 is an attention sink).
    skip_special: leave out special tokens (BOS, EOS ...). add_special_tokens: let the tokenizer add those it adds.
    text_column: where the text stands in rows of a `datasets` dataset.
    """

    context_size: int | None = None
    skip_positions: int = 1
    skip_special: bool = True
    add_special_tokens: bool = True
    text_column: str = "text"

    def __post_init__(self):
        check_types(self)
        if self.context_size is not None and self.context_size < 2:
            raise ConfigError(f"context_size={self.context_size}: expected at least 2 tokens")
        if self.skip_positions < 0:
            raise ConfigError(f"skip_positions={self.skip_positions}: expected 0 or more")

    @classmethod
    def recorded(cls, settings: dict[str, Any]) -> "TokenConfig":
        """From what was recorded with a dictionary; entries that are not of texts to tokens are left out."""
        return cls(**{name: value for name, value in settings.items() if name in cls.__dataclass_fields__})

    def context_for(self, max_positions: int | None) -> int:
        """Tokens a chunk for a model with so many positions; raises `ConfigError` where it takes fewer."""
        if self.context_size is None:
            return min(256, max_positions or 256)
        if max_positions is not None and self.context_size > max_positions:
            raise ConfigError(f"context_size={self.context_size}: this model has only {max_positions} positions")
        return self.context_size


@dataclass(frozen=True)
class Chunk:
    """A piece of one document: `ids` (length,), `keep` (length,) marks the positions that become rows.

    `partners`: the same piece in the tokens of further models, with as many rows; row i is at the same place in all.
    """

    ids: np.ndarray
    keep: np.ndarray
    document: int
    partners: tuple["Chunk", ...] = ()

    @property
    def n_rows(self) -> int:
        return int(self.keep.sum())

    def first(self, n_rows: int) -> "Chunk":
        """Up to its n-th row."""
        end = int(np.flatnonzero(self.keep)[n_rows - 1]) + 1
        partners = tuple(partner.first(n_rows) for partner in self.partners)
        return Chunk(self.ids[:end], self.keep[:end], self.document, partners)

    def rows_where(self, chosen: np.ndarray) -> "Chunk":
        """With only those of its rows where `chosen` (n_rows,) is true."""
        keep = self.keep.copy()
        keep[np.flatnonzero(keep)[~chosen]] = False
        return Chunk(self.ids, keep, self.document, tuple(p.rows_where(chosen) for p in self.partners))

    def of(self, model: int) -> "Chunk":
        """As the model of this number reads it."""
        return self.partners[model - 1] if model else self


def iterate_texts(source: Any, column: str = "text") -> Iterator[str]:
    """The texts of a list, any iterable, or a `datasets` dataset; raises `DataError` for what holds no texts."""
    if isinstance(source, str | bytes):
        raise DataError(f"dataset is one {type(source).__name__}; give a list of texts, or use read_texts for a file")
    if isinstance(source, dict) and not hasattr(source, "features"):
        raise DataError(f"dataset is a dict with {', '.join(map(str, source))}; pick one split or column of it")
    columns = getattr(source, "column_names", None)
    if isinstance(columns, dict):
        raise DataError(f"dataset has the splits {', '.join(columns)}; pick one, for example dataset['train']")
    if columns and column not in columns:
        raise DataError(f"dataset has no column {column!r}, only {', '.join(columns)}; set text_column")
    if not isinstance(source, Iterable):
        raise DataError(f"dataset is a {type(source).__name__}; expected texts, or a `datasets` dataset")
    for i, item in enumerate(source):
        text = item.get(column) if isinstance(item, dict) else item
        if not isinstance(text, str):
            where = f"entry {i}" + (f", column {column!r}," if isinstance(item, dict) else "")
            raise DataError(f"dataset: {where} is a {type(text).__name__}, not a text")
        if text.strip():
            yield text


class TextLines:
    """The lines of a UTF-8 file that are not empty, read anew each time; the file is never held in memory."""

    def __init__(self, path: Path):
        self._path = path
        self._n_lines = sum(1 for _ in self)

    def __len__(self) -> int:
        return self._n_lines

    def __iter__(self) -> Iterator[str]:
        with self._path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file if line.strip())


def read_texts(name: str | Path, *, split: str = "train", subset: str | None = None, streaming: bool = True) -> Any:
    """Texts from a file (.txt: one a line; .jsonl, .json, .csv, .parquet: rows) or a dataset repository.

    A repository is streamed, unless `streaming=False` downloads it. Files are read line by line or mapped.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".txt":
        try:
            return TextLines(path)
        except UnicodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error})") from error
    import datasets
    from datasets.exceptions import DatasetsError

    formats = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    try:
        if path.is_file():
            if path.suffix not in formats:
                raise DataError(f"{path}: expected .txt, {', '.join(formats)}")
            return datasets.load_dataset(formats[path.suffix], data_files=str(path), split="train")
        return datasets.load_dataset(str(name), subset, split=split, streaming=streaming)
    except (OSError, ValueError, ConnectionError, DatasetsError) as error:
        raise DataError(f"{name}: neither a file nor a dataset that can be loaded ({error})") from error


def check_text(text: str) -> str:
    """The text, if a tokenizer can read it; `DataError` where it holds half a character."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{text[:60]!r} holds half a character (a lone surrogate), which no tokenizer reads")
    return text


def callable_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of transformers itself, or the one under mlx-lm's wrapper, which cannot be called."""
    return tokenizer if callable(tokenizer) else getattr(tokenizer, "_tokenizer", tokenizer)


def special_ids(tokenizer: Any) -> np.ndarray:
    """Ids of the special tokens (BOS, EOS ...), rising."""
    return np.array(sorted(set(getattr(callable_tokenizer(tokenizer), "all_special_ids", ()))), np.int64)


def chunks(texts: Iterable[str], tokenizer: Any, config: TokenConfig, context: int) -> Iterator[Chunk]:
    """Chunks of at most `context` tokens in the order of the texts; chunks without any row are left out."""
    encode = callable_tokenizer(tokenizer)
    numbered = enumerate(texts)
    while part := list(islice(numbered, _TEXTS_AT_ONCE)):
        numbers, strings = zip(*part, strict=True)
        for document, ids, special in _encode(encode, strings, config, context):
            keep = ~special if config.skip_special else np.ones(len(ids), bool)
            keep[: config.skip_positions] = False
            if keep.any():
                yield Chunk(ids, keep, numbers[document])


def _encode(tokenizer: Any, strings: tuple[str, ...], config: TokenConfig, context: int):
    """(index of the text, ids, mask of special tokens) for every chunk."""
    special = special_ids(tokenizer)
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(
            list(strings),
            add_special_tokens=config.add_special_tokens,
            truncation=True,
            max_length=context,
            stride=0,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        pairs = zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True)
    else:
        added = tokenizer.num_special_tokens_to_add() if config.add_special_tokens else 0
        complete = tokenizer.build_inputs_with_special_tokens if added else list
        pairs = (
            (i, complete(ids[start : start + context - added]))
            for i, text in enumerate(strings)
            for ids in [tokenizer.encode(text, add_special_tokens=False)]
            for start in range(0, len(ids), context - added)
        )
    for i, ids in pairs:
        array = np.asarray(ids, np.int32)
        if len(array):
            yield i, array, np.isin(array, special)


def by_document(stream: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """The chunks of one document after the other."""
    group: list[Chunk] = []
    for chunk in stream:
        if group and chunk.document != group[0].document:
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


class Split:
    """Divides a stream of chunks: iterating gives the training share, `held_out` collects the rest as it passes.

    A document goes one way as a whole, by a hash of its tokens, so equal documents never land on both sides; documents
    of more than four chunks are divided by chunk. `held_out` keeps at most `limit` rows.
    """

    def __init__(self, stream: Iterable[Chunk], share: float, *, limit: int = 50_000):
        self._stream, self._share, self._limit = stream, share, limit
        self.held_out: list[Chunk] = []
        self._held_rows = 0

    def __iter__(self) -> Iterator[Chunk]:
        try:
            for group in by_document(self._stream):
                units = [[chunk] for chunk in group] if len(group) > _LONG_DOCUMENT else [group]
                yield from chain.from_iterable(unit for unit in units if not self._held(unit))
        finally:
            if isinstance(self._stream, Generator):
                self._stream.close()  # what is made ahead is not wanted any more

    def _held(self, unit: list[Chunk]) -> bool:
        """Whether a unit is kept from training; takes note of it while there is room."""
        if not self._share or _fraction(unit) >= self._share:
            return False
        if self._held_rows < self._limit:
            self.held_out += unit
            self._held_rows += sum(chunk.n_rows for chunk in unit)
        return True


def _fraction(unit: list[Chunk]) -> float:
    digest = hashlib.sha256(b"".join(chunk.ids.tobytes() for chunk in unit)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def take_rows(stream: Iterable[Chunk], n_rows: int) -> Iterator[Chunk]:
    """Chunks until they make `n_rows` rows; the last one is cut short to fit."""
    if n_rows < 1:
        raise ConfigError(f"{n_rows} rows: expected at least 1")
    left = n_rows
    for chunk in stream:
        if chunk.n_rows >= left:
            yield chunk.first(left)
            return
        left -= chunk.n_rows
        yield chunk


def count_rows(stream: Iterable[Chunk]) -> int:
    """How many rows the chunks make."""
    return sum(chunk.n_rows for chunk in stream)


def groups(stream: Iterable[Chunk], width: int, max_bytes: int = _GROUP_BYTES) -> Iterator[list[Chunk]]:
    """Lists of chunks whose fp32 rows of `width` columns reach `max_bytes`, the last one smaller."""
    group: list[Chunk] = []
    size = 0
    for chunk in stream:
        group.append(chunk)
        size += 4 * width * chunk.n_rows
        if size >= max_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text of each token id as it stands inside a text, with its leading space where it has one."""
    encoded = callable_tokenizer(tokenizer)("a", add_special_tokens=False)["input_ids"]
    head = tokenizer.decode(encoded)
    found = {}
    for i in sorted({int(i) for i in ids}):
        text = tokenizer.decode([*encoded, i])  # alone it could lose its space
        found[i] = text[len(head) :] if text.startswith(head) else tokenizer.decode([i])
    return found
