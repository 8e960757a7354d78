"""Content of `torch.save` files without torch, and without running what they ask for."""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.pickle_machine import run_pickle
from hubsae.formats.zip_entries import FETCH_AGAIN, SAVE_AGAIN, zip_entries

_MOST_PICKLE = 16 << 20  # bytes; tensors are stored beside the pickle, so a large model's has about one
_DAMAGE = (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, struct.error)


def read_pt(path: Path, *, max_bytes: int = 64 << 30) -> Any:
    """The content of a `torch.save` file as dicts, lists, tuples, sets, numbers, strings and read-only NumPy arrays.

    For files in torch's zip format (torch >= 1.6). No code in the file runs. Arrays are views of the file, read from
    disk when used, so it has to stay as it is meanwhile; copies are only bfloat16, widened to float32, bool, and what
    another program packed out of line.
    Dtypes and devices come as text (`"torch.float32"`, `"cuda:0"`). `max_bytes` bounds the arrays together, with
    expanded ones at their full size. Checksums are not verified, since torch may leave them out. Raises
    `ArtifactError` for everything else: other formats, damage, compression, classes that weights do not need.
    """
    try:
        if not path.exists():
            raise ArtifactError("no such file")
        if not path.is_file():
            raise ArtifactError("not a file; give the path of one that torch.save wrote")
        if not path.stat().st_size:
            raise ArtifactError(f"an empty file. {FETCH_AGAIN}")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_kind(data)
        entries = zip_entries(data)
        return run_pickle(_pickle(entries), _storages(entries), max_bytes)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except MemoryError as error:
        raise ArtifactError(f"{path}: widening bfloat16 needs more memory than is free; {error}") from error
    except OSError as error:
        raise ArtifactError(f"{path}: not readable ({error.strerror or error})") from error
    except _DAMAGE as error:
        raise ArtifactError(f"{path}: damaged ({type(error).__name__}: {str(error)[:200]}). {FETCH_AGAIN}") from error


def _check_kind(data: mmap.mmap) -> None:
    """Refuse by name what people give as a .pt file and is none."""
    head = data[:512]
    text = head.lstrip().lower()
    if head.startswith(b"PK\x03\x04"):
        return
    if head.startswith(b"version https://git-lfs"):
        raise ArtifactError("a Git LFS pointer, not the file it stands for. Run: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ArtifactError("a web page, not the file it should show. Download it again, by its direct address")
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < len(data):
        raise ArtifactError("a safetensors file. Name it .safetensors and load it as one")
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        raise ArtifactError(f"a pickle or tar file, as torch wrote before 1.6; it is not read here. {SAVE_AGAIN}")
    raise ArtifactError(f"not written by torch.save: it begins with {head[:16]!r}. {FETCH_AGAIN}, or give another")


def _pickle(entries: dict[str, np.ndarray]) -> bytes:
    """The program of the archive, after what surrounds it has been checked."""
    root = _root(entries)
    order = entries.get(f"{root}/byteorder", np.frombuffer(b"little", np.uint8))[:16].tobytes()
    if order != b"little":
        raise ArtifactError(
            f"written with byte order {order!r}; only 'little' is read. {SAVE_AGAIN} on another machine"
        )
    program = entries[f"{root}/data.pkl"]
    if program.size > _MOST_PICKLE:
        raise ArtifactError(f"its data.pkl has {program.size} bytes, more than {_MOST_PICKLE}. {SAVE_AGAIN}")
    return program.tobytes()


def _root(entries: dict[str, np.ndarray]) -> str:
    roots = [name[: -len("/data.pkl")] for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ArtifactError(
            f"a zip file with {len(roots)} entries */data.pkl, where torch.save writes one. {SAVE_AGAIN}"
        )
    return roots[0]


def _storages(entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bytes by storage key. Keys are only ever looked up here, so none of them leads to another file."""
    prefix = f"{_root(entries)}/data/"
    return {name.removeprefix(prefix): raw for name, raw in entries.items() if name.startswith(prefix)}
