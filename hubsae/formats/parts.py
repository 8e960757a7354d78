"""`Parts`: the arrays of a dictionary on the way to ours, and the exact identities that fold other conventions away.

Written as other libraries do, with row vectors: pre = (n(x) - a b_dec) W_enc + b_enc, y = n^-1(act(pre) W_dec + b_dec).
Each method returns parts of which the same code and the same reconstruction come out, from raw activations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from hubsae.threads import spans

_BLOCK_VALUES = 1 << 22

Array = np.ndarray


@dataclass(frozen=True)
class Parts:
    """W_enc (d_in, F), b_enc (F,), W_dec (F, d_out), b_dec (d_out,), W_skip (d_in, d_out); `learned` by the sparsity.

    folded: what was folded away so far, in words.
    """

    W_enc: Array
    b_enc: Array
    W_dec: Array
    b_dec: Array
    learned: dict[str, Array] = field(default_factory=dict)
    W_skip: Array | None = None
    folded: tuple[str, ...] = ()

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    def arrays(self) -> dict[str, mx.array]:
        """As a dictionary holds them."""
        skip = {} if self.W_skip is None else {"W_skip": self.W_skip}
        own = {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
            **skip,
            **self.learned,
        }
        return {name: mx.array(np.asarray(array, np.float32)) for name, array in own.items()}

    def _noting(self, what: str, **changes) -> "Parts":
        return replace(self, folded=(*self.folded, what), **changes)

    def subtracting(self, bias: Array, what: str = "the decoder's bias is subtracted before encoding") -> "Parts":
        """Of an encoder that reads x - bias, (d_in,): b_enc takes it up."""
        return self._noting(what, b_enc=self.b_enc - product(bias, self.W_enc))

    def scaled(self, scale: float | Array, back: float | Array | None = None) -> "Parts":
        """Of what reads x · scale and gives y · back (1 / scale if not given), each a number or one a column."""
        into = np.reshape(scale, (-1, 1)).astype(np.float32)
        out = (1 / np.asarray(scale, np.float64) if back is None else np.asarray(back)).astype(np.float32)
        return self._noting(
            "activations are scaled before encoding, and back after decoding",
            W_enc=self.W_enc * into,
            W_dec=self.W_dec * out,
            b_dec=self.b_dec * out,
            W_skip=None if self.W_skip is None else into * self.W_skip * out,
        )

    def shifted(self, mean: Array) -> "Parts":
        """Of what reads x - mean and gives y + mean, (d,)."""
        return replace(self.subtracting(mean, "the mean row is subtracted"), b_dec=self.b_dec + mean)

    def after_gain(self, gain: Array, bias: Array) -> "Parts":
        """Of what reads (x - bias) / gain, (d_in,) each: a norm's output before its own gain and bias."""
        into = (1 / gain.astype(np.float64)).astype(np.float32)[:, None]
        W_skip = None if self.W_skip is None else into * self.W_skip
        found = replace(self, W_enc=self.W_enc * into, W_skip=W_skip).subtracting(bias, "the norm's gain and bias")
        return found if W_skip is None else replace(found, b_dec=found.b_dec - product(bias, W_skip))

    def centred(self) -> "Parts":
        """Of an encoder that reads rows without their mean over columns: the code is the same on rows that have one."""
        return self._noting(
            "rows lose their mean over columns before encoding (center_writing_weights); it is not reconstructed",
            W_enc=self.W_enc - self.W_enc.mean(axis=0, dtype=np.float64).astype(np.float32),
        )

    def in_decoder_norms(self) -> "Parts":
        """Features in units of their decoder's norm (F,): of what chooses features by pre-code times norm."""
        norms = decoder_norms(self.W_dec)
        return self._noting(
            "features are in units of their decoder's norm",
            W_enc=self.W_enc * norms,
            b_enc=self.b_enc * norms,
            W_dec=self.W_dec / norms[:, None],
        )

    def gated(self, b_gate: Array, b_mag: Array, r_mag: Array) -> "Parts":
        """Of a gate x W_enc + b_gate and a magnitude x W_enc exp(r_mag) + b_mag, where `b_enc` holds what is folded.

        b_enc has to be 0 before anything is folded into it.
        """
        scale = np.exp(r_mag.astype(np.float64))
        shift = b_mag - b_gate.astype(np.float64) * scale
        learned = {"gate_scale": scale.astype(np.float32), "gate_shift": shift.astype(np.float32)}
        return replace(self, b_enc=self.b_enc + b_gate, learned={**self.learned, **learned})


def decoder_norms(W_dec: Array) -> Array:
    """(F, d) -> (F,) Euclidean norms, 1 for a feature that writes nothing."""
    norms = by_blocks(W_dec, lambda part: np.linalg.norm(part.astype(np.float64), axis=1))
    return np.where(norms > 0, norms, 1).astype(np.float32)


def product(vector: Array, matrix: Array) -> Array:
    """(d,) (d, F) -> (F,) float32, summed in double precision."""
    wide = vector.astype(np.float64)
    return by_blocks(matrix.T, lambda part: part.astype(np.float64) @ wide).astype(np.float32)


def by_blocks(matrix: Array, of: Callable[[Array], Array]) -> Array:
    """`of` some rows at a time, so that no copy of the whole matrix is made."""
    rows = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    return np.concatenate([of(matrix[part]) for part in spans(len(matrix), rows)])
