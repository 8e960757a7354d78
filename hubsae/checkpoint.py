"""Checkpoints of a training run: folders that appear whole, are checked when read, and are pruned."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np

from hubsae.errors import ArtifactError, ConfigError, HubsaeError, warn
from hubsae.store import read_arrays, read_json, write_arrays, write_json

_STATE, _PREFIX, _UNFINISHED = "state.json", "step-", ".unfinished-"
_FORMAT_VERSION = 2
_KEPT = 2


@dataclass(frozen=True)
class State:
    """What a part of a run goes on from: plain values, MLX arrays, and NumPy arrays that may be large."""

    values: dict
    arrays: dict[str, mx.array]
    rows: dict[str, np.ndarray] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run under `folder`; `made_for` (a JSON table) says what they must agree with.

    Raises `ConfigError` where the folder holds checkpoints of something else, before anything long is done.
    """

    def __init__(self, folder: str | Path, made_for: dict):
        self.folder = self.check_folder(folder)
        self._made_for = json.loads(json.dumps(made_for))
        for path in self._found():
            self._header(path)

    @staticmethod
    def check_folder(folder: str | Path) -> Path:
        """The folder, made if it is missing; `ArtifactError` where it holds other things or cannot be written."""
        path = Path(folder).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"{path} is a file; checkpoint_dir has to be a folder")
        if path.is_dir() and any(not p.name.startswith((_PREFIX, _UNFINISHED)) for p in path.iterdir()):
            raise ArtifactError(f"{path}: holds other files than checkpoints; give an empty or new folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot write checkpoints there ({error})") from error
        return path

    def _found(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        numbered = {p: p.name.removeprefix(_PREFIX) for p in self.folder.glob(_PREFIX + "*")}
        return sorted((p for p, n in numbered.items() if n.isdigit()), key=lambda p: -int(numbered[p]))

    def _header(self, path: Path) -> dict | None:
        """The content of state.json, None where it is damaged; `ConfigError` where it is of another run."""
        try:
            state = read_json(path / _STATE)
        except HubsaeError:
            return None
        if state.pop("sha256", None) != _json_digest(state):
            return None
        if state.get("format_version") != _FORMAT_VERSION:
            raise ConfigError(
                f"{path}: a checkpoint in format {state.get('format_version')}, this version of hubsae has format "
                f"{_FORMAT_VERSION}; give another checkpoint_dir"
            )
        if differences := list(_differences(state.get("made_for"), self._made_for)):
            raise ConfigError(
                f"{path}: a checkpoint of another run: {'; '.join(differences[:3])}. Give the settings of that run, or "
                "another checkpoint_dir"
            )
        return state

    def newest(self) -> tuple[State, dict[str, State]] | None:
        """The run's state and its parts' from the newest checkpoint that is whole; warns of those that are not."""
        for path in self._found():
            header = self._header(path)
            try:
                if header is not None:
                    parts = {name: _read(path, name, entry) for name, entry in header["files"].items()}
                    return State(header["run"], {}), parts
            except (HubsaeError, OSError, ValueError, KeyError, TypeError):
                pass
            warn(f"{path}: this checkpoint is damaged, so an older one is taken, or training starts anew")
        return None

    def keep(self, step: int, run: State, parts: Mapping[str, State]) -> None:
        """Write a checkpoint: it takes its name only when all of it is on disk. Older ones are pruned, but one."""
        for old in self.folder.glob(_UNFINISHED + "*"):
            shutil.rmtree(old, ignore_errors=True)
        target = self.folder / f"{_PREFIX}{step:08d}"
        try:
            stage = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
            files = {name: _write(stage, name, part) for name, part in parts.items()}
            state = {"format_version": _FORMAT_VERSION, "made_for": self._made_for, "run": run.values, "files": files}
            write_json(stage / _STATE, {**state, "sha256": _json_digest(state)})
            _sync(stage)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
            os.replace(stage, target)
            _sync(self.folder, inside=False)
        except OSError as error:
            raise ArtifactError(f"{target}: cannot write this checkpoint ({error})") from error
        for old in self._found()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def _write(stage: Path, name: str, part: State) -> dict:
    entry: dict = {"values": part.values, "arrays": None, "rows": {}}
    if part.arrays:
        path = stage / f"{name}.safetensors"
        write_arrays(path, part.arrays, {"format": "mlx", "library": "hubsae"})
        entry["arrays"] = _digest(path)
    for key, array in part.rows.items():
        path = stage / f"{name}-{key}.npy"
        np.save(path, array, allow_pickle=False)
        entry["rows"][key] = _digest(path)
    return entry


def _read(path: Path, name: str, entry: dict) -> State:
    arrays: dict[str, mx.array] = {}
    if entry["arrays"] is not None:
        file = _verified(path / f"{name}.safetensors", entry["arrays"])
        arrays = read_arrays(file)
        mx.eval(arrays)
    rows = {
        key: np.load(_verified(path / f"{name}-{key}.npy", digest), allow_pickle=False)
        for key, digest in entry["rows"].items()
    }
    return State(entry["values"], arrays, rows)


def _verified(path: Path, digest: str) -> Path:
    if _digest(path) != digest:
        raise ArtifactError(f"{path}: damaged")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path, inside: bool = True) -> None:
    """Wait until the files, and the folder that names them, are on disk."""
    if os.name != "posix":  # folders cannot be opened elsewhere
        return
    for path in (*folder.iterdir(), folder) if inside else (folder,):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _differences(found: object, wanted: object, name: str = "") -> Iterator[str]:
    """`"k is 32 there, 64 here"` for everything in which two tables differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}".removeprefix("."))
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            yield from _differences(a, b, f"{name}.{i}")
    elif found != wanted:
        yield f"{name} is {str(found)[:60]} there, {str(wanted)[:60]} here"
