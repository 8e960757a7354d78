"""Which dictionaries a folder or repository holds, in whatever layout, and reading one of them."""

import contextlib
import difflib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from hubsae.commit_files import fetched
from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, ConfigError, SiteError
from hubsae.formats import (
    circuit_tracer,
    crosscoders,
    dictionary_learning,
    gemma_scope,
    loose_pt,
    mlxterp,
    openmoss,
    saelens,
    sparsify,
)
from hubsae.formats.imported import NOTHING, Given, NormOf
from hubsae.formats.layout import Layout
from hubsae.formats.repo_files import RepoFiles, beside, open_files
from hubsae.hub_client import Source, local_folder, subfolder_path
from hubsae.store import CONFIG, CONFIGS, WEIGHTS, read_json
from hubsae.tables import Listed, Table, plain

# an entry that several find is the first one's
LAYOUTS: tuple[Layout, ...] = (
    saelens.LAYOUT,
    sparsify.LAYOUT,
    gemma_scope.LAYOUT_1,
    gemma_scope.LAYOUT_2,
    openmoss.LLAMA_SCOPE,
    openmoss.LAYOUT,
    dictionary_learning.LAYOUT,
    dictionary_learning.KIN_LAYOUT,
    circuit_tracer.LAYOUT,
    crosscoders.CK_LAYOUT,
    mlxterp.LAYOUT,
    crosscoders.SF_LAYOUT,
    loose_pt.LAYOUT,
)
OURS = "hubsae"
_SHOWN = 12
_MOST_SETTINGS = 4 << 20
_LONGEST_MESSAGE = 1500
_BROKEN = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, MemoryError, OSError)


@dataclass(frozen=True)
class Entry:
    """One dictionary of a repository: `subfolder` is what `load_sae` takes, `""` the root; `format`, the library's."""

    subfolder: str
    format: str
    layout: Layout | None = None


@dataclass(frozen=True, repr=False)
class Dictionaries(Listed):
    """The dictionaries that a folder or repository holds, as `Entry`, sorted as people count."""

    source: Source
    entries: tuple[Entry, ...]
    listed: ClassVar[str] = "entries"

    def tables(self) -> list[Table]:
        rows = tuple((entry.subfolder or "(the root)", entry.format) for entry in self.entries)
        title = f"{self.source}: {len(rows)} {'dictionary' if len(rows) == 1 else 'dictionaries'}"
        return [Table(title, ("subfolder", "format"), rows)]


def entries(files: RepoFiles) -> Dictionaries:
    """Every dictionary that the files tell of, ours too; settings are read only where names leave it open."""
    named = _by_name(files)
    found = filter(None, (_settled(files, entry) for entry in named.values()))
    return Dictionaries(files.source, tuple(sorted(found, key=lambda entry: _natural(entry.subfolder))))


def _by_name(files: RepoFiles) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for layout in LAYOUTS:
        for name in layout.find(files.names):
            found.setdefault(name, Entry(name, layout.name, layout))
    return found


def _settled(files: RepoFiles, entry: Entry) -> Entry | None:
    """As its settings say, where files of these names are of several kinds: ours, crosscoders, or language models."""
    if entry.layout is not crosscoders.SF_LAYOUT:
        return entry
    path = files.path(beside(entry.subfolder, CONFIG))
    if _is_ours(path.parent):
        return Entry(entry.subfolder, OURS)
    return entry if crosscoders.is_crosscoder(_quietly(path)) else None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorted as people count: layer_2 before layer_10."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]


def choose(files: RepoFiles, subfolder: str | None) -> Entry:
    """The dictionary of this subfolder (or file), or the only one there is; `ArtifactError` lists what there is."""
    wanted = "/".join(subfolder_path(subfolder).parts)
    found = _by_name(files)
    below = [name for name in found if not wanted or name.startswith(f"{wanted}/")]
    stem = [name for name in found if wanted and name.rpartition(".")[0] == wanted]
    around = [wanted.rpartition("/")[0]] if wanted in files.names else []  # a file of a dictionary's folder
    for names in ([wanted], stem, around, below):
        if len(names) == 1 and names[0] in found:
            if entry := _settled(files, found[names[0]]):
                return entry
            if len(found) == 1:
                config = beside(names[0], CONFIG)
                files.json(config)  # says what is wrong with it
                raise ArtifactError(
                    f"{files.source}: {config} was not written by hubsae, nor by another library that is known here"
                )
            del found[names[0]]
    below = [name for name in below if name in found]
    if len(below) == 1 and (entry := _settled(files, found[below[0]])):
        return entry
    if found:
        raise ArtifactError(f"{files.source}: {_no_such(wanted, below or list(found), len(found))}")
    shown = ", ".join(files.names[:_SHOWN]) + (", ..." if len(files.names) > _SHOWN else "")
    raise ArtifactError(
        f"{files.source}: holds no dictionary of a layout that is known here (hubsae, "
        f"{', '.join(layout.name for layout in LAYOUTS)}); it holds {shown or 'nothing'}"
    )


