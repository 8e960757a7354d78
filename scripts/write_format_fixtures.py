"""Fixtures of other libraries' formats, with the values which those libraries' own forward passes give.

    OMP_NUM_THREADS=1 python scripts/write_format_fixtures.py [--out tests/fixtures/formats]

Runs in an environment of its own: Python 3.11, torch 2.13.0 (CPU), numpy 2.4, safetensors 0.8, huggingface_hub 2.4, and
installed with --no-deps: sae-lens 6.54.12, eai-sparsify 1.3.3, dictionary-learning 0.1.0, llamascopium 2.0.0b34,
circuit-tracer 0.5.0, with what they import (for llamascopium: more-itertools, json_repair, pymongo, cattrs, attrs,
pydantic-settings). Needs no network. The same versions write the same bytes.

Each case is a folder: `repo/` as saved or published, `expected.npz` with `x`, `code` and `y` (x2, code2, y2, ... where
there are several, of which the note in case.json speaks), and `case.json`. A case of which case.json says `refused` is
one that cannot be imported, and why. This file holds the formats of published repositories, read by SAELens' loaders;
the others are in format_fixture_saelens.py, format_fixture_cases.py (other libraries) and, where no installed library
reads a format, format_fixture_definitions.py.
"""

import argparse
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from format_fixture_cases import LIBRARIES, dictionary_arrays, dictionary_run
from format_fixture_definitions import DEFINITIONS
from format_fixture_saelens import SAELENS
from format_fixture_tools import (
    FEATURES,
    NORM_FACTOR,
    PLAIN,
    THETA,
    Arrays,
    Case,
    D,
    K,
    edge_input,
    encoded,
    finish,
    new_repo,
    relu,
    rows,
    save_safetensors,
    save_state,
    skip_weights,
    suffixed,
    tensors,
    torch,
    weights,
    write_json,
)

# Published repositories, read by SAELens


@contextmanager
def _served(repo: Path, norm_factor: float | None) -> Iterator[Any]:
    """SAELens' loaders with this folder for the Hub; the factor is what its yaml says of the release."""
    loaders = import_module("sae_lens.loading.pretrained_sae_loaders")

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        del repo_id
        path = repo / (subfolder or "") / filename
        assert path.exists(), path
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        found = import_module("safetensors.torch").load_file(download(repo_id, filename))
        return {name: list(value.shape) for name, value in found.items()}

    with (
        patch.object(loaders, "hf_hub_download", download),
        patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
        patch("sae_lens.saes.sae.get_norm_scaling_factor", lambda *_: norm_factor),
    ):
        yield loaders


def _by_saelens(
    repo: Path, case: Case, loader: str, x: np.ndarray, norm_factor: float | None = None, d: int = D, **overrides
) -> Arrays:
    """What SAELens makes of x, with the sizes of our small arrays for those it knows of the release."""
    with _served(repo, norm_factor) as loaders:
        load = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader]

        def small(cfg_overrides: dict[str, Any], **known) -> Any:
            sizes = {"d_in": d, "d_sae": FEATURES} | ({"d_out": d} if case.kind == "transcoder" else {})
            return load(cfg_overrides=cfg_overrides | sizes | overrides, **known)

        sae = import_module("sae_lens").SAE.from_pretrained(case.repo_id, case.subfolder, converter=small)
    if sae.cfg.reshape_activations == "hook_z":
        found = encoded(sae, x.reshape(len(x), 3, -1))
        return {name: value.reshape(len(x), -1) for name, value in found.items()}
    return encoded(sae, x)


