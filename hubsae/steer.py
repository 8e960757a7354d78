"""Changing what a model computes through the features of a dictionary, always keeping the reconstruction error."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae.dictionary import Dictionary
from hubsae.errors import ConfigError, DataError, SiteError
from hubsae.features import Features
from hubsae.sites import Site

_ORDER = {name: place for place, name in enumerate(("residual_in", "attn_in", "attn", "mlp_in", "mlp", "residual"))}


@dataclass(frozen=True)
class Change:
    """What happens to a code (..., F): z' = code * factor + shift, and where `is_set`, z' = target.

    All are (F,). Rows in which nothing changes are left alone bit for bit.
    """

    factor: mx.array
    shift: mx.array
    target: mx.array
    is_set: mx.array

    @property
    def is_constant(self) -> bool:
        """Whether z' - z is the same for every row, so that no code is needed."""
        return bool(mx.all(self.factor == 1).item()) and not bool(mx.any(self.is_set).item())

    def difference(self, code: mx.array) -> mx.array:
        """(..., F) z -> z' - z."""
        changed = mx.where(self.is_set, self.target, code * self.factor + self.shift)
        return changed - code


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
    given = [*(add or {}), *(amplify or {}), *(set_to or {}), *ablate]
    if len(given) != len(set(given)):
        raise ConfigError(f"features {sorted(i for i in set(given) if given.count(i) > 1)} are changed twice")
    if not given and direction is None:
        raise ConfigError("nothing to change: give add, amplify, set, ablate or direction")
    n = dictionary.n_features
    for feature in given:
        _check_id(feature, n)
    for name, numbers in (("add", add), ("amplify", amplify), ("set", set_to)):
        for feature, value in (numbers or {}).items():
            if not isinstance(value, int | float | np.number) or not np.isfinite(value):
                raise ConfigError(f"{name}: strength {value!r} of feature {feature}: expected a finite number")
    factor, shift, target = np.ones(n, np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    is_set = np.zeros(n, bool)
    for feature, value in (amplify or {}).items():
        factor[feature] = value
    factor[list(ablate)] = 0
    for feature, value in (add or {}).items():
        shift[feature] = value * _unit(feature, known, units)
    for feature, value in (set_to or {}).items():
        target[feature], is_set[feature] = value * _unit(feature, known, units), True
    if direction is not None:
        shift += strength * _direction(direction, n)
    return Change(*map(mx.array, (factor, shift, target, is_set)))


def _check_id(feature: Any, n: int) -> None:
    if isinstance(feature, bool) or not isinstance(feature, int | np.integer) or not 0 <= feature < n:
        raise DataError(f"feature {feature!r}: this dictionary has features 0 to {n - 1}")


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
    code = np.array(direction.astype(mx.float32) if isinstance(direction, mx.array) else direction, np.float32)
    if code.shape != (n,) or not np.isfinite(code).all():
        raise DataError(
            f"direction of shape {code.shape}: expected finite numbers ({n},), such as a difference of two encode_text"
        )
    return code


@dataclass(eq=False)
class Intervention(Mapping[Site, Any]):
    """Edits for `trace(text, interventions=...)` and `generate`, by site: x + decode(z') - decode(z).

    Codes are read in the same pass, as the model arrives there. A constant change (adding) acts at every written site
    of the residual stream only with what the sites before have not brought already; other changes of what reads several
    sites act where all of them have been read, that is at the last one. Positions that the dictionary leaves out (the
    first of a text) stay as they are. `model`: which model it is for, where the dictionary has several.
    """

    dictionary: Dictionary
    change: Change
    model: int = 0
    _read: dict[Site, mx.array] = field(default_factory=dict, init=False)

    def __post_init__(self):
        c = self.dictionary.config
        if not 0 <= self.model < len(c.base_models):
            raise ConfigError(f"model={self.model}: this dictionary has {len(c.base_models)}")
        others = [s for s in c.read_sites if s.model != self.model]
        if others and not self.change.is_constant:
            raise ConfigError(
                f"its code also needs {', '.join(map(str, others))} of another model, which one pass does not see: "
                "of such a dictionary only add= and direction= can be used"
            )
        if not self._writes:
            raise ConfigError(f"model={self.model}: this dictionary writes nothing into it")
        reads = {_place(s) for s in c.read_sites}
        if not self.change.is_constant and max(map(_place, self._writes)) < max(reads):
            raise SiteError(
                f"{c.writes[-1]} is computed before {c.reads[-1]} is read, so it cannot be changed in the same pass"
            )

    @cached_property
    def _writes(self) -> dict[Site, slice]:
        own = {s: part for s, part in self.dictionary.config.write_columns.items() if s.model == self.model}
        return dict(sorted(own.items(), key=lambda pair: _place(pair[0])))

    @cached_property
    def _constant(self) -> dict[Site, mx.array]:
        """(d,) what a constant change adds at every written site."""
        row = mx.matmul(self.change.shift, self.dictionary.W_dec.astype(mx.float32))
        out, stream = {}, mx.array(0.0)
        for site, part in self._writes.items():
            if site.component in ("residual", "residual_in"):
                out[site], stream = row[part] - stream, row[part]
            else:
                out[site] = row[part]
        return out

    @cached_property
    def _edits(self) -> dict[Site, Any]:
        if self.change.is_constant:
            return {site.of(0): _Edit(self, site) for site in self._writes}
        sites = (*self.dictionary.config.read_sites, *self._writes)
        return {site.of(0): _Edit(self, site) for site in dict.fromkeys(sites)}

    def __getitem__(self, site: Any) -> Any:
        return self._edits[Site.parse(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)

    def at(self, site: Site, x: mx.array, start: int) -> mx.array:
        """x (b, length, d) of a pass at a site, whose first token has position `start` -> what it becomes."""
        if self.change.is_constant:
            return self._where_read(x, self._constant[site], start)
        c = self.dictionary.config
        if site in c.read_sites:
            if site in self._read:  # a new pass
                self._read.clear()
            self._read[site] = x
        if site not in self._writes:
            return x
        if len(self._read) < len(c.read_sites):
            if site in c.read_sites:
                return x
            raise SiteError(f"{site} is computed before all of {', '.join(c.reads)} are read; it cannot be changed")
        if any(value.shape[:2] != x.shape[:2] for value in self._read.values()):
            raise SiteError(f"{site}: what was read at {', '.join(c.reads)} belongs to another pass")
        code = self.dictionary.encode(mx.concatenate([self._read[s] for s in c.read_sites], axis=-1))
        difference = self.change.difference(code)
        added = difference @ self.dictionary.W_dec[:, self._writes[site]].astype(difference.dtype)
        changed = mx.any(difference != 0, axis=-1, keepdims=True)
        if site == list(self._writes)[-1]:
            self._read.clear()
        return mx.where(changed, self._where_read(x, added, start), x)

    def _where_read(self, x: mx.array, added: mx.array, start: int) -> mx.array:
        """x + added at the positions that the dictionary takes."""
        skipped = self.dictionary.config.token_config().skip_positions
        changed = (x.astype(mx.float32) + added.astype(mx.float32)).astype(x.dtype)
        if start >= skipped:
            return changed
        taken = (start + mx.arange(x.shape[1]) >= skipped)[:, None]
        return mx.where(taken, changed, x)


class _Edit:
    """One site of an intervention; it is told the position at which the tokens of a pass begin."""

    takes_position = True

    def __init__(self, intervention: Intervention, site: Site):
        self._intervention, self._site = intervention, site

    def __call__(self, x: mx.array, start: int = 0) -> mx.array:
        return self._intervention.at(self._site, x, start)


def _place(site: Site) -> tuple[int, int]:
    """Where a pass comes by a site: a module's parts are taken to be where the module is."""
    name = site.component
    if name not in _ORDER:
        name = "attn" if "attn" in name.split(".")[0] else "mlp"
    return site.layer, _ORDER[name]
