"""Format fixtures which SAELens writes itself, of this version and of older ones."""

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from format_fixture_tools import (
    D_OUT,
    FEATURES,
    NORM_FACTOR,
    THETA,
    Arrays,
    Case,
    D,
    K,
    edge_input,
    encoded,
    fill,
    finish,
    gated_biases,
    new_repo,
    relu,
    rows,
    save_safetensors,
    skip_weights,
    tensors,
    torch,
    weights,
    write_json,
)

SAELENS_FOLDER = "blocks.5.hook_resid_pre"


def _saelens_metadata(hook: str, hook_out: str | None) -> Any:
    known = {"hook_name_out": hook_out} if hook_out else {}
    return import_module("sae_lens.saes.sae").SAEMetadata(
        model_name="gpt2-small",
        hook_name=hook,
        hook_head_index=None,
        context_size=128,
        prepend_bos=True,
        seqpos_slice=(None,),
        model_from_pretrained_kwargs={},
        **known,
    )


def _saelens_arrays(architecture: str, found: Arrays, seed: int) -> Arrays:
    arrays = {name: found[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    if architecture == "gated":
        del arrays["b_enc"]
        arrays |= gated_biases(found, seed)
    if "jumprelu" in architecture:
        arrays["threshold"] = found["theta"]
    if "skip" in architecture:
        arrays["W_skip"] = skip_weights(seed, D, D_OUT)
    if "batchtopk" in architecture:
        arrays["topk_threshold"] = np.array(THETA)
    if architecture == "matching_pursuit":
        arrays = {name: found[name] for name in ("W_dec", "b_dec")}
    return arrays


def _saelens(
    out: Path,
    seed: int,
    name: str,
    architecture: str,
    *,
    refused: str | None = None,
    note: str = "",
    hook: str = SAELENS_FOLDER,
    expect: bool = True,
    **cfg,
) -> None:
    """An inference SAE saved by save_model, read again by load_from_disk."""
    coder = "transcoder" in architecture
    hook, hook_out = ("blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out") if coder else (hook, hook)
    found = weights(seed, D, D_OUT if coder else D)
    cfg = {"apply_b_dec_to_input": False, **cfg} | ({"d_out": D_OUT} if coder else {})
    dtype = cfg.get("dtype", "float32")
    base, config = import_module("sae_lens.registry").get_sae_class(architecture)
    metadata = _saelens_metadata(hook, hook_out if coder else None)
    sae = base(config(d_in=D, d_sae=FEATURES, metadata=metadata, **cfg))
    fill(sae, _saelens_arrays(architecture, found, seed))
    repo = new_repo(out, name)
    sae.save_model(repo / hook)
    if name == "saelens_standard":
        save_safetensors(
            repo / hook / "sparsity.safetensors", {"sparsity": np.linspace(-5, -0.5, FEATURES, dtype="f4")}
        )
    case = Case(
        name, "saelens", "saelens", hook, "transcoder" if coder else "sae", 5, hook, hook_out, note, refused=refused
    )
    if not expect:
        return finish(out, case)
    again = import_module("sae_lens").SAE.load_from_disk(repo / hook, dtype="float32")
    assert dtype != "float32" or all(torch.equal(again.state_dict()[k], v) for k, v in sae.state_dict().items())
    at = None
    if "jumprelu" in architecture or architecture == "gated":
        at = edge_input(0 if architecture == "gated" else THETA, bool(cfg["apply_b_dec_to_input"]))
        at += 0.5 if architecture == "gated" else 0  # whose bias is -0.25
    x = rows(seed, D, at)
    if cfg.get("reshape_activations") == "hook_z":
        found = encoded(again, x.reshape(-1, 3, 4))
        return finish(out, case, {k: v.reshape(len(x), -1) for k, v in found.items()})
    return finish(out, case, encoded(again, x))


def saelens_inference(out: Path) -> None:
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("saelens_standard", "standard", {"note": "with sparsity.safetensors"}),
        ("saelens_standard_b_dec", "standard", {"apply_b_dec_to_input": True}),
        ("saelens_hook_z", "standard", {"reshape_activations": "hook_z", "hook": "blocks.5.attn.hook_z"}),
        ("saelens_topk", "topk", {"k": K, "apply_b_dec_to_input": True}),
        ("saelens_topk_rescaled", "topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("saelens_jumprelu", "jumprelu", {}),
        ("saelens_jumprelu_b_dec", "jumprelu", {"apply_b_dec_to_input": True}),
        ("saelens_jumprelu_bfloat16", "jumprelu", {"dtype": "bfloat16", "note": "expected of the weights in float32"}),
        ("saelens_gated", "gated", {"apply_b_dec_to_input": True, "note": "three rows with a gate at, above, below 0"}),
        ("saelens_transcoder", "transcoder", {}),
        ("saelens_skip_transcoder", "skip_transcoder", {}),
        ("saelens_jumprelu_transcoder", "jumprelu_transcoder", {}),
        ("saelens_jumprelu_skip_transcoder", "jumprelu_skip_transcoder", {}),
    ]
    for seed, (name, architecture, known) in enumerate(cases):
        _saelens(out, seed, name, architecture, **known)
    token = "per-token normalisation, which cannot be folded"
    refused: list[tuple[str, str, str, dict[str, Any]]] = [
        ("constant_norm_rescale", "standard", token, {"normalize_activations": "constant_norm_rescale"}),
        ("layer_norm", "standard", token, {"normalize_activations": "layer_norm"}),
        ("abstopk", "abstopk", "codes are negative too", {"k": K, "expect": False}),
        ("matching_pursuit", "matching_pursuit", "no encoder: latents are chosen one after another", {"expect": False}),
    ]
    for seed, (name, architecture, why, known) in enumerate(refused):
        _saelens(out, 30 + seed, f"saelens_{name}", architecture, refused=why, **known)


def _training_sae(architecture: str, found: Arrays, seed: int, **cfg) -> Any:
    base, config = import_module("sae_lens.registry").get_sae_training_class(architecture)
    sae = base(config(d_in=D, d_sae=FEATURES, metadata=_saelens_metadata(SAELENS_FOLDER, None), **cfg))
    return fill(sae, _saelens_arrays(architecture, found, seed))


def _save_inference(sae: Any, folder: Path) -> None:
    """By the library, whose order of keys in cfg.json is that of a set."""
    _, path = sae.save_inference_model(folder)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))


