"""Exports by name: one dictionary, or a set of transcoders, into a folder of another library's layout."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, ConfigError, HubsaeError
from hubsae.features import Features
from hubsae.formats import to_saelens, to_sparsify
from hubsae.formats.exported import Export, is_marked
from hubsae.formats.to_circuit_tracer import write_transcoder_set
from hubsae.formats.to_neuronpedia import write_neuronpedia
from hubsae.store import staged

EXPORTS: dict[str, Export] = {"saelens": to_saelens.EXPORT, "sparsify": to_sparsify.EXPORT}
_CONFIGS = ("cfg.json", "config.yaml", "release.jsonl")
_MARK = re.compile(rb"\"?(?:exported_by|creatorName)\"?: ?\"?hubsae")


def write_export(dictionary: Dictionary, folder: Path, to: str) -> None:
    """Write one dictionary into an existing folder; raises `ArtifactError` for what the library has no form for."""
    chosen = _export(to)
    inside = folder / chosen.at(dictionary)
    inside.mkdir(parents=True, exist_ok=True)
    chosen.write(dictionary, inside)


def export(dictionary: Dictionary, folder: str | Path, to: str) -> Path:
    """The folder, new or of an earlier export, with the dictionary as the library `to` loads it (see `EXPORTS`)."""
    _export(to)
    return _into(folder, lambda stage: write_export(dictionary, stage, to))


def export_transcoder_set(transcoders: Sequence[Dictionary], folder: str | Path) -> Path:
    """The folder with per-layer transcoders of one model as circuit-tracer loads them, one for every layer from 0.

    Raises `ArtifactError` for what is no such set.
    """
    if not isinstance(transcoders, list | tuple) or not transcoders:
        raise ConfigError("give a list of transcoders, one for every layer from 0")
    return _into(folder, lambda stage: write_transcoder_set(transcoders, stage))


def export_features(
    dictionary: Dictionary, features: Features, folder: str | Path, *, model_id: str, source_set: str
) -> Path:
    """The folder with the records of all features that Neuronpedia imports; ids are those of the model there."""
    return _into(
        folder,
        lambda stage: write_neuronpedia(dictionary, features, stage, model_id=model_id, source_set=source_set),
    )


def _export(to: str) -> Export:
    if to not in EXPORTS:
        raise ConfigError(f"no export to {to!r}; there are {', '.join(EXPORTS)}")
    return EXPORTS[to]


def exported(names: Sequence[str], read: Callable[[str], dict]) -> dict[str, list[str]]:
    """Of each of `EXPORTS` the files among `names`, below a folder of its name, that an earlier export wrote.

    read: the settings in a file, to tell exports of ours from what others put there.
    """
    there = set(names)
    found: dict[str, list[str]] = {}
    for form, chosen in EXPORTS.items():
        configs = [n for n in names if n.startswith(f"{form}/") and n.endswith(f"/{chosen.files[0]}")]
        for config in configs:
            if is_marked(read(config)):
                own = (config.removesuffix(chosen.files[0]) + name for name in chosen.files)
                found.setdefault(form, []).extend(name for name in own if name in there)
    return found


def _into(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Write aside first; refuses a folder that holds anything else than an earlier export of what is written."""
    if not isinstance(folder, str | Path) or not str(folder):
        raise ConfigError(f"{folder!r}: expected the path of a folder to write")
    try:
        target = Path(folder).expanduser().absolute()
        if target.is_file():
            raise ArtifactError(f"{target} is a file; give a folder to write")
        with staged(target) as stage:
            write(stage)
            new = {path.relative_to(stage) for path in stage.rglob("*") if path.is_file()}
            _check_there(target, new)
    except (OSError, ValueError) as error:
        if isinstance(error, HubsaeError):
            raise
        raise ArtifactError(f"{folder}: cannot be written ({error})") from error
    return target


def _check_there(target: Path, new: set[Path]) -> None:
    """Raise `ArtifactError` where files beside the new ones, or in their place, are not of an export of ours."""
    for folder in {path.parent for path in new}:
        there = {p.relative_to(target) for p in (target / folder).glob("*") if p.is_file()}
        if others := sorted(str(path) for path in there - new):
            raise ArtifactError(f"{target} holds {', '.join(others[:6])}, which is not of this export; give another")
        if there & new and not any(_is_ours(target / above) for above in (folder, *folder.parents)):
            raise ArtifactError(
                f"{target} holds {', '.join(sorted(map(str, there & new))[:6])}, which hubsae did not write; give "
                "another folder"
            )


def _is_ours(folder: Path) -> bool:
    """Whether a config there says, in whatever syntax, that an export of ours wrote it."""
    paths = (folder / name for name in _CONFIGS)
    return any(path.is_file() and _MARK.search(path.read_bytes()[: 1 << 20]) for path in paths)
