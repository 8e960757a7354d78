"""Rows on disk: safetensors shards with a manifest that says of which model, texts and options they are."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np

from hubsae.distributed import ranks
from hubsae.errors import DataError
from hubsae.identity import BaseModel
from hubsae.sites import Site
from hubsae.store import read_arrays, read_json, staged, write_arrays, write_json
from hubsae.tokens import Chunk, groups

MANIFEST = "manifest.json"
_FORMAT_VERSION = 1
_SHARD_BYTES = 64 << 20
_PROBE_VALUES = 16


class ActivationCache:
    """A folder of shards, each with the rows of a run of chunks.

    A shard is written whole before the manifest names it, so a harvest that was stopped goes on after the last one.
    Of several processes the first one writes; all have to see the folder.
    """

    def __init__(
        self, folder: Path, models: Sequence[BaseModel], sites: Sequence[Site], widths: Sequence[int], options: dict
    ):
        self.folder = folder.expanduser()
        self._width = sum(widths)
        self._header = {
            "format_version": _FORMAT_VERSION,
            "models": [{**model.to_dict(), "requested_revision": None} for model in models],
            "sites": [str(site) for site in sites],
            "widths": list(widths),
            "options": options,
        }

    def _open(self) -> dict:
        """The manifest, empty for a new folder; `DataError` if it belongs to something else."""
        others = ranks()
        if others.size == 1:
            return self._manifest()
        found = self._manifest() if others.first else {}
        others.total(0)  # the others wait until it is there
        found = found or self._manifest()
        if not others.agree(json.dumps(found, sort_keys=True)):
            raise DataError(
                f"{self.folder}: the processes find different things there; give a folder that all of them see"
            )
        return found

    def _manifest(self) -> dict:
        path = self.folder / MANIFEST
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise DataError(f"{self.folder}: not empty and no activation cache; give an empty or new cache_dir")
            self._save({**self._header, "shards": [], "complete": False, "probe": []})  # claims it for these settings
        manifest = read_json(path)
        if not isinstance(manifest.get("shards"), list) or not all(map(_is_shard, manifest["shards"])):
            raise DataError(f"{path}: damaged; delete this cache_dir")
        for key, wanted in self._header.items():
            if manifest.get(key) != wanted:
                raise DataError(
                    f"{self.folder}: this cache was made with {key} {_short(manifest.get(key), wanted)}; "
                    "give another cache_dir or delete this one"
                )
        return manifest

    def blocks(
        self, stream: Iterable[Chunk], compute: Callable[[list[Chunk]], np.ndarray], skip: int = 0
    ) -> Iterator[np.ndarray]:
        """The rows of `stream` in order: read where a shard has them, computed and kept where not.

        The first `skip` blocks are passed at once, and not given.
        """
        found = self._blocks(self._open(), iter(stream), compute, skip)
        for _ in islice(found, skip):
            pass
        return found

    def _blocks(
        self, manifest: dict, stream: Iterator[Chunk], compute: Callable[[list[Chunk]], np.ndarray], skip: int
    ) -> Iterator[np.ndarray]:
        for number, shard in enumerate(manifest["shards"]):
            group = list(islice(stream, shard["n_chunks"]))
            if len(group) != shard["n_chunks"] or _digest(group) != shard["chunks_sha256"]:
                raise self._other("texts", f"from chunk {sum(s['n_chunks'] for s in manifest['shards'][:number])} on")
            if number == 0:
                self._check_probe(manifest, compute(group[:1]))
            yield np.empty((0, self._width), np.float32) if number < skip else self._read(shard)
        if manifest["complete"]:
            if next(stream, None) is not None:
                raise self._other("texts", "it is complete, and these texts go on")
            return
        for group in groups(stream, self._width, _SHARD_BYTES):
            rows = compute(group)
            if not manifest["shards"]:
                manifest["probe"] = probe(compute(group[:1]))
            manifest["shards"].append(self._write(len(manifest["shards"]), group, rows, manifest))
            yield rows
        if manifest["shards"]:
            manifest["complete"] = True
            self._save(manifest)

    def all_blocks(self, skip: int = 0) -> Iterator[np.ndarray]:
        """The rows of a complete cache in order, from block `skip` on, without the texts that they came from."""
        manifest = self._open()
        if not manifest["complete"]:
            raise DataError(f"{self.folder}: this cache is not complete yet")
        yield from map(self._read, manifest["shards"][skip:])

    def _write(self, number: int, group: list[Chunk], rows: np.ndarray, manifest: dict) -> dict:
        name = f"rows-{number:05d}.safetensors"
        shard = {"file": name, "n_rows": len(rows), "n_chunks": len(group), "chunks_sha256": _digest(group)}
        shard["rows_sha256"] = _rows_digest(rows)
        if not ranks().first:
            return shard
        with staged(self.folder.absolute()) as stage:
            write_arrays(stage / name, {"rows": mx.array(rows)}, {"format": "mlx", "library": "hubsae"})
        self._save({**manifest, "shards": [*manifest["shards"], shard]})
        return shard

    def _save(self, manifest: dict) -> None:
        if not ranks().first:
            return
        with staged(self.folder.absolute()) as stage:
            write_json(stage / MANIFEST, manifest)

    def _read(self, shard: dict) -> np.ndarray:
        name = shard["file"]
        if Path(name).name != name or not (self.folder / name).is_file():
            raise DataError(f"{self.folder}: shard {name!r} of the manifest is missing; delete this cache_dir")
        rows = read_arrays(self.folder / name).get("rows")
        array = None if rows is None else np.array(rows)
        if (
            array is None
            or array.shape != (shard["n_rows"], self._width)
            or _rows_digest(array) != shard["rows_sha256"]
        ):
            raise DataError(f"{self.folder / name}: not the rows that the manifest names; delete this cache_dir")
        return array

    def _check_probe(self, manifest: dict, rows: np.ndarray) -> None:
        """The first chunk's rows, computed anew: catches other weights where no file ids are known."""
        if not same_probe(probe(rows), manifest["probe"]):
            raise self._other("a model", "its activations differ on the first text")

    def _other(self, what: str, why: str) -> DataError:
        return DataError(
            f"{self.folder}: this cache holds activations of other {what.removeprefix('a ')} ({why}); "
            "give another cache_dir or delete this one"
        )


def probe(rows: np.ndarray) -> list[float]:
    """Some values of the last row, in units of its root mean square."""
    last = rows[-1].astype(np.float64)
    picked = last[np.linspace(0, len(last) - 1, _PROBE_VALUES).astype(int)]
    return [round(float(v), 5) for v in picked / max(np.sqrt(np.mean(last**2)), 1e-12)]


def same_probe(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two probes are of the same row, computed by the same weights."""
    return len(one) == len(other) and np.allclose(one, other, rtol=2e-2, atol=2e-2)


def _rows_digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, np.float32).data).hexdigest()


def _is_shard(entry: object) -> bool:
    """Whether a manifest's entry has what a shard needs."""
    kinds = {"file": str, "n_rows": int, "n_chunks": int, "chunks_sha256": str, "rows_sha256": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def _digest(group: Sequence[Chunk]) -> str:
    digest = hashlib.sha256()
    for chunk in (part for whole in group for part in (whole, *whole.partners)):
        digest.update(len(chunk.ids).to_bytes(4, "big") + chunk.ids.tobytes() + chunk.keep.tobytes())
    return digest.hexdigest()


def _short(found: object, wanted: object) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in wanted if found.get(k) != wanted[k]]
        return "; ".join(f"{k} {found.get(k)}, not {wanted[k]}" for k in keys[:3])
    return f"{found}, not {wanted}"
