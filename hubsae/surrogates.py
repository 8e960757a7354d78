"""How each sparsity is trained: its own parameters, its code and penalty with their derivatives, what it has learnt.

Pre-codes, codes and thresholds are those of scaled rows (mean squared norm 1), so settings mean the same for any model.
Everything is computed at `Entries` alone: those that can matter, often few of the (n, F).
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from hubsae import choose, sparse
from hubsae.distributed import Ranks
from hubsae.entries import Array, Dense, Entries, Fixed, Ragged, module_of
from hubsae.recipe import SAEConfig

Params = dict[str, Array]
_THRESHOLD_MEMORY = 0.99
_WIDEST, _SPREADS = 0.1, 1.5
_TANH_SLOPE = 4.0
_SPARSE_ENOUGH = 0.1  # share of entries up to which products of few entries are faster than those of all


@dataclass(frozen=True)
class Penalty:
    """A penalty and its derivatives: by code and by pre-code (at the entries), by norms (F,), by own parameters."""

    value: Array
    by_code: Array | float = 0.0
    by_pre: Array | float = 0.0
    by_norms: Array | None = None
    by_own: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Surrogate:
    """The base: no parameters of its own, no penalty. `config` holds the settings, `d_in` columns are read."""

    config: SAEConfig
    d_in: int
    name: ClassVar[str]
    penalised: ClassVar[bool] = False

    def initial(self, n_features: int) -> dict[str, np.ndarray]:
        """Parameters beside the dictionary's own at the start."""
        return {}

    def bound(self, params: Params) -> Array | float:
        """A number or (F,): entries of the pre-code up to there neither are active nor have any derivative."""
        return 0.0

    def candidates(self, pre: Array, bias: Array, params: Params, k: int, n: int) -> Entries:
        """Pre-code of some rows without its bias (F,) -> entries that can matter in a batch of n; may change `pre`."""
        if module_of(pre) is mx:
            return Dense(pre + bias)
        bound = self.bound(params)
        if choose.share_above(pre, bound - bias) > _SPARSE_ENOUGH:
            return Dense(np.add(pre, bias, out=pre))
        return Ragged(choose.above(pre, bound, bias))

    def settled(self, entries: Any, k: int, n: int, ranks: Ranks) -> Entries:
        """Those of the candidates of a whole batch of n rows that count."""
        return entries

    def code(self, entries: Entries, params: Params) -> Array:
        """The code at the entries, whose values are the pre-code."""
        return module_of(entries.values).maximum(entries.values, 0)

    def back(self, entries: Entries, by_code: Array, params: Params) -> tuple[Array, Params]:
        """The derivative by the code -> that by the pre-code, and that by own parameters."""
        return by_code * (entries.values > 0), {}

    def penalty(self, entries: Entries, code: Array, params: Params, norms: Array, n: int, ranks: Ranks) -> Any:
        """`Penalty` of codes that are too dense, if `penalised`; `norms` (F,): of decoder rows, summed over sites."""
        raise NotImplementedError(f"{type(self).__name__} has no penalty")

    def threshold(self, code: Array) -> Array | float:
        """The smallest active entry of a batch's code, where the dictionary keeps its mean over batches; else 0."""
        return 0.0

    def learned(self, params: Params, threshold: float) -> dict[str, mx.array]:
        """The arrays of the finished rule (`Sparsity.array_shapes`)."""
        return {}


class TopK(Surrogate):
    """The k largest entries of each row; gradients flow through those alone (Gao et al. 2024)."""

    name = "topk"

    def candidates(self, pre: Array, bias: Array, params: Params, k: int, n: int) -> Entries:
        if module_of(pre) is np:
            return Ragged(choose.largest(pre, k, bias))
        return Fixed(*sparse.top_k(pre + bias, k), pre.shape[1])


