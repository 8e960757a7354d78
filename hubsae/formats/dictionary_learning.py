"""dictionary_learning: `config.json` + `ae.pt`, and BatchTopK folders of the same kin with `sae.pt`."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hubsae.errors import ArtifactError, warn
from hubsae.formats.hook_names import base_model, input_of, site_of_hook, site_of_module
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, context, rectified, refused, setting, top_k, width
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.sites import Site
from hubsae.sparsity import BatchTopK, Gated, JumpReLU, ReLU, Sparsity

CONFIG, WEIGHTS, KIN = "config.json", "ae.pt", "sae.pt"
_PLACES = {"resid_post": "residual", "resid_pre": "residual_in", "mlp_out": "mlp", "attn_out": "attn", "mlp": "mlp"}
_PLACES |= {"attention_out": "attn", "attn": "attn", "attention": "attn", "resid": "residual"}

Build = Callable[[Tensors, int, int, dict], tuple[Sparsity, Parts]]


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    config = files.json(beside(entry, CONFIG))
    trainer = setting(config, "trainer", dict)
    buffer = setting(config, "buffer", dict, {})
    name = beside(entry, WEIGHTS)
    kind = setting(trainer, "dict_class", str)
    if kind not in _BUILDERS:
        raise ArtifactError(
            f"dict_class {kind[:60]!r} of dictionary_learning is not known here; known are {', '.join(_BUILDERS)}"
        )
    d, n = width(trainer, "activation_dim"), width(trainer, "dict_size")
    tensors = Tensors.read(files.path(name), name)
    rule, parts = _BUILDERS[kind](tensors, d, n, trainer)
    tensors.finish()
    model = setting(trainer, "lm_name", str, None)
    reads, writes = given.places(lambda: _site(trainer, buffer))
    tokens = {"context_size": buffer["ctx_len"]} if isinstance(buffer.get("ctx_len"), int) else {}
    recorded = {k: trainer[k] for k in _RECORDED if isinstance(trainer.get(k), str | int | float)}
    return Imported(
        "dictionary_learning", parts, rule, reads, writes, (d,), (d,), (base_model(model),), tokens, recorded
    )


_RECORDED = ("dict_class", "trainer_class", "layer", "lm_name", "submodule_name", "steps", "seed", "wandb_name")


def _linear(tensors: Tensors, d: int, n: int, bias: str | None, encoder_bias: bool = True) -> Parts:
    """`nn.Linear` weights; `bias` is the decoder's, which is subtracted too where it stands by itself."""
    return Parts(
        tensors.take("encoder.weight", (n, d)).T,
        tensors.take("encoder.bias", (n,)) if encoder_bias else np.zeros(n, np.float32),
        tensors.take("decoder.weight", (d, n)).T,
        tensors.take(bias or "decoder.bias", (d,)),
    )


def _standard(tensors: Tensors, d: int, n: int, trainer: dict) -> tuple[Sparsity, Parts]:
    if "bias" not in tensors:  # the later kind without a subtracted bias, whose trainer writes the same name
        return ReLU(), _linear(tensors, d, n, None)
    parts = _linear(tensors, d, n, "bias")
    return ReLU(), parts.subtracting(parts.b_dec)


def _gated(tensors: Tensors, d: int, n: int, trainer: dict) -> tuple[Sparsity, Parts]:
    parts = _linear(tensors, d, n, "decoder_bias", encoder_bias=False)
    parts = parts.subtracting(parts.b_dec)
    return Gated(), parts.gated(*(tensors.take(name, (n,)) for name in ("gate_bias", "mag_bias", "r_mag")))


def _topk(tensors: Tensors, d: int, n: int, trainer: dict) -> tuple[Sparsity, Parts]:
    parts = _linear(tensors, d, n, "b_dec")
    tensors.ignore(["threshold"])  # it encodes by the k largest also where one was estimated
    return top_k(_k(tensors, trainer), n), parts.subtracting(parts.b_dec)


def _batchtopk(tensors: Tensors, d: int, n: int, trainer: dict) -> tuple[Sparsity, Parts]:
    parts = _linear(tensors, d, n, "b_dec")
    return _one_threshold(tensors, parts.subtracting(parts.b_dec), _k(tensors, trainer))


def _matryoshka(tensors: Tensors, d: int, n: int, trainer: dict) -> tuple[Sparsity, Parts]:
    parts = _matrices(tensors, d, n)
    tensors.ignore(["group_sizes"])
    return _one_threshold(tensors, parts.subtracting(parts.b_dec), _k(tensors, trainer))


