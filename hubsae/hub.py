"""`Artifact`: a config, arrays, numbers and a card in one folder, on disk or on the Hub.

The only room that writes artifact folders or talks to the Hub. An artifact is to MLX what PyTorchModelHubMixin is to
torch: the same methods with the same signatures, on top of `huggingface_hub.ModelHubMixin`.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
from httpx2 import HTTPError
from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelHubMixin, hf_hub_download, snapshot_download
from huggingface_hub import errors as hf

from hubsae import render
from hubsae.errors import ArtifactError, ConfigError, HubError
from hubsae.store import (
    CARD,
    CONFIG,
    METRICS,
    STATISTICS,
    WEIGHTS,
    read_arrays,
    read_json,
    staged,
    write_arrays,
    write_json,
)


@dataclass(frozen=True)
class Source:
    """Where an artifact was loaded from: a folder, or a repository at a commit."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:8]}" if self.revision else self.name


def library_version() -> str:
    """The installed version of hubsae."""
    import importlib.metadata

    return importlib.metadata.version("hubsae")


def hub_api(token: str | bool | None = None) -> HfApi:
    """The Hub client, introduced as hubsae."""
    return HfApi(token=token, library_name="hubsae", library_version=library_version())


@contextlib.contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Context that turns what the Hub client raises about `repo_id` into a `HubError` that says what to do."""
    at = f"{repo_id}@{revision}" if revision else repo_id
    try:
        yield
    except hf.GatedRepoError as error:
        raise HubError(f"{at}: this repository is gated; ask for access on its page, then `hf auth login`") from error
    except hf.RepositoryNotFoundError as error:
        raise HubError(
            f"{at}: no such repository, or it is private and this token cannot see it; check the name "
            "(owner/name), or run `hf auth login` with a token that may read it"
        ) from error
    except hf.RevisionNotFoundError as error:
        raise HubError(f"{at}: the repository exists, but it has no revision {revision!r}") from error
    except (hf.OfflineModeIsEnabled, hf.RevisionResolutionError, hf.LocalEntryNotFoundError) as error:
        raise HubError(
            f"{at}: not in the local cache, and the Hub was not asked or could not be reached "
            "(HF_HUB_OFFLINE, local_files_only, or no network); load it once while online"
        ) from error
    except hf.HFValidationError as error:
        raise HubError(
            f"{repo_id!r} is neither an existing folder nor a repository id (owner/name): {error}"
        ) from error
    except hf.HfHubHTTPError as error:
        raise HubError(f"{at}: {_http_reason(error)}") from error
    except (ConnectionError, HTTPError) as error:  # what the client's transport raises
        raise HubError(
            f"{at}: no answer from the Hub ({error}); what was sent may have arrived all the same. "
            "Try again: an unchanged push makes no commit"
        ) from error


def _http_reason(error: hf.HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    reasons = {
        401: "the Hub does not accept this token; run `hf auth login`, or unset HF_TOKEN",
        403: "this token may not do that; use one with write access to this namespace",
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
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The cached folder of `repo_id` at one commit, with the files that match `allow_patterns`."""
    with hub_errors(repo_id, revision):
        try:
            return Path(
                snapshot_download(
                    repo_id,
                    revision=revision,
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


class Artifact(ModelHubMixin, library_name="hubsae"):
    """A frozen config, arrays, statistics (how it was made), metrics (how good it is) and a card.

    Subclasses give `arrays`, `from_parts`, `card_template`, `card_values`; one that is also an `nn.Module` names
    `Artifact` first among its bases.
    """

    card_template: ClassVar[str]
    config: Any
    statistics: dict
    metrics: dict
    source: Source | None

    def __init_subclass__(cls, *, tags: list[str] | None = None, **kwargs):
        bases = cls.__mro__
        if nn.Module in bases and bases.index(nn.Module) < bases.index(Artifact):
            raise TypeError(f"{cls.__name__}: Artifact has to come before nn.Module, or the config is never recorded")
        super().__init_subclass__(tags=list(tags) if tags else None, **kwargs)

    def __init__(self):
        super().__init__()
        self.statistics, self.metrics, self.source = {}, {}, None

    def __setattr__(self, key: str, value: Any) -> None:
        # nn.Module keeps dicts, lists and tuples as parameters; here only arrays and modules are
        if isinstance(value, mx.array | nn.Module):
            super().__setattr__(key, value)
        else:
            object.__setattr__(self, key, value)

    def arrays(self) -> dict[str, mx.array]:
        """What goes into model.safetensors, by name."""
        raise NotImplementedError(f"{type(self).__name__} has to say what its arrays are")

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> Self:
        """An artifact from a config.json's content and a file's arrays; raises `ArtifactError` where they disagree."""
        raise NotImplementedError(f"{cls.__name__} has to say how it is made from a folder")

    def card_values(self) -> dict:
        """What the card template may use, beside `repo_id`, `metrics`, `statistics` and `config`."""
        return {}

    def card_metadata(self) -> dict:
        """Entries of the card's front matter."""
        return {}

    def card_results(self) -> list[EvalResult]:
        """Entries of the card's model-index."""
        return []

    def file_metadata(self) -> dict[str, str]:
        """Entries of the safetensors header."""
        return {}

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        card: render.CardPolicy = "merge",
        **push_to_hub_kwargs,
    ) -> CommitInfo | None:
        """Write the folder; with `push_to_hub` also publish it, and return the commit.

        Everything is written beside the folder first, so that an error leaves it as it was. A card that people edited
        keeps its text ("merge"), everything ("keep") or nothing ("replace").
        """
        target = Path(save_directory).expanduser()
        if target.is_file():
            raise ArtifactError(f"{target} is a file; give a folder to save to")
        values = {"repo_id": repo_id or target.name, **(model_card_kwargs or {})}
        with staged(target.absolute()) as stage:
            self._save_pretrained(stage)
            if not (stage / CONFIG).exists():
                chosen = self.config if config is None else config
                write_json(stage / CONFIG, chosen if isinstance(chosen, dict) else asdict(chosen))
            for name, content in ((STATISTICS, self.statistics), (METRICS, self.metrics)):
                if content:
                    write_json(stage / name, content)
            old = (target / CARD).read_text(encoding="utf-8") if (target / CARD).is_file() else None
            text = render.merge(old, str(self.generate_model_card(**values)), card)
            (stage / CARD).write_text(text, encoding="utf-8")
        if push_to_hub:
            return self.push_to_hub(
                repo_id or target.name, model_card_kwargs=model_card_kwargs, card=card, **push_to_hub_kwargs
            )
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        metadata = {"format": "mlx", "library": "hubsae", "library_version": library_version()}
        write_arrays(save_directory / WEIGHTS, self.arrays(), {**metadata, **self.file_metadata()})

    def generate_model_card(self, *args, **kwargs) -> ModelCard:
        """The card, signed: rendered from config, statistics and metrics alone."""
        from huggingface_hub import ModelCardData

        values = {"config": self.config, "metrics": self.metrics, "statistics": self.statistics, **self.card_values()}
        values |= {"repo_id": "path/to/this/folder", **kwargs}
        metadata = {**self._hub_mixin_info.model_card_data.to_dict(), **self.card_metadata()}  # copies: one per class
        if results := self.card_results():
            metadata |= {"eval_results": results, "model_name": str(values["repo_id"]).split("/")[-1]}
        data = ModelCardData(**metadata)
        body = render.fill(self.card_template, values)
        return ModelCard(render.sign(f"---\n{data.to_yaml()}\n---\n\n{body}"))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        subfolder: str | None = None,
        **model_kwargs,
    ) -> Self:
        """The artifact of a folder or repository, all files from one commit; an existing folder wins over a repository.

        Raises `HubError` (missing, private, gated, offline ...) and `ArtifactError` (not ours, damaged, newer format).
        """
        return cls._from_pretrained(
            model_id=str(pretrained_model_name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            subfolder=subfolder,
            **model_kwargs,
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        subfolder: str | None = None,
        **model_kwargs,
    ) -> Self:
        if model_kwargs:
            raise ConfigError(f"{cls.__name__}.from_pretrained does not take {', '.join(sorted(model_kwargs))}")
        inside = _inside(subfolder)
        if Path(model_id).expanduser().is_dir():
            if revision is not None:
                raise ConfigError(f"{model_id} is a local folder: revision={revision!r} needs a repository id")
            folder, source = Path(model_id).expanduser() / inside, Source(str(Path(model_id) / inside))
        else:
            names = [str(PurePosixPath(inside, name)) for name in (CONFIG, WEIGHTS, STATISTICS, METRICS)]
            root = snapshot(
                model_id,
                revision=revision,
                allow_patterns=names,
                what="artifact",
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
            name = model_id if inside == PurePosixPath() else f"{model_id}/{inside}"
            folder, source = root / inside, Source(name, root.name)
        return cls._from_folder(folder, source)

    @classmethod
    def _from_folder(cls, folder: Path, source: Source) -> Self:
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else ""
                raise ArtifactError(
                    f"{source}: no {name}, so this is no folder that hubsae wrote"
                    + (f"; it holds {there}" if there else "")
                    + ". For a dictionary inside a larger repository give subfolder=..."
                )
        try:
            artifact = cls.from_parts(read_json(folder / CONFIG), read_arrays(folder / WEIGHTS))
        except ArtifactError as error:
            raise ArtifactError(str(error) if str(folder) in str(error) else f"{source}: {error}") from error
        for attribute, name in (("statistics", STATISTICS), ("metrics", METRICS)):
            if (folder / name).is_file():
                setattr(artifact, attribute, read_json(folder / name))
        artifact.source = source
        return artifact

    def push_to_hub(
        self,
        repo_id: str,
        *,
        config: Any = None,
        commit_message: str = "Push with hubsae",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: list[str] | str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        card: render.CardPolicy = "merge",
        tag: str | None = None,
    ) -> CommitInfo:
        """Publish as one commit; creates the repository, and the branch, where they are missing.

        The push is bound to the head that was seen: when somebody else pushes in between, it fails and changes
        nothing. `card` says what happens to a card that people edited, there or in the folder that this was
        loaded from (see `save_pretrained`); `tag` names the new commit.
        """
        if branch and create_pr:
            raise ConfigError(f"branch={branch!r} and create_pr=True exclude each other")
        api = hub_api(token)
        with hub_errors(repo_id, branch):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if branch:
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            info = api.model_info(repo_id, revision=branch)
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary, "artifact")
                folder.mkdir()
                cards = [Path(self.source.name, CARD)] if self.source and not self.source.revision else []
                if any(file.rfilename == CARD for file in info.siblings or []):
                    cards.insert(0, Path(hf_hub_download(repo_id, CARD, revision=info.sha, token=token)))
                if old := _card_to_keep(cards):
                    (folder / CARD).write_text(old, encoding="utf-8")
                self.save_pretrained(
                    folder, config=config, repo_id=repo_id, model_card_kwargs=model_card_kwargs, card=card
                )
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                    parent_commit=info.sha,
                    allow_patterns=_copy(allow_patterns),
                    ignore_patterns=_copy(ignore_patterns),
                    delete_patterns=_copy(delete_patterns),
                )
            if tag:
                api.create_tag(repo_id, tag=tag, revision=commit.oid)
        return commit


def _card_to_keep(candidates: list[Path]) -> str | None:
    """The first card that people edited, else the first one there is."""
    texts = [path.read_text(encoding="utf-8") for path in candidates if path.is_file()]
    return next((text for text in texts if render.is_edited(text)), texts[0] if texts else None)


def _copy(patterns: list[str] | str | None) -> list[str] | str | None:
    return list(patterns) if isinstance(patterns, list) else patterns  # the client extends the caller's list


def _inside(subfolder: str | None) -> PurePosixPath:
    """A subfolder as a relative path that stays inside the repository, or `ConfigError`."""
    path = PurePosixPath((subfolder or "").strip("/"))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise ConfigError(f"subfolder={subfolder!r} leads out of the repository")
    return path
