"""Format fixtures of what no installed library reads: computed here, by the formats' definitions."""

from pathlib import Path
from typing import Any

import numpy as np
from format_fixture_cases import crosscoder_weights
from format_fixture_tools import (
    FEATURES,
    PLAIN,
    THETA,
    Arrays,
    Case,
    D,
    K,
    edge_input,
    finish,
    new_repo,
    relu,
    rows,
    save_safetensors,
    save_state,
    side_by_side,
    suffixed,
    tensors,
    weights,
    write_json,
)


def openai(out: Path) -> None:
    for seed, (name, activation, inner) in enumerate(
        [("relu", "ReLU", {}), ("topk", "TopK", {"k": K, "postact_fn": "ReLU"})], 600
    ):
        found, folder = weights(seed, unit=True), f"gpt2-small/resid_post_mlp{'' if name == 'relu' else '_v5_32k'}"
        repo, x = new_repo(out, f"openai_{name}"), rows(seed)
        arrays: dict[str, Any] = {"pre_bias": found["b_dec"], "latent_bias": found["b_enc"]}
        arrays |= {"stats_last_nonzero": np.zeros(FEATURES, np.int64)}
        arrays |= {"latents_activation_frequency": np.ones(FEATURES, np.float32)}
        arrays |= {"latents_mean_square": np.zeros(FEATURES, np.float32)}
        arrays |= {"encoder.weight": found["W_enc"].T, "decoder.weight": found["W_dec"].T}
        settings = {"activation": activation, "activation_state_dict": inner}
        file = f"{folder}/autoencoders/5.pt"
        save_state(repo / file, tensors(arrays) | settings)
        case = Case(f"openai_{name}", "definition", "openai", file, layer=5)
        case.hook_in = case.hook_out = "blocks.5.hook_resid_post"
        if name == "topk":
            case.refused = "per-token LayerNorm, which goes with TopK in this format"
            finish(out, case)
            continue
        code = relu((x - found["b_dec"]) @ found["W_enc"] + found["b_enc"])
        finish(out, case, {"x": x, "code": code, "y": code @ found["W_dec"] + found["b_dec"]})


def bartbussmann(out: Path) -> None:
    for seed, normalised in enumerate([False, True], 610):
        name = f"bartbussmann_{'unit_norm' if normalised else 'batchtopk'}"
        found, repo, x = weights(seed, unit=True), new_repo(out, name), rows(seed, D, THETA + 0.25)
        arrays = {key: found[key] for key in PLAIN} | {"threshold": np.array(THETA, np.float32)}
        hook = "blocks.5.hook_resid_pre"
        config = {"sae_type": "global-matryoshka-topk", "seed": 49, "act_size": D, "dict_size": FEATURES, "top_k": K}
        config |= {"group_sizes": [6, 6, 12], "input_unit_norm": normalised, "dtype": "torch.float32", "device": "cpu"}
        config |= {"model_name": "gpt2-small", "site": "resid_pre", "layer": 5, "hook_point": hook, "aux_penalty": 0.03}
        config |= {"n_batches_to_dead": 5, "top_k_aux": 512, "l1_coeff": 0, "lr": 0.0003, "bandwidth": 0.001}
        save_state(repo / "sae.pt", tensors(arrays))
        write_json(repo / "config.json", config)
        case = Case(name, "definition", "bartbussmann", "", "sae", 5, hook, hook, "b_enc is in the file and not used")
        if normalised:
            case.refused = "input_unit_norm: per-token LayerNorm"
            finish(out, case)
            continue
        pre = relu((x - found["b_dec"]) @ found["W_enc"])
        code = pre * (pre > THETA)
        finish(out, case, {"x": x, "code": code, "y": code @ found["W_dec"] + found["b_dec"]})


def _crosscoder_pre(found: Arrays, x: np.ndarray) -> np.ndarray:
    """Of x (n, sources, d)."""
    return np.einsum("nsd,sdf->nf", x, found["W_enc"]) + found["b_enc"]


def _crosscoder_rows(found: Arrays, code: np.ndarray) -> np.ndarray:
    """(n, sources, d)."""
    return np.einsum("nf,sfd->nsd", code, found["W_dec"]) + found["b_dec"]


