"""Export to EleutherAI sparsify: `<hookpoint>/cfg.json` + `sae.safetensors`."""

from pathlib import Path

import numpy as np

from hubsae.dictionary import Dictionary
from hubsae.formats.exported import Export, arrays_of, cannot, mark, one_place, save
from hubsae.formats.hook_names import input_of, module_of
from hubsae.formats.parts import product
from hubsae.formats.sparsify import CONFIG, WEIGHTS
from hubsae.sparsity import TopK
from hubsae.store import write_json

LIBRARY = "sparsify"


def _write(dictionary: Dictionary, folder: Path) -> None:
    _check(dictionary)
    c, arrays = dictionary.config, arrays_of(dictionary)
    transcodes = c.kind == "transcoder"
    bias = arrays["b_enc"]
    if not transcodes:  # it subtracts b_dec before encoding
        bias = bias + product(arrays["b_dec"], arrays["W_enc"])
    own = {"encoder.weight": arrays["W_enc"].T, "encoder.bias": bias}
    own |= {"W_dec": arrays["W_dec"], "b_dec": arrays["b_dec"]}
    if c.skip:
        own["W_skip"] = arrays["W_skip"].T
    save(folder / WEIGHTS, own)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, c.n_features // c.d_in),
        "normalize_decoder": bool(np.allclose(np.linalg.norm(arrays["W_dec"], axis=1), 1, atol=1e-3)),
        "num_latents": c.n_features,
        "k": dictionary.rule.k if isinstance(dictionary.rule, TopK) else c.n_features,
        "multi_topk": False,
        "skip_connection": c.skip,
        "transcode": transcodes,
        "d_in": c.d_in,
        "exported_by": mark(),
    }
    write_json(folder / CONFIG, config)


def _check(dictionary: Dictionary) -> None:
    one_place(dictionary, LIBRARY)
    c = dictionary.config
    if dictionary.rule.name not in ("topk", "relu"):
        raise cannot(LIBRARY, f"has TopK (and ReLU as one that keeps all), but no {dictionary.rule}")
    if c.d_in != c.d_out:
        raise cannot(LIBRARY, f"has equal widths on both sides, not {c.d_in} and {c.d_out}")
    read, written = c.read_sites[0], c.write_sites[0]
    if read != written and input_of(written) != read:
        raise cannot(LIBRARY, f"goes from a module's input to its output, not from {read} to {written}")
    if read == written and read.is_input:
        raise cannot(LIBRARY, f"reads outputs of modules, and {read} is an input")


def _hookpoint(dictionary: Dictionary) -> str:
    _check(dictionary)
    base = dictionary.base_model
    return module_of(dictionary.config.write_sites[0], base.model_type or base.repo_id)


EXPORT = Export(LIBRARY, _write, (CONFIG, WEIGHTS), _hookpoint)
