"""Dictionaries of other libraries compute here what they compute there, or are refused."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from foreign import GIVEN, MLP, Case, cases, distance, units_of

from hubsae import list_dictionaries, load_sae
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, HubsaeError, HubsaeWarning
from hubsae.formats.hook_names import repository_of, site_of_hook
from hubsae.formats.repo_files import RepoFiles
from hubsae.formats.tensors import Tensors

TOLERANCE = 1e-5
NO_CODE_OF_OURS = ("sparsify_groupmax",)  # these libraries load it, and no weights of ours do the same
SCALED = "saelens_expected_average_only_in_checkpoint"
ACCEPTED = [case for case in cases(refused=False) if case.name not in NO_CODE_OF_OURS]
REFUSED = [case for case in cases(refused=True) if case.name != SCALED] + list(map(Case, NO_CODE_OF_OURS))
ONE_EACH = [
    Case(name)
    for name in (
        *("saelens_gated", "saelens_batchtopk_training", "saelens_legacy_topk", "saelens_jumprelu_skip_transcoder"),
        *("sparsify_several", "dictionary_learning_matryoshka", "dictionary_learning_gated", "saebench_topk"),
        *("bartbussmann_batchtopk", "llamascopium_dataset_wise_jumprelu", "llamascopium_crosscoder", "llama_scope_lxr"),
        *("gemma_scope_res", "gemma_scope_2_transcoder_affine", "circuit_tracer_jumprelu_skip", "mwhanna_transcoder"),
        *(
            "ckkissane_crosscoder",
            "finetuning_crosscoder_batchtopk_normalised",
            "goodfire",
            "qwen_scope",
            "openai_relu",
        ),
    )
]


def name_of(case: Case) -> str:
    return case.name


pytestmark = pytest.mark.filterwarnings("ignore:.*its threshold is -1")


@pytest.mark.parametrize("case", ACCEPTED, ids=name_of)
def test_code_and_reconstruction_are_those_of_the_library(case: Case, tmp_path):
    dictionary = case.load(tmp_path)
    assert dictionary.config.kind == case.info["kind"]
    expected = case.expected
    y = expected["y2"] * np.sqrt(16) if case.name == "gemma_scope_embedding" else expected["y"]
    found = distance(dictionary, expected["x"], expected["code"], y, units_of(case, dictionary))
    assert found.same_features
    assert found.code < TOLERANCE
    assert found.y < TOLERANCE


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_no_weights_can_do_is_refused_with_the_reason(case: Case, tmp_path):
    with pytest.raises(ArtifactError, match="would be another dictionary"):
        case.load(tmp_path)


@pytest.mark.parametrize("number", [2, 3])
def test_each_dictionary_of_a_repository_is_found_by_its_folder(number, tmp_path):
    case = Case("sparsify_several")
    folder = case.info["folders"][number - 1]
    found = load_sae(case.copied(tmp_path), subfolder=folder)
    expected = case.expected
    assert distance(found, *(expected[f"{what}{number}"] for what in ("x", "code", "y"))).code < TOLERANCE
    assert found.config.reads == ({2: "layers.2.mlp", 3: "layers.1.residual"}[number],)


def test_the_encoder_bias_counts_where_the_settings_say_so(tmp_path):
    case = Case("bartbussmann_batchtopk")
    folder, x = case.copied(tmp_path), mx.array(case.expected["x"])
    path = next(folder.rglob("config.json"))
    without = load_sae(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_encoder_bias": True}))
    found = load_sae(folder)
    shift = np.array(found.b_enc) - np.array(without.b_enc)
    assert np.abs(shift).max() > 0.01
    assert mx.allclose(found.pre_code(x), without.pre_code(x) + mx.array(shift), atol=1e-4)


def test_a_crosscoder_of_one_model_has_one_base_model(tmp_path):
    two_layers = ["layers.13.residual", "layers.14.residual"]
    found = Case("ckkissane_crosscoder").load(tmp_path, reads=two_layers)
    assert len(found.base_models) == 1


def test_given_scales_are_folded_in(tmp_path):
    case = Case("ckkissane_crosscoder")
    found, expected = case.load(tmp_path, input_scales=case.info["scales2"]), case.expected
    far = distance(found, *(expected[f"{what}2"] for what in ("x", "code", "y")))
    assert max(far.code, far.y) < TOLERANCE
    with pytest.raises(ArtifactError, match="input_scales=, 2 numbers"):
        case.load(tmp_path / "again", input_scales=None)


def test_the_scale_that_a_checkpoint_keeps_beside_its_weights_is_folded_in(tmp_path):
    found = Case(SCALED).load(tmp_path)
    plain_folder = Case(SCALED).copied(tmp_path / "again")
    next(plain_folder.rglob("activation_scaler.json")).write_text('{"scaling_factor": 1.0}')
    plain = load_sae(plain_folder)
    x = Case(SCALED).expected["x"]
    assert mx.allclose(found.encode(mx.array(x)), plain.encode(mx.array(0.5 * x)), atol=1e-5)
    assert mx.allclose(found(mx.array(x)), 2 * plain(mx.array(0.5 * x)), atol=1e-4)


def test_what_files_say_and_what_nobody_recorded_stays_with_the_dictionary(tmp_path):
    sae = Case("saelens_standard_b_dec").load(tmp_path)
    assert sae.base_model.repo_id == "openai-community/gpt2"
    assert sae.config.reads == ("layers.5.residual_in",)
    assert sae.config.tokens == {"context_size": 128, "skip_positions": 0}
    told = sae.statistics["imported"]
    assert "a BOS token stood before every text, which this model's tokenizer does not add" in told["notes"][0]
    assert told["format"] == "SAELens"
    assert told["folded"] == ["the decoder's bias is subtracted before encoding"]
    assert told["recorded"]["hook_name"] == "blocks.5.hook_resid_pre"
    assert "commit of the base model" in told["unknown"]
    assert str(tmp_path) not in json.dumps(told)
    sae.save(tmp_path / "ours")
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "SAELens" in card
    assert "Nobody recorded: commit of the base model" in card
    assert str(tmp_path) not in card
    again = load_sae(tmp_path / "ours")
    assert all(mx.array_equal(again.arrays()[name], array) for name, array in sae.arrays().items())


def test_little_known_files_say_so_on_the_card(tmp_path):
    sae = Case("sparsify_topk").load(tmp_path)
    assert sae.config.tokens == {}
    sae.save(tmp_path / "ours")
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "whether texts began with a BOS token" in card
    assert "no special tokens" not in card


def test_centred_rows_give_the_same_code_as_raw_ones(tmp_path):
    folder = Case("saelens_standard").copied(tmp_path)
    path = next(folder.rglob("cfg.json"))
    config = json.loads(path.read_text())
    plain = load_sae(folder)
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    path.write_text(json.dumps(config))
    x = Case("saelens_standard").expected["x"]
    centred = mx.array(x - x.mean(axis=1, keepdims=True))
    assert mx.allclose(load_sae(folder).encode(mx.array(x)), plain.encode(centred), atol=1e-4)


def test_a_place_given_by_the_user_wins_and_is_told(tmp_path):
    sae = Case("saelens_standard").load(tmp_path, reads="layers.2.mlp")
    assert sae.config.reads == sae.config.writes == ("layers.2.mlp",)
    assert sae.statistics["imported"]["given by the user"] == ["reads"]
    sae.save(tmp_path / "ours")
    with pytest.raises(ConfigError, match="leave that out"):
        load_sae(tmp_path / "ours", reads="layers.2.mlp")


def test_a_path_to_a_file_is_its_folder_and_name(tmp_path):
    folder = Case("qwen_scope").copied(tmp_path)
    assert load_sae(folder / "layer3.sae.pt", k=6).config.reads == ("layers.3.residual",)


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    mx.save_safetensors(str(path), {name: mx.array(array, mx.float32) for name, array in arrays.items()})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_folder_of_mlxterp_computes_what_its_definition_says(tied, normalised, tmp_path):
    d, n, k, rng = 6, 10, 3, np.random.default_rng(0)
    arrays = {
        "encoder.weight": rng.standard_normal((n, d)),
        "encoder.bias": rng.standard_normal(n),
        "input_mean": rng.standard_normal(d) * 3,
        "input_std": np.array([1, 2, 0.5, 0.1, 3, 1]),
    }
    arrays |= {"decoder_bias": rng.standard_normal(d)} if tied else {"decoder.weight": rng.standard_normal((d, n))}
    arrays |= {} if tied else {"decoder.bias": rng.standard_normal(d)}
    folder = tmp_path / "sae_layer10.mlx"
    folder.mkdir()
    mx.save_safetensors(
        str(folder / "weights.safetensors"), {name: mx.array(a, mx.float32) for name, a in arrays.items()}
    )
    metadata = {"layer": 10, "component": "mlp", "model_name": "mlx-community/Llama-3.2-1B-Instruct"}
    config = {"d_model": d, "d_hidden": n, "class": "SAE", "k": k, "tied_weights": tied, "normalize_input": normalised}
    (folder / "config.json").write_text(json.dumps({**config, "metadata": metadata}))
    sae = load_sae(folder)
    assert (sae.config.reads, sae.base_model.repo_id) == (("layers.10.mlp",), metadata["model_name"])
    x = arrays["input_mean"] + rng.standard_normal((5, d)) * arrays["input_std"]
    mean, std = (arrays["input_mean"], arrays["input_std"]) if normalised else (0, 1)
    pre = np.maximum((x - mean) / (std + 1e-8) @ arrays["encoder.weight"].T + arrays["encoder.bias"], 0)
    code = np.where(pre >= np.sort(pre, axis=1)[:, -k, None], pre, 0)
    out = arrays["encoder.weight"] if tied else arrays["decoder.weight"].T
    y = (code @ out + arrays["decoder_bias" if tied else "decoder.bias"]) * std + mean
    assert np.allclose(np.array(sae(mx.array(x))), y, atol=1e-4)
    (folder / "config.json").write_text(json.dumps({**config, "class": "BatchTopKSAE"}))
    with pytest.raises(ArtifactError, match="the other rows of a batch"):
        load_sae(folder)
    (folder / "config.json").write_text(json.dumps({**config, "normalize_input": True}))
    arrays["input_std"][3] = 0  # a column that never varied
    write_safetensors(folder / "weights.safetensors", arrays)
    with pytest.raises(ArtifactError, match="input_std is 0 in 1 columns"):
        load_sae(folder)


# --- choosing -------------------------------------------------------------------------------------------------------


def test_a_typo_is_answered_with_the_nearest_name(tmp_path):
    folder = Case("sparsify_several").copied(tmp_path)
    with pytest.raises(ArtifactError, match=r"no dictionary at 'layers\.2\.mpl'; did you mean layers\.2\.mlp"):
        load_sae(folder, subfolder="layers.2.mpl")
    with pytest.raises(ArtifactError, match=r"several dictionaries; give subfolder=, one of h\.1, h\.1/seed1, layers"):
        load_sae(folder)


def test_the_only_dictionary_needs_no_name_and_a_file_none_of_its_ending(tmp_path):
    folder = Case("circuit_tracer_relu").copied(tmp_path)
    names = [entry.subfolder for entry in list_dictionaries(folder)]
    assert names == [f"layer_{i}.safetensors" for i in range(3)]
    assert load_sae(folder, subfolder="layer_2", reads=MLP["reads"], writes=MLP["writes"]).n_features == 24
    only = Case("saelens_gated").copied(tmp_path / "b")
    assert load_sae(only).rule.name == "gated"


def test_a_list_counts_as_people_do_and_tells_ours_apart(sae, tmp_path):
    for layer in (10, 9):
        shutil.copytree(Case("sparsify_topk").folder / "repo" / "layers.5", tmp_path / f"layers.{layer}")
    sae.save(tmp_path / "ours")
    shutil.copytree(Case("finetuning_crosscoder_relu").folder / "repo", tmp_path / "theirs")
    found = list_dictionaries(tmp_path)
    assert [(e.subfolder, e.format) for e in found] == [
        ("layers.9", "sparsify"),
        ("layers.10", "sparsify"),
        ("ours", "hubsae"),
        ("theirs", "crosscoder (hub mixin)"),
    ]
    assert "layers.9" in str(found)
    assert load_sae(tmp_path, subfolder="ours").config == sae.config


# --- bad input ------------------------------------------------------------------------------------------------------


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let `change` alter the arrays of every file that is read."""
    read = Tensors.read.__func__  # type: ignore[attr-defined]

    def altered(cls: type, path: Path, where: str) -> Tensors:
        tensors = read(cls, path, where)
        change(tensors._arrays)
        return tensors

    monkeypatch.setattr(Tensors, "read", classmethod(altered))


