"""`Artifact`: a config, arrays, numbers and a card in one folder, on disk or on the Hub.

The only room that writes artifact folders or talks to the Hub. An artifact is to MLX what PyTorchModelHubMixin is to
torch: the same methods with the same signatures, on top of `huggingface_hub.ModelHubMixin`.
"""

import glob
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import jinja2
import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub import errors as hf

from hubsae import render
from hubsae.errors import ArtifactError, ConfigError, HubError
from hubsae.hub_client import http_reason, hub_api, hub_errors, library_version, local_folder, snapshot
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
    """Where an artifact was loaded from: a folder, or a repository (or a folder inside) at a commit."""

    name: str
    revision: str | None = None
    access: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:8]}" if self.revision else self.name

    def file(self, name: str) -> Path | None:
        """A further file of the same folder or commit, downloaded where it is needed; None where there is none."""
        if self.revision is None:
            path = Path(self.name, name)
            return path if path.is_file() else None
        with hub_errors(self.name, self.revision):
            try:
                return Path(hf_hub_download(filename=name, revision=self.revision, **self.access))
            except hf.LocalEntryNotFoundError:
                raise
            except hf.EntryNotFoundError:
                return None


class Artifact(ModelHubMixin, library_name="hubsae"):
    """A frozen config, arrays, statistics (how it was made), metrics (how good it is) and a card.

    Subclasses give `arrays`, `from_parts`, `card_template`, `card_values`; one that is also an `nn.Module` names
    `Artifact` first among its bases.
    """

    card_template: ClassVar[str]
    more_files: ClassVar[tuple[str, ...]] = ()  # that `_save_pretrained` may write beside the arrays
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

        Everything is written aside first, so that an error leaves the folder as it was. A card that people edited
        keeps its text ("merge"), everything ("keep") or nothing ("replace").
        """
        target = check_target(save_directory)
        values = {"repo_id": repo_id or target.name, **(model_card_kwargs or {})}
        own = asdict(self.config)
        if config is not None and (config if isinstance(config, dict) else asdict(config)) != own:
            raise ConfigError("config differs from this artifact's own, which its arrays belong to; leave it out")
        with staged(target, whole=self.own_files()) as stage:
            self._save_pretrained(stage)
            write_json(stage / CONFIG, own)
            for name, content in ((STATISTICS, self.statistics), (METRICS, self.metrics)):
                if content:
                    write_json(stage / name, content)
            old = read_card(target / CARD) if (target / CARD).is_file() else None
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

        values = {"config": self.config, "metrics": self.metrics, "statistics": self.statistics}
        values |= {"repo_id": "path/to/this/folder", **kwargs}
        try:
            metadata = {
                **self._hub_mixin_info.model_card_data.to_dict(),
                **self.card_metadata(),
            }  # the class's is shared
            if results := self.card_results():
                metadata |= {"eval_results": results, "model_name": str(values["repo_id"]).split("/")[-1]}
            data = ModelCardData(**metadata)
            values = {**self.card_values(), **values}
            body = render.fill(self.card_template, values)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise ArtifactError(f"no card can be made of this config, statistics and metrics: {error}") from error
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
        local_folder(pretrained_model_name_or_path)  # refuses what is neither a path nor a name
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
        local = local_folder(model_id)
        if local is not None:
            if revision is not None:
                raise ConfigError(f"{model_id} is a local folder: revision={revision!r} needs a repository id")
            folder, source = local / inside, Source(str(local / inside))
        else:
            names = [glob.escape(str(PurePosixPath(inside, name))) for name in (CONFIG, WEIGHTS, STATISTICS, METRICS)]
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
            access = {"repo_id": model_id, "subfolder": str(inside) if inside.parts else None, "token": token}
            access |= {"cache_dir": cache_dir, "local_files_only": local_files_only}
            folder, source = root / inside, Source(name, root.name, access)
        return cls._from_folder(folder, source)

    @classmethod
    def _from_folder(cls, folder: Path, source: Source) -> Self:
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else ""
                raise ArtifactError(
                    f"{source}: no {name}, so this is no folder that hubsae wrote"
                    + (f"; it holds {there}" if there else "")
                    + ". If it stands inside a larger repository, subfolder=... has to name its folder"
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
            if private and not info.private:
                raise HubError(f"{repo_id} exists and is public; private=True does not change that. Nothing was sent")
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
                with warnings.catch_warnings():  # features.parquet belongs to the model that it describes
                    warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
                    commit = api.upload_folder(
                        repo_id=repo_id,
                        folder_path=folder,
                        commit_message=commit_message,
                        revision=branch,
                        create_pr=create_pr,
                        parent_commit=info.sha,
                        allow_patterns=_as_list(allow_patterns) or None,
                        ignore_patterns=_as_list(ignore_patterns) or None,
                        delete_patterns=[*_as_list(delete_patterns), *self._absent(folder)] or None,
                    )
            if tag:
                _tag(api, repo_id, tag, commit.oid)
        return commit

    def _absent(self, folder: Path) -> list[str]:
        """Files that an artifact may have and this one has not: an earlier version's must not stay behind."""
        return [name for name in self.own_files() if not (folder / name).exists()]

    def own_files(self) -> tuple[str, ...]:
        """Files that an artifact may have or not: where it has one no longer, an older one is taken away."""
        return (STATISTICS, METRICS, *self.more_files)


def _card_to_keep(candidates: list[Path]) -> str | None:
    """The first card that people edited, else the first one there is."""
    texts = [read_card(path) for path in candidates if path.is_file()]
    return next((text for text in texts if render.is_edited(text)), texts[0] if texts else None)


def _as_list(patterns: list[str] | str | None) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or [])  # the client extends the caller's list


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    try:
        api.create_tag(repo_id, tag=tag, revision=commit)
    except hf.HfHubHTTPError as error:
        why = http_reason(error)
        raise HubError(f"{repo_id}: commit {commit[:8]} was made, but not tagged {tag!r}: {why}") from error


def check_target(folder: str | Path) -> Path:
    """The folder to save to, absolute; `ArtifactError` where it is a file, of another library, or not writable."""
    if not isinstance(folder, str | Path) or not str(folder):
        raise ConfigError(f"{folder!r}: expected the path of a folder to save to")
    target = Path(folder).expanduser().absolute()
    if target.is_file():
        raise ArtifactError(f"{target} is a file; give a folder to save to")
    path = target / CONFIG
    if path.is_file() and read_json(path).get("library_name") != "hubsae":
        raise ArtifactError(f"{target} holds a config.json of something else (a model?); give another folder")
    with staged(target):
        return target


def read_card(path: Path) -> str:
    """A card's text; what is no UTF-8 in it is shown as a question mark."""
    return path.read_text(encoding="utf-8", errors="replace")


def _inside(subfolder: str | None) -> PurePosixPath:
    """A subfolder as a relative path that stays inside the repository, or `ConfigError`."""
    path = PurePosixPath((subfolder or "").strip("/"))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise ConfigError(f"subfolder={subfolder!r} leads out of the repository")
    return path
