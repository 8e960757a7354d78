"""One pass over texts that serves all features of a dictionary: numbers, examples, neighbours, promoted tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hubsae import relations, tokens
from hubsae.activations import Models, as_models, harvest, read_chunks
from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError
from hubsae.feature_file import MAX_VALUES, MAX_WIDTH
from hubsae.features import Features
from hubsae.firing import Firing
from hubsae.lm import LanguageModel
from hubsae.running import Firings, Kept, RowSample
from hubsae.settings import as_type, check_types
from hubsae.sparse import as_numpy
from hubsae.tokens import Chunk
from hubsae.unembed import residual_site, token_weights

_ROWS_AT_ONCE = 32_768
_MARKS = 32


@dataclass(frozen=True)
class SurveyConfig:
    """What is kept of every feature.

    top_examples, random_examples: how many, at most one of a chunk of text. tokens_before, tokens_after: how much text
    an example shows around its token; near the start of a chunk more of what comes after. neighbours: how many
    co-firing and similar features. promoted_tokens: how many tokens, raised and lowered. sampled_rows: tokens on which
    pairs of features are counted. seed: of all chance.
    """

    top_examples: int = 20
    random_examples: int = 20
    tokens_before: int = 20
    tokens_after: int = 11
    neighbours: int = 8
    promoted_tokens: int = 10
    sampled_rows: int = 65_536
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        for name in ("top_examples", "random_examples", "neighbours", "promoted_tokens", "sampled_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("tokens_before", "tokens_after"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        widths = {
            name: getattr(self, name) for name in ("top_examples", "random_examples", "neighbours", "promoted_tokens")
        }
        for name, width in {**widths, "tokens_before + 1 + tokens_after": self.window}.items():
            if width > MAX_WIDTH:
                raise ConfigError(f"{name}={width}: expected at most {MAX_WIDTH:,}")

    @property
    def window(self) -> int:
        """Tokens that an example shows."""
        return self.tokens_before + 1 + self.tokens_after


@dataclass(frozen=True)
class Survey:
    """All features, and the sample of rows (n, F) CSR on which pairs of them were counted."""

    features: Features
    sample: Any


def survey(
    dictionary: Dictionary,
    models: Models,
    texts: Any,
    config: SurveyConfig | None = None,
    *,
    max_tokens: int | None = None,
    data: str | None = None,
    text_column: str = "text",
    progress: bool = False,
) -> Survey:
    """What all features of a dictionary do on texts, of which at most `max_tokens` tokens are read.

    Codes stay sparse, and of the text only what is shown is kept, so memory does not grow with the texts: some
    F * (top_examples + random_examples) * (tokens shown) * 8 bytes. `data`: what the texts are called.
    """
    config, models = config or SurveyConfig(), as_models(models)
    if max_tokens is not None and as_type(max_tokens, int, "max_tokens") < 1:
        raise ConfigError(f"max_tokens={max_tokens}: expected at least 1")
    if not isinstance(config, SurveyConfig):
        raise ConfigError(f"config is a {type(config).__name__}: expected a SurveyConfig")
    size = dictionary.n_features * max(config.top_examples, config.random_examples) * config.window
    if size > MAX_VALUES:
        raise ConfigError(
            f"{size:,} tokens of examples for {dictionary.n_features:,} features: keep fewer or shorter ones"
        )
    stream = _chunks(dictionary, models, texts, max_tokens, text_column)
    c, rng = dictionary.config, np.random.default_rng(config.seed)
    firing = Firing(dictionary.n_features)
    around = config.tokens_before, config.tokens_after
    top = Kept(dictionary.n_features, config.top_examples, *around)
    random = Kept(dictionary.n_features, config.random_examples, *around)
    sample = RowSample(config.sampled_rows, rng)
    number = c.first_model  # whose tokens are shown
    documents: set[int] = set()
    with _bar(progress, max_tokens) as bar:
        for group in tokens.groups(stream, c.d_in, min(64 << 20, 4 * c.d_in * _ROWS_AT_ONCE)):
            firings, code = _firings(dictionary, models, group, number, firing)
            top.add(firings, firings.values)
            random.add(firings, rng.random(len(firings.values), np.float32))
            sample.add(code)
            documents.update(firings.documents.tolist())
            bar.update(code.shape[0])
    if not firing.n_tokens:
        raise DataError("the texts have no tokens that count, so there is nothing to learn about features")
    if not all(np.isfinite(total).all() for total in (firing.total, firing.maximum)):
        raise DataError("some features have values that are not finite; the dictionary overflows on these texts")
    columns = {
        **top.columns("top"),
        **random.columns("random"),
        **relations.cofiring(sample.code, config.neighbours),
        **relations.similar(as_numpy(dictionary.W_dec), config.neighbours),
        **token_weights(dictionary, models, np.flatnonzero(firing.n_active), config.promoted_tokens),
    }
    features = measured(
        dictionary, firing, n_documents=len(documents), data=data or f"{len(documents):,} texts", **columns
    )
    features.info.update(_info(columns, models, number, dictionary, config))
    features.info["sampled_rows"] = sample.code.shape[0]
    return Survey(features, sample.code)


def measured(dictionary: Dictionary, firing: Firing, **known: Any) -> Features:
    """What was summed of a dictionary's features, with the norms of its decoder and the mark that tells whose it is."""
    features = Features.of_firing(firing, **known, site_norms=site_norms(dictionary))
    marks = {"fingerprint": fingerprint(dictionary), "sparsity": dictionary.config.sparsity}
    features.info.update(sites=list(dictionary.config.writes), **marks)
    return features


