"""Which texts and tokens to train on: without duplicates, and chosen so that they differ."""

import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from hubsae.activations import Block, Chunks
from hubsae.errors import ConfigError, DataError
from hubsae.settings import check_types
from hubsae.tokens import Chunk, groups, take_rows

STRATEGIES = ("kmeans", "variance")
_SHINGLE, _HASHES, _BANDS = 5, 64, 16
_FIT_ROWS = 20_000


@dataclass(frozen=True)
class Curation:
    """How rows are chosen from a pool of pool_factor times as many.

    strategy: "kmeans" takes equally many rows of each of n_clusters clusters of activations, as far as they go
    (coverage); "variance" takes the texts whose own activations vary most. min_norm: rows of a smaller norm are left
    out.
    near_duplicates: texts whose sets of 5-word sequences have a Jaccard similarity of at least this, as estimated by
    MinHash (Broder 1997), are left out but the first; exact copies always are (None: only those). Memory: the pool's
    tokens, some 10 bytes each, and about 700 bytes a text. seed: of every random draw.
    """

    strategy: str = "kmeans"
    pool_factor: int = 4
    n_clusters: int = 64
    min_norm: float = 0.0
    near_duplicates: float | None = 0.8
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        near = self.near_duplicates
        rules = {
            "strategy": (self.strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}"),
            "pool_factor": (self.pool_factor >= 1, "at least 1"),
            "n_clusters": (self.n_clusters >= 2, "at least 2"),
            "min_norm": (self.min_norm >= 0, "0 or more"),
            "near_duplicates": (near is None or 0.5 <= near <= 1, "a similarity from 0.5 to 1, or None"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (fine, expected) in rules.items():
            if not fine:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {expected}")


def distinct(texts: Iterable[str], near: float | None) -> Iterator[str]:
    """The texts without copies (but for white space and case) and without those as similar as `near` to one before."""
    rng = np.random.default_rng(0)
    factors, shifts = (rng.integers(1, 1 << 64, _HASHES, dtype=np.uint64) | np.uint64(1) for _ in range(2))
    exact: set[int] = set()
    kept: list[np.ndarray] = []
    buckets: dict[bytes, list[int]] = {}
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        key = hash(tuple(words))
        if key in exact:
            continue
        exact.add(key)
        if near is not None:
            signature = _signature(words, factors, shifts)
            bands = [bytes([i]) + part.tobytes() for i, part in enumerate(np.split(signature, _BANDS))]
            candidates = {number for band in bands for number in buckets.get(band, ())}
            if any((kept[number] == signature).mean() >= near for number in candidates):
                continue
            for band in bands:
                buckets.setdefault(band, []).append(len(kept))
            kept.append(signature)
        yield text


def _signature(words: Sequence[str], factors: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(_HASHES,) MinHash of the text's word sequences: the share of equal entries estimates Jaccard similarity."""
    n = max(1, len(words) - _SHINGLE + 1)
    shingles = {zlib.crc32(" ".join(words[i : i + _SHINGLE]).encode()) for i in range(n)}
    values = np.fromiter(shingles, np.uint64)[:, None]
    return ((values * factors + shifts) >> np.uint64(32)).min(axis=0).astype(np.uint32)  # multiply-shift hashing


def chosen(
    stream: Iterable[Chunk], harvest: Callable[[list[Chunk]], Block], n_rows: int, width: int, how: Curation
) -> Chunks:
    """Chunks with `n_rows` rows in all, chosen from the first pool_factor times as many of `stream`."""
    pool = list(take_rows(stream, n_rows * how.pool_factor))
    if not pool:
        raise DataError("no texts with tokens that count, so there is nothing to choose from")
    order = np.random.default_rng(how.seed).permutation(len(pool))
    picked = _by_cluster if how.strategy == "kmeans" else _by_variance
    masks = picked([pool[i] for i in order], harvest, n_rows, width, how)
    found: list[Chunk | None] = [None] * len(pool)
    for i, mask in zip(order, masks, strict=True):
        found[i] = pool[i].rows_where(mask) if mask.any() else None
    chunks = Chunks(chunk for chunk in found if chunk is not None)
    if not chunks:
        raise DataError(f"none of {sum(c.n_rows for c in pool):,} rows has a norm of at least min_norm={how.min_norm}")
    return chunks


def _rows(pool: list[Chunk], harvest: Callable[[list[Chunk]], Block], width: int) -> Iterator[tuple[int, np.ndarray]]:
    """For each chunk of the pool, in order, its first row's number in the pool and its rows (n, width)."""
    start = 0
    for group in groups(pool, width):
        block = harvest(group)
        order = np.lexsort((block.position, block.chunk))
        ends = np.cumsum([chunk.n_rows for chunk in group])
        for rows in np.split(block.rows[order], ends[:-1]):
            yield start, rows
            start += len(rows)


def _by_cluster(
    pool: list[Chunk], harvest: Callable[[list[Chunk]], Block], n_rows: int, width: int, how: Curation
) -> list[np.ndarray]:
    cluster = np.full(sum(chunk.n_rows for chunk in pool), -1)
    waiting: list[tuple[int, np.ndarray]] = []
    centres: np.ndarray | None = None
    scale = 1.0

    def assign() -> None:
        for start, rows in waiting:
            labels = vq(rows / scale, centres)[0]
            cluster[start : start + len(rows)] = np.where(np.linalg.norm(rows, axis=1) >= how.min_norm, labels, -1)
        waiting.clear()

    n_waiting = 0
    for start, rows in _rows(pool, harvest, width):  # the pool is in random order, so its first rows stand for all
        waiting.append((start, rows))
        n_waiting += len(rows)
        if centres is None and (n_waiting >= _FIT_ROWS or start + len(rows) == len(cluster)):
            sample = np.concatenate([rows for _, rows in waiting])
            scale = float(sample.std()) or 1.0
            n_clusters = min(how.n_clusters, len(sample))
            with warnings.catch_warnings():  # an empty cluster is one that nothing is taken from
                warnings.simplefilter("ignore", UserWarning)
                centres = kmeans2(sample / scale, n_clusters, minit="++", rng=np.random.default_rng(how.seed))[0]
        if centres is not None:
            assign()
    taken = _evenly(cluster, n_rows, np.random.default_rng(how.seed))
    return np.split(taken, np.cumsum([chunk.n_rows for chunk in pool])[:-1])


def _evenly(cluster: np.ndarray, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) mask of n_rows rows: equally many of each cluster, and all of those that have fewer."""
    taken = np.zeros(len(cluster), bool)
    members = sorted((rng.permutation(np.flatnonzero(cluster == c)) for c in np.unique(cluster[cluster >= 0])), key=len)
    left = n_rows
    for i, rows in enumerate(members):  # smallest first: what they lack goes to the others
        n = min(len(rows), left // (len(members) - i))
        taken[rows[:n]] = True
        left -= n
    return taken


def _by_variance(
    pool: list[Chunk], harvest: Callable[[list[Chunk]], Block], n_rows: int, width: int, how: Curation
) -> list[np.ndarray]:
    scores, masks = [], []
    for _, rows in _rows(pool, harvest, width):
        fine = np.linalg.norm(rows, axis=1) >= how.min_norm
        scores.append(float(rows[fine].var(axis=0).sum()) if fine.any() else -1.0)
        masks.append(fine)
    left = n_rows
    for i in np.argsort(scores)[::-1]:
        masks[i] &= np.cumsum(masks[i]) <= left
        left -= int(masks[i].sum())
    return masks
