"""Files of torch.save: what comes out is what torch put in, and nothing that a file asks for is run."""

import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubsae.errors import ArtifactError
from hubsae.formats.pt_file import read_pt

FIXTURES = Path(__file__).parent / "fixtures" / "pt"
GOOD = ("state_dict.pt", "views.pt", "checkpoint.pt")
END = b"."


# A pickle by hand, since no pickler writes what an attacker writes


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return row(*map(number, values))


def name(dotted: str) -> bytes:
    module, _, what = dotted.rpartition(".")
    return f"c{module}\n{what}\n".encode()


def call(dotted: str, *args: bytes) -> bytes:
    return name(dotted) + row(*args) + b"R"


def storage(length: int = 4, key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    return row(text("storage"), name(kind), text(key), text("cpu"), number(length)) + b"Q"


def tensor(offset: int = 0, size: bytes = numbers(4), stride: bytes = numbers(1), held: bytes = storage()) -> bytes:
    return call("torch._utils._rebuild_tensor_v2", held, number(offset), size, stride, b"\x89", b"}")


def archive(path: Path, program: bytes, *, more: dict[str, bytes] | None = None, method: int = 0) -> Path:
    """A zip file as torch writes it, with four float32 in storage 0."""
    entries = {"a/data.pkl": program, "a/byteorder": b"little", "a/data/0": np.arange(4, dtype="<f4").tobytes()}
    with zipfile.ZipFile(path, "w", method) as file:
        for entry, data in (entries | (more or {})).items():
            file.writestr(entry, data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pt"


def refused(path: Path, match: str = ".") -> str:
    """The message with which a file is refused; it begins with the path and says what to do."""
    with pytest.raises(ArtifactError, match=match) as caught:
        read_pt(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 900 + len(str(path))
    return message


def arrays(content: Any) -> list[np.ndarray]:
    if isinstance(content, np.ndarray):
        return [content]
    if isinstance(content, dict):
        content = list(content.values())
    return [a for part in content for a in arrays(part)] if isinstance(content, list | tuple) else []


def test_a_state_dict_comes_out_as_torch_saved_it():
    content = read_pt(FIXTURES / "state_dict.pt")
    assert type(content) is dict
    assert set(content) == {"encoder.weight", "encoder.bias", "decoder.weight", "k", "steps", "alive"}
    np.testing.assert_array_equal(content["encoder.weight"], np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_array_equal(content["decoder.weight"], np.arange(12, dtype=np.float32).reshape(3, 4))
    assert (content["k"].shape, content["k"].dtype, int(content["k"])) == ((), np.int32, 2)
    assert (content["steps"].dtype, int(content["steps"])) == (np.int64, 7)
    assert content["alive"].dtype == bool
    assert content["alive"].tolist() == [True, False, True, True]


def test_views_of_every_layout_come_out_right():
    content, whole = read_pt(FIXTURES / "views.pt"), np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(content["whole"], whole)
    np.testing.assert_array_equal(content["turned"], whole.T)
    np.testing.assert_array_equal(content["every second"], whole[1:, ::2])
    np.testing.assert_array_equal(content["one row"], whole[2])
    np.testing.assert_array_equal(content["expanded"], [[1] * 5, [2] * 5])
    np.testing.assert_array_equal(content["half, turned"], np.arange(6).reshape(2, 3).T)
    assert (content["number"].shape, float(content["number"])) == ((), 2.5)
    assert content["empty"].shape == (0, 3)
    assert np.shares_memory(content["whole"], content["turned"])


def test_every_number_type_keeps_its_own_but_bfloat16_which_widens():
    for kind, array in read_pt(FIXTURES / "views.pt")["kinds"].items():
        assert array.dtype == np.dtype("float32" if kind == "bfloat16" else kind), kind
        np.testing.assert_array_equal(array, np.array([0, 1, 100]).astype(array.dtype), err_msg=kind)


def test_bfloat16_widens_without_a_change_of_value(path: Path):
    halves = np.arange(1 << 16, dtype="<u2")
    held = storage(1 << 16, kind="torch.BFloat16Storage")
    archive(path, tensor(size=numbers(1 << 16), held=held) + END, more={"a/data/0": halves.tobytes()})
    pairs = np.stack([np.zeros_like(halves), halves], 1)  # little-endian: the upper half stands behind
    np.testing.assert_array_equal(read_pt(path).view("<u4"), pairs.view("<u4")[:, 0])


@pytest.mark.parametrize("file", ["checkpoint.pt", "protocol4.pt"])
def test_a_checkpoint_keeps_what_stands_beside_its_weights(file: str):
    content = read_pt(FIXTURES / file)
    np.testing.assert_array_equal(content.pop("parameter"), np.ones(2, np.float32))
    assert set(content.pop("state_dict")) == {
        *("encoder.weight", "encoder.bias", "decoder.weight", "k", "steps", "alive")
    }
    assert content == {
        **{"activation": "TopK", "activation_kwargs": {"k": 32, "postact_fn": None}, "layers": [1, (2, 3), {4, 5}]},
        **{"size": (3, 4), "dtype": "torch.bfloat16", "device": "cuda:1", "large": 2**70, "loss": -0.25},
        "digest": b"\x00\xff",
    }


def test_arrays_are_read_only():
    for file in GOOD:
        found = arrays(read_pt(FIXTURES / file))
        assert found
        assert not any(array.flags.writeable for array in found)


def test_a_large_file_is_not_read_whole(path: Path):
    """Of a sparse file of 6 GB (zip64, as torch writes above 4 GB) one number is read, at its end."""
    length = 3 << 29
    program = tensor(length - 1, numbers(1), held=storage(length)) + END
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/data/0", b"")
    head, size = path.read_bytes(), 4 * length
    local, central, end = head.rindex(b"PK\x03\x04"), head.rindex(b"PK\x01\x02"), head.rindex(b"PK\x05\x06")
    listed = bytearray(head[head.index(b"PK\x01\x02") : end])
    at = central - head.index(b"PK\x01\x02")
    listed[at + 20 : at + 28], listed[at + 30 : at + 32] = b"\xff" * 8, struct.pack("<H", 20)
    listed += struct.pack("<HHQQ", 1, 16, size, size)
    stored = bytearray(head[local : head.index(b"PK\x01\x02")])
    stored[18:26] = b"\xff" * 8
    with path.open("wb") as file:
        file.write(head[:local] + stored)
        file.seek(size - 4, 1)
        file.write(struct.pack("<f", 2.5))
        start = file.tell()
        file.write(bytes(listed))
        behind = file.tell()
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(listed), start))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, behind, 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(listed), 0xFFFFFFFF, 0))
    tracemalloc.start()
    try:
        assert read_pt(path).tolist() == [2.5]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ArtifactError, match="max_bytes = 3"):
        read_pt(path, max_bytes=3)


