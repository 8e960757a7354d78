"""`hubsae`: a verb for each thing that is done often. Flags are the fields of the settings dataclasses."""

import argparse
import dataclasses
import io
import sys
import warnings
from pathlib import Path
from typing import Any

from hubsae import cli_features, cli_formats, cli_pairs, cli_reports
from hubsae.cli_options import (
    MESSAGE,
    add_dictionary,
    add_fields,
    add_model,
    add_texts,
    bound,
    command,
    load,
    models_of,
    numbers_of,
    texts,
)
from hubsae.errors import HubsaeError, HubsaeWarning


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 fine, 1 an error that is explained, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a sign shows a question mark
    try:
        options.run(options)
    except HubsaeError as error:
        print(f"hubsae: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"hubsae: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hubsae: stopped", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    if issubclass(category, HubsaeWarning):
        print(f"hubsae: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hubsae", description="Sparse dictionaries of language models, on MLX.")
    commands = parser.add_subparsers(required=True, metavar="command")

    _add_training(commands)

    evaluate = command(commands, "evaluate", _evaluate, "judge a dictionary on texts it was not trained on")
    add_dictionary(evaluate)
    add_texts(evaluate)
    add_model(evaluate)
    evaluate.add_argument("--text-column", default="text", help="column of the texts (default: text)")
    evaluate.add_argument("--max-rows", type=int, default=50_000, help="tokens to use (default: 50000)")

    _add_push(commands)

    show = command(commands, "show", _show, "what is in this repository: model, site, metrics, compatibility")
    add_dictionary(show)
    show.add_argument("--model", action="append", help="also compare it with this language model; twice for two")

    check = command(commands, "check", _check, "compare a dictionary with a language model, field by field")
    add_dictionary(check)
    check.add_argument("--model", action="append", help="the language model (default: as recorded); twice for two")
    check.add_argument(
        "--check", choices=("warn", "strict"), default="warn", help="strict: doubts end with status 1 too"
    )

    cli_formats.add(commands)
    cli_features.add(commands)
    cli_pairs.add(commands)
    cli_reports.add(commands)
    command(commands, "env", _env, "what hubsae computes with here")
    demo = command(commands, "demo", _demo, "train, judge, explain and steer SAEs of the embedded model, offline")
    demo.add_argument("--out", default="demo-saes", help="folder to write (default: demo-saes)")
    return parser


def _add_push(commands: Any) -> None:
    push = command(commands, "push", _push, "publish a folder of hubsae as a Hub repository, in one commit")
    push.add_argument(
        "folders",
        nargs="+",
        metavar="folder",
        help="a dictionary, a report or an alignment; several dictionaries: --collection",
    )
    push.add_argument("repo_id", help="owner/name; of a collection its index, and how its repositories begin")
    push.add_argument(
        "--collection",
        nargs="?",
        const="",
        metavar="TITLE",
        help="a repository for each dictionary of the folders, an index, and a collection of them all",
    )
    push.add_argument(
        "--replace", action="store_true", help="with --collection: take out what is not among the folders"
    )
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--branch", help="push there instead of main")
    push.add_argument("--create-pr", action="store_true", default=None, help="open a pull request")
    push.add_argument("--tag", help="tag the commit")
    push.add_argument("--message", default=MESSAGE, help="commit message")
    push.add_argument(
        "--card",
        choices=("merge", "keep", "replace"),
        default="merge",
        help="what to do with a card that people edited",
    )
    push.add_argument("--license", help="the Hub's id of a licence (default: that of the base model)")
    push.add_argument("--also", action="append", choices=("saelens", "sparsify"), help="add this form; may be repeated")


def _add_training(commands: Any) -> None:
    """One command for each kind; what they share is added to all, settings come from the kind's dataclass."""
    from hubsae.recipe import CrosscoderConfig, SAEConfig, TranscoderConfig

    sae = command(commands, "train", _train_sae, "train SAEs of a language model, and save a folder for each")
    sae.add_argument("model", help="repository id or folder of an mlx-lm model")
    sae.add_argument("--layer", type=numbers_of, required=True, help="layer to read, from 0; 8,10,12 trains three")
    sae.add_argument("--component", default="mlp", help="residual, mlp, attn, ..._in or a path (default: mlp)")

    transcoder = command(commands, "train-transcoder", _train_transcoder, "train a transcoder, and save its folder")
    transcoder.add_argument("model", help="repository id or folder of an mlx-lm model")
    transcoder.add_argument("--from-layer", type=int, required=True, help="layer to read, from 0")
    transcoder.add_argument("--to-layer", type=int, required=True, help="layer to predict")
    transcoder.add_argument(
        "--component", default="mlp", help="in one layer from its input to its output (default: mlp)"
    )
    transcoder.add_argument("--from-component", help="component to read, if another")
    transcoder.add_argument("--to-component", help="component to predict, if another")

    crosscoder = command(commands, "train-crosscoder", _train_crosscoder, "train a crosscoder, and save its folder")
    crosscoder.add_argument("model", nargs="+", help="repository id or folder of an mlx-lm model, or of several")
    crosscoder.add_argument(
        "--layers", type=numbers_of, help="one component over these layers, or a layer of each model"
    )
    crosscoder.add_argument("--layer", type=int, help="several components of this layer")
    crosscoder.add_argument("--component", default="residual", help="component of the layers (default: residual)")
    crosscoder.add_argument("--components", help="components of the layer, with commas")

    for parser, config in ((sae, SAEConfig), (transcoder, TranscoderConfig), (crosscoder, CrosscoderConfig)):
        add_texts(parser)
        parser.add_argument("--out", required=True, help="folder to write")
        parser.add_argument("--revision", help="revision of the model's repository")
        parser.add_argument("--training-tokens", type=int, help="stop after so many (needed for streamed datasets)")
        parser.add_argument("--cache-dir", help="keep activations on disk here")
        parser.add_argument("--checkpoint-dir", help="keep the state of the run here, and go on from it")
        parser.add_argument("--report-to", choices=("trackio",), help="where the numbers of the run go")
        _add_settings(parser, config)


def _add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    from hubsae.tokens import TokenConfig

    add_fields(parser, "training", settings)
    add_fields(parser, "texts to tokens", TokenConfig)


def _settings(options: argparse.Namespace, config: type) -> Any:
    return config(**{item.name: getattr(options, item.name) for item in dataclasses.fields(config)})


def _train_sae(options: argparse.Namespace) -> None:
    from hubsae import InterpretableModel, SAEConfig

    model = InterpretableModel(options.model, revision=options.revision)
    layer = options.layer if len(options.layer) > 1 else options.layer[0]
    _tell(options, model.train_sae(layer, component=options.component, **_circumstances(options, SAEConfig)))


def _train_transcoder(options: argparse.Namespace) -> None:
    from hubsae import InterpretableModel, TranscoderConfig

    model = InterpretableModel(options.model, revision=options.revision)
    sites = {n: getattr(options, n) for n in ("from_layer", "to_layer", "component", "from_component", "to_component")}
    _tell(options, model.train_transcoder(**sites, **_circumstances(options, TranscoderConfig)))


def _train_crosscoder(options: argparse.Namespace) -> None:
    from hubsae import CrosscoderConfig, InterpretableModel, train_crosscoder
    from hubsae.errors import ConfigError

    models = [InterpretableModel(source, revision=options.revision) for source in options.model]
    run = _circumstances(options, CrosscoderConfig)
    if len(models) > 1:
        if options.layer is not None or options.components is not None:
            raise ConfigError("with several models give --layers, one for each of them, and one --component")
        _tell(options, train_crosscoder(models, layers=options.layers, component=options.component, **run))
        return
    components = options.components.split(",") if options.components else None
    sites = {"layer": options.layer, "layers": options.layers, "component": options.component, "components": components}
    _tell(options, models[0].train_crosscoder(**sites, **run))


def _circumstances(options: argparse.Namespace, config: type) -> dict[str, Any]:
    from hubsae import TokenConfig
    from hubsae.errors import ConfigError

    dataset = texts(options)
    if options.training_tokens is None and not hasattr(dataset, "__len__"):
        raise ConfigError(
            f"{options.texts} is streamed, so its length is not known and training cannot be planned; give "
            "--training-tokens, the number of tokens to use"
        )
    return {
        "dataset": dataset,
        "save_path": options.out,
        "config": _settings(options, config),
        "training_tokens": options.training_tokens,
        "tokens": _settings(options, TokenConfig),
        "dataset_name": Path(options.texts).name if Path(options.texts).is_file() else options.texts,
        "cache_dir": options.cache_dir,
        "checkpoint_dir": options.checkpoint_dir,
        "report_to": options.report_to,
    }


def _tell(options: argparse.Namespace, found: Any) -> None:
    from hubsae.distributed import ranks

    if not ranks().first:  # of several processes one speaks
        return
    for dictionary in found if isinstance(found, list) else [found]:
        print(dictionary)
        print(_numbers(dictionary.metrics))
    print(f"written to {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    sae = bound(options)
    print(sae)
    print(sae.evaluate(texts=texts(options), max_rows=options.max_rows, text_column=options.text_column))


def _push(options: argparse.Namespace) -> None:
    from hubsae import push_family
    from hubsae.errors import ArtifactError, ConfigError

    if missing := [folder for folder in options.folders if not Path(folder).is_dir()]:
        raise ArtifactError(f"{missing[0]}: no such folder; `hubsae train --out` writes one")
    shared = {name: getattr(options, name) for name in ("private", "card", "tag", "also", "license")}
    if options.collection is not None:
        if options.branch or options.create_pr:
            raise ConfigError("--collection publishes to main; leave --branch and --create-pr out")
        shared |= {"title": options.collection or None, "replace": options.replace}
        print(push_family(options.folders, options.repo_id, **shared))
        return
    if len(options.folders) > 1:
        raise ConfigError(f"{len(options.folders)} folders: --collection gives each a repository of its own")
    commit = _artifact(Path(options.folders[0])).push_to_hub(
        options.repo_id,
        branch=options.branch,
        create_pr=options.create_pr,
        commit_message=options.message,
        **shared,
    )
    print(commit.pr_url or commit)


def _artifact(folder: Path) -> Any:
    """What a folder holds: a report, an alignment without its dictionaries, or a dictionary."""
    from hubsae import load_report, load_sae
    from hubsae.alignment import StoredAlignment
    from hubsae.errors import ConfigError
    from hubsae.store import ALIGNMENT, CONFIG, REPORT

    if (folder / REPORT).is_file():
        return load_report(folder)
    if (folder / ALIGNMENT).is_file():
        return StoredAlignment.from_pretrained(folder)
    inside = [] if (folder / CONFIG).is_file() else sorted(folder.glob(f"*/{CONFIG}"))
    if len(inside) > 1:
        raise ConfigError(
            f"{folder} holds {len(inside)} dictionaries: --collection gives each a repository of its own; or name one, "
            f"such as {inside[0].parent}"
        )
    return load_sae(folder)


def _show(options: argparse.Namespace) -> None:
    sae = load(options)
    config = sae.config
    rows = [
        ("source", sae.source),
        ("kind", config.kind),
        ("base model", ", ".join(base.label for base in sae.base_models)),
        ("reads", ", ".join(f"{s} ({w})" for s, w in zip(config.reads, config.read_widths, strict=True))),
        ("writes", ", ".join(f"{s} ({w})" for s, w in zip(config.writes, config.write_widths, strict=True))),
        ("features", f"{config.n_features:,}"),
        ("sparsity", sae.rule),
        ("trained on", f"{sae.statistics['rows']} tokens" if "rows" in sae.statistics else "not recorded"),
        ("format", f"{config.format_version}, written by hubsae {config.library_version}"),
    ]
    for label, value in rows:
        print(f"{label:12} {value}")
    for label, value in cli_formats.provenance(sae):
        print(f"{label:12} {value}")
    print(_numbers(sae.metrics))
    if options.model:
        differences = sae.bind(options.model, "ignore")
        print(f"compared with {', '.join(model.identity.label for model in sae.models)}:")
        for difference in differences:
            print(f"  {difference.severity:8} {difference}")
        worst = differences[0].severity if differences else "silent"
        print(
            {
                "error": "it does not fit",
                "warning": "it fits, with doubts",
                "equivalent": "it fits",
                "silent": "it fits",
            }[worst]
        )


def _check(options: argparse.Namespace) -> None:
    from hubsae.errors import CompatibilityError
    from hubsae.store import sum_of_sums
    from hubsae.tables import Table

    sae = load(options)
    fields = sae.compared_with(models_of(sae, options))
    rows = [(one.field, _told(one.recorded), _told(one.found), one.verdict) for one in fields]
    print(Table(f"{sae.source}", ("field", "recorded", "found", "verdict"), rows))
    files = sae.compared_files()
    if files:
        print(Table("files", ("file", "sha256 on the card", "of the file", "verdict"), [_short(one) for one in files]))
        print(f"sha256 of the folder: {sum_of_sums({one.field: str(one.found) for one in files})}")
    verdicts = {one.verdict for one in (*fields, *files)}
    if "error" in verdicts:
        raise CompatibilityError("it does not fit this model")
    if "warning" in verdicts:
        if options.check == "strict":
            raise CompatibilityError("it fits, with doubts, which --check strict does not let pass")
        print("it fits, with doubts")
    elif "equivalent" in verdicts:
        print("it fits: other files, and the same to the dictionary within rounding")
    else:
        print("nothing known speaks against it" if "unknown" in verdicts else "it fits")


def _short(one: Any) -> tuple[str, ...]:
    return (one.field, *(f"{str(value)[:12]}" for value in (one.recorded, one.found)), one.verdict)


def _told(value: Any) -> str:
    return "not known" if value is None else str(value)


def _numbers(metrics: dict) -> str:
    names = ("fvu", "l0", "dead_share", "cosine", "ce_recovered", "kl")
    found = [f"{name} {metrics[name]:.4g}" for name in names if isinstance(metrics.get(name), int | float)]
    return "metrics      " + (", ".join(found) if found else "none recorded")


def _env(options: argparse.Namespace) -> None:
    from importlib.metadata import PackageNotFoundError, version

    from hubsae import backend

    found = backend.describe()
    print(f"device       {found.device} ({found.device_name})")
    print(f"BLAS         {found.blas_name}" + (f" ({found.blas})" if found.blas else ""))
    if found.note:
        print(f"note         {found.note}")
    for package in ("hubsae", "mlx", "mlx-lm", "huggingface-hub", "safetensors", "datasets", "numpy", "scipy"):
        try:
            print(f"{package:12} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:12} missing")


def _demo(options: argparse.Namespace) -> None:
    from hubsae.demo.run import run

    run(options.out, print)


if __name__ == "__main__":
    sys.exit(main())
