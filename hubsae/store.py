"""Files of an artifact's folder: JSON and arrays, checked when read, and never half-written."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from hubsae.errors import ArtifactError, ConfigError, DataError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
STATISTICS = "statistics.json"
METRICS = "metrics.json"
CARD = "README.md"
ALIGNMENT = "alignment.json"
REPORT = "report.json"
MAP = "map.safetensors"
CONFIGS = {
    CONFIG: "a dictionary",
    ALIGNMENT: "an alignment",
    REPORT: "a report",
}  # by its config's name, what a folder of hubsae's holds
_CARRIED = (*CONFIGS, METRICS, STATISTICS)
_MOST_CARRIED = 96 << 10  # bytes: a header that one request of the Hub's own reader of headers gets whole
_STAGE = ".writing-"
_CONFIGS_ELSEWHERE = ("cfg.json", "config.yaml")  # of other libraries' folders
C = TypeVar("C", bound=Any)


def read_json(path: Path, most_bytes: int = 256 << 20) -> dict:
    """A JSON object from a file, or `ArtifactError`."""
    try:
        if path.stat().st_size > most_bytes:
            raise ArtifactError(f"{path}: {path.stat().st_size:,} bytes, too many for settings")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def config_from(kind: type[C], data: dict, name: str, newest: int) -> C:
    """A config (a dataclass) from the content of the file `name`, in a format up to `newest`.

    Raises `ArtifactError` for what is not ours or too new, unknown entries, and what the config itself refuses.
    """
    if data.get("library_name") != "hubsae":
        raise ArtifactError(f"{name} was not written by hubsae (no library_name 'hubsae')")
    version = data.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(
            f"{name}: format_version {version!r} is not a positive number, so it was not written by hubsae"
        )
    if version > newest:
        raise ArtifactError(
            f"written in format {version} by hubsae {data.get('library_version')}; this version reads up to format "
            f"{newest}. Run: pip install -U hubsae"
        )
    if unknown := sorted(set(data) - {f.name for f in fields(kind)}):
        raise ArtifactError(f"{name}: unknown entries {', '.join(unknown)}; they could change what it computes")
    try:
        return kind(**data)
    except (TypeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{name}: {error}") from error


def write_json(path: Path, data: dict) -> None:
    """Sorted, indented, strict JSON: a NaN is refused, since no other reader takes it."""
    try:
        text = json.dumps(data, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:
        raise DataError(f"{path.name}: holds a value that is not finite, or no text or JSON ({error})") from error
    path.write_bytes(text + b"\n")


def write_text(path: Path, text: str) -> None:
    """A text file, and the folder it stands in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def read_arrays(path: Path) -> dict[str, mx.array]:
    """Arrays of a safetensors file by name, after its header has been checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks lengths, offsets and overlaps
            names = set(file.keys())
        arrays = mx.load(str(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a valid safetensors file ({error})") from error
    if not isinstance(arrays, dict) or set(arrays) != names:
        raise ArtifactError(f"{path}: two readers disagree about the arrays in this file")
    return arrays


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """A safetensors file, whose header carries the small files of its folder too; refuses NaN and infinity."""
    for name, array in arrays.items():
        if not mx.all(mx.isfinite(array)).item():
            raise DataError(f"{name}: holds NaN or infinity, so it is not saved")
    mx.save_safetensors(str(path), arrays, {**metadata, **_small_files(path.parent)})


def _small_files(folder: Path) -> dict[str, str]:
    """The texts of a folder's settings and numbers by file name, as long as they stay small in all."""
    found: dict[str, str] = {}
    for path in (folder / name for name in _CARRIED):
        if path.is_file() and sum(map(len, found.values())) + path.stat().st_size <= _MOST_CARRIED:
            found[path.name] = path.read_text(encoding="utf-8")
    return found


