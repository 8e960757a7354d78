"""Exports by name: one dictionary, or a set of transcoders, into a folder of another library's layout."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, ConfigError
from hubsae.features import Features
from hubsae.formats import to_saelens, to_sparsify
from hubsae.formats.exported import Export
from hubsae.formats.to_circuit_tracer import write_transcoder_set
from hubsae.formats.to_neuronpedia import write_neuronpedia
from hubsae.store import staged

EXPORTS: dict[str, Export] = {"saelens": to_saelens.EXPORT, "sparsify": to_sparsify.EXPORT}


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


def _into(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Write aside first, and refuse a folder that holds anything else than what is written."""
    if not isinstance(folder, str | Path) or not str(folder):
        raise ConfigError(f"{folder!r}: expected the path of a folder to write")
    target = Path(folder).expanduser().absolute()
    if target.is_file():
        raise ArtifactError(f"{target} is a file; give a folder to write")
    there = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    with staged(target) as stage:
        write(stage)
        new = {path.relative_to(stage) for path in stage.rglob("*") if path.is_file()}
        if others := sorted(map(str, there - new)):
            raise ArtifactError(f"{target} holds {', '.join(others[:6])}, which is not of this export; give another")
    return target
