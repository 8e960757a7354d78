"""Places that several tokenizers share: tokens that end at the same character of the same text.

A causal model's activation at a token depends on the text up to that token's end and on nothing after it, so two tokens
that end together have read exactly the same text, however differently it was cut.
"""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from typing import Any

import numpy as np

from hubsae.errors import ConfigError, DataError
from hubsae.settings import check_types
from hubsae.tokens import Chunk, TokenConfig, callable_tokenizer, check_text, iterate_texts, special_ids

RULES = ("end", "word_end", "exact_span")
RULE_VERSION = 1
SPLITS = ("fit", "match", "eval")
_CHARACTERS_A_TOKEN = 12
_UNSEEN_TEXTS = 100
_LONG_WORD, _ALIKE_BEGINNING, _COMBINING_RUN = 64, 200, 32  # characters


@dataclass(frozen=True)
class AnchorConfig:
    """Which places become anchors, and how their documents are divided; recorded with every alignment.

    rule: "end" (tokens of all models end there), "word_end" (and no word goes on), "exact_span" (and the tokens cover
    the same characters). skip_positions: first positions of every piece that are left out in any of the models
    (attention sinks). fit_share, match_share: of the documents, the rest is eval; seed: of that division.
    max_anchors: no further document is read once there are so many. The others: as in `TokenConfig`.
    """

    rule: str = "end"
    skip_positions: int = 4
    context_size: int | None = None
    add_special_tokens: bool = True
    text_column: str = "text"
    fit_share: float = 0.5
    match_share: float = 0.25
    seed: int = 0
    max_anchors: int | None = None

    def __post_init__(self):
        check_types(self)
        if self.rule not in RULES:
            raise ConfigError(f"rule={self.rule!r}: expected one of {', '.join(RULES)}")
        shares = (self.fit_share, self.match_share)
        if min(shares) <= 0 or sum(shares) > 1 - 1e-9:
            raise ConfigError(f"fit_share, match_share={shares}: expected more than 0, and some left for eval")
        if self.max_anchors is not None and self.max_anchors < 1:
            raise ConfigError(f"max_anchors={self.max_anchors}: expected at least 1")
        _ = self.tokens

    @property
    def tokens(self) -> TokenConfig:
        """How the texts are cut into tokens."""
        shared = ("context_size", "skip_positions", "add_special_tokens", "text_column")
        return TokenConfig(**{name: getattr(self, name) for name in shared})


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """n anchors of several models in d documents, in the order in which `harvest` gives the rows of `chunks`.

    texts (d,): `text_id` of each document. groups (d,): ids of groups of alike documents, which share a split.
    document (n,) int32: number of the document. end (n,) int64: offset in its raw text, in characters, of the end.
    level (n,) uint8: strictest of `RULES` that holds there. word (n,) int32: class of the piece of word read so far.
    split (d,) uint8: index into `SPLITS`. coverage: per model, anchors / tokens of text after those skipped.
    n_duplicates: documents left out as an alike one was there. n_without: documents without any anchor.
    digest: hex sha256 over every document's text id (ASCII) and ends (int64, little-endian), in order.
    """

    chunks: tuple[Chunk, ...]
    config: AnchorConfig
    texts: tuple[str, ...]
    groups: tuple[str, ...]
    document: np.ndarray
    end: np.ndarray
    level: np.ndarray
    word: np.ndarray
    split: np.ndarray
    coverage: tuple[float, ...]
    n_duplicates: int
    n_without: int

    @property
    def n(self) -> int:
        return len(self.end)

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        starts = np.flatnonzero(np.diff(self.document, prepend=-1))
        for first, ends in zip(starts, np.split(self.end, starts[1:]), strict=False):
            total.update(self.texts[self.document[first]].encode() + ends.astype("<i8").tobytes())
        return total.hexdigest()

    def of(self, split: str) -> "AnchorSet":
        """The anchors in documents of "fit", "match" or "eval"; documents keep their numbers, `coverage` is of all."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        inside = self.split == SPLITS.index(split)
        rows = inside[self.document]
        return dataclasses.replace(
            self,
            chunks=tuple(chunk for chunk in self.chunks if inside[chunk.document]),
            **{name: getattr(self, name)[rows] for name in ("document", "end", "level", "word")},
        )

    def ids(self) -> list[tuple[str, int]]:
        """(text id, end) of each anchor: the same for everyone who reads the same texts with the same rule."""
        return [(self.texts[d], int(e)) for d, e in zip(self.document, self.end, strict=True)]


def read_anchors(
    texts: Any, tokenizers: Sequence[Any], config: AnchorConfig, contexts: Sequence[int], split: str | None = None
) -> AnchorSet:
    """The anchors of all texts for models that read `contexts` tokens a piece, divided by document into `SPLITS`, or
    all of them in one `split`.

    Of texts that are the same but for case, numbers, punctuation and white space the first is kept. Raises `DataError`
    where there are no texts, no anchors, or fewer than two documents for a split.
    """
    encoders, tally, seen = _with_offsets(tokenizers), _Tally(), set()
    ids, groups, parts, classes, n_duplicates = [], [], [], {}, 0
    n_tokens = np.zeros(len(encoders), np.int64)
    for text in iterate_texts(texts, config.text_column):
        alike = _alike(check_text(text))
        if (key := hashlib.sha256(alike.encode()).digest()[:16]) in seen:
            n_duplicates += 1
            continue
        seen.add(key)
        tally.n_texts += 1
        spans, number = _word_spans(text), len(ids)
        for piece in _pieces(text, encoders, config.tokens, contexts):
            level = _levels(text, piece, spans)
            chosen = piece.counts & (level >= RULES.index(config.rule))
            tally.add(piece, chosen)
            n_tokens += piece.n_tokens(config.skip_positions)
            if chosen.any():
                ends = piece.ends[chosen]
                word = [classes.setdefault(w, len(classes)) for w in _words(text, ends, spans)]
                parts.append((piece.chunk(chosen, number), [number] * len(ends), ends, level[chosen], word))
        if parts and parts[-1][0].document == number:
            ids.append(text_id(text))
            groups.append(text_id(alike[:_ALIKE_BEGINNING]))
        if tally.n_kept >= (config.max_anchors or np.inf) or tally.is_hopeless:
            break
    if not tally.n_texts:
        raise DataError("no texts: the source is empty, or holds nothing but white space")
    tally.check(config.skip_positions, config.rule)
    chunks, document, end, level, word = zip(*parts, strict=True)
    return AnchorSet(
        chunks=chunks,
        config=config,
        texts=tuple(ids),
        groups=tuple(groups),
        document=np.concatenate(document).astype(np.int32),
        end=np.concatenate(end),
        level=np.concatenate(level),
        word=np.concatenate(word).astype(np.int32),
        split=_splits(groups, config) if split is None else np.full(len(ids), SPLITS.index(split), np.uint8),
        coverage=tuple((tally.n_kept / n_tokens).tolist()),
        n_duplicates=n_duplicates,
        n_without=tally.n_texts - len(ids),
    )


def text_id(text: str) -> str:
    """16 hex digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def paired_chunks(
    texts: Iterable[str], tokenizers: Sequence[Any], config: TokenConfig, contexts: Sequence[int]
) -> Iterator[Chunk]:
    """Chunks with partners in the other tokenizers: the same pieces of text, and rows where tokens end together.

    Pieces are as long as fits all contexts. Raises `DataError` where a hundred texts share no place.
    """
    encoders, tally = _with_offsets(tokenizers), _Tally()
    for number, text in enumerate(texts):
        tally.n_texts += 1
        for piece in _pieces(text, encoders, config, contexts):
            tally.add(piece, piece.counts)
            if piece.counts.any():
                yield piece.chunk(piece.counts, number)
        if tally.is_hopeless:
            break
    tally.check(config.skip_positions)


