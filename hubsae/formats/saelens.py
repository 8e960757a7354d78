"""SAELens (6.x, and configs of before 6.0): `cfg.json` + `sae_weights.safetensors`, a folder for each SAE."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import adds_bos, base_model, is_before_gain, is_certain, site_of_hook, site_of_module
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, context, is_of, positive, rectified, refused, setting, top_k, width
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.identity import BaseModel
from hubsae.sites import Site
from hubsae.sparsity import BatchTopK, Gated, Sparsity

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
TEMPORAL = ("conf.yaml", "latest_ckpt.safetensors")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_CANNOT = {
    "abstopk": "it keeps negative values too, and codes here are not negative",
    "matching_pursuit": "it encodes by steps that depend on one another, not by one product",
    "temporal": "it reads earlier tokens too",
}
_PER_TOKEN = {
    "layer_norm": "it normalises every row by its own mean and deviation",
    "constant_norm_rescale": "it scales every row by its own norm",
}
# what SAELens' own list of releases changes about published files
_CENTRED_REPOS = (
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
)
_PER_TOKEN_REPOS = ("JoshEngels/Mistral-7B-Residual-Stream-SAEs",)


@dataclass(frozen=True)
class _Config:
    """What both generations of cfg.json say, under the newer names."""

    architecture: str
    d_in: int
    d_out: int
    n_features: int
    subtracts: bool
    normalisation: str
    metadata: dict
    settings: dict


def _config(data: dict) -> _Config:
    metadata = setting(data, "metadata", dict, {})
    version = str(data.get("sae_lens_version") or metadata.get("sae_lens_version") or "")
    if version.split(".")[0] in ("", "0", "1", "2", "3", "4", "5"):
        data, metadata = _modernised(data)
    architecture = setting(data, "architecture", str, "standard")
    d_in = width(data, "d_in")
    return _Config(
        architecture=architecture,
        d_in=d_in,
        d_out=width(data, "d_out") if architecture in TRANSCODERS else d_in,
        n_features=width(data, "d_sae"),
        subtracts=setting(data, "apply_b_dec_to_input", bool, True) and architecture not in TRANSCODERS,
        normalisation=setting(data, "normalize_activations", str, "none"),
        metadata=metadata,
        settings=data,
    )


def _modernised(data: dict) -> tuple[dict, dict]:
    """A config of before 6.0, with flat names, under the newer ones; and its metadata."""
    renamed = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    new = {renamed.get(key, key): value for key, value in data.items()}
    activation = new.get("activation_fn") or "relu"
    if activation == "topk":
        settings = setting(new, "activation_fn_kwargs", dict, {})
        new |= {"architecture": "topk", "k": settings.get("k")}
    elif activation != "relu":
        raise refused(f"activation {str(activation)[:40]!r}", "only ReLU and TopK of that generation are known here")
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    return new, new


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    if beside(entry, TEMPORAL[0]) in files.names and beside(entry, CONFIG) not in files.names:
        raise refused("architecture 'temporal'", _CANNOT["temporal"])
    c = _config(files.json(beside(entry, CONFIG)))
    if c.architecture in _CANNOT:
        raise refused(f"architecture {c.architecture!r}", _CANNOT[c.architecture])
    if c.architecture not in _BUILDERS:
        raise ArtifactError(
            f"architecture {c.architecture[:60]!r} of SAELens is not known here; known are {', '.join(_BUILDERS)}"
        )
    if any(is_of(files.address, repo_id) for repo_id in _PER_TOKEN_REPOS):
        c = replace(c, normalisation="constant_norm_rescale")
    if c.normalisation in _PER_TOKEN:
        raise refused(
            f"normalize_activations {c.normalisation!r}", f"{_PER_TOKEN[c.normalisation]}, which no weights do"
        )
    if setting(c.metadata, "hook_head_index", int, None) is not None:
        raise refused("hook_head_index", "it reads a single attention head, which is no site here")
    weights = beside(entry, WEIGHTS)
    tensors = Tensors.read(files.path(weights), weights)
    rule, parts = _BUILDERS[c.architecture](c, tensors)
    parts = _finetuned(c, tensors, parts)
    tensors.finish()
    parts = _unscaled(c, parts, lambda: _scale(files, entry, given))
    if _is_centred(c, files.address):
        parts = parts.centred()
    reads, writes = _sites(c, given)
    known = given.model_type or setting(c.metadata, "model_name", str, None)
    return Imported(
        "SAELens",
        parts,
        rule,
        reads,
        writes,
        (c.d_in,),
        (c.d_out,),
        (_base_model(c),),
        _tokens(c.metadata, known),
        {k: v for k, v in c.metadata.items() if k in _RECORDED and isinstance(v, str | int | float)},
        notes=_notes(c.metadata, known),
        before_gain=not given.reads and is_before_gain(c.metadata.get("hook_name")),
    )


_RECORDED = (
    "sae_lens_version",
    "sae_lens_training_version",
    "model_name",
    "hook_name",
    "hook_name_out",
    "hf_hook_name",
    "dataset_path",
    "neuronpedia_id",
    "training_architecture",
    "l0",
    "num_dead_features",
)


def _plain(c: _Config, tensors: Tensors, **changes) -> Parts:
    """The four arrays, with the decoder's bias in the encoder where it is subtracted, and a skip connection."""
    has_skip = "skip" in c.architecture
    skip = tensors.take("W_skip", (c.d_out, c.d_in)).T if has_skip else None
    b_enc = changes.pop("b_enc", None)
    parts = Parts(
        tensors.take("W_enc", (c.d_in, c.n_features)),
        tensors.take("b_enc", (c.n_features,)) if b_enc is None else b_enc,
        tensors.take("W_dec", (c.n_features, c.d_out)),
        tensors.take("b_dec", (c.d_out,)),
        W_skip=skip,
        **changes,
    )
    return parts.subtracting(parts.b_dec) if c.subtracts else parts