def arrays_in(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        changed(patch, seen.update)
        case.load(folder)
    return {name: value for name, value in seen.items() if hasattr(value, "shape")}


def load_changed(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> Any:
    """The dictionary, or the text of the error."""
    with monkeypatch.context() as patch:
        changed(patch, change)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return case.load(folder)
        except ArtifactError as error:
            return str(error)


def refused_or_same(found: Any, x: mx.array, code: mx.array) -> bool:
    return isinstance(found, str) or bool(mx.array_equal(found.encode(x), code))


# no settings of theirs say whether there is one
UNSAID = {"circuit_tracer_jumprelu_skip": ("activation_function.threshold", "W_skip")}


@pytest.mark.parametrize("case", ONE_EACH, ids=name_of)
def test_missing_extra_misshapen_and_infinite_arrays_are_refused(case: Case, tmp_path, monkeypatch):
    folder, x = tmp_path / "f", mx.array(case.expected["x"])
    arrays = arrays_in(case, folder, monkeypatch)
    shutil.rmtree(folder)
    right = case.load(folder).encode(x)
    for name in arrays:
        found = load_changed(case, folder, monkeypatch, lambda all_, name=name: all_.pop(name))
        assert name in UNSAID.get(case.name, ()) or refused_or_same(found, x, right), name
    for name, array in arrays.items():
        if array.ndim:
            cut = array[..., :-1]
            found = load_changed(case, folder, monkeypatch, lambda all_, name=name, cut=cut: all_.update({name: cut}))
            assert refused_or_same(found, x, right), name
    extra = load_changed(case, folder, monkeypatch, lambda all_: all_.update(surprise=np.zeros(3, np.float32)))
    assert "surprise" in extra
    largest = max(arrays, key=lambda name: arrays[name].size)
    if arrays[largest].dtype.kind == "f":
        half = np.array(arrays[largest], np.float16)
        half.flat[5] = np.inf
        found = load_changed(case, folder, monkeypatch, lambda all_: all_.update({largest: half}))
        assert "1 values that are infinite or no number" in found


WRONG = (None, "x", -1, 0, 10**9, 1.5, True, [], {}, ["a"], float("nan"))


@pytest.mark.parametrize("case", ONE_EACH, ids=name_of)
def test_settings_of_any_kind_end_in_an_error_of_ours_or_a_dictionary(case: Case, tmp_path, monkeypatch):
    folder = tmp_path / "f"
    configs: dict[str, dict] = {}
    read = {"json": RepoFiles.json, "yaml": RepoFiles.yaml}

    def patched(how: str, change: Any) -> Any:
        def altered(self: RepoFiles, name: str) -> dict:
            content = json.loads(json.dumps(read[how](self, name)))
            configs[name] = json.loads(json.dumps(content))
            return change(name, content)

        return altered

    given: Any = {"subfolder": case.info.get("subfolder"), **GIVEN.get(case.name, {})}

    def load(change: Any) -> Any:
        for how in read:
            monkeypatch.setattr(RepoFiles, how, patched(how, change))
        return load_sae(folder / case.info.get("repo_id", "org/repo"), **given)

    case.copied(folder)
    load(lambda _, content: content)
    for name, config in list(configs.items()):
        for path in paths(config):
            for value in WRONG:
                with contextlib.suppress(HubsaeError):
                    load(lambda n, content, t=name, p=path, v=value: put(content, p, v) if n == t else content)


def paths(config: dict, above: tuple = ()) -> list[tuple]:
    found = []
    for key, value in config.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += paths(value, (*above, key))
    return found


def put(content: dict, path: tuple, value: Any) -> dict:
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("saelens_standard", {"d_in": 11}, r"W_enc has shape \(12, 24\), expected \(11, 24\)"),
        ("saelens_standard", {"d_sae": 4096}, "expected"),
        ("saelens_standard", {"architecture": "sorted_relu"}, "'sorted_relu' of SAELens is not known here"),
        ("saelens_standard", {"normalize_activations": "by_magic"}, "'by_magic' is not known here"),
        ("saelens_topk", {"k": 0}, "k=0"),
        ("saelens_topk", {"k": "many"}, "'k' is 'many', expected int"),
        ("saelens_jumprelu", {"architecture": "standard"}, "holds threshold, which this layout has not"),
        ("saelens_standard", {"architecture": "jumprelu"}, "no array threshold"),
        ("saelens_legacy", {"activation_fn_str": "tanh-relu"}, "'tanh-relu'"),
        ("saelens_hook_z", {"metadata": {"sae_lens_version": "6.0.0", "hook_head_index": 3}}, "single attention head"),
        ("sparsify_topk", {"activation": "softmax"}, "'softmax'"),
        ("llamascopium_relu", {"sae_type": "lorsa"}, "'lorsa'"),
        ("llamascopium_relu", {"norm_activation": "batch-wise"}, "'batch-wise'"),
        ("gemma_scope_2_resid_post", {"width": 16384}, "24 features, but its settings say width 16384"),
        ("gemma_scope_2_transcoder_affine", {"affine_connection": False}, "arrays say otherwise"),
    ],
)
def test_settings_that_do_not_fit_say_what_is_wrong(name, change, message, tmp_path):
    folder = Case(name).copied(tmp_path)
    (path,) = [p for p in folder.rglob("c*g.json") if p.name in ("cfg.json", "config.json")]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=message):
        load_sae(folder, subfolder=Case(name).info.get("subfolder"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": "8"}, "k='8'"),
        ({"input_scales": (0, 1)}, "input_scales"),
        ({"input_scales": ("a",)}, "input_scales"),
        ({"reads": "layers.x"}, "is no site"),
    ],
)
def test_wrong_statements_of_the_user_are_refused(given, message, tmp_path):
    with pytest.raises(HubsaeError, match=message):
        Case("saelens_standard").load(tmp_path, **given)


