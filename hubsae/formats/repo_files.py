"""`RepoFiles`: the files of a folder, or of a repository at one commit, each fetched when it is read."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import errors as hf

from hubsae.errors import ArtifactError, ConfigError, HubError
from hubsae.hub_client import NO_ANSWER, Source, hub_api, hub_errors, local_folder, resolved, snapshot

_MOST_FILES = 200_000
_NO_FILE = "/"
_MOST_TEXT_BYTES = 4 << 20
_MOST_YAML_BYTES = 64 << 10


class _Plain(yaml.BaseLoader):
    """YAML without aliases, by which a small file could stand for a huge one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class RepoFiles:
    """`names`: all files as relative paths with `/`, sorted. `source`: the folder, or the repository at a commit."""

    source: Source
    names: tuple[str, ...]
    _found: dict[str, Path] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        """The repository id or the folder's path, which published dictionaries put settings into."""
        return self.source.name

    def path(self, name: str) -> Path:
        """The file on disk, downloaded where it is not."""
        if name not in self._found:
            if name not in self.names:
                raise ArtifactError(f"{self.source}: no file {name}")
            path = self.source.file(name)
            if path is None:
                raise ArtifactError(f"{self.source}: {name} is listed, but cannot be read")
            self._found[name] = path
        return self._found[name]

    def json(self, name: str) -> dict:
        """A JSON object."""
        return self._mapping(name, json.loads, ValueError)

    def yaml(self, name: str) -> dict:
        """A YAML mapping of texts, lists and mappings; nothing in it becomes anything else."""
        return self._mapping(name, lambda text: yaml.load(text, Loader=_Plain), yaml.YAMLError, _MOST_YAML_BYTES)

    def _mapping(self, name: str, parse: Any, error_kind: type[Exception], most: int = _MOST_TEXT_BYTES) -> dict:
        path = self.path(name)
        try:
            if path.stat().st_size > most:
                raise ArtifactError(f"{self.source}: {name} has {path.stat().st_size:,} bytes, too many for settings")
            data = parse(path.read_text(encoding="utf-8"))
        except (error_kind, ValueError, OSError, RecursionError) as error:
            raise ArtifactError(f"{self.source}: {name} is not readable ({error})") from error
        if not isinstance(data, dict):
            raise ArtifactError(f"{self.source}: {name} holds a {type(data).__name__}, expected named settings")
        return data

    def at(self, entry: str) -> Source:
        """Where an entry (a folder or a file inside) stands: further files of it are found beside it."""
        folder = self.folder_of(entry)
        if not folder:
            return self.source
        if self.source.revision is None:
            return Source(str(Path(self.source.name, folder)))
        return Source(f"{self.source.name}/{folder}", self.source.revision, {**self.source.access, "subfolder": folder})

    def folder_of(self, entry: str) -> str:
        """The folder of an entry, which is one or a file in it; `""` is the root."""
        folder = str(PurePosixPath(entry).parent) if entry in self.names else entry
        return "" if folder == "." else folder


def open_files(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> RepoFiles:
    """The files of a folder or a repository; an existing folder wins. Raises `HubError`, `ConfigError`."""
    folder = local_folder(source)
    if folder is not None:
        if revision is not None:
            raise ConfigError(f"{source} is a local folder: revision={revision!r} needs a repository id")
        return RepoFiles(Source(str(folder)), _listed(folder))
    repo_id = str(source)
    access = {"repo_id": repo_id, "subfolder": None, "token": token, "repo_type": "model"}
    access |= {"cache_dir": cache_dir, "local_files_only": local_files_only}
    with hub_errors(repo_id, revision, "model"):
        commit, info = resolved(repo_id, revision, "model", token, cache_dir, local_files_only)
        try:
            if local_files_only:
                raise hf.OfflineModeIsEnabled
            info = info or hub_api(token).model_info(repo_id, revision=commit.resolved)
        except (hf.OfflineModeIsEnabled, hf.HfHubHTTPError, *NO_ANSWER):
            if (root := _cached(repo_id, commit.resolved, cache_dir)) is None:
                raise
            return RepoFiles(Source(repo_id, root.name, access), _listed(root))
    names = sorted(file.rfilename for file in info.siblings or [])
    inside = (n for n in names if not n.startswith("/") and ".." not in PurePosixPath(n).parts)
    return RepoFiles(Source(repo_id, info.sha, access), tuple(inside))


def _cached(repo_id: str, commit: str, cache_dir: Any) -> Path | None:
    """What the cache holds of a commit, which is all there is where the Hub does not answer."""
    cached: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": True}
    try:  # a pattern that no file has: the client wants whatever matches to be there
        return snapshot(repo_id, revision=commit, allow_patterns=[_NO_FILE], what="dictionary", **cached)
    except HubError:
        return None


def _listed(folder: Path) -> tuple[str, ...]:
    """Files under a folder; hidden ones and links to folders are left out."""
    found: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
        if len(found) > _MOST_FILES:
            raise ArtifactError(f"{folder}: more than {_MOST_FILES:,} files; give the folder of one dictionary")
    return tuple(sorted(found))


def folders_with(names: Sequence[str], *wanted: str) -> list[str]:
    """The folders (`""` is the root) that hold all of the wanted files, which may be paths below the folder."""
    there = set(names)
    first = [name for name in names if name == wanted[0] or name.endswith("/" + wanted[0])]
    folders = [name[: -len(wanted[0])].rstrip("/") for name in first]
    return [f for f in folders if all((f"{f}/{w}" if f else w) in there for w in wanted)]


def beside(folder: str, name: str) -> str:
    """A file's path in an entry's folder."""
    return f"{folder}/{name}" if folder else name
