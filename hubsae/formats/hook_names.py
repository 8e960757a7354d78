"""Names of places and models in other libraries -> sites and repositories, and back for exports."""

import re
from typing import Any

from hubsae.errors import ArtifactError, SiteError
from hubsae.identity import BaseModel
from hubsae.sites import Site

# TransformerLens' short names of models whose repository is not spelt like them
_MODELS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "tiny-stories-1L-21M": "roneneldan/TinyStories-1Layer-21M",
    "tiny-stories-33M": "roneneldan/TinyStories-33M",
}
_OWNERS = (
    (r"pythia-.+", "EleutherAI"),
    (r"gemma-(?:2|3)?-?\d.*", "google"),
    (r"(?:Llama|Meta-Llama)-.+", "meta-llama"),
    (r"Qwen[\d.]*-.+", "Qwen"),
    (r"DeepSeek-.+", "deepseek-ai"),
)
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_HF_END = re.compile(r"\.(output|input)$")
_MODULES = {
    "self_attn": "attn",
    "attention": "attn",
    "attn": "attn",
    "mlp": "mlp",
    "feed_forward": "mlp",
}
_PLAIN = {
    "hook_resid_post": "residual",
    "hook_resid_pre": "residual_in",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_out": "mlp",
    "attn.hook_in": "attn_in",
    "attn.hook_out": "attn",
    "ln1.hook_normalized": "attn_in",  # up to the norm's gain and bias: see `is_before_gain`
    "ln2.hook_normalized": "mlp_in",
}
# by family: what TransformerLens' names mean in the model's own modules
_FAMILIES = {
    "sandwich": {  # Gemma 2 and 3 normalise what the modules return, and TransformerLens reads behind that
        "hook_mlp_out": "post_feedforward_layernorm",
        "hook_attn_out": "post_attention_layernorm",
        "hook_resid_mid": "pre_feedforward_layernorm.in",
        "attn.hook_z": "self_attn.o_proj.in",
        "mlp.hook_post": "mlp.down_proj.in",
    },
    "llama": {
        "hook_mlp_out": "mlp",
        "hook_attn_out": "attn",
        "hook_resid_mid": "post_attention_layernorm.in",
        "attn.hook_z": "self_attn.o_proj.in",
        "mlp.hook_post": "mlp.down_proj.in",
    },
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
    "unknown": {"hook_mlp_out": "mlp", "hook_attn_out": "attn"},
}


def repository_of(model: str | None) -> str | None:
    """The repository that a model's name stands for, or None where that is not certain."""
    if not model or not isinstance(model, str):
        return None
    if model in _MODELS:
        return _MODELS[model]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return model
    return next((f"{owner}/{model}" for pattern, owner in _OWNERS if re.fullmatch(pattern, model)), None)


def base_model(name: str | None, revision: Any = None) -> BaseModel:
    """What files say of a language model by its name, and by a revision where they have one."""
    asked = revision if isinstance(revision, str) and revision else None
    commit = asked if asked and re.fullmatch(r"[0-9a-f]{40}", asked) else None
    return BaseModel(repo_id=repository_of(name), revision=commit, requested_revision=asked)


def _family(model: str | None) -> str:
    name = (model or "").lower()
    if "gemma-2-" in name or "gemma-3-" in name:
        return "sandwich"
    if "gpt2" in name:
        return "gpt2"
    if "pythia" in name or "neox" in name:
        return "neox"
    return "llama" if any(part in name for part in ("llama", "qwen", "mistral", "gemma-2b", "gemma-7b")) else "unknown"


def site_of_hook(hook: str, model: str | None) -> Site:
    """TransformerLens' name of a place, in a model of this name -> the site; `ArtifactError` where it has none here."""
    match = _BLOCK.fullmatch(hook) if isinstance(hook, str) else None
    if hook == "hook_embed":
        return Site(0, "residual_in")
    if not match:
        return site_of_module(hook)
    layer, place = int(match[1]), match[2]
    component = _PLAIN.get(place) or _FAMILIES[_family(model)].get(place)
    if component is None:
        raise ArtifactError(
            f"it reads or writes {hook!r}, which no site of {model or 'an unnamed model'} is known to be; "
            "if you know it, give reads= and writes=, such as reads='layers.3.mlp_in'"
        )
    return Site(layer, component)


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


def hook_of(site: Site, model_type: str | None, name: str | None = None) -> str | None:
    """TransformerLens' name of a site in a model of this type (or, if unknown, of this name); None if it has none."""
    family = _FAMILIES[_kind(model_type, name)]
    own = [place for place, component in family.items() if component == site.component]
    own += [place for place, c in _PLAIN.items() if c == site.component and not is_before_gain(place)]
    return f"blocks.{site.layer}.{own[0]}" if own else None


def module_of(site: Site, model_type: str | None, name: str | None = None) -> str:
    """The path of a site's module as `transformers` names it: `layers.3.mlp`, `h.5.attn`, `layers.3`."""
    kind = _kind(model_type, name)
    attention = {"gpt2": "attn", "neox": "attention"}.get(kind, "self_attn")
    names = {"residual": "", "attn": f".{attention}", "mlp": ".mlp"}
    return f"{'h' if kind == 'gpt2' else 'layers'}.{site.layer}" + names.get(site.module, f".{site.module}")


def prefix_of(model_type: str | None, name: str | None = None) -> str:
    """What stands before the blocks in a `transformers` model with a head."""
    return {"gpt2": "transformer.", "neox": "gpt_neox."}.get(_kind(model_type, name), "model.")


def _kind(model_type: str | None, name: str | None) -> str:
    kinds = {"gemma2": "sandwich", "gemma3_text": "sandwich", "gemma3": "sandwich", "gpt2": "gpt2", "gpt_neox": "neox"}
    return kinds.get(model_type, "llama") if model_type else _family(name)
