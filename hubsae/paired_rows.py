"""One pass over anchors of two models: moments for maps, codes for matching, and a sample of rows to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from hubsae import tokens
from hubsae.activations import harvest
from hubsae.anchors import SPLITS, AnchorSet
from hubsae.cooccurrence import CodePair
from hubsae.dictionary import Dictionary
from hubsae.errors import DataError
from hubsae.joint_moments import JointMoments
from hubsae.lm import LanguageModel
from hubsae.sites import Site

_OUTLIER = 10  # times the median length of a row
_SHARDS, _SHARD_BYTES = 10, 1 << 30
_FEWEST_SHARDS = 3


@dataclass(frozen=True)
class Rows:
    """Paired rows x (n, p), y (n, q); document (n,) and word (n,) of each: the piece of a word that ends there."""

    x: np.ndarray
    y: np.ndarray
    document: np.ndarray
    word: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def where(self, chosen: np.ndarray) -> "Rows":
        """Some of them."""
        return Rows(self.x[chosen], self.y[chosen], self.document[chosen], self.word[chosen])

    def swapped(self) -> "Rows":
        """The same with the two models exchanged."""
        return Rows(self.y, self.x, self.document, self.word)


@dataclass(frozen=True)
class Observed:
    """What was seen at the anchors.

    fit: moments by groups of documents; shifted: of the same rows with B's moved on by half of a batch; match: of the
    match split. rows: a sample of whole documents of the eval split. codes, words: per split "match" and "eval" the
    codes of both dictionaries, and the piece of a word that ends at each place. n_outliers: anchors left out because an
    activation there is more than ten times as long as the median.
    """

    fit: list[JointMoments]
    shifted: JointMoments
    match: JointMoments
    rows: Rows
    codes: dict[str, CodePair]
    words: dict[str, np.ndarray]
    n_outliers: int

    def fires(self) -> tuple[np.ndarray, np.ndarray]:
        """(F_A,), (F_B,) how often each feature fires in the match and eval splits."""
        counts = [codes.firings for codes in self.codes.values()]
        return sum(a for a, _ in counts), sum(b for _, b in counts)  # type: ignore[return-value]


def site_of(dictionary: Dictionary) -> Site:
    """The site of an SAE; `DataError` for what reads several, or writes others than it reads."""
    c = dictionary.config
    if c.kind != "sae":
        raise DataError(
            f"this {c.kind} reads {', '.join(c.reads)} and writes {', '.join(c.writes)}; only SAEs are aligned, which "
            "write the one site that they read"
        )
    return c.read_sites[0]


def observe(
    dictionaries: Sequence[Dictionary],
    models: Sequence[LanguageModel],
    anchors: AnchorSet,
    *,
    eval_rows: int = 20_000,
    seed: int = 0,
    progress: bool = False,
) -> Observed:
    """Read the anchors once with both models, and keep what alignment needs; memory grows with the codes alone:
    8 bytes for each active feature of a place in the match and eval splits."""
    sites = [site_of(dictionary).of(m) for m, dictionary in enumerate(dictionaries)]
    p, q = (dictionary.config.d_in for dictionary in dictionaries)
    pass_ = _Pass(dictionaries, anchors, _sampled(anchors, eval_rows, seed))
    start = 0
    with _bar(progress, anchors.n) as bar:
        for group in tokens.groups(anchors.chunks, p + q):
            rows = harvest(models, sites, group).rows
            pass_.add(rows[:, :p], rows[:, p:], slice(start, start + len(rows)))
            start += len(rows)
            bar.update(len(rows))
    return pass_.observed()


def _sampled(anchors: AnchorSet, n: int, seed: int) -> np.ndarray:
    """(documents,) bool: documents of the eval split, drawn at random until they have n anchors."""
    sizes = np.bincount(anchors.document, minlength=len(anchors.split))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(anchors.split == SPLITS.index("eval")))
    before = np.cumsum(sizes[order]) - sizes[order]
    found = np.zeros(len(anchors.split), bool)
    found[order[before < n]] = True
    return found


class _Pass:
    def __init__(self, dictionaries: Sequence[Dictionary], anchors: AnchorSet, sampled: np.ndarray):
        self._dictionaries, self._anchors, self._sampled = dictionaries, anchors, sampled
        p, q = (d.config.d_in for d in dictionaries)
        n_shards = min(_SHARDS, _SHARD_BYTES // (8 * (p + q) ** 2))
        self._fit = [JointMoments(p, q) for _ in range(n_shards if n_shards >= _FEWEST_SHARDS else 1)]
        self._shifted, self._match = JointMoments(p, q), JointMoments(p, q)
        self._limits: list[float] = []
        self._rows: list[Rows] = []
        self._parts: dict[str, list[Any]] = {"match": [], "eval": []}
        self._n_outliers = 0

    def add(self, x: np.ndarray, y: np.ndarray, where: slice) -> None:
        document, word = self._anchors.document[where], self._anchors.word[where]
        lengths = [np.linalg.norm(rows, axis=1) for rows in (x, y)]
        if not self._limits:
            self._limits = [float(_OUTLIER * np.median(length)) for length in lengths]
            shift = np.concatenate([rows.mean(axis=0, dtype=np.float64) for rows in (x, y)])
            for moments in (*self._fit, self._shifted, self._match):
                moments.shift = shift
        good = (lengths[0] <= self._limits[0]) & (lengths[1] <= self._limits[1])
        self._n_outliers += int((~good).sum())
        split = self._anchors.split[document]
        masks = {name: good & (split == number) for number, name in enumerate(SPLITS)}
        if masks["fit"].any():
            self._add_fit(x[masks["fit"]], y[masks["fit"]], document[masks["fit"]])
        self._match.add(x[masks["match"]], y[masks["match"]])
        for name in self._parts:
            chosen = masks[name]
            if chosen.any():
                codes = [_codes(d, rows[chosen]) for d, rows in zip(self._dictionaries, (x, y), strict=True)]
                self._parts[name].append((*codes, document[chosen], word[chosen]))
        kept = masks["eval"] & self._sampled[document]
        self._rows.append(Rows(x[kept], y[kept], document[kept], word[kept]))

    def _add_fit(self, x: np.ndarray, y: np.ndarray, document: np.ndarray) -> None:
        for number, moments in enumerate(self._fit):
            mine = document % len(self._fit) == number
            moments.add(x[mine], y[mine])
        if document[0] != document[-1]:  # of one document alone nothing can be moved on to another
            self._shifted.add(x, np.roll(y, len(y) // 2, axis=0))

    def observed(self) -> Observed:
        codes, words = {}, {}
        for name, parts in self._parts.items():
            if not parts:
                continue
            a, b, document, word = zip(*parts, strict=True)
            stacks = [scipy.sparse.vstack(matrices, format="csc") for matrices in (a, b)]
            codes[name] = CodePair(stacks[0], stacks[1], np.concatenate(document))
            words[name] = np.concatenate(word)
        rows = [np.concatenate([getattr(part, name) for part in self._rows]) for name in Rows.__dataclass_fields__]
        return Observed(self._fit, self._shifted, self._match, Rows(*rows), codes, words, self._n_outliers)


def _codes(dictionary: Dictionary, rows: np.ndarray) -> Any:
    """(n, F) CSR of a dictionary's codes; `DataError` where one is not finite."""
    found = scipy.sparse.vstack([code.csr for _, code in dictionary.encode_slices(rows)], format="csr")
    if not np.isfinite(found.data).all():
        raise DataError(
            f"{dictionary.label}: codes that are not finite at some anchors; the dictionary overflows there"
        )
    found.data = found.data.astype(np.float32, copy=False)
    return found


def _bar(progress: bool, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="anchor", unit_scale=True, desc="anchors", disable=not progress)