def test_a_storage_that_is_not_aligned_reads_the_same(path: Path):
    for shift in range(4):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", tensor() + END)
            file.writestr("a/version", b"3" * shift)
            file.writestr("a/data/0", np.arange(4, dtype="<f4").tobytes())
        read = read_pt(path)
        assert read.tolist() == [0, 1, 2, 3]
        assert read.flags.aligned


@pytest.mark.parametrize(
    "dotted",
    [
        *("os.system", "posix.system", "builtins.eval", "__builtin__.eval", "builtins.getattr", "builtins.exec"),
        *("subprocess.Popen", "torch.load", "torch.hub.load", "numpy.core.multiarray._reconstruct", "pickle.loads"),
        *("collections.OrderedDict.fromkeys", "torch._utils._rebuild_tensor_v2.__globals__", "sae.config.Config"),
        *(".", ""),
    ],
)
def test_a_name_outside_the_list_is_refused_and_nothing_runs(path: Path, tmp_path: Path, dotted: str):
    trace = tmp_path / "ran"
    program = call(dotted, text(f"touch {trace}")) + END
    shown = dotted.replace("__builtin__", "builtins") or "'.'"
    assert shown in refused(archive(path, program), "nothing ran")
    module, _, what = dotted.rpartition(".")
    program = b"\x80\x04" + text(module) + text(what) + b"\x93" + row(text(f"touch {trace}")) + b"R."
    refused(archive(path, program), "nothing ran")
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(" + text("x") + b"ios\nsystem\n.",  # INST
        b"(" + name("collections.OrderedDict") + b"o.",  # OBJ
        name("collections.OrderedDict") + b")\x81.",  # NEWOBJ
        name("collections.OrderedDict") + b")}\x92.",  # NEWOBJ_EX
        *(b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00."),  # EXT1, EXT2, EXT4
        *(b"P0\n.", b"I1\n.", b"L1L\n.", b"S'a'\n.", b"F1\n.", b"\x8b\x01\x00\x00\x00\x01."),  # text, LONG4
        *(b"\x97.", b"N2.", b"N0.", b"(1.", b"]]a\x98."),  # NEXT_BUFFER, DUP, POP, POP_MARK
    ],
)
def test_an_instruction_outside_the_list_is_refused(path: Path, program: bytes):
    assert "instruction" in refused(archive(path, program), "which weights do not need")