def gemma_scope(out: Path) -> None:
    res, sizes = "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_12"
    coder = "transcoder"
    cases: list[tuple[str, str, str, str, str]] = [
        ("res", res, sizes, "blocks.3.hook_resid_post", ""),
        ("mlp", "google/gemma-scope-2b-pt-mlp", sizes, "blocks.3.hook_mlp_out", ""),
        ("att", "google/gemma-scope-2b-pt-att", sizes, "blocks.3.attn.hook_z", ""),
        ("embedding", res, "embedding/width_4k/average_l0_21", "hook_embed", ""),
        (coder, "google/gemma-scope-2b-pt-transcoders", sizes, "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"),
    ]
    for seed, (name, repo_id, folder, hook, hook_out) in enumerate(cases, 500):
        d = 16 if name == "embedding" else D
        found = weights(seed, d)
        repo = new_repo(out, f"gemma_scope_{name}")
        (repo / folder).mkdir(parents=True)
        arrays = {key: found[key] for key in PLAIN} | {"threshold": found["theta"]}
        np.savez(repo / folder / "params.npz", allow_pickle=False, **arrays)
        case = Case(f"gemma_scope_{name}", "saelens", "gemma-scope", folder, hook_in=hook, hook_out=hook_out or hook)
        case.kind, case.repo_id = coder if name == coder else "sae", repo_id
        case.layer = 0 if name == "embedding" else 3
        x = rows(seed, d, edge_input(THETA, False))
        if name != "embedding":
            loader = "gemma_2_transcoder" if name == coder else "gemma_2"
            finish(out, case, _by_saelens(repo, case, loader, x, d=d))
            continue
        scaled = x * np.float32(math.sqrt(d))
        first = _by_saelens(repo, case, "gemma_2", scaled, d=d)
        pre = x @ found["W_enc"] + found["b_enc"]
        code = relu(pre) * (pre > found["theta"])
        case.note = "SAELens divides W_enc by sqrt(d) and multiplies W_dec by it; x2, code2, y2: by the file as it is"
        finish(out, case, suffixed([first, {"x": x, "code": code, "y": code @ found["W_dec"] + found["b_dec"]}]))


def _gemma_scope_2_config(site: str, layer: int, affine: bool) -> dict[str, Any]:
    block = f"model.layers.{layer}"
    after = f"{block}.post_feedforward_layernorm.output"
    inputs = {
        "resid_post": f"{block}.output",
        "attn_out": f"{block}.self_attn.o_proj.input",
        "mlp_out": after,
        "transcoder": f"{block}.pre_feedforward_layernorm.output",
    }
    hook = inputs.get(site, inputs["transcoder"])
    config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "width": FEATURES, "l0": 60}
    config |= {"hf_hook_point_in": hook, "hf_hook_point_out": hook if hook in list(inputs.values())[:3] else after}
    return config | ({"affine_connection": affine} if site in ("transcoder", "clt") else {})


def gemma_scope_2(out: Path) -> None:
    for seed, name in enumerate(["resid_post", "attn_out", "mlp_out", "transcoder", "transcoder_affine"], 510):
        site, affine = name.removesuffix("_affine"), name.endswith("affine")
        folder = f"{site}/layer_13_width_16k_l0_medium{'_affine' if affine else ''}"
        found, repo = weights(seed), new_repo(out, f"gemma_scope_2_{name}")
        arrays = {key.lower(): found[key] for key in PLAIN} | {"threshold": found["theta"]}
        arrays |= {"affine_skip_connection": skip_weights(seed).T} if affine else {}
        save_safetensors(repo / folder / "params.safetensors", arrays)
        config = _gemma_scope_2_config(site, 13, affine)
        write_json(repo / folder / "config.json", config)
        case = Case(f"gemma_scope_2_{name}", "saelens", "gemma-scope-2", folder, layer=13)
        case.kind, case.repo_id = "transcoder" if "transcoder" in name else "sae", "google/gemma-scope-2-1b-pt"
        case.hook_in, case.hook_out = config["hf_hook_point_in"], config["hf_hook_point_out"]
        finish(out, case, _by_saelens(repo, case, "gemma_3", rows(seed, D, edge_input(THETA, False))))
    folder, found = "clt/width_262k_l0_medium", weights(516)
    repo = new_repo(out, "gemma_scope_2_clt")
    arrays = {key.lower(): found[key] for key in PLAIN} | {"threshold": found["theta"]}
    arrays["w_dec"] = np.stack([found["W_dec"]] * 3, 1)
    save_safetensors(repo / folder / "params_layer_0.safetensors", arrays)
    write_json(repo / folder / "config.json", _gemma_scope_2_config("clt", 0, False))
    case = Case("gemma_scope_2_clt", "definition", "gemma-scope-2", folder, "transcoder", 0)
    case.repo_id, case.refused = "google/gemma-scope-2-1b-pt", "cross-layer transcoder: decoders into several layers"
    case.note = "(F, layers, d) decoders; the file and folder names are a guess"
    finish(out, case)