def test_files_that_are_damaged_or_in_disguise_are_refused(tmp_path):
    folder = Case("gemma_scope_res").copied(tmp_path)
    path = next(folder.rglob("params.npz"))
    whole = path.read_bytes()
    for content in (whole[:-30], b"PK\x03\x04" + b"\0" * 60, b"<html>", b"", whole[:200] + b"\xff" * 50 + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"params\.npz"):
            load_sae(folder)
    np.savez(path, W_enc=np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=r"not readable as \.npz"):
        load_sae(folder)
    np.savez_compressed(path, W_enc=np.zeros(40 << 20, np.float32))
    with pytest.raises(ArtifactError, match="unpack to"):
        load_sae(folder)


def test_settings_that_are_no_settings_are_refused(tmp_path):
    folder = Case("saelens_standard").copied(tmp_path)
    path = next(folder.rglob("cfg.json"))
    for content in (b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b"{" + b" " * (5 << 20) + b"}"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"cfg\.json"):
            load_sae(folder)


def test_yaml_makes_no_objects(tmp_path):
    folder = Case("circuit_tracer_relu").copied(tmp_path)
    mark = tmp_path / "ran"
    (folder / "config.yaml").write_text(f"model_name: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(ArtifactError, match="'model_name' is a list, expected str"):
        load_sae(folder, subfolder="layer_1", reads=MLP["reads"])
    assert not mark.exists()


def test_an_untrained_threshold_is_warned_of(tmp_path):
    with pytest.warns(HubsaeWarning, match="every positive feature is kept"):
        Case("dictionary_learning_batchtopk_unset").load(tmp_path)


# --- what readers must not be led to believe ------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["my_embedding", "gemma-mlp", "x-att", "saved-transcoders", "embedding"])
def test_folders_above_a_published_one_say_nothing(above, tmp_path):
    sae = Case("gemma_scope_res").load(tmp_path / above)
    assert sae.config.reads == ("layers.3.residual",)
    far = distance(sae, *(Case("gemma_scope_res").expected[name] for name in ("x", "code", "y")))
    assert far.code < TOLERANCE


def test_a_copy_in_the_hubs_cache_is_known_by_its_name(tmp_path):
    case = Case("gemma_scope_mlp")
    folder = tmp_path / f"models--{case.info['repo_id'].replace('/', '--')}" / "snapshots" / ("a" * 40)
    shutil.copytree(case.folder / "repo", folder)
    assert load_sae(folder).config.reads == ("layers.3.post_feedforward_layernorm",)


def test_a_published_file_under_no_name_says_little(tmp_path):
    folder = tmp_path / "downloads"
    shutil.copy(next((Case("gemma_scope_res").folder / "repo").rglob("params.npz")), folder.mkdir() or folder)
    with pytest.raises(ArtifactError, match="says where it reads"):
        load_sae(folder)
    sae = load_sae(folder, reads="layers.3.residual")
    assert sae.base_model.repo_id is None
    assert sae.config.tokens == {}


def test_what_the_list_of_releases_says_holds_for_copies_too(tmp_path):
    for repo_id in ("jbloom/GPT2-Small-SAEs-Reformatted", "x/GPT2-Small-Feature-Splitting-Experiment-Layer-8"):
        shutil.copytree(Case("saelens_standard").folder / "repo", tmp_path / repo_id)
        told = load_sae(tmp_path / repo_id).statistics["imported"]
        assert any("center_writing_weights" in what for what in told["folded"])
    per_row = tmp_path / "JoshEngels" / "Mistral-7B-Residual-Stream-SAEs"
    shutil.copytree(Case("saelens_standard").folder / "repo", per_row)
    with pytest.raises(ArtifactError, match="scales every row by its own norm"):
        load_sae(per_row)


@pytest.mark.parametrize(
    ("hook", "model", "site"),
    [
        ("blocks.3.hook_resid_post", None, "layers.3.residual"),
        ("blocks.3.hook_mlp_out", "pythia-70m-deduped", "layers.3.mlp"),
        ("blocks.3.hook_mlp_out", "meta-llama/Llama-3.1-8B", "layers.3.mlp"),
        ("blocks.3.hook_mlp_out", "gemma-2b", "layers.3.mlp"),
        ("blocks.3.hook_mlp_out", "gemma-2-2b", "layers.3.post_feedforward_layernorm"),
        ("blocks.3.hook_mlp_out", "gemma2", "layers.3.post_feedforward_layernorm"),
        ("blocks.3.hook_attn_out", "google/medgemma-4b-it", "layers.3.post_attention_layernorm"),
        ("blocks.3.hook_attn_out", "allenai/OLMo-2-0425-1B", "layers.3.post_attention_layernorm"),
        ("blocks.3.hook_resid_mid", "allenai/OLMo-2-0425-1B", None),
        ("blocks.3.attn.hook_z", "gpt2-small", "layers.3.attn.c_proj.in"),
        ("blocks.3.attn.hook_z", "EleutherAI/pythia-70m", "layers.3.attention.dense.in"),
        ("blocks.3.mlp.hook_post", "Qwen/Qwen3-1.7B", "layers.3.mlp.down_proj.in"),
        ("blocks.3.hook_mlp_out", None, None),
        ("blocks.3.hook_mlp_out", "somebody/new-model", None),
        ("blocks.3.hook_q", "gpt2-small", None),
        ("hook_embed", "gemma-2-2b", "layers.0.residual_in"),
        ("hook_embed", "gpt2-small", None),
        ("model.layers.3.mlp.input", None, "layers.3.mlp_in"),
        ("transformer.h.3.attn", None, "layers.3.attn"),
        ("blocks." + "9" * 5000 + ".hook_resid_post", None, None),
    ],
)
def test_names_of_places_become_sites_or_are_asked_for(hook, model, site):
    if site is None:
        with pytest.raises(ArtifactError):
            site_of_hook(hook, model)
    else:
        assert str(site_of_hook(hook, model)) == site


@pytest.mark.parametrize(
    ("name", "repo_id"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("pythia-125m", None),  # an old name, of another model than it says
        ("gemma-2-2b-it", "google/gemma-2-2b-it"),
        ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("org/model", "org/model"),
        ("org/../x", None),
        ("Llama-\x1b]0;x", None),
        ("my model", None),
    ],
)
def test_names_of_models_become_repositories_where_that_is_certain(name, repo_id):
    assert repository_of(name) == repo_id


def test_the_model_at_hand_tells_its_family(tmp_path, demo_model):
    case = Case("llamascopium_transcoder")
    with pytest.raises(ArtifactError, match="give the language model"):
        case.load(tmp_path, writes=None)
    with pytest.raises(CompatibilityError):  # the place is known then; the width is another
        load_sae(case.copied(tmp_path / "again"), demo_model)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "circuit_tracer_relu",
            {"reads": "layers.5.mlp", "writes": "layers.5.mlp"},
            "cannot read and write layers.5.mlp",
        ),
        ("saelens_standard", {"writes": "layers.7.mlp"}, "it writes what it reads"),
        ("saelens_standard", {"reads": ["layers.7.mlp", "layers.8.mlp"]}, "it has one site there"),
        ("llamascopium_crosscoder", {"reads": "layers.7.mlp"}, "it reads 2 sites"),
        ("saelens_topk", {"k": 3}, "its files say k themselves"),
        ("saelens_topk", {"input_scales": 3}, "its files say input_scales themselves"),
        ("ckkissane_crosscoder", {"input_scales": (1, 2, 3)}, "expected 2 numbers"),
    ],
)
def test_statements_that_do_not_fit_the_files_are_refused(name, given, message, tmp_path):
    with pytest.raises(HubsaeError, match=message):
        Case(name).load(tmp_path, **given)


