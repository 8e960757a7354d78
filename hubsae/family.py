"""`push_family`: dictionaries that belong together, each in a repository of its own, with an index and a collection."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import Collection, HfApi
from huggingface_hub import errors as hf
from huggingface_hub.utils import validate_repo_id

from hubsae import forms, licences, sparsity
from hubsae.api import BoundDictionary
from hubsae.comparing import recorded_numbers, report_of
from hubsae.errors import ArtifactError, ConfigError, HubError, HubsaeError
from hubsae.frontier import distinct
from hubsae.hub_client import hub_api, hub_errors, status_of
from hubsae.loading import load_sae
from hubsae.members import is_collection
from hubsae.metric_report import Report
from hubsae.publishing import Push, check_repository, publish
from hubsae.render import CardPolicy, check_policy, number, percent
from hubsae.report_config import REPO_ID, record
from hubsae.sites import Site, parse_sites
from hubsae.store import CONFIG, REPORT, WEIGHTS, write_json
from hubsae.tables import Shown, Table

_LONGEST_TITLE, _LONGEST_TEXT, _LONGEST_NOTE = 59, 150, 500


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
    replace: bool = False,
) -> Family:
    """Publish dictionaries (or folders of them): a repository for each, a dataset repository `repo_id` as their index,
    which is a `Report` of their recorded metrics, and a collection of all.

    names: the repositories, by default `repo_id` and what tells each from the others, as in
    "user/llama-1b-saes-L10-mlp-k32"; one that is in the index already keeps its own. title: of the collection, by
    default the index's name. The rest is as in `push_to_hub`. Whoever has the index or the collection's slug loads one
    by `load_sae("user/llama-1b-saes", layer=10)`. What else is in the index stays; with replace=True it leaves index
    and collection, and only its repository stays.

    Everything is checked before anything is sent. Where it is cut off, the same call goes on: what is there already
    makes no commit. Raises `HubError` with how far it came.
    """
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id):
        raise ConfigError(f"repo_id={repo_id!r}: expected owner/name, for the index and before the members' names")
    given = _listed(dictionaries)
    api = hub_api(token)
    repo_id, old = _published(repo_id, api)
    facts, results = map(list, zip(*(_looked_at(_opened(one)) for one in given), strict=True))
    members = _members(facts, repo_id, names, old)
    push = Push(private=private, card=card, tag=tag, also=also, license=license)
    _check(api, given, facts, results, members, repo_id, push)
    collection = _collection(api, repo_id, old, title, description, bool(private))
    links = {"index": repo_id, "collection": collection.slug}
    entries, done = [], []
    for one, fact, name in zip(given, facts, members, strict=True):
        dictionary = _opened(one)
        with _progress_told(done, len(given)):
            family = {**links, "repo_id": name}
            place = _pushed(api, dictionary, name, dataclasses.replace(push, family=family), token)
        entries.append({**fact, "name": name.split("/")[1], **place})
        done.append(name)
    kept = [entry for entry in old.config.entries if entry["repo_id"] not in members] if old else []
    with _progress_told(done, len(given)):
        left = [] if replace else kept
        index = report_of([*entries, *left], [*results, *(old.results[entry["name"]] for entry in left if old)])
        index.statistics = {"collection": collection.slug}
        commit = publish(index, repo_id, dataclasses.replace(push, also=None), token)
        listed = tuple(_told(entry, index.results[entry["name"]]) for entry in index.config.entries)
        _fill(api, collection, repo_id, listed, [entry["repo_id"] for entry in kept] if replace else [])
    return Family(collection.slug, collection.url, repo_id, commit.oid, listed)


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


def _looked_at(dictionary: BoundDictionary) -> tuple[dict, dict]:
    """What an index keeps of a dictionary, without its name and place, and its recorded numbers."""
    fact = record(dictionary, "?")
    try:
        return fact, recorded_numbers(dictionary)
    except ConfigError as error:
        raise ConfigError(
            f"{dictionary.source or dictionary.label}: no recorded metrics, which the index shows; judge it first, by "
            "`sae.metrics = sae.evaluate(model, texts).to_dict()`"
        ) from error


def _published(repo_id: str, api: HfApi) -> tuple[str, Report | None]:
    """The index as the Hub spells it, and what is published there; None where there is no such repository or report.

    Raises `HubError` for what is there and cannot be read, since its members would be lost.
    """
    token = api.token if isinstance(api.token, str) else None
    with hub_errors(repo_id):
        try:
            info = api.dataset_info(repo_id)
        except hf.RepositoryNotFoundError:
            return repo_id, None
    if REPORT not in {file.rfilename for file in info.siblings or []}:
        return info.id, None
    try:
        return info.id, Report.from_pretrained(info.id, revision=info.sha, token=token)
    except ArtifactError as error:
        raise HubError(
            f"{info.id} holds something else ({REPORT}), or an index that cannot be read here ({error}); give another "
            "name. Nothing was sent"
        ) from error


def _members(given: Sequence[dict], repo_id: str, names: Any, old: Report | None) -> list[str]:
    """The repository of each, all different: the one it has in the index, or a new one; `ConfigError` for bad names."""
    if names is not None:
        if isinstance(names, str) or len(names) != len(given):
            raise ConfigError(f"names: expected {len(given)}, one for each dictionary")
        members = [name if "/" in name else f"{repo_id.split('/')[0]}/{name}" for name in names]
    else:
        there = [entry for entry in old.config.entries if entry["repo_id"] is not None] if old else []
        members = _names_there(given, there)
        for i, suffix in enumerate(distinct_names([*given, *there])[: len(given)]):
            taken = {*filter(None, members), *(entry["repo_id"] for entry in there)}
            if members[i] is None:
                name = f"{repo_id}-{suffix}"
                members[i] = name if name not in taken else f"{name}-{len(taken) + 1}"
    for name in members:
        try:
            validate_repo_id(name)
        except hf.HFValidationError as error:
            raise ConfigError(f"names: {error}; give names=[...]") from error
    if len({name.lower() for name in members}) < len(members):
        raise ConfigError(f"names: {', '.join(sorted(members))}: expected different ones")
    return members


def _names_there(given: Sequence[dict], there: Sequence[dict]) -> list[Any]:
    """The repository that each has in the index: by its weights, or else by what it is; None for a new one."""
    free = list(there)
    found: list[str | None] = [None] * len(given)
    keys = ("kind", "reads", "writes", "n_features", "sparsity", "skip")
    for wanted in ((*keys, "fingerprint"), keys):
        for i, own in enumerate(given):
            fits = [entry for entry in free if all(_plain(entry[key]) == _plain(own[key]) for key in wanted)]
            if found[i] is None and fits:
                found[i] = fits[0]["repo_id"]
                free.remove(fits[0])
    return found


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value


def _check(
    api: HfApi,
    given: Sequence[Any],
    facts: list[dict],
    results: list[dict],
    members: Sequence[str],
    repo_id: str,
    push: Push,
) -> None:
    """Raise, before anything is sent, what a push of one of them or of their index would raise."""
    check_policy(push.card)
    if push.license is not None:
        licences.chosen(push.license)
    for one, name in zip(given, members, strict=True):
        dictionary = _opened(one)
        forms.checked(push.also, dictionary.forms, dictionary._write_form)
        _check_one(api, dictionary, name, push)
    index = report_of([{**fact, "name": name} for fact, name in zip(facts, members, strict=True)], results)
    index.statistics = {"collection": ""}
    _check_one(api, index, repo_id, push)


def _check_one(api: HfApi, artifact: Any, name: str, push: Push) -> None:
    artifact.generate_model_card(repo_id=name)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "numbers.json"), {"statistics": artifact.statistics, "metrics": artifact.metrics})
    with hub_errors(name):
        info_of = api.model_info if artifact.repo_type == "model" else api.dataset_info
        with contextlib.suppress(hf.RepositoryNotFoundError):
            check_repository(artifact, info_of(name), push, api)


def distinct_names(given: Sequence[dict]) -> list[str]:
    """`"L10-mlp"` for each: what it reads and writes, with k, size and rule where that does not tell them apart."""
    names = [_sites(one) for one in given]
    for more in (
        lambda one: f"k{one['sparsity']['k']}" if "k" in one["sparsity"] else "",
        lambda one: f"F{one['n_features']}",
        lambda one: str(one["sparsity"]["name"]),
    ):
        added = [more(one) for one in given]
        if len(set(names)) == len(names):
            break
        if len(set(zip(names, added, strict=True))) > len(set(names)):
            names = ["-".join(filter(None, pair)) for pair in zip(names, added, strict=True)]
    return [name.replace(" ", "").replace("(", "-").replace(")", "") for name in distinct(names)]


def _sites(one: dict) -> str:
    reads, writes = ("-".join(map(_site, parse_sites(one[key]))) for key in ("reads", "writes"))
    return reads if reads == writes else f"{reads}-to-{writes}"


def _site(site: Site) -> str:
    return (f"M{site.model}-" if site.model else "") + f"L{site.layer}-{site.component}"


def _pushed(api: HfApi, dictionary: BoundDictionary, name: str, push: Push, token: str | None) -> dict:
    """Where a dictionary was pushed to, as an index says it."""
    commit = publish(dictionary, name, push, token)
    with hub_errors(name):
        (weights,) = api.get_paths_info(name, [WEIGHTS], revision=commit.oid)
    sha256 = getattr(getattr(weights, "lfs", None), "sha256", None)
    return {"repo_id": name, "revision": commit.oid, "subfolder": None, "sha256": sha256}


@contextlib.contextmanager
def _progress_told(done: Sequence[str], n: int) -> Iterator[None]:
    """Context that adds how far a family came to an error."""
    try:
        yield
    except HubsaeError as error:
        raise HubError(
            f"{error} ({len(done)} of {n} dictionaries of the family are published; the same call goes on from there)"
        ) from error


def _collection(
    api: HfApi, repo_id: str, old: Report | None, title: str | None, description: str | None, private: bool
) -> Collection:
    """The collection that the index names, or one of this title, or a new one."""
    owner, name = repo_id.split("/")
    title, slug = title or name[:_LONGEST_TITLE], old.statistics.get("collection") if old else None
    if len(title) > _LONGEST_TITLE or len(description or "") > _LONGEST_TEXT:
        raise ConfigError(
            f"title of {len(title)} and description of {len(description or '')} letters: a collection takes at most "
            f"{_LONGEST_TITLE} and {_LONGEST_TEXT}"
        )
    found = None
    with hub_errors(repo_id, writes=True):
        if is_collection(slug) and str(slug).startswith(f"{owner}/"):
            try:
                found = api.get_collection(str(slug))
            except hf.HfHubHTTPError as error:
                if status_of(error) != 404:  # it was taken away
                    raise
        about: dict[str, Any] = {"namespace": owner, "description": description, "private": private}
        found = found or api.create_collection(title, exists_ok=True, **about)
    if private and not found.private:
        raise HubError(f"{found.slug} exists and is public; private=True does not change that")
    return found


def _fill(api: HfApi, collection: Collection, index: str, members: Sequence[Published], removed: Sequence[str]) -> None:
    """Put the index and the members into a collection, write their notes anew where they changed, take others out."""
    there = {(item.item_type, item.item_id): item for item in collection.items}
    wanted = [("dataset", index, "Index: all of them side by side, and which file is which")]
    wanted += [("model", one.repo_id, one.note[:_LONGEST_NOTE]) for one in members]
    with hub_errors(collection.slug, writes=True):
        for kind, name, note in wanted:
            item = there.get((kind, name))
            if item is None:
                api.add_collection_item(collection.slug, name, kind, note=note, exists_ok=True)  # pyright: ignore
            elif item.note != note:
                api.update_collection_item(collection.slug, item.item_object_id, note=note)
        for name in removed:
            if item := there.get(("model", name)):
                api.delete_collection_item(collection.slug, item.item_object_id)


def _told(entry: dict, result: dict) -> Published:
    """A line about one of them."""
    reads, writes = " + ".join(entry["reads"]), " + ".join(entry["writes"])
    sites = reads if reads == writes else f"{reads} to {writes}"
    parts = [f"{sites}: {number(entry['n_features'])} features, {sparsity.from_dict(entry['sparsity'])}"]
    if result.get("l0") is not None:
        parts.append(f"l0 {number(result['l0'], 3)}")
    if result.get("fvu") is not None:
        parts.append(f"FVU {number(result['fvu'], 3)}")
    if result.get("ce_recovered") is not None:
        parts.append(f"loss recovered {percent(result['ce_recovered'])}")
    return Published(entry["repo_id"], entry["revision"], ", ".join(parts))
