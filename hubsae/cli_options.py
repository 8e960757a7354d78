"""What verbs of the command line share: dictionaries, texts and models that are named by flags."""

import argparse
import dataclasses
import types
import typing
from typing import Any

MESSAGE = "Push with hubsae"


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A verb, and what runs it."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def add_dictionary(parser: argparse.ArgumentParser) -> None:
    """The dictionary that a verb is about."""
    parser.add_argument("dictionary", help="folder or repository id")
    parser.add_argument("--revision", help="revision of the dictionary's repository")
    parser.add_argument("--subfolder", help="folder (or file) inside it; `hubsae list` shows them")
    parser.add_argument(
        "--layer", type=int, help="of several dictionaries, of an index or collection: one that reads it"
    )
    parser.add_argument("--component", help="likewise: one that reads this component")
    parser.add_argument(
        "--k", type=int, help="of those: the one with so many active features; or what a TopK's files leave out"
    )


def add_texts(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The texts that a verb reads."""
    parser.add_argument(
        "--texts", required=required, help=".txt (a text a line), .jsonl, .csv, .parquet, or a dataset id"
    )
    parser.add_argument("--split", default="train", help="split of a dataset repository (default: train)")
    parser.add_argument("--subset", help="configuration of a dataset repository")


def numbers_of(text: str, kind: type = int) -> list[Any]:
    """`"8,10,12"` -> the numbers."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between them") from None


def texts(options: argparse.Namespace) -> Any:
    """The texts that were named."""
    from hubsae.tokens import read_texts

    return read_texts(options.texts, split=options.split, subset=options.subset)


def load(options: argparse.Namespace) -> Any:
    """The dictionary that was named, bound to no model."""
    from hubsae import load_sae

    names = ("layer", "component", "revision", "subfolder", "k")
    return load_sae(options.dictionary, **{name: getattr(options, name) for name in names})


def add_model(parser: argparse.ArgumentParser) -> None:
    """The language model, if not the recorded one."""
    parser.add_argument("--model", action="append", help="its language model (default: as recorded); twice for two")
    parser.add_argument("--check", choices=("warn", "strict", "ignore"), default="warn", help="how to compare them")


def models_of(dictionary: Any, options: argparse.Namespace) -> list[Any]:
    """The models given, or those recorded in the dictionary."""
    from hubsae import InterpretableModel
    from hubsae.errors import ConfigError

    if options.model:
        return list(options.model)
    if any(base.repo_id is None for base in dictionary.base_models):
        raise ConfigError(f"{options.dictionary} names no repository of its base model; give --model")
    return [InterpretableModel(base.repo_id, revision=base.revision) for base in dictionary.base_models]


def bound(options: argparse.Namespace) -> Any:
    """The dictionary that was named, bound to the models given, or to those recorded in it."""
    dictionary = load(options)
    dictionary.bind(models_of(dictionary, options), options.check)
    return dictionary


def add_push(parser: argparse.ArgumentParser) -> None:
    """Where what a verb makes is published, and how."""
    parser.add_argument("--push", metavar="OWNER/NAME", help="publish it as a dataset repository")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--tag", help="tag the commit")
    parser.add_argument("--message", default=MESSAGE, help="commit message")
    parser.add_argument("--license", help="the Hub's id of a licence for what is published")


def pushed(options: argparse.Namespace, made: Any) -> None:
    """Publish what was made, where that was asked for."""
    if not options.push:
        return
    how = {name: getattr(options, name) for name in ("private", "tag", "license")}
    commit = made.push_to_hub(options.push, commit_message=options.message, **how)
    print(commit.pr_url or commit)


def add_fields(parser: argparse.ArgumentParser, title: str, config: type, without: tuple[str, ...] = ()) -> None:
    """A flag for every field of a settings dataclass."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        if item.name in without:
            continue
        flag, kind = "--" + item.name.replace("_", "-"), hints[item.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        note = f"default: {item.default}"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default, help=note)
        elif typing.get_origin(kind) is tuple:
            group.add_argument(flag, type=_shares, default=item.default, metavar="A,B,...", help=note)
        else:
            group.add_argument(flag, type=kind, default=item.default, metavar=kind.__name__.upper(), help=note)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
