"""Which of several dictionaries is meant by a layer and a component: of a repository, of a collection, or of its index.

The index of a family is a report (see `family`): it says what every dictionary reads, and the commit where it stands.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hf

from hubsae.commit_files import fetched
from hubsae.errors import ArtifactError, ConfigError, HubError, SiteError
from hubsae.formats.reading import OURS, entries
from hubsae.formats.repo_files import RepoFiles, beside, open_files
from hubsae.hub_client import hub_api, hub_errors, local_folder, status_of
from hubsae.report_config import ReportConfig
from hubsae.settings import as_type
from hubsae.sites import Site, parse_sites, reads_there
from hubsae.store import CONFIG, REPORT, read_json

_COLLECTION = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}", re.ASCII)
_LAYERS = tuple(  # in names of folders; the second where the first finds none, since "average_l0" is no layer
    re.compile(rf"(?:^|[/_.-])(?:{word})[/_.-]?0*([0-9]+)", re.IGNORECASE) for word in ("layers?|blocks?", "l|h")
)
_MOST_ITEMS = 200
_SHOWN = 12


@dataclass(frozen=True)
class Member:
    """Where a dictionary stands, as `load_sae` takes it; `reads` and `k` as far as they are known without loading."""

    source: str
    revision: str | None = None
    subfolder: str | None = None
    reads: tuple[Site, ...] | None = None
    k: int | None = None

    def __str__(self) -> str:
        place = "/".join(filter(None, (self.source, self.subfolder)))
        sites = f" ({' + '.join(map(str, self.reads))}{f', k={self.k}' if self.k else ''})" if self.reads else ""
        return place + sites

    def fits(self, layer: int | None, component: str | None) -> bool:
        """Whether it reads there; one of which only the name is known, whether its name has this layer in it."""
        if self.reads is not None:
            return reads_there(self.reads, layer, component)
        return layer is None or str(layer) in self.layers_named

    @property
    def layers_named(self) -> list[str]:
        """Numbers of layers that its name tells."""
        return next(filter(None, (pattern.findall(self.subfolder or "") for pattern in _LAYERS)), [])


def is_collection(source: Any) -> bool:
    """Whether it can be the slug of a collection, `"owner/title-"` and 24 hex digits."""
    return isinstance(source, str) and _COLLECTION.fullmatch(source) is not None and local_folder(source) is None


def choose(
    source: str | Path, layer: int | None, component: str | None, k: int | None, revision: str | None, **access: Any
) -> Member:
    """The one dictionary there that reads this layer and component, with this k where several do.

    Raises `ArtifactError` with what there is, where that is none or several of them.
    """
    layer = None if layer is None else as_type(layer, int, "layer")
    component = None if component is None else as_type(component, str, "component")
    found = members(source, revision, **access)
    fit = [one for one in found if one.fits(layer, component)]
    fit = [one for one in fit if one.reads is not None] or fit  # rather than other libraries' forms of them
    if len(fit) > 1 and k is not None:
        fit = [one for one in fit if one.k == k] or fit
    if not fit and len(found) == 1 and found[0].reads is None and not found[0].layers_named:
        fit = found  # only loading it can tell
    if len(fit) == 1:
        return _not_here(fit[0], source)
    wanted = ", ".join(f"{n}={v!r}" for n, v in (("layer", layer), ("component", component)) if v is not None)
    shown = "; ".join(map(str, (fit or found)[:_SHOWN])) + ("; ..." if len(fit or found) > _SHOWN else "")
    if fit:
        what = f"read {wanted}" if wanted else "are there"
        raise ArtifactError(
            f"{source}: {len(fit)} dictionaries {what}; give layer=, component= and k= as far as they tell them apart, "
            f"or the place of one: {shown}"
        )
    raise ArtifactError(f"{source}: no dictionary reads {wanted}; it holds {shown or 'none'}")


def _not_here(member: Member, source: Any) -> Member:
    """The member, unless its name came from the Hub and would be taken for a folder."""
    if member.source != str(source) and local_folder(member.source) is not None:
        raise ConfigError(
            f"{source} names the repository {member.source}, and a folder of that name is here, which would be loaded "
            "instead; call from another folder"
        )
    return member


def members(source: str | Path, revision: str | None = None, **access: Any) -> list[Member]:
    """Every dictionary of a folder, a repository, a family's index (a dataset repository) or a collection."""
    if is_collection(source) and (found := _of_collection(str(source), revision, access)) is not None:
        return found
    folder = local_folder(source)
    if folder is not None and revision is None and (index := _read(folder / REPORT)) is not None:
        return _of_index(index)
    try:
        return _of_files(open_files(source, revision=revision, **access))
    except HubError as error:
        if not _is_hidden(error) and not _is_offline(error):
            raise
        if (index := index_of(str(source), revision, **access)) is not None:
            return _of_index(index)
        raise


