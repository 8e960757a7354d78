"""Texts -> chunks -> rows of one or several sites, of one or several models, in one pass of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import anchors, tokens, vectorised
from hubsae.distributed import ALONE, Ranks
from hubsae.errors import DataError, SiteError
from hubsae.lm import LanguageModel, padded
from hubsae.sites import Site, columns
from hubsae.tokens import Chunk, TokenConfig

_TOKENS_PER_PASS = 4096

Models = LanguageModel | Sequence[LanguageModel]


@dataclass(frozen=True)
class Block:
    """Rows (n, d) in fp32 of a group of chunks, and for each row the number of its chunk in the group and position."""

    rows: np.ndarray
    chunk: np.ndarray
    position: np.ndarray


class Chunks(tuple[Chunk, ...]):
    """Texts that are cut into chunks already, with the positions that count chosen."""


def as_models(models: Models) -> tuple[LanguageModel, ...]:
    """One model or several -> all of them; `Site.model` counts them."""
    return (models,) if isinstance(models, LanguageModel) else tuple(models)


def width(models: Models, site: Site) -> int:
    """Columns of a site; raises `SiteError` where its model is not there or lacks it."""
    models = as_models(models)
    if site.model >= len(models):
        raise SiteError(f"{site}: model {site.model} of {len(models)} (they are counted from 0)")
    return models[site.model].width(site.of(0))


def site_product(layer: int | Sequence[int], component: str | Sequence[str], model: int = 0) -> list[Site]:
    """The sites of every layer with every component."""
    layers = [layer] if isinstance(layer, int) or not isinstance(layer, Sequence) else layer
    components = [component] if isinstance(component, str) else component
    return [Site(layer, component, model) for layer, component in product(layers, components)]


def read_chunks(models: Models, texts: Any, config: TokenConfig) -> Iterator[Chunk]:
    """Chunks of texts: of one model all tokens that count, of several the places where their tokens end together."""
    models = as_models(models)
    if isinstance(texts, Chunks):
        return iter(texts)
    contexts = [config.context_for(model.max_positions) for model in models]
    stream = tokens.iterate_texts(texts, config.text_column)
    if len(models) == 1:
        return tokens.chunks(stream, models[0].tokenizer, config, contexts[0])
    return anchors.paired_chunks(stream, [model.tokenizer for model in models], config, contexts)


def harvest(models: Models, sites: Sequence[Site], group: Sequence[Chunk], ranks: Ranks = ALONE) -> Block:
    """The rows of a group of chunks: sites side by side, fp32. Chunks of similar length share a pass.

    Several `ranks`, all with the same group, read a part of it each, and get all rows in the order that one would give.
    Raises `DataError` with the place of the first value that is not finite.
    """
    models = as_models(models)
    if ranks.size > 1:
        order = _by_length(group)
        mine = order[ranks.rank :: ranks.size]
        block = harvest(models, sites, [group[i] for i in mine])
        rows, chunk, position = map(
            ranks.gathered, (block.rows, np.asarray(mine, np.int32)[block.chunk], block.position)
        )
        place = np.argsort(order).astype(np.int32)[chunk] if len(models) == 1 else chunk
        order = np.lexsort((position, place))
        return Block(rows[order], chunk[order], position[order])
    if len(models) == 1:
        return _harvest(models[0], sites, group)
    where = columns(sites, [width(models, site) for site in sites])
    rows = np.empty((sum(c.n_rows for c in group), sum(width(models, s) for s in sites)), np.float32)
    first: Block | None = None
    for number, model in enumerate(models):
        own = [site for site in sites if site.model == number]
        if not own:
            continue
        block = _harvest(model, [site.of(0) for site in own], [chunk.of(number) for chunk in group])
        order = np.lexsort((block.position, block.chunk))  # the same order of rows for all models
        start = 0
        for site in own:
            n = width(models, site)
            rows[:, where[site]] = block.rows[order, start : start + n]
            start += n
        first = first or Block(rows, block.chunk[order], block.position[order])
    assert first is not None
    return first


def _harvest(model: LanguageModel, sites: Sequence[Site], group: Sequence[Chunk]) -> Block:
    """`harvest` of one model; chunks come in the order of their lengths."""
    with vectorised.exponentials():
        block = _read(model, sites, group)
    _check_finite(model, sites, group, block)
    return block


def _read(model: LanguageModel, sites: Sequence[Site], group: Sequence[Chunk]) -> Block:
    order = _by_length(group)
    parts: list[np.ndarray] = []
    chunk_of: list[np.ndarray] = []
    position_of: list[np.ndarray] = []
    pending: mx.array | None = None
    for batch in _batches(order, [len(c.ids) for c in group]):
        keep = padded([group[i].keep for i in batch]).astype(bool)
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
    n_columns = sum(model.width(site) for site in sites)
    rows = np.concatenate(parts) if parts else np.zeros((0, n_columns), np.float32)
    empty = [np.zeros(0, np.int32)]
    return Block(rows, np.concatenate(chunk_of or empty), np.concatenate(position_of or empty))


def _by_length(group: Sequence[Chunk]) -> list[int]:
    return sorted(range(len(group)), key=lambda i: len(group[i].ids))


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
