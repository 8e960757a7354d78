from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hubsae import frames
from hubsae.errors import ArtifactError, DataError
from hubsae.frames import Frame, read_frame, stacked

KINDS = {"n": int, "r": float, "yes": bool, "name": str}


def _frame() -> Frame:
    columns = {
        "n": np.array([3, -1, 1 << 40]),
        "r": np.array([0.5, np.nan, -np.inf]),
        "yes": np.array([True, False, True]),
        "name": np.array(["ä\n", None, ""], object),
    }
    return Frame(columns, "three things")


def _same(one: Frame, other: Frame) -> None:
    assert list(one.columns) == list(other.columns)
    for name, column in one.columns.items():
        found = other[name]
        assert found.dtype.kind == column.dtype.kind
        assert found.tolist() == column.tolist() or np.array_equal(found, column, equal_nan=True)


def test_a_table_with_missing_values_comes_back_from_parquet_as_it_was(tmp_path):
    frame = _frame()
    frame.write(tmp_path / "t.parquet")
    _same(frame, read_frame(tmp_path / "t.parquet", KINDS))
    arrow = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert [column.null_count for column in arrow.columns] == [0, 1, 0, 1]  # missing is null to others, not NaN


@pytest.mark.parametrize("rows", [0, 3])
def test_columns_that_hold_nothing_come_back(tmp_path, rows):
    frame = Frame(stacked([{}] * rows, KINDS))
    frame.write(tmp_path / "t.parquet")
    found = read_frame(tmp_path / "t.parquet", KINDS)
    _same(frame, found)
    assert len(found) == rows
    assert np.isnan(found["r"]).all()
    assert found["name"].tolist() == [None] * rows


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int16, np.uint8])
def test_narrow_columns_are_read_as_numbers(tmp_path, kind):
    Frame({"r": np.arange(4).astype(kind)}).write(tmp_path / "t.parquet")
    found = read_frame(tmp_path / "t.parquet", {"r": float})["r"]
    assert found.dtype == np.float64
    assert found.tolist() == [0, 1, 2, 3]


def test_columns_nobody_asked_for_are_dropped(tmp_path):
    _frame().write(tmp_path / "t.parquet")
    assert list(read_frame(tmp_path / "t.parquet", {"yes": bool}).columns) == ["yes"]


def test_rows_become_columns_and_what_a_row_lacks_is_missing():
    found = stacked([{"n": 1, "r": None, "name": "a"}, {"yes": True, "r": 2.0, "other": 5}], KINDS)
    assert found["n"].tolist() == [1, -1]
    assert np.isnan(found["r"][0])
    assert found["yes"].tolist() == [False, True]
    assert found["name"].tolist() == ["a", None]
    assert [found[name].dtype for name in KINDS] == [np.int64, np.float64, np.bool_, np.object_]


def test_rows_are_chosen_and_put_in_order_with_missing_ones_last():
    frame = _frame()
    assert frame.where(np.array([True, False, True]))["n"].tolist() == [3, 1 << 40]
    assert frame.sorted_by("r")["n"].tolist() == [3, 1 << 40, -1]
    assert frame.sorted_by("r", falling=False)["n"].tolist() == [1 << 40, 3, -1]
    assert frame.sorted_by("n").row(2) == {"n": -1, "r": None, "yes": False, "name": None}
    assert len(frame.where(np.zeros(0, int))) == 0


def test_a_table_shows_its_first_rows_and_nothing_for_what_is_missing():
    long = Frame({"n": np.arange(50), "r": np.full(50, np.nan), "yes": np.ones(50, bool)}, "many", ("r", "yes", "gone"))
    (table,) = long.tables()
    assert table.head == ["r", "yes"]
    assert len(table.rows) == 20
    assert table.rows[0] == ["", "True"]
    assert "50 rows" in table.note
    assert "many" in str(table)


def test_a_data_frame_of_pandas_has_the_same_columns():
    found = _frame().to_pandas()
    assert list(found.columns) == list(KINDS)
    assert found["r"].isna().tolist() == [False, True, False]


def test_columns_of_different_lengths_and_names_that_are_not_there_are_refused():
    with pytest.raises(DataError, match="different lengths"):
        Frame({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(DataError, match="no column 'x'; there are n, r, yes, name"):
        _frame()["x"]


def _written(path: Path, column: pyarrow.Array, name: str = "a") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({name: column}), path)
    return path


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pyarrow.array([{"b": 1}]), int),
        (pyarrow.array([[1.0]]), float),
        (pyarrow.array([b"x"]), str),
        (pyarrow.array(["x"]), int),
        (pyarrow.array(["1"]), float),
        (pyarrow.array([1]), bool),
        (pyarrow.array([1]), str),
        (pyarrow.array([0.5]), int),
        (pyarrow.array([1, None]), int),
        (pyarrow.array([True, None]), bool),
        (pyarrow.array([None]), int),
        (pyarrow.array([0], pyarrow.timestamp("s")), int),
        (pyarrow.array([(1 << 63) + 1], pyarrow.uint64()), float),
    ],
    ids=str,
)
def test_columns_of_another_type_are_refused(tmp_path, column, kind):
    with pytest.raises(ArtifactError, match=r"t\.parquet"):
        read_frame(_written(tmp_path / "t.parquet", column), {"a": kind})


def test_missing_and_repeated_columns_are_refused(tmp_path):
    path = _written(tmp_path / "t.parquet", pyarrow.array([1]))
    with pytest.raises(ArtifactError, match="no columns b, c"):
        read_frame(path, {"c": int, "a": int, "b": int})
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(ArtifactError, match="several columns a"):
        read_frame(path, {"a": int})


def test_what_is_no_parquet_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("a,b\n1,2\n")
    (tmp_path / "magic").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    for name in ("text", "magic", "gone", "."):
        with pytest.raises(ArtifactError, match="not a readable Parquet file"):
            read_frame(tmp_path / name, {"a": int})


def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path):
    path = tmp_path / "t.parquet"
    _frame().write(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            read_frame(path, KINDS)
        except ArtifactError:
            refused += 1
    assert refused > 10


def test_a_file_of_more_rows_than_any_table_has_is_refused_however_small_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_MOST_ROWS", 100_000, raising=False)
    path = _written(tmp_path / "t.parquet", pyarrow.array(np.zeros(200_000, np.int8)))
    assert path.stat().st_size < 2000
    with pytest.raises(ArtifactError, match="200,000 rows"):
        read_frame(path, {"a": int})