def saelens_batchtopk(out: Path) -> None:
    """Both what is saved for inference and what a checkpoint of the training holds."""
    lens = import_module("sae_lens")
    training = import_module("sae_lens.saes.sae").TrainingSAE
    widths = {"matryoshka_widths": [6, 12, FEATURES]}
    for seed, (architecture, rescaled) in enumerate(
        [("batchtopk", True), ("batchtopk", False), ("matryoshka_batchtopk", True)], 40
    ):
        cfg: dict[str, Any] = {
            "k": float(K),
            "rescale_acts_by_decoder_norm": rescaled,
            "apply_b_dec_to_input": rescaled,
        }
        cfg |= widths if "matryoshka" in architecture else {}
        sae = _training_sae(architecture, weights(seed), seed, **cfg)
        # the threshold is of pre * norm, and feature 0's decoder has norm 2
        x = rows(seed, D, edge_input(THETA / 2 if rescaled else THETA, rescaled))
        name = f"saelens_{architecture}" + ("" if rescaled else "_not_rescaled")
        repo = new_repo(out, name)
        _save_inference(sae, repo / SAELENS_FOLDER)
        expected = encoded(lens.SAE.load_from_disk(repo / SAELENS_FOLDER), x)
        case = Case(name, "saelens", "saelens", SAELENS_FOLDER, "sae", 5, SAELENS_FOLDER, SAELENS_FOLDER)
        case.note = f"{architecture} by save_inference_model: a jumprelu"
        finish(out, case, expected)
        repo = new_repo(out, f"{name}_training")
        sae.save_model(repo / SAELENS_FOLDER)
        with tempfile.TemporaryDirectory() as scratch:
            training.load_from_disk(repo / SAELENS_FOLDER).save_inference_model(scratch)
            expected = encoded(lens.SAE.load_from_disk(scratch), x)
        case.name, case.note = f"{name}_training", "by save_model; expected of SAELens' own inference form of it"
        finish(out, case, expected)


