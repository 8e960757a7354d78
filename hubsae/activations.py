"""Chunks -> rows of one or several sites, in one pass of the model, shuffled within bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import tokens
from hubsae.activation_cache import ActivationCache
from hubsae.errors import ConfigError, DataError
from hubsae.lm import LanguageModel, padded
from hubsae.settings import as_type
from hubsae.sites import Site, parse_sites
from hubsae.tokens import Chunk, Split, TokenConfig, groups

_TOKENS_PER_PASS = 4096
_HELD_OUT_ROWS = 50_000
_PIECE = 8192


@dataclass(frozen=True)
class Block:
    """Rows (n, d) in fp32 of a group of chunks, and for each row the number of its chunk in the group and position."""

    rows: np.ndarray
    chunk: np.ndarray
    position: np.ndarray


def harvest(model: LanguageModel, sites: Sequence[Site], group: Sequence[Chunk]) -> Block:
    """The rows of a group of chunks: sites side by side, fp32. Chunks of similar length share a pass.

    Raises `DataError` with the place of the first value that is not finite.
    """
    order = sorted(range(len(group)), key=lambda i: len(group[i].ids))
    parts: list[np.ndarray] = []
    chunk_of: list[np.ndarray] = []
    position_of: list[np.ndarray] = []
    pending: mx.array | None = None
    for batch in _batches(order, [len(c.ids) for c in group]):
        keep = np.zeros((len(batch), max(len(group[i].ids) for i in batch)), bool)
        for row, i in zip(keep, batch, strict=True):
            row[: len(group[i].keep)] = group[i].keep
        run = model.run(padded([group[i].ids for i in batch]), read=sites, logits=False)
        where = mx.array(np.flatnonzero(keep).astype(np.int32))
        wide = [run.activations[site] for site in sites]
        picked = mx.concatenate(
            [mx.take(a.reshape(-1, a.shape[-1]), where, axis=0).astype(mx.float32) for a in wide], -1
        )
        mx.async_eval(picked)  # while this is computed, the previous batch is copied out
        if pending is not None:
            parts.append(np.array(pending))
        pending = picked
        line, position = np.nonzero(keep)
        chunk_of.append(np.asarray(batch, np.int32)[line])
        position_of.append(position.astype(np.int32))
    if pending is not None:
        parts.append(np.array(pending))
    width = sum(model.width(site) for site in sites)
    rows = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
    empty = [np.zeros(0, np.int32)]
    block = Block(rows, np.concatenate(chunk_of or empty), np.concatenate(position_of or empty))
    _check_finite(model, sites, group, block)
    return block


def _batches(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Runs of `order` (sorted by length) whose padded size stays within the tokens of one pass."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[i] > _TOKENS_PER_PASS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _check_finite(model: LanguageModel, sites: Sequence[Site], group: Sequence[Chunk], block: Block) -> None:
    if np.isfinite(block.rows).all():
        return
    row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(block.rows)))
    chunk = group[block.chunk[row]]
    start = 0
    for site in sites:
        width = model.width(site)
        if column < start + width:
            token = model.token_to_str(int(chunk.ids[block.position[row]]))
            raise DataError(
                f"{site}, column {column - start}: {block.rows[row, column]} at document {chunk.document}, "
                f"position {block.position[row]} (token {token!r}); the model overflows there. "
                "Load it in a wider type (bfloat16 or float32)"
            )
        start += width


def shuffled(blocks: Iterable[np.ndarray], capacity: int, seed: int) -> Iterator[np.ndarray]:
    """The same rows in blocks, each exactly once, mixed through a buffer of `capacity` rows.

    Arriving rows take the places of rows drawn at random from the full buffer; what is left at the end is permuted.
    """
    rng = np.random.default_rng(seed)
    buffer, filled = np.zeros((0, 0), np.float32), 0
    for rows in blocks:
        if filled == 0:
            buffer = np.empty((capacity, rows.shape[1]), np.float32)
        fits = min(len(rows), capacity - filled)
        buffer[filled : filled + fits] = rows[:fits]
        filled += fits
        for start in range(fits, len(rows), capacity):
            part = rows[start : start + capacity]
            places = rng.choice(capacity, len(part), replace=False)
            out = buffer[places]
            buffer[places] = part
            yield out
    yield from permuted(buffer[:filled], rng)


def permuted(rows: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """All rows in random order, in pieces, so that no second copy of them is made."""
    order = rng.permutation(len(rows))
    for start in range(0, len(rows), _PIECE):
        yield rows[order[start : start + _PIECE]]


def batches(blocks: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Rows in blocks of exactly `batch_size`; the last one holds what is left."""
    rest: list[np.ndarray] = []
    n = 0
    for rows in blocks:
        rest.append(rows)
        n += len(rows)
        if n < batch_size:
            continue
        joined = np.concatenate(rest) if len(rest) > 1 else rows
        full = n - n % batch_size
        for start in range(0, full, batch_size):
            yield joined[start : start + batch_size]
        rest, n = [joined[full:]], n % batch_size
    if n:
        yield np.concatenate(rest)


