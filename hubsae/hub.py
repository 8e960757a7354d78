"""`Artifact`: a config, arrays, tables, numbers and a card in one folder, on disk or on the Hub.

The only room that writes artifact folders or talks to the Hub. An artifact is to MLX what PyTorchModelHubMixin is to
torch: the same methods with the same signatures, on top of `huggingface_hub.ModelHubMixin`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import jinja2
import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import CommitInfo, DatasetCard, EvalResult, HfApi, ModelCard, ModelHubMixin

from hubsae import licences, render
from hubsae.charts import Picture
from hubsae.commit_files import fetched
from hubsae.errors import ArtifactError, ConfigError
from hubsae.hub_client import Source, library_version, local_folder, subfolder_path
from hubsae.identity import Compared
from hubsae.publishing import Push, as_list, publish
from hubsae.store import (
    CARD,
    CONFIG,
    CONFIGS,
    METRICS,
    STATISTICS,
    WEIGHTS,
    check_target,
    file_sums,
    other_kind,
    read_arrays,
    read_card,
    read_json,
    sha256_of,
    staged,
    write_arrays,
    write_json,
    write_text,
)


class Artifact(ModelHubMixin, library_name="hubsae"):
    """A frozen config, arrays, statistics (how it was made), metrics (how good it is), pictures and a card.

    Subclasses give `arrays`, `from_parts`, `card_template`, `card_values`; one that is also an `nn.Module` names
    `Artifact` first among its bases. One with tables also gives `tables` and `_read_more`, and writes them in
    `_save_pretrained`.
    """

    card_template: ClassVar[str]
    repo_type: ClassVar[str] = "model"  # or "dataset"
    config_file: ClassVar[str] = CONFIG
    arrays_file: ClassVar[str | None] = WEIGHTS  # None: it has none
    pictures: ClassVar[tuple[str, ...]] = ()  # names of those that `card_pictures` may give
    tables: ClassVar[tuple[str, ...]] = ()  # that `_save_pretrained` may write, downloaded with the arrays
    more_files: ClassVar[tuple[str, ...]] = ()  # that it may write too, fetched when they are needed
    forms: ClassVar[tuple[str, ...]] = ()  # of other libraries, that `_write_form` writes into a folder of this name
    config: Any
    statistics: dict
    metrics: dict
    source: Source | None

    def __init_subclass__(cls, *, tags: list[str] | None = None, **kwargs):
        bases = cls.__mro__
        if nn.Module in bases and bases.index(nn.Module) < bases.index(Artifact):
            raise TypeError(f"{cls.__name__}: Artifact has to come before nn.Module, or the config is never recorded")
        if cls.config_file not in CONFIGS:
            raise TypeError(f"{cls.__name__}: config_file {cls.config_file!r} is none of {', '.join(CONFIGS)}")
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
        """What goes into `arrays_file`, by name."""
        raise NotImplementedError(f"{type(self).__name__} has to say what its arrays are")

    @classmethod
    def from_parts(cls, config: dict, arrays: dict[str, mx.array]) -> Self:
        """An artifact from a config's content and a file's arrays; raises `ArtifactError` where they disagree."""
        raise NotImplementedError(f"{cls.__name__} has to say how it is made from a folder")

    def _read_more(self, folder: Path) -> None:
        """Read the tables of a folder; raises `ArtifactError` where they do not fit the config."""

    def _write_form(self, folder: Path, form: str) -> None:
        """Write what another library loads into an empty folder."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its form {form!r} is written")

    def _forms_there(self, names: list[str], read: Callable[[str], dict]) -> dict[str, list[str]]:
        """Which of its forms a repository with these files has already, and their files; `read` gives settings."""
        return {}

    def class_tags(self) -> list[str]:
        """Tags of the card's front matter that all artifacts of this class have."""
        tags = list(self._hub_mixin_info.model_card_data.tags or [])
        return tags if self.repo_type == "model" else [tag for tag in tags if tag != "model_hub_mixin"]

    def card_values(self) -> dict:
        """What the card template may use, beside `repo_id`, `metrics`, `statistics` and `config`."""
        return {}

    def card_metadata(self) -> dict:
        """Entries of the card's front matter; `tags` take the place of the class's."""
        return {}

    def card_pictures(self) -> dict[str, Picture]:
        """Pictures of the card by name, written to `assets/<name>.svg`; the template finds each `alt` in `pictures`."""
        return {}

    def card_results(self) -> list[EvalResult]:
        """Entries of the card's model-index, which a dataset has not."""
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
        target = check_target(save_directory, self.config_file)
        values = {"repo_id": repo_id or target.name, **(model_card_kwargs or {})}
        own = asdict(self.config)
        if config is not None and (config if isinstance(config, dict) else asdict(config)) != own:
            raise ConfigError("config differs from this artifact's own, which its arrays belong to; leave it out")
        old = read_card(target / CARD) if (target / CARD).is_file() else None
        said = render.licence_of(old)
        if said and said != render.licence_of(str(self.generate_model_card(**values))):  # people's word counts
            self.statistics = {**self.statistics, "licence": licences.of_metadata(said)}
        with staged(target, whole=self.own_files()) as stage:
            write_json(stage / self.config_file, own)
            for name, content in ((STATISTICS, self.statistics), (METRICS, self.metrics)):
                if content:
                    write_json(stage / name, content)
            self._save_pretrained(stage)
            pictures = self.card_pictures()
            for name, picture in pictures.items():
                write_text(stage / _picture(name), picture.svg)
            values = {"pictures": {name: picture.alt for name, picture in pictures.items()}, **values}
            values.setdefault("files", file_sums(stage))
            text = render.merge(old, str(self.generate_model_card(**values)), card)
            (stage / CARD).write_text(text, encoding="utf-8")
        if push_to_hub:
            return self.push_to_hub(
                repo_id or target.name, model_card_kwargs=model_card_kwargs, card=card, **push_to_hub_kwargs
            )
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        metadata = {"format": "mlx", "library": "hubsae", "library_version": library_version()}
        if self.arrays_file:
            write_arrays(save_directory / self.arrays_file, self.arrays(), {**metadata, **self.file_metadata()})

    def generate_model_card(self, *args, **kwargs) -> Any:
        """The card, signed: a `ModelCard` or `DatasetCard` rendered from config, statistics and metrics alone."""
        from huggingface_hub import DatasetCardData, ModelCardData

        is_model = self.repo_type == "model"
        values = {"config": self.config, "metrics": self.metrics, "statistics": self.statistics}
        values |= {"repo_id": "path/to/this/folder", "pictures": {}, **kwargs}
        try:
            shared = self._hub_mixin_info.model_card_data.to_dict()  # the class's
            if not is_model:
                shared = {k: v for k, v in shared.items() if k != "library_name"}
            metadata = {**shared, "tags": self.class_tags() or None, **self.card_metadata()}
            metadata |= licences.front_matter(self.statistics.get("licence"))
            if is_model and (results := self.card_results()):
                metadata |= {"eval_results": results, "model_name": str(values["repo_id"]).split("/")[-1]}
            data = ModelCardData(**metadata) if is_model else DatasetCardData(**metadata)
            values = {**self.card_values(), **values}
            body = render.fill(self.card_template, values)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
            raise ArtifactError(f"no card can be made of this config, statistics and metrics: {error}") from error
        return (ModelCard if is_model else DatasetCard)(render.sign(f"---\n{data.to_yaml()}\n---\n\n{body}"))

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
            **({} if subfolder is None else {"subfolder": subfolder}),  # a subclass may have the mixin's own signature
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
        inside = subfolder_path(subfolder)
        local = local_folder(model_id)
        if local is not None:
            if revision is not None:
                raise ConfigError(f"{model_id} is a local folder: revision={revision!r} needs a repository id")
            folder, source = local / inside, Source(str(local / inside))
        else:
            root = fetched(
                model_id,
                cls._files_read(),
                arrays=cls.arrays_file,
                folder=inside,
                revision=revision,
                force_download=force_download,
                repo_type=cls.repo_type,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
            name = model_id if inside == PurePosixPath() else f"{model_id}/{inside}"
            access = {"repo_id": model_id, "subfolder": str(inside) if inside.parts else None, "token": token}
            access |= {"repo_type": cls.repo_type, "cache_dir": cache_dir, "local_files_only": local_files_only}
            folder, source = root / inside, Source(name, root.name, access)
        return cls._from_folder(folder, source)

    @classmethod
    def _files_read(cls) -> tuple[str, ...]:
        arrays = (cls.arrays_file,) if cls.arrays_file else ()
        return (*CONFIGS, *arrays, STATISTICS, METRICS, *cls.tables)  # all configs: to say what it is

    @classmethod
    def _from_folder(cls, folder: Path, source: Source) -> Self:
        for name in (cls.config_file, cls.arrays_file):
            if name and not (folder / name).is_file():
                if other := other_kind(folder, name) if name == cls.config_file else None:
                    raise ArtifactError(
                        f"{source}: holds {other}, not {CONFIGS[name]} ({name}); load it with the class that wrote it"
                    )
                there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else ""
                raise ArtifactError(
                    f"{source}: no {name}, so this is no folder that hubsae wrote"
                    + (f"; it holds {there}" if there else "")
                    + ". If it stands inside a larger repository, subfolder=... has to name its folder"
                )
        try:
            arrays = read_arrays(folder / cls.arrays_file) if cls.arrays_file else {}
            artifact = cls.from_parts(read_json(folder / cls.config_file), arrays)
            artifact._read_more(folder)
        except ArtifactError as error:
            raise ArtifactError(str(error) if str(folder) in str(error) else f"{source}: {error}") from error
        for attribute, name in (("statistics", STATISTICS), ("metrics", METRICS)):
            if (folder / name).is_file():
                setattr(artifact, attribute, read_json(folder / name))
        artifact.source = source
        return artifact

    def compared_files(self) -> list[Compared]:
        """Every file that the card names where this was loaded from: the sha256 that it says, and that of the file."""
        if self.source is None:
            raise ConfigError("it was loaded from nowhere, so there are no files to look at")
        card = self.source.file(CARD)
        found = []
        for name, said in sorted(render.named_sums(read_card(card)).items()) if card else ():
            path = None if ".." in name else self.source.file(str(subfolder_path(name)))
            own = sha256_of(path) if path else "no such file"
            found.append(Compared(name, said, own, "same" if own == said else "warning"))
        return found

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
        also: Sequence[str] | None = None,
        license: str | None = None,
    ) -> CommitInfo:
        """Publish as one commit; creates the repository, and the branch, where they are missing.

        The push is bound to the head that was seen: when somebody else pushes in between, it fails and changes
        nothing. `card` says what happens to a card that people edited, there or in the folder that this was
        loaded from (see `save_pretrained`); `tag` names the new commit. `also` puts other libraries' forms (such as
        "saelens") into folders of that name beside it; those that are there already are written anew if nothing is
        said, and taken away if others are named. `license` is a Hub id; without one the base models' is inherited.
        """
        wanted = Push(
            branch=branch,
            create_pr=create_pr,
            private=private,
            commit_message=commit_message,
            allow_patterns=as_list(allow_patterns),
            ignore_patterns=as_list(ignore_patterns),
            delete_patterns=as_list(delete_patterns),
            config=config,
            model_card_kwargs=dict(model_card_kwargs or {}),
            card=card,
            tag=tag,
            also=also,
            license=license,
        )
        return publish(self, repo_id, wanted, token)

    def _published_at(self, source: Source) -> None:
        """Remember where it can be had from now on."""
        self.source = source

    def _inherited(self, api: HfApi) -> dict | None:
        """The licence of what it was made from, if that is known."""
        return None

    def own_files(self) -> tuple[str, ...]:
        """Files that an artifact may have or not: where it has one no longer, an older one is taken away."""
        return (STATISTICS, METRICS, *self.tables, *self.more_files, *map(_picture, self.pictures))


def _picture(name: str) -> str:
    return f"assets/{name}.svg"