def token_ends(tokenizer: Any, text: str, config: TokenConfig, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) of the first `context` tokens and the offset (n,) in characters at which each ends.

    -1 for tokens that stand for no text (special ones, unknown ones), and for those whose end is not all that they have
    read: that end inside a character, before a mark that normal forms join to it, or before white space of their own.
    """
    read = _read(tokenizer, text, config, context)
    return read.ids, read.ends


def anchors(ends: Sequence[np.ndarray]) -> np.ndarray:
    """Ends of the tokens of several models (`token_ends`) -> (m, models) indices of tokens that end together."""
    shared = reduce(np.intersect1d, [e[e > 0] for e in ends])
    return np.stack([np.flatnonzero(np.isin(e, shared)) for e in ends], axis=1)


def _with_offsets(tokenizers: Sequence[Any]) -> list[Any]:
    encoders = [callable_tokenizer(tokenizer) for tokenizer in tokenizers]
    for encoder in encoders:
        if not getattr(encoder, "is_fast", False):
            raise ConfigError(f"{type(encoder).__name__} gives no character offsets; a fast tokenizer is needed here")
    return encoders


@dataclass(frozen=True, eq=False)
class _Tokens:
    """ids, starts, ends (n,): -1 where a token has no such place of its own; is_text (n,): stands for some text."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    is_text: np.ndarray


