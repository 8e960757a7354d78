"""`Tensors`: the arrays of a foreign file, each taken once by name and shape, so that none is missed or left over."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from hubsae.errors import ArtifactError
from hubsae.formats.pt_file import read_pt

_BFLOAT16 = np.dtype([("bits", "<u2")])
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_DTYPES |= {"I8": "i1", "U8": "u1", "BOOL": "?"}
_NOTHING = np.zeros(0, np.uint8)
_SMALL_BYTES = 64 << 20
_MOST_RATIO = 100  # of what an .npz unpacks to


class Tensors:
    """Arrays by name, read when they are taken: float32, finite, in the shape that was asked for.

    `where` names the file in errors.
    """

    def __init__(self, arrays: Mapping[str, Any], where: str):
        self._arrays, self.where = dict(arrays), where
        self._taken: set[str] = set()

    @classmethod
    def read(cls, path: Path, where: str) -> "Tensors":
        """Those of a .safetensors, .npz, .pt or .pth file."""
        if path.suffix == ".npz" or where.endswith(".npz"):
            return cls(_npz(path, where), where)
        if where.endswith((".pt", ".pth", ".bin")):
            # views that are expanded many times over are no weights; bfloat16 takes twice its bytes
            data = read_pt(path, max_bytes=max(_SMALL_BYTES, 4 * path.stat().st_size))
            if not isinstance(data, dict):
                raise ArtifactError(f"{where}: holds a {type(data).__name__}, expected arrays by name")
            return cls({name: value for name, value in data.items() if isinstance(name, str)}, where)
        return cls(_safetensors(path, where), where)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> list[str]:
        return sorted(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array that has to be there."""
        return tuple(self._there(name).shape)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array `name`, which has to have this shape."""
        array = self._there(name)
        if tuple(array.shape) != shape:
            raise ArtifactError(
                f"{self.where}: {name} has shape {tuple(array.shape)}, expected {shape} by the settings beside it; "
                "they do not belong together, or one of them was changed"
            )
        self._taken.add(name)
        return self._as_float(name, array)

    def optional(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The array `name` in this shape, or None where there is none."""
        return self.take(name, shape) if name in self._arrays else None

    def statistic(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The array `name` in this shape, None where it holds nothing but NaN, as where it was turned off."""
        if not np.isfinite(_numpy(self._there(name))).any():
            self._taken.add(name)
            return None
        return self.take(name, shape)

    def number(self, name: str) -> float:
        """An array of one value as a number."""
        value = self._there(name)
        if value.size != 1:
            raise ArtifactError(f"{self.where}: {name} has shape {tuple(value.shape)}, expected a single number")
        self._taken.add(name)
        return float(self._as_float(name, value).reshape(-1)[0])

    def plain(self, name: str) -> Any:
        """What stands under a name of a .pt file beside arrays: settings."""
        self._taken.add(name)
        return self._arrays.get(name)

    def ignore(self, names: Iterable[str]) -> None:
        """Names that say nothing about what is computed."""
        self._taken |= set(names)

    def finish(self) -> None:
        """Raise `ArtifactError` where arrays are left that nobody asked for: they could change what is computed."""
        if left := sorted(set(self._arrays) - self._taken):
            raise ArtifactError(
                f"{self.where}: holds {', '.join(left[:6])}, which this layout has not; "
                "what they do is not known here, so it is not loaded"
            )

    def _there(self, name: str) -> Any:
        array = self._arrays.get(name)
        if array is None or not hasattr(array, "shape"):
            raise ArtifactError(f"{self.where}: no array {name}; it holds {', '.join(self.names()[:8]) or 'nothing'}")
        return array

    def _as_float(self, name: str, array: Any) -> np.ndarray:
        array = _numpy(array)
        if array.dtype.kind not in "fiu":
            raise ArtifactError(f"{self.where}: {name} holds {array.dtype}, expected numbers")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
            array = np.asarray(array, np.float32)
        if not np.isfinite(array.sum(dtype=np.float64)) and (bad := np.count_nonzero(~np.isfinite(array))):
            raise ArtifactError(
                f"{self.where}: {name} holds {bad:,} values that are infinite or no number, as half precision does "
                "where it overflows; nothing can be computed with it"
            )
        return array


def _safetensors(path: Path, where: str) -> dict[str, np.ndarray]:
    """Views into a memory-mapped file, whose header is checked first; bfloat16 as its bits."""
    try:
        with safe_open(path, framework="numpy"):  # checks lengths, offsets and overlaps
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        mapped = np.memmap(path, np.uint8, mode="r", offset=8 + size) if path.stat().st_size > 8 + size else _NOTHING
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: not a valid safetensors file ({error})") from error
    header.pop("__metadata__", None)
    return {name: _view(mapped, name, entry, where) for name, entry in header.items()}


def _view(mapped: np.ndarray, name: str, entry: dict, where: str) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ArtifactError(f"{where}: {name} holds {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
    try:
        start, end = entry["data_offsets"]
        array = mapped[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except (ValueError, OverflowError) as error:
        raise ArtifactError(
            f"{where}: {name} has the shape {str(entry['shape'])[:80]}, which is none ({error})"
        ) from error
    return array.view(_BFLOAT16) if entry["dtype"] == "BF16" else array


def _numpy(array: Any) -> np.ndarray:
    """In a type that NumPy has, as a view where it has one."""
    array = np.asarray(array)
    if array.dtype != _BFLOAT16:
        return array
    return (array["bits"].astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32


def _npz(path: Path, where: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, without pickles and without files that unpack to far more than they are."""
    try:
        # np.load leaves a damaged file open, and takes a single array for an answer
        with open(path, "rb") as handle, np.lib.npyio.NpzFile(handle, allow_pickle=False) as file:
            entries = file.zip.infolist() if file.zip else []
            unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
            if unpacked > max(_SMALL_BYTES, _MOST_RATIO * packed):
                raise ArtifactError(
                    f"{where}: {packed:,} bytes that unpack to {unpacked:,}; that is no file of weights"
                )
            return {name: file[name] for name in file.files}
    except ArtifactError:
        raise
    except Exception as error:  # readers of zip files, of their packing and of the headers inside raise what they like
        raise ArtifactError(f"{where}: not readable as .npz ({str(error)[:200]})") from error
