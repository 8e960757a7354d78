"""A small machine for the pickles inside `torch.save` files.

A pickle is a program, so none is given to Python's unpickler. This machine knows the few instructions that weights
need, looks names up in a table of its own and imports nothing; every step, string and view is bounded before it is
made. What else a file asks for is refused.
"""

import math
import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.zip_entries import FETCH_AGAIN, SAVE_AGAIN

_MOST_STEPS = 1_000_000  # about 30 for a tensor
_NUMBER_KEY_STEPS = 50  # hashes of numbers can be made to collide, so few of them may be keys; those of text cannot
_DEEPEST = 64
_MOST_AXES = 32

_KINDS = {  # of torch's dtypes, as NumPy reads them
    **{f"float{8 * n}": f"<f{n}" for n in (2, 4, 8)},
    **{f"{sign}int{8 * n}": f"<{sign or 'i'}{n}" for n in (1, 2, 4, 8) for sign in ("", "u")},
    "bool": "?",
    "bfloat16": "<u2",  # the upper half of a float32; widened when read
}
_DTYPES = {f"torch.{kind}": kind for kind in _KINDS}
_STORAGES = {
    "torch.storage.UntypedStorage": None,
    **{f"torch.{name}Storage": kind for name, kind in (("Double", "float64"), ("Float", "float32"))},
    **{f"torch.{name}Storage": kind for name, kind in (("Half", "float16"), ("BFloat16", "bfloat16"))},
    **{f"torch.{name}Storage": kind for name, kind in (("Long", "int64"), ("Int", "int32"), ("Short", "int16"))},
    **{f"torch.{name}Storage": kind for name, kind in (("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool"))},
}
_FACTORIES = {f"builtins.{name}" for name in ("int", "float", "str", "bool", "list", "tuple", "dict")}
_SCALARS = {str, bytes, int, float, bool, type(None)}
_OPS = {op.code: op.name for op in pickletools.opcodes}
_NUMBERS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}
_INDICES = {"BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I", "PROTO": "<B", "FRAME": "<Q"}
_LENGTHS = {"BINUNICODE": "<I", "SHORT_BINUNICODE": "<B", "BINBYTES": "<I", "SHORT_BINBYTES": "<B", "LONG1": "<B"}


def run_pickle(program: bytes, storages: dict[str, np.ndarray], max_bytes: int) -> Any:
    """What the program leaves: plain values and arrays, views of `storages` (bytes by key) where possible."""
    content = _Machine(storages, max_bytes).run(program)
    _check_tree(content)
    return content


@dataclass(frozen=True)
class _Name:
    """A name of the tables here, where a pickle would have the thing itself."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    raw: np.ndarray
    kind: str | None  # None: the tensor says


def _instructions(program: bytes) -> Iterator[tuple[str, Any]]:
    """Names and arguments, until STOP. The standard library's reader would unescape text, and warn about it."""
    at, name = 0, ""
    while name != "STOP":
        arg: Any = None
        name, at = _OPS[chr(program[at])], at + 1
        if layout := _NUMBERS.get(name) or _INDICES.get(name) or _LENGTHS.get(name):
            (arg,) = struct.unpack_from(layout, program, at)
            at += struct.calcsize(layout)
        if name in _LENGTHS:
            arg, at = program[at : at + arg], at + arg
            if at > len(program):
                raise ArtifactError(f"its pickle ends within {name}. {FETCH_AGAIN}")
            if name == "LONG1":
                arg = int.from_bytes(arg, "little", signed=True)
            elif name.endswith("UNICODE"):
                arg = arg.decode("utf-8", "surrogatepass")
        elif name == "GLOBAL":
            middle = program.index(b"\n", at)
            end = program.index(b"\n", middle + 1)
            arg, at = f"{program[at:middle].decode()}.{program[middle + 1 : end].decode()}", end + 1
        yield name, arg


