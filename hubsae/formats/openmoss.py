"""OpenMOSS: Llama Scope (`hyperparams.json`), its successor with `log_jumprelu_threshold`, and llamascopium folders."""

import math
from dataclasses import replace

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import base_model, is_before_gain, site_of_hook
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, positive, rectified, refused, scalar_threshold, setting, top_k, width
from hubsae.formats.parts import Parts, decoder_norms
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.sites import Site
from hubsae.sparsity import JumpReLU, ReLU, Sparsity

HYPERPARAMS, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_LLAMA = "meta-llama/Llama-3.1-8B"
_NORM = "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"


def _read_llama_scope(files: RepoFiles, entry: str, given: Given) -> Imported:
    config = files.json(beside(entry, HYPERPARAMS))
    name = beside(entry, FINAL)
    tensors = Tensors.read(files.path(name), name)
    d, n = width(config, "d_model"), width(config, "d_sae")
    if setting(config, "norm_activation", str, "dataset-wise") != "dataset-wise":
        raise refused(f"norm_activation {config['norm_activation']!r}", "no weights do what depends on each row's norm")
    if setting(config, "act_fn", str, "jumprelu") != "jumprelu":
        raise ArtifactError(f"act_fn {config['act_fn'][:60]!r} of Llama Scope is not known here")
    norms = setting(config, "dataset_average_activation_norm", dict)
    hook_in, hook_out = (setting(config, f"hook_point_{end}", str) for end in ("in", "out"))
    scale_in = math.sqrt(d) / positive(norms, "in")
    scale_out = scale_in if hook_in == hook_out else math.sqrt(d) / positive(norms, "out")
    parts = _linear(tensors, d, n, has_bias=setting(config, "use_decoder_bias", bool, True))
    if setting(config, "apply_decoder_bias_to_pre_encoder", bool, False):
        parts = parts.subtracting(parts.b_dec)
    # the one threshold is in units of raw activations, and what the weights compute in those of scaled ones
    threshold = setting(config, "jump_relu_threshold", float) * scale_in
    parts = replace(parts, learned=scalar_threshold(threshold, n)).scaled(scale_in, 1 / scale_out)
    is_published = "Llama3_1-8B" in f"{files.address}/{entry}"
    reads, writes = _sites(config, given, _LLAMA)
    return Imported(
        "Llama Scope",
        parts,
        JumpReLU(),
        reads,
        writes,
        (d,),
        (d,),
        (base_model(_LLAMA if is_published else None),),
        {"context_size": 1024, "add_special_tokens": True} if is_published else {},
        {"hook_point_in": hook_in, "hook_point_out": hook_out},
        notes=("its threshold is taken in units of raw activations and without decoder norms, as SAELens takes it",),
        before_gain=not given.reads and is_before_gain(hook_in),
    )


def _linear(tensors: Tensors, d: int, n: int, has_bias: bool = True) -> Parts:
    """Weights as `torch.nn.Linear` keeps them."""
    parts = Parts(
        tensors.take("encoder.weight", (n, d)).T,
        tensors.take("encoder.bias", (n,)),
        tensors.take("decoder.weight", (d, n)).T,
        tensors.take("decoder.bias", (d,)) if has_bias else np.zeros(d, np.float32),
    )
    learned = tensors.optional("log_jumprelu_threshold", (n,))
    tensors.finish()
    if learned is None:
        return parts
    return replace(parts, learned={"threshold": np.exp(learned)})


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    config = files.json(beside(entry, CONFIG))
    name = beside(entry, WEIGHTS)
    tensors = Tensors.read(files.path(name), name)
    kind = setting(config, "sae_type", str, "sae")
    if kind == "crosscoder":
        return _crosscoder(config, tensors, given)
    if kind not in ("sae", "transcoder"):
        raise refused(f"sae_type {kind[:40]!r}", "its outputs are no sums of features read at one place")
    if setting(config, "use_glu_encoder", bool, False):
        raise refused("use_glu_encoder", "its code is a product of two encoders")
    d, n = _widths(config)
    hooks = [setting(config, f"hook_point_{end}", str, "") for end in ("in", "out")]
    scales = _norm_scales(config, tensors, hooks, d, given)
    if "encoder.weight" in tensors:
        parts = _linear(tensors, d, n)
        rule: Sparsity = JumpReLU() if parts.learned else ReLU()
    else:
        parts, rule = _native(config, tensors, d, n)
    if scales is not None:
        parts = parts.scaled(scales[0], 1 / scales[1])
    reads, writes = _sites(config, given, _model(config))
    recorded = {k: config[k] for k in ("hook_point_in", "hook_point_out", "act_fn") if isinstance(config.get(k), str)}
    models = (base_model(_model(config)),)
    before_gain = not given.reads and is_before_gain(config.get("hook_point_in"))
    return Imported(
        "llamascopium", parts, rule, reads, writes, (d,), (d,), models, {}, recorded, before_gain=before_gain
    )


def _widths(config: dict) -> tuple[int, int]:
    d = width(config, "d_model")
    n = round(d * positive(config, "expansion_factor"))
    return d, setting(config, "d_sae", int, n)


