"""Passes of prompts through a model with dictionaries at several layers: codes, gradients, ablations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from scipy.sparse import csr_matrix

from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.lm import LanguageModel, padded
from hubsae.sites import Site
from hubsae.steer import increments
from hubsae.tokens import callable_tokenizer, special_ids

_VALUES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Batch:
    """Prompts of one pass: tokens (b, length), mask (b, length, 1) of the positions that dictionaries take, the place
    of each last token, the answers (b,), and their log-probabilities (b,) when nothing is changed."""

    tokens: np.ndarray
    mask: mx.array
    last: mx.array
    answers: mx.array
    log_probabilities: np.ndarray

    def answered(self, logits: Any) -> mx.array:
        """(b, length, V) logits -> (b,) log-probability of each answer."""
        logits = self.at_last(logits)
        return self._of_answer(logits) - mx.logsumexp(logits, axis=-1)

    def contrasts(self, logits: Any, foils: mx.array) -> mx.array:
        """(b,) logit of each answer less the mean logit of the foils (tokens) that are not the answer itself."""
        logits = self.at_last(logits)
        other = (foils[None] != self.answers[:, None]).astype(mx.float32)
        mean = mx.sum(mx.take(logits, foils, axis=-1) * other, axis=-1) / mx.maximum(mx.sum(other, axis=-1), 1)
        return self._of_answer(logits) - mean

    def at_last(self, logits: Any) -> mx.array:
        """(b, length, V) -> (b, V) after the last token of each text."""
        return mx.take_along_axis(logits, self.last[:, None, None], axis=1)[:, 0].astype(mx.float32)

    def _of_answer(self, logits: mx.array) -> mx.array:
        return mx.take_along_axis(logits, self.answers[:, None], axis=-1)[:, 0]


class BatchCodes:
    """The codes of a batch by layer, kept sparse: [layer] gives (b, length, F)."""

    def __init__(self, codes: Mapping[int, mx.array]):
        self._shapes = {layer: code.shape for layer, code in codes.items()}
        self._sparse = {layer: csr_matrix(np.array(code).reshape(-1, code.shape[-1])) for layer, code in codes.items()}

    def __getitem__(self, layer: int) -> mx.array:
        return mx.array(self._sparse[layer].toarray()).reshape(self._shapes[layer])

    def of(self, layer: int, features: Sequence[int]) -> mx.array:
        """(b, length, m) of some features."""
        columns = self._sparse[layer].tocsc()[:, list(features)].toarray()
        return mx.array(columns).reshape(*self._shapes[layer][:-1], len(features))

    def summed(self, layer: int) -> np.ndarray:
        """(F,) over all positions."""
        return np.asarray(self._sparse[layer].sum(axis=0, dtype=np.float64)).ravel()


@dataclass(frozen=True)
class Passes:
    """Prompts with their answers, and the dictionaries; activation {layer: (F,)} summed over positions, mean of texts.

    foils: tokens that answers are told from: those given, else the other texts' answers, else the whole vocabulary.
    codes: those of each batch.
    """

    model: LanguageModel
    saes: dict[int, Dictionary]
    texts: tuple[str, ...]
    foils: mx.array
    batches: list[Batch]
    codes: list[BatchCodes]
    activation: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        saes: Mapping[int, Dictionary],
        texts: Sequence[str],
        answers: Sequence[str] | None = None,
        foils: Sequence[str] | None = None,
    ) -> "Passes":
        """Read the prompts once; raises `DataError` for those that cannot be used."""
        texts = tuple(texts) if not isinstance(texts, str) else (texts,)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError("find_feature_circuits needs texts, none of them empty")
        for name, words in (("answers", answers), ("foils", foils)):
            if words is not None and (
                isinstance(words, str) or not words or not all(isinstance(w, str) and w for w in words)
            ):
                raise DataError(f"{name}={words!r}: expected a list of texts")
        if answers is not None and len(answers) != len(texts):
            raise DataError(f"answers: {len(answers)}, expected one for each of the {len(texts)} texts")
        _check(model, saes)
        ids = [model.encode(text) for text in texts]
        wanted = None if answers is None else [_first_token(model, answer) for answer in answers]
        width = max(d.n_features for d in saes.values())
        step = max(1, _VALUES_AT_ONCE // (width * max(map(len, ids))))
        skipped = max(d.config.token_config().skip_positions for d in saes.values())
        batches, codes = [], []
        for start in range(0, len(texts), step):
            part = slice(start, start + step)
            batch, found = _read(model, saes, ids[part], None if wanted is None else wanted[part], skipped)
            batches.append(batch)
            codes.append(found)
        given = sorted({int(i) for batch in batches for i in np.array(batch.answers)})
        if foils is not None:
            own, given = set(given), [_first_token(model, foil) for foil in foils]
            if any(set(given) <= {i} for i in own):
                raise DataError(f"foils {list(foils)}: their first tokens are those of the answers; give others")
        elif len(given) < 2:
            given = list(range(model.vocab_size))
        passes = cls(model, dict(saes), texts, mx.array(given), batches, codes)
        for layer in saes:
            passes.activation[layer] = np.sum([code.summed(layer) for code in codes], axis=0) / len(texts)
            if not passes.activation[layer].any():
                raise DataError(f"layer {layer}: no feature fires on these texts")
        return passes

    @property
    def answer_ids(self) -> list[int]:
        return [int(i) for batch in self.batches for i in np.array(batch.answers)]

    @property
    def log_probabilities(self) -> np.ndarray:
        """(texts,) of the answers, in nats, when nothing is changed."""
        return np.concatenate([batch.log_probabilities for batch in self.batches])


@dataclass(frozen=True)
class Ablated:
    """What is lost without some features: `lost` (targets,), summed activation of target features, mean over texts; and
    the answers' log-probabilities (texts,)."""

    lost: np.ndarray
    log_probabilities: np.ndarray


