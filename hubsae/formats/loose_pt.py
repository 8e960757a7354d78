"""Single `.pt` or `.pth` files without settings: Goodfire, Qwen Scope, DeepSeek R1 (qresearch), OpenAI for GPT-2."""

import re
from collections.abc import Iterator, Sequence

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import base_model
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, refused, top_k
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles
from hubsae.formats.tensors import Tensors
from hubsae.identity import BaseModel
from hubsae.sites import Site
from hubsae.sparsity import ReLU

_OTHERS = re.compile(r"(optimizer|scheduler|trainer_state|rank_|state|checkpoint|training_args|buffer).*", re.I)
_OPENAI_SITES = {"resid_post_mlp": "residual", "resid_delta_mlp": "mlp", "resid_delta_attn": "attn"}


def _find(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        file = name.rpartition("/")[2]
        if (
            file.endswith((".pt", ".pth"))
            and not _OTHERS.match(file)
            and file not in ("ae.pt", "sae.pt", "cc_weights.pt")
        ):
            yield name


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    tensors = Tensors.read(files.path(entry), entry)
    address = f"{files.address}/{entry}"
    if "encoder_linear.weight" in tensors:
        return _goodfire(tensors, address, given)
    if "latent_bias" in tensors:
        return _openai(tensors, address, given)
    if {"W_enc", "W_dec", "b_enc", "b_dec"} == set(tensors.names()):
        return _qwen(tensors, address, given)
    if {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"} == set(tensors.names()):
        return _deepseek(tensors, address, given)
    raise ArtifactError(
        f"holds {', '.join(tensors.names()[:8])}: no dictionary of a layout that is known here (Goodfire, Qwen Scope, "
        "DeepSeek R1, OpenAI)"
    )


def _transposed(tensors: Tensors, W_enc: str, b_enc: str, W_dec: str, b_dec: str) -> Parts:
    """From arrays of these names, of which the matrices are (F, d) and (d, F)."""
    shape = tensors.shape(W_enc)
    if len(shape) != 2 or 0 in shape:
        raise ArtifactError(f"{tensors.where}: {W_enc} has shape {shape}, expected (features, columns)")
    n, d = shape
    parts = Parts(
        tensors.take(W_enc, (n, d)).T,
        tensors.take(b_enc, (n,)),
        tensors.take(W_dec, (d, n)).T,
        tensors.take(b_dec, (d,)),
    )
    tensors.finish()
    return parts


def _linear(tensors: Tensors, encoder: str, decoder: str) -> Parts:
    return _transposed(tensors, f"{encoder}.weight", f"{encoder}.bias", f"{decoder}.weight", f"{decoder}.bias")


def _made(name: str, parts: Parts, rule, site: Site | None, model: str | None, given: Given, tokens: dict) -> Imported:
    reads, writes = given.places(lambda: site, (lambda: site) if given.writes else None)
    d = parts.W_enc.shape[0]
    models = (base_model(model),) if model else (BaseModel(),)
    return Imported(name, parts, rule, reads, writes, (d,), (d,), models, tokens)


def _goodfire(tensors: Tensors, address: str, given: Given) -> Imported:
    match = re.search(r"(Llama-[\d.]+-\d+B-Instruct)-SAE-l([0-9]{1,6})", address)
    model = f"meta-llama/{match[1]}" if match else None
    site = Site(int(match[2]), "residual") if match else None
    parts = _linear(tensors, "encoder_linear", "decoder_linear")
    return _made("Goodfire", parts, ReLU(), site, model, given, {})


def _deepseek(tensors: Tensors, address: str, given: Given) -> Imported:
    match = re.search(r"(DeepSeek-R1-Distill-Llama-8B)-SAE-l([0-9]{1,6})", address)
    model = f"deepseek-ai/{match[1]}" if match else None
    site = Site(int(match[2]), "residual") if match else None
    return _made("DeepSeek R1", _linear(tensors, "encoder", "decoder"), ReLU(), site, model, given, {})


def _qwen(tensors: Tensors, address: str, given: Given) -> Imported:
    parts = _transposed(tensors, "W_enc", "b_enc", "W_dec", "b_dec")
    n = parts.n_features
    repo = re.search(r"SAE-Res-(Qwen.+?)-W([0-9]{1,6})K-L0_([0-9]{1,6})", address)
    layer = re.search(r"layer([0-9]{1,6})\.sae\.pt$", address)
    fits = bool(repo and n == int(repo[2]) * 1024)
    site = Site(int(layer[1]), "residual") if layer and repo else None
    rule = top_k(int(repo[3]) if repo and fits else given.kept(), n)
    return _made("Qwen Scope", parts, rule, site, f"Qwen/{repo[1]}" if repo else None, given, {})


def _openai(tensors: Tensors, address: str, given: Given) -> Imported:
    activation = tensors.plain("activation")
    if activation == "TopK":
        raise refused("activation 'TopK'", "it normalises every row by its own mean and deviation, which no weights do")
    if activation not in (None, "ReLU"):
        raise ArtifactError(f"activation {str(activation)[:60]!r} of OpenAI's autoencoders is not known here")
    tensors.ignore(["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"])
    tensors.ignore(["activation_state_dict"])
    parts = _transposed(tensors, "encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
    parts = parts.subtracting(parts.b_dec)
    match = re.search(r"gpt2-small/(\w+?)(?:_v\d\w*)?/autoencoders/([0-9]{1,6})\.pt", address)
    component = _OPENAI_SITES.get(match[1]) if match else None
    site = Site(int(match[2]), component) if match and component else None
    tokens = {"context_size": 64} if match else {}
    return _made("OpenAI", parts, ReLU(), site, "gpt2-small" if match else None, given, tokens)


LAYOUT = Layout(".pt file", _find, _read)
