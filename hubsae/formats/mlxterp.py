"""mlxterp's folders (`name.mlx/config.json` + `weights.safetensors`): TopK on standardised columns."""

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import base_model
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, refused, setting, top_k, width
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.sites import Site

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
_EPSILON = 1e-8  # added to the deviation before encoding, and not after decoding


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    config = files.json(beside(entry, CONFIG))
    name = beside(entry, WEIGHTS)
    kind = setting(config, "class", str)
    if kind == "BatchTopKSAE":
        raise refused("class 'BatchTopKSAE'", "which features it keeps depends on the other rows of a batch")
    if kind != "SAE":
        raise ArtifactError(f"class {kind[:60]!r} of mlxterp is not known here, only 'SAE'")
    d, n = width(config, "d_model"), width(config, "d_hidden")
    tensors = Tensors.read(files.path(name), name)
    tied = setting(config, "tied_weights", bool, False)
    weight = tensors.take("encoder.weight", (n, d))
    parts = Parts(
        weight.T,
        tensors.take("encoder.bias", (n,)),
        weight if tied else tensors.take("decoder.weight", (d, n)).T,
        tensors.take("decoder_bias" if tied else "decoder.bias", (d,)),
    )
    mean, std = (tensors.optional(f"input_{which}", (d,)) for which in ("mean", "std"))
    tensors.finish()
    if setting(config, "normalize_input", bool, True):
        parts = _standardised(parts, mean, std)
    metadata = setting(config, "metadata", dict, {})
    layer, component = setting(metadata, "layer", int, None), setting(metadata, "component", str, None)
    site = Site(layer, component) if layer is not None and component else None
    model = setting(metadata, "model_name", str, None)
    recorded = {k: metadata[k] for k in ("layer", "component", "model_name", "training_samples") if metadata.get(k)}
    reads, writes = given.places(lambda: site)
    rule = top_k(setting(config, "k", int), n)
    return Imported("mlxterp", parts, rule, reads, writes, (d,), (d,), (base_model(model),), {}, recorded)


def _standardised(parts: Parts, mean: np.ndarray | None, std: np.ndarray | None) -> Parts:
    if mean is None or std is None:
        raise ArtifactError("its settings say that inputs are standardised, but input_mean and input_std are missing")
    if n_flat := np.count_nonzero(std <= 0):
        raise refused(
            f"input_std is 0 in {n_flat} columns", "it multiplies them by 1e8 there, which float32 cannot hold"
        )
    return parts.scaled(1 / (std + _EPSILON), std).shifted(mean)


LAYOUT = Layout("mlxterp", lambda names: folders_with(names, WEIGHTS, CONFIG), _read)