def _native(config: dict, tensors: Tensors, d: int, n: int) -> tuple[Parts, Sparsity]:
    has_bias = setting(config, "use_decoder_bias", bool, True)
    parts = Parts(
        tensors.take("W_E", (d, n)),
        tensors.take("b_E", (n,)),
        tensors.take("W_D", (n, d)),
        tensors.take("b_D", (d,)) if has_bias else np.zeros(d, np.float32),
    )
    act = setting(config, "act_fn", str, "relu").lower()
    by_norm = setting(config, "sparsity_include_decoder_norm", bool, True)
    if act == "topk":
        tensors.finish()
        return (parts.in_decoder_norms() if by_norm else parts), top_k(setting(config, "top_k", int), n)
    if act not in ("relu", "jumprelu"):
        raise refused(f"act_fn {act[:40]!r}", "which features it keeps depends on the other rows of a batch")
    threshold = np.exp(tensors.take(_THRESHOLD, (n,))) if act == "jumprelu" else None
    tensors.finish()
    if threshold is not None and by_norm:
        threshold = threshold / decoder_norms(parts.W_dec)
    rule, learned = rectified(threshold)
    return replace(parts, learned=learned), rule


def _norm_scales(config: dict, tensors: Tensors, hooks: list, d: int, given: Given) -> list[float] | None:
    """What each place's activations are multiplied by before encoding; None where that is in the weights already."""
    tensors.ignore([name for name in tensors.names() if name.startswith(_NORM)])
    mode = setting(config, "norm_activation", str, "dataset-wise")
    if mode == "inference":
        return None
    if mode != "dataset-wise":
        raise refused(f"norm_activation {mode[:40]!r}", "no weights do what depends on each row's norm")
    missing = [hook for hook in hooks if f"{_NORM}{hook}" not in tensors]
    if missing and (scales := given.scales(1 if len(set(hooks)) == 1 else len(hooks))):
        return list(scales * len(hooks))[: len(hooks)]
    if missing:
        raise ArtifactError(
            "its rows were scaled to a mean norm of sqrt(d), but the mean norm of "
            f"{', '.join(map(str, dict.fromkeys(missing)))[:200]} is not in its files; give input_scales="
        )
    return [math.sqrt(d) / positive({hook: tensors.number(f"{_NORM}{hook}")}, hook) for hook in hooks]


def _crosscoder(config: dict, tensors: Tensors, given: Given) -> Imported:
    d, n = _widths(config)
    hooks = [str(hook) for hook in setting(config, "hook_points", list)]
    heads = len(hooks)
    if heads < 2:
        raise ArtifactError(f"a crosscoder of {heads} places; expected at least two")
    act = setting(config, "act_fn", str, "relu").lower()
    if act != "relu":
        raise refused(f"act_fn {act[:40]!r} of a crosscoder", "each place has a code of its own, by its decoder's norm")
    scales = _norm_scales(config, tensors, hooks, d, given)
    W_enc = tensors.take("W_E", (heads, d, n)).reshape(heads * d, n)
    b_enc = tensors.take("b_E", (heads, n)).sum(axis=0)
    W_dec = tensors.take("W_D", (heads, n, d)).transpose(1, 0, 2).reshape(n, heads * d)
    has_bias = setting(config, "use_decoder_bias", bool, True)
    b_dec = tensors.take("b_D", (heads, d)).reshape(-1) if has_bias else np.zeros(heads * d, np.float32)
    tensors.finish()
    parts = Parts(W_enc, b_enc, W_dec, b_dec)
    if scales is not None:
        parts = parts.scaled(np.repeat(np.array(scales, np.float32), d))
    model = _model(config)
    known = given.model_type or model
    sites = given.several(heads, lambda: tuple(site_of_hook(hook, known) for hook in hooks))
    return Imported(
        "llamascopium",
        parts,
        ReLU(),
        sites,
        sites,
        (d,) * heads,
        (d,) * heads,
        (base_model(model),),
        {},
        {"act_fn": act},
    )


def _model(config: dict) -> str | None:
    for key in ("model_name", "model_from_pretrained_path"):
        if isinstance(config.get(key), str):
            return config[key]
    lm = config.get("lm_config")
    return _model(lm) if isinstance(lm, dict) else None


def _sites(config: dict, given: Given, model: str | None) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    known = given.model_type or model
    hook_in, hook_out = (setting(config, f"hook_point_{end}", str, None) for end in ("in", "out"))
    is_transcoder = bool(hook_out and hook_out != hook_in)
    return given.places(
        lambda: site_of_hook(hook_in, known) if hook_in else None,
        (lambda: site_of_hook(hook_out or "", known)) if is_transcoder else None,
    )


LLAMA_SCOPE = Layout("Llama Scope", lambda names: folders_with(names, HYPERPARAMS, FINAL), _read_llama_scope)
LAYOUT = Layout("llamascopium", lambda names: folders_with(names, CONFIG, WEIGHTS), _read)
