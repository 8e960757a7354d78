"""One feature, to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hubsae.features import Features, Kind, Label
from hubsae.tables import Shown, Table, bars, number


@dataclass(frozen=True, repr=False)
class FeatureView(Shown):
    """One feature, to look at: numbers, examples of all kinds, promoted tokens, neighbours, histogram of its values."""

    feature: int
    features: Features

    @property
    def label(self) -> Label | None:
        return self.features.label(self.feature)

    def tables(self) -> list[Table]:
        f, i = self.features, self.feature
        edges, counts = f.histogram(i)
        used = int(np.flatnonzero(counts).max(initial=0)) + 1
        rows = [
            ("fires on", f"{number(100 * float(f.density[i]))} % of {f.n_tokens:,} tokens ({f.data})"),
            ("typical value", f"{number(float(f.mean[i]))} (largest {number(float(f.maximum[i]))})"),
            ("its values", f"0 {bars(counts[:used])} {number(float(edges[used]))}"),
        ]
        if label := self.label:
            score = "not scored" if label.score is None else f"detection {label.score:.2f} on {label.n_scored}"
            rows.insert(0, ("label", f"{label.text} ({score}; {label.labeler})"))
        if (norms := f.site_norms) is not None and norms.shape[1] > 1:
            sites = zip(f.info.get("sites", range(norms.shape[1])), norms[i], strict=True)
            rows.append(("decoder norms", ", ".join(f"{site} {number(float(n))}" for site, n in sites)))
        for kind in ("promoted", "suppressed"):
            if weights := f.token_weights(i, kind):
                named = (f"{w.token!r} {number(w.weight)}" for w in weights[:6])
                rows += [(f"{kind} tokens", ", ".join(named))]
        for title, found in (("fires together with", f.cofiring(i)), ("similar decoders", f.similar(i))):
            if found:
                named = (f"{n.feature} ({number(n.score)}{_named(f, n.feature)})" for n in found[:5])
                rows.append((title, ", ".join(named)))
        tables = [Table(f"feature {i}", ("", ""), rows)]
        kinds: Sequence[tuple[Kind, str, int]] = (
            ("top", "top", 8),
            ("quantile", "quantile", 5),
            ("random", "random", 3),
        )
        for kind, name, n in kinds if f.has_examples else ():
            examples = [(e.value, e.marked) for e in f.examples(i, kind, n)]
            tables.append(Table(f"{name} examples", ("value", "text"), examples))
        return tables


def _named(features: Features, feature: int) -> str:
    label = features.label(feature)
    return f", {label.text}" if label else ""