@pytest.mark.parametrize(
    "program",
    [
        text("os.system") + row(text("ls")) + b"R",  # calls text
        name("builtins.list") + row(numbers(1)) + b"R",  # a factory is no function
        name("torch.FloatStorage") + row(number(4)) + b"R",
        name("collections.OrderedDict") + b"]R",  # arguments that are no tuple
        call("collections.OrderedDict", numbers(1)),
        call("collections.Counter", text("abc")),
        call("torch.Size", tensor()),
        call("torch.device", tensor()),
        call("builtins.set", tensor()),
        call("_codecs.encode", text("a"), text("rot13")),
        call("torch._utils._rebuild_parameter", text("a"), b"\x89", b"}"),
        call("torch._utils._rebuild_parameter", tensor()),
        call("torch._utils._rebuild_tensor_v3", *[b"N"] * 3),
        name("collections.OrderedDict") + b"}b",  # BUILD on a class
        tensor() + b"}" + text("__class__") + text("x") + b"sb",
        b"]" + text("a") + b"b",
        b"}]b",
    ],
)
def test_calls_and_attributes_outside_the_list_are_refused(path: Path, program: bytes):
    refused(archive(path, program + END))


@pytest.mark.parametrize("program", [name("torch.FloatStorage"), storage(), b"](" + name("builtins.int") + b"e"])
def test_only_plain_values_come_out(path: Path, program: bytes):
    refused(archive(path, program + END), "its pickle has")


def test_attributes_of_an_ordered_dict_are_dropped(path: Path):
    metadata = b"}" + text("_metadata") + b"}s"
    assert read_pt(archive(path, call("collections.OrderedDict") + text("a") + b"Ns" + metadata + b"b.")) == {"a": None}


@pytest.mark.parametrize(
    "what",
    [
        *(b"N", number(0), text("storage"), row(), row(text("storage")), b"]"),
        row(text("module"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4)),
        row(text("storage"), name("builtins.list"), text("0"), text("cpu"), number(4)),
        row(text("storage"), name("torch.float32"), text("0"), text("cpu"), number(4)),
        row(text("storage"), name("torch.FloatStorage"), number(0), text("cpu"), number(4)),
        row(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), b"\x88"),
        row(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4), b"N"),
    ],
)
def test_a_reference_of_another_shape_is_refused(path: Path, what: bytes):
    refused(archive(path, what + b"Q."), "storage")


@pytest.mark.parametrize("key", ["../0", "/etc/passwd", "1", "", ".", "0/../0", "0\0", "../data.pkl", "C:\\0", "٠"])
def test_a_storage_key_reaches_nothing_but_the_storages(path: Path, key: str):
    refused(archive(path, tensor(held=storage(key=key)) + END), "is not in it")