def _check(model: LanguageModel, saes: Mapping[int, Dictionary]) -> None:
    for layer, dictionary in saes.items():
        if not isinstance(dictionary, Dictionary):
            raise ConfigError(f"layer {layer}: expected a dictionary, not a {type(dictionary).__name__}")
        c = dictionary.config
        if layer not in {site.layer for site in (*c.read_sites, *c.write_sites)}:
            raise ConfigError(f"layer {layer}: its dictionary reads {', '.join(c.reads)}, which is another layer")
        if len(c.base_models) > 1:
            raise ConfigError(f"layer {layer}: a dictionary of {len(c.base_models)} models; circuits are in one model")
        for site, width in zip((*c.read_sites, *c.write_sites), (*c.read_widths, *c.write_widths), strict=True):
            if model.width(site) != width:
                raise ConfigError(
                    f"layer {layer}: its dictionary has {width} columns at {site}, the model {model.width(site)}"
                )


def _first_token(model: LanguageModel, answer: str) -> int:
    ids = callable_tokenizer(model.tokenizer)(answer, add_special_tokens=False)["input_ids"]
    if not ids:
        raise DataError(f"the answer {answer!r} has no tokens")
    return int(ids[0])


def _read(
    model: LanguageModel, saes: Mapping[int, Dictionary], ids: list, wanted: list[int] | None, skipped: int
) -> tuple[Batch, BatchCodes]:
    tokens = padded(ids)
    place = np.arange(tokens.shape[1])
    lengths = np.array([len(i) for i in ids])
    taken = (place >= skipped) & (place < lengths[:, None])
    if any(d.config.token_config().skip_special for d in saes.values()):
        taken &= ~np.isin(tokens, special_ids(model.tokenizer))
    if not taken.any(axis=1).all():
        raise DataError("a text has no tokens that the dictionaries read; give longer texts")
    mask = mx.array(taken[..., None].astype(np.float32))
    last = mx.array(lengths - 1)
    sites = tuple(dict.fromkeys(site for d in saes.values() for site in d.config.read_sites))
    run = model.run(tokens, read=sites)
    batch = Batch(tokens, mask, last, last, np.zeros(0))
    answers = mx.argmax(batch.at_last(run.logits), axis=-1) if wanted is None else mx.array(wanted)
    batch = replace(batch, answers=answers)
    codes = {layer: _code(d, run.activations) * mask for layer, d in saes.items()}
    mx.eval(codes, answers)
    return replace(batch, log_probabilities=np.array(batch.answered(run.logits)).astype(np.float64)), BatchCodes(codes)


