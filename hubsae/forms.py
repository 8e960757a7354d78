"""Other libraries' forms of an artifact, in folders of their names beside it in the same repository."""

import glob
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from hubsae.errors import ArtifactError, ConfigError, HubError
from hubsae.store import read_json

Write = Callable[[Path, str], None]
"""Writes the form of this name into an empty folder."""
_MOST_SETTINGS = 4 << 20


def checked(also: Any, known: Sequence[str], write: Write) -> list[str] | None:
    """The forms that were asked for, each once, None for None; raises whatever keeps one from being written."""
    if also is None:
        return None
    names = [also] if isinstance(also, str) else also
    if not isinstance(names, list | tuple) or not all(isinstance(form, str) for form in names):
        raise ConfigError(f"also={str(also)[:80]!r}: expected names of forms")
    wanted = list(dict.fromkeys(names))
    if unknown := [form for form in wanted if form not in known]:
        raise ConfigError(f"also={unknown}: this has the forms {', '.join(known) or 'of no other library'}")
    with tempfile.TemporaryDirectory() as temporary:
        for form in wanted:
            write(Path(temporary), form)
    return wanted


def add(
    folder: Path, wanted: Sequence[str], there: dict[str, list[str]], names: Sequence[str], write: Write
) -> list[str]:
    """Write forms into folders of their names; returns patterns of what earlier ones left and has to go.

    there: files of each form that are ours, of all `names` in the repository. Raises `HubError` before somebody else's
    file would be overwritten.
    """
    old = {name for own in there.values() for name in own}
    for form in wanted:
        (folder / form).mkdir()
        write(folder / form, form)
        new = {path.relative_to(folder).as_posix() for path in (folder / form).rglob("*") if path.is_file()}
        if clash := sorted(new & set(names) - old):
            raise HubError(f"{clash[0]} is there already and is not of hubsae; take it away, or leave {form!r} out")
        old -= new
    return [glob.escape(name) for name in sorted(old)]


def settings(repo_id: str, repo_type: str, revision: str | None, token: str | None, name: str) -> dict:
    """Settings in a repository, empty where they cannot be read."""
    path = hf_hub_download(repo_id, name, repo_type=repo_type, revision=revision, token=token)
    try:
        return read_json(Path(path), _MOST_SETTINGS)
    except ArtifactError:
        return {}