def fingerprint(dictionary: Dictionary) -> dict[str, list[float]]:
    """A few numbers of each array that another dictionary would not have: sums of some features with changing signs."""
    some = np.linspace(0, dictionary.n_features - 1, min(_MARKS, dictionary.n_features)).astype(int)
    marks = {}
    for name, array in dictionary.arrays().items():
        values = as_numpy(array)
        if dictionary.n_features not in values.shape or name in ("b_dec", "W_skip"):
            continue
        rows = values.T if name == "W_enc" else values
        rows = rows[some].reshape(len(some), -1)
        signs = np.where(np.arange(rows.shape[1]) % 2, -1.0, 1.0)
        marks[name] = [float(f"{value:.4g}") for value in rows @ signs]
    return marks


def belongs(features: Features, dictionary: Dictionary) -> bool:
    """Whether features are those of a dictionary, as far as their marks tell; other precisions of it pass."""
    if features.n_features != dictionary.n_features:
        return False
    theirs, rule = features.info.get("fingerprint"), features.info.get("sparsity")
    if rule is not None and rule != dictionary.config.sparsity:
        return False
    return theirs is None or same_marks(theirs, dictionary)


def same_marks(marks: dict[str, list[float]], dictionary: Dictionary) -> bool:
    """Whether a fingerprint is that of a dictionary, up to its precision."""
    own = fingerprint(dictionary)
    return set(own) == set(marks) and all(_close(marks[name], values) for name, values in own.items())


def same_dictionary(one: Dictionary, other: Dictionary) -> bool:
    """Whether two are one and the same, as far as configs and fingerprints tell."""
    return one is other or (one.config == other.config and same_marks(fingerprint(one), other))


def _close(theirs: list[float], own: list[float]) -> bool:
    if len(theirs) != len(own):
        return False
    return np.allclose(theirs, own, rtol=0.02, atol=0.02 * float(np.abs(own).mean()))


def site_norms(dictionary: Dictionary) -> np.ndarray:
    """(F, sites) norms of the decoder rows at every written site."""
    rows, where = as_numpy(dictionary.W_dec), dictionary.config.write_columns
    return np.stack([np.linalg.norm(rows[:, part], axis=1) for part in where.values()], axis=1)


def _chunks(
    dictionary: Dictionary, models: Sequence[LanguageModel], texts: Any, max_tokens: int | None, text_column: str
) -> Iterator[Chunk]:
    config = replace(dictionary.config.token_config(), text_column=text_column)
    stream = read_chunks(models, texts, config)
    return stream if max_tokens is None else tokens.take_rows(stream, max_tokens)


def _firings(
    dictionary: Dictionary, models: Sequence[LanguageModel], group: list[Chunk], number: int, firing: Firing
) -> tuple[Firings, Any]:
    """The codes of a group of chunks, feature by feature and as CSR; what they sum to goes into `firing`."""
    import scipy.sparse

    block = harvest(models, dictionary.config.read_sites, group)
    matrices = []
    for _, code in dictionary.encode_slices(block.rows):
        firing.add(code.places)
        matrices.append(code.csr)
    code = scipy.sparse.vstack(matrices, format="csr")
    columns = code.tocsc()
    shown = [chunk.of(number) for chunk in group]
    starts = np.concatenate([[0], np.cumsum([len(chunk.ids) for chunk in shown])])
    row_of = np.full(starts[-1], -1, np.int64)
    row_of[starts[block.chunk] + block.position] = np.arange(len(block.chunk))
    return (
        Firings(
            columns.indptr,
            columns.indices,
            columns.data,
            block.chunk,
            block.position,
            np.concatenate([chunk.ids for chunk in shown]),
            starts,
            row_of,
            np.array([chunk.document for chunk in shown], np.int32),
        ),
        code,
    )


def _info(
    columns: dict, models: Sequence[LanguageModel], number: int, dictionary: Dictionary, config: SurveyConfig
) -> dict[str, Any]:
    site = residual_site(dictionary, models)
    shown, promoted = ("top_tokens", "random_tokens"), ("promoted_ids", "suppressed_ids")
    info: dict[str, Any] = {"window": config.window}
    if site is None or site.model == number:
        info["vocabulary"] = _vocabulary(models[number], columns, (*shown, *promoted))
    else:
        info["vocabulary"] = _vocabulary(models[number], columns, shown)
        info["promoted_vocabulary"] = _vocabulary(models[site.model], columns, promoted)
    return info


def _vocabulary(model: LanguageModel, columns: dict, names: Sequence[str]) -> dict[str, str]:
    """Texts of the token ids in some columns."""
    used = np.unique(np.concatenate([np.unique(columns[name]) for name in names if name in columns]))
    return {str(i): text for i, text in tokens.token_texts(model.tokenizer, used[used >= 0].tolist()).items()}


def _bar(progress: bool, total: int | None) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="token", unit_scale=True, desc="features", disable=not progress)
