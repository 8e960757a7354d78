"""A push of an artifact: one commit on top of what the repository holds, with people's words kept, or nothing."""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, hf_hub_download

from hubsae import forms, licences, render
from hubsae.errors import ConfigError, HubError
from hubsae.hub_client import Source, hub_api, hub_errors, tag_commit, tagged
from hubsae.store import CARD, CONFIGS, METRICS, REPORT, STATISTICS, put_back, read_card


@dataclass(frozen=True)
class Push:
    """What `Artifact.push_to_hub` was asked for; see there."""

    branch: str | None = None
    create_pr: bool | None = None
    private: bool | None = None
    commit_message: str = "Push with hubsae"
    allow_patterns: list[str] = field(default_factory=list)
    ignore_patterns: list[str] = field(default_factory=list)
    delete_patterns: list[str] = field(default_factory=list)
    config: Any = None
    model_card_kwargs: dict[str, Any] = field(default_factory=dict)
    card: render.CardPolicy = "merge"
    tag: str | None = None
    also: Sequence[str] | None = None
    license: str | None = None
    family: dict[str, str] | None = None


def publish(artifact: Any, repo_id: str, push: Push, token: str | None) -> CommitInfo:
    """The commit with an artifact's folder; see `Artifact.push_to_hub`."""
    if push.branch and push.create_pr:
        raise ConfigError(f"branch={push.branch!r} and create_pr=True exclude each other")
    render.check_policy(push.card)
    asked = forms.checked(push.also, artifact.forms, artifact._write_form)
    chosen = None if push.license is None else licences.chosen(push.license)
    api, kind, branch = hub_api(token), artifact.repo_type, push.branch
    with hub_errors(repo_id, branch, kind, writes=True), put_back(artifact, "statistics"):
        repo_id = api.create_repo(repo_id, repo_type=kind, private=push.private, exist_ok=True).repo_id
        info = api.repo_info(repo_id, repo_type=kind)
        check_repository(artifact, info, push, api)
        if branch:
            api.create_branch(repo_id, repo_type=kind, branch=branch, exist_ok=True)
            info = api.repo_info(repo_id, repo_type=kind, revision=branch)
            check_repository(artifact, info, push, api)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "artifact")
            folder.mkdir()
            gone = _write_anew(artifact, api, folder, repo_id, info, push, asked, chosen)
            with warnings.catch_warnings():  # features.parquet belongs to the model that it describes
                warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
                commit = api.upload_folder(
                    repo_id=repo_id,
                    repo_type=kind,
                    folder_path=folder,
                    commit_message=push.commit_message,
                    revision=branch,
                    create_pr=push.create_pr,
                    parent_commit=info.sha,
                    allow_patterns=push.allow_patterns or None,
                    ignore_patterns=push.ignore_patterns or None,
                    delete_patterns=[*push.delete_patterns, *gone] or None,
                )
        if push.tag:
            tag_commit(api, repo_id, push.tag, commit.oid, kind)
    if not (branch or push.create_pr or push.allow_patterns or push.ignore_patterns):
        access = {"repo_id": repo_id, "subfolder": None, "token": token, "repo_type": kind}
        artifact._published_at(Source(repo_id, commit.oid, access))
    return commit