def saelens_log_threshold(out: Path) -> None:
    """A jumprelu checkpoint as older SAELens wrote it: the logarithm of the threshold."""
    found = weights(45)
    found["theta"][0] = 1
    sae = _training_sae("jumprelu", found, 45, apply_b_dec_to_input=False)
    repo = new_repo(out, "saelens_jumprelu_log_threshold")
    sae.save_model(repo / SAELENS_FOLDER)
    state = {name: value.clone() for name, value in sae.state_dict().items()}
    state["log_threshold"] = state.pop("threshold").log()
    save_safetensors(repo / SAELENS_FOLDER / "sae_weights.safetensors", state)
    again = import_module("sae_lens.saes.sae").TrainingSAE.load_from_disk(repo / SAELENS_FOLDER).eval()
    case = Case("saelens_jumprelu_log_threshold", "saelens", "saelens", SAELENS_FOLDER, "sae", 5)
    case.hook_in = case.hook_out = SAELENS_FOLDER
    case.note = "log_threshold of older training checkpoints; expected of the training class, which computes the same"
    finish(out, case, encoded(again, rows(45, D, edge_input(1, False))))


def saelens_normalised(out: Path) -> None:
    """An SAE trained on scaled or whitened activations: saved for inference, and as a checkpoint."""
    lens, scalers = import_module("sae_lens"), import_module("sae_lens.training.activation_scaler")
    rng = np.random.default_rng(50)
    mean = rng.standard_normal(D)
    matrix = np.linalg.qr(rng.standard_normal((D, D)))[0] * rng.uniform(0.3, 0.8, D)
    whitening = tensors({"mean": mean, "matrix": matrix, "inverse_matrix": np.linalg.inv(matrix)}, torch.float32)
    for seed, (normalisation, centred) in enumerate(
        [("expected_average_only_in", True), ("covariance_whitening", False)], 50
    ):
        sae = _training_sae(
            "standard", weights(seed), seed, normalize_activations=normalisation, apply_b_dec_to_input=centred
        )
        scaler = scalers.ActivationScaler()
        if centred:
            scaler.scaling_factor = NORM_FACTOR
        else:
            scaler.whitening = scalers.ActivationWhitening(**whitening)
        name, x = f"saelens_{normalisation}", torch.from_numpy(rows(seed))
        case = Case(name, "saelens", "saelens", SAELENS_FOLDER, "sae", 5, SAELENS_FOLDER, SAELENS_FOLDER)
        case.name, case.refused = f"{name}_checkpoint", "says a normalisation which is not in cfg.json or the weights"
        case.note = "a checkpoint: the normalisation is in activation_scaler.json or activation_whitening.safetensors"
        repo = new_repo(out, case.name)
        sae.save_model(repo / SAELENS_FOLDER)
        scaler.save(str(repo / SAELENS_FOLDER / "activation_scaler.json"))
        with torch.no_grad():
            code = sae.encode(scaler.scale(x))
            trained = {"x": x.numpy(), "code": code.numpy(), "y": scaler.unscale(sae.decode(code)).numpy()}
        finish(out, case, trained)
        if centred:
            sae.fold_activation_norm_scaling_factor(NORM_FACTOR)
        else:
            sae.fold_activation_whitening(whitening["mean"], whitening["matrix"], whitening["inverse_matrix"])
        repo = new_repo(out, name)
        _save_inference(sae, repo / SAELENS_FOLDER)
        expected = encoded(lens.SAE.load_from_disk(repo / SAELENS_FOLDER), x.numpy())
        assert all(np.allclose(expected[key], trained[key], atol=1e-4) for key in trained)
        case.name, case.refused, case.note = name, None, "folded by the trainer, as save_inference_model leaves it"
        finish(out, case, expected)


def _legacy_config(**known) -> dict[str, Any]:
    return {
        "model_name": "gpt2-small",
        "hook_point": "blocks.5.hook_resid_pre",
        "hook_point_layer": 5,
        "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext",
        "is_dataset_tokenized": False,
        "context_size": 128,
        "use_cached_activations": False,
        "d_in": D,
        "d_sae": FEATURES,
        "n_batches_in_buffer": 128,
        "l1_coefficient": 8e-05,
        "lr": 0.0004,
        "expansion_factor": 2,
        "device": "cpu",
        "seed": 42,
        "dtype": "torch.float32",
        "prepend_bos": True,
        **known,
    }