def _is_hidden(error: HubError) -> bool:
    """Whether there is no such repository, or this token cannot see it."""
    cause = error.__cause__
    return status_of(cause) in (401, 403, 404) and not isinstance(cause, hf.RevisionNotFoundError)


def _is_offline(error: HubError) -> bool:
    return isinstance(
        error.__cause__, (hf.OfflineModeIsEnabled, hf.RevisionResolutionError, hf.LocalEntryNotFoundError)
    )


@contextlib.contextmanager
def family_told(source: Any, revision: str | None, access: dict) -> Iterator[None]:
    """Context that says so where there is no model repository of this name, but a family's index."""
    try:
        yield
    except HubError as error:
        is_missing = isinstance(error.__cause__, hf.RepositoryNotFoundError)
        index = index_of(str(source), revision, **access) if is_missing else None
        if index is None:
            raise
        listed = "; ".join(map(str, _of_index(index)[:_SHOWN]))
        raise ArtifactError(
            f"{source} is the index of {len(index.entries)} dictionaries; give layer= (and component=, k=) for one of "
            f"{listed}"
        ) from error


def index_of(repo_id: str, revision: str | None = None, **access: Any) -> ReportConfig | None:
    """The index of a family, None where there is no dataset repository of this name, or it holds none.

    Raises `HubError` where that cannot be told.
    """
    where: dict[str, Any] = {"revision": revision, "what": "family", "repo_type": "dataset"}
    try:
        root = fetched(repo_id, (REPORT,), arrays=None, **where, **access)
    except HubError as error:
        if isinstance(error.__cause__, hf.RepositoryNotFoundError) and not _is_gated(error):
            return None
        raise
    return _read(root / REPORT)


def _is_gated(error: HubError) -> bool:
    return isinstance(error.__cause__, hf.GatedRepoError)


def _read(path: Path) -> ReportConfig | None:
    """A report's config; None where there is none, or one of somebody else."""
    try:
        data = read_json(path) if path.is_file() else {}
    except ArtifactError:
        return None
    return ReportConfig.from_dict(data) if data.get("library_name") == OURS else None


def _of_index(index: ReportConfig) -> list[Member]:
    found = []
    for entry in index.entries:
        if entry["repo_id"] is not None:
            k = entry["sparsity"].get("k")
            found.append(
                Member(entry["repo_id"], entry["revision"], entry["subfolder"], parse_sites(entry["reads"]), k)
            )
    return found


def _of_collection(slug: str, revision: str | None, access: dict) -> list[Member] | None:
    """By the indexes among its items, and by the settings of models that none of them names; None where there is no
    such collection, but a repository may be."""
    with hub_errors(slug):
        try:
            if access.get("local_files_only"):
                raise hf.OfflineModeIsEnabled
            items = hub_api(access.get("token")).get_collection(slug).items[:_MOST_ITEMS]
        except hf.HfHubHTTPError as error:
            if status_of(error) != 404:
                raise
            return None
    if revision is not None:
        raise ConfigError(f"{slug} is a collection, which has no revisions; leave revision={revision!r} out")
    found: dict[Member, None] = {}
    for item in sorted(items, key=lambda item: item.item_type != "dataset"):  # indexes first; the order stays
        with _unreadable_skipped():
            if item.item_type == "dataset" and (index := index_of(item.item_id, **access)) is not None:
                found |= dict.fromkeys(_of_index(index))
            elif item.item_type == "model" and item.item_id not in {member.source for member in found}:
                found |= dict.fromkeys(_of_files(open_files(item.item_id, **access)))
    return list(found)


@contextlib.contextmanager
def _unreadable_skipped() -> Iterator[None]:
    """Context that ends early at an item that this token may not read, or that is gone, or damaged."""
    try:
        yield
    except ArtifactError:
        return
    except HubError as error:
        if not _is_hidden(error):
            raise


def _of_files(files: RepoFiles) -> list[Member]:
    found = []
    for entry in entries(files).entries:
        reads, k = _settings(files.json(beside(entry.subfolder, CONFIG))) if entry.format == OURS else (None, None)
        found.append(Member(files.address, files.source.revision, entry.subfolder or None, reads, k))
    return found


def _settings(config: dict) -> tuple[tuple[Site, ...] | None, int | None]:
    try:
        reads = parse_sites(config["reads"])
    except (KeyError, TypeError, SiteError):
        return None, None  # its own reader says what is wrong with it
    rule = config.get("sparsity")
    k = rule.get("k") if isinstance(rule, dict) else None
    return reads, k if isinstance(k, int) else None
