"""Export to SAELens: `cfg.json` + `sae_weights.safetensors`, as `SAE.from_pretrained(repo, folder)` loads them."""

from pathlib import Path

import numpy as np

from hubsae.dictionary import Dictionary
from hubsae.formats.exported import Export, arrays_of, cannot, mark, one_place, save, thresholds
from hubsae.formats.hook_names import SHORT_NAMES, adds_bos, hook_of, module_of, output_of
from hubsae.formats.saelens import CONFIG, WEIGHTS
from hubsae.sites import Site
from hubsae.sparsity import Gated, TopK
from hubsae.store import write_json

LIBRARY = "SAELens"
_VERSION = "6.54.12"  # of the layout; without one SAELens takes a config for that of its early versions
_NAMES_THERE = {repo_id: name for name, repo_id in SHORT_NAMES.items()}


def _write(dictionary: Dictionary, folder: Path) -> None:
    one_place(dictionary, LIBRARY)
    arrays = arrays_of(dictionary)
    architecture, own = _architecture(dictionary, arrays)
    c = dictionary.config
    config = {
        "architecture": architecture,
        "d_in": c.d_in,
        "d_sae": c.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if (_hook(dictionary, c.read_sites[0])).endswith("hook_z") else "none",
        "metadata": _metadata(dictionary),
    }
    if c.kind == "transcoder":
        config["d_out"] = c.d_out
    if isinstance(dictionary.rule, TopK):
        config |= {"k": dictionary.rule.k, "rescale_acts_by_decoder_norm": False}
    save(folder / WEIGHTS, own)
    write_json(folder / CONFIG, config)


def _architecture(dictionary: Dictionary, arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """Its name, and the arrays that belong to it."""
    own = {name: arrays[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    threshold = thresholds(dictionary, arrays)
    rule = "jumprelu" if threshold is not None else dictionary.rule.name
    if threshold is not None:
        own["threshold"] = threshold
    if dictionary.config.kind == "transcoder":
        if rule not in ("relu", "jumprelu"):
            raise cannot(LIBRARY, f"has transcoders with ReLU and JumpReLU, but none with {dictionary.rule}")
        if dictionary.config.skip:
            own["W_skip"] = arrays["W_skip"].T
        parts = [*(["jumprelu"] if rule == "jumprelu" else []), *(["skip"] if dictionary.config.skip else [])]
        return "_".join([*parts, "transcoder"]), own
    if isinstance(dictionary.rule, Gated):
        return "gated", _gated(own, arrays)
    return {"relu": "standard"}.get(rule, rule), own


def _gated(own: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scale, b_gate = arrays["gate_scale"], own.pop("b_enc")
    if not np.all(scale > 0):
        raise cannot(LIBRARY, f"keeps the logarithm of gate_scale, and {np.count_nonzero(scale <= 0)} are not positive")
    b_mag = b_gate.astype(np.float64) * scale + arrays["gate_shift"]
    return own | {"b_gate": b_gate, "r_mag": np.log(scale), "b_mag": b_mag}


def _hook(dictionary: Dictionary, site: Site) -> str:
    """TransformerLens' name where it has one, else the module's path."""
    base = dictionary.base_model
    known = base.model_type or base.repo_id
    return hook_of(site, known) or module_of(site, known) + (".input" if site.is_input else "")


def _metadata(dictionary: Dictionary) -> dict:
    c, base = dictionary.config, dictionary.base_model
    read, written = c.read_sites[0], c.write_sites[0]
    known = base.model_type or base.repo_id
    found: dict = {
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
        "model_name": _NAMES_THERE.get(base.repo_id or "", base.repo_id),
        "hook_name": _hook(dictionary, read),
        "hf_hook_name": output_of(read, known),
        "hook_head_index": None,
        "context_size": c.tokens.get("context_size"),
        "prepend_bos": c.tokens.get("add_special_tokens") and adds_bos(known),
        "exclude_special_tokens": c.tokens.get("skip_special"),
        "dataset_path": _dataset(dictionary),
        "exported_by": mark(),
    }
    if c.tokens.get("skip_positions"):
        found["seqpos_slice"] = [c.tokens["skip_positions"], None]
    if read != written:
        found |= {"hook_name_out": _hook(dictionary, written), "hf_hook_name_out": output_of(written, known)}
    if base.revision or base.requested_revision:
        found["model_from_pretrained_kwargs"] = {"revision": base.revision or base.requested_revision}
    return {key: value for key, value in found.items() if value is not None or key == "hook_head_index"}


def _dataset(dictionary: Dictionary) -> str | None:
    data = dictionary.statistics.get("data")
    found = data.get("dataset") if isinstance(data, dict) else None
    return found if isinstance(found, str) else None


EXPORT = Export(LIBRARY, _write, (CONFIG, WEIGHTS))
