import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae import Crosscoder, Dictionary, Transcoder, load_sae, sparsity
from hubsae.api import SAE
from hubsae.dictionary import DictionaryConfig, kind_of
from hubsae.errors import ArtifactError, ConfigError, DataError, HubError


@pytest.fixture
def x() -> mx.array:
    return mx.array(np.random.default_rng(5).standard_normal((2, 7, 16)).astype(np.float32))


def test_the_code_is_what_the_formula_says(sae, x):
    pre = np.array(x) @ np.array(sae.W_enc) + np.array(sae.b_enc)
    kth = -np.sort(-pre, axis=-1)[..., 3:4]
    code = np.where(pre >= kth, np.maximum(pre, 0), 0)
    assert np.allclose(np.array(sae.encode(x)), code, atol=1e-5)
    assert np.allclose(np.array(sae(x)), code @ np.array(sae.W_dec) + np.array(sae.b_dec), atol=1e-4)


def test_sparse_and_dense_codes_decode_alike(sae, x):
    sparse = sae.encode_sparse(x)
    assert sparse.indices.shape == (2, 7, 4)
    assert mx.array_equal(sparse.dense(), sae.encode(x))
    assert np.allclose(np.array(sae.decode(sparse)), np.array(sae.decode(sae.encode(x))), atol=1e-4)


def test_each_row_is_encoded_by_itself(sae, x):
    whole = np.array(sae.encode(x))
    assert np.allclose(np.array(sae.encode(x[1, 3])), whole[1, 3], atol=1e-5)


def test_gradients_flow_through_the_call(sae, x):
    gradient = mx.grad(lambda a: mx.sum(mx.square(sae(a))))(x)
    assert np.abs(np.array(gradient)).max() > 0


@pytest.mark.parametrize("rule", [{"name": "topk", "k": 4}, {"name": "relu"}])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_saving_and_loading_is_exact_to_the_bit(tmp_path, x, rule, dtype):
    sae = random_sae(sparsity=rule)
    sae = SAE(sae.config, {name: array.astype(dtype) for name, array in sae.arrays().items()})
    sae.statistics, sae.metrics = {"rows": 3}, {"fvu": None}
    sae.save(tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert type(again) is SAE
    assert again.config == sae.config
    assert all(mx.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(*map(_values, (sae, again)), strict=True))
    assert (again.statistics, again.metrics) == (sae.statistics, sae.metrics)
    assert mx.array_equal(again.encode(x), sae.encode(x))


def _values(sae):
    return [sae.arrays()[name] for name in sorted(sae.arrays())]


def test_parameters_are_the_only_arrays_of_the_module(sae):
    assert set(sae.parameters()) == {"W_enc", "b_enc", "W_dec", "b_dec"}


@pytest.mark.parametrize(
    ("reads", "writes", "kind"),
    [
        (("layers.1.mlp",), ("layers.1.mlp",), "sae"),
        (("layers.1.mlp_in",), ("layers.1.mlp",), "transcoder"),
        (("layers.1", "layers.2"), ("layers.1", "layers.2"), "crosscoder"),
        (("layers.1.residual",), ("layers.1",), "sae"),
    ],
)
def test_the_kind_follows_from_the_sites(reads, writes, kind):
    assert kind_of(reads, writes) == kind


@pytest.mark.parametrize(("writes", "cls"), [(("layers.2",), Transcoder), (("layers.1", "layers.2"), Crosscoder)])
def test_every_kind_is_saved_and_loaded_as_what_it_is(tmp_path, writes, cls):
    reads = ("layers.1",) if cls is Transcoder else writes
    config = DictionaryConfig(reads, (4,) * len(reads), writes, (4,) * len(writes), 8, {"name": "relu"})
    arrays = {name: mx.ones(shape) for name, shape in Dictionary.array_shapes(config).items()}
    cls(config, arrays).save(tmp_path / "d")
    assert type(load_sae(tmp_path / "d")) is cls
    with pytest.raises(ArtifactError, match=f"this is a {cls.kind}"):
        SAE.from_pretrained(tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_features": 0}, "n_features"),
        ({"sparsity": {"name": "topk", "k": 65}}, "k=65"),
        ({"sparsity": {"name": "later"}}, "hubsae knows .*jumprelu"),
        ({"read_widths": (16, 3)}, "one positive width"),
        ({"kind": "crosscoder"}, "is 'sae'"),
        ({"reads": ("nowhere",)}, "is no site"),
    ],
)
def test_a_config_that_contradicts_itself_never_exists(sae, change, message):
    from dataclasses import asdict

    with pytest.raises((ConfigError, KeyError), match=message):
        DictionaryConfig(**{**asdict(sae.config), **change})


