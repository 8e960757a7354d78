"""The rule from pre-code to code. Rules are frozen settings; what they learn stands in the dictionary's arrays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from hubsae import choose, sparse
from hubsae.choose import Places
from hubsae.errors import ConfigError
from hubsae.sparse import SparseCode

Learned = Mapping[str, mx.array]
_NOTHING: Learned = {}


@dataclass(frozen=True)
class Sparsity:
    """A rule; `name` stands for it in configs. What it learnt comes as arrays in the shapes of `array_shapes`."""

    name: ClassVar[str]

    def __call__(self, pre: mx.array, learned: Learned = _NOTHING) -> mx.array:
        """(..., F) pre-code -> (..., F) code, with gradients; every row by itself."""
        raise NotImplementedError(f"{type(self).__name__} has to map a pre-code to a code")

    def sparse(self, pre: mx.array, learned: Learned = _NOTHING) -> SparseCode:
        """(..., F) pre-code -> the same code as indices and values."""
        code = self(pre, learned)
        widest = int(np.array(mx.max(mx.sum(code > 0, axis=-1)))) if code.size else 0
        return SparseCode(*sparse.top_k(code, max(widest, 1)), pre.shape[-1])

    def places(self, pre: np.ndarray, bias: np.ndarray, learned: Mapping[str, np.ndarray]) -> Places:
        """(n, F) pre-code without its bias (F,) -> the entries of the code that are not 0; writes to `pre`. On CPUs."""
        raise NotImplementedError(f"{type(self).__name__} has to find the entries of a code")

    def width(self, n_features: int) -> int:
        """How many entries of each row `sparse` has at least."""
        return 1

    def check(self, n_features: int) -> None:
        """Raise `ConfigError` where this rule cannot work with so many features."""

    def array_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what it learns."""
        return {}

    def in_units(self, learned: Learned, factor: float) -> dict[str, mx.array]:
        """What was learnt, for pre-codes that are multiplied by `factor`: the code is multiplied by it too."""
        return dict(learned)

    def to_dict(self) -> dict:
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in asdict(self).items())
        return f"{self.name}({settings})"


@dataclass(frozen=True)
class TopK(Sparsity):
    """Keep the k largest entries of each row if they are positive (Makhzani and Frey 2013; Gao et al. 2024).

    Of entries that equal the k-th largest as many are kept as make k.
    """

    k: int
    name: ClassVar[str] = "topk"

    def __post_init__(self):
        _check_k(self.k)

    def check(self, n_features: int) -> None:
        _check_room(self.k, n_features)

    def width(self, n_features: int) -> int:
        return min(self.k, n_features)

    def places(self, pre: np.ndarray, bias: np.ndarray, learned: Mapping[str, np.ndarray]) -> Places:
        return choose.largest(pre, self.k, bias)

    def sparse(self, pre: mx.array, learned: Learned = _NOTHING) -> SparseCode:
        indices, values = sparse.top_k(pre, self.k)
        return SparseCode(indices, mx.maximum(values, 0), pre.shape[-1])

    def __call__(self, pre: mx.array, learned: Learned = _NOTHING) -> mx.array:
        indices, _ = sparse.top_k(mx.stop_gradient(pre), self.k)
        kept = mx.put_along_axis(mx.zeros(pre.shape, mx.bool_), indices, mx.array(True), axis=-1)
        return mx.where(kept, mx.maximum(pre, 0), 0)


@dataclass(frozen=True)
class ReLU(Sparsity):
    """Keep what is positive."""

    name: ClassVar[str] = "relu"

    def places(self, pre: np.ndarray, bias: np.ndarray, learned: Mapping[str, np.ndarray]) -> Places:
        return choose.above(pre, 0.0, bias)

    def __call__(self, pre: mx.array, learned: Learned = _NOTHING) -> mx.array:
        return mx.maximum(pre, 0)


class _AboveThreshold(Sparsity):
    """Keep what exceeds the array `threshold`, one for all features or one each."""

    def __call__(self, pre: mx.array, learned: Learned = _NOTHING) -> mx.array:
        return mx.where(pre > learned["threshold"], mx.maximum(pre, 0), 0)

    def places(self, pre: np.ndarray, bias: np.ndarray, learned: Mapping[str, np.ndarray]) -> Places:
        return choose.above(pre, np.maximum(learned["threshold"], 0), bias)

    def in_units(self, learned: Learned, factor: float) -> dict[str, mx.array]:
        return {"threshold": learned["threshold"] * factor}


@dataclass(frozen=True)
class BatchTopK(_AboveThreshold):
    """Keep what exceeds one threshold for all features, so that k are active on average (Bussmann et al. 2024).

    Training keeps the k·n largest entries of a batch of n rows; `threshold` (1,) is the mean over batches of the
    smallest entry kept, so that a row's code does not depend on the rows beside it.
    """

    k: int
    name: ClassVar[str] = "batchtopk"

    def __post_init__(self):
        _check_k(self.k)

    def check(self, n_features: int) -> None:
        _check_room(self.k, n_features)

    def array_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return {"threshold": (1,)}


@dataclass(frozen=True)
class JumpReLU(_AboveThreshold):
    """Keep what exceeds the feature's own `threshold` (F,) (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    name: ClassVar[str] = "jumprelu"

    def array_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return {"threshold": (n_features,)}


@dataclass(frozen=True)
class Gated(Sparsity):
    """The pre-code decides whether a feature is active, an affine map of it how much (Rajamanoharan et al. 2024a).

    code = max(pre · gate_scale + gate_shift, 0) where pre > 0, with `gate_scale` and `gate_shift` (F,). The paper's
    magnitude x W_mag + b_mag with W_mag = W_gate · exp(r_mag) is this with gate_scale = exp(r_mag).
    """

    name: ClassVar[str] = "gated"

    def __call__(self, pre: mx.array, learned: Learned = _NOTHING) -> mx.array:
        magnitude = mx.maximum(pre * learned["gate_scale"] + learned["gate_shift"], 0)
        return mx.where(pre > 0, magnitude, 0)

    def places(self, pre: np.ndarray, bias: np.ndarray, learned: Mapping[str, np.ndarray]) -> Places:
        found = choose.above(pre, 0.0, bias)
        magnitude = found.values * learned["gate_scale"][found.indices] + learned["gate_shift"][found.indices]
        return Places(found.starts, found.indices, magnitude, found.n_features).where(magnitude > 0)

    def array_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return {"gate_scale": (n_features,), "gate_shift": (n_features,)}

    def in_units(self, learned: Learned, factor: float) -> dict[str, mx.array]:
        return {"gate_scale": learned["gate_scale"], "gate_shift": learned["gate_shift"] * factor}


def _check_k(k: object) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ConfigError(f"k={k!r}: expected a whole number of at least 1")


def _check_room(k: int, n_features: int) -> None:
    if k > n_features:
        raise ConfigError(f"k={k} features cannot be active of {n_features}; lower k or widen the dictionary")


SPARSITIES: dict[str, type[Sparsity]] = {rule.name: rule for rule in (TopK, ReLU, BatchTopK, JumpReLU, Gated)}


def from_dict(data: dict) -> Sparsity:
    """The rule of a config entry such as `{"name": "topk", "k": 32}`; raises `ConfigError` for an unknown one."""
    settings = dict(data)
    name = settings.pop("name", None)
    rule = SPARSITIES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise ConfigError(f"sparsity {name!r}: this version of hubsae knows {', '.join(sorted(SPARSITIES))}")
    try:
        return rule(**settings)
    except TypeError as error:
        raise ConfigError(f"sparsity {name!r}: settings {settings} do not fit ({error})") from error