class BatchTopK(Surrogate):
    """The k·n largest positive entries of the whole batch (Bussmann et al. 2024).

    Of entries that are equal to the last one NumPy keeps as many as make k·n, MLX all.
    """

    name = "batchtopk"

    def candidates(self, pre: Array, bias: Array, params: Params, k: int, n: int) -> Entries:
        if module_of(pre) is np:
            return Ragged(choose.kth_largest(pre, k * n, bias)[1])
        return Dense(pre + bias)

    def settled(self, entries: Any, k: int, n: int, ranks: Ranks) -> Entries:
        if isinstance(entries, Ragged):
            return self._cut(entries, k * n, ranks)
        positive = mx.maximum(entries.values, 0)
        flat = positive.reshape(-1)
        flat = ranks.gathered(mx.topk(flat, min(k * n, flat.size)) if ranks.size > 1 else flat)
        place = max(0, flat.size - k * n)
        return Dense(mx.where(positive >= mx.partition(flat, place)[place], positive, 0))

    def _cut(self, entries: Ragged, total: int, ranks: Ranks) -> Ragged:
        """The `total` largest of all processes' entries; of equal ones the first, so that rounding changes little."""
        values, lengths = ranks.gathered(entries.values), ranks.gathered(np.array([len(entries.values)]))
        if len(values) <= total:
            return entries
        smallest = choose.kth(values, total)
        kept = values > smallest
        equal = np.flatnonzero(values == smallest)
        kept[equal[: total - kept.sum()]] = True
        start = lengths[: ranks.rank].sum()
        return entries.where(kept[start : start + len(entries.values)])

    def threshold(self, code: Array) -> Array | float:
        xp = module_of(code)
        return xp.min(xp.where(code > 0, code, xp.inf)) if code.size else xp.inf

    def learned(self, params: Params, threshold: float) -> dict[str, mx.array]:
        return {"threshold": mx.array([threshold], mx.float32)}


class ReLU(Surrogate):
    """L1 weighed by decoder norms (Anthropic, April 2024); of unit norms it is the plain L1."""

    name = "relu"
    penalised = True

    def penalty(self, entries: Entries, code: Array, params: Params, norms: Array, n: int, ranks: Ranks) -> Penalty:
        return _l1(self.config.l1 / n, entries, code, norms, by_code=True)


class JumpReLU(Surrogate):
    """Thresholds trained through a rectangle of width `bandwidth` (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Pre-codes of random directions spread by 1 / sqrt(d_in): thresholds start at 1.5 times that, at most at 0.1, and
    without a `bandwidth` it is the same. (The paper's 0.001 for both is for runs a hundred times as long.)

    The gradient of z·H(z - t) and of H(z - t) in t is -(t / b) K((z - t) / b) and -(1 / b) K((z - t) / b), K being 1 on
    [-1/2, 1/2]. `l0_penalty`: "l0" l·L0, L0 the mean number of active features a row; "target" l·(L0 / k - 1)^2 for the
    batch's L0; "tanh" l·mean of sum tanh(4 z |W_dec|) (Anthropic, January 2025), which also trains the encoder.
    """

    name = "jumprelu"
    penalised = True

    @property
    def _spread(self) -> float:
        return min(_WIDEST, _SPREADS * self.d_in**-0.5)

    @property
    def _width(self) -> float:
        return self.config.bandwidth or self._spread

    def initial(self, n_features: int) -> dict[str, np.ndarray]:
        return {"log_threshold": np.full(n_features, math.log(self._spread), np.float32)}

    def bound(self, params: Params) -> Array | float:
        return np.exp(params["log_threshold"]) - self._width / 2

    def code(self, entries: Entries, params: Params) -> Array:
        _, active, _ = self._gate(entries, params)
        return module_of(active).maximum(entries.values, 0) * active

    def back(self, entries: Entries, by_code: Array, params: Params) -> tuple[Array, Params]:
        threshold, active, window = self._gate(entries, params)
        by_log = entries.holding(by_code * window * -(threshold**2)).per_feature()  # d threshold / d log = threshold
        return by_code * active, {"log_threshold": by_log}

    def penalty(self, entries: Entries, code: Array, params: Params, norms: Array, n: int, ranks: Ranks) -> Penalty:
        weight, xp = self.config.l0_coefficient, module_of(code)
        if self.config.l0_penalty == "tanh":
            bent = xp.tanh(_TANH_SLOPE * code * entries.at(norms))
            slope = weight / n * _TANH_SLOPE * (1 - bent**2)
            by_norms = entries.holding(slope * code).per_feature()
            return Penalty(weight / n * bent.sum(), by_code=slope * entries.at(norms), by_norms=by_norms)
        threshold, active, window = self._gate(entries, params)
        value, slope = weight * active.sum() / n, weight / n
        if self.config.l0_penalty == "target":
            excess = ranks.sum(active.sum()) / (n * self.config.k) - 1
            value, slope = weight * excess**2 / ranks.size, weight * 2 * excess / (n * self.config.k)
        by_log = slope * entries.holding(-window * threshold).per_feature()
        return Penalty(value, by_own={"log_threshold": by_log})

    def _gate(self, entries: Entries, params: Params) -> tuple[Array, Array, Array]:
        """At each entry: the threshold, whether it is active, and K((z - t) / b) / b."""
        threshold = entries.at(module_of(entries.values).exp(params["log_threshold"]))
        distance = entries.values - threshold
        inside = abs(distance) < self._width / 2
        kind = distance.dtype
        return threshold, (distance > 0).astype(kind), inside.astype(kind) / self._width

    def learned(self, params: Params, threshold: float) -> dict[str, mx.array]:
        return {"threshold": mx.exp(mx.array(params["log_threshold"]))}


