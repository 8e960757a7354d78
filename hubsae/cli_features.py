"""Verbs that ask what features mean: `features`, `feature`, `dashboard`, `steer`, `circuits`, `label`."""

import argparse
from pathlib import Path
from typing import Any

from hubsae.cli_options import add_dictionary, add_model, add_texts, bound, command, load, numbers_of, texts

_KEY_VARIABLE = "HUBSAE_LABELER_KEY"


def add(commands: Any) -> None:
    """Add the verbs to the parser's commands."""
    features = command(commands, "features", _features, "what all features do on texts; without texts, what is known")
    _add_analysis(features)
    features.add_argument("--max-tokens", type=int, help="stop after so many tokens")
    _add_replace(features)

    feature = command(commands, "feature", _feature, "one feature: examples, promoted tokens, neighbours")
    _add_analysis(feature)
    feature.add_argument("feature", type=int, help="its number")

    _add_dashboard(commands)

    steer = command(commands, "steer", _steer, "what the model says with features changed, beside what it says without")
    add_dictionary(steer)
    add_model(steer)
    steer.add_argument("--prompt", required=True, help="text to go on with")
    for name, unit in (("add", "typical activations"), ("set", "typical activations"), ("amplify", "times")):
        steer.add_argument(
            f"--{name}", type=_strengths, default={}, metavar="ID=X,...", help=f"features and how far, in {unit}"
        )
    steer.add_argument("--ablate", type=numbers_of, default=[], metavar="ID,...", help="features to set to zero")
    steer.add_argument("--toward", help="a text whose code is added")
    steer.add_argument("--away-from", help="a text whose code is taken off")
    steer.add_argument("--strength", type=float, default=1.0, help="of --toward and --away-from (default: 1)")
    steer.add_argument("--units", choices=("typical", "raw"), default="typical", help="of --add and --set")
    steer.add_argument("--max-tokens", type=int, default=30, help="new tokens (default: 30)")

    circuits = command(commands, "circuits", _circuits, "which features of a layer drive which of a later one")
    circuits.add_argument("dictionaries", nargs="+", help="folders or repositories, of one layer each, earliest first")
    circuits.add_argument("--model", help="their language model (default: as recorded in the first)")
    circuits.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    circuits.add_argument("--prompts", help="a .txt file with a prompt a line")
    circuits.add_argument("--answer", action="append", help="the answer of each prompt (default: what the model says)")
    circuits.add_argument(
        "--foil", action="append", help="an answer to tell from (default: the other prompts' answers)"
    )
    circuits.add_argument("--top-k", type=int, default=20, help="edges to keep (default: 20)")
    circuits.add_argument("--targets", type=int, default=8, help="features of the last layer to explain (default: 8)")
    circuits.add_argument("--out", action="append", default=[], help=".svg, .png or .json to write; may be repeated")

    label = command(commands, "label", _label, "put features into words, and score the words on other examples")
    _add_analysis(label)
    label.add_argument("--labeler", required=True, help="an mlx-lm model's repository or folder, or an endpoint's URL")
    label.add_argument(
        "--labeler-model", help=f"name of the model at the endpoint; its key is taken from {_KEY_VARIABLE}"
    )
    label.add_argument(
        "--features", type=numbers_of, metavar="ID,...", help="features to label (default: all that fire)"
    )
    label.add_argument("--num-examples", type=int, default=20, help="examples to show (default: 20)")
    label.add_argument("--num-scored", type=int, default=20, help="texts to score on (default: 20; 0: no scores)")
    label.add_argument("--relabel", action="store_true", help="also those that have labels")


