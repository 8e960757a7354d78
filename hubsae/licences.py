"""The licence of what was made from language models: theirs, unless its author says otherwise."""

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from huggingface_hub import HfApi
from huggingface_hub import errors as hf

from hubsae.errors import ConfigError
from hubsae.render import licence_of

_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LONGEST = 300


def chosen(licence: str) -> dict:
    """A licence that the author names by the Hub's id for it, such as "mit" or "llama3.2"."""
    if not isinstance(licence, str) or not _ID.fullmatch(licence):
        raise ConfigError(f"license={str(licence)[:80]!r}: expected the Hub's id of a licence, such as 'mit'")
    return {"id": licence}


def shared(api: HfApi, repo_ids: Sequence[str | None]) -> dict | None:
    """What the cards of all these models say, where they say the same; None where one says nothing or is unknown."""
    found = [_of(api, repo_id) for repo_id in dict.fromkeys(repo_ids)]
    one = found[0] if found else None
    if one is None or any(other != one for other in found):
        return None
    return {**one, "from": [str(repo_id) for repo_id in dict.fromkeys(repo_ids)]}


def first(card: str | None, current: Any, inherit: Callable[[], dict | None]) -> dict | None:
    """The licence to add to what has none: what is inherited, unless the published card already says another."""
    if current:
        return None
    said, found = licence_of(card), inherit()
    return found if not said or front_matter(found) == said else None


def _of(api: HfApi, repo_id: str | None) -> dict | None:
    if repo_id is None:
        return None
    try:
        card = api.model_info(repo_id).card_data
        said: dict[str, Any] = card.to_dict() if card else {}
    except (hf.RepositoryNotFoundError, hf.GatedRepoError, hf.HFValidationError, hf.DisabledRepoError):
        return None  # what cannot be seen is not inherited
    except (TypeError, AttributeError, KeyError, ValueError):
        return None  # metadata that the client cannot read
    licence, link = said.get("license"), said.get("license_link")
    if not isinstance(licence, str) or not _ID.fullmatch(licence):
        return None
    if isinstance(link, str) and "://" not in link:  # a file of the model's repository
        link = f"https://huggingface.co/{repo_id}/blob/main/{quote(link)}"
    more = {"name": said.get("license_name"), "link": link}
    return {"id": licence, **{k: v for k, v in more.items() if isinstance(v, str) and len(v) <= _LONGEST}}


def of_metadata(said: dict[str, str]) -> dict:
    """A licence from a card's entries (`license`, `license_name`, `license_link`), empty where they have none."""
    if not _ID.fullmatch(said.get("license", "")):
        return {}
    more = {key: said[f"license_{key}"] for key in ("name", "link") if f"license_{key}" in said}
    return {"id": said["license"], **more}


def front_matter(licence: Any) -> dict[str, str]:
    """The entries of a card's front matter."""
    if not is_licence(licence):
        return {}
    more = {f"license_{key}": licence[key] for key in ("name", "link") if isinstance(licence.get(key), str)}
    return {"license": licence["id"], **more}


def is_licence(licence: Any) -> bool:
    """Whether it has the form that `chosen` and `shared` give."""
    if not isinstance(licence, dict) or not isinstance(licence.get("id"), str) or not _ID.fullmatch(licence["id"]):
        return False
    models = licence.get("from", [])
    return isinstance(models, list) and all(isinstance(model, str) for model in models)
