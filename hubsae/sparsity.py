"""The rule from pre-code to code. Rules are frozen settings; what they learn stands in the dictionary's arrays."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from hubsae import sparse
from hubsae.errors import ConfigError
from hubsae.sparse import SparseCode


@dataclass(frozen=True)
class Sparsity:
    """A rule; `name` stands for it in configs."""

    name: ClassVar[str]

    def __call__(self, pre: mx.array) -> mx.array:
        """(..., F) pre-code -> (..., F) code, with gradients; entries equal to the k-th largest are all kept."""
        raise NotImplementedError(f"{type(self).__name__} has to map a pre-code to a code")

    def sparse(self, pre: mx.array) -> SparseCode:
        """(..., F) pre-code -> the same code as indices and values."""
        raise NotImplementedError(f"{type(self).__name__} has to map a pre-code to a sparse code")

    def check(self, n_features: int) -> None:
        """Raise `ConfigError` where this rule cannot work with so many features."""

    def to_dict(self) -> dict:
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in asdict(self).items())
        return f"{self.name}({settings})"


@dataclass(frozen=True)
class TopK(Sparsity):
    """Keep the k largest entries of each row if they are positive (Makhzani and Frey 2013; Gao et al. 2024)."""

    k: int
    name: ClassVar[str] = "topk"

    def __post_init__(self):
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ConfigError(f"k={self.k!r}: expected a whole number of at least 1")

    def check(self, n_features: int) -> None:
        if self.k > n_features:
            raise ConfigError(f"k={self.k} features cannot be active of {n_features}; lower k or widen the dictionary")

    def sparse(self, pre: mx.array) -> SparseCode:
        indices, values = sparse.top_k(pre, self.k)
        return SparseCode(indices, mx.maximum(values, 0), pre.shape[-1])

    def __call__(self, pre: mx.array) -> mx.array:
        kth = mx.min(sparse.top_k(mx.stop_gradient(pre), self.k)[1], axis=-1, keepdims=True)
        return mx.where(pre >= kth, mx.maximum(pre, 0), 0)


@dataclass(frozen=True)
class ReLU(Sparsity):
    """Keep what is positive."""

    name: ClassVar[str] = "relu"

    def __call__(self, pre: mx.array) -> mx.array:
        return mx.maximum(pre, 0)

    def sparse(self, pre: mx.array) -> SparseCode:
        widest = int(np.array(mx.max(mx.sum(pre > 0, axis=-1)))) if pre.size else 0
        indices, values = sparse.top_k(pre, max(widest, 1))
        return SparseCode(indices, mx.maximum(values, 0), pre.shape[-1])


SPARSITIES: dict[str, type[Sparsity]] = {rule.name: rule for rule in (TopK, ReLU)}


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
