"""`features.parquet`: one row a feature, columns read when they are first asked for, and checked then.

What comes from others is not believed: a file that could not have been written here is refused before anything of it is
shown or any memory is asked for by its word.
"""

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.errors import ArtifactError, DataError
from hubsae.firing import BINS

FEATURES = "features.parquet"
_VERSION = 1
_INFO = b"hubsae"
MAX_VALUES = 1 << 29  # of one column
MAX_WIDTH = 1 << 12  # of one list, of a window, and of how many examples there are
MAX_TEXT = 2_000
_MAX_MARKS = 1 << 12
_NUMBERS = ("n_active", "mean", "std", "maximum", "histogram", "histogram_top")
_EXAMPLE = ("value", "document", "at", "tokens", "values")
_GROUPS = (
    _NUMBERS,
    ("site_norms",),
    tuple(f"{kind}_{name}" for kind in ("top", "random") for name in _EXAMPLE),
    tuple(f"{kind}_{name}" for kind in ("promoted", "suppressed") for name in ("ids", "weights")),
    ("cofiring_ids", "cofiring_phi", "cofiring_counts"),
    ("similar_ids", "similar_cosine"),
    ("label", "label_score", "label_examples", "labeler"),
)
_SCALARS = ("n_active", "mean", "std", "maximum", "histogram_top", "label_score", "label_examples")
_TEXTS = ("label", "labeler")
_WHOLE = ("n_active", "label_examples", "histogram", "document", "at", "tokens", "ids", "counts")
_LONG = ("n_active", "label_examples", "histogram")


def _dtype(name: str) -> Any:
    if name in _LONG:
        return np.int64
    if name.split("_")[-1] in _WHOLE:
        return np.int32
    return np.float64 if name in _SCALARS and name != "maximum" else np.float32


def _widest(name: str) -> int:
    """How long the lists of a column may be: examples lie window after window."""
    return MAX_WIDTH * (MAX_WIDTH if name.endswith(("_tokens", "_values")) else 1)


def _is_marks(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MAX_MARKS
        and all(isinstance(v, int | float) and abs(v) < 1e300 for v in values)
    )


