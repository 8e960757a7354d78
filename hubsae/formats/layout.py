"""`Layout`: how one library's dictionaries are found among file names and read; and what readers share."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.imported import Given, Imported
from hubsae.formats.repo_files import RepoFiles
from hubsae.sparsity import JumpReLU, ReLU, Sparsity, TopK


@dataclass(frozen=True)
class Layout:
    """`find`: file names -> entries, folders or files that hold a dictionary each. `read`: one of them."""

    name: str
    find: Callable[[Sequence[str]], Iterable[str]]
    read: Callable[[RepoFiles, str, Given], Imported]


def setting(config: dict, name: str, kind: type, default: Any = ...) -> Any:
    """A setting of this type; `ArtifactError` where it is missing (without a default) or of another type."""
    value = config.get(name)
    if value is None:
        if default is ...:
            raise ArtifactError(f"its settings have no {name!r}; there are {', '.join(map(str, config))[:200]}")
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ArtifactError(f"its setting {name!r} is {_shown(value)}, expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ArtifactError(f"its setting {name!r} is {value}, which nothing can be computed with")
    return value


def _shown(value: Any) -> str:
    """A value in a message; what holds others is only named, since it may hold itself many times."""
    return repr(value)[:80] if isinstance(value, str | float | bool) else f"a {type(value).__name__}"


def positive(config: dict, name: str) -> float:
    """A setting that something is divided by: a positive number."""
    value = setting(config, name, float)
    if not 0 < value < 1e30:
        raise ArtifactError(f"its setting {name!r} is {value:g}, expected a positive number")
    return value


def width(config: dict, name: str) -> int:
    """A setting that is a width: a positive whole number."""
    value = setting(config, name, int)
    if not 1 <= value < 1 << 32:
        raise ArtifactError(f"its setting {name!r} is {value}, expected a positive number of columns or features")
    return value


def context(size: Any) -> dict[str, Any]:
    """The context's entry of `TokenConfig` where a file says a size that can be one, else nothing."""
    return {"context_size": size} if isinstance(size, int) and size >= 2 else {}


def is_of(address: str, repo_id: str) -> bool:
    """Whether an address is this repository's, or a folder's that holds a copy of it, in the Hub's cache or by name."""
    parts = address.split("/")
    return address == repo_id or f"models--{repo_id.replace('/', '--')}" in parts or repo_id.split("/")[1] == parts[-1]


def refused(what: str, why: str) -> ArtifactError:
    """The error about a dictionary that ours cannot be equal to."""
    return ArtifactError(f"{what}: {why}. It is not loaded, since what came out would be another dictionary")


def scalar_threshold(value: float, n_features: int) -> dict[str, np.ndarray]:
    """One threshold for all features as what a JumpReLU learns."""
    return {"threshold": np.full(n_features, value, np.float32)}


def rectified(threshold: np.ndarray | None) -> tuple[Sparsity, dict[str, np.ndarray]]:
    """JumpReLU with these thresholds (F,), ReLU without."""
    return (ReLU(), {}) if threshold is None else (JumpReLU(), {"threshold": threshold})


def top_k(k: int | None, n_features: int) -> Sparsity:
    """TopK; with as many as there are features it is ReLU."""
    if k is None:
        raise ArtifactError("it keeps the k largest features, but nothing says how many; give k=")
    return TopK(k) if k < n_features else ReLU()
