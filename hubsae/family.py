"""`push_family`: dictionaries that belong together, each in a repository of its own, with an index and a collection."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import Collection, HfApi
from huggingface_hub import errors as hf

from hubsae import forms, licences
from hubsae.api import BoundDictionary
from hubsae.comparing import recorded_numbers, report_of
from hubsae.dictionary import DictionaryConfig
from hubsae.errors import ArtifactError, ConfigError, HubError
from hubsae.frontier import distinct
from hubsae.hub_client import http_reason, hub_api, hub_errors
from hubsae.loading import load_sae
from hubsae.metric_report import Report
from hubsae.render import CardPolicy, number, percent
from hubsae.report_config import REPO_ID, record
from hubsae.sites import Site
from hubsae.store import CONFIG, WEIGHTS, put_back, read_json
from hubsae.tables import Shown, Table

_LONGEST_NAME, _LONGEST_TITLE, _LONGEST_TEXT, _LONGEST_NOTE = 96, 59, 150, 500


@dataclass(frozen=True)
class Published:
    """One dictionary of a family: its repository, the commit, and what it is in a line."""

    repo_id: str
    commit: str
    note: str


@dataclass(frozen=True, repr=False)
class Family(Shown):
    """What `push_family` published: `collection` (its slug) at `url`, the `index` and its commit, the `members`."""

    collection: str
    url: str
    index: str
    commit: str
    members: tuple[Published, ...]

    def tables(self) -> list[Table]:
        rows = [(one.repo_id, one.commit[:8], one.note) for one in self.members]
        note = f"index: https://huggingface.co/datasets/{self.index}, commit {self.commit[:8]}"
        return [Table(self.url, ("repository", "commit", ""), rows, note)]


def push_family(
    dictionaries: Sequence[Any],
    repo_id: str,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    description: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    card: CardPolicy = "merge",
    tag: str | None = None,
    also: Sequence[str] | None = None,
    license: str | None = None,
) -> Family:
    """Publish dictionaries (or folders of them): a repository for each, a dataset repository `repo_id` as their index,
    which is a `Report` of their recorded metrics, and a collection of all.

    names: the repositories, by default `repo_id` and what tells each from the others, as in
    "user/llama-1b-saes-L10-mlp-k32". title: of the collection, by default the index's name. The rest is as in
    `push_to_hub`, for all of them. Whoever has the index or the collection's slug loads one of them by
    `load_sae("user/llama-1b-saes", layer=10)`.

    Everything is checked before anything is sent. Where it is cut off, the same call goes on: what is there already
    makes no commit. Raises `HubError` with how far it came.
    """
    given = _listed(dictionaries)
    owner, members = _members(given, repo_id, names)
    forms.checked(also, BoundDictionary.forms, lambda folder, form: None)
    if license is not None:
        licences.chosen(license)
    for one in given:
        _numbers(_opened(one))
    options = {"private": private, "token": token, "card": card, "tag": tag, "also": also, "license": license}
    api = hub_api(token)
    collection = _collection(api, owner, repo_id, title or repo_id.split("/")[1], description, bool(private))
    entries, results, done = [], [], []
    for one, name in zip(given, members, strict=True):
        dictionary = _opened(one)
        with _progress_told(done, len(given)):
            entry, commit = _pushed(api, dictionary, name, {"index": repo_id, "collection": collection.slug}, options)
        result = _numbers(dictionary)
        entries.append(entry)
        results.append(result)
        done.append(Published(name, commit, _note(dictionary, result)))
    with _progress_told(done, len(given)):
        index = report_of(entries, results)
        index.statistics = {"collection": collection.slug}
        commit = index.push_to_hub(repo_id, private=private, token=token, card=card, tag=tag, license=license)
        _fill(api, collection, repo_id, _in_order(index, done))
    return Family(collection.slug, collection.url, repo_id, commit.oid, tuple(_in_order(index, done)))


def _in_order(index: Report, done: Sequence[Published]) -> list[Published]:
    """In the order of the index."""
    places = {entry["repo_id"]: i for i, entry in enumerate(index.config.entries)}
    return sorted(done, key=lambda one: places[one.repo_id])


def _listed(dictionaries: Any) -> list[Any]:
    """Dictionaries and folders, of a folder that holds several all of them."""
    given = [dictionaries] if isinstance(dictionaries, str | Path | BoundDictionary) else list(dictionaries)
    out: list[Any] = []
    for one in given:
        if isinstance(one, BoundDictionary):
            out.append(one)
            continue
        folder = Path(one).expanduser()
        inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        if not (folder / CONFIG).is_file() and not inside:
            raise ArtifactError(f"{one}: no folder with a dictionary in it")
        out += [folder] if (folder / CONFIG).is_file() else inside
    if not out:
        raise ConfigError("no dictionaries: give at least one")
    return out


def _opened(one: Any) -> BoundDictionary:
    return one if isinstance(one, BoundDictionary) else load_sae(one)


def _config(one: Any) -> DictionaryConfig:
    return one.config if isinstance(one, BoundDictionary) else DictionaryConfig.from_dict(read_json(one / CONFIG))


def _numbers(dictionary: BoundDictionary) -> dict:
    try:
        return recorded_numbers(dictionary)
    except ConfigError as error:
        raise ConfigError(
            f"{dictionary.source or dictionary.label}: no recorded metrics, which the index shows; judge it first, by "
            "`sae.metrics = sae.evaluate(model, texts).to_dict()`"
        ) from error


def _members(given: Sequence[Any], repo_id: str, names: Sequence[str] | None) -> tuple[str, list[str]]:
    """The owner, and the repository of each, all different; `ConfigError` for what the Hub would not take."""
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id):
        raise ConfigError(f"repo_id={repo_id!r}: expected owner/name, for the index and before the members' names")
    owner = repo_id.split("/")[0]
    if names is not None:
        if isinstance(names, str) or len(names) != len(given):
            raise ConfigError(f"names: expected {len(given)}, one for each dictionary")
        members = [name if "/" in name else f"{owner}/{name}" for name in names]
    else:
        suffixes = distinct_names([_config(one) for one in given])
        members = [f"{repo_id}-{suffix}" for suffix in suffixes]
    for name in members:
        if not REPO_ID.fullmatch(name) or len(name.split("/")[1]) > _LONGEST_NAME:
            raise ConfigError(f"{name}: no name of a repository (at most {_LONGEST_NAME} letters); give names=[...]")
    if len({name.lower() for name in members}) < len(members):
        raise ConfigError(f"names: {', '.join(sorted(members))}: expected different ones")
    return owner, members


def distinct_names(configs: Sequence[DictionaryConfig]) -> list[str]:
    """`"L10-mlp"` for each: what it reads and writes, with k, size and rule where that does not tell them apart."""
    names = [_sites(c) for c in configs]
    for more in (
        lambda c: f"k{c.sparsity['k']}" if "k" in c.sparsity else "",
        lambda c: f"F{c.n_features}",
        lambda c: str(c.sparsity["name"]),
    ):
        added = [more(c) for c in configs]
        if len(set(names)) == len(names):
            break
        if len(set(zip(names, added, strict=True))) > len(set(names)):
            names = ["-".join(filter(None, pair)) for pair in zip(names, added, strict=True)]
    return [name.replace(" ", "").replace("(", "-").replace(")", "") for name in distinct(names)]


def _sites(config: DictionaryConfig) -> str:
    reads, writes = ("-".join(_site(site) for site in sites) for sites in (config.read_sites, config.write_sites))
    return reads if reads == writes else f"{reads}-to-{writes}"


def _site(site: Site) -> str:
    return (f"M{site.model}-" if site.model else "") + f"L{site.layer}-{site.component}"


def _pushed(
    api: HfApi, dictionary: BoundDictionary, name: str, family: dict, options: dict[str, Any]
) -> tuple[dict, str]:
    """What the index says of a dictionary that was pushed, and the commit."""
    with put_back(dictionary, "statistics"):
        dictionary.statistics = {**dictionary.statistics, "family": family}
        commit = dictionary.push_to_hub(name, **options)
    with hub_errors(name):
        (weights,) = api.get_paths_info(name, [WEIGHTS], revision=commit.oid)
    sha256 = getattr(getattr(weights, "lfs", None), "sha256", None)
    place = {"repo_id": name, "revision": commit.oid, "subfolder": None, "sha256": sha256}
    return {**record(dictionary, name.split("/")[1]), **place}, commit.oid


@contextlib.contextmanager
def _progress_told(done: Sequence[Published], n: int) -> Any:
    """Context that adds how far a family came to an error of the Hub."""
    try:
        yield
    except HubError as error:
        raise HubError(
            f"{error} ({len(done)} of {n} dictionaries of the family are published; the same call goes on from there)"
        ) from error


def _collection(api: HfApi, owner: str, repo_id: str, title: str, description: str | None, private: bool) -> Collection:
    """The collection that the index names, or one of this title, or a new one."""
    if len(title) > _LONGEST_TITLE or len(description or "") > _LONGEST_TEXT:
        raise ConfigError(
            f"title of {len(title)} and description of {len(description or '')} letters: a collection takes at most "
            f"{_LONGEST_TITLE} and {_LONGEST_TEXT}"
        )
    with hub_errors(repo_id):
        slug = _known(repo_id, api)
        if slug is not None:
            with contextlib.suppress(hf.HfHubHTTPError):  # it was taken away
                return api.get_collection(slug)
        try:
            return api.create_collection(
                title, namespace=owner, description=description, private=private, exists_ok=True
            )
        except hf.HfHubHTTPError as error:
            raise HubError(f"{owner}: no collection {title!r} could be made: {http_reason(error)}") from error


def _known(repo_id: str, api: HfApi) -> str | None:
    """The slug of the collection that a published index names."""
    token = api.token if isinstance(api.token, str) else None
    try:
        slug = Report.from_pretrained(repo_id, token=token).statistics.get("collection")
    except (HubError, ArtifactError):
        return None
    return slug if isinstance(slug, str) and slug.startswith(repo_id.split("/")[0] + "/") else None


def _fill(api: HfApi, collection: Collection, index: str, members: Sequence[Published]) -> None:
    """Put the index and the members into a collection, and write their notes anew where they changed."""
    there = {(item.item_type, item.item_id): item for item in collection.items}
    wanted = [("dataset", index, "Index: all of them side by side, and which file is which")]
    wanted += [("model", one.repo_id, one.note[:_LONGEST_NOTE]) for one in members]
    with hub_errors(collection.slug):
        for kind, name, note in wanted:
            item = there.get((kind, name))
            if item is None:
                api.add_collection_item(collection.slug, name, kind, note=note, exists_ok=True)  # pyright: ignore
            elif item.note != note:
                api.update_collection_item(collection.slug, item.item_object_id, note=note)


def _note(dictionary: BoundDictionary, result: dict) -> str:
    c = dictionary.config
    sites = " + ".join(c.reads) + ("" if c.reads == c.writes else f" to {' + '.join(c.writes)}")
    parts = [f"{sites}: {number(c.n_features)} features, {dictionary.rule}"]
    if result.get("l0") is not None:
        parts.append(f"l0 {number(result['l0'], 3)}")
    if result.get("fvu") is not None:
        parts.append(f"FVU {number(result['fvu'], 3)}")
    if result.get("ce_recovered") is not None:
        parts.append(f"loss recovered {percent(result['ce_recovered'])}")
    return ", ".join(parts)
