"""A site as a mapping from paths to bytes: read part by part by a server, or written whole into a folder."""

import importlib.resources
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from hubsae.circuits import Circuit
from hubsae.dashboard import feature_data, page_data
from hubsae.dashboard.page_data import Pairs, Side
from hubsae.dashboard.shards import script
from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.store import staged
from hubsae.survey import same_dictionary
from hubsae.tables import plain
from hubsae.text_analysis import TextAnalysis

LIVE = "data/live.js"
_INDEX = "index.html"
_SUFFIXES = (".html", ".css", ".js")
_PART = re.compile(r"data/(about|live|texts|pairs|circuit-\d+|\d+/(list|together|features-\d+))\.js")
_MARK = 'name="generator" content="hubsae"'
_STYLES = ("page", "list", "content", "phone")
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
        if not sides:
            raise DataError("a dashboard needs a dictionary")
        circuits = check_arguments(title, circuits)
        if pairs is not None:
            pairs = pairs.checked(sides)
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
            "site.css": _site_style,
            "dark.css": partial(_asset, "dark.css"),
            "site.js": _site_script,
        }
        files |= {f"data/{part}.js": partial(_script, part, make) for part, make in data.items()}
        return cls(name, tuple(sides), files)

    def write(self, folder: str | Path, progress: bool = False) -> Path:
        """Write all files into `folder`; what an earlier site there had and this one has not is removed.

        Raises `ArtifactError` where the folder holds something else than a site.
        """
        from tqdm import tqdm

        target = check_folder(folder, self.files)
        own = (path for path in (target / "data").rglob("*.js") if not path.parent.is_symlink())
        old = tuple(name for path in own if is_part(name := path.relative_to(target).as_posix()))
        try:
            with staged(target, whole=old) as stage:
                for path, make in tqdm(self.files.items(), desc="site", unit="file", disable=not progress):
                    (stage / path).parent.mkdir(parents=True, exist_ok=True)
                    (stage / path).write_bytes(make())
        except OSError as error:
            raise ArtifactError(f"{target}: the site cannot be written ({error})") from error
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


def _place(sides: Sequence[Side], dictionary: Dictionary) -> int | None:
    """The number of a dictionary among those of a site, or None."""
    return next((i for i, side in enumerate(sides) if same_dictionary(side.dictionary, dictionary)), None)


def _script(part: str, make: Callable[[], object]) -> bytes:
    return script(part, make())


def _asset(name: str) -> bytes:
    return importlib.resources.files("hubsae.dashboard").joinpath("web", name).read_bytes()


def _site_style() -> bytes:
    """The style sheets of all pages as one; the dark colours stay apart, since the page switches them."""
    return b"\n".join(_asset(f"{name}.css") for name in _STYLES)


def _site_script() -> bytes:
    """All scripts as one, with no names of theirs to be seen outside."""
    body = "\n".join(_asset(f"{name}.js").decode("utf-8") for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}}})();\n'.encode()


def check_arguments(title: Any, circuits: Any) -> tuple[Circuit, ...]:
    """The circuits of a site as a tuple; `ConfigError` for what is no title, `DataError` for what are no circuits."""
    if title is not None and not isinstance(title, str):
        raise ConfigError(f"title={title!r}: expected a text")
    if not isinstance(circuits, Sequence) or not all(isinstance(circuit, Circuit) for circuit in circuits):
        raise DataError("circuits: expected a list of what find_feature_circuits returns")
    return tuple(circuits)


def is_ours(page: str) -> bool:
    """Whether an index.html is that of a dashboard."""
    return _MARK in page


def is_part(path: str) -> bool:
    """Whether a path of a site is that of a part of a dashboard's data."""
    return bool(_PART.fullmatch(path))


def check_folder(folder: str | Path, files: Iterable[str] = (_INDEX,)) -> Path:
    """Where a site is written, absolute; `ArtifactError` where anything else would be lost or cannot be replaced."""
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise ConfigError(f"{folder!r}: expected the path of a folder to write the site to")
    try:
        target = Path(folder).expanduser().absolute()
        if target.is_file():
            raise ArtifactError(f"{target} is a file; give a folder to write the site to")
        there = [path.name for path in target.iterdir() if not path.name.startswith(".")] if target.is_dir() else []
        index = target / _INDEX
        ours = index.is_file() and is_ours(index.read_text(encoding="utf-8", errors="replace"))
        for path in {target / part for name in files for part in (name, *map(str, Path(name).parents[:-1]))}:
            if path.is_symlink() or (path.exists() and path.is_dir() == (path.suffix in _SUFFIXES)):
                raise ArtifactError(f"{path} is a link, or no {'file' if path.suffix else 'folder'}; give a new folder")
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{str(folder)[:200]!r}: no site can be written there ({error})") from error
    if there and not ours:
        raise ArtifactError(f"{target} holds other files ({', '.join(sorted(there)[:5])}); give a new or empty folder")
    return target
