"""Two models and two dictionaries whose correspondence is known, for judging alignment and matching.

The draws are made in the order that the reference values of test_golden.py were computed with: `digest` of
`planted(0)` says whether the data are the same.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Planted:
    """Rows x, y; decoder rows and codes of two dictionaries; `partner` (F_A,) is the true match, -1 for none.

    `second` is the other half where a feature of A is split in two in B; dead_*: features that never fire.
    """

    x: np.ndarray
    y: np.ndarray
    decoder_a: np.ndarray
    decoder_b: np.ndarray
    codes_a: np.ndarray
    codes_b: np.ndarray
    rotation: np.ndarray
    partner: np.ndarray
    second: np.ndarray
    document: np.ndarray
    dead_a: np.ndarray
    dead_b: np.ndarray

    def digest(self) -> str:
        """A mark of rows and decoders, rounded to six decimals."""
        arrays = (self.x, self.y, self.decoder_a, self.decoder_b)
        return hashlib.sha256(b"".join(np.round(a, 6).astype("<f8").tobytes() for a in arrays)).hexdigest()[:16]


def rotation_of(rng: np.random.Generator, d: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    return q * np.sign(np.diag(r))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def planted(
    seed: int = 0,
    width_a: int = 64,
    width_b: int = 64,
    *,
    n_shared: int = 160,
    only_a: int = 64,
    only_b: int = 96,
    n_dead: int = 16,
    n_documents: int = 200,
    rows_each: int = 100,
    n_split: int = 0,
    noise: float = 0.25,
) -> Planted:
    """B's shared directions are A's, rotated and blurred; its codes are A's with other gains, each losing some firings.

    Features cluster by document. With `n_split`, as many features of A fire in B as two, by even and odd documents.
    """
    rng = np.random.default_rng(seed)
    size_a, size_b = n_shared + only_a + n_dead, n_shared + only_b + n_dead
    rotation = rotation_of(rng, max(width_a, width_b))[:width_a, :width_b]
    decoder_a = unit(rng.standard_normal((size_a, width_a)))
    decoder_b = unit(rng.standard_normal((size_b, width_b)))
    place_b, place_a = rng.permutation(size_b), rng.permutation(size_a)
    partner = np.full(size_a, -1)
    for i, j in zip(place_a[:n_shared], place_b[:n_shared], strict=True):
        partner[i] = j
        blurred = decoder_a[i] @ rotation + noise * rng.standard_normal(width_b) / np.sqrt(width_b)
        decoder_b[j] = unit(blurred[None])[0]
    document = np.repeat(np.arange(n_documents), rows_each)
    n = len(document)

    def codes(size: int) -> np.ndarray:
        rate = 10 ** rng.uniform(-2.7, -1.0, size)
        activity = rng.gamma(0.5, 2.0, (n_documents, size))[document]
        fires = rng.random((n, size)) < np.minimum(rate * activity, 0.9)
        return np.where(fires, np.exp(0.5 * rng.standard_normal((n, size))), 0.0)

    shared = codes(n_shared)
    codes_a, codes_b = np.zeros((n, size_a)), np.zeros((n, size_b))
    codes_a[:, place_a[:n_shared]] = shared * (rng.random(shared.shape) >= 0.05)
    gain = np.exp(0.3 * rng.standard_normal(n_shared))
    kept = rng.random(shared.shape) >= 0.05
    codes_b[:, place_b[:n_shared]] = shared * kept * gain * np.exp(0.15 * rng.standard_normal(shared.shape))
    codes_a[:, place_a[n_shared : n_shared + only_a]] = codes(only_a)
    codes_b[:, place_b[n_shared : n_shared + only_b]] = codes(only_b)
    second = np.full(size_a, -1)
    even = document % 2 == 0
    for t in range(n_split):
        i, j, other = place_a[t], place_b[t], place_b[n_shared + only_b - 1 - t]
        second[i] = other
        codes_b[:, other] = codes_b[:, j] * ~even
        codes_b[:, j] *= even
        decoder_b[other] = unit((decoder_b[j] + 0.4 * rng.standard_normal(width_b) / np.sqrt(width_b))[None])[0]
    x = 3 * rng.standard_normal(width_a) + codes_a @ decoder_a + 0.05 * rng.standard_normal((n, width_a))
    y = 3 * rng.standard_normal(width_b) + 1.7 * (codes_b @ decoder_b) + 0.05 * rng.standard_normal((n, width_b))
    dead_a, dead_b = place_a[n_shared + only_a :], place_b[n_shared + only_b :]
    return Planted(x, y, decoder_a, decoder_b, codes_a, codes_b, rotation, partner, second, document, dead_a, dead_b)