@pytest.mark.parametrize("length", [5, 3, 0, -1, 2**62, 2**64 + 4, 2**1000])
def test_a_storage_that_is_not_as_long_as_declared_is_refused(path: Path, length: int):
    refused(archive(path, tensor(held=storage(length)) + END), "has 16 bytes, where its pickle says")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        *((1, (4,), (1,)), (4, (1,), (1,)), (0, (5,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (4,)), (4, (), ())),
        *((-1, (4,), (1,)), (3, (4,), (-1,)), (0, (-1,), (1,)), (0, (-2, -2), (1, 1))),
        *((2**62, (1,), (1,)), (2**64, (4,), (1,)), (0, (2**64 + 1,), (1,)), (0, (2,), (2**62,))),
        *((0, (2**32, 2**32), (1, 1)), (0, (2,), (2**64,)), (2**1500, (1,), (1,)), (0, (3, 3), (2**63 - 1, 1))),
    ],
)
def test_a_view_outside_its_storage_is_refused(path: Path, offset: int, size: tuple, stride: tuple):
    refused(archive(path, tensor(offset, numbers(*size), numbers(*stride)) + END), "outside its storage|no sizes")


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        *((numbers(2, 2), numbers(1)), (numbers(*[1] * 33), numbers(*[1] * 33)), (b"N", numbers(1)), (text("4"), b"N")),
        *((row(b"\x88"), numbers(1)), (row(text("4")), numbers(1)), (row(b"G" + b"\x40" + bytes(7)), numbers(1))),
    ],
)
def test_sizes_that_are_none_are_refused(path: Path, size: bytes, stride: bytes):
    refused(archive(path, tensor(0, size, stride) + END), "axes|no sizes|needed")


def test_an_expanded_view_counts_at_its_full_size(path: Path):
    archive(path, tensor(0, numbers(1 << 20, 1 << 20), numbers(0, 0)) + END)
    refused(path, r"4398046511104 bytes or more, over max_bytes = 68719476736")
    assert read_pt(path, max_bytes=4 << 40).shape == (1 << 20, 1 << 20)
    archive(path, b"](" + b"".join(tensor(0, numbers(1000), numbers(0)) for _ in range(100)) + b"e.")
    assert len(read_pt(path, max_bytes=400_000)) == 100
    with pytest.raises(ArtifactError, match="max_bytes"):
        read_pt(path, max_bytes=399_999)


def test_widening_a_storage_counts_even_where_little_of_it_is_seen(path: Path):
    held = storage(8, kind="torch.BFloat16Storage")
    archive(path, tensor(size=numbers(1), held=held) + END)
    assert read_pt(path, max_bytes=32).shape == (1,)
    with pytest.raises(ArtifactError, match="32 bytes as float32, over max_bytes"):
        read_pt(path, max_bytes=31)


def test_an_empty_tensor_with_a_huge_axis_is_bounded_too(path: Path):
    archive(path, tensor(2**50, numbers(0, 2**59), numbers(2**59, 2**59)) + END)
    refused(path, "max_bytes")


def test_bytes_that_are_no_bools_become_bools(path: Path):
    held = storage(16, kind="torch.BoolStorage")
    archive(path, tensor(size=numbers(16), held=held) + END, more={"a/data/0": bytes(range(16))})
    assert read_pt(path).view(np.uint8).tolist() == [min(n, 1) for n in range(16)]


# What a small file could make large


@pytest.mark.parametrize(
    "program",
    [
        b"N" + b"q\x00" * 1_500_000 + END,  # BINPUT again and again
        b"(" * 1_500_000 + END,  # marks that nothing closes
        b"]q\x00h\x00a" * 400_000 + END,  # a list in itself
        b"]q\x00h\x00a" + END,
        b")" + b"\x85" * 1_500_000 + END,  # tuples in tuples
        b")" + b"\x85" * 100 + END,
        b"(]q\x00" + b"".join(b"](h%ch%ch%ch%ceq%c" % (i, i, i, i, i + 1) for i in range(60)) + b"t.",  # 4^60 values
        b"()q\x00" + b"".join(b"(h%ch%ch%ch%ctq%c" % (i, i, i, i, i + 1) for i in range(60)) + b"t.",
        b"}" + b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.",  # a key whose hash takes 2^60 steps
        b"}" + b")" + b"\x85" * 500_000 + b"Ns.",  # a key too deep to hash
        b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 100_000)) + b"u.",  # keys that collide
        b"X" + b"\xff" * 4 + b"a.",  # text of 4 GB
        *(b"\x8d" + b"\xff" * 8 + b"a.", b"\x8a\xff\x01.", b"\x8b\xff\xff\xff\x7f\x01.", b"\x95" + b"\xff" * 8 + b"."),
        b"N" + b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\x7f.",  # memo entries far apart
        text("a" * 900_000) + b"q\x00]" + (call("_codecs.encode", b"h\x00", text("latin1")) + b"a") * 100 + END,
        b"](" + b"N" * 10_000 + b"eq\x00]" + (call("torch.Size", b"h\x00") + b"a") * 1000 + END,
        b"(" + b"N" * 10_000 + b"tq\x00]" + (call("builtins.set", b"h\x00") + b"a") * 1000 + END,
        b"N" * 1000 + END,
        *(
            b"",
            b"N",
            END,
            b"a.",
            b"t.",
            b"R.",
            b"s.",
            b"]u.",
            b"(u.",
            b"](Nu.",
            b"}(Nu.",
            b"e.",
            b"b.",
            b"Q.",
            b"\x85.",
        ),
        *(b"q\x00.", b"h\x00.", b"\x94.", b"cos\n", b"c\xff\n\xff\n.", b"X\x01\x00\x00\x00\xff.", b"\x93.", b"\xff."),
    ],
)
def test_a_pickle_that_grows_or_is_broken_ends_soon_and_small(path: Path, program: bytes):
    archive(path, program)
    before = time.monotonic()
    refused(path)
    assert time.monotonic() - before < 10


