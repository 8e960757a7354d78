"""Names of places and models in other libraries -> sites and repositories, and back for exports."""

import re
from typing import Any

from hubsae.errors import ArtifactError, SiteError
from hubsae.identity import BaseModel
from hubsae.sites import Site

# TransformerLens' short names of models whose repository is not spelt like them
SHORT_NAMES = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "tiny-stories-1L-21M": "roneneldan/TinyStories-1Layer-21M",
    "tiny-stories-33M": "roneneldan/TinyStories-33M",
}
_OWNERS = (
    (r"pythia-(?:14m|31m|70m|160m|410m|1b|1\.4b|2\.8b|6\.9b|12b)(?:-deduped)?(?:-v0)?", "EleutherAI/{}"),
    (r"gemma-(?:2-|3-)?\d+b.*|gemma-3-270m.*", "google/{}"),
    (r"Llama-2-\d+b(?:-chat)?", "meta-llama/{}-hf"),
    (r"(?:Llama-3|Meta-Llama-3).+", "meta-llama/{}"),
    (r"Qwen[\d.]*-.+", "Qwen/{}"),
    (r"DeepSeek-.+", "deepseek-ai/{}"),
)
_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.(.{1,200})")
_HF_END = re.compile(r"\.(output|input)$")
_MODULES = {
    "self_attn": "attn",
    "attention": "attn",
    "attn": "attn",
    "mlp": "mlp",
    "feed_forward": "mlp",
}
_PLAIN = {  # the same in every model
    "hook_resid_post": "residual",
    "hook_resid_pre": "residual_in",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_out": "mlp",
    "attn.hook_in": "attn_in",
    "attn.hook_out": "attn",
    "ln1.hook_normalized": "attn_in",  # up to the norm's gain and bias: see `is_before_gain`
    "ln2.hook_normalized": "mlp_in",
}
_LLAMA = {
    "hook_mlp_out": "mlp",
    "hook_attn_out": "attn",
    "hook_resid_mid": "post_attention_layernorm.in",
    "attn.hook_z": "self_attn.o_proj.in",
    "mlp.hook_post": "mlp.down_proj.in",
}
# what comes out of a module is normalised once more, and TransformerLens reads behind that
_AFTER_NORM = {"hook_mlp_out": "post_feedforward_layernorm", "hook_attn_out": "post_attention_layernorm"}
# by family: what TransformerLens' names mean in the model's own modules
_FAMILIES: dict[str, dict[str, str]] = {
    "sandwich": {**_LLAMA, **_AFTER_NORM, "hook_resid_mid": "pre_feedforward_layernorm.in"},
    "after": {**{k: v for k, v in _LLAMA.items() if k != "hook_resid_mid"}, **_AFTER_NORM},
    "llama": _LLAMA,
    "gpt2": {
        "hook_mlp_out": "mlp",
        "hook_attn_out": "attn",
        "hook_resid_mid": "ln_2.in",
        "attn.hook_z": "attn.c_proj.in",
        "mlp.hook_post": "mlp.c_proj.in",
    },
    "neox": {
        "hook_mlp_out": "mlp",
        "hook_attn_out": "attn",
        "attn.hook_z": "attention.dense.in",
        "mlp.hook_post": "mlp.dense_4h_to_h.in",
    },
    "unknown": {},
}
_FAMILY_NAMES = (  # of repositories, of TransformerLens' names, and of model types
    ("sandwich", r"gemma-?[23](?!b|\d)|medgemma|shieldgemma"),
    ("after", r"olmo-?[23]"),
    ("gpt2", r"gpt-?2"),
    ("neox", r"pythia|neox"),
    ("llama", r"llama|qwen|mistral|gemma|vicuna|deepseek-r1-distill"),
)
_NORMS = {  # what stands before a module, by family
    "sandwich": {"mlp_in": "pre_feedforward_layernorm", "attn_in": "input_layernorm"},
    "llama": {"mlp_in": "post_attention_layernorm", "attn_in": "input_layernorm"},
    "gpt2": {"mlp_in": "ln_2", "attn_in": "ln_1"},
    "neox": {"mlp_in": "post_attention_layernorm", "attn_in": "input_layernorm"},
}


def repository_of(model: str | None) -> str | None:
    """The repository that a model's name stands for, or None where that is not certain."""
    if (
        not model
        or not isinstance(model, str)
        or not re.fullmatch(r"(?:[A-Za-z0-9_.-]{1,96}/)?[A-Za-z0-9_.-]{1,96}", model)
    ):
        return None
    if model in SHORT_NAMES or model == "gpt2":
        return SHORT_NAMES.get(model, "openai-community/gpt2")
    if "/" in model:
        return model
    return next((form.format(model) for pattern, form in _OWNERS if re.fullmatch(pattern, model)), None)


