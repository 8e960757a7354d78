"""`Imported`: a foreign dictionary in our terms, with where it came from, what was folded, and what nobody recorded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ArtifactError, ConfigError, HubsaeError
from hubsae.formats.parts import Parts
from hubsae.identity import BaseModel
from hubsae.sites import Site, parse_sites
from hubsae.sparsity import Sparsity
from hubsae.tables import plain

_LONGEST = 500
_TOKENS = {
    "context_size": "context size in training",
    "add_special_tokens": "whether texts began with a BOS token",
    "skip_positions": "which positions were left out",
}
NormOf = Callable[[Site], tuple[np.ndarray, np.ndarray]]
Find = Callable[[], Site | None]


@dataclass(frozen=True)
class Given:
    """What the user says of a dictionary whose files do not.

    reads, writes: sites, as `layers.10.residual`. k: active features of a TopK. input_scales: what each site's
    activations are multiplied by before encoding. model_type: of the language model at hand. used: what was needed.
    """

    reads: tuple[Site, ...] = ()
    writes: tuple[Site, ...] = ()
    k: int | None = None
    input_scales: tuple[float, ...] = ()
    model_type: str | None = None
    used: set[str] = field(default_factory=set, compare=False)

    @classmethod
    def of(
        cls,
        reads: Any = None,
        writes: Any = None,
        k: int | None = None,
        input_scales: Any = None,
        model_type: str | None = None,
    ) -> "Given":
        """From what `load_sae` takes; raises `SiteError` and `ConfigError`."""
        read, written = (_sites(name, value) for name, value in (("reads", reads), ("writes", writes)))
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise ConfigError(f"k={repr(k)[:80]}: expected a whole number of at least 1")
        return cls(read, written, k, _scales(input_scales), model_type)

    def said(self) -> list[str]:
        """Names of what was given."""
        return [name for name in ("reads", "writes", "k", "input_scales") if getattr(self, name) not in ((), None)]

    def kept(self) -> int | None:
        """k, asked for because the files do not say it."""
        self.used.add("k")
        return self.k

    def scales(self, n: int) -> tuple[float, ...]:
        """The n input scales, asked for because the files do not say them; one for all may be given as one."""
        self.used.add("input_scales")
        if self.input_scales and len(self.input_scales) not in (1, n):
            raise ConfigError(f"input_scales={self.input_scales}: expected {n} numbers, one for each site")
        return self.input_scales * n if len(self.input_scales) == 1 else self.input_scales

    def places(self, reads: Find, writes: Find | None = None) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
        """The one site read and the one written: as given, else as found; without `writes` they are the same.

        Raises `ArtifactError` where the files do not say it, `ConfigError` where several sites were given.
        """
        for name, given in (("reads", self.reads), ("writes", self.writes)):
            if len(given) > 1:
                raise ConfigError(f"{name}={', '.join(map(str, given))}: it has one site there")
        if self.writes and not writes and self.writes != (self.reads or (reads(),)):
            raise ConfigError(f"writes={self.writes[0]}: it writes what it reads; give reads= alone")
        read = self.reads or tuple(filter(None, (reads(),)))
        if not read:
            raise ArtifactError(
                "nothing in its files says where it reads; give reads=, such as reads='layers.19.residual' "
                "(and writes= for a transcoder)"
            )
        written = self.writes or (tuple(filter(None, (writes(),))) if writes else read)
        if not written:
            raise ArtifactError("it is a transcoder, but nothing in its files says where it writes; give writes=")
        if writes and read == written:
            raise ConfigError(f"it is a transcoder, and cannot read and write {read[0]}; give other reads= or writes=")
        return read, written

    def several(self, n: int, find: Callable[[], tuple[Site, ...]]) -> tuple[Site, ...]:
        """The n sites of a crosscoder, as given or as found."""
        if self.writes and self.writes != self.reads:
            raise ConfigError("a crosscoder writes what it reads; give reads= alone")
        found = self.reads or find()
        if len(found) != n:
            raise ConfigError(f"reads={', '.join(map(str, found))}: it reads {n} sites")
        return found

    def unneeded(self) -> list[str]:
        """What was given and changed nothing."""
        return [name for name in self.said() if name in ("k", "input_scales") and name not in self.used]


def _sites(name: str, value: Any) -> tuple[Site, ...]:
    if value is None:
        return ()
    try:
        return parse_sites(value)
    except TypeError:
        raise ConfigError(f"{name}={str(value)[:80]!r}: expected a site such as 'layers.10.mlp', or a list") from None


def _scales(value: Any) -> tuple[float, ...]:
    try:
        scales = np.atleast_1d(np.asarray(() if value is None else value, np.float64))
    except (TypeError, ValueError):
        scales = np.array([np.nan])
    if scales.ndim != 1 or not np.all((scales > 0) & (scales < 1e30)):
        raise ConfigError(f"input_scales={str(value)[:80]}: expected positive numbers, one for each site")
    return tuple(scales.tolist())


def told(value: Any) -> Any:
    """What a file says, as it may be shown and saved: short, without control characters; None for what is neither."""
    if isinstance(value, str):
        return plain(value)[:_LONGEST]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and abs(value) < 1e18 else None


NOTHING = Given()


@dataclass(frozen=True)
class Imported:
    """What one layout's reader found.

    reads, writes: sites with the widths of their columns. models: what is known of each language model. tokens: the
    entries of `TokenConfig` that are known. recorded: what its authors wrote down besides. notes: what users have to
    know. before_gain: whether it reads what a norm computes before its gain and bias.
    """

    format: str
    parts: Parts
    rule: Sparsity
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    read_widths: tuple[int, ...]
    write_widths: tuple[int, ...]
    models: tuple[BaseModel, ...] = (BaseModel(),)
    tokens: dict = field(default_factory=dict)
    recorded: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    before_gain: bool = False

    def after_gain(self, norm_of: NormOf | None) -> "Imported":
        """Reading what goes into the module, where the files mean what its norm computes before gain and bias.

        norm_of: the gain and bias (d,) of the norm in front of a site, of the language model at hand.
        """
        if not self.before_gain:
            return self
        if norm_of is None:
            raise ArtifactError(
                "it reads normalised activations without the norm's own gain, which is in the language model; give "
                "model= too, and the gain is folded in (or reads= and writes=, if they are otherwise)"
            )
        gain, bias = norm_of(self.reads[0])
        if len(gain) != self.read_widths[0] or not np.all(gain):
            raise ArtifactError(
                f"the norm before {self.reads[0]} has {len(gain)} columns, {np.count_nonzero(gain == 0)} of them with "
                f"gain 0; the dictionary reads {self.read_widths[0]}"
            )
        return replace(self, parts=self.parts.after_gain(gain, bias), before_gain=False)

    def dictionary(self, where: str, said: Sequence[str] = ()) -> Dictionary:
        """The dictionary, bound to nothing; `where` names the files, `said` what the user gave."""
        missing: list[str] = []
        for number, model in enumerate(self.models):
            which = f" of model {number}" if len(self.models) > 1 else ""
            missing += [f"base model{which}"] if model.repo_id is None else []
            missing += [f"commit of the base model{which}"] if model.revision is None else []
        missing += [words for name, words in _TOKENS.items() if name not in self.tokens]
        try:
            config = DictionaryConfig(
                reads=tuple(map(str, self.reads)),
                read_widths=self.read_widths,
                writes=tuple(map(str, self.writes)),
                write_widths=self.write_widths,
                n_features=self.parts.n_features,
                sparsity=self.rule.to_dict(),
                skip=self.parts.W_skip is not None,
                base_models=tuple(model.to_dict() for model in self.models),
                tokens=self.tokens,
            )
            arrays = self.parts.arrays()
            if bad := [name for name, array in arrays.items() if not mx.all(mx.isfinite(array)).item()]:
                raise ArtifactError(
                    f"{', '.join(bad)} hold values that are infinite or no number once all is folded in"
                )
            dictionary = Dictionary(config, arrays)
        except HubsaeError as error:
            raise ArtifactError(f"{where} ({self.format}): {error}") from error
        dictionary.statistics = {
            "imported": {
                "format": self.format,
                "from": where,
                "folded": list(self.parts.folded),
                "recorded": {str(k)[:80]: v for k, value in self.recorded.items() if (v := told(value)) is not None},
                "unknown": missing,
                **({"notes": list(self.notes)} if self.notes else {}),
                **({"given by the user": list(said)} if said else {}),
            }
        }
        return dictionary
