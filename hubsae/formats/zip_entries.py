"""The entries of a zip file that is not compressed, checked before a byte of them is used."""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hubsae.errors import ArtifactError

SAVE_AGAIN = "Where you trust it, load it in torch and torch.save its state dict again"
FETCH_AGAIN = "Fetch the file again"
_MOST_ENTRIES = 100_000
_MOST_DIRECTORY = 32 << 20  # bytes of the list of a zip file's entries


@dataclass(frozen=True)
class _Entry:
    """A file in the archive, as its directory tells it."""

    name: str
    method: int
    flags: int
    packed: int
    size: int
    header: int  # where its local header begins


def _directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Where the list of entries begins and ends, and their number. torch writes no comment, so the place is known."""
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != b"PK\x05\x06" or data[end + 20 :] != b"\0\0":
        raise ArtifactError(f"no end of a zip file after {len(data)} bytes: cut short or changed. {FETCH_AGAIN}")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    if end >= 76 and data[end - 20 : end - 16] == b"PK\x06\x07":  # fields of 64 bits stand before, in 76 bytes
        end -= 76
        if data[end : end + 4] != b"PK\x06\x06" or struct.unpack_from("<Q", data, end + 64) != (end,):
            raise ArtifactError(f"its zip64 end record is not where it should be. {FETCH_AGAIN}")
        count, size, start = struct.unpack_from("<QQQ", data, end + 32)
    if start + size != end:
        raise ArtifactError(f"its directory, {size} bytes at {start}, does not end at {end}. {FETCH_AGAIN}")
    if count > _MOST_ENTRIES or size > _MOST_DIRECTORY:
        raise ArtifactError(f"{count} entries in a directory of {size} bytes, too many to be weights. {SAVE_AGAIN}")
    return start, end, count


def zip_entries(data: mmap.mmap) -> dict[str, np.ndarray]:
    """The bytes of each entry by name, as read-only views; no two of them share a byte, and none is compressed."""
    start, end, count = _directory(data)
    listed, at = [], start
    for _ in range(count):
        entry, at = _listed(data, at)
        listed.append(entry)
    if at != end:
        raise ArtifactError(f"its directory ends at {at}, not at {end}. {FETCH_AGAIN}")
    if any(entry.name.partition("/")[2].startswith(("constants.pkl", "code/")) for entry in listed):
        raise ArtifactError(f"a TorchScript program, not weights. {SAVE_AGAIN}")
    whole, free, entries = np.frombuffer(data, np.uint8), 0, {}
    for entry in sorted(listed, key=lambda e: e.header):
        first = _first_byte(data, entry)
        if entry.name in entries:
            raise ArtifactError(f"two entries are named {_shown(entry)}. {SAVE_AGAIN}")
        if entry.header < free or first + entry.size > start:
            raise ArtifactError(f"the entry {_shown(entry)} overlaps another or the directory. {FETCH_AGAIN}")
        free = first + entry.size
        entries[entry.name] = whole[first:free]
    return entries


def _listed(data: mmap.mmap, at: int) -> tuple[_Entry, int]:
    """An entry of the directory, and where the next one begins."""
    fields = struct.unpack_from("<I2xHHH8xIIHHH8xI", data, at)
    signature, _, flags, method, packed, size, name_length, extra_length, note_length, header = fields
    if signature != 0x02014B50:
        raise ArtifactError(f"no directory entry at byte {at}. {FETCH_AGAIN}")
    extra = at + 46 + name_length
    name = data[at + 46 : extra].decode()
    wide = _wide_fields(data[extra : extra + extra_length])
    size, packed, header = (next(wide) if value == 0xFFFFFFFF else value for value in (size, packed, header))
    return _Entry(name, method, flags, packed, size, header), extra + extra_length + note_length


def _wide_fields(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers of an entry's zip64 field; it raises `ValueError` where one is missing."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            yield from (number for (number,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8]))
        at += 4 + length
    raise ValueError("a zip64 size is missing")


def _first_byte(data: mmap.mmap, entry: _Entry) -> int:
    """Where an entry's content begins; it is stored as it is, and its own header says what the directory says."""
    if entry.method or entry.flags & ~0x808 or entry.packed != entry.size:  # 0x808: sizes behind the data, UTF-8 names
        raise ArtifactError(
            f"the entry {_shown(entry)} is compressed or encrypted (method {entry.method}, flags "
            f"{entry.flags:#x}), which torch never does and which could hide any amount of data. {SAVE_AGAIN}"
        )
    fields = struct.unpack_from("<IHHH8xIIHH", data, entry.header)
    signature, _, flags, method, packed, size, name_length, extra_length = fields
    name = entry.header + 30
    sizes = {entry.size, 0xFFFFFFFF} | ({0} if flags & 8 else set())
    same = (signature, flags, method) == (0x04034B50, entry.flags, 0) and {packed, size} <= sizes
    if not same or data[name : name + name_length] != entry.name.encode():
        raise ArtifactError(f"the entry {_shown(entry)} differs from what the directory says. {FETCH_AGAIN}")
    return name + name_length + extra_length


def _shown(entry: _Entry) -> str:
    """A name in a message, never long."""
    return repr(entry.name[:80])
