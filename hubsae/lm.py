"""The window into language models: any mlx-lm model, read and edited through `LanguageModel.run`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from hubsae import identity, lm_files
from hubsae.errors import ConfigError, DataError, SiteError
from hubsae.identity import BaseModel
from hubsae.probe import Probe, probe
from hubsae.sites import Site, parse_sites
from hubsae.taps import AllRead, Edit, Taps
from hubsae.tokens import check_text

Interventions = Mapping[str, Edit] | Mapping[Site, Edit]


@dataclass(frozen=True)
class Run:
    """One forward pass: `logits` (b, length, V), or None if it stopped early, and `activations` (b, length, d)."""

    logits: mx.array | None
    activations: dict[Site, mx.array]


class TokenPrediction(NamedTuple):
    """A possible next token, its text, and its probability."""

    token_id: int
    token: str
    probability: float


class LanguageModel:
    """An mlx-lm model with its tokenizer and its identity.

    `source` is a repository id (with `revision`), a local folder, or a (model, tokenizer) pair that mlx-lm loaded. On a
    CPU, models loaded here compute in fp32 whatever their files hold; a pair is used as it is.
    """

    def __init__(self, source: Any, tokenizer: Any = None, *, revision: str | None = None):
        self.checkpoint: lm_files.Checkpoint | None = None
        self._config: dict = {}
        self._other_widths: dict[Site, int] = {}
        self._random_seed: int | None = None
        if isinstance(source, str | Path):
            if tokenizer is not None:
                raise ConfigError("a tokenizer only goes with a model object; a repository or folder brings its own")
            self.checkpoint = lm_files.locate(source, revision)
            model, tokenizer, self._config = lm_files.load(self.checkpoint)
        else:
            model, tokenizer = source if isinstance(source, tuple) and len(source) == 2 else (source, tokenizer)
            if not isinstance(model, nn.Module) or not hasattr(model, "layers") or tokenizer is None:
                raise ConfigError(
                    "expected a repository id, a folder, or a (model, tokenizer) pair of mlx-lm, "
                    f"got {type(source).__name__}"
                )
            if revision is not None:
                raise ConfigError(f"revision={revision!r} only works with a repository id")
        self.model: Any = model
        self.tokenizer: Any = tokenizer

    def untrained(self, seed: int = 0) -> Self:
        """The same architecture and tokenizer with random weights: what no training gives."""
        args = getattr(self.model, "args", None)
        if args is None:
            raise ConfigError(f"{type(self.model).__name__} keeps no settings that it could be made from anew")
        mx.random.seed(seed)
        fresh = type(self.model)(args)
        fresh.set_dtype(mx.float32)
        mx.eval(fresh.parameters())
        found = type(self)((fresh, self.tokenizer))
        found._random_seed = seed
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.label}, {self.n_layers} layers of width {self.hidden_size})"

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The blocks, in order."""
        return self.model.layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def _probe(self) -> Probe:
        return probe(self.model)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._probe.widths.get(Site(0), 0)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._probe.vocab_size

    @property
    def max_positions(self) -> int | None:
        """The longest context that the model's position table or configuration allows, if it says."""
        args = getattr(self.model, "args", None)
        settings = {**getattr(args, "__dict__", {}), **self._config}
        sizes = [settings.get(key) for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")]
        return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)

    def sites(self) -> dict[Site, int]:
        """The standard sites (`COMPONENTS` of every layer) that this model has, with their widths."""
        return dict(self._probe.widths)

    def width(self, site: str | Site) -> int:
        """Number of columns of a site; raises `SiteError` where the model has no such site."""
        site = Site.parse(site)
        known = self._probe.widths.get(site) or self._other_widths.get(site)
        if known is None:
            known = self.run([[0, 0]], read=[site], logits=False).activations[site].shape[-1]
            self._other_widths[site] = known
        return known

    @property
    def model_type(self) -> str | None:
        """The architecture's name in its config, such as `"llama"`."""
        return self._config.get("model_type") or getattr(getattr(self.model, "args", None), "model_type", None)

    @cached_property
    def identity(self) -> BaseModel:
        """What was really loaded; hashes the files of a local folder on first use."""
        config, checkpoint = self._config, self.checkpoint
        quantization = config.get("quantization") or config.get("quantization_config") or _quantization(self.model)
        return BaseModel(
            repo_id=checkpoint.repo_id if checkpoint else None,
            revision=checkpoint.revision if checkpoint else None,
            requested_revision=checkpoint.requested_revision if checkpoint else None,
            architecture=next((a for a in config.get("architectures") or () if isinstance(a, str)), None),
            model_type=self.model_type,
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
            vocab_size=self.vocab_size,
            quantization={k: v for k, v in quantization.items() if k in ("bits", "group_size", "mode", "quant_method")}
            if quantization
            else None,
            dtype=config.get("torch_dtype") or config.get("dtype"),
            files=identity.model_files(checkpoint.folder) if checkpoint else {},
            random_seed=self._random_seed,
        )

    def run(
        self,
        tokens: Any,
        *,
        read: str | Site | Sequence[str | Site] = (),
        edit: Interventions | None = None,
        logits: bool = True,
        cache: Any = None,
    ) -> Run:
        """One forward pass over `tokens` (b, length), reading and editing sites; everything is lazy until used.

        With `logits=False` the pass ends after the deepest read. An edit maps (b, length, d) to the same shape; what is
        read at an edited site is what the edit returned. Without `cache` a fresh one is used: some architectures
        compute something else without any.
        """
        from mlx_lm.models.cache import make_prompt_cache

        start = 0 if cache is None else _offset(cache)
        tokens = self._checked_tokens(tokens, start)
        sites = parse_sites(read)
        edits = _edits(edit)
        stop = not logits and bool(sites) and cache is None and not self._probe.looped
        shape = (tokens.shape[0], tokens.shape[1])
        with Taps(self.layers, sites, edits, expect_shape=shape, stop=stop, start=start) as taps:
            try:
                out = self.model(tokens, cache=make_prompt_cache(self.model) if cache is None else cache)
                _refuse_missed((*sites, *edits), taps)
            except AllRead:
                out = None
        return Run(out, taps.values)

    def _checked_tokens(self, tokens: Any, before: int = 0) -> mx.array:
        ids = np.asarray(tokens)
        if ids.ndim == 1:
            ids = ids[None]
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"tokens of shape {ids.shape} and type {ids.dtype}: expected token ids (b, length)")
        if ids.min() < 0 or ids.max() >= self.vocab_size:  # MLX does not check, and reads past the table
            raise DataError(
                f"token id {ids.min() if ids.min() < 0 else ids.max()}: ids go from 0 to {self.vocab_size - 1}"
            )
        if self.max_positions is not None and before + ids.shape[1] > self.max_positions:
            raise DataError(
                f"{before + ids.shape[1]:,} tokens: this model has only {self.max_positions:,} positions; "
                "cut the text, or ask for fewer new tokens"
            )
        return mx.array(ids.astype(np.int32))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds by itself (BOS for Llama and Gemma)."""
        ids = list(self.tokenizer.encode(check_text(text)))
        if not ids:
            raise DataError(f"the text {text!r} has no tokens")
        return ids

    def token_to_str(self, token_id: int) -> str:
        """The text of one token id."""
        if not isinstance(token_id, int | np.integer) or not 0 <= token_id < self.vocab_size:
            raise DataError(f"token id {token_id!r}: ids are whole numbers from 0 to {self.vocab_size - 1}")
        return self.tokenizer.decode([int(token_id)])

    def trace(self, text: str | Sequence[str], interventions: Interventions | None = None) -> "Trace":
        """A forward pass over one text or several, for use as `with model.trace("...") as trace:`."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(t, str) for t in texts):
            raise DataError("trace needs at least one text, and texts only")
        return Trace(self, [self.encode(t) for t in texts], _edits(interventions))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        interventions: Interventions | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The model's continuation of `prompt`, with interventions at work in every step; greedy by default.

        An intervention sees the prompt in chunks (1, length, d) and then every new token as (1, 1, d).
        """
        from mlx_lm import stream_generate
        from mlx_lm.sample_utils import make_sampler

        ids = self.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens}: expected at least 1")
        if temperature < 0:
            raise ConfigError(f"temperature={temperature}: expected 0 or more")
        self._checked_tokens(ids, before=max_tokens - 1)
        edits = _edits(interventions)
        if temperature:
            mx.random.seed(seed)
        with Taps(self.layers, (), edits) as taps:
            steps = stream_generate(
                self.model, self.tokenizer, ids, max_tokens=max_tokens, sampler=make_sampler(temperature)
            )
            text = "".join(step.text for step in steps)
        _refuse_missed(edits, taps)
        return text

    def get_token_predictions(self, logits: mx.array, top_k: int = 10) -> list[TokenPrediction]:
        """The likeliest next tokens by logits (V,), (length, V) or (1, length, V); of several positions the last."""
        logits = logits if isinstance(logits, mx.array) else mx.array(logits)
        if not 1 <= logits.ndim <= 3:
            raise DataError(f"logits of shape {logits.shape}: expected 1 to 3 axes")
        last = logits.reshape(-1, logits.shape[-1])[-1].astype(mx.float32)
        if logits.shape[-1] != self.vocab_size or (logits.ndim == 3 and logits.shape[0] != 1) or logits.ndim > 3:
            raise DataError(
                f"logits of shape {logits.shape}: expected ({self.vocab_size},), (length, {self.vocab_size}) "
                f"or (1, length, {self.vocab_size}); pick one text of a batch first"
            )
        if top_k < 1:
            raise ConfigError(f"top_k={top_k}: expected at least 1")
        probabilities = np.array(mx.softmax(last))
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [TokenPrediction(int(i), self.tokenizer.decode([int(i)]), float(probabilities[i])) for i in best]


@dataclass
class Trace:
    """What one forward pass computed; a context manager, and good after it too.

    `tokens` (b, length), right-padded with id 0 where texts differ in length; `lengths` real tokens of each text.
    """

    model: LanguageModel
    token_ids: list[list[int]]
    interventions: dict
    lengths: tuple[int, ...] = field(init=False)
    tokens: mx.array = field(init=False)

    def __post_init__(self):
        with Taps(self.model.layers, (), _edits(self.interventions)):
            pass  # refuses what no model has, before anything is computed
        self.lengths = tuple(len(ids) for ids in self.token_ids)
        self.tokens = mx.array(padded(self.token_ids))
        self.activations = Activations(self)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exc) -> None:
        return None

    @cached_property
    def run(self) -> Run:
        """The pass, with all standard sites read."""
        return self.model.run(self.tokens, read=tuple(self.model.sites()), edit=self.interventions)

    @property
    def logits(self) -> mx.array:
        """(b, length, V)"""
        assert self.run.logits is not None
        return self.run.logits

    @cached_property
    def token_strings(self) -> list[list[str]]:
        """The text of each token, a list for each text."""
        return [[self.model.token_to_str(i) for i in ids] for ids in self.token_ids]


class Activations(Mapping[Any, mx.array]):
    """Site -> (b, length, d). Any spelling of a site finds it; sites beyond the standard ones cost another pass."""

    def __init__(self, trace: Trace):
        self._trace = trace
        self._extra: dict[Site, mx.array] = {}

    def __getitem__(self, site: str | Site) -> mx.array:
        site = Site.parse(site)
        found = self._trace.run.activations
        if site in found:
            return found[site]
        if site not in self._extra:
            run = self._trace.model.run(self._trace.tokens, read=[site], edit=self._trace.interventions, logits=False)
            self._extra[site] = run.activations[site]
        return self._extra[site]

    def __contains__(self, site: object) -> bool:
        try:
            self[site]  # type: ignore[index]
        except (SiteError, TypeError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return map(str, self._trace.run.activations)

    def __len__(self) -> int:
        return len(self._trace.run.activations)


def padded(token_ids: Sequence[Any]) -> np.ndarray:
    """Lists of ids -> (b, longest) int32, padded with 0 on the right, which is exact for every causal model."""
    out = np.zeros((len(token_ids), max(map(len, token_ids))), np.int32)
    for row, ids in zip(out, token_ids, strict=True):
        row[: len(ids)] = ids
    return out


def _edits(interventions: Interventions | None) -> dict[Site, Edit]:
    """Interventions by site; `SiteError` where two spellings name the same one, since one would be lost."""
    if not isinstance(interventions or {}, Mapping):
        raise ConfigError(
            f"interventions is a {type(interventions).__name__}: expected {{site: function}}; several interventions of "
            "dictionaries go together as a | b"
        )
    edits: dict[Site, Edit] = {}
    for name, function in (interventions or {}).items():
        site = Site.parse(name)
        if site in edits:
            raise SiteError(f"{name}: {site} has two interventions; give one")
        edits[site] = function
    return edits


def _refuse_missed(sites: Iterable[Site], taps: Taps) -> None:
    """Raise `SiteError` for a site that the finished pass did not come by."""
    for site in sites:
        if site not in taps.visits:
            raise SiteError(f"{site}: this model has the module, but its forward pass never calls it")


def _offset(cache: Any) -> int:
    """Tokens that a cache holds already; of caches that do not count (states of recurrent layers) 0."""
    offsets = []
    for layer in cache or ():
        for part in getattr(layer, "caches", None) or (layer,):
            offset = getattr(part, "offset", 0)
            offsets.append(int(np.array(offset).max()) if isinstance(offset, mx.array) else offset)
    return max((offset for offset in offsets if isinstance(offset, int)), default=0)


def _quantization(model: nn.Module) -> dict | None:
    """Settings of the first quantised module of a model object, None where there is none."""
    for module in model.modules():
        if hasattr(module, "scales") and hasattr(module, "bits"):
            return {key: getattr(module, key) for key in ("bits", "group_size", "mode") if hasattr(module, key)}
    return None
