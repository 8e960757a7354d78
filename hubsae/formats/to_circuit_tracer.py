"""Export to circuit-tracer: a set of per-layer transcoders, `config.yaml` + `layer_{i}.safetensors`."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from hubsae.dictionary import Dictionary
from hubsae.errors import ArtifactError
from hubsae.formats.circuit_tracer import CONFIG
from hubsae.formats.exported import arrays_of, cannot, mark, one_place, save, thresholds
from hubsae.formats.hook_names import hook_of
from hubsae.sites import Site

LIBRARY = "circuit-tracer"


def write_transcoder_set(transcoders: Sequence[Dictionary], folder: Path) -> None:
    """Write transcoders of layers 0 to n - 1 of one model as a set; raises `ArtifactError` for what is none."""
    by_layer: dict[int, Dictionary] = {}
    for transcoder in transcoders:
        _check(transcoder)
        layer = transcoder.config.write_sites[0].layer
        if layer in by_layer:
            raise ArtifactError(f"two transcoders of layer {layer}: {by_layer[layer].label} and {transcoder.label}")
        by_layer[layer] = transcoder
    if missing := sorted(set(range(max(by_layer, default=-1) + 1)) - set(by_layer)):
        raise cannot(LIBRARY, f"needs a transcoder for every layer from 0; layers {missing} are missing")
    first = by_layer[0]
    for layer, other in by_layer.items():
        if _place(other) != _place(first) or other.n_features != first.n_features:
            raise cannot(
                LIBRARY,
                f"has one place, model and width for all layers, but layer 0 is {first.label} with {first.n_features} "
                f"features, layer {layer} {other.label} with {other.n_features}",
            )
    for layer, transcoder in by_layer.items():
        save(folder / f"layer_{layer}.safetensors", _arrays(transcoder))
    _, hook_in, hook_out = _place(first)
    config = {"model_name": first.base_model.repo_id, "model_kind": "transcoder_set"}
    config |= {"feature_input_hook": hook_in, "feature_output_hook": hook_out, "exported_by": mark()}
    text = yaml.safe_dump({key: value for key, value in config.items() if value is not None}, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _check(transcoder: Dictionary) -> None:
    one_place(transcoder, LIBRARY)
    c = transcoder.config
    read, written = c.read_sites[0], c.write_sites[0]
    if c.kind != "transcoder" or read.layer != written.layer:
        raise cannot(LIBRARY, f"has transcoders within a layer; this is a {c.kind} from {read} to {written}")
    if c.d_in != c.d_out:
        raise cannot(LIBRARY, f"has equal widths on both sides, not {c.d_in} and {c.d_out}")
    if transcoder.rule.name not in ("relu", "jumprelu", "batchtopk"):
        raise cannot(LIBRARY, f"has ReLU and JumpReLU, but no {transcoder.rule}")
    if None in _place(transcoder)[1:]:
        raise cannot(LIBRARY, f"names places as TransformerLens does, which has no name for {read} or {written}")


def _place(transcoder: Dictionary) -> tuple[str | None, str | None, str | None]:
    """Its model, and the names of the two places inside a block."""
    c, base = transcoder.config, transcoder.base_model
    known = base.model_type or base.repo_id
    read, written = (_inside(sites[0], known) for sites in (c.read_sites, c.write_sites))
    return base.repo_id, read, written


def _inside(site: Site, model: str | None) -> str | None:
    """The name of a place inside a block; those of the MLP as its backends without TransformerLens know them too."""
    hook = hook_of(site, model)
    return {"mlp_in": "mlp.hook_in", "mlp": "mlp.hook_out"}.get(site.component) or (hook and hook.split(".", 2)[2])


def _arrays(transcoder: Dictionary) -> dict:
    arrays = arrays_of(transcoder)
    own = {"W_enc": arrays["W_enc"].T, "W_dec": arrays["W_dec"], "b_enc": arrays["b_enc"], "b_dec": arrays["b_dec"]}
    if (threshold := thresholds(transcoder, arrays)) is not None:
        own["activation_function.threshold"] = threshold
    if transcoder.config.skip:
        own["W_skip"] = arrays["W_skip"].T
    return own
