"""How each sparsity is trained: its own parameters, its code with gradients, its penalty, and what it has learnt.

Pre-codes, codes and thresholds are those of scaled rows (mean squared norm 1), so settings mean the same for any model.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from hubsae import sparsity
from hubsae.recipe import SAEConfig

Params = dict[str, mx.array]
_THRESHOLD_MEMORY = 0.99
_WIDEST, _SPREADS = 0.1, 1.5
_TANH_SLOPE = 4.0


@dataclass(frozen=True)
class Surrogate:
    """The base: no parameters of its own, no penalty. `config` holds the settings, `d_in` columns are read."""

    config: SAEConfig
    d_in: int
    name: ClassVar[str]

    def initial(self, n_features: int) -> Params:
        """Parameters beside the dictionary's own at the start."""
        return {}

    def code(self, pre: mx.array, params: Params, k: int) -> mx.array:
        """(n, F) pre-code -> (n, F) code, with the gradients that training follows."""
        raise NotImplementedError(f"{type(self).__name__} has to map a pre-code to a code")

    def penalty(self, pre: mx.array, code: mx.array, params: Params, norms: mx.array) -> mx.array | None:
        """What is added to the loss for codes that are too dense; `norms` (F,): of decoder rows, summed over sites."""
        return None

    def threshold(self, code: mx.array) -> mx.array:
        """The smallest active entry of a batch's code, where the dictionary keeps its mean over batches; else 0."""
        return mx.array(0.0)

    def learned(self, params: Params, threshold: float) -> Params:
        """The arrays of the finished rule (`Sparsity.array_shapes`)."""
        return {}


class TopK(Surrogate):
    """The k largest entries of each row; gradients flow through those alone (Gao et al. 2024)."""

    name = "topk"

    def code(self, pre: mx.array, params: Params, k: int) -> mx.array:
        return sparsity.TopK(k)(pre)


class BatchTopK(Surrogate):
    """The k·n largest positive entries of the whole batch (Bussmann et al. 2024)."""

    name = "batchtopk"

    def code(self, pre: mx.array, params: Params, k: int) -> mx.array:
        positive = mx.maximum(pre, 0)
        place = positive.size - min(k * len(pre), positive.size)
        flat = mx.stop_gradient(positive).reshape(-1)
        smallest = mx.partition(flat, place)[place] if place else mx.min(flat)
        return mx.where(positive >= smallest, positive, 0)

    def threshold(self, code: mx.array) -> mx.array:
        smallest = mx.min(mx.where(code > 0, code, mx.inf))
        return mx.where(mx.isinf(smallest), 0.0, smallest)

    def learned(self, params: Params, threshold: float) -> Params:
        return {"threshold": mx.array([threshold], mx.float32)}


class ReLU(Surrogate):
    """L1 weighed by decoder norms (Anthropic, April 2024); of unit norms it is the plain L1."""

    name = "relu"

    def code(self, pre: mx.array, params: Params, k: int) -> mx.array:
        return mx.maximum(pre, 0)

    def penalty(self, pre: mx.array, code: mx.array, params: Params, norms: mx.array) -> mx.array | None:
        return self.config.l1 * mx.mean(code @ norms)


class JumpReLU(Surrogate):
    """Thresholds trained through a rectangle of width `bandwidth` (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Pre-codes of random directions spread by 1 / sqrt(d_in): thresholds start at 1.5 times that, at most at 0.1, and
    without a `bandwidth` it is the same. (The paper's 0.001 for both is for runs a hundred times as long.)

    The gradient of z·H(z - t) and of H(z - t) in t is -(t / b) K((z - t) / b) and -(1 / b) K((z - t) / b), K being 1 on
    [-1/2, 1/2]. `l0_penalty`: "l0" l·L0, L0 the mean number of active features a row; "target" l·(L0 / k - 1)^2 for the
    batch's L0; "tanh" l·mean of sum tanh(4 z |W_dec|) (Anthropic, January 2025), which also trains the encoder.
    """

    name = "jumprelu"

    @property
    def _spread(self) -> float:
        return min(_WIDEST, _SPREADS * self.d_in**-0.5)

    def initial(self, n_features: int) -> Params:
        return {"log_threshold": mx.full((n_features,), math.log(self._spread))}

    def code(self, pre: mx.array, params: Params, k: int) -> mx.array:
        threshold = mx.exp(params["log_threshold"])
        active, window = self._gate(pre, threshold)
        through = (threshold - mx.stop_gradient(threshold)) * mx.stop_gradient(-threshold * window)
        return mx.maximum(pre, 0) * active + through

    def penalty(self, pre: mx.array, code: mx.array, params: Params, norms: mx.array) -> mx.array | None:
        if self.config.l0_penalty == "tanh":
            return self.config.l0_coefficient * mx.mean(mx.sum(mx.tanh(_TANH_SLOPE * code * norms), axis=1))
        threshold = mx.exp(params["log_threshold"])
        active, window = self._gate(pre, threshold)
        counted = active + (threshold - mx.stop_gradient(threshold)) * -window
        l0 = mx.mean(mx.sum(counted, axis=1))
        if self.config.l0_penalty == "target":
            return self.config.l0_coefficient * mx.square(l0 / self.config.k - 1)
        return self.config.l0_coefficient * l0

    def _gate(self, pre: mx.array, threshold: mx.array) -> tuple[mx.array, mx.array]:
        """Whether each entry is active, and K((z - t) / b) / b; both constant."""
        distance = mx.stop_gradient(pre - threshold)
        width = self.config.bandwidth or self._spread
        inside = mx.abs(distance) < width / 2
        return (distance > 0).astype(pre.dtype), inside.astype(pre.dtype) / width

    def learned(self, params: Params, threshold: float) -> Params:
        return {"threshold": mx.exp(params["log_threshold"])}


class Gated(Surrogate):
    """The gate's pre-code is x W_enc + b_enc; magnitudes share its directions (Rajamanoharan et al. 2024, 2404.16014).

    Only the penalty and the auxiliary loss reach the gate, see `losses`.
    """

    name = "gated"

    def initial(self, n_features: int) -> Params:
        return {"r_mag": mx.zeros(n_features), "b_mag": mx.zeros(n_features)}

    def code(self, pre: mx.array, params: Params, k: int) -> mx.array:
        magnitude = (pre - params["b_enc"]) * mx.exp(params["r_mag"]) + params["b_mag"]
        return mx.where(pre > 0, mx.maximum(magnitude, 0), 0)

    def penalty(self, pre: mx.array, code: mx.array, params: Params, norms: mx.array) -> mx.array | None:
        return self.config.l1 * mx.mean(mx.maximum(pre, 0) @ norms)

    def learned(self, params: Params, threshold: float) -> Params:
        scale = mx.exp(params["r_mag"])
        return {"gate_scale": scale, "gate_shift": params["b_mag"] - params["b_enc"] * scale}


_SURROGATES: dict[str, type[Surrogate]] = {s.name: s for s in (TopK, BatchTopK, ReLU, JumpReLU, Gated)}


def surrogate(config: SAEConfig, d_in: int) -> Surrogate:
    """How the sparsity of these settings is trained on rows of `d_in` columns."""
    return _SURROGATES[config.sparsity](config, d_in)


def running_mean(mean: float, value: float, n_before: int) -> float:
    """The exponential mean of thresholds after `n_before` values and one more; unbiased from the first one on."""
    kept = _THRESHOLD_MEMORY * (1 - _THRESHOLD_MEMORY**n_before)
    return (kept * mean + (1 - _THRESHOLD_MEMORY) * value) / (kept + 1 - _THRESHOLD_MEMORY)