class ActivationDataset:
    """Activations of a model on texts, computed once and served in shuffled batches.

    texts: a list, any iterable, or a `datasets` dataset (streaming too). Sources without a length need `max_rows`;
    without it the tokens of all texts (not their activations) are held in memory, some 5 bytes each.
    max_rows: stop after so many rows (tokens that count). held_out: share of the documents kept from training, as
    `held_out_chunks` (complete once the training rows have been read). cache_dir: keep the rows on disk; a cache of
    another model, of other texts or options is refused, an unfinished one is continued.
    """

    def __init__(
        self,
        model: LanguageModel,
        sites: Site | str | Sequence[Site | str],
        texts: Any,
        *,
        tokens_config: TokenConfig | None = None,
        max_rows: int | None = None,
        held_out: float = 0.0,
        cache_dir: str | Path | None = None,
        buffer_mb: int = 512,
    ):
        if not 0 <= held_out < 1:
            raise ConfigError(f"held_out={held_out}: expected a share from 0 to below 1")
        if max_rows is not None and as_type(max_rows, int, "training_tokens") < 1:
            raise ConfigError(f"training_tokens (max_rows here) is {max_rows}: expected at least 1")
        if buffer_mb < 1:
            raise ConfigError(f"buffer_mb={buffer_mb}: expected at least 1")
        self.model, self.sites = model, parse_sites(sites)
        self.widths = tuple(model.width(site) for site in self.sites)  # refuses unknown sites before any long work
        self.config = tokens_config or TokenConfig()
        self.context = self.config.context_for(model.max_positions)
        self.capacity = max(1, (buffer_mb << 20) // (4 * sum(self.widths)))
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None
        texts_stream = tokens.iterate_texts(texts, self.config.text_column)
        chunk_stream = tokens.chunks(texts_stream, model.tokenizer, self.config, self.context)
        self._split = Split(chunk_stream, held_out, limit=_HELD_OUT_ROWS)
        source = {"held_out": held_out, "max_rows": max_rows}
        self._cache_options = {**self.describe(), **source}
        if max_rows is None:
            if not hasattr(texts, "__len__"):
                raise ConfigError(
                    f"the length of this {type(texts).__name__} is unknown, so training cannot be planned; set "
                    "training_tokens (max_rows here) to the number of tokens to use, or give a list"
                )
            self._chunks: Iterable[Chunk] = list(self._split)
            self.n_rows = tokens.count_rows(self._chunks)
        else:
            self._chunks = tokens.take_rows(self._split, max_rows)
            self.n_rows = max_rows

    @property
    def held_out_chunks(self) -> list[Chunk]:
        """The chunks kept from training that have been met so far."""
        return self._split.held_out

    def describe(self) -> dict:
        """The settings that shape the rows, for configs and manifests."""
        return {
            "context_size": self.context,
            "skip_positions": self.config.skip_positions,
            "skip_special": self.config.skip_special,
            "add_special_tokens": self.config.add_special_tokens,
        }

    def blocks(self) -> Iterator[np.ndarray]:
        """The training rows in harvest order, from the cache where there is one."""
        if self._chunks is None:
            raise DataError("these activations were streamed once already; give cache_dir to read them again")
        stream = iter(self._chunks)
        if not isinstance(self._chunks, list):
            self._chunks = None  # type: ignore[assignment]
        if self._cache_dir is None:
            found: Iterable[np.ndarray] = (
                harvest(self.model, self.sites, g).rows for g in groups(stream, sum(self.widths))
            )
        else:
            found = self._cache(self._cache_dir).blocks(stream, lambda g: harvest(self.model, self.sites, g).rows)
        yield from found

    def _cache(self, folder: Path) -> ActivationCache:
        return ActivationCache(folder, self.model.identity, self.sites, self.widths, self._cache_options)

    def batches(self, batch_size: int, *, seed: int = 0, epochs: int = 1) -> Iterator[mx.array]:
        """Shuffled (b, d) rows; the last batch of all holds what is left. Every epoch is shuffled anew.

        Activations are computed once: several epochs need `cache_dir`, or rows that fit the buffer.
        """
        in_memory = self.n_rows <= self.capacity
        if epochs > 1 and not in_memory and self._cache_dir is None:
            raise ConfigError(
                f"{epochs} epochs over {self.n_rows:,} rows of width {sum(self.widths)} do not fit the buffer of "
                f"{self.capacity:,} rows; give cache_dir (rows are kept on disk) or a larger buffer_mb"
            )
        yield from map(mx.array, batches(self._epochs(seed, epochs, in_memory), batch_size))

    def _epochs(self, seed: int, epochs: int, in_memory: bool) -> Iterator[np.ndarray]:
        if in_memory:
            everything, filled = np.empty((self.n_rows, sum(self.widths)), np.float32), 0
            for rows in self.blocks():
                everything[filled : filled + len(rows)] = rows
                filled += len(rows)
            for epoch in range(epochs):
                yield from permuted(everything[:filled], np.random.default_rng([seed, epoch]))
            return
        yield from shuffled(self.blocks(), self.capacity, seed)
        for epoch in range(1, epochs):
            assert self._cache_dir is not None
            yield from shuffled(self._cache(self._cache_dir).all_blocks(), self.capacity, seed + epoch)