class Gated(Surrogate):
    """The gate's pre-code is x W_enc + b_enc; magnitudes share its directions (Rajamanoharan et al. 2024, 2404.16014).

    Only the penalty and the auxiliary loss reach the gate, see `losses`.
    """

    name = "gated"
    penalised = True

    def initial(self, n_features: int) -> dict[str, np.ndarray]:
        return {name: np.zeros(n_features, np.float32) for name in ("r_mag", "b_mag")}

    def code(self, entries: Entries, params: Params) -> Array:
        xp = module_of(entries.values)
        return (entries.values > 0) * xp.maximum(self._magnitude(entries, params)[0], 0)

    def back(self, entries: Entries, by_code: Array, params: Params) -> tuple[Array, Params]:
        magnitude, scale = self._magnitude(entries, params)
        by_code = by_code * (entries.values > 0) * (magnitude > 0)
        by_pre = by_code * scale
        by_own = {
            "r_mag": by_pre * (entries.values - entries.at(params["b_enc"])),
            "b_mag": by_code,
            "b_enc": -by_pre,  # magnitudes do without it
        }
        return by_pre, {name: entries.holding(values).per_feature() for name, values in by_own.items()}

    def _magnitude(self, entries: Entries, params: Params) -> tuple[Array, Array]:
        scale = entries.at(module_of(entries.values).exp(params["r_mag"]))
        return (entries.values - entries.at(params["b_enc"])) * scale + entries.at(params["b_mag"]), scale

    def penalty(self, entries: Entries, code: Array, params: Params, norms: Array, n: int, ranks: Ranks) -> Penalty:
        gate = module_of(code).maximum(entries.values, 0)
        return _l1(self.config.l1 / n, entries, gate, norms, by_code=False)

    def learned(self, params: Params, threshold: float) -> dict[str, mx.array]:
        scale = mx.exp(mx.array(params["r_mag"]))
        return {"gate_scale": scale, "gate_shift": mx.array(params["b_mag"]) - mx.array(params["b_enc"]) * scale}


def _l1(weight: float, entries: Entries, values: Array, norms: Array, *, by_code: bool) -> Penalty:
    """`weight` times the sum of positive values, each times its feature's norm."""
    here = entries.at(norms)
    slope = weight * here * (values > 0)
    by_norms = weight * entries.holding(values).per_feature()
    where = {"by_code": slope} if by_code else {"by_pre": slope}
    return Penalty(weight * (values * here).sum(), by_norms=by_norms, **where)


_SURROGATES: dict[str, type[Surrogate]] = {s.name: s for s in (TopK, BatchTopK, ReLU, JumpReLU, Gated)}


def surrogate(config: SAEConfig, d_in: int) -> Surrogate:
    """How the sparsity of these settings is trained on rows of `d_in` columns."""
    return _SURROGATES[config.sparsity](config, d_in)


def running_mean(mean: float, value: float, n_before: int) -> float:
    """The exponential mean of thresholds after `n_before` values and one more; unbiased from the first one on."""
    kept = _THRESHOLD_MEMORY * (1 - _THRESHOLD_MEMORY**n_before)
    return (kept * mean + (1 - _THRESHOLD_MEMORY) * value) / (kept + 1 - _THRESHOLD_MEMORY)
