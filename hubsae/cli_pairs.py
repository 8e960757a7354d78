"""Verbs about two models: `align`, `transfer`, `verify`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from hubsae.cli_options import add_fields, add_push, add_texts, command, pushed, texts

_SHOWN = ("matched_share", "mean_corr_eval", "above_within_word", "invariance", "r2", "retrieval_at_1", "cka")
_SHOWN += ("ev_own", "ev_transferred", "causal_corr", "stitched_loss_recovered")


def add(commands: Any) -> None:
    """Add the verbs to the parser's commands."""
    from hubsae.align_config import AlignConfig
    from hubsae.anchors import AnchorConfig

    align = command(commands, "align", _align, "which features of two models' SAEs mean the same")
    align.add_argument("sae_a", help="folder or repository id")
    align.add_argument("sae_b", help="folder or repository id")
    _add_models(align)
    add_texts(align)
    align.add_argument("--out", required=True, help="folder to write the alignment to")
    add_push(align)
    align.add_argument("--causal", action="store_true", help="also steer B along the features of A, and compare")
    add_fields(align, "matching and judging", AlignConfig)
    add_fields(align, "where activations are compared", AnchorConfig, without=("seed",))

    transfer = command(
        commands, "transfer", _transfer, "what a feature of A does in B when steered, or A's dictionary as one of B"
    )
    _add_alignment(transfer)
    add_texts(transfer, required=False)
    transfer.add_argument("--text-column", default="text", help="column of the texts (default: text)")
    transfer.add_argument("--feature", type=int, help="a feature of A to steer, in both models; needs --texts")
    how = transfer.add_mutually_exclusive_group()
    how.add_argument("--alpha", type=float, help="length of what is added, in mean lengths of an activation")
    how.add_argument("--dose", type=float, help="nats of KL that every direction is to make (default: 0.3)")
    transfer.add_argument("--method", help="map of the dictionary (default: the one features were matched by)")
    transfer.add_argument("--out", help="folder to write A's dictionary to, as one of B")

    verify = command(commands, "verify", _verify, "an alignment's numbers again, on texts that it has not seen")
    _add_alignment(verify)
    add_texts(verify)
    verify.add_argument("--text-column", default="text", help="column of the texts (default: text)")


def _add_models(parser: argparse.ArgumentParser) -> None:
    for side in "ab":
        parser.add_argument(f"--model-{side}", help=f"language model of {side.upper()} (default: as recorded)")


def _add_alignment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("alignment", help="folder or repository id")
    parser.add_argument("--revision", help="revision of the alignment's repository")
    for side in "ab":
        parser.add_argument(f"--sae-{side}", help=f"dictionary of {side.upper()} (default: as recorded)")
    _add_models(parser)
    parser.add_argument("--check", choices=("warn", "strict", "ignore"), default="warn", help="how to compare them")


def _align(options: argparse.Namespace) -> None:
    from hubsae import AlignConfig, AnchorConfig, align, load_sae
    from hubsae.store import ALIGNMENT, check_target

    check_target(options.out, ALIGNMENT)
    saes = [load_sae(name) for name in (options.sae_a, options.sae_b)]
    for sae, name, side in zip(saes, (options.sae_a, options.sae_b), "ab", strict=True):
        sae.bind(_model(getattr(options, f"model_{side}"), sae.base_model, name, side))
    names = [item.name for kind in (AlignConfig, AnchorConfig) for item in dataclasses.fields(kind)]
    settings = {name: getattr(options, name) for name in names}
    name = Path(options.texts).name if Path(options.texts).is_file() else options.texts
    found = align(*saes, texts=texts(options), dataset_name=name, **settings)
    found.save_pretrained(options.out)
    if options.causal:
        found.causal_transfer(_strings(options), seed=options.seed)
        found.save_pretrained(options.out)
    print(found.pairs)
    print()
    print(_numbers(found))
    print(f"written to {options.out}")
    pushed(options, found)


def _numbers(found: Any) -> Any:
    import numpy as np

    table = found.metrics_table
    return table.where(np.isin(table["name"].astype(str), _SHOWN))


def _model(given: str | None, base: Any, name: str, side: str) -> Any:
    from hubsae import InterpretableModel
    from hubsae.errors import ConfigError

    if given is not None:
        return InterpretableModel(given)
    if base.repo_id is None:
        raise ConfigError(f"{name} names no repository of its base model; give --model-{side}")
    return InterpretableModel(base.repo_id, revision=base.revision)


def _loaded(options: argparse.Namespace, with_models: bool) -> Any:
    """The alignment, with its dictionaries, and with both models where they are needed."""
    from hubsae import load_alignment
    from hubsae.errors import ConfigError

    found = load_alignment(
        options.alignment, options.sae_a, options.sae_b, revision=options.revision, check=options.check
    )
    if found.dictionaries is None:
        missing = [f"--sae-{side}" for side in "ab" if getattr(options, f"sae_{side}") is None]
        raise ConfigError(
            f"{options.alignment} names no repositories of the dictionaries that were aligned; give "
            f"{' and '.join(missing)}"
        )
    if with_models:
        sides = zip((options.model_a, options.model_b), found.dictionaries, "ab", strict=True)
        a, b = (_model(given, sae.base_model, f"the dictionary of {side.upper()}", side) for given, sae, side in sides)
        found.bind(*found.dictionaries, a, b, options.check)
    return found


def _transfer(options: argparse.Namespace) -> None:
    from hubsae.errors import ConfigError
    from hubsae.interventions import steer_both

    if options.feature is None and options.out is None:
        raise ConfigError("give --feature with --texts, to steer, or --out, to write the dictionary; or both")
    if options.feature is not None and options.texts is None:
        raise ConfigError("--feature is steered at places of texts; give --texts, those of the alignment or others")
    alignment = _loaded(options, options.feature is not None)
    if options.feature is not None:
        print(steer_both(alignment, options.feature, _strings(options), alpha=options.alpha, dose=options.dose))
    if options.out is not None:
        dictionary = alignment.transfer(method=options.method)
        dictionary.save(options.out)
        print(dictionary)
        print(f"written to {options.out}")


def _verify(options: argparse.Namespace) -> None:
    print(_loaded(options, True).verify(_strings(options), progress=True))


def _strings(options: argparse.Namespace) -> Any:
    """The texts that were named, out of their column."""
    from hubsae.tokens import iterate_texts

    return iterate_texts(texts(options), options.text_column)
