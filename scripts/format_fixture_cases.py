"""Format fixtures which sparsify, dictionary_learning, llamascopium and circuit-tracer write themselves."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from format_fixture_tools import (
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
    rows,
    skip_weights,
    suffixed,
    torch,
    weights,
    write_json,
)

# sparsify


def _sparsify(repo: Path, folder: str, seed: int, **cfg) -> tuple[Arrays, np.ndarray]:
    """Saves one; what it makes of rows."""
    sparsify = import_module("sparsify")
    known = {"num_latents": FEATURES, "k": K, "normalize_decoder": not cfg.get("transcode", False), **cfg}
    coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(**known))
    found = weights(seed, unit=known["normalize_decoder"])
    arrays = {"encoder.weight": found["W_enc"].T, "encoder.bias": found["b_enc"]}
    arrays |= {"W_dec": found["W_dec"], "b_dec": found["b_dec"]}
    if cfg.get("skip_connection"):
        arrays["W_skip"] = skip_weights(seed)
    fill(coder, arrays).save_to_disk(repo / folder)
    again, x = sparsify.SparseCoder.load_from_disk(repo / folder), rows(seed)
    with torch.no_grad():
        read = torch.from_numpy(x)
        values, places, _ = again.encode(read)
        code = torch.zeros(len(x), FEATURES).scatter_(1, places, values)
        return {"x": x, "code": code.numpy(), "y": _decoded(again, read, values, places).numpy()}, x


def _decoded(sae: Any, read: Any, values: Any, places: Any) -> Any:
    """What its code means: with multi_topk the library's forward pass returns that of four times as many features."""
    y = sae.decode(values, places)
    return y if sae.W_skip is None else y + read @ sae.W_skip.mT


def sparsify_cases(out: Path) -> None:
    skip = {"transcode": True, "skip_connection": True}
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("sparsify_topk", "layers.5", {}, ""),
        ("sparsify_factor", "layers.5", {"num_latents": 0, "expansion_factor": 2}, "num_latents 0"),
        ("sparsify_groupmax", "layers.5", {"activation": "groupmax"}, "the largest of each of k groups of neighbours"),
        ("sparsify_transcoder", "layers.5.mlp", {"transcode": True}, ""),
        ("sparsify_skip_transcoder", "layers.5.mlp", skip, ""),
        ("sparsify_multi_topk", "h.5", {"multi_topk": True}, "multi_topk is of the loss; y is of k features"),
    ]
    for seed, (name, folder, cfg, note) in enumerate(cases, 100):
        expected, _ = _sparsify(new_repo(out, name), folder, seed, **cfg)
        kind = "transcoder" if cfg.get("transcode") else "sae"
        case = Case(name, "sparsify", "sparsify", folder, kind, 5, folder, folder, note)
        finish(out, case, expected)
    repo = new_repo(out, "sparsify_several")
    folders = ["h.1", "layers.2.mlp", "h.1/seed1"]
    found = [_sparsify(repo, folder, 110 + i)[0] for i, folder in enumerate(folders)]
    run = {
        "model": "openai-community/gpt2",
        "dataset": "EleutherAI/SmolLM2-135M-10B",
        "split": "train",
        "ctx_len": 2048,
    }
    write_json(
        repo / "config.json", run | {"revision": None, "hookpoints": ["h.1", "layers.2.mlp"], "init_seeds": [0, 1]}
    )
    case = Case("sparsify_several", "sparsify", "sparsify", "h.1", "sae", 1, "h.1", "h.1")
    case.note = "three in one repository: x2, code2, y2 are of the second of `folders`, x3, ... of the third"
    case.more = {"folders": folders}
    finish(out, case, suffixed(found))
    for seed, signed in enumerate([False, True], 120):
        name = f"sparsify_{'signed' if signed else 'old'}"
        repo = new_repo(out, name)
        expected, _ = _sparsify(repo, "layers.5", seed)
        old = {"expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": K, "signed": signed, "d_in": D}
        write_json(repo / "layers.5/cfg.json", old)
        case = Case(name, "sparsify", "sparsify", "layers.5", "sae", 5, "layers.5", "layers.5", "an old cfg.json")
        case.refused = (
            "signed: codes of both signs, which the library itself now reads as if unsigned" if signed else None
        )
        finish(out, case, None if signed else expected)


# dictionary_learning


