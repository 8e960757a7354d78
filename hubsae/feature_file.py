"""`features.parquet`: one row a feature, columns read when they are first asked for, and checked then."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.errors import ArtifactError, DataError

FEATURES = "features.parquet"
_VERSION = 1
_INFO = b"hubsae"
_SCALARS = {
    "n_active": np.int64,
    "mean": np.float64,
    "std": np.float64,
    "maximum": np.float32,
    "histogram_top": np.float64,
    "label_score": np.float64,
    "label_examples": np.int64,
}
_LISTS = {
    "histogram": np.int64,
    "site_norms": np.float32,
    "promoted_ids": np.int32,
    "promoted_weights": np.float32,
    "suppressed_ids": np.int32,
    "suppressed_weights": np.float32,
    "cofiring_ids": np.int32,
    "cofiring_phi": np.float32,
    "cofiring_counts": np.int32,
    "similar_ids": np.int32,
    "similar_cosine": np.float32,
    **{
        f"{kind}_{name}": dtype
        for kind in ("top", "random")
        for name, dtype in {
            "value": np.float32,
            "document": np.int32,
            "at": np.int32,
            "tokens": np.int32,
            "values": np.float32,
        }.items()
    },
}
_TEXTS = ("label", "labeler")


class FeatureFile(Mapping[str, Any]):
    """The columns of a file: name -> (F,) or (F, m) array, or a list of F texts; each is read once, when used."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            file = pq.ParquetFile(path)
            self.info = json.loads((file.schema_arrow.metadata or {}).get(_INFO, b"null"))
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: not readable as a table of features ({error})") from error
        if not isinstance(self.info, dict) or not isinstance(self.info.get("version"), int):
            raise ArtifactError(f"{path}: not written by hubsae")
        if self.info["version"] > _VERSION:
            raise ArtifactError(f"{path}: written in format {self.info['version']}. Run: pip install -U hubsae")
        self.n_features = file.metadata.num_rows
        self._names = [name for name in file.schema_arrow.names if name in {*_SCALARS, *_LISTS, *_TEXTS}]
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            self._read[name] = self._column(name)
        return self._read[name]

    def _column(self, name: str) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.read_table(self.path, columns=[name]).column(0).combine_chunks()
            if name in _TEXTS:
                return [text if isinstance(text, str) else None for text in column.to_pylist()]
            if name in _SCALARS:
                return column.to_numpy(zero_copy_only=False).astype(_SCALARS[name])
            flat = column.flatten().to_numpy(zero_copy_only=False).astype(_LISTS[name])
            return flat.reshape(self.n_features, -1)
        except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{self.path}: column {name} is damaged ({error})") from error

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
    for name, values in columns.items():
        if name in _TEXTS:
            arrays[name] = pa.array(values, pa.string())
        elif name in _SCALARS:
            arrays[name] = pa.array(np.ascontiguousarray(values, _SCALARS[name]))
        else:
            flat = np.ascontiguousarray(values, _LISTS[name])
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    for name in ("mean", "maximum"):
        if not np.isfinite(columns[name]).all():
            raise DataError(f"{name} of features holds values that are not finite, so they are not saved")
    table = pa.table(arrays).replace_schema_metadata(
        {_INFO: json.dumps({**info, "version": _VERSION}, ensure_ascii=False).encode()}
    )
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as stage:
        pq.write_table(table, Path(stage, path.name), compression="zstd", row_group_size=4096)
        os.replace(Path(stage, path.name), path)