def edited(folder, **changes):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "library_version": "9.0"}, "hubsae 9.0.*pip install -U hubsae"),
        ({"format_version": "x"}, "format_version 'x'"),
        ({"library_name": "other"}, "not written by hubsae"),
        ({"n_features": 65}, "the config says"),
        ({"sparsity": {"name": "later"}}, "sparsity 'later'"),
        ({"novelty": 1}, "unknown entries novelty"),
        ({"format_version": True}, "format_version True"),
        ({"sparsity": "abc"}, "sparsity"),
        ({"sparsity": [["name", "topk"], ["k", 2]]}, "sparsity"),
        ({"sparsity": {"name": "topk", "k": True}}, "k=True"),
        ({"reads": ["layers." + "9" * 5000]}, "is no site"),
        ({"reads": "layers.1"}, "reads: expected a list"),
        ({"base_models": "x"}, "base_models"),
        ({"base_models": [{"revision": 5}]}, "base_model, revision"),
        ({"base_models": [{"repo_id": ["x"]}]}, "base_model, repo_id"),
        ({"base_models": [{"files": ["a"]}]}, "base_model, files"),
        ({"base_models": [{"files": {"a": 1}}]}, "base_model, files, a"),
        ({"base_models": [{"quantization": "x"}]}, "base_model, quantization"),
        ({"tokens": []}, "tokens"),
        ({"tokens": {"context_size": "8"}}, "context_size"),
        ({"n_features": 64.0}, "n_features"),
        ({"read_widths": [4], "write_widths": [4]}, "the config says"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(sae, tmp_path, changes, message):
    sae.save(tmp_path / "d")
    edited(tmp_path / "d", **changes)
    with pytest.raises(ArtifactError, match=message):
        load_sae(tmp_path / "d")


def test_damaged_weights_are_refused(sae, tmp_path):
    sae.save(tmp_path / "d")
    weights = tmp_path / "d" / "model.safetensors"
    content = weights.read_bytes()
    for bad in (content[:-100], b"\xff" * 200, b""):
        weights.write_bytes(bad)
        with pytest.raises(ArtifactError, match="not a valid safetensors"):
            load_sae(tmp_path / "d")
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"no model\.safetensors"):
        load_sae(tmp_path / "d")


def test_missing_and_foreign_arrays_are_refused(sae):
    arrays = sae.arrays()
    with pytest.raises(ArtifactError, match=r"missing \['b_enc'\]"):
        SAE(sae.config, {k: v for k, v in arrays.items() if k != "b_enc"})
    with pytest.raises(ArtifactError, match=r"unknown \['more'\]"):
        SAE(sae.config, {**arrays, "more": mx.zeros(1)})
    with pytest.raises(ArtifactError, match="floating-point"):
        SAE(sae.config, {**arrays, "b_enc": mx.zeros(64, mx.int32)})


def test_a_folder_that_is_none_says_what_is_there(tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"holds no dictionary of a layout.*it holds cfg\.json"):
        load_sae(tmp_path)
    with pytest.raises(HubError, match="neither an existing folder nor a repository id"):
        load_sae(tmp_path / "nothing" / "here")


@pytest.mark.parametrize("subfolder", ["../other", "a/../../b", "..\\x"])
def test_a_subfolder_cannot_lead_out(sae, tmp_path, subfolder):
    with pytest.raises(ConfigError, match="leads out"):
        load_sae(tmp_path, subfolder=subfolder)


def test_a_subfolder_is_found(sae, tmp_path):
    sae.save(tmp_path / "repo" / "deep" / "one")
    assert load_sae(tmp_path / "repo", subfolder="deep/one").config == sae.config