def carried_texts(path: Path) -> dict[str, str]:
    """Settings and numbers by file name that a safetensors file carries in its header; empty where it carries none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
    return {name: header[name] for name in _CARRIED if name in header}


def file_sums(folder: Path) -> list[tuple[str, int, str]]:
    """(name, bytes, sha256 in hex) of every file below a folder, sorted by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)) for path in paths]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sum_of_sums(sums: Mapping[str, str]) -> str:
    """One sha256 for files by name and sha256: what `sha256sum NAME ... | sha256sum` gives, names in sorted order."""
    return hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()).hexdigest()


@contextlib.contextmanager
def put_back(thing: Any, name: str) -> Iterator[None]:
    """Context at whose end an attribute is as it was before, if there was an error."""
    before = getattr(thing, name)
    try:
        yield
    except BaseException:
        setattr(thing, name, before)
        raise


@contextlib.contextmanager
def staged(target: Path, whole: tuple[str, ...] = ()) -> Iterator[Path]:
    """Context: an empty folder inside `target`; on a clean exit its files replace those of the same name in `target`.

    Each file is replaced atomically and a config last, so that a reader never sees a half-written file and an error
    inside the context leaves `target` as it was. Of the names in `whole`, those that were not written are removed:
    they belong to what stood there before. Raises `ArtifactError` where nothing can be written.
    """
    new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        _clear_stages(target)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=target))
    except OSError as error:
        raise ArtifactError(f"{target}: cannot write a folder there ({error})") from error
    try:
        yield stage
        for name in whole:
            if not (stage / name).exists():
                (target / name).unlink(missing_ok=True)
        files = [p.relative_to(stage) for p in sorted(stage.rglob("*")) if p.is_file()]
        _check_places(target, files)
        for relative in sorted(files, key=lambda p: p.name in (*CONFIGS, *_CONFIGS_ELSEWHERE)):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / relative, target / relative)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if new and not any(target.iterdir()):
            target.rmdir()


def _check_places(target: Path, files: list[Path]) -> None:
    """Raise `ArtifactError` where a file would take a folder's place, or come to lie outside through a link."""
    inside = target.resolve()
    for relative in files:
        place = target / relative
        if place.is_dir():
            raise ArtifactError(f"{place} is a folder, and a file of this name has to be written; give another folder")
        if not place.parent.resolve().is_relative_to(inside):
            raise ArtifactError(f"{place.parent} leads out of {target}; give another folder")


def check_target(folder: str | Path, config_file: str = CONFIG) -> Path:
    """The folder to save an artifact with this config to, absolute.

    `ArtifactError` where it is a file, holds another kind of artifact or something of another library, or is not
    writable.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise ConfigError(f"{folder!r}: expected the path of a folder to save to")
    target = Path(folder).expanduser().absolute()
    if target.is_file():
        raise ArtifactError(f"{target} is a file; give a folder to save to")
    if (target / config_file).is_file() and not _is_ours(target / config_file):
        raise ArtifactError(f"{target} holds a {config_file} of something else (a model?); give another folder")
    if other := other_kind(target, config_file):
        raise ArtifactError(f"{target} holds {other}, which this is not; give another folder")
    if not (target / config_file).is_file():
        there = [name for name in (WEIGHTS, MAP, STATISTICS, METRICS) if (target / name).exists()]
        if there:
            raise ArtifactError(
                f"{target} holds {', '.join(there)}, but no {config_file} of hubsae, so they are somebody else's; "
                "give another folder"
            )
    with staged(target):
        return target


def other_kind(folder: Path, config_file: str) -> str | None:
    """What a folder holds by a config of another name: `"a dictionary (config.json)"`; None where there is none."""
    for name, what in CONFIGS.items():
        if name != config_file and (folder / name).is_file():
            return f"{what if _is_ours(folder / name) else 'something of another library'} ({name})"
    return None


def _is_ours(path: Path) -> bool:
    return read_json(path).get("library_name") == "hubsae"


def read_card(path: Path) -> str:
    """A card's text; what is no UTF-8 in it is shown as a question mark."""
    return path.read_text(encoding="utf-8", errors="replace")


def _clear_stages(target: Path) -> None:
    """Remove what writers left behind that were killed more than an hour ago."""
    for old in target.glob(_STAGE + "*"):
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
