"""The demo's second half: which features of the two embedded models mean the same, and what one does in the other."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubsae import SAE, Alignment, InterpretableModel, align, concepts, load_alignment
from hubsae.concepts import Agreement
from hubsae.demo import atlas
from hubsae.demo.judge import Judge
from hubsae.tables import Table

N_ALIGNED = 1_200
N_FRESH = 300
N_JUDGED = 600
LEAST_F1 = 0.5
_SHOWN = 6
_CONDITIONS = ("procrustes", "ridge", "partner", "rotated map", "random direction")


@dataclass(frozen=True)
class FoundPairs:
    """The alignment, how far its pairs agree on concepts that the matching never saw, and what fresh texts say."""

    alignment: Alignment
    agreement: Agreement
    pairs_inside: float


def run_pair(
    out: Path,
    saes: tuple[SAE, SAE],
    models: tuple[InterpretableModel, InterpretableModel],
    say: Callable[[str], None],
    data: str,
) -> FoundPairs:
    """Align SAEs of the two models, judge, steer and save, and `say` what is done."""
    texts = [document.text for document in atlas.generate(N_ALIGNED, seed=99)]
    fresh = [document.text for document in atlas.generate(N_FRESH, seed=100)]
    sites = " and ".join(sae.config.reads[0] for sae in saes)
    say(f"\nWhich features of {' and '.join(m.checkpoint.folder.name for m in models if m.checkpoint)} mean the same?")
    found = align(*saes, texts=texts, dataset_name=data, progress=False)
    say(f"{found!r}, {sites}, at {sum(found.config.anchors['n_anchors'].values()):,} common ends of tokens\n")
    _say_pairs(found, say)
    judged = [Judge(sae, model, N_JUDGED).of_features() for sae, model in zip(saes, models, strict=True)]
    pairs = found.pairs
    a, b = ([judge[i] for i in pairs[f"feature_{side}"]] for judge, side in zip(judged, "ab", strict=True))
    agreed = concepts.agreement(a, b, LEAST_F1)
    say(
        f"of {agreed.n} pairs whose features both tell a concept of the atlas (of this word or the next), "
        f"{100 * agreed.share:.0f} % tell the same ({100 * agreed.shuffled:.0f} % if shuffled)"
    )
    found.causal_transfer(texts, n_features=32, n_anchors=128)
    say("\n" + str(_effects(found)))
    checked = found.verify(fresh)
    say(f"\n{checked}")
    found.save_pretrained(out / "alignment")
    again = load_alignment(out / "alignment", *saes)
    say(f"\nwritten to {(out / 'alignment').resolve()}, and loaded back: {again!r}")
    site = found.make_dashboard().write(out / "alignment-dashboard")
    say(f"the pairs beside each other in a browser: {site / 'index.html'}")
    return FoundPairs(found, agreed, checked.share_of_pairs_inside)


def _say_pairs(found: Alignment, say: Callable[[str], None]) -> None:
    a, b = (dictionary.features for dictionary in found.dictionaries or ())
    for pair in list(found)[:_SHOWN]:
        low, high = pair.interval
        say(f"feature {pair.feature_a} = feature {pair.feature_b}: r {pair.correlation:.2f} [{low:.2f}, {high:.2f}]")
        for features, feature in ((a, pair.feature_a), (b, pair.feature_b)):
            for example in features.examples(feature, "top", 1):
                say(f"    ...{example}")


def _effects(found: Alignment) -> Table:
    def cell(name: str, condition: str) -> Any:
        row = found.metric(name, condition)
        return f"{row['value']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]"

    names = ("causal_corr", "causal_retrieval_at_1", "causal_auc")
    rows = [(condition, *(cell(name, condition) for name in names)) for condition in _CONDITIONS]
    n = int(np.max(found.frames["effects"]["n_tested"]))
    title = f"What {n} features of the one do in the other (equal dose; chance: 0, {1 / n:.2f}, 0.5)"
    return Table(title, ("steered by", "correlation of effects", "own effect retrieved", "AUC"), rows)
