"""Changing what a model computes through the features of a dictionary, always keeping the reconstruction error."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError, SiteError
from hubsae.features import Features, check_feature
from hubsae.settings import as_type
from hubsae.sites import Site
from hubsae.taps import ATTN_NAMES, MLP_NAMES

_LAST_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "down_proj", "dense_4h_to_h", "fc2", "w2")
_ORDER = {name: place for place, name in enumerate(("residual_in", "attn_in", "attn", "mlp_in", "mlp", "residual"))}


@dataclass(frozen=True)
class Change:
    """What happens to a code (..., F): z' = code * factor + shift, and where `is_set`, z' = target; all are (F,)."""

    factor: mx.array
    shift: mx.array
    target: mx.array
    is_set: mx.array

    @cached_property
    def is_constant(self) -> bool:
        """Whether z' - z is the same for every row, so that no code is needed."""
        return bool(mx.all(self.factor == 1).item()) and not bool(mx.any(self.is_set).item())

    def of_code(self, code: mx.array) -> mx.array:
        """(..., F) z -> z' - z, without the shift."""
        return mx.where(self.is_set, self.target, code * self.factor) - code


def change(
    dictionary: Dictionary,
    known: Features | None,
    *,
    add: Mapping[int, float] | None = None,
    amplify: Mapping[int, float] | None = None,
    set_to: Mapping[int, float] | None = None,
    ablate: Sequence[int] = (),
    direction: Any = None,
    strength: float = 1.0,
    units: str = "typical",
) -> Change:
    """The change that is asked for, with strengths in `units` ("typical": of each feature's mean value where it fires,
    "raw": of the code)."""
    if units not in ("typical", "raw"):
        raise ConfigError(f"units={units!r}: expected 'typical' or 'raw'")
    numbers = {"add": _numbers("add", add), "amplify": _numbers("amplify", amplify), "set": _numbers("set", set_to)}
    if isinstance(ablate, str | int | np.integer) or not isinstance(ablate, Iterable):
        raise ConfigError(f"ablate={ablate!r}: expected a list of features")
    ablate = list(ablate)
    given = [*numbers["add"], *numbers["amplify"], *numbers["set"], *ablate]
    for feature in given:
        check_feature(feature, dictionary.n_features)
    if len(given) != len(set(given)):
        raise ConfigError(f"features {sorted(i for i in set(given) if given.count(i) > 1)} are changed twice")
    if not given and direction is None:
        raise ConfigError("nothing to change: give add, amplify, set, ablate or direction")
    n = dictionary.n_features
    factor, shift, target = np.ones(n), np.zeros(n), np.zeros(n)
    is_set = np.zeros(n, bool)
    for feature, value in numbers["amplify"].items():
        factor[feature] = value
    factor[ablate] = 0
    for feature, value in numbers["add"].items():
        shift[feature] = value * _unit(feature, known, units)
    for feature, value in numbers["set"].items():
        target[feature], is_set[feature] = value * _unit(feature, known, units), True
    if direction is not None:
        shift += _finite(strength, "strength") * _direction(direction, n)
    for name, array in (("factors", factor), ("added values", shift), ("set values", target)):
        if not np.abs(array).max() < np.finfo(np.float32).max:
            raise ConfigError(f"{name} up to {np.abs(array).max():.3g}: too large for fp32")
    factors, shifts, targets = (mx.array(array.astype(np.float32)) for array in (factor, shift, target))
    return Change(factors, shifts, targets, mx.array(is_set))


def _numbers(name: str, given: Any) -> dict[int, float]:
    """{feature: number} as it was given for `name`, checked."""
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{name}={given!r}: expected {{feature: number}}")
    return {feature: _finite(value, f"{name} of feature {feature}") for feature, value in (given or {}).items()}


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ConfigError(f"{name}={value!r}: expected a finite number")
    return float(value)


def _unit(feature: int, known: Features | None, units: str) -> float:
    if units == "raw":
        return 1.0
    if known is None:
        raise DataError(
            "typical activations are not known, so strengths have no unit: call feature_statistics(texts) first, "
            "or give units='raw'"
        )
    return float(known.mean[known.check(feature, alive=True)])


def _direction(direction: Any, n: int) -> np.ndarray:
    try:
        code = np.array(direction.astype(mx.float32) if isinstance(direction, mx.array) else direction, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"direction {str(direction)[:80]!r}: expected numbers ({n},)") from error
    if code.shape != (n,) or not np.isfinite(code).all():
        raise DataError(
            f"direction of shape {code.shape}: expected finite numbers ({n},), such as a difference of two encode_text"
        )
    return code


