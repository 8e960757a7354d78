"""Gemma Scope 1 (`params.npz`) and 2 (`config.json` + `params.safetensors`); JumpReLU on raw activations."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import base_model, site_of_hook, site_of_module
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, refused, setting
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.sites import Site
from hubsae.sparsity import JumpReLU

PARAMS_1, PARAMS_2, CONFIG_2 = "params.npz", "params.safetensors", "config.json"
_CROSS_LAYER = re.compile(r"(?:^|/)clt/.+\.safetensors$")
_NORMED = "ln2.hook_normalized"
_TOKENS = {"context_size": 1024, "add_special_tokens": True}  # by its technical report


def _read_1(files: RepoFiles, entry: str, given: Given) -> Imported:
    name = beside(entry, PARAMS_1)
    tensors = Tensors.read(files.path(name), name)
    parts = _parts(tensors, {"W_enc": "W_enc", "W_dec": "W_dec"})
    d_in, d_out = parts.W_enc.shape[0], parts.W_dec.shape[1]
    found = _published(files, entry)
    if found and found.kind == "embedding":  # the embeddings that it reads are scaled by sqrt(d) in the model
        parts = parts.scaled(1 / math.sqrt(d_in))
    is_transcoder = bool(found and found.kind == "transcoders")
    reads, writes = given.places(
        lambda: found.site(given) if found else None,
        (lambda: found.site(given, "hook_mlp_out")) if found and is_transcoder else None,
    )
    return Imported(
        "Gemma Scope",
        parts,
        JumpReLU(),
        reads,
        writes,
        (d_in,),
        (d_out,),
        (base_model(found.model if found else None),),
        _TOKENS if found else {},
        {"published as": found.name} if found else {},
        before_gain=is_transcoder and not given.reads,
    )


@dataclass(frozen=True)
class _Published:
    """What the name of a repository and of a folder in it say."""

    name: str
    model: str
    kind: str
    layer: int

    def site(self, given: Given, hook: str | None = None) -> Site:
        if self.kind == "embedding":
            return site_of_hook("hook_embed", self.model)
        own = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", "transcoders": _NORMED}
        return site_of_hook(f"blocks.{self.layer}.{hook or own[self.kind]}", given.model_type or self.model)


def _published(files: RepoFiles, entry: str) -> _Published | None:
    """By `gemma-scope-2b-pt-res` as a whole part of the address, and what stands behind it."""
    parts = [part.rpartition("--")[2] for part in f"{files.address}/{entry}".split("/")]  # -- as the Hub's cache has it
    for at in reversed(range(len(parts))):
        match = re.fullmatch(r"gemma-scope-([0-9]{1,3}b)-(pt|it)-(res|mlp|att|transcoders)", parts[at])
        if not match:
            continue
        model = f"gemma-2-{match[1]}" + ("-it" if match[2] == "it" else "")
        layers = [m for part in parts[at + 1 :] if (m := re.fullmatch(r"layer_([0-9]{1,4})", part))]
        if match[3] == "res" and "embedding" in parts[at + 1 :]:
            return _Published(match[0], model, "embedding", 0)
        return _Published(match[0], model, match[3], int(layers[-1][1])) if layers else None
    return None


def _read_2(files: RepoFiles, entry: str, given: Given) -> Imported:
    if _CROSS_LAYER.search(entry):
        raise refused(
            "a cross-layer transcoder", "what it writes to a layer is a sum over the features of earlier ones"
        )
    config = files.json(beside(entry, CONFIG_2))
    name = beside(entry, PARAMS_2)
    architecture = setting(config, "architecture", str)
    if architecture not in ("jump_relu", "jumprelu"):
        raise ArtifactError(f"architecture {architecture[:60]!r} of Gemma Scope 2 is not known here, only 'jump_relu'")
    tensors = Tensors.read(files.path(name), name)
    parts = _parts(tensors, {"W_enc": "w_enc", "W_dec": "w_dec"}, skip="affine_skip_connection")
    wanted = setting(config, "affine_connection", bool, parts.W_skip is not None)
    if wanted != (parts.W_skip is not None):
        raise ArtifactError(f"{name}: affine_connection is {wanted} in its settings, but its arrays say otherwise")
    d_in, d_out = parts.W_enc.shape[0], parts.W_dec.shape[1]
    if config.get("width") not in (None, parts.n_features) and isinstance(config["width"], int):
        raise ArtifactError(f"{name}: {parts.n_features} features, but its settings say width {config['width']}")
    model = setting(config, "model_name", str, None)
    read = setting(config, "hf_hook_point_in", str, None)
    written = setting(config, "hf_hook_point_out", str, None)
    is_transcoder = bool(written and written != read)
    reads, writes = given.places(
        lambda: site_of_module(read) if read else None,
        (lambda: site_of_module(written or "")) if is_transcoder else None,
    )
    recorded = {k: config[k] for k in ("model_name", "hf_hook_point_in", "hf_hook_point_out", "l0") if config.get(k)}
    models = (base_model(model.replace("-v3", "-3") if model else None),)
    return Imported("Gemma Scope 2", parts, JumpReLU(), reads, writes, (d_in,), (d_out,), models, _TOKENS, recorded)


def _parts(tensors: Tensors, names: dict[str, str], skip: str | None = None) -> Parts:
    shape = tensors.shape(names["W_enc"])
    if len(shape) != 2 or len(tensors.shape(names["W_dec"])) != 2:
        raise ArtifactError(f"{tensors.where}: weights of shapes {shape} and {tensors.shape(names['W_dec'])}")
    (d_in, n), d_out = shape, tensors.shape(names["W_dec"])[1]
    parts = Parts(
        tensors.take(names["W_enc"], (d_in, n)),
        tensors.take("b_enc", (n,)),
        tensors.take(names["W_dec"], (n, d_out)),
        tensors.take("b_dec", (d_out,)),
        {"threshold": tensors.take("threshold", (n,))},
        tensors.optional(skip, (d_in, d_out)) if skip else None,
    )
    tensors.finish()
    return parts


def _find_2(names: Sequence[str]) -> list[str]:
    return [*folders_with(names, PARAMS_2, CONFIG_2), *(name for name in names if _CROSS_LAYER.search(name))]


LAYOUT_1 = Layout("Gemma Scope", lambda names: folders_with(names, PARAMS_1), _read_1)
LAYOUT_2 = Layout("Gemma Scope 2", _find_2, _read_2)