def _add_dashboard(commands: Any) -> None:
    dashboard = command(commands, "dashboard", _dashboard, "a site of its features: served here, written, or published")
    _add_analysis(dashboard)
    _add_replace(dashboard)
    dashboard.add_argument(
        "--live", action="store_true", help="load its recorded model, to type texts and to steer (--model does so too)"
    )
    dashboard.add_argument(
        "--text", action="append", help="a text to show as a heat map, by its model; may be repeated"
    )
    dashboard.add_argument("--title", help="what the site is called (default: the dictionary's name)")
    dashboard.add_argument("--port", type=int, default=8080, help="to serve it at (default: 8080; 0: any free one)")
    dashboard.add_argument("--no-browser", action="store_true", help="only print the address")
    dashboard.add_argument("--export", metavar="DIR", help="write the site into this folder instead of serving it")
    dashboard.add_argument("--push", metavar="OWNER/NAME", help="publish it as a static Space instead of serving it")
    dashboard.add_argument("--private", action="store_true", default=None, help="make a new Space private")


def _add_analysis(parser: argparse.ArgumentParser) -> None:
    add_dictionary(parser)
    add_model(parser)
    add_texts(parser, required=False)
    parser.add_argument("--out", help="folder to save the dictionary with its features to")


def _add_replace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replace", action="store_true", help="also where what is known comes from more tokens")