def test_weights_that_are_not_finite_are_not_saved_and_the_folder_stays(sae, tmp_path):
    sae.save(tmp_path / "d")
    before = {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()}
    sae.b_dec = sae.b_dec.at[0].add(np.nan)
    with pytest.raises(DataError, match="b_dec: holds NaN"):
        sae.save(tmp_path / "d")
    sae.b_dec = mx.zeros(16)
    sae.metrics = {"fvu": float("nan")}
    with pytest.raises(DataError, match="not finite"):
        sae.save(tmp_path / "d")
    assert {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_activations_of_another_width_are_refused(sae):
    with pytest.raises(DataError, match=r"reads 16 columns \(layers\.1\.residual\)"):
        sae.encode(mx.zeros((3, 17)))
    with pytest.raises(DataError, match="has 64 features"):
        sae.decode(mx.zeros((3, 63)))


def test_the_wrong_order_of_bases_is_refused():
    import mlx.nn as nn

    from hubsae.hub import Artifact

    with pytest.raises(TypeError, match=r"before nn\.Module"):
        type("Wrong", (nn.Module, Artifact), {})


@pytest.mark.parametrize("name", ["statistics.json", "metrics.json"])
@pytest.mark.parametrize("content", ['{"rows": "x", "fvu": "abc", "n_spliced_tokens": 5}', '{"data": "x", "rows": 1}'])
def test_numbers_that_are_none_are_refused_when_a_card_is_made(sae, tmp_path, name, content):
    sae.save(tmp_path / "d")
    (tmp_path / "d" / name).write_text(content)
    again = load_sae(tmp_path / "d")
    with pytest.raises(ArtifactError, match="no card can be made"):
        again.save(tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", '"x"'])
def test_json_that_is_none_is_refused(sae, tmp_path, content):
    sae.save(tmp_path / "d")
    (tmp_path / "d" / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        load_sae(tmp_path / "d")


def test_a_folder_behind_a_link_is_saved_to(sae, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    sae.save(tmp_path / "link")
    assert load_sae(tmp_path / "real").config == sae.config


@pytest.mark.parametrize("name", ["", None, 5, "a" * 300])
def test_what_is_no_name_is_refused(name):
    with pytest.raises((ConfigError, HubError)):
        load_sae(name)


def test_numpy_rows_are_taken_too(sae, x):
    assert mx.array_equal(sae.encode(np.array(x)), sae.encode(x))


LEARNT = {
    "topk": {"name": "topk", "k": 4},
    "relu": {"name": "relu"},
    "batchtopk": {"name": "batchtopk", "k": 4},
    "jumprelu": {"name": "jumprelu"},
    "gated": {"name": "gated"},
}


def with_rule(name: str) -> SAE:
    """An SAE with random weights and thresholds."""
    rule = sparsity.from_dict(LEARNT[name])
    one = random_sae(sparsity=LEARNT["topk"])
    rng = np.random.default_rng(1)
    learned = {n: mx.array(rng.uniform(0.5, 3, s).astype(np.float32)) for n, s in rule.array_shapes(64).items()}
    return SAE(replace(one.config, sparsity=LEARNT[name]), {**one.arrays(), **learned})


@pytest.mark.parametrize("name", LEARNT)
def test_a_rows_code_does_not_depend_on_the_rows_beside_it(name, tmp_path):
    sae, rng = with_rule(name), np.random.default_rng(1)
    x = mx.array(rng.standard_normal((50, 16)).astype(np.float32))
    whole = np.array(sae.encode(x))
    for i in (0, 7, 49):
        assert np.allclose(np.array(sae.encode(x[i])), whole[i], atol=1e-5)
        assert np.allclose(np.array(sae.encode(x[i : i + 1]))[0], whole[i], atol=1e-5)
    pre = np.array(x) @ np.array(sae.W_enc) + np.array(sae.b_enc)
    a = {n: np.array(v) for n, v in sae._learned().items()}
    expected = {
        "topk": lambda: np.where(pre >= np.sort(pre, axis=1)[:, -4, None], np.maximum(pre, 0), 0),
        "relu": lambda: np.maximum(pre, 0),
        "batchtopk": lambda: np.where(pre > a["threshold"], pre, 0),
        "jumprelu": lambda: np.where(pre > a["threshold"], pre, 0),
        "gated": lambda: np.where(pre > 0, np.maximum(pre * a["gate_scale"] + a["gate_shift"], 0), 0),
    }[name]()
    assert np.allclose(whole, expected, atol=1e-4)
    assert mx.allclose(sae(x), sae.decode(sae.encode_sparse(x)), atol=1e-3)
    sae.save(tmp_path / "sae")
    assert mx.array_equal(SAE.from_pretrained(tmp_path / "sae").encode(x), sae.encode(x))


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_go_through_encode(name):
    sae = with_rule(name)
    x = mx.array(np.random.default_rng(2).standard_normal((5, 16)).astype(np.float32))

    def loss(x):
        return mx.sum(sae.encode(x))

    gradient, step = np.array(mx.grad(loss)(x)), 1e-3
    direction = mx.array(np.random.default_rng(3).standard_normal((5, 16)).astype(np.float32))
    numeric = (loss(x + step * direction) - loss(x - step * direction)).item() / (2 * step)
    assert np.sum(gradient * np.array(direction)) == pytest.approx(numeric, rel=2e-2)


def test_a_sparse_code_has_k_places_and_the_type_of_the_weights():
    sae = random_sae(sparsity={"name": "topk", "k": 40})
    half = SAE(sae.config, {name: array.astype(mx.float16) for name, array in sae.arrays().items()})
    x = mx.array(np.random.default_rng(2).standard_normal((5, 3, 16)).astype(np.float32))
    for one, kind in ((sae, mx.float32), (half, mx.float16)):
        code = one.encode_sparse(x)
        assert code.indices.shape == code.values.shape == (5, 3, 40)
        assert code.values.dtype == code.dense().dtype == one.encode(x).dtype == kind
        assert one.decode(code).dtype == kind
