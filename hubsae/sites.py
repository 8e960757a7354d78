"""`Site`: a place in a language model, its text form, and the columns it takes in a row."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from hubsae.errors import SiteError

COMPONENTS = ("residual_in", "residual", "attn_in", "attn", "mlp_in", "mlp")
"""Components that every transformer has: a block's input and output, its token mixer and its feed-forward module."""

_ALIASES = {
    "": "residual",
    "in": "residual_in",
    "resid_post": "residual",
    "resid_pre": "residual_in",
    "residual.in": "residual_in",
    "attn.in": "attn_in",
    "mlp.in": "mlp_in",
}
_TEXT = re.compile(r"(?:(\d):)?(?:[A-Za-z_]\w*\.)*?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?")
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model: `layer` (from 0) and `component`.

    A component is one of `COMPONENTS`, or an attribute path under the layer (`self_attn.o_proj`) for a module's output,
    with `.in` appended for its input. `model` counts the models of what reads several of them; its text form is
    `"1:layers.10.mlp"`, and a site of the first one has no number.
    """

    layer: int
    component: str = "residual"
    model: int = 0

    def __post_init__(self):
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or not isinstance(self.component, str):
            raise SiteError(f"Site({self.layer!r}, {self.component!r}): expected a number and a component name")
        component = _ALIASES.get(self.component, self.component)
        if not _PATH.fullmatch(component):
            raise SiteError(
                f"component {self.component!r}: expected one of {', '.join(COMPONENTS)} or an attribute path "
                "under the layer such as 'self_attn.o_proj' or 'self_attn.o_proj.in'"
            )
        if self.layer < 0:
            raise SiteError(f"layer {self.layer}: layers are counted from 0")
        if not isinstance(self.model, int) or isinstance(self.model, bool) or not 0 <= self.model <= 9:
            raise SiteError(f"model {self.model!r}: expected a number from 0 to 9")
        object.__setattr__(self, "component", component)

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """`"layers.10.mlp"` -> `Site(10, "mlp")`; a prefix such as `model.model.` is accepted and dropped."""
        if isinstance(text, Site):
            return text
        match = _TEXT.fullmatch(text) if isinstance(text, str) and len(text) < 1000 else None
        if not match or len(match[2]) > 6:
            raise SiteError(
                f"{str(text)[:80]!r} is no site; write 'layers.<number>.<component>', for example 'layers.10.mlp'"
            )
        return cls(int(match[2]), match[3] or "residual", int(match[1] or 0))

    @property
    def is_input(self) -> bool:
        """True for what goes into a module, False for what comes out of it."""
        return self.component.endswith(("_in", ".in"))

    @property
    def module(self) -> str:
        """The component without its input mark: `"mlp_in"` -> `"mlp"`, `"a.b.in"` -> `"a.b"`."""
        return self.component[:-3] if self.is_input else self.component

    def __str__(self) -> str:
        return f"{self.model}:" * (self.model > 0) + f"layers.{self.layer}.{self.component}"

    def of(self, model: int) -> "Site":
        """The same place in another of the models."""
        return replace(self, model=model)


def parse_sites(sites: "str | Site | Iterable[str | Site]") -> tuple[Site, ...]:
    """One site or several, as text or `Site` -> a tuple of distinct sites in the given order."""
    if isinstance(sites, str | Site):
        sites = (sites,)
    return tuple(dict.fromkeys(Site.parse(site) for site in sites))


def reads_there(sites: Iterable[Site], layer: int | None, component: str | None) -> bool:
    """Whether one of the sites is of this layer and component; None stands for any."""
    return any(
        layer in (None, s.layer) and (component is None or Site(s.layer, component, s.model) == s) for s in sites
    )


def columns(sites: Sequence[Site], widths: Sequence[int]) -> dict[Site, slice]:
    """The column range that each site takes in a row, in the order given."""
    return dict(zip(sites, ranges(widths), strict=True))


def ranges(widths: Sequence[int], start: int = 0) -> tuple[slice, ...]:
    """Slices of the given widths, one behind the other."""
    ends = list(accumulate(widths, initial=start))
    return tuple(slice(a, b) for a, b in pairwise(ends))
