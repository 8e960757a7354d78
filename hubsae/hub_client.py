"""The Hub's client: introduced as hubsae, its errors turned into ours, repositories as folders of one commit."""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from httpx2 import HTTPError, TransportError
from huggingface_hub import HfApi, ResolvedRevision, hf_hub_download, snapshot_download
from huggingface_hub import errors as hf

from hubsae.errors import ConfigError, HubError, HubsaeError, warn

_MAYBE_SENT = "what was sent may have arrived all the same. Try again: an unchanged push makes no commit"
_FORBIDDEN = "this token may not do that; to write it needs write access to this namespace, to read a grant on the page"
_OFFLINE = {"local_files_only": True}
NO_ANSWER = (ConnectionError, TransportError)  # what the client raises where nobody answers


def library_version() -> str:
    """The installed version of hubsae."""
    import importlib.metadata

    return importlib.metadata.version("hubsae")


def hub_api(token: str | bool | None = None) -> HfApi:
    """The Hub client, introduced as hubsae."""
    return HfApi(token=token, library_name="hubsae", library_version=library_version())


@contextlib.contextmanager
def hub_errors(
    repo_id: str, revision: str | None = None, repo_type: str | None = None, *, writes: bool = False
) -> Iterator[None]:
    """Context that turns what the Hub client raises about `repo_id` into a `HubError` that says what to do."""
    lost = _MAYBE_SENT if writes else "try again"
    at = f"{repo_id}@{revision}" if revision else repo_id
    try:
        yield
    except hf.GatedRepoError as error:
        raise HubError(f"{at}: this repository is gated; ask for access on its page, then `hf auth login`") from error
    except hf.RepositoryNotFoundError as error:
        raise HubError(
            f"{at}: no such repository, or it is private and this token cannot see it; "
            + (f"looked for a {repo_type} repository of that name. " if repo_type else "")
            + "Check the name (owner/name), or run `hf auth login` with a token that may read it"
        ) from error
    except hf.RevisionNotFoundError as error:
        raise HubError(f"{at}: the repository exists, but it has no revision {revision!r}") from error
    except (hf.OfflineModeIsEnabled, hf.RevisionResolutionError, hf.LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, hf.HfHubHTTPError):
            raise HubError(f"{at}: not in the local cache, and {http_reason(error.__cause__)}") from error
        raise HubError(
            f"{at}: not in the local cache, and the Hub was not asked or could not be reached "
            "(HF_HUB_OFFLINE, local_files_only, or no network); load it once while online"
        ) from error
    except hf.HFValidationError as error:
        raise HubError(
            f"{repo_id!r} is neither an existing folder nor a repository id (owner/name): {error}"
        ) from error
    except hf.LocalTokenNotFoundError as error:
        raise HubError(f"{at}: token=True needs a saved token; run `hf auth login`") from error
    except hf.HfHubHTTPError as error:
        raise HubError(f"{at}: {http_reason(error)}") from error
    except json.JSONDecodeError as error:
        raise HubError(f"{at}: half an answer from the Hub, or somebody else's ({error}); {lost}") from error
    except UnicodeError as error:
        raise HubError(f"{at}: the token or the name holds a character that cannot be sent ({error})") from error
    except ValueError as error:
        if isinstance(error, HubsaeError):
            raise
        raise HubError(f"{at}: {'the Hub does not take this card: ' if writes else ''}{error}") from error
    except (ConnectionError, HTTPError) as error:  # what the client's transport raises
        if "403 Forbidden" in str(error):  # Xet's client keeps the status in its text alone
            raise HubError(f"{at}: {_FORBIDDEN}") from error
        raise HubError(f"{at}: no answer from the Hub ({error}); {lost}") from error
    except (OSError, RuntimeError) as error:  # a file that broke off, or whose sum is wrong
        if isinstance(error, HubsaeError) or not _is_of_client(error):
            raise
        cause = error.__cause__
        why = http_reason(cause) if isinstance(cause, hf.HfHubHTTPError) else str(error).partition("\n")[0]
        raise HubError(f"{at}: a file did not get through, and no part of it is used ({why}); try again") from error


def _is_of_client(error: BaseException) -> bool:
    """Whether it was raised inside the client, and not by what was done while it was at work."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__")).startswith("huggingface_hub")


def status_of(error: BaseException | None) -> int | None:
    """The status that the Hub answered with, None for what is no answer of the Hub."""
    return error.response.status_code if isinstance(error, hf.HfHubHTTPError) and error.response is not None else None


def http_reason(error: hf.HfHubHTTPError) -> str:
    """What a status of the Hub means, and what to do."""
    status = status_of(error)
    reasons = {
        401: "the Hub does not accept this token; run `hf auth login`, or unset HF_TOKEN",
        403: _FORBIDDEN,
        412: "the repository changed while this was being sent (or an answer was lost and the commit is there "
        "already); nothing was overwritten. Look at it and push again: an unchanged push makes no commit",
        429: "the Hub asks to slow down (429); try again in a few minutes",
    }
    detail = str(error.server_message or error).splitlines()
    return f"{reasons.get(status or 0, f'the Hub answered {status}')} [{detail[0] if detail else status}]"


def snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    allow_patterns: list[str],
    what: str,
    repo_type: str = "model",
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The cached folder of `repo_id` at one commit, with the files that match `allow_patterns`.

    Where the Hub does not answer, what the cache has of that revision is used, with a warning that says which commit.
    """
    with hub_errors(repo_id, revision, repo_type), _without_notes():
        try:
            return Path(
                snapshot_download(
                    repo_id,
                    repo_type=repo_type,
                    revision=resolved(repo_id, revision, repo_type, token, cache_dir, local_files_only)[0],
                    allow_patterns=list(allow_patterns),
                    force_download=force_download,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    library_name="hubsae",
                    library_version=library_version(),
                )
            )
        except hf.EntryNotFoundError as error:
            if isinstance(error, hf.LocalEntryNotFoundError):
                raise
            raise HubError(f"{repo_id}: this {what} misses a file: {error}") from error