def test_one_side_of_a_transcoder_may_be_given(tmp_path):
    found = Case("mwhanna_transcoder").load(tmp_path, reads="layers.3.post_attention_layernorm")
    assert found.config.kind == "transcoder"
    assert found.config.writes == ("layers.3.mlp",)


# --- bombs and disguises --------------------------------------------------------------------------------------------


def test_yaml_that_unfolds_is_refused(tmp_path):
    folder = Case("mwhanna_transcoder").copied(tmp_path)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (folder / "config.yaml").write_text("\n".join([*lines, "model_name: *a8"]))
    with pytest.raises(ArtifactError, match="aliases"):
        load_sae(folder, subfolder="layer_3")
    (folder / "config.yaml").write_text("model_name: " + "x" * (1 << 20))
    with pytest.raises(ArtifactError, match="too many for settings"):
        load_sae(folder, subfolder="layer_3")


def test_huge_numbers_and_files_of_settings_cost_nothing(tmp_path):
    folder = Case("saelens_gated").copied(tmp_path)
    path = next(folder.rglob("cfg.json"))
    config = json.loads(path.read_text())
    for wrong in ({"d_sae": 2**32 - 1}, {"d_sae": 10**400}, {"d_in": 10**30}):
        path.write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ArtifactError):
            load_sae(folder)
    (folder / "config.json").write_bytes(b"{" + b" " * (300 << 20) + b"}")
    path.write_text(json.dumps(config))
    assert load_sae(folder).n_features == 24