def _llama_scope_files(
    folder: Path, found: Arrays, hooks: tuple[str, str], norms: dict[str, float], dtype: Any
) -> None:
    hyper = {"hook_point_in": hooks[0], "hook_point_out": hooks[1], "d_model": D, "d_sae": FEATURES}
    hyper |= {"use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": 2}
    hyper |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": norms, "act_fn": "jumprelu"}
    hyper |= {
        "jump_relu_threshold": THETA,
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
        "use_ghost_grads": False,
    }
    write_json(folder / "hyperparams.json", hyper)
    arrays = {"encoder.weight": found["W_enc"].T, "encoder.bias": found["b_enc"]}
    arrays |= {"decoder.weight": found["W_dec"].T, "decoder.bias": found["b_dec"]}
    save_safetensors(folder / "checkpoints/final.safetensors", tensors(arrays, dtype))


def llama_scope(out: Path) -> None:
    norm = math.sqrt(D) / NORM_FACTOR
    folder, hook = "Llama3_1-8B-Base-L5R-8x", "blocks.5.hook_resid_post"
    repo = new_repo(out, "llama_scope_lxr")
    _llama_scope_files(repo / folder, weights(520), (hook, hook), {"in": norm, "out": norm}, torch.bfloat16)
    case = Case("llama_scope_lxr", "saelens", "llama-scope", folder, layer=5, hook_in=hook, hook_out=hook)
    case.repo_id = "fnlp/Llama3_1-8B-Base-LXR-8x"
    case.note = "bfloat16; SAELens: theta = jump_relu_threshold * sqrt(d) / norm, and decoder norms do not count"
    x = rows(520, D, edge_input(THETA * NORM_FACTOR, False, NORM_FACTOR))
    finish(out, case, _by_saelens(repo, case, "llama_scope", x, NORM_FACTOR))

    folder, hooks = "Llama3_1-8B-Base-L5TC-8x", ("blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out")
    repo, found, out_norm = new_repo(out, "llama_scope_lxtc"), weights(521), norm / 4
    _llama_scope_files(repo / folder, found, hooks, {"in": norm, "out": out_norm}, torch.float32)
    case = Case("llama_scope_lxtc", "definition", "llama-scope", folder, "transcoder", 5, *hooks)
    case.repo_id = "fnlp/Llama3_1-8B-Base-LXTC-8x"
    case.note = "not among SAELens' releases: input scaled by sqrt(d) / in, output by out / sqrt(d), theta as for LXR"
    x = rows(521, D, edge_input(THETA * NORM_FACTOR, False, NORM_FACTOR))
    pre = (x * np.float32(NORM_FACTOR)) @ found["W_enc"] + found["b_enc"]
    code = relu(pre) * (pre > THETA * NORM_FACTOR)
    y = (code @ found["W_dec"] + found["b_dec"]) * np.float32(out_norm / math.sqrt(D))
    finish(out, case, {"x": x, "code": code, "y": y})

    folder, found = "800M-Slimpajama-0-OpenR1-Math-220k/L5R", weights(522)
    found["theta"][0] = 1
    repo = new_repo(out, "llama_scope_r1_distill")
    config = {"hook_point_in": hook, "hook_point_out": hook, "d_model": D, "expansion_factor": 2, "sae_type": "sae"}
    config |= {"use_decoder_bias": True, "act_fn": "jumprelu", "norm_activation": "dataset-wise", "top_k": 50}
    write_json(repo / folder / "config.json", config | {"sparsity_include_decoder_norm": True})
    arrays = {"encoder.weight": found["W_enc"].T, "encoder.bias": found["b_enc"]}
    arrays |= {"decoder.weight": found["W_dec"].T, "decoder.bias": found["b_dec"]}
    norms = {f"dataset_average_activation_norm.{side}": np.array(norm, np.float32) for side in ("in", "out")}
    arrays |= norms | {"log_jumprelu_threshold": np.log(found["theta"])}
    save_safetensors(repo / folder / "sae_weights.safetensors", arrays)
    case = Case("llama_scope_r1_distill", "saelens", "llama-scope-r1-distill", folder, "sae", 5, hook, hook)
    case.repo_id = "fnlp/Llama-Scope-R1-Distill"
    case.note = "SAELens has the factor (0.5 here) in its yaml; that the file has the norms too is a guess"
    x = rows(522, D, edge_input(1, False, NORM_FACTOR))
    finish(out, case, _by_saelens(repo, case, "llama_scope_r1_distill", x, NORM_FACTOR))


