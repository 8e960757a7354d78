"""The files of one commit, listed once; small ones come with the arrays, in whose header `store` wrote them too."""

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import errors as hf
from huggingface_hub import get_cached_repo_tree

from hubsae.hub_client import snapshot
from hubsae.store import CONFIGS, STATISTICS, carried_texts

_DAMAGED = (AttributeError, TypeError, KeyError, ValueError)  # what a listing that is none gives
_MOST_FIRST = 1 << 30  # bytes: larger arrays come after the config, which says whether they are ours
_UNKNOWN = ("", 0)


def fetched(
    repo_id: str,
    wanted: Sequence[str],
    *,
    arrays: str | None,
    folder: PurePosixPath | None = None,
    revision: str | None = None,
    force_download: bool = False,
    what: str = "artifact",
    repo_type: str = "model",
    **access: Any,
) -> Path:
    """The cache's folder of a commit, with those of the `wanted` files of `folder` that it has, downloaded if need be.

    arrays: a safetensors file that may carry the others, fetched first where the commit looks like one of ours. It asks
    for the commit and its list of files, then for that file alone: what its header carries is used where it has the
    very id that git gave the file of that name.
    """
    folder = folder or PurePosixPath()
    about: dict[str, Any] = {"what": what, "repo_type": repo_type, **access}
    if force_download:
        names = [glob.escape(str(folder / name)) for name in wanted]
        return snapshot(repo_id, revision=revision, allow_patterns=names, force_download=True, **about)
    root = snapshot(repo_id, revision=revision, allow_patterns=[], **about)
    ids = _listing(repo_id, root.name, repo_type, access.get("cache_dir"))

    def missing(names: Sequence[str]) -> list[str]:
        paths = (str(folder / name) for name in names)
        return [path for path in paths if path in ids and not (root / path).is_file()]

    def fetch(paths: list[str]) -> None:
        snapshot(repo_id, revision=root.name, allow_patterns=list(map(glob.escape, paths)), **about)

    is_ours = str(folder / STATISTICS) in ids and any(str(folder / name) in ids for name in CONFIGS)
    is_small = ids.get(str(folder / arrays), _UNKNOWN)[1] <= _MOST_FIRST if arrays else False
    if arrays and is_ours and is_small and missing(wanted):
        if missing([arrays]):
            fetch(missing([arrays]))
        if (root / folder / arrays).is_file():
            _unpack(root / folder, arrays, {name: ids.get(str(folder / name), _UNKNOWN)[0] for name in wanted})
    if left := missing(wanted):
        fetch(left)
    return root


def _listing(repo_id: str, commit: str, repo_type: str, cache_dir: Any) -> dict[str, tuple[str, int]]:
    """File names of a commit, their ids in git and sizes, as the client remembers them; empty where it does not."""
    try:
        files = get_cached_repo_tree(repo_id, revision=commit, repo_type=repo_type, cache_dir=cache_dir)
        return {file.path: (file.blob_id, file.size) for file in files}
    except (hf.CachedRepoTreeNotFoundError, hf.LocalEntryNotFoundError, *_DAMAGED):
        return {}


def _unpack(folder: Path, arrays: str, ids: dict[str, str]) -> None:
    """Put the texts that an arrays file carries beside it, where they are what the commit holds."""
    for name, text in carried_texts(folder / arrays).items():
        data, target = text.encode("utf-8", "surrogatepass"), folder / name
        own = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if ids.get(name) != own or target.exists():
            continue
        with contextlib.suppress(OSError):  # then it is downloaded
            _put(data, target, mode=(folder / arrays).stat().st_mode & 0o666)


def _put(data: bytes, target: Path, mode: int) -> None:
    """A whole file or none, which whoever reads the arrays can read too."""
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
