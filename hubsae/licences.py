"""The licence of what was made from language models: theirs, unless its author says otherwise."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub import errors as hf

from hubsae.errors import ConfigError
from hubsae.hub_client import NO_ANSWER

_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def chosen(licence: str) -> dict:
    """A licence that the author names by the Hub's id for it, such as "mit" or "llama3.2"."""
    if not isinstance(licence, str) or not _ID.fullmatch(licence):
        raise ConfigError(f"license={str(licence)[:80]!r}: expected the Hub's id of a licence, such as 'mit'")
    return {"id": licence}


def shared(api: HfApi, repo_ids: Sequence[str | None]) -> dict | None:
    """What the cards of all these models say, where they say the same; None where one says nothing or is unknown."""
    found = [_of(api, repo_id) for repo_id in dict.fromkeys(repo_ids)]
    first = found[0] if found else None
    if first is None or any(other != first for other in found):
        return None
    return {**first, "from": [str(repo_id) for repo_id in dict.fromkeys(repo_ids)]}


def _of(api: HfApi, repo_id: str | None) -> dict | None:
    if repo_id is None:
        return None
    try:
        card = api.model_info(repo_id).card_data
    except (hf.HfHubHTTPError, hf.HFValidationError, *NO_ANSWER):
        return None  # what cannot be seen is not inherited
    said: dict[str, Any] = card.to_dict() if card else {}
    licence = said.get("license")
    if not isinstance(licence, str) or not _ID.fullmatch(licence):
        return None
    more = {key: said.get(f"license_{key}") for key in ("name", "link")}
    return {"id": licence, **{key: value[:200] for key, value in more.items() if isinstance(value, str)}}


def front_matter(licence: Any) -> dict:
    """The entries of a card's front matter."""
    if not isinstance(licence, dict) or not isinstance(licence.get("id"), str) or not _ID.fullmatch(licence["id"]):
        return {}
    more = {f"license_{key}": licence[key] for key in ("name", "link") if isinstance(licence.get(key), str)}
    return {"license": licence["id"], **more}
