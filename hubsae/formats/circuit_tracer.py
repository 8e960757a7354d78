"""circuit-tracer's sets of per-layer transcoders: `config.yaml` and a `layer_{i}.safetensors` for each layer."""

import re
from collections.abc import Iterator, Sequence

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import base_model, is_before_gain, site_of_hook
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, rectified, refused, setting
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors

CONFIG = "config.yaml"
_LAYER = re.compile(r"(?:(.*)/)?layer_(\d+)\.safetensors")
_CROSS_LAYER = "W_enc_0.safetensors"
_RUNS = ("wandb-config.yaml", "wanb-config.yaml")  # the second as some repositories spell it


def _find(names: Sequence[str]) -> Iterator[str]:
    there = set(names)
    for name in names:
        match = _LAYER.fullmatch(name)
        if match and any(beside(match[1] or "", config) in there for config in (CONFIG, *_RUNS)):
            yield name
    yield from folders_with(names, CONFIG, _CROSS_LAYER)  # refused by name


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    folder = files.folder_of(entry)
    config = files.yaml(beside(folder, CONFIG)) if beside(folder, CONFIG) in files.names else {}
    match = _LAYER.fullmatch(entry)
    hook_in, hook_out = (setting(config, f"feature_{end}put_hook", str, None) for end in ("in", "out"))
    if setting(config, "model_kind", str, "transcoder_set") != "transcoder_set" or not match:
        raise refused(
            "a cross-layer transcoder", "what it writes to a layer is a sum over the features of earlier ones"
        )
    layer = int(match[2])
    tensors = Tensors.read(files.path(entry), entry)
    shape = tensors.shape("W_enc")
    if len(shape) != 2:
        raise ArtifactError(f"{entry}: W_enc has shape {shape}, expected (features, columns)")
    n, d_in = shape
    d_out = d_in  # both are the residual stream's
    skip = tensors.optional("W_skip", (d_out, d_in))
    rule, learned = rectified(tensors.optional("activation_function.threshold", (n,)))
    parts = Parts(
        tensors.take("W_enc", (n, d_in)).T,
        tensors.take("b_enc", (n,)),
        tensors.take("W_dec", (n, d_out)),
        tensors.take("b_dec", (d_out,)),
        learned,
        None if skip is None else skip.T,
    )
    tensors.finish()
    model = setting(config, "model_name", str, None)
    known = given.model_type or model
    # sets without the names are of the MLP, as its own loader takes them
    hooks = [f"blocks.{layer}.{hook_in or 'mlp.hook_in'}", f"blocks.{layer}.{hook_out or 'mlp.hook_out'}"]
    reads, writes = given.places(lambda: site_of_hook(hooks[0], known), lambda: site_of_hook(hooks[1], known))
    recorded = {k: config[k] for k in ("model_name", "feature_input_hook", "feature_output_hook") if config.get(k)}
    models = (base_model(model),)
    return Imported(
        "circuit-tracer",
        parts,
        rule,
        reads,
        writes,
        (d_in,),
        (d_out,),
        models,
        {},
        recorded,
        before_gain=not given.reads and is_before_gain(hook_in),
    )


LAYOUT = Layout("circuit-tracer", _find, _read)