@dataclass
class _Machine:
    """Runs a pickle over plain values. `storages`: bytes by key."""

    storages: dict[str, np.ndarray]
    max_bytes: int
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)  # stacks that wait for their mark
    memo: dict[int, Any] = field(default_factory=dict)
    read: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    steps: int = 0
    claimed: int = 0  # bytes of arrays
    widened: int = 0  # bytes of copies, which may be of more than the arrays show

    def run(self, program: bytes) -> Any:
        """What the program leaves."""
        for name, arg in _instructions(program):
            self.spend(1)
            if name in _NUMBERS or name in _LENGTHS:
                self.stack.append(arg)
            elif step := _STEPS.get(name):
                step(self, arg)
            else:
                raise ArtifactError(f"its pickle has the instruction {name}, which weights do not need. {SAVE_AGAIN}")
        if len(self.stack) != 1 or self.below:
            raise ArtifactError(f"its pickle leaves {len(self.stack)} values, not one. {FETCH_AGAIN}")
        return self.stack.pop()

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > _MOST_STEPS:
            raise ArtifactError(f"its pickle takes more than {_MOST_STEPS} steps, too many for weights. {SAVE_AGAIN}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise ArtifactError(f"its pickle takes from an empty stack. {FETCH_AGAIN}")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """All values since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def name(self, name: str) -> None:
        """Push what stands for a name, or refuse it; nothing is imported."""
        name = "builtins." + name.removeprefix("__builtin__.") if name.startswith("__builtin__.") else name
        if name not in _DTYPES and name not in _CALLS and name not in _STORAGES and name not in _FACTORIES:
            raise ArtifactError(f"it names {_short(name)}, which is not read here; nothing ran. {SAVE_AGAIN}")
        self.push(name if name in _DTYPES else _Name(name))

    def call(self) -> None:
        """A listed name with its arguments. Long ones cost steps, since a memo gives them many times for little."""
        called, args = self.pop(2)
        if type(called) is not _Name or called.name not in _CALLS or type(args) is not tuple:
            raise ArtifactError(f"it calls {_short(called)} with {_short(args)}; nothing ran. {SAVE_AGAIN}")
        self.spend(sum(len(arg) for arg in (args, *args[:8]) if type(arg) in (str, list, tuple, dict)))
        try:
            self.push(_CALLS[called.name](self, *args))
        except (TypeError, IndexError) as error:
            raise ArtifactError(f"{called.name} takes other arguments than {_short(args)}. {FETCH_AGAIN}") from error

    def append(self, items: list[Any] | tuple[Any, ...]) -> None:
        _of(self.stack[-1], list).extend(items)

    def add(self, items: list[Any]) -> None:
        _of(self.stack[-1], set).update(self.keys(items))

    def set_items(self, items: list[Any] | tuple[Any, ...]) -> None:
        _of(self.stack[-1], dict).update(zip(self.keys(items[::2]), items[1::2], strict=True))

    def keys(self, keys: list[Any] | tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
        """The same, if each is a scalar or a short tuple of them: the hash of anything deeper may take for ever."""
        for key in keys:
            parts = key if type(key) is tuple and len(key) <= 16 else (key,)
            if any(type(part) not in _SCALARS for part in parts):
                raise ArtifactError(f"{_short(key)} is a key, where text and numbers can be. {SAVE_AGAIN}")
            if type(key) not in (str, bytes):
                self.spend(_NUMBER_KEY_STEPS)
        return keys

    def build(self) -> None:
        """Attributes of an OrderedDict, such as a state dict's _metadata: they are dropped. No other object has any."""
        target, state = self.pop(2)
        if type(target) is not dict or type(state) is not dict:
            raise ArtifactError(f"it sets attributes of {_short(target)}; nothing ran. {SAVE_AGAIN}")
        self.push(target)

    def storage(self) -> None:
        """A storage from ("storage", type, key, device, length)."""
        (what,) = self.pop(1)
        if type(what) is not tuple or list(map(type, what)) != [str, _Name, str, str, int] or what[0] != "storage":
            raise ArtifactError(f"{_short(what)} is no reference to a tensor's storage. {SAVE_AGAIN}")
        _, named, key, _, length = what
        if named.name not in _STORAGES:
            raise ArtifactError(f"{_short(named.name)} is no type of storage. {SAVE_AGAIN}")
        if key not in self.storages:
            raise ArtifactError(f"the storage {_short(key)} is not in it. {FETCH_AGAIN}")
        kind, raw = _STORAGES[named.name], self.storages[key]
        size = length * (_width(kind) if kind else 1)
        if size != raw.size:
            raise ArtifactError(
                f"the storage {_short(key)} has {raw.size} bytes, where its pickle says {_short(size)}. {FETCH_AGAIN}"
            )
        self.push(_Storage(key, raw, kind))

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any, dtype: Any = None) -> np.ndarray:
        """A view of a storage with no element outside it. `more`: requires_grad, hooks, signs of a complex tensor."""
        kind = _DTYPES[_of(dtype, str)] if dtype is not None else _of(storage, _Storage).kind
        if type(storage) is not _Storage or not kind or storage.kind not in (None, kind):
            raise ArtifactError(f"a tensor of {_short(dtype)} in {_short(storage)}. {SAVE_AGAIN}")
        if len(more) > 3 or (len(more) == 3 and _of(more[2], dict, type(None))):
            raise ArtifactError(f"a tensor that is negated, conjugated or otherwise special. {SAVE_AGAIN}")
        if not len(_of(size, tuple)) == len(_of(stride, tuple)) <= _MOST_AXES:
            raise ArtifactError(f"a tensor with {len(size)} axes and {len(stride)} strides. {FETCH_AGAIN}")
        if any(type(n) is not int or not 0 <= n < 1 << 60 for n in (offset, *size, *stride)):
            raise ArtifactError(
                f"a tensor {_short(size)} at {_short(offset)} with stride {_short(stride)}, which are no sizes. "
                f"{FETCH_AGAIN}"
            )
        last, held = offset + sum(max(n - 1, 0) * s for n, s in zip(size, stride, strict=True)), storage.raw.size
        if math.prod(size) and last >= held // _width(kind):
            raise ArtifactError(
                f"a tensor {_short(size)} at {offset} with stride {_short(stride)} ends outside its storage of "
                f"{held // _width(kind)} numbers. {FETCH_AGAIN}"
            )
        self.claimed += math.prod(max(n, 1) for n in size) * (4 if kind == "bfloat16" else _width(kind))
        if self.claimed > self.max_bytes:
            raise ArtifactError(
                f"its arrays take {_short(self.claimed)} bytes or more, over max_bytes = {self.max_bytes}; raise that "
                "if they are meant to"
            )
        values = self.values(storage, kind)
        width = values.itemsize
        if not math.prod(size):
            return values[:0].reshape(size)
        steps = [s * width if n > 1 else width for n, s in zip(size, stride, strict=True)]
        return np.ndarray(size, values.dtype, values, offset * width, steps)  # NumPy checks the bounds once more

    def values(self, storage: _Storage, kind: str) -> np.ndarray:
        """A storage's numbers, read-only: a view where possible, and copied at most once."""
        if (storage.key, kind) in self.read:
            return self.read[storage.key, kind]
        raw = storage.raw[: storage.raw.size // _width(kind) * _width(kind)]
        if raw.ctypes.data % _width(kind):  # torch aligns to 64 bytes; who packs again may not
            raw = raw.copy()
        values = raw.view(_KINDS[kind])
        if kind == "bfloat16":
            self.widened += 2 * raw.size
            if self.widened > self.max_bytes:
                raise ArtifactError(f"its bfloat16 take {self.widened} bytes as float32, over max_bytes; raise that")
            wide = values.astype("<u4")
            wide <<= 16
            values = wide.view("<f4")
        elif kind == "bool":
            values = raw != 0  # bytes other than 0 and 1 are no bools to NumPy
        values.flags.writeable = False
        self.read[storage.key, kind] = values
        return values


def _width(kind: str) -> int:
    return np.dtype(_KINDS[kind]).itemsize


def _of(value: Any, *types: type) -> Any:
    """The value, if it is exactly of one of these types."""
    if type(value) not in types:
        raise ArtifactError(
            f"its pickle has {_short(value)}, where {' or '.join(t.__name__.strip('_') for t in types)} is needed. "
            f"{SAVE_AGAIN}"
        )
    return value


def _short(value: Any) -> str:
    """A value in a message: never long, and never slow where it holds itself many times."""
    if type(value) in (tuple, list):
        return f"({', '.join(type(v).__name__ if type(v) in (tuple, list) else _short(v) for v in value[:8])})"
    if type(value) is _Name:
        return value.name
    if type(value) not in _SCALARS:
        return f"a {type(value).__name__.strip('_')}"
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 100 else text[:100] + "…"


def _check_tree(content: Any) -> None:
    """Refuse what cannot be walked through: too deep, holding itself, or many times larger than its file."""
    waiting, seen = [(content, 0)], 1
    while waiting:
        value, depth = waiting.pop()
        if type(value) in (dict, list, tuple, set):
            seen += len(value)
            if seen > _MOST_STEPS or depth > _DEEPEST:
                raise ArtifactError(f"more than {_DEEPEST} levels or {_MOST_STEPS} values. {SAVE_AGAIN}")
            waiting += [(v, depth + 1) for v in (value.values() if type(value) is dict else value)]
        elif type(value) not in _SCALARS:
            _of(value, np.ndarray)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": lambda machine, *args: machine.tensor(*args),
    "torch._utils._rebuild_tensor_v2": lambda machine, *args: machine.tensor(*args),
    "torch._utils._rebuild_tensor_v3": lambda machine, *args: machine.tensor(*args[:6], *args[7:], dtype=args[6]),
    "torch._utils._rebuild_parameter": lambda machine, data, _grad, _hooks: _of(data, np.ndarray),
    "torch._utils._rebuild_parameter_with_state": lambda machine, data, _grad, _hooks, _state: _of(data, np.ndarray),
    "torch.Size": lambda machine, axes: tuple(_of(axes, tuple, list)),
    "torch.device": lambda machine, *parts: ":".join(str(_of(part, str, int)) for part in parts[:2]),
    "collections.OrderedDict": lambda machine: {},
    "collections.defaultdict": lambda machine, _factory=None: {},
    "collections.Counter": lambda machine, counts: dict(_of(counts, dict)),
    "builtins.set": lambda machine, items: set(machine.keys(_of(items, list, tuple))),
    "_codecs.encode": lambda machine, text, encoding: _of(text, str).encode(_LATIN[_of(encoding, str)]),
}
_LATIN = {"latin1": "latin1"}  # how bytes are written before protocol 3
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, arg: None,
    "FRAME": lambda machine, arg: None,
    "STOP": lambda machine, arg: None,
    "NONE": lambda machine, arg: machine.push(None),
    "NEWTRUE": lambda machine, arg: machine.push(True),
    "NEWFALSE": lambda machine, arg: machine.push(False),
    "EMPTY_TUPLE": lambda machine, arg: machine.push(()),
    "EMPTY_LIST": lambda machine, arg: machine.push([]),
    "EMPTY_DICT": lambda machine, arg: machine.push({}),
    "EMPTY_SET": lambda machine, arg: machine.push(set()),
    "TUPLE1": lambda machine, arg: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, arg: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, arg: machine.push(machine.pop(3)),
    "TUPLE": lambda machine, arg: machine.push(tuple(machine.to_mark())),
    "MARK": lambda machine, arg: machine.mark(),
    "APPEND": lambda machine, arg: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, arg: machine.append(machine.to_mark()),
    "SETITEM": lambda machine, arg: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, arg: machine.set_items(machine.to_mark()),
    "ADDITEMS": lambda machine, arg: machine.add(machine.to_mark()),
    "BINPUT": lambda machine, arg: machine.put(arg),
    "LONG_BINPUT": lambda machine, arg: machine.put(arg),
    "MEMOIZE": lambda machine, arg: machine.put(len(machine.memo)),
    "BINGET": lambda machine, arg: machine.push(machine.memo[arg]),
    "LONG_BINGET": lambda machine, arg: machine.push(machine.memo[arg]),
    "GLOBAL": lambda machine, arg: machine.name(arg),
    "STACK_GLOBAL": lambda machine, arg: machine.name(".".join(_of(part, str) for part in machine.pop(2))),
    "REDUCE": lambda machine, arg: machine.call(),
    "BUILD": lambda machine, arg: machine.build(),
    "BINPERSID": lambda machine, arg: machine.storage(),
}
