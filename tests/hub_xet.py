"""Xet storage for the test Hub: a folder that the real `hf_xet` writes and reads as it would the real storage.

A token route that answers with `local://FOLDER` makes `hf_xet` keep its chunks and its lists of files (shards) there.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<32sII8x")  # of a shard, of whatever kind: a name, flags, a count
HEADER_SIZE, PART_SIZE, END = 48, 48, b"\xff" * 32
HAS_SUMS, HAS_SHA256 = 1 << 31, 1 << 30


def hexadecimal(name: bytes) -> str:
    """Xet writes its names as four numbers, each with its last byte first."""
    return "".join(name[start : start + 8][::-1].hex() for start in (0, 8, 16, 24))


def files_of(shard: bytes) -> Iterator[tuple[str, str]]:
    """sha256 and Xet's own name of the files that a shard describes (https://huggingface.co/docs/xet/shard)."""
    at = HEADER_SIZE
    while True:
        name, flags, parts = RECORD.unpack_from(shard, at)
        if name == END:
            return
        at += RECORD.size + parts * PART_SIZE * (2 if flags & HAS_SUMS else 1)
        if flags & HAS_SHA256:
            yield hexadecimal(shard[at : at + 32]), hexadecimal(name)
            at += RECORD.size


class XetStorage:
    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, dict[str, str]()  # by sha256

    @property
    def url(self) -> str:
        return f"local://{self.folder}"

    def name_of(self, sha256: str) -> str | None:
        """Xet's own name of a file, if it is here."""
        if sha256 not in self.names:
            self.names.update(pair for path in self.folder.rglob("*.mdb") for pair in files_of(path.read_bytes()))
        return self.names.get(sha256)

    def read(self, name: str, size: int) -> bytes:
        """A file, put together again from its chunks."""
        hf_xet: Any = import_module("hf_xet")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            with hf_xet.XetSession().new_file_download_group(endpoint=self.url) as group:
                group.start_download_file(hf_xet.XetFileInfo(name, size), str(path))
            return path.read_bytes()
