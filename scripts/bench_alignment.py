"""Time and memory of matching two dictionaries' features, on codes with the spread of real ones.

python scripts/bench_alignment.py [--features 16384] [--anchors 200000] [--k 32] [--width 768]

Codes are drawn, not read: feature f fires in proportion to 1 / (10 + f), 60 % of B's active features are A's. Half of
the anchors go to the fit split, whose rows are drawn too, in the width given; a quarter each to matching and judging.
"""

import hubsae  # noqa: F401, I001  (first: it loads a tuned BLAS before mlx)

import argparse
import resource
import sys
import time
from typing import Any

import numpy as np
import scipy.sparse

from hubsae import maps
from hubsae.align_config import AlignConfig
from hubsae.backend import describe
from hubsae.cooccurrence import CodePair
from hubsae.joint_moments import JointMoments
from hubsae.paired_rows import Observed, Rows
from hubsae.pairing import pair_up

_ROWS_AT_ONCE = 20_000


def codes(rng: np.random.Generator, n: int, n_features: int, k: int) -> CodePair:
    """Codes of both sides at n places, documents of 64."""
    weights = 1 / np.arange(10, n_features + 10)
    first = rng.choice(n_features, size=(n, k), p=weights / weights.sum())
    other = rng.choice(n_features, size=(n, k), p=weights / weights.sum())
    second = np.where(rng.random((n, k)) < 0.6, first, other)

    def matrix(ids: np.ndarray) -> Any:
        values = rng.exponential(1, ids.size).astype(np.float32)
        starts = np.arange(0, n * k + 1, k)
        found = scipy.sparse.csr_matrix((values, ids.ravel().astype(np.int32), starts), shape=(n, n_features))
        found.sum_duplicates()
        return found.tocsc()

    return CodePair(matrix(first), matrix(second), np.arange(n) // 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--anchors", type=int, default=200_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--width", type=int, default=768)
    arguments = parser.parse_args()
    rng, n, width = np.random.default_rng(0), arguments.anchors, arguments.width
    by_split = {name: codes(rng, n // 4, arguments.features, arguments.k) for name in ("match", "eval")}
    started = time.time()
    moments = JointMoments(width, width)
    spent = 0.0
    for start in range(0, n // 2, _ROWS_AT_ONCE):
        x, y = (rng.standard_normal((min(_ROWS_AT_ONCE, n // 2 - start), width), np.float32) for _ in range(2))
        began = time.time()
        moments.add(x, x + y)
        spent += time.time() - began
    began = time.time()
    fitted = [maps.procrustes(moments), maps.ridge(moments, maps.best_penalty(moments, moments))]
    print(f"moments of {n // 2:,} pairs of rows {spent:.1f} s, maps {time.time() - began:.1f} s")
    decoders = [rng.standard_normal((arguments.features, width)) for _ in range(2)]
    words = {name: rng.integers(0, 5000, n // 4) for name in by_split}
    nothing = np.zeros((0, width), np.float32)
    rows = Rows(nothing, nothing, np.zeros(0, int), np.zeros(0, int))
    observed = Observed([moments], moments, moments, rows, by_split, words, 0)
    started = time.time()
    found = pair_up(observed, decoders[0], decoders[1], fitted[0], AlignConfig())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 30 if sys.platform == "darwin" else 1 << 20)
    backend = describe()
    print(f"{backend.device_name}, {backend.blas_name}")
    print(
        f"{arguments.features:,} x {arguments.features:,} features, {n:,} anchors: {time.time() - started:.0f} s, peak "
        f"{peak:.2f} GB, {len(found.candidates):,} candidates, {int(found.pairs['confirmed'].sum()):,} confirmed pairs"
    )


if __name__ == "__main__":
    main()