def test_a_growing_pickle_takes_bounded_memory(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hubsae.formats.pickle_machine._MOST_STEPS", 100_000)  # a tenth, since measuring is slow
    archive(path, b"(" * 1_500_000 + END)
    tracemalloc.start()
    try:
        refused(path, "more than 100000 steps")
        assert tracemalloc.get_traced_memory()[1] < 25 << 20
    finally:
        tracemalloc.stop()


def test_a_pickle_of_many_megabytes_is_refused_unread(path: Path):
    refused(archive(path, bytes((16 << 20) + 1)), "data.pkl has 16777217 bytes")


# The archive


def test_compressed_entries_are_refused(path: Path):
    archive(path, tensor() + END, method=zipfile.ZIP_DEFLATED)
    refused(path, r"compressed or encrypted \(method 8")
    archive(path, tensor(held=storage(1 << 24)) + END, more={"a/data/0": bytes(1 << 26)}, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    refused(path, "compressed or encrypted")


def test_two_entries_of_one_name_are_refused(path: Path):
    archive(path, tensor() + END)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/data/0", bytes(16))
    refused(path, "two entries are named 'a/data/0'")


def patched(path: Path, signature: bytes, at: int, value: bytes, which: int = 0) -> None:
    """Overwrite a field of the header that is the `which`th with this signature."""
    data, place = bytearray(path.read_bytes()), -1
    for _ in range(which + 1):
        place = data.index(signature, place + 1)
    data[place + at : place + at + len(value)] = value
    path.write_bytes(data)


def test_entries_that_overlap_are_refused(path: Path):
    archive(path, tensor() + END, more={"a/data/1": bytes(16)})
    first = path.read_bytes().index(b"PK\x03\x04", 4)
    patched(path, b"PK\x01\x02", 42, struct.pack("<I", first), 2)  # the header of another name
    refused(path, "overlaps|differs")
    archive(path, tensor() + END, more={"a/data/1": bytes(16)})
    for signature, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):  # 60 bytes reach into the next entry
        patched(path, signature, at, struct.pack("<II", 60, 60), 2)
    refused(path, "'a/data/1' overlaps")
    archive(path, tensor() + END)
    for signature, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        patched(path, signature, at, struct.pack("<II", 17, 17), 2)
    refused(path, "overlaps another or the directory")


@pytest.mark.parametrize(
    ("signature", "at", "value"),
    [
        *((b"PK\x03\x04", 0, b"PK\x03\x05"), (b"PK\x03\x04", 6, b"\x01"), (b"PK\x03\x04", 8, b"\x08")),
        *((b"PK\x03\x04", 18, b"\x01"), (b"PK\x03\x04", 22, b"\x01"), (b"PK\x03\x04", 26, b"\x01")),
        *((b"PK\x03\x04", 30, b"b"), (b"PK\x03\x04", 28, b"\xff\xff"), (b"PK\x01\x02", 46, b"b")),
        *((b"PK\x01\x02", 8, b"\x01"), (b"PK\x01\x02", 10, b"\x08"), (b"PK\x01\x02", 20, b"\x01")),
        *((b"PK\x01\x02", 24, b"\xff\xff\xff\xff"), (b"PK\x01\x02", 28, b"\xff"), (b"PK\x01\x02", 42, b"\xff" * 4)),
        *((b"PK\x01\x02", 0, b"XX"), (b"PK\x01\x02", 30, b"\xff"), (b"PK\x01\x02", 32, b"\x01")),
        *((b"PK\x05\x06", 0, b"XX"), (b"PK\x05\x06", 10, b"\x02"), (b"PK\x05\x06", 10, b"\xff\xff")),
        *((b"PK\x05\x06", 12, b"\x00"), (b"PK\x05\x06", 16, b"\xff" * 4), (b"PK\x05\x06", 20, b"\x01")),
    ],
)
def test_headers_that_disagree_are_refused(path: Path, signature: bytes, at: int, value: bytes):
    archive(path, tensor() + END)
    patched(path, signature, at, value)
    refused(path)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"a/byteorder": b"big"}, "byte order b'big'"),
        ({"a/byteorder": b""}, "byte order b''"),
        ({"a/constants.pkl": b""}, "TorchScript"),
        ({"a/code/x.py": b""}, "TorchScript"),
        ({"b/data.pkl": b"N."}, "2 entries"),
    ],
)
def test_archives_of_another_kind_are_refused(path: Path, more: dict[str, bytes], match: str):
    refused(archive(path, tensor() + END, more=more), match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty file. Fetch"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"a":1}         ', "safetensors"),
        (b"\x80\x02}q\x00.", "before 1.6.*torch.save"),
        (bytes(257) + b"ustar\0" + bytes(300), "before 1.6.*torch.save"),
        (b"hello", "begins with b'hello'"),
        (b"PK\x03\x04", "no end of a zip file"),
        (b"PK\x05\x06" + bytes(18), "begins with"),
    ],
)
def test_what_is_no_file_of_torch_is_called_what_it_is(path: Path, content: bytes, match: str):
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        *(("legacy.pt", "before 1.6"), ("script.pt", "TorchScript"), ("module.pt", "'__main__.Coder'")),
        *(("float8.pt", "'torch.float8_e4m3fn'"), ("complex.pt", "'torch.ComplexFloatStorage'")),
    ],
)
def test_other_files_of_torch_are_refused_by_name(file: str, match: str):
    refused(FIXTURES / file, match)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path):
    refused(tmp_path, "not a file")
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path / ("n" * 300), "not readable")