def increments(dictionary: Dictionary, rows: mx.array) -> dict[Site, mx.array]:
    """(..., d_out) -> (..., d) what to put in at each written site, so that every one of them holds its part once.

    The residual stream carries on what was put into it, and what an attention or feed-forward module wrote: at a later
    site of the stream only the rest is put in. That is exact where modules write into the stream as they are (Llama,
    GPT-NeoX, Qwen ...), not where their outputs are normalised or scaled on the way (Gemma 2, OLMo 2, Granite).
    """
    out: dict[Site, mx.array] = {}
    carried: dict[int, mx.array] = {}
    for site, part in _in_order(dictionary).items():
        out[site], carried[site.model] = _increment(site, rows[..., part], carried.get(site.model))
    return out


def _increment(site: Site, row: mx.array, carried: mx.array | None) -> tuple[mx.array, Any]:
    """What to put in at a site, and what the stream carries on from there."""
    before = carried if carried is not None and carried.shape == row.shape else mx.zeros(row.shape)
    if site.component in ("residual", "residual_in"):
        return row - before, row
    if _writes_into_stream(site):
        return row, row + before
    return row, carried


def _writes_into_stream(site: Site) -> bool:
    """Whether a site is the output of an attention or feed-forward module, or of its last projection."""
    names = site.component.split(".")
    return site.component in ("attn", "mlp") or (
        names[0] in (*ATTN_NAMES, *MLP_NAMES) and (len(names) == 1 or names[-1] in _LAST_PROJECTIONS)
    )


def _in_order(dictionary: Dictionary) -> dict[Site, slice]:
    return dict(sorted(dictionary.config.write_columns.items(), key=lambda pair: place(pair[0])))