def base_model(name: str | None, revision: Any = None) -> BaseModel:
    """What files say of a language model by its name, and by a revision where they have one."""
    asked = revision if isinstance(revision, str) and revision else None
    commit = asked if asked and re.fullmatch(r"[0-9a-f]{40}", asked) else None
    return BaseModel(repo_id=repository_of(name), revision=commit, requested_revision=asked)


def family_of(model: str | None) -> str:
    """The family of a model by its name or its type, `"unknown"` where neither is known."""
    name = (model or "").lower()
    return next((family for family, pattern in _FAMILY_NAMES if re.search(pattern, name)), "unknown")


def adds_bos(model: str | None) -> bool | None:
    """Whether a model's tokenizer puts a BOS token in front by itself; None where that is not known."""
    name = (model or "").lower()
    if re.search(r"qwen|gpt-?2|pythia|neox|olmo", name):
        return False
    return True if re.search(r"llama|gemma|mistral", name) else None


def site_of_hook(hook: str, model: str | None) -> Site:
    """TransformerLens' name of a place, in a model of this name or type -> the site; `ArtifactError` if it has none."""
    family = family_of(model)
    if hook == "hook_embed" and family not in ("gpt2", "unknown"):  # those may add learned positions to it
        return Site(0, "residual_in")
    match = _BLOCK.fullmatch(hook) if isinstance(hook, str) else None
    if not match and hook != "hook_embed":
        return site_of_module(hook)
    component = match and (_PLAIN.get(match[2]) or _FAMILIES[family].get(match[2]))
    if not match or component is None:
        raise ArtifactError(
            f"it names the place {str(hook)[:80]!r}, and where that is in {str(model or 'an unnamed model')[:80]} is "
            "not known here; give the language model (model=), or reads= and writes=, such as reads='layers.3.mlp_in'"
        )
    return Site(int(match[1]), component)


def is_certain(hook: str) -> bool:
    """Whether a name means the same place in every model."""
    match = _BLOCK.fullmatch(hook)
    return bool(match and match[2] in _PLAIN)


def is_before_gain(hook: str | None) -> bool:
    """Whether a name means what a norm computes before its gain and bias: those have to be folded away then."""
    return bool(hook) and str(hook).endswith("hook_normalized")


def site_of_module(name: str) -> Site:
    """A module's path, such as `model.layers.3.mlp`, `h.5` or `model.layers.3.mlp.input` -> the site of its output."""
    text = name if isinstance(name, str) else ""
    end = _HF_END.search(text)
    is_input = bool(end and end[1] == "input")
    try:
        site = Site.parse(text[: end.start()] if end else text)
        component = _MODULES.get(site.component, site.component)
        if is_input:
            component += "_in" if component in ("residual", "attn", "mlp") else ".in"
        return Site(site.layer, component)
    except SiteError as error:
        raise ArtifactError(f"it names the place {str(name)[:80]!r}, which is no site: {error}") from error


def input_of(site: Site) -> Site:
    """What goes into the module whose output a site is."""
    if site.is_input:
        return site
    mark = "_in" if site.component in ("residual", "attn", "mlp") else ".in"
    return Site(site.layer, site.component + mark, site.model)


def hook_of(site: Site, model: str | None) -> str | None:
    """TransformerLens' name of a site in a model of this name or type; None where it has none that is certain."""
    own = [place for place, component in _FAMILIES[family_of(model)].items() if component == site.component]
    own += [place for place, c in _PLAIN.items() if c == site.component and not is_before_gain(place)]
    return f"blocks.{site.layer}.{own[0]}" if own else None


def module_of(site: Site, model: str | None) -> str:
    """The path of a site's module as `transformers` names it: `layers.3.mlp`, `h.5.attn`, `layers.3`."""
    family = family_of(model)
    attention = {"gpt2": "attn", "neox": "attention"}.get(family, "self_attn")
    names = {"residual": "", "attn": f".{attention}", "mlp": ".mlp"}
    return f"{'h' if family == 'gpt2' else 'layers'}.{site.layer}" + names.get(site.module, f".{site.module}")


def output_of(site: Site, model: str | None) -> str | None:
    """The path, from the top of a `transformers` model with a head, of the module whose output a site is, if known."""
    family = family_of(model)
    prefix = {"gpt2": "transformer.", "neox": "gpt_neox."}.get(family, "model.")
    if not site.is_input:
        return prefix + module_of(site, model)
    norm = _NORMS.get(family, {}).get(site.component)
    return norm and prefix + module_of(Site(site.layer, norm), model)