class _Buffer:
    """No activations, with the config of the library's ActivationBuffer."""

    config = {  # noqa: RUF012
        "d_submodule": D,
        "io": "out",
        "n_ctxs": 244,
        "ctx_len": 1024,
        "refresh_batch_size": 32,
        "out_batch_size": 2048,
        "device": "cpu",
    }

    def __iter__(self):
        return iter(())


def dictionary_run(folder: Path, trainer_class: Any, arrays: Arrays, **settings) -> None:
    """The library's own trainSAE, of no steps, with these weights: writes trainer_0/{ae.pt, config.json}."""

    def trainer(**known) -> Any:
        made = trainer_class(**known)
        fill(made.ae, arrays)
        return made

    config = {
        "trainer": trainer,
        "steps": 5000,
        "activation_dim": D,
        "dict_size": FEATURES,
        "layer": 5,
        "device": "cpu",
    }
    config |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_5", "seed": 0}
    training = import_module("dictionary_learning.training")
    training.trainSAE(
        data=_Buffer(), trainer_configs=[config | settings], steps=0, save_dir=str(folder), device="cpu", log_steps=1
    )


def dictionary_arrays(kind: str, seed: int, threshold: float = -1) -> tuple[Arrays, bool]:
    """State of one of the classes, and whether it subtracts its bias."""
    found = weights(seed, unit="TopK" in kind)
    linear = {"encoder.weight": found["W_enc"].T, "decoder.weight": found["W_dec"].T}
    plain = {name: found[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    sparse = {"k": np.array(K, np.int32), "threshold": np.array(threshold, np.float32)}
    if kind == "AutoEncoder":
        return linear | {"bias": found["b_dec"], "encoder.bias": found["b_enc"]}, True
    if kind == "AutoEncoderNew":
        return linear | {"encoder.bias": found["b_enc"], "decoder.bias": found["b_dec"]}, False
    if kind == "GatedAutoEncoder":
        gated = gated_biases(found, seed) | {"b_dec": found["b_dec"]}
        names = {"decoder_bias": "b_dec", "r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag"}
        return linear | {mine: gated[theirs] for mine, theirs in names.items()}, True
    if kind == "JumpReluAutoEncoder":
        return plain | {"threshold": found["theta"]}, False
    if kind == "MatryoshkaBatchTopKSAE":
        return plain | sparse | {"group_sizes": np.array([6, 6, 12])}, True
    return linear | sparse | {"encoder.bias": found["b_enc"], "b_dec": found["b_dec"]}, True


def dictionary_learning_cases(out: Path) -> None:
    library = "dictionary_learning"
    names = ("standard", "gdm", "top_k", "batch_top_k", "matryoshka_batch_top_k", "jumprelu")
    standard, gdm, top_k, batch, matryoshka, jump = (import_module(f"{library}.trainers.{name}") for name in names)
    classes = import_module("dictionary_learning.dictionary")
    fractions = {"k": K, "group_fractions": [0.25, 0.25, 0.5]}
    april, note = standard.StandardTrainerAprilUpdate, "config.json says AutoEncoder, though this is AutoEncoderNew"
    cases: list[tuple[str, Any, Any, dict[str, Any], float, str]] = [
        ("autoencoder", classes.AutoEncoder, standard.StandardTrainer, {}, -1, ""),
        ("autoencoder_new", classes.AutoEncoderNew, april, {"dict_class": classes.AutoEncoderNew}, -1, note),
        ("gated", classes.GatedAutoEncoder, gdm.GatedSAETrainer, {}, -1, "rows with a gate at, above and below 0"),
        ("topk", top_k.AutoEncoderTopK, top_k.TopKTrainer, {"k": K}, -1, ""),
        ("topk_threshold", top_k.AutoEncoderTopK, top_k.TopKTrainer, {"k": K}, 0.5, "the threshold is not used"),
        ("batchtopk", batch.BatchTopKSAE, batch.BatchTopKTrainer, {"k": K}, THETA, ""),
        ("batchtopk_unset", batch.BatchTopKSAE, batch.BatchTopKTrainer, {"k": K}, -1, "threshold -1: a plain ReLU"),
        ("matryoshka", matryoshka.MatryoshkaBatchTopKSAE, matryoshka.MatryoshkaBatchTopKTrainer, fractions, THETA, ""),
        ("jumprelu", classes.JumpReluAutoEncoder, jump.JumpReluTrainer, {}, THETA, ""),
    ]
    for seed, (name, kind, trainer, settings, threshold, note) in enumerate(cases, 200):
        arrays, centred = dictionary_arrays(kind.__name__, seed, threshold)
        repo = new_repo(out, f"{library}_{name}")
        dictionary_run(repo / "resid_post_layer_5", trainer, arrays, **settings)
        path, x = str(repo / "resid_post_layer_5/trainer_0/ae.pt"), rows(seed)
        if threshold > 0:
            x = rows(seed, D, edge_input(THETA, centred))
        if name == "gated":
            x = rows(seed, D, 0.5)
        plain = {"normalize_decoder": False} if name == "autoencoder" else {}
        expected = [encoded(kind.from_pretrained(path, **plain), x)]
        case = Case(f"{library}_{name}", library, library, "resid_post_layer_5/trainer_0", "sae", 5)
        case.hook_in = case.hook_out = "resid_post_layer_5"
        case.note = note
        if plain:
            torch.manual_seed(0)
            expected.append(encoded(kind.from_pretrained(path), x))
            case.note = "x2, code2, y2: as from_pretrained reads it by default, with the decoder rows normalised"
        finish(out, case, suffixed(expected))


# llamascopium

OM_IN, OM_OUT = "blocks.5.hook_resid_post", "blocks.5.hook_mlp_out"


def _llamascopium(
    kind: str, cfg: dict[str, Any], arrays: Arrays, norms: dict[str, float], folder: Path, fold: bool
) -> Any:
    """Saves one as the library does and reads it again."""
    names = {"sae": "SAEConfig", "crosscoder": "CrosscoderConfig", "clt": "CLTConfig"}
    config = getattr(import_module(f"llamascopium.models.{kind}"), names[kind])
    dictionary = import_module("llamascopium.models").SparseDictionary
    model = dictionary.from_config(config(d_model=D, expansion_factor=FEATURES / D, top_k=K, **cfg))
    fill(model, arrays)
    model.set_dataset_average_activation_norm(norms)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, fold_activation_scale=fold)
    model.cfg.save_hyperparameters(folder)
    return dictionary.from_pretrained(str(folder))


def _llamascopium_code(model: Any, x: np.ndarray, hooks: list[str], hooks_out: list[str]) -> Arrays:
    """Normalised and brought back as the library's own callers do."""
    parts = torch.from_numpy(x).reshape(len(x), len(hooks), -1)
    read = {hook: parts[:, i] for i, hook in enumerate(hooks)}
    with torch.no_grad():
        scaled = model.normalize_activations(read)
        code = model.encode(model.prepare_input(scaled)[0])
        y = model.decode(code).reshape(len(x), len(hooks_out), -1)
        back = {hook: y[:, i] for i, hook in enumerate(hooks_out)}
        factors = {hook: model.compute_norm_factor(value, hook) for hook, value in back.items()}
        y = torch.cat(list(model.denormalize_activations(back, factors).values()), 1)
    return {"x": x, "code": code.numpy(), "y": y.numpy()}


def _llamascopium_arrays(cfg: dict[str, Any], found: Arrays) -> Arrays:
    arrays = {"W_E": found["W_enc"], "b_E": found["b_enc"], "W_D": found["W_dec"], "b_D": found["b_dec"]}
    if not cfg.get("use_decoder_bias", True):
        del arrays["b_D"]
    if cfg.get("use_glu_encoder"):
        arrays |= {"W_E_glu": found["W_enc"][::-1], "b_E_glu": found["b_enc"][::-1]}
    if cfg["act_fn"] == "jumprelu":
        arrays["activation_function.log_jumprelu_threshold"] = np.log(found["theta"])
    return arrays


def llamascopium_cases(out: Path) -> None:
    """norm_activation is `inference` where not said: the file holds the norms all the same, not to be applied."""
    wise = {"norm_activation": "dataset-wise"}
    norm = math.sqrt(D) / NORM_FACTOR
    refused = {"batchtopk": "the selection is of a whole batch", "glu": "gated encoder (GLU)"}
    refused["token_wise"] = "per-token normalisation, which cannot be folded"
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("relu", {"act_fn": "relu"}, ""),
        ("jumprelu", {"act_fn": "jumprelu"}, "the threshold is compared with pre * decoder norm"),
        ("jumprelu_plain", {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False}, ""),
        ("topk", {"act_fn": "topk"}, "chosen by pre * decoder norm"),
        ("topk_plain", {"act_fn": "topk", "sparsity_include_decoder_norm": False}, ""),
        ("no_bias", {"act_fn": "relu", "use_decoder_bias": False}, "there is no b_D"),
        ("dataset_wise", {"act_fn": "relu", **wise}, "codes are of the normalised activations"),
        ("dataset_wise_jumprelu", {"act_fn": "jumprelu", **wise}, ""),
        ("folded", {"act_fn": "relu", **wise}, "by save_pretrained(fold_activation_scale=True)"),
        ("transcoder", {"act_fn": "topk", "hook_point_out": OM_OUT}, ""),
        ("transcoder_dataset_wise", {"act_fn": "relu", "hook_point_out": OM_OUT, **wise}, "two norms, in and out"),
        ("batchtopk", {"act_fn": "batchtopk"}, ""),
        ("token_wise", {"act_fn": "relu", "norm_activation": "token-wise"}, ""),
        ("glu", {"act_fn": "relu", "use_glu_encoder": True}, ""),
    ]
    for seed, (name, known, note) in enumerate(cases, 300):
        cfg = {"hook_point_in": OM_IN, "hook_point_out": OM_IN, "norm_activation": "inference", **known}
        found, theta = weights(seed), 1.0
        found["theta"][0] = theta
        norms = {cfg["hook_point_out"]: norm / 4, OM_IN: norm}
        folder = new_repo(out, f"llamascopium_{name}") / "l5"
        model = _llamascopium("sae", cfg, _llamascopium_arrays(cfg, found), norms, folder, name == "folded")
        at = None
        if cfg["act_fn"] == "jumprelu":
            pre = theta / 2 if cfg.get("sparsity_include_decoder_norm", True) else theta
            at = edge_input(pre, False, NORM_FACTOR if "wise" in name else 1)
        case = Case(
            f"llamascopium_{name}", "llamascopium", "llamascopium", "l5", "sae", 5, OM_IN, cfg["hook_point_out"]
        )
        case.kind, case.note, case.refused = "transcoder" if "transcoder" in name else "sae", note, refused.get(name)
        expected = _llamascopium_code(model, rows(seed, D, at), [OM_IN], [cfg["hook_point_out"]])
        finish(out, case, None if case.refused else expected)