class _Asking(HfApi):
    """The client, which remembers the Hub's answer, or that there was none where it goes on with what it has."""

    unanswered: Exception | None = None
    info: Any = None

    def repo_info(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self.info = super().repo_info(*args, **kwargs)
            return self.info
        except hf.OfflineModeIsEnabled:
            raise
        except (hf.HfHubHTTPError, *NO_ANSWER) as error:
            self.unanswered = error
            raise


def resolved(
    repo_id: str,
    revision: str | None,
    repo_type: str,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> tuple[ResolvedRevision, Any]:
    """The commit of a revision: the Hub's word, or the cache's with a warning if the Hub is down or out of reach.

    And what the Hub says of it, None where it was not asked.
    """
    api = _Asking(token=token, library_name="hubsae", library_version=library_version())
    found = api.resolve_revision(
        repo_id, repo_type=repo_type, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    if (error := api.unanswered) is not None:
        why = http_reason(error) if isinstance(error, hf.HfHubHTTPError) else f"no answer ({error})"
        warn(f"{repo_id}: {why}; using commit {found.resolved[:8]} of the cache, which may not be the newest")
    return found, api.info


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Context in which the client does not tell that no file matched: it was asked whether there is one."""
    log = logging.getLogger("huggingface_hub._snapshot_download")

    def is_wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("No files matched")

    log.addFilter(is_wanted)
    try:
        yield
    finally:
        log.removeFilter(is_wanted)


@dataclass(frozen=True)
class Source:
    """Where an artifact was loaded from: a folder, or a repository (or a folder inside) at a commit."""

    name: str
    revision: str | None = None
    access: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # what `hf_hub_download` takes

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:8]}" if self.revision else self.name

    def cached(self, name: str) -> Path | None:
        """A further file of the same folder or commit, None where it is not on this machine."""
        if self.revision is None:
            return self.file(name)
        try:
            return Path(hf_hub_download(filename=name, revision=self.revision, **{**self.access, **_OFFLINE}))
        except hf.EntryNotFoundError:  # or not in the cache
            return None

    def file(self, name: str) -> Path | None:
        """A further file of the same folder or commit, downloaded where it is needed; None where there is none."""
        if self.revision is None:
            path = Path(self.name, name)
            return path if path.is_file() else None
        with hub_errors(self.name, self.revision, self.access.get("repo_type")):
            try:
                return Path(hf_hub_download(filename=name, revision=self.revision, **self.access))
            except hf.LocalEntryNotFoundError:
                raise
            except hf.EntryNotFoundError:
                return None


def subfolder_path(subfolder: str | None) -> PurePosixPath:
    """A subfolder as a relative path that stays inside the repository, or `ConfigError`."""
    path = PurePosixPath(str(subfolder or "").strip("/"))
    if "\0" in str(path) or any(len(part.encode("utf-8", "replace")) > 255 for part in path.parts):
        raise ConfigError(f"subfolder={str(subfolder)[:80]!r}: no folder can have this name")
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise ConfigError(f"subfolder={subfolder!r} leads out of the repository")
    return path


def tagged(api: HfApi, repo_id: str, tag: str, repo_type: str = "model") -> str | None:
    """The commit that a tag names, None where there is no such tag."""
    tags = api.list_repo_refs(repo_id, repo_type=repo_type).tags
    return next((one.target_commit for one in tags if one.name == tag), None)


def tag_commit(api: HfApi, repo_id: str, tag: str, commit: str, repo_type: str = "model") -> None:
    """Name a commit, unless it has this name; `HubError` says that it is there where naming it fails."""
    try:
        api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repo_type)
    except hf.HfHubHTTPError as error:
        other = tagged(api, repo_id, tag, repo_type) if status_of(error) == 409 else None
        if other == commit:
            return
        why = f"that tag names {other[:8]}; choose another" if other else http_reason(error)
        raise HubError(f"{repo_id}: commit {commit[:8]} is there, but not tagged {tag!r}: {why}") from error


def local_folder(name: str | Path) -> Path | None:
    """The absolute path if `name` is an existing folder, else None; raises `ConfigError` for what is no name at all."""
    if not isinstance(name, str | Path) or not str(name):
        raise ConfigError(f"{name!r}: expected a folder or a repository id (owner/name)")
    try:
        path = Path(name).expanduser()
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError):
        return None
