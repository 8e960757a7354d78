"""Reading and editing module inputs and outputs of an MLX model while a context is open.

A tapped module keeps its identity: its instance's class is swapped for a generated subclass and restored on exit.
Wrapping would not do: `model.layers` is a fresh list on many architectures, and `isinstance` checks and parameter
paths have to stay as they are.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from hubsae.errors import SiteError
from hubsae.sites import COMPONENTS, Site

Edit = Callable[[mx.array], mx.array]

_RESIDUAL_NAMES = ("x", "h", "hidden_states", "inputs", "streams")
ATTN_NAMES = (
    "self_attn",
    "attn",
    "attention",
    "linear_attn",
    "mixer",
    "local_mixer",
    "conv",
    "mamba",
    "temporal_block",
    "norm_attn_norm",
)
MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe", "mlp_block", "shared_mlp")
_KEY = "_hubsae_taps"


class AllRead(BaseException):
    """Raised inside a forward pass once every read has been made; a BaseException so that no model swallows it."""


def find_module(layer: nn.Module, site: Site) -> nn.Module:
    """The module whose input or output the site is; raises `SiteError` that lists what the layer has."""
    if site.model:
        raise SiteError(f"{site}: a site of model {site.model}, but this is one model; its own is {site.of(0)}")
    name = site.module
    if name == "residual":
        return layer
    names = {"attn": ATTN_NAMES, "mlp": MLP_NAMES}.get(name)
    if names:
        for candidate in names:
            module = getattr(layer, candidate, None)
            if isinstance(module, nn.Module):
                return module
        raise SiteError(f"{site}: this layer has no {name} module; it has {_children(layer)}")
    module: Any = layer
    for step, part in enumerate(name.split(".")):
        if isinstance(module, list) and part.isdigit() and int(part) < len(module):
            module = module[int(part)]
        elif isinstance(module, nn.Module) and part in module:
            module = module[part]
        else:
            where = ".".join(name.split(".")[:step]) or "the layer"
            raise SiteError(
                f"{site}: {where} has no {part!r}; it has {_children(module)} "
                f"(components: {', '.join(COMPONENTS)}, or a path of these)"
            )
    if not isinstance(module, nn.Module):
        raise SiteError(f"{site}: {name} is a {type(module).__name__}, not a module that is called")
    return module


def _children(module: Any) -> str:
    if isinstance(module, list):
        return f"entries 0 to {len(module) - 1}"
    names = [k for k, v in module.items() if isinstance(v, nn.Module | list)] if isinstance(module, nn.Module) else []
    return ", ".join(sorted(names)) or "no modules inside"


@functools.cache
def _tapped(cls: type) -> type:
    """A subclass of `cls` whose `__call__` goes through the taps stored on the instance."""

    def __call__(self, *args, **kwargs):
        here = threading.get_ident()
        taps = [tap for tap in self.__dict__.get(_KEY, ()) if tap.thread == here and not tap.owner.editing]
        args, kwargs = _before(taps, args, kwargs)
        return _after(taps, cls.__call__(self, *args, **kwargs))  # type: ignore[operator]

    return type(cls.__name__, (cls,), {"__call__": __call__, "__module__": cls.__module__, "_hubsae_original": cls})


def _original(module: nn.Module) -> type:
    return getattr(type(module), "_hubsae_original", type(module))


@functools.cache
def _activation_parameter(cls: type) -> tuple[int, str]:
    """(position, name) of the parameter of `cls.__call__` that carries the activations."""
    names = [p.name for p in inspect.signature(cls.__call__).parameters.values()][1:]  # type: ignore[operator]
    name = next((n for n in names if n in _RESIDUAL_NAMES), names[0])
    return names.index(name), name


def _visit(taps: list["_Tap"], value: mx.array, is_input: bool) -> mx.array:
    """All edits of all open contexts, then all reads: what is read is what the model goes on with."""
    for tap in taps:
        for site in tap.sites[is_input]:
            value = tap.owner.edit(site, value)
    for tap in taps:
        for site in tap.sites[is_input]:
            tap.owner.read(site, value)
    return value


def _before(taps: list["_Tap"], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    taps = [tap for tap in taps if tap.sites[True]]
    if not taps:
        return args, kwargs
    name, position = taps[0].name, taps[0].position
    if name in kwargs:
        return args, {**kwargs, name: _visit(taps, kwargs[name], True)}
    if position >= len(args):
        raise SiteError(f"{taps[0].sites[True][0]}: the model calls this module without activations")
    return (*args[:position], _visit(taps, args[position], True), *args[position + 1 :]), kwargs


def _after(taps: list["_Tap"], result: Any) -> Any:
    taps = [tap for tap in taps if tap.sites[False]]
    if not taps:
        return result
    if isinstance(result, tuple):
        return (_visit(taps, result[0], False), *result[1:])
    return _visit(taps, result, False)


class _Tap:
    """What one open context does at one module: its sites at the input (True) and at the output (False)."""

    def __init__(self, module: nn.Module, owner: "Taps"):
        self.module, self.owner, self.thread = module, owner, threading.get_ident()
        self.sites: dict[bool, list[Site]] = {True: [], False: []}
        self.position, self.name = _activation_parameter(_original(module))


class Taps:
    """Context: `reads` are captured in `.values`, `edits` are applied, in every forward pass of this thread inside it.

    An edit runs before the read of the same site, so what is read is what the model goes on with. `expect_shape`
    (batch, length) refuses streams that do not have one vector per token. With `stop` the pass ends with `AllRead`
    after the last read. An edit that has a true `takes_position` is called as edit(value, position of its first token):
    `start` in the first pass, and further on by the tokens that came by since.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        reads: Sequence[Site] = (),
        edits: Mapping[Site, Edit] | None = None,
        *,
        expect_shape: tuple[int, int] | None = None,
        stop: bool = False,
        start: int = 0,
    ):
        self._layers, self._reads, self._edits = layers, frozenset(reads), dict(edits or {})
        for site, function in self._edits.items():
            if not callable(function):
                raise SiteError(f"{site}: an intervention has to be a function, not a {type(function).__name__}")
        self._expect_shape, self._stop = expect_shape, stop
        self._start, self._passed = start, dict[Site, int]()
        self.values: dict[Site, mx.array] = {}
        self.visits: dict[Site, int] = {}
        self.editing = False
        self._taps: list[_Tap] = []

    def __enter__(self) -> "Taps":
        found: dict[int, _Tap] = {}
        for site in sorted({*self._reads, *self._edits}):
            if site.layer >= len(self._layers):
                raise SiteError(f"{site}: this model has layers 0 to {len(self._layers) - 1}")
            module = find_module(self._layers[site.layer], site)
            tap = found.get(id(module))
            if tap is None:
                tap = found[id(module)] = _Tap(module, self)
            tap.sites[site.is_input].append(site)
            twice = [s for s in tap.sites[site.is_input] if s in self._edits]
            if len(twice) > 1:
                raise SiteError(f"{twice[0]} and {twice[1]} are the same place, and each has an intervention; give one")
        for tap in found.values():
            module = tap.module
            if type(module) is _original(module):
                # nn.Module.__setattr__ would put a list among the model's children
                object.__setattr__(module, _KEY, [])
                module.__class__ = _tapped(type(module))
            module.__dict__[_KEY].append(tap)
            self._taps.append(tap)
        return self

    def __exit__(self, *exc) -> None:
        while self._taps:
            tap = self._taps.pop()
            taps = tap.module.__dict__[_KEY]
            taps.remove(tap)
            if not taps:
                tap.module.__class__ = _original(tap.module)
                del tap.module.__dict__[_KEY]

    def edit(self, site: Site, value: mx.array) -> mx.array:
        """`value` at `site` as this context leaves it; called from inside the forward pass."""
        shape = value.shape
        if self._expect_shape and (value.ndim != 3 or shape[:2] != self._expect_shape):
            raise SiteError(
                f"{site}: the stream here has shape {shape}, not one vector for each of the "
                f"{self._expect_shape} tokens; this architecture cannot be read at this site"
            )
        self.visits[site] = self.visits.get(site, 0) + 1
        if site not in self._edits:
            return value
        function = self._edits[site]
        position = self._start + self._passed.get(site, 0)
        if self._expect_shape is None:  # several passes, of one token after the other
            self._passed[site] = position - self._start + (shape[1] if len(shape) > 1 else 0)
        where = (position,) if getattr(function, "takes_position", False) else ()
        self.editing = True  # a pass that the edit itself makes is not ours
        try:
            edited = function(value[...], *where)  # a snapshot: models change arrays in place
        finally:
            self.editing = False
        if not isinstance(edited, mx.array) or edited.shape != shape:
            found = edited.shape if isinstance(edited, mx.array) else type(edited).__name__
            raise SiteError(f"{site}: an intervention has to return an array of shape {shape}, this gave {found}")
        return edited.astype(value.dtype)

    def read(self, site: Site, value: mx.array) -> None:
        """Keep `value` if `site` is read; ends the pass after the last one where that was asked for."""
        if site in self._reads:
            self.values[site] = value[...]
            if self._stop and len(self.values) == len(self._reads):
                raise AllRead