def _jumprelu(tensors: Tensors, d: int, n: int, trainer: dict) -> tuple[Sparsity, Parts]:
    rule, learned = rectified(tensors.take("threshold", (n,)))
    return rule, replace(_matrices(tensors, d, n), learned=learned)


def _matrices(tensors: Tensors, d: int, n: int) -> Parts:
    return Parts(
        tensors.take("W_enc", (d, n)),
        tensors.take("b_enc", (n,)),
        tensors.take("W_dec", (n, d)),
        tensors.take("b_dec", (d,)),
    )


def _one_threshold(tensors: Tensors, parts: Parts, k: int) -> tuple[Sparsity, Parts]:
    threshold = tensors.number("threshold")
    if threshold < 0:
        warn(
            f"{tensors.where}: its threshold is {threshold:g}, so none was estimated when it was saved (training was "
            "too short): every positive feature is kept, as dictionary_learning does with it"
        )
    learned = {"threshold": np.full(1, max(threshold, 0), np.float32)}
    return BatchTopK(min(k, parts.n_features)), replace(parts, learned=learned)


def _k(tensors: Tensors, trainer: dict) -> int:
    """The k of the weights' file, where it has one: the settings may differ after k was lowered in steps."""
    return round(tensors.number("k")) if "k" in tensors else setting(trainer, "k", int)


_BUILDERS: dict[str, Build] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _standard,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}


def _site(trainer: dict, buffer: dict) -> Site | None:
    """By the submodule's name (`resid_post_layer_12`) and the layer; `io` says which end of the module."""
    name, layer = setting(trainer, "submodule_name", str, None), setting(trainer, "layer", int, None)
    match = re.fullmatch(r"(\w{1,40}?)_layer_?([0-9]{1,6})", name or "")
    if match and match[1] in _PLACES:
        site = Site(int(match[2]), _PLACES[match[1]])
        if layer is not None and layer != site.layer:
            raise ArtifactError(f"its settings say layer {layer}, but submodule {name!r}; give reads=")
    elif name:
        site = site_of_module(name)
    else:
        return None
    end = setting(buffer, "io", str, "out")
    if end not in ("in", "out"):
        raise ArtifactError(
            f"it was trained from one end of {name!r} to the other (io {end[:20]!r}); give reads=, writes="
        )
    return input_of(site) if end == "in" else site


def _read_kin(files: RepoFiles, entry: str, given: Given) -> Imported:
    """`sae.pt` and flat settings. Kinds that choose features by size do not use b_enc, unless they say so."""
    config = files.json(beside(entry, CONFIG))
    name = beside(entry, KIN)
    if setting(config, "input_unit_norm", bool, False):
        raise refused("input_unit_norm", "it normalises every row by its own mean and deviation, which no weights do")
    d, n = width(config, "act_size"), width(config, "dict_size")
    kind = setting(config, "sae_type", str, "batchtopk").lower()
    tensors = Tensors.read(files.path(name), name)
    parts = _matrices(tensors, d, n)
    tensors.ignore(["num_batches_not_active"])
    if "topk" in kind and not setting(config, "use_encoder_bias", bool, False):
        parts = replace(parts, b_enc=np.zeros(n, np.float32))
    parts = parts.subtracting(parts.b_dec)
    if kind == "topk":
        tensors.ignore(["threshold"])
        rule: Sparsity = top_k(setting(config, "top_k", int), n)
    elif "batch" in kind or "matryoshka" in kind:
        k = setting(config, "top_k", int)
        rule, parts = _one_threshold(tensors, parts, k)
    elif kind in ("vanilla", "standard"):
        rule = ReLU()
    elif kind == "jumprelu":
        rule = JumpReLU()
        learned = np.exp(tensors.take("jumprelu.log_threshold", (n,)))
        parts = replace(parts, learned={"threshold": learned})
    else:
        raise ArtifactError(f"sae_type {kind[:60]!r} is not known here")
    tensors.finish()
    model = setting(config, "model_name", str, None)
    hook = setting(config, "hook_point", str, None)
    known = given.model_type or model
    reads, writes = given.places(lambda: site_of_hook(hook, known) if hook else None)
    tokens = context(config.get("seq_len"))
    recorded = {k: config[k] for k in ("model_name", "hook_point", "dataset_path", "name") if config.get(k)}
    return Imported(
        "BatchTopK (sae.pt)", parts, rule, reads, writes, (d,), (d,), (base_model(model),), tokens, recorded
    )


LAYOUT = Layout("dictionary_learning", lambda names: folders_with(names, WEIGHTS, CONFIG), _read)
KIN_LAYOUT = Layout("BatchTopK (sae.pt)", lambda names: folders_with(names, KIN, CONFIG), _read_kin)
