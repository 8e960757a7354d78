"""Verbs about other libraries' dictionaries: `list` and `convert`."""

import argparse
import contextlib
from functools import partial
from typing import Any

from hubsae.cli_options import command, numbers_of
from hubsae.errors import ConfigError
from hubsae.tables import plain

_TARGETS = ("hubsae", "saelens", "sparsify", "circuit-tracer", "neuronpedia")


def add(commands: Any) -> None:
    """Add the verbs."""
    listing = command(
        commands, "list", _list, "the dictionaries that a folder or repository holds, in any known layout"
    )
    listing.add_argument("source", help="folder or repository id")
    listing.add_argument("--revision", help="revision of the repository")

    convert = command(commands, "convert", _convert, "write dictionaries of one layout as another library loads them")
    convert.add_argument("source", help="folder, file or repository id")
    convert.add_argument("folder", help="folder to write")
    convert.add_argument("--to", choices=_TARGETS, default="hubsae", help="whose layout (default: hubsae)")
    convert.add_argument("--revision", help="revision of the source's repository")
    convert.add_argument("--subfolder", action="append", help="dictionary inside it; repeat it for circuit-tracer")
    convert.add_argument("--model", help="its language model, where the gain of a norm has to be folded in")
    said = convert.add_argument_group("what the source's files leave out")
    said.add_argument("--reads", action="append", help="site that it reads, such as layers.10.residual")
    said.add_argument("--writes", action="append", help="site that it writes, if another")
    said.add_argument("--k", type=int, help="active features of a TopK")
    said.add_argument(
        "--input-scales", type=partial(numbers_of, kind=float), help="factors of the rows before encoding, with commas"
    )
    records = convert.add_argument_group("for neuronpedia")
    records.add_argument("--model-id", help="Neuronpedia's name of the model")
    records.add_argument("--source-set", help="name of the set that the features go into")


def _list(options: argparse.Namespace) -> None:
    from hubsae import list_dictionaries
    from hubsae.errors import HubError
    from hubsae.members import is_collection, members
    from hubsae.tables import Table

    with contextlib.suppress(HubError):  # what is said below of an index or a collection, or of nothing at all
        if not is_collection(options.source):
            print(list_dictionaries(options.source, revision=options.revision))
            return
    found = members(options.source, options.revision)
    rows = [("/".join(filter(None, (one.source, one.subfolder))), _reads(one), one.k or "") for one in found]
    print(Table(f"{options.source}: {len(rows)} dictionaries", ("repository", "reads", "k"), rows))


def _reads(member: Any) -> str:
    return " + ".join(map(str, member.reads or ()))


def _convert(options: argparse.Namespace) -> None:
    from hubsae import export_transcoder_set

    chosen = options.subfolder or [None]
    if options.to == "circuit-tracer":
        print(export_transcoder_set([_load(options, one) for one in _layers(options)], options.folder))
        return
    if len(chosen) > 1:
        raise ConfigError("only circuit-tracer takes several dictionaries at once; convert them one by one")
    dictionary = _load(options, chosen[0])
    print(dictionary)
    for label, value in provenance(dictionary):
        print(f"{label:12} {value}")
    if options.to == "hubsae":
        dictionary.save(options.folder)
    elif options.to == "neuronpedia":
        if not (options.model_id and options.source_set):
            raise ConfigError(
                "neuronpedia needs --model-id and --source-set, as the model and the set are called there"
            )
        dictionary.export_features(options.folder, model_id=options.model_id, source_set=options.source_set)
    else:
        dictionary.export(options.folder, options.to)
    print(f"written to {options.folder}")


def _layers(options: argparse.Namespace) -> list[str | None]:
    """The dictionaries of a set: those named, or all that the source holds."""
    from hubsae import list_dictionaries

    if options.subfolder:
        return options.subfolder
    return [entry.subfolder or None for entry in list_dictionaries(options.source, revision=options.revision)]


def _load(options: argparse.Namespace, subfolder: str | None) -> Any:
    from hubsae import load_sae

    return load_sae(
        options.source,
        options.model,
        revision=options.revision,
        subfolder=subfolder,
        reads=options.reads,
        writes=options.writes,
        k=options.k,
        input_scales=options.input_scales,
    )


def provenance(dictionary: Any) -> list[tuple[str, str]]:
    """Of what was imported: where from, what was folded away, and what nobody recorded."""
    found = dictionary.statistics.get("imported")
    if not isinstance(found, dict):
        return []
    rows = [("made with", plain(f"{found.get('format')}, read from {found.get('from')}"))]
    named = (("folded", "folded"), ("unknown", "unknown"), ("note", "notes"), ("as you said", "given by the user"))
    for label, name in named:
        if isinstance(values := found.get(name), list) and values:
            rows.append((label, plain("; ".join(map(str, values)))))
    return rows
