"""The planted models as the rooms of alignment see them: what is observed at anchors, and which pairs are true."""

from functools import cache

import numpy as np
import scipy.sparse
from planted import Planted, planted

from hubsae.cooccurrence import CodePair
from hubsae.joint_moments import JointMoments
from hubsae.matching import Edges
from hubsae.paired_rows import Observed, Rows

SHARDS = 10


@cache
def planted_zero() -> Planted:
    """planted(0), made once: nobody writes to it."""
    return planted(0)


def code_pair(a: np.ndarray, b: np.ndarray, document: np.ndarray) -> CodePair:
    """Dense codes as `CodePair` has them, in single precision."""
    sparse = [scipy.sparse.csc_matrix(codes.astype(np.float32)) for codes in (a, b)]
    return CodePair(sparse[0], sparse[1], document)


def observed(
    x: np.ndarray, y: np.ndarray, codes_a: np.ndarray, codes_b: np.ndarray, document: np.ndarray, words: np.ndarray
) -> Observed:
    """Of every ten documents three are for the map, four for matching and three for judging."""
    part = document % 10
    masks = {"fit": part < 3, "match": (part >= 3) & (part < 7), "eval": part >= 7}
    shift = np.r_[x.mean(axis=0), y.mean(axis=0)]

    def moments(chosen: np.ndarray, moved: int = 0) -> JointMoments:
        return JointMoments.of(x[chosen], np.roll(y[chosen], moved, axis=0), shift)

    seen = ("match", "eval")
    return Observed(
        fit=[moments(masks["fit"] & (document // 10 % SHARDS == shard)) for shard in range(SHARDS)],
        shifted=moments(masks["fit"], int(masks["fit"].sum()) // 2),
        match=moments(masks["match"]),
        rows=Rows(*(rows[masks["eval"]] for rows in (x, y, document, words))),
        codes={name: code_pair(*(rows[masks[name]] for rows in (codes_a, codes_b, document))) for name in seen},
        words={name: words[masks[name]] for name in seen},
        n_outliers=0,
    )


def observed_of(d: Planted, n_words: int = 50, seed: int = 0) -> Observed:
    """What is seen of planted models, with words that mean nothing."""
    words = np.random.default_rng(seed).integers(0, n_words, len(d.x))
    return observed(d.x, d.y, d.codes_a, d.codes_b, d.document, words)


def all_edges(scores: np.ndarray) -> Edges:
    """Every pair of a matrix of scores (F_A, F_B)."""
    a, b = np.indices(scores.shape)
    return Edges(a.ravel(), b.ravel(), scores.ravel())


def hits(d: Planted, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(m,) bool: which pairs are true."""
    return d.partner[a] == b