def crosscoder_weights(seed: int, sources: int = 2) -> Arrays:
    """W_enc (n, d, F), W_dec (n, F, d), b_enc (F), b_dec (n, d), theta; feature 0 reads the first source alone."""
    found = [weights(10 * seed + i) for i in range(sources)]
    stacked = {name: np.stack([a[name] for a in found]) for name in ("W_enc", "W_dec", "b_dec")}
    stacked["W_enc"] *= np.float32(0.75)
    stacked["W_enc"][:, :, 0] = 0
    stacked["W_enc"][0, 0, 0] = 1
    return stacked | {"b_enc": found[0]["b_enc"], "theta": found[0]["theta"]}


def llamascopium_crosscoders(out: Path) -> None:
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in (4, 5)]
    norm = math.sqrt(D) / NORM_FACTOR
    cases = [
        ("crosscoder", "relu", "inference", None),
        ("crosscoder_dataset_wise", "relu", "dataset-wise", None),
        ("crosscoder_jumprelu", "jumprelu", "inference", "each source has a code of its own"),
    ]
    for seed, (name, activation, normalisation, refused) in enumerate(cases, 330):
        cfg = {"hook_points": hooks, "act_fn": activation, "norm_activation": normalisation}
        found = crosscoder_weights(seed)
        split = np.stack([found["b_enc"] - 0.5, np.full_like(found["b_enc"], 0.5)])
        arrays = _llamascopium_arrays(cfg, found | {"b_enc": split})
        folder = new_repo(out, f"llamascopium_{name}") / "l4-5"
        model = _llamascopium("crosscoder", cfg, arrays, {hooks[0]: norm, hooks[1]: 2 * norm}, folder, False)
        expected = _llamascopium_code(model, rows(seed, 2 * D), hooks, hooks)
        codes = expected["code"]
        expected["code"] = codes[:, 0]
        case = Case(f"llamascopium_{name}", "llamascopium", "llamascopium", "l4-5", "crosscoder", 4, hooks, hooks)
        case.refused, case.sources, case.more = refused, 2, {"layers": [4, 5]}
        case.note = "the library computes a code of each source, all equal here; b_E is summed over the sources"
        assert np.allclose(codes[:, 0], codes[:, 1], atol=1e-5) or refused
        finish(out, case, None if refused else expected)
    layers = [weights(seed) for seed in (340, 341)]
    arrays = {"W_E": np.stack([a["W_enc"] for a in layers]), "b_E": np.stack([a["b_enc"] for a in layers])}
    for i in range(2):
        arrays[f"W_D.{i}"] = np.stack([a["W_dec"] for a in layers[: i + 1]])
        arrays[f"b_D.{i}"] = layers[i]["b_dec"]
    cfg = {"act_fn": "relu", "norm_activation": "inference"}
    cfg |= {"hook_points_in": hooks, "hook_points_out": [h.replace("resid_post", "mlp_out") for h in hooks]}
    norms = dict.fromkeys([*cfg["hook_points_in"], *cfg["hook_points_out"]], norm)
    _llamascopium("clt", cfg, arrays, norms, new_repo(out, "llamascopium_clt") / "clt", False)
    case = Case("llamascopium_clt", "llamascopium", "llamascopium", "clt", "transcoder")
    case.refused = "cross-layer transcoder: decoders into several layers"
    finish(out, case)


