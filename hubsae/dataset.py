"""`ActivationDataset`: activations of one or several models on texts, in shuffled batches, within bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from hubsae import tokens as _tokens
from hubsae.activation_cache import ActivationCache, probe, same_probe
from hubsae.activations import Models, as_models, harvest, read_chunks, site_product, width
from hubsae.curation import Curation, chosen, distinct
from hubsae.distributed import ranks
from hubsae.errors import ConfigError, DataError, warn
from hubsae.lm import LanguageModel
from hubsae.rows import ShuffledRows
from hubsae.settings import as_type
from hubsae.sites import Site, parse_sites
from hubsae.threads import ahead
from hubsae.tokens import Chunk, Split, TextLines, TokenConfig

_HELD_OUT_ROWS = 50_000
_KEPT_TOKENS = 16_000_000
_CHUNKS_AHEAD = 2048  # of tokens that are made while the model computes


class ActivationDataset:
    """Activations of a model on texts, computed once and served in shuffled batches; memory stays bounded.

    model: one, or several that read the same texts. texts: a list, any iterable, or a `datasets` dataset (streaming
    too). Sources without a length need `max_rows`; with one, the tokens are counted first, and kept if they are few.
    max_rows: stop after so many rows (tokens that count). held_out: share of the documents kept from training, as
    `held_out_chunks` (complete once the training rows have been read). cache_dir: keep the rows on disk; a cache of
    another model, of other texts or options is refused, an unfinished one is continued.
    """

    def __init__(
        self,
        model: Models,
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
            raise ConfigError(f"training_tokens (also max_rows, max_samples) is {max_rows}: expected at least 1")
        if buffer_mb < 1:
            raise ConfigError(f"buffer_mb={buffer_mb}: expected at least 1")
        self.models, self.sites = as_models(model), parse_sites(sites)
        self.widths = tuple(width(self.models, site) for site in self.sites)  # refuses unknown sites before any work
        self.config = tokens_config or TokenConfig()
        self.context = min(self.config.context_for(m.max_positions) for m in self.models)
        self.capacity = max(1, (buffer_mb << 20) // (4 * sum(self.widths)))
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None
        self.texts, self.held_out_share, self._max_rows = texts, held_out, max_rows
        self._cache_options = {**self.describe(), "held_out": held_out, "max_rows": max_rows}
        self.curation: Curation | None = None
        self._digest = hashlib.sha256()
        self._first: Chunk | None = None
        self._split, self._fresh = self._read(), True
        self._chunks: list[Chunk] | None = None
        if max_rows is None and not hasattr(texts, "__len__"):
            raise ConfigError(
                f"the length of this {type(texts).__name__} is unknown, so training cannot be planned; set "
                "training_tokens (max_rows here) to the number of tokens to use, or give a list"
            )

    @classmethod
    def from_texts(
        cls,
        texts: Any,
        *,
        model: Any,
        layer: int | Sequence[int],
        component: str | Sequence[str] = "mlp",
        max_samples: int | None = None,
        tokens: TokenConfig | None = None,
        held_out: float = 0.0,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Rows of every layer with every component, at most `max_samples` of them; `model` is one or its repository."""
        model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        return cls(
            model,
            site_product(layer, component),
            texts,
            tokens_config=tokens,
            max_rows=max_samples,
            held_out=held_out,
            cache_dir=cache_dir,
        )

    @classmethod
    def from_huggingface(
        cls,
        dataset_name: str,
        *,
        split: str = "train",
        subset: str | None = None,
        streaming: bool = True,
        **options: Any,
    ) -> Self:
        """The same from a dataset of the Hub, or a local .txt, .jsonl, .json, .csv or .parquet file.

        `options` are those of `from_texts`. What is streamed has no length, so it needs `max_samples`; nothing of it is
        downloaded before it is read.
        """
        return cls.from_texts(
            _tokens.read_texts(dataset_name, split=split, subset=subset, streaming=streaming), **options
        )

    @classmethod
    def curate(
        cls,
        texts: Any,
        *,
        model: Any,
        layer: int | Sequence[int],
        max_samples: int,
        component: str | Sequence[str] = "mlp",
        curation: Curation | None = None,
        tokens: TokenConfig | None = None,
        held_out: float = 0.0,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """At most `max_samples` rows that differ: see `Curation` for how they are chosen, and what it costs."""
        as_type(max_samples, int, "max_samples")
        model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        sites, how, config = site_product(layer, component), curation or Curation(), tokens or TokenConfig()
        columns = sum(model.width(site) for site in sites)
        new = distinct(_tokens.iterate_texts(texts, config.text_column), how.near_duplicates)
        stream = read_chunks(model, new, config)
        picked = chosen(stream, lambda group: harvest(model, sites, group), max_samples, columns, how)
        found = cls(model, sites, picked, tokens_config=config, held_out=held_out, cache_dir=cache_dir)
        found.curation = how
        return found

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

    def _read(self) -> Split:
        stream = read_chunks(self.models, self.texts, self.config)
        if isinstance(self.texts, list | tuple | TextLines) or type(self.texts).__module__.startswith("datasets."):
            stream = ahead(stream, _CHUNKS_AHEAD)  # others may belong to the thread that made them
        return Split(stream, self.held_out_share, limit=_HELD_OUT_ROWS)

    @cached_property
    def n_rows(self) -> int:
        """Rows of one epoch; texts of known length are read for it, to `max_rows` where that is set.

        Their chunks are kept while they are few, else they are made again when needed.
        """
        if not hasattr(self.texts, "__len__"):
            assert self._max_rows is not None
            return self._max_rows
        if not self._fresh:
            self._split = self._read()
        n_rows = n_tokens = 0
        kept: list[Chunk] = []
        for chunk in self._split if self._max_rows is None else _tokens.take_rows(self._split, self._max_rows):
            n_rows += chunk.n_rows
            n_tokens += sum(len(chunk.of(model).ids) for model in range(len(self.models)))
            if n_tokens <= _KEPT_TOKENS:
                kept.append(chunk)
        self._chunks = kept if n_tokens <= _KEPT_TOKENS else None
        self._fresh = False
        if self._max_rows is not None and n_rows < self._max_rows:
            warn(f"the texts have {n_rows:,} tokens for training, not {self._max_rows:,}; all of them are used")
        return n_rows

    def _training_chunks(self) -> Iterator[Chunk]:
        """From the first one on; what passes is taken into the digest."""
        self._digest = hashlib.sha256()
        stream: Iterable[Chunk]
        if self._chunks is not None:
            stream = self._chunks
        else:
            if not self._fresh:
                if iter(self.texts) is self.texts:
                    raise DataError("these activations were streamed once already; give cache_dir to read them again")
                self._split = self._read()
            self._fresh = False
            stream = self._split if self._max_rows is None else _tokens.take_rows(self._split, self._max_rows)
        for chunk in stream:
            self._first = self._first or chunk
            self._digest.update(chunk.ids.tobytes() + chunk.keep.tobytes())
            yield chunk

    def place(self) -> dict:
        """By what the texts that were read, and the model, can be recognised (see `ShuffledRows`)."""
        return {"texts": self._digest.hexdigest(), "probe": self._probe}

    @cached_property
    def _probe(self) -> list[float]:
        return probe(harvest(self.models, self.sites, [self._first]).rows) if self._first else []

    def check_place(self, place: dict) -> None:
        """Raise `DataError` where these are other texts, or their activations are others."""
        if self._digest.hexdigest() != place["texts"]:
            what = "texts: the first ones differ. Give the same texts"
        elif not same_probe(self._probe, place["probe"]):
            what = "activations: those of the first text differ. Give the same model"
        else:
            return
        raise DataError(f"the checkpoint was written on other {what}, or another checkpoint_dir")

    def blocks(self, epoch: int = 0, skip: int = 0) -> Iterator[np.ndarray]:
        """The training rows in harvest order, without the first `skip` blocks; after epoch 0 from the cache alone."""
        used_up = self._chunks is None and not self._fresh and iter(self.texts) is self.texts
        if self._cache_dir is not None and (epoch or used_up):
            return self._cache(self._cache_dir).all_blocks(skip)
        stream = self._training_chunks()
        if self._cache_dir is not None:
            return self._cache(self._cache_dir).blocks(stream, self._harvested, skip)
        grouped = _tokens.groups(stream, sum(self.widths))
        for _ in islice(grouped, skip):
            pass
        return map(self._harvested, grouped)

    def _harvested(self, group: list[Chunk]) -> np.ndarray:
        return harvest(self.models, self.sites, group, ranks()).rows

    def _cache(self, folder: Path) -> ActivationCache:
        identities = [model.identity for model in self.models]
        return ActivationCache(folder, identities, self.sites, self.widths, self._cache_options)

    def rows(self, batch_size: int, *, seed: int = 0, epochs: int = 1) -> ShuffledRows:
        """The training rows in shuffled batches, with a state that can be kept; every epoch is shuffled anew.

        Activations are computed once: several epochs need `cache_dir`, or rows that fit the buffer.
        """
        if epochs > 1 and self.n_rows > self.capacity and self._cache_dir is None:
            raise ConfigError(
                f"{epochs} epochs over {self.n_rows:,} rows of width {sum(self.widths)} do not fit the buffer of "
                f"{self.capacity:,} rows; give cache_dir (rows are kept on disk) or a larger buffer_mb"
            )
        return ShuffledRows(
            self,
            epoch_rows=self.n_rows,
            width=sum(self.widths),
            capacity=self.capacity,
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
        )

    def batches(self, batch_size: int, *, seed: int = 0, epochs: int = 1) -> Iterator[mx.array]:
        """Shuffled (b, d) rows; the last batch of all holds what is left. See `rows`."""
        return map(mx.array, self.rows(batch_size, seed=seed, epochs=epochs))
