"""What exports share: one dictionary in another library's terms, or the reason why that library has none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError
from hubsae.hub_client import library_version
from hubsae.sparsity import BatchTopK, JumpReLU


@dataclass(frozen=True)
class Export:
    """`write` puts one dictionary of `library`, `files`, into an empty folder. The first of them is its config.

    at: where below a folder of exports, as that library names it.
    """

    library: str
    write: Callable[[Dictionary, Path], None]
    files: tuple[str, ...]
    at: Callable[[Dictionary], str] = lambda dictionary: ""


def mark() -> str:
    """What stands under "exported_by" in the config of an export."""
    return f"hubsae {library_version()}"


def is_marked(config: dict) -> bool:
    """Whether a config is that of an export of ours, which may be written anew."""
    inner = config.get("metadata")
    said = config.get("exported_by") or (inner.get("exported_by") if isinstance(inner, dict) else None)
    return isinstance(said, str) and said.startswith("hubsae ")


def cannot(library: str, what: str) -> ArtifactError:
    """The error about a dictionary that a library has no form for."""
    return ArtifactError(f"{library} {what}; there is no file that it would compute the same from")


def arrays_of(dictionary: Dictionary) -> dict[str, np.ndarray]:
    """Its arrays in float32, by name."""
    return {name: np.array(array.astype(mx.float32)) for name, array in dictionary.arrays().items()}


def thresholds(dictionary: Dictionary, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """(F,) thresholds of a JumpReLU or a BatchTopK; None for other sparsities."""
    if not isinstance(dictionary.rule, JumpReLU | BatchTopK):
        return None
    return np.broadcast_to(arrays["threshold"], (dictionary.n_features,))


def one_place(dictionary: Dictionary, library: str) -> None:
    """Raise `ArtifactError` for what reads or writes several sites."""
    c = dictionary.config
    if len(c.reads) > 1 or len(c.writes) > 1:
        raise cannot(library, f"has nothing that reads {', '.join(c.reads)} and writes {', '.join(c.writes)} at once")


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A safetensors file of float32 arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, path)