def _code(dictionary: Dictionary, activations: Mapping[Site, mx.array]) -> mx.array:
    rows = [activations[site].astype(mx.float32) for site in dictionary.config.read_sites]
    return dictionary.encode(rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-1)).astype(mx.float32)


def _changed(passes: Passes, batch: Batch, added: dict[Site, mx.array], read: Sequence[Site]) -> Any:
    edits = {site: lambda x, delta=delta: x + delta.astype(x.dtype) for site, delta in added.items()}
    return passes.model.run(batch.tokens, read=tuple(read), edit=edits)


def _gradients(passes: Passes, batch: Batch, layer: int, scalar: Any, read: Sequence[Site]) -> dict[Site, mx.array]:
    """Of a number computed from a pass, with respect to what a layer's dictionary writes."""
    where = passes.saes[layer].config.write_columns
    zeros = [mx.zeros((*batch.tokens.shape, part.stop - part.start)) for part in where.values()]

    def value(deltas: list[mx.array]) -> mx.array:
        return scalar(_changed(passes, batch, dict(zip(where, deltas, strict=True)), read))

    return dict(zip(where, mx.grad(value)(zeros), strict=True))


def _attributed(dictionary: Dictionary, code: mx.array, gradients: dict[Site, mx.array]) -> np.ndarray:
    """(F,) sum over positions of code times the gradient along each decoder row."""
    along = mx.zeros(code.shape)
    for site, rows in increments(dictionary, dictionary.W_dec.astype(mx.float32)).items():
        along = along + gradients[site] @ rows.T
    return np.array(mx.sum(mx.where(code != 0, code * along, 0), axis=(0, 1))).astype(np.float64)


def node_effects(passes: Passes, layer: int) -> np.ndarray:
    """(F,) gradient estimate of what answers lose against foils without each feature; mean over texts, logits."""
    total = np.zeros(passes.saes[layer].n_features)
    for batch, codes in zip(passes.batches, passes.codes, strict=True):

        def answered(run: Any, batch: Batch = batch) -> mx.array:
            return mx.sum(batch.contrasts(run.logits, passes.foils))

        gradients = _gradients(passes, batch, layer, answered, ())
        total += _attributed(passes.saes[layer], codes[layer], gradients)
    return total / len(passes.texts)


def edge_attributions(passes: Passes, source: int, target: int, features: Sequence[int]) -> np.ndarray:
    """(F of source, targets) gradient estimates of what each target feature's summed activation loses without each
    source feature; mean over texts. A feature that does not fire has exactly 0."""
    reads = passes.saes[target].config.read_sites
    out = np.zeros((passes.saes[source].n_features, len(features)))
    for batch, codes in zip(passes.batches, passes.codes, strict=True):
        code = codes[source]
        for j, feature in enumerate(features):

            def fired(run: Any, batch: Batch = batch, feature: int = feature) -> mx.array:
                return mx.sum((_code(passes.saes[target], run.activations) * batch.mask)[..., feature])

            gradients = _gradients(passes, batch, source, fired, reads)
            out[:, j] += _attributed(passes.saes[source], code, gradients)
    return out / len(passes.texts)


def ablated(
    passes: Passes, layer: int, features: Sequence[int], target: int | None = None, wanted: Sequence[int] = ()
) -> Ablated:
    """What is lost when features of a layer are set to 0 everywhere, the reconstruction error kept."""
    dictionary = passes.saes[layer]
    rows = dictionary.W_dec[mx.array(np.array(features, np.int32))].astype(mx.float32)
    reads = () if target is None else passes.saes[target].config.read_sites
    lost, answers = np.zeros(len(wanted)), []
    for batch, codes in zip(passes.batches, passes.codes, strict=True):
        added = increments(dictionary, -(codes.of(layer, features) @ rows))
        run = _changed(passes, batch, added, reads)
        if target is not None:
            after = _code(passes.saes[target], run.activations) * batch.mask
            difference = codes.of(target, wanted) - mx.take(after, mx.array(np.array(wanted, np.int32)), axis=-1)
            lost += np.array(mx.sum(difference, axis=(0, 1))).astype(np.float64)
        answers.append(np.array(batch.answered(run.logits)).astype(np.float64))
    return Ablated(lost / len(passes.texts), np.concatenate(answers))