def _standard(c: _Config, tensors: Tensors) -> tuple[Sparsity, Parts]:
    rule, learned = rectified(_threshold(tensors, c.n_features) if "jumprelu" in c.architecture else None)
    return rule, _plain(c, tensors, learned=learned)


def _threshold(tensors: Tensors, n: int) -> np.ndarray:
    if "log_threshold" in tensors:  # files of older versions
        return np.exp(tensors.take("log_threshold", (n,)))
    return tensors.take("threshold", (n,))


def _topk(c: _Config, tensors: Tensors) -> tuple[Sparsity, Parts]:
    parts = _plain(c, tensors)
    if setting(c.settings, "rescale_acts_by_decoder_norm", bool, False):
        parts = parts.in_decoder_norms()
    return top_k(setting(c.settings, "k", int), c.n_features), parts


def _gated(c: _Config, tensors: Tensors) -> tuple[Sparsity, Parts]:
    n = c.n_features
    gate, magnitude, r_mag = (tensors.take(name, (n,)) for name in ("b_gate", "b_mag", "r_mag"))
    parts = _plain(c, tensors, b_enc=np.zeros_like(gate))
    return Gated(), parts.gated(gate, magnitude, r_mag)


def _batchtopk(c: _Config, tensors: Tensors) -> tuple[Sparsity, Parts]:
    """What training saves: one threshold, on pre-codes times decoder norms where those are taken in."""
    threshold = tensors.number("topk_threshold")
    parts = _plain(c, tensors)
    if setting(c.settings, "rescale_acts_by_decoder_norm", bool, True):
        parts = parts.in_decoder_norms()
    k = setting(c.settings, "k", float)
    learned = {"threshold": np.full(1, threshold, np.float32)}
    return BatchTopK(max(1, min(round(k), c.n_features))), replace(parts, learned=learned)


_BUILDERS: dict[str, Callable[[_Config, Tensors], tuple[Sparsity, Parts]]] = {
    "standard": _standard,
    "jumprelu": _standard,
    "topk": _topk,
    "gated": _gated,
    "batchtopk": _batchtopk,
    "matryoshka_batchtopk": _batchtopk,
    **dict.fromkeys(TRANSCODERS, _standard),
}


