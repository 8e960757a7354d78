"""A dashboard as a static Space on the Hub, with its card; one commit a push."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, SpaceCardData, hf_hub_download
from huggingface_hub import errors as hf

from hubsae import render
from hubsae.dashboard.build import Dashboard, is_ours, is_part
from hubsae.dashboard.page_data import HUB, Side, shown_metrics
from hubsae.errors import ConfigError, HubError
from hubsae.hub_client import hub_api, hub_errors
from hubsae.store import CARD
from hubsae.tables import plain

_CARD_TEMPLATE = "dashboard.md"
# what the Hub puts into a new static Space
_FIRST_FILES = {".gitattributes", CARD, "index.html", "style.css"}
_FIRST_PAGE = "Welcome to your static Space!"
_FIRST_CARD = "Check out the configuration reference at"


def push(
    dashboard: Dashboard,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool | None = None,
    card: render.CardPolicy = "merge",
    commit_message: str = "Push a dashboard with hubsae",
    progress: bool = False,
) -> CommitInfo:
    """Publish a dashboard as a static Space in one commit; creates the Space where it is missing.

    What an earlier dashboard there had and this one has not is removed. A card that people edited is kept as `card`
    says. Raises `HubError`, also for a Space that is no static one or holds another site, and for a public one where
    `private` is wanted.
    """
    api = hub_api(token)
    with tempfile.TemporaryDirectory() as temporary, hub_errors(repo_id, writes=True):
        folder = dashboard.write(Path(temporary, "site"), progress)
        repo_id, is_new = _created(api, repo_id, private)
        info = api.space_info(repo_id)
        if info.sdk not in (None, "static"):
            raise HubError(f"{repo_id} is a {info.sdk} Space; a dashboard needs a static one. Nothing was sent")
        if private and not info.private:
            raise HubError(f"{repo_id} exists and is public; private=True does not change that. Nothing was sent")
        files = {file.rfilename for file in info.siblings or []}
        old = None
        if not is_new:
            _check_files(repo_id, files, info.sha, token)
            old = _text_of(repo_id, CARD, info.sha, token) if CARD in files else None
        if old is not None and render.split(old)[1].strip().startswith(_FIRST_CARD):
            old = None
        (folder / CARD).write_text(render.merge(old, make_card(dashboard), card), encoding="utf-8")
        gone = [path for path in files if is_part(path) and path not in dashboard.files]
        return api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            commit_message=commit_message,
            create_pr=create_pr,
            parent_commit=info.sha,
            delete_patterns=gone or None,
        )


def _created(api: HfApi, repo_id: str, private: bool | None) -> tuple[str, bool]:
    """The full name of a static Space, and whether it was created just now: what is in it then is the Hub's own."""
    create = partial(api.create_repo, repo_id, repo_type="space", space_sdk="static", private=private)
    try:
        return create().repo_id, True
    except hf.HfHubHTTPError:  # it may be there already
        return create(exist_ok=True).repo_id, False


def _check_files(repo_id: str, files: set[str], revision: str | None, token: str | None) -> None:
    """Raise `HubError` where a Space holds another site than a dashboard, or than the Hub's own first page."""
    others = sorted(files - {".gitattributes", CARD})
    page = _text_of(repo_id, "index.html", revision, token) if "index.html" in files else ""
    is_first = files <= _FIRST_FILES and _FIRST_PAGE in page
    if others and not is_first and not is_ours(page):
        named = ", ".join(others[:5])
        raise HubError(f"{repo_id} holds another site than a dashboard ({named}). Nothing was sent; give another name")


def _text_of(repo_id: str, name: str, revision: str | None, token: str | None) -> str:
    path = hf_hub_download(repo_id, name, repo_type="space", revision=revision, token=token)
    return Path(path).read_text(encoding="utf-8", errors="replace")


def make_card(dashboard: Dashboard) -> str:
    """The Space's README.md: front matter that the Hub reads, and links to the dictionaries and their models."""
    sides = [_described(side) for side in dashboard.sides]
    models = [side["repo"] for side in sides] + [base for side in sides for base in side["bases"]]
    kinds = sorted({side["kind"] for side in sides})
    data = SpaceCardData(
        title=plain(dashboard.title)[:60],
        sdk="static",
        app_file="index.html",
        emoji="🔎",
        colorFrom="indigo",
        colorTo="yellow",
        pinned=False,
        short_description="Features of a sparse dictionary",
        tags=["hubsae", "mechanistic-interpretability", *kinds],
        models=list(dict.fromkeys(model for model in models if model)) or None,
    )
    body = render.fill(_CARD_TEMPLATE, {"title": plain(dashboard.title), "sides": sides, "hub": HUB})
    return render.sign(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _described(side: Side) -> dict[str, Any]:
    dictionary = side.dictionary
    repo, revision = side.repo or (None, None)
    return {
        "name": side.name,
        "kind": {"sae": "sparse-autoencoder"}.get(dictionary.config.kind, dictionary.config.kind),
        "config": dictionary.config,
        "features": side.features,
        "metrics": shown_metrics(dictionary.metrics),
        "repo": repo,
        "revision": revision,
        "bases": [base.repo_id for base in dictionary.base_models if base.repo_id],
    }


def is_public(repo_id: str, token: str | None = None) -> bool:
    """Whether everybody can see a Space."""
    with hub_errors(repo_id):
        return not hub_api(token).space_info(repo_id).private


def check_repo_id(repo_id: Any) -> str:
    """The name of a Space, owner/name; `ConfigError` for what is none."""
    if not isinstance(repo_id, str) or not repo_id.strip("/"):
        raise ConfigError(f"{repo_id!r}: expected the name of a Space, owner/name")
    return repo_id