# circuit-tracer


def _tracer_config(repo: Path, kind: str, **known) -> None:
    config = {"model_name": "google/gemma-2-2b", "model_kind": kind, "scan": "gemma-2-2b"}
    config |= {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out", **known}
    (repo / "config.yaml").write_text(import_module("yaml").safe_dump(config, sort_keys=False))


def circuit_tracer_cases(out: Path) -> None:
    single = import_module("circuit_tracer.transcoder.single_layer_transcoder")
    jump = import_module("circuit_tracer.transcoder.activation_functions").JumpReLU
    variants = [(a, b) for a in (False, True) for b in (False, True)]
    for case_seed, (jumps, skips) in enumerate(variants):
        name = f"circuit_tracer_{'jumprelu' if jumps else 'relu'}{'_skip' if skips else ''}"
        repo, made = new_repo(out, name), {}
        for layer in range(3):
            found = weights(seed := 400 + 10 * case_seed + layer)
            arrays = {name: found[name] for name in ("W_dec", "b_enc", "b_dec")} | {"W_enc": found["W_enc"].T}
            arrays |= {"W_skip": skip_weights(seed)} if skips else {}
            arrays |= {"activation_function.threshold": found["theta"]} if jumps else {}
            act = jump(torch.zeros(FEATURES), 0.1) if jumps else torch.nn.functional.relu
            coder = single.SingleLayerTranscoder(
                D, FEATURES, act, layer, skips, device=torch.device("cpu"), dtype=torch.float32
            )
            made[layer] = fill(coder, arrays)
        single.TranscoderSet(made, "ln2.hook_normalized", "hook_mlp_out").to_safetensors(str(repo))
        _tracer_config(repo, "transcoder_set")
        found = []
        for layer in (1, 0, 2):
            path = str(repo / f"layer_{layer}.safetensors")
            coder = single.load_relu_transcoder(path, layer, torch.device("cpu"), torch.float32, False, False)
            found.append(encoded(coder, rows(400 + layer, D, edge_input(THETA, False) if jumps else None)))
        case = Case(name, "circuit-tracer", "circuit-tracer", "layer_1.safetensors", "transcoder", 1)
        case.hook_in, case.hook_out = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
        case.note = "x2, code2, y2 are of layer 0, x3, code3, y3 of layer 2"
        finish(out, case, suffixed(found))
    _tracer_clt(out)


def _tracer_clt(out: Path) -> None:
    cross = import_module("circuit_tracer.transcoder.cross_layer_transcoder")
    layers = [weights(seed) for seed in (440, 441)]
    sizes = {"n_layers": 2, "d_transcoder": FEATURES, "d_model": D, "lazy_decoder": False}
    clt = cross.CrossLayerTranscoder(**sizes, device=torch.device("cpu"), dtype=torch.float32)
    arrays = {name: np.stack([a[name] for a in layers]) for name in ("b_enc", "b_dec")}
    arrays["W_enc"] = np.stack([a["W_enc"].T for a in layers])
    for i in range(2):
        arrays[f"W_dec.{i}"] = np.stack([a["W_dec"] for a in layers[i:]], 1)
    repo = new_repo(out, "circuit_tracer_clt")
    fill(clt, arrays).to_safetensors(str(repo))
    _tracer_config(repo, "cross_layer_transcoder")
    case = Case("circuit_tracer_clt", "circuit-tracer", "circuit-tracer", kind="transcoder")
    case.refused = "cross-layer transcoder: decoders into several layers"
    finish(out, case)


LIBRARIES = [
    sparsify_cases,
    dictionary_learning_cases,
    llamascopium_cases,
    llamascopium_crosscoders,
    circuit_tracer_cases,
]
