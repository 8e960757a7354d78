"""A table of how well two models align, beside a ceiling (a second SAE of the same model) and an untrained model.

python scripts/alignment_table.py [--a FOLDER --b FOLDER --texts FILE] [--layers 3 3] [--training-tokens 400000]

Without --a and --b: the embedded models, on documents of the atlas, where concepts are known.
"""

import hubsae  # noqa: F401, I001  (first: it loads a tuned BLAS before mlx)

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubsae import InterpretableModel, SAEConfig, align, concepts
from hubsae.backend import describe
from hubsae.demo import atlas
from hubsae.demo.judge import Judge
from hubsae.demo.run import load_model
from hubsae.errors import HubsaeError
from hubsae.tokens import read_texts

ROWS = (
    ("R2", "r2", True),
    ("R2, map fitted to moved rows", "r2_shifted_fit", True),
    ("R2 within words", "r2_within_word", True),
    ("context excess", "context_excess", True),
    ("retrieval@1 of 1,000", "retrieval_at_1", True),
    ("EV of B's own SAE", "ev_own", True),
    ("EV of A's SAE in B", "ev_transferred", True),
    ("CKA, debiased", "cka", False),
    ("SVCCA, held out", "svcca_held_out", False),
    ("matched share", "matched_share", None),
    ("mean held-out correlation", "mean_corr_eval", None),
    ("pairs above the within-word null", "above_within_word", None),
    ("invariance", "invariance", None),
    ("top-k overlap through the pairs", "top_k_overlap", False),
)
CAUSAL = ("causal_corr", "causal_retrieval_at_1", "causal_auc")
CONDITIONS = ("procrustes", "ridge", "partner", "shuffled", "rotated map", "random direction", "unmapped")


def trained(model: InterpretableModel, layer: int, texts: Any, arguments: argparse.Namespace, seed: int) -> Any:
    """An SAE of a layer's residual stream."""
    config = SAEConfig(expansion_factor=arguments.expansion, k=arguments.k, seed=seed)
    n = arguments.training_tokens
    return model.train_sae(layer, texts, "residual", config=config, training_tokens=n, progress=False)


def shown(row: dict[str, Any]) -> str:
    """A value with its interval, and what chance gives."""
    interval = f" [{row['lo']:.3f}, {row['hi']:.3f}]" if row["lo"] is not None else ""
    null = f" (null {row['null_mean']:.3f})" if row["null_mean"] is not None else ""
    return f"{row['value']:.3f}{interval}{null}" if row["value"] is not None else "-"


def column(sides: Sequence[Any], texts: list[str], causal_texts: list[str], judges: Sequence[Any]) -> dict[str, str]:
    """Everything about one pair of SAEs."""
    started = time.time()
    found = align(sides[0], sides[1], texts=texts, progress=False)
    cells = {"anchors (fit/match/eval)": "/".join(str(n) for n in found.config.anchors["n_anchors"].values())}
    cells["pairs"] = f"{len(found.pairs)} of {sides[0].n_features} x {sides[1].n_features}"
    for label, name, by_method in ROWS:
        for method in ("procrustes", "ridge") if by_method else (None,):
            cells[label + (f", {method}" if method else "")] = shown(found.metric(name, method))
    if judges:
        pairs = found.pairs
        a, b = ([judge[i] for i in pairs[f"feature_{s}"]] for judge, s in zip(judges, "ab", strict=True))
        for least in (0.3, 0.5):
            agreed = concepts.agreement(a, b, least)
            cells[f"concept agreement, F1 >= {least}"] = f"{agreed.share:.3f} of {agreed.n} ({agreed.shuffled:.3f})"
    try:
        found.causal_transfer(causal_texts)
    except HubsaeError as error:
        return {**cells, "causal": str(error)}
    for condition in CONDITIONS:
        for name in CAUSAL:
            try:
                cells[f"{name}, {condition}"] = shown(found.metric(name, condition))
            except HubsaeError:
                continue
    for method in ("procrustes", "ridge", "shuffled", "other places"):
        cells[f"stitched loss recovered, {method}"] = shown(found.metric("stitched_loss_recovered", method))
    cells["seconds"] = f"{time.time() - started:.0f}"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a")
    parser.add_argument("--b")
    parser.add_argument("--texts", help=".txt with a document a line")
    parser.add_argument("--layers", type=int, nargs=2, default=(3, 3))
    parser.add_argument("--training-tokens", type=int)
    parser.add_argument("--align-texts", type=int, default=2000)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--out", help="file to write the table to")
    arguments = parser.parse_args()
    demo = arguments.a is None
    if demo != (arguments.b is None) or demo != (arguments.texts is None):
        parser.error("--a, --b and --texts go together")
    if demo:
        models = [load_model("atlas-llama"), load_model("atlas-neox")]
        texts: Any = [document.text for document in atlas.generate(6000, seed=7)]
        fresh = [document.text for document in atlas.generate(arguments.align_texts, seed=99)]
    else:
        models = [InterpretableModel(arguments.a), InterpretableModel(arguments.b)]
        lines = list(read_texts(arguments.texts))
        fresh, texts = lines[: arguments.align_texts], lines[arguments.align_texts :]
    untrained = models[1].untrained(seed=5)
    layer_a, layer_b = arguments.layers
    saes = {
        "A": trained(models[0], layer_a, texts, arguments, 0),
        "A again": trained(models[0], layer_a, texts, arguments, 1),
        "B": trained(models[1], layer_b, texts, arguments, 2),
        "untrained": trained(untrained, layer_b, texts, arguments, 3),
    }
    owners = {"A": models[0], "A again": models[0], "B": models[1], "untrained": untrained}
    judges = {name: Judge(sae, owners[name]).of_features() for name, sae in saes.items()} if demo else {}
    columns = {
        name: column((saes["A"], saes[name]), fresh, fresh, [judges[n] for n in ("A", name)] if demo else ())
        for name in ("A again", "B", "untrained")
    }
    backend = describe()
    names = list(dict.fromkeys(label for cells in columns.values() for label in cells))
    lines = [f"{backend.device_name}, {backend.blas_name}; layers {layer_a} and {layer_b}", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {label} | " + " | ".join(cells.get(label, "-") for cells in columns.values()) + " |" for label in names
    ]
    print("\n".join(lines))
    if arguments.out:
        Path(arguments.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