def published_pt(out: Path) -> None:
    """Repositories of one torch file for each layer."""
    goodfire, deepseek = "Llama-3.1-8B-Instruct-SAE-l19", "DeepSeek-R1-Distill-Llama-8B-SAE-l19"
    cases: list[tuple[str, str, str, int]] = [
        ("goodfire", f"Goodfire/{goodfire}", f"{goodfire}.pth", 19),
        ("deepseek_r1", f"qresearch/{deepseek}", f"{deepseek}.pt", 19),
        ("qwen_scope", f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", "layer3.sae.pt", 3),
    ]
    for seed, (name, repo_id, file, layer) in enumerate(cases, 530):
        found, repo = weights(seed), new_repo(out, name)
        arrays: Arrays = {
            "W_enc": found["W_enc"].T,
            "W_dec": found["W_dec"].T,
            "b_enc": found["b_enc"],
            "b_dec": found["b_dec"],
        }
        if name != "qwen_scope":
            middle = "_linear" if name == "goodfire" else ""
            names = (
                f"encoder{middle}.weight",
                f"decoder{middle}.weight",
                f"encoder{middle}.bias",
                f"decoder{middle}.bias",
            )
            arrays = {str(key): value for key, value in zip(names, arrays.values(), strict=True)}
        if name == "qwen_scope":
            torch.save(tensors(arrays), repo / file)
        else:
            save_state(repo / file, tensors(arrays))
        hook = f"blocks.{layer}.hook_resid_post"
        case = Case(name, "saelens", name.replace("_", "-"), file, "sae", layer, hook, hook, repo_id=repo_id)
        case.note = f"k = {K} is in the repository's name" if name == "qwen_scope" else ""
        finish(out, case, _by_saelens(repo, case, name, rows(seed)))


def mwhanna(out: Path) -> None:
    repo, found = new_repo(out, "mwhanna_transcoder"), weights(540)
    yaml = import_module("yaml")
    config = {"model_name": "Qwen/Qwen3-4B", "model_kind": "transcoder_set", "scan": "qwen3-4b"}
    config |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    (repo / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    sizes = {"d_model": {"value": D}, "d_feature": {"value": FEATURES}, "batch_size": {"value": 4096}}
    (repo / "wandb-config.yaml").write_text(yaml.safe_dump(sizes))
    arrays = {key: found[key] for key in PLAIN} | {"W_enc": found["W_enc"].T}
    save_safetensors(repo / "layer_3.safetensors", arrays)
    case = Case("mwhanna_transcoder", "saelens", "circuit-tracer", "layer_3.safetensors", "transcoder", 3)
    case.hook_in, case.hook_out = "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"
    case.repo_id = "mwhanna/qwen3-4b-transcoders"
    case.note = "one file of a set: the folder need not hold layers 0 to 2"
    finish(out, case, _by_saelens(repo, case, "mwhanna_transcoder", rows(540)))


def saebench(out: Path) -> None:
    trainers = import_module("dictionary_learning.trainers")
    folder = "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12"
    for seed, kind in enumerate(["AutoEncoderTopK", "BatchTopKSAE"], 550):
        trainer = trainers.TopKTrainer if kind == "AutoEncoderTopK" else trainers.BatchTopKTrainer
        arrays, _ = dictionary_arrays(kind, seed, THETA)
        name = f"saebench_{'topk' if kind == 'AutoEncoderTopK' else 'batchtopk'}"
        repo = new_repo(out, name)
        dictionary_run(
            repo / folder,
            trainer,
            arrays,
            k=K,
            lm_name="google/gemma-2-2b",
            layer=12,
            submodule_name="resid_post_layer_12",
        )
        hook = "blocks.12.hook_resid_post"
        case = Case(name, "saelens", "dictionary_learning", f"{folder}/trainer_0", "sae", 12, hook, hook)
        case.repo_id = "canrager/saebench_gemma-2-2b_width-2pow12_date-1109"
        x = rows(seed, D, edge_input(THETA, True))
        finish(out, case, _by_saelens(repo, case, "dictionary_learning_1", x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests/fixtures/formats")
    out = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(1)
    families = [*SAELENS, *LIBRARIES, gemma_scope, gemma_scope_2, llama_scope, published_pt, mwhanna]
    families += [saebench, *DEFINITIONS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in families:
            family(out)


if __name__ == "__main__":
    main()