def check_repository(artifact: Any, info: Any, push: Push, api: HfApi) -> None:
    """Raise `HubError` where a push would take something else's place, name a taken tag, or be seen by others."""
    if push.private and not info.private:
        raise HubError(f"{info.id} exists and is public; private=True does not change that. Nothing was sent")
    names = {file.rfilename for file in info.siblings or []}
    others = [name for name in CONFIGS if name in names and name != artifact.config_file]
    own = {artifact.config_file, artifact.arrays_file, METRICS, STATISTICS, *artifact.tables} & names
    token = api.token if isinstance(api.token, str) else None
    read = partial(forms.settings, info.id, artifact.repo_type, info.sha, token)
    is_ours = artifact.config_file in own and read(artifact.config_file).get("library_name") == "hubsae"
    if others or (own and not is_ours):
        there = ", ".join(sorted({*others, *own})[:4])
        raise HubError(
            f"{info.id} holds something else ({there}), and files of these names would be replaced; give another name. "
            "Nothing was sent"
        )
    if is_ours and artifact.config_file == REPORT:
        was, will = (
            "collection" in found for found in (read(STATISTICS) if STATISTICS in own else {}, artifact.statistics)
        )
        if was != will:
            what = "the index of a family, whose members it would lose" if was else "a report that is no family's index"
            raise HubError(f"{info.id} is {what}; give another name. Nothing was sent")
    if push.tag and (named := tagged(api, info.id, push.tag, artifact.repo_type)) not in (None, info.sha):
        raise HubError(f"{info.id}: the tag {push.tag!r} names {str(named)[:8]}; choose another. Nothing was sent")


def _write_anew(
    artifact: Any, api: HfApi, folder: Path, repo_id: str, info: Any, push: Push, asked: Any, chosen: dict | None
) -> list[str]:
    """Write the folder that takes the place of what the repository holds; patterns of what has to go there."""
    token = api.token if isinstance(api.token, str) else None
    names = [file.rfilename for file in info.siblings or []]
    read = partial(forms.settings, repo_id, artifact.repo_type, info.sha, token)
    there = artifact._forms_there(names, read)
    wanted = list(there) if asked is None else asked
    old = _old_card(artifact, repo_id, info.sha if CARD in names else None, token)
    own = chosen or licences.first(old, artifact.statistics.get("licence"), lambda: artifact._inherited(api))
    links = _links(artifact, repo_id, read(STATISTICS) if STATISTICS in names else {}, push.family)
    kept = {key: value for key, value in artifact.statistics.items() if key != "family"}
    artifact.statistics = {**kept, **links, **({"licence": own} if own else {})}
    if old:
        (folder / CARD).write_text(render.without_licence(old) if chosen else old, encoding="utf-8")
    in_part = push.allow_patterns or push.ignore_patterns  # not all that a card would name is sent
    values = {**push.model_card_kwargs, **({"files": [], "pictures": {}} if in_part else {})}
    values |= {"also": wanted} if wanted else {}
    artifact.save_pretrained(folder, repo_id=repo_id, config=push.config, card=push.card, model_card_kwargs=values)
    gone = [name for name in artifact.own_files() if not (folder / name).exists()]  # an earlier version's must not stay
    return gone + forms.add(folder, wanted, there, names, artifact._write_form)


def _links(artifact: Any, repo_id: str, published: dict, family: dict | None) -> dict[str, Any]:
    """The dashboard and the family that were linked there, unless it has others; no family of another repository."""
    found = {key: published[key] for key in ("dashboard", "family") if key in published} | artifact.statistics
    links = {"dashboard": found.get("dashboard"), "family": family or found.get("family")}
    if not isinstance(links["family"], dict) or links["family"].get("repo_id") != repo_id:
        del links["family"]
    return {key: value for key, value in links.items() if value is not None}


def _old_card(artifact: Any, repo_id: str, revision: str | None, token: str | None) -> str | None:
    """The first card that people edited, of the repository's and that of the folder this is from, else the first.

    Without `revision` the repository has none.
    """
    source: Source | None = artifact.source
    paths = []
    if source and not source.revision and not artifact.statistics.get("imported"):  # not another library's
        paths.append(Path(source.name, CARD))
    if revision:
        there = hf_hub_download(repo_id, CARD, repo_type=artifact.repo_type, revision=revision, token=token)
        paths.insert(0, Path(there))
    texts = [read_card(path) for path in paths if path.is_file()]
    return next((text for text in texts if render.is_edited(text)), texts[0] if texts else None)


def as_list(patterns: Sequence[str] | str | None) -> list[str]:
    """Patterns as a list of their own, since the client extends the caller's."""
    return [patterns] if isinstance(patterns, str) else list(patterns or [])
