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
from hubsae.hub_client import Source, hub_api, hub_errors, tag_commit
from hubsae.store import CARD, put_back, read_card


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


def publish(artifact: Any, repo_id: str, push: Push, token: str | None) -> CommitInfo:
    """The commit with an artifact's folder; see `Artifact.push_to_hub`."""
    if push.branch and push.create_pr:
        raise ConfigError(f"branch={push.branch!r} and create_pr=True exclude each other")
    asked = forms.checked(push.also, artifact.forms, artifact._write_form)
    chosen = None if push.license is None else licences.chosen(push.license)
    api, kind, branch = hub_api(token), artifact.repo_type, push.branch
    with hub_errors(repo_id, branch, kind, writes=True), put_back(artifact, "statistics"):
        repo_id = api.create_repo(repo_id, repo_type=kind, private=push.private, exist_ok=True).repo_id
        if branch:
            api.create_branch(repo_id, repo_type=kind, branch=branch, exist_ok=True)
        info = (api.model_info if kind == "model" else api.dataset_info)(repo_id, revision=branch)
        if push.private and not info.private:
            raise HubError(f"{repo_id} exists and is public; private=True does not change that. Nothing was sent")
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
    return commit


def _write_anew(
    artifact: Any, api: HfApi, folder: Path, repo_id: str, info: Any, push: Push, asked: Any, chosen: dict | None
) -> list[str]:
    """Write the folder that takes the place of what the repository holds; patterns of what has to go there."""
    token = api.token if isinstance(api.token, str) else None
    names = [file.rfilename for file in info.siblings or []]
    there = artifact._forms_there(names, partial(forms.settings, repo_id, artifact.repo_type, info.sha, token))
    wanted = list(there) if asked is None else asked
    old = _old_card(artifact, repo_id, info.sha if CARD in names else None, token)
    own = chosen or licences.first(old, artifact.statistics.get("licence"), lambda: artifact._inherited(api))
    artifact.statistics = {**artifact.statistics, **({"licence": own} if own else {})}
    if old:
        (folder / CARD).write_text(render.without_licence(old) if chosen else old, encoding="utf-8")
    in_part = push.allow_patterns or push.ignore_patterns  # not all that a card would name is sent
    values = {**push.model_card_kwargs, **({"files": [], "pictures": {}} if in_part else {})}
    values |= {"also": wanted} if wanted else {}
    artifact.save_pretrained(folder, repo_id=repo_id, config=push.config, card=push.card, model_card_kwargs=values)
    gone = [name for name in artifact.own_files() if not (folder / name).exists()]  # an earlier version's must not stay
    return gone + forms.add(folder, wanted, there, names, artifact._write_form)


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
