"""A site as a mapping from paths to bytes: read part by part by a server, or written whole into a folder."""

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from hubsae.circuits import Circuit
from hubsae.dashboard import feature_data, page_data
from hubsae.dashboard.page_data import Pairs, Side
from hubsae.dashboard.shards import script
from hubsae.errors import ArtifactError
from hubsae.store import staged
from hubsae.survey import fingerprint, same_marks
from hubsae.tables import plain
from hubsae.text_analysis import TextAnalysis

LIVE = "data/live.js"
_INDEX = "index.html"
_MARK = '<meta name="generator" content="hubsae">'
_SCRIPTS = (
    *("elements", "data", "marks", "charts", "overview", "rows", "list", "feature"),
    *("text", "together", "circuit", "pairs", "live", "start"),
)


@dataclass(frozen=True)
class AnalysedText:
    """A text and its features by the dictionary number `side`."""

    side: int
    title: str
    analysis: TextAnalysis


@dataclass(frozen=True)
class Dashboard:
    """The files of a site: path -> function that makes its bytes. They are made when they are asked for."""

    title: str
    sides: tuple[Side, ...]
    files: Mapping[str, Callable[[], bytes]] = field(repr=False)

    @classmethod
    def of(
        cls,
        sides: Sequence[Side],
        *,
        title: str | None = None,
        texts: Sequence[AnalysedText] = (),
        circuits: Sequence[Circuit] = (),
        pairs: Pairs | None = None,
    ) -> Self:
        """A site of one dictionary or several, with pairs of features of the first two if there are some.

        texts: analysed ones, to be shown as heat maps; circuits: to be shown as graphs whose nodes lead to features.
        """
        if pairs is not None:
            pairs.check(sides)
        name = title or " and ".join(side.name for side in sides[: 2 if pairs else 1])
        data: dict[str, Callable[[], object]] = {
            "about": partial(page_data.about, sides, name, texts, circuits, pairs),
            "live": dict,
        }
        for i, side in enumerate(sides):
            data |= {f"{i}/{part}": make for part, make in _parts_of(side).items()}
        if texts:
            data["texts"] = partial(_texts, sides, texts)
        for i, circuit in enumerate(circuits):
            places = {layer: _place(sides, found) for layer, found in circuit.saes.items()}
            data[f"circuit-{i}"] = partial(page_data.circuit_data, circuit, places)
        if pairs is not None:
            data["pairs"] = partial(page_data.pairs_data, pairs)
        files: dict[str, Callable[[], bytes]] = {
            _INDEX: partial(_asset, _INDEX),
            "site.css": partial(_asset, "site.css"),
            "site.js": _site_script,
        }
        files |= {f"data/{part}.js": partial(_script, part, make) for part, make in data.items()}
        return cls(name, tuple(sides), files)

    def write(self, folder: str | Path, progress: bool = False) -> Path:
        """Write all files into `folder`; what an earlier site there had and this one has not is removed.

        Raises `ArtifactError` where the folder holds something else than a site.
        """
        from tqdm import tqdm

        target = _check_folder(Path(folder).expanduser().absolute())
        old = tuple(str(path.relative_to(target)) for path in (target / "data").rglob("*.js"))
        with staged(target, whole=old) as stage:
            for path, make in tqdm(self.files.items(), desc="site", unit="file", disable=not progress):
                _write(stage / path, make())
        return target


def _parts_of(side: Side) -> dict[str, Callable[[], object]]:
    features = side.features
    parts: dict[str, Callable[[], object]] = {"list": partial(feature_data.list_data, features)}
    if "cofiring_ids" in features.columns:
        parts["together"] = partial(feature_data.together_data, features)
    for number in range(-(-len(features) // feature_data.SHARD)):
        parts[f"features-{number}"] = partial(feature_data.feature_shard, features, number)
    return parts


def _texts(sides: Sequence[Side], texts: Sequence[AnalysedText]) -> list[dict]:
    return [
        {
            "side": text.side,
            "title": plain(text.title),
            **page_data.text_data(text.analysis, sides[text.side].features),
        }
        for text in texts
    ]


def _place(sides: Sequence[Side], dictionary: object) -> int | None:
    """The number of a dictionary among those of a site, or None."""
    for i, side in enumerate(sides):
        own = side.dictionary
        if own is dictionary:
            return i
        config = getattr(dictionary, "config", None)
        if own.config == config and same_marks(fingerprint(own), dictionary):  # type: ignore[arg-type]
            return i
    return None


def _script(part: str, make: Callable[[], object]) -> bytes:
    return script(part, make())


def _asset(name: str) -> bytes:
    return importlib.resources.files("hubsae.dashboard").joinpath("web", name).read_bytes()


def _site_script() -> bytes:
    """All scripts as one, with no names of theirs to be seen outside."""
    body = "\n".join(_asset(f"{name}.js").decode("utf-8") for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}}})();\n'.encode()


def _check_folder(target: Path) -> Path:
    if target.is_file():
        raise ArtifactError(f"{target} is a file; give a folder to write the site to")
    index = target / _INDEX
    there = [path.name for path in target.iterdir() if not path.name.startswith(".")] if target.is_dir() else []
    ours = index.is_file() and _MARK in index.read_text(encoding="utf-8", errors="replace")
    if there and not ours:
        raise ArtifactError(f"{target} holds other files ({', '.join(sorted(there)[:5])}); give a new or empty folder")
    return target


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
