"""`Imported`: a foreign dictionary in our terms, with where it came from, what was folded, and what nobody recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ArtifactError, ConfigError, HubsaeError
from hubsae.formats.parts import Parts
from hubsae.identity import BaseModel
from hubsae.sites import Site, parse_sites
from hubsae.sparsity import Sparsity

_TOKENS = {
    "context_size": "context size in training",
    "add_special_tokens": "whether texts began with a BOS token",
    "skip_positions": "which positions were left out",
}
NormOf = Callable[[Site], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Given:
    """What the user says of a dictionary whose files do not.

    reads, writes: sites, as `layers.10.residual`. k: active features of a TopK. input_scales: what each site's
    activations are multiplied by before encoding.
    """

    reads: tuple[Site, ...] = ()
    writes: tuple[Site, ...] = ()
    k: int | None = None
    input_scales: tuple[float, ...] = ()

    @classmethod
    def of(cls, reads: Any = None, writes: Any = None, k: int | None = None, input_scales: Any = None) -> "Given":
        """From what `load_sae` takes; raises `SiteError` and `ConfigError`."""
        read = parse_sites(reads) if reads is not None else ()
        written = parse_sites(writes) if writes is not None else ()
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise ConfigError(f"k={k!r}: expected a whole number of at least 1")
        scales = (input_scales,) if isinstance(input_scales, int | float) else tuple(input_scales or ())
        if not all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < 1e30 for s in scales):
            raise ConfigError(f"input_scales={input_scales!r}: expected positive numbers, one for each site")
        return cls(read, written, k, tuple(float(s) for s in scales))

    def said(self) -> list[str]:
        """Names of what was given."""
        return [f.name for f in fields(self) if getattr(self, f.name) not in ((), None)]


NOTHING = Given()


@dataclass(frozen=True)
class Imported:
    """What one layout's reader found.

    reads, writes: sites with the widths of their columns. models: of each model the name that its files give, or None.
    tokens: the entries of `TokenConfig` that are known. reported: numbers that its authors wrote down. unknown: what
    nobody recorded, in words. before_gain: whether it reads what a norm computes before its gain and bias.
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
    unknown: tuple[str, ...] = ()
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
        missing = [*self.unknown]
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
            dictionary = Dictionary(config, self.parts.arrays())
        except HubsaeError as error:
            raise ArtifactError(f"{where} ({self.format}): {error}") from error
        dictionary.statistics = {
            "imported": {
                "format": self.format,
                "from": where,
                "folded": list(self.parts.folded),
                "recorded": self.recorded,
                "unknown": missing,
                **({"given by the user": list(said)} if said else {}),
            }
        }
        return dictionary
