"""How good a dictionary is: fidelity on held-out rows, and behaviour with the reconstruction spliced into the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import metrics, tokens, vectorised
from hubsae.activations import Models, as_models, harvest, read_chunks, width
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.firing import Firing
from hubsae.lm import LanguageModel, Run, padded
from hubsae.metrics import Fidelity, Moments
from hubsae.sites import Site, columns
from hubsae.tokens import Chunk, groups

_TOKENS_PER_PASS = 1024
_MAX_SPLICED_ROWS = 20_000


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one dictionary on some texts; `metrics.Fidelity` and `metrics.recovered` hold the formulas.

    fvu, explained_variance, l0, dead_share, cosine: over `n_tokens` rows. density: (F,) share of rows in which each
    feature is active; firing: with which values. ce_*: mean next-token cross-entropy in nats over `n_spliced_tokens`
    predictions, with the written sites replaced at the positions that count by the reconstruction, by zero, or by their
    mean. ce_recovered is against zero ablation, ce_recovered_mean against mean ablation; kl is KL(original || spliced)
    in nats. Of several models the predictions of all are taken together, and ce_recovered_per_model keeps them apart.
    fvu_per_site: as fvu, for the columns of each written site alone. intervals: 95 % bootstrap over documents.
    """

    n_tokens: int
    n_documents: int
    fvu: float
    explained_variance: float
    l0: float
    dead_share: float
    cosine: float
    density: np.ndarray = field(repr=False)
    firing: Firing = field(repr=False)
    n_spliced_tokens: int
    ce_original: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    ce_recovered: float
    ce_recovered_mean: float
    kl: float
    fvu_per_site: dict[str, float] = field(default_factory=dict)
    ce_recovered_per_model: tuple[float, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """For metrics.json: density as a histogram of log10 and its median where not 0; what is not finite as None."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        density = data.pop("density")
        del data["firing"]
        data["density_log10_histogram"] = density_histogram(density)
        data["density_median"] = float(np.median(density[density > 0])) if density.any() else None
        data["fvu_per_site"] = {site: _finite(value) for site, value in self.fvu_per_site.items()}
        data["ce_recovered_per_model"] = [_finite(value) for value in self.ce_recovered_per_model]
        data["intervals"] = {name: [_finite(v) for v in pair] for name, pair in self.intervals.items()}
        return {name: _finite(value) if isinstance(value, float) else value for name, value in data.items()}

    def __str__(self) -> str:
        rows = [
            ("fraction of variance unexplained", f"{self.fvu:.4f}", "fvu"),
            ("explained variance", f"{self.explained_variance:.4f}", ""),
            ("active features per token", f"{self.l0:.1f}", ""),
            ("features never active", f"{100 * self.dead_share:.1f} %", ""),
            ("cosine", f"{self.cosine:.4f}", ""),
            ("cross-entropy, original", f"{self.ce_original:.4f} nats", ""),
            ("  with the reconstruction", f"{self.ce_spliced:.4f} nats", ""),
            ("  with zeros", f"{self.ce_zero:.4f} nats", ""),
            ("  with the mean", f"{self.ce_mean:.4f} nats", ""),
            ("loss recovered against zeros", f"{self.ce_recovered:.4f}", "ce_recovered"),
            ("loss recovered against the mean", f"{self.ce_recovered_mean:.4f}", "ce_recovered_mean"),
            ("KL(original || spliced)", f"{self.kl:.4f} nats", "kl"),
        ]
        if len(self.fvu_per_site) > 1:
            rows[1:1] = [(f"  {site}", f"{value:.4f}", "") for site, value in self.fvu_per_site.items()]
        if len(self.ce_recovered_per_model) > 1:
            rows += [(f"  model {i}", f"{v:.4f}", "") for i, v in enumerate(self.ce_recovered_per_model)]
        lines = [f"on {self.n_tokens:,} tokens of {self.n_documents:,} documents"]
        for label, value, name in rows:
            low_high = self.intervals.get(name)
            interval = f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
            lines.append(f"{label:34} {value:>12}{interval}")
        return "\n".join(lines)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def density_histogram(density: np.ndarray) -> dict:
    """Counts of features by log10 of their density, in half decades from 1e-6 to 1; `never` counts zeros."""
    edges = np.arange(-6, 0.5, 0.5)
    alive = density[density > 0]
    counts, _ = np.histogram(np.clip(np.log10(alive), -6, 0), edges) if len(alive) else (np.zeros(12, int), None)
    return {
        "edges": [float(e) for e in edges],
        "counts": [int(c) for c in counts],
        "never": int((density == 0).sum()),
    }


def evaluate(
    dictionary: Dictionary,
    model: Models,
    texts: Any,
    *,
    max_rows: int = 50_000,
    max_spliced_rows: int = _MAX_SPLICED_ROWS,
    text_column: str = "text",
) -> Evaluation:
    """Judge a dictionary on texts that it was not trained on; reads at most `max_rows` tokens that count."""
    config = replace(dictionary.config.token_config(), text_column=text_column)
    chunks = list(tokens.take_rows(read_chunks(model, texts, config), max_rows))
    return evaluate_chunks(dictionary, model, chunks, max_spliced_rows=max_spliced_rows)


def evaluate_chunks(
    dictionary: Dictionary, model: Models, chunks: Sequence[Chunk], *, max_spliced_rows: int = _MAX_SPLICED_ROWS
) -> Evaluation:
    """`evaluate` on texts that are cut into chunks already."""
    return evaluate_together([dictionary], model, chunks, max_spliced_rows=max_spliced_rows)[0]


def evaluate_together(
    dictionaries: Sequence[Dictionary],
    model: Models,
    chunks: Sequence[Chunk],
    *,
    max_spliced_rows: int = _MAX_SPLICED_ROWS,
) -> list[Evaluation]:
    """`evaluate_chunks` of each of several that read and write the same sites.

    Activations are read once, and the model's own run and the ablations, which no dictionary takes part in, are shared.
    """
    if sum(chunk.n_rows for chunk in chunks) < 2:
        raise DataError("the texts have fewer than 2 tokens that count, so there is nothing to evaluate on")
    if len({(d.config.reads, d.config.writes) for d in dictionaries}) != 1:
        raise ConfigError("dictionaries that are evaluated together have to read and write the same sites")
    models = as_models(model)
    fits = _fits(dictionaries, models, chunks)
    spliced = list(tokens.take_rows(chunks, max_spliced_rows))
    with vectorised.exponentials():
        behaviours = _behaviours(dictionaries, models, spliced, fits[0].fidelity.moments.mean)
    return [_evaluation(fit, per_model, chunks) for fit, per_model in zip(fits, behaviours, strict=True)]


def _evaluation(fit: "_Fit", per_model: np.ndarray, chunks: Sequence[Chunk]) -> Evaluation:
    """From the sums of one dictionary; per_model (models, documents, 6)."""
    fidelity, sums = fit.fidelity, per_model.sum(axis=0)
    total = sums.sum(axis=0)
    intervals = {
        "fvu": metrics.bootstrap_interval(fit.per_document(), lambda s: s[0] / s[1]),
        **{name: metrics.bootstrap_interval(sums, lambda s, f=f: f(s)) for name, f in _BEHAVIOUR.items()},
    }
    means = total / total[0]
    return Evaluation(
        n_tokens=fidelity.n,
        n_documents=len({chunk.document for chunk in chunks}),
        fvu=fidelity.fvu,
        explained_variance=fidelity.explained_variance,
        l0=fidelity.l0,
        dead_share=fidelity.dead_share,
        cosine=fidelity.cosine,
        density=fidelity.density,
        firing=fit.firing,
        n_spliced_tokens=int(total[0]),
        ce_original=float(means[1]),
        ce_spliced=float(means[2]),
        ce_zero=float(means[3]),
        ce_mean=float(means[4]),
        kl=float(means[5]),
        ce_recovered=float(_BEHAVIOUR["ce_recovered"](total)),
        ce_recovered_mean=float(_BEHAVIOUR["ce_recovered_mean"](total)),
        fvu_per_site=fidelity.fvu_of({str(s): w for s, w in fit.dictionary.config.write_columns.items()}),
        ce_recovered_per_model=tuple(float(_BEHAVIOUR["ce_recovered"](m.sum(axis=0))) for m in per_model),
        intervals={name: pair for name, pair in intervals.items() if np.isfinite(pair).all()},
    )


# statistics of a row of sums: predictions, CE original, spliced, zero, mean, KL
_BEHAVIOUR: dict[str, Callable[[np.ndarray], float]] = {
    "ce_recovered": lambda s: metrics.recovered(s[1], s[2], s[3]),
    "ce_recovered_mean": lambda s: metrics.recovered(s[1], s[2], s[4]),
    "kl": lambda s: s[5] / s[0],
}


@dataclass
class _Fit:
    """Sums of one dictionary over all rows, and of each document's pieces the squared error and the moments."""

    dictionary: Dictionary
    fidelity: Fidelity
    firing: Firing
    parts: dict[int, list] = field(default_factory=dict)

    def add(self, x: np.ndarray, y: np.ndarray, documents: np.ndarray) -> None:
        """Take in rows (n, d_in), what belongs in their place (n, d_out), and the document of each."""
        errors = np.empty(len(y))
        for part, code in self.dictionary.encode_slices(x):
            y_hat = np.array(self.dictionary.decode(code, mx.array(x[part]) if self.dictionary.config.skip else None))
            self.fidelity.add(y[part], y_hat, code.active_counts())
            self.firing.add(code.places)
            errors[part] = np.square(y[part] - y_hat).sum(axis=1, dtype=np.float64)
        for document in np.unique(documents):
            mine = documents == document
            moments = Moments()
            moments.add(y[mine])
            self.parts.setdefault(int(document), []).append((errors[mine].sum(), moments))

    def per_document(self) -> np.ndarray:
        """(documents, 2): squared error, and scatter about the mean of all."""
        mean = self.fidelity.moments.mean
        rows = [
            (sum(e for e, _ in p), sum(m.scatter.sum() + m.n * np.square(m.mean - mean).sum() for _, m in p))
            for p in self.parts.values()
        ]
        return np.array(rows)


def _fits(dictionaries: Sequence[Dictionary], models: tuple[LanguageModel, ...], chunks: Sequence[Chunk]) -> list[_Fit]:
    """Fidelity and firing of each over all rows, which are read once."""
    c = dictionaries[0].config
    sites = tuple(dict.fromkeys((*c.read_sites, *c.write_sites)))
    where = columns(sites, [width(models, site) for site in sites])
    reads = np.concatenate([np.arange(where[s].start, where[s].stop) for s in c.read_sites])
    writes = np.concatenate([np.arange(where[s].start, where[s].stop) for s in c.write_sites])
    found = [_Fit(d, Fidelity(d.n_features), Firing(d.n_features)) for d in dictionaries]
    for group in groups(chunks, sum(width(models, site) for site in sites)):
        block = harvest(models, sites, group)
        x = block.rows if c.reads == c.writes else block.rows[:, reads]
        y = x if c.reads == c.writes else block.rows[:, writes]
        documents = np.array([chunk.document for chunk in group])[block.chunk]
        for fit in found:
            fit.add(x, y, documents)
    return found


def _behaviours(
    dictionaries: Sequence[Dictionary], models: tuple[LanguageModel, ...], chunks: Sequence[Chunk], mean: np.ndarray
) -> list[np.ndarray]:
    """Of each (models, documents, 6): `spliced_sums` of the reconstruction, zero and mean ablation, and its KL."""
    c, n = dictionaries[0].config, len(dictionaries)
    ablations = mx.zeros((1, len(mean))), mx.array(mean.astype(np.float32))[None]
    values = (*dictionaries, *(lambda _, value=value: value for value in ablations))
    sums = spliced_sums(c.read_sites, c.write_columns, models, chunks, values, n_kl=n)
    return [sums[..., [0, 1, 2 + i, 2 + n, 3 + n, 4 + n + i]] for i in range(n)]


def spliced_sums(
    reads: Sequence[Site],
    writes: dict[Site, slice],
    models: tuple[LanguageModel, ...],
    chunks: Sequence[Chunk],
    values: Sequence[Callable[[mx.array], mx.array]],
    n_kl: int = 1,
) -> np.ndarray:
    """(written models, documents, 2 + v + n_kl): predictions, summed CE as it is and with each of v values, and the KL
    to the first n_kl of them.

    values: what turns the rows of the read sites (n, d_in) into what replaces the columns of the written ones at the
    positions that count, (n, d_out) or (1, d_out).
    """
    written = sorted({site.model for site in writes})
    sums: list[dict[int, np.ndarray]] = [{} for _ in written]
    for batch in _passes(chunks):
        inputs = [_Input.of([chunk.of(number) for chunk in batch]) for number in range(len(models))]
        runs = [_read(reads, writes, number, models[number], given) for number, given in enumerate(inputs)]
        x = mx.concatenate([runs[s.model].rows[s] for s in reads], axis=-1)
        made = [value(x) for value in values]
        for number, into in zip(written, sums, strict=True):
            given, original = inputs[number], runs[number].log_probabilities
            assert original is not None
            rows, kl = [_nll(original, given.targets)], []
            for value in made:
                edited = models[number].run(given.ids, edit=replaced(writes, value, given.keep, number))
                changed = log_probabilities(edited, given.positions)
                rows.append(_nll(changed, given.targets))
                if len(kl) < n_kl:
                    kl.append(mx.sum(mx.exp(original) * (original - changed), axis=-1))
                mx.eval(rows[-1], *kl[-1:])  # or all values' probabilities would be held at once
            table = np.stack([np.array(r, dtype=np.float64) for r in (mx.ones_like(rows[0]), *rows, *kl)], axis=1)
            for document in np.unique(given.documents):
                into[int(document)] = into.get(int(document), 0) + table[given.documents == document].sum(axis=0)
    if not sums[0]:
        raise DataError("no chunk has two tokens, so there is no next token to predict")
    return np.stack([np.stack(list(of_model.values())) for of_model in sums])


@dataclass(frozen=True)
class _Input:
    """A padded batch of chunks as one model reads it, and the flat positions whose next token is known."""

    ids: np.ndarray
    keep: np.ndarray
    positions: mx.array
    targets: mx.array
    documents: np.ndarray

    @classmethod
    def of(cls, batch: Sequence[Chunk]) -> "_Input":
        ids = padded([chunk.ids for chunk in batch])
        keep = padded([chunk.keep for chunk in batch]).astype(bool)
        valid = np.zeros(ids.shape, bool)
        for row, chunk in enumerate(batch):
            valid[row, : len(chunk.ids) - 1] = True
        documents = np.array([chunk.document for chunk in batch])[np.nonzero(valid)[0]]
        positions = mx.array(np.flatnonzero(valid).astype(np.int32))
        return cls(ids, keep, positions, mx.array(ids[:, 1:][valid[:, :-1]]), documents)


@dataclass(frozen=True)
class _Reading:
    """Rows (n, width) of a model's read sites where they count, and its log-probabilities where it is written to."""

    rows: dict[Site, mx.array]
    log_probabilities: mx.array | None


def _read(
    sites: Sequence[Site], writes: dict[Site, slice], number: int, model: LanguageModel, given: _Input
) -> _Reading:
    reads = [site for site in sites if site.model == number]
    is_written = any(site.model == number for site in writes)
    run = model.run(given.ids, read=[site.of(0) for site in reads], logits=is_written)
    where = mx.array(np.flatnonzero(given.keep).astype(np.int32))
    rows = {}
    for site in reads:
        activation = run.activations[site.of(0)].astype(mx.float32)
        rows[site] = mx.take(activation.reshape(-1, activation.shape[-1]), where, axis=0)
    return _Reading(rows, log_probabilities(run, given.positions) if is_written else None)


def _passes(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Chunks of similar length together, small enough that the logits of a pass fit in memory."""
    out: list[list[Chunk]] = []
    for length, chunk in sorted(((_length(c), c) for c in chunks), key=lambda pair: pair[0]):
        if min(len(c.ids) for c in (chunk, *chunk.partners)) < 2:
            continue
        if not out or (len(out[-1]) + 1) * length > _TOKENS_PER_PASS:
            out.append([])
        out[-1].append(chunk)
    return out


def _length(chunk: Chunk) -> int:
    return max(len(c.ids) for c in (chunk, *chunk.partners))


def log_probabilities(run: Run, positions: mx.array) -> mx.array:
    """(n, V) log-probabilities of the next token at flat `positions`."""
    assert run.logits is not None
    picked = mx.take(run.logits.reshape(-1, run.logits.shape[-1]), positions, axis=0).astype(mx.float32)
    return picked - mx.logsumexp(picked, axis=-1, keepdims=True)


def _nll(log_probabilities: mx.array, targets: mx.array) -> mx.array:
    return -mx.take_along_axis(log_probabilities, targets[:, None], axis=1)[:, 0]


def replaced(
    writes: dict[Site, slice], value: mx.array, keep: np.ndarray, model: int = 0
) -> dict[Site, Callable[[mx.array], mx.array]]:
    """Edits of one model that put the columns of `value`, (n, d_out) or (1, d_out) for all, into the sites that are
    written, where `keep` (b, length) is true."""
    row_of = np.cumsum(keep.reshape(-1)) - 1 if len(value) > 1 else np.zeros(keep.size, np.int64)
    rows = mx.array(np.where(keep.reshape(-1), row_of, 0).astype(np.int32))
    mask = mx.array(keep)[..., None]

    def edit(where: slice) -> Callable[[mx.array], mx.array]:
        def put(x: mx.array) -> mx.array:
            spread = mx.take(value[:, where], rows, axis=0).reshape(*keep.shape, -1)
            return mx.where(mask, spread.astype(x.dtype), x)

        return put

    return {s.of(0): edit(where) for s, where in writes.items() if s.model == model}