def _strengths(text: str) -> dict[int, float]:
    try:
        pairs = [(int(feature), float(value)) for feature, value in (part.split("=") for part in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ID=X,ID=X,...") from None
    if len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: a feature stands there twice")
    return dict(pairs)


def _analysed(options: argparse.Namespace, **limits: Any) -> Any:
    """The dictionary, with a new analysis where texts were given."""
    if not options.texts:
        return bound(options) if options.model else load(options)
    dictionary = bound(options)
    _analyse(dictionary, texts(options), options, **limits)
    return dictionary


def _analyse(dictionary: Any, dataset: Any, options: argparse.Namespace, **limits: Any) -> None:
    name = Path(options.texts).name if Path(options.texts).is_file() else options.texts
    dictionary.feature_statistics(dataset, dataset_name=name, progress=True, **limits)


def _keep(dictionary: Any, known: Any, options: argparse.Namespace) -> None:
    """Save what was found, where that is asked for or nothing larger is lost; known: what was known before."""
    folder = dictionary.source.name if dictionary.source.revision is None else None
    if options.out:
        dictionary.save(options.out)
        print(f"written to {options.out}")
    elif not options.texts:
        return
    elif folder is None:
        print("not kept: the dictionary is in a repository; --out saves it with its features to a folder")
    elif known and known.has_examples and known.n_tokens > dictionary.features.n_tokens and not options.replace:
        print(f"not kept: {folder} has an analysis of {known.n_tokens:,} tokens; --replace or --out keeps this one")
    else:
        dictionary.features.save(folder)
        print(f"features.parquet written to {folder}")


def _features(options: argparse.Namespace) -> None:
    known = load(options).annotations() if options.texts else None
    dictionary = _analysed(options, max_tokens=options.max_tokens)
    print(dictionary.features)
    _keep(dictionary, known, options)


def _dashboard(options: argparse.Namespace) -> None:
    from hubsae.dashboard.build import check_folder
    from hubsae.dashboard.server import check_port
    from hubsae.dashboard.space import check_repo_id

    if options.export:
        check_folder(options.export)
    if options.push is not None:
        check_repo_id(options.push)
    if not options.export and not options.push:
        check_port(options.port)
    dictionary = bound(options) if options.live or options.model or options.texts or options.text else load(options)
    dataset = texts(options) if options.texts else None
    if dataset is not None:
        known = dictionary.annotations()
        _analyse(dictionary, dataset, options)
        _keep(dictionary, known, options)
    given = {"texts": options.text, "title": options.title}
    if options.export:
        print(f"written to {dictionary.export_dashboard(options.export, dataset, progress=True, **given)}")
    if options.push:
        commit = dictionary.push_dashboard(options.push, dataset, private=options.private, progress=True, **given)
        print(commit.commit_url)
    if not options.export and not options.push:
        dictionary.dashboard(dataset, options.port, open_browser=not options.no_browser, say=_say, **given)


def _say(text: str) -> None:
    print(text, flush=True)  # the address is wanted before the server ends


def _feature(options: argparse.Namespace) -> None:
    dictionary = _analysed(options)
    print(dictionary.visualize_feature(options.feature))
    if options.out:
        dictionary.save(options.out)
        print(f"written to {options.out}")


def _steer(options: argparse.Namespace) -> None:
    dictionary = bound(options)
    codes = [dictionary.encode_text(t) if t else 0.0 for t in (options.toward, options.away_from)]
    direction = codes[0] - codes[1] if options.toward or options.away_from else None
    change = dictionary.intervene(
        add=options.add,
        set=options.set,
        amplify=options.amplify,
        ablate=options.ablate,
        direction=direction,
        strength=options.strength,
        units=options.units,
    )
    model = dictionary.model
    for name, interventions in (("as it is", None), ("changed", change)):
        with model.trace(options.prompt, interventions) as trace:
            likely = model.get_token_predictions(trace.logits, 5)
        text = model.generate(options.prompt, interventions=interventions, max_tokens=options.max_tokens)
        print(f"{name}: {options.prompt!r} -> {text!r}")
        print("  next: " + ", ".join(f"{p.token!r} {100 * p.probability:.1f} %" for p in likely))


def _circuits(options: argparse.Namespace) -> None:
    from hubsae import InterpretableModel, find_feature_circuits, load_sae
    from hubsae.errors import ConfigError
    from hubsae.graph_drawing import check_picture
    from hubsae.tokens import read_texts

    pictures = [check_picture(out) for out in options.out if not out.endswith(".json")]
    if len(options.dictionaries) < 2:
        raise ConfigError("give the dictionaries of at least two layers")
    saes = {}
    for name in options.dictionaries:
        dictionary = load_sae(name)
        layer = dictionary.config.write_sites[0].layer
        if layer in saes:
            raise ConfigError(f"{name}: a dictionary of layer {layer} was given already")
        saes[layer] = dictionary
    base = next(iter(saes.values())).base_model
    if options.model is None and base.repo_id is None:
        raise ConfigError(f"{options.dictionaries[0]} names no repository of its base model; give --model")
    model = (
        InterpretableModel(options.model) if options.model else InterpretableModel(base.repo_id, revision=base.revision)
    )
    for dictionary in saes.values():
        dictionary.bind(model)
    prompts = [*options.prompt, *(read_texts(options.prompts) if options.prompts else [])]
    if not prompts:
        raise ConfigError("no prompts: give --prompt or --prompts")
    circuit = find_feature_circuits(
        model,
        saes,
        min(saes),
        max(saes),
        prompts,
        options.top_k,
        n_targets=options.targets,
        answers=options.answer,
        foils=options.foil,
    )
    print(circuit)
    for picture in pictures:
        circuit.visualize().save(picture)
    for out in options.out:
        if out.endswith(".json"):
            Path(out).write_text(circuit.to_json(), encoding="utf-8")
        print(f"written to {out}")


def _label(options: argparse.Namespace) -> None:
    import os

    from hubsae.errors import ConfigError
    from hubsae.labelers import EndpointLabeler

    dictionary = load(options)
    folder = options.out or (dictionary.source.name if dictionary.source.revision is None else None)
    if folder is None:
        raise ConfigError(f"{options.dictionary} is a repository: give --out, a folder to keep the labels in")
    dictionary = _analysed(options)
    if dictionary.model is None:
        dictionary = bound(options)
    if options.out and not (Path(options.out) / "config.json").exists():
        dictionary.save(options.out)  # whole from the start, whatever becomes of the run
    labeler = options.labeler
    if labeler.startswith(("http://", "https://")):
        labeler = EndpointLabeler(labeler, options.labeler_model, os.environ.get(_KEY_VARIABLE))
    found = dictionary.auto_label_features(
        labeler,
        options.features,
        num_examples=options.num_examples,
        num_scored=options.num_scored,
        relabel=options.relabel,
        save_path=folder,
    )
    print(found)
    print(f"features.parquet written to {folder}")