def test_every_truncation_is_refused(path: Path):
    whole = (FIXTURES / "state_dict.pt").read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        refused(path)


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """The file with a few bytes changed, cut, doubled or put elsewhere; half of the time in its pickle."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        top = len(data) if rng.random() < 0.5 else min(1500, len(data))
        at, to, length = (int(rng.integers(0, high)) for high in (top + 1, top + 1, 9))
        match int(rng.integers(0, 8)):
            case 0:
                del data[at : at + length]
            case 1:
                data[at:at] = data[to : to + length]
            case 2:
                data[at : at + length] = data[to : to + length]
            case 3:
                data[at:] = b"" if rng.random() < 0.1 else data[at:]
            case _:
                data[at : at + 1] = bytes([rng.integers(0, 256)]) if rng.random() < 0.7 else b"\xff"
    return bytes(data)


def survives(path: Path, data: bytes) -> bool:
    """Whether the file is read; if so, every number of every array can be read as well."""
    path.write_bytes(data)
    try:
        content = read_pt(path, max_bytes=1 << 20)
    except ArtifactError:
        return False
    for array in arrays(content):
        assert array.nbytes <= 1 << 20
        assert not array.flags.writeable
        array.tobytes()
    return True


@pytest.mark.parametrize("file", GOOD)
def test_a_damaged_file_is_refused_or_read_within_bounds(path: Path, file: str):
    rng, whole = np.random.default_rng(0), (FIXTURES / file).read_bytes()
    outcomes = [survives(path, mutated(whole, rng)) for _ in range(1000)]
    assert 0 < sum(outcomes) < len(outcomes)