def test_names_and_numbers_of_files_are_made_fit_to_show(tmp_path):
    folder = Case("saelens_standard").copied(tmp_path)
    path = next(folder.rglob("cfg.json"))
    config = json.loads(path.read_text())
    config["metadata"] |= {
        "dataset_path": "a\x1b]0;x\x07\ud800" + "b" * 5000,
        "l0": float("nan"),
        "model_name": "x\x1b[2J",
    }
    config["metadata"]["hook_name"] = "blocks.5.hook_resid_post"
    path.write_text(json.dumps(config))
    sae = load_sae(folder)
    told = sae.statistics["imported"]["recorded"]
    assert "\x1b" not in str(told) + repr(sae)
    assert len(told["dataset_path"]) == 500
    assert "l0" not in told
    sae.save(tmp_path / "ours")


def test_one_broken_neighbour_does_not_hide_the_rest(tmp_path):
    folder = Case("sparsify_several").copied(tmp_path)
    for name, content in (("z", b"{ broken"), ("lm", b'{"model_type": "llama"}')):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(content)
        (folder / name / "model.safetensors").write_bytes(b"x")
    (folder / "l1\u00b23").mkdir()
    assert [entry.subfolder for entry in list_dictionaries(folder)] == ["h.1", "h.1/seed1", "layers.2.mlp"]
    assert load_sae(folder, subfolder="h.1").n_features == 24


def test_a_file_of_a_dictionary_stands_for_its_folder(tmp_path):
    folder = Case("saelens_gated").copied(tmp_path)
    assert load_sae(next(folder.rglob("sae_weights.safetensors"))).rule.name == "gated"


@pytest.mark.parametrize("shape", [[1] * 65, [0, 2**63], [0, 2**62, 8]])
def test_shapes_that_are_none_are_refused(shape, tmp_path):
    folder = Case("saelens_standard").copied(tmp_path)
    header = json.dumps(
        {"W_enc": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0 if 0 in shape else 4]}}
    ).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0\0\0\0" * (0 not in shape)
    next(folder.rglob("sae_weights.safetensors")).write_bytes(content)
    with pytest.raises(ArtifactError):
        load_sae(folder)