class _Edits(Mapping[Site, Any]):
    """Functions by site, made by `_edits`; `items`, which a model asks for, makes them and what they remember anew."""

    def _edits(self) -> dict[Site, Any]:
        raise NotImplementedError(f"{type(self).__name__} has to say what its edits are")

    def items(self) -> Any:
        return self._edits().items()

    @cached_property
    def _shared(self) -> dict[Site, Any]:
        return self._edits()

    def __getitem__(self, site: Any) -> Any:
        return self._shared[Site.parse(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._shared)

    def __len__(self) -> int:
        return len(self._shared)

    def __or__(self, other: Mapping[Any, Any]) -> "_Combined":
        return _Combined(self, other)

    def __ror__(self, other: Mapping[Any, Any]) -> "_Combined":
        return _Combined(other, self)


class _Combined(_Edits):
    """Interventions that act one after the other where they meet at a site."""

    def __init__(self, *parts: Mapping[Any, Any]):
        self._parts = parts

    def _edits(self) -> dict[Site, Any]:
        chains: dict[Site, list] = {}
        for part in self._parts:
            for site, function in part.items():
                chains.setdefault(Site.parse(site), []).append(function)
        return {site: fs[0] if len(fs) == 1 else _Chain(fs) for site, fs in chains.items()}


class _Chain:
    """Several functions at one site, each on what the one before has made."""

    takes_position = True

    def __init__(self, functions: Sequence[Any]):
        self._functions = functions

    def __call__(self, x: mx.array, start: int = 0) -> mx.array:
        for function in self._functions:
            x = function(x, start) if getattr(function, "takes_position", False) else function(x)
        return x


@dataclass(eq=False)
class Intervention(_Edits):
    """Edits for `trace(text, interventions=...)` and `generate`, by site: x + decode(z') - decode(z).

    What is added whatever the code is acts at every written site; the rest needs the code, which is read in the same
    pass, and so acts from where all sites have been read, for a crosscoder of several layers at its last one. Of what
    the residual stream carries on from one site to the next nothing is put in twice (`increments`). The first
    positions, which the dictionary leaves out, stay as they are (special tokens further on do not), and so do rows in
    which no code changes, bit for bit. `a | b` joins two interventions, b after a where they meet. `model`: which one
    it is for, where the dictionary has several.
    """

    dictionary: Dictionary
    change: Change
    model: int = 0

    def __post_init__(self):
        c = self.dictionary.config
        as_type(self.model, int, "of_model")
        if not 0 <= self.model < len(c.base_models):
            raise ConfigError(f"of_model={self.model}: this dictionary has {len(c.base_models)}")
        others = [s for s in c.read_sites if s.model != self.model]
        if others and not self.change.is_constant:
            raise ConfigError(
                f"its code also needs {', '.join(map(str, others))} of another model, which one pass does not see: "
                "of such a dictionary only add= and direction= can be used"
            )
        if not self.writes:
            raise ConfigError(f"of_model={self.model}: this dictionary writes nothing into it")
        if self.change.is_constant:
            return
        known = all(s.component in _ORDER for s in (*c.read_sites, *self.writes))
        if known and c.reads != c.writes and min(map(place, self.writes)) < max(map(place, c.read_sites)):
            raise SiteError(
                f"{', '.join(c.writes)} are written before all of {', '.join(c.reads)} are read, so they cannot be "
                "changed by the code in the same pass; only add= and direction= can be used"
            )
        if len(c.read_sites) > 1 and self.adds:
            raise ConfigError(
                "a dictionary that reads several sites sees what was added at the first of them at the next: give add= "
                "and direction= in an intervention of their own, a | b"
            )

    @cached_property
    def adds(self) -> bool:
        """Whether something is added whatever the code is."""
        return bool(mx.any(self.change.shift != 0).item())

    @cached_property
    def skipped(self) -> int:
        """First positions of a text that stay as they are."""
        return self.dictionary.config.token_config().skip_positions

    @cached_property
    def writes(self) -> dict[Site, slice]:
        """The written sites of the model, in the order of a pass, with their columns."""
        return {site: part for site, part in _in_order(self.dictionary).items() if site.model == self.model}

    @cached_property
    def added(self) -> dict[Site, mx.array]:
        """(d,) what is put in at every written site whatever the code is."""
        row = mx.where(self.change.is_set, 0, self.change.shift) @ self.dictionary.W_dec.astype(mx.float32)
        return increments(self.dictionary, row)

    def _edits(self) -> dict[Site, Any]:
        sites = list(self.writes)
        if not self.change.is_constant:
            sites = list(dict.fromkeys((*self.dictionary.config.read_sites, *sites)))
        state = _Pass(self)
        return {site.of(0): _Edit(state, site) for site in sites}


class _Pass:
    """What an intervention has read in the pass that goes on, and what the stream carries of its changes."""

    def __init__(self, intervention: Intervention):
        self._own = intervention
        self._first: Site | None = None
        self._read: dict[Site, mx.array] = {}
        self._carried: mx.array | None = None

    def at(self, site: Site, x: mx.array, start: int) -> mx.array:
        """x (b, length, d) at a site, whose first token has position `start` -> what it becomes."""
        own, c = self._own, self._own.dictionary.config
        self._first = self._first or site
        if site == self._first:  # a new pass
            self._read, self._carried = {}, None
        if not own.change.is_constant and site in c.read_sites:
            self._read[site] = x
        if site not in own.writes:
            return x
        changed = x
        if not own.change.is_constant:
            difference = self._difference(site, x)
            if difference is not None:
                row = difference @ own.dictionary.W_dec[:, own.writes[site]].astype(mx.float32)
                put_in, self._carried = _increment(site, row, self._carried)
                changes = mx.any(difference != 0, axis=-1, keepdims=True)
                changed = mx.where(changes, self._put(x, put_in, start), x)
        if own.adds:
            changed = self._put(changed, own.added[site], start)
        return changed

    def _difference(self, site: Site, x: mx.array) -> mx.array | None:
        """(b, length, F) change of the code, None where it is not known yet."""
        c = self._own.dictionary.config
        if len(self._read) < len(c.read_sites):
            if site in c.read_sites or set(c.reads) & set(c.writes):
                return None
            raise SiteError(f"{site} is computed before all of {', '.join(c.reads)} are read; it cannot be changed")
        if any(value.shape[:2] != x.shape[:2] for value in self._read.values()):
            raise SiteError(f"{site}: what was read at {', '.join(c.reads)} belongs to another pass")
        code = self._own.dictionary.encode(mx.concatenate([self._read[s] for s in c.read_sites], axis=-1))
        return self._own.change.of_code(code.astype(mx.float32))

    def _put(self, x: mx.array, added: mx.array, start: int) -> mx.array:
        """x + added at the positions that the dictionary takes."""
        skipped = self._own.skipped
        changed = (x.astype(mx.float32) + added.astype(mx.float32)).astype(x.dtype)
        if start >= skipped:
            return changed
        taken = (start + mx.arange(x.shape[1]) >= skipped)[:, None]
        return mx.where(taken, changed, x)


class _Edit:
    """One site of an intervention; it is told the position at which the tokens of a pass begin."""

    takes_position = True

    def __init__(self, state: _Pass, site: Site):
        self._state, self._site = state, site

    def __call__(self, x: mx.array, start: int = 0) -> mx.array:
        return self._state.at(self._site, x, start)


def place(site: Site) -> tuple[int, int]:
    """Where a pass comes by a site: a module's parts are taken to be where the module is."""
    name = site.component
    if name not in _ORDER:
        name = "attn" if "attn" in name.split(".")[0] else "mlp"
    return site.layer, _ORDER[name]