def _read(tokenizer: Any, text: str, config: TokenConfig, context: int) -> _Tokens:
    """The first `context` tokens of a text; cut here, as tokenizers may be set to cut on the left."""
    encoded = tokenizer(
        text,
        add_special_tokens=config.add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = np.asarray(encoded["input_ids"], np.int32)
    starts, ends = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    is_text = (ends > starts) & ~np.asarray(encoded["special_tokens_mask"], bool)
    real = np.flatnonzero(is_text)
    special = special_ids(tokenizer)
    is_text &= ~np.isin(ids, special[special != getattr(tokenizer, "unk_token_id", None)])
    found_starts, found_ends = np.full((2, len(ids)), -1)
    if len(real):
        first, last = starts[real], ends[real]
        begun = np.concatenate([[0], np.maximum.accumulate(last)[:-1]])
        later = np.concatenate([np.minimum.accumulate(first[::-1])[::-1][1:], [len(text)]])
        pieces = encoded.tokens()
        whole = (last <= later) & ~np.isin(ids[real], special) & (real < context)
        places = zip(real[whole], last[whole].tolist(), strict=True)
        whole[whole] = [_is_seam(text, end) and _ends_visibly(pieces[i], text[end - 1 : end]) for i, end in places]
        own = whole & (first >= begun)
        own[own] = [_is_seam(text, start) for start in first[own].tolist()]
        found_starts[real] = np.where(own, first, -1)
        found_ends[real] = np.where(whole, last, -1)
    return _Tokens(ids[:context], found_starts[:context], found_ends[:context], is_text[:context])


def _is_seam(text: str, end: int) -> bool:
    """Whether normal forms leave both sides apart; a composed character gets the offsets of its first part alone."""
    if end >= len(text) or text[end] < "\x80":  # no ASCII character joins the one before
        return True
    before, after = text[max(0, end - _COMBINING_RUN) : end], text[end : end + _COMBINING_RUN]
    before, after, both = (unicodedata.normalize("NFKC", part) for part in (before, after, before + after))
    return before + after == both


def _ends_visibly(piece: str, last: str) -> bool:
    """Whether the offsets of a token hold the white space at its end: some post-processors trim it away."""
    return piece[-1:] not in ("Ġ", "▁", " ") or (last == " " if piece[-1] == "Ġ" else last.isspace())


@dataclass(frozen=True, eq=False)
class _Piece:
    """Text from `start` on. places (m, models): tokens that end together, at `ends`; counts: not at those left out."""

    start: int
    tokens: tuple[_Tokens, ...]
    places: np.ndarray
    counts: np.ndarray
    ends: np.ndarray

    def chunk(self, chosen: np.ndarray, document: int) -> Chunk:
        """Up to the last chosen place, with a row at each."""
        made = [
            Chunk(read.ids[: places[-1] + 1], np.isin(np.arange(places[-1] + 1), places), document)
            for read, places in zip(self.tokens, self.places[chosen].T, strict=True)
        ]
        return dataclasses.replace(made[0], partners=tuple(made[1:]))

    def n_tokens(self, skip_positions: int) -> list[int]:
        """Per model the tokens that could be anchors; those after the last place are read again with the next piece."""
        stops = self.places[-1] + 1 if len(self.places) else [None] * len(self.tokens)
        return [int(r.is_text[skip_positions:stop].sum()) for r, stop in zip(self.tokens, stops, strict=True)]


def _pieces(text: str, encoders: Sequence[Any], config: TokenConfig, contexts: Sequence[int]) -> Iterator[_Piece]:
    """The pieces of a text, one after the other; each begins where the last place of the one before is."""
    start, window = 0, _CHARACTERS_A_TOKEN * min(contexts)
    while start < len(text):
        part = text[start : start + window]
        if start + window < len(text):  # not in the middle of a word
            part = part[: part.rfind(" ")] if part.rfind(" ") > 0 else part
        read = tuple(_read(e, part, config, c) for e, c in zip(encoders, contexts, strict=True))
        places = anchors([r.ends for r in read])
        ends = start + read[0].ends[places[:, 0]]
        yield _Piece(start, read, places, np.all(places >= config.skip_positions, axis=1), ends)
        start = int(ends[-1]) if len(ends) else start + len(part)


@dataclass
class _Tally:
    """What was read so far, and which error it is where nothing came of it."""

    n_texts: int = 0
    n_shared: int = 0
    n_counted: int = 0
    n_kept: int = 0

    def add(self, piece: _Piece, chosen: np.ndarray) -> None:
        self.n_shared += len(piece.places)
        self.n_counted += int(piece.counts.sum())
        self.n_kept += int(chosen.sum())

    @property
    def is_hopeless(self) -> bool:
        return not self.n_kept and self.n_texts >= _UNSEEN_TEXTS

    def check(self, skip_positions: int, rule: str = "end") -> None:
        """Raises `DataError` where texts gave no anchors."""
        if self.n_kept or not self.n_texts:
            return
        where = f"in {self.n_texts} texts"
        if not self.n_shared:
            raise DataError(f"{where} no token of one model ends where one of the other does: no anchors")
        if not self.n_counted:
            raise DataError(f"{where} all anchors are at the skip_positions={skip_positions} left out: none remain")
        raise DataError(f"{where} no anchor passes rule={rule!r}; set rule='end', which asks for less")


def _splits(groups: Sequence[str], config: AnchorConfig) -> np.ndarray:
    """(d,) uint8: where each document goes by a hash of its group, so that alike ones never part."""
    hashes = [hashlib.sha256(f"{config.seed}:{group}".encode()).digest() for group in groups]
    places = np.array([int.from_bytes(h[:8], "big") / 2**64 for h in hashes])
    split = np.searchsorted(np.cumsum([config.fit_share, config.match_share]), places, side="right").astype(np.uint8)
    counts = np.bincount(split, minlength=3)
    if counts.min() < 2:
        found = ", ".join(f"{n} {name}" for n, name in zip(counts, SPLITS, strict=True))
        raise DataError(
            f"{len(groups)} documents with anchors make {found}, at least 2 of each are needed; "
            f"give more texts, or set other shares (fit_share={config.fit_share}, match_share={config.match_share})"
        )
    return split


def _alike(text: str) -> str:
    """What nearly same texts have in common: no case, punctuation or marks' forms; one space, 0 for every number."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(c for c in folded if unicodedata.category(c)[0] != "P")
    return " ".join(re.sub(r"\d+", "0", bare).split()) or text


@cache
def _word_pattern() -> re.Pattern[str]:
    """Runs of letters, digits and _, with the combining marks on them, which \\w lacks."""
    marks = "".join(c for c in map(chr, range(0x20000)) if unicodedata.category(c)[0] == "M")
    return re.compile(rf"\w[\w{marks}]*")


def _word_spans(text: str) -> np.ndarray:
    """(2, words + 1): where the words of a text start and end, after an empty one at its begin."""
    return np.array([(0, 0), *(match.span() for match in _word_pattern().finditer(text))]).T


def _levels(text: str, piece: _Piece, spans: np.ndarray) -> np.ndarray:
    """(m,) uint8: the strictest of `RULES` that holds at each place."""
    ends = piece.ends
    n_begun, n_over = np.searchsorted(spans[0], ends), np.searchsorted(spans[1], ends, side="right")
    level = (n_begun == n_over).astype(np.uint8)
    starts = np.stack([r.starts[p] for r, p in zip(piece.tokens, piece.places.T, strict=True)], axis=1)
    for i in np.flatnonzero(level & (starts >= 0).all(axis=1)):
        spanned = {text[piece.start + start : ends[i]] for start in starts[i]}
        level[i] += len({span.lstrip() or span for span in spanned}) == 1  # some offsets hold the space before
    return level


def _words(text: str, ends: np.ndarray, spans: np.ndarray) -> list[str]:
    """The part read so far of the word that each end is in or after (its last characters, of a very long one)."""
    last = np.searchsorted(spans[0], ends) - 1  # the last word that began before the end
    starts = np.where(ends <= spans[1][last], spans[0][last], ends - 1)
    starts = np.maximum(starts, ends - _LONG_WORD)
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