class FeatureFile(Mapping[str, Any]):
    """The columns of a file: name -> (F,) or (F, m) array, or a list of F texts; each is read once, when used."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            # it stays open, so that what is read later is of the same file, whatever takes its place
            handle = pa.OSFile(str(path))
            there = set(pq.read_schema(handle).names)
            self._file = pq.ParquetFile(handle, read_dictionary=[name for name in _TEXTS if name in there])
            schema = self._file.schema_arrow
            info = json.loads((schema.metadata or {}).get(_INFO, b"null"))
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: not readable as a table of features ({error})") from error
        self.n_features = self._file.metadata.num_rows
        self.info = self._checked_info(info)
        self._names = self._checked_names(schema)
        self._read: dict[str, Any] = {}
        self._lock = threading.Lock()

    def _checked_info(self, info: Any) -> dict:
        if not isinstance(info, dict) or not isinstance(info.get("version"), int):
            raise ArtifactError(f"{self.path}: not written by hubsae")
        if info["version"] > _VERSION:
            raise ArtifactError(f"{self.path}: written in format {info['version']}. Run: pip install -U hubsae")
        for name in ("n_tokens", "n_documents"):
            if not isinstance(info.get(name), int) or not 1 <= info[name] < 2**53:
                raise self._damaged(f"{name} is {str(info.get(name))[:30]}")
        window = info.get("window", 1)
        if not isinstance(window, int) or not 1 <= window <= MAX_WIDTH:
            raise self._damaged(f"a window of {str(info['window'])[:30]} tokens")
        for name in ("vocabulary", "promoted_vocabulary"):
            words = info.get(name, {})
            if not isinstance(words, dict) or not all(
                key.isascii() and key.isdigit() and len(key) < 10 and isinstance(text, str)
                for key, text in words.items()
            ):
                raise self._damaged(f"{name} is no list of token ids and texts")
        marks = info.get("fingerprint", {})
        if not isinstance(marks, dict) or not all(_is_marks(values) for values in marks.values()):
            raise self._damaged("its fingerprint is no list of numbers")
        sites = info.get("sites", [])
        if not isinstance(sites, list) or not all(isinstance(site, str) and len(site) < MAX_TEXT for site in sites):
            raise self._damaged("its sites are no list of names")
        if len(str(info.get("data", ""))) > MAX_TEXT:
            raise self._damaged("the name of its texts is too long")
        return info

    def _checked_names(self, schema: Any) -> list[str]:
        """The columns that are known, of which groups are whole, and lists of the lengths that they must have."""
        import pyarrow as pa

        there = set(schema.names)
        for group in _GROUPS:
            missing = sorted(set(group) - there)
            if missing and (group is _NUMBERS or len(missing) < len(group)):
                raise self._damaged(f"columns {', '.join(missing)} are missing")
        names = [name for group in _GROUPS for name in group if name in there]
        sizes: dict[str, int] = {}
        for name in set(names) - {*_SCALARS, *_TEXTS}:
            kind = schema.field(name).type
            if not pa.types.is_fixed_size_list(kind) or not 1 <= kind.list_size <= _widest(name):
                raise self._damaged(f"column {name} is a {str(kind)[:60]}, not a list of one length")
            sizes[name] = kind.list_size
            if sizes[name] * self.n_features > MAX_VALUES:
                raise self._damaged(f"column {name} would hold {sizes[name] * self.n_features:,} numbers")
        for name, size in sizes.items():
            if size != self._size_of(name, sizes):
                raise self._damaged(f"column {name} has lists of {size}")
        return names

    def _size_of(self, name: str, sizes: dict[str, int]) -> int:
        """How long the lists of a column have to be, from those that it goes with."""
        if name == "histogram":
            return BINS
        if name == "site_norms":
            return len(self.info.get("sites", []))
        kind, _, part = name.partition("_")
        if kind in ("top", "random"):
            return sizes[f"{kind}_value"] * (self.info.get("window", 0) if part in ("tokens", "values") else 1)
        return sizes.get(f"{kind}_ids", sizes[name])

    def _damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: damaged ({why}); delete it, or make a new analysis with feature_statistics")

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        with self._lock:  # several threads may ask, and the file's reader is for one
            if name not in self._read:
                self._read[name] = self._column(name)
            return self._read[name]

    def _column(self, name: str) -> Any:
        import pyarrow as pa

        try:
            column = self._file.read(columns=[name]).column(0).combine_chunks()
            if name in _TEXTS:
                return self._texts(name, column)
            gaps = column.null_count
            if name not in _SCALARS:
                gaps += len(column) * column.type.list_size - len(column.flatten())
                column = column.flatten()
            if gaps or column.null_count:
                raise self._damaged(f"column {name} has gaps")
            values = column.to_numpy(zero_copy_only=False).astype(_dtype(name))
            values = values if name in _SCALARS else values.reshape(self.n_features, -1)
        except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise self._damaged(f"column {name}: {error}") from error
        self._check_values(name, values)
        return values

    def _texts(self, name: str, column: Any) -> list[str | None]:
        """Labels, each distinct one read once, since a short file can stand for very long ones."""
        import pyarrow as pa

        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if not pa.types.is_dictionary(column.type) or not pa.types.is_string(column.type.value_type):
            raise self._damaged(f"column {name} holds {str(column.type)[:60]}")
        texts = column.dictionary.to_pylist()
        if any(text is not None and len(text) > MAX_TEXT for text in texts):
            raise self._damaged(f"column {name} holds texts of over {MAX_TEXT:,} letters")
        return [None if i is None else texts[i] for i in column.indices.to_pylist()]

    def _check_values(self, name: str, values: np.ndarray) -> None:
        finite = name == "label_score" or values.dtype.kind == "i" or bool(np.isfinite(values).all())
        known = values[~np.isnan(values)] if name == "label_score" else values
        low, high = known.min(initial=0), known.max(initial=0)
        part = name.split("_")[-1]
        bounds: tuple[float, float] = (-np.inf, np.inf)
        if part == "at":
            bounds = (0, self.info.get("window", 1) - 1)
        elif part == "ids" and name.split("_")[0] in ("cofiring", "similar"):
            bounds = (-1, self.n_features - 1)
        elif part in ("ids", "tokens", "document"):
            bounds = (-1, np.inf)
        elif name == "label_score":
            bounds = (0, 1)
        elif name in (*_NUMBERS, "label_examples"):
            bounds = (0, self.info["n_tokens"] if name == "n_active" else np.inf)
        if not finite or low < bounds[0] or high > bounds[1]:
            raise self._damaged(f"column {name} holds values from {low} to {high}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write(path: Path, columns: Mapping[str, Any], info: dict) -> None:
    """Write the columns and what is known about all of them, compressed; the order is that of the features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(columns["n_active"])
    arrays: dict[str, Any] = {"feature": pa.array(np.arange(n, dtype=np.int32))}
    for name, values in sorted(columns.items()):  # what is read and written again is the same file
        if name in _TEXTS:
            if long := [i for i, text in enumerate(values) if text is not None and len(text) > MAX_TEXT]:
                raise DataError(f"{name} of feature {long[0]} has over {MAX_TEXT:,} letters")
            arrays[name] = pa.array(values, pa.string())
            continue
        flat = np.ascontiguousarray(values, _dtype(name))
        if flat.size > MAX_VALUES or (flat.ndim > 1 and flat.shape[1] > _widest(name)):
            raise DataError(f"{name}: {flat.shape} numbers are too many for {FEATURES}; keep fewer or shorter examples")
        if name != "label_score" and not np.isfinite(flat).all():
            raise DataError(f"{name} of features holds values that are not finite, so they are not saved")
        arrays[name] = pa.array(flat.reshape(-1))
        if name not in _SCALARS:
            arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], flat.shape[1])
    table = pa.table(arrays).replace_schema_metadata(
        {_INFO: json.dumps({**info, "version": _VERSION}, ensure_ascii=False, sort_keys=True).encode()}
    )
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as stage:
        pq.write_table(table, Path(stage, path.name), compression="zstd", row_group_size=4096)
        os.replace(Path(stage, path.name), path)