def saelens_legacy(out: Path) -> None:
    """What SAELens before 6.0 wrote: flat keys, and at times a scaling_factor of each feature."""
    lens = import_module("sae_lens")
    scale = np.random.default_rng(60).uniform(0.8, 1.3, FEATURES).astype(np.float32)
    newer = {"architecture": "standard", "hook_name": "blocks.5.hook_resid_pre", "hook_layer": 5, "dtype": "float32"}
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "none"}
    unscaled = {"activation_fn_str": "relu", "normalize_activations": "none", "finetuning_scaling_factor": False}
    scaled = unscaled | {"finetuning_scaling_factor": True, "apply_b_dec_to_input": False}
    cases: list[tuple[str, dict[str, Any], Arrays, str]] = [
        ("saelens_legacy", {}, {"scaling_factor": np.ones_like(scale)}, "oldest spelling, scaling_factor of ones"),
        ("saelens_legacy_flag", {"normalize_activations": False, "activation_fn": "relu"}, {}, "a bool normalisation"),
        ("saelens_legacy_topk", newer | topk, {}, "hook_name, the later spelling"),
        ("saelens_legacy_finetuned", newer | scaled, {"scaling_factor": scale}, ""),
    ]
    for seed, (name, known, more, note) in enumerate(cases, 63):
        repo, found, x = new_repo(out, name), weights(seed), rows(seed)
        arrays = _saelens_arrays("standard", found, seed) | more
        cfg = _legacy_config(**known)
        if "hook_name" in known:
            cfg = {key: value for key, value in cfg.items() if not key.startswith("hook_point")}
        write_json(repo / SAELENS_FOLDER / "cfg.json", cfg)
        save_safetensors(repo / SAELENS_FOLDER / "sae_weights.safetensors", arrays)
        case = Case(name, "saelens", "saelens", SAELENS_FOLDER, "sae", 5, SAELENS_FOLDER, SAELENS_FOLDER, note)
        try:
            finish(out, case, encoded(lens.SAE.load_from_disk(repo / SAELENS_FOLDER), x))
        except RuntimeError as error:
            if name != "saelens_legacy_finetuned" or "finetuning_scaling_factor" not in str(error):
                raise
            case.library = "definition"
            case.note = "SAELens before 6.0 multiplied codes by scaling_factor in decode; 6.54 cannot load such a file"
            code = relu(x @ found["W_enc"] + found["b_enc"])
            finish(out, case, {"x": x, "code": code, "y": (code * scale) @ found["W_dec"] + found["b_dec"]})


def saelens_temporal(out: Path) -> None:
    sizes = {"n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 4, "sae_diff_type": "topk", "kval_topk": K}
    temporal = import_module("sae_lens.saes.temporal_sae")
    torch.manual_seed(70)
    sae: Any = temporal.TemporalSAE(temporal.TemporalSAEConfig(d_in=D, d_sae=FEATURES, tied_weights=True, **sizes))
    folder = new_repo(out, "saelens_temporal") / "layer_5/temporal"
    names: dict[str, str] = {"W_dec": "D", "b_dec": "b"}
    save_safetensors(
        folder / "latest_ckpt.safetensors", {names.get(str(k), str(k)): v for k, v in sae.state_dict().items()}
    )
    coder = {"exp_factor": 2, "scaling_factor": 1.0, "tied_weights": True, **sizes}
    yaml = import_module("yaml")
    (folder / "conf.yaml").write_text(yaml.safe_dump({"data": {"dtype": "float32"}, "llm": {"dimin": D}, "sae": coder}))
    case = Case("saelens_temporal", "saelens", "saelens-temporal", "layer_5/temporal", "sae", 5)
    case.refused, case.repo_id = "codes depend on earlier tokens", "canrager/temporalSAEs"
    finish(out, case)


SAELENS = [
    saelens_inference,
    saelens_batchtopk,
    saelens_log_threshold,
    saelens_normalised,
    saelens_legacy,
    saelens_temporal,
]
