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
from hubsae.errors import ArtifactError, ConfigError, HubsaeError, HubsaeWarning
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


def test_given_scales_are_folded_in(tmp_path):
    case = Case("ckkissane_crosscoder")
    found, expected = case.load(tmp_path, input_scales=case.info["scales2"]), case.expected
    far = distance(found, *(expected[f"{what}2"] for what in ("x", "code", "y")))
    assert max(far.code, far.y) < TOLERANCE
    with pytest.raises(ArtifactError, match="input_scales=, 2 numbers"):
        case.load(tmp_path / "again", input_scales=None)


def test_the_scale_that_a_checkpoint_keeps_beside_its_weights_is_folded_in(tmp_path):
    found = Case(SCALED).load(tmp_path)
    plain = Case(SCALED).load(tmp_path / "again", input_scales=1)
    x = Case(SCALED).expected["x"]
    assert mx.allclose(found.encode(mx.array(x)), plain.encode(mx.array(0.5 * x)), atol=1e-5)
    assert mx.allclose(found(mx.array(x)), 2 * plain(mx.array(0.5 * x)), atol=1e-4)


def test_what_files_say_and_what_nobody_recorded_stays_with_the_dictionary(tmp_path):
    sae = Case("saelens_standard_b_dec").load(tmp_path)
    assert sae.base_model.repo_id == "openai-community/gpt2"
    assert sae.config.reads == ("layers.5.residual_in",)
    assert sae.config.tokens == {"context_size": 128, "add_special_tokens": True, "skip_positions": 0}
    told = sae.statistics["imported"]
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
    with pytest.raises(ArtifactError, match=r"config\.yaml"):
        load_sae(folder, subfolder="layer_1", reads=MLP["reads"])
    assert not mark.exists()


def test_an_untrained_threshold_is_warned_of(tmp_path):
    with pytest.warns(HubsaeWarning, match="every positive feature is kept"):
        Case("dictionary_learning_batchtopk_unset").load(tmp_path)
