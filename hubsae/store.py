"""Files of an artifact's folder: JSON and arrays, checked when read, and never half-written."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from hubsae.errors import ArtifactError, DataError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
STATISTICS = "statistics.json"
METRICS = "metrics.json"
CARD = "README.md"


def read_json(path: Path) -> dict:
    """A JSON object from a file, or `ArtifactError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def write_json(path: Path, data: dict) -> None:
    """Sorted, indented, strict JSON: a NaN is refused, since no other reader takes it."""
    try:
        text = json.dumps(data, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise DataError(f"{path.name}: holds a value that is not finite or not JSON ({error})") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_arrays(path: Path) -> dict[str, mx.array]:
    """Arrays of a safetensors file by name, after its header has been checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks lengths, offsets and overlaps
            names = set(file.keys())
        arrays = mx.load(str(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a valid safetensors file ({error})") from error
    assert isinstance(arrays, dict)
    assert set(arrays) == names
    return arrays


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """A safetensors file; refuses NaN and infinity."""
    for name, array in arrays.items():
        if not mx.all(mx.isfinite(array)).item():
            raise DataError(f"{name}: holds NaN or infinity, so it is not saved")
    mx.save_safetensors(str(path), arrays, metadata)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Context: an empty folder beside `target`; on a clean exit its files replace those of the same name there.

    Each file is replaced atomically and config.json last, so that a reader never sees a half-written file and an error
    inside the context leaves `target` as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield stage
        target.mkdir(exist_ok=True)
        files = [p.relative_to(stage) for p in sorted(stage.rglob("*")) if p.is_file()]
        for relative in sorted(files, key=lambda p: p.name == CONFIG):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / relative, target / relative)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