def _finetuned(c: _Config, tensors: Tensors, parts: Parts) -> Parts:
    """Decoder rows times the factors of a fine-tuning, which older versions kept apart; all ones without one."""
    factors = tensors.optional("scaling_factor", (c.n_features,))
    if factors is None or bool(np.all(np.abs(factors - 1) < 1e-5)):
        return parts
    if not c.settings.get("finetuning_scaling_factor"):
        raise ArtifactError("it holds factors of a fine-tuning (scaling_factor), but its settings say there was none")
    return replace(parts, W_dec=parts.W_dec * factors[:, None], folded=(*parts.folded, "fine-tuning"))


def _scale(files: RepoFiles, entry: str, given: Given) -> float | None:
    """The factor of its rows: as given, or as a training checkpoint keeps it beside the weights."""
    if (name := beside(entry, SCALER)) in files.names and files.json(name).get("scaling_factor") is not None:
        return positive(files.json(name), "scaling_factor")
    scales = given.scales(1)
    return scales[0] if scales else None


def _unscaled(c: _Config, parts: Parts, scale_of: Callable[[], float | None]) -> Parts:
    if c.normalisation == "none":
        return parts
    if c.normalisation == "covariance_whitening":
        raise refused("normalize_activations 'covariance_whitening'", "the whitening matrix is not in its weights")
    if c.normalisation != "expected_average_only_in":
        raise ArtifactError(f"normalize_activations {c.normalisation[:60]!r} is not known here")
    if (scale := scale_of()) is None:
        raise ArtifactError(
            "normalize_activations is 'expected_average_only_in', so its rows were scaled to a mean norm of "
            "sqrt(d_in), but the factor is not in its files; give input_scales=sqrt(d_in) / mean norm of the rows, or "
            "input_scales=1 if it was folded in already"
        )
    return parts.scaled(scale)


def _is_centred(c: _Config, address: str) -> bool:
    settings = c.metadata.get("model_from_pretrained_kwargs")
    if isinstance(settings, dict) and "center_writing_weights" in settings:
        return settings["center_writing_weights"] is True
    return any(is_of(address, repo_id) for repo_id in _CENTRED_REPOS)  # SAELens' own list says so, the files do not


def _sites(c: _Config, given: Given) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    known = given.model_type or setting(c.metadata, "model_name", str, None)

    def site(hook: str, hf_hook: str) -> Site | None:
        found = setting(c.metadata, hook, str, None)
        module = setting(c.metadata, hf_hook, str, None)
        if found and (is_certain(found) or not module):
            return site_of_hook(found, known)
        return site_of_module(module) if module else None

    is_transcoder = c.architecture in TRANSCODERS
    return given.places(
        lambda: site("hook_name", "hf_hook_name"),
        (lambda: site("hook_name_out", "hf_hook_name_out")) if is_transcoder else None,
    )


def _base_model(c: _Config) -> BaseModel:
    name = setting(c.metadata, "model_name", str, None)
    settings = c.metadata.get("model_from_pretrained_kwargs")
    revision = settings.get("revision") if isinstance(settings, dict) else None
    return base_model(name, revision)


def _tokens(metadata: dict, model: str | None) -> dict:
    """What SAELens' metadata say of how texts became rows, as entries of `TokenConfig`."""
    found = context(metadata.get("context_size"))
    # one that our tokenizer calls put there or not; what they put there themselves is told in `_notes`
    if metadata.get("prepend_bos") is False or (metadata.get("prepend_bos") is True and adds_bos(model)):
        found["add_special_tokens"] = metadata["prepend_bos"]
    special = metadata.get("exclude_special_tokens")
    if isinstance(special, bool):
        found["skip_special"] = special
    start = metadata.get("seqpos_slice")
    if isinstance(start, list | tuple) and start and (start[0] is None or isinstance(start[0], int)):
        found["skip_positions"] = max(0, start[0] or 0)
    return found


def _notes(metadata: dict, model: str | None) -> tuple[str, ...]:
    if metadata.get("prepend_bos") is not True or adds_bos(model):
        return ()
    certain = (
        "which this model's tokenizer does not add" if adds_bos(model) is False else "which a tokenizer may not add"
    )
    return (f"in training a BOS token stood before every text, {certain}: put one there for the same activations",)


def _find(names: Sequence[str]) -> list[str]:
    return [*folders_with(names, CONFIG, WEIGHTS), *folders_with(names, *TEMPORAL)]


LAYOUT = Layout("SAELens", _find, _read)
