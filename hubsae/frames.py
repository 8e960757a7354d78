"""A table of results in columns: looked at, filtered, kept as Parquet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.errors import ArtifactError, DataError
from hubsae.tables import Shown, Table

_SHOWN_ROWS = 20
_MOST_BYTES = 1 << 33
_MOST_ROWS = 1 << 26


@dataclass(frozen=True, repr=False)
class Frame(Shown):
    """Columns of equal length, by name. `frame["name"]` is an array, nan or None where a value is missing; `shown`:
    the columns that are printed."""

    columns: dict[str, np.ndarray]
    title: str = ""
    shown: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self):
        if len({len(column) for column in self.columns.values()}) > 1:
            raise DataError(f"columns of different lengths: { {n: len(c) for n, c in self.columns.items()} }")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise DataError(f"no column {name!r}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def where(self, chosen: np.ndarray) -> "Frame":
        """Some rows, by a mask or by their numbers."""
        return self.with_columns({name: column[chosen] for name, column in self.columns.items()})

    def sorted_by(self, name: str, falling: bool = True) -> "Frame":
        """In the order of a column of numbers; what is missing there comes last."""
        keys = np.asarray(self[name], np.float64)
        return self.where(np.lexsort((-keys if falling else keys, np.isnan(keys))))

    def with_columns(self, columns: dict[str, np.ndarray]) -> "Frame":
        """The same with other columns."""
        return Frame(columns, self.title, self.shown, self.note)

    def row(self, i: int) -> dict[str, Any]:
        """One row as plain values."""
        return {name: _plain(column[i]) for name, column in self.columns.items()}

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`; what is missing is null there."""
        import pyarrow

        arrays = {}
        for name, column in self.columns.items():
            missing = np.isnan(column) if np.issubdtype(column.dtype, np.floating) else None
            values = column.tolist() if column.dtype == object else column
            arrays[name] = pyarrow.array(values, mask=missing if missing is not None and missing.any() else None)
        return pyarrow.table(arrays)

    def to_pandas(self) -> Any:
        """A pandas data frame."""
        return self.to_arrow().to_pandas()

    def write(self, path: Path) -> None:
        """As a Parquet file."""
        import pyarrow.parquet

        pyarrow.parquet.write_table(self.to_arrow(), path, compression="zstd")

    def tables(self) -> list[Table]:
        names = [name for name in self.shown or tuple(self.columns) if name in self.columns]
        first = range(min(len(self), _SHOWN_ROWS))
        rows = [[_shown(self.columns[name][i]) for name in names] for i in first]
        more = f"{len(self):,} rows, the first {_SHOWN_ROWS} shown. " if len(self) > _SHOWN_ROWS else ""
        return [Table(self.title, names, rows, more + self.note)]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _shown(value: Any) -> Any:
    value = _plain(value)
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value) if isinstance(value, bool) else value


def read_frame(path: Path, kinds: dict[str, type]) -> Frame:
    """A Parquet file whose columns are those of `kinds` (name -> int, float, bool or str); unknown ones are dropped.

    Raises `ArtifactError` for what is no such file, columns that are missing, of another type, or nested.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > _MOST_BYTES:
            raise ArtifactError(f"{path}: {size:,} bytes once unpacked; more than any table of pairs has")
        if (rows := file.metadata.num_rows) > _MOST_ROWS:  # a few bytes are enough for any number of equal ones
            raise ArtifactError(f"{path}: {rows:,} rows; more than any table of pairs has")
        there = file.schema_arrow.names
        if missing := sorted(set(kinds) - set(there)):
            raise ArtifactError(f"{path}: no columns {', '.join(missing)}")
        if twice := sorted(name for name in kinds if there.count(name) > 1):
            raise ArtifactError(f"{path}: several columns {', '.join(twice)}")
        table = file.read(columns=list(kinds))
        return Frame({name: _column(path, name, table[name], kind) for name, kind in kinds.items()})
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a text that is no UTF-8 is a ValueError
        raise ArtifactError(f"{path}: not a readable Parquet file ({error})") from error


def _column(path: Path, name: str, column: Any, kind: type) -> np.ndarray:
    import pyarrow.types as types

    fits = {
        int: types.is_integer,
        bool: types.is_boolean,
        float: lambda t: types.is_floating(t) or types.is_integer(t) or types.is_null(t),
        str: lambda t: types.is_string(t) or types.is_large_string(t) or types.is_null(t),
    }[kind]
    if not fits(column.type):
        raise ArtifactError(f"{path}, column {name}: {column.type}, expected {kind.__name__}")
    if kind is str:
        return np.array(column.to_pylist(), object)
    if kind is float:
        import pyarrow

        return column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    if column.null_count:
        raise ArtifactError(f"{path}, column {name}: values are missing")
    return column.to_numpy()


def stacked(rows: Sequence[dict[str, Any]], kinds: dict[str, type]) -> dict[str, np.ndarray]:
    """Rows as columns of given types; a value that a row lacks is nan or None."""
    empty = {float: np.nan, str: None, int: -1, bool: False}
    dtypes = {float: np.float64, str: object, int: np.int64, bool: bool}
    return {
        name: np.array([empty[kind] if row.get(name) is None else row[name] for row in rows], dtypes[kind])
        for name, kind in kinds.items()
    }