def ckkissane(out: Path) -> None:
    found, x = crosscoder_weights(62), rows(620, 2 * D)
    repo, folder, hook = new_repo(out, "ckkissane_crosscoder"), "blocks.14.hook_resid_pre", "blocks.14.hook_resid_pre"
    arrays = {"W_enc": found["W_enc"], "W_dec": found["W_dec"].transpose(1, 0, 2)}
    save_state(repo / folder / "cc_weights.pt", tensors(arrays | {"b_enc": found["b_enc"], "b_dec": found["b_dec"]}))
    config = {"seed": 49, "batch_size": 4096, "buffer_mult": 128, "lr": 5e-05, "num_tokens": 400000000, "l1_coeff": 2}
    config |= {"beta1": 0.9, "beta2": 0.999, "d_in": D, "dict_size": FEATURES, "seq_len": 1024, "enc_dtype": "fp32"}
    config |= {"model_name": "gemma-2-2b", "site": "resid_pre", "device": "cpu", "model_batch_size": 4}
    config |= {"log_every": 100, "save_every": 30000, "dec_init_norm": 0.08, "hook_point": hook}
    write_json(repo / folder / "cfg.json", config)
    per_source, scales, results = x.reshape(-1, 2, D), [0.28, 0.25], []
    for scale in (np.ones((2, 1), np.float32), np.array(scales, np.float32)[:, None]):
        code = relu(_crosscoder_pre(found, per_source * scale))
        results.append({"x": x, "code": code, "y": side_by_side(_crosscoder_rows(found, code) / scale)})
    case = Case("ckkissane_crosscoder", "definition", "ckkissane", folder, "crosscoder", 14, hook, hook, sources=2)
    case.repo_id, case.more = "ckkissane/crosscoder-gemma-2-2b-model-diff", {"scales2": scales}
    case.note = "x, code, y: of inputs as they are; x2, code2, y2: with each source's input scaled by scales2"
    finish(out, case, suffixed(results))


def _finetuning_tensors(found: Arrays, normalised: bool, k: int | None) -> Arrays:
    """As the library's module has them; off is NaN."""
    rng = np.random.default_rng(640)
    mean, std = rng.standard_normal((2, D)), rng.uniform(0.5, 2, (2, D))
    if not normalised:
        mean, std = np.full((2, 2, D), np.nan)
    rms = 4.0 if normalised else 1.0
    scale = rms / np.sqrt((std**2).sum(1) + 1e-8) if normalised else np.ones(2)
    arrays = {"encoder.weight": found["W_enc"], "encoder.bias": found["b_enc"], "decoder.weight": found["W_dec"]}
    arrays |= {"decoder.bias": found["b_dec"], "code_normalization_id": np.array(1), "target_rms": np.array(rms)}
    arrays |= {"activation_mean": mean, "activation_std": std, "activation_global_scale": scale}
    if k is not None:
        arrays |= {"k": np.array(k, np.int32), "threshold": np.array(4 * THETA)}
    return {name: v.astype(np.float32) if v.dtype == np.float64 else np.asarray(v) for name, v in arrays.items()}


def _finetuning_expected(found: Arrays, arrays: Arrays, x: np.ndarray) -> Arrays:
    per_source = x.reshape(-1, 2, D)
    scale, mean = arrays["activation_global_scale"][:, None], np.nan_to_num(arrays["activation_mean"])
    code = relu(_crosscoder_pre(found, (per_source - mean) * scale))
    if "threshold" in arrays:
        norms = np.linalg.norm(found["W_dec"], axis=2).sum(0)
        code = code * (code * norms > arrays["threshold"])
    y = _crosscoder_rows(found, code)
    off = np.isnan(arrays["activation_mean"]).any()
    y = y if off else y / (scale + np.float32(1e-8)) + mean
    return {"x": x, "code": code, "y": side_by_side(y)}


def science_of_finetuning(out: Path) -> None:
    decoupled = "DECOUPLED: each source has a code of its own"
    cases: list[tuple[str, bool, int | None, str | None]] = [
        ("relu", False, None, None),
        ("normalised", True, None, None),
        ("batchtopk", False, 100, None),
        ("batchtopk_normalised", True, 100, None),
        ("decoupled", False, 100, decoupled),
    ]
    for seed, (name, normalised, k, refused) in enumerate(cases, 64):
        found, repo = crosscoder_weights(seed), new_repo(out, f"finetuning_crosscoder_{name}")
        arrays = _finetuning_tensors(found, normalised, k)
        config = {"activation_dim": D, "dict_size": FEATURES, "num_layers": 2, "same_init_for_all_layers": True}
        config |= {
            "norm_init_scale": 1.0,
            "init_with_transpose": True,
            "encoder_layers": None,
            "target_rms": float(arrays["target_rms"]),
        }
        config |= {"latent_processor": None, "num_decoder_layers": None, "code_normalization": "CROSSCODER"}
        config |= {"code_normalization_alpha_sae": 1.0, "code_normalization_alpha_cc": 0.1}
        config |= {"dict_class": "BatchTopKCrossCoder" if k else "CrossCoder"} | ({"k": k} if k else {})
        if refused:
            config["code_normalization"] = "DECOUPLED"
            arrays |= {"code_normalization_id": np.array(5), "threshold": np.array([1, 2], np.float32)}
        write_json(repo / "config.json", config)
        save_safetensors(repo / "model.safetensors", arrays, {"format": "pt"})
        edge = edge_input(THETA, False) if k and not normalised else None
        case = Case(
            f"finetuning_crosscoder_{name}", "definition", "science-of-finetuning", kind="crosscoder", sources=2
        )
        case.refused, case.repo_id = refused, "science-of-finetuning/gemma-2-2b-L13-crosscoder"
        case.note = "codes as encode gives them, not times the code normalisation; the repository's name is made up"
        expected = _finetuning_expected(found, arrays, rows(seed, 2 * D, edge)) if not refused else None
        finish(out, case, expected)


DEFINITIONS = [openai, bartbussmann, ckkissane, science_of_finetuning]
