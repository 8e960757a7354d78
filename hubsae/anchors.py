"""Places that several tokenizers share: tokens that end at the same character of the same text.

A causal model's activation at a token depends on the text up to that token's end and on nothing after it, so two tokens
that end together have read exactly the same text, however differently it was cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np

from hubsae.errors import ConfigError, DataError
from hubsae.tokens import Chunk, TokenConfig, callable_tokenizer

_CHARACTERS_A_TOKEN = 12
_UNSEEN_TEXTS = 100


def token_ends(tokenizer: Any, text: str, config: TokenConfig, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) of the first `context` tokens and the offset (n,) in characters at which each ends.

    -1 for tokens that stand for no text (special ones), and for those that end inside a character: its offset is their
    end, but the next token begins before that, and only the last token of a character has read it.
    """
    encoded = tokenizer(
        text,
        add_special_tokens=config.add_special_tokens,
        truncation=True,
        max_length=context,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
    )
    starts, ends = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2).T.copy()
    real = np.flatnonzero((ends > starts) & ~np.asarray(encoded["special_tokens_mask"], bool))
    whole = np.ones(len(real), bool)
    whole[:-1] = starts[real[1:]] >= ends[real[:-1]]
    if len(ends) == context:  # what follows the last token was cut off
        whole[-1:] = False
    found = np.full(len(ends), -1)
    found[real[whole]] = ends[real[whole]]
    return np.asarray(encoded["input_ids"], np.int32), found


def anchors(ends: Sequence[np.ndarray]) -> np.ndarray:
    """Ends of the tokens of several models -> (m, models) indices of tokens that end at the same character."""
    shared = reduce(np.intersect1d, [e[e > 0] for e in ends])
    return np.stack([_last_index(e, shared) for e in ends], axis=1)


def _last_index(ends: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    backwards = ends[::-1]
    order = np.argsort(backwards, kind="stable")  # of equal ends the first one backwards is the last one
    return len(ends) - 1 - order[np.searchsorted(backwards[order], wanted)]


def paired_chunks(
    texts: Iterable[str], tokenizers: Sequence[Any], config: TokenConfig, contexts: Sequence[int]
) -> Iterator[Chunk]:
    """Chunks with partners in the other tokenizers: the same pieces of text, and rows where tokens end together.

    Pieces are as long as fits all contexts. Raises `DataError` where a hundred texts share no place.
    """
    callables = [callable_tokenizer(tokenizer) for tokenizer in tokenizers]
    for tokenizer in callables:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed here")
    n_read = n_shared = n_chunks = 0
    for number, text in enumerate(texts):
        n_read += 1
        for shared, chunk in _pieces(text, number, callables, config, contexts):
            n_shared += shared
            if chunk is not None:
                n_chunks += 1
                yield chunk
        if not n_chunks and n_read >= _UNSEEN_TEXTS:
            break
    if n_read and not n_shared:
        raise DataError(f"in {n_read} texts no token of one model ends where one of the other does: no anchors")
    if n_read and not n_chunks:
        raise DataError(f"in {n_read} texts all anchors are at the skip_positions={config.skip_positions} left out")


def _pieces(
    text: str, document: int, tokenizers: Sequence[Any], config: TokenConfig, contexts: Sequence[int]
) -> Iterator[tuple[int, Chunk | None]]:
    """How many places each piece of a text shares, and its chunk where some of them count."""
    start, window = 0, _CHARACTERS_A_TOKEN * min(contexts)
    while start < len(text):
        part = text[start : start + window]
        if start + window < len(text):  # not in the middle of a word
            part = part[: part.rfind(" ")] if part.rfind(" ") > 0 else part
        read = [token_ends(t, part, config, c) for t, c in zip(tokenizers, contexts, strict=True)]
        shared = anchors([ends for _, ends in read])
        if not len(shared):
            start += len(part)
            continue
        last = shared[-1]
        good = (shared >= config.skip_positions).all(axis=1)
        if good.any():
            made = [
                Chunk(ids[: end + 1], np.isin(np.arange(end + 1), places), document)
                for (ids, _), end, places in zip(read, last, shared[good].T, strict=True)
            ]
            yield len(shared), Chunk(made[0].ids, made[0].keep, document, tuple(made[1:]))
        else:
            yield len(shared), None
        start += int(read[0][1][last[0]])