def _no_such(wanted: str, names: list[str], n_all: int) -> str:
    names = sorted(names, key=_natural)
    if not wanted or len(names) < n_all:
        listed = ", ".join(name or "(the root)" for name in names[:_SHOWN])
        more = f", ... ({len(names)} in all; `list_dictionaries` shows them)" if len(names) > _SHOWN else ""
        below = f" below {wanted!r}" if wanted else ""
        return f"holds several dictionaries{below}; give subfolder=, one of {listed}{more}"
    close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.5) or [
        name or "(the root)" for name in names[:_SHOWN]
    ]
    return f"no dictionary at {wanted!r}; did you mean {', '.join(close)}? `list_dictionaries` shows all {n_all}"


def read(files: RepoFiles, entry: Entry, given: Given, norm_of: NormOf | None = None) -> Dictionary:
    """A foreign dictionary in our terms; raises `ArtifactError` for what cannot be equal to ours."""
    if entry.layout is None:
        raise ConfigError(f"{files.source}: {entry.subfolder or 'the root'} was written by hubsae itself")
    where = str(files.source) + (f"/{entry.subfolder}" if entry.subfolder else "")
    try:
        found = entry.layout.read(files, entry.subfolder, given).after_gain(norm_of)
    except (ArtifactError, ConfigError, SiteError) as error:
        text = plain(str(error))[:_LONGEST_MESSAGE]
        raise ArtifactError(text if where in text else f"{where} ({entry.format}): {text}") from error
    except _BROKEN as error:
        reason = f"{type(error).__name__}: {plain(str(error))[:200]}"
        raise ArtifactError(f"{where} ({entry.format}): damaged, or no dictionary of this layout ({reason})") from error
    if unneeded := given.unneeded():
        raise ConfigError(f"{where} ({entry.format}): its files say {', '.join(unneeded)} themselves; leave that out")
    told = where if files.source.revision else "/".join(filter(None, (Path(files.address).name, entry.subfolder)))
    dictionary = found.dictionary(told, given.said())  # a path on this machine is nobody else's business
    dictionary.source = files.at(entry.subfolder)
    return dictionary


def load_dictionary(
    source: str | Path,
    given: Given = NOTHING,
    *,
    norm_of: NormOf | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    **access: Any,
) -> Dictionary:
    """The dictionary of a folder, a file or a repository, in our layout or another's.

    norm_of: gain and bias of the norm before a site, for what reads normalised activations without them.
    """
    source, subfolder = _split(source, subfolder)
    inner = "/".join(subfolder_path(subfolder).parts)
    root, commit = _settings(source, revision, inner, access)
    if _is_ours(root / inner):
        return _ours(source, given, commit, inner, access)
    files = open_files(source, revision=commit, **access)
    entry = choose(files, inner)
    if entry.layout is None:
        return _ours(source, given, commit, entry.subfolder, access)
    return read(files, entry, given, norm_of)


def _settings(source: str | Path, revision: str | None, folder: str, access: dict) -> tuple[Path, str | None]:
    """The folder, or one of a repository at a commit with nothing but its settings; and the commit."""
    if (local := local_folder(source)) is not None:
        if revision is not None:
            raise ConfigError(f"{source} is a local folder: revision={revision!r} needs a repository id")
        return local, None
    inside = PurePosixPath(folder)
    root = fetched(
        str(source), tuple(CONFIGS), arrays=WEIGHTS, folder=inside, revision=revision, what="dictionary", **access
    )
    return root, root.name


def _is_ours(folder: Path) -> bool:
    """Whether one of our own artifacts stands there, whole or not: its own reader says what is wrong with it."""
    return any(_quietly(folder / name).get("library_name") == OURS for name in CONFIGS)


def _quietly(path: Path) -> dict:
    """Settings, empty where there are none that can be read."""
    try:
        return read_json(path, _MOST_SETTINGS) if path.is_file() else {}
    except (ArtifactError, OSError):
        return {}


def _split(source: str | Path, subfolder: str | None) -> tuple[str | Path, str | None]:
    """A path to a single file as its folder and its name."""
    if subfolder is None and isinstance(source, str | Path):
        with contextlib.suppress(OSError, RuntimeError):  # what is no path on this system
            if (path := Path(source).expanduser()).is_file():
                return path.parent, path.name
    return source, subfolder


def _ours(source: str | Path, given: Given, revision: str | None, folder: str, access: dict) -> Dictionary:
    if given.said():
        raise ConfigError(f"{source}: its own config says {', '.join(given.said())}; leave that out")
    return Dictionary.from_pretrained(source, revision=revision, subfolder=folder or None, **access)


def list_dictionaries(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Dictionaries:
    """The dictionaries of a folder or Hub repository, in our layout and others', by the names of its files."""
    return entries(
        open_files(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    )
